//! The care for the proxy: it is started when nobody answers at its control socket, as a process of its own that
//! outlives the server, and started again should both its parts ever be gone. One that others start is only waited for.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use landfast_proxy::control::ControlClient;
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use crate::inherited::Inherited;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a fresh proxy may take to answer.
const START_MAX: Duration = Duration::from_secs(10);
/// How long one is waited for that others start.
const ABSENT_MAX: Duration = Duration::from_secs(60);

/// What is read of the log of a proxy that did not start.
const LOG_BYTES_MAX: u64 = 64 << 10;

/// How the proxy is started.
#[derive(Debug, Clone)]
pub(crate) struct ProxyOrder {
    pub(crate) executable: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) control: PathBuf,
    /// Whether this server starts it.
    pub(crate) is_ours: bool,
    pub(crate) log: PathBuf,
}

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("failed to start the proxy")]
    Start(#[source] io::Error),
    #[error("the proxy ended at once: {0}")]
    Ended(String),
    #[error("the proxy did not answer within {} s; its log is `{}`", START_MAX.as_secs(), .0.display())]
    Silent(PathBuf),
    #[error("no proxy answered at `{}` within {} s", .0.display(), ABSENT_MAX.as_secs())]
    Absent(PathBuf),
}

impl ProxyOrder {
    /// Starts the proxy unless it answers already. It is our child; when it ends one day, the runtime reaps it.
    pub(crate) async fn ensure(&self) -> Result<(), ProxyError> {
        let client = ControlClient::new(self.control.clone());
        if client.status().await.is_ok() {
            return Ok(());
        }
        if !self.is_ours {
            return self.wait_for_others(&client).await;
        }
        // What earlier attempts said is not what this one says.
        let said_before = fs::metadata(&self.log).map_or(0, |log| log.len());
        let mut child = self.spawn().map_err(ProxyError::Start)?;
        let tries = START_MAX.as_millis() / 100;
        for _ in 0..tries {
            if client.status().await.is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = child.try_wait() {
                let last = last_lines(&self.log, said_before);
                return Err(ProxyError::Ended(format!("{status}: {last}")));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Err(ProxyError::Silent(self.log.clone()))
    }

    async fn wait_for_others(&self, client: &ControlClient) -> Result<(), ProxyError> {
        tracing::info!(control = %self.control.display(), "waiting for the proxy, which is not ours to start");
        for _ in 0..ABSENT_MAX.as_millis() / LOOK_EVERY.as_millis() {
            if client.status().await.is_ok() {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
        }
        Err(ProxyError::Absent(self.control.clone()))
    }

    /// Looks after the proxy as long as the server runs. Its own holder restarts a worker that dies; this is for
    /// the case that nobody is left.
    pub(crate) async fn guard(self, mut inherited: Inherited) {
        let client = ControlClient::new(self.control.clone());
        let mut missed = 0_u64;
        loop {
            sleep(LOOK_EVERY).await;
            inherited.reap();
            if client.status().await.is_ok() {
                missed = 0;
                continue;
            }
            missed += 1;
            // The holder needs up to a second; only then is nobody there.
            if !self.is_ours {
                if missed == 4 {
                    tracing::warn!(control = %self.control.display(), "the proxy does not answer; whoever started it is to start it again");
                }
                continue;
            }
            if missed >= 4 {
                missed = 0;
                tracing::warn!("the proxy is gone; starting it again");
                if let Err(error) = self.ensure().await {
                    tracing::error!(%error, "the proxy could not be started");
                }
            }
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = self.open_log()?;
        #[expect(
            clippy::disallowed_methods,
            reason = "the proxy is a process of its own, argv only"
        )]
        let mut command = Command::new(&self.executable);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            // Its own group: a Ctrl-C at the server's terminal must not reach it.
            .process_group(0);
        command.spawn()
    }

    fn open_log(&self) -> io::Result<File> {
        if let Some(folder) = self.log.parent() {
            fs::create_dir_all(folder)?;
        }
        OpenOptions::new().create(true).append(true).open(&self.log)
    }
}

/// The last lines of what a log got after its first `skipped` bytes.
fn last_lines(path: &Path, skipped: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut log| {
        log.seek(io::SeekFrom::Start(skipped))?;
        log.take(LOG_BYTES_MAX).read_to_end(&mut text)
    });
    if let Err(error) = read {
        return format!("`{}` cannot be read: {error}", path.display());
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}
