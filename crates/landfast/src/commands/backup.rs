//! `backup`, `restore` and `drill`: how far one can go back, whether that is proven, and going there.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::anyhow;
use landfast_api::{
    At, Backup, BackupFrame, BackupRequest, BackupSource, Drill, DrillRequest, MigrationRehearsal,
    PruneRequest, RestoreRequest, RestoreTarget, Restored, StoreBackups, StoreSwitchPlan,
    StoreSwitchRequest, WaitQuery,
};
use landfast_client::{Client, Error, Lines};

use landfast_types::Scope;

use super::{
    migrations::rehearsal_lines,
    moves,
    secret::{KEY_BYTES_MAX, read_file_or_stdin},
    store::typed_name,
};
use crate::{
    args::{BackupCommand, BackupKeyCommand, Global, RestoreCommand, RestoreTo, Wait},
    context::{blocking, scope},
    exit::{Exit, Failure},
    follow::Want,
    out::{Paint, Printer},
    table::{bytes, duration, instant, table},
};

/// The newest of them; `--json` has all.
const POINTS_SHOWN: usize = 20;
/// Of the newest backup; `--json` has all.
const NOTES_SHOWN: usize = 20;

pub(super) async fn backup(
    printer: &Printer,
    global: &Global,
    client: &Client,
    command: BackupCommand,
) -> Result<Exit, Failure> {
    // The key is the host's; everything else belongs to an environment.
    if let BackupCommand::Key { command } = command {
        return key(printer, client, command).await;
    }
    let scope = scope(global)?;
    match command {
        BackupCommand::List => {
            let list = client.backups(&scope).await?;
            if printer.json {
                printer.json(&list)?;
            } else if list.stores.is_empty() {
                printer.say("no store and no volume of this environment is backed up: write `backup = { to = … }` in its table");
            } else {
                printer.data(&list_lines(&list.stores, printer.paint).join("\n"))?;
            }
            let is_well = list.stores.iter().all(|one| one.troubles.is_empty());
            Ok(if is_well { Exit::Done } else { Exit::Failed })
        }
        BackupCommand::Show { store } => {
            let shown = client.store_backups(&scope, &store).await?;
            if printer.json {
                printer.json(&shown)?;
            } else {
                printer.data(&show_lines(&shown, printer.paint).join("\n"))?;
            }
            Ok(Exit::Done)
        }
        BackupCommand::Now {
            store,
            full,
            no_wait,
        } => {
            let request = BackupRequest { full };
            let frames = client.back_up(&scope, &store, &request, waits(no_wait));
            let frames = frames.await?;
            follow(printer, &store, frames).await
        }
        BackupCommand::Verify { store, no_wait } => {
            let frames = client.verify_backups(&scope, &store, waits(no_wait));
            let frames = frames.await?;
            follow(printer, &store, frames).await
        }
        BackupCommand::Prune {
            store,
            dry_run,
            no_wait,
        } => {
            let request = PruneRequest { dry_run };
            let frames = client.prune_backups(&scope, &store, &request, waits(no_wait));
            let frames = frames.await?;
            follow(printer, &store, frames).await
        }
        BackupCommand::Key { .. } => unreachable!("it was done above"),
    }
}

pub(super) async fn drill(
    printer: &Printer,
    global: &Global,
    client: &Client,
    store: &str,
    (full, no_wait): (bool, bool),
) -> Result<Exit, Failure> {
    let request = DrillRequest { full };
    let scope = scope(global)?;
    let frames = client.drill(&scope, store, &request, waits(no_wait));
    follow(printer, store, frames.await?).await
}

/// A person wants it done, whatever is under way.
fn waits(no_wait: bool) -> WaitQuery {
    WaitQuery { wait: !no_wait }
}

