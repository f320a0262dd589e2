//! PostgreSQL's own programs as children: argv only, no variable of ours but those they need, dead when we are. Or in containers, where
//! [`crate::Containers`] runs them.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        mpsc::{Sender, channel},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, setpriority_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    net::unix::pipe,
    process::Child,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::sleep,
};

use crate::{
    clock,
    container::{ContainedProgram, ContainedRun, Containers, End},
};

/// Of programs that give way to others (`nice(2)`): as much as the threads that compress what they write.
const NICENESS: i32 = 5;
/// No helper works longer, whatever it does.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);
/// How often it is looked whether a helper does anything.
const LOOKS: u32 = 20;
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Lines of a child's messages that are kept.
const LINES_MAX: usize = 40;

/// What is started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(&'static str, OsString)>,
    /// User and group to become, where we are root.
    pub(crate) user: Option<(u32, u32)>,
    /// Who runs it instead of this host, as its own user.
    pub(crate) containers: Option<Arc<dyn Containers>>,
    pub(crate) needs: Needs,
}

/// What a program is given of this host where it runs in a container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Needs {
    /// Folders.
    pub(crate) writes: Vec<PathBuf>,
    /// Files.
    pub(crate) reads: Vec<PathBuf>,
    /// The socket of a server that is none of ours to start.
    pub(crate) server: Option<PathBuf>,
}

impl Program {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            user: None,
            containers: None,
            needs: Needs::default(),
        }
    }

    /// A folder that it writes to.
    pub(crate) fn writes(mut self, folder: &Path) -> Self {
        self.needs.writes.push(folder.to_owned());
        self
    }

    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.args.extend(args.map(OsString::from));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }
}

/// A child and what it says. Dropping it kills it and what it started.
pub(crate) struct Running {
    process: Process,
    lines: Arc<Mutex<VecDeque<String>>>,
    reading: Option<JoinHandle<()>>,
}

enum Process {
    Child(Box<Child>),
    Contained(Contained),
}

/// One in a container.
struct Contained {
    stdout: Option<pipe::Receiver>,
    pid: Option<u32>,
    ended: Ended,
    end: mpsc::UnboundedSender<End>,
}

/// How one in a container ended, once that was told.
enum Ended {
    Awaited(oneshot::Receiver<Result<bool, String>>),
    Told(Result<bool, String>),
}

impl Contained {
    async fn wait(&mut self) -> io::Result<bool> {
        if let Ended::Awaited(ended) = &mut self.ended {
            let gone = |_| Err("whoever ran it is gone".to_owned());
            let told = ended.await.unwrap_or_else(gone);
            self.ended = Ended::Told(told);
        }
        match &self.ended {
            Ended::Told(told) => told.clone().map_err(io::Error::other),
            Ended::Awaited(_) => unreachable!("it was told just now"),
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// One thread starts all children and never ends: the kernel kills them when their starter is gone.
static STARTER: LazyLock<Sender<Job>> = LazyLock::new(|| starter("starter", || {}));
/// Another one starts those that are to have no network; or why there is none.
static APART: LazyLock<Result<Sender<Job>, String>> = LazyLock::new(|| {
    let (sender, left) = channel();
    let jobs = starter("starter-apart", move || {
        // Somebody waits for it below.
        drop(sender.send(landfast_shim::leave_network()));
    });
    match left.recv() {
        Ok(Ok(())) => Ok(jobs),
        Ok(Err(error)) => Err(format!("it cannot be given a network of its own: {error}")),
        Err(_) => Err("the thread that starts programs is gone".to_owned()),
    }
});

fn starter(name: &str, first: impl FnOnce() + Send + 'static) -> Sender<Job> {
    let (sender, jobs) = channel::<Job>();
    let work = move || {
        first();
        jobs.into_iter().for_each(|job| job());
    };
    let thread = std::thread::Builder::new().name(name.into());
    thread
        .spawn(work)
        .expect("a process that can start no thread can do nothing here");
    sender
}

#[expect(
    clippy::disallowed_methods,
    reason = "PostgreSQL's own programs are what this crate drives, argv by argv"
)]
fn command(program: &Program) -> std::process::Command {
    let mut command = std::process::Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0);
    if let Some((uid, gid)) = program.user {
        command.uid(uid).gid(gid);
    }
    landfast_shim::die_with_starter(&mut command);
    command
}

impl Running {
    /// Starts a program. Its standard output can be read; its messages are kept.
    pub(crate) async fn start(program: &Program) -> io::Result<Self> {
        Self::start_by(&STARTER, program).await
    }

    /// The same in a network of its own that holds nothing. Where that cannot be had it has ours, and the reason is given.
    pub(crate) async fn start_apart(program: &Program) -> io::Result<(Self, Option<String>)> {
        // No container has one.
        if program.containers.is_some() {
            return Ok((Self::start(program).await?, None));
        }
        match &*APART {
            Ok(starter) => Ok((Self::start_by(starter, program).await?, None)),
            Err(why) => Ok((Self::start(program).await?, Some(why.clone()))),
        }
    }

