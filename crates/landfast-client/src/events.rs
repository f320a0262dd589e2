//! A stream of events that goes on where it was cut.

use std::{collections::VecDeque, time::Duration};

use http::Method;
use http_body_util::BodyExt as _;
use landfast_api::{EVENT_HEARTBEAT_S, Event};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    Client, Error, PATIENCE, SseParser,
    connection::{Answer, Call, RETRY_PAUSE_MAX},
    lines::LINE_BYTES_MAX,
};

/// A stream that is silent for this long has no server behind it: heartbeats are more frequent.
const SILENCE_MAX: Duration = Duration::from_secs(EVENT_HEARTBEAT_S * 3);

/// What following a stream brings.
#[derive(Debug)]
pub enum Followed {
    Event(Box<Event>),
    /// The stream is open, from the beginning or again.
    Connected,
    /// The connection is gone, for this reason; it is being opened again.
    Lost(Error),
}

/// Events as they happen, each once, over as many connections as it takes.
pub struct Events {
    client: Client,
    call: Call,
    /// The last event seen: the next connection goes on after it.
    seen: Option<u64>,
    open: Option<(Answer, SseParser)>,
    ready: VecDeque<Event>,
    /// How long the server has been away.
    away: Duration,
    pause: Duration,
    pause_next: bool,
    /// When the server was last heard, comments included.
    heard: Instant,
}

impl Events {
    pub(crate) fn new(client: &Client, path: String, after: Option<u64>) -> Self {
        let call = Call::new(Method::GET, path, "events");
        let call = call.header("accept", landfast_api::EVENT_STREAM.to_owned());
        Self {
            client: client.clone(),
            call,
            seen: after,
            open: None,
            ready: VecDeque::new(),
            away: Duration::ZERO,
            pause: Duration::ZERO,
            pause_next: false,
            heard: Instant::now(),
        }
    }

    /// What comes next. No event is lost when this is dropped while it waits; an attempt to connect begins anew.
    ///
    /// # Errors
    /// When the server refuses, or stays away longer than [`PATIENCE`].
    pub async fn next(&mut self) -> Result<Followed, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.seen = Some(event.sequence);
                return Ok(Followed::Event(Box::new(event)));
            }
            let Some((answer, parser)) = &mut self.open else {
                return self.connect().await;
            };
            let frame = timeout_at(self.heard + SILENCE_MAX, answer.response.frame()).await;
            let lost = match frame {
                Ok(Some(Ok(frame))) => {
                    self.heard = Instant::now();
                    if let Ok(bytes) = frame.into_data() {
                        let events = parser.feed(&bytes);
                        if parser.held_bytes() > LINE_BYTES_MAX {
                            let doing = self.call.doing.clone();
                            return Err(Error::LineTooLong {
                                doing,
                                bytes_max: LINE_BYTES_MAX,
                            });
                        }
                        for event in events {
                            let event = serde_json::from_str::<Event>(&event.data);
                            let event = event.map_err(|source| Error::Foreign {
                                doing: self.call.doing.clone(),
                                source,
                            })?;
                            // A server may repeat the last one seen; a reader gets each once.
                            if self.seen.is_none_or(|seen| event.sequence > seen) {
                                self.ready.push_back(event);
                            }
                        }
                    }
                    continue;
                }
                Ok(Some(Err(source))) => self.client.cut(&self.call, source),
                // The server ends streams when it ends itself: like a cut, and silence too.
                Ok(None) | Err(_) => Error::Ended {
                    place: self.client.title(),
                    doing: self.call.doing.clone(),
                },
            };
            self.open = None;
            return Ok(Followed::Lost(lost));
        }
    }

    async fn connect(&mut self) -> Result<Followed, Error> {
        if std::mem::take(&mut self.pause_next) {
            sleep(self.pause).await;
            self.away += self.pause;
        }
        let call = match self.seen {
            Some(seen) => self.call.clone().header("last-event-id", seen.to_string()),
            None => self.call.clone(),
        };
        match self.client.send(&call).await {
            Ok(answer) => {
                self.open = Some((answer, SseParser::default()));
                self.heard = Instant::now();
                self.away = Duration::ZERO;
                self.pause = Duration::ZERO;
                Ok(Followed::Connected)
            }
            Err(error) if error.is_away() && self.away < PATIENCE => {
                self.pause = (self.pause * 2).clamp(Duration::from_millis(100), RETRY_PAUSE_MAX);
                self.pause_next = true;
                Ok(Followed::Lost(error))
            }
            Err(error) => Err(error),
        }
    }
}
