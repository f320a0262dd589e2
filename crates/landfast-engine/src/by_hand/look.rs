//! What a database says of itself, and what a folder of migrations would do to it. Nothing is changed.

use std::collections::BTreeMap;

use landfast_migration::{
    Engine, History, MigrationSet, Phase, Plan,
    lint::{self, Finding},
};
use landfast_migrator::Row;
use landfast_rollout::{Environment, Input};
use landfast_spec::AppSpec;
use landfast_types::{Digest, ReleaseId, Scope, StoreName};

use super::{HandError, connect, newest_with, read_set};
use crate::{actions::chain, driver::Message, migrations, platform::Platform};

/// What a database says was done to it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub engine: Engine,
    pub rows: Vec<Row>,
    /// Who runs migrations there just now.
    pub runner: Option<String>,
}

/// What the migrations of a folder would do.
#[derive(Debug, Clone)]
pub struct WouldRun {
    pub set: MigrationSet,
    pub history: History,
    pub plan: Plan,
    /// About what is pending.
    pub findings: Vec<Finding>,
    pub releases: Vec<Outlook>,
}

/// Whether a kept release can run: now, and once the pending migrations have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    pub release: ReleaseId,
    /// The migration that it does not live with.
    pub now: Option<String>,
    pub after_contract: Option<String>,
    /// It was made for something that is not there yet.
    pub lacks: Vec<String>,
}

/// Asks a database for its history. What the engine believed otherwise is put right.
///
/// # Errors
/// [`HandError`].
pub async fn look(
    platform: &Platform,
    scope: &Scope,
    store: &StoreName,
) -> Result<Seen, HandError> {
    let view = platform.environment_or_empty(scope);
    let body = newest_with(&view.bodies, store).ok_or_else(|| HandError::Unreachable {
        store: store.clone(),
        reason: "no release of this environment has such a store".to_owned(),
    })?;
    let shared = platform.shared();
    let mut session = connect(shared, scope, &body.spec, store).await?;
    let at_store = |source| HandError::Migrator {
        store: store.clone(),
        source,
    };
    let rows = session.rows().await.map_err(at_store)?;
    let runner = session.runner().await.map_err(at_store)?;
    let history: History = rows.iter().map(|row| row.record.clone()).collect();
    if let Some(handle) = platform.handle(scope) {
        let schemas = [(store.clone(), migrations::applied(&history))].into();
        let news = Message::Input(Input::SchemasRead { schemas });
        if handle.inbox.send(news).await.is_err() {
            tracing::debug!("the driver has stopped");
        }
    }
    let known = &body.spec.stores[store];
    Ok(Seen {
        engine: migrations::engine(known.engine).unwrap_or(Engine::Postgres),
        rows,
        runner,
    })
}

/// Compares a folder of migrations with what a database has seen.
///
/// # Errors
/// [`HandError`].
pub async fn what_would_run(
    platform: &Platform,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
    store: &StoreName,
) -> Result<WouldRun, HandError> {
    let (scope, shared) = (spec.scope(), platform.shared());
    let set = read_set(shared, spec, artifacts, store).await?;
    let mut session = connect(shared, &scope, spec, store).await?;
    let history = session.history().await;
    let history = history.map_err(|source| HandError::Migrator {
        store: store.clone(),
        source,
    })?;
    let view = platform.environment_or_empty(&scope);
    let store = store.clone();
    let judged = tokio::task::spawn_blocking(move || judge(set, history, &view.state, &store));
    judged
        .await
        .map_err(|panic| HandError::Failed(chain(&panic)))
}

fn judge(set: MigrationSet, history: History, state: &Environment, store: &StoreName) -> WouldRun {
    let plan = Plan::new(&set, &history);
    let pending = |number: u32| !history.is_applied(number);
    let first = {
        let mut numbers = set.iter().map(|migration| migration.number);
        numbers.find(|number| pending(*number))
    };
    let findings = match first {
        None => Vec::new(),
        Some(first) => {
            let names: Vec<String> = set
                .iter()
                .filter(|migration| pending(migration.number))
                .map(|migration| format!("{}.sql", migration.title()))
                .collect();
            let found = lint::lint(&set, first).into_iter();
            found
                .filter(|finding| names.contains(&finding.file))
                .collect()
        }
    };
    let releases = outlooks(&set, &history, state, store);
    WouldRun {
        set,
        history,
        plan,
        findings,
        releases,
    }
}

/// What each kept release comes to.
fn outlooks(
    set: &MigrationSet,
    history: &History,
    state: &Environment,
    store: &StoreName,
) -> Vec<Outlook> {
    let mut now = state.clone();
    now.schemas
        .insert(store.clone(), migrations::applied(history));
    let mut after = now.clone();
    let seen = after.schemas.entry(store.clone()).or_default();
    for migration in set.iter().filter(|one| one.phase() == Phase::Contract) {
        if seen.iter().all(|known| known.number != migration.number) {
            seen.push(landfast_rollout::AppliedMigration {
                number: migration.number,
                name: migration.title(),
                phase: migrations::phase(migration.phase()),
                is_whole: true,
                breaks_older: false,
            });
        }
    }
    let obstacle = |state: &Environment, release| {
        let obstacle = state.obstacle(release).filter(|one| one.store == *store);
        obstacle.map(|obstacle| obstacle.migration)
    };
    let lacks = |release: &ReleaseId| {
        let record = state.releases.get(release);
        let own = record.and_then(|record| record.topology.schemas.get(store));
        let own = own.into_iter().flatten();
        let missing = own.filter(|shape| {
            shape.phase != landfast_rollout::MigrationPhase::Contract
                && !history.is_applied(shape.number)
        });
        missing.map(|shape| shape.name.clone()).collect()
    };
    let outlook = |release: &ReleaseId| Outlook {
        release: *release,
        now: obstacle(&now, *release),
        after_contract: obstacle(&after, *release),
        lacks: lacks(release),
    };
    state.releases.keys().map(outlook).collect()
}
