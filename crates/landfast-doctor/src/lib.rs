//! Whether a host can carry what it is to carry: what is measured, and what to do about it.
//!
//! [`measure`] looks at the host; [`judge`] compares what it saw with what is needed, purely. `landfast doctor`, the
//! API and the preflight gate use the same two.
//!
//! It never changes anything on the host, starts no process, and needs no right beyond those of its user: what it
//! cannot see it says it cannot see.

mod docker;
mod judge;
mod measure;
mod tiers;

use std::net::SocketAddr;

pub use crate::{
    docker::{Docker, DockerFacts, judge_docker},
    judge::judge,
    measure::{Places, measure, memory, room},
    tiers::{TIERS, Tier, tier},
};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable word: `disk-latency`.
    pub check: &'static str,
    pub level: Level,
    /// What was measured, with its unit.
    pub measured: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    /// It works, with less protection, room or speed than it should.
    Warn,
    /// It does not work like this: the preflight gate refuses.
    Fail,
}

/// What a host is, as far as this user can see. `None`: it could not be seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// `Debian GNU/Linux 12 (bookworm)`.
    pub os: Option<String>,
    /// `6.1.0-28-amd64`.
    pub kernel: Option<String>,
    pub cores: u64,
    pub memory_bytes: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    /// The file system of the state folder.
    pub disk: Option<Disk>,
    /// The fastest network interface, where it tells; megabits per second.
    pub network_mbps: Option<u64>,
    /// Soft and hard limit of open descriptors; `None` inside is unlimited.
    pub descriptors: (Option<u64>, Option<u64>),
    pub is_root: bool,
    /// `cgroup v2` or `cgroup v1`, or why not; for memory, cpu and pids.
    pub cgroups: Vec<(&'static str, Result<String, String>)>,
    pub landlock: Option<Result<u32, String>>,
    /// Whether processes can be signalled without a doubt about which (pidfd_open(2), Linux 5.3).
    pub has_pidfd: bool,
    /// Whether something keeps the clock right.
    pub clock_is_synchronized: Option<bool>,
    /// Microseconds since 1970.
    pub clock_micros: i64,
    /// The ports the kernel gives to outgoing connections.
    pub ephemeral_ports: Option<(u16, u16)>,
    pub ports: Vec<(SocketAddr, Port)>,
}

/// Room and speed of a file system.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disk {
    pub path: String,
    pub bytes: u64,
    pub free_bytes: u64,
    /// `None`: this file system makes them as needed.
    pub inodes_free: Option<u64>,
    /// Median of a few writes of 4 KiB, each followed by fdatasync.
    pub sync_micros: Option<u64>,
}

/// Whether a port can be listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    Free,
    /// By whom, where it can be seen.
    Taken(Option<String>),
    /// Ports under 1024 need a right this user does not have.
    Denied,
}

/// What a host must carry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// People who use it at one time.
    pub users: Option<u64>,
    /// All instances of the manifest, steady.
    pub instances: u64,
    pub memory_bytes: u64,
    pub cpu_millis: u64,
    /// The most descriptors a service asks for in its `resources`.
    pub descriptors: Option<u64>,
    /// Services without `resources.memory`.
    pub unbounded: Vec<String>,
    /// The ports of instances.
    pub ports: Option<(u16, u16)>,
}

impl Needs {
    /// What a manifest asks for.
    pub fn of(spec: &landfast_spec::AppSpec) -> Self {
        let mut needs = Self::default();
        for (name, service) in &spec.services {
            let replicas = u64::from(service.replicas);
            let resources = service.resources;
            needs.instances += replicas;
            needs.memory_bytes += replicas * resources.memory.unwrap_or_default().0;
            needs.cpu_millis += replicas * resources.cpu.unwrap_or_default().millicores;
            needs.descriptors = needs.descriptors.max(resources.descriptors.map(u64::from));
            if resources.memory.is_none() {
                needs.unbounded.push(name.to_string());
            }
        }
        needs
    }
}
