//! The few system calls that no safe wrapper offers, and the start of a process. All unsafe code is here.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, c_char},
    io,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use landfast_types::Secret;
use rustix::{
    io::Errno,
    pipe::PipeFlags,
    process::{Pid, Resource, Rlimit, Signal, WaitOptions},
};
use zeroize::Zeroize as _;

use crate::jail::{Entry, Step};

pub(crate) enum Fork {
    Parent(Pid),
    Child,
}

/// Forks a process that has one thread.
#[expect(unsafe_code, reason = "no safe wrapper of fork exists")]
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the shim runs before its binary starts any thread, so the child's memory is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent(
            Pid::from_raw(child).expect("fork gives the parent a positive number"),
        )),
    }
}

/// Whether this succeeds in a process of its own, which ends then. Only for one that has one thread.
#[expect(
    unsafe_code,
    reason = "a child that must not run what this process would at its end"
)]
pub(crate) fn succeeds_in_child(work: impl FnOnce() -> bool) -> bool {
    match fork() {
        Ok(Fork::Child) => {
            let code = i32::from(!work());
            // SAFETY: _exit runs nothing of this process, and does not return.
            unsafe { libc::_exit(code) }
        }
        Ok(Fork::Parent(child)) => {
            let ended = rustix::process::waitpid(Some(child), WaitOptions::empty());
            matches!(ended, Ok(Some((_, status))) if status.exit_status() == Some(0))
        }
        Err(_) => false,
    }
}

/// The version of Landlock's interface (landlock_create_ruleset(2)), or why there is none.
#[expect(unsafe_code, reason = "no safe wrapper tells the version")]
pub(crate) fn landlock_abi() -> Result<u32, &'static str> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call reads no memory: the attribute is null and its size zero.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    match u32::try_from(version) {
        Ok(abi) if abi > 0 => Ok(abi),
        Ok(_) | Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err("Landlock is not enabled in this kernel (boot option `lsm=landlock,…`)")
        }
        Ok(_) | Err(_) => Err("the kernel has no Landlock (5.13 and newer may)"),
    }
}

/// Whether something keeps the clock of this host right (adjtimex(2)); `None` where that cannot be asked.
#[expect(unsafe_code, reason = "no safe wrapper of adjtimex exists")]
pub(crate) fn clock_is_synchronized() -> Option<bool> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut state = unsafe { std::mem::zeroed::<libc::timex>() };
    // SAFETY: without modes the call only fills in the value, which lives longer than it.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    (answer >= 0).then_some(state.status & libc::STA_UNSYNC == 0)
}

/// Closes whatever a careless caller left open: a listening socket kept alive by a shim would outlive the server.
#[expect(unsafe_code, reason = "no safe wrapper of close_range exists")]
pub(crate) fn close_inherited() {
    // SAFETY: the shim has opened nothing yet, so no owner of these descriptors exists in this process.
    // A kernel without the call (before 5.9) leaves them open; that is no reason not to start.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
}

/// Blocks the signals the shim answers to and gives a descriptor to read them from. SIGHUP, SIGINT and SIGQUIT are
/// read and ignored: they are meant for whoever started the server.
#[expect(unsafe_code, reason = "no safe wrapper of signalfd exists")]
pub(crate) fn take_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before anything reads it; the descriptor is new and ours.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in [
            libc::SIGCHLD,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGINT,
            libc::SIGQUIT,
        ] {
            libc::sigaddset(&raw mut set, signal);
        }
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

/// Reads the waiting signals; true when one of them was SIGTERM.
pub(crate) fn read_signals(signals: &OwnedFd) -> bool {
    const INFO_LEN: usize = size_of::<libc::signalfd_siginfo>();
    let mut bytes = [0_u8; INFO_LEN * 8];
    let mut terminate = false;
    while let Ok(count) = rustix::io::read(signals, &mut bytes) {
        // `ssi_signo` is the first field, a u32 in the byte order of the host.
        terminate |= bytes[..count].chunks_exact(INFO_LEN).any(|info| {
            let number = [info[0], info[1], info[2], info[3]];
            u32::from_ne_bytes(number).cast_signed() == libc::SIGTERM
        });
        if count < bytes.len() {
            break;
        }
    }
    terminate
}

/// The soft limit at which nothing is dumped: too little for any file, and the value at which the kernel starts no program
/// that core dumps are piped to either (do_coredump in fs/coredump.c; 0 is ignored for pipes, core(5)).
pub(crate) const NO_CORE: u64 = 1;

/// A core dump of the shim would hold the environment of the instance. Returns the limit the instance gets back.
pub(crate) fn no_core_dumps() -> Rlimit {
    let before = rustix::process::getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(before.maximum.map_or(NO_CORE, |hard| hard.min(NO_CORE))),
        maximum: before.maximum,
    };
    // Lowering one's own soft limit cannot fail; were it to, the dump would go to a place of the operator's choosing.
    rustix::process::setrlimit(Resource::Core, none).unwrap_or_default();
    before
}

/// Signals the group of a child that was not reaped yet, so that its number is still its own. That nothing is left
/// in the group is what the sender wants anyway.
pub(crate) fn signal_group(leader: Pid, signal: Signal) {
    rustix::process::kill_process_group(leader, signal).unwrap_or_default();
}

