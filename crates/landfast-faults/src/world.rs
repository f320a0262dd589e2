//! A server, a repository, an archiver beside them: what faults are injected into.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use landfast_backup::{BackupId, Lsn, Target};
use landfast_backup_postgres::{Archive, BackupError, Restored, restore};
use landfast_repository::{Key, Repository};
use landfast_testbed::{Postgres, S3};
use tempfile::TempDir;

use crate::{
    folder, host,
    hosted::Hosted,
    order::{Ask, BUCKET, Order, PlaceOrder, Told},
    writers::{Load, TABLE, Writing},
};

/// For one backup, or for the archive to catch up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What of a world is not as usual.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Between shipments of the open segment.
    pub(crate) interval: Duration,
    pub(crate) is_s3: bool,
    /// Of the server, beside the usual ones.
    pub(crate) server: Vec<(&'static str, String)>,
    pub(crate) spool_bytes_max: u64,
    /// Megabytes of rows that lie there from the beginning.
    pub(crate) ballast: u64,
    /// As an engine does that runs an archiver.
    pub(crate) heals: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            is_s3: false,
            server: Vec::new(),
            spool_bytes_max: 1 << 30,
            ballast: 0,
            heals: false,
        }
    }
}

pub(crate) struct World {
    // The server is gone before its folder is.
    pub(crate) postgres: Option<Postgres>,
    _s3: Option<S3>,
    pub(crate) order: Order,
    pub(crate) program: PathBuf,
    pub(crate) folder: TempDir,
    orders: u32,
    copies: u32,
}

impl World {
    /// A server with page checksums and an empty repository.
    pub(crate) async fn start(program: &Path, settings: &Settings) -> anyhow::Result<Self> {
        let folder = folder::make()?;
        let mut server = vec![("max_wal_size", "256MB"), ("wal_level", "replica")];
        server.extend(
            settings
                .server
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let postgres = Postgres::with_checksums(&server)?;
        let path = folder.path();
        let key = path.join("backup.key");
        Key::generate()?.write(&key)?;
        let s3 = settings.is_s3.then(S3::start).transpose()?;
        let place = match &s3 {
            Some(s3) => {
                s3.make_bucket(BUCKET)?;
                PlaceOrder::S3(s3.endpoint())
            }
            None => PlaceOrder::Folder(path.join("repository")),
        };
        let order = Order {
            socket: postgres.socket_folder().to_owned(),
            port: postgres.port(),
            place,
            keys: vec![key],
            spool: path.join("spool"),
            interval_ms: u64::try_from(settings.interval.as_millis())?,
            spool_bytes_max: settings.spool_bytes_max,
            patience_ms: 60_000,
            heals: settings.heals,
            data: path.join("copy"),
            run: path.join("copy.run"),
        };
        Repository::create(order.storage()?, order.keyring()?).await?;
        let this = Self {
            postgres: Some(postgres),
            _s3: s3,
            order,
            program: program.to_owned(),
            folder,
            orders: 0,
            copies: 0,
        };
        this.sql(TABLE)?;
        if settings.ballast > 0 {
            let rows = settings.ballast * 1_000;
            this.sql(&format!(
                "CREATE TABLE ballast AS SELECT n, string_agg(md5(n || ':' || m), '') AS pad \
                 FROM generate_series(1, {rows}) n, generate_series(1, 30) m GROUP BY n"
            ))?;
        }
        Ok(this)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn server(&self) -> anyhow::Result<&Postgres> {
        self.postgres.as_ref().context("the server was discarded")
    }

    pub(crate) fn server_mut(&mut self) -> anyhow::Result<&mut Postgres> {
        self.postgres.as_mut().context("the server was discarded")
    }

    pub(crate) fn sql(&self, sql: &str) -> anyhow::Result<String> {
        Ok(self.server()?.sql("postgres", sql)?)
    }

    pub(crate) fn write(&self, loads: &[Load], first: i32) -> Writing {
        Writing::start(&self.order.socket, self.order.port, loads, first)
    }

    /// An archiver in a process of its own, running.
    pub(crate) async fn host(&mut self) -> anyhow::Result<Hosted> {
        self.host_in(&[]).await
    }

    pub(crate) async fn host_in(
        &mut self,
        environment: &[(&str, String)],
    ) -> anyhow::Result<Hosted> {
        let order = self.order.clone();
        let mut host = self.process("archive", &order, environment)?;
        match host.answer(PATIENCE).await? {
            Told::Started => Ok(host),
            other => bail!("instead of starting it told {other:?}"),
        }
    }

    /// A process in a role, on an order that may differ from the world's own.
    pub(crate) fn process(
        &mut self,
        role: &str,
        order: &Order,
        environment: &[(&str, String)],
    ) -> anyhow::Result<Hosted> {
        self.orders += 1;
        let path = self.path(&format!("order{}.json", self.orders));
        order.write(&path)?;
        Hosted::start(&self.program, role, &path, environment)
    }

    /// A backup by that process; fails where it is none or a bad one.
    pub(crate) async fn back_up(
        &self,
        host: &mut Hosted,
        is_full: bool,
    ) -> anyhow::Result<(BackupId, Duration)> {
        host.ask(&Ask::BackUp { is_full })?;
        match host.answer(PATIENCE).await? {
            Told::BackedUp {
                id,
                is_good: true,
                took_ms,
            } => Ok((id, Duration::from_millis(took_ms))),
            other => bail!("a backup came to {other:?}"),
        }
    }

    /// The archive as anybody sees it who has the key: from the repository alone.
    pub(crate) async fn archive(&self) -> anyhow::Result<Archive> {
        self.order.open().await
    }

    /// Waits until all that the server has flushed by now is in the archive.
    pub(crate) async fn settle(&self, host: &mut Hosted) -> anyhow::Result<Lsn> {
        self.settle_within(host, PATIENCE).await
    }

    pub(crate) async fn settle_within(
        &self,
        host: &mut Hosted,
        patience: Duration,
    ) -> anyhow::Result<Lsn> {
        let wanted: Lsn = self.sql("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        let archive = self.archive().await?;
        let begun = Instant::now();
        loop {
            let loaded = archive.load().await?;
            let end = loaded.as_ref().and_then(|loaded| loaded.ledger.end());
            if end.is_some_and(|end| end.lsn >= wanted) {
                return Ok(wanted);
            }
            let status = host.status();
            ensure!(
                begun.elapsed() < patience,
                "{wanted} did not arrive: {end:?}, {status:?}"
            );
            ensure!(!host.has_ended(), "the archiver ended");
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// The folder the next restore goes to.
    pub(crate) fn next_copy(&self) -> PathBuf {
        self.path(&format!("copy{}", self.copies + 1))
    }

    /// Restores into another folder.
    pub(crate) async fn restore(
        &mut self,
        target: Target,
    ) -> anyhow::Result<Result<Restored, BackupError>> {
        let archive = self.archive().await?;
        self.copies += 1;
        let name = format!("copy{}", self.copies);
        let (data, run) = (self.path(&name), self.path(&format!("{name}.run")));
        let request = host::request(archive, self.program.clone(), data, run, target);
        Ok(restore(&request, |_| {}).await)
    }

    /// The server's data folder and the spool are gone, as with their host.
    pub(crate) fn discard(&mut self) -> anyhow::Result<()> {
        self.postgres = None;
        fs::remove_dir_all(&self.order.spool)?;
        Ok(())
    }

    /// The file of an object, in a repository that is a folder.
    pub(crate) fn object(&self, name: &str) -> PathBuf {
        self.path("repository").join(name)
    }
}
