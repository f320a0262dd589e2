//! MariaDB, and MySQL as far as it does the same.

use std::{collections::BTreeMap, time::Duration};

use landfast_datastore_client::MysqlAddress;
use landfast_migration::{Batch, Evidence, History, Migration, Record, StepKind};
use landfast_types::{Hasher, Secret, Timestamp};
use mysql_async::{Conn, Row, Value, prelude::Queryable as _};

use crate::{
    MigratorError, Notes,
    error::GONE,
    ledger::Ledger,
    observe::{Observed, Way},
    runner::{Database as Engine, Range, Tried, Work},
};

const HISTORY: &str = "landfast_migrations";
const LEDGER: Ledger = Ledger {
    table: HISTORY,
    release: "`release`",
    now: "CURRENT_TIMESTAMP(6)",
    literal,
};
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// `ER_LOCK_WAIT_TIMEOUT`, `ER_LOCK_DEADLOCK`, `ER_STATEMENT_TIMEOUT` of a metadata lock.
const LOCK_CODES: [u16; 2] = [1205, 1213];
/// `ER_ALTER_OPERATION_NOT_SUPPORTED` and the same with a reason: the server cannot do it this way.
const REFUSED_CODES: [u16; 2] = [1845, 1846];

/// `ER_DISK_FULL`, `ER_RECORD_FILE_FULL`, `ER_TEMP_FILE_WRITE_FAILURE`.
const DISK_CODES: [u16; 3] = [1021, 1114, 1878];

const CREATE: &str = "\
CREATE TABLE IF NOT EXISTS landfast_migrations (
    number INT NOT NULL,
    step INT NOT NULL,
    steps INT NOT NULL,
    name VARCHAR(255) NOT NULL,
    phase VARCHAR(16) NOT NULL,
    checksum VARCHAR(80) NOT NULL,
    state VARCHAR(16) NOT NULL,
    breaks_older BOOLEAN NOT NULL,
    position TEXT NULL,
    `release` VARCHAR(64) NULL,
    started_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6),
    applied_at TIMESTAMP(6) NULL,
    accepted TEXT NULL,
    PRIMARY KEY (number, step)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4";

/// A session.
pub(crate) struct Database {
    connection: Conn,
    /// One lock for each database of the server.
    lock: String,
    watch: Option<Watch>,
}

/// What is looked at while a migration is rehearsed.
#[derive(Default)]
struct Watch {
    ways: Vec<Way>,
    /// InnoDB's number of each table, another one once it was written anew. `None`: the login may not look.
    tables: Option<BTreeMap<String, String>>,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(mysql_async::Error) -> MigratorError {
    move |source| MigratorError::Mariadb {
        doing: doing.into(),
        source,
    }
}

impl Database {
    pub(crate) async fn connect(url: &Secret<String>) -> Result<Self, MigratorError> {
        let mut connection = MysqlAddress::parse(url)?.connect().await?;
        let doing = "prepare the session";
        let database: Option<Option<String>> = connection
            .query_first("SELECT DATABASE()")
            .await
            .map_err(failed(doing))?;
        let database = database
            .flatten()
            .ok_or(MigratorError::Address("mysql://…/DATABASE"))?;
        connection
            .query_drop("SET NAMES utf8mb4")
            .await
            .map_err(failed(doing))?;
        // A name of at most 64 characters that depends on the whole of the database's.
        let mut hasher = Hasher::default();
        hasher.update_framed(database.as_bytes());
        let lock = format!("landfast:{}", hasher.finish().short());
        Ok(Self {
            connection,
            lock,
            watch: None,
        })
    }

    async fn run(&mut self, doing: &str, statement: &str) -> Result<(), MigratorError> {
        let done = self.connection.query_drop(statement).await;
        done.map_err(failed(doing))
    }

    async fn rows(&mut self, doing: &str, query: &str) -> Result<Vec<Row>, MigratorError> {
        let rows = tokio::time::timeout(ANSWER_MAX, self.connection.query(query)).await;
        match rows {
            Ok(rows) => rows.map_err(failed(doing)),
            Err(_) => Err(MigratorError::RunnerBusy {
                holder: format!("the database did not answer in time ({doing})"),
            }),
        }
    }

    async fn text(&mut self, doing: &str, query: &str) -> Result<Option<String>, MigratorError> {
        let rows = self.rows(doing, query).await?;
        Ok(rows.first().and_then(|row| text(row, 0)))
    }

