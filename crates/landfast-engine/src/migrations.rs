//! Migrations of a release: read from its artifacts, told to the rollout, run against its databases.

use std::{collections::BTreeMap, fs, io, path::Path};

use landfast_datastore::{application_name, application_prefix};
use landfast_migration::{
    Engine, History, MigrationSet, Phase, SourceFile,
    lint::{Finding, Severity, lint},
};
use landfast_migrator::{Guard, MigratorError, Options, Progress, Session, Stage};
use landfast_rollout::{
    AppliedMigration, Environment, MigrationPhase, MigrationShape, MigrationStage, Schemas,
};
use landfast_spec::{AppSpec, Place};
use landfast_store::Store;
use landfast_types::{Digest, ReleaseId, RolloutId, Scope, Secret, StoreName};

use crate::{
    actions::{Context, chain},
    planning::Refusal,
    release::ReleaseBody,
    shared::Shared,
    stores,
};

/// The migrations a release knows of each database that it uses; none where it brings none.
pub type Sets = BTreeMap<StoreName, MigrationSet>;

/// What of one file is read; a migration is written by people.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Whether every folder of migrations is uploaded.
pub(crate) fn are_there(
    store: &Store,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
) -> bool {
    let mut folders = spec
        .stores
        .values()
        .filter_map(|store| store.migrations.as_ref());
    folders.all(|folder| {
        let digest = artifacts.get(folder);
        digest.is_some_and(|digest| store.path(digest).is_some())
    })
}

/// Reads the migrations of one store.
///
/// # Errors
/// Every file that is no migration, and why; that the store has none.
pub(crate) fn set_of(
    store: &Store,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
    name: &StoreName,
) -> Result<MigrationSet, Vec<Refusal>> {
    sets(store, spec, artifacts)?.remove(name).ok_or_else(|| {
        vec![Refusal {
            code: "migrations-invalid",
            reason: format!("store `{name}` has no migrations"),
            hint: Some(format!(
                "name their folder in the manifest: `[stores.{name}] migrations = \"migrations\"`"
            )),
        }]
    })
}

/// Reads the migrations of a spec from its artifacts.
///
/// # Errors
/// Every file that is no migration, and why.
pub fn sets(
    store: &Store,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
) -> Result<Sets, Vec<Refusal>> {
    let (mut sets, mut refusals) = (Sets::new(), Vec::new());
    for (name, known) in &spec.stores {
        let uses = |names: &[StoreName]| names.contains(name);
        let used = spec.services.values().any(|service| uses(&service.uses))
            || spec.jobs.values().any(|job| uses(&job.uses));
        let Some(engine) = engine(known.engine).filter(|_| used || known.migrations.is_some())
        else {
            continue;
        };
        let Some(folder) = &known.migrations else {
            sets.insert(name.clone(), MigrationSet::empty(engine));
            continue;
        };
        let path = artifacts.get(folder).and_then(|digest| store.path(digest));
        let read = match path {
            Some(path) => files(&path),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let problems = match read {
            Ok(files) => match MigrationSet::parse(&files, engine) {
                Ok(set) => {
                    sets.insert(name.clone(), set);
                    continue;
                }
                Err(errors) => errors.iter().map(|error| chain(error)).collect(),
            },
            Err(error) => vec![format!("cannot be read: {error}")],
        };
        refusals.extend(problems.into_iter().map(|problem| Refusal {
            code: "migrations-invalid",
            reason: format!("migrations of store `{name}` in `{folder}`: {problem}"),
            hint: Some("`landfast migrate lint` shows all of them with their lines".into()),
        }));
    }
    if refusals.is_empty() {
        Ok(sets)
    } else {
        Err(refusals)
    }
}

/// What the rules say of the migrations that a release would run beside the one that serves; what its author allows weighs
/// nothing. Where nothing serves, nothing can be stopped or broken.
fn findings<'a>(
    state: &'a Environment,
    sets: &'a Sets,
) -> impl Iterator<Item = (&'a StoreName, Finding)> {
    let sets = sets.iter().filter(|_| state.serving.is_some());
    sets.flat_map(move |(store, set)| {
        let seen = state.schemas.get(store).map_or(&[][..], Vec::as_slice);
        let is_pending = |number| {
            !seen
                .iter()
                .any(|known| known.number == number && known.is_whole)
        };
        let pending: Vec<_> = set
            .iter()
            .filter(|migration| is_pending(migration.number))
            .collect();
        let first = pending
            .first()
            .map_or(u32::MAX, |migration| migration.number);
        let files: Vec<_> = pending
            .iter()
            .map(|migration| format!("{}.sql", migration.title()))
            .collect();
        // Those that ran already are read for what they made, and not judged again.
        let found = lint(set, first)
            .into_iter()
            .filter(move |finding| files.contains(&finding.file) && finding.allowed.is_none());
        found.map(move |finding| (store, finding))
    })
}

