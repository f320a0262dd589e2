//! What the facts mean.

use landfast_types::{Bytes, Cpu};

use crate::{Disk, Facts, Finding, Level, Needs, Port, Tier, tier};

/// Disk that must stay free for logs, the journal and uploads.
const DISK_FREE_MIN: u64 = 256 << 20;
/// Alerts of the applications begin at 90 % full.
const DISK_FULL_PERCENT: u64 = 90;
const INODES_FREE_MIN: u64 = 10_000;
/// Every record of the journal waits for the disk: beyond these, rollouts are felt to be slow, or stand.
const SYNC_SLOW_MICROS: u64 = 50_000;
const SYNC_HOPELESS_MICROS: u64 = 2_000_000;
/// A proxy uses two for each request in flight, and the rest of the server some hundreds.
const DESCRIPTORS_MIN: u64 = 1_024;
const DESCRIPTORS_WANTED: u64 = 16_384;
/// What the proxy keeps of them (`landfast-proxy`, `descriptors`), roughly: its own part grows with the cores.
const DESCRIPTORS_OWN: u64 = 80;
const BACKENDS_PART: u64 = 11;
/// What firmware and kernel keep of the memory that was bought, in percent.
const MEMORY_KEPT_PERCENT: u64 = 6;
const MEMORY_AVAILABLE_PERCENT: u64 = 10;
/// 2025-01-01: a clock before this was never set.
const CLOCK_MIN_MICROS: i64 = 1_735_689_600_000_000;
const GB: u64 = 1_000_000_000;

/// Compares a host with what it must carry. In a fixed order; each check has a word of its own.
pub fn judge(facts: &Facts, needs: &Needs) -> Vec<Finding> {
    let mut all = vec![system(facts), processes(facts)];
    all.push(cpu(facts, needs));
    all.push(memory(facts, needs));
    match &facts.disk {
        Some(found) => all.extend(disk(found)),
        None => all.push(warn(
            "disk-space",
            "the file system of the state folder cannot be read",
            "look whether the folder of --state exists and may be read",
        )),
    }
    all.push(descriptors(facts, needs));
    all.extend(ports(facts, needs));
    all.push(clock(facts));
    all.push(user(facts));
    all.extend(
        facts
            .cgroups
            .iter()
            .map(|(name, found)| cgroup(name, found)),
    );
    all.extend(facts.landlock.as_ref().map(landlock));
    if let Some(users) = needs.users {
        all.extend(size(facts, users));
    }
    all
}

fn finding(check: &'static str, level: Level, measured: String, advice: &str) -> Finding {
    let advice = (level != Level::Ok).then(|| advice.to_owned());
    Finding {
        check,
        level,
        measured,
        advice,
    }
}

pub(crate) fn ok(check: &'static str, measured: impl Into<String>) -> Finding {
    finding(check, Level::Ok, measured.into(), "")
}

pub(crate) fn warn(check: &'static str, measured: impl Into<String>, advice: &str) -> Finding {
    finding(check, Level::Warn, measured.into(), advice)
}

pub(crate) fn fail(check: &'static str, measured: impl Into<String>, advice: &str) -> Finding {
    finding(check, Level::Fail, measured.into(), advice)
}

