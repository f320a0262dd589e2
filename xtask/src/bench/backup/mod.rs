//! `cargo xtask bench backup`: our backups beside pgBackRest and restic, of one database, in one run.
//!
//! One server is archived by both, so that both have the same WAL and a restore goes to the same LSN. Half of the database are random
//! rows of 1 KiB, half rows of 100 bytes that compress. Everything runs as the database's user, on one disk; what is
//! measured is the time from the command to its answer. Backups of the peers run at the niceness ours has of itself, so that what
//! else runs on the machine slows all alike; what the server does for a backup has none. They alternate inside a round, and figures are medians of the
//! ratios within each round. Before a restore the repository is dropped from the page cache, and its target is empty.
//! Times of the checks of a restored database are printed apart.

mod load;
mod peers;
mod recovery;
mod stage;

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, bail};

use self::{
    load::{Load, Window},
    peers::{PROCESSES, PgBackRest, Restic},
    recovery::Restored,
    stage::{BIN, Cluster, Stage, Talk, run},
};
use super::{Verdict, compare::median};
use crate::live::{instant, is_short};

const PARTS: [&str; 4] = ["full", "change", "restore", "load"];
const SETTINGS: &str = "shared_buffers = 256MB
max_wal_size = 4GB
checkpoint_timeout = 30min
wal_keep_size = 16GB
archive_mode = on
autovacuum = off
";
/// Time ÷ pgBackRest, bytes after the change ÷ pgBackRest, restore ÷ the faster peer, P99 ÷ quiet.
const TIME_MAX: f64 = 1.25;
const BYTES_MAX: f64 = 0.2;
const RESTORE_MAX: f64 = 1.0;
const LATENCY_MAX: f64 = 1.5;
const QUIET: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Landfast,
    PgBackRest,
    Restic,
}

impl Who {
    const ALL: [Self; 3] = [Self::Landfast, Self::PgBackRest, Self::Restic];

    fn name(self) -> &'static str {
        match self {
            Self::Landfast => "landfast",
            Self::PgBackRest => "pgbackrest",
            Self::Restic => "restic",
        }
    }
}

/// Of each round, what each of them came to.
#[derive(Default)]
struct Rounds(Vec<BTreeMap<Who, f64>>);

impl Rounds {
    fn ratio(&self, to: impl Fn(&BTreeMap<Who, f64>) -> Option<f64>) -> Option<f64> {
        let ratios = self.0.iter();
        let ratios = ratios.filter_map(|round| Some(round.get(&Who::Landfast)? / to(round)?));
        median(ratios.collect())
    }

    fn print(&self, what: &str, unit: &str) {
        for who in Who::ALL {
            let values: Vec<f64> = self
                .0
                .iter()
                .filter_map(|round| round.get(&who).copied())
                .collect();
            let Some(middle) = median(values.clone()) else {
                continue;
            };
            let all: Vec<_> = values.iter().map(|value| format!("{value:.2}")).collect();
            println!(
                "  {what:28} {:10} {middle:>8.2} {unit}   ({})",
                who.name(),
                all.join(" ")
            );
        }
    }
}

/// What is measured together. Ended in this order, its folder last.
struct Bench {
    ours: Talk,
    cluster: Cluster,
    pgbackrest: PgBackRest,
    restic: Restic,
    rounds: usize,
    verdict: Verdict,
    /// The most memory ours took, in KiB.
    peak: BTreeMap<&'static str, u64>,
    stage: Stage,
}

/// Runs the parts that are asked for, or all, and fails when a figure is missed.
pub(super) fn run_parts(parts: &[String]) -> anyhow::Result<()> {
    if let Some(unknown) = parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
        bail!(
            "there is no part `{unknown}`; there is: {}",
            PARTS.join(", ")
        );
    }
    let wants = |part: &str| parts.is_empty() || parts.iter().any(|asked| asked == part);
    let begun = instant();
    let mut bench = Bench::prepare()?;
    if wants("full") {
        bench.full()?;
    }
    if wants("change") || wants("restore") {
        bench.change()?;
    }
    if wants("restore") {
        bench.restore()?;
    }
    if wants("load") {
        bench.load()?;
    }
    println!(
        "\npeak memory of ours, archiver and backups in one process: {} MB",
        bench.peak_of("archive")
    );
    println!(
        "peak memory of ours in a restore: {} MB",
        bench.peak_of("restore")
    );
    println!(
        "{} s; load average {}",
        begun.elapsed().as_secs(),
        load_average()
    );
    let Bench { verdict, ours, .. } = bench;
    ours.end()?;
    verdict.end()
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

