//! What the Docker target costs, and how soon it answers a container's death.

use std::{collections::BTreeSet, thread::sleep, time::Duration};

use anyhow::{Context as _, ensure};
use landfast_testbed::Dockerd;

use crate::live::{
    App, AppSettings, Build, Content, Events, Host, HostSettings, flextime_image, instant,
    is_short, kill, now_micros, proportional_kib, resident_kib, wait_until,
};

const CONTAINERS: u32 = 50;
const DEATHS: usize = 20;
const GROWN_MAX_KIB: u64 = 10 * 1024;
const REACTED_MAX: i64 = 1_000_000;
/// Whoever has served this long is replaced at once; sooner it would be a crash loop, with its back-off.
const SERVED_WELL: Duration = Duration::from_secs(31);
/// Between two looks at the routing table.
const LOOK: Duration = Duration::from_millis(5);
const SAMPLES: usize = 15;

/// 50 containers: memory of the server; then 20 of them die, one after the other.
pub(crate) fn docker_overhead(build: &Build) -> anyhow::Result<()> {
    let docker = Dockerd::start().context("no Docker engine can be started here")?;
    let settings = HostSettings {
        docker: Some(docker.address()),
        ..HostSettings::default()
    };
    let host = Host::start(build, "overhead", settings)?;
    let image = flextime_image(&docker, build, 1, &host.folder)?;
    let server = host.server_pid().context("the server runs")?;
    let before = Weight::of(server);
    println!("  before any app: {before}");
    let settings = AppSettings {
        replicas: 1,
        content: Content::Image(image),
        gates: r#"["preflight"]"#.to_owned(),
        progress: "10m".into(),
        ..AppSettings::default()
    };
    let app = App::new(&host, build, settings)?;
    ensure!(
        app.deploy(&host, "rolling", "seal")? == 0,
        "the deploy failed"
    );
    let one = Weight::of(server);
    println!("  with 1 container: {one}");
    let count = CONTAINERS.to_string();
    let scaled = host.cli(&app.folder, &app.arguments(&["scale", "api", &count]))?;
    let said = String::from_utf8_lossy(&scaled.stderr);
    ensure!(scaled.status.success(), "{said}");
    wait_until("50 containers serve", Duration::from_secs(300), || {
        is_serving(&host, CONTAINERS as usize)
    })?;
    let served = instant();
    let all = Weight::of(server);
    println!("  with {CONTAINERS} containers: {all}");

    let events = Events::listen(&docker, host.folder.join("docker-events"))?;
    sleep(SERVED_WELL.saturating_sub(served.elapsed()));
    let deaths = if is_short() { 5 } else { DEATHS };
    let reactions = die(&docker, &host, &events, deaths)?;
    let after = Weight::of(server);
    println!("  after {deaths} deaths: {after}");

    let grown = all.resident.saturating_sub(before.resident);
    println!(
        "figure: the server's RSS grows by {} with {CONTAINERS} containers (PSS by {}, of memory that is no file's {}; from the first container to the last by {})",
        megabytes(grown),
        megabytes(all.proportional.saturating_sub(before.proportional)),
        megabytes(all.anonymous.saturating_sub(before.anonymous)),
        megabytes(all.resident.saturating_sub(one.resident)),
    );
    let kill_to = |of: fn(&Reaction) -> i64| spread(reactions.iter().map(of).collect());
    println!(
        "figure: {deaths} deaths, worst (median): from the kill to the daemon's event {}, to the routing table without the instance {}, to the replacement's container made {} and started {}, to the replacement in the routing table {}; from the daemon's event to the table without it {}, to the replacement made {}",
        kill_to(|r| r.died),
        kill_to(|r| r.unrouted),
        kill_to(|r| r.made),
        kill_to(|r| r.started),
        kill_to(|r| r.served),
        kill_to(|r| r.unrouted - r.died),
        kill_to(|r| r.made - r.died),
    );
    ensure!(
        grown < GROWN_MAX_KIB,
        "it grew by {} or more",
        megabytes(GROWN_MAX_KIB)
    );
    let slow = |r: &&Reaction| r.unrouted >= REACTED_MAX || r.made >= REACTED_MAX;
    let slow = reactions.iter().filter(slow).count();
    ensure!(slow == 0, "{slow} of {deaths} took a second or more");
    Ok(())
}

/// Microseconds from the kill of a container's first process.
#[derive(Debug)]
struct Reaction {
    /// To the daemon's own event.
    died: i64,
    /// To a routing table without the instance.
    unrouted: i64,
    /// To the replacement's container, by the daemon's events.
    made: i64,
    started: i64,
    /// To a routing table with the replacement.
    served: i64,
}

