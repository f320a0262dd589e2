//! F1 to F3: kill -9 of the archiver in a backup, of its children, and of a restore, each at a random offset.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use landfast_backup::Target;
use landfast_backup_postgres::{ReceiverState, Server, UNFINISHED, WalEvent, verify};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{
    folder::{children, start_time},
    order::{Ask, Told, programs},
    run::{Promise, Run},
    world::{PATIENCE, Settings, World},
    writers::{STEADY, connect},
};

/// Deaths of one run.
const ROUNDS: u32 = 3;
/// How soon what a process started must be gone.
const ORPHANS_MAX: Duration = Duration::from_secs(5);

fn rounds(run: &Run) -> u32 {
    if run.is_brief { 1 } else { ROUNDS }
}

fn settings(run: &Run) -> Settings {
    Settings {
        ballast: if run.is_brief { 15 } else { 30 },
        ..Settings::default()
    }
}

/// F1: what archives and backs up dies in a backup.
pub(crate) async fn archiver(run: &mut Run) -> anyhow::Result<()> {
    let mut world = World::start(&run.program, &settings(run)).await?;
    let mut host = world.host().await?;
    let (_, usual) = world.back_up(&mut host, true).await?;
    let writing = world.write(STEADY, 1);
    let mut left_behind = 0;
    for round in 0..rounds(run) {
        let is_full = run.random.below(2) == 0;
        host.ask(&Ask::BackUp { is_full })?;
        let offset = run.random.between(Duration::ZERO, usual + usual / 4);
        tokio::time::sleep(offset).await;
        let started = children(host.pid());
        host.kill();
        gone(run, &started).await;
        left_behind += partial(&world).await?;
        // The next one goes on, with nothing in its way.
        host = world.host().await?;
        if round == 0 {
            // Before another backup: from the ones that are there.
            let mut log = writing.so_far();
            world.settle(&mut host).await?;
            let restored = world.restore(Target::Latest).await??;
            // More was written meanwhile, and may be there.
            log.sent = writing.so_far().sent;
            run.judge(&restored.server, &log, Promise::Nothing).await?;
            restored.finish().await?;
        }
        world.back_up(&mut host, false).await?;
        let left = world.order.spool.join("backup");
        run.check(!left.exists(), || format!("`{}` was left", left.display()));
    }
    let log = writing.stop().await;
    run.acknowledged(&log);
    run.figure("backups_cut_short", left_behind);
    world.settle(&mut host).await?;
    whole(run, &world).await?;
    host.kill();
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    Ok(restored.finish().await?)
}

/// F2: its children die, alone or with all they started.
pub(crate) async fn children_of_it(run: &mut Run) -> anyhow::Result<()> {
    let mut world = World::start(&run.program, &settings(run)).await?;
    let mut host = world.host().await?;
    let (_, usual) = world.back_up(&mut host, true).await?;
    let writing = world.write(STEADY, 1);
    let (mut failed, mut receivers) = (0, 0);
    for round in 0..rounds(run) {
        let is_receiver = (u64::from(round) + run.seed).is_multiple_of(2);
        let is_group = run.random.below(2) == 0;
        let name = if is_receiver {
            "pg_receivewal"
        } else {
            "pg_basebackup"
        };
        let begun = Instant::now();
        host.ask(&Ask::BackUp {
            is_full: run.random.below(2) == 0,
        })?;
        let offset = run.random.between(Duration::from_millis(50), usual);
        tokio::time::sleep(offset).await;
        let is_hit = kill_child(host.pid(), name, is_group);
        let told = host.answer(PATIENCE).await?;
        match told {
            Told::Failed { what, why } => {
                failed += 1;
                run.check(is_hit && !is_receiver, || {
                    format!("{what} failed, and its program lived: {why}")
                });
            }
            Told::BackedUp { is_good, .. } => {
                run.check(is_good, || "the backup is bad".into());
            }
            other => bail!("a backup came to {other:?}"),
        }
        if is_hit && is_receiver {
            receivers += 1_u64;
            let is_down = |event: &WalEvent| {
                matches!(
                    event,
                    WalEvent::Receiver {
                        state: ReceiverState::Down { .. }
                    }
                )
            };
            host.until("the end of the receiver", PATIENCE, |heard| {
                heard.at >= begun && matches!(&heard.told, Told::Event { event } if is_down(event))
            })
            .await?;
        }
    }
    let log = writing.stop().await;
    run.acknowledged(&log);
    run.figure("backups_failed", failed);
    run.figure("receivers_killed", receivers);
    world.back_up(&mut host, false).await?;
    world.settle(&mut host).await?;
    whole(run, &world).await?;
    host.kill();
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    Ok(restored.finish().await?)
}

