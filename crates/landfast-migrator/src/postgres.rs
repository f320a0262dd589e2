//! PostgreSQL.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::Duration,
};

use landfast_datastore_client::{PostgresAddress, PostgresConnection};
use landfast_migration::{
    Batch, Evidence, History, Migration, ObjectName, Probe, Record, StepKind,
};
use landfast_types::{Secret, Timestamp};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Row, SimpleQueryMessage, error::SqlState};

use crate::{
    MigratorError, Notes,
    error::GONE,
    ledger::Ledger,
    observe::{Held, Observed, now},
    runner::{Database as Engine, Range, Tried, Work},
};

/// Sessions that migrate are told from others by this name.
const APPLICATION: &str = "landfast migrations";
/// The session lock of all runners; its number means nothing.
const LOCK: i64 = 0x6c61_6e64_6661_7374;
/// A history that cannot be read within this is a database that does not answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Between two looks at the locks of a statement that another session runs.
const LOOK_EVERY: Duration = Duration::from_millis(2);

const LEDGER: Ledger = Ledger {
    table: "landfast.migrations",
    release: "release",
    now: "now()",
    literal,
};

const CREATE: &str = "\
CREATE SCHEMA IF NOT EXISTS landfast;
CREATE TABLE IF NOT EXISTS landfast.migrations (
    number integer NOT NULL,
    step integer NOT NULL,
    steps integer NOT NULL,
    name text NOT NULL,
    phase text NOT NULL,
    checksum text NOT NULL,
    state text NOT NULL,
    breaks_older boolean NOT NULL,
    position text,
    release text,
    started_at timestamptz NOT NULL DEFAULT now(),
    applied_at timestamptz,
    accepted text,
    PRIMARY KEY (number, step)
)";

/// A session, and the other half of its connection.
pub(crate) struct Database {
    connection: PostgresConnection,
    address: PostgresAddress,
    watch: Option<Watch>,
}

impl std::ops::Deref for Database {
    type Target = PostgresConnection;

    fn deref(&self) -> &PostgresConnection {
        &self.connection
    }
}

/// What is looked at while a migration is rehearsed.
struct Watch {
    /// Looks at the locks of the first session.
    other: Box<Database>,
    process: i32,
    held: Held,
    /// Name and file of each table, by its number.
    tables: BTreeMap<String, (String, Option<String>)>,
    position: String,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> MigratorError {
    move |source| MigratorError::Postgres {
        doing: doing.into(),
        source,
    }
}

impl Database {
    pub(crate) async fn connect(url: &Secret<String>) -> Result<Self, MigratorError> {
        let mut address = PostgresAddress::parse(url)?;
        address.set_application_name(APPLICATION);
        let database = Self::open(&address).await?;
        if database.is_shared(&address).await? {
            return Err(MigratorError::Pooled);
        }
        // A runner whose host is gone must not hold its locks for hours.
        let settle =
            "SET idle_in_transaction_session_timeout = '60s'; SET tcp_keepalives_idle = 30";
        let settled = database.client.batch_execute(settle).await;
        settled.map_err(failed("prepare the session"))?;
        // Nor go on with a statement that nobody waits for any more. Servers before version 14 cannot.
        let check = "SET client_connection_check_interval = '1s'";
        if let Err(error) = database.client.batch_execute(check).await {
            tracing::debug!(%error, "a statement outlives its runner");
        }
        Ok(database)
    }

    async fn open(address: &PostgresAddress) -> Result<Self, MigratorError> {
        Ok(Self {
            connection: address.connect().await?,
            address: address.clone(),
            watch: None,
        })
    }

