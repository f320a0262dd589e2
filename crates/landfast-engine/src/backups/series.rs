//! One piece of work on the dumps of a store, or the snapshots of a volume, from its beginning to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_backup::{BackupState, Check, DrillPhases, Keep, Retention, Target};
use landfast_backup_files::{
    Content, Entry, FilesError, Loaded, Series, Snapshot, SnapshotRequest, prune, restore,
    snapshot, verify,
};
use landfast_backup_postgres::{
    DUMP, DumpDrillRequest, DumpRequest, DumpSource, Finding, INITDB, OnCopy, Programs, Pruned,
    SqlCheck, Verified, drill_dump, dump,
};
use landfast_datastore::programs;
use landfast_datastore_client::PostgresAddress;
use landfast_repository::freeing;
use landfast_spec::{BackupSpec, Engine};
use landfast_types::{Bytes, Digest, Scope, StoreName, Timestamp};
use tokio::sync::watch;

use super::{
    BackupLine, Done, DrillRecord, DrillRehearsal, MigrationsOf, Progress, RestoreInto,
    RestoreOrder, Source, Work, WorkError,
    rehearsal::Plan,
    work::{BURIED, DAY, Found, make_scratch, room_for, scratch, user_of},
};
use crate::{actions::chain, client::now, shared::Shared, stores};

/// How long `pg_dump` may write nothing.
const SILENCE_MAX: Duration = Duration::from_secs(15 * 60);
/// Major versions above the server's whose programs dump it as well.
const NEWER_MAX: i32 = 8;

/// What work is done with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) scope: Scope,
    pub(crate) name: StoreName,
    pub(crate) spec: BackupSpec,
    pub(crate) source: Source,
    /// The version of each secret, as the newest release has them pinned.
    pub(crate) secrets: BTreeMap<String, u64>,
    pub(crate) series: Series,
    pub(crate) drill: Option<DrillRecord>,
    /// A person wants it, and not the clock.
    pub(crate) is_asked: bool,
}

