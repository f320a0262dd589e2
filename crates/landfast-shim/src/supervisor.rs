//! The event loop of the shim: one `poll` over signals, pipes, the control socket and its clients.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use landfast_types::{Fence, FenceGuard};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Rlimit, Signal, WaitOptions, WaitStatus, kill_process_group, wait},
};

use crate::{
    clock::{self, Monotonic},
    connection::{Awaited, Connection, Exec, ExecEnd, read_pipe},
    home::{Home, HomeError, note},
    jail::Jail,
    logs::{LogWriter, Splitter},
    os::{self, Program},
    process::{Stat, boot_id, signal_descendants},
    program::find_program,
    state::{Ended, Exit, SOCKET_FILE, ShimState},
    wire::{OutputStream, Reply, Request, ShimOrder},
};

/// One read of a pipe takes at most what a pipe holds by default.
const READ_BYTES_MAX: usize = 64 << 10;
/// Clients at one time; more are turned away by closing.
const CONNECTIONS_MAX: usize = 64;
/// What a command left behind when it ended by itself gets SIGTERM and so long to follow it. It is short because the
/// end is told only after that: a crash must be seen at once, and nothing may take its place before nothing is left.
const LEFTOVER_GRACE: Duration = Duration::from_millis(250);
/// SIGKILL is sent again after this, to whatever was forked meanwhile.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
/// A command of `exec` ended, but something it started may hold its pipes.
const EXEC_DRAIN_MAX: Duration = Duration::from_millis(500);
/// The state could not be written when the instance ended: the shim stays, and tries again.
const PERSIST_INTERVAL: Duration = Duration::from_secs(2);
/// Answers that a client does not read hold the shim back for so long at most.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How long a shim that lost its folder can go unnoticed.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// SIGTERM was sent; the command still lives.
    Stopping {
        kill_at: Monotonic,
    },
    /// The command ended; what it started may still live.
    Sweeping {
        kill_at: Monotonic,
    },
    /// Nothing is left. Until the end is on disk, the shim must not leave: it tries again at `persist_at`.
    Gone {
        persist_at: Option<Monotonic>,
    },
}

/// Whether a command is the instance itself, or one that `exec` runs beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    No,
    Yes,
}

struct Output {
    pipe: Option<OwnedFd>,
    splitter: Splitter,
}

/// Who has something to say.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Output(usize),
    Connection(usize),
    ExecStdin(usize),
    Exec(usize, OutputStream),
}

pub(crate) struct Supervisor {
    order: ShimOrder,
    state: ShimState,
    main: Option<Pid>,
    phase: Phase,
    home: Home,
    /// When to look next whether the folder is still there.
    look_at: Monotonic,
    signals: OwnedFd,
    core_limit: Rlimit,
    outputs: Vec<Output>,
    log: LogWriter,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    jail: Jail,
    end_is_on_disk: bool,
    /// The folder is gone for good: nobody will ever ask, so there is nothing to stay for.
    is_lost: bool,
    is_forgotten: bool,
}

