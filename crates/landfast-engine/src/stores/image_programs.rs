//! PostgreSQL's programs of a store's image, for its backups: the host need have none of them.
//!
//! Each runs in a container of its own, as the user of a store, with no network and with the folders it is given and nothing else. A
//! server is reached through a socket of ours that passes on what comes: a client whose Landfast has died loses its server, and ends,
//! instead of filling the disk for nobody. What else such a Landfast leaves is a stray, and ended by the next one.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_backup_postgres::{ContainedProgram, ContainedRun, Containers, End};
use landfast_datastore::{Store, StoreImage};
use landfast_target::{
    Bind, ContainerOptions, ContainerUser, Content, ExecOutput, Exit, InstanceRef, InstanceSpec,
    ObservedState, Resources, Sandbox,
};
use landfast_types::{Bytes, ImageId, InstanceId, ReleaseId, Secret, Timestamp};
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixStream, unix::pipe},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    bindings::find,
    container::{self, RUNS_FROM, UnderWay},
    host,
};
use crate::{actions::chain, shared::Shared};

/// SIGINT: PostgreSQL's servers shut down in order, its clients leave off.
const IN_ORDER: i32 = 2;
/// How long an orderly end may take; a checkpoint is written.
const ORDER_MAX: Duration = Duration::from_secs(15 * 60);
/// How long the output of one that was ended may take to come.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);
/// How long an orderly end may take before its server is taken from a client.
const HEARD_MAX: Duration = Duration::from_secs(10);
/// How long a daemon may take to tell of an end whose output is there.
const END_TOLD_MAX: Duration = Duration::from_secs(15);
/// How much later than its output a program may end: both are seen by others.
const END_LATER_MAX: Duration = Duration::from_secs(2);
/// How long what starts a program may have its number.
const SHOWN_MAX: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);
const LOST: &str =
    "its output was lost on the way: Docker was restarted, or broke the connection; try again";
/// A daemon that does not answer is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Of parallel queries.
const SHARED_MEMORY: Bytes = Bytes(256 << 20);

/// Runs the programs of an image as the user of a store.
pub(crate) struct ImagePrograms {
    shared: Arc<Shared>,
    store: Store,
    owner: String,
    /// Where sockets are made: a short path.
    scratch: PathBuf,
}

