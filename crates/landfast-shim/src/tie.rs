//! Children that die with whoever started them, and children without a network.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use rustix::process::Signal;

/// Has the kernel kill what `command` starts when the *thread* that starts it ends, which is what prctl(2) calls its parent. So
/// start it from a thread that lives as long as the process; SIGKILL of the process ends that thread, too.
///
/// It holds for the program itself, not for what that starts; nor for a set-user-ID program, where the kernel takes it away.
#[expect(unsafe_code, reason = "code between fork and exec has no safe wrapper")]
pub fn die_with_starter(command: &mut Command) {
    let starter = rustix::process::getpid();
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The starter may have died before the line above.
        if rustix::process::getppid() != Some(starter) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls, both async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(tie) };
}

/// Puts the calling *thread*, and whatever it starts from now on, into a network of its own that holds nothing: not even its loopback
/// is up. Sockets in the file system are reached as before. There is no way back, so it is for a thread that does nothing else.
///
/// # Errors
/// Where the process is not root, or a container has taken that right away.
#[expect(
    unsafe_code,
    reason = "rustix counts every kind of unshare(2) as unsafe"
)]
pub fn leave_network() -> io::Result<()> {
    // SAFETY: open files are not unshared, which is all that can go wrong with memory or files of other threads.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET)? };
    Ok(())
}
