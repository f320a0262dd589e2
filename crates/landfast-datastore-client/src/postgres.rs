//! PostgreSQL.

use std::time::Duration;

use landfast_datastore::{
    Costly, Measures, Replica, SLOW_FROM, Statement, TOLD_MAX, Waiting, without_values,
};
use landfast_spec::Engine;
use landfast_types::Secret;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls, types::ToSql};

use crate::{ANSWER_MAX, Access, StoreError};

/// The database every server has.
const MAINTENANCE: &str = "postgres";
/// How long it takes until a configuration is read.
const READ_AFTER: Duration = Duration::from_millis(200);

/// A connection to the maintenance database, and how to open others.
pub(crate) struct Session {
    client: Client,
    access: Access,
    /// The other half of each connection.
    connections: JoinSet<()>,
}

fn failed(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> StoreError {
    move |source| StoreError::Postgres { doing, source }
}

impl Session {
    pub(crate) async fn connect(access: &Access) -> Result<Self, StoreError> {
        let mut connections = JoinSet::new();
        let client = open(access, MAINTENANCE, &mut connections).await?;
        Ok(Self {
            client,
            access: access.clone(),
            connections,
        })
    }

    pub(crate) async fn prepare(&mut self) -> Result<(), StoreError> {
        let doing = "prepare the database";
        let (database, owner) = (self.access.database.clone(), self.access.owner.clone());
        if !self
            .is_there("SELECT 1 FROM pg_roles WHERE rolname = $1", &owner)
            .await?
        {
            let create = format!("CREATE ROLE {} NOLOGIN", identifier(&owner));
            self.client
                .batch_execute(&create)
                .await
                .map_err(failed(doing))?;
        }
        // All that runs on this server is the store's own: whoever works on it sees what holds a lock, and since when
        // (without it pg_stat_activity hides both), and may end it.
        let watch = format!(
            "GRANT pg_read_all_stats, pg_signal_backend TO {}",
            identifier(&owner)
        );
        self.client
            .batch_execute(&watch)
            .await
            .map_err(failed(doing))?;
        if !self
            .is_there("SELECT 1 FROM pg_database WHERE datname = $1", &database)
            .await?
        {
            let (database, owner) = (identifier(&database), identifier(&owner));
            let create = format!("CREATE DATABASE {database} OWNER {owner}");
            self.client
                .batch_execute(&create)
                .await
                .map_err(failed(doing))?;
        }
        let database = identifier(&self.access.database);
        let close = format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC");
        self.client
            .batch_execute(&close)
            .await
            .map_err(failed(doing))?;
        self.count_statements().await
    }

    /// Statements are counted where the library was there at the start.
    async fn count_statements(&mut self) -> Result<(), StoreError> {
        let loaded =
            "SELECT 1 FROM pg_settings WHERE name = 'pg_stat_statements.track' AND $1 <> ''";
        if self.is_there(loaded, "x").await? {
            let create = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements";
            let created = self.client.batch_execute(create).await;
            created.map_err(failed("count statements"))?;
        }
        Ok(())
    }

    pub(crate) async fn ensure_login(
        &mut self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        let verifier = postgres_protocol::password::scram_sha_256(password.reveal().as_bytes());
        let there = self
            .is_there("SELECT 1 FROM pg_roles WHERE rolname = $1", login)
            .await?;
        let verb = if there { "ALTER" } else { "CREATE" };
        let (login, owner) = (identifier(login), identifier(&self.access.owner));
        let database = identifier(&self.access.database);
        // What it makes belongs to the owner, for it acts as the owner from its first statement on.
        let statements = format!(
            "BEGIN; {verb} ROLE {login} LOGIN INHERIT PASSWORD {}; GRANT {owner} TO {login}; \
             ALTER ROLE {login} IN DATABASE {database} SET role = {}; COMMIT",
            literal(&verifier),
            literal(&self.access.owner),
        );
        let done = self.client.batch_execute(&statements).await;
        if done.is_err() && self.client.batch_execute("ROLLBACK").await.is_err() {
            tracing::debug!("the connection is gone");
        }
        done.map_err(failed("make a login"))
    }

    pub(crate) async fn change_own_password(
        &mut self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        let verifier = postgres_protocol::password::scram_sha_256(password.reveal().as_bytes());
        // Whatever the server's settings say: what is forgotten in a crash would lock Landfast out.
        let change = format!(
            "SET synchronous_commit = on; ALTER ROLE {} PASSWORD {}",
            identifier(login),
            literal(&verifier)
        );
        let changed = self.client.batch_execute(&change).await;
        changed.map_err(failed("change its own password"))
    }

    pub(crate) async fn try_login(access: &Access) -> Result<(), StoreError> {
        let mut connections = JoinSet::new();
        let client = open(access, &access.database, &mut connections).await?;
        let asked = client.simple_query("SELECT 1").await;
        asked.map(drop).map_err(failed("ask as the new login"))
    }

    pub(crate) async fn sessions_of(&self, login: &str) -> Result<u64, StoreError> {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
        let row = self.client.query_one(count, &[&login]).await;
        let row = row.map_err(failed("count its sessions"))?;
        Ok(positive(row.get(0)))
    }

    pub(crate) async fn make_beside(&mut self, name: &str, login: &str) -> Result<(), StoreError> {
        self.drop_beside(name).await?;
        let (name, login) = (identifier(name), identifier(login));
        let owner = identifier(&self.access.owner);
        // What the template has besides is in the dump too.
        let create = format!("CREATE DATABASE {name} OWNER {owner} TEMPLATE template0");
        let close = format!(
            "REVOKE ALL ON DATABASE {name} FROM PUBLIC;
             ALTER ROLE {login} IN DATABASE {name} SET role = {}",
            literal(&self.access.owner)
        );
        for statement in [create, close] {
            let done = self.client.batch_execute(&statement).await;
            done.map_err(failed("make a database for a copy"))?;
        }
        Ok(())
    }

    pub(crate) async fn copies_advance(&self) -> Result<bool, StoreError> {
        const AT_WORK: &str = "\
            SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state = 'active'
              AND coalesce(wait_event_type, '') NOT IN ('Lock', 'Client')";
        let row = self.client.query_one(AT_WORK, &[&crate::COPYING]).await;
        let row = row.map_err(failed("look at what copies"))?;
        Ok(positive(row.get(0)) > 0)
    }

    pub(crate) async fn drop_beside(&mut self, name: &str) -> Result<(), StoreError> {
        // A session that waits for a lock does not notice that its client is gone, and keeps those it has.
        let end =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
        let ended = self.client.query(end, &[&crate::COPYING]).await;
        ended.map_err(failed("end what copies"))?;
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(name));
        let dropped = self.client.batch_execute(&drop).await;
        dropped.map_err(failed("drop the copy"))
    }

    pub(crate) async fn drop_login(&mut self, login: &str) -> Result<(), StoreError> {
        let doing = "remove a login";
        if !self
            .is_there("SELECT 1 FROM pg_roles WHERE rolname = $1", login)
            .await?
        {
            return Ok(());
        }
        let quoted = identifier(login);
        // Nobody comes in any more, then those who are in leave.
        let close = format!("ALTER ROLE {quoted} NOLOGIN");
        self.client
            .batch_execute(&close)
            .await
            .map_err(failed(doing))?;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1";
        self.client
            .query(end, &[&login])
            .await
            .map_err(failed(doing))?;
        let database = self.access.database.clone();
        let inside = open(&self.access, &database, &mut self.connections).await?;
        let owner = identifier(&self.access.owner);
        let give = format!("REASSIGN OWNED BY {quoted} TO {owner}; DROP OWNED BY {quoted}");
        inside.batch_execute(&give).await.map_err(failed(doing))?;
        let drop = format!("DROP ROLE IF EXISTS {quoted}");
        self.client
            .batch_execute(&drop)
            .await
            .map_err(failed(doing))
    }

    pub(crate) async fn reload(&mut self) -> Result<Vec<String>, StoreError> {
        let doing = "reload the configuration";
        let read_at = "SELECT pg_conf_load_time()::text";
        let before = self.client.query_one(read_at, &[]).await;
        let before: String = before.map_err(failed(doing))?.get(0);
        let reload = "SELECT pg_reload_conf()";
        self.client
            .query(reload, &[])
            .await
            .map_err(failed(doing))?;
        // The server reads its files a moment after the signal, and then tells its sessions.
        loop {
            tokio::time::sleep(READ_AFTER).await;
            let now = self.client.query_one(read_at, &[]).await;
            if now.map_err(failed(doing))?.get::<_, String>(0) != before {
                break;
            }
        }
        let waiting = "SELECT name FROM pg_settings WHERE pending_restart ORDER BY name";
        let rows = self
            .client
            .query(waiting, &[])
            .await
            .map_err(failed(doing))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    pub(crate) async fn goes_by(
        &self,
        is_read_only: bool,
        is_closed: bool,
    ) -> Result<bool, StoreError> {
        // An error keeps it from reading anything; that a setting waits for a restart is none.
        const GOES_BY: &str = "\
            SELECT $1 = EXISTS (SELECT FROM pg_file_settings
                                WHERE name = 'default_transaction_read_only' AND applied AND sourcefile LIKE '%/stopped-writes.conf')
                AND NOT EXISTS (SELECT FROM pg_file_settings WHERE error <> 'setting could not be applied')
                AND NOT EXISTS (SELECT FROM pg_hba_file_rules WHERE error IS NOT NULL)
                AND $2 = NOT EXISTS (SELECT FROM pg_hba_file_rules WHERE user_name <> ARRAY[current_user::text])";
        let row = self
            .client
            .query_one(GOES_BY, &[&is_read_only, &is_closed])
            .await;
        Ok(row.map_err(failed("ask what it goes by"))?.get(0))
    }

    pub(crate) async fn end_others(&self, is_everybody: bool) -> Result<u64, StoreError> {
        // Who has a number of its own has written.
        const END: &str = "\
            SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND usename <> current_user AND ($1 OR backend_xid IS NOT NULL)";
        let row = self.client.query_one(END, &[&is_everybody]).await;
        let row = row.map_err(failed("end the sessions of others"))?;
        Ok(positive(row.get(0)))
    }

    pub(crate) async fn kept_for(&self, slot: &str) -> Result<u64, StoreError> {
        const KEPT: &str = "\
            SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $1";
        let row = self.client.query_opt(KEPT, &[&slot]).await;
        let row = row.map_err(failed("ask what it keeps for its archive"))?;
        Ok(row.map_or(0, |row| positive(row.get(0))))
    }

    pub(crate) async fn measure(&mut self) -> Result<Measures, StoreError> {
        let mut measures = self.counts().await?;
        measures.slow = self.slow().await?;
        measures.waiting = self.waiting().await?;
        measures.replicas = self.replicas().await?;
        measures.costly = self.costly().await?;
        Ok(measures)
    }

    async fn counts(&self) -> Result<Measures, StoreError> {
        const COUNTS: &str = "\
            SELECT count(*), count(*) FILTER (WHERE state = 'active'),
                   count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
                   (SELECT setting::bigint FROM pg_settings WHERE name = 'max_connections'),
                   coalesce((SELECT pg_database_size(oid) FROM pg_database WHERE datname = $1), 0)
            FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        const TOTALS: &str = "\
            SELECT blks_hit, blks_read, xact_commit, xact_rollback, deadlocks
            FROM pg_stat_database WHERE datname = $1";
        let doing = "measure";
        let database = &self.access.database;
        let row = self
            .client
            .query_one(COUNTS, &[database])
            .await
            .map_err(failed(doing))?;
        let number = |row: &tokio_postgres::Row, index: usize| {
            row.get::<_, Option<i64>>(index)
                .and_then(|number| u64::try_from(number).ok())
                .unwrap_or_default()
        };
        let totals = self
            .client
            .query_opt(TOTALS, &[database])
            .await
            .map_err(failed(doing))?;
        let total = |index| totals.as_ref().map_or(0, |row| number(row, index));
        Ok(Measures {
            connections: number(&row, 0),
            active: number(&row, 1),
            idle_in_transaction: number(&row, 2),
            connections_max: number(&row, 3),
            size_bytes: number(&row, 4),
            hits: total(0),
            misses: total(1),
            commits: total(2),
            rollbacks: total(3),
            deadlocks: total(4),
            ..Measures::default()
        })
    }

    async fn slow(&self) -> Result<Vec<Statement>, StoreError> {
        const SLOW: &str = "\
            SELECT coalesce(usename, ''), (extract(epoch FROM clock_timestamp() - query_start) * 1000)::bigint, query
            FROM pg_stat_activity
            WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()
              AND clock_timestamp() - query_start > $1::bigint * interval '1 millisecond'
            ORDER BY query_start LIMIT $2";
        let rows = self.query(SLOW, &[&millis(SLOW_FROM), &told_max()]).await?;
        let each = rows.iter().map(|row| Statement {
            login: row.get::<_, String>(0),
            millis: positive(row.get(1)),
            text: without_values(row.get(2), Engine::Postgres),
        });
        Ok(each.collect())
    }

    async fn waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        const WAITING: &str = "\
            SELECT coalesce(a.usename, ''), (extract(epoch FROM clock_timestamp() - a.query_start) * 1000)::bigint, a.query,
                   array(SELECT coalesce(b.usename, '')::text FROM pg_stat_activity b
                         WHERE b.pid = ANY(pg_blocking_pids(a.pid)) ORDER BY 1)
            FROM pg_stat_activity a WHERE a.wait_event_type = 'Lock' ORDER BY a.query_start LIMIT $1";
        let rows = self.query(WAITING, &[&told_max()]).await?;
        let each = rows.iter().map(|row| Waiting {
            login: row.get::<_, String>(0),
            millis: positive(row.get(1)),
            text: without_values(row.get(2), Engine::Postgres),
            behind: row.get(3),
        });
        Ok(each.collect())
    }

    async fn replicas(&self) -> Result<Vec<Replica>, StoreError> {
        const REPLICAS: &str = "\
            SELECT coalesce(application_name, ''), coalesce(state, ''),
                   coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(flush_lsn, sent_lsn)), 0)::bigint
            FROM pg_stat_replication ORDER BY 1";
        let rows = self.query(REPLICAS, &[]).await?;
        let each = rows.iter().map(|row| Replica {
            name: row.get(0),
            state: row.get(1),
            lag_bytes: positive(row.get(2)),
        });
        Ok(each.collect())
    }

    async fn costly(&self) -> Result<Vec<Costly>, StoreError> {
        const COSTLY: &str = "\
            SELECT s.query, s.calls, (s.mean_exec_time * 1000)::bigint FROM pg_stat_statements s
            JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = $1
            ORDER BY s.total_exec_time DESC LIMIT $2";
        let counted = "SELECT 1 FROM pg_extension WHERE extname = $1";
        if !self.is_there(counted, "pg_stat_statements").await? {
            return Ok(Vec::new());
        }
        // Installed, but not loaded by a server that was started without it: nothing to tell.
        let Ok(rows) = self
            .client
            .query(COSTLY, &[&self.access.database, &told_max()])
            .await
        else {
            return Ok(Vec::new());
        };
        let each = rows.iter().map(|row| Costly {
            text: without_values(row.get(0), Engine::Postgres),
            calls: positive(row.get(1)),
            mean_micros: positive(row.get(2)),
        });
        Ok(each.collect())
    }

    async fn query(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, StoreError> {
        self.client
            .query(statement, parameters)
            .await
            .map_err(failed("measure"))
    }

    async fn is_there(&self, statement: &str, name: &str) -> Result<bool, StoreError> {
        let found = self.client.query_opt(statement, &[&name]).await;
        found.map(|row| row.is_some()).map_err(failed("look"))
    }
}

async fn open(
    access: &Access,
    database: &str,
    connections: &mut JoinSet<()>,
) -> Result<Client, StoreError> {
    let folder = access.socket.parent().unwrap_or(&access.socket);
    let mut config = Config::new();
    config
        .host_path(folder)
        .port(access.port)
        .user(&access.login)
        .password(access.password.reveal().as_bytes())
        .dbname(database)
        .application_name("landfast")
        // Also where nobody else may write just now.
        .options("-c default_transaction_read_only=off")
        .connect_timeout(ANSWER_MAX);
    let (client, connection) = config.connect(NoTls).await.map_err(failed("connect"))?;
    connections.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a store ended");
        }
    });
    Ok(client)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn told_max() -> i64 {
    i64::try_from(TOLD_MAX).unwrap_or(i64::MAX)
}

fn positive(number: Option<i64>) -> u64 {
    number
        .and_then(|number| u64::try_from(number).ok())
        .unwrap_or_default()
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
