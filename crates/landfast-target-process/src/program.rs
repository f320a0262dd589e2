//! Programs of the host itself: the servers of data stores. Each has a user of its own, where the server may give one;
//! it is confined, kept and found again like any instance.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Stdio,
    sync::Arc,
};

use landfast_shim::{
    MARK_VARIABLE, end_with_parent,
    wire::{FilesOrder, JailOrder, LogSettings, Report, ShimOrder, Unless},
};
use landfast_target::{Exit, Observed, ProgramEnd, ProgramRun, ProgramSpec, StartError};
use landfast_types::{Fence, Secret, format_duration};
use rustix::{
    fs::{MemfdFlags, fchown, memfd_create},
    process::{Pid, Signal, kill_process_group},
};
use tokio::process::Child;

use crate::{
    DESCRIPTORS_MAX, PROCESSES_MAX, ProcessTarget, blocking,
    folder::Folder,
    jail, observed, ownership,
    start::{command, failed, make_open},
};

/// A program that makes no progress is looked at so often before it is ended.
const LOOKS: u32 = 60;
/// So much of the end of its output is told of a program that was run.
const OUTPUT_BYTES_MAX: u64 = 4 << 10;
/// The grace when the host shuts down: a database writes back what it holds.
const SHUTDOWN_GRACE_MS: u64 = 60_000;

impl ProcessTarget {
    pub(crate) async fn start_host_program(
        &self,
        order: Fence,
        spec: &ProgramSpec,
    ) -> Result<Observed, StartError> {
        let taken = self.take_generation(order).await;
        taken.map_err(failed("read the generation of orders"))??;
        let folder = self.folder(&spec.id);
        let _starting = self.lock(&folder).await;
        let observe = || format!("observe instance `{}`", spec.id.instance);
        if let Some((state, _)) = folder.observe().await.map_err(failed(observe()))? {
            return Ok(observed(&state));
        }
        let shim_order = self.compose_program(order, spec, &folder).await?;
        let started = self.order_shim(&shim_order).await;
        match started.map_err(failed("start a shim"))? {
            Report::Started { state } => Ok(observed(&state)),
            Report::Already => match folder.observe().await.map_err(failed(observe()))? {
                Some((state, _)) => Ok(observed(&state)),
                None => Err(failed(observe())(io::Error::other(
                    "it left without a trace",
                ))),
            },
            Report::Failed { reason } => Err(failed("start a shim")(io::Error::other(reason))),
        }
    }

    async fn compose_program(
        &self,
        order: Fence,
        spec: &ProgramSpec,
        folder: &Folder,
    ) -> Result<ShimOrder, StartError> {
        let (made, program) = (folder.clone(), spec.clone());
        let (settings, users) = (self.settings.clone(), self.users.clone());
        let prepared = blocking(move || {
            made.make()?;
            make_open(&settings.temporary)?;
            let random = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
            let mark = format!("{}.{}", made.key(), random.trim());
            let user = jail::user_of(users.as_deref(), &program.owner)?;
            reachable(user, &program.folder)?;
            reachable(user, &settings.temporary)?;
            let temporary = settings.temporary.join(&mark);
            Ok((mark, jail_of(&program, user, temporary)))
        });
        let prepared = prepared.await;
        let (mark, jail) = prepared.map_err(failed("prepare the folders of the program"))?;
        let mut env = spec.env.clone();
        env.insert(MARK_VARIABLE.to_owned(), Secret::new(mark.clone()));
        let name = spec.program.file_name().unwrap_or_default();
        let mut argv = vec![name.to_string_lossy().into_owned()];
        argv.extend(spec.arguments.iter().cloned());
        Ok(ShimOrder {
            scope: spec.id.scope.clone(),
            instance: spec.id.instance.clone(),
            fence: order,
            folder: folder.path().to_owned(),
            program: spec.program.clone(),
            argv,
            env,
            cwd: spec.folder.clone(),
            address: Some(spec.address),
            is_job: false,
            mark,
            logs: LogSettings {
                folder: spec.log_folder.clone(),
                segment_bytes_max: self.settings.log_segment_bytes_max,
                segments_kept: self.settings.log_segments_kept,
            },
            grace_ms: SHUTDOWN_GRACE_MS,
            stop_signal: Some(spec.stop_signal),
            jail: Some(jail),
            secrets: None,
        })
    }

    pub(crate) async fn give_folder(&self, owner: &str, folder: &Path) -> Result<(), StartError> {
        let (owner, path, users) = (owner.to_owned(), folder.to_owned(), self.users.clone());
        let given = blocking(move || give(users, &owner, &path)).await;
        given.map_err(failed(format!("give `{}` to its user", folder.display())))
    }

