//! WAL for a server in recovery. The server asks through its `restore_command`; whoever runs the restore answers.
//!
//! `wal-get` holds no key and reads no repository: it asks over a socket, and moves a file that was verified into place. So the
//! database's user never sees the key. Its answers are exit codes that PostgreSQL knows: 0, it is there; 1, there is none, the end of
//! the archive; 255, stop: something before the end is missing or damaged, or nobody answers. On 1 recovery ends and the server
//! promotes; on anything above 125 it stops ("Continuous Archiving" of its manual).
//!
//! A server in a container has no program of ours. It asks by a line through one named pipe and reads from another with which code its
//! command is to end; whoever answers has moved the file by then.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use landfast_backup::{
    Ledger, Lsn, RestorePlan, Scan, Segment, Timeline, scan_from_segment_start, scan_wal,
};
use landfast_repository::RepositoryError;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, unix::pipe},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

use crate::{Archive, BackupError, receiver::chain};

const THERE: u8 = 0;
const ABSENT: u8 = 1;
const STOP: u8 = 255;
const ASK: &str = "wal.ask";
const CODE: &str = "wal.code";
const PATIENCE: Duration = Duration::from_secs(300);
/// Segments that are fetched before they are asked for.
const AHEAD: usize = 6;
/// Of them, so many at the same time: a segment is in memory twice while it is opened.
const FETCHES_AT_ONCE: usize = 2;

/// The whole of `wal-get SOCKET NAME PATH`, as the server runs it.
pub fn wal_get(socket: &Path, name: &str, path: &Path) -> ExitCode {
    match ask(socket, name) {
        Ok(Answer::There(file)) => match fs::rename(&file, path) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(STOP),
        },
        Ok(Answer::Absent) => ExitCode::from(ABSENT),
        Ok(Answer::Stop) | Err(_) => ExitCode::from(STOP),
    }
}

enum Answer {
    There(PathBuf),
    Absent,
    Stop,
}

fn ask(socket: &Path, name: &str) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{name}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(match line.trim_end().split_once(' ') {
        Some(("there", file)) => Answer::There(file.into()),
        None if line == "absent\n" => Answer::Absent,
        _ => Answer::Stop,
    })
}

/// Answers `wal-get`. Dropping it ends it, and with it every later answer.
pub(crate) struct WalServer {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    archive: Archive,
    ledger: Ledger,
    plan: RestorePlan,
    folder: PathBuf,
    user: Option<(u32, u32)>,
    fetching: Semaphore,
    /// Segments on their way, by their place in the plan.
    coming: Mutex<BTreeMap<Segment, JoinHandle<Result<PathBuf, BackupError>>>>,
    /// The first reason to stop.
    stopped: Mutex<Option<String>>,
    /// The object that was the reason.
    bad: Mutex<Option<String>>,
}

impl WalServer {
    /// Listens in a folder that the server's user can reach.
    pub(crate) fn start(
        archive: Archive,
        ledger: Ledger,
        plan: RestorePlan,
        folder: &Path,
        user: Option<(u32, u32)>,
    ) -> Result<Self, BackupError> {
        let socket = Self::socket(folder);
        let listener =
            UnixListener::bind(&socket).map_err(BackupError::io("listen on", &socket))?;
        own(&socket, user).map_err(BackupError::io("give away", &socket))?;
        let shared = Arc::new(Shared::new(archive, ledger, plan, folder, user));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self {
            shared,
            _tasks: tasks,
        })
    }

    /// The same for a server that is in a container, with its data in `data`.
    pub(crate) fn start_for_container(
        archive: Archive,
        ledger: Ledger,
        plan: RestorePlan,
        (folder, data): (&Path, &Path),
        user: Option<(u32, u32)>,
    ) -> Result<Self, BackupError> {
        let made = |path: PathBuf| {
            use rustix::fs::{CWD, FileType, Mode, mknodat};
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, &path, FileType::Fifo, mode, 0)
                .map_err(io::Error::from)
                .and_then(|()| own(&path, user))
                .map_err(BackupError::io("make", &path))?;
            Ok::<_, BackupError>(path)
        };
        let (ask, code) = (made(folder.join(ASK))?, made(folder.join(CODE))?);
        // Open at both ends, they never end and nobody waits for the other to come.
        let mut both = pipe::OpenOptions::new();
        both.read_write(true);
        let asked = both.open_receiver(&ask);
        let asked = asked.map_err(BackupError::io("open", &ask))?;
        let codes = both.open_sender(&code);
        let codes = codes.map_err(BackupError::io("open", &code))?;
        let shared = Arc::new(Shared::new(archive, ledger, plan, folder, user));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_container(
            (asked, codes),
            data.to_owned(),
            Arc::clone(&shared),
        ));
        Ok(Self {
            shared,
            _tasks: tasks,
        })
    }

    /// What such a server runs, as its `restore_command`. Nothing but a shell's own words; a question that was not asked, or not
    /// answered, stops it.
    pub(crate) fn container_command(ask: &str, code: &str) -> String {
        format!(
            "{{ echo \"%f %p\" > {ask} && read -r code < {code}; }} || exit {STOP}; exit \"$code\""
        )
    }

    /// The two pipes.
    pub(crate) fn pipes(folder: &Path) -> [PathBuf; 2] {
        [folder.join(ASK), folder.join(CODE)]
    }

    pub(crate) fn socket(folder: &Path) -> PathBuf {
        folder.join("wal.sock")
    }

    /// Why the server was stopped, where it was.
    pub(crate) fn stopped(&self) -> Option<String> {
        lock(&self.shared.stopped).clone()
    }

    /// The object that is missing or damaged, where that was the reason.
    pub(crate) fn bad_object(&self) -> Option<String> {
        lock(&self.shared.bad).clone()
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let mut answering = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        while answering.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        answering.spawn(async move {
            let mut stream = tokio::io::BufReader::new(stream);
            let mut name = String::new();
            if stream.read_line(&mut name).await.is_err() {
                return;
            }
            let answer = match shared.answer(name.trim_end()).await {
                Answer::There(path) => format!("there {}\n", path.display()),
                Answer::Absent => "absent\n".to_owned(),
                Answer::Stop => "stop\n".to_owned(),
            };
            // A `wal-get` that is gone is asked for again.
            drop(stream.write_all(answer.as_bytes()).await);
        });
    }
}

