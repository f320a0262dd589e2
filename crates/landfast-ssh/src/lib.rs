//! A Unix socket of another host, here: the system's `ssh`, which forwards it.
//!
//! Started by argv, never through a shell; who asks for the host's name has checked that it is no option. What ssh says
//! is kept for an error, and nothing else of it is read. It never decides when to connect again: its caller does.

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    process::{Child, ChildStderr, Command},
    task::JoinSet,
    time::{sleep, timeout},
};

/// How long ssh gets to end by itself.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked whether the local end is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines of ssh's own that are kept for an error.
const LINES_KEPT: usize = 5;
/// What these lines are looked for in: the end of all that ssh said.
const BYTES_KEPT: usize = 4096;

/// Who answers when ssh has a question: a passphrase, a new host key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Questions {
    /// They go to the terminal, and the forward ends with this process in order.
    Terminal,
    /// Nobody answers them: what is not settled is refused. One forward at a time is held by this control socket, so that
    /// it can be ended when its process has died without a word.
    Nobody { control: PathBuf },
}

/// What is forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `[user@]host`, which does not begin with a dash.
    pub destination: String,
    pub port: Option<u16>,
    /// The socket there.
    pub socket: String,
    pub questions: Questions,
}

impl Route {
    /// The arguments of `ssh` that forward to a local socket.
    pub fn arguments(&self, local: &Path) -> Vec<String> {
        let mut options = vec![
            "ExitOnForwardFailure=yes",
            "StreamLocalBindUnlink=yes",
            "StreamLocalBindMask=0177",
            // A connection that died without a word is noticed, and made again.
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ConnectTimeout=15",
        ];
        let control = match &self.questions {
            // Another connection's master would outlive this command, or keep the forward for itself.
            Questions::Terminal => "ControlPath=none".to_owned(),
            Questions::Nobody { control } => {
                options.extend(["BatchMode=yes", "ControlMaster=yes", "ControlPersist=no"]);
                format!("ControlPath={}", control.display())
            }
        };
        options.push(&control);
        let options = options.into_iter();
        let mut arguments: Vec<_> = options
            .flat_map(|option| ["-o", option])
            .map(str::to_owned)
            .collect();
        arguments.extend(["-N", "-T", "-L"].map(str::to_owned));
        arguments.push(format!("{}:{}", local.display(), self.socket));
        if let Some(port) = self.port {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        arguments.extend(["--".to_owned(), self.destination.clone()]);
        arguments
    }

    /// Ends the forward that a process which died has left, where there is one.
    pub async fn end_former(&self) {
        if let Questions::Nobody { control } = &self.questions {
            end_former(control).await;
        }
    }
}

/// Ends the forward that this control socket holds, wherever it leads, where there is one.
pub async fn end_former(control: &Path) {
    if !control.exists() {
        return;
    }
    let mut command = ssh();
    let path = format!("ControlPath={}", control.display());
    // A host must be named, and is not asked: the socket says which connection is meant.
    command.args(["-o", &path, "-O", "exit", "--", "former"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // One that is dead has left a socket that nobody answers at; the next one replaces it.
    drop(timeout(CLOSE_WAIT, command.status()).await);
    drop(std::fs::remove_file(control));
}

#[expect(
    clippy::disallowed_methods,
    reason = "the way to another host, argv by argv"
)]
fn ssh() -> Command {
    let mut command = Command::new("ssh");
    command.kill_on_drop(true);
    command
}

/// One running `ssh`. Dropping it kills it.
#[derive(Debug)]
pub struct Forward {
    child: Child,
    /// Reads what ssh says as long as it runs: it says a line for each connection it cannot forward, and once nobody has
    /// read so many that the pipe is full, it stands still.
    reader: JoinSet<()>,
    /// The end of it.
    last: Arc<Mutex<Vec<u8>>>,
}

impl Forward {
    /// Starts it; [`Forward::bound`] tells when it leads somewhere.
    ///
    /// # Errors
    /// When there is no `ssh` to be run.
    pub fn start(route: &Route, local: &Path) -> io::Result<Self> {
        let mut command = ssh();
        command.args(route.arguments(local));
        Self::run(command)
    }

    fn run(mut command: Command) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let errors = child.stderr.take().expect("its stderr is a pipe");
        let last = Arc::default();
        let mut reader = JoinSet::new();
        reader.spawn(read(errors, Arc::clone(&last)));
        Ok(Self {
            child,
            reader,
            last,
        })
    }

    /// A connection to the local end, once ssh is logged in and has made it.
    ///
    /// # Errors
    /// What ssh said last, when it ended before.
    pub async fn bound(&mut self, local: &Path) -> Result<UnixStream, String> {
        let mut ended = pin!(self.ended());
        loop {
            tokio::select! {
                why = &mut ended => return Err(why),
                () = sleep(LOOK_EVERY) => {}
            }
            if let Ok(stream) = UnixStream::connect(local).await {
                return Ok(stream);
            }
        }
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until ssh ends, and says what it said last. May be dropped while it waits.
    pub async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        // A process that ssh has started, as a `ProxyCommand`, may hold the pipe a little longer.
        drop(timeout(CLOSE_WAIT, self.reader.join_next()).await);
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (last_lines(&last), status) {
            (Some(lines), _) => lines,
            (None, Ok(status)) => format!("ssh ended with {status}"),
            (None, Err(error)) => format!("ssh was lost: {error}"),
        }
    }

    /// Ends it, and lets it say goodbye.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok())
            && let Some(pid) = Pid::from_raw(pid)
        {
            // Not reaped yet, so the number is still this child's.
            let _gone = kill_process(pid, Signal::TERM);
        }
        if timeout(CLOSE_WAIT, self.child.wait()).await.is_err() {
            drop(self.child.kill().await);
        }
    }
}

/// Reads to the end and keeps the last of it.
async fn read(mut errors: ChildStderr, last: Arc<Mutex<Vec<u8>>>) {
    let mut piece = [0; 1024];
    while let Ok(count @ 1..) = errors.read(&mut piece).await {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        last.extend_from_slice(&piece[..count]);
        let surplus = last.len().saturating_sub(BYTES_KEPT);
        last.drain(..surplus);
    }
}

fn last_lines(said: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(said);
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut lines: Vec<_> = lines.rev().take(LINES_KEPT).collect();
    lines.reverse();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// Whether a word may be the name of a host or a user: nothing that ssh takes for an option, or expands.
pub fn is_plain(word: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    !word.is_empty() && !word.starts_with('-') && word.chars().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ssh_says_for_long_is_read_and_its_end_is_kept() {
        #[expect(clippy::disallowed_methods, reason = "says as much as ssh does")]
        let mut talker = Command::new("sh");
        let lines = "seq -f 'channel %g: open failed' 1 20000 >&2";
        talker.args(["-c", lines]).kill_on_drop(true);
        let mut forward = Forward::run(talker).expect("it runs");
        // Nobody asks for what it said meanwhile.
        let ended = timeout(Duration::from_mins(1), forward.child.wait()).await;
        assert!(ended.is_ok(), "it stands still, as nobody reads");
        let said = forward.ended().await;
        assert!(said.ends_with("; channel 20000: open failed"), "{said}");
        assert_eq!(said.split("; ").count(), LINES_KEPT);
    }
}
