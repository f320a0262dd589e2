//! The jail of an instance: what it is held to, made ready before the fork, entered by the child alone.
//!
//! A protection the host does not have is reported and done without, or replaced by a weaker one; one the host has and
//! that fails all the same is a start that failed, with the step that failed. Commands of `exec` enter the same jail.
//!
//! What a crash leaves behind is named in the state before the instance starts: [`crate::Leftovers`].

mod cgroup;
mod entry;
mod files;
mod secrets;

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use landfast_types::{Bytes, Protection, ProtectionPart, ProtectionState, Secret};
use rustix::{
    process::{Resource, Rlimit, getrlimit},
    thread::{CapabilitySet, capabilities},
};

pub(crate) use self::entry::{Entry, Step};
use self::{
    cgroup::{Cgroup, Held, Hierarchies, Limits},
    entry::Mounts,
};
use crate::{
    os,
    state::Leftovers,
    wire::{JailOrder, SecretsOrder, ShimOrder},
};

/// Where programs look for a temporary folder when nobody names one.
const SHARED_TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// The variables that name another (POSIX, and what came from elsewhere).
const TEMPORARY_VARIABLES: [&str; 3] = ["TMPDIR", "TMP", "TEMP"];

/// What an instance of this order would be held to on this host. Makes nothing.
pub fn forecast(order: &JailOrder) -> Vec<Protection> {
    let hierarchies = Hierarchies::find();
    let held = Cgroup::forecast(&hierarchies, limits(order));
    let own_tmp = can(CapabilitySet::SYS_ADMIN) && !named(order).any(|path| hides(path));
    let own_tmp = own_tmp && order.temporary.is_some();
    protections(order, &held, landlock(), own_tmp)
}

/// `cgroup v2`, `cgroup v1`, or why this host cannot limit by this controller (`memory`, `cpu`, `pids`).
///
/// # Errors
/// The reason, in words.
pub fn cgroup(controller: &str) -> Result<&'static str, String> {
    Hierarchies::find().offers(controller)
}

/// The version of Landlock's interface in this kernel, or why it has none.
///
/// # Errors
/// The reason, in words.
pub fn landlock() -> Result<u32, &'static str> {
    os::landlock_abi()
}

fn limits(order: &JailOrder) -> Limits {
    Limits {
        memory_bytes: order.memory_bytes_max,
        cpu_millis: order.cpu_millis_max,
        processes: order.processes_max,
    }
}

/// A jail that is ready to be entered; the default one is none.
#[derive(Default)]
pub(crate) struct Jail {
    pub(crate) entry: Option<Arc<Entry>>,
    pub(crate) protections: Vec<Protection>,
    cgroup: Cgroup,
    temporary: Option<PathBuf>,
    secrets: Option<PathBuf>,
    memory_bytes_max: Option<u64>,
}

impl Jail {
    /// Makes everything the instance enters, and names its temporary folder in its environment.
    ///
    /// # Errors
    /// What failed, in words. What was made by then is removed again.
    pub(crate) fn prepare(order: &mut ShimOrder) -> Result<Self, String> {
        // Taken out of the order: once they are files, nothing here needs their values.
        let secrets = order.secrets.take();
        let folder = secrets.as_ref().map(|secrets| secrets.folder.clone());
        let Some(jail) = order.jail.clone() else {
            let made = Self {
                secrets: folder,
                ..Self::default()
            };
            return made.with_secrets(secrets, None);
        };
        let (cgroup, held) = Cgroup::make(&Hierarchies::find(), &order.mark, limits(&jail));
        let mut made = Self {
            entry: None,
            protections: Vec::new(),
            temporary: jail.temporary.clone(),
            secrets: folder,
            memory_bytes_max: jail.memory_bytes_max,
            cgroup,
        };
        made = made.with_secrets(secrets, jail.user)?;
        match made.fill(order, &jail, &held) {
            Ok(()) => Ok(made),
            Err(reason) => {
                made.remove();
                Err(reason)
            }
        }
    }

