//! How well the service is, store by store.
//!
//! | store | without it | status | answered |
//! | --- | --- | --- | --- |
//! | database | nothing can be read or booked | `unhealthy` | 503 |
//! | redis | the database is asked each time | `degraded` | 200 |
//! | storage | no documents are taken or given | `degraded` | 200 |
//!
//! The worst store decides, whatever order they fail in. `degraded` is answered 200: who balances load must not take
//! out a process that serves.
//!
//! One task asks all stores once a second, so a flood of health checks is none for the stores.

use std::{fmt::Display, future::Future, sync::Arc, time::Duration};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use crate::{
    cache::Cache,
    clock,
    database::Database,
    documents::Documents,
    log::{self, Level},
};

const EVERY: Duration = Duration::from_secs(1);
/// A store that takes longer is as good as away.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The stores.
pub(crate) struct Stores {
    pub database: Arc<Database>,
    pub cache: Cache,
    pub documents: Documents,
}

/// What one store said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Check {
    /// Milliseconds until it answered, or why it did not.
    pub result: Result<f64, String>,
}

/// What all said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Health {
    pub at: jiff::Timestamp,
    pub database: Check,
    pub redis: Check,
    pub storage: Check,
    /// The database has answered once, with the tables this release needs. It stays so: a database that goes away later
    /// is no reason to send clients elsewhere, for it is away there too.
    pub was_ready: bool,
}

impl Health {
    /// The worst store decides.
    pub(crate) fn status(&self) -> &'static str {
        let is_well = |check: &Check| check.result.is_ok();
        match (
            is_well(&self.database),
            is_well(&self.redis) && is_well(&self.storage),
        ) {
            (false, _) => "unhealthy",
            (true, false) => "degraded",
            (true, true) => "healthy",
        }
    }

    /// Only a service that cannot serve says so by its code.
    pub(crate) fn code(&self) -> StatusCode {
        if self.database.result.is_ok() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }

    pub(crate) fn body(&self, version: &str) -> Value {
        let check = |check: &Check| match &check.result {
            Ok(milliseconds) => json!({"status": "healthy", "latency_ms": milliseconds}),
            Err(error) => json!({"status": "unhealthy", "error": error}),
        };
        json!({
            "status": self.status(),
            "timestamp": self.at.to_string(),
            "version": version,
            "checks": {
                "database": check(&self.database),
                "redis": check(&self.redis),
                "storage": check(&self.storage),
            },
        })
    }
}

/// Asks all stores at once.
pub(crate) async fn check(stores: &Stores, was_ready: bool) -> Health {
    let schema = async {
        match was_ready {
            true => stores.database.check().await,
            false => stores.database.check_schema().await,
        }
    };
    let (database, redis, storage) = tokio::join!(
        one("database", schema),
        one("redis", stores.cache.check()),
        one("storage", stores.documents.check()),
    );
    Health {
        at: clock::now(),
        was_ready: was_ready || database.result.is_ok(),
        database,
        redis,
        storage,
    }
}

/// Asks again and again, and tells of each change.
pub(crate) async fn watch(stores: Arc<Stores>, health: watch::Sender<Health>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let before = health.borrow().clone();
        let now = check(&stores, before.was_ready).await;
        if now.status() != before.status() {
            let fields = json!({"from": before.status(), "to": now.status()});
            log::line(Level::Warn, "health changed", fields);
        }
        health.send_replace(now);
    }
}

/// The cause goes to the log: it may name hosts and logins, which a client need not know.
async fn one<E: Display>(store: &'static str, asked: impl Future<Output = Result<(), E>>) -> Check {
    let begun = clock::instant();
    let cause = match timeout(ANSWER_MAX, asked).await {
        Ok(Ok(())) => {
            let micros = clock::instant().duration_since(begun).as_micros() as f64;
            return Check {
                result: Ok(micros / 1e3),
            };
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", ANSWER_MAX.as_secs()),
    };
    log::line(
        Level::Debug,
        "a check failed",
        json!({"store": store, "error": cause}),
    );
    Check {
        result: Err("it does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(database: bool, redis: bool, storage: bool) -> Health {
        let check = |is_well| Check {
            result: if is_well {
                Ok(0.4)
            } else {
                Err("it does not answer".to_owned())
            },
        };
        Health {
            at: jiff::Timestamp::UNIX_EPOCH,
            database: check(database),
            redis: check(redis),
            storage: check(storage),
            was_ready: true,
        }
    }

    #[test]
    fn the_worst_store_decides() {
        for (stores, status, code) in [
            ((true, true, true), "healthy", 200),
            ((true, false, true), "degraded", 200),
            ((true, true, false), "degraded", 200),
            ((true, false, false), "degraded", 200),
            ((false, true, true), "unhealthy", 503),
            ((false, false, true), "unhealthy", 503),
            ((false, true, false), "unhealthy", 503),
            ((false, false, false), "unhealthy", 503),
        ] {
            let health = health(stores.0, stores.1, stores.2);
            assert_eq!(
                (health.status(), health.code().as_u16()),
                (status, code),
                "{stores:?}"
            );
        }
    }

    #[test]
    fn a_body_names_each_store() {
        let body = health(true, false, true).body("7");
        assert_eq!(body["version"], "7");
        assert_eq!(body["checks"]["database"]["latency_ms"], 0.4);
        assert_eq!(body["checks"]["redis"]["status"], "unhealthy");
        assert!(body["checks"]["redis"]["error"].is_string());
    }
}
