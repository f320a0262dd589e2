//! F10: a disk that is full: the spool's, the server's WAL, its data, the scratch folder of a restore. Each is a small tmpfs in a
//! mount namespace of the run's own, so nothing stays mounted whatever becomes of it.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use landfast_backup::Target;
use landfast_backup_postgres::{ReceiverState, UNFINISHED, WalEvent, restore};
use rustix::process::{Pid, Signal, kill_process};

use super::kills::whole;
use crate::{
    folder::children,
    host::request,
    hosted::{Heard, Hosted},
    order::Told,
    run::{Promise, Run},
    world::{PATIENCE, Settings, World},
    writers::{Load, Log, STEADY},
};

const TOLD_MAX: Duration = Duration::from_secs(60);
/// Fills a disk in seconds.
const HEAVY: &[Load] = &[Load {
    writers: 3,
    rows: 4_000,
    pause: Duration::from_millis(5),
}];

/// A small disk over a folder. Dropping it unmounts it.
struct Disk(PathBuf);

impl Disk {
    /// Mounts it over a folder, with what lies there and for whom.
    fn over(folder: &Path, mebibytes: u64) -> anyhow::Result<Self> {
        let metadata = fs::metadata(folder)?;
        let kept = folder.with_extension("kept");
        command(
            "/usr/bin/cp",
            &["-a".as_ref(), folder.as_ref(), kept.as_ref()],
        )?;
        let options = format!("size={mebibytes}m,mode=0{:o}", metadata.mode() & 0o777);
        let words: [&std::ffi::OsStr; 6] = [
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "-o".as_ref(),
            options.as_ref(),
            "tmpfs".as_ref(),
            folder.as_ref(),
        ];
        command("/usr/bin/mount", &words)?;
        let this = Self(folder.to_owned());
        chown(folder, Some(metadata.uid()), Some(metadata.gid()))?;
        let all = kept.join(".");
        command(
            "/usr/bin/cp",
            &["-a".as_ref(), all.as_ref(), folder.as_ref()],
        )?;
        fs::remove_dir_all(kept)?;
        Ok(this)
    }

    fn grow(&self, mebibytes: u64) -> anyhow::Result<()> {
        let options = format!("remount,size={mebibytes}m");
        command(
            "/usr/bin/mount",
            &["-o".as_ref(), options.as_ref(), self.0.as_ref()],
        )
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(command(
            "/usr/bin/umount",
            &["-l".as_ref(), self.0.as_ref()],
        ));
    }
}

