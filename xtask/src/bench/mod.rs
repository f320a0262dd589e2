//! `cargo xtask bench`: the proxy beside nginx, HAProxy and Caddy in one run.
//!
//! The proxy under test has core 0, load and backend have core 1. Processor time comes from the scheduler's account of
//! the proxy's whole process tree. Peers alternate inside a round, and figures are medians of the ratios within each
//! round, so that a machine that is slower for a while is slower for all. What they all do is in [`peers`].
//! `cargo xtask bench backup` is apart: [`backup`].

mod backup;
mod compare;
mod load;
mod machine;
mod memory;
mod peers;

use std::{collections::BTreeMap, fs, net::TcpStream, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};

use self::{
    compare::Comparison,
    load::{Tools, Workload},
    machine::{Awake, LOAD_CORE, Tree, pinned},
    memory::{Idle, Weight},
    peers::{Kind, Peer, Stage},
};
use crate::live::{instant, is_short, scratch, target_folder, wait_until};

pub(crate) const USAGE: &str = "bench [h1|h1-512|100k|tls|handshakes|h2|rate|memory]…   (SHORT=1 for a quick look; BENCH_LANDFAST=FILE for another build); bench backup [full|change|restore|load]…";

const PORT: u16 = 18_100;

/// Processor time a request ÷ nginx must not be above these.
const RATIOS_MAX: [(Workload, f64); 4] = [
    (Workload::KeepAlive, 1.10),
    (Workload::Tls, 0.95),
    (Workload::Handshakes, 0.50),
    (Workload::Large, 0.75),
];

/// Kilobytes an idle connection must not be above these.
const KILOBYTES_MAX: [(Idle, f64); 2] = [(Idle::WebSocket, 12.0), (Idle::TlsWebSocket, 20.0)];

/// How much is measured.
struct Extent {
    rounds: usize,
    time: Duration,
    idle: usize,
}

impl Extent {
    fn chosen() -> Self {
        let (rounds, seconds, idle) = if is_short() {
            (2, 1, 2_000)
        } else {
            (15, 2, 9_000)
        };
        Self {
            rounds,
            time: Duration::from_secs(seconds),
            idle,
        }
    }
}

/// Runs the workloads that are asked for, or all, and fails when a figure is missed.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    if let Some((first, parts)) = arguments.split_first()
        && first == "backup"
    {
        return backup::run_parts(parts);
    }
    let wants = |name: &str| arguments.is_empty() || arguments.iter().any(|asked| asked == name);
    let known = |name: &String| {
        name == "memory" || Workload::ALL.iter().any(|workload| workload.name() == name)
    };
    if let Some(unknown) = arguments.iter().find(|name| !known(name)) {
        bail!("there is no workload `{unknown}`; usage: cargo xtask {USAGE}");
    }
    let begun = instant();
    let (stage, tools) = prepare()?;
    let _awake = Awake::hold();
    let _backend = backend(&stage, &tools)?;
    let extent = Extent::chosen();
    println!(
        "proxy on core 0, load and backend on core 1; {} rounds of {} s; {} idle connections",
        extent.rounds,
        extent.time.as_secs(),
        extent.idle
    );
    let mut verdict = Verdict::default();
    let workloads = Workload::ALL
        .into_iter()
        .filter(|workload| wants(workload.name()));
    let workloads: Vec<Workload> = workloads.collect();
    if !workloads.is_empty() {
        let peers = Kind::ALL.map(|kind| Peer::start(kind, &stage));
        let peers = peers.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        for workload in workloads {
            let compared = compare::compare(workload, &peers, &tools, extent.rounds, extent.time)?;
            compared.print(workload);
            verdict.judge_ratio(workload, &compared);
        }
    }
    if wants("memory") {
        memory(&stage, &tools, extent.idle, &mut verdict)?;
    }
    drop(fs::remove_dir_all(&stage.folder));
    println!("\n{} s", begun.elapsed().as_secs());
    verdict.end()
}