    async fn start_by(starter: &Sender<Job>, program: &Program) -> io::Result<Self> {
        if let Some(containers) = &program.containers {
            let started = containers.start(ContainedProgram::of(program)?);
            return Self::contained(started.await?);
        }
        let mut command = tokio::process::Command::from(command(program));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let runtime = tokio::runtime::Handle::current();
        let (sender, started) = oneshot::channel();
        let job: Job = Box::new(move || {
            let _inside = runtime.enter();
            // Whoever asked is gone: the child is killed as it is dropped.
            drop(sender.send(command.spawn()));
        });
        let gone = |_| io::Error::other("the thread that starts programs is gone");
        starter.send(job).map_err(|_| gone(()))?;
        let mut child = started.await.map_err(|_| gone(()))??;
        let lines = Arc::default();
        let stderr = child.stderr.take();
        let reading = stderr.map(|stderr| read_lines(stderr, &lines));
        Ok(Self {
            process: Process::Child(Box::new(child)),
            lines,
            reading,
        })
    }

    fn contained(run: ContainedRun) -> io::Result<Self> {
        let lines = Arc::default();
        let stderr = pipe::Receiver::from_owned_fd(run.stderr)?;
        Ok(Self {
            reading: Some(read_lines(stderr, &lines)),
            lines,
            process: Process::Contained(Contained {
                stdout: Some(pipe::Receiver::from_owned_fd(run.stdout)?),
                pid: run.pid,
                ended: Ended::Awaited(run.ended),
                end: run.end,
            }),
        })
    }

    /// Its standard output, once.
    ///
    /// # Errors
    /// Where it was taken before.
    pub(crate) fn stdout(&mut self) -> io::Result<pipe::Receiver> {
        let taken = || io::Error::other("its output is read already");
        match &mut self.process {
            Process::Child(child) => {
                let stdout = child.stdout.take().ok_or_else(taken)?;
                pipe::Receiver::from_owned_fd(stdout.into_owned_fd()?)
            }
            Process::Contained(contained) => contained.stdout.take().ok_or_else(taken),
        }
    }

    /// Lets whatever else wants a core have it first.
    pub(crate) fn give_way(&self) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // Where it is refused the work is done all the same.
            setpriority_process(Some(pid), NICENESS).ok();
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Child(child) => child.id(),
            Process::Contained(contained) => contained.pid,
        }
    }

    /// Waits for its end; `true` where it ended well. Its messages are all there then.
    pub(crate) async fn wait(&mut self) -> io::Result<bool> {
        let is_well = match &mut self.process {
            Process::Child(child) => child.wait().await?.success(),
            Process::Contained(contained) => contained.wait().await?,
        };
        if let Some(reading) = &mut self.reading {
            // A grandchild may hold the pipe open.
            let patience = Duration::from_secs(2);
            drop(tokio::time::timeout(patience, reading).await);
            self.reading = None;
        }
        Ok(is_well)
    }

    /// The end of what it said, in one line. Without the lines in which PostgreSQL shows rows: this is told to people and webhooks.
    pub(crate) fn said(&self) -> String {
        let lines = lock(&self.lines);
        let shows = |line: &&str| {
            ["DETAIL:", "CONTEXT:", "STATEMENT:"]
                .iter()
                .any(|word| line.contains(word))
        };
        let told = lines.iter().rev().map(String::as_str);
        let last: Vec<_> = told.filter(|line| !shows(line)).take(4).collect();
        last.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Sends a signal to it; SIGKILL to its whole group.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Process::Contained(contained) = &self.process {
            let end = match signal {
                Signal::INT | Signal::TERM => End::InOrder,
                _ => End::AtOnce,
            };
            // Whoever ran it is gone, and it with them.
            contained.end.send(end).unwrap_or_default();
            return;
        }
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        // A pid that is still ours is not reaped, so it names nobody else.
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let sent = if signal == Signal::KILL {
                kill_process_group(pid, signal)
            } else {
                kill_process(pid, signal)
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "a child had ended before it was signalled");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Keeps the last lines of what is read.
fn read_lines(
    from: impl AsyncRead + Send + Unpin + 'static,
    lines: &Arc<Mutex<VecDeque<String>>>,
) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    let mut reader = BufReader::new(from).lines();
    spawn(async move {
        while let Ok(Some(line)) = reader.next_line().await {
            let mut lines = lock(&lines);
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    })
}

/// Runs a program to its end and gives what it printed. One that does nothing for so long is ended: neither it nor `working`, a server
/// with its processes, computes, reads or writes.
pub(crate) async fn run_while(
    program: &Program,
    patience: Duration,
    working: Option<u32>,
) -> Result<String, String> {
    let name = program.name();
    let failed = |error: io::Error| format!("`{name}`: {error}");
    let mut running = Running::start(program).await.map_err(failed)?;
    let pids: Vec<u32> = running.pid().into_iter().chain(working).collect();
    // One that this host does not show is not seen to do anything.
    let is_seen = running.pid().is_some();
    let begun = clock::instant();
    let ended = tokio::select! {
        ended = finish(&mut running) => Some(ended.map_err(failed)?),
        () = until_idle(&pids, patience), if is_seen => None,
        () = sleep(LONGEST) => None,
    };
    let Some((output, is_well)) = ended else {
        running.signal(Signal::KILL);
        running.wait().await.map_err(failed)?;
        let seconds = begun.elapsed().as_secs();
        let said = running.said();
        return Err(
            format!("`{name}` came no further, and was ended after {seconds} s: {said}")
                .trim_end_matches([':', ' '])
                .to_owned(),
        );
    };
    if is_well {
        return Ok(output);
    }
    let said = running.said();
    let last = output.lines().rev().take(3).collect::<Vec<_>>();
    let printed = last.into_iter().rev().collect::<Vec<_>>().join(" / ");
    Err(format!("`{name}` failed: {said} {printed}")
        .trim_end()
        .to_owned())
}

async fn finish(running: &mut Running) -> io::Result<(String, bool)> {
    use tokio::io::AsyncReadExt as _;
    let mut output = String::new();
    running.stdout()?.read_to_string(&mut output).await?;
    Ok((output, running.wait().await?))
}

/// Until none of these processes, nor one that they started, has done anything for so long.
async fn until_idle(pids: &[u32], patience: Duration) {
    let mut known = (done_by(pids), clock::instant());
    loop {
        sleep((patience / LOOKS).min(LOOK_MAX)).await;
        let done = done_by(pids);
        if done != known.0 {
            known = (done, clock::instant());
        } else if known.1.elapsed() >= patience {
            return;
        }
    }
}

/// What processes and those they started have computed, read and written: a number that grows as long as they do anything.
fn done_by(pids: &[u32]) -> u64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: Vec<_> = processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name of a program may hold anything, a bracket too.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
            let parent = u32::try_from(number(1)?).ok()?;
            Some((pid, parent, number(11)? + number(12)?))
        })
        .collect();
    let mut ours = pids.to_vec();
    // Before a program in a container is its init.
    loop {
        let known = ours.len();
        for (pid, parent, _) in &all {
            if ours.contains(parent) && !ours.contains(pid) {
                ours.push(*pid);
            }
        }
        if ours.len() == known {
            break;
        }
    }
    let own = all.iter().filter(|(pid, ..)| ours.contains(pid));
    let done = own.map(|(pid, _, computed)| {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let bytes = io.lines().filter_map(|line| {
            let (name, count) = line.split_once(": ")?;
            ["rchar", "wchar"]
                .contains(&name)
                .then(|| count.parse::<u64>().ok())?
        });
        computed + bytes.sum::<u64>()
    });
    done.fold(0, u64::wrapping_add)
}

