//! Runs migrations against a database, so that each happens once, whoever dies in between.
//!
//! What comes next is decided by `landfast-migration`; here it is done. A run holds one session lock, which is polled and never
//! waited for in the server (a blocked waiter and a `CREATE INDEX CONCURRENTLY` wait for each other). Each step is recorded
//! before it begins and after it ended; what a dead runner left between the two is found out from the database itself.
//! No statement waits longer for a lock than the lock timeout: whoever waits for a lock blocks everybody behind it.
//!
//! Dropping the future of a run ends its connection; the server takes back what was not committed.
//!
//! Guarantees and their grounds are in the step model ([`landfast_migration::next`]). Assumptions: the connection is direct
//! (a pooling proxy that shares sessions is refused), and nobody else writes the history table.

mod error;
mod ledger;
mod mariadb;
mod observe;
mod options;
mod postgres;
mod runner;

use std::time::Duration;

use landfast_datastore_client::StoreError;
use landfast_migration::{Engine, History, Migration, MigrationSet, Record, Statement, StepState};
use landfast_types::{Secret, Timestamp};

pub use crate::{
    error::MigratorError,
    observe::{Observed, Strength, TableLock, Way},
    options::{Guard, Options, Progress, Report, Stage},
};

/// The numbers that a run of a stage would bring to their end, in order.
///
/// # Errors
/// [`MigratorError`]: files and history contradict each other, or something must come first.
pub fn pending(
    set: &MigrationSet,
    history: &History,
    stage: Stage,
) -> Result<Vec<u32>, MigratorError> {
    runner::pending(set, history, stage)
}

/// The newest migration, if it can be taken back.
///
/// # Errors
/// [`MigratorError`]: why not.
pub fn revertible<'a>(
    set: &'a MigrationSet,
    history: &History,
) -> Result<&'a Migration, MigratorError> {
    let newest = history.migrations().next_back();
    let number = newest.ok_or(MigratorError::NothingApplied)?.number;
    runner::way_down(set, history, number).map(|(migration, _)| migration)
}

/// Connecting twice, and finding out whether a proxy is in between, takes no longer.
const REACH_MAX: Duration = Duration::from_secs(45);

/// A direct connection to a database.
pub struct Session(Inner);

enum Inner {
    Postgres(Box<postgres::Database>),
    Mariadb(Box<mariadb::Database>),
}

/// Told what happens, as it happens.
pub type Listener<'a> = &'a mut (dyn FnMut(Progress) + Send);

impl Session {
    /// Connects, and makes sure that the session is one.
    ///
    /// # Errors
    /// [`MigratorError`]: no answer, or a pooling proxy in between.
    pub async fn connect(engine: Engine, url: &Secret<String>) -> Result<Self, MigratorError> {
        Self::connect_within(engine, url, REACH_MAX).await
    }

    async fn connect_within(
        engine: Engine,
        url: &Secret<String>,
        max: Duration,
    ) -> Result<Self, MigratorError> {
        let reach = async {
            Ok(Self(match engine {
                Engine::Postgres => {
                    Inner::Postgres(Box::new(postgres::Database::connect(url).await?))
                }
                Engine::Mariadb => Inner::Mariadb(Box::new(mariadb::Database::connect(url).await?)),
            }))
        };
        let reached = tokio::time::timeout(max, reach).await;
        reached.unwrap_or(Err(MigratorError::Unreachable(StoreError::Silent)))
    }

    /// What the database says was done to it. A database without a history table has none.
    ///
    /// # Errors
    /// [`MigratorError`].
    pub async fn history(&mut self) -> Result<History, MigratorError> {
        match &mut self.0 {
            Inner::Postgres(database) => runner::Database::history(database.as_mut()).await,
            Inner::Mariadb(database) => runner::Database::history(database.as_mut()).await,
        }
    }

    /// Runs what is pending in a stage. Nothing to do is no error.
    ///
    /// # Errors
    /// [`MigratorError`]: what ran before the error stays, and is in the history.
    pub async fn up(
        &mut self,
        set: &MigrationSet,
        stage: Stage,
        options: &Options,
        listener: Listener<'_>,
    ) -> Result<Report, MigratorError> {
        match &mut self.0 {
            Inner::Postgres(database) => {
                runner::up(database.as_mut(), set, stage, options, listener).await
            }
            Inner::Mariadb(database) => {
                runner::up(database.as_mut(), set, stage, options, listener).await
            }
        }
    }

    /// The rows of the history with what people want to know besides.
    ///
    /// # Errors
    /// [`MigratorError`].
    pub async fn rows(&mut self) -> Result<Vec<Row>, MigratorError> {
        let history = self.history().await?;
        let mut notes = match &mut self.0 {
            Inner::Postgres(database) => runner::Database::notes(database.as_mut()).await,
            Inner::Mariadb(database) => runner::Database::notes(database.as_mut()).await,
        }?;
        let row = |record: &Record| Row {
            notes: notes
                .remove(&(record.number, record.step))
                .unwrap_or_default(),
            record: record.clone(),
        };
        Ok(history.records().map(row).collect())
    }

    /// Who runs migrations here just now, if anybody does.
    ///
    /// # Errors
    /// [`MigratorError`].
    pub async fn runner(&mut self) -> Result<Option<String>, MigratorError> {
        match &mut self.0 {
            Inner::Postgres(database) => runner::Database::lock_holder(database.as_mut()).await,
            Inner::Mariadb(database) => runner::Database::lock_holder(database.as_mut()).await,
        }
    }