fn system(facts: &Facts) -> Finding {
    let os = facts.os.as_deref().unwrap_or("an unknown distribution");
    let kernel = facts.kernel.as_deref().unwrap_or("unknown");
    let measured = format!("{os}, Linux {kernel}");
    match facts.kernel.as_deref().and_then(version) {
        // 5.10 is the oldest kernel that distributions still look after.
        Some(version) if version < (5, 10) => warn(
            "system",
            measured,
            "use a distribution with Linux 5.10 or newer (Debian 11, Ubuntu 22.04, RHEL 9)",
        ),
        Some(_) | None => ok("system", measured),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn processes(facts: &Facts) -> Finding {
    if facts.has_pidfd {
        return ok("pidfd", "processes are signalled by pidfd");
    }
    fail(
        "pidfd",
        "the kernel has no pidfd",
        "use Linux 5.3 or newer: without it an instance cannot be ended for certain",
    )
}

fn cpu(facts: &Facts, needs: &Needs) -> Finding {
    let has = Cpu {
        millicores: facts.cores * 1_000,
    };
    let needed = Cpu {
        millicores: needs.cpu_millis,
    };
    let measured = format!("{} cores; {needed} promised by the manifest", facts.cores);
    if needs.cpu_millis > has.millicores {
        return fail(
            "cpu",
            measured,
            "use fewer replicas, smaller `resources.cpu`, or a larger host",
        );
    }
    ok("cpu", measured)
}

fn memory(facts: &Facts, needs: &Needs) -> Finding {
    let Some(has) = facts.memory_bytes else {
        return warn("memory", "/proc/meminfo cannot be read", "mount /proc");
    };
    let available = facts.memory_available_bytes.unwrap_or(has);
    let measured = format!(
        "{} with {} available; {} promised by the manifest",
        Bytes(has),
        Bytes(available),
        Bytes(needs.memory_bytes)
    );
    if needs.memory_bytes > has {
        let advice = "use fewer replicas, smaller `resources.memory`, or a larger host";
        return fail("memory", measured, advice);
    }
    if available < has / 100 * MEMORY_AVAILABLE_PERCENT {
        let advice = "something uses nearly all of it: end it, or use a larger host";
        return warn("memory", measured, advice);
    }
    if !needs.unbounded.is_empty() {
        let advice = format!(
            "give {} `resources.memory`: what is not bounded cannot be counted, and may take all",
            needs.unbounded.join(", ")
        );
        return warn("memory", measured, &advice);
    }
    ok("memory", measured)
}

fn disk(disk: &Disk) -> Vec<Finding> {
    let Disk {
        path,
        bytes,
        free_bytes,
        ..
    } = disk;
    let measured = format!(
        "`{path}` has {} of {} free",
        Bytes(*free_bytes),
        Bytes(*bytes)
    );
    let used = bytes - free_bytes.min(bytes);
    let space = if *free_bytes < DISK_FREE_MIN {
        let advice = format!(
            "make room ({} is the least), or move the state folder with --state",
            Bytes(DISK_FREE_MIN)
        );
        fail("disk-space", measured, &advice)
    } else if used > bytes / 100 * DISK_FULL_PERCENT {
        let advice = "make room before it is full: logs, old artifacts and volumes lie there";
        warn("disk-space", measured, advice)
    } else {
        ok("disk-space", measured)
    };
    let mut all = vec![space];
    if let Some(free) = disk.inodes_free {
        let measured = format!("{free} inodes free");
        all.push(if free < INODES_FREE_MIN {
            let advice = "remove small files, or make the file system anew with more inodes";
            warn("disk-inodes", measured, advice)
        } else {
            ok("disk-inodes", measured)
        });
    }
    if let Some(micros) = disk.sync_micros {
        let measured = format!(
            "{}.{:02} ms until 4 KiB are on disk (median of 7)",
            micros / 1_000,
            micros % 1_000 / 10
        );
        let advice = "the disk is slow or busy: every step of a rollout waits for it; use another for --state";
        all.push(match micros {
            SYNC_HOPELESS_MICROS.. => fail("disk-latency", measured, advice),
            SYNC_SLOW_MICROS.. => warn("disk-latency", measured, advice),
            0..SYNC_SLOW_MICROS => ok("disk-latency", measured),
        });
    }
    all
}

fn descriptors(facts: &Facts, needs: &Needs) -> Finding {
    let (soft, hard) = facts.descriptors;
    let text = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
    let mut measured = format!("{} open descriptors, at most {}", text(soft), text(hard));
    let max = hard.unwrap_or(u64::MAX);
    if hard.is_some() {
        // The proxy raises its own limit to the hard one, and keeps some for itself and for the backends.
        let clients = (max - max / BACKENDS_PART).saturating_sub(DESCRIPTORS_OWN);
        measured +=
            &format!(": the proxy takes them all and serves about {clients} connections at a time");
    }
    let wanted = needs.descriptors.unwrap_or(0);
    let raise = format!(
        "raise the hard limit of the server (`LimitNOFILE=` of its unit, or limits.conf) to {} or more: \
         each client takes one, each request in flight another, and who comes when all are taken is refused (503)",
        DESCRIPTORS_WANTED.max(wanted)
    );
    if max < DESCRIPTORS_MIN {
        return fail("descriptors", measured, &raise);
    }
    if max < DESCRIPTORS_WANTED.max(wanted) {
        return warn("descriptors", measured, &raise);
    }
    ok("descriptors", measured)
}

fn ports(facts: &Facts, needs: &Needs) -> Vec<Finding> {
    let mut all: Vec<_> = facts
        .ports
        .iter()
        .map(|(address, port)| match port {
            Port::Free => ok("port", format!("{address} is free")),
            Port::Denied => warn(
                "port",
                format!("{address} may not be bound by this user"),
                "run the server as root, or allow it (`sysctl net.ipv4.ip_unprivileged_port_start=80`); it listens \
                 on 8080 and 8443 else",
            ),
            Port::Taken(owner) => {
                let by = owner.as_deref().unwrap_or("somebody this user cannot see");
                fail(
                    "port",
                    format!("{address} is taken by {by}"),
                    "end it, or choose other ports with `landfast server --http --https`",
                )
            }
        })
        .collect();
    if let (Some((from, to)), Some((first, last))) = (facts.ephemeral_ports, needs.ports) {
        let measured = format!("outgoing connections use {from}–{to}, instances {first}–{last}");
        all.push(if from <= last && first <= to {
            let advice = format!(
                "keep them apart (`sysctl net.ipv4.ip_local_port_range='32768 60999'`), or a connection takes an \
                 instance's port now and then; the range of instances is {first}–{last}"
            );
            warn("port-ranges", measured, &advice)
        } else {
            ok("port-ranges", measured)
        });
    }
    all
}

fn clock(facts: &Facts) -> Finding {
    let advice = "run chrony or systemd-timesyncd: certificates, cron lines and histories depend on the clock";
    if facts.clock_micros < CLOCK_MIN_MICROS {
        return fail("clock", "the clock was never set", advice);
    }
    match facts.clock_is_synchronized {
        Some(true) => ok("clock", "the clock is kept right"),
        Some(false) => warn("clock", "nothing keeps the clock right", advice),
        None => warn(
            "clock",
            "whether the clock is kept right cannot be seen",
            advice,
        ),
    }
}

fn user(facts: &Facts) -> Finding {
    if facts.is_root {
        return ok("user", "root: instances run as users of their own");
    }
    warn(
        "user",
        "not root: instances run as this user",
        "run the server as root to give each app a user of its own",
    )
}

fn cgroup(name: &str, found: &Result<String, String>) -> Finding {
    let check = match name {
        "memory" => "cgroup-memory",
        "cpu" => "cgroup-cpu",
        _ => "cgroup-pids",
    };
    match found {
        Ok(version) => ok(check, format!("limited by {version}")),
        Err(reason) => warn(
            check,
            reason.clone(),
            "run the server as root on a host with cgroup v2 (the default of systemd 247 and newer), or in a unit with \
             `Delegate=yes`; until then a weaker limit takes its place, or none",
        ),
    }
}

fn landlock(found: &Result<u32, String>) -> Finding {
    match found {
        Ok(abi) => ok(
            "landlock",
            format!("ABI {abi}: instances reach only their own files"),
        ),
        Err(reason) => warn(
            "landlock",
            reason.clone(),
            "use Linux 5.13 or newer with `landlock` in the boot option `lsm=`; until then only permissions protect files",
        ),
    }
}

fn size(facts: &Facts, users: u64) -> Vec<Finding> {
    let size = tier(users);
    let Tier {
        cores,
        memory_gb,
        disk_gb,
        hosts,
        ..
    } = size;
    let largest = if users > size.users {
        format!(", the largest size known, made for {}", size.users)
    } else {
        String::new()
    };
    let advice = format!(
        "for {users} users at one time plan {hosts} host(s) of {cores} cores, {memory_gb} GB memory and {disk_gb} GB \
         disk{largest}; then measure with your own load"
    );
    let compare = |check, what: &str, has: Option<u64>, wants: u64, tolerance: u64| {
        let Some(has) = has else {
            return warn(check, format!("{what}: not known"), &advice);
        };
        let measured = format!("{has} {what}; {wants} wanted for {users} users");
        if has * 100 < wants * (100 - tolerance) {
            warn(check, measured, &advice)
        } else {
            ok(check, measured)
        }
    };
    let memory = facts.memory_bytes.map(|bytes| (bytes + GB / 2) / GB);
    let disk = facts.disk.as_ref().map(|disk| (disk.bytes + GB / 2) / GB);
    let mut all = vec![
        compare("size-cpu", "cores", Some(facts.cores), cores, 0),
        compare(
            "size-memory",
            "GB memory",
            memory,
            memory_gb,
            MEMORY_KEPT_PERCENT,
        ),
        compare("size-disk", "GB disk", disk, disk_gb, MEMORY_KEPT_PERCENT),
    ];
    if let Some(wanted) = size.network_mbps {
        all.push(compare(
            "size-network",
            "Mbit/s",
            facts.network_mbps,
            wanted,
            0,
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which nothing is to be said.
    fn good() -> Facts {
        Facts {
            os: Some("Debian GNU/Linux 12 (bookworm)".into()),
            kernel: Some("6.1.0-28-amd64".into()),
            cores: 4,
            memory_bytes: Some(16 * GB),
            memory_available_bytes: Some(12 * GB),
            disk: Some(Disk {
                path: "/var/lib/landfast".into(),
                bytes: 500 * GB,
                free_bytes: 400 * GB,
                inodes_free: Some(1_000_000),
                sync_micros: Some(900),
            }),
            network_mbps: Some(1_000),
            descriptors: (Some(1_024), Some(524_288)),
            is_root: true,
            cgroups: vec![("memory", Ok("cgroup v2".into()))],
            landlock: Some(Ok(2)),
            has_pidfd: true,
            clock_is_synchronized: Some(true),
            clock_micros: CLOCK_MIN_MICROS,
            ephemeral_ports: Some((32_768, 60_999)),
            ports: vec![("0.0.0.0:80".parse().unwrap(), Port::Free)],
        }
    }

    fn needs() -> Needs {
        Needs {
            users: Some(300),
            instances: 3,
            memory_bytes: 1 << 30,
            cpu_millis: 1_500,
            ports: Some((20_000, 29_999)),
            ..Needs::default()
        }
    }

    /// What is not well: `check level`.
    fn troubles(facts: &Facts, needs: &Needs) -> Vec<String> {
        let all = judge(facts, needs);
        for one in &all {
            assert_eq!(one.advice.is_some(), one.level != Level::Ok, "{one:?}");
        }
        let troubles = all.iter().filter(|one| one.level != Level::Ok);
        troubles
            .map(|one| format!("{} {:?}", one.check, one.level))
            .collect()
    }

    #[test]
    fn says_nothing_against_a_host_that_is_well() {
        assert_eq!(troubles(&good(), &needs()), Vec::<String>::new());
        assert!(judge(&good(), &needs()).len() >= 15);
    }

    #[test]
    fn each_fact_that_is_not_well_has_its_own_word() {
        type Change = fn(&mut Facts);
        let table: &[(Change, &[&str])] = &[
            (|f| f.kernel = Some("4.18.0".into()), &["system Warn"]),
            (|f| f.has_pidfd = false, &["pidfd Fail"]),
            (|f| f.cores = 1, &["cpu Fail", "size-cpu Warn"]),
            (
                |f| f.memory_bytes = Some(1 << 29),
                &["memory Fail", "size-memory Warn"],
            ),
            (|f| f.memory_available_bytes = Some(GB), &["memory Warn"]),
            (
                |f| f.disk.as_mut().unwrap().free_bytes = 1 << 20,
                &["disk-space Fail"],
            ),
            (
                |f| f.disk.as_mut().unwrap().free_bytes = 40 * GB,
                &["disk-space Warn"],
            ),
            (
                |f| f.disk.as_mut().unwrap().inodes_free = Some(3),
                &["disk-inodes Warn"],
            ),
            (
                |f| f.disk.as_mut().unwrap().sync_micros = Some(80_000),
                &["disk-latency Warn"],
            ),
            (
                |f| f.disk.as_mut().unwrap().sync_micros = Some(3_000_000),
                &["disk-latency Fail"],
            ),
            (|f| f.disk = None, &["disk-space Warn", "size-disk Warn"]),
            (|f| f.descriptors.1 = Some(512), &["descriptors Fail"]),
            (|f| f.descriptors.1 = Some(4_096), &["descriptors Warn"]),
            (|f| f.ports[0].1 = Port::Denied, &["port Warn"]),
            (|f| f.ports[0].1 = Port::Taken(None), &["port Fail"]),
            (
                |f| f.ephemeral_ports = Some((1_024, 65_535)),
                &["port-ranges Warn"],
            ),
            (|f| f.clock_micros = 0, &["clock Fail"]),
            (|f| f.clock_is_synchronized = Some(false), &["clock Warn"]),
            (|f| f.is_root = false, &["user Warn"]),
            (
                |f| f.cgroups[0].1 = Err("no".into()),
                &["cgroup-memory Warn"],
            ),
            (|f| f.landlock = Some(Err("no".into())), &["landlock Warn"]),
            (|f| f.network_mbps = Some(100), &["size-network Warn"]),
        ];
        for (number, (change, expected)) in table.iter().enumerate() {
            let mut facts = good();
            change(&mut facts);
            assert_eq!(troubles(&facts, &needs()), *expected, "row {number}");
        }
    }

    #[test]
    fn a_manifest_that_asks_for_more_than_there_is_fails() {
        let more = Needs {
            memory_bytes: 17 * GB,
            cpu_millis: 4_001,
            descriptors: Some(1_000_000),
            ..needs()
        };
        let troubles = troubles(&good(), &more);
        assert_eq!(troubles, ["cpu Fail", "memory Fail", "descriptors Warn"]);
        let unbounded = Needs {
            unbounded: vec!["api".into()],
            ..needs()
        };
        let all = judge(&good(), &unbounded);
        let memory = all.iter().find(|one| one.check == "memory").unwrap();
        assert!(
            memory
                .advice
                .as_ref()
                .unwrap()
                .contains("give api `resources.memory`")
        );
    }

    #[test]
    fn sizes_are_those_of_the_tables_and_grow_with_the_users() {
        assert_eq!(tier(5).cores, 2);
        assert_eq!((tier(300).cores, tier(300).memory_gb), (4, 16));
        assert_eq!((tier(1_000).cores, tier(1_000).memory_gb), (8, 32));
        assert_eq!(tier(1_000_000).users, 10_000);
        let grows = |pair: &[Tier]| {
            pair[0].users < pair[1].users
                && pair[0].cores <= pair[1].cores
                && pair[0].memory_gb <= pair[1].memory_gb
                && pair[0].disk_gb <= pair[1].disk_gb
        };
        assert!(crate::TIERS.windows(2).all(grows));
    }
}
