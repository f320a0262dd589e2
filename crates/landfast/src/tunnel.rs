//! The way to a server on another host: the system's `ssh`, which forwards the server's socket to one here.
//!
//! Started by argv, never through a shell. It is started again when it ends while it is needed, and ended by its
//! handle when it is not. Questions of ssh (a passphrase, a new host key) go to the terminal as always.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use landfast_ssh::{Forward, Questions, Route, is_plain};

use crate::{
    exit::{Exit, Failure},
    out::Printer,
};

/// Where the server's socket is on the other host, unless the URL says otherwise.
const REMOTE_SOCKET: &str = "/run/landfast/landfast.sock";
/// The local end's name in its folder: short, because socket paths are.
const LOCAL_SOCKET: &str = "s";
/// How long the first connection may take, questions to the user included.
const OPEN_WAIT: Duration = Duration::from_secs(120);
/// Pauses between attempts to connect again.
const AGAIN_PAUSE: Duration = Duration::from_millis(500);
const AGAIN_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A server on another host, or on TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostUrl {
    Ssh(SshTarget),
    Tcp(SocketAddr),
}

/// Where ssh goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshTarget {
    user: Option<String>,
    host: String,
    port: Option<u16>,
    socket: String,
}

impl fmt::Display for SshTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh://{}", self.destination())?;
        self.port.iter().try_for_each(|port| write!(f, ":{port}"))
    }
}

impl SshTarget {
    fn destination(&self) -> String {
        let host = &self.host;
        self.user
            .as_ref()
            .map_or_else(|| host.clone(), |user| format!("{user}@{host}"))
    }

    fn route(&self) -> Route {
        Route {
            destination: self.destination(),
            port: self.port,
            socket: self.socket.clone(),
            questions: Questions::Terminal,
        }
    }
}

impl FromStr for HostUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || "write `ssh://[user@]host[:port]` or `tcp://127.0.0.1:port`".to_owned();
        if let Some(address) = text.strip_prefix("tcp://") {
            let address: SocketAddr = address.trim_end_matches('/').parse().map_err(|_| shape())?;
            if !address.ip().is_loopback() {
                return Err(
                    "`tcp://` is for loopback: what it carries is not sealed; use `ssh://`".into(),
                );
            }
            return Ok(Self::Tcp(address));
        }
        let rest = text.strip_prefix("ssh://").ok_or_else(shape)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let socket = match query {
            "" => REMOTE_SOCKET,
            query => query
                .strip_prefix("socket=")
                .ok_or("only `?socket=/path` is known")?,
        };
        if !socket.starts_with('/') || socket.contains([':', '\n', '\0']) {
            return Err("the socket is an absolute path without `:`".to_owned());
        }
        let rest = rest.trim_end_matches('/');
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (None, rest),
        };
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(shape)?)),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = port
            .map(|port| port.parse::<u16>().map_err(|_| shape()))
            .transpose()?;
        // Neither may look like an option, nor hold what ssh's configuration would expand.
        if !is_plain(host) || !user.as_deref().is_none_or(is_plain) {
            return Err(shape());
        }
        let (host, socket) = (host.to_owned(), socket.to_owned());
        Ok(Self::Ssh(SshTarget {
            user,
            host,
            port,
            socket,
        }))
    }
}

/// A forwarded socket that is kept open.
pub(crate) struct Tunnel {
    socket: PathBuf,
    keeper: JoinHandle<()>,
    stop: Arc<Notify>,
    /// Removed with everything in it at the end.
    _folder: TempDir,
}

impl Tunnel {
    /// Starts ssh and waits until the socket answers.
    pub(crate) async fn open(printer: Printer, target: SshTarget) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("landfast-").tempdir();
        let folder = folder.context("failed to make a temporary folder")?;
        let socket = folder.path().join(LOCAL_SOCKET);
        printer.detail(&format!(
            "running ssh {}",
            target.route().arguments(&socket).join(" ")
        ));
        let mut ssh = start(&target.route(), &socket)?;
        match timeout(OPEN_WAIT, until_ready(&mut ssh, &socket)).await {
            Ok(Ok(())) => {}
            Ok(Err(NotReady::Ended(why))) => {
                let error = anyhow!(why).context(format!("failed to reach {target}"));
                let hint = "try `ssh` by hand; `-v` shows how it is run";
                return Err(Failure::new(Exit::Unreachable, error).hint(hint));
            }
            Ok(Err(NotReady::NoServer)) => {
                let error = anyhow!("no server answers at `{}` on {target}", target.socket);
                let hint = "start it there with `landfast server`, or name its socket: `ssh://host?socket=/path`";
                return Err(Failure::new(Exit::Unreachable, error).hint(hint));
            }
            Err(_elapsed) => {
                let error = anyhow!("{target} did not answer within {}s", OPEN_WAIT.as_secs());
                return Err(Failure::new(Exit::Unreachable, error));
            }
        }
        let stop = Arc::new(Notify::new());
        let keeper = keep(ssh, printer, target, socket.clone(), Arc::clone(&stop));
        let keeper = start_task(keeper);
        Ok(Self {
            socket,
            keeper,
            stop,
            _folder: folder,
        })
    }

    /// The local end.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends ssh and removes the local end.
    pub(crate) async fn close(self) {
        self.stop.notify_one();
        // A keeper that panicked has dropped ssh, which ends it too.
        drop(self.keeper.await);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the handle is kept and awaited by `Tunnel::close`"
)]
fn start_task(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(task)
}

