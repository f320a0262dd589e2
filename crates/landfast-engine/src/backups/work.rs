//! One piece of work on the backups of a store, from its beginning to its end.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_backup::{Retention, Target, estimate_rto, plan_restore};
use landfast_backup_postgres::{
    Archive, BackupManifest, BackupProgress, BackupRequest, DrillRequest, Finding, Loaded, OnCopy,
    Pace, Programs, RestoreRequest, RestoreStep, Server, SqlCheck, UNFINISHED, WalArchiver,
    back_up, drill_and, prune, restore, schema_digest, verify,
};
use landfast_datastore::{Login, Store, database_name, programs};
use landfast_spec::BackupSpec;
use landfast_types::{Bytes, Digest, Scope, StoreName, Timestamp, format_duration};
use tokio::sync::watch;

use super::{
    BackupLine, Done, DrillRecord, DrillRehearsal, MigrationsOf, Progress, RestoreInto,
    RestoreOrder, Work, WorkError, rehearsal::Plan,
};
use crate::{
    actions::chain,
    client::now,
    shared::Shared,
    stores::{self, ImagePrograms},
};

/// How long the WAL of a backup may take to reach the archive.
const WAL_PATIENCE: Duration = Duration::from_secs(120);
/// How long a restore waits for what was just committed.
const CATCH_UP: Duration = Duration::from_secs(30);
/// What was buried goes after this.
pub(super) const BURIED: Duration = Duration::from_secs(24 * 3_600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Room that a restored copy must leave free.
const SPARE: u64 = 256 << 20;

/// What work is done with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Store,
    /// The name that it serves.
    pub(crate) name: StoreName,
    pub(crate) spec: BackupSpec,
    pub(crate) archive: Archive,
    /// Where the server runs.
    pub(crate) archiver: Option<Arc<WalArchiver>>,
    pub(crate) server: Server,
    pub(crate) programs: Programs,
    pub(crate) drill: Option<DrillRecord>,
    /// Of a backup.
    pub(crate) pace: Pace,
    /// The shortest time between two heartbeats that was ever wanted.
    pub(crate) ship_least: Duration,
}

impl Context {
    fn archiver(&self) -> Result<&WalArchiver, WorkError> {
        self.archiver.as_deref().ok_or_else(|| {
            WorkError::new(
                "the server is not archived just now",
                "`landfast backup list` says why",
            )
        })
    }
}

/// What work leaves behind beside its answer.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) drill: Option<DrillRecord>,
    /// What a verification found; empty where it found nothing.
    pub(crate) findings: Option<Vec<String>>,
}

/// How a server is reached.
///
/// # Errors
/// A sentence.
pub(crate) fn reach(shared: &Shared, store: &Store) -> Result<Server, String> {
    let access = stores::access(shared, store)?;
    let folder = access.socket.parent();
    let folder = folder.ok_or("its socket lies in no folder")?;
    Ok(Server {
        host: folder.display().to_string(),
        port: access.port,
        login: access.login,
        password: Some(access.password),
        database: database_name(&store.scope),
    })
}

/// What backups need beside the server.
const NEEDED: [&str; 5] = [
    "pg_receivewal",
    "pg_basebackup",
    "pg_amcheck",
    "pg_checksums",
    "pg_dump",
];

/// The programs a store is backed up and restored with: those of the host, or of its image. They run as the user of `name`, which is
/// the store's own or that of one that is made of it.
///
/// # Errors
/// A sentence.
pub(crate) async fn programs_as(
    shared: &Arc<Shared>,
    store: &Store,
    name: &StoreName,
) -> Result<Programs, String> {
    let user = user_of(shared, &store.scope, name).await?;
    let owner = stores::owner_of(&store.scope, name);
    let scratch = scratch(shared, &store.scope, name);
    let of_image = ImagePrograms::find(shared, store, owner, scratch, &NEEDED).await?;
    if let Some((folder, containers)) = of_image {
        return Ok(Programs {
            folder,
            user,
            containers: Some(containers),
        });
    }
    let wanted = programs(store.wanted.engine, &store.wanted.version);
    let found = stores::find(&wanted.server).and_then(|path| Some(path.parent()?.to_owned()));
    let folder = found.ok_or_else(|| format!("`{}` is not installed", wanted.server.name))?;
    for program in NEEDED {
        if !folder.join(program).is_file() {
            let package = wanted.package;
            return Err(format!(
                "`{program}` is not installed; apt-get install {package}"
            ));
        }
    }
    Ok(Programs {
        folder,
        user,
        containers: None,
    })
}