    /// Writes the secrets it was ordered to have.
    fn with_secrets(
        mut self,
        order: Option<SecretsOrder>,
        user: Option<u32>,
    ) -> Result<Self, String> {
        let Some(order) = order else {
            return Ok(self);
        };
        match secrets::write(&order, user) {
            Ok(protection) => {
                self.protections.push(protection);
                Ok(self)
            }
            Err(error) => {
                self.remove();
                Err(format!("failed to write the files of its secrets: {error}"))
            }
        }
    }

    fn fill(&mut self, order: &mut ShimOrder, jail: &JailOrder, held: &Held) -> Result<(), String> {
        let failed =
            |doing: &'static str| move |error: io::Error| format!("failed to {doing}: {error}");
        if let Some(temporary) = &jail.temporary {
            make_temporary(temporary, jail.user).map_err(failed("make its temporary folder"))?;
        }
        let mounts = self.mounts(order, jail);
        let landlock = landlock();
        let ruleset = match (&jail.files, landlock) {
            (Some(files), Ok(_)) => {
                let mut read_only = vec![order.cwd.as_path(), order.program.as_path()];
                read_only.extend(files.read_only.iter().map(PathBuf::as_path));
                read_only.extend(self.secrets.as_deref());
                let mut read_write = files.read_write.clone();
                read_write.extend(jail.temporary.clone());
                files::ruleset(&read_only, &read_write)
                    .map_err(failed("make its Landlock rules"))?
            }
            (None, _) | (_, Err(_)) => None,
        };
        if let Some(temporary) = &jail.temporary {
            let place = match &mounts {
                Some(_) => Path::new(SHARED_TEMPORARY[0]),
                None => temporary,
            };
            name_temporary(&mut order.env, place);
        }
        let of_secrets = std::mem::take(&mut self.protections);
        self.protections = protections(jail, held, landlock, mounts.is_some());
        self.protections.extend(of_secrets);
        self.entry = Some(Arc::new(Entry {
            doors: self.cgroup.doors().map_err(failed("open its cgroup"))?,
            mounts,
            limits: resource_limits(jail, held),
            user: jail.user,
            ruleset,
        }));
        Ok(())
    }

    /// A `/tmp` of its own, where this host lets us mount one and nothing the instance needs lies beneath the real one.
    fn mounts(&self, order: &ShimOrder, jail: &JailOrder) -> Option<Mounts> {
        let source = self.temporary.as_ref()?;
        let mut needed = named(jail)
            .chain([&order.cwd, &order.program])
            .chain(&self.secrets);
        if needed.any(|path| hides(path)) || !can(CapabilitySet::SYS_ADMIN) {
            return None;
        }
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).ok();
        let there = SHARED_TEMPORARY.iter().map(Path::new);
        let places = there.filter(|place| place.is_dir()).filter_map(text);
        let mounts = Mounts {
            source: text(source)?,
            places: places.collect(),
        };
        mounts.can_be_made().then_some(mounts)
    }

    pub(crate) fn leftovers(&self) -> Leftovers {
        Leftovers {
            temporary: self.temporary.clone(),
            cgroups: self.cgroup.folders().to_vec(),
            secrets: self.secrets.clone(),
        }
    }

    /// How often the kernel has killed in it for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills()
    }

    /// The limit that was hit, when the kernel has killed more often than `before`.
    pub(crate) fn out_of_memory_since(&self, before: u64) -> Option<u64> {
        let limit = self.memory_bytes_max?;
        (self.oom_kills() > before).then_some(limit)
    }

    pub(crate) fn forbid_forks(&self) {
        self.cgroup.forbid_forks();
    }

    /// Removes what was made for it, once nothing of it is left.
    pub(crate) fn remove(&self) {
        self.cgroup.remove();
        for folder in self.temporary.iter().chain(&self.secrets) {
            drop(fs::remove_dir_all(folder));
        }
    }
}

/// The paths an order names.
fn named(order: &JailOrder) -> impl Iterator<Item = &PathBuf> {
    let files = order.files.iter();
    let files = files.flat_map(|files| files.read_only.iter().chain(&files.read_write));
    files.chain(&order.temporary)
}

