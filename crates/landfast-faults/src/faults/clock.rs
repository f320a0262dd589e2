//! F13 and F14: a clock that jumps, and ten days on which no backup comes to be, under libfaketime.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use landfast_backup::{BackupId, Target, plan_restore};
use landfast_backup_postgres::WalEvent;
use landfast_types::Timestamp;
use rustix::process::{Pid, Signal, kill_process};

use super::{keys::flip_a_page, kills::whole};
use crate::{
    folder::children,
    hosted::Hosted,
    order::{Ask, Told},
    run::{Promise, Run},
    world::{PATIENCE, Settings, World},
    writers::{Log, STEADY},
};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// That nothing arrives has to be told within this.
const TOLD_MAX: Duration = Duration::from_secs(60);

/// The clock of a process, moved from outside.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    fn new(world: &World) -> anyhow::Result<Self> {
        let folders = fs::read_dir("/usr/lib")?.flatten();
        let mut found = folders.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
        let library = found.find(|path| path.is_file());
        let this = Self {
            library: library.context("libfaketime is missing; install the package `faketime`")?,
            offset: world.path("clock"),
        };
        this.set(0)?;
        Ok(this)
    }

    /// Seconds ahead of the true time.
    fn set(&self, seconds: i64) -> anyhow::Result<()> {
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{seconds:+}"))?;
        fs::rename(new, &self.offset)?;
        Ok(())
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ]
    }
}

/// F13: the clock of the archiver jumps, and jumps back.
pub(crate) async fn jumps(run: &mut Run) -> anyhow::Result<()> {
    let (name, offset) = match run.seed % 5 {
        1 => ("an hour ahead", HOUR),
        2 => ("an hour back", -HOUR),
        3 => ("a day ahead", DAY),
        4 => ("a day back", -DAY),
        _ => ("back by some seconds", -(10 + run.random.below(110) as i64)),
    };
    run.variant(name);
    let mut world = World::start(&run.program, &Settings::default()).await?;
    let clock = Clock::new(&world)?;
    let mut host = world.host_in(&clock.environment()).await?;
    let mut phases: Vec<(Log, landfast_backup::Lsn, BackupId)> = Vec::new();
    for (first, offset) in [(1, 0), (11, offset), (21, 0)] {
        clock.set(offset)?;
        let writing = world.write(STEADY, first);
        let (id, _) = world.back_up(&mut host, phases.is_empty()).await?;
        tokio::time::sleep(run.random.millis(2_000, 4_000)).await;
        let log = writing.stop().await;
        run.acknowledged(&log);
        let end = world.settle(&mut host).await?;
        phases.push((log, end, id));
        // A heartbeat behind it.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }
    world.settle(&mut host).await?;
    whole(run, &world).await?;
    let archive = world.archive().await?;
    let loaded = archive.load().await?.context("an archive")?;
    // By LSN: the rows of each phase to its end, and none of the next.
    for upto in 0..phases.len() {
        let restored = world.restore(Target::Lsn(phases[upto].1)).await??;
        let all = merged(phases.iter().map(|phase| &phase.0));
        let rows = crate::oracle::Rows::read(&restored.server, &all).await?;
        for (number, (log, ..)) in phases.iter().enumerate() {
            let missing = rows.missing(log)?.rows;
            let wanted = if number <= upto { 0 } else { log.rows() };
            run.check(missing == wanted, || {
                format!("to the end of phase {upto}: {missing} rows of phase {number} are missing, {wanted} should be")
            });
        }
        restored.finish().await?;
    }
    // By time: where the clock was twice, that is said.
    let beats = loaded.ledger.heartbeats();
    let back = beats.windows(2).find(|pair| pair[1].at < pair[0].at);
    let back = back.context("no heartbeat went back")?;
    let doubtful = Timestamp::from_micros(back[1].at.as_micros() + 1);
    let plan = plan_restore(
        &loaded.ledger,
        &loaded.summaries(),
        &Target::Time(doubtful),
        None,
    )?;
    run.check(!plan.warnings.is_empty(), || {
        "a time that was there twice is taken without a word".into()
    });
    // Retention goes by sequence.
    host.ask(&Ask::Prune {
        daily: 2,
        wal_heartbeats: 3,
        bad: 0,
        delay: 0,
    })?;
    match host.answer(PATIENCE).await? {
        Told::Pruned { kept, buried, .. } => {
            let newest = &phases[2].2;
            run.check(kept.contains(newest), || format!("{newest} was let go"));
            let is_older = buried
                .iter()
                .all(|gone| kept.iter().all(|kept| gone < kept));
            run.check(is_older, || format!("{buried:?} went, {kept:?} stayed"));
        }
        other => bail!("a prune came to {other:?}"),
    }
    let log = merged(phases.iter().map(|phase| &phase.0));
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    restored.finish().await?;
    silence(run, &clock, offset, &mut host).await
}

/// Nothing arrives any more while the clock is wrong: no error anywhere, and it has to be told all the same.
async fn silence(
    run: &mut Run,
    clock: &Clock,
    offset: i64,
    host: &mut Hosted,
) -> anyhow::Result<()> {
    clock.set(offset)?;
    let begun = Instant::now();
    stop_receiver(host)?;
    let is_late = |event: &WalEvent| matches!(event, WalEvent::Late { .. });
    let heard = host
        .until("that nothing arrives", TOLD_MAX * 2, |heard| {
            heard.at >= begun && matches!(&heard.told, Told::Event { event } if is_late(event))
        })
        .await;
    let told = match heard {
        Ok(heard) => heard.at.saturating_duration_since(begun),
        Err(error) => {
            run.check(false, || {
                format!("with the clock {offset} s off: {error:#}")
            });
            return Ok(());
        }
    };
    run.figure("silence_told_ms", u64::try_from(told.as_millis())?);
    run.check(told <= TOLD_MAX, || format!("told after {told:?}"));
    Ok(())
}

fn stop_receiver(host: &Hosted) -> anyhow::Result<()> {
    let receiver = children(host.pid())
        .into_iter()
        .find(|(_, _, name)| name == "pg_receivewal");
    let pid = receiver.and_then(|(pid, ..)| Pid::from_raw(i32::try_from(pid).ok()?));
    kill_process(pid.context("a receiver")?, Signal::STOP)?;
    Ok(())
}

fn merged<'a>(logs: impl Iterator<Item = &'a Log>) -> Log {
    let mut all = Log::default();
    for log in logs {
        all.acks.extend(&log.acks);
        all.sent.extend(&log.sent);
    }
    all
}

