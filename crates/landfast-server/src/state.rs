//! What every handler has at hand.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use http::Method;
use landfast_api::{Problem, ProblemCode};
use landfast_engine::Platform;
use landfast_types::Timestamp;
use tokio::{sync::watch, task::JoinSet};

use crate::{answer::Answer, certificates::Certificates, run::ServerSettings};

/// The way a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The Unix socket: the server's user and root, by the file's mode.
    Socket,
    /// TCP on loopback: whoever is on this host.
    Loopback,
}

impl Transport {
    /// Whether a request may be answered at all. Over TCP nobody says who he is, and whoever may deploy or `exec` has every
    /// secret of an app: so nothing is changed or run from there, and what apps wrote is not shown.
    pub(crate) fn may_ask(self, method: &Method, path: &str) -> Answer<()> {
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        match self {
            Self::Socket => Ok(()),
            Self::Loopback if is_read && !path.ends_with("/logs") => Ok(()),
            Self::Loopback => {
                let detail = "over TCP the API only tells how things stand";
                let problem = Problem::new(ProblemCode::Forbidden, detail);
                let hint = "ask on the host, or with `--host ssh://…`; over TCP anybody on the host could ask";
                Err(problem.with_hint(hint).into())
            }
        }
    }

    /// Values of secrets and their key are given to those only whom the kernel has let in.
    pub(crate) fn may_see_secrets(self) -> Answer<()> {
        match self {
            Self::Socket => Ok(()),
            Self::Loopback => {
                let detail = "values of secrets are given over the Unix socket only";
                let problem = Problem::new(ProblemCode::Forbidden, detail);
                let hint = "ask on the host, or with `--host ssh://…`; over TCP anybody on the host could ask";
                Err(problem.with_hint(hint).into())
            }
        }
    }
}

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
