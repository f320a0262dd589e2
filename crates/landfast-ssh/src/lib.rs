//! A Unix socket of another host, here: the system's `ssh`, which forwards it.
//!
//! Started by argv, never through a shell; who asks for the host's name has checked that it is no option. What ssh says
//! is kept for an error, and nothing else of it is read. It never decides when to connect again: its caller does.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixStream,
    process::{Child, Command},
    time::{sleep, timeout},
};

/// How long ssh gets to end by itself.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked whether the local end is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines of ssh's own that are kept for an error.
const LINES_KEPT: usize = 5;

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
        let Questions::Nobody { control } = &self.questions else {
            return;
        };
        if !control.exists() {
            return;
        }
        let control = format!("ControlPath={}", control.display());
        let mut command = ssh();
        command.args(["-o", &control, "-O", "exit", "--", &self.destination]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // One that is dead has left a socket that nobody answers at; the next one replaces it.
        drop(timeout(CLOSE_WAIT, command.status()).await);
        drop(std::fs::remove_file(control));
    }
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
    errors: tokio::io::Lines<BufReader<tokio::process::ChildStderr>>,
    last: VecDeque<String>,
}

impl Forward {
    /// Starts it; [`Forward::bound`] tells when it leads somewhere.
    ///
    /// # Errors
    /// When there is no `ssh` to be run.
    pub fn start(route: &Route, local: &Path) -> io::Result<Self> {
        let mut command = ssh();
        let mut child = command
            .args(route.arguments(local))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let errors = child.stderr.take().expect("its stderr is a pipe");
        let errors = BufReader::new(errors).lines();
        Ok(Self {
            child,
            errors,
            last: VecDeque::new(),
        })
    }

    /// A connection to the local end, once ssh is logged in and has made it.
    ///
    /// # Errors
    /// What ssh said last, when it ended before.
    pub async fn bound(&mut self, local: &Path) -> Result<UnixStream, String> {
        loop {
            tokio::select! {
                why = self.ended() => return Err(why),
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
        while let Ok(Some(line)) = self.errors.next_line().await {
            if self.last.len() == LINES_KEPT {
                self.last.pop_front();
            }
            self.last.push_back(line.trim().to_owned());
        }
        let status = self.child.wait().await;
        match (self.last.is_empty(), status) {
            (false, _) => Vec::from(self.last.clone()).join("; "),
            (true, Ok(status)) => format!("ssh ended with {status}"),
            (true, Err(error)) => format!("ssh was lost: {error}"),
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

/// Whether a word may be the name of a host or a user: nothing that ssh takes for an option, or expands.
pub fn is_plain(word: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    !word.is_empty() && !word.starts_with('-') && word.chars().all(known)
}