    async fn has_history(&mut self) -> Result<bool, MigratorError> {
        let ask = format!(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '{HISTORY}'"
        );
        Ok(!self.rows("look for the history", &ask).await?.is_empty())
    }

    async fn set_timeouts(&mut self, work: &Work<'_>) -> Result<(), MigratorError> {
        // Whole seconds, and 0 would be none at all.
        let lock = work.lock_timeout().as_secs().max(1);
        let otherwise = match work.step.kind {
            StepKind::Definition => Duration::ZERO,
            StepKind::Transaction | StepKind::Backfill | StepKind::Bare(_) => {
                work.options.statement_timeout
            }
        };
        let statement = work.script.header.statement_timeout.unwrap_or(otherwise);
        let set = format!(
            "SET SESSION lock_wait_timeout = {lock}, SESSION innodb_lock_wait_timeout = {lock}, \
             SESSION max_statement_time = {}",
            statement.as_secs_f64()
        );
        self.run("set timeouts", &set).await
    }

    async fn check_guard(&mut self, work: &Work<'_>) -> Result<(), MigratorError> {
        let Some(guard) = work.guard else {
            return Ok(());
        };
        let ask =
            "SELECT user, COUNT(*) FROM information_schema.processlist GROUP BY user ORDER BY user";
        for row in self.rows("look who is connected", ask).await? {
            let login = text(&row, 0).unwrap_or_default();
            if login.starts_with(&guard.prefix) && !guard.allowed.contains(&login) {
                let connections = text(&row, 1).and_then(|count| count.parse().ok());
                return Err(MigratorError::OlderReleaseConnected {
                    migration: work.migration.title(),
                    login,
                    connections: connections.unwrap_or(1),
                });
            }
        }
        Ok(())
    }

