//! The server that is backed up: where it is, what it says of itself, the slot and the heartbeat.

use std::{
    ffi::OsString,
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_backup::{Lsn, SegmentBytes, Timeline};
use landfast_types::{Secret, Timestamp};
use tokio_postgres::{Client, Config, NoTls, error::SqlState};

use crate::{BackupError, child::Program, container::Containers, wal_get::own};

const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Where PostgreSQL's programs lie, and as whom its server may run.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `/usr/lib/postgresql/15/bin`; of the server's own major version.
    pub folder: PathBuf,
    /// User and group for servers that are started here, where we are root: `postgres` refuses to be.
    pub user: Option<(u32, u32)>,
    /// The folder is one of an image, and this runs what is in it, all of it as that user.
    pub containers: Option<Arc<dyn Containers>>,
}

impl Programs {
    pub(crate) fn program(&self, name: &str) -> Program {
        let mut program = Program::new(&self.folder.join(name));
        program.containers.clone_from(&self.containers);
        program
    }

    /// Hands over what a program reads or writes that would run as ourselves on this host.
    pub(crate) fn hand_over(&self, path: &Path) -> Result<(), BackupError> {
        if self.containers.is_none() {
            return Ok(());
        }
        own(path, self.user).map_err(BackupError::io("give away", path))
    }
}

/// How a server is reached, as a login with REPLICATION and `pg_monitor`.
#[derive(Debug, Clone)]
pub struct Server {
    /// The folder of its socket, or an address of this host.
    pub host: String,
    pub port: u16,
    pub login: String,
    pub password: Option<Secret<String>>,
    /// Where the heartbeat lies; the login may make a schema there, or it is there already.
    pub database: String,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub system: u64,
    pub timeline: Timeline,
    pub segment_bytes: SegmentBytes,
    /// `150018`
    pub version: i32,
    pub has_checksums: bool,
}

/// A slot, as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// From here on WAL is kept; `None` where it is lost.
    pub(crate) restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub(crate) status: String,
}

/// Lets a server keep no WAL any more for whoever read from a slot. One that is not there is as good.
///
/// # Errors
/// Where the server cannot be reached, or somebody reads from it.
pub async fn forget_slot(server: &Server, slot: &str) -> Result<(), BackupError> {
    server.connect().await?.drop_slot(slot).await
}

/// A connection.
pub(crate) struct Session {
    pub(crate) client: Client,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Server {
    pub(crate) async fn connect(&self) -> Result<Session, BackupError> {
        self.connect_to(&self.database).await
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the handle is kept and ended with the session"
    )]
    pub(crate) async fn connect_to(&self, database: &str) -> Result<Session, BackupError> {
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .user(&self.login)
            .dbname(database)
            .application_name("landfast backup")
            // The heartbeat goes on where nobody else may write.
            .options("-c default_transaction_read_only=off")
            .connect_timeout(CONNECT_MAX);
        if let Some(password) = &self.password {
            config.password(password.reveal());
        }
        let connected = tokio::time::timeout(CONNECT_MAX, config.connect(NoTls)).await;
        let connected = connected
            .map_err(|_| BackupError::Stopped("the server did not answer within 10 s".into()))?;
        let (client, connection) = connected.map_err(BackupError::server("connect"))?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection ended");
            }
        });
        Ok(Session { client, connection })
    }

    /// Arguments and variables that lead one of PostgreSQL's clients to the server. The password goes through a file.
    pub(crate) fn reach(&self, mut program: Program, passwords: Option<&Path>) -> Program {
        let folder = Path::new(&self.host);
        if folder.is_absolute() {
            program.needs.server = Some(folder.join(format!(".s.PGSQL.{}", self.port)));
        }
        program.needs.reads.extend(passwords.map(Path::to_owned));
        let program = program
            .arg(format!("--host={}", self.host))
            .arg(format!("--port={}", self.port))
            .arg(format!("--username={}", self.login))
            .arg("--no-password")
            .env("PGCONNECT_TIMEOUT", "10");
        match passwords {
            Some(path) => program.env("PGPASSFILE", OsString::from(path)),
            None => program,
        }
    }

    /// Writes the file that PostgreSQL's clients read a password from, for its owner only.
    pub(crate) fn write_passwords(
        &self,
        folder: &Path,
        programs: &Programs,
    ) -> Result<Option<PathBuf>, BackupError> {
        let Some(password) = &self.password else {
            return Ok(None);
        };
        let path = folder.join("pgpass");
        let escaped = Secret::new(password.reveal().replace('\\', "\\\\").replace(':', "\\:"));
        let write = || {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut options = fs::File::options();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(b"*:*:*:*:")?;
            file.write_all(escaped.reveal().as_bytes())?;
            file.write_all(b"\n")
        };
        write().map_err(BackupError::io("write", &path))?;
        programs.hand_over(&path)?;
        Ok(Some(path))
    }
}