impl From<FilesError> for WorkError {
    fn from(error: FilesError) -> Self {
        let hint = error.hint();
        Self {
            reason: chain(&error),
            hint: (!hint.is_empty()).then_some(hint),
            reach: None,
            findings: Vec::new(),
        }
    }
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
        Work::Prune { is_dry } => pruning(context, *is_dry).await.map(Done::Pruned),
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

/// A snapshot for readers.
pub(crate) fn line(snapshot: &Snapshot) -> BackupLine {
    let notes = snapshot.notes.iter();
    BackupLine {
        id: snapshot.id.clone(),
        at: snapshot.at,
        state: BackupState::Good,
        stop: None,
        bytes: snapshot.bytes,
        stored_bytes: snapshot.stored_bytes,
        took: Duration::from_millis(snapshot.took_ms),
        parent: snapshot.parent.clone(),
        notes: notes
            .map(|note| (note.to_string(), note.kind.is_trouble()))
            .collect(),
    }
}

/// What is wrong with which object, a line each.
pub(crate) fn named(findings: &[landfast_backup_files::Finding]) -> Vec<String> {
    let each = findings.iter();
    each.map(|finding| format!("`{}`: {}", finding.object, finding.wrong))
        .collect()
}

async fn backup(
    context: &Context,
    is_full: bool,
    tell: &(impl Fn(String) + Sync),
) -> Result<Done, WorkError> {
    let (shared, scope, name) = (&context.shared, &context.scope, &context.name);
    let takes_as_it_is = is_full && context.is_asked;
    let taken = match &context.source {
        Source::Volume { path } => {
            let scratch = scratch(shared, scope, name);
            make_scratch(&scratch)?;
            if !takes_as_it_is {
                is_there(context, path).await?;
            }
            let request = SnapshotRequest {
                series: context.series.clone(),
                root: path.clone(),
                scratch: scratch.join("q"),
                is_full,
            };
            let taken = snapshot(&request, |progress| {
                tell(format!(
                    "{} files, read {}, {} stored",
                    progress.files,
                    Bytes(progress.bytes),
                    Bytes(progress.stored_bytes)
                ));
            });
            Box::pin(taken).await?
        }
        Source::Dumps { url_secret } => {
            tell("connecting".to_owned());
            let source = source(context, url_secret).await?;
            if !takes_as_it_is {
                is_the_same(context, &source).await?;
            }
            let request = DumpRequest {
                programs: tools(context, source.server_version).await?,
                source,
                series: context.series.clone(),
                is_full,
                patience: SILENCE_MAX,
            };
            let dumped = dump(&request, |progress| {
                let (bytes, stored) = (Bytes(progress.bytes), Bytes(progress.stored_bytes));
                tell(format!("dumped {bytes}, {stored} stored"));
            });
            Box::pin(dumped).await?
        }
        Source::Log => unreachable!("a server with a log has an archive"),
    };
    // What is too old goes with each backup that has come, never without one.
    tell("pruning what is too old".to_owned());
    if let Err(error) = pruning(context, false).await {
        tracing::warn!(%scope, store = %name, %error, "nothing was pruned after the backup");
    }
    Ok(Done::BackedUp(line(&taken)))
}

/// Refuses a folder that has nothing of what was there: its disk is not mounted, or another one is.
async fn is_there(context: &Context, path: &Path) -> Result<(), WorkError> {
    let unread = |error: io::Error| {
        let hint = "look whether it is there and can be read";
        WorkError::new(
            format!("failed to read `{}`: {error}", path.display()),
            hint,
        )
    };
    let loaded = context.series.load().await?;
    let Some(newest) = loaded.snapshots.last().filter(|newest| newest.bytes > 0) else {
        return Ok(());
    };
    let names = fs::read_dir(path).map_err(unread)?.flatten();
    let names: BTreeSet<OsString> = names.map(|entry| entry.file_name()).collect();
    let entries = context.series.entries(newest).await?;
    let is_known = |entry: &Entry| match entry.path.split() {
        Some((folder, name)) => folder.0.is_empty() && names.contains(&name),
        None => false,
    };
    if entries.iter().any(is_known) {
        return Ok(());
    }
    let (path, bytes, name) = (path.display(), Bytes(newest.bytes), &context.name);
    let what = match names.is_empty() {
        true => "is empty",
        false => "has nothing of what was there",
    };
    Err(WorkError::new(
        format!("`{path}` {what}, and the newest snapshot holds {bytes}"),
        format!(
            "look whether its disk is mounted; `landfast restore run {name} --as NAME` brings the newest back, and `landfast backup now {name} --full` takes it as it is"
        ),
    ))
}

/// Refuses a database that is not the one that was dumped before.
async fn is_the_same(context: &Context, source: &DumpSource) -> Result<(), WorkError> {
    let loaded = context.series.load().await?;
    let newest = loaded.snapshots.last().map(|newest| &newest.content);
    let Some(Content::Dump {
        source: Some(known),
        database,
        ..
    }) = newest
    else {
        return Ok(());
    };
    if source.identity.is_none_or(|identity| identity == *known) {
        return Ok(());
    }
    let (name, now) = (&context.name, &source.database);
    Err(WorkError::new(
        format!(
            "`{now}` at its address is not the database `{database}` that was dumped before, but another one, or of another server"
        ),
        format!(
            "look whether the address is right; `landfast backup now {name} --full` takes it as it is, as after a move to another server"
        ),
    ))
}

/// Where the database is, and what it is.
async fn source(context: &Context, url_secret: &str) -> Result<DumpSource, WorkError> {
    let hint =
        || format!("`landfast doctor` says what is wrong with the address in `{url_secret}`");
    let unusable = |reason: String| WorkError::new(reason, hint());
    let url = stores::secret_of_store(
        &context.shared,
        &context.scope,
        url_secret,
        Some(&context.secrets),
    );
    let url = url
        .map_err(unusable)?
        .ok_or_else(|| unusable(format!("the secret `{url_secret}` is not set")))?;
    let mut address = PostgresAddress::parse(&url).map_err(|error| unusable(chain(&error)))?;
    address.set_application_name("landfast backup");
    let connection = address.connect().await;
    let connection = connection.map_err(|error| unusable(chain(&error)))?;
    let asked = connection
        .client
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_database()::text",
            &[],
        )
        .await;
    let row = asked.map_err(|error| unusable(chain(&error)))?;
    let database: String = row.get(1);
    // Not every login may ask that.
    let known = connection
        .client
        .query_one(
            "SELECT system_identifier::text, (SELECT oid::text FROM pg_database WHERE datname = current_database()) \
             FROM pg_control_system()",
            &[],
        )
        .await;
    let identity = known.ok().map(|known| {
        let (system, oid): (&str, &str) = (known.get(0), known.get(1));
        Digest::of(format!("{system}/{oid}").as_bytes())
    });
    Ok(DumpSource {
        variables: address.variables(),
        server_version: row.get(0),
        database,
        identity,
    })
}