fn command(program: &str, words: &[&std::ffi::OsStr]) -> anyhow::Result<()> {
    let output = Command::new(program).args(words).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program}`: {said}");
    Ok(())
}

pub(crate) async fn full(run: &mut Run) -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "only root may mount");
    match run.seed % 4 {
        1 => spool(run).await,
        2 => wal(run).await,
        3 => data(run).await,
        _ => scratch(run).await,
    }
}

async fn spool(run: &mut Run) -> anyhow::Result<()> {
    run.variant("spool");
    let mut world = World::start(&run.program, &Settings::default()).await?;
    fs::create_dir(&world.order.spool)?;
    let disk = Disk::over(&world.order.spool, 80)?;
    let mut host = world.host().await?;
    let writing = world.write(STEADY, 1);
    world.back_up(&mut host, true).await?;
    tokio::time::sleep(run.random.millis(500, 3_000)).await;
    let (begun, ballast) = (Instant::now(), world.order.spool.join("ballast"));
    // As far as it goes.
    drop(fs::write(&ballast, vec![0; 80 << 20]));
    for _ in 0..3 {
        world.sql("SELECT pg_switch_wal()")?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let is_down = |heard: &Heard| {
        let Told::Event { event } = &heard.told else {
            return false;
        };
        let state = match event {
            WalEvent::Receiver {
                state: ReceiverState::Down { why },
            } => why,
            WalEvent::ShippingFailed { why } => why,
            _ => return false,
        };
        heard.at >= begun && state.contains("No space left")
    };
    told(run, &mut host, begun, is_down).await;
    let stays = run.random.millis(5_000, 15_000);
    tokio::time::sleep(stays).await;
    let written = writing.so_far().rows_between(begun, Instant::now());
    run.check(written > 1_000, || {
        format!("{written} rows were written meanwhile")
    });
    fs::remove_file(&ballast)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let log = writing.stop().await;
    let done = ended(run, &mut world, host, &log).await;
    drop(disk);
    done
}

async fn wal(run: &mut Run) -> anyhow::Result<()> {
    run.variant("pg_wal");
    let sizes = ["max_wal_size", "min_wal_size"].map(|name| (name, "48MB".to_owned()));
    let settings = Settings {
        server: sizes.to_vec(),
        ..Settings::default()
    };
    let mut world = World::start(&run.program, &settings).await?;
    world.server_mut()?.stop();
    let folder = world.server()?.data_folder().join("pg_wal");
    let disk = Disk::over(&folder, 160)?;
    world.server_mut()?.boot()?;
    let mut host = world.host().await?;
    world.back_up(&mut host, true).await?;
    let steady = world.write(STEADY, 1);
    tokio::time::sleep(run.random.millis(500, 3_000)).await;
    // Nobody takes WAL any more, and nothing fails: the slot keeps it all.
    let begun = Instant::now();
    signal_receiver(&host, Signal::STOP)?;
    let heavy = world.write(HEAVY, 11);
    let is_late = |heard: &Heard| {
        heard.at >= begun
            && matches!(
                &heard.told,
                Told::Event {
                    event: WalEvent::Late { .. }
                }
            )
    };
    told(run, &mut host, begun, is_late).await;
    let failed = steady.so_far().failures + heavy.so_far().failures;
    run.check(failed > 0, || "the disk did not fill".into());
    let mut log = steady.stop().await;
    let more = heavy.stop().await;
    log.acks.extend(more.acks);
    log.sent.extend(more.sent);
    run.figure("write_failures", failed);
    disk.grow(1_024)?;
    // The server is started again, as its keeper does; the archiver goes on by itself.
    world.server_mut()?.kill();
    world.server_mut()?.boot()?;
    signal_receiver(&host, Signal::CONT).ok();
    let here = world.order.server();
    run.judge(&here, &log, Promise::Nothing).await?;
    let done = ended(run, &mut world, host, &log).await;
    world.server_mut()?.stop();
    drop(disk);
    done
}

async fn data(run: &mut Run) -> anyhow::Result<()> {
    run.variant("data");
    let mut world = World::start(&run.program, &Settings::default()).await?;
    world.server_mut()?.stop();
    let folder = world.server()?.data_folder().join("base");
    let disk = Disk::over(&folder, 70)?;
    world.server_mut()?.boot()?;
    let mut host = world.host().await?;
    world.back_up(&mut host, true).await?;
    let begun = Instant::now();
    let steady = world.write(STEADY, 1);
    let heavy = world.write(HEAVY, 11);
    while heavy.so_far().failures == 0 {
        ensure!(begun.elapsed() < PATIENCE, "the disk did not fill");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(run.random.millis(2_000, 6_000)).await;
    let mut log = heavy.stop().await;
    run.check(world.sql("SELECT 1").is_ok(), || {
        "the server is down".into()
    });
    disk.grow(1_024)?;
    let grown = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let more = steady.stop().await;
    let written = more.rows_between(grown, Instant::now());
    run.check(written > 200, || {
        format!("{written} rows were written once there was room")
    });
    log.acks.extend(more.acks);
    log.sent.extend(more.sent);
    let done = ended(run, &mut world, host, &log).await;
    world.server_mut()?.stop();
    drop(disk);
    done
}

async fn scratch(run: &mut Run) -> anyhow::Result<()> {
    run.variant("scratch");
    let mut world = World::start(&run.program, &Settings::default()).await?;
    let mut host = world.host().await?;
    let writing = world.write(STEADY, 1);
    world.back_up(&mut host, true).await?;
    tokio::time::sleep(run.random.millis(2_000, 6_000)).await;
    let log = writing.stop().await;
    run.acknowledged(&log);
    world.settle(&mut host).await?;
    host.kill();
    let folder = world.path("small");
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    // Full while files are written, or while WAL is replayed.
    let size = 4 + run.random.below(44);
    run.figure("mebibytes", size);
    let disk = Disk::over(&folder, size)?;
    let archive = world.archive().await?;
    let (data, scratch) = (folder.join("copy"), folder.join("copy.run"));
    let request = request(
        archive,
        world.program.clone(),
        data.clone(),
        scratch,
        Target::Latest,
    );
    match restore(&request, |_| {}).await {
        Ok(_) => bail!("it fitted into {size} MiB"),
        Err(error) => {
            let mut said = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                said.push_str(&format!(": {error}"));
                cause = error.source();
            }
            run.check(said.contains("No space left"), || {
                format!("it said: {said}")
            });
            let is_ours = data.join(UNFINISHED).exists();
            run.check(is_ours, || "nobody knows whose the folder is".into());
        }
    }
    disk.grow(1_024)?;
    let restored = restore(&request, |_| {}).await?;
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    restored.finish().await?;
    drop(disk);
    Ok(())
}

/// It is said within a minute that something does not go on.
async fn told(run: &mut Run, host: &mut Hosted, begun: Instant, is_it: impl FnMut(&Heard) -> bool) {
    match host.until("that the disk is full", TOLD_MAX, is_it).await {
        Ok(heard) => {
            let millis = heard.at.saturating_duration_since(begun).as_millis();
            run.figure("told_ms", u64::try_from(millis).unwrap_or(u64::MAX));
        }
        Err(error) => run.check(false, || error.to_string()),
    }
}

/// Everything acknowledged arrives and comes back.
async fn ended(
    run: &mut Run,
    world: &mut World,
    mut host: Hosted,
    log: &Log,
) -> anyhow::Result<()> {
    run.acknowledged(log);
    world.settle(&mut host).await?;
    let holes = world
        .archive()
        .await?
        .load()
        .await?
        .context("an archive")?
        .ledger
        .holes();
    run.check(holes.is_empty(), || format!("{holes:?}"));
    whole(run, world).await?;
    host.kill();
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, log, Promise::Nothing).await?;
    Ok(restored.finish().await?)
}

fn signal_receiver(host: &Hosted, signal: Signal) -> anyhow::Result<()> {
    let receiver = children(host.pid())
        .into_iter()
        .find(|(_, _, name)| name == "pg_receivewal");
    let pid = receiver.and_then(|(pid, ..)| Pid::from_raw(i32::try_from(pid).ok()?));
    kill_process(pid.context("a receiver")?, signal)?;
    Ok(())
}
