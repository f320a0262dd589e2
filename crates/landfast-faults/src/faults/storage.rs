//! F7: the bucket refuses, hangs, answers 503 or 403, or is slow, for longer than a minute.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use landfast_backup::Target;
use landfast_backup_postgres::WalEvent;

use super::kills::whole;
use crate::{
    folder::children,
    front::{Front, Mode},
    order::{Ask, PlaceOrder, Told},
    run::{Promise, Run},
    world::{Settings, World},
    writers::STEADY,
};

/// That the archive stands still has to be told within this.
const TOLD_MAX: Duration = Duration::from_secs(60);
/// A backup that cannot be has to say so within this.
const BACKUP_MAX: Duration = Duration::from_secs(120);
/// Everything of an outage has to be there this long after it.
const BACK_MAX: Duration = Duration::from_secs(150);

pub(crate) async fn bucket(run: &mut Run) -> anyhow::Result<()> {
    let (mode, name) = match run.seed % 5 {
        1 => (Mode::Refuse, "refuses"),
        2 => (Mode::Hang, "hangs"),
        3 => (Mode::Unavailable, "503"),
        4 => (Mode::Slow, "slow"),
        _ => (Mode::Forbidden, "403"),
    };
    run.variant(name);
    let settings = Settings {
        is_s3: true,
        ballast: 10,
        ..Settings::default()
    };
    let mut world = World::start(&run.program, &settings).await?;
    let direct = world.order.place.clone();
    let PlaceOrder::S3(endpoint) = &direct else {
        bail!("a world on S3 has another repository");
    };
    let server = endpoint
        .strip_prefix("http://")
        .context("plain HTTP")?
        .to_owned();
    let front = Front::start(server).await?;
    // The archiver goes through the front, whoever judges does not.
    world.order.place = PlaceOrder::S3(front.endpoint());
    let mut host = world.host().await?;
    world.order.place = direct;
    let (_, usual) = world.back_up(&mut host, true).await?;
    let writing = world.write(STEADY, 1);
    tokio::time::sleep(run.random.millis(2_000, 5_000)).await;

    // In the middle of a backup, at a random place.
    let asked = Instant::now();
    host.ask(&Ask::BackUp { is_full: true })?;
    while !children(host.pid())
        .iter()
        .any(|(_, _, name)| name == "pg_basebackup")
    {
        ensure!(
            asked.elapsed() < BACKUP_MAX,
            "no `pg_basebackup` was started"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(run.random.between(Duration::ZERO, usual / 3)).await;
    let begun = Instant::now();
    front.set(mode);
    let ended = host.answer(BACKUP_MAX * 2).await?;
    let took = begun.elapsed();
    match ended {
        Told::Failed { .. } => {
            run.figure("backup_failed_ms", u64::try_from(took.as_millis())?);
            run.check(took <= BACKUP_MAX, || {
                format!("the backup failed after {took:?}")
            });
        }
        // It was done before, or gets through.
        Told::BackedUp { .. } => run.figure(
            "backup_done_ms",
            u64::try_from(asked.elapsed().as_millis())?,
        ),
        other => bail!("a backup came to {other:?}"),
    }
    let lasts = run.random.millis(65_000, 75_000);
    tokio::time::sleep(lasts.saturating_sub(begun.elapsed())).await;
    let told = host.events(begun).into_iter().find_map(|(at, event)| {
        let is_told = matches!(
            event,
            WalEvent::ShippingFailed { .. } | WalEvent::Late { .. } | WalEvent::Unreadable { .. }
        );
        is_told.then(|| at.saturating_duration_since(begun))
    });
    let written = writing.so_far().rows_between(begun, Instant::now());
    run.figure("written_meanwhile", written);
    run.check(written > 1_000, || {
        format!("{written} rows were written meanwhile")
    });
    front.set(Mode::Pass);
    let passed = Instant::now();
    match told {
        Some(told) => {
            run.figure("told_ms", u64::try_from(told.as_millis())?);
            run.check(told <= TOLD_MAX, || format!("told after {told:?}"));
        }
        // What is slow may still keep up; then there is nothing to tell.
        None => {
            let restorable = host
                .status()
                .and_then(|status| status.restorable)
                .and_then(|point| point.at);
            let age = crate::writers::wall() - restorable.map_or(0, |at| at.as_micros());
            run.check(mode == Mode::Slow && age < 60_000_000, || {
                format!(
                    "nobody was told, and the archive is {} s behind",
                    age / 1_000_000
                )
            });
        }
    }
    let log = writing.stop().await;
    run.acknowledged(&log);
    world.settle_within(&mut host, BACK_MAX).await?;
    run.figure("back_ms", u64::try_from(passed.elapsed().as_millis())?);
    world.back_up(&mut host, false).await?;
    world.settle(&mut host).await?;
    host.kill();
    whole(run, &world).await?;
    let archive = world.archive().await?;
    let holes = archive.load().await?.context("an archive")?.ledger.holes();
    run.check(holes.is_empty(), || format!("{holes:?}"));
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    Ok(restored.finish().await?)
}