    pub(crate) async fn run_to_end(&self, run: &ProgramRun) -> Result<ProgramEnd, StartError> {
        let doing = format!("run `{}`", run.program.display());
        let ended = async {
            let (owned, users) = (run.clone(), self.users.clone());
            let prepared = blocking(move || {
                let user = jail::user_of(users.as_deref(), &owned.owner)?;
                reachable(user, &owned.folder)?;
                match user {
                    Some(own) if !owned.named_users.is_empty() => {
                        Ok((Some(hand_to_named(&owned)?), Some(own)))
                    }
                    Some(_) | None => Ok((user, None)),
                }
            });
            let (user, handed_back_to) = prepared.await?;
            let end = execute(run, user).await;
            if let Some(own) = handed_back_to {
                let folder = run.folder.clone();
                blocking(move || {
                    ownership::hand_over(&folder, own)?;
                    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
                })
                .await?;
            }
            end
        };
        ended.await.map_err(failed(doing))
    }
}

fn jail_of(program: &ProgramSpec, user: Option<u32>, temporary: std::path::PathBuf) -> JailOrder {
    let resources = &program.resources;
    JailOrder {
        user,
        user_unless: user.is_none().then(|| Unless {
            is_wanted: false,
            reason: "the server does not run as root".to_owned(),
        }),
        memory_bytes_max: resources.memory.map(|memory| memory.0),
        cpu_millis_max: resources.cpu.map(|cpu| cpu.millicores),
        processes_max: Some(u64::from(resources.processes.unwrap_or(PROCESSES_MAX))),
        descriptors_max: Some(u64::from(resources.descriptors.unwrap_or(DESCRIPTORS_MAX))),
        files: Some(FilesOrder {
            read_only: program.read_only.clone(),
            read_write: program.read_write.clone(),
        }),
        temporary: Some(temporary),
    }
}

/// Another user must be let through to where its files are: a server of a database runs as no other.
fn reachable(user: Option<u32>, path: &Path) -> io::Result<()> {
    let above = path.parent().unwrap_or(path);
    match user.and_then(|_| ownership::closed_to_others(above)) {
        Some(closed) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "`{0}` lets no other user in; `chmod o+x {0}`, or another folder with --state",
                closed.display()
            ),
        )),
        None => Ok(()),
    }
}

