//! The daemon that containers run on: what of it keeps the promises, and what does not. Pure.

use landfast_types::Bytes;

use crate::{
    Disk, Finding,
    judge::{fail, ok, warn},
};

/// Images and what containers write need more than this.
const FREE_MIN: u64 = 2 << 30;
const FULL_PERCENT: u64 = 90;

/// What is known of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Docker {
    /// The server was told to use none, or found none.
    Off,
    /// It does not answer: what and where, and why.
    Away {
        what: String,
        reason: String,
    },
    Answers(DockerFacts),
}

/// What a daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DockerFacts {
    /// `Docker 28.1 at unix:///var/run/docker.sock`.
    pub what: String,
    /// The version of its API that is spoken.
    pub api_version: String,
    /// `overlay2`.
    pub storage_driver: String,
    /// `1` or `2`; empty where it does not say.
    pub cgroup_version: String,
    /// Containers go on when the daemon ends.
    pub has_live_restore: bool,
    /// Limits that it cannot hold containers to: `memory`, `cpu`, `pids`.
    pub lacks: Vec<String>,
    /// The name of its host, when that is another one than the server's.
    pub elsewhere: Option<String>,
    /// Where it keeps images and containers, when that is on this host.
    pub data: Option<Disk>,
}

/// What is right with it, and what to do about the rest. `is_needed`: the manifest has containers.
pub fn judge_docker(docker: &Docker, is_needed: bool) -> Vec<Finding> {
    match docker {
        Docker::Off if is_needed => vec![fail(
            "docker",
            "the manifest has containers, and the server uses no Docker",
            "install it (Debian: docker.io), or name one with `landfast server --docker ADDRESS`",
        )],
        Docker::Off => Vec::new(),
        Docker::Away { what, reason } => {
            let measured = format!("{what} does not answer: {reason}");
            let advice =
                "start it, or correct --docker; containers that run keep their traffic meanwhile";
            vec![match is_needed {
                true => fail("docker", measured, advice),
                false => warn("docker", measured, advice),
            }]
        }
        Docker::Answers(facts) => of_facts(facts),
    }
}

fn of_facts(facts: &DockerFacts) -> Vec<Finding> {
    let mut all = vec![ok(
        "docker",
        format!("{}, API {}", facts.what, facts.api_version),
    )];
    if let Some(host) = &facts.elsewhere {
        all.push(warn(
            "docker-host",
            format!("the daemon is of another host, `{host}`: the proxy reaches containers only where their networks are routed to here, and folders and secrets are mounted only where both hosts have them at the same paths"),
            "run `landfast server` on the daemon's own host, and reach that one with `landfast --host ssh://…`",
        ));
    }
    all.push(match facts.has_live_restore {
        true => ok("docker-live-restore", "containers outlive the daemon"),
        false => warn(
            "docker-live-restore",
            "live-restore is off: when the daemon ends, every container ends with it",
            "write \"live-restore\": true into /etc/docker/daemon.json, then `systemctl reload docker`",
        ),
    });
    let driver = &facts.storage_driver;
    all.push(match driver.as_str() {
        "vfs" => warn(
            "docker-storage",
            "the storage driver is vfs, which copies every layer for every container",
            "use overlay2: a file system with d_type, and a kernel with overlayfs",
        ),
        "devicemapper" | "aufs" => warn(
            "docker-storage",
            format!("the storage driver is {driver}, which Docker has dropped"),
            "use overlay2: images are pulled again by their digests",
        ),
        _ => ok("docker-storage", format!("the storage driver is {driver}")),
    });
    let version = match facts.cgroup_version.as_str() {
        "" => "cgroups".to_owned(),
        version => format!("cgroup v{version}"),
    };
    all.push(match facts.lacks.is_empty() {
        true => ok(
            "docker-limits",
            format!("memory, cpu and pids by {version}"),
        ),
        false => warn(
            "docker-limits",
            format!("{version} without {}", facts.lacks.join(", ")),
            "what `resources` says of these is not held to: enable the controllers in the kernel",
        ),
    });
    all.extend(facts.data.as_ref().map(room));
    all
}

fn room(disk: &Disk) -> Finding {
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
    let advice = "`docker system df` says what lies there; of its own images Landfast keeps the last five of each service";
    let used = bytes - free_bytes.min(bytes);
    if *free_bytes < FREE_MIN {
        return fail("docker-disk", measured, advice);
    }
    match used > bytes / 100 * FULL_PERCENT {
        true => warn("docker-disk", measured, advice),
        false => ok("docker-disk", measured),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    fn levels(docker: &Docker, is_needed: bool) -> Vec<(&'static str, Level)> {
        let findings = judge_docker(docker, is_needed);
        for one in &findings {
            assert_eq!(one.level == Level::Ok, one.advice.is_none(), "{one:?}");
        }
        findings.iter().map(|one| (one.check, one.level)).collect()
    }

    fn sound() -> DockerFacts {
        DockerFacts {
            what: "Docker 28.1 at unix:///var/run/docker.sock".into(),
            api_version: "1.49".into(),
            storage_driver: "overlay2".into(),
            cgroup_version: "2".into(),
            has_live_restore: true,
            lacks: Vec::new(),
            elsewhere: None,
            data: Some(Disk {
                path: "/var/lib/docker".into(),
                bytes: 100 << 30,
                free_bytes: 50 << 30,
                ..Disk::default()
            }),
        }
    }

    #[test]
    fn a_daemon_is_missed_where_something_needs_it() {
        assert_eq!(levels(&Docker::Off, false), []);
        assert_eq!(levels(&Docker::Off, true), [("docker", Level::Fail)]);
        let away = Docker::Away {
            what: "Docker at unix:///x".into(),
            reason: "nobody listens".into(),
        };
        assert_eq!(levels(&away, false), [("docker", Level::Warn)]);
        assert_eq!(levels(&away, true), [("docker", Level::Fail)]);
    }

    #[test]
    fn what_breaks_a_promise_is_named() {
        let all = levels(&Docker::Answers(sound()), true);
        assert!(all.iter().all(|(_, level)| *level == Level::Ok), "{all:?}");
        let mut bad = sound();
        bad.has_live_restore = false;
        bad.storage_driver = "vfs".into();
        bad.lacks = vec!["pids".into()];
        if let Some(disk) = &mut bad.data {
            disk.free_bytes = 1 << 30;
        }
        let found = levels(&Docker::Answers(bad), true);
        let expected = [
            ("docker", Level::Ok),
            ("docker-live-restore", Level::Warn),
            ("docker-storage", Level::Warn),
            ("docker-limits", Level::Warn),
            ("docker-disk", Level::Fail),
        ];
        assert_eq!(found, expected);
        let mut far = sound();
        far.elsewhere = Some("other".into());
        let found = levels(&Docker::Answers(far), true);
        assert!(found.contains(&("docker-host", Level::Warn)), "{found:?}");
    }
}
