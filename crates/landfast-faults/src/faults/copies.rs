//! F20: a restored copy that would archive, send or call out, had it its way.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use landfast_backup::{Target, Verdict};
use landfast_backup_postgres::{DrillRequest, SqlCheck, drill};
use landfast_testbed::Postgres;

use crate::{
    folder::files,
    host::request,
    order::programs,
    run::{Promise, Run},
    world::{Settings, World},
    writers::STEADY,
};

/// A drill of a server that archives with a command, runs commands as it recovers, and subscribes to another server.
pub(crate) async fn copy(run: &mut Run) -> anyhow::Result<()> {
    let settings = Settings {
        server: vec![
            ("archive_mode", "on".into()),
            ("archive_timeout", "1".into()),
        ],
        ..Settings::default()
    };
    let mut world = World::start(&run.program, &settings).await?;
    let canaries = canaries(&world)?;
    let touch = |name: &str| format!("/usr/bin/touch {}/{name}", canaries.display());
    // What an operator set, and what a restore of another tool left behind. The copy brings all of it along.
    for (setting, value) in [
        ("archive_command", touch("archived")),
        ("recovery_end_command", touch("recovery_end")),
        ("archive_cleanup_command", touch("cleanup")),
        ("recovery_target_time", "2020-01-01 00:00:00+00".into()),
        ("listen_addresses", "127.0.0.1".into()),
    ] {
        world.sql(&format!("ALTER SYSTEM SET {setting} = '{value}'"))?;
    }
    world.sql("SELECT pg_reload_conf()")?;
    let publisher = Postgres::with_settings(&[("wal_level", "logical")])?;
    for sql in [
        "CREATE TABLE news (id int PRIMARY KEY)",
        "CREATE PUBLICATION news FOR TABLE news",
        "SELECT pg_create_logical_replication_slot('news', 'pgoutput')",
        "INSERT INTO news VALUES (1)",
    ] {
        publisher.sql("postgres", sql)?;
    }
    world.sql("CREATE TABLE news (id int PRIMARY KEY)")?;
    world.sql(&format!(
        "CREATE SUBSCRIPTION news CONNECTION 'host={} port={} user=postgres dbname=postgres' PUBLICATION news \
         WITH (create_slot = false, slot_name = 'news', copy_data = false)",
        publisher.socket_folder().display(),
        publisher.port()
    ))?;
    let mut host = world.host().await?;
    let writing = world.write(STEADY, 1);
    world.back_up(&mut host, true).await?;
    tokio::time::sleep(run.random.millis(1_500, 4_000)).await;
    let log = writing.stop().await;
    run.acknowledged(&log);
    world.settle(&mut host).await?;
    host.kill();
    // The primary did all of it: otherwise this shows nothing.
    ensure!(
        canaries.join("archived").exists(),
        "the primary did not archive"
    );
    let calls = || publisher.sql("postgres", "SELECT count(*) FROM pg_stat_replication");
    ensure!(calls()? == "1", "the primary does not subscribe");
    world.server_mut()?.stop();
    for path in files(&canaries) {
        fs::remove_file(path)?;
    }
    let before = state(&world)?;

    let archive = world.archive().await?;
    let (data, scratch) = (world.path("scratch"), world.path("scratch.run"));
    let drilling = DrillRequest {
        restore: request(
            archive,
            world.program.clone(),
            data.clone(),
            scratch.clone(),
            Target::Latest,
        ),
        checks: vec![SqlCheck {
            name: "rows".into(),
            database: "postgres".into(),
            // Long enough for a worker that wanted to call out.
            sql: format!("SELECT count(*) FROM acked, pg_sleep({})", 3),
            expected: log.rows().to_string(),
        }],
        schemas: vec![("postgres".into(), None)],
        heartbeat_database: "postgres".into(),
        reads_everything: true,
    };
    let watching = watch(&publisher, Duration::from_millis(200));
    let report = drill(&drilling, |_| {}).await;
    let seen = watching();
    let report = report.context("the drill")?;
    // The count of rows that were sent and not acknowledged may be higher; a copy decides.
    run.check(matches!(report.verdict, Verdict::Passed { .. }), || {
        format!("{:?}", report.verdict)
    });
    run.check(seen == 0, || {
        format!("the copy called the publisher {seen} times")
    });
    let ran: Vec<_> = files(&canaries);
    run.check(ran.is_empty(), || format!("the copy ran {ran:?}"));
    run.check(!data.exists() && !scratch.exists(), || {
        "the scratch copy was left".into()
    });
    let after = state(&world)?;
    run.check(after == before, || {
        "something outside of the scratch folder was written".into()
    });
    run.figure("objects", before.len());
    // A restore that stays brings the operator's settings along.
    let restored = world.restore(Target::Latest).await??;
    run.judge(&restored.server, &log, Promise::Nothing).await?;
    let kept = restored.data.join("postgresql.auto.conf");
    restored.finish().await?;
    let text = fs::read_to_string(&kept).unwrap_or_default();
    run.check(text.contains("archive_command"), || {
        "what ALTER SYSTEM had set is gone".into()
    });
    Ok(())
}

/// A folder that the database's user writes into.
fn canaries(world: &World) -> anyhow::Result<std::path::PathBuf> {
    let folder = world.path("canaries");
    fs::create_dir(&folder)?;
    if let Some((uid, gid)) = programs().user {
        std::os::unix::fs::chown(&folder, Some(uid), Some(gid))?;
    }
    Ok(folder)
}

/// Every object and file that a copy has no business with: name, length.
fn state(world: &World) -> anyhow::Result<Vec<(std::path::PathBuf, u64)>> {
    let folders = [
        world.path("repository"),
        world.path("spool"),
        world.path("canaries"),
    ];
    let all = folders
        .iter()
        .flat_map(|folder: &std::path::PathBuf| files(Path::new(folder)));
    all.map(|path| {
        let length = fs::metadata(&path)?.len();
        Ok((path, length))
    })
    .collect()
}

/// Counts who is connected to a publisher, until it is asked.
fn watch(publisher: &Postgres, every: Duration) -> impl FnOnce() -> u64 + use<> {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    };
    let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let (socket, port) = (publisher.socket_folder().to_owned(), publisher.port());
    let task = {
        let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(client) = crate::writers::connect(&socket, port, "postgres").await {
                    let asked = "SELECT count(*) FROM pg_stat_replication";
                    if let Ok(row) = client.query_one(asked, &[]).await {
                        seen.fetch_add(row.get::<_, i64>(0).unsigned_abs(), Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(every).await;
            }
        })
    };
    move || {
        stop.store(true, Ordering::Relaxed);
        task.abort();
        seen.load(Ordering::Relaxed)
    }
}
