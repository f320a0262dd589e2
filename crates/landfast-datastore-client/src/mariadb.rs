//! MariaDB.

use aws_lc_rs::digest;
use landfast_datastore::{Login, Measures, SLOW_FROM, Statement, TOLD_MAX, Wanted, without_values};
use landfast_spec::Engine;
use landfast_types::Secret;
use mysql_async::{Conn, OptsBuilder, prelude::Queryable as _};

use crate::{Access, StoreError};

/// A connection.
pub(crate) struct Session {
    connection: Conn,
    database: String,
}

fn failed(doing: &'static str) -> impl FnOnce(mysql_async::Error) -> StoreError {
    move |source| StoreError::Mariadb { doing, source }
}

impl Session {
    pub(crate) async fn connect(access: &Access) -> Result<Self, StoreError> {
        let options = OptsBuilder::default()
            .ip_or_hostname("localhost")
            .socket(Some(access.socket.to_string_lossy().into_owned()))
            .user(Some(access.login.clone()))
            .pass(Some(access.password.reveal().clone()));
        Ok(Self {
            connection: Conn::new(options).await.map_err(failed("connect"))?,
            database: access.database.clone(),
        })
    }

    async fn run(&mut self, doing: &'static str, statement: String) -> Result<(), StoreError> {
        self.connection
            .query_drop(statement)
            .await
            .map_err(failed(doing))
    }

    pub(crate) async fn prepare(&mut self) -> Result<(), StoreError> {
        let create = format!(
            "CREATE DATABASE IF NOT EXISTS {}",
            identifier(&self.database)
        );
        self.run("prepare the database", create).await?;
        self.drop_open_accounts().await
    }

    /// `mariadb-install-db` leaves an administrator without a password for each name of this host, and guests.
    async fn drop_open_accounts(&mut self) -> Result<(), StoreError> {
        let doing = "drop accounts without a password";
        let open = "SELECT Host, User FROM mysql.global_priv WHERE User IN ('root', '') \
            AND COALESCE(JSON_VALUE(Priv, '$.authentication_string'), '') = ''";
        let open: Vec<(String, String)> =
            self.connection.query(open).await.map_err(failed(doing))?;
        for (host, user) in open {
            let account = format!("{}@{}", literal(&user), literal(&host));
            self.run(doing, format!("DROP USER IF EXISTS {account}"))
                .await?;
        }
        Ok(())
    }

    pub(crate) async fn ensure_login(
        &mut self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        let doing = "make a login";
        let (user, database) = (user(login), identifier(&self.database));
        let password = literal(&hashed(password));
        let create = format!("CREATE USER IF NOT EXISTS {user} IDENTIFIED BY PASSWORD {password}");
        self.run(doing, create).await?;
        // One that views or triggers were defined by was locked instead of removed.
        let change = format!("ALTER USER {user} IDENTIFIED BY PASSWORD {password} ACCOUNT UNLOCK");
        self.run(doing, change).await?;
        let grant = format!("GRANT ALL PRIVILEGES ON {database}.* TO {user}");
        self.run(doing, grant).await?;
        if Login::parse(login).is_some_and(Login::is_operator) {
            // Who looks after the store sees the sessions of others and what they hold: without it the guard of a contract is
            // blind, and so is whoever waits behind a transaction.
            let watch = format!("GRANT PROCESS ON *.* TO {user}");
            self.run(doing, watch).await?;
        }
        Ok(())
    }

    pub(crate) async fn make_beside(
        &mut self,
        name: &str,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        const LIKE: &str = "\
            SELECT default_character_set_name, default_collation_name FROM information_schema.schemata
            WHERE schema_name = ?";
        let doing = "make a database for a copy";
        self.drop_beside(name).await?;
        let like: Option<(String, String)> = self
            .connection
            .exec_first(LIKE, (&self.database,))
            .await
            .map_err(failed(doing))?;
        let like = like.map(|(set, collation)| {
            format!(
                " CHARACTER SET {} COLLATE {}",
                literal(&set),
                literal(&collation)
            )
        });
        let beside = identifier(name);
        let create = format!("CREATE DATABASE {beside}{}", like.unwrap_or_default());
        self.run(doing, create).await?;
        // Nothing of another database, so that a statement that names one fails. What it wrote anew is read by the right to see
        // the server's processes.
        let (user, password) = (user(login), literal(&hashed(password)));
        for statement in [
            format!("CREATE USER {user} IDENTIFIED BY PASSWORD {password}"),
            format!("GRANT ALL PRIVILEGES ON {beside}.* TO {user}"),
            format!("GRANT PROCESS ON *.* TO {user}"),
        ] {
            self.run(doing, statement).await?;
        }
        Ok(())
    }