    /// Takes the newest migration back by its way down; gives its title. One that was cut off goes on where it stopped.
    ///
    /// # Errors
    /// [`MigratorError`]: it is not the newest one, is not applied, has no way down, or is a `contract` migration.
    pub async fn down(
        &mut self,
        set: &MigrationSet,
        number: u32,
        options: &Options,
        listener: Listener<'_>,
    ) -> Result<String, MigratorError> {
        match &mut self.0 {
            Inner::Postgres(database) => {
                runner::down(database.as_mut(), set, number, options, listener).await
            }
            Inner::Mariadb(database) => {
                runner::down(database.as_mut(), set, number, options, listener).await
            }
        }
    }

    /// Runs what is pending in a stage, and tells of each migration what it did to the database. For a copy: the look from
    /// inside costs time while locks are held.
    ///
    /// # Errors
    /// [`MigratorError`] with what was seen before it.
    pub async fn rehearse(
        &mut self,
        set: &MigrationSet,
        stage: Stage,
        options: &Options,
        listener: Listener<'_>,
    ) -> (Vec<Observed>, Result<(), MigratorError>) {
        match &mut self.0 {
            Inner::Postgres(database) => {
                runner::rehearse(database.as_mut(), set, stage, options, listener).await
            }
            Inner::Mariadb(database) => {
                runner::rehearse(database.as_mut(), set, stage, options, listener).await
            }
        }
    }

    /// Takes a changed file, or a step that nobody could judge, for applied as it is now.
    ///
    /// # Errors
    /// [`MigratorError`]: the set does not know the number.
    pub async fn accept(
        &mut self,
        set: &MigrationSet,
        number: u32,
        reason: &str,
        options: &Options,
        listener: Listener<'_>,
    ) -> Result<(), MigratorError> {
        match &mut self.0 {
            Inner::Postgres(database) => {
                runner::accept(database.as_mut(), set, number, reason, options, listener).await
            }
            Inner::Mariadb(database) => {
                runner::accept(database.as_mut(), set, number, reason, options, listener).await
            }
        }
    }
}

/// A row of the history table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub record: Record,
    pub notes: Notes,
}

/// What only people want to know of a row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes {
    /// By the database's clock.
    pub started_at: Option<Timestamp>,
    pub applied_at: Option<Timestamp>,
    /// Why somebody accepted it.
    pub accepted: Option<String>,
}

/// The columns of a row of the history table, checked.
fn record(
    [number, step, steps]: [u32; 3],
    [name, phase, checksum, state]: [String; 4],
    breaks_older: bool,
    [position, release]: [Option<String>; 2],
) -> Result<Record, MigratorError> {
    let damaged = |what: &'static str| MigratorError::History { number, step, what };
    Ok(Record {
        number,
        step,
        steps,
        name,
        phase: phase.parse().map_err(|_| damaged("phase"))?,
        checksum: checksum.parse().map_err(|_| damaged("checksum"))?,
        state: match state.as_str() {
            "started" => StepState::Started,
            "applied" => StepState::Applied,
            "reverting" => StepState::Reverting,
            _ => return Err(damaged("state")),
        },
        breaks_older,
        position,
        release,
    })
}

fn state_word(state: StepState) -> &'static str {
    match state {
        StepState::Started => "started",
        StepState::Applied => "applied",
        StepState::Reverting => "reverting",
    }
}

/// A backfill's statement for one range. The bounds are literals: their type is the column's.
fn range_text(statement: &Statement, from: &str, to: &str) -> String {
    let with_from = replace(&statement.text, ":from", from);
    replace(&with_from, ":to", to)
}

/// Puts a value in the place of a placeholder, but not into `::total` or `:tomorrow`.
fn replace(text: &str, placeholder: &str, value: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(placeholder) {
        let (before, found) = rest.split_at(at);
        let after = &found[placeholder.len()..];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let inside = before.ends_with(':') || after.starts_with(is_word);
        out.push_str(before);
        out.push_str(if inside { placeholder } else { value });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A pooler that is paused lets clients in, and answers no statement.
    #[tokio::test]
    async fn a_pooler_that_is_paused_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut startup = [0; 512];
            let _length = client.read(&mut startup).await.unwrap();
            // AuthenticationOk, ReadyForQuery.
            let welcome = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
            client.write_all(welcome).await.unwrap();
            std::future::pending::<()>().await;
        });
        let url = Secret::new(format!("postgres://a:b@127.0.0.1:{port}/d?sslmode=disable"));
        let max = Duration::from_millis(500);
        let connected = Session::connect_within(Engine::Postgres, &url, max).await;
        assert!(matches!(
            connected,
            Err(MigratorError::Unreachable(StoreError::Silent))
        ));
    }

    #[test]
    fn placeholders_are_whole_words() {
        let text =
            "UPDATE t SET a = b::from_type WHERE id > :from AND id <= :to AND c <> ':tomorrow'";
        let replaced = replace(&replace(text, ":from", "'1'"), ":to", "'9'");
        let expected =
            "UPDATE t SET a = b::from_type WHERE id > '1' AND id <= '9' AND c <> ':tomorrow'";
        assert_eq!(replaced, expected);
    }
}
