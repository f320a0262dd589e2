//! The server's side of WebSocket (RFC 6455): the handshake's answer and the frames.
//!
//! Reading is safe to cancel: bytes stay in a buffer until a whole frame is there. A peer that breaks the
//! protocol is told how with a Close and is not listened to again. No extension is ever agreed on.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest message a peer may send.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Codes of Close frames.
pub(crate) mod code {
    pub(crate) const NORMAL: u16 = 1000;
    pub(crate) const PROTOCOL_ERROR: u16 = 1002;
    pub(crate) const NOT_TEXT: u16 = 1007;
    pub(crate) const TOO_BIG: u16 = 1009;
    pub(crate) const SERVICE_RESTART: u16 = 1012;
}

/// What `Sec-WebSocket-Accept` must say to a `Sec-WebSocket-Key`.
pub(crate) fn accept(key: &str) -> String {
    base64(&sha1(
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    ))
}

/// What a peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Text(String),
    Binary(Bytes),
    Ping(Bytes),
    Pong,
    /// With the code, if it gave one.
    Close(Option<u16>),
}

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the peer went away")]
    Gone(#[source] io::Error),
    #[error("the peer broke the protocol: {1}")]
    Protocol(u16, &'static str),
}

/// Reads messages.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    io: R,
    buffer: BytesMut,
    /// The message whose fragments are arriving, and whether it is text.
    partial: Option<(bool, BytesMut)>,
}