    async fn try_transaction(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError> {
        self.set_timeouts(work).await?;
        self.run("begin a transaction", "START TRANSACTION").await?;
        let tried = self.transact(work).await;
        if !matches!(tried, Ok(Tried::Done))
            && let Err(error) = self.connection.query_drop("ROLLBACK").await
        {
            tracing::debug!(%error, "the connection is gone");
        }
        tried
    }

    async fn transact(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError> {
        for index in &work.step.statements {
            let statement = &work.script.statements[*index];
            if let Err(error) = self.connection.query_drop(statement.text.as_str()).await {
                return verdict(work, *index, &error);
            }
        }
        self.check_guard(work).await?;
        self.run("record the step", &LEDGER.ended(work)).await?;
        self.run("commit", "COMMIT").await?;
        Ok(Tried::Done)
    }

    /// One statement that commits by itself, in the least disturbing way the server agrees to.
    async fn try_definition(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError> {
        self.set_timeouts(work).await?;
        self.check_guard(work).await?;
        let Some(index) = work.step.statements.first().copied() else {
            return Ok(Tried::Done);
        };
        let statement = work.script.statements[index].text.clone();
        let ways = ways(&statement);
        let last = ways.len().saturating_sub(1);
        for (place, way) in ways.iter().enumerate() {
            let text = format!("{statement}{way}");
            let Err(error) = self.connection.query_drop(text.as_str()).await else {
                self.note_way(work, index, way);
                return Ok(Tried::Done);
            };
            let is_refused = code(&error).is_some_and(|code| REFUSED_CODES.contains(&code));
            if !is_refused || ways.len() == 1 {
                return verdict(work, index, &error);
            }
            if place == last {
                let reason = format!(
                    "the server can only do this by copying the table while writes wait: {}. Write another form, or \
                     `ALGORITHM=COPY, LOCK=SHARED` where the table is small",
                    reason(&error)
                );
                return Err(work.failed(index, reason));
            }
        }
        Ok(Tried::Done)
    }

    fn note_way(&mut self, work: &Work<'_>, index: usize, way: &str) {
        let rows_copied = self.connection.affected_rows();
        let Some(watch) = &mut self.watch else {
            return;
        };
        let algorithm = way.split("ALGORITHM=").nth(1);
        let word = algorithm.and_then(|rest| rest.split([',', ' ']).next());
        watch.ways.push(Way {
            line: work.script.statements[index].line,
            algorithm: word.unwrap_or("as it is written").to_owned(),
            rows_copied,
        });
    }

    /// InnoDB's number of each table, where the login may look.
    async fn table_numbers(&mut self) -> Result<Option<BTreeMap<String, String>>, MigratorError> {
        const ASK: &str = "\
            SELECT SUBSTRING_INDEX(name, '/', -1), table_id FROM information_schema.innodb_sys_tables
            WHERE SUBSTRING_INDEX(name, '/', 1) = DATABASE() AND SUBSTRING_INDEX(name, '/', -1) <> 'landfast_migrations'";
        match self.connection.query::<Row, _>(ASK).await {
            Ok(rows) => {
                let table = |row: &Row| Some((text(row, 0)?, text(row, 1)?));
                Ok(Some(rows.iter().filter_map(table).collect()))
            }
            Err(mysql_async::Error::Server(_)) => Ok(None),
            Err(error) => Err(failed("look at the tables")(error)),
        }
    }

    /// What the definitions of everything in the database come to, but for the history and counters.
    async fn fingerprint(&mut self) -> Result<String, MigratorError> {
        const TABLES: &str = "\
            SELECT table_name FROM information_schema.tables
            WHERE table_schema = DATABASE() AND table_name <> 'landfast_migrations' ORDER BY table_name";
        const OTHERS: [&str; 2] = [
            "SELECT CONCAT_WS('|', trigger_name, event_manipulation, event_object_table, action_timing, action_statement)
             FROM information_schema.triggers WHERE trigger_schema = DATABASE() ORDER BY trigger_name",
            "SELECT CONCAT_WS('|', routine_type, routine_name, dtd_identifier, routine_definition)
             FROM information_schema.routines WHERE routine_schema = DATABASE() ORDER BY routine_type, routine_name",
        ];
        let doing = "look at the schema";
        let mut hasher = Hasher::default();
        let tables = self.rows(doing, TABLES).await?;
        for table in tables.iter().filter_map(|row| text(row, 0)) {
            let show = format!("SHOW CREATE TABLE {}", identifier(&table));
            let rows = self.rows(doing, &show).await?;
            let definition = rows.first().and_then(|row| text(row, 1));
            hasher.update_framed(without_counter(&definition.unwrap_or_default()).as_bytes());
        }
        for query in OTHERS {
            for row in self.rows(doing, query).await? {
                hasher.update_framed(text(&row, 0).unwrap_or_default().as_bytes());
            }
        }
        Ok(hasher.finish().to_string())
    }

    /// A value below every key there is, as text.
    async fn below(&mut self, batch: &Batch) -> Result<Option<String>, MigratorError> {
        let key = identifier(&batch.key);
        let ask = format!("SELECT MIN({key}) - 1 FROM {}", batch.table);
        self.text("find where a backfill begins", &ask).await
    }
}

/// What is put behind a definition, the least disturbing first. One that says how it is to be done is left as it is, and so is
/// what does not change a table that is there.
fn ways(statement: &str) -> Vec<&'static str> {
    let upper = statement.to_uppercase();
    let mut words = upper.split_whitespace();
    let (first, second, third) = (words.next(), words.next(), words.next());
    if upper.contains("ALGORITHM") {
        return vec![""];
    }
    match (first, second, third) {
        (Some("ALTER"), Some("TABLE"), _)
        | (Some("ALTER"), Some("ONLINE" | "IGNORE"), Some("TABLE")) => vec![
            ", ALGORITHM=INSTANT",
            ", ALGORITHM=NOCOPY, LOCK=NONE",
            ", ALGORITHM=INPLACE, LOCK=NONE",
        ],
        // MariaDB's `DROP INDEX` takes neither clause; it is done in place anyway.
        (Some("CREATE"), Some("INDEX"), _) | (Some("CREATE"), Some("UNIQUE"), Some("INDEX")) => {
            vec![
                " ALGORITHM=NOCOPY LOCK=NONE",
                " ALGORITHM=INPLACE LOCK=NONE",
            ]
        }
        _ => vec![""],
    }
}

/// A table's definition without the next number it will give.
fn without_counter(definition: &str) -> String {
    let Some((before, after)) = definition.split_once(" AUTO_INCREMENT=") else {
        return definition.to_owned();
    };
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}{rest}")
}

fn code(error: &mysql_async::Error) -> Option<u16> {
    if let mysql_async::Error::Server(said) = error {
        return Some(said.code);
    }
    None
}

fn reason(error: &mysql_async::Error) -> String {
    if let mysql_async::Error::Server(said) = error {
        let next = if DISK_CODES.contains(&said.code) {
            "; free some space on the database's file system and run again"
        } else {
            ""
        };
        let message = without_values(&said.message, &said.state);
        return format!("{message} (error {}){next}", said.code);
    }
    if let mysql_async::Error::Io(gone) = error {
        return format!("{gone}{GONE}");
    }
    error.to_string()
}

/// An error about values (class 22) or constraints (23) without the value, as in `Duplicate entry '…' for key 'name'`.
fn without_values(message: &str, state: &str) -> String {
    if !matches!(state.get(..2), Some("22" | "23")) {
        return message.to_owned();
    }
    let begins = ["entry '", "value: '"].iter().find_map(|before| {
        let at = message.find(before)?;
        Some(at + before.len())
    });
    let ends = message.rfind("' for ");
    match begins.zip(ends).filter(|(begins, ends)| begins <= ends) {
        Some((begins, ends)) => format!("{}…{}", &message[..begins], &message[ends..]),
        None => message.to_owned(),
    }
}

fn verdict(
    work: &Work<'_>,
    index: usize,
    error: &mysql_async::Error,
) -> Result<Tried, MigratorError> {
    if code(error).is_some_and(|code| LOCK_CODES.contains(&code)) {
        return Ok(Tried::NoLock(reason(error)));
    }
    Err(work.failed(index, reason(error)))
}

fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text as a literal, whatever the session's SQL mode says of backslashes.
fn literal(text: &str) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        // Writing into a string cannot fail.
        write!(hex, "{byte:02x}").ok();
    }
    format!("CONVERT(x'{hex}' USING utf8mb4)")
}