/// The user a store runs as, where that is somebody else than we are. Its data may be lost: a folder of its own tells.
pub(super) async fn user_of(
    shared: &Shared,
    scope: &Scope,
    name: &StoreName,
) -> Result<Option<(u32, u32)>, String> {
    let scratch = scratch(shared, scope, name);
    make_scratch(&scratch).map_err(|error| error.reason)?;
    let folder = scratch.join("u");
    let owner = stores::owner_of(scope, name);
    let given = shared.target.own_folder(&owner, &folder).await;
    given.map_err(|error| chain(&error))?;
    let about = fs::metadata(&folder);
    let about =
        about.map_err(|error| format!("failed to look at `{}`: {error}", folder.display()))?;
    let is_ours = about.uid() == rustix::process::geteuid().as_raw();
    Ok((!is_ours).then(|| (about.uid(), about.gid())))
}

/// Where copies of a store are made: a short path, for a socket lies in it.
pub(crate) fn scratch(shared: &Shared, scope: &Scope, store: &StoreName) -> PathBuf {
    let key = Digest::of(format!("{scope}/{store}").as_bytes());
    let folder = shared.folders.state.join("b");
    let folder = folder.join(
        key.to_string()
            .chars()
            .filter(char::is_ascii_hexdigit)
            .take(16)
            .collect::<String>(),
    );
    std::path::absolute(&folder).unwrap_or(folder)
}

/// Does it, and tells how far it is.
pub(crate) async fn perform(
    context: &Context,
    work: &Work,
    progress: &watch::Sender<Progress>,
) -> (Result<Done, WorkError>, Found) {
    let mut found = Found::default();
    let tell = |doing: String| progress.send_modify(|progress| progress.doing = doing);
    let done = match work {
        Work::BackUp { is_full } => backup(context, *is_full, &tell).await,
        Work::Verify => verification(context, &tell, &mut found).await,
        Work::Prune { is_dry } => pruning(context, *is_dry, &tell).await,
        Work::Drill {
            is_full,
            migrations,
        } => {
            let what = (*is_full, migrations.as_deref());
            drilling(context, what, &tell, &mut found).await
        }
        Work::Restore(order) => restoring(context, order, &tell).await,
    };
    (done, found)
}

async fn backup(
    context: &Context,
    is_full: bool,
    tell: &(impl Fn(String) + Sync),
) -> Result<Done, WorkError> {
    tell("waiting for a checkpoint".to_owned());
    let request = BackupRequest {
        server: context.server.clone(),
        programs: context.programs.clone(),
        archive: context.archive.clone(),
        is_full,
        pace: context.pace.clone(),
        wal_patience: WAL_PATIENCE,
    };
    // What one that failed, or was killed, has left.
    remove_unfinished(context).await;
    let backed_up = back_up(&request, context.archiver()?, |progress| {
        tell(copied(&progress))
    });
    let manifest = match backed_up.await {
        Ok(manifest) => manifest,
        Err(error) => {
            remove_unfinished(context).await;
            return Err(error.into());
        }
    };
    let line = line(&manifest);
    // What is too old goes with each backup that has come, never without one.
    if manifest.summary.is_good() {
        tell("pruning what is too old".to_owned());
        let pruned = pruning(context, false, tell).await;
        if let Err(error) = pruned {
            tracing::warn!(scope = %context.store.scope, store = %context.store.name, %error, "nothing was pruned after the backup");
        }
    }
    Ok(Done::BackedUp(line))
}

/// There is one piece of work at a time, so no backup is on its way.
async fn remove_unfinished(context: &Context) {
    let (scope, store) = (&context.store.scope, &context.store.name);
    match landfast_backup_postgres::remove_unfinished(&context.archive).await {
        Ok(0) => {}
        Ok(packs) => {
            tracing::info!(%scope, %store, packs, "what a backup that failed had put was removed");
        }
        Err(error) => {
            tracing::warn!(%scope, %store, error = chain(&error), "what a backup that failed had put stays for now");
        }
    }
}

fn copied(progress: &BackupProgress) -> String {
    let (bytes, total) = (Bytes(progress.bytes), Bytes(progress.total));
    let percent = progress.bytes * 100 / progress.total.max(1);
    let rate = Bytes(progress.rate());
    let left = progress.left().map_or(String::new(), |left| {
        format!(
            ", {} left",
            format_duration(Duration::from_secs(left.as_secs()))
        )
    });
    format!(
        "copied {bytes} of about {total} ({percent} %), {rate}/s{left}, {} stored",
        Bytes(progress.stored_bytes)
    )
}

