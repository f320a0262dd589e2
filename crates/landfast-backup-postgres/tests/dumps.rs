//! Dumps of a database that is somebody else's, and what a drill of them shows.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use landfast_backup_files::{Content, Series, Snapshot};
use landfast_backup_postgres::{
    BackupError, DumpDrill, DumpDrillRequest, DumpRequest, DumpSource, Programs, SqlCheck,
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
        let keys = Arc::new(Keyring::new(Key::generate().unwrap()));
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
        };
        let loaded = self.series.load().await.unwrap();
        drill_dump(&request, &loaded, None, |_| {}, None).await
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
    assert_eq!(drilled.wrong(), ["items: it gave `9` instead of `10`"]);
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
