//! The folder of one instance under the run folder, and what can be told from it alone.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_shim::{
    Ended, Exit, LOCK_FILE, Leftovers, MARK_VARIABLE, ShimState, folder_key,
    process::{Marked, boot_id},
    shim_is_alive,
};
use landfast_target::InstanceRef;
use landfast_types::{Fence, FenceGuard, Generation, StaleFence, Timestamp};
use rustix::{fs::FlockOperation, io::Errno};

use crate::blocking;

/// A shim that holds its lock writes its state within this, unless it hangs.
const STATE_WAIT_MAX: Duration = Duration::from_secs(5);
const STATE_WAIT_STEP: Duration = Duration::from_millis(10);
/// What a dead shim left behind is killed in so many rounds: it may fork between two of them.
const KILL_ROUNDS_MAX: usize = 50;
const KILL_ROUND_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn of(run: &Path, id: &InstanceRef) -> Self {
        Self {
            path: run.join("i").join(folder_key(&id.scope, &id.instance)),
        }
    }

    /// Every instance folder there is.
    pub(crate) fn all(run: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(run.join("i")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        entries
            .map(|entry| {
                Ok(Self {
                    path: entry?.path(),
                })
            })
            .collect()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn key(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    pub(crate) fn stripe(&self, stripes: usize) -> usize {
        self.key().bytes().fold(0_usize, |sum, byte| {
            (sum * 31 + usize::from(byte)) % stripes
        })
    }

    pub(crate) fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
    }

    /// What is known of the instance and whether its shim lives; `None` when nothing was ever started here. One whose
    /// shim died without a word is settled first: it ended unseen.
    pub(crate) async fn observe(&self) -> io::Result<Option<(ShimState, bool)>> {
        let mut waited = Duration::ZERO;
        loop {
            let folder = self.clone();
            match blocking(move || folder.look()).await? {
                Look::Nothing => return Ok(None),
                Look::Found { state, is_alive } => return Ok(Some((*state, is_alive))),
                Look::Starting if waited < STATE_WAIT_MAX => {
                    tokio::time::sleep(STATE_WAIT_STEP).await;
                    waited += STATE_WAIT_STEP;
                }
                Look::Starting => {
                    let reason = "its shim holds the lock but writes no state";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
                }
            }
        }
    }

    fn look(&self) -> io::Result<Look> {
        // In this order: a shim that ends between the two steps has written its state before it let the lock go.
        let is_alive = shim_is_alive(&self.path)?;
        let Some(state) = ShimState::read(&self.path)? else {
            return Ok(if is_alive {
                Look::Starting
            } else {
                Look::Nothing
            });
        };
        if is_alive || state.ended.is_some() {
            return Ok(Look::Found {
                state: Box::new(state),
                is_alive,
            });
        }
        // The shim may have been starting, and holds the lock by now.
        if shim_is_alive(&self.path)? {
            return Ok(Look::Starting);
        }
        let state = Box::new(self.settle(state)?);
        Ok(Look::Found {
            state,
            is_alive: false,
        })
    }

    /// The shim died and nobody saw how the instance ended: ends what is left and remembers that.
    fn settle(&self, mut state: ShimState) -> io::Result<ShimState> {
        if state.boot == boot_id()? {
            let marked = Marked {
                variable: MARK_VARIABLE,
                mark: &state.mark,
                main: state.main,
            };
            for _ in 0..KILL_ROUNDS_MAX {
                if marked.kill() == 0 {
                    break;
                }
                std::thread::sleep(KILL_ROUND_PAUSE);
            }
        }
        state.leftovers.remove();
        state.ended = Some(Ended {
            exit: Exit::Unknown,
            at: now(),
            out_of_memory: None,
        });
        state.write(&self.path)?;
        Ok(state)
    }

    /// Marks an instance of which nothing is known as ended, so that it is never started. Does nothing where no
    /// folder is: then nobody was ever told to start it. False when a shim was faster and has the folder: it must be
    /// asked.
    pub(crate) async fn bury(&self, id: &InstanceRef) -> io::Result<bool> {
        let (folder, id) = (self.clone(), id.clone());
        blocking(move || {
            if !folder.path.is_dir() {
                return Ok(true);
            }
            // A shim takes this lock before it looks for a state, and starts nothing where it finds one.
            let lock = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(folder.path.join(LOCK_FILE))?;
            match rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            if ShimState::read(&folder.path)?.is_some() {
                return Ok(true);
            }
            let state = ShimState {
                scope: id.scope,
                instance: id.instance,
                argv: Vec::new(),
                is_job: false,
                address: None,
                started_at: now(),
                boot: boot_id()?,
                mark: String::new(),
                shim: None,
                main: None,
                fence: FenceGuard::default(),
                ended: Some(Ended {
                    exit: Exit::Unknown,
                    at: now(),
                    out_of_memory: None,
                }),
                log_lines_dropped: 0,
                protections: Vec::new(),
                leftovers: Leftovers::default(),
            };
            state.write(&folder.path)?;
            // Whoever looked at the lock in this process meanwhile has let it go for all of it (fcntl(2)).
            Ok(!shim_is_alive(&folder.path)?)
        })
        .await
    }

    pub(crate) async fn remove(&self) -> io::Result<()> {
        let path = self.path.clone();
        blocking(move || match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        })
        .await
    }
}