fn die(
    docker: &Dockerd,
    host: &Host,
    events: &Events,
    count: usize,
) -> anyhow::Result<Vec<Reaction>> {
    let format = r#"{{.ID}} {{.Label "dev.landfast.instance"}}"#;
    let listed = docker.docker(&["ps", "--no-trunc", "--format", format])?;
    let mut victims: Vec<_> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    victims.sort_by_key(|(_, instance)| instance.to_owned());
    ensure!(victims.len() >= count, "{} containers run", victims.len());
    let mut reactions = Vec::new();
    for (container, instance) in victims.into_iter().take(count) {
        let pid = docker.docker(&["inspect", "--format", "{{.State.Pid}}", container])?;
        let before = host.routed()?;
        let begun = now_micros();
        kill(pid.parse().context("the daemon names no process")?);
        let unrouted = since(begun, "a table without it", || {
            host.routed().is_ok_and(|routed| !routed.contains(instance))
        })?;
        let served = since(begun, "the replacement serves", || {
            let is_new = |routed: BTreeSet<String>| routed.difference(&before).next().is_some();
            host.routed().is_ok_and(is_new)
        })?;
        let told = |action: &str, is_it: &dyn Fn(&str, &str) -> bool| {
            let mut found = None;
            wait_until("the daemon tells it", Duration::from_secs(20), || {
                let first = events.first(action, begun, |event| is_it(&event.id, &event.instance));
                found = first.ok().flatten();
                found.is_some()
            })?;
            let at = found.map_or(i64::MAX, |event| event.at);
            anyhow::Ok(at - begun)
        };
        let is_new = |id: &str, name: &str| id != container && name != instance;
        let reaction = Reaction {
            died: told("die", &|id, _| id == container)?,
            unrouted,
            made: told("create", &is_new)?,
            started: told("start", &is_new)?,
            served,
        };
        println!(
            "  {instance}: event {} ms, unrouted {} ms, replacement made {} ms, started {} ms, serves {} ms",
            reaction.died / 1_000,
            reaction.unrouted / 1_000,
            reaction.made / 1_000,
            reaction.started / 1_000,
            reaction.served / 1_000
        );
        reactions.push(reaction);
        // What the dead one left is removed meanwhile; each is to be seen by itself.
        sleep(Duration::from_secs(1));
    }
    Ok(reactions)
}

/// Microseconds from an instant until something holds.
fn since(begun: i64, what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<i64> {
    while !holds() {
        ensure!(now_micros() - begun < 60_000_000, "{what}: not within 60 s");
        sleep(LOOK);
    }
    Ok(now_micros() - begun)
}

fn is_serving(host: &Host, count: usize) -> bool {
    host.routed().is_ok_and(|routed| routed.len() == count)
}

/// Worst and median, in milliseconds.
fn spread(mut micros: Vec<i64>) -> String {
    micros.sort_unstable();
    let worst = micros.last().copied().unwrap_or_default();
    let median = micros.get(micros.len() / 2).copied().unwrap_or_default();
    format!("{} ms ({})", worst / 1_000, median / 1_000)
}

/// Medians of what a process weighs, in KiB.
#[derive(Debug, Clone, Copy)]
struct Weight {
    resident: u64,
    anonymous: u64,
    proportional: u64,
}

impl Weight {
    /// Once it is at rest.
    fn of(pid: u32) -> Self {
        sleep(Duration::from_secs(if is_short() { 10 } else { 20 }));
        let mut samples: [Vec<u64>; 3] = Default::default();
        for _ in 0..SAMPLES {
            let (resident, anonymous) = resident_kib(pid);
            for (samples, now) in
                samples
                    .iter_mut()
                    .zip([resident, anonymous, proportional_kib(pid)])
            {
                samples.push(now);
            }
            sleep(Duration::from_millis(500));
        }
        let [resident, anonymous, proportional] = samples.map(|mut samples| {
            samples.sort_unstable();
            samples[SAMPLES / 2]
        });
        Self {
            resident,
            anonymous,
            proportional,
        }
    }
}

impl std::fmt::Display for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RSS {} (of no file {}), PSS {}",
            megabytes(self.resident),
            megabytes(self.anonymous),
            megabytes(self.proportional)
        )
    }
}

fn megabytes(kib: u64) -> String {
    format!("{:.1} MB", kib as f64 / 1024.0)
}