impl Session {
    pub(crate) async fn identity(&self) -> Result<Identity, BackupError> {
        const ASK: &str = "SELECT system_identifier, timeline_id, \
            (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'), \
            current_setting('server_version_num')::int, current_setting('data_checksums') = 'on' \
            FROM pg_control_system(), pg_control_checkpoint()";
        let doing = "ask what it is";
        let row = self.client.query_one(ASK, &[]).await;
        let row = row.map_err(BackupError::server(doing))?;
        let segment: i64 = row.get(2);
        let segment_bytes = u64::try_from(segment).ok().and_then(SegmentBytes::new);
        Ok(Identity {
            // PostgreSQL has no unsigned numbers; the bits are the same.
            system: row.get::<_, i64>(0).cast_unsigned(),
            timeline: Timeline(row.get::<_, i32>(1).cast_unsigned()),
            segment_bytes: segment_bytes
                .ok_or_else(|| BackupError::Strange(format!("segments of {segment} bytes")))?,
            version: row.get(3),
            has_checksums: row.get(4),
        })
    }

    /// Makes the slot where it is not there; WAL is kept from this moment on.
    pub(crate) async fn ensure_slot(&self, name: &str) -> Result<Slot, BackupError> {
        if let Some(slot) = self.slot(name).await? {
            return Ok(slot);
        }
        let made = self
            .client
            .execute(
                "SELECT pg_create_physical_replication_slot($1, true)",
                &[&name],
            )
            .await;
        made.map_err(BackupError::server("make a replication slot"))?;
        let slot = self.slot(name).await?;
        slot.ok_or_else(|| BackupError::Strange("the slot it made is not there".into()))
    }

