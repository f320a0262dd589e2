//! One WebSocket held open: numbered messages without a gap, fragments put together, echoes, and ends told apart.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

use crate::{
    clock,
    connection::{Failure, Io, Protocol},
    exchange::{Route, Shared, read_failure, sample},
    http1::Http1,
    plan::mix,
    tally::{Kind, Reason},
};

const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Messages between two echoes that are asked for.
const ECHO_EVERY: u64 = 10;
/// Waits before another attempt after one failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Closed sockets come back spread over this time.
const RETURN_WITHIN_MS: u64 = 500;

/// Keeps one WebSocket open until the run stops.
pub(crate) async fn hold(shared: Arc<Shared>, number: usize) {
    let mut attempt = 0_u64;
    while !shared.stop.is_cancelled() {
        attempt += 1;
        let mut route = Route {
            http: "1.1",
            kept: false,
            opened: clock::instant(),
        };
        shared.tally().sent(Kind::Websocket);
        let opened = timeout(
            HANDSHAKE_TIME_MAX,
            open(&shared, number as u64 ^ attempt << 32, &mut route),
        )
        .await;
        let opened =
            opened.unwrap_or_else(|_| Err(Failure::new(Reason::NoAnswer, "no handshake in time")));
        let wait = match opened {
            Err(Failure { reason, detail, .. }) => {
                shared
                    .tally()
                    .lost(sample(Kind::Websocket, reason, detail, &route));
                RETRY_AFTER
            }
            // A release broken on purpose refused it.
            Ok(None) => RETRY_AFTER,
            Ok(Some(mut socket)) => {
                let end = socket.listen(&shared).await;
                let mut tally = shared.tally();
                tally.streams().open -= 1;
                match end {
                    End::Stopped => return,
                    End::Moved => tally.streams().moved += 1,
                    End::Cut(Failure { reason, detail, .. }) => {
                        let mut sample = sample(Kind::Websocket, reason, detail, &route);
                        sample.release = Some(socket.release.clone());
                        tally.cut(sample);
                    }
                }
                Duration::from_millis(mix(number as u64 ^ attempt << 32) % RETURN_WITHIN_MS)
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = shared.stop.cancelled() => {}
        }
    }
}

struct Socket {
    io: Io,
    buffer: BytesMut,
    release: String,
    /// The message whose fragments are arriving.
    partial: Option<Vec<u8>>,
    next_number: u64,
    /// The echo that is waited for, and since which number.
    echo: Option<(String, u64)>,
}

enum End {
    Stopped,
    Moved,
    Cut(Failure),
}

/// Opens one; `None` when the answer is a fault built in.
async fn open(shared: &Shared, seed: u64, route: &mut Route) -> Result<Option<Socket>, Failure> {
    let started = clock::instant();
    let io = shared.connector.open(Protocol::Http1).await?;
    route.opened = clock::instant();
    let mut http = Http1::new(io);
    let key = base64(&[mix(seed).to_be_bytes(), mix(!seed).to_be_bytes()].concat());
    let every = shared.settings.stream_every.as_millis();
    let text = format!(
        "GET /v2/stream?rehearsal=numbers&every={every} HTTP/1.1\r\n{}connection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n",
        shared.common_headers()
    );
    let broken = |error: std::io::Error| Failure::new(Reason::Reset, error.to_string());
    http.write([text.as_bytes(), b""])
        .await
        .map_err(|error| broken(error.source))?;
    let mut begun = false;
    let head = http
        .head(&mut begun)
        .await
        .map_err(|error| read_failure(error, "in the handshake"))?;
    let Some(release) = head.release else {
        return Err(Failure::new(
            Reason::NotFromApp,
            format!("status {} without x-release", head.status),
        ));
    };
    let latency = clock::instant().duration_since(started);
    shared.tally().answered(
        Kind::Websocket,
        &release,
        head.status,
        head.is_fault,
        latency,
    );
    if head.status != 101 {
        return Ok(None);
    }
    let accept = digest(
        &SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    shared.tally().stream_opened(&release);
    let (io, buffer) = http.into_parts();
    let socket = Socket {
        io,
        buffer,
        release,
        partial: None,
        next_number: 0,
        echo: None,
    };
    if head.accept.as_deref() != Some(base64(accept.as_ref()).as_str()) {
        let mut tally = shared.tally();
        tally.streams().open -= 1;
        tally.cut(sample(
            Kind::Websocket,
            Reason::Malformed,
            "Sec-WebSocket-Accept is wrong".to_owned(),
            route,
        ));
        return Ok(None);
    }
    Ok(Some(socket))
}

impl Socket {
    async fn listen(&mut self, shared: &Shared) -> End {
        let silence_max = shared.settings.stream_every + shared.settings.silence_max;
        loop {
            loop {
                match self.take_frame(shared).await {
                    Ok(Some(None)) => {}
                    Ok(Some(Some(end))) => return end,
                    Ok(None) => break,
                    Err(failure) => return End::Cut(failure),
                }
            }
            self.buffer.reserve(1 << 10);
            let read = tokio::select! {
                biased;
                () = shared.stop.cancelled() => {
                    self.say_goodbye().await;
                    return End::Stopped;
                }
                read = timeout(silence_max, self.io.read_buf(&mut self.buffer)) => read,
            };
            let (reason, detail) = match read {
                Ok(Ok(1..)) => continue,
                Ok(Ok(0)) => (Reason::Unannounced, "ended without a Close".to_owned()),
                Ok(Err(error)) => (Reason::Reset, error.to_string()),
                Err(_) => (
                    Reason::Silent,
                    format!("no message for {} ms", silence_max.as_millis()),
                ),
            };
            let inside = self.partial.is_some() || !self.buffer.is_empty();
            let reason = if inside && reason != Reason::Silent {
                Reason::CutInMessage
            } else {
                reason
            };
            return End::Cut(Failure::new(reason, detail));
        }
    }

    /// Takes one frame, if a whole one is there; `Some(Some(end))` when it ends the stream.
    async fn take_frame(&mut self, shared: &Shared) -> Result<Option<Option<End>>, Failure> {
        let malformed = |what: &str| Failure::new(Reason::Malformed, what);
        let [first, second, ..] = self.buffer[..] else {
            return Ok(None);
        };
        if second & 0x80 != 0 || first & 0x70 != 0 {
            return Err(malformed("a server's frame is masked or has reserved bits"));
        }
        let extended = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(bytes) = self.buffer.get(2..2 + extended) else {
            return Ok(None);
        };
        let length = match extended {
            0 => u64::from(second),
            _ => bytes
                .iter()
                .fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        if length > 1 << 20 {
            return Err(malformed("a frame is too long"));
        }
        if ((self.buffer.len() - 2 - extended) as u64) < length {
            return Ok(None);
        }
        self.buffer.advance(2 + extended);
        let payload = self.buffer.split_to(length as usize);
        let is_last = first & 0x80 != 0;
        match (first & 0x0F, &mut self.partial) {
            (0x0, Some(partial)) => partial.extend_from_slice(&payload),
            (0x1, None) => self.partial = Some(payload.to_vec()),
            (0x0, None) | (0x1 | 0x2, Some(_)) => {
                return Err(malformed("fragments of two messages are mixed"));
            }
            (0x8, partial) => {
                let code =
                    (payload.len() >= 2).then(|| u16::from_be_bytes([payload[0], payload[1]]));
                if partial.is_some() {
                    let detail = format!("Close {code:?} inside a message");
                    return Err(Failure::new(Reason::CutInMessage, detail));
                }
                drop(self.send(0x88, &payload).await);
                return match code {
                    Some(1012) => Ok(Some(Some(End::Moved))),
                    code => {
                        let text = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                        let detail = format!("Close {code:?} {text}");
                        Err(Failure::new(Reason::UnexpectedClose, detail))
                    }
                };
            }
            (0x9, _) => {
                let sent = self.send(0x8A, &payload).await;
                return sent
                    .map(|()| Some(None))
                    .map_err(|error| Failure::new(Reason::Reset, error.to_string()));
            }
            (0xA, _) => return Ok(Some(None)),
            _ => return Err(malformed("an unknown opcode")),
        }
        if is_last && let Some(message) = self.partial.take() {
            self.message(shared, &message).await?;
        }
        Ok(Some(None))
    }

    async fn message(&mut self, shared: &Shared, message: &[u8]) -> Result<(), Failure> {
        let value: serde_json::Value = serde_json::from_slice(message)
            .map_err(|_| Failure::new(Reason::Malformed, "a message is no JSON"))?;
        if let Some(text) = value["echo"].as_str() {
            if self.echo.as_ref().is_none_or(|(wanted, _)| wanted != text) {
                return Err(Failure::new(
                    Reason::Gap,
                    format!("echo `{text}` was not asked for"),
                ));
            }
            self.echo = None;
            shared.tally().streams().echoes += 1;
            return Ok(());
        }
        let found = value["number"].as_u64();
        if found != Some(self.next_number) {
            let detail = format!("number {found:?} instead of {}", self.next_number);
            return Err(Failure::new(Reason::Gap, detail));
        }
        self.next_number += 1;
        shared.tally().streams().messages += 1;
        match &self.echo {
            Some((text, since)) if self.next_number > since + ECHO_EVERY => Err(Failure::new(
                Reason::Silent,
                format!("`{text}` was not echoed"),
            )),
            None if self.next_number % ECHO_EVERY == 1 => {
                let text = format!("{}-{}", shared.run, self.next_number);
                self.echo = Some((text.clone(), self.next_number));
                let sent = self.send(0x81, text.as_bytes()).await;
                sent.map_err(|error| Failure::new(Reason::Reset, error.to_string()))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Sends one short frame, masked as a client must.
    async fn send(&mut self, first: u8, payload: &[u8]) -> std::io::Result<()> {
        let payload = &payload[..payload.len().min(125)];
        let mask = (mix(self.next_number ^ u64::from(first)) as u32).to_be_bytes();
        let mut frame = vec![first, 0x80 | payload.len() as u8];
        frame.extend_from_slice(&mask);
        frame.extend(
            payload
                .iter()
                .enumerate()
                .map(|(index, byte)| byte ^ mask[index % 4]),
        );
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }

    async fn say_goodbye(&mut self) {
        if self.send(0x88, &1000_u16.to_be_bytes()).await.is_ok() {
            let mut rest = [0; 512];
            let closed = async { while matches!(self.io.read(&mut rest).await, Ok(1..)) {} };
            drop(timeout(Duration::from_millis(500), closed).await);
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes.chunks(3).fold(String::new(), |mut text, chunk| {
        let word = (0..3).fold(0_u32, |word, index| {
            word << 8 | u32::from(chunk.get(index).copied().unwrap_or(0))
        });
        text.extend((0..4).map(|index| match index <= chunk.len() {
            true => char::from(ALPHABET[(word >> (18 - 6 * index)) as usize & 63]),
            false => '=',
        }));
        text
    })
}