/// PostgreSQL's programs of the server's version, or of a newer one.
async fn tools(context: &Context, server_version: i32) -> Result<Programs, WorkError> {
    let major = server_version / 10_000;
    let has_all = |folder: &PathBuf| {
        let needed = ["pg_dump", "pg_restore", "initdb", "pg_amcheck"];
        needed.iter().all(|name| folder.join(name).is_file())
    };
    let mut folders = (major..=major + NEWER_MAX).filter_map(|major| {
        let wanted = programs(Engine::Postgres, &major.to_string());
        // One that is found by its name alone may be of any version.
        let server = landfast_datastore::Program {
            places: wanted
                .server
                .places
                .into_iter()
                .filter(|place| place.starts_with('/'))
                .collect(),
            ..wanted.server
        };
        Some(stores::find(&server)?.parent()?.to_owned())
    });
    let folder = folders.find(has_all).ok_or_else(|| {
        WorkError::new(
            format!("the server is PostgreSQL {major}, and no programs of that version or a newer one are installed here"),
            format!("apt-get install postgresql-{major}: its programs dump the server, and prove the dump"),
        )
    })?;
    let user = user_of(&context.shared, &context.scope, &context.name).await;
    let user = user.map_err(|reason| WorkError::new(reason, "look at the server's log"))?;
    Ok(Programs {
        folder,
        user,
        containers: None,
    })
}

async fn verification(
    context: &Context,
    tell: &(impl Fn(String) + Sync),
    found: &mut Found,
) -> Result<Done, WorkError> {
    tell("reading the list".to_owned());
    let verified = verify(&context.series, |objects| {
        tell(format!("read {objects} objects"));
    })
    .await?;
    let findings = named(&verified.findings);
    found.findings = Some(findings.clone());
    if !findings.is_empty() {
        return Err(WorkError::damaged(findings));
    }
    Ok(Done::Verified(Verified {
        objects: verified.objects,
        bytes: verified.bytes,
        findings: Vec::<Finding>::new(),
    }))
}

/// Every snapshot and dump of so long stays: nothing else leads to the moments between.
const RECENT: Duration = Duration::from_secs(2 * 24 * 3_600);

async fn pruning(context: &Context, is_dry: bool) -> Result<Pruned, WorkError> {
    let days = context.spec.keep.as_secs().div_ceil(DAY.as_secs());
    let retention = Retention {
        daily: usize::try_from(days).unwrap_or(usize::MAX),
        ..Retention::DEFAULT
    };
    let proven = context.drill.as_ref().and_then(DrillRecord::proven);
    let pruned = prune(&context.series, &retention, RECENT, proven, BURIED, is_dry).await?;
    Ok(Pruned {
        keep: Keep {
            backups: pruned.keep,
            ..Keep::default()
        },
        buried: pruned.buried,
        wal: Vec::new(),
        deleted: pruned.deleted,
    })
}