impl Supervisor {
    /// Starts the command. One that cannot be started ends here and now: that is an answer, not an error.
    ///
    /// The state is written before the command is started and again after, so a folder with a state but without a
    /// main process tells of a shim that died in between.
    pub(crate) fn start(
        mut order: ShimOrder,
        home: Home,
        signals: OwnedFd,
        core_limit: Rlimit,
    ) -> io::Result<Self> {
        let (jail, refusal) = match Jail::prepare(&mut order) {
            Ok(jail) => (jail, None),
            Err(reason) => (Jail::default(), Some(reason)),
        };
        let state = ShimState {
            scope: order.scope.clone(),
            instance: order.instance.clone(),
            argv: order.argv.clone(),
            is_job: order.is_job,
            address: order.address,
            started_at: clock::wall(),
            boot: boot_id()?,
            mark: order.mark.clone(),
            shim: Stat::read(std::process::id()).map(|stat| stat.key()),
            main: None,
            fence: FenceGuard::new(order.fence),
            ended: None,
            log_lines_dropped: 0,
            protections: jail.protections.clone(),
            leftovers: jail.leftovers(),
        };
        if let Err(error) = state.write(Path::new(".")) {
            jail.remove();
            return Err(error);
        }
        let log = LogWriter::new(order.logs.clone());
        let mut supervisor = Self {
            order,
            state,
            main: None,
            phase: Phase::Running,
            home,
            look_at: Monotonic::now().after(LOOK_INTERVAL),
            signals,
            core_limit,
            outputs: Vec::new(),
            log,
            connections: Vec::new(),
            buffer: vec![0; READ_BYTES_MAX],
            jail,
            end_is_on_disk: false,
            is_lost: false,
            is_forgotten: false,
        };
        let program = supervisor.order.program.clone();
        let argv = supervisor.order.argv.clone();
        let spawned = match refusal {
            Some(reason) => Err(io::Error::other(reason)),
            None => supervisor.spawn(&program, &argv, Beside::No),
        };
        match spawned {
            Ok(child) => supervisor.adopt(child)?,
            Err(error) => supervisor.ended(Exit::NotStarted {
                reason: error.to_string(),
            }),
        }
        Ok(supervisor)
    }

    pub(crate) fn state(&self) -> &ShimState {
        &self.state
    }

    fn spawn(&self, program: &Path, argv: &[String], beside: Beside) -> io::Result<Child> {
        let program = Program {
            file: program,
            argv,
            env: &self.order.env,
            cwd: &self.order.cwd,
            core_limit: self.core_limit,
            jail: self.jail.entry.clone(),
            is_beside: beside == Beside::Yes,
        };
        let stdin = match beside {
            Beside::No => Stdio::null(),
            Beside::Yes => Stdio::piped(),
        };
        os::spawn(program, stdin)
    }

    fn adopt(&mut self, child: Child) -> io::Result<()> {
        let pid = Pid::from_child(&child);
        self.main = Some(pid);
        self.state.main = Stat::read(child.id()).map(|stat| stat.key());
        let pipes = [
            (OutputStream::Stdout, child.stdout.map(OwnedFd::from)),
            (OutputStream::Stderr, child.stderr.map(OwnedFd::from)),
        ];
        for (stream, pipe) in pipes {
            if let Some(pipe) = &pipe {
                rustix::io::ioctl_fionbio(pipe, true)?;
            }
            self.outputs.push(Output {
                pipe,
                splitter: Splitter::new(stream),
            });
        }
        let written = self.persist();
        if written.is_err() {
            // Nobody could find it again: it must not run.
            os::signal_group(pid, Signal::KILL);
        }
        written
    }

    fn persist(&mut self) -> io::Result<()> {
        self.state.log_lines_dropped = self.log.dropped_ever();
        self.state.write(Path::new("."))
    }

    /// Serves until the instance is gone and its end is on disk, or its folder is forgotten.
    pub(crate) fn run(mut self) {
        // It may have ended, or not started, before anybody listened for signals.
        self.reap(Monotonic::now());
        while !self.is_forgotten && self.phase != (Phase::Gone { persist_at: None }) {
            let ready = self.wait_for_work();
            let now = Monotonic::now();
            for (source, flags) in ready {
                self.serve(source, flags, now);
            }
            self.tick(now);
            self.connections.retain(|connection| !connection.is_closed);
        }
        self.farewell();
    }

    fn wait_for_work(&self) -> Vec<(Source, PollFlags)> {
        let mut sources = Vec::with_capacity(4 + self.connections.len() * 2);
        let mut polled = Vec::with_capacity(4 + self.connections.len() * 2);
        self.each_descriptor(|source, descriptor, flags| {
            sources.push(source);
            polled.push(PollFd::from_borrowed_fd(descriptor, flags));
        });
        let timeout = until(Monotonic::now(), self.deadline());
        if poll(&mut polled, Some(&timeout)).is_err() {
            // EINTR, or no memory in the kernel for a moment: look at the clock and poll again.
            return Vec::new();
        }
        let ready = sources.into_iter().zip(polled.iter().map(PollFd::revents));
        ready.filter(|(_, flags)| !flags.is_empty()).collect()
    }

