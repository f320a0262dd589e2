//! The faults, by their numbers in the plan.

mod clock;
mod copies;
mod damage;
mod disk;
mod host_loss;
mod keys;
mod kills;
mod storage;

use anyhow::bail;

use crate::run::Run;

pub(crate) async fn run(fault: &str, run: &mut Run) -> anyhow::Result<()> {
    match fault {
        "F1" => kills::archiver(run).await,
        "F2" => kills::children_of_it(run).await,
        "F3" => kills::restore(run).await,
        "F5" => host_loss::host_loss(run).await,
        "F7" => storage::bucket(run).await,
        "F8" => damage::objects(run).await,
        "F9" => damage::gap(run).await,
        "F10" => disk::full(run).await,
        "F11" => keys::page(run).await,
        "F12" => keys::keys(run).await,
        "F13" => clock::jumps(run).await,
        "F14" => clock::failed_days(run).await,
        "F20" => copies::copy(run).await,
        _ => bail!("there is no fault `{fault}`"),
    }
}