    /// Whether what is set in this session is seen by another, or is gone while the other is in a transaction: then a proxy
    /// gives its connections to whoever has a statement.
    async fn is_shared(&self, address: &PostgresAddress) -> Result<bool, MigratorError> {
        const ASK: &str = "SELECT coalesce(current_setting('landfast.session', true), '')";
        let doing = "find out whether the session is one";
        let mark = format!("{:016x}", rand::random::<u64>());
        let set = format!("SET landfast.session = '{mark}'");
        let marked = self.client.batch_execute(&set).await;
        marked.map_err(failed(doing))?;
        let other = address.connect().await?;
        let ask = async {
            other
                .client
                .batch_execute("BEGIN")
                .await
                .map_err(failed(doing))?;
            let theirs: String = value(&other.client, ASK).await.map_err(failed(doing))?;
            let ours: String = value(&self.client, ASK).await.map_err(failed(doing))?;
            other
                .client
                .batch_execute("ROLLBACK")
                .await
                .map_err(failed(doing))?;
            Ok(theirs == mark || ours != mark)
        };
        // With a pool of one both wait for each other.
        tokio::time::timeout(CONNECT_MAX, ask)
            .await
            .unwrap_or(Ok(true))
    }

    async fn rows(&self, doing: &str, query: &str) -> Result<Vec<Row>, MigratorError> {
        let rows = tokio::time::timeout(ANSWER_MAX, self.client.query(query, &[])).await;
        match rows {
            Ok(rows) => rows.map_err(failed(doing)),
            Err(_) => Err(MigratorError::RunnerBusy {
                holder: format!("the database did not answer in time ({doing})"),
            }),
        }
    }

    async fn execute(&self, doing: &str, statements: &str) -> Result<(), MigratorError> {
        let done = self.client.batch_execute(statements).await;
        done.map_err(failed(doing))
    }

    /// Takes back what a failed transaction left; a connection that is gone has nothing.
    async fn roll_back(&self) {
        if let Err(error) = self.client.batch_execute("ROLLBACK").await {
            tracing::debug!(%error, "nothing to take back");
        }
    }

    async fn check_guard(&self, work: &Work<'_>) -> Result<(), MigratorError> {
        let Some(guard) = work.guard else {
            return Ok(());
        };
        // Of another login's session only the name is told, unless one may see all of them.
        const ASK: &str = "\
            SELECT name, count(*) FROM (
                SELECT CASE WHEN starts_with(usename::text, $1) THEN usename::text ELSE application_name END AS name
                FROM pg_stat_activity WHERE datname = current_database() AND coalesce(backend_type, 'client backend') = 'client backend'
            ) AS connected
            WHERE starts_with(name, $1) AND name <> ALL ($2) GROUP BY name ORDER BY name LIMIT 1";
        let allowed: Vec<&str> = guard.allowed.iter().map(String::as_str).collect();
        let row = self
            .client
            .query_opt(ASK, &[&guard.prefix, &allowed])
            .await
            .map_err(failed("look who is connected"))?;
        match row {
            None => Ok(()),
            Some(row) => Err(MigratorError::OlderReleaseConnected {
                migration: work.migration.title(),
                login: row.get(0),
                connections: row.get(1),
            }),
        }
    }

