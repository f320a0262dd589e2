//! What is free, kept in Redis for a moment. Everything here may fail and nothing depends on it.
//!
//! Answers are kept under a generation that each booking counts up, so a booking is seen by the next question. While the
//! cache is away bookings cannot count it up: a process that sees it come back does. What is missed all the same is old
//! after [`KEPT`], and booking itself never asks the cache.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use redis::{
    AsyncCommands as _, Client, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig},
};

use crate::{
    log::{self, Level},
    model::{Room, Stay},
};

const KEPT: Duration = Duration::from_secs(30);
/// Slower than this and the database is the faster one.
const ANSWER_MAX: Duration = Duration::from_millis(250);
const CONNECT_MAX: Duration = Duration::from_millis(500);
const CHECK_MAX: Duration = Duration::from_secs(1);
const GENERATION: &str = "pms:generation";

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Hit,
    Miss,
    /// The cache was not asked.
    Bypass,
}

impl Source {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        }
    }
}

/// The connection, and whether it is worth a try.
pub(crate) struct Cache {
    connection: ConnectionManager,
    /// False from the first failure to the next successful check: requests do not each wait for a server that is away.
    answers: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Cache {
    /// Connects to nothing yet. Needs a runtime.
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        // The error of the library would show the address, and the password in it.
        let client =
            Client::open(url).map_err(|_| anyhow::anyhow!("REDIS_URL is no redis:// address"))?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(ANSWER_MAX))
            .set_number_of_retries(1);
        Ok(Self {
            connection: ConnectionManager::new_lazy_with_config(client, config)
                .map_err(|_| anyhow::anyhow!("the cache cannot be used"))?,
            answers: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// Asks whether it is there. Where it was away, what it holds may be older than a booking, and is left behind.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let mut connection = self.connection.clone();
        let ask = async {
            connection.ping::<()>().await?;
            if !self.answers.load(Ordering::Relaxed) {
                connection.incr::<_, _, u64>(GENERATION, 1).await?;
            }
            Ok::<_, RedisError>(())
        };
        // A new connection to a server that hangs is tried more than once.
        let asked = match tokio::time::timeout(CHECK_MAX, ask).await {
            Ok(asked) => asked.map_err(|error| error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        self.answers.store(asked.is_ok(), Ordering::Relaxed);
        asked
    }

    /// The rooms that are free, if they are known; and under which key they should be kept, if they are not.
    pub(crate) async fn free(&self, stay: Stay) -> (Source, Result<Vec<Room>, Option<String>>) {
        if !self.answers.load(Ordering::Relaxed) {
            return (Source::Bypass, Err(None));
        }
        match self.ask(stay).await {
            Ok(Ok(rooms)) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                (Source::Hit, Ok(rooms))
            }
            Ok(Err(key)) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                (Source::Miss, Err(Some(key)))
            }
            Err(error) => {
                self.is_away(&error);
                (Source::Bypass, Err(None))
            }
        }
    }

    async fn ask(&self, stay: Stay) -> Result<Result<Vec<Room>, String>, RedisError> {
        let mut connection = self.connection.clone();
        let generation: Option<u64> = connection.get(GENERATION).await?;
        let (generation, Stay { arrives, departs }) = (generation.unwrap_or_default(), stay);
        let key = format!("pms:free:{generation}:{arrives}:{departs}");
        let kept: Option<String> = connection.get(&key).await?;
        // What another release wrote, and this one cannot read, is asked for anew.
        let rooms = kept.and_then(|text| serde_json::from_str(&text).ok());
        Ok(rooms.ok_or(key))
    }

    /// Keeps an answer for a moment.
    pub(crate) async fn keep(&self, key: &str, rooms: &[Room]) {
        let Ok(text) = serde_json::to_string(rooms) else {
            return;
        };
        let mut connection = self.connection.clone();
        let kept = connection
            .set_ex::<_, _, ()>(key, text, KEPT.as_secs())
            .await;
        if let Err(error) = kept {
            self.is_away(&error);
        }
    }

    /// Leaves all that is kept behind: something was booked, cancelled or built.
    pub(crate) async fn forget(&self) {
        if !self.answers.load(Ordering::Relaxed) {
            return;
        }
        let mut connection = self.connection.clone();
        if let Err(error) = connection.incr::<_, _, u64>(GENERATION, 1).await {
            self.is_away(&error);
        }
    }

    /// Hits and misses since the start.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (
            self.hits.load(Ordering::Relaxed),
            self.misses.load(Ordering::Relaxed),
        )
    }

    fn is_away(&self, error: &RedisError) {
        if self.answers.swap(false, Ordering::Relaxed) {
            let fields = serde_json::json!({"error": error.to_string()});
            log::line(
                Level::Warn,
                "the cache does not answer; going on without it",
                fields,
            );
        }
    }
}
