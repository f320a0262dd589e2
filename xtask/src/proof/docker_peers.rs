//! A rolling update of the same app by Landfast, by docker-compose behind nginx, and by Docker Swarm, under the same load
//! and before the same judge. What the peers are told lies in the folder `docker_peers`.

mod peers;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use landfast_testbed::{Dockerd, DockerdOptions};
use serde_json::Value;

use self::peers::{Compose, Landfast, Swarm};
use crate::live::{
    Build, Events, Judge, JudgeSettings, Judged, Verdict, flextime_image, is_short, now_micros,
    scratch, wait_until,
};

/// The host that is asked for.
const HOST: &str = "api.flextime.example";
const REPLICAS: usize = 3;
/// Ours may take so much longer than the faster peer.
const RATIO_MAX: f64 = 1.1;
/// Whoever is still there is waited for so long.
const GONE_WAIT_MAX: Duration = Duration::from_secs(120);
/// A turn in which the judge fell behind is played again, so often in all.
const TRIES: u32 = 3;

/// Who deploys, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    /// All three beside the old three, as docker-compose does it.
    LandfastAtOnce,
    /// One after the other, as Swarm does it.
    LandfastOneByOne,
    /// With `min_ready` and what else there is left as it is by default.
    LandfastDefaults,
    ComposeUp,
    ComposeNewFirst,
    Swarm,
}

impl Contender {
    const ALL: [Self; 6] = [
        Self::LandfastAtOnce,
        Self::ComposeUp,
        Self::LandfastOneByOne,
        Self::Swarm,
        Self::LandfastDefaults,
        Self::ComposeNewFirst,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::LandfastAtOnce => "landfast, max_surge 3",
            Self::LandfastOneByOne => "landfast, one by one",
            Self::LandfastDefaults => "landfast, defaults",
            Self::ComposeUp => "docker-compose up",
            Self::ComposeNewFirst => "docker-compose, new first",
            Self::Swarm => "swarm",
        }
    }

    fn is_ours(self) -> bool {
        match self {
            Self::LandfastAtOnce | Self::LandfastOneByOne | Self::LandfastDefaults => true,
            Self::ComposeUp | Self::ComposeNewFirst | Self::Swarm => false,
        }
    }
}

/// An app that serves its first release and can be given another.
trait Peer {
    fn address(&self) -> SocketAddr;
    fn receipts(&self) -> PathBuf;
    /// Everything a person orders for a deploy; returns when the last order has.
    fn deploy(&mut self, release: u64) -> anyhow::Result<()>;
}

/// What one deploy cost. Times in microseconds from its first order.
struct Turn {
    /// Until the last order returned.
    ordered: i64,
    /// Until every answer was of the new release.
    renewed: i64,
    /// Until the last container of the old release had ended.
    gone: i64,
    verdict: Verdict,
}

impl Turn {
    /// A deploy is over when the orders have returned and nobody is answered by the old release or not at all.
    fn took(&self) -> i64 {
        self.ordered.max(self.renewed)
    }
}

/// Everybody in turn, a few rounds.
pub(crate) fn docker_peers(build: &Build) -> anyhow::Result<()> {
    let rounds = if is_short() { 1 } else { 3 };
    let only = std::env::var("LANDFAST_ONLY").unwrap_or_default();
    let mut turns: BTreeMap<Contender, Vec<Turn>> = BTreeMap::new();
    let mut absent: BTreeMap<Contender, String> = BTreeMap::new();
    for round in 0..rounds {
        for place in 0..Contender::ALL.len() {
            // Nobody is always the first, or always after the same.
            let contender = Contender::ALL[(place + round) % Contender::ALL.len()];
            if absent.contains_key(&contender) || !contender.name().contains(&only) {
                continue;
            }
            match valid_turn(build, contender).context(contender.name())? {
                Played::Turn(turn) => {
                    println!("  {}: {}", contender.name(), describe(&turn));
                    turns.entry(contender).or_default().push(*turn);
                }
                Played::Absent(reason) => {
                    println!("  {} cannot run here: {reason}", contender.name());
                    absent.insert(contender, reason);
                }
                Played::JudgeBehind(why) => {
                    bail!("the judge fell behind in each of {TRIES} tries, the last time {why}")
                }
            }
        }
    }
    summarise(&turns, &absent)
}

/// What came of a turn.
enum Played {
    Turn(Box<Turn>),
    /// A Swarm cannot run here, and why.
    Absent(String),
    /// The judge had no time to measure: the turn shows nothing.
    JudgeBehind(String),
}