    /// All statements and the record of them as one.
    async fn try_transaction(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError> {
        let begin = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}",
            work.lock_timeout().as_millis(),
            statement_timeout(work, work.options.statement_timeout).as_millis(),
        );
        self.execute("begin a transaction", &begin).await?;
        let tried = self.transact(work).await;
        let committed = matches!(tried, Ok(Tried::Done));
        if !committed {
            self.roll_back().await;
        }
        self.let_go(committed);
        tried
    }

    async fn transact(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError> {
        for index in &work.step.statements {
            let statement = &work.script.statements[*index];
            let begun = now();
            if let Err(error) = self.client.batch_execute(&statement.text).await {
                return verdict(work, *index, &error);
            }
            self.see_own_locks(begun).await?;
        }
        // Behind the locks: who connects from now on waits for them.
        self.check_guard(work).await?;
        self.execute("record the step", &LEDGER.ended(work)).await?;
        if let Err(error) = self.client.batch_execute("COMMIT").await {
            // Constraints that were put off are looked at here.
            let last = work.step.statements.last().copied().unwrap_or_default();
            return verdict(work, last, &error);
        }
        Ok(Tried::Done)
    }

    async fn see_own_locks(&mut self, since: Instant) -> Result<(), MigratorError> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        let rows = self.connection.client.query(LOCKS, &[&watch.process]).await;
        for row in rows.map_err(failed("look at the locks"))? {
            watch.held.see(row.get(0), row.get(1), since);
        }
        Ok(())
    }

    fn let_go(&mut self, committed: bool) {
        if let Some(watch) = &mut self.watch {
            if committed {
                watch.held.release(now());
            } else {
                watch.held.forget();
            }
        }
    }

    /// Runs a statement outside a transaction, and has its locks looked at meanwhile where somebody wants to know.
    async fn execute_watched(&mut self, text: &str) -> Result<(), tokio_postgres::Error> {
        let Some(watch) = &mut self.watch else {
            return self.client.batch_execute(text).await;
        };
        let mut running = pin!(self.connection.client.batch_execute(text));
        let done = loop {
            tokio::select! {
                biased;
                done = &mut running => break done,
                () = sleep(LOOK_EVERY) => {}
            }
            let rows = watch.other.client.query(LOCKS, &[&watch.process]).await?;
            let at = now();
            let present: BTreeSet<&str> = rows.iter().map(|row| row.get(0)).collect();
            watch.held.release_others(&present, at);
            for row in &rows {
                watch.held.see(row.get(0), row.get(1), at);
            }
        };
        watch.held.release(now());
        done
    }

    /// Name and file of each table of people.
    async fn tables(&self) -> Result<BTreeMap<String, (String, Option<String>)>, MigratorError> {
        let rows = self.rows("look at the tables", TABLES).await?;
        let table = |row: &Row| (row.get(0), (row.get(1), row.get(2)));
        Ok(rows.iter().map(table).collect())
    }

    async fn try_bare(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError> {
        self.check_guard(work).await?;
        // What waits here takes a lock that stops nobody who reads or writes. A limit would leave an INVALID index behind.
        let lock_timeout = work.script.header.lock_timeout.unwrap_or(Duration::ZERO);
        let set = format!(
            "SET lock_timeout = {}; SET statement_timeout = {}",
            lock_timeout.as_millis(),
            statement_timeout(work, Duration::ZERO).as_millis(),
        );
        self.execute("set timeouts", &set).await?;
        let mut tried = Ok(Tried::Done);
        for index in &work.step.statements {
            let statement = &work.script.statements[*index];
            if let Err(error) = self.execute_watched(&statement.text).await {
                tried = verdict(work, *index, &error);
                break;
            }
        }
        let reset = "RESET lock_timeout; RESET statement_timeout";
        if let Err(error) = self.client.batch_execute(reset).await {
            tracing::debug!(%error, "the connection is gone");
        }
        tried
    }

    async fn is_index_valid(
        &self,
        index: &ObjectName,
        table: &ObjectName,
    ) -> Result<Evidence, MigratorError> {
        const ASK: &str = "\
            SELECT i.indisvalid FROM pg_index i
            JOIN pg_class c ON c.oid = i.indexrelid
            WHERE c.relname = $1 AND i.indrelid = to_regclass($2)";
        let row = self
            .client
            .query_opt(ASK, &[&index.name, &quoted(table)])
            .await
            .map_err(failed("look at an index"))?;
        Ok(match row.map(|row| row.get::<_, bool>(0)) {
            None => Evidence::NotDone,
            Some(true) => Evidence::Done,
            Some(false) => Evidence::Broken,
        })
    }

    /// `None`: there is no such index. Otherwise whether it is valid.
    async fn index(&self, index: &ObjectName) -> Result<Option<bool>, MigratorError> {
        const ASK: &str = "\
            SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass($1)";
        let row = self
            .client
            .query_opt(ASK, &[&quoted(index)])
            .await
            .map_err(failed("look at an index"))?;
        Ok(row.map(|row| row.get(0)))
    }

    async fn partition(
        &self,
        table: &ObjectName,
        partition: &ObjectName,
    ) -> Result<Evidence, MigratorError> {
        const ASK: &str = "\
            SELECT inhdetachpending FROM pg_inherits
            WHERE inhparent = to_regclass($1) AND inhrelid = to_regclass($2)";
        let row = self
            .client
            .query_opt(ASK, &[&quoted(table), &quoted(partition)])
            .await
            .map_err(failed("look at a partition"))?;
        Ok(match row.map(|row| row.get::<_, bool>(0)) {
            None => Evidence::Done,
            Some(false) => Evidence::NotDone,
            Some(true) => Evidence::Broken,
        })
    }

    /// A value below every key there is, as text.
    async fn below(&self, batch: &Batch) -> Result<Option<String>, String> {
        let (table, key) = (&batch.table, identifier(&batch.key));
        let ask = format!("SELECT min({key})::text, pg_typeof(min({key}))::text FROM {table}");
        let row = self
            .client
            .query_one(&ask, &[])
            .await
            .map_err(|error| reason(&error))?;
        let Some(least) = row.get::<_, Option<String>>(0) else {
            return Ok(None);
        };
        let kind: String = row.get(1);
        let below = match kind.as_str() {
            "smallint" | "integer" | "bigint" | "numeric" => {
                let ask = format!("SELECT (min({key})::numeric - 1)::text FROM {table}");
                let below = value(&self.client, &ask).await;
                return below.map(Some).map_err(|error| reason(&error));
            }
            "uuid" => "00000000-0000-0000-0000-000000000000",
            "text" | "character varying" => "",
            "date" | "timestamp without time zone" | "timestamp with time zone" => "-infinity",
            other => {
                return Err(format!(
                    "`{table}.{key}` is a {other}; ranges are taken of integers, numbers, texts, dates and UUIDs"
                ));
            }
        };
        if below == least {
            return Err(format!(
                "`{table}.{key}` has a row with the least value there is (`{least}`), which no range can begin before"
            ));
        }
        Ok(Some(below.to_owned()))
    }
}