/// Answers one server, which asks once at a time.
async fn serve_container(
    (asked, mut codes): (pipe::Receiver, pipe::Sender),
    data: PathBuf,
    shared: Arc<Shared>,
) {
    let mut questions = tokio::io::BufReader::new(asked).lines();
    while let Ok(Some(question)) = questions.next_line().await {
        let code = match question.split_once(' ') {
            Some((name, path)) => shared.place(name, &data, path).await,
            None => STOP,
        };
        if codes
            .write_all(format!("{code}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Moves a file to where a server wants it: a name in its own `pg_wal`. What the server has made of that folder leads nowhere else.
fn move_into(data: &Path, path: &str, file: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, Mode, OFlags, openat, renameat};
    let name = path.strip_prefix("pg_wal/");
    let name = name.filter(|name| !name.is_empty() && !name.contains('/') && *name != "..");
    let name = name.ok_or_else(|| io::Error::other(format!("`{path}` is no place for WAL")))?;
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let data = openat(CWD, data, flags, Mode::empty())?;
    let folder = openat(&data, "pg_wal", flags, Mode::empty())?;
    Ok(renameat(CWD, file, &folder, name)?)
}

impl Shared {
    fn new(
        archive: Archive,
        ledger: Ledger,
        plan: RestorePlan,
        folder: &Path,
        user: Option<(u32, u32)>,
    ) -> Self {
        Self {
            archive,
            ledger,
            plan,
            folder: folder.to_owned(),
            user,
            fetching: Semaphore::new(FETCHES_AT_ONCE),
            coming: Mutex::default(),
            stopped: Mutex::default(),
            bad: Mutex::default(),
        }
    }

    /// With which code the command of a server is to end.
    async fn place(self: &Arc<Self>, name: &str, data: &Path, path: &str) -> u8 {
        let file = match self.answer(name).await {
            Answer::There(file) => file,
            Answer::Absent => return ABSENT,
            Answer::Stop => return STOP,
        };
        match move_into(data, path, &file) {
            Ok(()) => THERE,
            Err(error) => {
                let why = format!("`{name}`: failed to move it to `{path}`: {error}");
                lock(&self.stopped).get_or_insert(why);
                STOP
            }
        }
    }

    async fn answer(self: &Arc<Self>, name: &str) -> Answer {
        match self.find(name).await {
            Ok(Some(path)) => Answer::There(path),
            Ok(None) => Answer::Absent,
            Err(error) => {
                let why = format!("`{name}`: {}", chain(&error));
                tracing::warn!(%why, "recovery is stopped");
                lock(&self.stopped).get_or_insert(why);
                if let BackupError::Repository(error) = &error
                    && let Some(object) = error.bad_object()
                {
                    lock(&self.bad).get_or_insert(object.to_owned());
                }
                Answer::Stop
            }
        }
    }

    async fn find(self: &Arc<Self>, name: &str) -> Result<Option<PathBuf>, BackupError> {
        let size = self.ledger.segment_bytes();
        if let Some(segment) = Segment::parse(name, size) {
            if !self.plan.needs(segment, &self.ledger) {
                return Ok(None);
            }
            self.fetch_ahead(segment);
            let coming = lock(&self.coming).remove(&segment);
            let coming = coming.expect("it was just asked for, and one server asks once at a time");
            let fetched = coming.await;
            return fetched
                .map_err(|error| BackupError::Stopped(error.to_string()))?
                .map(Some);
        }
        let timeline = name.strip_suffix(".history");
        let timeline = timeline.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match timeline.map(Timeline) {
            Some(timeline) if timeline <= self.plan.timeline() => self.history(timeline).await,
            _ => Ok(None),
        }
    }

    async fn history(&self, timeline: Timeline) -> Result<Option<PathBuf>, BackupError> {
        let Some(digest) = self.ledger.history_digest(timeline) else {
            return Ok(None);
        };
        let name = self.archive.history_path(timeline);
        let bytes = self.archive.repository().get(&name).await?;
        if landfast_types::Digest::of(&bytes) != digest {
            let what = "it is another one than the ledger speaks of";
            return Err(RepositoryError::Damaged { name, what }.into());
        }
        self.write(&timeline.history_name(), &bytes).map(Some)
    }

    /// Has this segment and the next ones fetched.
    #[expect(
        clippy::disallowed_methods,
        reason = "the handles are kept; whoever is asked for is waited for"
    )]
    fn fetch_ahead(self: &Arc<Self>, segment: Segment) {
        let mut coming = lock(&self.coming);
        // What was fetched and never asked for.
        coming.retain(|known, task| *known >= segment || !task.is_finished());
        for segment in self.upcoming(segment) {
            coming.entry(segment).or_insert_with(|| {
                let shared = Arc::clone(self);
                tokio::spawn(async move { shared.fetch(segment).await })
            });
        }
    }

    fn upcoming(&self, segment: Segment) -> Vec<Segment> {
        let next = (0..AHEAD as u64).map(|more| Segment {
            number: segment.number + more,
            ..segment
        });
        next.filter(|segment| self.plan.needs(*segment, &self.ledger))
            .collect()
    }

    async fn fetch(&self, segment: Segment) -> Result<PathBuf, BackupError> {
        // In the order they were asked for.
        let permit = self.fetching.acquire().await;
        let _permit = permit.map_err(|error| BackupError::Stopped(error.to_string()))?;
        let bytes = segment_of_live(&self.archive, &self.ledger, &self.plan, segment).await?;
        self.write(&segment.file_name(self.ledger.segment_bytes()), &bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, BackupError> {
        let path = self.folder.join(name);
        let written = fs::write(&path, bytes).and_then(|()| own(&path, self.user));
        written.map_err(BackupError::io("write", &path))?;
        Ok(path)
    }
}

/// The same where an archiver may be running: what it has put together since the ledger was read is read instead.
async fn segment_of_live(
    archive: &Archive,
    ledger: &Ledger,
    plan: &RestorePlan,
    segment: Segment,
) -> Result<Vec<u8>, BackupError> {
    let mut found = segment_bytes(archive, ledger, plan, segment).await;
    // The ledger speaks of what was put together before the pieces go. So one that still speaks of this one means that it is lost.
    while let Err(BackupError::Repository(RepositoryError::Missing { name })) = &found {
        let name = name.clone();
        let Some(newer) = archive.load().await? else {
            break;
        };
        let pieces = newer.ledger.pieces_of(segment);
        let mut names = pieces
            .iter()
            .map(|piece| archive.piece_path(piece.key(segment.timeline)));
        if names.any(|other| other == name) {
            break;
        }
        found = match segment_bytes(archive, &newer.ledger, plan, segment).await {
            Err(BackupError::Stopped(_)) => {
                return Err(RepositoryError::Missing { name }.into());
            }
            again => again,
        };
    }
    found
}

/// A segment as it is handed out: every piece verified, nothing behind the end of the plan.
async fn segment_bytes(
    archive: &Archive,
    ledger: &Ledger,
    plan: &RestorePlan,
    segment: Segment,
) -> Result<Vec<u8>, BackupError> {
    let size = ledger.segment_bytes();
    let start = segment.start(size);
    let is_last = segment.timeline == plan.timeline() && segment.end(size) >= plan.reach();
    let end = if is_last {
        plan.reach()
    } else {
        segment.end(size)
    };
    // Where a timeline was left, its file may end early.
    let end = ledger
        .shipped_to(segment.timeline)
        .unwrap_or_default()
        .min(end);
    if let Some(hole) = ledger.hole(segment.timeline, start, end)
        && let Some(first) = plan
            .legs
            .iter()
            .find(|leg| leg.timeline == segment.timeline)
        && hole.to > first.from
    {
        return Err(BackupError::Stopped(format!("WAL is missing: {hole}")));
    }
    let mut bytes = Vec::new();
    for piece in ledger.pieces_of(segment) {
        let key = piece.key(segment.timeline);
        let part = archive.piece(key, Some(piece.digest)).await?;
        // A segment that was closed is one piece.
        if part.len() as u64 == size.get() {
            bytes = part;
            break;
        }
        bytes.resize(size.get() as usize, 0);
        let at = piece.from.bytes_since(start) as usize;
        bytes[at..at + part.len()].copy_from_slice(&part);
    }
    bytes.resize(size.get() as usize, 0);
    if is_last {
        bytes[plan.reach().bytes_since(start) as usize..].fill(0);
    }
    Ok(bytes)
}

/// Where the last whole record at or before the end of a plan ends: what a server that replays it must reach. Reads as many segments
/// back as that record is long.
pub(crate) async fn expected_end(
    archive: &Archive,
    ledger: &Ledger,
    plan: &RestorePlan,
) -> Result<Lsn, BackupError> {
    let size = ledger.segment_bytes();
    let last = plan.legs.last().expect("a plan has a leg");
    let mut joined = Vec::new();
    let mut segment = Segment::of(last.timeline, Lsn(last.to.0.saturating_sub(1)), size);
    loop {
        let mut bytes = segment_of_live(archive, ledger, plan, segment).await?;
        bytes.extend_from_slice(&joined);
        joined = bytes;
        let start = segment.start(size);
        let scan: Scan = scan_from_segment_start(&joined, start, size);
        if scan.records > 0 {
            return Ok(scan.end);
        }
        // The whole of it is one record, or the backup begins here.
        if start <= last.from || segment.number == 0 {
            return Ok(scan_wal(
                &joined[last.from.page_start().bytes_since(start) as usize..],
                last.from,
                None,
                size,
            )
            .end);
        }
        segment.number -= 1;
    }
}

pub(crate) fn own(path: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    match user {
        // What a link leads to is not ours to give away.
        Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_is_moved_into_the_folder_of_its_server_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let (data, file) = (folder.path().join("data"), folder.path().join("file"));
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        let written = || fs::write(&file, "wal").unwrap();
        written();
        move_into(&data, "pg_wal/RECOVERYXLOG", &file).unwrap();
        let moved = data.join("pg_wal/RECOVERYXLOG");
        assert_eq!(fs::read_to_string(moved).unwrap(), "wal");
        written();
        for path in [
            "pg_wal/..",
            "pg_wal/",
            "pg_wal/a/b",
            "global/x",
            "/etc/x",
            "",
        ] {
            assert!(move_into(&data, path, &file).is_err(), "{path}");
        }
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::remove_dir_all(data.join("pg_wal")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, data.join("pg_wal")).unwrap();
        assert!(move_into(&data, "pg_wal/RECOVERYXLOG", &file).is_err());
        assert!(file.exists());
    }

    /// As PostgreSQL would run it, with its marks filled in.
    #[tokio::test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a server's command is run by a shell"
    )]
    async fn a_shell_ends_with_the_code_it_is_told_or_stops() {
        let folder = tempfile::tempdir().unwrap();
        let pipes = WalServer::pipes(folder.path());
        let [ask, code] = pipes.each_ref().map(|path| format!("'{}'", path.display()));
        let command = WalServer::container_command(&ask, &code);
        let command = command.replace("%f", "NAME").replace("%p", "pg_wal/X");
        let run = || {
            let mut shell = tokio::process::Command::new("/bin/sh");
            shell.arg("-c").arg(&command).kill_on_drop(true);
            shell
        };
        // Nobody answers: there is no pipe.
        fs::create_dir(&pipes[0]).unwrap();
        let ended = run().output().await.unwrap().status;
        assert_eq!(ended.code(), Some(255));
        fs::remove_dir(&pipes[0]).unwrap();
        for path in &pipes {
            use rustix::fs::{CWD, FileType, Mode, mknodat};
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        let mut both = pipe::OpenOptions::new();
        both.read_write(true);
        let asked = both.open_receiver(&pipes[0]).unwrap();
        let mut codes = both.open_sender(&pipes[1]).unwrap();
        let mut questions = tokio::io::BufReader::new(asked).lines();
        for code in [THERE, ABSENT, STOP] {
            let mut shell = run().spawn().unwrap();
            let question = questions.next_line().await.unwrap();
            assert_eq!(question.as_deref(), Some("NAME pg_wal/X"));
            codes
                .write_all(format!("{code}\n").as_bytes())
                .await
                .unwrap();
            let ended = shell.wait().await.unwrap();
            assert_eq!(ended.code(), Some(i32::from(code)));
        }
    }
}
