//! The way to a daemon whose socket is on the other side of `ssh`: a forward that is kept open, and opened again by whoever
//! asks the daemon next when it has ended.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_ssh::{Forward, Questions, Route};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{DockerAddress, core::FORWARDED, daemon::DaemonError};

/// So long nobody asks again a host that could not be reached.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// A login may need more than one answer of the other host.
const OPEN_MAX: Duration = Duration::from_secs(20);

/// The socket of another host, here.
pub(crate) struct Way {
    route: Route,
    /// As people write it.
    name: String,
    local: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
enum State {
    #[default]
    Closed,
    Open(Box<Forward>),
    /// When, and why.
    Refused(Instant, String),
}

/// Who holds the forward that leads to this socket.
fn control(local: &Path) -> PathBuf {
    local.with_extension("ssh")
}

/// Ends the forward that a server which died has left beside this folder of [`DockerSettings::secrets`], whatever daemon
/// the next one is told: who opens it is as good as root on the host it leads to.
///
/// [`DockerSettings::secrets`]: crate::DockerSettings::secrets
pub async fn end_former(secrets: &Path) {
    landfast_ssh::end_former(&control(&secrets.with_file_name(FORWARDED))).await;
}

impl Way {
    /// The way to a daemon that is not on this host's own sockets. `local`: where its socket is to be here.
    pub(crate) fn to(address: &DockerAddress, local: PathBuf) -> Option<Self> {
        let DockerAddress::Ssh {
            destination,
            port,
            socket,
        } = address
        else {
            return None;
        };
        let route = Route {
            destination: destination.clone(),
            port: *port,
            socket: socket.to_string_lossy().into_owned(),
            questions: Questions::Nobody {
                control: control(&local),
            },
        };
        Some(Self {
            route,
            name: address.to_string(),
            local,
            state: Mutex::default(),
        })
    }

    /// Where the daemon's socket is here.
    pub(crate) fn socket(&self) -> &Path {
        &self.local
    }

    /// Makes sure that it is open.
    pub(crate) async fn open(&self) -> Result<(), DaemonError> {
        let mut state = self.state.lock().await;
        match &mut *state {
            State::Open(forward) => {
                if forward.is_running() {
                    return Ok(());
                }
            }
            State::Refused(at, why) => {
                if at.elapsed() < AGAIN_AFTER {
                    return Err(DaemonError::Away(why.clone()));
                }
            }
            State::Closed => {}
        }
        // Ends the one that has lost its way, if it has not ended yet.
        *state = State::Closed;
        match self.begin().await {
            Ok(forward) => {
                tracing::info!(to = self.name, "the daemon's socket is forwarded");
                *state = State::Open(Box::new(forward));
                Ok(())
            }
            Err(why) => {
                let why = format!("{} cannot be reached: {why}", self.name);
                *state = State::Refused(Instant::now(), why.clone());
                Err(DaemonError::Away(why))
            }
        }
    }

    async fn begin(&self) -> Result<Forward, String> {
        self.route.end_former().await;
        if let Some(folder) = self.local.parent() {
            let made = std::fs::create_dir_all(folder);
            made.map_err(|error| format!("`{}`: {error}", folder.display()))?;
        }
        // What nobody listens at any more would be taken for the new one.
        drop(std::fs::remove_file(&self.local));
        let started = Forward::start(&self.route, &self.local);
        let mut forward = started.map_err(|error| format!("`ssh` does not run: {error}"))?;
        match timeout(OPEN_MAX, forward.bound(&self.local)).await {
            Ok(Ok(_)) => Ok(forward),
            Ok(Err(why)) => Err(why),
            Err(_) => Err(format!(
                "ssh was not logged in within {} s",
                OPEN_MAX.as_secs()
            )),
        }
    }
}