/// Whether a `/tmp` of its own would hide a path.
fn hides(path: &Path) -> bool {
    let mut shared = SHARED_TEMPORARY.iter();
    shared.any(|shared| path.starts_with(shared))
}

/// Whether this process may do what the capability is for.
fn can(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|own| own.effective.contains(capability))
}

fn make_temporary(folder: &Path, user: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    std::os::unix::fs::chown(folder, user, user)
}

fn name_temporary(env: &mut BTreeMap<String, Secret<String>>, place: &Path) {
    let place = place.to_string_lossy();
    for variable in TEMPORARY_VARIABLES {
        // What the manifest says of it, it means.
        let value = || Secret::new(place.clone().into_owned());
        env.entry(variable.to_owned()).or_insert_with(value);
    }
}

/// Limits of single processes: for descriptors and core dumps, and in place of groups the host does not have.
fn resource_limits(jail: &JailOrder, held: &Held) -> Vec<(Resource, Rlimit)> {
    // A core dump would hold the environment, secrets included.
    let mut limits = vec![(Resource::Core, os::NO_CORE)];
    let asked = |held: &Option<Result<_, _>>| matches!(held, Some(Err(_)));
    limits.extend(jail.descriptors_max.map(|max| (Resource::Nofile, max)));
    if asked(&held.memory) {
        limits.extend(jail.memory_bytes_max.map(|max| (Resource::Data, max)));
    }
    // The kernel counts by user: without one of its own it would count everything of the server's user.
    if asked(&held.processes) && jail.user.is_some() {
        limits.extend(jail.processes_max.map(|max| (Resource::Nproc, max)));
    }
    let capped = limits.into_iter().map(|(resource, max)| {
        let max = capped(resource, max);
        let limit = Rlimit {
            current: Some(max),
            maximum: Some(max),
        };
        (resource, limit)
    });
    capped.collect()
}

/// Nobody may raise the hard limit the host gave.
fn capped(resource: Resource, wanted: u64) -> u64 {
    let hard = getrlimit(resource).maximum;
    hard.map_or(wanted, |hard| hard.min(wanted))
}

