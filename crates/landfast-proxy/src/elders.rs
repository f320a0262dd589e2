//! The workers before this one. Each worker has a socket of its own beside the control socket, `proxy-<pid>.sock`, where it
//! says what *it* has in flight; its successors ask there, and add it to what they say themselves.
//!
//! The sockets are found by looking into the folder, so no death of a holder makes anybody forget an older worker. A
//! socket that refuses a connection belongs to a process that has ended. One that says nothing for long belongs to a
//! process that serves nobody: drains do not wait for it any more.

use std::{
    fs, io,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use landfast_routing::{elders, snapshot::ProxyStatus};
use tokio::time::Instant;

use crate::{
    clock,
    control::{ControlClient, ControlError},
    link::Elders as Told,
    listen,
};

/// How long one answer may take.
const ANSWER_MAX: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long one that lives may say nothing.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// The socket a worker has to itself. Dropping it takes it away.
#[derive(Debug)]
pub(crate) struct OwnSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl OwnSocket {
    /// Binds the socket of this process beside the control socket.
    pub(crate) fn bind(control: &Path) -> io::Result<Self> {
        let path = socket_of(control, std::process::id());
        remove(&path)?;
        let listener = listen::bind_private(&path)?;
        Ok(Self { listener, path })
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "a socket stays behind");
        }
    }
}

/// The workers before this one that can be asked.
#[derive(Debug, Default)]
pub(crate) struct Elders {
    list: Mutex<Vec<Elder>>,
    /// They were told to end, with the whole proxy.
    ending: AtomicBool,
}

#[derive(Debug, Clone)]
struct Elder {
    path: PathBuf,
    pid: u32,
    answered: Instant,
}

impl Elders {
    /// Those that live. Sockets that dead ones left behind are taken away.
    pub(crate) fn find(control: &Path) -> Self {
        let folder = control.parent().unwrap_or(Path::new("."));
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let answered = clock::instant();
        let mut list: Vec<Elder> = Vec::new();
        for entry in entries {
            let path = entry.path();
            let Some(pid) = pid_of(control, &path).filter(|pid| *pid != std::process::id()) else {
                continue;
            };
            if UnixStream::connect(&path).is_err_and(|error| is_gone(error.kind())) {
                drop(remove(&path));
                continue;
            }
            list.push(Elder {
                path,
                pid,
                answered,
            });
        }
        Self {
            list: Mutex::new(list),
            ending: AtomicBool::new(false),
        }
    }

    /// Whether somebody was told of who cannot be asked: a worker of an older binary.
    pub(crate) fn lacks(&self, told: &Told) -> bool {
        let known: Vec<u32> = self.present().iter().map(|elder| elder.pid).collect();
        match told {
            Told::Known(pids) => pids.iter().any(|pid| !known.contains(pid)),
            Told::Unknown => true,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Adds to a status what the older workers say of themselves.
    pub(crate) async fn add_to(&self, status: &mut ProxyStatus) {
        let asked = self.present().into_iter().map(|elder| async move {
            let client = ControlClient::new(&elder.path);
            let answer = tokio::time::timeout(ANSWER_MAX, client.status()).await;
            (elder, answer)
        });
        for (elder, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(Ok(theirs)) => {
                    self.note(&elder, |it| it.answered = clock::instant());
                    elders::add(status, &theirs);
                }
                Ok(Err(ControlError::Unreachable { source, .. })) if is_gone(source.kind()) => {
                    self.forget(&elder);
                }
                Ok(Err(_)) | Err(_) => {
                    let silent = clock::instant().saturating_duration_since(elder.answered);
                    if silent > SILENT_MAX {
                        tracing::error!(
                            pid = elder.pid,
                            "an older worker says nothing any more; drains do not wait for it"
                        );
                        self.forget(&elder);
                    } else {
                        status.finishing = true;
                    }
                }
            }
        }
    }

    /// Tells them to end as by SIGTERM.
    pub(crate) async fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        for elder in self.present() {
            let client = ControlClient::new(&elder.path);
            let told = tokio::time::timeout(ANSWER_MAX, client.end()).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::debug!(
                    pid = elder.pid,
                    "an older worker does not hear that all end"
                );
            }
        }
    }

    /// Waits for the end of those that were told to end.
    pub(crate) async fn ended(&self) {
        while self.ending.load(Ordering::Relaxed) && !self.is_empty() {
            for elder in self.present() {
                if UnixStream::connect(&elder.path).is_err_and(|error| is_gone(error.kind())) {
                    self.forget(&elder);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn present(&self) -> Vec<Elder> {
        self.lock().clone()
    }

    fn note(&self, elder: &Elder, change: impl Fn(&mut Elder)) {
        let mut list = self.lock();
        list.iter_mut()
            .filter(|it| it.pid == elder.pid)
            .for_each(change);
    }

    fn forget(&self, elder: &Elder) {
        self.lock().retain(|it| it.pid != elder.pid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Elder>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody listens, or there is nothing to connect to.
fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn stem(control: &Path) -> String {
    let stem = control.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

fn socket_of(control: &Path, pid: u32) -> PathBuf {
    control.with_file_name(format!("{}-{pid}.sock", stem(control)))
}

fn pid_of(control: &Path, path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let rest = name.strip_prefix(&stem(control))?.strip_prefix('-')?;
    rest.strip_suffix(".sock")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_who_lives_clears_who_died_and_leaves_strangers_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let control = folder.path().join("proxy.sock");
        let dead = socket_of(&control, 4_000_001);
        drop(UnixListener::bind(&dead).expect("a socket"));
        let living = UnixListener::bind(socket_of(&control, 4_000_002)).expect("a socket");
        let stranger = folder.path().join("proxy-other.sock");
        fs::write(&stranger, b"").expect("written");
        let own = OwnSocket::bind(&control).expect("a socket");
        let elders = Elders::find(&control);
        let pids: Vec<u32> = elders.present().iter().map(|elder| elder.pid).collect();
        assert_eq!(pids, [4_000_002]);
        assert!(!dead.exists() && stranger.exists());
        assert!(!elders.lacks(&Told::Known(vec![4_000_002])));
        assert!(elders.lacks(&Told::Known(vec![4_000_003])) && elders.lacks(&Told::Unknown));
        drop(own);
        assert!(!socket_of(&control, std::process::id()).exists());
        drop(living);
        assert!(Elders::find(&control).is_empty());
    }
}