/// A column as text, whatever its type.
fn text(row: &Row, index: usize) -> Option<String> {
    match row.as_ref(index)? {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::Int(number) => Some(number.to_string()),
        Value::UInt(number) => Some(number.to_string()),
        other @ (Value::Float(_) | Value::Double(_) | Value::Date(..) | Value::Time(..)) => {
            Some(other.as_sql(true).trim_matches('\'').to_owned())
        }
    }
}

impl Engine for Database {
    fn ledger(&self) -> &'static Ledger {
        &LEDGER
    }

    async fn record(&mut self, doing: &str, statement: &str) -> Result<(), MigratorError> {
        self.run(doing, statement).await
    }

    async fn try_lock(&mut self) -> Result<bool, MigratorError> {
        let ask = format!("SELECT GET_LOCK('{}', 0)", self.lock);
        let got = self.text("take the lock of runners", &ask).await?;
        Ok(got.as_deref() == Some("1"))
    }

    async fn lock_holder(&mut self) -> Result<Option<String>, MigratorError> {
        let ask = format!(
            "SELECT CONCAT('connection ', id, ' (login ', user, ', from ', host, ')')
             FROM information_schema.processlist WHERE id = IS_USED_LOCK('{}')",
            self.lock
        );
        self.text("look who holds the lock", &ask).await
    }

    async fn unlock(&mut self) -> Result<(), MigratorError> {
        let unlock = format!("SELECT RELEASE_LOCK('{}')", self.lock);
        self.rows("give the lock back", &unlock).await.map(drop)
    }

    async fn ensure_history(&mut self) -> Result<(), MigratorError> {
        if self.has_history().await? {
            return Ok(());
        }
        self.run("create the history table", CREATE).await
    }

    async fn history(&mut self) -> Result<History, MigratorError> {
        if !self.has_history().await? {
            return Ok(History::default());
        }
        let ask = format!(
            "SELECT number, step, steps, name, phase, checksum, state, breaks_older, position, `release`
             FROM {HISTORY} ORDER BY number, step"
        );
        let rows = self.rows("read the history", &ask).await?;
        let record = |row: &Row| {
            let word = |index| text(row, index).unwrap_or_default();
            let number = |index| word(index).parse().unwrap_or(0);
            crate::record(
                [number(0), number(1), number(2)],
                [word(3), word(4), word(5), word(6)],
                word(7) == "1",
                [text(row, 8), text(row, 9)],
            )
        };
        rows.iter().map(record).collect()
    }

    async fn notes(&mut self) -> Result<BTreeMap<(u32, u32), Notes>, MigratorError> {
        if !self.has_history().await? {
            return Ok(BTreeMap::new());
        }
        let ask = format!(
            "SELECT number, step, CAST(UNIX_TIMESTAMP(started_at) * 1000000 AS SIGNED),
                    CAST(UNIX_TIMESTAMP(applied_at) * 1000000 AS SIGNED), accepted
             FROM {HISTORY}"
        );
        let rows = self.rows("read the history", &ask).await?;
        let notes = |row: &Row| {
            let number = |index| text(row, index).and_then(|word| word.parse().ok());
            let instant = |index| {
                let micros = text(row, index).and_then(|word| word.parse().ok());
                micros.map(Timestamp::from_micros)
            };
            let notes = Notes {
                started_at: instant(2),
                applied_at: instant(3),
                accepted: text(row, 4),
            };
            Some(((number(0)?, number(1)?), notes))
        };
        Ok(rows.iter().filter_map(notes).collect())
    }

    async fn restore_point(&mut self, _: &str) -> Result<Option<String>, MigratorError> {
        // The binary log's position, where there is one.
        let shown = self.connection.query::<Row, _>("SHOW MASTER STATUS").await;
        let rows = match shown {
            Ok(rows) => rows,
            Err(mysql_async::Error::Server(_)) => return Ok(None),
            Err(error) => return Err(failed("read the log's position")(error)),
        };
        let position = |row: &Row| Some(format!("{}:{}", text(row, 0)?, text(row, 1)?));
        Ok(rows.first().and_then(position))
    }

    async fn record_started(
        &mut self,
        record: Record,
        work: &Work<'_>,
    ) -> Result<(), MigratorError> {
        let before = match work.step.kind {
            StepKind::Definition => Some(self.fingerprint().await?),
            StepKind::Transaction | StepKind::Backfill | StepKind::Bare(_) => None,
        };
        let started = LEDGER.started(&record, before.as_deref());
        self.run("record that a step begins", &started).await
    }

    async fn blocker(&mut self, work: &Work<'_>) -> Result<Option<String>, MigratorError> {
        if work.step.kind != StepKind::Definition {
            return Ok(None);
        }
        // Which tables a transaction holds is not told without a plugin, so the oldest of this database is named.
        let ask = format!(
            "SELECT CONCAT('connection ', t.trx_mysql_thread_id, ' (login ', p.user, '), whose transaction is ',
                    TIMESTAMPDIFF(SECOND, t.trx_started, NOW()), ' s old')
             FROM information_schema.innodb_trx t
             JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id
             WHERE t.trx_mysql_thread_id <> CONNECTION_ID() AND p.db = DATABASE()
               AND TIMESTAMPDIFF(SECOND, t.trx_started, NOW()) > {}
             ORDER BY t.trx_started LIMIT 1",
            work.options.blocker_age.as_secs()
        );
        match self.connection.query::<Row, _>(ask).await {
            Ok(rows) => Ok(rows.first().and_then(|row| text(row, 0))),
            // Only some logins may look.
            Err(mysql_async::Error::Server(_)) => Ok(None),
            Err(error) => Err(failed("look for long transactions")(error)),
        }
    }

    async fn try_step(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError> {
        match work.step.kind {
            StepKind::Definition => self.try_definition(work).await,
            StepKind::Transaction | StepKind::Backfill | StepKind::Bare(_) => {
                self.try_transaction(work).await
            }
        }
    }

    async fn try_range(&mut self, work: &Work<'_>) -> Result<Range, MigratorError> {
        let Some(batch) = &work.script.header.batch else {
            return Ok(Range::End);
        };
        let number = work.migration.number;
        let ask = format!("SELECT position FROM {HISTORY} WHERE number = {number} AND step = 1");
        let from = match self.text("read how far it is", &ask).await? {
            Some(position) => position,
            None => match self.below(batch).await? {
                Some(below) => below,
                None => return Ok(Range::End),
            },
        };
        let (table, key, size) = (&batch.table, identifier(&batch.key), batch.size);
        let bound = format!(
            "SELECT MAX(k) FROM (SELECT {key} AS k FROM {table} WHERE {key} > {} ORDER BY {key} LIMIT {size}) AS `range`",
            number_or_literal(&from)
        );
        let Some(to) = self.text("find the next range", &bound).await? else {
            return Ok(Range::End);
        };
        self.set_timeouts(work).await?;
        self.run("begin a transaction", "START TRANSACTION").await?;
        let (low, high) = (number_or_literal(&from), number_or_literal(&to));
        let statement = crate::range_text(&work.script.statements[0], &low, &high);
        if let Err(error) = self.connection.query_drop(statement).await {
            self.run("take a range back", "ROLLBACK").await?;
            return match verdict(work, 0, &error)? {
                Tried::NoLock(reason) => Ok(Range::NoLock(reason)),
                Tried::Done => Ok(Range::End),
            };
        }
        let rows = self.connection.affected_rows();
        let record = LEDGER.reached(number, &to);
        self.run("record a range", &record).await?;
        self.run("commit", "COMMIT").await?;
        Ok(Range::Done { rows, position: to })
    }

    async fn evidence(
        &mut self,
        work: &Work<'_>,
        history: &History,
    ) -> Result<Evidence, MigratorError> {
        let step = history.step(work.migration.number, work.step.step);
        let Some(before) = step.and_then(|record| record.position.clone()) else {
            return Ok(Evidence::Unknown);
        };
        let now = self.fingerprint().await?;
        Ok(if now == before {
            Evidence::NotDone
        } else {
            Evidence::Done
        })
    }

    async fn next_value(&mut self, sequence: &str) -> Result<i64, MigratorError> {
        let parts: Vec<String> = sequence.split('.').map(identifier).collect();
        let ask = format!("SELECT NEXTVAL({})", parts.join("."));
        let value: Option<i64> = self
            .connection
            .query_first(ask)
            .await
            .map_err(failed("look who writes in the old way"))?;
        Ok(value.unwrap_or(0))
    }

    async fn clean(&mut self, _: &Work<'_>) -> Result<(), MigratorError> {
        // Definitions are atomic from 10.6 on: nothing is left behind.
        Ok(())
    }

    async fn record_down(&mut self, work: &Work<'_>) -> Result<(), MigratorError> {
        let step = work.step.step;
        let position = match work.step.kind {
            // It records itself.
            StepKind::Transaction if step == 1 => return Ok(()),
            StepKind::Definition => format!("{step}|{}", self.fingerprint().await?),
            StepKind::Transaction | StepKind::Backfill | StepKind::Bare(_) => step.to_string(),
        };
        let record = LEDGER.reverting(work.migration.number, &position);
        self.run("record that the way down begins", &record).await
    }

    async fn down_evidence(
        &mut self,
        _: &Work<'_>,
        fingerprint: Option<&str>,
    ) -> Result<Evidence, MigratorError> {
        let Some(before) = fingerprint else {
            // It was recorded as due, not as begun.
            return Ok(Evidence::NotDone);
        };
        Ok(if self.fingerprint().await? == before {
            Evidence::NotDone
        } else {
            Evidence::Done
        })
    }

    async fn observe(&mut self) -> Result<(), MigratorError> {
        let tables = self.table_numbers().await?;
        self.watch = Some(Watch {
            tables,
            ..Watch::default()
        });
        Ok(())
    }

    async fn observed(&mut self) -> Result<Observed, MigratorError> {
        let Some(watch) = self.watch.take() else {
            return Ok(Observed::default());
        };
        let after = self.table_numbers().await?.unwrap_or_default();
        let is_other = |(name, number): &(&String, &String)| {
            let now = after.get(*name);
            now.is_some_and(|now| now != *number)
        };
        let before = watch.tables.unwrap_or_default();
        let rewritten = before.iter().filter(is_other);
        Ok(Observed {
            rewritten: rewritten.map(|(name, _)| name.clone()).collect(),
            ways: watch.ways,
            ..Observed::default()
        })
    }

    async fn accept(
        &mut self,
        migration: &Migration,
        steps: u32,
        reason: &str,
    ) -> Result<(), MigratorError> {
        self.run("accept a migration", "START TRANSACTION").await?;
        for statement in LEDGER.accepted(migration, steps, reason) {
            self.run("accept a migration", &statement).await?;
        }
        self.run("accept a migration", "COMMIT").await
    }
}

/// Keys are mostly numbers, and MariaDB compares a number with a text slowly.
fn number_or_literal(text: &str) -> String {
    if text.parse::<i128>().is_ok() {
        text.to_owned()
    } else {
        literal(text)
    }
}