struct Frame {
    last: bool,
    opcode: u8,
    payload: BytesMut,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            partial: None,
        }
    }

    /// The next message. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Message, ReadError> {
        loop {
            while let Some(frame) = parse(&mut self.buffer)? {
                if let Some(message) = self.take(frame)? {
                    return Ok(message);
                }
            }
            if self
                .io
                .read_buf(&mut self.buffer)
                .await
                .map_err(ReadError::Gone)?
                == 0
            {
                return Err(ReadError::Gone(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Option<Message>, ReadError> {
        let payload = frame.payload;
        match (frame.opcode, &mut self.partial) {
            (0x0, Some((_, partial))) => {
                if partial.len() + payload.len() > MESSAGE_BYTES_MAX {
                    return Err(ReadError::Protocol(code::TOO_BIG, "message is too big"));
                }
                partial.extend_from_slice(&payload);
            }
            (0x0, None) => {
                return Err(ReadError::Protocol(
                    code::PROTOCOL_ERROR,
                    "continuation of nothing",
                ));
            }
            (0x1 | 0x2, Some(_)) => {
                return Err(ReadError::Protocol(
                    code::PROTOCOL_ERROR,
                    "message inside a message",
                ));
            }
            (0x1 | 0x2, partial) => *partial = Some((frame.opcode == 0x1, payload)),
            (0x8, _) => {
                let code =
                    (payload.len() >= 2).then(|| u16::from_be_bytes([payload[0], payload[1]]));
                return Ok(Some(Message::Close(code)));
            }
            (0x9, _) => return Ok(Some(Message::Ping(payload.freeze()))),
            (0xA, _) => return Ok(Some(Message::Pong)),
            _ => return Err(ReadError::Protocol(code::PROTOCOL_ERROR, "unknown opcode")),
        }
        if !frame.last {
            return Ok(None);
        }
        let (is_text, whole) = self.partial.take().expect("a data frame was just taken");
        if !is_text {
            return Ok(Some(Message::Binary(whole.freeze())));
        }
        match String::from_utf8(whole.to_vec()) {
            Ok(text) => Ok(Some(Message::Text(text))),
            Err(_) => Err(ReadError::Protocol(code::NOT_TEXT, "text is not UTF-8")),
        }
    }
}

/// Takes one frame off the front of `buffer` when it is there whole.
fn parse(buffer: &mut BytesMut) -> Result<Option<Frame>, ReadError> {
    let [first, second, ..] = buffer[..] else {
        return Ok(None);
    };
    let (last, opcode) = (first & 0x80 != 0, first & 0x0F);
    if first & 0x70 != 0 {
        return Err(ReadError::Protocol(
            code::PROTOCOL_ERROR,
            "reserved bits are set",
        ));
    }
    if second & 0x80 == 0 {
        return Err(ReadError::Protocol(
            code::PROTOCOL_ERROR,
            "a client must mask its frames",
        ));
    }
    let is_control = opcode & 0x8 != 0;
    let short = usize::from(second & 0x7F);
    if is_control && (!last || short > 125) {
        return Err(ReadError::Protocol(
            code::PROTOCOL_ERROR,
            "control frame is long or fragmented",
        ));
    }
    let length_bytes = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some(extended) = buffer.get(2..2 + length_bytes) else {
        return Ok(None);
    };
    let length = match length_bytes {
        0 => short as u64,
        _ => extended
            .iter()
            .fold(0, |length: u64, byte| length << 8 | u64::from(*byte)),
    };
    if length > MESSAGE_BYTES_MAX as u64 {
        return Err(ReadError::Protocol(code::TOO_BIG, "frame is too big"));
    }
    let (head, length) = (2 + length_bytes + 4, length as usize);
    if buffer.len() < head + length {
        return Ok(None);
    }
    let mask: [u8; 4] = buffer[head - 4..head].try_into().expect("four bytes");
    buffer.advance(head);
    let mut payload = buffer.split_to(length);
    for (index, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[index % 4];
    }
    Ok(Some(Frame {
        last,
        opcode,
        payload,
    }))
}

/// Writes messages; a server does not mask.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    io: W,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub(crate) fn new(io: W) -> Self {
        Self { io }
    }

    /// One text message in one frame.
    pub(crate) async fn text(&mut self, text: &str) -> io::Result<()> {
        self.frame(0x81, text.as_bytes()).await
    }

    /// One text message in `parts` frames, each written for itself.
    pub(crate) async fn fragmented(&mut self, text: &str, parts: usize) -> io::Result<()> {
        let size = text.len().div_ceil(parts).max(1);
        let count = text.len().div_ceil(size).max(1);
        for (index, part) in text.as_bytes().chunks(size).enumerate() {
            let opcode = if index == 0 { 0x1 } else { 0x0 };
            let last = if index + 1 == count { 0x80 } else { 0 };
            self.frame(last | opcode, part).await?;
        }
        Ok(())
    }

    pub(crate) async fn pong(&mut self, payload: &[u8]) -> io::Result<()> {
        self.frame(0x8A, payload).await
    }

    pub(crate) async fn close(&mut self, code: u16, reason: &str) -> io::Result<()> {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend_from_slice(reason.as_bytes());
        self.frame(0x88, &payload).await
    }

    async fn frame(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(payload.len() + 10);
        frame.push(first);
        match payload.len() {
            length @ 0..=125 => frame.push(length as u8),
            length @ 126..=0xFFFF => {
                frame.push(126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        self.io.write_all(&frame).await?;
        self.io.flush().await
    }
}

/// SHA-1, which only the handshake asks for; it protects nothing there.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).div_ceil(64) * 64 - 8, 0);
    padded.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    let mut state: [u32; 5] = [
        0x6745_2301,
        0xEFCD_AB89,
        0x98BA_DCFE,
        0x1032_5476,
        0xC3D2_E1F0,
    ];
    for block in padded.chunks_exact(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        }
        for index in 16..80 {
            words[index] =
                (words[index - 3] ^ words[index - 8] ^ words[index - 14] ^ words[index - 16])
                    .rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (index, word) in words.iter().enumerate() {
            let (mixed, constant) = match index / 20 {
                0 => ((b & c) | (!b & d), 0x5A82_7999),
                1 => (b ^ c ^ d, 0x6ED9_EBA1),
                2 => ((b & c) | (b & d) | (c & d), 0x8F1B_BCDC),
                _ => (b ^ c ^ d, 0xCA62_C1D6_u32),
            };
            let next = a
                .rotate_left(5)
                .wrapping_add(mixed)
                .wrapping_add(e)
                .wrapping_add(constant)
                .wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (own, more) in state.iter_mut().zip([a, b, c, d, e]) {
            *own = own.wrapping_add(more);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, index| {
            word << 8 | u32::from(chunk.get(index).copied().unwrap_or(0))
        });
        for index in 0..4 {
            match index <= chunk.len() {
                true => text.push(char::from(
                    ALPHABET[(word >> (18 - 6 * index)) as usize & 63],
                )),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_the_handshake_of_the_standard() {
        assert_eq!(
            accept("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(
            crate::release::hex(&sha1(b"abc")),
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert_eq!(
            crate::release::hex(&sha1(&[b'a'; 119])),
            "ee971065aaa017e0632a8ca6c77bb3bf8b1dfc56"
        );
        assert_eq!(
            (base64(b"f"), base64(b"fo"), base64(b"foo")),
            ("Zg==".into(), "Zm8=".into(), "Zm9v".into())
        );
    }

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first, 0x80 | payload.len() as u8, 1, 2, 3, 4];
        frame.extend(
            payload
                .iter()
                .enumerate()
                .map(|(index, byte)| byte ^ mask[index % 4]),
        );
        frame
    }

    async fn read_all(bytes: &[u8]) -> Vec<Result<Message, u16>> {
        let mut reader = Reader::new(bytes);
        let mut found = Vec::new();
        loop {
            match reader.next().await {
                Ok(message) => found.push(Ok(message)),
                Err(ReadError::Protocol(code, _)) => {
                    found.push(Err(code));
                    return found;
                }
                Err(ReadError::Gone(_)) => return found,
            }
        }
    }

    #[tokio::test]
    async fn joins_fragments_with_a_ping_between_them() {
        let bytes = [
            masked(0x01, b"one "),
            masked(0x89, b"?"),
            masked(0x80, b"message"),
        ]
        .concat();
        let found = read_all(&bytes).await;
        assert_eq!(
            found,
            [
                Ok(Message::Ping(Bytes::from_static(b"?"))),
                Ok(Message::Text("one message".to_owned()))
            ]
        );
    }

    #[tokio::test]
    async fn refuses_what_the_standard_forbids() {
        for (bytes, code) in [
            (vec![0x81, 0x01, b'x'], code::PROTOCOL_ERROR),
            (masked(0xC1, b"x"), code::PROTOCOL_ERROR),
            (masked(0x80, b"x"), code::PROTOCOL_ERROR),
            (masked(0x09, b"x"), code::PROTOCOL_ERROR),
            (masked(0x81, &[0xFF]), code::NOT_TEXT),
            (
                [masked(0x01, b"x"), masked(0x81, b"y")].concat(),
                code::PROTOCOL_ERROR,
            ),
            (vec![0x81, 0xFF, 0, 0, 0, 0, 1, 0, 0, 0], code::TOO_BIG),
        ] {
            assert_eq!(read_all(&bytes).await, [Err(code)], "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn writes_fragments_that_make_the_message_again() {
        let mut out = Vec::new();
        Writer::new(&mut out)
            .fragmented("abcdefgh", 3)
            .await
            .unwrap();
        assert_eq!(
            out,
            [
                &[0x01, 3][..],
                b"abc",
                &[0x00, 3],
                b"def",
                &[0x80, 2],
                b"gh"
            ]
            .concat()
        );
    }
}