/// Keeps ssh running until it is told to stop.
async fn keep(
    mut ssh: Forward,
    printer: Printer,
    target: SshTarget,
    socket: PathBuf,
    stop: Arc<Notify>,
) {
    let mut pause = AGAIN_PAUSE;
    loop {
        let why = tokio::select! {
            () = stop.notified() => break,
            why = ssh.ended() => why,
        };
        printer.warn(&format!(
            "the connection to {target} was lost ({why}); connecting again"
        ));
        loop {
            tokio::select! {
                () = stop.notified() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(AGAIN_PAUSE_MAX);
            let Ok(mut again) = start(&target.route(), &socket) else {
                continue;
            };
            let ready = tokio::select! {
                () = stop.notified() => return,
                ready = until_ready(&mut again, &socket) => ready.is_ok(),
            };
            if ready {
                pause = AGAIN_PAUSE;
                ssh = again;
                break;
            }
        }
    }
    ssh.stop().await;
}

/// Why a tunnel leads nowhere.
enum NotReady {
    /// ssh ended; its last words.
    Ended(String),
    NoServer,
}

/// Whether somebody answers a request at all: where nobody listens at the other end, ssh closes without a byte.
async fn answers(mut stream: UnixStream) -> bool {
    let request = b"HEAD /v1 HTTP/1.1\r\nhost: landfast\r\nconnection: close\r\n\r\n";
    let mut first = [0; 1];
    stream.write_all(request).await.is_ok() && stream.read_exact(&mut first).await.is_ok()
}

/// Waits until a server answers through the local end, or ssh ends.
async fn until_ready(ssh: &mut Forward, socket: &Path) -> Result<(), NotReady> {
    let stream = ssh.bound(socket).await.map_err(NotReady::Ended)?;
    tokio::select! {
        why = ssh.ended() => Err(NotReady::Ended(why)),
        answers = answers(stream) => if answers { Ok(()) } else { Err(NotReady::NoServer) },
    }
}

fn start(route: &Route, socket: &Path) -> anyhow::Result<Forward> {
    Forward::start(route, socket).context("failed to run `ssh`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(url: &str) -> String {
        match url.parse() {
            Ok(HostUrl::Ssh(target)) => {
                let arguments = target.route().arguments(Path::new("/t/s"));
                let from = arguments.iter().position(|word| word == "-L").unwrap();
                arguments[from..].join(" ")
            }
            Ok(HostUrl::Tcp(address)) => address.to_string(),
            Err(error) => error,
        }
    }

    #[test]
    fn reads_the_forms_people_write() {
        let plain = "-L /t/s:/run/landfast/landfast.sock -- host";
        assert_eq!(arguments("ssh://host"), plain);
        assert_eq!(arguments("ssh://host/"), plain);
        assert_eq!(
            arguments("ssh://me@host.example:2222?socket=/tmp/l.sock"),
            "-L /t/s:/tmp/l.sock -p 2222 -- me@host.example"
        );
        assert_eq!(
            arguments("ssh://[::1]:22"),
            "-L /t/s:/run/landfast/landfast.sock -p 22 -- ::1"
        );
        assert_eq!(arguments("tcp://127.0.0.1:7000"), "127.0.0.1:7000");
        assert!("tcp://10.0.0.1:7000".parse::<HostUrl>().is_err());
    }

    #[test]
    fn nothing_can_become_an_option_of_ssh() {
        for url in [
            "ssh://-oProxyCommand=x",
            "ssh://-l@host",
            "ssh://a b",
            "ssh://",
            "host",
            "ssh://h:x",
            "ssh://h?socket=a",
        ] {
            assert!(url.parse::<HostUrl>().is_err(), "{url}");
        }
    }
}