pub(super) async fn restore(
    printer: &Printer,
    global: &Global,
    client: &Client,
    command: RestoreCommand,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let (store, request, no_wait) = match command {
        RestoreCommand::Switch {
            store,
            to,
            yes,
            accept_loss,
        } => {
            let request = StoreSwitchRequest {
                to,
                dry_run: true,
                accept_loss,
                ..StoreSwitchRequest::default()
            };
            return switch(printer, client, &scope, &store, request, yes).await;
        }
        RestoreCommand::Run {
            store,
            name,
            to,
            accept_loss,
            no_wait,
        } => {
            let request = RestoreRequest {
                target: target(to),
                store: Some(name),
                folder: None,
                accept_loss,
            };
            (store, request, no_wait)
        }
        RestoreCommand::Export {
            store,
            into,
            to,
            accept_loss,
            no_wait,
        } => {
            let request = RestoreRequest {
                target: target(to),
                store: None,
                folder: Some(into),
                accept_loss,
            };
            (store, request, no_wait)
        }
    };
    let frames = client.restore(&scope, &store, &request, waits(no_wait));
    follow(printer, &store, frames.await?).await
}

/// Says what it would do, asks, and stays until the old store is let go.
async fn switch(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    store: &str,
    mut request: StoreSwitchRequest,
    yes: bool,
) -> Result<Exit, Failure> {
    let asked = client.switch_store(scope, store, &request).await?;
    for line in switch_lines(scope, &asked.plan) {
        printer.say(&line);
    }
    let full = format!("{scope}/{store}");
    request.confirm = match yes {
        true => full,
        false => typed_name(&full, "--yes", "Type the whole name of the store to begin").await?,
    };
    request.dry_run = false;
    let begun = client.switch_store(scope, store, &request).await?;
    let Some(rollout) = begun.rollout else {
        let error = anyhow!("the server began no rollout");
        return Err(Failure::new(Exit::Failed, error));
    };
    let exit = moves::stay(printer, client, scope, rollout, Wait::Seal, Want::Forward).await?;
    let StoreSwitchPlan { from, to, .. } = &begun.plan;
    if matches!(exit, Exit::Done) {
        printer.say(&format!(
            "{scope} {store} is served by {to}; {from} is deleted and kept for a week: `landfast restore switch {store} --to {from}` leads back until then"
        ));
    }
    Ok(exit)
}

fn switch_lines(scope: &Scope, plan: &StoreSwitchPlan) -> Vec<String> {
    let StoreSwitchPlan {
        store,
        from,
        to,
        release,
        ..
    } = plan;
    let mut lines = vec![
        format!("{scope} {store}: {to} takes the place of {from}, for release {release} as it is"),
        format!(
            "  the old release ends first: requests wait for up to 30 s, then are answered 503; within {} at worst it has ended, within {} more the new one serves, or the old one comes back",
            ms(plan.ends_ms),
            ms(plan.starts_ms)
        ),
        format!(
            "  what was written to {from} since the moment {to} was restored to is not in {to}"
        ),
    ];
    if plan.was_deleted {
        lines.push(format!("  {to} is deleted, and is had back for it"));
    }
    lines
}

fn target(to: RestoreTo) -> RestoreTarget {
    match to {
        RestoreTo { time: Some(at), .. } => RestoreTarget::Time(at),
        RestoreTo { lsn: Some(lsn), .. } => RestoreTarget::Lsn(lsn),
        RestoreTo {
            point: Some(name), ..
        } => RestoreTarget::Point(name),
        RestoreTo { .. } => RestoreTarget::Latest,
    }
}