    /// Waits until nobody reads from a slot.
    pub(crate) async fn wait_idle(
        &self,
        name: &str,
        patience: Duration,
    ) -> Result<(), BackupError> {
        const ASK: &str = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
        let begun = crate::clock::instant();
        loop {
            let row = self.client.query_opt(ASK, &[&name]).await;
            let row = row.map_err(BackupError::server("look at the replication slot"))?;
            let Some(pid) = row.and_then(|row| row.get::<_, Option<i32>>(0)) else {
                return Ok(());
            };
            if begun.elapsed() > patience {
                let what = format!(
                    "process {pid} of the server reads from its slot `{name}`: somebody else archives it"
                );
                return Err(BackupError::Stopped(what));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn slot(&self, name: &str) -> Result<Option<Slot>, BackupError> {
        const ASK: &str = "SELECT restart_lsn::text, coalesce(wal_status, 'lost') \
            FROM pg_replication_slots WHERE slot_name = $1 AND slot_type = 'physical'";
        let row = self.client.query_opt(ASK, &[&name]).await;
        let row = row.map_err(BackupError::server("look at the replication slot"))?;
        let slot = row.map(|row| {
            let restart: Option<String> = row.get(0);
            let restart = restart.map(|text| text.parse()).transpose();
            restart.map(|restart| Slot {
                restart,
                status: row.get(1),
            })
        });
        slot.transpose()
            .map_err(|error| BackupError::Strange(error.to_string()))
    }

    pub(crate) async fn drop_slot(&self, name: &str) -> Result<(), BackupError> {
        const DROP: &str = "SELECT pg_drop_replication_slot(slot_name) \
            FROM pg_replication_slots WHERE slot_name = $1";
        let dropped = self.client.query(DROP, &[&name]).await;
        dropped
            .map(drop)
            .map_err(BackupError::server("drop the replication slot"))
    }

    /// The first tablespace outside the data folder.
    pub(crate) async fn tablespace(&self) -> Result<Option<String>, BackupError> {
        const ASK: &str = "SELECT spcname FROM pg_tablespace \
            WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1 LIMIT 1";
        let row = self.client.query_opt(ASK, &[]).await;
        let row = row.map_err(BackupError::server("list its tablespaces"))?;
        Ok(row.map(|row| row.get(0)))
    }

    /// What is there to be copied, in bytes, roughly.
    pub(crate) async fn size(&self) -> Result<u64, BackupError> {
        const ASK: &str = "SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database";
        let row = self.client.query_one(ASK, &[]).await;
        let row = row.map_err(BackupError::server("ask how large it is"))?;
        Ok(row.get::<_, i64>(0).cast_unsigned())
    }

    /// Whether somebody but Landfast has asked it something of late, and how many transactions have ended since it counts, in all databases.
    pub(crate) async fn usage(&self) -> Result<(bool, u64), BackupError> {
        const ASK: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND application_name NOT LIKE 'landfast%'
                    AND (state <> 'idle' OR state_change > clock_timestamp() - interval '2 s')),
            (SELECT coalesce(sum(xact_commit + xact_rollback), 0)::bigint FROM pg_stat_database)";
        let row = self.client.query_one(ASK, &[]).await;
        let row = row.map_err(BackupError::server("ask whether it is used"))?;
        Ok((row.get(0), row.get::<_, i64>(1).cast_unsigned()))
    }

    pub(crate) async fn prepare_heartbeat(&self) -> Result<(), BackupError> {
        // The schema is the database's owner's, who keeps the history of migrations there.
        const MAKE: &str = "CREATE SCHEMA IF NOT EXISTS landfast; \
            DO $$ DECLARE owner name; BEGIN \
                SELECT pg_get_userbyid(datdba) INTO owner FROM pg_database \
                    WHERE datname = current_database(); \
                IF pg_has_role(owner, 'MEMBER') AND current_user::regrole = \
                    (SELECT nspowner FROM pg_namespace WHERE nspname = 'landfast') THEN \
                    EXECUTE format('ALTER SCHEMA landfast OWNER TO %I', owner); \
                END IF; \
            END $$; \
            CREATE TABLE IF NOT EXISTS landfast.heartbeat ( \
                one boolean PRIMARY KEY DEFAULT true CHECK (one), \
                sequence bigint NOT NULL, at_micros bigint NOT NULL) WITH (fillfactor = 10); \
            INSERT INTO landfast.heartbeat (sequence, at_micros) VALUES (0, 0) ON CONFLICT DO NOTHING";
        let there = "SELECT to_regclass('landfast.heartbeat') IS NOT NULL";
        let doing = "make the heartbeat's table";
        let row = self.client.query_one(there, &[]).await;
        if row.map_err(BackupError::server(doing))?.get(0) {
            return Ok(());
        }
        let mut made = self.client.batch_execute(MAKE).await;
        // `IF NOT EXISTS` looks first: of two who create the schema, as migrations do, the slower one finds it there.
        if let Err(error) = &made
            && error.code() == Some(&SqlState::UNIQUE_VIOLATION)
        {
            made = self.client.batch_execute(MAKE).await;
        }
        made.map_err(BackupError::server(doing))
    }

    /// Commits a row and gives its number and an LSN at or behind the end of its commit.
    pub(crate) async fn heartbeat(
        &self,
        at: Timestamp,
    ) -> Result<(u64, Timeline, Lsn), BackupError> {
        const BEAT: &str = "UPDATE landfast.heartbeat SET sequence = sequence + 1, at_micros = $1 \
            RETURNING sequence";
        // The name of the file begins with the timeline; the control file lags behind a promotion.
        const PLACE: &str = "SELECT lsn::text, left(pg_walfile_name(lsn), 8) \
            FROM pg_current_wal_flush_lsn() AS lsn";
        let doing = "write the heartbeat";
        let row = self.client.query_one(BEAT, &[&at.as_micros()]).await;
        let sequence: i64 = row.map_err(BackupError::server(doing))?.get(0);
        let row = self.client.query_one(PLACE, &[]).await;
        let row = row.map_err(BackupError::server(doing))?;
        let (lsn, timeline): (&str, &str) = (row.get(0), row.get(1));
        let strange = || BackupError::Strange(format!("{lsn} on timeline {timeline}"));
        let timeline = u32::from_str_radix(timeline, 16).map_err(|_| strange())?;
        let lsn = lsn.parse().map_err(|_| strange())?;
        Ok((sequence.cast_unsigned(), Timeline(timeline), lsn))
    }

    /// Notes a place to go back to in the WAL itself, and gives its LSN.
    pub(crate) async fn restore_point(&self, name: &str) -> Result<Lsn, BackupError> {
        let row = self
            .client
            .query_one("SELECT pg_create_restore_point($1)::text", &[&name])
            .await;
        let row = row.map_err(BackupError::server("make a restore point"))?;
        let text: &str = row.get(0);
        text.parse()
            .map_err(|_| BackupError::Strange(text.to_owned()))
    }
}
