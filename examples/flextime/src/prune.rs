//! The retention job: removes history older than it must be kept.

use anyhow::Context as _;

use crate::{clock, settings::Settings, store::Store};

/// Opens the store beside running servers, prunes, and says how many rows went.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<usize> {
    let store = Store::open(settings).context("failed to open the store")?;
    once(&store, settings)
}

/// Prunes a store that is open.
pub(crate) fn once(store: &Store, settings: &Settings) -> anyhow::Result<usize> {
    let now = clock::now();
    let before = now - settings.history_retention;
    store
        .prune(now, before)
        .context("failed to prune the history")
}