/// A backup for readers.
pub(crate) fn line(manifest: &BackupManifest) -> BackupLine {
    let summary = &manifest.summary;
    BackupLine {
        id: summary.id.clone(),
        at: summary.at,
        state: summary.state.clone(),
        stop: Some(summary.stop),
        bytes: manifest.bytes,
        stored_bytes: manifest.stored_bytes,
        took: Duration::from_millis(manifest.took_ms),
        parent: manifest.parent.clone(),
        notes: Vec::new(),
    }
}

/// What is wrong with which object, a line each.
pub(crate) fn named(findings: &[Finding]) -> Vec<String> {
    let each = findings.iter();
    each.map(|finding| format!("`{}`: {}", finding.object, finding.wrong))
        .collect()
}

async fn verification(
    context: &Context,
    tell: &(impl Fn(String) + Sync),
    found: &mut Found,
) -> Result<Done, WorkError> {
    tell("reading the ledger".to_owned());
    let verified = verify(&context.archive, |objects| {
        tell(format!("read {objects} objects"))
    })
    .await?;
    let findings = named(&verified.findings);
    found.findings = Some(findings.clone());
    if findings.is_empty() {
        return Ok(Done::Verified(verified));
    }
    Err(WorkError::damaged(findings))
}

async fn pruning(
    context: &Context,
    is_dry: bool,
    tell: &(impl Fn(String) + Sync),
) -> Result<Done, WorkError> {
    tell("looking at what is too old".to_owned());
    let ship = context.ship_least.as_millis().max(1);
    let beats = |span: Duration| usize::try_from(span.as_millis() / ship).unwrap_or(usize::MAX);
    let days = context.spec.keep.as_secs().div_ceil(DAY.as_secs());
    let retention = Retention {
        daily: usize::try_from(days).unwrap_or(usize::MAX),
        wal_heartbeats: beats(context.spec.keep_wal),
        ..Retention::DEFAULT
    };
    let buried = beats(BURIED) as u64;
    let pruned = prune(
        &context.archive,
        context.archiver()?,
        &retention,
        buried,
        is_dry,
    )
    .await?;
    Ok(Done::Pruned(pruned))
}

async fn drilling(
    context: &Context,
    (is_full, migrations): (bool, Option<&MigrationsOf>),
    tell: &(impl Fn(String) + Send + Sync),
    found: &mut Found,
) -> Result<Done, WorkError> {
    let at = context.shared.clock.now();
    let before = context.drill.as_ref();
    let drilled = try_drill(context, (is_full, migrations), at, tell, found).await;
    let record = match drilled {
        Ok(record) => record,
        Err(error) => {
            found.drill = Some(DrillRecord::failed(
                at,
                is_full,
                error.reason.clone(),
                before,
            ));
            return Err(error);
        }
    };
    found.drill = Some(record.clone());
    match &record.failure {
        None => Ok(Done::Drilled(Box::new(record))),
        Some(failure) => Err(WorkError {
            findings: record.gave(),
            ..WorkError::new(
                failure.clone(),
                "the newest backup was restored, and what it holds is not right: look at the server, then `landfast backup verify`",
            )
        }),
    }
}