impl fmt::Debug for ImagePrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImagePrograms")
            .field("store", &self.store.name)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl ImagePrograms {
    /// The folder of an image in which PostgreSQL's programs are, all that are asked for, and what runs them.
    ///
    /// # Errors
    /// A sentence, where the image lacks one of them.
    pub(crate) async fn find(
        shared: &Arc<Shared>,
        store: &Store,
        owner: String,
        scratch: PathBuf,
        names: &[&str],
    ) -> Result<Option<(PathBuf, Arc<dyn Containers>)>, String> {
        let Some(image) = image_of(store) else {
            return Ok(None);
        };
        let (_, folder) = container::beside_server(shared, store, image, names).await?;
        let programs = Self {
            shared: Arc::clone(shared),
            store: store.clone(),
            owner,
            scratch,
        };
        Ok(Some((folder, Arc::new(programs))))
    }

    /// The store as it is now, and a program of the image that it runs now: a restart may have brought another one since.
    async fn current(&self, program: &mut ContainedProgram) -> Result<(Store, ImageId), String> {
        let (scope, name) = (&self.store.scope, &self.store.name);
        let store = find(&self.shared, scope, name).unwrap_or_else(|| self.store.clone());
        let image = image_of(&store).ok_or("its server is no container any more")?;
        let (id, folder) = container::beside_server(&self.shared, &store, image, &[]).await?;
        if let Some(name) = program.path.file_name() {
            program.path = folder.join(name);
        }
        Ok((store, id))
    }

    async fn begin(&self, mut program: ContainedProgram) -> io::Result<ContainedRun> {
        let current = self.current(&mut program).await;
        let (store, image) = current.map_err(io::Error::other)?;
        let doorway = match &program.server {
            Some(socket) => Some(Doorway::open(self, socket).await?),
            None => None,
        };
        let number = rand::random_range(RUNS_FROM..RUNS_FROM << 10);
        let instance = InstanceId::new(self.store.name.as_str(), ReleaseId(0), number);
        let id = InstanceRef {
            scope: self.store.scope.clone(),
            instance,
        };
        let spec = self.spec(&program, (id.clone(), image), doorway.as_ref());
        let writes = program.writes.clone();
        let under_way = UnderWay::begin(&self.shared, &store, id.clone(), writes);
        let fence = host::fence(&self.shared, &store);
        let started = self.shared.target.start_read(fence, &spec).await;
        let (observed, output) = started.map_err(|error| io::Error::other(chain(&error)))?;
        let (stdout, read_stdout) = pipe::pipe()?;
        let (stderr, read_stderr) = pipe::pipe()?;
        let (end, ends) = mpsc::unbounded_channel();
        let (told, ended) = oneshot::channel();
        let driver = Driver {
            shared: Arc::clone(&self.shared),
            store,
            id,
        };
        self.shared.stores.spawn(async move {
            let exit = driver
                .drive(output, (stdout, stderr), (ends, doorway))
                .await;
            // Whoever waited for it may be gone.
            told.send(exit).unwrap_or_default();
            under_way.finish().await;
        });
        let pid = match observed.pid {
            Some(pid) if is_shown(pid, &program.path).await => Some(pid),
            Some(_) | None => None,
        };
        Ok(ContainedRun {
            stdout: read_stdout.into_nonblocking_fd()?,
            stderr: read_stderr.into_nonblocking_fd()?,
            pid,
            ended,
            end,
        })
    }

    fn spec(
        &self,
        program: &ContainedProgram,
        (id, image): (InstanceRef, ImageId),
        doorway: Option<&Doorway>,
    ) -> InstanceSpec {
        let same = |path: &PathBuf, read_only| Bind {
            from: path.clone(),
            at: path.clone(),
            read_only,
        };
        let writes = program.writes.iter().map(|path| same(path, false));
        let reads = program.reads.iter().map(|path| same(path, true));
        let server = doorway.map(|doorway| Bind {
            from: doorway.folder.clone(),
            at: doorway.at.clone(),
            read_only: true,
        });
        let plain = |text: &str| Secret::new(text.to_owned());
        let env = program.env.iter();
        let mut env: BTreeMap<_, _> = env
            .map(|(name, value)| (name.clone(), plain(value)))
            .collect();
        // What they say is read.
        env.insert("LC_ALL".to_owned(), plain("C"));
        InstanceSpec {
            log_folder: self.shared.folders.logs(&id.scope, &id.instance),
            id,
            content: Content::Image(image),
            command: program.arguments.clone(),
            env,
            secret_files: BTreeMap::new(),
            listens: false,
            // No less than the same programs have on a host: a copy is of the size of its database, not of its server's memory.
            resources: Resources::default(),
            volumes: BTreeMap::new(),
            is_job: true,
            sandbox: Sandbox::default(),
            container: ContainerOptions {
                entrypoint: Some(vec![program.path.to_string_lossy().into_owned()]),
                binds: writes.chain(reads).chain(server).collect(),
                user: ContainerUser::Owner(self.owner.clone()),
                stop_signal: Some(IN_ORDER),
                shared_memory: Some(SHARED_MEMORY),
                ..ContainerOptions::default()
            },
        }
    }
}

impl Containers for ImagePrograms {
    fn start(
        &self,
        program: ContainedProgram,
    ) -> Pin<Box<dyn Future<Output = io::Result<ContainedRun>> + Send + '_>> {
        Box::pin(self.begin(program))
    }

    fn clear<'a>(
        &'a self,
        folder: &'a Path,
    ) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>> {
        Box::pin(async move {
            let cleared = container::clear(&self.shared, &self.store, folder).await;
            cleared.map_err(io::Error::other)
        })
    }
}

/// What its server runs, or is to run before it ever did.
fn image_of(store: &Store) -> Option<&StoreImage> {
    let applied = store.applied.as_ref();
    let runs = applied.and_then(|applied| applied.image.as_ref());
    runs.or(store.wanted.image.as_ref())
}

