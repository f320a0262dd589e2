//! F5: the host is gone, with the server's data and the spool. What is left is the repository.

use std::time::{Duration, Instant};

use landfast_backup::Target;

use crate::{
    run::{Promise, Run},
    world::{Settings, World},
    writers::STEADY,
};

/// Between shipments, as by default.
const INTERVAL: Duration = Duration::from_secs(5);
/// What is promised of a host that is lost.
const LOSS_MAX: Duration = Duration::from_secs(15);

pub(crate) async fn host_loss(run: &mut Run) -> anyhow::Result<()> {
    let is_s3 = run.seed.is_multiple_of(2);
    run.variant(if is_s3 { "S3" } else { "folder" });
    let settings = Settings {
        interval: INTERVAL,
        is_s3,
        ..Settings::default()
    };
    let mut world = World::start(&run.program, &settings).await?;
    let mut host = world.host().await?;
    world.back_up(&mut host, true).await?;
    let writing = world.write(STEADY, 1);
    // At least one shipment, then any place between two.
    let longest = if run.is_brief { 9_000 } else { 17_000 };
    let wait = run.random.millis(7_000, longest);
    tokio::time::sleep(wait).await;
    let (told, died) = (host.status(), Instant::now());
    host.kill_now();
    world.server_mut()?.kill();
    host.kill();
    // What is acknowledged later was acknowledged by a host that is gone.
    let log = writing.stop().await.until(died);
    world.discard()?;
    run.acknowledged(&log);
    run.figure("wait_ms", u64::try_from(wait.as_millis())?);

    let archive = world.archive().await?;
    let end = archive.load().await?.and_then(|loaded| loaded.ledger.end());
    let restored = world.restore(Target::Latest).await??;
    let missing = run
        .judge(&restored.server, &log, Promise::Within(LOSS_MAX, died))
        .await?;
    restored.finish().await?;
    // What the archive and the archiver called restorable has to be there.
    let told = told.and_then(|status| status.restorable);
    for (who, point) in [("the ledger", end), ("the archiver", told)] {
        let at = point.and_then(|point| point.at);
        run.check(at.is_some(), || {
            format!("{who} told no time it can be restored to")
        });
        let at = at.map_or(i64::MIN, |at| at.as_micros());
        let first = missing.first.map_or(i64::MAX, |first| first.wall);
        run.check(at <= first, || {
            format!("{who} called {at} restorable, and a row of {first} is missing")
        });
    }
    Ok(())
}
