//! A restored database: how long it took until it was out of recovery, and whether it is what was backed up.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::stage::{BIN, Cluster, Stage, Talk, run};
use crate::live::instant;

pub(super) const TARGET: &str = "restored";
/// As ours starts its copies, but where the WAL comes from: no network, no archive, nobody connected before it is out of recovery.
const SETTINGS: [&str; 5] = [
    "archive_mode=off",
    "hot_standby=off",
    "shared_buffers=128MB",
    "max_wal_size=1GB",
    "autovacuum=off",
];

/// Who runs the server.
enum Server {
    Ours(Talk),
    Peer(Cluster),
}

/// A copy that is out of recovery.
pub(super) struct Restored {
    /// Until the files were there, in seconds.
    pub(super) files: f64,
    /// Until it was out of recovery, in seconds.
    pub(super) whole: f64,
    server: Server,
    sockets: std::path::PathBuf,
}

impl Restored {
    /// Restores with ours, and gives what it told, too.
    pub(super) fn ours(stage: &Stage, lsn: &str) -> anyhow::Result<(Self, Value)> {
        stage.fresh(TARGET)?;
        let mut restore = stage.measure();
        restore.arg("restore").arg(stage.path("ours"));
        restore.arg(stage.path(TARGET)).arg(lsn);
        let begun = instant();
        let mut talk = Talk::start(&mut restore)?;
        let told = talk.answer()?;
        let whole = begun.elapsed().as_secs_f64();
        let second = |name: &str| told[name].as_f64().context("it tells how long it took");
        let sockets = told["sockets"].as_str().context("it tells where it is")?;
        let this = Self {
            files: second("plan")? + second("files")?,
            whole,
            server: Server::Ours(talk),
            sockets: sockets.into(),
        };
        Ok((this, told))
    }

    /// Restores with a peer, then starts the server as ours does.
    pub(super) fn peer(
        stage: &Stage,
        restore: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let data = stage.fresh(TARGET)?;
        let sockets = stage.fresh("restored.run")?;
        let begun = instant();
        restore(&data)?;
        let files = begun.elapsed().as_secs_f64();
        let cluster = Cluster::start(stage, &data, &sockets, &SETTINGS)?;
        Ok(Self {
            files,
            whole: begun.elapsed().as_secs_f64(),
            server: Server::Peer(cluster),
            sockets,
        })
    }

    /// Checks every table, index and page, and prints how long that took.
    pub(super) fn check(self, stage: &Stage, name: &str, expected: &str) -> anyhow::Result<()> {
        let begun = instant();
        let client = |program: &str| {
            let mut client = stage.command(Path::new(BIN).join(program));
            client
                .arg("--host")
                .arg(&self.sockets)
                .args(["--port", "5432", "--username=postgres"]);
            client
        };
        let mut psql = client("psql");
        let found = run(psql.args(["-XqAt", "--dbname=postgres", "--command", CONTENT]))?;
        ensure!(
            found.trim() == expected,
            "{name} restored {found}, not {expected}"
        );
        let mut amcheck = client("pg_amcheck");
        run(amcheck.args(["--all", "--install-missing", "--heapallindexed"]))?;
        let logical = begun.elapsed().as_secs_f64();
        self.end_server()?;
        let begun = instant();
        let mut checksums = stage.command(Path::new(BIN).join("pg_checksums"));
        run(checksums
            .args(["--check", "--pgdata"])
            .arg(stage.path(TARGET)))?;
        println!(
            "  checks of {name}: content and pg_amcheck {logical:.1} s, pg_checksums {:.1} s: clean",
            begun.elapsed().as_secs_f64()
        );
        remove(stage)
    }

    /// Shuts it down and removes it.
    pub(super) fn end(self, stage: &Stage) -> anyhow::Result<()> {
        self.end_server()?;
        remove(stage)
    }

    fn end_server(self) -> anyhow::Result<()> {
        match self.server {
            Server::Ours(talk) => talk.end(),
            Server::Peer(cluster) => cluster.stop(),
        }
    }
}

fn remove(stage: &Stage) -> anyhow::Result<()> {
    fs::remove_dir_all(stage.path(TARGET)).context("failed to remove what was restored")
}

const CONTENT: &str = "SELECT (SELECT count(*) || ' ' || sum(abs(id)) FROM wide), \
    (SELECT count(*) || ' ' || sum(abs(id)) FROM narrow), (SELECT count(*) FROM later), \
    (SELECT md5(string_agg(md5(pad), '' ORDER BY abs(id))) FROM wide)";

/// What the tables hold.
pub(super) fn content(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.ask(CONTENT)
}