fn lock(lines: &Mutex<VecDeque<String>>) -> std::sync::MutexGuard<'_, VecDeque<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the handle is kept and waited for in `wait`"
)]
fn spawn(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(800);

    fn program(path: &str) -> Program {
        Program::new(Path::new(path))
    }

    /// Root alone may: elsewhere the reason is given, and nothing is taken for cut off.
    #[tokio::test]
    async fn a_program_apart_has_no_network() {
        let interfaces = program("/bin/cat").args(["/proc/self/net/dev"]);
        let names = |output: String| -> Vec<String> {
            let lines = output.lines().skip(2);
            lines
                .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
                .collect()
        };
        let (mut running, reachable) = Running::start_apart(&interfaces).await.unwrap();
        let (output, is_well) = finish(&mut running).await.unwrap();
        assert!(is_well);
        let ours = names(run_while(&interfaces, PATIENCE, None).await.unwrap());
        let expected = match &reachable {
            None => vec!["lo".to_owned()],
            Some(_) => ours,
        };
        assert_eq!(names(output), expected);
        let network = program("/usr/bin/readlink").args(["/proc/self/ns/net"]);
        let (mut running, _) = Running::start_apart(&network).await.unwrap();
        let (apart, _) = finish(&mut running).await.unwrap();
        let ours = run_while(&network, PATIENCE, None).await.unwrap();
        assert_eq!(apart == ours, reachable.is_some(), "{reachable:?}");
    }

    #[tokio::test]
    async fn whoever_does_nothing_is_ended_and_whoever_works_is_not() {
        let slept = program("/bin/sleep").args(["600"]);
        let ended = run_while(&slept, PATIENCE, None).await.unwrap_err();
        assert!(ended.contains("`sleep` came no further"), "{ended}");
        // It computes for longer than anybody waits for one that does nothing, and prints at its end only.
        let works = program("/usr/bin/python3").args([
            "-c",
            "import time\nend = time.process_time() + 2\nwhile time.process_time() < end: pass\nprint('done')",
        ]);
        assert_eq!(run_while(&works, PATIENCE, None).await.unwrap(), "done\n");
        // Or a server works for it.
        let server = program("/usr/bin/python3").args(["-c", "while True: pass"]);
        let server = Running::start(&server).await.unwrap();
        let waits = program("/bin/sleep").args(["3"]);
        assert_eq!(
            run_while(&waits, PATIENCE, server.pid()).await,
            Ok(String::new())
        );
        let fails = program("/bin/ls").args(["/is/not/there"]);
        assert!(run_while(&fails, PATIENCE, None).await.is_err());
    }
}
