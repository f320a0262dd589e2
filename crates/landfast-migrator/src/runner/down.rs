//! The way down: the newest migration is taken back step by step, and on from where it was cut.

use landfast_migration::{
    Evidence, History, Migration, MigrationSet, Phase, Script, StepKind, StepState, down_position,
    steps,
};

use super::{Database, End, Work, attempt, lock, title, unlock};
use crate::{Listener, MigratorError, Options, Progress};

pub(crate) async fn down<D: Database>(
    database: &mut D,
    set: &MigrationSet,
    number: u32,
    options: &Options,
    listener: Listener<'_>,
) -> Result<String, MigratorError> {
    lock(database, options, listener).await?;
    let done = down_locked(database, set, number, options, listener).await;
    unlock(database).await;
    done
}

async fn down_locked<D: Database>(
    database: &mut D,
    set: &MigrationSet,
    number: u32,
    options: &Options,
    listener: Listener<'_>,
) -> Result<String, MigratorError> {
    database.ensure_history().await?;
    let history = database.history().await?;
    let (migration, script) = way_down(set, &history, number)?;
    let title = migration.title();
    let first = history.first(number);
    let begun = first.filter(|record| record.state == StepState::Reverting);
    let (due, fingerprint) = down_position(begun.and_then(|record| record.position.as_deref()));
    let all = steps(script, migration.engine);
    let last = all.len() as u32;
    for step in all.iter().filter(|step| step.step >= due) {
        let work = Work {
            migration,
            script,
            step,
            options,
            guard: None,
            end: if step.step == last {
                End::Forgotten
            } else {
                End::Due(step.step + 1)
            },
        };
        // Only the step that was under way may have taken effect already.
        let earlier = begun.filter(|_| step.step == due && step.kind != StepKind::Transaction);
        if earlier.is_some() && took_effect(database, &work, fingerprint, listener).await? {
            continue;
        }
        listener(Progress::Begins {
            migration: title.clone(),
            step: step.step,
            steps: last,
        });
        database.record_down(&work).await?;
        if let Err(error) = attempt(database, &work, listener).await {
            // What cannot be found out now the next run finds out.
            if step.step == 1
                && let Ok(true) = left_nothing(database, &work).await
                && let Err(error) = database.keep(number).await
            {
                tracing::debug!(%error, "the record of a failed way down stays");
            }
            return Err(error);
        }
    }
    database.forget(number).await?;
    listener(Progress::Reverted {
        migration: title.clone(),
    });
    Ok(title)
}

/// The migration that may be taken back, and the script that does it.
pub(crate) fn way_down<'a>(
    set: &'a MigrationSet,
    history: &History,
    number: u32,
) -> Result<(&'a Migration, &'a Script), MigratorError> {
    let newest = history.migrations().next_back();
    let newest = newest.ok_or(MigratorError::NothingApplied)?;
    if newest.number != number {
        return Err(MigratorError::NotNewest {
            newest: title(newest),
            wanted: number,
        });
    }
    let migration = set.get(number).ok_or(MigratorError::Unknown(number))?;
    let title = migration.title();
    if migration.phase() == Phase::Contract {
        return Err(MigratorError::ContractStays(title));
    }
    if !history.is_applied(number) && !history.is_reverting(number) {
        return Err(MigratorError::NotWhole(title));
    }
    let Some(script) = &migration.down else {
        return Err(MigratorError::NoWayDown(title));
    };
    if script.header.batch.is_some() {
        return Err(MigratorError::Backfill {
            migration: title,
            reason: "a way down runs in one go, without `batch`".to_owned(),
        });
    }
    Ok((migration, script))
}

/// Whether the first step of a way down, which failed, has left nothing.
async fn left_nothing<D: Database>(
    database: &mut D,
    work: &Work<'_>,
) -> Result<bool, MigratorError> {
    if work.step.kind == StepKind::Transaction {
        return Ok(true);
    }
    let history = database.history().await?;
    let first = history.first(work.migration.number);
    let position = first.and_then(|record| record.position.as_deref());
    let (_, fingerprint) = down_position(position);
    Ok(database.down_evidence(work, fingerprint).await? == Evidence::NotDone)
}

/// Whether a step of the way down that was cut off had done its work.
async fn took_effect<D: Database>(
    database: &mut D,
    work: &Work<'_>,
    fingerprint: Option<&str>,
    listener: Listener<'_>,
) -> Result<bool, MigratorError> {
    listener(Progress::Resumes {
        migration: work.migration.title(),
        step: work.step.step,
    });
    match database.down_evidence(work, fingerprint).await? {
        Evidence::Done => Ok(true),
        Evidence::NotDone => Ok(false),
        Evidence::Broken => {
            database.clean(work).await?;
            Ok(false)
        }
        Evidence::Unknown => Err(MigratorError::Undecided {
            migration: work.migration.title(),
            number: work.migration.number,
            step: work.step.step,
        }),
    }
}