/// The locks of a session on tables of people.
const LOCKS: &str = "\
    SELECT c.oid::text, l.mode FROM pg_locks l
    JOIN pg_class c ON c.oid = l.relation
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE l.pid = $1 AND l.granted AND l.locktype = 'relation'
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND c.relkind IN ('r', 'p', 'm', 'v', 'f')
      AND left(n.nspname, 3) <> 'pg_' AND n.nspname NOT IN ('information_schema', 'landfast')";

const TABLES: &str = "\
    SELECT c.oid::text, c.oid::regclass::text, pg_relation_filenode(c.oid)::text FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f')
      AND left(n.nspname, 3) <> 'pg_' AND n.nspname NOT IN ('information_schema', 'landfast')";

fn statement_timeout(work: &Work<'_>, otherwise: Duration) -> Duration {
    work.script.header.statement_timeout.unwrap_or(otherwise)
}

/// A lock that was not given is tried again, everything else is the statement's.
fn verdict(
    work: &Work<'_>,
    index: usize,
    error: &tokio_postgres::Error,
) -> Result<Tried, MigratorError> {
    let code = error.code();
    let locks = [
        &SqlState::LOCK_NOT_AVAILABLE,
        &SqlState::T_R_DEADLOCK_DETECTED,
    ];
    if code.is_some_and(|code| locks.contains(&code)) {
        return Ok(Tried::NoLock(reason(error)));
    }
    Err(work.failed(index, reason(error)))
}

