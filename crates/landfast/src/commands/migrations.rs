//! `migrate status`, `plan`, `up`, `down` and `accept`: what is asked of a database, and done to it, outside rollouts.

use std::{collections::BTreeMap, time::Duration};

use anyhow::anyhow;
use landfast_api::{
    MigrateAcceptRequest, MigrateFrame, MigratePlan, MigrateRequest, MigrateUpRequest,
    MigrationRecord, MigrationRehearsal, MigrationState, MigrationStatus, PendingMigration,
    RehearseFrom, ReleaseOutlook,
};
use landfast_client::{Client, Error, Lines};
use landfast_migration::MigrationSet;
use landfast_types::Scope;
use serde::Serialize;

use super::{deploy::Prepared, migrate};
use crate::{
    args::{Global, MigrateCommand, MigrateStore, RehearseSource},
    context::scope,
    exit::{Exit, Failure},
    out::{Paint, Printer},
    table::{bytes, count, duration, instant, table},
};

pub(super) async fn migrate(
    printer: &Printer,
    global: &Global,
    client: &Client,
    command: MigrateCommand,
    prepared: Option<Prepared>,
) -> Result<Exit, Failure> {
    if let MigrateCommand::Status { store } = &command {
        return status(printer, global, client, store).await;
    }
    let prepared = prepared.expect("`prepare` reads the manifest for these commands");
    prepared.upload(printer, client).await?;
    let scope = prepared.scope().clone();
    let MigrateRequest {
        manifest,
        artifacts,
    } = prepared.request();
    match command {
        MigrateCommand::Plan { store } => {
            let store = migrate::store_name(global, store.store.as_ref())?;
            let request = MigrateRequest {
                manifest,
                artifacts,
            };
            let plan = client.plan_migrations(&scope, &store, &request).await?;
            show_plan(printer, &plan)
        }
        MigrateCommand::Up { store, contract } => {
            let store = migrate::store_name(global, store.store.as_ref())?;
            let request = MigrateUpRequest {
                manifest,
                artifacts,
                contract,
            };
            let frames = client.migrate_up(&scope, &store, &request).await?;
            follow(printer, &store, frames, "applied").await
        }
        MigrateCommand::Rehearse { store, from } => {
            let store = migrate::store_name(global, store.store.as_ref())?;
            let request = MigrateRequest {
                manifest,
                artifacts,
            };
            let from = from.map(|RehearseSource::Backup| RehearseFrom::Backup);
            let frames = client.rehearse_migrations(&scope, &store, &request, from);
            let frames = frames.await?;
            follow(printer, &store, frames, "rehearsed").await
        }
        MigrateCommand::Down { store } => {
            let store = migrate::store_name(global, store.store.as_ref())?;
            let request = MigrateRequest {
                manifest,
                artifacts,
            };
            let frames = client.migrate_down(&scope, &store, &request).await?;
            follow(printer, &store, frames, "taken back").await
        }
        MigrateCommand::Accept {
            store,
            number,
            reason,
        } => {
            let store = migrate::store_name(global, store.store.as_ref())?;
            let request = MigrateAcceptRequest {
                manifest,
                artifacts,
                number,
                reason,
            };
            let frames = client.accept_migration(&scope, &store, &request).await?;
            follow(printer, &store, frames, "accepted").await
        }
        MigrateCommand::Status { .. }
        | MigrateCommand::Lint { .. }
        | MigrateCommand::New { .. }
        | MigrateCommand::RenameColumn { .. } => {
            unreachable!("these need no folder, or no server, and were done before")
        }
    }
}

