//! Dumps of a database that is somebody else's, and what a drill of them shows.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests, and programs that are looked at from outside"
)]

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use landfast_backup_files::{Content, Series, Snapshot};
use landfast_backup_postgres::{
    BackupError, DumpDrill, DumpDrillRequest, DumpRequest, DumpSource, OnCopy, Programs, SqlCheck,
    drill_dump, dump,
};
use landfast_repository::{Key, Keyring, Place, Repository, Storage};
use landfast_testbed::Postgres;
use landfast_types::Secret;
use tempfile::TempDir;

const PASSWORD: &str = "a b:c\\d'e";

struct World {
    postgres: Postgres,
    folder: TempDir,
    series: Series,
}

impl World {
    async fn new() -> Self {
        let postgres = Postgres::start().unwrap();
        let folder = tempfile::tempdir().unwrap();
        // The server's user has to pass through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let place = Place::Folder(folder.path().join("repository"));
        let key = Key::generate().unwrap();
        key.write(&folder.path().join("backup.key")).unwrap();
        let keys = Arc::new(Keyring::new(key));
        let repository = Repository::create(Storage::new(&place).unwrap(), keys);
        let series = Series::new(repository.await.unwrap(), "shop/production/_dumps/main");
        let world = Self {
            postgres,
            folder,
            series: series.unwrap(),
        };
        let login = PASSWORD.replace('\'', "''");
        world.sql(
            "postgres",
            &format!("CREATE ROLE theirs LOGIN PASSWORD '{login}'"),
        );
        world.sql("postgres", "CREATE DATABASE shop OWNER theirs");
        world.sql(
            "shop",
            "CREATE TABLE items (n int PRIMARY KEY, name text NOT NULL); ALTER TABLE items OWNER TO theirs; \
             INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 50000) n; \
             CREATE VIEW few AS SELECT * FROM items WHERE n < 10; ALTER VIEW few OWNER TO theirs",
        );
        world
    }

    fn sql(&self, database: &str, sql: &str) -> String {
        self.postgres.sql(database, sql).unwrap()
    }

    fn source(&self, password: &str) -> DumpSource {
        let variable = |name, value: &str| (name, Secret::new(value.to_owned()));
        DumpSource {
            variables: vec![
                variable("PGHOST", "127.0.0.1"),
                variable("PGPORT", &self.postgres.port().to_string()),
                variable("PGUSER", "theirs"),
                variable("PGPASSWORD", password),
                variable("PGDATABASE", "shop"),
            ],
            server_version: 150_000,
            database: "shop".to_owned(),
            identity: None,
        }
    }

    async fn dump(&self, password: &str) -> Result<Snapshot, BackupError> {
        let request = DumpRequest {
            source: self.source(password),
            programs: programs(),
            series: self.series.clone(),
            is_full: false,
            patience: Duration::from_secs(300),
        };
        dump(&request, |_| {}).await
    }

    async fn drill(&self, sql: &str, expected: &str) -> Result<DumpDrill, BackupError> {
        self.drill_within(Duration::from_secs(300), sql, expected, None)
            .await
    }

    async fn drill_within(
        &self,
        patience: Duration,
        sql: &str,
        expected: &str,
        on_copy: Option<OnCopy<'_>>,
    ) -> Result<DumpDrill, BackupError> {
        let request = DumpDrillRequest {
            series: self.series.clone(),
            programs: programs(),
            scratch: self.folder.path().to_owned(),
            checks: vec![SqlCheck {
                name: "items".into(),
                database: String::new(),
                sql: sql.into(),
                expected: expected.into(),
            }],
            is_made: false,
            reads_everything: true,
            patience,
        };
        let loaded = self.series.load().await.unwrap();
        drill_dump(&request, &loaded, None, |_| {}, on_copy).await
    }

    fn packs(&self) -> Vec<PathBuf> {
        let of = self.folder.path().join("repository");
        let of = of.join(self.series.name()).join("packs/000001");
        let packs = fs::read_dir(of).unwrap();
        packs.map(|entry| entry.unwrap().path()).collect()
    }
}

fn programs() -> Programs {
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let postgres = passwd.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Programs {
        folder: "/usr/lib/postgresql/15/bin".into(),
        user: postgres.filter(|_| rustix::process::geteuid().is_root()),
        containers: None,
    }
}

