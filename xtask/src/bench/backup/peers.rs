//! The peers, as their manuals advise; what they are told is printed.
//!
//! pgBackRest: its "Quick Start" with compression, encryption, `start-fast`, two processes, small files in bundles, and archive-push and
//! archive-get asynchronous. restic: `pg_basebackup` into a folder, that folder backed up; its WAL lies beside it as plain files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::stage::{Cluster, PORT, Stage, run};

/// As many as there are cores on the machine the figures are judged on, and as we have threads that seal.
pub(super) const PROCESSES: usize = 2;
/// As the threads and programs of our backups.
pub(super) const NICENESS: &str = "5";
const PASSPHRASE: &str = "a passphrase of this run that guards nothing";

/// pgBackRest with a repository of its own.
pub(super) struct PgBackRest {
    config: PathBuf,
    /// The same for the restored server, which lies elsewhere and shares no locks.
    restore: PathBuf,
    pub(super) repository: PathBuf,
}

impl PgBackRest {
    pub(super) fn prepare(
        stage: &Stage,
        data: &Path,
        sockets: &Path,
        target: &Path,
    ) -> anyhow::Result<Self> {
        let folder = stage.fresh("pgbackrest")?;
        for name in [
            "repository",
            "log",
            "lock",
            "spool",
            "lock-restore",
            "spool-restore",
        ] {
            stage.fresh(&format!("pgbackrest/{name}"))?;
        }
        let this = Self {
            config: folder.join("pgbackrest.conf"),
            restore: folder.join("restore.conf"),
            repository: folder.join("repository"),
        };
        stage.write(&this.config, &Self::config(&folder, data, sockets, ""))?;
        stage.write(
            &this.restore,
            &Self::config(&folder, target, sockets, "-restore"),
        )?;
        Ok(this)
    }

    fn config(folder: &Path, data: &Path, sockets: &Path, part: &str) -> String {
        let (shown, data, sockets) = (folder.display(), data.display(), sockets.display());
        format!(
            "[global]
repo1-path={shown}/repository
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass={PASSPHRASE}
repo1-retention-full=2
repo1-bundle=y
compress-type=zst
compress-level=3
process-max={PROCESSES}
start-fast=y
archive-async=y
log-level-console=warn
log-level-file=off
log-path={shown}/log
lock-path={shown}/lock{part}
spool-path={shown}/spool{part}

[main]
pg1-path={data}
pg1-port={PORT}
pg1-socket-path={sockets}
pg1-user=postgres
"
        )
    }

    /// WAL that an earlier restore fetched is not there for the next.
    pub(super) fn empty_spool(&self, stage: &Stage) -> anyhow::Result<()> {
        stage.fresh("pgbackrest/spool-restore").map(drop)
    }

    /// Its configuration, without the passphrase.
    pub(super) fn told(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.config)?.replace(PASSPHRASE, "…"))
    }

    /// `archive_command` of the server.
    pub(super) fn archive_command(&self) -> String {
        let config = self.config.display();
        format!("pgbackrest --config={config} --stanza=main archive-push %p")
    }

    pub(super) fn command(&self, stage: &Stage, words: &[&str]) -> Command {
        Self::led_by(&self.config, stage, words)
    }

    pub(super) fn back_up(&self, stage: &Stage, kind: &str) -> Command {
        let mut command = stage.nice_command(NICENESS, "/usr/bin/pgbackrest");
        command.arg(format!("--config={}", self.config.display()));
        command.args(["--stanza=main", "backup", kind]);
        command
    }

    fn led_by(config: &Path, stage: &Stage, words: &[&str]) -> Command {
        let mut command = stage.command("/usr/bin/pgbackrest");
        command.arg(format!("--config={}", config.display()));
        command.arg("--stanza=main").args(words);
        command
    }

    pub(super) fn begin(&self, stage: &Stage) -> anyhow::Result<()> {
        run(&mut self.command(stage, &["stanza-create"]))?;
        run(&mut self.command(stage, &["check"])).map(drop)
    }

    /// Bytes the newest backup added to the repository, by its own account.
    pub(super) fn added(&self, stage: &Stage) -> anyhow::Result<u64> {
        let text = run(&mut self.command(stage, &["info", "--output=json"]))?;
        let info: Value = serde_json::from_str(&text)?;
        let newest = info[0]["backup"].as_array().and_then(|all| all.last());
        let newest = newest.context("pgBackRest has no backup")?;
        ensure!(
            newest["error"] == false,
            "its backup has an error: {newest}"
        );
        let added = newest["info"]["repository"]["delta"].as_u64();
        added.with_context(|| format!("it does not say what it added: {newest}"))
    }

    /// Restores to a place; the server is still to be started.
    pub(super) fn restore(&self, stage: &Stage, lsn: &str) -> anyhow::Result<()> {
        let mut restore = Self::led_by(&self.restore, stage, &["restore", "--type=lsn"]);
        restore.arg(format!("--target={lsn}"));
        run(restore.arg("--target-action=promote")).map(drop)
    }
}