/// Prints what happens until it has ended. Ctrl-C ends it: the server gives the connection up, and the database takes back
/// what was not committed.
async fn follow(
    printer: &Printer,
    store: &str,
    mut frames: Lines<MigrateFrame>,
    done: &str,
) -> Result<Exit, Failure> {
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame?,
            _ = tokio::signal::ctrl_c() => {
                drop(frames);
                let error = anyhow!("ended by Ctrl-C: what was not committed is taken back");
                return Err(Failure::new(Exit::Detached, error).hint("`landfast migrate status` shows how far it came"));
            }
        };
        let Some(frame) = frame else {
            let error = anyhow!("the server's answer ended before the migrations did");
            return Err(Failure::new(Exit::Unreachable, error)
                .hint("`landfast migrate status` shows how far they came"));
        };
        if printer.json {
            printer.json_line(&frame)?;
        }
        match frame {
            MigrateFrame::Progress { text } => printer.say(&text),
            MigrateFrame::Done { migrations } => {
                if !printer.json {
                    printer.data(&match migrations.len() {
                        0 => format!("store {store}: nothing was to be done"),
                        _ => format!("store {store}: {done} {}", migrations.join(", ")),
                    })?;
                }
                return Ok(Exit::Done);
            }
            MigrateFrame::Rehearsed { rehearsal } => return show_rehearsal(printer, &rehearsal),
            MigrateFrame::Failed { problem } => return Err(Error::Problem(problem).into()),
            MigrateFrame::Unknown => {}
        }
    }
}

fn show_rehearsal(printer: &Printer, rehearsal: &MigrationRehearsal) -> Result<Exit, Failure> {
    if !printer.json {
        printer.data(&rehearsal_lines(rehearsal, printer.paint).join("\n"))?;
    }
    let exceeded = rehearsal.migrations.iter().flat_map(|one| {
        let name = &one.name;
        one.exceeded.iter().map(move |why| format!("{name} {why}"))
    });
    let exceeded: Vec<String> = exceeded.collect();
    let is_cut_short = rehearsal.is_cut_short && exceeded.is_empty();
    let against: Vec<String> = exceeded
        .into_iter()
        .chain(rehearsal.failure.clone())
        .collect();
    if against.is_empty() {
        return Ok(Exit::Done);
    }
    let error = anyhow!(
        "on a copy of store {}: {}",
        rehearsal.store,
        against.join("; ")
    );
    if is_cut_short {
        let hint = "it says nothing of the migrations; rehearse again";
        return Err(Failure::new(Exit::Failed, error).hint(hint));
    }
    Err(Failure::new(Exit::ManifestInvalid, error).hint("`landfast migrate plan` shows what to write instead; the budgets are in `[stores.NAME.rehearsal]`"))
}

pub(super) fn rehearsal_lines(rehearsal: &MigrationRehearsal, paint: Paint) -> Vec<String> {
    let took = |ms: u64| duration(Duration::from_millis(ms));
    let title = format!("store {}  {}", rehearsal.store, rehearsal.engine);
    let mut lines = vec![format!(
        "{}, a copy of {} made in {}",
        paint.bold(&title),
        bytes(rehearsal.copied_bytes),
        took(rehearsal.copying_ms)
    )];
    if rehearsal.migrations.is_empty() {
        lines.push("nothing was to be run".to_owned());
        return lines;
    }
    let rows = rehearsal.migrations.iter().map(|one| {
        let locks = one.locks.iter().filter(|lock| lock.stops != "nobody");
        let locks = locks.map(|lock| {
            let held = took(lock.held_ms);
            format!("{} {} ({held})", lock.table, lock.stops)
        });
        let ways = one.ways.iter().map(|way| match way.rows_copied {
            0 => way.algorithm.clone(),
            rows => format!("{} ({})", way.algorithm, count(rows, "row")),
        });
        let stopped: Vec<_> = locks.chain(ways).collect();
        vec![
            one.name.clone(),
            took(one.took_ms),
            stopped.join(", "),
            one.rewritten.join(", "),
            one.wal_bytes.map(bytes).unwrap_or_default(),
            if one.exceeded.is_empty() {
                String::new()
            } else {
                paint.bad("over budget")
            },
        ]
    });
    let stops = if rehearsal.engine == "postgres" {
        "STOPS"
    } else {
        "DONE BY"
    };
    let head = ["MIGRATION", "TOOK", stops, "REWRITES", "LOG", ""];
    lines.push(table(&head, &[1, 4], rows.collect()));
    lines
}

/// What the database says, beside what lies in the folder.
#[derive(Serialize)]
struct Compared {
    #[serde(flatten)]
    status: MigrationStatus,
    /// By name: `same`, `changed`, `missing` in the folder, or `pending`. Absent where no folder could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<BTreeMap<String, &'static str>>,
}