/// Prints what is done until it has ended. Ctrl-C leaves it to itself.
async fn follow(
    printer: &Printer,
    store: &str,
    mut frames: Lines<BackupFrame>,
) -> Result<Exit, Failure> {
    let hint = format!("`landfast backup show {store}` shows how far it is");
    let mut is_waiting = false;
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame?,
            _ = tokio::signal::ctrl_c() => {
                let error = match is_waiting {
                    true => anyhow!("not begun: something else is under way"),
                    false => anyhow!("detached: it goes on by itself"),
                };
                return Err(Failure::new(Exit::Detached, error).hint(hint));
            }
        };
        let Some(frame) = frame else {
            let error = anyhow!("the server's answer ended before the work did");
            return Err(Failure::new(Exit::Unreachable, error).hint(hint));
        };
        if printer.json {
            printer.json_line(&frame)?;
        }
        let words = match frame {
            BackupFrame::Waiting { text } => {
                is_waiting = true;
                printer.say(&text);
                continue;
            }
            BackupFrame::Progress { text } => {
                is_waiting = false;
                printer.say(&text);
                continue;
            }
            BackupFrame::BackedUp { backup } => {
                let words = backed_up(store, &backup);
                if let Some(why) = &backup.bad {
                    let error = anyhow!("{words}, but it is bad: {why}");
                    return Err(Failure::new(Exit::Failed, error).hint("older backups stay; look at the server's disk, then `landfast drill` what there is"));
                }
                words
            }
            BackupFrame::Verified {
                objects,
                bytes: read,
            } => format!(
                "{store}: {objects} objects, {} read, all as they should be",
                bytes(read)
            ),
            BackupFrame::Pruned {
                buried,
                kept,
                deleted,
            } => {
                let mut lines = vec![match buried.is_empty() {
                    true => {
                        format!("{store}: no backup is too old; {deleted} objects removed")
                    }
                    false => format!(
                        "{store}: {} go, {deleted} objects removed",
                        buried.join(", ")
                    ),
                }];
                let kept = kept.into_iter();
                lines.extend(
                    kept.map(|(id, reasons)| format!("  {id} stays: {}", reasons.join(", "))),
                );
                lines.join("\n")
            }
            BackupFrame::Drilled { drill } => {
                let rehearsed = rehearsed_lines(&drill, printer.paint);
                [drill_lines(store, &drill), rehearsed].concat().join("\n")
            }
            BackupFrame::Restored { restored } => restored_lines(store, &restored).join("\n"),
            BackupFrame::Failed { problem } => return Err(Error::Problem(problem).into()),
            BackupFrame::Unknown => continue,
        };
        if !printer.json {
            printer.data(&words)?;
        }
        return Ok(Exit::Done);
    }
}

fn ms(millis: u64) -> String {
    duration(Duration::from_millis(millis))
}

fn backed_up(store: &str, backup: &Backup) -> String {
    let sort = match &backup.parent {
        None => "full".to_owned(),
        Some(parent) => format!("what changed since {parent}"),
    };
    format!(
        "{store}: backup {} of {} in {}, {} stored ({sort})",
        backup.id,
        bytes(backup.bytes),
        ms(backup.took_ms),
        bytes(backup.stored_bytes)
    )
}

fn drill_lines(store: &str, drill: &Drill) -> Vec<String> {
    let phase = |name: &str| drill.phases_ms.get(name).copied().unwrap_or(0);
    let ready = phase("plan") + phase("restore") + phase("replay");
    let rpo = drill.rpo_ms.map_or("unknown".to_owned(), ms);
    let backup = drill.backup.as_deref().unwrap_or("?");
    let mut lines = vec![match &drill.reached {
        Some(reached) => format!(
            "{store}: proven. Backup {backup} was out of recovery after {} at {reached}; {rpo} would have been lost",
            ms(ready)
        ),
        None => format!(
            "{store}: proven. Backup {backup} was restored in {}; {rpo} would have been lost",
            ms(ready)
        ),
    }];
    let names = drill.checks.iter().map(|check| check.name.as_str());
    let names = names.collect::<Vec<_>>().join(", ");
    lines.push(format!("  checked in {}: {names}", ms(phase("checks"))));
    lines
}

/// What pending migrations did on the copy.
fn rehearsed_lines(drill: &Drill, paint: Paint) -> Vec<String> {
    let rehearsal = drill.rehearsal.as_ref();
    let told = |one: &&MigrationRehearsal| !one.migrations.is_empty() || one.failure.is_some();
    let Some(rehearsal) = rehearsal.filter(told) else {
        return Vec::new();
    };
    let mut lines = vec![format!(
        "pending migrations were rehearsed on it, which says nothing of the backup:"
    )];
    let table = rehearsal_lines(rehearsal, paint).into_iter().skip(1);
    lines.extend(table.filter(|_| !rehearsal.migrations.is_empty()));
    for one in &rehearsal.migrations {
        let why = one.exceeded.iter();
        lines.extend(why.map(|why| paint.bad(&format!("{} {why}", one.name))));
    }
    let failure = rehearsal.failure.iter();
    lines.extend(failure.map(|why| paint.bad(&format!("the rehearsal failed: {why}"))));
    lines
}

