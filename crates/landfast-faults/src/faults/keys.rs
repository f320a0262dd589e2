//! F11, F12: a page of the primary that is damaged, and keys that are wrong, rotated, lost or damaged.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use landfast_backup::Target;
use landfast_repository::Key;

use super::kills::whole;
use crate::{
    folder::files,
    order::{Ask, Order, Told},
    run::{Promise, Run},
    world::{PATIENCE, Settings, World},
    writers::STEADY,
};

/// "Wrong key" has to be said within this.
const SAID_MAX: Duration = Duration::from_secs(1);

/// F11: one bit of a page that lies on the primary's disk.
pub(crate) async fn page(run: &mut Run) -> anyhow::Result<()> {
    let settings = Settings {
        ballast: 5,
        ..Settings::default()
    };
    let mut world = World::start(&run.program, &settings).await?;
    let mut host = world.host().await?;
    let writing = world.write(STEADY, 1);
    let (good, _) = world.back_up(&mut host, true).await?;
    world.sql("CHECKPOINT")?;
    flip_a_page(run, &world)?;
    let mut bad = 0;
    for _ in 0..2 {
        host.ask(&Ask::BackUp {
            is_full: run.random.below(2) == 0,
        })?;
        match host.answer(PATIENCE).await? {
            Told::BackedUp { is_good, .. } => {
                bad += u64::from(!is_good);
                run.check(!is_good, || {
                    "a backup of a damaged page is called good".into()
                });
            }
            other => bail!("a backup came to {other:?}"),
        }
        host.ask(&Ask::Prune {
            daily: 1,
            wal_heartbeats: 1,
            bad: 0,
            delay: 0,
        })?;
        match host.answer(PATIENCE).await? {
            Told::Pruned { kept, .. } => {
                run.check(kept.contains(&good), || format!("{good} was let go"));
            }
            other => bail!("a prune came to {other:?}"),
        }
    }
    run.figure("bad_backups", bad);
    let log = writing.stop().await;
    run.acknowledged(&log);
    world.settle(&mut host).await?;
    whole(run, &world).await?;
    let restored = world.restore(Target::Latest).await??;
    run.check(restored.backup.summary.id == good, || {
        "another backup was taken".into()
    });
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    restored.finish().await?;
    // Mended on the primary, the next backup is good.
    world.sql("DROP TABLE ballast")?;
    world.sql("CHECKPOINT")?;
    world.back_up(&mut host, false).await.map(drop)
}

/// Any bit behind the first eight bytes of a page: by these, its LSN, the server tells pages that need no look.
pub(crate) fn flip_a_page(run: &mut Run, world: &World) -> anyhow::Result<()> {
    let file = world.sql("SELECT pg_relation_filepath('ballast')")?;
    let path = world.server()?.data_folder().join(file);
    let pages = fs::metadata(&path)?.len() / 8_192;
    ensure!(pages > 100, "the table is small");
    let at = run.random.below(pages) * 8_192 + 8 + run.random.below(8_184);
    let file = fs::File::options().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << run.random.below(8);
    file.write_all_at(&byte, at)?;
    file.sync_all()?;
    run.figure("flipped_at", at);
    Ok(())
}

/// F12: wrong, rotated, lost and damaged keys.
pub(crate) async fn keys(run: &mut Run) -> anyhow::Result<()> {
    let mut world = World::start(&run.program, &Settings::default()).await?;
    let mut host = world.host().await?;
    let writing = world.write(STEADY, 1);
    world.back_up(&mut host, true).await?;
    tokio::time::sleep(run.random.millis(500, 2_500)).await;
    let first = writing.stop().await;
    let old_end = world.settle(&mut host).await?;
    host.kill();
    let own = world.order.clone();
    let old = own.keys[0].clone();

    let other = world.path("other.key");
    Key::generate()?.write(&other)?;
    let wrong = Order {
        keys: vec![other.clone()],
        ..own.clone()
    };
    refused(run, &mut world, &wrong, "wrong key").await?;

    let gone = Order {
        keys: vec![world.path("no.key")],
        ..own.clone()
    };
    refused(run, &mut world, &gone, "there is no key file").await?;
    let damaged = world.path("damaged.key");
    let mut bytes = fs::read(&old)?;
    let place = run.random.below(bytes.len() as u64) as usize;
    bytes[place] ^= 1 << run.random.below(8);
    fs::copy(&old, &damaged)?;
    fs::write(&damaged, bytes)?;
    let damaged = Order {
        keys: vec![damaged],
        ..own.clone()
    };
    refused(
        run,
        &mut world,
        &damaged,
        "is no key of a backup repository, or is damaged",
    )
    .await?;

    // Rotated: the new one seals, the old one still opens.
    world.order.keys = vec![other.clone(), old.clone()];
    let mut host = world.host().await?;
    let writing = world.write(STEADY, 11);
    world.back_up(&mut host, false).await?;
    tokio::time::sleep(run.random.millis(500, 2_500)).await;
    let second = writing.stop().await;
    world.settle(&mut host).await?;
    host.kill();
    run.acknowledged(&first);
    run.acknowledged(&second);
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, &both(&first, &second), Promise::Nothing)
        .await?;
    restored.finish().await?;
    // What was sealed before it comes back with both.
    let restored = world.restore(Target::Lsn(old_end)).await??;
    run.judge(&restored.server, &first, Promise::Nothing)
        .await?;
    restored.finish().await?;
    whole(run, &world).await?;
    // One of the two is not enough, and that is said.
    let new_only = Order {
        keys: vec![other],
        ..own.clone()
    };
    refused(run, &mut world, &new_only, "wrong key").await?;
    refused(run, &mut world, &own, "wrong key").await
}

fn both(first: &crate::writers::Log, second: &crate::writers::Log) -> crate::writers::Log {
    let mut both = first.clone();
    both.acks.extend(&second.acks);
    both.sent.extend(&second.sent);
    both
}

/// An archiver with these keys says so at once, and nothing is changed.
async fn refused(
    run: &mut Run,
    world: &mut World,
    order: &Order,
    wanted: &str,
) -> anyhow::Result<()> {
    let before = files(&world.path("repository"));
    let begun = Instant::now();
    let mut host = world.process("archive", order, &[])?;
    let told = host.answer(PATIENCE).await;
    // Less what waiting for its last words takes.
    let took = begun.elapsed().saturating_sub(Duration::from_millis(300));
    let error = told
        .err()
        .context("an archiver began with the wrong keys")?
        .to_string();
    run.check(error.contains(wanted), || {
        format!("`{wanted}` was not said: {error}")
    });
    run.check(took <= SAID_MAX, || format!("it was said after {took:?}"));
    run.check(files(&world.path("repository")) == before, || {
        "the repository was changed".into()
    });
    Ok(())
}
