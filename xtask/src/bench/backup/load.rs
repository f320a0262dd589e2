//! What an app's small transactions notice of a backup: `pgbench` at a fixed rate, each transaction with its end and how long it
//! took, cut into the time a backup ran and the time none did.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::stage::{Cluster, Stage, run};
use crate::live::{now_micros, signal};

pub(super) const CLIENTS: &str = "4";
/// Transactions a second, begun whether those before have ended or not.
pub(super) const RATE: &str = "200";
const SCRIPT: &str = "\\set id random(1, 200000)
BEGIN;
SELECT balance FROM accounts WHERE id = :id;
UPDATE accounts SET balance = balance + 1 WHERE id = :id;
COMMIT;
";
const LONGEST: &str = "3600";

/// Transactions that run until they are told to end.
pub(super) struct Load {
    child: Child,
    folder: PathBuf,
}

/// From and to, in microseconds since the epoch.
pub(super) type Window = (i64, i64);

impl Load {
    pub(super) fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
        cluster.ask(
            "CREATE TABLE accounts AS SELECT n AS id, 0::bigint AS balance, repeat('.', 84) AS pad \
             FROM generate_series(1, 200000) n",
        )?;
        cluster.ask("ALTER TABLE accounts ADD PRIMARY KEY (id)")?;
        cluster.ask("VACUUM ANALYZE accounts")?;
        cluster.ask("CHECKPOINT").map(drop)
    }

    pub(super) fn start(stage: &Stage, cluster: &Cluster) -> anyhow::Result<Self> {
        let folder = stage.fresh("load")?;
        let script = folder.join("script.sql");
        stage.write(&script, SCRIPT)?;
        let mut pgbench = cluster.client("pgbench");
        pgbench.args(["--no-vacuum", "--jobs=1", "--client", CLIENTS]);
        pgbench.args(["--rate", RATE, "--time", LONGEST]);
        pgbench.arg("--file").arg(script).arg("--log");
        pgbench.arg(format!("--log-prefix={}/transactions", folder.display()));
        pgbench.arg("postgres");
        pgbench.stdout(Stdio::null()).stderr(Stdio::null());
        let child = crate::live::spawn(&mut pgbench)?;
        Ok(Self { child, folder })
    }

    /// Runs something, and gives when.
    pub(super) fn during(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Window> {
        let begun = now_micros();
        work()?;
        Ok((begun, now_micros()))
    }

    /// Ends it, and gives what each transaction took, in microseconds, by its end.
    pub(super) fn end(mut self) -> anyhow::Result<Vec<(i64, u64)>> {
        // Its log is written in pieces, and the last piece is lost.
        std::thread::sleep(Duration::from_secs(3));
        signal(self.child.id(), "-TERM");
        self.child.wait()?;
        let mut ended = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                continue;
            }
            let text = fs::read_to_string(path)?;
            let lines = text.lines().filter_map(transaction);
            ended.extend(lines);
        }
        ensure!(!ended.is_empty(), "pgbench logged nothing");
        Ok(ended)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// `client transaction time script epoch microseconds lag`; `skipped` or `failed` in the place of a time is none.
fn transaction(line: &str) -> Option<(i64, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, _, took, _, seconds, micros, ..] = fields.as_slice() else {
        return None;
    };
    let seconds: i64 = seconds.parse().ok()?;
    let micros: i64 = micros.parse().ok()?;
    Some((seconds * 1_000_000 + micros, took.parse().ok()?))
}

/// The 99th of a hundred that ended within any of the windows, in milliseconds, and how many there were.
pub(super) fn p99(ended: &[(i64, u64)], windows: &[Window]) -> anyhow::Result<(f64, usize)> {
    let is_in = |at: i64| windows.iter().any(|(from, to)| *from <= at && at <= *to);
    let took = ended.iter().filter(|(at, _)| is_in(*at));
    let mut took: Vec<u64> = took.map(|(_, took)| *took).collect();
    took.sort_unstable();
    let place = (took.len() * 99).div_ceil(100).saturating_sub(1);
    let found = took.get(place).context("no transaction ended meanwhile")?;
    Ok((*found as f64 / 1e3, took.len()))
}

/// Nothing but the load, for a while.
pub(super) fn quiet(time: Duration) -> anyhow::Result<Window> {
    Load::during(|| {
        std::thread::sleep(time);
        Ok(())
    })
}

/// Which version of pgbench this is.
pub(super) fn version(stage: &Stage) -> anyhow::Result<String> {
    let mut pgbench = stage.command(super::stage::BIN.to_owned() + "/pgbench");
    Ok(run(pgbench.arg("--version"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_99th_of_what_ended_in_a_window() {
        let text = "0 1 1500 0 10 5 7\n0 2 skipped 0 10 6 7\n1 1 900 0 11 0 0\n";
        let read: Vec<_> = text.lines().filter_map(transaction).collect();
        assert_eq!(read, [(10_000_005, 1_500), (11_000_000, 900)]);
        let ended: Vec<_> = (1..=1_000).map(|n| (n, n as u64 * 1_000)).collect();
        assert_eq!(p99(&ended, &[(1, 1_000)]).unwrap(), (990.0, 1_000));
        assert_eq!(
            p99(&ended, &[(1, 100), (901, 1_000)]).unwrap(),
            (998.0, 200)
        );
        assert!(p99(&ended, &[(2_000, 3_000)]).is_err());
    }
}
