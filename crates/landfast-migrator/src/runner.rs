//! The loop that both engines share: lock, plan, and each migration step by step.

mod down;

use std::{collections::BTreeMap, time::Duration};

use landfast_migration::{
    Evidence, History, Migration, MigrationSet, Next, Phase, Plan, Record, Script, Step, StepKind,
    StepState, beyond_its_database, next, steps,
};
use rand::RngExt as _;
use tokio::time::sleep;

pub(crate) use self::down::{down, way_down};
use crate::{
    Guard, Listener, MigratorError, Notes, Options, Progress, Report, Stage,
    ledger::Ledger,
    observe::{Observed, now},
};

/// Between two looks at the lock.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// What became of one try of a step.
pub(crate) enum Tried {
    Done,
    /// It got no lock, or was chosen to break a deadlock. Nothing of it is left.
    NoLock(String),
}

/// What of a step an engine has to know to run it.
pub(crate) struct Work<'a> {
    pub(crate) migration: &'a Migration,
    pub(crate) script: &'a Script,
    pub(crate) step: &'a Step,
    pub(crate) options: &'a Options,
    /// Only for contract migrations.
    pub(crate) guard: Option<&'a Guard>,
    pub(crate) end: End,
}

/// What is recorded when a step has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Of a way up: the step is applied.
    Applied,
    /// Of a way down: the next step is due.
    Due(u32),
    /// Of a way down: nothing is left of the migration.
    Forgotten,
}

impl Work<'_> {
    /// The error of one of its statements.
    pub(crate) fn failed(&self, index: usize, reason: String) -> MigratorError {
        MigratorError::Statement {
            migration: self.migration.title(),
            statement: index + 1,
            line: self.script.statements[index].line,
            reason,
        }
    }

    pub(crate) fn lock_timeout(&self) -> Duration {
        let header = &self.script.header;
        header.lock_timeout.unwrap_or(self.options.lock_timeout)
    }
}