    pub(crate) async fn copies_advance(&mut self) -> Result<bool, StoreError> {
        const AT_WORK: &str = "\
            SELECT COUNT(*) FROM information_schema.processlist
            WHERE (user = ? OR user = SUBSTRING_INDEX(CURRENT_USER(), '@', 1) AND db = ?) AND id <> CONNECTION_ID()
              AND command NOT IN ('Sleep', 'Killed') AND COALESCE(state, '') NOT LIKE 'Waiting for %'
              AND COALESCE(state, '') NOT IN ('Writing to net', 'Reading from net', 'User lock')";
        let asked = (Login::Rehearsal.to_string(), &self.database);
        let counted = self.connection.exec_first(AT_WORK, asked).await;
        let counted: Option<u64> = counted.map_err(failed("look at what copies"))?;
        Ok(counted.unwrap_or_default() > 0)
    }

    pub(crate) async fn drop_beside(&mut self, name: &str) -> Result<(), StoreError> {
        let doing = "drop the copy";
        let login = Login::Rehearsal.to_string();
        let user = user(&login);
        let close = format!("ALTER USER IF EXISTS {user} ACCOUNT LOCK");
        self.run(doing, close).await?;
        // Whoever is at work there keeps its tables from being dropped.
        self.end_sessions(&login).await?;
        self.end_dumps().await?;
        let drop = format!("DROP DATABASE IF EXISTS {}", identifier(name));
        self.run(doing, drop).await?;
        self.run(doing, format!("DROP USER IF EXISTS {user}")).await
    }

    pub(crate) async fn change_own_password(
        &mut self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        let (user, password) = (user(login), literal(&hashed(password)));
        let change = format!("ALTER USER {user} IDENTIFIED BY PASSWORD {password}");
        self.run("change its own password", change).await
    }

    pub(crate) async fn drop_login(&mut self, login: &str) -> Result<(), StoreError> {
        let doing = "remove a login";
        let close = match self.is_definer(login).await? {
            // What it defined is run with its rights, and fails where it is not there.
            true => format!("ALTER USER IF EXISTS {} ACCOUNT LOCK", user(login)),
            false => format!("DROP USER IF EXISTS {}", user(login)),
        };
        // Nobody comes in any more, then those who are in leave.
        self.run(doing, close).await?;
        self.end_sessions(login).await
    }

    /// Ends sessions of the administrator that are in the app's database: nobody but a dump has one there.
    async fn end_dumps(&mut self) -> Result<(), StoreError> {
        const DUMPS: &str = "\
            SELECT id FROM information_schema.processlist
            WHERE user = SUBSTRING_INDEX(CURRENT_USER(), '@', 1) AND db = ? AND id <> CONNECTION_ID()";
        let dumps = self.connection.exec(DUMPS, (&self.database,)).await;
        let dumps = dumps.map_err(failed("end what copies"))?;
        self.kill(dumps).await;
        Ok(())
    }

    async fn end_sessions(&mut self, login: &str) -> Result<(), StoreError> {
        let open = self.sessions(login).await?;
        self.kill(open).await;
        Ok(())
    }

    async fn kill(&mut self, sessions: Vec<u64>) {
        for id in sessions {
            // It may have left meanwhile.
            if let Err(error) = self.connection.query_drop(format!("KILL {id}")).await {
                tracing::debug!(%error, "a connection was not ended");
            }
        }
    }