async fn status(
    printer: &Printer,
    global: &Global,
    client: &Client,
    store: &MigrateStore,
) -> Result<Exit, Failure> {
    let scope: Scope = scope(global)?;
    let store = migrate::store_name(global, store.store.as_ref())?;
    let status = client.migrations(&scope, &store).await?;
    let files = match migrate::local_set(global, &store) {
        Ok(set) => set.map(|set| compare(&status, &set)),
        Err(failure) => {
            printer.warn(&format!("{failure}"));
            None
        }
    };
    let compared = Compared { status, files };
    if printer.json {
        printer.json(&compared)?;
    } else {
        printer.data(&status_lines(&compared, printer.paint).join("\n"))?;
    }
    Ok(Exit::Done)
}

fn compare(status: &MigrationStatus, set: &MigrationSet) -> BTreeMap<String, &'static str> {
    let mut files = BTreeMap::new();
    for record in &status.migrations {
        let word = match set.get(record.number) {
            None => "missing",
            Some(file) if file.checksum.to_string() != record.checksum => "changed",
            Some(_) => "same",
        };
        files.insert(record.name.clone(), word);
    }
    let known = |number| status.migrations.iter().any(|one| one.number == number);
    for file in set.iter().filter(|file| !known(file.number)) {
        files.insert(file.title(), "pending");
    }
    files
}

fn status_lines(compared: &Compared, paint: Paint) -> Vec<String> {
    let (status, files) = (&compared.status, compared.files.as_ref());
    let applied = status.migrations.iter();
    let applied = applied.filter(|one| one.state == MigrationState::Applied);
    let title = format!("store {}  {}", status.store, status.engine);
    let mut lines = vec![format!(
        "{}, {} applied",
        paint.bold(&title),
        count(applied.count() as u64, "migration")
    )];
    let mut rows: Vec<Vec<String>> = status
        .migrations
        .iter()
        .map(|record| {
            let file = files.and_then(|files| files.get(&record.name).copied());
            row(record, file, paint)
        })
        .collect();
    let pending = files.into_iter().flatten();
    let pending = pending.filter(|(_, word)| **word == "pending");
    rows.extend(pending.map(|(name, _)| vec![name.clone(), String::new(), paint.warn("pending")]));
    if !rows.is_empty() {
        let head = ["MIGRATION", "PHASE", "STATE", "WHEN (UTC)", "BY", "FILE"];
        lines.push(table(&head, &[], rows));
    }
    if let Some(runner) = &status.runner {
        lines.push(format!("being run by {runner}"));
    }
    for record in &status.migrations {
        lines.extend(next_step(record, files));
    }
    lines
}

fn row(record: &MigrationRecord, file: Option<&str>, paint: Paint) -> Vec<String> {
    let state = match record.state {
        MigrationState::Applied if record.accepted.is_some() => "accepted".to_owned(),
        MigrationState::Applied => "applied".to_owned(),
        MigrationState::Begun => {
            let (done, all) = (record.steps_applied, record.steps);
            paint.bad(&format!("begun, {done} of {all} steps"))
        }
        MigrationState::Reverting | MigrationState::Unknown => paint.bad(record.state.as_str()),
    };
    let at = record.applied_at.or(record.started_at);
    let by = record.release.as_ref().map(|release| {
        let is_number = release.bytes().all(|byte| byte.is_ascii_digit());
        if is_number {
            format!("release {release}")
        } else {
            release.clone()
        }
    });
    vec![
        record.name.clone(),
        record.phase.as_str().to_owned(),
        state,
        at.map(instant).unwrap_or_default(),
        by.unwrap_or_default(),
        match file {
            Some("changed") => paint.bad("changed since it ran"),
            Some("missing") => paint.bad("not in the folder"),
            Some(_) | None => String::new(),
        },
    ]
}

/// What to do about a migration that is not as it should be.
fn next_step(
    record: &MigrationRecord,
    files: Option<&BTreeMap<String, &'static str>>,
) -> Option<String> {
    let name = &record.name;
    let file = files.and_then(|files| files.get(name).copied());
    match (record.state, file) {
        (MigrationState::Begun, _) => Some(format!(
            "{name}: `landfast migrate up{}` goes on from there",
            if record.phase == landfast_api::MigrationPhase::Contract {
                " --contract"
            } else {
                ""
            }
        )),
        (MigrationState::Reverting, _) => Some(format!(
            "{name}: was being taken back; `landfast migrate down` goes on with that"
        )),
        (_, Some("changed")) => Some(format!(
            "{name}: restore the file and put the change into a new one, or `landfast migrate accept {} --reason …`",
            record.number
        )),
        (_, Some("missing")) => Some(format!("{name}: restore its file")),
        _ => record
            .accepted
            .as_ref()
            .map(|why| format!("{name}: accepted: {why}")),
    }
}