/// What is started, by argv.
pub(crate) struct Program<'a> {
    pub(crate) file: &'a Path,
    pub(crate) argv: &'a [String],
    pub(crate) env: &'a BTreeMap<String, Secret<String>>,
    pub(crate) cwd: &'a Path,
    pub(crate) core_limit: Rlimit,
    /// `None`: an order of before there were jails.
    pub(crate) jail: Option<Arc<Entry>>,
    /// Run by `exec`, beside the instance.
    pub(crate) is_beside: bool,
}

/// Starts a program in a session of its own, with stdout and stderr as pipes and nothing else inherited, so that
/// it dies when the shim dies.
#[expect(
    unsafe_code,
    reason = "what a child does between fork and exec is unsafe by nature"
)]
pub(crate) fn spawn(program: Program<'_>, stdin: Stdio) -> io::Result<Child> {
    let image = Image::new(&program)?;
    let mut command = command(program.file.as_os_str());
    command
        .current_dir(program.cwd)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = InChild {
        shim: rustix::process::getpid(),
        core_limit: program.core_limit,
        jail: program.jail,
        is_beside: program.is_beside,
    };
    let (told, teller) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let become_it = move || {
        child.enter().map_err(|(step, error)| {
            // The parent learns the error by another way; without the step it is only less clear.
            rustix::io::write(&teller, &[step as u8]).unwrap_or_default();
            io::Error::from(error)
        })?;
        child.tie_to_shim().and_then(|()| image.exec())
    };
    // SAFETY: the closure makes only async-signal-safe system calls and allocates nothing.
    unsafe { command.pre_exec(become_it) };
    command.spawn().map_err(|error| {
        let mut step = [0];
        let failed_at = match rustix::io::read(&told, &mut step) {
            Ok(1) => Step::words(step[0]),
            Ok(_) | Err(_) => None,
        };
        match failed_at {
            Some(words) => io::Error::new(error.kind(), format!("failed to {words}: {error}")),
            None => error,
        }
    })
}

/// What the child becomes, made ready before the fork. It calls execve(2) itself: the standard library's execvp hands
/// a file of no known format to `/bin/sh`, and no shell is ever put between a value and a process.
struct Image {
    file: CString,
    /// Null-terminated; each points into `strings`.
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// Wiped when dropped: they hold the environment.
    strings: Vec<Vec<u8>>,
}

#[expect(unsafe_code, reason = "the pointers are into memory this value owns")]
// SAFETY: the pointers are only read, and what they point to is owned by the value and never moved or changed.
unsafe impl Send for Image {}
#[expect(unsafe_code, reason = "the pointers are into memory this value owns")]
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    fn new(program: &Program<'_>) -> io::Result<Self> {
        if program.argv.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the command is empty",
            ));
        }
        let file = CString::new(program.file.as_os_str().as_bytes())?;
        let mut image = Self {
            file,
            argv: Vec::new(),
            env: Vec::new(),
            strings: Vec::new(),
        };
        for word in program.argv {
            let pointer = image.keep(&[word.as_bytes()])?;
            image.argv.push(pointer);
        }
        for (name, value) in program.env {
            let pointer = image.keep(&[name.as_bytes(), b"=", value.reveal().as_bytes()])?;
            image.env.push(pointer);
        }
        image.argv.push(std::ptr::null());
        image.env.push(std::ptr::null());
        Ok(image)
    }

    fn keep(&mut self, pieces: &[&[u8]]) -> io::Result<*const c_char> {
        if pieces.iter().any(|piece| piece.contains(&0)) {
            let reason = "an argument or a variable holds a null byte";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let len = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let mut string = Vec::with_capacity(len + 1);
        pieces
            .iter()
            .for_each(|piece| string.extend_from_slice(piece));
        string.push(0);
        let pointer = string.as_ptr().cast();
        // The bytes stay where they are when the vector of vectors grows.
        self.strings.push(string);
        Ok(pointer)
    }

    /// Returns only when it failed.
    #[expect(unsafe_code, reason = "no safe wrapper of execve exists")]
    fn exec(&self) -> io::Result<()> {
        // SAFETY: all three are null-terminated and live until the call replaces the process or fails.
        unsafe { libc::execve(self.file.as_ptr(), self.argv.as_ptr(), self.env.as_ptr()) };
        Err(io::Error::last_os_error())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        self.strings.zeroize();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the shim is where instances are started"
)]
fn command(file: &OsStr) -> Command {
    Command::new(file)
}

/// Has the kernel kill a child when the thread that starts it ends.
#[expect(
    unsafe_code,
    reason = "what a child does before exec is unsafe to ask for"
)]
pub(crate) fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have died before the line above.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: the closure makes two async-signal-safe system calls and allocates nothing.
    unsafe { command.pre_exec(tie) };
}

/// What the child does before it becomes the program.
struct InChild {
    shim: Pid,
    core_limit: Rlimit,
    jail: Option<Arc<Entry>>,
    is_beside: bool,
}

impl InChild {
    fn enter(&self) -> Result<(), (Step, Errno)> {
        let at = |error| (Step::Limits, error);
        rustix::process::setsid().map_err(at)?;
        rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
        match &self.jail {
            Some(jail) => jail.enter(self.is_beside),
            None => rustix::process::setrlimit(Resource::Core, self.core_limit).map_err(at),
        }
    }

    /// After the jail: a change of user takes the parent-death signal away (prctl(2)).
    #[expect(unsafe_code, reason = "the signal mask of a child has no safe wrapper")]
    fn tie_to_shim(&self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The shim may have died before the line above.
        if rustix::process::getppid() != Some(self.shim) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // SAFETY: the set is initialised by sigemptyset, and both calls are async-signal-safe.
        unsafe {
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        }
        Ok(())
    }
}