async fn drilling(
    context: &Context,
    (is_full, migrations): (bool, Option<&MigrationsOf>),
    tell: &(impl Fn(String) + Send + Sync),
    found: &mut Found,
) -> Result<Done, WorkError> {
    let at = context.shared.clock.now();
    let before = context.drill.as_ref();
    let drilled = try_drill(context, (is_full, migrations), at, tell, found);
    let drilled = Box::pin(drilled).await;
    let record = match drilled {
        Ok(record) => record,
        Err(error) => {
            let reason = error.reason.clone();
            found.drill = Some(DrillRecord::failed(at, is_full, reason, before));
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
                "the newest backup was restored, and what it holds is not right: look at what is backed up, then `landfast backup verify`",
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
    let scratch = scratch(&context.shared, &context.scope, &context.name);
    make_scratch(&scratch)?;
    let mut wrong = Vec::new();
    if is_full {
        let verified = verify(&context.series, |objects| {
            tell(format!("read {objects} objects"));
        })
        .await?;
        let findings = named(&verified.findings);
        wrong.extend(findings.iter().cloned());
        found.findings = Some(findings);
    }
    let loaded = context.series.load().await?;
    let newest = loaded.find(None)?.clone();
    let mut rehearsal = None;
    let (phases, checks) = match &context.source {
        Source::Volume { .. } => volume_drill(context, &loaded, &scratch, tell).await?,
        Source::Dumps { .. } => {
            // The file, and about twice as much for tables with their indexes.
            room_for(&scratch, newest.bytes.saturating_mul(3))?;
            let Content::Dump { server_version, .. } = &newest.content else {
                return Err(WorkError::new("the newest backup is no dump", "make one"));
            };
            let checks = context.spec.drill.checks.iter();
            let programs = tools(context, *server_version).await?;
            let (shared, scope, name) = (&context.shared, &context.scope, &context.name);
            let owner = stores::owner_of(scope, name);
            let (maker, data) = (programs.folder.join("initdb"), scratch.join("d"));
            let made = stores::make_throwaway(shared, owner, &maker, &INITDB, &data).await;
            made.map_err(|reason| WorkError::new(reason, "look at the server's log"))?;
            let request = DumpDrillRequest {
                series: context.series.clone(),
                programs,
                is_made: true,
                scratch: scratch.clone(),
                checks: checks
                    .map(|(name, check)| SqlCheck {
                        name: name.clone(),
                        database: String::new(),
                        sql: check.sql.clone(),
                        expected: check.expect.clone(),
                    })
                    .collect(),
                reads_everything: is_full,
                patience: SILENCE_MAX,
            };
            let plan = Plan::of(shared, scope, name, migrations).await;
            let on_copy = plan.map(|plan| {
                let rehearsal = &mut rehearsal;
                let folder = &scratch;
                let on_copy: OnCopy<'_> = Box::new(move |copy| {
                    Box::pin(async move {
                        *rehearsal = Some(plan.run(copy, None, folder, tell).await);
                    })
                });
                on_copy
            });
            let drilled = drill_dump(&request, &loaded, Some(&newest.id), tell, on_copy).await?;
            let mut checks = drilled.checks;
            for check in checks.iter_mut().filter(|check| check.name == "rows") {
                check.name = format!("{} rows in {} tables", drilled.rows, drilled.tables);
            }
            (drilled.phases, checks)
        }
        Source::Log => unreachable!("a server with a log has an archive"),
    };
    let failed = checks.iter().filter_map(|check| {
        let wrong = check.wrong.as_ref()?;
        Some(format!("{}: {wrong}", check.name))
    });
    wrong.extend(failed);
    let failure = (!wrong.is_empty()).then(|| wrong.join("; "));
    let before = context.drill.as_ref();
    let proven = before.and_then(DrillRecord::proven).cloned();
    let before = before.and_then(|before| before.passed_at);
    Ok(DrillRecord {
        at,
        repository: String::new(),
        is_full,
        passed_at: if failure.is_none() { Some(at) } else { before },
        passed: match failure {
            None => Some(newest.id.clone()),
            Some(_) => proven,
        },
        rehearsal: rehearsal.map(|rehearsal| DrillRehearsal {
            copied: Bytes(newest.bytes),
            copying: phases.rto(),
            ..rehearsal
        }),
        rpo: Some(at.since(newest.at)),
        backup: Some(newest.id),
        reached: None,
        phases,
        rates: None,
        checks,
        failure,
    })
}