fn restored_lines(store: &str, restored: &Restored) -> Vec<String> {
    let at = restored
        .at
        .map_or(String::new(), |at| format!(", as of {} UTC", instant(at)));
    let mut lines = vec![format!(
        "{store}: restored from backup {} to {}{at} in {}",
        restored.backup,
        restored.reached,
        ms(restored.took_ms)
    )];
    lines.extend(
        restored
            .lost
            .iter()
            .map(|lost| format!("  lost, as accepted: {lost}")),
    );
    lines.extend(
        restored
            .warnings
            .iter()
            .map(|warning| format!("  {warning}")),
    );
    if let Some(name) = &restored.store {
        lines.push(format!(
            "  it starts as store {name}: `landfast store psql {name}`"
        ));
    }
    if let Some(folder) = &restored.folder {
        lines.push(format!("  the files are in {folder}"));
    }
    lines
}

fn state(one: &StoreBackups, paint: Paint) -> String {
    let is_proven = one
        .drill
        .as_ref()
        .is_some_and(|drill| drill.failure.is_none());
    match (&*one.troubles, is_proven) {
        ([], true) => paint.good("proven"),
        ([], false) => paint.warn("not proven yet"),
        (_, _) => paint.bad("in trouble"),
    }
}

fn when(at: Option<At>) -> String {
    at.map_or("–".to_owned(), instant)
}

fn list_lines(stores: &[StoreBackups], paint: Paint) -> Vec<String> {
    let rows = stores.iter().map(|one| {
        let newest = one.backups.iter().rev().find(|backup| backup.bad.is_none());
        vec![
            one.store.clone(),
            state(one, paint),
            when(one.restorable_to),
            one.restore_ms.map_or("–".to_owned(), ms),
            newest.map_or("–".to_owned(), |backup| instant(backup.at)),
            when(one.drill.as_ref().and_then(|drill| drill.passed_at)),
            one.to.clone(),
        ]
    });
    let head = [
        "STORE, VOLUME",
        "STATE",
        "RESTORABLE TO (UTC)",
        "IN ABOUT",
        "NEWEST BACKUP",
        "PROVEN",
        "REPOSITORY",
    ];
    let mut lines = vec![table(&head, &[3], rows.collect())];
    for one in stores {
        lines.extend(rpo(one).map(|rpo| format!("{}: {rpo}", one.store)));
        let troubles = one.troubles.iter();
        lines.extend(troubles.map(|trouble| format!("{}: {}", one.store, paint.bad(trouble))));
    }
    lines
}

/// What is lost with the server or the host, where that goes by the clock.
pub(super) fn rpo(one: &StoreBackups) -> Option<String> {
    let most = ms(one.interval_ms?);
    let between = match one.source {
        BackupSource::Dumps => "dumps",
        BackupSource::Volume => "snapshots",
        BackupSource::Log | BackupSource::Unknown => return None,
    };
    let now = one.rpo_ms.map_or("everything".to_owned(), ms);
    Some(format!(
        "would be lost: {now} now, {most} at the most, the time between two {between}"
    ))
}