    /// Whether a view, trigger, routine or event runs with the rights of a login.
    async fn is_definer(&mut self, login: &str) -> Result<bool, StoreError> {
        const DEFINED: &str = "\
            SELECT COUNT(*) FROM (
                SELECT definer FROM information_schema.views
                UNION ALL SELECT definer FROM information_schema.triggers
                UNION ALL SELECT definer FROM information_schema.routines
                UNION ALL SELECT definer FROM information_schema.events) AS defined
            WHERE definer = ?";
        let definer = format!("{login}@%");
        let counted = self.connection.exec_first(DEFINED, (definer,)).await;
        let counted: Option<u64> = counted.map_err(failed("look what a login defined"))?;
        Ok(counted.unwrap_or_default() > 0)
    }

    async fn sessions(&mut self, login: &str) -> Result<Vec<u64>, StoreError> {
        let open = "SELECT id FROM information_schema.processlist WHERE user = ?";
        let open = self.connection.exec(open, (login,)).await;
        open.map_err(failed("count its sessions"))
    }

    pub(crate) async fn sessions_of(&mut self, login: &str) -> Result<u64, StoreError> {
        let open = self.sessions(login).await?;
        Ok(u64::try_from(open.len()).unwrap_or(u64::MAX))
    }

    pub(crate) async fn try_login(access: &Access) -> Result<(), StoreError> {
        let mut session = Self::connect(access).await?;
        let database = identifier(&access.database);
        session
            .run("ask as the new login", format!("USE {database}"))
            .await
    }

    pub(crate) async fn set(
        &mut self,
        wanted: &Wanted,
        settings: &[String],
    ) -> Result<Vec<String>, StoreError> {
        let mut waiting = Vec::new();
        for name in settings {
            let value = wanted.setting(name).unwrap_or_else(|| "DEFAULT".to_owned());
            let variable = name.replace('-', "_");
            let is_plain = value == "DEFAULT" || value.bytes().all(|byte| byte.is_ascii_digit());
            let value = if is_plain { value } else { literal(&value) };
            // 1238: read-only while it runs.
            let set = self
                .connection
                .query_drop(format!("SET GLOBAL {variable} = {value}"))
                .await;
            match set {
                Ok(()) => {}
                Err(mysql_async::Error::Server(error)) if error.code == 1_238 => {
                    waiting.push(name.clone());
                }
                Err(source) => return Err(failed("change a setting")(source)),
            }
        }
        Ok(waiting)
    }

    pub(crate) async fn measure(&mut self) -> Result<Measures, StoreError> {
        const STATUS: &str = "\
            SELECT variable_name, variable_value FROM information_schema.global_status WHERE variable_name IN
            ('THREADS_CONNECTED', 'THREADS_RUNNING', 'INNODB_BUFFER_POOL_READ_REQUESTS', 'INNODB_BUFFER_POOL_READS',
             'COM_COMMIT', 'COM_ROLLBACK', 'INNODB_DEADLOCKS')";
        const SLOW: &str = "\
            SELECT user, CAST(time_ms AS UNSIGNED), info, state FROM information_schema.processlist
            WHERE info IS NOT NULL AND id <> CONNECTION_ID() AND time_ms > ? AND command <> 'Sleep'
            ORDER BY time_ms DESC LIMIT ?";
        const SIZE: &str = "\
            SELECT CAST(COALESCE(SUM(data_length + index_length), 0) AS UNSIGNED) FROM information_schema.tables
            WHERE table_schema = ?";
        let doing = "measure";
        let status: Vec<(String, String)> =
            self.connection.query(STATUS).await.map_err(failed(doing))?;
        let number = |name: &str| {
            let found = status
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(name));
            found
                .and_then(|(_, value)| value.parse().ok())
                .unwrap_or_default()
        };
        let threshold = u64::try_from(SLOW_FROM.as_millis()).unwrap_or(u64::MAX);
        let told = u64::try_from(TOLD_MAX).unwrap_or(u64::MAX);
        let slow: Vec<(String, u64, String, Option<String>)> = self
            .connection
            .exec(SLOW, (threshold, told))
            .await
            .map_err(failed(doing))?;
        let size: Option<u64> = self
            .connection
            .exec_first(SIZE, (self.database.clone(),))
            .await
            .map_err(failed(doing))?;
        let most: Option<u64> = self
            .connection
            .query_first("SELECT @@max_connections")
            .await
            .map_err(failed(doing))?;
        let is_waiting = |state: &Option<String>| {
            state
                .as_ref()
                .is_some_and(|state| state.to_lowercase().contains("lock"))
        };
        let waits = slow.iter().filter(|(_, _, _, state)| is_waiting(state));
        let waiting = waits.map(|(login, millis, text, _)| landfast_datastore::Waiting {
            login: login.clone(),
            millis: *millis,
            text: without_values(text, Engine::Mariadb),
            behind: Vec::new(),
        });
        let waiting = waiting.collect();
        let slow = slow.into_iter().map(|(login, millis, text, _)| Statement {
            login,
            millis,
            text: without_values(&text, Engine::Mariadb),
        });
        let requests: u64 = number("INNODB_BUFFER_POOL_READ_REQUESTS");
        let misses: u64 = number("INNODB_BUFFER_POOL_READS");
        Ok(Measures {
            // This one does not count.
            connections: number("THREADS_CONNECTED").saturating_sub(1),
            connections_max: most.unwrap_or_default(),
            active: number("THREADS_RUNNING").saturating_sub(1),
            size_bytes: size.unwrap_or_default(),
            slow: slow.collect(),
            waiting,
            hits: requests.saturating_sub(misses),
            misses,
            commits: number("COM_COMMIT"),
            rollbacks: number("COM_ROLLBACK"),
            deadlocks: number("INNODB_DEADLOCKS"),
            ..Measures::default()
        })
    }
}

/// As the server itself keeps a password (mysql_native_password), so that no log of statements holds it.
fn hashed(password: &Secret<String>) -> String {
    let sha1 = |bytes: &[u8]| digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    let twice = sha1(sha1(password.reveal().as_bytes()).as_ref());
    let hex: String = twice
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    format!("*{hex}")
}

/// From wherever: the server listens on loopback only.
fn user(login: &str) -> String {
    format!("{}@'%'", literal(login))
}

fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_sent_as_the_server_keeps_it() {
        // SELECT PASSWORD('secret')
        let hash = hashed(&Secret::new("secret".to_owned()));
        assert_eq!(hash, "*14E65567ABDB5135D0CFD9A70B3032C179A49EE7");
    }
}