enum Look {
    Nothing,
    Starting,
    Found {
        state: Box<ShimState>,
        is_alive: bool,
    },
}

/// Remembers the newest generation of servers that gave an order here, and refuses older ones. Only generations: two
/// orders of one server may overtake each other, and each shim orders those that concern it.
pub(crate) fn take_generation(run: &Path, order: Fence) -> io::Result<Result<(), StaleFence>> {
    fs::create_dir_all(run)?;
    let path = run.join("generation");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    // Empty when it was just made; anything else that is no number was cut short by a loss of power.
    let seen = Generation(text.trim().parse().unwrap_or(0));
    if order.generation < seen {
        let seen = Fence {
            generation: seen,
            revision: 0,
        };
        return Ok(Err(StaleFence {
            refused: order,
            seen,
        }));
    }
    if order.generation > seen {
        file.rewind()?;
        file.set_len(0)?;
        write!(file, "{}", order.generation)?;
    }
    Ok(Ok(()))
}

/// The only clock of this crate.
#[expect(
    clippy::disallowed_methods,
    reason = "this target stamps what no shim saw"
)]
fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // A clock before 1970 is wrong whatever is said.
    let micros = now.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    });
    Timestamp::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use landfast_types::{InstanceId, ReleaseId, Scope};

    use super::*;

    const LOCK_VARIABLE: &str = "LANDFAST_TEST_LOCK";

    /// Not a test of its own: the other process of the one below, because a lock of this kind is a process's.
    #[test]
    fn holds_a_lock_for_another_test() {
        let Some(path) = std::env::var_os(LOCK_VARIABLE) else {
            return;
        };
        let lock = File::options().read(true).write(true).open(path).unwrap();
        rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        std::thread::sleep(Duration::from_secs(60));
    }

    #[tokio::test]
    async fn buries_nothing_that_a_shim_has_taken() {
        let run = tempfile::tempdir().unwrap();
        let id = InstanceRef {
            scope: Scope {
                app: "shop".parse().unwrap(),
                environment: "production".parse().unwrap(),
            },
            instance: InstanceId::new("api", ReleaseId(1), 1),
        };
        let folder = Folder::of(run.path(), &id);
        assert!(folder.bury(&id).await.unwrap(), "there is nothing to bury");
        folder.make().unwrap();
        let lock = folder.path().join(LOCK_FILE);
        fs::write(&lock, "").unwrap();
        #[expect(clippy::disallowed_methods, reason = "the test needs another process")]
        let mut other = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "folder::tests::holds_a_lock_for_another_test"])
            .env(LOCK_VARIABLE, &lock)
            .spawn()
            .unwrap();
        while !shim_is_alive(folder.path()).unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!folder.bury(&id).await.unwrap(), "its shim must be asked");
        assert_eq!(ShimState::read(folder.path()).unwrap(), None);
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(folder.bury(&id).await.unwrap());
        let state = ShimState::read(folder.path()).unwrap();
        assert!(state.is_some_and(|state| state.ended.is_some()));
    }
}