fn show_plan(printer: &Printer, plan: &MigratePlan) -> Result<Exit, Failure> {
    if printer.json {
        printer.json(plan)?;
    } else {
        printer.data(&plan_lines(plan, printer.paint).join("\n"))?;
    }
    let mut refused = plan.contradictions.clone();
    let blocked = plan.pending.iter().filter_map(|one| {
        let by = one.blocked_by.as_ref()?;
        Some(format!("{} waits for {by}", one.name))
    });
    refused.extend(blocked);
    if refused.is_empty() {
        return Ok(Exit::Done);
    }
    let error = anyhow!("they would not run: {}", refused.join("; "));
    let hint = if plan.contradictions.is_empty() {
        "`landfast seal` of the release that brought it, or `landfast migrate up --contract`"
    } else {
        "`landfast migrate status` shows history and files side by side"
    };
    Err(Failure::new(Exit::GateRefused, error).hint(hint))
}

fn plan_lines(plan: &MigratePlan, paint: Paint) -> Vec<String> {
    let title = paint.bold(&format!("store {}  {}", plan.store, plan.engine));
    let (applied, pending) = (plan.applied, plan.pending.len() as u64);
    let mut lines = vec![format!(
        "{title}, {} applied, {pending} pending",
        count(u64::from(applied), "migration")
    )];
    for migration in &plan.pending {
        lines.push(String::new());
        lines.push(pending_line(migration, paint));
        for finding in &migration.findings {
            let severity = match (finding.severity.as_str(), &finding.allowed) {
                (_, Some(_)) => paint.dim("allowed"),
                ("error", None) => paint.bad("error"),
                ("warning", None) => paint.warn("warning"),
                (other, None) => other.to_owned(),
            };
            let (rule, line, message) = (&finding.rule, finding.line, &finding.message);
            lines.push(format!("  line {line}: {severity}[{rule}]: {message}"));
            lines.push(match &finding.allowed {
                Some(why) => paint.dim(&format!("    allowed: {why}")),
                None => paint.dim(&format!("    {}", finding.fix)),
            });
        }
    }
    lines.extend(
        plan.contradictions
            .iter()
            .map(|contradiction| paint.bad(contradiction)),
    );
    if !plan.releases.is_empty() {
        lines.push(String::new());
        lines.push("releases".to_owned());
        lines.extend(
            plan.releases
                .iter()
                .map(|release| outlook_line(release, paint)),
        );
    }
    lines
}

fn pending_line(migration: &PendingMigration, paint: Paint) -> String {
    use landfast_api::MigrationStage as Stage;
    let when = match migration.stage {
        Stage::Expand => "before instances of the new release start".to_owned(),
        Stage::Contract => "after the seal".to_owned(),
        Stage::Blocked | Stage::Unknown => {
            let by = migration.blocked_by.clone().unwrap_or_default();
            paint.bad(&format!("not before {by}"))
        }
    };
    let begun = if migration.begun {
        paint.warn(", begun before")
    } else {
        String::new()
    };
    let (name, phase) = (paint.bold(&migration.name), migration.phase.as_str());
    format!("{name}  {phase}: {when}{begun}")
}

fn outlook_line(release: &ReleaseOutlook, paint: Paint) -> String {
    let serves = if release.serves { ", which serves" } else { "" };
    let verdict = match (&release.broken_by, &release.broken_by_pending) {
        (Some(by), _) => paint.bad(&format!("cannot run any more, since {by}")),
        (None, Some(by)) => paint.warn(&format!("can run until {by} has")),
        (None, None) if !release.lacks.is_empty() => {
            paint.warn(&format!("needs {}", release.lacks.join(", ")))
        }
        (None, None) => "can run".to_owned(),
    };
    format!("  release {}{serves}: {verdict}", release.release)
}
