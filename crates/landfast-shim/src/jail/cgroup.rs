//! Control groups: what holds the memory, the CPU time and the processes of an instance *together*.
//!
//! Version 2 is used wherever it has the controller, version 1 else; a host may have both (hybrid). Under version 2 the
//! groups are made in `landfast/` at the highest place this user may write, as container runtimes do, because a group
//! with processes of its own (the server's) cannot have limited children; under version 1 in `landfast/` beneath the
//! server's own group, whose limits then hold for all together. An instance's group goes with its shim.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_types::{Bytes, Cpu, Protection, ProtectionPart, ProtectionState};
use rustix::fs::Access;

/// The folder under which all groups of instances are made.
const FOLDER: &str = "landfast";
/// The kernel's own default; a quota is a share of it.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// A smaller quota is refused by the kernel (sched_cfs_bandwidth).
const CPU_QUOTA_MICROS_MIN: u64 = 1_000;
/// A group may be busy for a moment after its last process was reaped.
const REMOVE_TRIES: usize = 10;
const MAKE_TRIES: usize = 5;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Self::V1 => "cgroup v1",
            Self::V2 => "cgroup v2",
        }
    }
}

/// Where groups for one controller can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    version: Version,
    base: PathBuf,
}

/// A mounted hierarchy, and where in it this process is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// From `point` on.
    own: PathBuf,
}

/// The hierarchies of this host as they are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Hierarchies {
    v2: Option<Mount>,
    v1: Vec<(String, Mount)>,
}

impl Hierarchies {
    pub(super) fn find() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    /// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and `/proc/self/cgroup` (cgroups(7)).
    fn parse(mounts: &str, memberships: &str) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let Some((head, tail)) = line.split_once(" - ") else {
                continue;
            };
            let mut head = head.split(' ').skip(3);
            let (Some(root), Some(point)) = (head.next(), head.next()) else {
                continue;
            };
            let mut tail = tail.split(' ');
            let (kind, options) = (tail.next(), tail.nth(1).unwrap_or_default());
            let mount = |own: &str| Mount {
                point: PathBuf::from(point),
                // In a container the mount may begin somewhere below the hierarchy's root.
                own: Path::new(own)
                    .strip_prefix(root)
                    .unwrap_or(Path::new(""))
                    .to_owned(),
            };
            match kind {
                Some("cgroup2") if found.v2.is_none() => {
                    found.v2 = membership(memberships, "").map(mount);
                }
                Some("cgroup") => {
                    for controller in options.split(',') {
                        if let Some(own) = membership(memberships, controller)
                            && !found.v1.iter().any(|(known, _)| known == controller)
                        {
                            found.v1.push((controller.to_owned(), mount(own)));
                        }
                    }
                }
                Some(_) | None => {}
            }
        }
        found
    }

    /// Where groups for a controller can be made, or why nowhere.
    fn place(&self, controller: &str) -> Result<Place, String> {
        if let Some(v2) = &self.v2
            && lists(&v2.point.join("cgroup.controllers"), controller)
        {
            let base = v2.writable();
            let base = base.ok_or("no part of cgroup v2 is delegated to this user")?;
            let version = Version::V2;
            return Ok(Place { version, base });
        }
        let v1 = self.v1.iter().find(|(name, _)| name == controller);
        let (_, v1) =
            v1.ok_or_else(|| format!("no mounted cgroup has the {controller} controller"))?;
        let base = v1.point.join(&v1.own);
        if !may_write(&base) {
            return Err(format!("cgroup v1 ({controller}) may not be written"));
        }
        let version = Version::V1;
        Ok(Place { version, base })
    }

    /// `cgroup v2`, `cgroup v1` or why the controller cannot be used.
    pub(super) fn offers(&self, controller: &str) -> Result<&'static str, String> {
        self.place(controller).map(|place| place.version.name())
    }
}

impl Mount {
    /// The highest group this user may make children in, its own excepted: it has processes.
    fn writable(&self) -> Option<PathBuf> {
        let mut above: Vec<_> = self.own.ancestors().skip(1).collect();
        above.push(Path::new(""));
        let mut above = above.into_iter().rev().map(|group| self.point.join(group));
        above.find(|group| may_write(group))
    }
}