impl Bench {
    fn prepare() -> anyhow::Result<Self> {
        for program in ["/usr/bin/pgbackrest", "/usr/bin/restic"] {
            anyhow::ensure!(
                Path::new(program).is_file(),
                "`{program}` is missing; run `make setup-bench`"
            );
        }
        let (rounds, mib) = if is_short() { (3, 256) } else { (5, 1_024) };
        let stage = Stage::prepare()?;
        let (data, sockets) = (stage.fresh("data")?, stage.fresh("s")?);
        let mut initdb = stage.command(Path::new(BIN).join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8"]);
        initdb.args(["--no-locale", "--data-checksums", "--pgdata"]);
        run(initdb.arg(&data))?;
        let pgbackrest =
            PgBackRest::prepare(&stage, &data, &sockets, &stage.path(recovery::TARGET))?;
        introduce(&stage, &pgbackrest, mib, rounds)?;
        let archive = format!("archive_command = '{}'\n", pgbackrest.archive_command());
        let config = data.join("postgresql.conf");
        let text = fs::read_to_string(&config)? + SETTINGS + &archive;
        stage.write(&config, &text)?;
        // A stanza is made before the first segment is to be archived.
        let cluster = Cluster::start(&stage, &data, &sockets, &["archive_mode=off"])?;
        fill(&cluster, mib)?;
        run(&mut pgbackrest.command(&stage, &["stanza-create"]))?;
        cluster.stop()?;
        let cluster = Cluster::start(&stage, &data, &sockets, &[])?;
        pgbackrest.begin(&stage)?;
        let restic = Restic::prepare(&stage)?;
        stage.fresh("ours")?;
        let mut archive = stage.measure();
        archive.arg("archive").arg(stage.path("ours")).arg(&sockets);
        archive
            .arg(stage::PORT)
            .stderr(fs::File::create(stage.path("ours.log"))?);
        let mut ours = Talk::start(&mut archive)?;
        ours.answer()?;
        Ok(Self {
            ours,
            cluster,
            pgbackrest,
            restic,
            rounds,
            verdict: Verdict::default(),
            peak: BTreeMap::new(),
            stage,
        })
    }

    /// One backup, on a disk that has nothing left to write. Gives seconds, and bytes added where they are told.
    fn back_up(&mut self, who: Who, is_full: bool) -> anyhow::Result<(f64, Option<u64>)> {
        settle_disk()?;
        self.back_up_now(who, is_full)
    }

    fn back_up_now(&mut self, who: Who, is_full: bool) -> anyhow::Result<(f64, Option<u64>)> {
        let begun = instant();
        match who {
            Who::Landfast => {
                let told = self.ours.ask(if is_full { "full" } else { "changed" })?;
                let seconds = begun.elapsed().as_secs_f64();
                self.note("archive", &told);
                Ok((seconds, told["stored"].as_u64()))
            }
            Who::PgBackRest => {
                let kind = if is_full {
                    "--type=full"
                } else {
                    "--type=incr"
                };
                run(&mut self.pgbackrest.back_up(&self.stage, kind))?;
                let seconds = begun.elapsed().as_secs_f64();
                Ok((seconds, Some(self.pgbackrest.added(&self.stage)?)))
            }
            Who::Restic => {
                self.restic.back_up(&self.stage, &self.cluster)?;
                Ok((begun.elapsed().as_secs_f64(), None))
            }
        }
    }

    fn full(&mut self) -> anyhow::Result<()> {
        println!("\nfull backup");
        let (mut seconds, mut bytes) = (Rounds::default(), Rounds::default());
        for round in 0..self.rounds {
            let (mut took, mut added) = (BTreeMap::new(), BTreeMap::new());
            for who in order(round) {
                let (time, stored) = self.back_up(who, true)?;
                took.insert(who, time);
                added.extend(stored.map(|stored| (who, stored as f64 / 1e6)));
            }
            seconds.0.push(took);
            bytes.0.push(added);
        }
        seconds.print("time", "s");
        bytes.print("stored", "MB");
        let restic = seconds.ratio(|round| round.get(&Who::Restic).copied());
        println!(
            "  ÷ restic (for information): {:.2}",
            restic.unwrap_or(f64::NAN)
        );
        let ratio = seconds.ratio(|round| round.get(&Who::PgBackRest).copied());
        self.judge("full backup, time ÷ pgBackRest", ratio, TIME_MAX)
    }

    fn change(&mut self) -> anyhow::Result<()> {
        println!("\nbackup after 1 % of the rows of both tables changed, at random");
        // What the first one is compared with.
        for who in Who::ALL {
            self.back_up(who, true)?;
        }
        let (mut seconds, mut bytes) = (Rounds::default(), Rounds::default());
        for round in 0..self.rounds {
            for table in ["wide", "narrow"] {
                let update = format!("UPDATE {table} SET id = -id WHERE random() < 0.01");
                self.cluster.ask(&update)?;
            }
            self.cluster.ask("CHECKPOINT")?;
            self.archived()?;
            let (mut took, mut added) = (BTreeMap::new(), BTreeMap::new());
            for who in order(round) {
                let (time, stored) = self.back_up(who, false)?;
                took.insert(who, time);
                added.extend(stored.map(|stored| (who, stored as f64 / 1e6)));
            }
            seconds.0.push(took);
            bytes.0.push(added);
        }
        seconds.print("time", "s");
        bytes.print("stored", "MB");
        let to = |round: &BTreeMap<Who, f64>| round.get(&Who::PgBackRest).copied();
        self.judge(
            "bytes after the change ÷ pgBackRest",
            bytes.ratio(to),
            BYTES_MAX,
        )?;
        self.judge(
            "time after the change ÷ pgBackRest",
            seconds.ratio(to),
            TIME_MAX,
        )
    }

    /// Waits until both archives have all WAL, and gives where it ends.
    fn archived(&mut self) -> anyhow::Result<String> {
        let lsn = self.cluster.ask("SELECT pg_current_wal_insert_lsn()")?;
        let last = self
            .cluster
            .ask("SELECT pg_walfile_name(pg_switch_wal())")?;
        let is_in = || {
            let done = self
                .cluster
                .ask("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver");
            done.is_ok_and(|name| name >= last)
        };
        crate::live::wait_until("pgBackRest archives", Duration::from_secs(120), is_in)?;
        let told = self.ours.ask(&format!("settle {lsn}"))?;
        self.note("archive", &told);
        Ok(lsn)
    }

    fn restore(&mut self) -> anyhow::Result<()> {
        let rows = if is_short() { 12_000 } else { 100_000 };
        self.cluster.ask(&format!(
            "CREATE TABLE later AS SELECT n AS id, repeat('x', 900) AS pad FROM generate_series(1, {rows}) n"
        ))?;
        let lsn = self.archived()?;
        // A server stops at the first record behind its target: there has to be one.
        self.cluster.ask("CHECKPOINT")?;
        self.archived()?;
        self.restic.take_wal(&self.stage, &self.cluster)?;
        let expected = recovery::content(&self.cluster)?;
        println!("\nrestore to {lsn}: files, then WAL, until out of recovery");
        let (mut files, mut whole) = (Rounds::default(), Rounds::default());
        for round in 0..self.rounds {
            let (mut first, mut both) = (BTreeMap::new(), BTreeMap::new());
            for who in order(round) {
                settle_disk()?;
                let restored = self.restore_one(who, &lsn)?;
                first.insert(who, restored.files);
                both.insert(who, restored.whole);
                if round == 0 {
                    restored.check(&self.stage, who.name(), &expected)?;
                } else {
                    restored.end(&self.stage)?;
                }
            }
            files.0.push(first);
            whole.0.push(both);
        }
        files.print("files", "s");
        whole.print("until out of recovery", "s");
        let faster = |round: &BTreeMap<Who, f64>| {
            let peers = [round.get(&Who::PgBackRest)?, round.get(&Who::Restic)?];
            Some(peers[0].min(*peers[1]))
        };
        let ratio = whole.ratio(faster);
        self.judge("restore ÷ the faster peer", ratio, RESTORE_MAX)
    }

    fn restore_one(&mut self, who: Who, lsn: &str) -> anyhow::Result<Restored> {
        match who {
            Who::Landfast => {
                let repository = self.stage.path("ours/repository");
                self.stage.forget(&[&repository])?;
                let (restored, told) = Restored::ours(&self.stage, lsn)?;
                self.note("restore", &told);
                Ok(restored)
            }
            Who::PgBackRest => {
                self.stage.forget(&[&self.pgbackrest.repository])?;
                self.pgbackrest.empty_spool(&self.stage)?;
                Restored::peer(&self.stage, |_| self.pgbackrest.restore(&self.stage, lsn))
            }
            Who::Restic => {
                self.stage.forget(&self.restic.places())?;
                Restored::peer(&self.stage, |data| {
                    self.restic.restore(&self.stage, data, lsn)
                })
            }
        }
    }

    fn load(&mut self) -> anyhow::Result<()> {
        println!(
            "\n{} transactions/s of {} clients (read one row, update it, commit) while a full backup runs",
            load::RATE,
            load::CLIENTS
        );
        Load::prepare(&self.cluster)?;
        self.archived()?;
        let load = Load::start(&self.stage, &self.cluster)?;
        std::thread::sleep(Duration::from_secs(3));
        let mut quiet: Vec<Window> = vec![load::quiet(QUIET)?];
        let mut busy: BTreeMap<Who, Vec<Window>> = BTreeMap::new();
        for round in 0..self.rounds {
            for who in order(round).into_iter().filter(|who| *who != Who::Restic) {
                settle_disk()?;
                let window = Load::during(|| self.back_up_now(who, true).map(drop))?;
                busy.entry(who).or_default().push(window);
                quiet.push(load::quiet(QUIET)?);
            }
        }
        let ended = load.end()?;
        let (still, count) = load::p99(&ended, &quiet)?;
        println!("  quiet       P99 {still:>8.2} ms of {count}");
        let mut ratios = BTreeMap::new();
        for (who, windows) in &busy {
            let (found, count) = load::p99(&ended, windows)?;
            println!("  {:11} P99 {found:>8.2} ms of {count}", who.name());
            ratios.insert(*who, found / still);
        }
        let peer = ratios.get(&Who::PgBackRest).copied().unwrap_or(f64::NAN);
        println!("  pgBackRest ÷ quiet (for information): {peer:.2}");
        let ours = ratios.get(&Who::Landfast).copied();
        self.judge("P99 while a backup runs ÷ quiet", ours, LATENCY_MAX)
    }

    fn judge(&mut self, what: &str, ratio: Option<f64>, bound: f64) -> anyhow::Result<()> {
        let ratio = ratio.with_context(|| format!("{what}: nothing was measured"))?;
        println!("  {what}: {ratio:.2}");
        self.verdict.judge(what, ratio, bound, "");
        Ok(())
    }

    fn note(&mut self, what: &'static str, told: &serde_json::Value) {
        let peak = self.peak.entry(what).or_default();
        *peak = told["peak_kib"].as_u64().unwrap_or(0).max(*peak);
    }

    fn peak_of(&self, what: &str) -> u64 {
        self.peak.get(what).copied().unwrap_or(0) * 1_024 / 1_000_000
    }
}

/// Who comes first changes from round to round.
fn order(round: usize) -> Vec<Who> {
    let mut order = Who::ALL.to_vec();
    order.rotate_left(round % 3);
    order
}

/// What one wrote is not left for the next to wait for.
fn settle_disk() -> anyhow::Result<()> {
    run(&mut crate::live::command("sync"))?;
    std::thread::sleep(Duration::from_millis(500));
    Ok(())
}

fn fill(cluster: &Cluster, mib: u64) -> anyhow::Result<()> {
    let (wide, narrow) = (mib * 512, mib * 512 * 1024 / 128);
    for sql in [
        "CREATE EXTENSION pgcrypto".to_owned(),
        "CREATE EXTENSION amcheck".to_owned(),
        format!(
            "CREATE UNLOGGED TABLE wide AS SELECT n AS id, gen_random_bytes(976) AS pad FROM generate_series(1, {wide}) n"
        ),
        format!(
            "CREATE UNLOGGED TABLE narrow AS SELECT n AS id, repeat(' ', 84) AS pad FROM generate_series(1, {narrow}) n"
        ),
        "ALTER TABLE wide SET LOGGED".to_owned(),
        "ALTER TABLE narrow SET LOGGED".to_owned(),
        "VACUUM".to_owned(),
        "CHECKPOINT".to_owned(),
    ] {
        cluster.ask(&sql)?;
    }
    Ok(())
}

/// What runs on what, and what the peers are told.
fn introduce(
    stage: &Stage,
    pgbackrest: &PgBackRest,
    mib: u64,
    rounds: usize,
) -> anyhow::Result<()> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("?");
    let cores = cpu
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory
        .lines()
        .next()
        .unwrap_or_default()
        .replace("MemTotal:", "");
    let shown = |command: &mut Command| -> anyhow::Result<String> {
        Ok(run(command)?.lines().next().unwrap_or_default().to_owned())
    };
    let version = |program: &str, word: &str| shown(stage.command(program).arg(word));
    let mut disk = crate::live::command("stat");
    disk.args(["--file-system", "--format=%T"])
        .arg(&stage.folder);
    println!(
        "machine: {model}, {cores} cores,{memory}, {}",
        run(&mut disk)?.trim()
    );
    println!(
        "{}; {}; {}; {}",
        version(&format!("{BIN}/postgres"), "--version")?,
        version("/usr/bin/pgbackrest", "version")?,
        version("/usr/bin/restic", "version")?,
        load::version(stage)?,
    );
    println!(
        "database: {mib} MiB, half random rows of 1 KiB, half rows of 100 bytes; {rounds} rounds; load average {}",
        load_average()
    );
    println!("server: {}", SETTINGS.trim_end().replace('\n', ", "));
    println!(
        "ours: defaults; AES-256-GCM, zstd 3, {PROCESSES} threads that compress on this many cores"
    );
    println!(
        "restic: defaults (AES-256-CTR with Poly1305, zstd `auto`), pg_basebackup into a folder first; WAL by `cp`"
    );
    println!(
        "backups of the peers: nice {}, as ours; restores: none",
        peers::NICENESS
    );
    println!("pgBackRest:");
    for line in pgbackrest.told()?.lines().filter(|line| !line.is_empty()) {
        println!("  {line}");
    }
    Ok(())
}
