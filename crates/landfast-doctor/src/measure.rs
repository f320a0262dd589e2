//! Looking at a host.

use std::{
    fs,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use rustix::{
    process::{Pid, PidfdFlags, Resource, geteuid, getrlimit, pidfd_open},
    system::uname,
    time::{ClockId, clock_gettime},
};

use crate::{Disk, Facts, Port};

/// Writes of which the median is taken.
const SYNCS: usize = 7;

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The state folder, or where it would be.
    pub state: PathBuf,
    /// What should be listened on, and is not yet by us.
    pub ports: Vec<SocketAddr>,
}

/// Looks at the host. `port_owner` names who listens on a port. Blocks for the few writes of the disk's test.
pub fn measure(places: &Places, port_owner: impl Fn(u16) -> Option<String>) -> Facts {
    let limit = getrlimit(Resource::Nofile);
    let (memory_bytes, memory_available_bytes) = memory();
    let port = |address: &SocketAddr| (*address, port(*address, &port_owner));
    Facts {
        os: os_name(&read("/etc/os-release")),
        kernel: uname().release().to_str().ok().map(str::to_owned),
        cores: std::thread::available_parallelism().map_or(1, usize::from) as u64,
        memory_bytes,
        memory_available_bytes,
        disk: disk(&places.state),
        network_mbps: network_mbps(),
        descriptors: (limit.current, limit.maximum),
        is_root: geteuid().is_root(),
        cgroups: ["memory", "cpu", "pids"]
            .map(|one| (one, landfast_shim::jail::cgroup(one).map(str::to_owned)))
            .into(),
        landlock: Some(landfast_shim::jail::landlock().map_err(str::to_owned)),
        has_pidfd: has_pidfd(),
        clock_is_synchronized: landfast_shim::clock_is_synchronized(),
        clock_micros: micros(ClockId::Realtime),
        ephemeral_ports: range(&read("/proc/sys/net/ipv4/ip_local_port_range")),
        ports: places.ports.iter().map(port).collect(),
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// All memory and what is available of it, in bytes.
pub fn memory() -> (Option<u64>, Option<u64>) {
    let text = read("/proc/meminfo");
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kibibytes << 10)
    };
    (field("MemTotal:"), field("MemAvailable:"))
}

fn os_name(text: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The file system a folder is on, or would be, without writing to it.
pub fn room(folder: &Path) -> Option<Disk> {
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(Disk {
        path: there.display().to_string(),
        bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes_free: (stat.f_files > 0).then_some(stat.f_favail),
        sync_micros: None,
    })
}

/// The same with its speed.
fn disk(state: &Path) -> Option<Disk> {
    let room = room(state)?;
    let sync_micros = sync_micros(Path::new(&room.path)).ok();
    Some(Disk {
        sync_micros,
        ..room
    })
}

/// How long it takes until a few bytes are on disk. The file has no name and is gone at the end.
fn sync_micros(folder: &Path) -> io::Result<u64> {
    let mut file = tempfile::tempfile_in(folder)?;
    let mut times = [0; SYNCS];
    for time in &mut times {
        let begun = micros(ClockId::Monotonic);
        file.write_all(&[0x5a; 4_096])?;
        file.sync_data()?;
        *time = micros(ClockId::Monotonic).saturating_sub(begun);
    }
    times.sort_unstable();
    Ok(times[SYNCS / 2].unsigned_abs())
}

fn micros(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec
        .saturating_mul(1_000_000)
        .saturating_add(now.tv_nsec / 1_000)
}

fn network_mbps() -> Option<u64> {
    let interfaces = fs::read_dir("/sys/class/net").ok()?.flatten();
    // Virtual ones and those that are down say -1 or nothing.
    let speeds = interfaces.filter_map(|interface| {
        read(interface.path().join("speed"))
            .trim()
            .parse::<u64>()
            .ok()
    });
    speeds.max()
}

fn has_pidfd() -> bool {
    let own = i32::try_from(std::process::id())
        .ok()
        .and_then(Pid::from_raw);
    own.is_some_and(|own| pidfd_open(own, PidfdFlags::empty()).is_ok())
}

fn port(address: SocketAddr, owner: &impl Fn(u16) -> Option<String>) -> Port {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Port::Denied,
        Err(_) => Port::Taken(owner(address.port())),
        Ok(_) => Port::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_this_host() {
        let folder = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let places = Places {
            state: folder.path().join("not/there/yet"),
            ports: vec![address],
        };
        let facts = measure(&places, |port| Some(format!("owner of {port}")));
        assert!(facts.cores >= 1 && facts.memory_bytes > facts.memory_available_bytes);
        let disk = facts.disk.unwrap();
        assert_eq!(disk.path, folder.path().display().to_string());
        assert!(disk.bytes > disk.free_bytes && disk.sync_micros.is_some());
        let owner = format!("owner of {}", address.port());
        assert_eq!(facts.ports, [(address, Port::Taken(Some(owner)))]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no trace");
    }

    #[test]
    fn reads_what_the_system_writes() {
        assert_eq!(range("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(range(""), None);
        let name = "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(
            os_name(name).as_deref(),
            Some("Debian GNU/Linux 12 (bookworm)")
        );
    }
}