/// A turn that shows something, on a machine that may be busy now and then.
fn valid_turn(build: &Build, contender: Contender) -> anyhow::Result<Played> {
    for _ in 1..TRIES {
        match turn(build, contender)? {
            Played::JudgeBehind(why) => {
                println!("  {}: again, the judge fell behind {why}", contender.name());
            }
            played @ (Played::Turn(_) | Played::Absent(_)) => return Ok(played),
        }
    }
    turn(build, contender)
}

fn turn(build: &Build, contender: Contender) -> anyhow::Result<Played> {
    let folder = Scratch(scratch("peers")?);
    let docker = Dockerd::start_with(DockerdOptions {
        // Swarm and live-restore exclude each other.
        live_restore: contender != Contender::Swarm,
        ..DockerdOptions::default()
    });
    let docker = docker.context("no Docker engine can be started here")?;
    for release in [1, 2] {
        flextime_image(&docker, build, release, &folder.0)?;
    }
    let mut peer: Box<dyn Peer + '_> = match contender {
        Contender::LandfastAtOnce => {
            Box::new(Landfast::start(build, &docker, "1s", "max_surge = 3")?)
        }
        Contender::LandfastOneByOne => Box::new(Landfast::start(build, &docker, "1s", "")?),
        Contender::LandfastDefaults => Box::new(Landfast::start(build, &docker, "10s", "")?),
        Contender::ComposeUp => Box::new(Compose::start(&docker, &folder.0, false)?),
        Contender::ComposeNewFirst => Box::new(Compose::start(&docker, &folder.0, true)?),
        Contender::Swarm => match Swarm::start(&docker, &folder.0) {
            Ok(swarm) => Box::new(swarm),
            Err(error) => return Ok(Played::Absent(format!("{error:#}"))),
        },
    };
    let address = peer.address();
    wait_until("the first release answers", Duration::from_secs(60), || {
        version(address).as_deref() == Some("1")
    })?;
    let old = docker.docker(&[
        "ps",
        "--no-trunc",
        "--filter",
        "ancestor=flextime:1",
        "--format",
        "{{.ID}}",
    ])?;
    let old: Vec<&str> = old.lines().collect();
    ensure!(
        old.len() == REPLICAS,
        "{} containers of the first release run",
        old.len()
    );
    let events = Events::listen(&docker, folder.0.join("events"))?;
    let judged = Judged {
        address,
        host: HOST.to_owned(),
        receipts: peer.receipts(),
        folder: folder.0.clone(),
    };
    let load = JudgeSettings {
        rate: 200,
        websockets: 50,
        events: 10,
        // Nginx of Debian 12 takes HTTP/2 over TLS only where it takes HTTP/1.1 too.
        http2: 0,
        ..JudgeSettings::default()
    };
    let judge = Judge::of(build, &judged, &load)?;
    sleep(Duration::from_secs(3));
    let watcher = Watcher::start(address);
    sleep(Duration::from_secs(1));
    let begun = now_micros();
    peer.deploy(2)?;
    let ordered = now_micros() - begun;
    let mut ends = Vec::new();
    wait_until("all of the old release have ended", GONE_WAIT_MAX, || {
        let all = events.all().unwrap_or_default();
        let died = all
            .into_iter()
            .filter(|event| event.action == "die" && old.contains(&event.id.as_str()));
        ends = died.map(|event| event.at - begun).collect();
        ends.len() == old.len()
    })?;
    sleep(Duration::from_secs(4));
    let renewed = watcher.renewed(begun)?;
    let verdict = judge.finish()?;
    if !verdict.is_valid() {
        let late = verdict.number("judge_late");
        return Ok(Played::JudgeBehind(format!("{late} times")));
    }
    Ok(Played::Turn(Box::new(Turn {
        ordered,
        renewed,
        gone: ends.into_iter().max().unwrap_or_default(),
        verdict,
    })))
}

/// A folder that goes with this value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Asks which release answers, twenty times a second.
struct Watcher {
    ended: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<(i64, Option<String>)>>,
}

impl Watcher {
    fn start(address: SocketAddr) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let mut seen = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let asked = now_micros();
                seen.push((asked, version(address)));
                sleep(Duration::from_millis(50));
            }
            seen
        });
        Self { ended, thread }
    }

    /// From when on every answer was of the second release.
    fn renewed(self, begun: i64) -> anyhow::Result<i64> {
        self.ended.store(true, Ordering::Relaxed);
        let seen = self.thread.join().map_err(|_| anyhow!("who asks died"))?;
        let is_old = |answer: &Option<String>| answer.as_deref() != Some("2");
        let last_old = seen.iter().rposition(|(_, answer)| is_old(answer));
        let first_new = seen.get(last_old.map_or(0, |last| last + 1));
        let (at, _) = first_new.context("the new release does not answer")?;
        Ok(at - begun)
    }
}

