//! A database that the statements of the corpus are about, and what the release that serves does with it.

/// Beside the corpus's schema, and with its rows: `@ROWS@` in `items`, the others smaller.
pub(crate) const BASE: &str = "
    CREATE ROLE app LOGIN;
    CREATE ROLE reader LOGIN;
    GRANT SELECT ON items, guarded TO app, reader;
    ALTER TABLE guarded OWNER TO app;
    CREATE SCHEMA old;
    CREATE TABLE old.things (id int);
    CREATE SEQUENCE s;
    CREATE TABLE coins (value posint);
    CREATE TABLE elsewhere (a int NOT NULL DEFAULT 1);
    CREATE EXTENSION pgcrypto;
    CREATE EXTENSION btree_gist;
    CREATE FUNCTION f(int, text) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE PROCEDURE p() LANGUAGE sql AS 'INSERT INTO shops (id) VALUES (777)';
    ALTER TABLE items ADD COLUMN unknown_one int;
    INSERT INTO shops SELECT n, 'shop ' || n FROM generate_series(1, 100) n;
    INSERT INTO items (id, shop_id, name, note, price, amount, made, seen, unknown_one)
        SELECT n, n % 100 + 1, 'n' || n, 'note ' || n, n % 500 / 100.0, n,
               timestamp '2026-01-01' + n * interval '1 second', timestamptz '2026-01-01 00:00+00' + n * interval '1 second', n
        FROM generate_series(1, @ROWS@) n;
    INSERT INTO parts SELECT n, '2026-02-01' FROM generate_series(1, 1000) n;
    INSERT INTO coins SELECT n FROM generate_series(1, 1000) n;
    INSERT INTO quick SELECT n, 'note' FROM generate_series(1, 1000) n;
    INSERT INTO guarded SELECT n FROM generate_series(1, 1000) n;
    REFRESH MATERIALIZED VIEW totals;
    ANALYZE";

/// What the release that still serves does, and what it counts on, in its own words.
pub(crate) const OLD_RELEASE: &[&str] = &[
    "EXECUTE every_column",
    "SELECT id, shop_id, name, note, price, amount, made, seen FROM items WHERE id = 11",
    "INSERT INTO items (id, shop_id, name, note, price, amount, made, seen)
     VALUES (1000001, 1, 'new', NULL, 0.5, 5, '2030-01-01', '2030-01-01') RETURNING note, label",
    "INSERT INTO items (id, name) VALUES (1000002, 'short') RETURNING note, label",
    "UPDATE items SET note = NULL WHERE id = 12 RETURNING note",
    // Refused before: nobody has to look out for nulls.
    "INSERT INTO items (id, label) VALUES (1000003, NULL)",
    "INSERT INTO elsewhere VALUES (DEFAULT) RETURNING a",
    "INSERT INTO elsewhere VALUES (NULL)",
    "SELECT count(*), min(name) FROM shops",
    "SELECT count(*), max(id) FROM cheap",
    "SELECT * FROM totals",
    "SELECT count(*) FROM parts",
    "SELECT count(*) FROM old.things",
    "CREATE TABLE old.mine (id int)",
    "SELECT f(), f(1, 'x')",
    "SELECT nextval('s') > 0",
    "SELECT 'good'::mood, enum_range(NULL::mood)",
    "SELECT 1::posint",
    "SELECT length(digest('x', 'sha256'))",
    "CALL p(); SELECT count(*) FROM shops WHERE id = 777",
    "SET LOCAL ROLE app; SELECT count(*) FROM items; SELECT count(*) FROM guarded; RESET ROLE",
    "SET LOCAL ROLE reader; SELECT count(*) FROM guarded; RESET ROLE",
];

/// Fits the world to a statement that would be refused in it for another reason than its rule's.
pub(crate) fn made_ready(sql: &str) -> &'static str {
    if sql.contains("EXECUTE FUNCTION g") {
        "CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
    } else if sql.contains("COLUMN price TYPE") {
        "DROP VIEW cheap"
    } else if sql == "DROP SCHEMA old" {
        "DROP TABLE old.things"
    } else if sql == "DROP DOMAIN posint" {
        "DROP TABLE coins"
    } else if sql.contains("IDENTITY PRIMARY KEY") {
        "ALTER TABLE items DROP CONSTRAINT items_pkey"
    } else if sql.contains("CONCURRENTLY IF NOT EXISTS") {
        // What an earlier try left half built.
        "CREATE INDEX i1 ON items (amount); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i1'::regclass"
    } else {
        ""
    }
}

/// Locks of a session on what was there before, held or waited for.
pub(crate) const LOCKS: &str = "
    SELECT c.oid::text, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE l.pid = $1 AND l.locktype = 'relation' AND left(n.nspname, 3) <> 'pg_'
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Each table and index with the file its rows lie in, how many there are, and how many this transaction has read one after the other.
pub(crate) const RELATIONS: &str = "
    SELECT c.oid::text, c.oid::regclass::text, coalesce(pg_relation_filenode(c.oid), 0)::text,
           c.reltuples::bigint, coalesce(pg_stat_get_xact_tuples_returned(c.oid), 0)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE left(n.nspname, 3) <> 'pg_' AND n.nspname <> 'information_schema'";
