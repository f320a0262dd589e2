//! Rounds of one workload over all peers, and what they cost.

use std::{collections::BTreeMap, time::Duration};

use super::{
    load::{Tools, Workload},
    machine::Cores,
    peers::{Kind, Peer},
};
use crate::live::instant;

/// More of the proxy's core than this used by others spoils a run.
const FOREIGN_MAX: f64 = 0.06;
const TRIES: usize = 3;

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Of the proxy, in microseconds a request.
    pub(crate) proxy: f64,
    /// Of everything on both cores, in microseconds a request.
    pub(crate) both: f64,
    pub(crate) per_second: f64,
    /// The part of the proxy's core that others had.
    pub(crate) foreign: f64,
    pub(crate) p50: Option<u64>,
    pub(crate) p99: Option<u64>,
}

impl Sample {
    fn is_clean(&self) -> bool {
        self.foreign <= FOREIGN_MAX
    }
}

/// All rounds of a workload.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    rounds: Vec<BTreeMap<Kind, Sample>>,
    /// Runs that others disturbed to the last try.
    pub(crate) spoilt: usize,
}

/// Runs a workload: every peer in each round, in the opposite order each second round.
pub(crate) fn compare(
    workload: Workload,
    peers: &[Peer],
    tools: &Tools,
    rounds: usize,
    time: Duration,
) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::default();
    for round in 0..rounds {
        let mut order: Vec<&Peer> = peers.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let mut samples = BTreeMap::new();
        for peer in order {
            let sample = clean(workload, peer, tools, time)?;
            comparison.spoilt += usize::from(!sample.is_clean());
            samples.insert(peer.kind, sample);
        }
        comparison.rounds.push(samples);
    }
    Ok(comparison)
}

/// Repeats a run that others disturbed; of runs that were all disturbed, the least.
fn clean(workload: Workload, peer: &Peer, tools: &Tools, time: Duration) -> anyhow::Result<Sample> {
    let mut best: Option<Sample> = None;
    for _ in 0..TRIES {
        let sample = measure(workload, peer, tools, time)?;
        if best.is_none_or(|best| sample.foreign < best.foreign) {
            best = Some(sample);
        }
        if sample.is_clean() {
            break;
        }
    }
    best.ok_or_else(|| anyhow::anyhow!("nothing was measured"))
}

fn measure(
    workload: Workload,
    peer: &Peer,
    tools: &Tools,
    time: Duration,
) -> anyhow::Result<Sample> {
    let (begun, cores, proxy) = (instant(), Cores::now()?, peer.tree.processor_nanos());
    let answered = tools.run(workload, peer, time)?;
    let proxy = peer.tree.processor_nanos().saturating_sub(proxy);
    let (elapsed, after) = (begun.elapsed(), Cores::now()?);
    anyhow::ensure!(
        answered.requests > 0,
        "{} answered nothing",
        peer.kind.name()
    );
    let requests = answered.requests as f64;
    let on_proxy_core = after.proxy.saturating_sub(cores.proxy);
    let on_load_core = after.load.saturating_sub(cores.load);
    let micros = |nanos: u64| nanos as f64 / 1e3 / requests;
    Ok(Sample {
        proxy: micros(proxy),
        both: micros(on_proxy_core + on_load_core),
        per_second: requests / elapsed.as_secs_f64(),
        foreign: on_proxy_core.saturating_sub(proxy) as f64 / elapsed.as_nanos() as f64,
        p50: answered.p50_micros,
        p99: answered.p99_micros,
    })
}

impl Comparison {
    /// The median over the rounds.
    pub(crate) fn median(&self, kind: Kind, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let values = self.rounds.iter().filter_map(|round| round.get(&kind));
        median(values.map(of).collect())
    }

    /// The median of the ratios within each round.
    pub(crate) fn ratio(&self, kind: Kind, to: Kind, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let ratios = self.rounds.iter().filter_map(|round| {
            let (this, other) = (round.get(&kind)?, round.get(&to)?);
            Some(of(this) / of(other))
        });
        median(ratios.collect())
    }

    /// Prints a row for each peer.
    pub(crate) fn print(&self, workload: Workload) {
        println!("\n{}", workload.title());
        let rated = workload == Workload::FixedRate;
        let last = if rated { "   p50 us   p99 us" } else { "" };
        println!(
            "  {:13} {:>9} {:>8} {:>9} {:>9} {:>8} {:>9} {:>8}{last}",
            "peer", "us/req", "÷ nginx", "÷ haproxy", "both us", "÷ nginx", "req/s", "foreign"
        );
        for kind in Kind::ALL {
            let of = |of: fn(&Sample) -> f64| self.median(kind, of);
            let Some(proxy) = of(|sample| sample.proxy) else {
                continue;
            };
            let to = |peer, of: fn(&Sample) -> f64| shown(self.ratio(kind, peer, of));
            let number = |value: Option<f64>, places: usize| {
                value.map_or("-".to_owned(), |value| format!("{value:.places$}"))
            };
            let tail = |of: fn(&Sample) -> Option<u64>| {
                number(
                    self.median(kind, |sample| of(sample).unwrap_or(0) as f64),
                    0,
                )
            };
            let last = if rated {
                format!(
                    " {:>8} {:>8}",
                    tail(|sample| sample.p50),
                    tail(|sample| sample.p99)
                )
            } else {
                String::new()
            };
            println!(
                "  {:13} {proxy:>9.1} {:>8} {:>9} {:>9} {:>8} {:>9} {:>8}{last}",
                kind.name(),
                to(Kind::Nginx, |sample| sample.proxy),
                to(Kind::Haproxy, |sample| sample.proxy),
                number(of(|sample| sample.both), 1),
                to(Kind::Nginx, |sample| sample.both),
                number(of(|sample| sample.per_second), 0),
                number(of(|sample| sample.foreign * 100.0), 1) + " %",
            );
        }
        if self.spoilt > 0 {
            println!(
                "  {} runs had more than {:.0} % of core 0 used by others in each of {TRIES} tries",
                self.spoilt,
                FOREIGN_MAX * 100.0
            );
        }
    }
}

fn shown(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        return values.get(middle).copied();
    }
    Some((values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0)
}
