//! Holding requests while a service is paused: bounded in number, bytes and time.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{backend::Service, clock};

/// What a body of unknown length counts for.
const UNKNOWN_BYTES: u64 = 64 << 10;

/// A place in the queue. Dropping it gives the place up.
pub(crate) struct Held {
    service: Arc<Service>,
    bytes: u64,
    since: Instant,
}

/// The bounds of a pause.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) requests_max: u32,
    pub(crate) bytes_max: u64,
}

impl Held {
    /// Takes a place, or nothing where a bound is reached.
    pub(crate) fn enter(
        service: &Arc<Service>,
        bounds: Bounds,
        length: Option<u64>,
    ) -> Option<Self> {
        let bytes = length.unwrap_or(UNKNOWN_BYTES);
        let relaxed = Ordering::Relaxed;
        let more = |held: u32| (held < bounds.requests_max).then_some(held + 1);
        service.paused.fetch_update(relaxed, relaxed, more).ok()?;
        let more = |held: u64| {
            held.checked_add(bytes)
                .filter(|sum| *sum <= bounds.bytes_max)
        };
        if service
            .paused_bytes
            .fetch_update(relaxed, relaxed, more)
            .is_err()
        {
            service.paused.fetch_sub(1, relaxed);
            return None;
        }
        service.counters.paused.add(1);
        Some(Self {
            service: Arc::clone(service),
            bytes,
            since: clock::instant(),
        })
    }

    /// Waits for the next table; false when the request has waited as long as it may. `changes` must have been
    /// subscribed to before the table was read that said to pause.
    pub(crate) async fn wait(
        &self,
        wait_max: Duration,
        changes: &mut watch::Receiver<u64>,
    ) -> bool {
        let over = tokio::time::sleep_until(self.since + wait_max);
        tokio::select! {
            biased;
            changed = changes.changed() => changed.is_ok(),
            () = over => false,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.service.paused.fetch_sub(1, Ordering::Relaxed);
        self.service
            .paused_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        let waited = clock::instant()
            .saturating_duration_since(self.since)
            .as_millis();
        let waited = u64::try_from(waited).unwrap_or(u64::MAX);
        self.service.counters.pause_longest_ms.raise_to(waited);
    }
}
