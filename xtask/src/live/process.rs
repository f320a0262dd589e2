//! Processes of a proof: found by what they were started with, ended by their number.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};

/// Microseconds since the epoch.
pub(crate) fn now_micros() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "proofs measure seconds")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as i64)
}

/// A monotonic instant.
pub(crate) fn instant() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "proofs measure seconds")]
    Instant::now()
}

/// Waits until something holds, or says what did not.
pub(crate) fn wait_until(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> bool,
) -> anyhow::Result<Duration> {
    let begun = instant();
    loop {
        if holds() {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        sleep(Duration::from_millis(20));
    }
}

/// Starts a process.
pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    let shown = format!("{command:?}");
    command
        .spawn()
        .with_context(|| format!("failed to start {shown}"))
}

/// The niceness of a session among the sessions of this host (`sched(7)`, "The autogroup feature"). Where the kernel has
/// none the processes share by their own niceness, and this does nothing.
pub(crate) fn share(leader: u32, niceness: i32) {
    // Until `setsid` has done its work this would be the session of the proof itself.
    let begun = instant();
    while session(leader) != Some(leader) {
        if begun.elapsed() > Duration::from_secs(1) {
            return;
        }
        sleep(Duration::from_millis(1));
    }
    let path = format!("/proc/{leader}/autogroup");
    // It may have ended.
    let _gone = fs::write(path, niceness.to_string());
}

/// The session of a process, by the number of its leader (`proc(5)`, field 6 of `stat`).
fn session(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit(')').next()?;
    after_name.split_whitespace().nth(3)?.parse().ok()
}

/// Sends SIGKILL.
pub(crate) fn kill(pid: u32) {
    signal(pid, "-KILL");
}

/// Sends a signal through the system's `kill`, so that this crate needs no unsafe code.
pub(crate) fn signal(pid: u32, name: &str) {
    let sent = super::command("kill")
        .args([name, &pid.to_string()])
        .stderr(std::process::Stdio::null())
        .status();
    if let Err(error) = sent {
        eprintln!("kill {name} {pid}: {error}");
    }
}

/// Whether any thread of a process runs. The first one may be a zombie while another still holds the descriptors:
/// whoever has thousands of connections takes a while to end.
pub(crate) fn is_alive(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let mut stats = tasks.flatten().map(|task| task.path().join("stat"));
    stats.any(|stat| {
        let stat = fs::read_to_string(stat).unwrap_or_default();
        let state = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().next());
        !matches!(state, None | Some("Z" | "X"))
    })
}

/// What a process weighs alone and as its part of what is shared (PSS), in KiB.
pub(crate) fn proportional_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// What a process has in memory (RSS), and how much of it is its own and no file's, in KiB.
pub(crate) fn resident_kib(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    (of("VmRSS:"), of("RssAnon:"))
}

/// The processor time the threads of a process took so far, in nanoseconds, from the scheduler's own account.
pub(crate) fn processor_nanos(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let nanos = tasks.into_iter().flatten().flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    nanos.sum()
}

/// Copies a file so that whoever runs the old one goes on undisturbed.
pub(crate) fn replace_file(from: &Path, to: &Path) -> anyhow::Result<()> {
    let beside = to.with_extension("new");
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, &beside).with_context(|| format!("failed to copy `{}`", from.display()))?;
    fs::rename(&beside, to).with_context(|| format!("failed to place `{}`", to.display()))
}