async fn try_drill(
    context: &Context,
    (is_full, migrations): (bool, Option<&MigrationsOf>),
    at: Timestamp,
    tell: &(impl Fn(String) + Send + Sync),
    found: &mut Found,
) -> Result<DrillRecord, WorkError> {
    let database = database_name(&context.store.scope);
    let scratch = scratch(&context.shared, &context.store.scope, &context.store.name);
    make_scratch(&scratch)?;
    let live = || schema_digest(&context.programs, &context.server, &database, &scratch);
    let before = live().await?;
    // What is acknowledged by now must be in the copy.
    let archiver = context.archiver()?;
    archiver.catch_up(&context.server, WAL_PATIENCE).await?;
    if is_full {
        let verified = verify(&context.archive, |objects| {
            tell(format!("read {objects} objects"))
        })
        .await?;
        found.findings = Some(named(&verified.findings));
    }
    let folder = &scratch;
    let request = restore_request(context, Target::Latest, folder.join("d"), folder.join("r"));
    // What a drill that was killed has left is in the way of the next.
    let copy = folder.join("d");
    if copy.join(UNFINISHED).is_file()
        && let Err(error) = fs::remove_dir_all(&copy)
    {
        tracing::debug!(%error, "a copy of a drill stays until the next restore into it");
        // A server that was killed a moment ago still writes there. What is half removed is ours all the same.
        if let Err(error) = fs::write(copy.join(UNFINISHED), "a drill\n") {
            tracing::debug!(%error, "nothing is left of it");
        }
    }
    room(&context.archive, folder).await?;
    let checks = context.spec.drill.checks.iter();
    let request = DrillRequest {
        restore: RestoreRequest {
            login: context.server.login.clone(),
            ..request
        },
        checks: checks
            .map(|(name, check)| SqlCheck {
                name: name.clone(),
                database: database.clone(),
                sql: check.sql.clone(),
                expected: check.expect.clone(),
            })
            .collect(),
        // Compared below, where a migration may have come between.
        schemas: vec![(database.clone(), None)],
        heartbeat_database: database.clone(),
        reads_everything: is_full,
    };
    let mut backup = None;
    let (shared, scope) = (&context.shared, &context.store.scope);
    let plan = Plan::of(shared, scope, &context.name, migrations).await;
    let mut rehearsal = None;
    let app_database = database.clone();
    let on_copy = plan.map(|plan| {
        let rehearsal = &mut rehearsal;
        let on_copy: OnCopy<'_> = Box::new(move |copy| {
            Box::pin(async move {
                *rehearsal = Some(plan.run(copy, Some(app_database), folder, tell).await);
            })
        });
        on_copy
    });
    let on_step = |step: RestoreStep| {
        if let RestoreStep::Planned(plan) = &step {
            backup = Some(plan.backup.clone());
        }
        tell(told(&step));
    };
    let report = drill_and(&request, on_step, on_copy).await?;
    let backup = backup.expect("a restore is planned before it is done");
    let mut record = DrillRecord::of(at, is_full, backup, &report, context.drill.as_ref());
    record.rehearsal = rehearsal.map(|rehearsal| DrillRehearsal {
        copied: Bytes(report.bytes),
        copying: report.phases.rto(),
        ..rehearsal
    });
    let mut wrong = found.findings.clone().unwrap_or_default();
    let copied = report.schemas.first().map(|(_, digest)| *digest);
    if copied.is_some_and(|copied| copied != before) && copied != Some(live().await?) {
        wrong.push(format!(
            "the schema of `{database}` is another one than the server's"
        ));
    }
    if !wrong.is_empty() {
        wrong.splice(0..0, record.failure.take());
        record.failure = Some(wrong.join("; "));
        record.passed_at = context.drill.as_ref().and_then(|before| before.passed_at);
    }
    Ok(record)
}

pub(crate) fn make_scratch(folder: &Path) -> Result<(), WorkError> {
    use std::os::unix::fs::PermissionsExt as _;
    let make = || {
        fs::create_dir_all(folder)?;
        // The server of the copy runs as another user.
        for folder in folder.ancestors().take(2) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
        }
        Ok::<_, std::io::Error>(())
    };
    make().map_err(|error| {
        let what = format!("failed to make `{}`: {error}", folder.display());
        WorkError::new(
            what,
            "the server's user must be able to write its state folder",
        )
    })
}

/// Refuses what would fill the disk.
async fn room(archive: &Archive, folder: &Path) -> Result<(), WorkError> {
    let loaded = archive.load().await?;
    let Some(loaded) = loaded else { return Ok(()) };
    let Ok(plan) = plan_restore(&loaded.ledger, &loaded.summaries(), &Target::Latest, None) else {
        return Ok(());
    };
    let backup = loaded
        .backups
        .iter()
        .find(|one| one.summary.id == plan.backup);
    room_for(
        folder,
        backup.map_or(0, |backup| backup.bytes) + plan.wal_bytes(),
    )
}

/// Refuses what would fill the disk that a folder lies on, or is to lie on.
pub(super) fn room_for(folder: &Path, bytes: u64) -> Result<(), WorkError> {
    let there = folder.ancestors().find(|folder| folder.exists());
    let Some(told) = there.and_then(|there| rustix::fs::statvfs(there).ok()) else {
        return Ok(());
    };
    let free = told.f_bavail.saturating_mul(told.f_frsize);
    let needed = bytes.saturating_add(SPARE);
    if needed <= free {
        return Ok(());
    }
    let (needed, free, folder) = (Bytes(needed), Bytes(free), folder.display());
    Err(WorkError::new(
        format!("a copy needs {needed}, and `{folder}` has {free}"),
        "make room there, or restore on another host",
    ))
}

fn restore_request(
    context: &Context,
    target: Target,
    data: PathBuf,
    run: PathBuf,
) -> RestoreRequest {
    RestoreRequest {
        archive: context.archive.clone(),
        programs: context.programs.clone(),
        target,
        accepted: None,
        data,
        run,
        wal_get: vec![
            context.shared.executable.clone().into_os_string(),
            "wal-get".into(),
        ],
        preload: String::new(),
        login: context.server.login.clone(),
    }
}

