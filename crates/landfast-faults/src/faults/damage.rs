//! F8 and F9: objects of the repository that were changed, cut short or lost.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use landfast_backup::{Lsn, PlanError, Target};
use landfast_backup_postgres::{BackupError, UNFINISHED, WalEvent, verify};

use super::kills::whole;
use crate::{
    folder::files,
    hosted::Heard,
    order::{Ask, Told},
    run::{Promise, Run},
    world::{PATIENCE, Settings, World},
    writers::{Log, STEADY},
};

/// A gap has to be told within this.
const GAP_TOLD_MAX: Duration = Duration::from_secs(300);

const TOMBSTONE: &str = "a tombstone";

#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip,
    Cut,
    Lose,
}

/// F8: one bit, a cut and a loss in every kind of object. `verify` names it; a restore fails, or has every row.
pub(crate) async fn objects(run: &mut Run) -> anyhow::Result<()> {
    // Heartbeats that fill more than one page of the ledger.
    let settings = Settings {
        interval: Duration::from_millis(20),
        ..Settings::default()
    };
    let mut world = World::start(&run.program, &settings).await?;
    let mut host = world.host().await?;
    let writing = world.write(STEADY, 1);
    world.back_up(&mut host, true).await?;
    world.back_up(&mut host, false).await?;
    // One that is buried, with its tombstone.
    host.ask(&Ask::Prune {
        daily: 1,
        wal_heartbeats: 1_000_000,
        bad: 0,
        delay: 1_000_000,
    })?;
    host.answer(PATIENCE).await?;
    world.back_up(&mut host, true).await?;
    host.ask(&Ask::Prune {
        daily: 1,
        wal_heartbeats: 1,
        bad: 0,
        delay: 1_000_000,
    })?;
    match host.answer(PATIENCE).await? {
        Told::Pruned { .. } => {}
        other => bail!("a prune came to {other:?}"),
    }
    world.back_up(&mut host, false).await?;
    let begun = Instant::now();
    while files(&world.object("main/ledger")).len() < 3 {
        ensure!(begun.elapsed() < PATIENCE, "the ledger has one page");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.sql("SELECT pg_switch_wal()")?;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let log = writing.stop().await;
    run.acknowledged(&log);
    world.settle(&mut host).await?;
    host.ask(&Ask::Stop)?;
    host.answer(PATIENCE).await?;
    whole(run, &world).await?;

    let (mut stopped, mut routed) = (0, 0);
    let kinds = kinds(run, &world).await?;
    for (kind, path) in &kinds {
        for damage in [Damage::Flip, Damage::Cut, Damage::Lose] {
            let bytes = fs::read(path)?;
            hurt(run, path, &bytes, damage)?;
            let what = format!("{kind}, {damage:?}");
            // Who loses a tombstone loses nothing, and nobody can know of it; the next prune puts another.
            if kind != TOMBSTONE || !matches!(damage, Damage::Lose) {
                named(run, &world, path, &what).await?;
            }
            if comes_back(run, &mut world, &log, &what).await? {
                routed += 1;
            } else {
                stopped += 1;
            }
            fs::write(path, bytes)?;
        }
    }
    run.figure("kinds", kinds.len());
    run.figure("restores_stopped", stopped);
    run.figure("restores_whole", routed);
    let tombstone = kinds.iter().find(|(kind, _)| kind == TOMBSTONE);
    let (_, tombstone) = tombstone.context("a tombstone")?;
    fs::remove_file(tombstone)?;
    let mut host = world.host().await?;
    host.ask(&Ask::Prune {
        daily: 30,
        wal_heartbeats: 1_000_000,
        bad: 0,
        delay: 1_000_000,
    })?;
    host.answer(PATIENCE).await?;
    run.check(tombstone.is_file(), || {
        "nobody put another tombstone".into()
    });
    host.kill();
    whole(run, &world).await
}

/// An object of each kind, by what it is called.
async fn kinds(run: &mut Run, world: &World) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let archive = world.archive().await?;
    let loaded = archive.load().await?.context("an archive")?;
    let newest = loaded.backups.last().context("a backup")?;
    let of = |name: &str| world.object(&format!("main/backups/{}/{name}", newest.summary.id));
    let packs = &newest.tree.packs;
    let pack = packs
        .get(run.random.below(packs.len() as u64) as usize)
        .context("a pack")?;
    let wal = files(&world.object("main/wal"));
    // What a restore from the newest backup needs.
    let needed: Vec<_> = wal
        .iter()
        .filter(|path| end_of(path) > newest.summary.start)
        .collect();
    let middle = needed[run.random.below(needed.len() as u64 - 1) as usize];
    let pages: Vec<_> = files(&world.object("main/ledger"));
    let pages: Vec<_> = pages.iter().filter(|path| is_number(path)).collect();
    let mut kinds = vec![
        (
            "the mark of the repository".to_owned(),
            world.object("repository"),
        ),
        ("the oldest page of the ledger".to_owned(), pages[0].clone()),
        (
            "the newest page of the ledger".to_owned(),
            pages[pages.len() - 1].clone(),
        ),
        (
            "the head of the ledger".to_owned(),
            world.object("main/ledger/head"),
        ),
        ("WAL".to_owned(), middle.clone()),
        (
            "the newest WAL".to_owned(),
            needed[needed.len() - 1].clone(),
        ),
        ("a pack".to_owned(), world.object(&pack.name)),
    ];
    kinds.extend(["manifest", "map", "hashes"].map(|name| (name.to_owned(), of(name))));
    let tombstones = files(&world.object("main/tombstones"));
    let tombstone = tombstones.first().context("a tombstone")?;
    kinds.push((TOMBSTONE.to_owned(), tombstone.clone()));
    kinds.retain(|(kind, path)| {
        run.check(path.is_file(), || format!("there is no {kind}"));
        path.is_file()
    });
    Ok(kinds)
}