/// A release whose migrations would stop or break the one that serves is refused.
pub(crate) fn unsafe_ones(state: &Environment, sets: &Sets) -> Vec<Refusal> {
    findings(state, sets)
        .filter(|(_, finding)| finding.severity == Severity::Error)
        .map(|(store, finding)| Refusal {
            code: "migrations-unsafe",
            reason: format!("store `{store}`: {}", sentence(&finding)),
            hint: Some(format!(
                "{}; where you know better, `-- landfast: allow={} REASON` at the head of the file says so",
                finding.fix, finding.rule
            )),
        })
        .collect()
}

/// What somebody should look at, and refuses nothing.
pub fn warnings(state: &Environment, sets: &Sets) -> Vec<String> {
    findings(state, sets)
        .filter(|(_, finding)| finding.severity == Severity::Warning)
        .map(|(store, finding)| format!("store `{store}`: {}", sentence(&finding)))
        .collect()
}

/// A finding with its place and its rule.
fn sentence(finding: &Finding) -> String {
    let Finding {
        file,
        line,
        rule,
        message,
        ..
    } = finding;
    format!("{file}:{line}: {message} [{rule}]")
}

/// The SQL files at the top level of a folder, in the order of their names.
fn files(folder: &Path) -> io::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".sql") {
            continue;
        }
        if entry.metadata()?.len() > FILE_BYTES_MAX {
            let text = format!("`{name}` is larger than 4 MiB");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let bytes = fs::read(entry.path())?;
        files.push(SourceFile { name, bytes });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

pub(crate) fn engine(engine: landfast_spec::Engine) -> Option<Engine> {
    match engine {
        landfast_spec::Engine::Postgres => Some(Engine::Postgres),
        landfast_spec::Engine::Mariadb | landfast_spec::Engine::Mysql => Some(Engine::Mariadb),
        landfast_spec::Engine::Redis | landfast_spec::Engine::S3 => None,
    }
}

/// What the rollout must know of a set.
pub(crate) fn shapes(set: &MigrationSet) -> Vec<MigrationShape> {
    set.iter()
        .map(|migration| MigrationShape {
            number: migration.number,
            name: migration.title(),
            phase: phase(migration.phase()),
        })
        .collect()
}

pub(crate) fn phase(phase: Phase) -> MigrationPhase {
    match phase {
        Phase::Expand => MigrationPhase::Expand,
        Phase::Contract => MigrationPhase::Contract,
        Phase::Any => MigrationPhase::Any,
    }
}

/// Runs the migrations of a release on each of its databases; gives what each has seen, and the first thing that went wrong.
/// A database behind the one that failed is left as it is. Dropped in the middle it ends its connections, and nothing of the
/// statement under way is left.
pub(crate) async fn run(
    context: &Context,
    rollout: RolloutId,
    release: ReleaseId,
    stage: MigrationStage,
) -> (Schemas, Option<String>) {
    let mut schemas = Schemas::new();
    let Some(body) = context.view.bodies.get(&release).cloned() else {
        let reason = format!("release {release} is not kept any more");
        return (schemas, Some(reason));
    };
    let shared = std::sync::Arc::clone(&context.shared);
    let read = {
        let (shared, body) = (std::sync::Arc::clone(&shared), body.clone());
        let read = move || sets(&shared.store, &body.spec, &body.artifacts);
        tokio::task::spawn_blocking(read).await
    };
    let sets = match read {
        Ok(Ok(sets)) => sets,
        Ok(Err(refusals)) => {
            let reasons: Vec<_> = refusals.into_iter().map(|one| one.reason).collect();
            return (schemas, Some(reasons.join("; ")));
        }
        Err(panic) => return (schemas, Some(panic.to_string())),
    };
    let order = Order {
        scope: context.view.state.scope.clone(),
        body: &body,
        rollout,
        stage,
    };
    for (store, set) in &sets {
        let (seen, failure) = run_on(&shared, &order, store, set).await;
        if let Some(seen) = seen {
            schemas.insert(store.clone(), seen);
        }
        if let Some(reason) = failure {
            return (schemas, Some(named(store, &reason)));
        }
    }
    (schemas, None)
}

/// What is to be run, for whom.
struct Order<'a> {
    scope: Scope,
    body: &'a ReleaseBody,
    rollout: RolloutId,
    stage: MigrationStage,
}