fn membership<'a>(memberships: &'a str, controller: &str) -> Option<&'a str> {
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_named = controllers.split(',').any(|one| one == controller);
        is_named.then_some(path)
    })
}

fn lists(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|one| one == word))
}

fn may_write(folder: &Path) -> bool {
    // As the effective user, by the kernel's own judgement: a read-only mount says no to root too.
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// What an instance may use. `None` is unlimited.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    pub(super) memory_bytes: Option<u64>,
    pub(super) cpu_millis: Option<u64>,
    pub(super) processes: Option<u64>,
}

/// Whether each limit is held by a group, or why not. `None`: it is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) memory: Option<Result<Protection, String>>,
    pub(super) cpu: Option<Result<Protection, String>>,
    pub(super) processes: Option<Result<Protection, String>>,
}

/// The groups of one instance: one under version 2, one for each controller under version 1.
#[derive(Debug, Default)]
pub(super) struct Cgroup {
    folders: Vec<PathBuf>,
    memory: Option<(Version, PathBuf)>,
    processes: Option<PathBuf>,
}

impl Cgroup {
    /// Makes groups of this name with these limits, as far as the host has them.
    pub(super) fn make(hierarchies: &Hierarchies, name: &str, limits: Limits) -> (Self, Held) {
        let mut made = Self::default();
        let mut held = Held::default();
        if let Some(bytes) = limits.memory_bytes {
            let result = made.limit(hierarchies, name, "memory", |version, folder| {
                limit_memory(version, folder, bytes)
            });
            held.memory = Some(result.map(|(version, folder)| {
                made.memory = Some((version, folder));
                memory_protection(version.name(), bytes)
            }));
        }
        if let Some(millis) = limits.cpu_millis {
            let result = made.limit(hierarchies, name, "cpu", |version, folder| {
                limit_cpu(version, folder, millis)
            });
            held.cpu = Some(result.map(|(version, _)| cpu_protection(version.name(), millis)));
        }
        if let Some(count) = limits.processes {
            let result = made.limit(hierarchies, name, "pids", |_, folder| {
                write(folder, "pids.max", &count.to_string())
            });
            held.processes = Some(result.map(|(version, folder)| {
                made.processes = Some(folder);
                processes_protection(version.name(), count)
            }));
        }
        (made, held)
    }

    /// The same without making anything: what a start would be held to.
    pub(super) fn forecast(hierarchies: &Hierarchies, limits: Limits) -> Held {
        Held {
            memory: limits.memory_bytes.map(|bytes| {
                let version = hierarchies.offers("memory");
                version.map(|version| memory_protection(version, bytes))
            }),
            cpu: limits.cpu_millis.map(|millis| {
                let version = hierarchies.offers("cpu");
                version.map(|version| cpu_protection(version, millis))
            }),
            processes: limits.processes.map(|count| {
                let version = hierarchies.offers("pids");
                version.map(|version| processes_protection(version, count))
            }),
        }
    }

    fn limit(
        &mut self,
        hierarchies: &Hierarchies,
        name: &str,
        controller: &str,
        set: impl FnOnce(Version, &Path) -> io::Result<()>,
    ) -> Result<(Version, PathBuf), String> {
        let place = hierarchies.place(controller)?;
        let version = place.version;
        let failed = |error: io::Error| {
            let (version, base) = (version.name(), place.base.display());
            format!("{version} ({controller}) at `{base}`: {error}")
        };
        let folder = make_folder(&place, name, controller).map_err(failed)?;
        if !self.folders.contains(&folder) {
            self.folders.push(folder.clone());
        }
        set(version, &folder).map_err(failed)?;
        Ok((version, folder))
    }

