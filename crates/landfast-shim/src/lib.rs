//! The parent of one process instance, small enough to trust.
//!
//! `landfast shim` reads one [`ShimOrder`] from its standard input, detaches from whoever started it, starts the
//! command and then owns what a server must be able to lose: the pipes of the instance, its log segments, its
//! exit status and a control socket. A restarted server finds the shim by its folder and goes on.
//!
//! States: *running* ⇒ *stopping* (SIGTERM was sent, SIGKILL waits for the grace) ⇒ *sweeping* (the command
//! ended and its exit is on disk, what it left behind is ended too) ⇒ *gone* (nothing is left; the shim leaves).
//!
//! What a crash leaves behind: a shim that is killed takes its command along (parent-death signal); what the
//! command had started carries a mark in its environment, by which [`process::Marked`] finds it; its cgroups and its
//! temporary folder are named in its state. A folder without
//! `state.json` never started anything. A folder whose lock is free and whose state has no exit ended unseen.
//!
//! It never decides when to start, stop or restart, never opens a network socket, never runs a shell, and never
//! writes the environment of the instance anywhere. It has one thread and no runtime.

mod clock;
mod connection;
mod home;
pub mod jail;
pub mod logs;
mod os;
pub mod process;
mod program;
mod state;
mod supervisor;
mod tie;
pub mod wire;

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    process::ExitCode,
};

use zeroize::Zeroize as _;

use crate::{
    home::{Home, HomeError},
    os::Fork,
    supervisor::Supervisor,
    wire::{Report, ShimOrder},
};
pub use crate::{
    program::{PATH_DEFAULT, find_program},
    state::{
        Ended, Exit, LOCK_FILE, Leftovers, ProcessKey, SOCKET_FILE, STATE_FILE, ShimState,
        folder_key, shim_is_alive,
    },
    tie::{die_with_starter, leave_network},
};

/// The name of the environment variable that marks everything an instance starts.
pub const MARK_VARIABLE: &str = "LANDFAST_MARK";

/// An order larger than this is no order: Linux itself takes at most 2 MiB of arguments and environment by default.
const ORDER_BYTES_MAX: usize = 16 << 20;

/// Has the kernel dump no core of this process or of what it starts: a dump would hold secrets.
pub fn forbid_core_dumps() {
    let _before = os::no_core_dumps();
}

/// Has the kernel kill the program of a command when the thread that starts it ends, also where that is with its whole process. Its
/// user is changed before that.
pub fn end_with_parent(command: &mut std::process::Command) {
    os::end_with_parent(command);
}

/// Whether something keeps the clock of this host right; `None` where that cannot be asked.
pub fn clock_is_synchronized() -> Option<bool> {
    os::clock_is_synchronized()
}

/// The whole of `landfast shim`. The binary calls this before it starts anything else: one thread, nothing open.
///
/// The answer to the order is one line of JSON ([`Report`]) on standard output; then the caller is let go.
pub fn run() -> ExitCode {
    os::close_inherited();
    let order = match read_order() {
        Ok(order) => order,
        Err(error) => return refuse(&format!("the order could not be read: {error}")),
    };
    // The caller waits for this process, which ends at once; init then owns the one that stays.
    match os::fork() {
        Ok(Fork::Parent(_)) => ExitCode::SUCCESS,
        Ok(Fork::Child) => supervise(order),
        Err(error) => refuse(&format!("fork failed: {error}")),
    }
}

/// Reads standard input whole, and wipes every copy of it but the parsed one.
fn read_order() -> io::Result<ShimOrder> {
    let mut bytes = vec![0_u8; 64 << 10];
    let mut filled = 0;
    loop {
        if filled == bytes.len() {
            if filled >= ORDER_BYTES_MAX {
                return Err(io::Error::other("it is too long"));
            }
            let mut larger = vec![0_u8; filled * 2];
            larger[..filled].copy_from_slice(&bytes);
            bytes.zeroize();
            bytes = larger;
        }
        match io::stdin().lock().read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let order = serde_json::from_slice(&bytes[..filled]);
    bytes.zeroize();
    // A parse error quotes no value, only what it expected and where.
    order.map_err(|error| {
        io::Error::other(format!("{} at byte {}", category(&error), error.column()))
    })
}

fn category(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Io => "it could not be read",
        serde_json::error::Category::Syntax => "it is not JSON",
        serde_json::error::Category::Data => "it is not an order",
        serde_json::error::Category::Eof => "it ends early",
    }
}

fn refuse(reason: &str) -> ExitCode {
    answer(&Report::Failed {
        reason: reason.to_owned(),
    });
    ExitCode::FAILURE
}

/// Tells the caller. One that has died meanwhile reads `state.json` later instead.
fn answer(report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let told = io::stdout()
            .write_all(&line)
            .and_then(|()| io::stdout().flush());
        drop(told);
    }
}

fn supervise(order: ShimOrder) -> ExitCode {
    let supervisor = match prepare(order) {
        Ok(prepared) => prepared,
        Err(HomeError::Taken) => {
            answer(&Report::Already);
            return ExitCode::SUCCESS;
        }
        Err(HomeError::Io(doing, error)) => return refuse(&format!("failed to {doing}: {error}")),
    };
    answer(&Report::Started {
        state: Box::new(supervisor.state().clone()),
    });
    if let Err(error) = leave_stdio() {
        drop(fs::write(
            "shim.log",
            format!("failed to leave the caller's stdio: {error}\n"),
        ));
    }
    supervisor.run();
    ExitCode::SUCCESS
}

fn prepare(order: ShimOrder) -> Result<Supervisor, HomeError> {
    let failed = |doing| move |error: io::Error| HomeError::Io(doing, error);
    rustix::process::setsid().map_err(|e| HomeError::Io("start a session", e.into()))?;
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let home = Home::take(order.folder.clone())?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| HomeError::Io("become the reaper of what the instance leaves", e.into()))?;
    let core_limit = os::no_core_dumps();
    let signals = os::take_signals().map_err(failed("take over signals"))?;
    Supervisor::start(order, home, signals, core_limit).map_err(failed("write the state"))
}

/// Lets the caller's pipes go: reading end of file there means that the order was answered.
fn leave_stdio() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let panics = File::options().create(true).append(true).open("shim.log")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&panics)?;
    Ok(())
}