/// F3: a restore dies. What it leaves does not start, or is whole; the next one into the same folder ends as if there had been none.
pub(crate) async fn restore(run: &mut Run) -> anyhow::Result<()> {
    let mut world = World::start(&run.program, &settings(run)).await?;
    let mut host = world.host().await?;
    world.back_up(&mut host, true).await?;
    let writing = world.write(STEADY, 1);
    tokio::time::sleep(run.random.millis(4_000, 8_000)).await;
    let log = writing.stop().await;
    run.acknowledged(&log);
    world.settle(&mut host).await?;
    host.kill();
    // How long one takes here.
    let begun = Instant::now();
    let restored = world.restore(Target::Latest).await??;
    let usual = begun.elapsed();
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    restored.finish().await?;
    let mut startable = 0;
    for _ in 0..rounds(run) {
        let order = world.order.clone();
        let mut restoring = world.process("restore", &order, &[])?;
        let offset = run.random.between(Duration::ZERO, usual + usual / 4);
        tokio::time::sleep(offset).await;
        let started = children(restoring.pid());
        let is_done = restoring
            .heard()
            .iter()
            .any(|heard| matches!(heard.told, Told::Restored { .. }));
        restoring.kill();
        gone(run, &started).await;
        if is_done {
            std::fs::remove_dir_all(&order.data)?;
            continue;
        }
        let is_ours = order.data.join(UNFINISHED).exists();
        if let Some(server) = start_anyway(&order.data, &world.path("try")).await? {
            startable += 1;
            let missing = run.judge(&server.server, &log, Promise::Nothing).await?;
            run.check(missing.rows == 0, || {
                "what a killed restore left starts, and is not whole".into()
            });
        } else {
            run.check(is_ours || !order.data.join("global").exists(), || {
                let log = std::fs::read_to_string(world.path("try/log"));
                format!("what was left does not start, and nobody knows whose it is: {log:?}")
            });
        }
        if !is_ours && order.data.exists() {
            std::fs::remove_dir_all(&order.data)?;
        }
        finish(&mut world, run, &log).await?;
    }
    run.figure("left_startable_and_whole", startable);
    Ok(())
}

/// A second restore into the same folder, to its end.
async fn finish(world: &mut World, run: &mut Run, log: &crate::writers::Log) -> anyhow::Result<()> {
    let order = world.order.clone();
    let mut restoring = world.process("restore", &order, &[])?;
    loop {
        match restoring.answer(PATIENCE).await? {
            Told::Restored { .. } => break,
            Told::Failed { why, .. } => bail!("the second restore failed: {why}"),
            _ => {}
        }
    }
    while !restoring.has_ended() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let server = start_anyway(&order.data, &world.path("try")).await?;
    let server = server.context("a restored folder does not start")?;
    run.judge(&server.server, log, Promise::Nothing).await?;
    drop(server);
    std::fs::remove_dir_all(&order.data)?;
    Ok(())
}

/// Every byte is as it was written, and nothing is missing.
pub(crate) async fn whole(run: &mut Run, world: &World) -> anyhow::Result<()> {
    let verified = verify(&world.archive().await?, |_| {}).await?;
    run.check(verified.findings.is_empty(), || {
        format!("verify found {:?}", verified.findings)
    });
    run.figure("objects", verified.objects);
    Ok(())
}

/// Packs and manifests of backups that never came to be. None of them may be listed.
async fn partial(world: &World) -> anyhow::Result<u64> {
    let archive = world.archive().await?;
    let loaded = archive.load().await?.context("an archive")?;
    ensure!(
        loaded.findings.is_empty(),
        "a kill left {:?}",
        loaded.findings
    );
    let listed: Vec<_> = loaded
        .backups
        .iter()
        .map(|backup| backup.summary.id.as_str())
        .collect();
    let there = archive.repository().list("main/packs").await?;
    let mut packs: Vec<_> = there
        .iter()
        .filter_map(|object| object.name.rsplit('/').nth(1))
        .collect();
    packs.dedup();
    Ok(packs.iter().filter(|pack| !listed.contains(pack)).count() as u64)
}