/// An error with its causes: the library's own text leaves them out.
fn whole(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What the server said, with its detail and hint. Of errors about values (class 22) and constraints (23) both may hold rows:
/// of the detail only the columns of a key are told, and what is quoted in the former is hidden.
fn reason(error: &tokio_postgres::Error) -> String {
    let Some(said) = error.as_db_error() else {
        let gone = if error.is_closed() { GONE } else { "" };
        return format!("{}{gone}", whole(error));
    };
    let class = said.code().code().get(..2);
    let mut text = match class {
        Some("22") => without_quoted(said.message()),
        Some(_) | None => said.message().to_owned(),
    };
    let detail = match class {
        Some("22" | "23") => said.detail().and_then(key_without_values),
        Some(_) | None => said.detail().map(str::to_owned),
    };
    for more in detail.into_iter().chain(said.hint().map(str::to_owned)) {
        text = format!("{text}; {more}");
    }
    for (kind, name) in [
        ("table", said.table()),
        ("column", said.column()),
        ("constraint", said.constraint()),
    ] {
        if let Some(name) = name.filter(|name| !text.contains(&format!("\"{name}\""))) {
            text = format!("{text}; {kind} \"{name}\"");
        }
    }
    let next = match said.code() {
        code if *code == SqlState::DISK_FULL => {
            "; free some space on the database's file system and run again"
        }
        code if *code == SqlState::ADMIN_SHUTDOWN || *code == SqlState::CRASH_SHUTDOWN => GONE,
        _ => "",
    };
    format!("{text} (SQLSTATE {}){next}", said.code().code())
}

/// `Key (name)=(…) is duplicated.`
fn key_without_values(detail: &str) -> Option<String> {
    let (columns, rest) = detail.strip_prefix("Key (")?.split_once(")=(")?;
    // A value may have parentheses in it.
    let (_, after) = rest.rsplit_once(')')?;
    Some(format!("Key ({columns})=(…){after}"))
}

/// A message without what is quoted in it, which may be a value.
fn without_quoted(message: &str) -> String {
    let Some((before, rest)) = message.split_once('"') else {
        return message.to_owned();
    };
    // A value may have quotes in it.
    let after = rest.rsplit_once('"').map_or("", |(_, after)| after);
    format!("{before}\"…\"{after}")
}

async fn value(client: &Client, query: &str) -> Result<String, tokio_postgres::Error> {
    Ok(client.query_one(query, &[]).await?.get(0))
}

fn affected(message: &SimpleQueryMessage) -> u64 {
    if let SimpleQueryMessage::CommandComplete(rows) = message {
        return *rows;
    }
    0
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name as `to_regclass` reads it.
fn quoted(name: &ObjectName) -> String {
    match &name.schema {
        Some(schema) => format!("{}.{}", identifier(schema), identifier(&name.name)),
        None => identifier(&name.name),
    }
}

impl Engine for Database {
    fn ledger(&self) -> &'static Ledger {
        &LEDGER
    }

    async fn record(&mut self, doing: &str, statement: &str) -> Result<(), MigratorError> {
        self.execute(doing, statement).await
    }

    async fn try_lock(&mut self) -> Result<bool, MigratorError> {
        let doing = "take the lock of runners";
        let ask = format!("SELECT pg_try_advisory_lock({LOCK})");
        let row = self.client.query_one(&ask, &[]).await;
        Ok(row.map_err(failed(doing))?.get(0))
    }

    async fn lock_holder(&mut self) -> Result<Option<String>, MigratorError> {
        let ask = format!(
            "SELECT a.pid, a.application_name, coalesce(a.usename, ''), a.backend_start::text
             FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND l.classid = {} AND l.objid = {} LIMIT 1",
            (LOCK >> 32) as u32,
            LOCK as u32,
        );
        let rows = self.rows("look who holds the lock", &ask).await?;
        Ok(rows.first().map(|row| {
            let (pid, application, login, since): (i32, String, String, String) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            format!("process {pid} (`{application}`, login {login}, connected since {since})")
        }))
    }

    async fn unlock(&mut self) -> Result<(), MigratorError> {
        let unlock = format!("SELECT pg_advisory_unlock({LOCK})");
        self.rows("give the lock back", &unlock).await.map(drop)
    }

    async fn ensure_history(&mut self) -> Result<(), MigratorError> {
        // Asked first: a login that may not create anything can still run where the table is there.
        let there = "SELECT 1 WHERE to_regclass('landfast.migrations') IS NOT NULL";
        if self.rows("look for the history", there).await?.is_empty() {
            let mut created = self.client.batch_execute(CREATE).await;
            // `IF NOT EXISTS` looks first: of two who create the schema, as backups do, the slower one finds it there.
            if let Err(error) = &created
                && error.code() == Some(&SqlState::UNIQUE_VIOLATION)
            {
                created = self.client.batch_execute(CREATE).await;
            }
            created.map_err(failed("create the history table"))?;
        }
        Ok(())
    }

    async fn history(&mut self) -> Result<History, MigratorError> {
        const ASK: &str = "\
            SELECT number, step, steps, name, phase, checksum, state, breaks_older, position, release
            FROM landfast.migrations ORDER BY number, step";
        let there = "SELECT 1 WHERE to_regclass('landfast.migrations') IS NOT NULL";
        if self.rows("look for the history", there).await?.is_empty() {
            return Ok(History::default());
        }
        let rows = self.rows("read the history", ASK).await?;
        let record = |row: &Row| {
            let text = |index| row.get::<_, String>(index);
            let number = |index| row.get::<_, i32>(index).unsigned_abs();
            crate::record(
                [number(0), number(1), number(2)],
                [text(3), text(4), text(5), text(6)],
                row.get(7),
                [row.get(8), row.get(9)],
            )
        };
        rows.iter().map(record).collect()
    }

    async fn notes(&mut self) -> Result<BTreeMap<(u32, u32), Notes>, MigratorError> {
        const ASK: &str = "\
            SELECT number, step, (extract(epoch FROM started_at) * 1000000)::bigint,
                   (extract(epoch FROM applied_at) * 1000000)::bigint, accepted
            FROM landfast.migrations";
        let there = "SELECT 1 WHERE to_regclass('landfast.migrations') IS NOT NULL";
        if self.rows("look for the history", there).await?.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows = self.rows("read the history", ASK).await?;
        let number = |row: &Row, index| row.get::<_, i32>(index).unsigned_abs();
        let instant = |row: &Row, index| {
            let micros: Option<i64> = row.get(index);
            micros.map(Timestamp::from_micros)
        };
        let notes = |row: &Row| Notes {
            started_at: instant(row, 2),
            applied_at: instant(row, 3),
            accepted: row.get(4),
        };
        let rows = rows.iter();
        Ok(rows
            .map(|row| ((number(row, 0), number(row, 1)), notes(row)))
            .collect())
    }

    async fn restore_point(&mut self, name: &str) -> Result<Option<String>, MigratorError> {
        // Only some logins may; without it a restore goes by time.
        let ask = format!("SELECT pg_create_restore_point({})::text", literal(name));
        match value(&self.client, &ask).await {
            Ok(position) => Ok(Some(position)),
            Err(error) if error.as_db_error().is_some() => {
                tracing::info!(reason = reason(&error), "no restore point was made");
                Ok(None)
            }
            Err(error) => Err(failed("make a restore point")(error)),
        }
    }

    async fn record_started(&mut self, record: Record, _: &Work<'_>) -> Result<(), MigratorError> {
        let started = LEDGER.started(&record, None);
        self.execute("record that a step begins", &started).await
    }

    async fn blocker(&mut self, work: &Work<'_>) -> Result<Option<String>, MigratorError> {
        if let StepKind::Bare(_) | StepKind::Backfill = work.step.kind {
            // They stop nobody while they wait.
            return Ok(None);
        }
        const ASK: &str = "\
            SELECT a.pid, coalesce(a.usename, ''), a.application_name,
                   extract(epoch FROM now() - a.xact_start)::bigint, c.relname::text
            FROM pg_locks l
            JOIN pg_stat_activity a USING (pid)
            JOIN pg_class c ON c.oid = l.relation
            WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND l.granted AND a.pid <> pg_backend_pid()
              AND now() - a.xact_start > make_interval(secs => $1)
              AND c.oid = ANY (SELECT to_regclass(name) FROM unnest($2::text[]) AS name)
            ORDER BY a.xact_start LIMIT 1";
        let tables: Vec<String> = work.migration.objects().iter().map(quoted).collect();
        let age = work.options.blocker_age.as_secs_f64();
        let row = self
            .client
            .query_opt(ASK, &[&age, &tables])
            .await
            .map_err(failed("look for long transactions"))?;
        Ok(row.map(|row| {
            let (pid, login, application): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
            let (seconds, table): (i64, String) = (row.get(3), row.get(4));
            format!("process {pid} (login {login}, `{application}`), whose transaction holds `{table}` and is {seconds} s old")
        }))
    }

    async fn try_step(&mut self, work: &Work<'_>) -> Result<Tried, MigratorError> {
        match work.step.kind {
            StepKind::Bare(_) => self.try_bare(work).await,
            StepKind::Transaction | StepKind::Definition | StepKind::Backfill => {
                self.try_transaction(work).await
            }
        }
    }

    async fn try_range(&mut self, work: &Work<'_>) -> Result<Range, MigratorError> {
        let title = || work.migration.title();
        let broken = |reason: String| MigratorError::Backfill {
            migration: title(),
            reason,
        };
        let Some(batch) = &work.script.header.batch else {
            return Ok(Range::End);
        };
        let number = work.migration.number;
        let ask = format!(
            "SELECT coalesce(position, '') FROM landfast.migrations WHERE number = {number} AND step = 1 AND position IS NOT NULL"
        );
        let rows = self.rows("read how far it is", &ask).await?;
        let from = match rows.first() {
            Some(row) => row.get::<_, String>(0),
            None => match self.below(batch).await.map_err(broken)? {
                Some(below) => below,
                None => return Ok(Range::End),
            },
        };
        let (table, key, size) = (&batch.table, identifier(&batch.key), batch.size);
        let bound = format!(
            "SELECT (max(k))::text FROM (SELECT {key} AS k FROM {table} WHERE {key} > {} ORDER BY {key} LIMIT {size}) AS range",
            literal(&from)
        );
        let rows = self.rows("find the next range", &bound).await?;
        let Some(to) = rows.first().and_then(|row| row.get::<_, Option<String>>(0)) else {
            return Ok(Range::End);
        };
        let begin = format!(
            "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}",
            work.lock_timeout().as_millis(),
            statement_timeout(work, work.options.statement_timeout).as_millis(),
        );
        self.execute("begin a transaction", &begin).await?;
        let text = crate::range_text(&work.script.statements[0], &literal(&from), &literal(&to));
        let begun = now();
        let ran = self.client.simple_query(&text).await;
        let rows: u64 = match ran {
            Ok(messages) => messages.iter().map(affected).sum(),
            Err(error) => {
                self.roll_back().await;
                self.let_go(false);
                return match verdict(work, 0, &error)? {
                    Tried::NoLock(reason) => Ok(Range::NoLock(reason)),
                    Tried::Done => Ok(Range::End),
                };
            }
        };
        self.see_own_locks(begun).await?;
        let record = format!("{}; COMMIT", LEDGER.reached(number, &to));
        self.execute("record a range", &record).await?;
        self.let_go(true);
        Ok(Range::Done { rows, position: to })
    }

    async fn evidence(&mut self, work: &Work<'_>, _: &History) -> Result<Evidence, MigratorError> {
        let StepKind::Bare(probe) = &work.step.kind else {
            return Ok(Evidence::Unknown);
        };
        match probe {
            Probe::IndexValid { index, table } => self.is_index_valid(index, table).await,
            Probe::IndexesGone(indexes) => {
                for index in indexes {
                    match self.index(index).await? {
                        None => {}
                        Some(true) => return Ok(Evidence::NotDone),
                        Some(false) => return Ok(Evidence::Broken),
                    }
                }
                Ok(Evidence::Done)
            }
            Probe::PartitionDetached { table, partition } => self.partition(table, partition).await,
            Probe::Repeatable => Ok(Evidence::NotDone),
            Probe::Undecidable => Ok(Evidence::Unknown),
        }
    }

    async fn next_value(&mut self, sequence: &str) -> Result<i64, MigratorError> {
        let ask = format!("SELECT nextval({}::regclass)", literal(sequence));
        let rows = self.rows("look who writes in the old way", &ask).await?;
        Ok(rows.first().map_or(0, |row| row.get(0)))
    }

    async fn clean(&mut self, work: &Work<'_>) -> Result<(), MigratorError> {
        let StepKind::Bare(probe) = &work.step.kind else {
            return Ok(());
        };
        let statement = match probe {
            Probe::IndexValid { index, table } => {
                // An index lies in the schema of its table.
                let schema = index.schema.clone().or_else(|| table.schema.clone());
                let name = ObjectName {
                    schema,
                    name: index.name.clone(),
                };
                format!("DROP INDEX CONCURRENTLY IF EXISTS {}", quoted(&name))
            }
            // Dropping goes on where it stopped.
            Probe::IndexesGone(_) | Probe::Repeatable | Probe::Undecidable => return Ok(()),
            Probe::PartitionDetached { table, partition } => format!(
                "ALTER TABLE {} DETACH PARTITION {} FINALIZE",
                quoted(table),
                quoted(partition)
            ),
        };
        self.execute("remove what an earlier try left", &statement)
            .await
    }

    async fn record_down(&mut self, work: &Work<'_>) -> Result<(), MigratorError> {
        let step = work.step.step;
        if step == 1 && work.step.kind == StepKind::Transaction {
            // It records itself.
            return Ok(());
        }
        let record = LEDGER.reverting(work.migration.number, &step.to_string());
        self.execute("record that the way down begins", &record)
            .await
    }

    async fn down_evidence(
        &mut self,
        work: &Work<'_>,
        _: Option<&str>,
    ) -> Result<Evidence, MigratorError> {
        self.evidence(work, &History::default()).await
    }

    async fn observe(&mut self) -> Result<(), MigratorError> {
        let other = match self.watch.take() {
            Some(watch) => watch.other,
            None => Box::new(Self::open(&self.address).await?),
        };
        let doing = "begin to look";
        let process = self.client.query_one("SELECT pg_backend_pid()", &[]).await;
        let position = value(&other.client, "SELECT pg_current_wal_insert_lsn()::text");
        self.watch = Some(Watch {
            process: process.map_err(failed(doing))?.get(0),
            held: Held::default(),
            tables: self.tables().await?,
            position: position.await.map_err(failed(doing))?,
            other,
        });
        Ok(())
    }

    async fn observed(&mut self) -> Result<Observed, MigratorError> {
        let Some(watch) = &mut self.watch else {
            return Ok(Observed::default());
        };
        let (held, tables) = (std::mem::take(&mut watch.held), watch.tables.clone());
        let log = format!(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), {})::bigint::text",
            literal(&watch.position)
        );
        let bytes = value(&watch.other.client, &log).await;
        let bytes = bytes.map_err(failed("look at the log"))?;
        let after = self.tables().await?;
        let is_other = |(number, (_, file)): &(&String, &(String, Option<String>))| {
            let now = after.get(*number);
            now.is_some_and(|(_, now)| file.is_some() && now != file)
        };
        let rewritten = tables.iter().filter(is_other);
        let rewritten = rewritten.map(|(_, (name, _))| name.clone()).collect();
        let mut locks = held.strongest(|number| tables.contains_key(number));
        for lock in &mut locks {
            if let Some((name, _)) = tables.get(&lock.table) {
                lock.table.clone_from(name);
            }
        }
        locks.sort_by(|one, other| one.table.cmp(&other.table));
        Ok(Observed {
            locks,
            rewritten,
            wal_bytes: bytes.parse().ok(),
            ..Observed::default()
        })
    }

    async fn accept(
        &mut self,
        migration: &Migration,
        steps: u32,
        reason: &str,
    ) -> Result<(), MigratorError> {
        let statements = LEDGER.accepted(migration, steps, reason).join("; ");
        let statements = format!("BEGIN; {statements}; COMMIT");
        let accepted = self.execute("accept a migration", &statements).await;
        if accepted.is_err() {
            self.roll_back().await;
        }
        accepted
    }
}