fn is_number(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.parse::<u64>().is_ok())
}

/// Where a piece of WAL ends, by its name.
fn end_of(path: &Path) -> Lsn {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let end = name
        .split_once('-')
        .and_then(|(_, to)| u64::from_str_radix(to, 16).ok());
    Lsn(end.unwrap_or_default())
}

fn hurt(run: &mut Run, path: &Path, bytes: &[u8], damage: Damage) -> anyhow::Result<()> {
    match damage {
        Damage::Flip => {
            let mut bytes = bytes.to_vec();
            let place = run.random.below(bytes.len() as u64) as usize;
            bytes[place] ^= 1 << run.random.below(8);
            fs::write(path, bytes)?;
        }
        Damage::Cut => fs::write(
            path,
            &bytes[..run.random.below(bytes.len() as u64) as usize],
        )?,
        Damage::Lose => fs::remove_file(path)?,
    }
    Ok(())
}

/// `verify`, or the opening before it, says which object it is.
async fn named(run: &mut Run, world: &World, path: &Path, what: &str) -> anyhow::Result<()> {
    let name = path
        .strip_prefix(world.path("repository"))?
        .display()
        .to_string();
    let said = match world.archive().await {
        Err(error) => format!("{error:#}"),
        Ok(archive) => match verify(&archive, |_| {}).await {
            Err(error) => error.to_string(),
            Ok(verified) => {
                let is_named = verified
                    .findings
                    .iter()
                    .any(|finding| finding.object == name);
                if is_named {
                    return Ok(());
                }
                format!("{:?}", verified.findings)
            }
        },
    };
    run.check(said.contains(&format!("`{name}`")), || {
        format!("{what}: `{name}` is not named: {said}")
    });
    Ok(())
}

/// Whether a restore brings every row. One that fails leaves nothing that starts.
async fn comes_back(
    run: &mut Run,
    world: &mut World,
    log: &Log,
    what: &str,
) -> anyhow::Result<bool> {
    let data = world.next_copy();
    let Ok(Ok(restored)) = world.restore(Target::Latest).await else {
        let is_startable =
            data.join("global/pg_control").exists() && !data.join(UNFINISHED).exists();
        let is_promoted = data.join("pg_wal/00000002.history").exists();
        run.check(!is_startable && !is_promoted, || {
            format!("{what}: the failed restore left a database")
        });
        drop(fs::remove_dir_all(&data));
        return Ok(false);
    };
    let missing = run.judge(&restored.server, log, Promise::Nothing).await?;
    run.check(missing.rows == 0, || format!("{what}: a silent promotion"));
    restored.finish().await?;
    fs::remove_dir_all(&data)?;
    Ok(true)
}

/// F9: a piece of WAL is lost behind the back of a running archiver.
pub(crate) async fn gap(run: &mut Run) -> anyhow::Result<()> {
    let settings = Settings {
        heals: true,
        ..Settings::default()
    };
    let mut world = World::start(&run.program, &settings).await?;
    let mut host = world.host().await?;
    let (first, _) = world.back_up(&mut host, true).await?;
    let writing = world.write(STEADY, 1);
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        world.sql("SELECT pg_switch_wal()")?;
    }
    world.settle(&mut host).await?;
    let archive = world.archive().await?;
    let loaded = archive.load().await?.context("an archive")?;
    let backup = loaded.backups.last().context("a backup")?;
    let stop = backup.summary.stop;
    let wal = files(&world.object("main/wal"));
    // Behind what makes the backup consistent, before the newest: closed segments.
    let middle: Vec<_> = wal
        .iter()
        .filter(|path| end_of(path) > stop + (16 << 20))
        .collect();
    let middle = &middle[..middle.len().saturating_sub(2)];
    ensure!(!middle.is_empty(), "no segment can be lost");
    let lost = middle[run.random.below(middle.len() as u64) as usize];
    let behind = end_of(lost);
    let begun = Instant::now();
    fs::remove_file(lost)?;
    let is_told = |event: &WalEvent| matches!(event, WalEvent::ChainBroken { .. });
    let heard = host
        .until(
            "the gap",
            GAP_TOLD_MAX,
            |heard| matches!(&heard.told, Told::Event { event } if is_told(event)),
        )
        .await?;
    let told = heard.at.saturating_duration_since(begun);
    run.figure("told_ms", u64::try_from(told.as_millis())?);
    let is_red =
        |heard: &Heard| matches!(&heard.told, Told::Status { status } if status.broken.is_some());
    host.until("the gap in the status", PATIENCE, is_red)
        .await?;
    // The full backup that follows by itself.
    match host.answer(PATIENCE).await? {
        Told::BackedUp { id, is_good, .. } => {
            run.check(is_good && id > first, || format!("{id} followed"));
        }
        other => bail!("what followed came to {other:?}"),
    }
    let log = writing.stop().await;
    run.acknowledged(&log);
    world.settle(&mut host).await?;
    host.kill();
    match world.restore(Target::Lsn(behind + 64)).await? {
        Err(BackupError::Plan(PlanError::WouldEndEarly {
            hole,
            reach,
            seconds,
        })) => {
            run.check(hole.to <= behind && reach <= hole.from, || {
                format!("{hole}, {reach}")
            });
            run.check(seconds.is_some(), || {
                "nobody said how many seconds are lost".into()
            });
        }
        Err(error) => run.check(false, || format!("a restore across the gap: {error}")),
        Ok(_) => run.check(false, || "a restore across the gap came up".into()),
    }
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    Ok(restored.finish().await?)
}