    pub(super) fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// What a process writes `0` to, to become a member.
    pub(super) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |folder: &PathBuf| {
            let file = File::options()
                .write(true)
                .open(folder.join("cgroup.procs"));
            file.map(OwnedFd::from)
        };
        self.folders.iter().map(open).collect()
    }

    /// How many of its processes the kernel has killed because its memory was used up.
    pub(super) fn oom_kills(&self) -> u64 {
        let Some((version, folder)) = &self.memory else {
            return 0;
        };
        let file = match version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        fs::read_to_string(folder.join(file)).map_or(0, |text| count_of(&text, "oom_kill"))
    }

    /// From here on none of its processes can start another: what is being killed cannot run away from it.
    pub(super) fn forbid_forks(&self) {
        if let Some(folder) = &self.processes {
            // Where it fails the sweep only takes more rounds.
            drop(write(folder, "pids.max", "0"));
        }
    }

    /// Removes the groups once nothing is left in them.
    pub(super) fn remove(&self) {
        for folder in &self.folders {
            for _ in 0..REMOVE_TRIES {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(REMOVE_PAUSE);
                    }
                    Ok(()) | Err(_) => break,
                }
            }
            // The last one takes the common folder along; the others cannot.
            drop(folder.parent().map(fs::remove_dir));
        }
    }
}

fn count_of(text: &str, key: &str) -> u64 {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0)
}

/// Tries again where the last instance of the host has just removed the folder above.
fn make_folder(place: &Place, name: &str, controller: &str) -> io::Result<PathBuf> {
    let mut tries = 1..MAKE_TRIES;
    loop {
        match try_make_folder(place, name, controller) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries.next().is_some() => {}
            result => return result,
        }
    }
}

fn try_make_folder(place: &Place, name: &str, controller: &str) -> io::Result<PathBuf> {
    let parent = place.base.join(FOLDER);
    make_if_missing(&parent)?;
    if place.version == Version::V2 {
        // From above to below: a group can pass on only what it was given.
        for group in [&place.base, &parent] {
            if !lists(&group.join("cgroup.subtree_control"), controller) {
                write(group, "cgroup.subtree_control", &format!("+{controller}"))?;
            }
        }
    }
    let folder = parent.join(name);
    make_if_missing(&folder)?;
    Ok(folder)
}