fn prepare() -> anyhow::Result<(Stage, Tools)> {
    let bin = target_folder().join("dist");
    // Another build, such as the one before a change, can be put in the place of this one.
    let landfast = std::env::var_os("BENCH_LANDFAST").map_or(bin.join("landfast"), PathBuf::from);
    let bench = bin.join("landfast-bench");
    for binary in [&landfast, &bench] {
        let shown = binary.display();
        ensure!(
            binary.is_file(),
            "`{shown}` was not built; run `make bench`"
        );
    }
    for program in ["nginx", "haproxy", "caddy", "wrk", "h2load", "taskset"] {
        let found =
            std::env::split_paths("/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
                .any(|folder| folder.join(program).is_file());
        ensure!(found, "`{program}` is missing; run `make setup-bench`");
    }
    let folder = scratch("bench")?;
    let made = crate::live::command(&bench)
        .arg("certificate")
        .arg(&folder)
        .status()?;
    ensure!(made.success(), "no certificate was made");
    let stage = Stage {
        folder: folder.clone(),
        landfast,
        port: PORT,
    };
    let tools = Tools {
        bench,
        certificate: stage.certificate(),
        scratch: folder,
    };
    Ok((stage, tools))
}

fn backend(stage: &Stage, tools: &Tools) -> anyhow::Result<Tree> {
    let mut backend = pinned(LOAD_CORE, &tools.bench);
    let addresses = stage.backends();
    backend
        .arg("backend")
        .args(addresses.map(|address| address.to_string()));
    let tree = Tree::start(&mut backend)?;
    wait_until("the backend listens", Duration::from_secs(5), || {
        addresses
            .iter()
            .all(|address| TcpStream::connect(address).is_ok())
    })?;
    Ok(tree)
}

fn memory(stage: &Stage, tools: &Tools, count: usize, verdict: &mut Verdict) -> anyhow::Result<()> {
    println!("\n{count} idle connections: growth of PSS in kB each");
    let titles = Idle::ALL.map(|idle| format!("{:>19}", idle.title()));
    println!("  {:13} {:>8}{}", "peer", "base MB", titles.concat());
    for kind in Kind::ALL {
        if kind == Kind::LandfastLogging {
            continue;
        }
        let mut weights: BTreeMap<usize, Weight> = BTreeMap::new();
        for (column, idle) in Idle::ALL.into_iter().enumerate() {
            let weight = memory::weigh(kind, idle, stage, tools, count)?;
            if kind == Kind::Landfast {
                verdict.judge_weight(idle, weight);
            }
            weights.insert(column, weight);
        }
        let base = weights
            .values()
            .next()
            .context("something was weighed")?
            .base;
        let each: String = weights
            .values()
            .map(|weight| format!("{:>19.1}", weight.each))
            .collect();
        println!("  {:13} {:>8.1}{each}", kind.name(), base / 1e3);
    }
    Ok(())
}

/// What was promised, and what was found.
#[derive(Debug, Default)]
struct Verdict {
    lines: Vec<String>,
    missed: usize,
}

impl Verdict {
    fn judge_ratio(&mut self, workload: Workload, compared: &Comparison) {
        let bound = RATIOS_MAX.iter().find(|(judged, _)| *judged == workload);
        let ratio = compared.ratio(Kind::Landfast, Kind::Nginx, |sample| sample.proxy);
        if let (Some((_, bound)), Some(ratio)) = (bound, ratio) {
            let what = format!("processor time ÷ nginx, {}", workload.title());
            self.judge(&what, ratio, *bound, "");
        }
    }

    fn judge_weight(&mut self, idle: Idle, weight: Weight) {
        let bound = KILOBYTES_MAX.iter().find(|(judged, _)| *judged == idle);
        if let Some((_, bound)) = bound {
            let what = format!("memory of an idle {}", idle.title());
            self.judge(&what, weight.each, *bound, " kB");
        }
    }

    fn judge(&mut self, what: &str, found: f64, bound: f64, unit: &str) {
        let is_met = found <= bound;
        self.missed += usize::from(!is_met);
        let word = if is_met { "met" } else { "MISSED" };
        self.lines.push(format!(
            "figure: {what}: {found:.2}{unit}, at most {bound:.2}{unit}: {word}"
        ));
    }

    fn end(self) -> anyhow::Result<()> {
        for line in &self.lines {
            println!("{line}");
        }
        ensure!(self.missed == 0, "{} figures were missed", self.missed);
        Ok(())
    }
}
