//! What the machine says of itself: processor time of processes and of cores, and how it is kept from sleeping.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;

use crate::live::{command, processor_nanos, signal};

/// The core the proxy under test has for itself.
pub(crate) const PROXY_CORE: usize = 0;
/// The core of the load and the backend.
pub(crate) const LOAD_CORE: usize = 1;

/// While it lives, idle cores poll rather than sleep. In a virtual machine a core that sleeps makes every packet to
/// it pay for a wake-up, which punishes a slow proxy twice.
pub(crate) struct Awake {
    _latency: Option<File>,
    group_before: Option<String>,
}

impl Awake {
    /// Holds a latency of zero, and puts this session before others; what may not be done is said.
    pub(crate) fn hold() -> Self {
        let opened = File::options().write(true).open("/dev/cpu_dma_latency");
        let latency =
            opened.and_then(|mut file| file.write_all(&0_i32.to_ne_bytes()).map(|()| file));
        if let Err(error) = &latency {
            println!(
                "note: /dev/cpu_dma_latency is not held ({error}): slow peers look slower than they are"
            );
        }
        // `/autogroup-12 nice 0`
        let before = fs::read_to_string("/proc/self/autogroup").unwrap_or_default();
        let nice = before.split_whitespace().last().map(str::to_owned);
        let raised = fs::write("/proc/self/autogroup", "-20").is_ok();
        Self {
            _latency: latency.ok(),
            group_before: nice.filter(|_| raised),
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        if let Some(nice) = &self.group_before {
            // What cannot be given back harms nobody: the session ends with its terminal.
            drop(fs::write("/proc/self/autogroup", nice));
        }
    }
}

/// A command that runs on one core, in the scheduling group of this session.
pub(crate) fn pinned(core: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut taskset = command("taskset");
    taskset.args(["-c", &core.to_string()]).arg(program);
    taskset.stdin(Stdio::null());
    taskset
}

/// A process and all its children, ended when dropped.
#[derive(Debug)]
pub(crate) struct Tree(Child);

impl Tree {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        crate::live::spawn(command).map(Self)
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Its processes, this one first.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut found = vec![self.0.id()];
        let mut next = 0;
        while let Some(pid) = found.get(next).copied() {
            next += 1;
            found.extend(children(pid));
        }
        found
    }

    /// Processor time of all threads so far, in nanoseconds, from the scheduler's own account.
    pub(crate) fn processor_nanos(&self) -> u64 {
        self.pids().into_iter().map(processor_nanos).sum()
    }

    /// Its part of the memory (PSS), in KiB.
    pub(crate) fn proportional_kib(&self) -> u64 {
        self.pids()
            .into_iter()
            .map(crate::live::proportional_kib)
            .sum()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let pids = self.pids();
        // Stopped first: a parent must not start another in the place of a child that was ended.
        pids.iter().for_each(|pid| signal(*pid, "-STOP"));
        pids.iter().rev().for_each(|pid| signal(*pid, "-KILL"));
        drop(self.0.wait());
        // What comes next listens on the same ports: until the last one is gone it would be taken for it.
        let gone = || pids.iter().all(|pid| !crate::live::is_alive(*pid));
        if let Err(error) = crate::live::wait_until("a peer ends", Duration::from_secs(5), gone) {
            eprintln!("{error}");
        }
    }
}

fn children(pid: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    found
}

/// Time each core was not idle, in nanoseconds, in steps of a clock tick (10 ms).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cores {
    pub(crate) proxy: u64,
    pub(crate) load: u64,
}

impl Cores {
    pub(crate) fn now() -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let busy =
            |core: usize| busy(&text, core).with_context(|| format!("/proc/stat has no cpu{core}"));
        Ok(Self {
            proxy: busy(PROXY_CORE)?,
            load: busy(LOAD_CORE)?,
        })
    }
}

fn busy(text: &str, core: usize) -> Option<u64> {
    const TICK: u64 = 10_000_000;
    let name = format!("cpu{core} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is in user.
    let idle = ticks.get(3)? + ticks.get(4)?;
    let all: u64 = ticks.iter().take(8).sum();
    Some((all - idle) * TICK)
}