/// One database: what it has seen afterwards, where it could be asked, and what went wrong.
async fn run_on(
    shared: &Shared,
    order: &Order<'_>,
    store: &StoreName,
    set: &MigrationSet,
) -> (Option<Vec<AppliedMigration>>, Option<String>) {
    let url = match address(
        shared,
        &order.scope,
        &order.body.spec,
        Some(order.body),
        store,
    )
    .await
    {
        Ok(url) => url,
        Err(reason) => return (None, Some(reason)),
    };
    let mut session = match Session::connect(set.engine(), &url).await {
        Ok(session) => session,
        Err(error) => return (None, Some(chain(&error))),
    };
    let (scope, rollout) = (&order.scope, order.rollout);
    let mut tell = |progress: Progress| {
        tracing::info!(%scope, %rollout, %store, "{}", progress.sentence());
    };
    // Nobody uses a store that is being moved to: what it lacks is run there in the order of its numbers.
    let release = Some(order.body.release);
    let is_apart = stores::served_by(shared, scope, release, store)
        != stores::served_by(shared, scope, None, store);
    let stage = match order.stage {
        MigrationStage::All => Stage::All,
        MigrationStage::Expand if is_apart => Stage::All,
        MigrationStage::Expand => Stage::Expand,
        MigrationStage::Contract => Stage::Contract,
    };
    if let Ok(history) = session.history().await
        && landfast_migrator::pending(set, &history, stage).is_ok_and(|numbers| !numbers.is_empty())
    {
        let name = match order.stage {
            MigrationStage::All | MigrationStage::Expand => format!("before-rollout-{rollout}"),
            MigrationStage::Contract => format!("before-contract-{rollout}"),
        };
        point(shared, scope, store, &name).await;
    }
    let ran = session
        .up(set, stage, &options(order, store), &mut tell)
        .await
        .err();
    // After an error too: what ran before it stays.
    let seen: Result<History, MigratorError> = session.history().await;
    let failure = ran.map(|error| chain(&error));
    match seen {
        Ok(history) => (Some(applied(&history)), failure),
        Err(error) => (None, failure.or(Some(chain(&error)))),
    }
}

/// The direct connection of an operator to what a release is given, or the address that it reaches the store by.
pub(crate) async fn address(
    shared: &Shared,
    scope: &Scope,
    spec: &AppSpec,
    release: Option<&ReleaseBody>,
    store: &StoreName,
) -> Result<Secret<String>, String> {
    let pins = release.map(|body| &body.secrets);
    let known = spec.stores.get(store);
    let known = known.ok_or_else(|| format!("the manifest has no store `{store}`"))?;
    match &known.place {
        Place::Managed { .. } => {
            let release = release.map(|body| body.release);
            let store = stores::served_by(shared, scope, release, store);
            stores::operator_url(shared, scope, &store).await
        }
        Place::External { url_secret } => {
            let found = stores::secret_of_store(shared, scope, url_secret, pins)?;
            found.ok_or_else(|| {
                format!("the secret `{url_secret}` with its address is not set; `landfast secret set {url_secret}` sets it")
            })
        }
        Place::Bucket { .. } => Err("a bucket has no migrations".into()),
    }
}

/// Makes a place in the archive that a restore can go back to by name. A store that is not backed up has none, and an archive
/// that does not take it just now holds nothing up: a restore by time or place still goes there.
pub(crate) async fn point(shared: &Shared, scope: &Scope, store: &StoreName, name: &str) {
    match shared.backups.point(scope, store, name).await {
        None => {}
        Some(Ok(lsn)) => {
            tracing::info!(%scope, %store, name, %lsn, "a restore can go back to here")
        }
        Some(Err(reason)) => {
            tracing::warn!(%scope, %store, name, reason, "the archive has no place of this name");
        }
    }
}

fn options(order: &Order<'_>, store: &StoreName) -> Options {
    let (release, rollout) = (order.body.release, order.rollout);
    let guard = || guard(&order.scope, &order.body.spec, store, Some(release));
    Options {
        release: Some(release.to_string()),
        restore_point: Some(format!("before-rollout-{rollout}")),
        guard: (order.stage == MigrationStage::Contract).then(guard),
        ..Options::default()
    }
}

/// Nobody but this release may be connected while a contract migration runs.
pub(crate) fn guard(
    scope: &Scope,
    spec: &AppSpec,
    store: &StoreName,
    release: Option<ReleaseId>,
) -> Guard {
    match spec.stores.get(store).map(|known| &known.place) {
        // Releases share a login there, and are told apart by what their sessions are called.
        Some(Place::External { .. }) => Guard {
            allowed: release
                .map(|release| application_name(scope, release))
                .into_iter()
                .collect(),
            prefix: application_prefix(scope),
        },
        Some(Place::Managed { .. } | Place::Bucket { .. }) | None => Guard {
            allowed: release
                .map(|release| [login(release), format!("{}_b", login(release))])
                .into_iter()
                .flatten()
                .collect(),
            prefix: LOGIN_PREFIX.into(),
        },
    }
}

/// What the logins of releases begin with.
const LOGIN_PREFIX: &str = "release_";

fn login(release: ReleaseId) -> String {
    format!("{LOGIN_PREFIX}{release}")
}

/// What a history comes to for the rollout.
pub(crate) fn applied(history: &History) -> Vec<AppliedMigration> {
    history
        .migrations()
        .map(|record| AppliedMigration {
            number: record.number,
            name: format!("{:04}_{}", record.number, record.name),
            phase: phase(record.phase),
            is_whole: history.is_applied(record.number),
            breaks_older: record.breaks_older,
        })
        .collect()
}

/// A reason with the store it is about, once.
fn named(store: &StoreName, reason: &str) -> String {
    let prefix = format!("store `{store}`");
    if reason.starts_with(&prefix) {
        return reason.to_owned();
    }
    format!("{prefix}: {reason}")
}
