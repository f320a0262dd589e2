//! Children of an earlier life of this process. After an upgrade the server is the same process with another binary: the
//! proxy it started is still its child, but nothing in this life knows of it. Once such a child ends, which it may in a
//! month, its entry in the table of processes stays until it is reaped.

use std::fs;

use rustix::process::{Pid, WaitOptions, waitpid};

/// Children that were there before this life started any.
#[derive(Debug)]
pub(crate) struct Inherited(Vec<Pid>);

impl Inherited {
    /// Looks for them. To be called before this life starts a process.
    pub(crate) fn find() -> Self {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
        let lists = tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let pids = lists.flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.filter_map(Pid::from_raw).collect::<Vec<_>>()
        });
        Self(pids.collect())
    }

    /// Takes note of those that have ended. A number stays with its child until then, so no other can be meant.
    pub(crate) fn reap(&mut self) {
        self.0
            .retain(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
    }
}
