//! PostgreSQL: the same tables, and the history partitioned by quarter, so that old history goes by dropping a table
//! instead of deleting rows.
//!
//! One connection, on a runtime of its own, behind a lock: whoever calls waits. A connection that broke is opened again
//! by the next call. Several processes, of two releases at a time, use the database together.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config, NoTls, Row, error::SqlState, types::ToSql};

use super::{Created, Filter, HistoryRow, StoreError, quarter::Quarter};
use crate::{
    clock,
    constraint::{Constraint, Priority},
};

/// Rows removed in one statement.
const PRUNE_ROWS: i64 = 2_000;
/// Quarters that have their partition before they begin.
const QUARTERS_AHEAD: usize = 2;
/// Who makes tables and partitions is alone for the moment: `IF NOT EXISTS` is no lock.
const LOCK: i64 = 0x666c_6578;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS constraints (
        id text PRIMARY KEY, type text NOT NULL, sport text NOT NULL, name text NOT NULL, version text NOT NULL,
        priority text NOT NULL, configuration text NOT NULL, metadata text NOT NULL, active boolean NOT NULL,
        created_at bigint NOT NULL, updated_at bigint NOT NULL
    );
    CREATE INDEX IF NOT EXISTS idx_constraints_type_sport ON constraints(type, sport);
    CREATE INDEX IF NOT EXISTS idx_constraints_active ON constraints(active);
    CREATE TABLE IF NOT EXISTS evaluation_history (
        constraint_id text NOT NULL, slot_id text NOT NULL, result text NOT NULL, evaluation_time bigint NOT NULL,
        created_at bigint NOT NULL
    ) PARTITION BY RANGE (created_at);
    CREATE INDEX IF NOT EXISTS idx_evaluation_history_constraint ON evaluation_history(constraint_id);
    CREATE INDEX IF NOT EXISTS idx_evaluation_history_created ON evaluation_history(created_at);
";
const COLUMNS: &str = "id, type, sport, name, version, priority, configuration, metadata, active, created_at, updated_at";

/// A database.
#[derive(Debug)]
pub(crate) struct Postgres {
    config: Config,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    /// There until the store is dropped.
    runtime: Option<Runtime>,
    client: Client,
}

