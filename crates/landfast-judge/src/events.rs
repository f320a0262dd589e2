//! One stream of server-sent events held open: numbered events without a gap, and an end only between two.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use crate::{
    clock,
    connection::{Failure, Protocol},
    exchange::{Route, Shared, read_failure, sample},
    http1::{Http1, ReadError},
    plan::mix,
    tally::{Kind, Reason},
};

const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
const RETRY_AFTER: Duration = Duration::from_secs(1);
const RETURN_WITHIN_MS: u64 = 500;

/// Keeps one event stream open until the run stops.
pub(crate) async fn hold(shared: Arc<Shared>, number: usize) {
    let mut attempt = 0_u64;
    while !shared.stop.is_cancelled() {
        attempt += 1;
        let mut route = Route {
            http: "1.1",
            kept: false,
            opened: clock::instant(),
        };
        shared.tally().sent(Kind::Events);
        let opened = timeout(HEAD_TIME_MAX, open(&shared, &mut route)).await;
        let opened =
            opened.unwrap_or_else(|_| Err(Failure::new(Reason::NoAnswer, "no answer in time")));
        let wait = match opened {
            Err(Failure { reason, detail, .. }) => {
                shared
                    .tally()
                    .lost(sample(Kind::Events, reason, detail, &route));
                RETRY_AFTER
            }
            Ok(None) => RETRY_AFTER,
            Ok(Some((mut http, release))) => {
                let end = tokio::select! {
                    biased;
                    () = shared.stop.cancelled() => None,
                    end = listen(&shared, &mut http) => Some(end),
                };
                let mut tally = shared.tally();
                tally.streams().open -= 1;
                match end {
                    None => return,
                    Some(Ok(())) => tally.streams().ended += 1,
                    Some(Err(Failure { reason, detail, .. })) => {
                        let mut sample = sample(Kind::Events, reason, detail, &route);
                        sample.release = Some(release);
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

/// Opens one; `None` when the answer is a fault built in.
async fn open(shared: &Shared, route: &mut Route) -> Result<Option<(Http1, String)>, Failure> {
    let started = clock::instant();
    let io = shared.connector.open(Protocol::Http1).await?;
    route.opened = clock::instant();
    let mut http = Http1::new(io);
    let every = shared.settings.stream_every.as_millis();
    let headers = shared.common_headers();
    let text = format!(
        "GET /v2/events?rehearsal=numbers&every={every} HTTP/1.1\r\n{headers}accept: text/event-stream\r\n\r\n"
    );
    let written = http.write([text.as_bytes(), b""]).await;
    written.map_err(|error| Failure::new(Reason::Reset, error.source.to_string()))?;
    let mut begun = false;
    let head = http
        .head(&mut begun)
        .await
        .map_err(|error| read_failure(error, "in the head"))?;
    let Some(release) = head.release else {
        return Err(Failure::new(
            Reason::NotFromApp,
            format!("status {} without x-release", head.status),
        ));
    };
    let latency = clock::instant().duration_since(started);
    let mut tally = shared.tally();
    tally.answered(Kind::Events, &release, head.status, head.is_fault, latency);
    if head.status != 200 {
        return Ok(None);
    }
    tally.stream_opened(&release);
    Ok(Some((http, release)))
}

/// Reads until the stream ends; in order only when it ends between two events.
async fn listen(shared: &Shared, http: &mut Http1) -> Result<(), Failure> {
    let silence_max = shared.settings.stream_every + shared.settings.silence_max;
    let (mut text, mut next) = (Vec::new(), 0_u64);
    loop {
        let data = timeout(silence_max, http.data()).await;
        let data = data.map_err(|_| {
            Failure::new(
                Reason::Silent,
                format!("no event for {} ms", silence_max.as_millis()),
            )
        })?;
        let inside = !text.is_empty();
        match data {
            Ok(Some(data)) => text.extend_from_slice(&data),
            Ok(None) if inside => {
                return Err(Failure::new(Reason::CutInEvent, "ended inside an event"));
            }
            Ok(None) => return Ok(()),
            Err(ReadError::Closed | ReadError::Broken(_)) if inside => {
                return Err(Failure::new(Reason::CutInEvent, "broke inside an event"));
            }
            Err(ReadError::Closed) => {
                return Err(Failure::new(
                    Reason::Unannounced,
                    "ended without the last chunk",
                ));
            }
            Err(error) => return Err(read_failure(error, "between two events")),
        }
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            let event = String::from_utf8_lossy(&event);
            let found = event
                .lines()
                .find_map(|line| line.strip_prefix("id: ")?.parse::<u64>().ok());
            // A comment keeps a connection alive and is no event.
            if event.starts_with(':') {
                continue;
            }
            if found != Some(next) {
                return Err(Failure::new(
                    Reason::Gap,
                    format!("event {found:?} instead of {next}"),
                ));
            }
            next += 1;
            shared.tally().streams().events += 1;
        }
    }
}