#[tokio::test]
async fn a_dump_is_proven_in_a_server_of_its_own() {
    let world = World::new().await;
    let first = world.dump(PASSWORD).await.unwrap();
    let Content::Dump {
        schema, database, ..
    } = &first.content
    else {
        panic!("{first:?}");
    };
    assert!(schema.is_some() && database == "shop");
    let drilled = world.drill("SELECT count(*) FROM few", "9").await.unwrap();
    assert_eq!(drilled.wrong(), Vec::<String>::new());
    assert_eq!((drilled.tables, drilled.rows), (1, 50_000));
    let names: Vec<_> = drilled
        .checks
        .iter()
        .map(|check| check.name.as_str())
        .collect();
    assert_eq!(names, ["items", "rows", "schema", "pg_amcheck"]);
    // Nothing of it is left.
    for name in ["d", "r", "x"] {
        assert!(!world.folder.path().join(name).exists(), "{name}");
    }
    let drilled = world.drill("SELECT count(*) FROM few", "10").await.unwrap();
    assert_eq!(drilled.wrong(), ["items: it gave another answer than `10`"]);
    assert_eq!(drilled.checks[0].gave.as_deref(), Some("9"));
    // What is the same is not stored again.
    let second = world.dump(PASSWORD).await.unwrap();
    assert!(second.same_bytes > second.bytes / 2, "{second:?}");
    assert!(second.stored_bytes < first.stored_bytes / 2, "{second:?}");
}

#[tokio::test]
async fn a_dump_that_fails_is_none_and_tells_no_password() {
    let world = World::new().await;
    let failed = world.dump("wrong").await.unwrap_err();
    let said = format!("{failed:?} {failed}");
    assert!(
        said.contains("password authentication failed") && !said.contains("wrong"),
        "{said}"
    );
    // Of a table that may not be read it is not known before rows are wanted.
    world.sql(
        "shop",
        "CREATE TABLE zz_other (n int); REVOKE ALL ON zz_other FROM theirs",
    );
    let failed = world.dump(PASSWORD).await.unwrap_err().to_string();
    assert!(failed.contains("zz_other"), "{failed}");
    assert_eq!(world.series.load().await.unwrap().snapshots, []);
    world.sql("shop", "DROP TABLE zz_other");
    world.dump(PASSWORD).await.unwrap();
}

#[tokio::test]
async fn a_damaged_dump_is_not_proven() {
    let world = World::new().await;
    world.dump(PASSWORD).await.unwrap();
    let pack = world.packs()[0].clone();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let failed = world.drill("SELECT 1", "1").await.unwrap_err();
    assert!(
        failed.is_damage() && failed.to_string().contains("packs/000001"),
        "{failed}"
    );
}

#[tokio::test]
async fn what_a_dump_brings_has_no_rights_here() {
    let world = World::new().await;
    let outside = tempfile::tempdir().unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mark = outside.path().join("mark");
    // It does what it can, and is called while the dump is restored, and by a check.
    let program = format!(
        "CREATE SCHEMA apart AUTHORIZATION theirs; CREATE EXTENSION pg_stat_statements WITH SCHEMA apart; \
         CREATE FUNCTION apart.sneak() RETURNS int LANGUAGE plpgsql AS $$ \
         BEGIN COPY (SELECT 1) TO PROGRAM 'cat > {}'; RETURN 1; EXCEPTION WHEN insufficient_privilege THEN RETURN 0; END $$; \
         ALTER FUNCTION apart.sneak() OWNER TO theirs; \
         SET ROLE theirs; CREATE MATERIALIZED VIEW apart.sneaked AS SELECT apart.sneak() AS n; RESET ROLE",
        mark.display()
    );
    world.sql("shop", &program);
    assert!(!mark.exists());
    world.dump(PASSWORD).await.unwrap();
    let drilled = world.drill("SELECT apart.sneak()", "0").await.unwrap();
    assert_eq!(drilled.wrong(), Vec::<String>::new());
    assert!(!mark.exists(), "it ran as somebody who may start programs");
    // With the rights of an administrator it would have.
    world.sql("shop", "SELECT apart.sneak()");
    assert!(mark.exists());
}

/// Roles and triggers of another server, and extensions that are not installed here, make no dump a bad one.
#[tokio::test]
async fn what_cannot_be_loaded_here_is_named_and_the_rest_is_proven() {
    let world = World::new().await;
    world.sql(
        "shop",
        "CREATE ROLE \"their app\"; CREATE ROLE other; \
         ALTER TABLE items ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY mine ON items TO \"their app\", other USING (n > 0); \
         CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'made'; END $$; \
         CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION watch()",
    );
    world.dump(PASSWORD).await.unwrap();
    let roles = "SELECT count(*) FROM pg_policies WHERE roles @> '{\"their app\",other}'";
    let drilled = world.drill(roles, "1").await.unwrap();
    assert_eq!(drilled.wrong(), Vec::<String>::new());
    assert_eq!(drilled.rows, 50_000);
    let names: Vec<_> = drilled
        .checks
        .iter()
        .map(|check| check.name.as_str())
        .collect();
    assert!(
        names[0].contains("event trigger `watching`") && !names.contains(&"schema"),
        "{names:?}"
    );
    world.sql("shop", "DROP EVENT TRIGGER watching");
    world.dump(PASSWORD).await.unwrap();
    let drilled = world.drill("SELECT 1", "1").await.unwrap();
    let names: Vec<_> = drilled
        .checks
        .iter()
        .map(|check| check.name.as_str())
        .collect();
    assert_eq!(
        (drilled.wrong().len(), names.contains(&"schema")),
        (0, true)
    );
}