fn show_lines(one: &StoreBackups, paint: Paint) -> Vec<String> {
    let server = one.served_by.as_ref();
    let server = server.map_or(String::new(), |server| format!(" (served by {server})"));
    let what = match one.source {
        BackupSource::Volume => "volume",
        BackupSource::Log | BackupSource::Dumps | BackupSource::Unknown => "store",
    };
    let title = format!("{what} {}{server}  {}", one.store, one.to);
    let mut lines = vec![format!("{}, {}", paint.bold(&title), state(one, paint))];
    let about = one
        .restore_ms
        .map_or(String::new(), |took| format!(", in about {}", ms(took)));
    let to = when(one.restorable_to);
    lines.push(match one.source {
        BackupSource::Log | BackupSource::Unknown => {
            let lsn = one.restorable_lsn.as_deref().unwrap_or("–");
            let read = when(one.confirmed_at);
            format!("restorable to {to} UTC ({lsn}), read back {read}{about}")
        }
        BackupSource::Dumps | BackupSource::Volume => format!("restorable to {to} UTC{about}"),
    });
    lines.extend(rpo(one));
    lines.extend(one.troubles.iter().map(|trouble| paint.bad(trouble)));
    if let Some(work) = &one.running {
        let (kind, by) = (&work.kind, &work.by);
        lines.push(format!(
            "{kind} since {} by {by}: {}",
            instant(work.since),
            work.doing
        ));
    }
    if !one.backups.is_empty() {
        let rows = one.backups.iter().map(|backup| {
            vec![
                backup.id.clone(),
                instant(backup.at),
                ms(backup.took_ms),
                bytes(backup.bytes),
                bytes(backup.stored_bytes),
                backup.parent.clone().unwrap_or_else(|| "full".to_owned()),
                backup
                    .bad
                    .as_ref()
                    .map_or(String::new(), |why| paint.bad(&format!("bad: {why}"))),
            ]
        });
        let head = [
            "BACKUP",
            "BEGUN (UTC)",
            "TOOK",
            "SIZE",
            "STORED",
            "SINCE",
            "",
        ];
        lines.push(table(&head, &[2, 3, 4], rows.collect()));
    }
    let newest = one.backups.last();
    let notes = newest.into_iter().flat_map(|newest| &newest.notes);
    lines.extend(notes.take(NOTES_SHOWN).map(|note| format!("  {note}")));
    if !one.points.is_empty() {
        let points = one.points.iter().rev().take(POINTS_SHOWN).rev();
        let rows =
            points.map(|point| vec![point.name.clone(), instant(point.at), point.lsn.clone()]);
        lines.push(table(&["POINT", "MADE (UTC)", "LSN"], &[], rows.collect()));
    }
    if let Some(drill) = &one.drill {
        match &drill.failure {
            None => lines.extend(drill_lines(&one.store, drill)),
            Some(why) => lines.push(format!(
                "the drill of {} failed: {}",
                instant(drill.at),
                paint.bad(why)
            )),
        }
        let checks = drill.checks.iter();
        let gave = checks.filter_map(|check| Some((&check.name, check.gave.as_ref()?)));
        lines.extend(gave.map(|(name, gave)| format!("  {name} gave `{gave}`")));
        lines.extend(rehearsed_lines(drill, paint));
    }
    lines
}

async fn key(
    printer: &Printer,
    client: &Client,
    command: Option<BackupKeyCommand>,
) -> Result<Exit, Failure> {
    let (key, words) = match command {
        None => {
            let key = client.backup_key().await?;
            let copy = match key.confirmed_at {
                Some(at) => format!("a copy was confirmed on {} UTC", instant(at)),
                None => "no copy was confirmed: `landfast backup key export`, then `landfast backup key confirm`".to_owned(),
            };
            let words = format!("key {} in {}\n{copy}", key.id, key.path);
            (key, words)
        }
        Some(BackupKeyCommand::Export { reveal }) => {
            if io::stdout().is_terminal() && !reveal {
                let refused = anyhow!("the key is not printed to a terminal");
                let failure = Failure::new(Exit::Usage, refused);
                return Err(failure.hint("lead it into a file or a pipe, or add `--reveal`"));
            }
            let key = client.export_backup_key().await?;
            if printer.json {
                printer.json(&key)?;
                return Ok(Exit::Done);
            }
            let mut stdout = io::stdout().lock();
            stdout.write_all(key.text.reveal().as_bytes())?;
            stdout.flush()?;
            printer.say("keep it where this host is not, then read it back from there: `landfast backup key confirm`");
            return Ok(Exit::Done);
        }
        Some(BackupKeyCommand::Confirm { path }) => {
            let copy = blocking(move || read_file_or_stdin(path.as_deref(), KEY_BYTES_MAX));
            let key = client.confirm_backup_key(&copy.await??).await?;
            let words = format!("it is a copy of key {}", key.id);
            (key, words)
        }
    };
    if printer.json {
        printer.json(&key)?;
    } else {
        printer.data(&words)?;
    }
    Ok(Exit::Done)
}