fn make_if_missing(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn limit_memory(version: Version, folder: &Path, bytes: u64) -> io::Result<()> {
    let bytes = bytes.to_string();
    match version {
        Version::V2 => {
            write(folder, "memory.max", &bytes)?;
            // Not there without swap. Without it an instance over its limit would fill the swap first.
            drop(write(folder, "memory.swap.max", "0"));
        }
        Version::V1 => {
            write(folder, "memory.limit_in_bytes", &bytes)?;
            // Memory and swap together; not there without swap accounting.
            drop(write(folder, "memory.memsw.limit_in_bytes", &bytes));
        }
    }
    Ok(())
}

fn limit_cpu(version: Version, folder: &Path, millis: u64) -> io::Result<()> {
    let quota = (millis * CPU_PERIOD_MICROS / 1_000).max(CPU_QUOTA_MICROS_MIN);
    match version {
        Version::V2 => write(folder, "cpu.max", &format!("{quota} {CPU_PERIOD_MICROS}")),
        Version::V1 => {
            write(folder, "cpu.cfs_period_us", &CPU_PERIOD_MICROS.to_string())?;
            write(folder, "cpu.cfs_quota_us", &quota.to_string())
        }
    }
}

/// Writes a value in one call, as the kernel wants it. Never creates the file: one that is not there is not supported.
fn write(folder: &Path, file: &str, value: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(folder.join(file))?;
    file.write_all(value.as_bytes())
}

fn memory_protection(version: &str, bytes: u64) -> Protection {
    let detail = format!(
        "{} for all its processes together ({version})",
        Bytes(bytes)
    );
    enforced(ProtectionPart::Memory, detail)
}

fn cpu_protection(version: &str, millis: u64) -> Protection {
    let cpu = Cpu { millicores: millis };
    enforced(ProtectionPart::Cpu, format!("{cpu} ({version})"))
}

fn processes_protection(version: &str, count: u64) -> Protection {
    let detail = format!("{count} processes and threads ({version})");
    enforced(ProtectionPart::Processes, detail)
}

fn enforced(part: ProtectionPart, detail: String) -> Protection {
    Protection::new(part, ProtectionState::Enforced, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 20 0:22 / /sys/fs/cgroup rw,relatime shared:9 - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory
27 25 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    fn mount(point: &str, own: &str) -> Mount {
        Mount {
            point: point.into(),
            own: own.into(),
        }
    }

    #[test]
    fn finds_the_hierarchies_of_a_hybrid_host() {
        let own = "4:memory:/system.slice/landfast.service\n2:cpu,cpuacct:/\n0::/system.slice/landfast.service\n";
        let found = Hierarchies::parse(HYBRID, own);
        let service = "system.slice/landfast.service";
        let cpu = mount("/sys/fs/cgroup/cpu,cpuacct", "");
        assert_eq!(found.v2, Some(mount("/sys/fs/cgroup/unified", service)));
        assert_eq!(
            found.v1,
            [
                ("memory".to_owned(), mount("/sys/fs/cgroup/memory", service)),
                ("cpu".to_owned(), cpu.clone()),
                ("cpuacct".to_owned(), cpu),
            ]
        );
    }

    #[test]
    fn takes_a_mount_that_begins_below_the_root_as_the_container_sees_it() {
        let mounts = "30 25 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n";
        let found = Hierarchies::parse(mounts, "0::/docker/abc/inner\n");
        assert_eq!(found.v2, Some(mount("/sys/fs/cgroup", "inner")));
        assert_eq!(Hierarchies::parse("", ""), Hierarchies::default());
        let reason = Hierarchies::default().offers("pids").unwrap_err();
        assert_eq!(reason, "no mounted cgroup has the pids controller");
    }

    /// The kernel's files as plain ones: which are written, and with what.
    #[test]
    fn writes_the_limits_of_version_2() {
        let root = tempfile::tempdir().unwrap();
        let point = root.path();
        let file = |path: &str, text: &str| fs::write(point.join(path), text).unwrap();
        fs::create_dir_all(point.join("landfast/one")).unwrap();
        file("cgroup.controllers", "cpu memory pids\n");
        for group in ["", "landfast/"] {
            file(&format!("{group}cgroup.subtree_control"), "memory\n");
        }
        for name in ["memory.max", "memory.swap.max", "cpu.max", "pids.max"] {
            file(&format!("landfast/one/{name}"), "");
        }
        file(
            "landfast/one/memory.events",
            "oom 3\noom_kill 2\noom_group_kill 9\n",
        );
        let hierarchies = Hierarchies {
            v2: Some(mount(&point.to_string_lossy(), "system.slice/x.service")),
            v1: Vec::new(),
        };
        let limits = Limits {
            memory_bytes: Some(64 << 20),
            cpu_millis: Some(250),
            processes: Some(32),
        };
        let (made, held) = Cgroup::make(&hierarchies, "one", limits);
        let read = |path: &str| fs::read_to_string(point.join("landfast/one").join(path)).unwrap();
        assert_eq!(read("memory.max"), "67108864");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "25000 100000");
        assert_eq!(read("pids.max"), "32");
        assert_eq!(made.oom_kills(), 2);
        assert_eq!(made.folders().len(), 1, "one group for all");
        // Both above were told to pass the controllers on; the one that was, was not asked again.
        let control = fs::read_to_string(point.join("landfast/cgroup.subtree_control")).unwrap();
        assert_eq!(control, "+pidsy\n");
        let memory = held.memory.clone().unwrap().unwrap();
        assert_eq!(
            memory.to_string(),
            "memory: 64MiB for all its processes together (cgroup v2)"
        );
        assert_eq!(Cgroup::forecast(&hierarchies, limits), held);
        made.forbid_forks();
        assert!(read("pids.max").starts_with('0'));
    }

    #[test]
    fn says_which_limit_is_not_held_and_why() {
        let limits = Limits {
            memory_bytes: Some(1 << 20),
            ..Limits::default()
        };
        let (made, held) = Cgroup::make(&Hierarchies::default(), "one", limits);
        let reason = held.memory.unwrap().unwrap_err();
        assert_eq!(reason, "no mounted cgroup has the memory controller");
        assert!(made.folders().is_empty() && held.cpu.is_none());
    }
}
