//! What every handler has at hand.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use landfast_engine::Platform;
use landfast_types::Timestamp;
use tokio::{sync::watch, task::JoinSet};

use crate::{certificates::Certificates, run::ServerSettings};

/// A handle to the server, cheap to clone.
#[derive(Clone)]
pub(crate) struct AppState(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) platform: Arc<Platform>,
    pub(crate) settings: ServerSettings,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) started_at: Timestamp,
    /// Streams end when this turns true, so that they hold up no shutdown.
    pub(crate) leaving: watch::Receiver<bool>,
    streams: Mutex<JoinSet<()>>,
}

impl AppState {
    /// Runs what feeds an open answer. It ends with its reader, and with the server.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut streams = self
            .0
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while streams.try_join_next().is_some() {}
        streams.spawn(work);
    }

    pub(crate) fn new(
        platform: Arc<Platform>,
        settings: ServerSettings,
        certificates: Arc<Certificates>,
        started_at: Timestamp,
        leaving: watch::Receiver<bool>,
    ) -> Self {
        Self(Arc::new(Inner {
            platform,
            settings,
            certificates,
            started_at,
            leaving,
            streams: Mutex::default(),
        }))
    }
}

/// Waits until the server is told to end.
pub(crate) async fn until_leaving(leaving: &mut watch::Receiver<bool>) {
    if leaving.wait_for(|leaving| *leaving).await.is_err() {
        tracing::debug!("the server is gone");
    }
}

impl Deref for AppState {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}
