//! One server process: started, waited for, stopped, killed.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::StartError;

const READY_WAIT_MAX: Duration = Duration::from_secs(60);

/// A running server. Dropping it kills it.
pub(crate) struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts a server whose output goes to a file.
    pub(crate) fn start(
        mut command: Command,
        user: Option<(u32, u32)>,
        log: &Path,
    ) -> Result<Self, StartError> {
        let io = |source| StartError::Io {
            what: format!("start {:?}", command.get_program()),
            source,
        };
        let file = File::create(log).map_err(io)?;
        let copy = file.try_clone().map_err(io)?;
        become_user(&mut command, user);
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .map_err(|source| StartError::Io {
                what: format!("start {:?}", command.get_program()),
                source,
            })?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so; fails when the server ends before, or takes too long.
    pub(crate) fn wait_ready(&mut self, mut ready: impl FnMut() -> bool) -> Result<(), StartError> {
        let begun = Instant::now();
        loop {
            if ready() {
                return Ok(());
            }
            let ended = matches!(self.child.try_wait(), Ok(Some(_)));
            if ended || begun.elapsed() > READY_WAIT_MAX {
                return Err(StartError::Failed {
                    what: "the server did not come up".into(),
                    output: tail(&self.log),
                });
            }
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn end(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
                // A process that has just ended is what was wanted.
                kill_process(pid, signal).ok();
            }
            drop(self.child.wait());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

/// Runs a program to its end.
pub(crate) fn run(
    mut command: Command,
    user: Option<(u32, u32)>,
    what: &str,
) -> Result<String, StartError> {
    become_user(&mut command, user);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| StartError::Io {
            what: what.to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(StartError::Failed {
        what: what.to_owned(),
        output: format!("{text}{}", String::from_utf8_lossy(&output.stderr)),
    })
}

fn become_user(command: &mut Command, user: Option<(u32, u32)>) {
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    // A private `C` locale: messages in one language, and no variable of the caller reaches a server.
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/");
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(2_000);
    String::from_utf8_lossy(&text[from..]).into_owned()
}