fn told(step: &RestoreStep) -> String {
    match step {
        RestoreStep::Planned(plan) => format!(
            "from backup {} and {} of WAL to {}",
            plan.backup,
            Bytes(plan.wal_bytes()),
            plan.reach()
        ),
        RestoreStep::Files(progress) => format!(
            "restored {} of {}",
            Bytes(progress.bytes),
            Bytes(progress.total)
        ),
        RestoreStep::Replaying => "replaying WAL".to_owned(),
        RestoreStep::Ready { reached } => format!("out of recovery at {reached}"),
    }
}

async fn restoring(
    context: &Context,
    order: &RestoreOrder,
    tell: &(impl Fn(String) + Sync),
) -> Result<Done, WorkError> {
    let begun = now();
    if order.target == Target::Latest {
        // A server that is lost has nothing to ship any more; what is in the archive is restored then.
        if let Some(archiver) = &context.archiver
            && let Err(error) = archiver.catch_up(&context.server, CATCH_UP).await
        {
            tell(format!("it goes as far as the archive: {}", chain(&error)));
        }
    }
    let (shared, scope) = (&context.shared, &context.store.scope);
    let run = scratch(shared, scope, &context.store.name);
    make_scratch(&run)?;
    let data = match &order.into {
        RestoreInto::Store(name) => {
            stores::may_begin(shared, scope, name)
                .map_err(|reason| WorkError::new(reason, "choose another name with `--as`"))?;
            let data = stores::places(shared, scope, name).data();
            if let Some(folder) = data.parent() {
                make_scratch(folder)?;
            }
            data
        }
        RestoreInto::Folder(folder) => folder.clone(),
    };
    room(&context.archive, &data).await?;
    let mut request = restore_request(context, order.target.clone(), data, run.join("r"));
    request.accepted = order.accepted;
    if let RestoreInto::Store(name) = &order.into {
        // Each store has a user of its own.
        let programs = programs_as(shared, &context.store, name).await;
        request.programs =
            programs.map_err(|reason| WorkError::new(reason, "look at the server's log"))?;
    }
    // For files elsewhere the WAL on its way lies beside them: one file system.
    if let RestoreInto::Folder(folder) = &order.into {
        let mut beside = folder.clone().into_os_string();
        beside.push(".recovering");
        request.run = beside.into();
    }
    let restored = restore(&request, |step| tell(told(&step))).await?;
    let (plan, reached) = (restored.plan.clone(), restored.reached);
    if let RestoreInto::Store(name) = &order.into {
        tell("handing it over".to_owned());
        let password = stores::administrator_password(shared, scope, name);
        let password =
            password.map_err(|reason| WorkError::new(reason, "look at the server's log"))?;
        restored
            .set_password(&context.server.login, &password)
            .await?;
        // Each is opened again, with a password of this store, when somebody is given it.
        let own = &context.server.login;
        let is_ours = |login: &str| login != own && Login::parse(login).is_some();
        restored.close_logins(is_ours).await?;
    }
    restored.finish().await?;
    if let RestoreInto::Store(name) = &order.into {
        let wanted = context.store.wanted.clone();
        stores::begin_restored(shared, scope, name, wanted, context.store.release).map_err(
            |reason| WorkError::new(reason, "the restored files stay; remove them, or try again"),
        )?;
    }
    Ok(Done::Restored {
        backup: plan.backup.clone(),
        reached: reached.to_string(),
        at: plan.at,
        into: order.into.clone(),
        lost: plan.lost,
        warnings: plan.warnings,
        took: now().duration_since(begun),
    })
}

/// How long a restore to the newest moment would take, by what the last drill took.
pub(crate) fn rto(loaded: &Loaded, drill: Option<&DrillRecord>) -> Option<Duration> {
    let drill = drill?;
    let plan = plan_restore(&loaded.ledger, &loaded.summaries(), &Target::Latest, None).ok()?;
    let backup = loaded
        .backups
        .iter()
        .find(|one| one.summary.id == plan.backup)?;
    let checks = drill.phases.plan;
    estimate_rto(drill.rates?, backup.bytes, plan.wal_bytes(), checks).map(|rto| rto.total())
}

/// A sentence of an error of the library.
pub(crate) fn sentence(error: &landfast_backup_postgres::BackupError) -> String {
    let hint = error.hint();
    match hint.is_empty() {
        true => chain(error),
        false => format!("{} ({hint})", chain(error)),
    }
}