/// Whether a number of the daemon's is that of this program here: whoever has other process ids would look at somebody else. What starts
/// it has its number for a moment.
async fn is_shown(pid: u32, program: &Path) -> bool {
    let shown = async {
        loop {
            match fs::read(format!("/proc/{pid}/cmdline")) {
                Ok(words) if is_among(&words, program) => return true,
                Ok(_) => sleep(LOOK).await,
                Err(_) => return false,
            }
        }
    };
    timeout(SHOWN_MAX, shown).await.unwrap_or(false)
}

fn is_among(words: &[u8], program: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let mut words = words.split(|byte| *byte == 0);
    words.any(|word| word == program.as_os_str().as_bytes())
}

/// A program that runs.
struct Driver {
    shared: Arc<Shared>,
    store: Store,
    id: InstanceRef,
}

impl Driver {
    /// Until it has ended: passes on what it writes, and ends it when that is wanted, or nobody holds it any more. Whoever loses what it
    /// writes is told so at once, and whatever it does then is for nobody.
    async fn drive(
        &self,
        output: mpsc::Receiver<ExecOutput>,
        pipes: (pipe::Sender, pipe::Sender),
        (ends, doorway): (mpsc::UnboundedReceiver<End>, Option<Doorway>),
    ) -> Result<bool, String> {
        let is_ordered = AtomicBool::new(false);
        let ended = async {
            let is_whole = pass_on(output, pipes).await;
            let at = self.shared.clock.wall();
            let is_had = is_whole && self.ended_with_its_output(at).await;
            // Whoever ordered its end asks for that alone.
            match is_had || is_ordered.load(Ordering::Relaxed) {
                true => {
                    let exit = self.shared.target.wait(&self.id).await;
                    exit.map_err(|error| chain(&error))
                }
                false => Err(LOST.to_owned()),
            }
        };
        // What it said last comes with its end, unless it was lost.
        let stopped = async {
            self.ended_by(ends, doorway, &is_ordered).await;
            sleep(LAST_WORDS_MAX).await;
        };
        let exit = tokio::select! {
            exit = ended => exit,
            () = stopped => {
                let exit = self.shared.target.wait(&self.id).await;
                exit.map_err(|error| chain(&error))
            }
        };
        match exit? {
            Exit::Code { code } => Ok(code == 0),
            Exit::Signal { .. } | Exit::OutOfMemory { .. } => Ok(false),
            exit @ (Exit::NotStarted { .. } | Exit::Unknown) => Err(exit.to_string()),
        }
    }

