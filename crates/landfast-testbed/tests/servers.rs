//! Each server comes up, keeps what it was told through a crash, and is gone when dropped.

use landfast_testbed::{Mariadb, PgBouncer, Postgres, Redis, S3};

#[test]
fn postgres_comes_up_survives_a_crash_and_leaves_nothing() {
    let mut postgres = Postgres::start().unwrap();
    postgres
        .sql(
            "postgres",
            "CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)",
        )
        .unwrap();
    let bouncer = PgBouncer::start(&postgres, "transaction").unwrap();
    assert!(bouncer.url("postgres").starts_with("postgres://"));
    postgres.kill();
    assert!(postgres.sql("postgres", "SELECT 1").is_err());
    postgres.boot().unwrap();
    assert_eq!(postgres.sql("postgres", "SELECT n FROM kept").unwrap(), "7");
    let folder = postgres.socket_folder().to_owned();
    drop(postgres);
    assert!(!folder.exists());
}

#[test]
fn mariadb_comes_up_survives_a_crash_and_leaves_nothing() {
    let mut mariadb = Mariadb::start().unwrap();
    mariadb
        .sql(
            "app",
            "CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)",
        )
        .unwrap();
    mariadb.stop();
    assert!(mariadb.sql("app", "SELECT 1").is_err());
    mariadb.boot().unwrap();
    assert_eq!(mariadb.sql("app", "SELECT n FROM kept").unwrap(), "7");
    let folder = mariadb.data_folder();
    drop(mariadb);
    assert!(!folder.exists());
}

#[test]
fn redis_comes_up_and_leaves_nothing() {
    let mut redis = Redis::start().unwrap();
    redis.command(&["SET", "kept", "7"]).unwrap();
    redis.stop();
    assert!(redis.command(&["GET", "kept"]).is_err());
    redis.boot().unwrap();
    assert_eq!(redis.command(&["GET", "kept"]).unwrap(), "7");
    let socket = redis.socket();
    drop(redis);
    assert!(!socket.exists());
}

#[test]
fn s3_comes_up_and_makes_a_bucket() {
    let mut s3 = S3::start().unwrap();
    s3.make_bucket("kept").unwrap();
    s3.kill();
    assert!(s3.make_bucket("other").is_err());
    s3.boot().unwrap();
    s3.make_bucket("other").unwrap();
}
