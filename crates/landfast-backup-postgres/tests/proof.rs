//! Drills, retention, and the way back without Landfast.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests, and servers and programs that are looked at from outside"
)]

mod common;

use std::{fs, path::Path, process::Command};

use common::{World, programs};
use landfast_backup::{Retention, Target, Verdict};
use landfast_backup_postgres::{
    DrillRequest, OnCopy, Server, SqlCheck, drill, drill_and, prune, verify,
};
use landfast_testbed::Postgres;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_measures_and_a_wrong_answer_fails_it() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world.sql("CREATE TABLE t AS SELECT generate_series(1, 5000) AS id");
    world.back_up(&archiver, true).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
    world.settle(&archiver).await;
    let objects = world.archive.repository().list("").await.unwrap().len();
    archiver.stop().await.unwrap();
    let mut request = DrillRequest {
        restore: world.request("drill", Target::Latest),
        checks: vec![SqlCheck {
            name: "orders".into(),
            database: "postgres".into(),
            sql: "SELECT count(*) FROM t".into(),
            expected: "5000".into(),
        }],
        schemas: vec![("postgres".into(), None)],
        heartbeat_database: "postgres".into(),
        reads_everything: true,
    };
    let report = drill(&request, |_| {}).await.unwrap();
    assert!(
        matches!(report.verdict, Verdict::Passed { rpo: Some(_) }),
        "{:?}",
        report.verdict
    );
    assert!(!request.restore.data.exists());
    assert!(report.rates.restore > 0);
    let (_, digest) = report.schemas[0].clone();
    request.schemas[0].1 = Some(digest);
    request.checks[0].expected = "4999".into();
    let report = drill(&request, |_| {}).await.unwrap();
    let Verdict::Failed { reasons } = report.verdict else {
        panic!("it passed");
    };
    assert_eq!(reasons, ["orders: it gave another answer than `4999`"]);
    assert_eq!(report.facts.checks[0].gave.as_deref(), Some("5000"));
    // A copy writes nothing into the archive.
    assert!(world.archive.repository().list("").await.unwrap().len() <= objects + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_leaves_a_chain_that_restores() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    world.sql("CREATE TABLE t (id bigint, pad text)");
    for round in 0..4 {
        world.sql(&format!(
            "INSERT INTO t SELECT {round}, repeat('x', 900) FROM generate_series(1, 9000)"
        ));
        world.back_up(&archiver, round % 2 == 0).await.unwrap();
        world.settle(&archiver).await;
    }
    let retention = Retention {
        daily: 1,
        wal_heartbeats: 1,
        bad: 0,
    };
    let dry = prune(&world.archive, &archiver, &retention, 0, true)
        .await
        .unwrap();
    assert_eq!(dry.deleted, 0);
    let pruned = prune(&world.archive, &archiver, &retention, 0, false)
        .await
        .unwrap();
    assert!(pruned.buried.len() >= 2, "{pruned:?}");
    assert!(pruned.deleted > 0);
    assert_eq!(verify(&world.archive, |_| {}).await.unwrap().findings, []);
    world.settle(&archiver).await;
    archiver.stop().await.unwrap();
    let restored = world.restore("copy", Target::Latest).await.unwrap();
    assert_eq!(common::ask(&restored, "SELECT count(*) FROM t"), "36000");
    restored.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_back_without_landfast() {
    let mut postgres = Postgres::with_settings(common::SETTINGS).unwrap();
    postgres.stop();
    checksums(&postgres.data_folder(), "--enable");
    postgres.boot().unwrap();
    let world = World::with(postgres).await;
    let archiver = world.archiver().await;
    world.sql("CREATE TABLE t AS SELECT generate_series(1, 5000) AS id");
    world.sql("CREATE INDEX ON t (id)");
    world.back_up(&archiver, true).await.unwrap();
    world.sql("INSERT INTO t VALUES (1)");
    world.back_up(&archiver, false).await.unwrap();
    world
        .write_archived(&archiver, "INSERT INTO t VALUES (2)")
        .await;
    archiver.stop().await.unwrap();
    let folder = world.folder.path();
    let (data, wal) = (folder.join("data"), folder.join("wal"));
    let by_hand = |args: &[&str]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/restore-by-hand.py");
        let output = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(folder.join("repository"))
            .arg(&world.key)
            .arg("main")
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(by_hand(&["list"]).lines().count(), 2);
    by_hand(&["files", "000002", data.to_str().unwrap()]);
    by_hand(&["wal", wal.to_str().unwrap()]);
    let verified = Command::new(programs().folder.join("pg_verifybackup"))
        .arg("--no-parse-wal")
        .arg(&data)
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
    fs::write(data.join("recovery.signal"), "").unwrap();
    fs::write(
        data.join("postgresql.auto.conf"),
        format!("restore_command = 'cp {}/%f %p'\nlisten_addresses = ''\nhot_standby = off\nunix_socket_directories = '{}'\n", wal.display(), data.display()),
    )
    .unwrap();
    world.request("unused", Target::Latest);
    own(&data);
    own(&wal);
    let mut start = Command::new(programs().folder.join("pg_ctl"));
    start
        .args(["--wait", "--silent", "--log"])
        .arg(data.join("log"))
        .arg("--pgdata")
        .arg(&data);
    run(&mut start, "start");
    let count = || {
        let mut psql = Command::new("/usr/bin/psql");
        psql.args(["-XqAt", "-U", "postgres", "-h"]).arg(&data);
        psql.args(["-d", "postgres", "-c", "SELECT count(*) FROM t"]);
        psql.output().unwrap()
    };
    // It answers once it is out of recovery.
    let mut counted = count();
    for _ in 0..200 {
        if counted.status.success() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        counted = count();
    }
    let mut amcheck = Command::new(programs().folder.join("pg_amcheck"));
    amcheck
        .args(["--all", "--install-missing", "--heapallindexed"])
        .args(["--username=postgres", "--host"])
        .arg(&data);
    let amchecked = amcheck.output().unwrap();
    let mut stop = Command::new(programs().folder.join("pg_ctl"));
    stop.args(["--wait", "--silent", "--mode=fast", "--pgdata"])
        .arg(&data);
    run(&mut stop, "stop");
    assert_eq!(
        String::from_utf8_lossy(&counted.stdout).trim(),
        "5002",
        "{counted:?}"
    );
    // It says nothing where nothing is wrong.
    assert!(
        amchecked.status.success() && amchecked.stdout.is_empty(),
        "{amchecked:?}"
    );
    checksums(&data, "--check");
}

/// What it prints, or what it says.
fn psql(server: &Server, sql: &str) -> Result<String, String> {
    let mut psql = Command::new("/usr/bin/psql");
    psql.args([
        "-XqAt",
        "-v",
        "ON_ERROR_STOP=1",
        "-U",
        "postgres",
        "-h",
        &server.host,
    ])
    .args(["-p", &server.port.to_string(), "-d", "postgres", "-c", sql]);
    let output = psql.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// A copy has the foreign servers of the real one, with their passwords.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_reaches_no_other_server_and_what_becomes_of_it_changes_no_verdict() {
    let world = World::new().await;
    let archiver = world.archiver().await;
    let port = world.postgres.port();
    world.sql(&format!(
        "CREATE TABLE t AS SELECT generate_series(1, 100) AS id; \
         CREATE EXTENSION postgres_fdw; CREATE EXTENSION dblink; \
         CREATE ROLE far LOGIN SUPERUSER PASSWORD 'theirs'; \
         CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw \
             OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres'); \
         CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'far', password 'theirs'); \
         CREATE FOREIGN TABLE far_t (id int) SERVER far OPTIONS (table_name 't')"
    ));
    let real = world.server();
    // It works where it was made.
    psql(&real, "INSERT INTO far_t VALUES (101)").unwrap();
    let dblink = format!(
        "SELECT dblink_exec('host=127.0.0.1 port={port} user=far password=theirs dbname=postgres', 'DELETE FROM t')"
    );
    world.back_up(&archiver, true).await.unwrap();
    world.settle(&archiver).await;
    let request = DrillRequest {
        restore: world.request("drill", Target::Latest),
        checks: vec![SqlCheck {
            name: "rows".into(),
            database: "postgres".into(),
            sql: "SELECT count(*) FROM t".into(),
            expected: "101".into(),
        }],
        schemas: Vec::new(),
        heartbeat_database: "postgres".into(),
        reads_everything: true,
    };
    let data = request.restore.data.display().to_string();
    let mut has_run = false;
    let on_copy: OnCopy<'_> = Box::new(|copy| {
        Box::pin(async {
            let copy = copy.unwrap();
            let refusal = copy.refusal("postgres").await.unwrap();
            assert!(copy.bytes().await.unwrap() > 1 << 20);
            if programs().user.is_none() {
                // Nobody but root can cut it off.
                assert!(refusal.unwrap().contains("leads to another server"));
                has_run = true;
                return;
            }
            assert_eq!(refusal, None);
            for sql in [
                "UPDATE far_t SET id = -id",
                "SELECT count(*) FROM far_t",
                &dblink,
            ] {
                let said = psql(&copy.server, sql).unwrap_err();
                assert!(said.contains("Network is unreachable"), "{said}");
            }
            // Who names no server gets the copy.
            let itself = "SELECT * FROM dblink('user=postgres dbname=postgres', 'SHOW data_directory') AS (at text)";
            assert_eq!(psql(&copy.server, itself).unwrap(), data);
            let interfaces = "CREATE TEMP TABLE seen (line text); COPY seen FROM PROGRAM 'tail -n +3 /proc/self/net/dev'; \
                SELECT string_agg(trim(split_part(line, ':', 1)), ' ') FROM seen";
            assert_eq!(psql(&copy.server, interfaces).unwrap(), "lo");
            // A socket is reached without a network.
            let by_path = format!(
                "CREATE SERVER near FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{}', port '{port}')",
                real.host
            );
            psql(&copy.server, &by_path).unwrap();
            let why = copy.refusal("postgres").await.unwrap().unwrap();
            assert!(why.contains("`near` is reached through a socket"), "{why}");
            // It breaks, as with a disk that is full.
            let broken = "COPY (SELECT 1) TO PROGRAM 'kill -KILL $PPID'";
            psql(&copy.server, broken).unwrap_err();
            fs::write(Path::new(&data).join("global/pg_control"), "broken").unwrap();
            has_run = true;
        })
    });
    let report = drill_and(&request, |_| {}, Some(on_copy)).await.unwrap();
    assert!(has_run);
    assert!(
        matches!(report.verdict, Verdict::Passed { .. }),
        "{:?}",
        report.verdict
    );
    assert!(!request.restore.data.exists() && !request.restore.run.exists());
    assert_eq!(
        world.sql("SELECT count(*) FROM t WHERE id > 0").trim(),
        "101"
    );
    archiver.stop().await.unwrap();
}

/// On the data of a server that was shut down.
fn checksums(data: &Path, what: &str) {
    let mut checksums = Command::new(programs().folder.join("pg_checksums"));
    checksums.arg("--pgdata").arg(data);
    run(&mut checksums, what);
}

fn run(command: &mut Command, verb: &str) {
    use std::os::unix::process::CommandExt as _;
    if let Some((uid, gid)) = programs().user {
        command.uid(uid).gid(gid);
    }
    let status = command.arg(verb).status().unwrap();
    assert!(status.success(), "{verb}");
}

fn own(path: &Path) {
    let Some((uid, gid)) = programs().user else {
        return;
    };
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    if path.is_dir() {
        fs::read_dir(path)
            .unwrap()
            .flatten()
            .for_each(|entry| own(&entry.path()));
    }
}