/// One engine. Methods that change something are told the work; records are made by them in the same transaction where the
/// step's kind asks for it.
pub(crate) trait Database {
    /// How it writes its history.
    fn ledger(&self) -> &'static Ledger;
    /// Runs one statement of it.
    async fn record(&mut self, doing: &str, statement: &str) -> Result<(), MigratorError>;
    async fn try_lock(&mut self) -> Result<bool, MigratorError>;
    /// Who holds the lock of this database, if anybody does.
    async fn lock_holder(&mut self) -> Result<Option<String>, MigratorError>;
    async fn unlock(&mut self) -> Result<(), MigratorError>;
    async fn ensure_history(&mut self) -> Result<(), MigratorError>;
    async fn history(&mut self) -> Result<History, MigratorError>;
    /// What people want to know of the rows, by number and step.
    async fn notes(&mut self) -> Result<BTreeMap<(u32, u32), Notes>, MigratorError>;
    async fn restore_point(&mut self, name: &str) -> Result<Option<String>, MigratorError>;
    /// Records a step as started, and what evidence will be compared with.
    async fn record_started(
        &mut self,
        record: Record,
        work: &Work<'_>,
    ) -> Result<(), MigratorError>;
    /// Takes the record of a step back that is known to have left nothing: its file may be mended and run again.
    async fn record_void(&mut self, number: u32, step: u32) -> Result<(), MigratorError> {
        let void = self.ledger().void(number, step);
        self.record("record that a step left nothing", &void).await
    }
    async fn record_applied(&mut self, number: u32, step: u32) -> Result<(), MigratorError> {
        let applied = self.ledger().applied(number, step);
        self.record("record the step", &applied).await
    }
    /// Who holds a table of the step in a transaction older than the options say.
    async fn blocker(&mut self, work: &Work<'_>) -> Result<Option<String>, MigratorError>;
    /// Runs a step once. A transaction records itself as applied, the others do not.
    async fn try_step(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError>;
    /// The next range of a backfill behind what is recorded; rows, and the key up to which it went. `None`: all is done.
    async fn try_range(&mut self, work: &Work<'_>) -> Result<Range, MigratorError>;
    async fn evidence(
        &mut self,
        work: &Work<'_>,
        history: &History,
    ) -> Result<Evidence, MigratorError>;
    async fn clean(&mut self, work: &Work<'_>) -> Result<(), MigratorError>;
    /// The next value of a sequence; with nobody else about it is the one after the last.
    async fn next_value(&mut self, sequence: &str) -> Result<i64, MigratorError>;
    /// Records that a step of the way down begins, and what evidence will be compared with.
    async fn record_down(&mut self, work: &Work<'_>) -> Result<(), MigratorError>;
    /// What became of a bare statement or a definition of the way down that was begun before.
    async fn down_evidence(
        &mut self,
        work: &Work<'_>,
        fingerprint: Option<&str>,
    ) -> Result<Evidence, MigratorError>;
    /// Records that a way down has left nothing: its migration is applied as before.
    async fn keep(&mut self, number: u32) -> Result<(), MigratorError> {
        let kept = self.ledger().kept(number);
        self.record("record that nothing was taken back", &kept)
            .await
    }
    /// Forgets a migration: its way down has run.
    async fn forget(&mut self, number: u32) -> Result<(), MigratorError> {
        let forgotten = self.ledger().forgotten(number);
        self.record("record the way down", &forgotten).await
    }
    /// Begins to look at what happens to the database.
    async fn observe(&mut self) -> Result<(), MigratorError>;
    /// What has happened since.
    async fn observed(&mut self) -> Result<Observed, MigratorError>;
    /// Takes a migration for applied with the checksum its file has now.
    async fn accept(
        &mut self,
        migration: &Migration,
        steps: u32,
        reason: &str,
    ) -> Result<(), MigratorError>;
}

/// What became of one try of a range.
pub(crate) enum Range {
    Done { rows: u64, position: String },
    NoLock(String),
    End,
}

pub(crate) async fn up<D: Database>(
    database: &mut D,
    set: &MigrationSet,
    stage: Stage,
    options: &Options,
    listener: Listener<'_>,
) -> Result<Report, MigratorError> {
    lock(database, options, listener).await?;
    let done = up_locked(database, set, stage, options, listener).await;
    unlock(database).await;
    done
}

/// A connection that is gone holds nothing.
async fn unlock<D: Database>(database: &mut D) {
    if let Err(error) = database.unlock().await {
        tracing::debug!(%error, "the lock goes with its connection");
    }
}

async fn lock<D: Database>(
    database: &mut D,
    options: &Options,
    listener: Listener<'_>,
) -> Result<(), MigratorError> {
    let mut waited = Duration::ZERO;
    while !database.try_lock().await? {
        let holder = database.lock_holder().await?;
        let holder = holder.unwrap_or_else(|| "somebody who has left".to_owned());
        if waited >= options.runner_wait {
            return Err(MigratorError::RunnerBusy { holder });
        }
        if waited.is_zero() {
            listener(Progress::WaitsForRunner { holder });
        }
        sleep(LOCK_POLL).await;
        waited += LOCK_POLL;
    }
    Ok(())
}

async fn up_locked<D: Database>(
    database: &mut D,
    set: &MigrationSet,
    stage: Stage,
    options: &Options,
    listener: Listener<'_>,
) -> Result<Report, MigratorError> {
    database.ensure_history().await?;
    let history = database.history().await?;
    let numbers = pending(set, &history, stage)?;
    let mut report = Report::default();
    if numbers.is_empty() {
        return Ok(report);
    }
    if let Some(name) = &options.restore_point {
        report.restore_point = database.restore_point(name).await?;
    }
    for number in numbers {
        let Some(migration) = set.get(number) else {
            continue;
        };
        run(database, migration, options, listener).await?;
        let migration = migration.title();
        listener(Progress::Applied {
            migration: migration.clone(),
        });
        report.applied.push(migration);
    }
    Ok(report)
}

/// What a run of a stage does, in order.
pub(crate) fn pending(
    set: &MigrationSet,
    history: &History,
    stage: Stage,
) -> Result<Vec<u32>, MigratorError> {
    let mut begun = history.migrations();
    if let Some(half) = begun.find(|record| history.is_reverting(record.number)) {
        return Err(MigratorError::Reverting(title(half)));
    }
    let plan = Plan::new(set, history);
    if !plan.contradictions.is_empty() {
        return Err(MigratorError::Contradictions(plan.contradictions));
    }
    Ok(match stage {
        Stage::All => {
            let pending = set.iter().map(|migration| migration.number);
            pending
                .filter(|number| !history.is_applied(*number))
                .collect()
        }
        Stage::Expand if !plan.blocked.is_empty() => {
            return Err(MigratorError::Blocked(plan.blocked));
        }
        Stage::Expand => plan.numbers(Phase::Expand),
        Stage::Contract => plan.numbers(Phase::Contract),
    })
}

fn title(record: &Record) -> String {
    format!("{:04}_{}", record.number, record.name)
}

/// Runs what is pending and looks at what each migration does.
pub(crate) async fn rehearse<D: Database>(
    database: &mut D,
    set: &MigrationSet,
    stage: Stage,
    options: &Options,
    listener: Listener<'_>,
) -> (Vec<Observed>, Result<(), MigratorError>) {
    let mut seen = Vec::new();
    let ran = async {
        lock(database, options, listener).await?;
        database.ensure_history().await?;
        let history = database.history().await?;
        for number in pending(set, &history, stage)? {
            let Some(migration) = set.get(number) else {
                continue;
            };
            stays_in_its_copy(migration)?;
            database.observe().await?;
            let begun = now();
            let ran = run(database, migration, options, listener).await;
            let took = now().duration_since(begun);
            let observed = match database.observed().await {
                Ok(observed) => observed,
                // What the migration itself said is worth more.
                Err(error) => return ran.and(Err(error)),
            };
            seen.push(Observed {
                migration: migration.title(),
                took,
                ..observed
            });
            ran?;
            listener(Progress::Applied {
                migration: migration.title(),
            });
        }
        Ok(())
    };
    let ran = ran.await;
    unlock(database).await;
    (seen, ran)
}

/// A copy lies on the server of its original: what concerns that as a whole would not be tried but done.
fn stays_in_its_copy(migration: &Migration) -> Result<(), MigratorError> {
    for (index, statement) in migration.up.statements.iter().enumerate() {
        if let Some(words) = beyond_its_database(statement, migration.engine) {
            return Err(MigratorError::Statement {
                migration: migration.title(),
                statement: index + 1,
                line: statement.line,
                reason: format!(
                    "`{words}` reaches beyond the copy, to what the server has for the database itself, and was not tried; a database's settings \
                     are changed on whichever it is run in by `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET …', current_database()); END $$`; \
                     what concerns roles is done by hand (`landfast store psql`)"
                ),
            });
        }
    }
    Ok(())
}

/// Brings one migration to its end, from wherever it is.
async fn run<D: Database>(
    database: &mut D,
    migration: &Migration,
    options: &Options,
    listener: Listener<'_>,
) -> Result<(), MigratorError> {
    let count = steps(&migration.up, migration.engine).len() as u32;
    let mut evidence = None;
    loop {
        let history = database.history().await?;
        let decided = next(migration, &history, evidence.take());
        let step = match &decided {
            Next::Finished => return Ok(()),
            Next::Begin(step)
            | Next::Run(step)
            | Next::Ask(step)
            | Next::Clean(step)
            | Next::Record(step)
            | Next::Stop(step) => step.clone(),
        };
        let work = Work {
            migration,
            script: &migration.up,
            step: &step,
            options,
            guard: options
                .guard
                .as_ref()
                .filter(|_| migration.phase() == Phase::Contract),
            end: End::Applied,
        };
        match decided {
            Next::Finished => return Ok(()),
            Next::Begin(_) => {
                if step.step == 1 {
                    await_quiet(database, migration, options).await?;
                }
                let title = migration.title();
                listener(Progress::Begins {
                    migration: title,
                    step: step.step,
                    steps: count,
                });
                let record = record(migration, &step, count, options);
                database.record_started(record, &work).await?;
                perform(database, &work, listener).await?;
            }
            Next::Run(_) => perform(database, &work, listener).await?,
            Next::Ask(_) => {
                listener(Progress::Resumes {
                    migration: migration.title(),
                    step: step.step,
                });
                evidence = Some(database.evidence(&work, &history).await?);
            }
            Next::Clean(_) => {
                database.clean(&work).await?;
                evidence = Some(Evidence::NotDone);
            }
            Next::Record(_) => database.record_applied(migration.number, step.step).await?,
            Next::Stop(_) => {
                return Err(MigratorError::Undecided {
                    migration: migration.title(),
                    number: migration.number,
                    step: step.step,
                });
            }
        }
    }
}

/// A migration that takes the old way away runs only where nobody uses it any more. Releases are known, other programs are not:
/// what they write is counted by a sequence of the migration's author, so it is seen without locks.
async fn await_quiet<D: Database>(
    database: &mut D,
    migration: &Migration,
    options: &Options,
) -> Result<(), MigratorError> {
    let Some(sequence) = &migration.up.header.quiet else {
        return Ok(());
    };
    let before = database.next_value(sequence).await?;
    sleep(options.quiet).await;
    let writes = database.next_value(sequence).await? - before - 1;
    if writes == 0 {
        return Ok(());
    }
    Err(MigratorError::StillWritten {
        migration: migration.title(),
        sequence: sequence.clone(),
        writes,
        seconds: options.quiet.as_secs_f64(),
    })
}

fn record(migration: &Migration, step: &Step, steps: u32, options: &Options) -> Record {
    Record {
        number: migration.number,
        step: step.step,
        steps,
        name: migration.name.clone(),
        phase: migration.phase(),
        checksum: migration.checksum,
        state: StepState::Started,
        breaks_older: migration.phase() == Phase::Contract,
        position: None,
        release: options.release.clone(),
    }
}

/// Runs a step that is recorded as started, and records its end. Where it is known to have left nothing, the record goes.
async fn perform<D: Database>(
    database: &mut D,
    work: &Work<'_>,
    listener: Listener<'_>,
) -> Result<(), MigratorError> {
    let (number, step) = (work.migration.number, work.step.step);
    if let Err(error) = attempt(database, work, listener).await {
        // What cannot be found out now, because the connection is gone perhaps, the next run finds out.
        if is_void(database, work).await.unwrap_or(false)
            && let Err(error) = database.record_void(number, step).await
        {
            tracing::debug!(%error, "the record of a failed step stays");
        }
        return Err(error);
    }
    if work.step.kind != StepKind::Transaction {
        database.record_applied(number, step).await?;
    }
    Ok(())
}

/// Whether a step that failed has left nothing. What a bare statement left is removed.
async fn is_void<D: Database>(database: &mut D, work: &Work<'_>) -> Result<bool, MigratorError> {
    match work.step.kind {
        StepKind::Transaction => Ok(true),
        // Its first ranges are done.
        StepKind::Backfill => Ok(false),
        StepKind::Bare(_) | StepKind::Definition => {
            sweep(database, work).await?;
            let history = database.history().await?;
            Ok(database.evidence(work, &history).await? == Evidence::NotDone)
        }
    }
}

async fn attempt<D: Database>(
    database: &mut D,
    work: &Work<'_>,
    listener: Listener<'_>,
) -> Result<(), MigratorError> {
    if work.step.kind == StepKind::Backfill {
        return backfill(database, work, listener).await;
    }
    let mut tries = Tries::new(work.options);
    loop {
        wait_for_blockers(database, work, listener).await?;
        match database.try_step(work).await? {
            Tried::Done => return Ok(()),
            Tried::NoLock(reason) => {
                sweep(database, work).await?;
                tries.again(work, reason, listener).await?;
            }
        }
    }
}

/// What a bare statement left must not stay: nobody would clean it before the next run.
async fn sweep<D: Database>(database: &mut D, work: &Work<'_>) -> Result<(), MigratorError> {
    let StepKind::Bare(_) = work.step.kind else {
        return Ok(());
    };
    let history = database.history().await?;
    if database.evidence(work, &history).await? == Evidence::Broken {
        database.clean(work).await?;
    }
    Ok(())
}

async fn backfill<D: Database>(
    database: &mut D,
    work: &Work<'_>,
    listener: Listener<'_>,
) -> Result<(), MigratorError> {
    let mut tries = Tries::new(work.options);
    let mut total = 0;
    loop {
        match database.try_range(work).await? {
            Range::End => return Ok(()),
            Range::NoLock(reason) => tries.again(work, reason, listener).await?,
            Range::Done { rows, position } => {
                tries = Tries::new(work.options);
                total += rows;
                listener(Progress::Backfilled {
                    migration: work.migration.title(),
                    rows: total,
                    position,
                });
                sleep(work.options.batch_pause).await;
            }
        }
    }
}

/// Whoever asks for a lock behind a long transaction blocks all that come after, so nobody asks before it has ended.
async fn wait_for_blockers<D: Database>(
    database: &mut D,
    work: &Work<'_>,
    listener: Listener<'_>,
) -> Result<(), MigratorError> {
    let mut tries = Tries::new(work.options);
    while let Some(blocker) = database.blocker(work).await? {
        listener(Progress::WaitsForTransaction {
            migration: work.migration.title(),
            blocker: blocker.clone(),
        });
        tries.again(work, blocker, &mut |_| {}).await?;
    }
    Ok(())
}

/// Pauses between tries, longer and longer, each a little different so that two runners do not stay in step.
struct Tries {
    done: u32,
    pause: Duration,
}

impl Tries {
    fn new(options: &Options) -> Self {
        Self {
            done: 0,
            pause: options.retry_first,
        }
    }

    async fn again(
        &mut self,
        work: &Work<'_>,
        reason: String,
        listener: Listener<'_>,
    ) -> Result<(), MigratorError> {
        self.done += 1;
        let migration = work.migration.title();
        if self.done >= work.options.lock_tries {
            return Err(MigratorError::NoLock {
                migration,
                tries: self.done,
                reason,
            });
        }
        listener(Progress::Retries {
            migration,
            attempt: self.done,
            reason,
        });
        let jitter = rand::rng().random_range(0.75..1.25);
        sleep(self.pause.mul_f64(jitter)).await;
        self.pause = (self.pause * 2).min(work.options.retry_max);
        Ok(())
    }
}

pub(crate) async fn accept<D: Database>(
    database: &mut D,
    set: &MigrationSet,
    number: u32,
    reason: &str,
    options: &Options,
    listener: Listener<'_>,
) -> Result<(), MigratorError> {
    let migration = set.get(number).ok_or(MigratorError::Unknown(number))?;
    lock(database, options, listener).await?;
    let count = steps(&migration.up, migration.engine).len() as u32;
    let done = async {
        database.ensure_history().await?;
        acceptable(&database.history().await?, migration)?;
        database.accept(migration, count, reason).await
    };
    let done = done.await;
    unlock(database).await;
    done
}

/// Only what has run, though not as its file is now, or of which nobody can tell whether it has.
fn acceptable(history: &History, migration: &Migration) -> Result<(), MigratorError> {
    let (number, title) = (migration.number, migration.title());
    let Some(first) = history.first(number) else {
        return Err(MigratorError::NotBegun(title));
    };
    if history.is_reverting(number) {
        return Err(MigratorError::Reverting(title));
    }
    let mut records = history.records().filter(|record| record.number == number);
    let is_undecided = records.any(|record| record.state == StepState::Started);
    if first.checksum != migration.checksum || is_undecided {
        return Ok(());
    }
    Err(match history.is_applied(number) {
        true => MigratorError::AppliedAsItIs(title),
        false => MigratorError::NotWhole(title),
    })
}
