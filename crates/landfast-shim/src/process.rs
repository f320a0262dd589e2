//! Finding processes in `/proc` and ending exactly those, never a later one that got the same number.
//!
//! Every signal goes through a pidfd that was opened *before* the process behind it was checked: a number that was
//! reused in between fails the check, one that is reused afterwards is not reached by the pidfd.

use std::{fs, io};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::state::ProcessKey;

/// The part of `/proc/<pid>/stat` (proc_pid_stat(5)) that tells processes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub pid: u32,
    pub parent: u32,
    pub session: u32,
    pub start_ticks: u64,
    /// It ended and only waits to be reaped.
    pub is_zombie: bool,
}

impl Stat {
    /// Reads it; `None` when there is no such process.
    pub fn read(pid: u32) -> Option<Self> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name of the command may hold anything, spaces and parentheses included: the last one closes it.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(text.get(end + 2..)?).ok()?.split(' ');
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let _group = fields.next()?;
        let session = fields.next()?.parse().ok()?;
        // Field 22; the session was field 6.
        let start_ticks = fields.nth(15)?.parse().ok()?;
        let is_zombie = matches!(state, "Z" | "X");
        Some(Self {
            pid,
            parent,
            session,
            start_ticks,
            is_zombie,
        })
    }

    /// What names this very process.
    pub fn key(&self) -> ProcessKey {
        ProcessKey {
            pid: self.pid,
            start_ticks: self.start_ticks,
        }
    }
}

/// All processes there are, as far as they can be seen.
fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter_map(Stat::read).collect()
}

/// Sends a signal to everything under `ancestor`, itself excluded. Returns how many it reached.
pub(crate) fn signal_descendants(ancestor: u32, signal: Signal) -> usize {
    let all = all();
    let mut family = vec![ancestor];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(
            all.iter()
                .filter(|stat| stat.parent == parent)
                .map(|stat| stat.pid),
        );
        next += 1;
    }
    let members = all
        .iter()
        .filter(|stat| family[1..].contains(&stat.pid) && !stat.is_zombie);
    members
        .filter(|stat| signal_exactly(stat.key(), signal, |_| true))
        .count()
}

/// Signals one process if it is still the one of this key and `holds` of it. True when it was reached.
fn signal_exactly(key: ProcessKey, signal: Signal, holds: impl Fn(&Stat) -> bool) -> bool {
    let Some(pid) = i32::try_from(key.pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    let Some(stat) = Stat::read(key.pid) else {
        return false;
    };
    stat.key() == key && holds(&stat) && pidfd_send_signal(pidfd, signal).is_ok()
}

/// The name of this boot of the host: numbers of processes mean nothing beyond it.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// What is left of an instance whose shim died: found by the mark in its environment, or by the session of the
/// main process while that very process still lives.
#[derive(Debug, Clone, Copy)]
pub struct Marked<'a> {
    pub variable: &'a str,
    pub mark: &'a str,
    pub main: Option<ProcessKey>,
}

impl Marked<'_> {
    /// Sends SIGKILL to everything that is surely left of the instance. Returns how many processes were reached;
    /// the caller repeats until it is none, because they may fork meanwhile.
    pub fn kill(&self) -> usize {
        let found = all()
            .into_iter()
            .filter(|stat| !stat.is_zombie && self.holds(stat));
        found
            .filter(|stat| signal_exactly(stat.key(), Signal::KILL, |now| self.holds(now)))
            .count()
    }

    fn holds(&self, stat: &Stat) -> bool {
        // Our own process never is one, whatever its environment says.
        if stat.pid == std::process::id() {
            return false;
        }
        if let Some(main) = self.main
            && stat.session == main.pid
            && Stat::read(main.pid).is_some_and(|leader| leader.key() == main)
        {
            return true;
        }
        let Ok(environ) = fs::read(format!("/proc/{}/environ", stat.pid)) else {
            return false;
        };
        let wanted = format!("{}={}", self.variable, self.mark);
        !self.mark.is_empty()
            && environ
                .split(|byte| *byte == 0)
                .any(|word| word == wanted.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_stat() {
        let own = Stat::read(std::process::id()).expect("this process exists");
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(own.start_ticks > 0 && !own.is_zombie);
        assert_eq!(Stat::read(0), None);
    }

    #[test]
    fn leaves_a_process_of_the_same_number_alone() {
        let own = Stat::read(std::process::id())
            .expect("this process exists")
            .key();
        let earlier = ProcessKey {
            start_ticks: own.start_ticks - 1,
            ..own
        };
        assert!(!signal_exactly(earlier, Signal::CONT, |_| true));
        assert!(signal_exactly(own, Signal::CONT, |_| true));
    }
}