/// A view that waits for ever where it is restored, and not where it was made.
#[tokio::test]
async fn a_dump_that_stands_still_as_it_is_restored_is_given_up() {
    let world = World::new().await;
    world.sql(
        "shop",
        "CREATE FUNCTION still() RETURNS int LANGUAGE plpgsql AS $$ BEGIN \
         IF current_database() <> 'shop' THEN PERFORM pg_sleep(3600); END IF; RETURN 1; END $$; \
         ALTER FUNCTION still() OWNER TO theirs; \
         SET ROLE theirs; CREATE MATERIALIZED VIEW stands AS SELECT still() AS n; RESET ROLE",
    );
    world.dump(PASSWORD).await.unwrap();
    let patience = Duration::from_secs(5);
    let failed = world.drill_within(patience, "SELECT 1", "1", None).await;
    let failed = failed.unwrap_err().to_string();
    assert!(failed.contains("`pg_restore` came no further"), "{failed}");
    // What it left is no obstacle to the next.
    world.sql("shop", "DROP MATERIALIZED VIEW stands");
    world.dump(PASSWORD).await.unwrap();
    world.drill("SELECT 1", "1").await.unwrap();
}

/// A dump holds functions that open connections, and what they need for it.
#[tokio::test]
async fn a_restored_dump_reaches_no_other_server() {
    let world = World::new().await;
    let port = world.postgres.port();
    let dblink = format!(
        "SELECT dblink_exec('host=127.0.0.1 port={port} user=far password=x dbname=shop', 'DELETE FROM items WHERE n = 1')"
    );
    world.sql(
        "shop",
        "CREATE EXTENSION dblink; CREATE ROLE far LOGIN SUPERUSER PASSWORD 'x'",
    );
    assert_eq!(world.sql("shop", &dblink).trim(), "DELETE 1");
    world.dump(PASSWORD).await.unwrap();
    let mut has_run = false;
    let on_copy: OnCopy<'_> = Box::new(|copy| {
        Box::pin(async {
            let copy = copy.unwrap();
            let database = &copy.server.database;
            let refusal = copy.refusal(database).await.unwrap();
            has_run = true;
            if programs().user.is_none() {
                // Nobody but root can cut it off.
                return assert!(refusal.unwrap().contains("`dblink` reaches other servers"));
            }
            assert_eq!(refusal, None);
            let mut psql = std::process::Command::new("/usr/bin/psql");
            psql.args([
                "-XqAt",
                "-U",
                "postgres",
                "-h",
                &copy.server.host,
                "-d",
                database,
            ])
            .args(["-p", &copy.server.port.to_string(), "-c", &dblink]);
            let output = psql.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("Network is unreachable"), "{said}");
        })
    });
    let patience = Duration::from_secs(300);
    let drilled = world.drill_within(
        patience,
        "SELECT count(*) FROM items",
        "49999",
        Some(on_copy),
    );
    assert_eq!(drilled.await.unwrap().wrong(), Vec::<String>::new());
    assert!(has_run);
    assert_eq!(
        world.sql("shop", "SELECT count(*) FROM items").trim(),
        "49999"
    );
}

/// The way back without Landfast: the dump is a file in the snapshot.
#[tokio::test]
async fn a_dump_comes_back_without_landfast() {
    let world = World::new().await;
    let taken = world.dump(PASSWORD).await.unwrap();
    let to = world.folder.path().join("by-hand");
    by_hand(
        &world,
        &[
            world.series.name(),
            "tree",
            &taken.id.to_string(),
            to.to_str().unwrap(),
        ],
    );
    world.sql("postgres", "CREATE DATABASE back");
    let mut restore = std::process::Command::new(programs().folder.join("pg_restore"));
    restore
        .args([
            "--no-owner",
            "--exit-on-error",
            "--username=postgres",
            "--dbname=back",
        ])
        .arg(format!(
            "--host={}",
            world.postgres.socket_folder().display()
        ))
        .arg(format!("--port={}", world.postgres.port()))
        .arg(to.join("dump"));
    let output = restore.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(
        world
            .sql("back", "SELECT count(*), max(name) FROM items")
            .trim(),
        "50000|item 9999"
    );
}

fn by_hand(world: &World, arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/restore-by-hand.py");
    let output = std::process::Command::new("/usr/bin/python3")
        .arg(script)
        .arg(world.folder.path().join("repository"))
        .arg(world.folder.path().join("backup.key"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