    /// Whether its end is why there is no more output, which ended at this time. A daemon that is restarted ends it too, and the program
    /// goes on; a daemon that was not tells of the end a moment after the last of the output.
    async fn ended_with_its_output(&self, at: Timestamp) -> bool {
        // One that is away has just lost it.
        let target = &self.shared.target;
        if target.observe(&self.id).await.is_err() {
            return false;
        }
        drop(timeout(END_TOLD_MAX, target.wait(&self.id)).await);
        match target.observe(&self.id).await {
            Ok(Some(observed)) => match observed.state {
                ObservedState::Exited { at: ended, .. } => ended <= at + END_LATER_MAX,
                ObservedState::Running => false,
            },
            // Nobody will know how it ended, which `wait` says.
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Ends it when that is ordered. One that is to end at once, or whose daemon is not heard to end it, loses its server: it would
    /// fill the disk for nobody.
    async fn ended_by(
        &self,
        mut ends: mpsc::UnboundedReceiver<End>,
        doorway: Option<Doorway>,
        is_ordered: &AtomicBool,
    ) {
        let order = ends.recv().await;
        is_ordered.store(true, Ordering::Relaxed);
        if order == Some(End::InOrder) {
            let unheard = async {
                sleep(HEARD_MAX).await;
                drop(doorway);
                at_once(&mut ends).await;
            };
            tokio::select! {
                () = self.stop(ORDER_MAX) => return,
                () = unheard => {}
            }
        } else {
            drop(doorway);
        }
        self.stop(Duration::ZERO).await;
    }

    async fn stop(&self, grace: Duration) {
        let fence = host::fence(&self.shared, &self.store);
        while let Err(error) = self.shared.target.stop(fence, &self.id, grace).await {
            tracing::debug!(instance = %self.id.instance, error = chain(&error), "a program of an image was not ended yet");
            sleep(ASK_AGAIN).await;
        }
    }
}

async fn at_once(ends: &mut mpsc::UnboundedReceiver<End>) {
    while ends.recv().await == Some(End::InOrder) {}
}

/// Until there is no more; `false` where the rest was lost. What nobody reads any more is let go.
async fn pass_on(
    mut output: mpsc::Receiver<ExecOutput>,
    (stdout, stderr): (pipe::Sender, pipe::Sender),
) -> bool {
    let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
    while let Some(piece) = output.recv().await {
        let (to, bytes) = match &piece {
            ExecOutput::Stdout(bytes) => (&mut stdout, bytes),
            ExecOutput::Stderr(bytes) => (&mut stderr, bytes),
            ExecOutput::Exited(_) => return false,
        };
        if let Some(pipe) = to
            && pipe.write_all(bytes).await.is_err()
        {
            *to = None;
        }
    }
    true
}

/// A socket of ours that leads to that of a server, as long as we live.
struct Doorway {
    /// Holds nothing else.
    folder: PathBuf,
    /// Where the server's own lies.
    at: PathBuf,
    _passing: JoinSet<()>,
}

impl Doorway {
    async fn open(programs: &ImagePrograms, socket: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (Some(at), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::Error::other("the server's socket lies in no folder"));
        };
        // What a server that died has left under this name is replaced.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = programs.scratch.join(format!("k{number}"));
        host::remove(&folder)?;
        let given = programs.shared.target.own_folder(&programs.owner, &folder);
        given
            .await
            .map_err(|error| io::Error::other(chain(&error)))?;
        let door = folder.join(name);
        let listener = UnixListener::bind(&door)?;
        // Its folder lets in the owner alone.
        fs::set_permissions(&door, fs::Permissions::from_mode(0o666))?;
        let mut passing = JoinSet::new();
        passing.spawn(pass(listener, socket.to_owned()));
        Ok(Self {
            folder,
            at: at.to_owned(),
            _passing: passing,
        })
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        if let Err(error) = host::remove(&self.folder) {
            tracing::debug!(%error, "the folder of a socket stays until the next one of its name");
        }
    }
}

async fn pass(listener: UnixListener, to: PathBuf) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let to = to.clone();
        connections.spawn(async move {
            let passed = async {
                let mut server = UnixStream::connect(&to).await?;
                tokio::io::copy_bidirectional_with_sizes(
                    &mut client,
                    &mut server,
                    16 << 10,
                    256 << 10,
                )
                .await
            };
            if let Err(error) = passed.await {
                tracing::debug!(%error, "a connection to a server was lost");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn passed(pieces: Vec<ExecOutput>) -> (bool, String) {
        let (sender, receiver) = mpsc::channel(pieces.len());
        for piece in pieces {
            sender.try_send(piece).unwrap();
        }
        drop(sender);
        let ((stdout, mut read), (stderr, _said)) = (pipe::pipe().unwrap(), pipe::pipe().unwrap());
        let is_whole = pass_on(receiver, (stdout, stderr)).await;
        let mut text = String::new();
        read.read_to_string(&mut text).await.unwrap();
        (is_whole, text)
    }

    #[tokio::test]
    async fn an_output_whose_rest_is_lost_is_not_whole() {
        let piece = || ExecOutput::Stdout(b"half".to_vec());
        assert_eq!(passed(vec![piece()]).await, (true, "half".to_owned()));
        let lost = ExecOutput::Exited(Exit::Unknown);
        assert_eq!(
            passed(vec![piece(), lost]).await,
            (false, "half".to_owned())
        );
    }

    #[test]
    fn what_starts_a_program_is_not_taken_for_it() {
        let program = Path::new("/usr/bin/pg_dump");
        assert!(is_among(b"/usr/bin/pg_dump\0--format=c\0", program));
        assert!(is_among(
            b"/sbin/docker-init\0--\0/usr/bin/pg_dump\0",
            program
        ));
        assert!(!is_among(b"runc\0init\0", program) && !is_among(b"", program));
    }
}