/// F14: ten days on which every backup fails or is bad, and retention runs.
pub(crate) async fn failed_days(run: &mut Run) -> anyhow::Result<()> {
    let settings = Settings {
        ballast: 10,
        ..Settings::default()
    };
    let mut world = World::start(&run.program, &settings).await?;
    let clock = Clock::new(&world)?;
    let mut host = world.host_in(&clock.environment()).await?;
    let writing = world.write(STEADY, 1);
    let mut good = Vec::new();
    for day in 0..2 {
        clock.set(day * DAY)?;
        good.push(world.back_up(&mut host, day == 0).await?.0);
    }
    let damaged_from = 2 + run.random.below(10) as i64;
    let (mut failed, mut bad, mut died) = (0, 0, 0);
    for day in 2..12 {
        clock.set(day * DAY)?;
        if day == damaged_from {
            world.sql("CHECKPOINT")?;
            flip_a_page(run, &world)?;
        }
        let is_full = run.random.below(2) == 0;
        host.ask(&Ask::BackUp { is_full })?;
        if day >= damaged_from {
            match host.answer(PATIENCE).await? {
                Told::BackedUp { is_good: false, .. } => bad += 1,
                other => bail!("a backup of a damaged page came to {other:?}"),
            }
        } else if run.random.below(2) == 0 {
            kill_backup(&host).await?;
            match host.answer(PATIENCE).await? {
                Told::Failed { .. } => failed += 1,
                other => bail!("a backup whose program was killed came to {other:?}"),
            }
        } else {
            let offset = run.random.millis(0, 200);
            tokio::time::sleep(offset).await;
            host.kill();
            died += 1;
            host = world.host_in(&clock.environment()).await?;
        }
        host.ask(&Ask::Prune {
            daily: 1,
            wal_heartbeats: 1,
            bad: 1,
            delay: 0,
        })?;
        match host.answer(PATIENCE).await? {
            Told::Pruned { kept, .. } => {
                let newest = good.last().context("a good one")?;
                run.check(kept.contains(newest), || {
                    format!("on day {day} {newest} was let go")
                });
            }
            other => bail!("a prune came to {other:?}"),
        }
    }
    let log = writing.stop().await;
    run.acknowledged(&log);
    for (name, count) in [("failed", failed), ("bad", bad), ("died", died)] {
        run.figure(name, count);
    }
    ensure!(
        failed + bad + died == 10,
        "{failed} failed, {bad} bad, {died} died"
    );
    world.settle(&mut host).await?;
    host.kill();
    whole(run, &world).await?;
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    Ok(restored.finish().await?)
}

async fn kill_backup(host: &Hosted) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let child = children(host.pid())
            .into_iter()
            .find(|(_, _, name)| name == "pg_basebackup");
        if let Some(pid) = child.and_then(|(pid, ..)| Pid::from_raw(i32::try_from(pid).ok()?)) {
            kill_process(pid, Signal::KILL)?;
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "no `pg_basebackup` was started");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