/// The release that answers; none when nobody does within a second.
fn version(address: SocketAddr) -> Option<String> {
    let wait = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, wait).ok()?;
    stream.set_read_timeout(Some(wait)).ok()?;
    let head = format!("GET /version HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    let body = body.get(body.find('{')?..=body.rfind('}')?)?;
    let said: Value = serde_json::from_str(body).ok()?;
    said["version"].as_str().map(str::to_owned)
}

fn describe(turn: &Turn) -> String {
    let verdict = &turn.verdict;
    format!(
        "{:.1} s (orders returned {:.1}, only the new release answers {:.1}, last old container ended {:.1}); {} requests, {} lost {}, {} of {} streams cut",
        seconds(turn.took()),
        seconds(turn.ordered),
        seconds(turn.renewed),
        seconds(turn.gone),
        verdict.number("requests"),
        verdict.lost(),
        kinds(verdict),
        verdict.cut(),
        verdict.number("streams_opened"),
    )
}

/// How requests were lost.
fn kinds(verdict: &Verdict) -> String {
    let reasons = verdict.0["lost_by_reason"].as_object();
    let named: Vec<_> = reasons
        .into_iter()
        .flatten()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    match named.is_empty() {
        true => String::new(),
        false => format!("({})", named.join(", ")),
    }
}

fn summarise(
    turns: &BTreeMap<Contender, Vec<Turn>>,
    absent: &BTreeMap<Contender, String>,
) -> anyhow::Result<()> {
    for (contender, turns) in turns {
        let sum = |of: fn(&Verdict) -> u64| turns.iter().map(|turn| of(&turn.verdict)).sum::<u64>();
        let lost = sum(Verdict::lost);
        println!(
            "figure: {}: {:.1} s (median of {}; last old container ended after {:.1} s), {lost} of {} requests lost, {} streams cut",
            contender.name(),
            seconds(median(turns.iter().map(Turn::took).collect())),
            turns.len(),
            seconds(median(turns.iter().map(|turn| turn.gone).collect())),
            sum(|verdict| verdict.number("requests")),
            sum(Verdict::cut),
        );
    }
    for (contender, reason) in absent {
        println!("figure: {} was not run: {reason}", contender.name());
    }
    let mut ratio_at_once = None;
    for (ours, own) in turns.iter().filter(|(contender, _)| contender.is_ours()) {
        let mut shown = Vec::new();
        for (theirs, their) in turns.iter().filter(|(contender, _)| !contender.is_ours()) {
            let ratio = ratio(own, |round| their.get(round).map(Turn::took));
            shown.push(format!("{} {ratio:.2}", theirs.name()));
        }
        let faster = ratio(own, |round| {
            let peers = turns.iter().filter(|(contender, _)| !contender.is_ours());
            peers
                .filter_map(|(_, turns)| turns.get(round).map(Turn::took))
                .min()
        });
        println!(
            "figure: {} ÷ the faster peer of each round: {faster:.2} ({})",
            ours.name(),
            shown.join(", ")
        );
        if *ours == Contender::LandfastAtOnce {
            ratio_at_once = Some(faster);
        }
    }
    let ours = turns.iter().filter(|(contender, _)| contender.is_ours());
    for (contender, turns) in ours {
        for turn in turns {
            ensure!(
                turn.verdict.lost() + turn.verdict.cut() == 0,
                "{} lost:\n{}",
                contender.name(),
                turn.verdict.samples()
            );
        }
    }
    let ratio = ratio_at_once.filter(|ratio| ratio.is_finite());
    let ratio = ratio.context("nobody was compared")?;
    ensure!(
        ratio <= RATIO_MAX,
        "ours took {ratio:.2} of the faster peer's time"
    );
    Ok(())
}

/// The median of the rounds' own ratios.
fn ratio(own: &[Turn], theirs: impl Fn(usize) -> Option<i64>) -> f64 {
    let ratios = own.iter().enumerate().filter_map(|(round, turn)| {
        let theirs = theirs(round)?;
        Some(turn.took() * 1_000 / theirs.max(1))
    });
    match ratios.collect::<Vec<_>>() {
        none if none.is_empty() => f64::NAN,
        ratios => median(ratios) as f64 / 1_000.0,
    }
}

fn median(mut values: Vec<i64>) -> i64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