fn protections(
    jail: &JailOrder,
    held: &Held,
    landlock: Result<u32, &str>,
    own_tmp: bool,
) -> Vec<Protection> {
    use ProtectionPart as Part;
    use ProtectionState::{Enforced, Missing, Off, Weaker};
    let user = match (jail.user, &jail.user_unless) {
        (Some(user), _) => Protection::new(Part::User, Enforced, format!("{user}, its own")),
        (None, Some(unless)) if unless.is_wanted => {
            Protection::new(Part::User, Off, unless.reason.clone())
        }
        (None, Some(unless)) => Protection::new(Part::User, Missing, unless.reason.clone()),
        (None, None) => Protection::new(Part::User, Missing, "that of the server"),
    };
    let privileges = "no capabilities, no new privileges";
    let mut all = vec![
        user,
        Protection::new(Part::Privileges, Enforced, privileges),
    ];
    let unlimited = |part| Protection::new(part, Off, "no limit in the manifest");
    all.push(match (&held.memory, jail.memory_bytes_max) {
        (Some(Ok(memory)), _) => memory.clone(),
        (Some(Err(reason)), Some(bytes)) => {
            let each = format!("{} for each process (RLIMIT_DATA): {reason}", Bytes(bytes));
            Protection::new(Part::Memory, Weaker, each)
        }
        (Some(Err(_)) | None, _) => unlimited(Part::Memory),
    });
    all.push(match &held.cpu {
        Some(Ok(cpu)) => cpu.clone(),
        Some(Err(reason)) => Protection::new(Part::Cpu, Missing, reason.clone()),
        None => unlimited(Part::Cpu),
    });
    all.push(match (&held.processes, jail.processes_max) {
        (Some(Ok(processes)), _) => processes.clone(),
        (Some(Err(reason)), Some(count)) if jail.user.is_some() => {
            let shared = format!("{count} for all instances of its user (RLIMIT_NPROC): {reason}");
            Protection::new(Part::Processes, Weaker, shared)
        }
        (Some(Err(reason)), _) => Protection::new(Part::Processes, Missing, reason.clone()),
        (None, _) => unlimited(Part::Processes),
    });
    all.push(match jail.descriptors_max {
        Some(max) => {
            let max = capped(Resource::Nofile, max);
            Protection::new(
                Part::Descriptors,
                Enforced,
                format!("{max} (RLIMIT_NOFILE)"),
            )
        }
        None => Protection::new(Part::Descriptors, Off, "as the server's own"),
    });
    let files = match (&jail.files, landlock) {
        (None, _) => Protection::new(Part::Files, Off, "the manifest opens the host's files"),
        (Some(_), Ok(abi @ (1 | 2))) => {
            let detail =
                format!("Landlock ABI {abi} does not refuse to truncate files its user may write");
            Protection::new(Part::Files, Weaker, detail)
        }
        (Some(_), Ok(abi)) => Protection::new(Part::Files, Enforced, format!("Landlock ABI {abi}")),
        (Some(_), Err(reason)) => Protection::new(Part::Files, Missing, reason),
    };
    let is_closed = files.state != Missing && files.state != Off;
    all.push(files);
    all.push(match (&jail.temporary, own_tmp) {
        (None, _) => Protection::new(Part::Temporary, Off, "none was given"),
        (Some(_), true) => Protection::new(Part::Temporary, Enforced, "/tmp of its own"),
        (Some(_), false) if is_closed => {
            Protection::new(Part::Temporary, Enforced, "in TMPDIR; /tmp is closed")
        }
        (Some(_), false) => Protection::new(Part::Temporary, Weaker, "in TMPDIR; /tmp is shared"),
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FilesOrder, Unless};

    fn lines(order: &JailOrder, landlock: Result<u32, &str>) -> Vec<String> {
        let held = Cgroup::forecast(&Hierarchies::default(), limits(order));
        let all = protections(order, &held, landlock, false);
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn says_what_is_weaker_and_what_is_missing_on_a_poor_host() {
        let order = JailOrder {
            user: None,
            user_unless: Some(Unless {
                is_wanted: false,
                reason: "the server does not run as root".into(),
            }),
            memory_bytes_max: Some(64 << 20),
            cpu_millis_max: Some(500),
            processes_max: Some(100),
            descriptors_max: None,
            files: Some(FilesOrder::default()),
            temporary: Some("/x".into()),
        };
        assert_eq!(
            lines(&order, Err("the kernel has no Landlock")),
            [
                "user: not enforced, the server does not run as root",
                "privileges: no capabilities, no new privileges",
                "memory: weaker, 64MiB for each process (RLIMIT_DATA): no mounted cgroup has the memory controller",
                "cpu: not enforced, no mounted cgroup has the cpu controller",
                "processes: not enforced, no mounted cgroup has the pids controller",
                "descriptors: off, as the server's own",
                "files: not enforced, the kernel has no Landlock",
                "temporary folder: weaker, in TMPDIR; /tmp is shared",
            ]
        );
        let limits = resource_limits(
            &order,
            &Cgroup::forecast(&Hierarchies::default(), limits(&order)),
        );
        let resources: Vec<_> = limits.iter().map(|(resource, _)| *resource).collect();
        assert_eq!(resources, [Resource::Core, Resource::Data]);
    }

    #[test]
    fn a_user_of_its_own_lets_the_kernel_count_its_processes() {
        let order = JailOrder {
            user: Some(1_900_000_007),
            processes_max: Some(100),
            files: Some(FilesOrder::default()),
            temporary: Some("/x".into()),
            ..JailOrder::default()
        };
        let lines = lines(&order, Ok(2));
        assert_eq!(lines[0], "user: 1900000007, its own");
        assert!(lines[4].starts_with("processes: weaker, 100 for all instances of its user"));
        assert!(lines[6].starts_with("files: weaker, Landlock ABI 2"));
        assert_eq!(lines[7], "temporary folder: in TMPDIR; /tmp is closed");
    }
}