    fn each_descriptor<'a>(&'a self, mut watch: impl FnMut(Source, BorrowedFd<'a>, PollFlags)) {
        watch(Source::Signals, self.signals.as_fd(), PollFlags::IN);
        watch(Source::Listener, self.home.listener.as_fd(), PollFlags::IN);
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(pipe) = &output.pipe {
                watch(Source::Output(index), pipe.as_fd(), PollFlags::IN);
            }
        }
        for (index, connection) in self.connections.iter().enumerate() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, connection.wants_input());
            flags.set(PollFlags::OUT, connection.wants_output());
            watch(Source::Connection(index), connection.stream.as_fd(), flags);
            let Some(exec) = &connection.exec else {
                continue;
            };
            if let Some(stdin) = &exec.stdin
                && exec.wants_feeding()
            {
                watch(Source::ExecStdin(index), stdin.as_fd(), PollFlags::OUT);
            }
            if !connection.has_room() {
                continue;
            }
            let outputs = [
                (OutputStream::Stdout, &exec.stdout),
                (OutputStream::Stderr, &exec.stderr),
            ];
            for (stream, pipe) in outputs {
                if let Some(pipe) = pipe {
                    watch(Source::Exec(index, stream), pipe.as_fd(), PollFlags::IN);
                }
            }
        }
    }

    /// The next instant to wake for.
    fn deadline(&self) -> Monotonic {
        let phase = match self.phase {
            Phase::Running => None,
            Phase::Stopping { kill_at } | Phase::Sweeping { kill_at } => Some(kill_at),
            Phase::Gone { persist_at } => persist_at,
        };
        let execs = self
            .connections
            .iter()
            .filter_map(|connection| Some(connection.exec.as_ref()?.ended.as_ref()?.drain_until));
        execs.chain(phase).fold(self.look_at, Monotonic::min)
    }

    fn serve(&mut self, source: Source, flags: PollFlags, now: Monotonic) {
        match source {
            Source::Signals => {
                if os::read_signals(&self.signals) {
                    let grace = Duration::from_millis(self.order.grace_ms);
                    self.stop(now, grace);
                }
                self.reap(now);
            }
            Source::Listener => self.accept(),
            Source::Output(index) => {
                self.record_output(index);
            }
            Source::Connection(index) => {
                let connection = &mut self.connections[index];
                if flags.contains(PollFlags::OUT) {
                    connection.send();
                }
                if flags.contains(PollFlags::IN) {
                    connection.receive(&mut self.buffer);
                } else if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
                    connection.is_closed = true;
                }
                while let Some(line) = self.connections[index].next_line() {
                    self.answer(index, &line, now);
                }
            }
            Source::ExecStdin(index) => {
                if let Some(exec) = &mut self.connections[index].exec {
                    exec.pump();
                }
            }
            Source::Exec(index, stream) => {
                self.connections[index].pass_on(stream, &mut self.buffer);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.home.listener.accept() {
            if self.connections.len() < CONNECTIONS_MAX
                && let Ok(connection) = Connection::new(stream)
            {
                self.connections.push(connection);
            }
        }
    }

    /// Reads once from an output of the instance. True when there may be more.
    fn record_output(&mut self, index: usize) -> bool {
        let output = &mut self.outputs[index];
        if output.pipe.is_none() {
            return false;
        }
        let read = read_pipe(&mut output.pipe, &mut self.buffer);
        match read {
            Some(count) => {
                output
                    .splitter
                    .feed(clock::wall(), &self.buffer[..count], &mut self.log)
            }
            None if output.pipe.is_none() => output.splitter.finish(clock::wall(), &mut self.log),
            None => {}
        }
        read.is_some()
    }

    fn answer(&mut self, index: usize, line: &[u8], now: Monotonic) {
        let request = match serde_json::from_slice::<Request>(line) {
            Ok(request) => request,
            Err(error) => {
                let reason = format!("not understood: {error}");
                return self.connections[index].say(&Reply::Refused { reason });
            }
        };
        match self.take(index, request, now) {
            Ok(Some(reply)) => self.connections[index].say(&reply),
            Ok(None) => self.answer_awaited(),
            Err(reply) => self.connections[index].say(&reply),
        }
    }

    /// Takes a request. `None` when its answer comes later.
    fn take(
        &mut self,
        index: usize,
        request: Request,
        now: Monotonic,
    ) -> Result<Option<Reply>, Reply> {
        let connection = &mut self.connections[index];
        match request {
            Request::Status => {
                let mut state = self.state.clone();
                state.log_lines_dropped = self.log.dropped_ever();
                Ok(Some(Reply::State {
                    state: Box::new(state),
                }))
            }
            Request::Wait => {
                connection.awaited = Awaited::Gone;
                Ok(None)
            }
            Request::Stop { fence, grace_ms } => {
                connection.awaited = Awaited::Gone;
                if let Err(reply) = self.take_fence(fence) {
                    self.connections[index].awaited = Awaited::Nothing;
                    return Err(reply);
                }
                self.stop(now, Duration::from_millis(grace_ms));
                Ok(None)
            }
            Request::Signal { fence, signal } => {
                self.take_fence(fence)?;
                self.signal(signal).map(|()| Some(Reply::Done))
            }
            Request::Exec { argv, stdin_bytes } => {
                if self.phase != Phase::Running {
                    return Err(refused("the instance does not run"));
                }
                let command = argv.first().cloned().unwrap_or_default();
                let path = self
                    .order
                    .env
                    .get("PATH")
                    .map(|path| path.reveal().as_str());
                let program = find_program(&command, &self.order.cwd, path)
                    .ok_or(Reply::CommandMissing { command })?;
                let oom_kills = self.jail.oom_kills();
                let exec = self
                    .spawn(&program, &argv, Beside::Yes)
                    .and_then(|child| Exec::new(child, stdin_bytes, oom_kills))
                    .map_err(|error| Reply::Exec {
                        exit: Exit::NotStarted {
                            reason: error.to_string(),
                        },
                        out_of_memory: None,
                    })?;
                self.connections[index].begin_exec(exec);
                // Nothing to wait for; the pipes speak.
                Ok(None)
            }
            Request::Forget => {
                if self.state.ended.is_none() {
                    return Err(refused("the instance runs"));
                }
                connection.awaited = Awaited::Forget;
                self.stop(now, Duration::ZERO);
                Ok(None)
            }
        }
    }

    /// Takes an order, and remembers on disk that it was taken.
    fn take_fence(&mut self, fence: Fence) -> Result<(), Reply> {
        let before = self.state.fence;
        self.state.fence.take(fence)?;
        if self.state.fence != before {
            // The order is carried out even when the disk is full: the guard in memory lives as long as the instance.
            drop(self.persist());
        }
        Ok(())
    }

    /// Signals the group of the command. It was not reaped, so its number is still its own.
    fn signal(&self, signal: i32) -> Result<(), Reply> {
        let (Some(main), None) = (self.main, &self.state.ended) else {
            return Err(refused("the instance does not run"));
        };
        let signal = Signal::from_named_raw(signal).ok_or_else(|| refused("no such signal"))?;
        kill_process_group(main, signal).map_err(|error| refused(&error.to_string()))
    }

    /// Begins to end the instance, or shortens the grace it has. With no grace, it is killed at once.
    fn stop(&mut self, now: Monotonic, grace: Duration) {
        let kill_by = now.after(grace);
        match &mut self.phase {
            // Running ⇒ Stopping: asked to end.
            Phase::Running => {
                self.phase = Phase::Stopping { kill_at: kill_by };
                // Without a grace there is nothing to ask for: the tick below kills.
                if let Some(main) = self.main
                    && !grace.is_zero()
                {
                    let asked = self.order.stop_signal.and_then(Signal::from_named_raw);
                    os::signal_group(main, asked.unwrap_or(Signal::TERM));
                    // A stopped process takes it only once it goes on.
                    os::signal_group(main, Signal::CONT);
                }
            }
            Phase::Stopping { kill_at } | Phase::Sweeping { kill_at } => {
                *kill_at = (*kill_at).min(kill_by);
            }
            Phase::Gone { .. } => {}
        }
        self.tick(now);
    }

    /// Reaps everything that ended, adopted strangers included.
    fn reap(&mut self, now: Monotonic) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.reaped(pid, exit_of(status), now),
                Ok(None) => return,
                Err(rustix::io::Errno::INTR) => {}
                // No child is left: as the reaper of all descendants we know that none of them is left either.
                Err(_) => return self.gone(now),
            }
        }
    }

    fn reaped(&mut self, pid: Pid, exit: Exit, now: Monotonic) {
        if self.main == Some(pid) {
            return self.ended(exit);
        }
        let mut execs = self
            .connections
            .iter_mut()
            .filter_map(|all| all.exec.as_mut());
        if let Some(exec) = execs.find(|exec| exec.pid == pid) {
            let out_of_memory = is_killed(&exit)
                .then(|| self.jail.out_of_memory_since(exec.oom_kills))
                .flatten();
            exec.ended = Some(ExecEnd {
                exit,
                out_of_memory,
                drain_until: now.after(EXEC_DRAIN_MAX),
            });
        }
    }

    /// The command ended.
    fn ended(&mut self, exit: Exit) {
        let now = Monotonic::now();
        self.main = None;
        // What was told to end is killed by us.
        let by_itself = self.phase == Phase::Running && is_killed(&exit);
        self.state.ended = Some(Ended {
            out_of_memory: by_itself
                .then(|| self.jail.out_of_memory_since(0))
                .flatten(),
            exit,
            at: clock::wall(),
        });
        self.end_is_on_disk = self.persist().is_ok();
        // Dropping wipes it.
        self.order.env.clear();
        let kill_at = match self.phase {
            // Running ⇒ Sweeping: ended by itself.
            Phase::Running => now.after(LEFTOVER_GRACE),
            // Stopping ⇒ Sweeping: what it started keeps the rest of the grace.
            Phase::Stopping { kill_at } => kill_at,
            Phase::Sweeping { .. } | Phase::Gone { .. } => return,
        };
        self.phase = Phase::Sweeping { kill_at };
        signal_descendants(std::process::id(), Signal::TERM);
    }

    /// Nothing is left of the instance.
    fn gone(&mut self, now: Monotonic) {
        if !matches!(self.phase, Phase::Sweeping { .. }) {
            return;
        }
        for index in 0..self.outputs.len() {
            while self.record_output(index) {}
            // Somebody outside may hold the pipe; it is not ours to wait for.
            self.outputs[index].pipe = None;
            self.outputs[index]
                .splitter
                .finish(clock::wall(), &mut self.log);
        }
        self.jail.remove();
        // Sweeping ⇒ Gone.
        self.end_is_on_disk |= self.persist().is_ok();
        let stays = !self.end_is_on_disk && !self.is_lost;
        let persist_at = stays.then(|| now.after(PERSIST_INTERVAL));
        self.phase = Phase::Gone { persist_at };
        self.answer_awaited();
    }

    /// Makes the folder anew if somebody removed something in it.
    fn look_after_home(&mut self, now: Monotonic) {
        let can_be_found = match self.phase {
            Phase::Running | Phase::Stopping { .. } => self.home.is_intact(),
            // It is leaving anyway.
            Phase::Sweeping { .. } | Phase::Gone { .. } => true,
        };
        if can_be_found {
            return;
        }
        let restored = match self.home.restore() {
            Ok(()) => self.persist().map_err(|error| error.to_string()),
            Err(HomeError::Taken) => Err("another shim has taken it".to_owned()),
            Err(HomeError::Io(doing, error)) => Err(format!("failed to {doing}: {error}")),
        };
        if let Err(reason) = restored {
            self.is_lost = true;
            note(&format!(
                "the folder is gone, so the instance is ended: {reason}"
            ));
            self.stop(now, Duration::from_millis(self.order.grace_ms));
        }
    }

    /// Does what is due.
    fn tick(&mut self, now: Monotonic) {
        if now >= self.look_at {
            self.look_at = now.after(LOOK_INTERVAL);
            self.look_after_home(now);
        }
        match self.phase {
            Phase::Stopping { kill_at } if now >= kill_at => {
                self.jail.forbid_forks();
                if let Some(main) = self.main {
                    os::signal_group(main, Signal::KILL);
                }
                signal_descendants(std::process::id(), Signal::KILL);
                self.phase = Phase::Stopping {
                    kill_at: now.after(SWEEP_INTERVAL),
                };
            }
            Phase::Sweeping { kill_at } if now >= kill_at => {
                self.jail.forbid_forks();
                signal_descendants(std::process::id(), Signal::KILL);
                self.phase = Phase::Sweeping {
                    kill_at: now.after(SWEEP_INTERVAL),
                };
                self.reap(now);
            }
            Phase::Gone {
                persist_at: Some(persist_at),
            } if now >= persist_at => {
                let persist_at = self.persist().is_err().then(|| now.after(PERSIST_INTERVAL));
                self.phase = Phase::Gone { persist_at };
            }
            Phase::Running
            | Phase::Stopping { .. }
            | Phase::Sweeping { .. }
            | Phase::Gone { .. } => {}
        }
        for connection in &mut self.connections {
            connection.settle_exec(now);
        }
    }

    fn answer_awaited(&mut self) {
        let Some(ended) = &self.state.ended else {
            return;
        };
        let is_gone = matches!(self.phase, Phase::Gone { .. });
        for connection in &mut self.connections {
            let reply = match connection.awaited {
                Awaited::Gone if is_gone => Reply::Ended {
                    ended: ended.clone(),
                },
                Awaited::Forget if is_gone => {
                    if !self.is_forgotten {
                        self.home.remove();
                        self.is_forgotten = true;
                    }
                    Reply::Done
                }
                Awaited::Nothing | Awaited::Gone | Awaited::Forget => continue,
            };
            connection.awaited = Awaited::Nothing;
            connection.say(&reply);
        }
    }

    /// Gives clients a moment to read their answers, then leaves. Later ones find the state on disk.
    fn farewell(mut self) {
        drop(fs::remove_file(SOCKET_FILE));
        let leave_at = Monotonic::now().after(FAREWELL_MAX);
        loop {
            self.connections
                .retain(|all| !all.is_closed && all.wants_output());
            let now = Monotonic::now();
            if self.connections.is_empty() || now >= leave_at {
                return;
            }
            let mut polled = Vec::new();
            for connection in &self.connections {
                polled.push(PollFd::new(&connection.stream, PollFlags::OUT));
            }
            // Whatever it says, the next step is to send and to look at the clock.
            poll(&mut polled, Some(&until(now, leave_at))).unwrap_or_default();
            self.connections.iter_mut().for_each(Connection::send);
        }
    }
}

/// The time from `now` to `later`, rounded up, or the loop would spin through the last part of it.
fn until(now: Monotonic, later: Monotonic) -> Timespec {
    let wait = now.until(later).saturating_add(Duration::from_millis(1));
    Timespec {
        tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(wait.subsec_nanos()),
    }
}

fn is_killed(exit: &Exit) -> bool {
    matches!(exit, Exit::Signal { signal, .. } if *signal == Signal::KILL.as_raw())
}

fn refused(reason: &str) -> Reply {
    Reply::Refused {
        reason: reason.to_owned(),
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    const CORE_DUMPED: i32 = 0x80;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code { code },
        (None, Some(signal)) => Exit::Signal {
            signal,
            core_dumped: status.as_raw() & CORE_DUMPED != 0,
        },
        (None, None) => Exit::Unknown,
    }
}
