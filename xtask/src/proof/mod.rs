//! `cargo xtask proof NAME`: one figure of docs/proof.md each. A proof starts what it needs, measures, prints its
//! figure, ends what it started, and fails when the figure is missed.

mod data;
mod deploys;
mod descriptors;
mod docker_overhead;
mod docker_peers;
mod figures;
mod handover;
mod jail;
mod kills;
mod latency;
mod probes;
mod rotation;
mod simulated;
mod slow;

use anyhow::bail;

use crate::live::Build;

pub(crate) const USAGE: &str = "proof NAME|all   (SHORT=1 for the form that fits into CI)";

type Proof = fn(&Build) -> anyhow::Result<()>;

/// Every proof on real hosts, by name.
const LIVE: &[(&str, Proof)] = &[
    ("plan", figures::plan),
    ("exit", figures::exit),
    ("source", figures::source),
    ("scopes", figures::scopes),
    ("rollback", figures::rollback),
    ("idle", figures::idle),
    ("deploy-latency", latency::deploy_latency),
    ("canary", figures::canary),
    ("instance-kill", kills::instance_kill),
    ("proxy-kill", kills::proxy_kill),
    ("host-loss", kills::host_loss),
    ("server-kill", kills::server_kill),
    ("handover", handover::handover),
    ("descriptors", descriptors::descriptors),
    ("slow", slow::slow),
    ("rotation", rotation::rotation),
    ("rename", data::rename),
    ("long-transaction", data::long_transaction),
    ("controls", deploys::controls),
    ("deploys", deploys::deploys),
    ("docker-deploys", deploys::docker_deploys),
    ("docker-overhead", docker_overhead::docker_overhead),
    ("docker-peers", docker_peers::docker_peers),
];

/// Those that tests and the simulator show.
const TESTED: &[&str] = &[
    "crash",
    "planted",
    "false-aborts",
    "power",
    "acme",
    "tls",
    "secrets",
    "lint-truth",
];

/// Runs the proof that is asked for.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let Some(name) = arguments.first() else {
        bail!("usage: cargo xtask {USAGE}");
    };
    match name.as_str() {
        "all" => {
            for name in TESTED {
                simulated::run(name)?;
            }
            simulated::sim_long()?;
            LIVE.iter()
                .try_for_each(|(name, proof)| one(name, *proof))?;
            probes::run()?;
            jail::run()?;
            crate::demo::run()
        }
        "demo" => crate::demo::run(),
        "probes" => probes::run(),
        "jail" => jail::run(),
        "sim-long" => simulated::sim_long(),
        name if TESTED.contains(&name) => simulated::run(name),
        name => {
            if name == "canary" {
                simulated::run("canary")?;
            }
            let Some((name, proof)) = LIVE.iter().find(|(known, _)| *known == name) else {
                let known: Vec<_> = LIVE.iter().map(|(name, _)| *name).collect();
                bail!("there is no proof `{name}`; there is: {}", known.join(", "));
            };
            one(name, *proof)
        }
    }
}

fn one(name: &str, proof: Proof) -> anyhow::Result<()> {
    let build = Build::find()?;
    println!("proof {name}");
    proof(&build)
}