/// restic with a repository of its own.
pub(super) struct Restic {
    repository: PathBuf,
    passwords: PathBuf,
    /// Where `pg_basebackup` writes, and where a restore finds it again.
    staging: PathBuf,
    /// Its WAL, as plain files.
    wal: PathBuf,
    /// The first segment it needs.
    first: Option<String>,
}

impl Restic {
    pub(super) fn prepare(stage: &Stage) -> anyhow::Result<Self> {
        let folder = stage.fresh("restic")?;
        let this = Self {
            repository: folder.join("repository"),
            passwords: folder.join("password"),
            staging: folder.join("staging"),
            wal: stage.fresh("restic/wal")?,
            first: None,
        };
        stage.write(&this.passwords, PASSPHRASE)?;
        run(this.command(stage).arg("init"))?;
        Ok(this)
    }

    fn command(&self, stage: &Stage) -> Command {
        self.led(stage.command("/usr/bin/restic"))
    }

    fn led(&self, mut command: Command) -> Command {
        command.arg("--quiet").arg("--repo").arg(&self.repository);
        command.arg("--password-file").arg(&self.passwords);
        command
    }

    /// What is read again in a restore.
    pub(super) fn places(&self) -> [&Path; 2] {
        [&self.repository, &self.wal]
    }

    /// `pg_basebackup` into a folder, then that folder into the repository.
    pub(super) fn back_up(&mut self, stage: &Stage, cluster: &Cluster) -> anyhow::Result<()> {
        stage.fresh("restic/staging")?;
        self.first = Some(cluster.ask("SELECT pg_walfile_name(pg_current_wal_lsn())")?);
        let mut base = cluster.client("pg_basebackup");
        base.args(["--wal-method=none", "--checkpoint=fast", "--no-sync"]);
        run(base.arg("--pgdata").arg(&self.staging))?;
        let mut backup = self.led(stage.nice_command(NICENESS, "/usr/bin/restic"));
        run(backup.arg("backup").arg(&self.staging))?;
        fs::remove_dir_all(&self.staging).map_err(Into::into)
    }

    /// Copies the WAL its backup needs from the server's own folder.
    pub(super) fn take_wal(&self, stage: &Stage, cluster: &Cluster) -> anyhow::Result<()> {
        let first = self.first.as_deref().context("it has no backup")?;
        stage.fresh("restic/wal")?;
        for entry in fs::read_dir(cluster.data.join("pg_wal"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() == first.len() && name.as_str() >= first {
                let mut copy = stage.command("/usr/bin/cp");
                run(copy.arg(entry.path()).arg(&self.wal))?;
            }
        }
        Ok(())
    }

    /// Restores the files to where they were and moves them; the server is still to be started.
    pub(super) fn restore(&self, stage: &Stage, data: &Path, lsn: &str) -> anyhow::Result<()> {
        let root = stage.path("restic/out");
        let mut restore = self.command(stage);
        restore.args(["restore", "latest", "--target"]).arg(&root);
        run(&mut restore)?;
        let staging = self.staging.strip_prefix("/")?;
        fs::remove_dir(data)?;
        fs::rename(root.join(staging), data)?;
        fs::remove_dir_all(root)?;
        let wal = self.wal.display();
        let settings = format!(
            "restore_command = 'cp {wal}/%f %p'\nrecovery_target_lsn = '{lsn}'\nrecovery_target_action = 'promote'\n"
        );
        stage.write(&data.join("postgresql.auto.conf"), &settings)?;
        stage.write(&data.join("recovery.signal"), "")
    }
}