/// Nothing that was started outlives who started it.
async fn gone(run: &mut Run, started: &[(u32, u64, String)]) {
    let begun = Instant::now();
    loop {
        let left: Vec<_> = started
            .iter()
            .filter(|(pid, at, _)| is_alive(*pid, *at))
            .collect();
        if left.is_empty() {
            return;
        }
        if begun.elapsed() > ORPHANS_MAX {
            run.check(false, || format!("they outlived their starter: {left:?}"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_alive(pid: u32, started: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_zombie = stat
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('Z'));
    start_time(pid) == Some(started) && !is_zombie
}

fn kill_child(parent: u32, name: &str, is_group: bool) -> bool {
    let child = children(parent)
        .into_iter()
        .find(|(_, _, known)| known == name);
    let pid = child.and_then(|(pid, ..)| Pid::from_raw(i32::try_from(pid).ok()?));
    pid.is_some_and(|pid| {
        let killed = if is_group {
            kill_process_group(pid, Signal::KILL)
        } else {
            kill_process(pid, Signal::KILL)
        };
        killed.is_ok()
    })
}

/// A server that somebody starts on what lies there, with settings of their own.
pub(crate) struct Tried {
    child: std::process::Child,
    pub(crate) server: Server,
}

impl Drop for Tried {
    fn drop(&mut self) {
        // Fast shutdown, so that its children are gone, too.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // One that has ended is what is wanted.
            kill_process(pid, Signal::INT).ok();
        }
        drop(self.child.wait());
    }
}

/// Whether a process has a folder for its own.
fn is_used(folder: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut places =
        processes.filter_map(|entry| std::fs::read_link(entry.path().join("cwd")).ok());
    places.any(|place| place == folder)
}

/// Starts it as an operator would who takes the folder for a database; `None` where it refuses.
pub(crate) async fn start_anyway(data: &Path, socket: &Path) -> anyhow::Result<Option<Tried>> {
    use std::os::unix::{fs::chown, process::CommandExt as _};
    if !data.join("PG_VERSION").exists() {
        return Ok(None);
    }
    // What a killed server started sees its death a moment later, and keeps others away until then.
    let begun = Instant::now();
    while is_used(data) {
        ensure!(
            begun.elapsed() < PATIENCE,
            "somebody works in `{}`",
            data.display()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::create_dir_all(socket)?;
    let (conf, hba) = (socket.join("postgresql.conf"), socket.join("pg_hba.conf"));
    std::fs::write(&conf, "listen_addresses = ''\n")?;
    std::fs::write(&hba, "local all all trust\n")?;
    let mut command = Command::new(programs().folder.join("postgres"));
    command
        .arg("-D")
        .arg(data)
        .arg("-k")
        .arg(socket)
        .arg("-c")
        .arg(format!("config_file={}", conf.display()))
        .arg("-c")
        .arg(format!("hba_file={}", hba.display()))
        .args([
            "-c",
            "ident_file=",
            "-c",
            "archive_mode=off",
            "-c",
            "fsync=off",
        ])
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(socket.join("log"))?);
    if let Some((uid, gid)) = programs().user {
        for path in [socket, &conf, &hba] {
            chown(path, Some(uid), Some(gid))?;
        }
        command.uid(uid).gid(gid);
    }
    let child = command.spawn()?;
    let server = Server {
        host: socket.display().to_string(),
        port: 5432,
        login: "postgres".into(),
        password: None,
        database: "postgres".into(),
    };
    let mut tried = Tried { child, server };
    let begun = Instant::now();
    loop {
        if tried.child.try_wait()?.is_some() {
            return Ok(None);
        }
        if let Ok(client) = connect(socket, 5432, "postgres").await {
            let row = client.query_one("SELECT pg_is_in_recovery()", &[]).await;
            if row.is_ok_and(|row| !row.get::<_, bool>(0)) {
                return Ok(Some(tried));
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "it neither starts nor ends");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