fn give(users: Option<Arc<crate::users::Users>>, owner: &str, folder: &Path) -> io::Result<()> {
    let user = jail::user_of(users.as_deref(), owner)?;
    fs::create_dir_all(folder)?;
    if let Some(user) = user {
        reachable(Some(user), folder)?;
        ownership::hand_over(folder, user)?;
    }
    // Servers refuse a folder that others may look into.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// Gives the folder to a user that has a name, and says which.
fn hand_to_named(run: &ProgramRun) -> io::Result<u32> {
    let known = fs::read_to_string("/etc/passwd")?;
    let mut names = run.named_users.iter();
    let named = names.find_map(|name| user_number(&known, name));
    let named = named.ok_or_else(|| {
        let reason = format!(
            "none of the users {} is known here",
            run.named_users.join(", ")
        );
        io::Error::new(io::ErrorKind::NotFound, reason)
    })?;
    std::os::unix::fs::chown(&run.folder, Some(named), Some(named))?;
    Ok(named)
}

/// The number of a user in the text of passwd(5).
fn user_number(passwd: &str, name: &str) -> Option<u32> {
    let mut lines = passwd.lines().map(|line| line.split(':'));
    let mut fields =
        lines.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    fields.nth(1)?.parse().ok()
}

/// Runs it and waits. Its input is memory, which it may open again as `/dev/stdin` because it is its own. Dropped, it is killed with
/// its group.
async fn execute(run: &ProgramRun, user: Option<u32>) -> io::Result<ProgramEnd> {
    let memory = memfd_create("input", MemfdFlags::CLOEXEC)?;
    if let Some(user) = user {
        let (owner, group) = (
            rustix::fs::Uid::from_raw(user),
            rustix::fs::Gid::from_raw(user),
        );
        fchown(&memory, Some(owner), Some(group))?;
    }
    let mut input = File::from(memory);
    input.write_all(run.stdin.reveal())?;
    input.seek(SeekFrom::Start(0))?;
    let mut output = File::from(memfd_create("output", MemfdFlags::CLOEXEC)?);
    let env = run.env.iter().map(|(name, value)| (name, value.reveal()));
    let mut child = command(&run.program);
    child
        .args(&run.arguments)
        .env_clear()
        .envs(env)
        .kill_on_drop(true)
        .process_group(0)
        .current_dir(&run.folder)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output.try_clone()?))
        .stderr(Stdio::from(output.try_clone()?));
    if let Some(user) = user {
        // Also drops all other groups.
        child.uid(user).gid(user);
    }
    // The threads of the runtime, one of which starts it, live as long as the server.
    end_with_parent(child.as_std_mut());
    let mut child = child.spawn()?;
    let group = Group::of(&child);
    let status = tokio::select! {
        status = child.wait() => status?,
        () = until_stuck(run, group.as_ref()) => {
            drop(group);
            child.wait().await?;
            let patience = format_duration(run.patience);
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it made no progress for {patience} and was ended, with all it had started"),
            ));
        }
    };
    if let Some(group) = group {
        group.has_ended();
    }
    let length = output.seek(SeekFrom::End(0))?;
    output.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_BYTES_MAX)))?;
    let mut text = Vec::new();
    output.read_to_end(&mut text)?;
    let exit = match (
        status.code(),
        std::os::unix::process::ExitStatusExt::signal(&status),
    ) {
        (Some(code), _) => Exit::Code { code },
        (None, Some(signal)) => Exit::Signal {
            signal,
            core_dumped: false,
        },
        (None, None) => Exit::Unknown,
    };
    Ok(ProgramEnd {
        exit,
        output: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// The group of a child that was not waited for, so that its number names nobody else. Dropped, it is killed.
struct Group(Pid);

impl Group {
    fn of(child: &Child) -> Option<Self> {
        let pid = i32::try_from(child.id()?).ok()?;
        Pid::from_raw(pid).map(Self)
    }

    /// From here on its number may be somebody else's.
    fn has_ended(self) {
        std::mem::forget(self);
    }

    /// Each process of it, with what it has used so far: processor time in ticks, bytes read and written.
    fn used(&self) -> Vec<(u32, u64, u64)> {
        let Ok(processes) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let processes = processes.flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let ticks = ticks_of(&fs::read_to_string(entry.path().join("stat")).ok()?, self.0)?;
            // Another user's may be closed to us.
            let io = fs::read_to_string(entry.path().join("io")).unwrap_or_default();
            Some((pid, ticks, bytes_of(&io)))
        });
        processes.collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = kill_process_group(self.0, Signal::KILL) {
            tracing::debug!(%error, "the group of a program had ended before it was killed");
        }
    }
}

/// The processor time in the text of `/proc/PID/stat`, its children's that were waited for included, of a process of this group.
fn ticks_of(stat: &str, group: Pid) -> Option<u64> {
    // Its name may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let is_of_group = fields.get(2)?.parse() == Ok(group.as_raw_nonzero().get());
    let ticks = fields
        .get(11..15)?
        .iter()
        .filter_map(|field| field.parse::<u64>().ok());
    is_of_group.then(|| ticks.sum())
}

fn bytes_of(io: &str) -> u64 {
    let lines = io.lines().filter_map(|line| line.split_once(": "));
    let moved = lines.filter(|(name, _)| ["rchar", "wchar"].contains(name));
    moved
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum()
}

/// Comes back when nothing has advanced for as long as was to be waited. Counted in looks: a host that slept is not held against it.
async fn until_stuck(run: &ProgramRun, group: Option<&Group>) {
    let Some(group) = group else {
        return std::future::pending().await;
    };
    let step = run.patience / LOOKS;
    let used = || (group.used(), run.elsewhere.seen());
    let (mut known, mut still) = (used(), 0);
    while still < LOOKS {
        tokio::time::sleep(step).await;
        let now = used();
        still = if now == known { still + 1 } else { 0 };
        known = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_process_has_used() {
        let stat = "41 (a) b) S 1 40 40 0 -1 4194560 9 8 7 6 10 20 3 4 20 0 1 0 5 1000";
        let group = |number| Pid::from_raw(number).unwrap();
        assert_eq!(ticks_of(stat, group(40)), Some(37));
        assert_eq!(ticks_of(stat, group(41)), None);
        let io = "rchar: 100\nwchar: 20\nsyscr: 3\nread_bytes: 4096\n";
        assert_eq!(bytes_of(io), 120);
        assert_eq!(bytes_of(""), 0);
    }

    #[test]
    fn reads_the_numbers_of_users() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\npostgres:x:104:113::/var/lib:/bin/bash\n";
        assert_eq!(user_number(passwd, "postgres"), Some(104));
        assert_eq!(user_number(passwd, "post"), None);
    }
}