async fn volume_drill(
    context: &Context,
    loaded: &Loaded,
    scratch: &Path,
    tell: &(impl Fn(String) + Sync),
) -> Result<(DrillPhases, Vec<Check>), WorkError> {
    let copy = scratch.join("x");
    let remove = async || {
        let going = copy.clone();
        let removed = tokio::task::spawn_blocking(move || freeing::remove_tree(&going)).await;
        let removed = removed.map_err(io::Error::other).flatten();
        removed.map_err(|error| {
            WorkError::new(
                format!("failed to remove `{}`: {error}", copy.display()),
                "remove it by hand",
            )
        })
    };
    remove().await?;
    room_for(scratch, loaded.find(None)?.bytes)?;
    let begun = now();
    let restored = restore(&context.series, loaded, None, &copy, |progress| {
        let (bytes, total) = (Bytes(progress.bytes), Bytes(progress.total));
        tell(format!("restored {bytes} of {total}"));
    });
    let restored = restored.await?;
    let mut checks = vec![Check::of(format!("{} files", restored.files), Ok(()))];
    let notes = &loaded.find(None)?.notes;
    checks.extend(
        notes
            .iter()
            .filter(|note| note.kind.is_trouble())
            .map(|note| Check::of("everything is in it", Err(note.to_string()))),
    );
    checks.extend(restored.sqlite.iter().map(|check| {
        let wrong = check.wrong.clone().map_or(Ok(()), Err);
        Check::of(format!("integrity of {}", check.path), wrong)
    }));
    let phases = DrillPhases {
        restore: now().duration_since(begun),
        ..DrillPhases::default()
    };
    remove().await?;
    Ok((phases, checks))
}

async fn restoring(
    context: &Context,
    order: &RestoreOrder,
    tell: &(impl Fn(String) + Sync),
) -> Result<Done, WorkError> {
    let begun = now();
    let folder = match (&order.into, &context.source) {
        (RestoreInto::Folder(folder), _) => folder.clone(),
        // Beside the volume, where one of that name would lie.
        (RestoreInto::Store(name), Source::Volume { path }) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            parent.join(name.as_str())
        }
        (RestoreInto::Store(_), Source::Dumps { .. } | Source::Log) => {
            let name = &context.name;
            return Err(WorkError::new(
                "a dump of a server that is somebody else's becomes no store here",
                format!(
                    "`landfast restore export {name} --into FOLDER`, then `pg_restore --dbname=… FOLDER/{DUMP}` where it is to go"
                ),
            ));
        }
    };
    let loaded = context.series.load().await?;
    let id = match &order.target {
        Target::Latest => None,
        Target::Time(at) => Some(loaded.before(*at)?.id.clone()),
        Target::Lsn(_) | Target::Point(_) => {
            return Err(WorkError::new(
                "there is no log: dumps and snapshots are gone back to by time",
                "give `--time`, or nothing for the newest",
            ));
        }
    };
    room_for(&folder, loaded.find(id.as_ref())?.bytes)?;
    let restored = restore(&context.series, &loaded, id.as_ref(), &folder, |progress| {
        let (bytes, total) = (Bytes(progress.bytes), Bytes(progress.total));
        tell(format!("restored {bytes} of {total}"));
    });
    let restored = restored.await?;
    let mut warnings = restored.wrong();
    warnings.extend(restored.snapshot.notes.iter().map(ToString::to_string));
    Ok(Done::Restored {
        backup: restored.snapshot.id.clone(),
        reached: restored.snapshot.at.to_string(),
        at: Some(restored.snapshot.at),
        into: RestoreInto::Folder(folder),
        lost: None,
        warnings,
        took: now().duration_since(begun),
    })
}