impl Drop for Open {
    /// The last owner may be a task, which must not wait for a runtime to end.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Postgres {
    pub(crate) fn open(url: &str) -> Result<Self, StoreError> {
        let config: Config = url.parse().map_err(|_| StoreError::Address)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|source| StoreError::Folder {
                folder: "the runtime".to_owned(),
                source,
            })?;
        let client = runtime.block_on(connect(&config))?;
        let store = Self {
            config,
            open: Mutex::new(Open {
                runtime: Some(runtime),
                client,
            }),
        };
        let now = clock::now();
        store.with(async |client| {
            let statement = format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK}); {SCHEMA} COMMIT");
            client.batch_execute(&statement).await
        })?;
        store.make_partitions(now)?;
        Ok(store)
    }

    /// Runs some work on the connection, which is opened again where it broke.
    fn with<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = open.runtime.take().expect("it is put back below");
        let done = if open.client.is_closed() {
            runtime
                .block_on(connect(&self.config))
                .map(|client| open.client = client)
        } else {
            Ok(())
        };
        let done = done.and_then(|()| runtime.block_on(work(&open.client)));
        open.runtime = Some(runtime);
        Ok(done?)
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        // A transaction that may write; nothing changes.
        let statement = "BEGIN; SELECT 1 FROM constraints LIMIT 1; SELECT txid_current(); ROLLBACK";
        self.with(async |client| client.batch_execute(statement).await)
    }

    pub(crate) fn list(&self, filter: &Filter) -> Result<Vec<Constraint>, StoreError> {
        let statement = format!(
            "SELECT {COLUMNS} FROM constraints
             WHERE ($1::text IS NULL OR type = $1) AND ($2::text IS NULL OR sport = $2)
               AND ($3::boolean IS NULL OR active = $3) AND ($4::text IS NULL OR id > $4)
             ORDER BY id COLLATE \"C\" LIMIT $5"
        );
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        let values: [&(dyn ToSql + Sync); 5] = [
            &filter.kind,
            &filter.sport,
            &filter.active,
            &filter.after,
            &limit,
        ];
        let rows = self.with(async |client| client.query(&statement, &values).await)?;
        rows.iter().map(constraint).collect()
    }

    pub(crate) fn get(&self, id: &str) -> Result<Option<Constraint>, StoreError> {
        let statement = format!("SELECT {COLUMNS} FROM constraints WHERE id = $1");
        let row = self.with(async |client| client.query_opt(&statement, &[&id]).await)?;
        row.as_ref().map(constraint).transpose()
    }

    pub(crate) fn insert(&self, new: &Constraint) -> Result<Created, StoreError> {
        let statement = format!(
            "INSERT INTO constraints ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $11, $10)
             ON CONFLICT DO NOTHING"
        );
        let texts = Texts::of(new);
        let created_at = new.created_at.as_microsecond();
        let mut values = texts.values(new);
        values.push(&created_at);
        match self.with(async |client| client.execute(&statement, &values).await)? {
            0 => Ok(Created::Existed),
            _ => Ok(Created::Yes),
        }
    }

    pub(crate) fn replace(&self, new: &Constraint) -> Result<Option<Constraint>, StoreError> {
        let statement = format!(
            "UPDATE constraints SET type = $2, sport = $3, name = $4, version = $5, priority = $6, configuration = $7,
                 metadata = $8, active = $9, updated_at = $10 WHERE id = $1 RETURNING {COLUMNS}"
        );
        let texts = Texts::of(new);
        let values = texts.values(new);
        let row = self.with(async |client| client.query_opt(&statement, &values).await)?;
        row.as_ref().map(constraint).transpose()
    }

    pub(crate) fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let statement = "DELETE FROM constraints WHERE id = $1";
        let gone = self.with(async |client| client.execute(statement, &[&id]).await)?;
        Ok(gone == 1)
    }

    pub(crate) fn record(&self, rows: &[HistoryRow]) -> Result<(), StoreError> {
        match self.try_record(rows) {
            // The job that makes partitions ahead did not run for two quarters.
            Err(StoreError::Postgres(error))
                if error.code() == Some(&SqlState::CHECK_VIOLATION) =>
            {
                for row in rows {
                    self.make_partitions(row.created_at)?;
                }
                self.try_record(rows)
            }
            done => done,
        }
    }

    fn try_record(&self, rows: &[HistoryRow]) -> Result<(), StoreError> {
        let text =
            |of: fn(&HistoryRow) -> &String| rows.iter().map(of).cloned().collect::<Vec<_>>();
        let (ids, slots, results) = (
            text(|row| &row.constraint_id),
            text(|row| &row.slot_id),
            text(|row| &row.result),
        );
        let times: Vec<i64> = rows.iter().map(|row| row.evaluation_micros).collect();
        let instants: Vec<i64> = rows
            .iter()
            .map(|row| row.created_at.as_microsecond())
            .collect();
        let statement = "
            INSERT INTO evaluation_history (constraint_id, slot_id, result, evaluation_time, created_at)
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])";
        let values: [&(dyn ToSql + Sync); 5] = [&ids, &slots, &results, &times, &instants];
        self.with(async |client| client.execute(statement, &values).await)?;
        Ok(())
    }

    pub(crate) fn prune(&self, now: Timestamp, before: Timestamp) -> Result<usize, StoreError> {
        self.make_partitions(now)?;
        let mut removed = 0;
        for table in self.partitions()? {
            let is_over =
                Quarter::of_table(&table).is_some_and(|quarter| quarter.next().start() <= before);
            if is_over {
                removed += self.drop_partition(&table)?;
            }
        }
        // What is older in the quarter that still holds something to keep.
        let statement = "
            DELETE FROM evaluation_history WHERE (tableoid, ctid) IN
                (SELECT tableoid, ctid FROM evaluation_history WHERE created_at < $1 LIMIT $2)";
        loop {
            let values: [&(dyn ToSql + Sync); 2] = [&before.as_microsecond(), &PRUNE_ROWS];
            let rows = self.with(async |client| client.execute(statement, &values).await)?;
            removed += usize::try_from(rows).unwrap_or_default();
            if i64::try_from(rows).unwrap_or_default() < PRUNE_ROWS {
                return Ok(removed);
            }
        }
    }

    pub(crate) fn history_count(&self) -> Result<i64, StoreError> {
        let statement = "SELECT count(*) FROM evaluation_history";
        let row = self.with(async |client| client.query_one(statement, &[]).await)?;
        Ok(row.get(0))
    }

    /// The partitions there are, oldest first.
    pub(crate) fn partitions(&self) -> Result<Vec<String>, StoreError> {
        let statement = "
            SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'evaluation_history'::regclass ORDER BY 1";
        let rows = self.with(async |client| client.query(statement, &[]).await)?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Makes the partition of a moment's quarter and of those that follow.
    fn make_partitions(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut quarter = Quarter::of(now);
        let mut statements = format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK});");
        for _ in 0..=QUARTERS_AHEAD {
            let (table, next) = (quarter.table(), quarter.next());
            let (from, to) = (
                quarter.start().as_microsecond(),
                next.start().as_microsecond(),
            );
            statements.push_str(&format!(
                "CREATE TABLE IF NOT EXISTS {table} PARTITION OF evaluation_history FOR VALUES FROM ({from}) TO ({to});"
            ));
            quarter = next;
        }
        statements.push_str("COMMIT");
        self.with(async |client| client.batch_execute(&statements).await)
    }

    /// Drops a partition; how many rows went with it.
    fn drop_partition(&self, table: &str) -> Result<usize, StoreError> {
        let count = format!("SELECT count(*) FROM {table}");
        let row = self.with(async |client| client.query_one(&count, &[]).await)?;
        // Whoever writes the history of today waits for a moment at most: otherwise it is dropped tomorrow.
        let drop =
            format!("BEGIN; SET LOCAL lock_timeout = '2s'; DROP TABLE IF EXISTS {table}; COMMIT");
        let dropped = self.with(async |client| {
            let dropped = client.batch_execute(&drop).await;
            if dropped.is_err() {
                client.batch_execute("ROLLBACK").await?;
            }
            dropped
        });
        match dropped {
            Ok(()) => Ok(usize::try_from(row.get::<_, i64>(0)).unwrap_or_default()),
            Err(StoreError::Postgres(error))
                if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) =>
            {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

/// The columns that are made from others.
struct Texts {
    configuration: String,
    metadata: String,
    priority: &'static str,
    updated_at: i64,
}

impl Texts {
    fn of(new: &Constraint) -> Self {
        Self {
            configuration: new.configuration.to_string(),
            metadata: new.metadata.to_string(),
            priority: new.priority.name(),
            updated_at: new.updated_at.as_microsecond(),
        }
    }

    /// `$1` to `$10`: all but the instant of creation.
    fn values<'a>(&'a self, new: &'a Constraint) -> Vec<&'a (dyn ToSql + Sync)> {
        vec![
            &new.id,
            &new.kind,
            &new.sport,
            &new.name,
            &new.version,
            &self.priority,
            &self.configuration,
            &self.metadata,
            &new.active,
            &self.updated_at,
        ]
    }
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // It ends with the client, or with the server; the client tells of either.
    drop(tokio::runtime::Handle::current().spawn(connection));
    Ok(client)
}

fn constraint(row: &Row) -> Result<Constraint, StoreError> {
    let id: String = row.get(0);
    let corrupt = || StoreError::Corrupt { id: id.clone() };
    let json =
        |column: usize| serde_json::from_str(row.get::<_, &str>(column)).map_err(|_| corrupt());
    let instant =
        |column: usize| Timestamp::from_microsecond(row.get(column)).map_err(|_| corrupt());
    Ok(Constraint {
        kind: row.get(1),
        sport: row.get(2),
        name: row.get(3),
        version: row.get(4),
        priority: Priority::parse(row.get(5)).ok_or_else(corrupt)?,
        configuration: json(6)?,
        metadata: json(7)?,
        active: row.get(8),
        created_at: instant(9)?,
        updated_at: instant(10)?,
        id: id.clone(),
    })
}
