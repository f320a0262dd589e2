//! How a server is run: its configuration, tuned from the memory it is given, and its arguments.
//!
//! Where the figures come from. PostgreSQL: a quarter of the memory for its own buffers and three quarters assumed to be
//! cached in all (its manual, 20.4 and 20.7), a connection for every 5 MiB (two releases hold theirs during a rollout, and most
//! of them are idle), half of the memory shared among them for sorting.
//! MariaDB: half for the buffer pool, for the rest is per connection. Redis: 60 % for data, since a rewrite of its file
//! copies pages that change meanwhile.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use landfast_spec::Engine;
use landfast_types::Scope;

use crate::change::Wanted;

/// The ports stores listen on, on 127.0.0.1 or in networks of their own: below those of instances and those the kernel gives away.
pub const PORTS: RangeInclusive<u16> = 15_000..=19_999;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where the parts of a store lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Everything of the store: never cleaned.
    pub folder: PathBuf,
    /// The folder of its socket: may be emptied at any reboot.
    pub sockets: PathBuf,
}

impl Places {
    /// What the server calls its own.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What Landfast writes before each start.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("configuration")
    }

    /// What a PostgreSQL reads behind all else, if it is there: apart from the configuration, which is written anew at each start, and
    /// from the data, which are backed up.
    pub fn stopped_writes(&self) -> PathBuf {
        self.folder.join("stopped-writes.conf")
    }

    /// The socket Landfast itself connects to.
    pub fn socket(&self, engine: Engine, port: u16) -> PathBuf {
        match engine {
            // Its clients look for this name in the folder.
            Engine::Postgres => self.sockets.join(format!(".s.PGSQL.{port}")),
            Engine::Mariadb | Engine::Mysql | Engine::Redis | Engine::S3 => {
                self.sockets.join("server.sock")
            }
        }
    }
}

/// A file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    pub name: &'static str,
    pub text: String,
}

/// How a server is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// What follows the program's name.
    pub arguments: Vec<String>,
    /// Written before each start. Nothing in them is secret.
    pub configuration: Vec<Configuration>,
    /// The signal that ends it in good order and soon. A number as `kill -l` knows it.
    pub stop_signal: i32,
}

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

/// How to run the server of a store. `extensions` are libraries that are installed and may be loaded at its start.
pub fn server(wanted: &Wanted, places: &Places, port: u16, extensions: &[&str]) -> Server {
    match wanted.engine {
        Engine::Postgres => postgres(wanted, places, port, extensions),
        Engine::Mariadb | Engine::Mysql | Engine::S3 => mariadb(wanted, places, port),
        Engine::Redis => redis(wanted, places, port),
    }
}

/// The settings of a server by name: tuned, then as the manifest says.
pub(crate) fn tuned(wanted: &Wanted) -> BTreeMap<String, String> {
    let memory = wanted.memory.0;
    let tuned: Vec<(&str, String)> = match wanted.engine {
        Engine::Postgres => {
            let connections = (memory / (5 * MIB)).clamp(40, 500);
            let sorting = (memory / 2 / (connections * 2)).clamp(MIB, 64 * MIB);
            let mut tuned = vec![
                ("autovacuum_naptime", "15s".into()),
                ("checkpoint_completion_target", "0.9".into()),
                ("effective_cache_size", postgres_size(memory / 4 * 3)),
                ("log_checkpoints", "off".into()),
                ("log_line_prefix", "'%m [%p] %u@%d '".into()),
                ("log_lock_waits", "on".into()),
                (
                    "maintenance_work_mem",
                    postgres_size((memory / 16).clamp(16 * MIB, GIB)),
                ),
                ("max_connections", connections.to_string()),
                (
                    "max_wal_size",
                    postgres_size((memory * 2).clamp(256 * MIB, 16 * GIB)),
                ),
                ("random_page_cost", "1.1".into()),
                ("shared_buffers", postgres_size((memory / 4).max(16 * MIB))),
                ("track_io_timing", "on".into()),
                ("work_mem", postgres_size(sorting)),
            ];
            if wanted.version.parse().is_ok_and(|major: u32| major >= 13) {
                // Whoever has a slot and reads it no more does not fill the disk; for an archive `wal_limit` says how much.
                tuned.push(("max_slot_wal_keep_size", postgres_size(4 * GIB)));
            }
            if wanted.version.parse().is_ok_and(|major: u32| major >= 14) {
                // What an instance that was killed has asked for ends, and so do its locks.
                tuned.push(("client_connection_check_interval", "5s".into()));
            }
            tuned
        }
        Engine::Mariadb | Engine::Mysql | Engine::S3 => {
            let connections = (memory / (5 * MIB)).clamp(40, 500);
            vec![
                ("binlog_expire_logs_seconds", (7 * 24 * 3_600).to_string()),
                ("character-set-server", "utf8mb4".into()),
                ("collation-server", "utf8mb4_unicode_ci".into()),
                ("innodb_buffer_pool_size", (memory / 2).to_string()),
                ("innodb_flush_log_at_trx_commit", "1".into()),
                (
                    "innodb_log_file_size",
                    (memory / 4).clamp(32 * MIB, GIB).to_string(),
                ),
                ("local_infile", "0".into()),
                ("max_connections", connections.to_string()),
                ("sync_binlog", "1".into()),
            ]
        }
        Engine::Redis => vec![
            ("appendfsync", "everysec".into()),
            ("appendonly", "yes".into()),
            ("maxmemory", (memory / 5 * 3).to_string()),
            // What has no time to live is data: writing fails before it is thrown away.
            ("maxmemory-policy", "volatile-lru".into()),
        ],
    };
    let mut all: BTreeMap<String, String> = tuned
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    all.extend(wanted.settings.clone());
    all
}

/// Whether a setting takes effect with the next start only.
pub(crate) fn needs_restart(engine: Engine, setting: &str) -> bool {
    const POSTGRES: &[&str] = &[
        "allow_system_table_mods",
        "autovacuum_freeze_max_age",
        "autovacuum_max_workers",
        "autovacuum_multixact_freeze_max_age",
        "bonjour",
        "cluster_name",
        "commit_timestamp_buffers",
        "event_source",
        "hot_standby",
        "huge_page_size",
        "huge_pages",
        "jit_provider",
        "max_connections",
        "max_files_per_process",
        "max_locks_per_transaction",
        "max_logical_replication_workers",
        "max_pred_locks_per_transaction",
        "max_prepared_transactions",
        "max_replication_slots",
        "max_wal_senders",
        "max_worker_processes",
        "min_dynamic_shared_memory",
        "old_snapshot_threshold",
        "pg_stat_statements.max",
        "recovery_target_timeline",
        "shared_buffers",
        "shared_memory_type",
        "shared_preload_libraries",
        "superuser_reserved_connections",
        "track_activity_query_size",
        "track_commit_timestamp",
        "wal_buffers",
        "wal_decode_buffer_size",
        "wal_log_hints",
    ];
    // MariaDB tells which of its variables are read-only when they are set; these are the ones people turn.
    const MARIADB: &[&str] = &[
        "back_log",
        "character_set_server",
        "collation_server",
        "innodb_autoinc_lock_mode",
        "innodb_buffer_pool_chunk_size",
        "innodb_data_file_path",
        "innodb_flush_method",
        "innodb_page_size",
        "innodb_read_io_threads",
        "innodb_write_io_threads",
        "lower_case_table_names",
        "open_files_limit",
        "performance_schema",
        "server_id",
        "skip_name_resolve",
        "table_open_cache_instances",
        "thread_handling",
    ];
    const REDIS: &[&str] = &[
        "databases",
        "io-threads",
        "io-threads-do-reads",
        "tcp-backlog",
    ];
    match engine {
        Engine::Postgres => POSTGRES.contains(&setting),
        Engine::Mariadb | Engine::Mysql | Engine::S3 => {
            MARIADB.contains(&setting.replace('-', "_").as_str())
        }
        Engine::Redis => REDIS.contains(&setting),
    }
}

fn postgres(wanted: &Wanted, places: &Places, port: u16, extensions: &[&str]) -> Server {
    let mut settings = tuned(wanted);
    if !extensions.is_empty() {
        let libraries = settings
            .entry("shared_preload_libraries".into())
            .or_default();
        let own = libraries.trim_matches('\'').to_owned();
        let own = own.split(',').map(str::trim).filter(|one| !one.is_empty());
        let mut all: Vec<&str> = own.collect();
        for extension in extensions {
            if !all.contains(extension) {
                all.push(extension);
            }
        }
        *libraries = format!("'{}'", all.join(","));
    }
    let configuration = places.configuration();
    let fixed = [
        ("dynamic_shared_memory_type", "posix".to_owned()),
        ("hba_file", quoted(&configuration.join("pg_hba.conf"))),
        ("listen_addresses", format!("'{}'", listens_at(wanted))),
        ("log_destination", "'stderr'".to_owned()),
        ("logging_collector", "off".to_owned()),
        ("password_encryption", "'scram-sha-256'".to_owned()),
        ("port", port.to_string()),
        ("ssl", "off".to_owned()),
        ("unix_socket_directories", quoted(&places.sockets)),
        ("wal_level", "replica".to_owned()),
    ];
    let mut text = HEAD.to_owned();
    for (name, value) in &settings {
        line(&mut text, &format!("{name} = {}", postgres_value(value)));
    }
    for (name, value) in fixed {
        line(&mut text, &format!("{name} = {value}"));
    }
    let stopped = quoted(&places.stopped_writes());
    line(&mut text, &format!("include_if_exists = {stopped}"));
    // Into the network of a container comes only who uses the store.
    let from = match wanted.image {
        Some(_) => "0.0.0.0/0",
        None => "127.0.0.1/32",
    };
    let access = format!(
        "{HEAD}local all all scram-sha-256\nlocal replication all scram-sha-256\n\
         host all all {from} scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
    );
    let arguments = [
        "-D".to_owned(),
        text_of(&places.data()),
        "-c".to_owned(),
        format!(
            "config_file={}",
            configuration.join("postgresql.conf").display()
        ),
    ];
    Server {
        arguments: arguments.into(),
        configuration: vec![
            Configuration {
                name: "postgresql.conf",
                text,
            },
            Configuration {
                name: "pg_hba.conf",
                text: access,
            },
        ],
        // Fast shutdown: sessions end, nothing is lost. SIGTERM would wait for clients to leave by themselves.
        stop_signal: SIGINT,
    }
}

/// The `pg_hba.conf` of a server that lets in nobody but its administrator, over its socket.
pub fn closed_access(administrator: &str) -> String {
    format!(
        "{HEAD}local all {administrator} scram-sha-256\nlocal replication {administrator} scram-sha-256\n"
    )
}

/// The settings of a server whose app does not write. That nobody is let in either is said in the same place, so that the two are never
/// apart; [`closed_access`] is what the server reads of it.
pub fn read_only_settings(is_closed: bool) -> String {
    let settings = format!("{HEAD}default_transaction_read_only = on\n");
    match is_closed {
        true => format!("{settings}# Nobody is let in.\n"),
        false => settings,
    }
}

fn mariadb(wanted: &Wanted, places: &Places, port: u16) -> Server {
    let mut text = format!("{HEAD}[mariadbd]\n");
    for (name, value) in tuned(wanted) {
        line(&mut text, &format!("{name} = {value}"));
    }
    let socket = places.socket(Engine::Mariadb, port);
    for (name, value) in [
        ("basedir", "/usr".to_owned()),
        ("bind-address", listens_at(wanted).to_owned()),
        ("binlog_format", "ROW".to_owned()),
        ("datadir", text_of(&places.data())),
        ("log-bin", text_of(&places.data().join("binlog"))),
        // Else nobody but its administrator makes a trigger or function. The log holds rows, so what they do is in it.
        ("log_bin_trust_function_creators", "1".to_owned()),
        ("pid-file", text_of(&places.data().join("server.pid"))),
        ("port", port.to_string()),
        ("server_id", "1".to_owned()),
        ("skip-name-resolve", "1".to_owned()),
        ("socket", text_of(&socket)),
    ] {
        line(&mut text, &format!("{name} = {value}"));
    }
    let file = places.configuration().join("server.cnf");
    Server {
        // It must be the first.
        arguments: vec![format!("--defaults-file={}", file.display())],
        configuration: vec![Configuration {
            name: "server.cnf",
            text,
        }],
        stop_signal: SIGTERM,
    }
}

fn redis(wanted: &Wanted, places: &Places, port: u16) -> Server {
    let mut text = HEAD.to_owned();
    for (name, value) in tuned(wanted) {
        line(&mut text, &format!("{name} {}", redis_value(&value)));
    }
    let configuration = places.configuration();
    for (name, value) in [
        // Hashes of passwords; the driver writes it.
        ("aclfile", text_of(&configuration.join("users.acl"))),
        ("bind", listens_at(wanted).to_owned()),
        ("daemonize", "no".to_owned()),
        ("dir", text_of(&places.data())),
        ("logfile", String::new()),
        ("port", port.to_string()),
        ("protected-mode", "yes".to_owned()),
        ("unixsocket", text_of(&places.socket(Engine::Redis, port))),
        ("unixsocketperm", "777".to_owned()),
    ] {
        line(&mut text, &format!("{name} {}", redis_value(&value)));
    }
    Server {
        arguments: vec![text_of(&configuration.join("redis.conf"))],
        configuration: vec![Configuration {
            name: "redis.conf",
            text,
        }],
        stop_signal: SIGTERM,
    }
}

/// A container listens in its own networks, and is published nowhere.
fn listens_at(wanted: &Wanted) -> &'static str {
    match wanted.image {
        Some(_) => "0.0.0.0",
        None => "127.0.0.1",
    }
}

const HEAD: &str =
    "# Written by Landfast before each start. Change `settings` of the store in landfast.toml.\n";

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a string cannot fail");
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn quoted(path: &Path) -> String {
    format!("'{}'", text_of(path).replace('\'', "''"))
}

/// As its configuration takes it: numbers, words and what is in quotes already as they are.
fn postgres_value(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let in_quotes = value.len() >= 2 && value.starts_with('\'') && value.ends_with('\'');
    if in_quotes || (!value.is_empty() && value.chars().all(is_plain)) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

fn redis_value(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '#');
    // `save 900 1` has several words.
    let is_words = !value.is_empty() && value.chars().all(|c| is_plain(c) || c == ' ');
    if is_words {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

fn postgres_size(bytes: u64) -> String {
    format!("{}kB", bytes / KIB)
}

/// The first port to try for a store, so that it mostly stays the same when the journal is lost.
pub fn port_from(scope: &Scope, name: &str) -> u16 {
    let text = format!("{scope}/{name}");
    // FNV-1a.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let count = u64::from(*PORTS.end() - *PORTS.start()) + 1;
    let offset = u16::try_from(hash % count).expect("there are fewer ports than a u16 counts");
    PORTS.start() + offset
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use landfast_types::Bytes;

    use super::*;

    fn wanted(engine: Engine, memory: u64, settings: &[(&str, &str)]) -> Wanted {
        Wanted {
            engine,
            version: engine.tested_version().unwrap_or_default().to_owned(),
            memory: Bytes(memory),
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            image: None,
        }
    }

    #[test]
    fn a_container_listens_in_its_networks_and_asks_everybody_for_a_password() {
        for engine in [Engine::Postgres, Engine::Mariadb, Engine::Redis] {
            let image = crate::StoreImage {
                reference: "store:1".parse().unwrap(),
                pinned: None,
                id: None,
            };
            let wanted = Wanted {
                image: Some(image),
                ..wanted(engine, GIB, &[])
            };
            let shown = shown(&wanted, &[]);
            assert!(shown.contains("0.0.0.0"), "{shown}");
            assert!(!shown.contains("trust\n"), "{shown}");
        }
    }

    fn shown(wanted: &Wanted, extensions: &[&str]) -> String {
        let places = Places {
            folder: "/state/stores/shop/production/main".into(),
            sockets: "/run/landfast/s/1".into(),
        };
        let server = server(wanted, &places, 15_432, extensions);
        let mut text = format!("{:?} {}\n", server.arguments, server.stop_signal);
        for file in server.configuration {
            text.push_str(&format!("-- {}\n{}", file.name, file.text));
        }
        text
    }

    #[test]
    fn postgres_gets_a_quarter_and_what_the_manifest_says_wins() {
        let settings = [
            ("work_mem", "64MB"),
            ("search_path", "a b"),
            ("max_connections", "7"),
        ];
        let wanted = wanted(Engine::Postgres, GIB, &settings);
        assert_snapshot!(shown(&wanted, &["pg_stat_statements"]));
    }

    #[test]
    fn mariadb_gets_half() {
        assert_snapshot!(shown(&wanted(Engine::Mariadb, GIB, &[]), &[]));
    }

    #[test]
    fn redis_leaves_room_for_its_rewrite() {
        let settings = [("save", "900 1"), ("notify-keyspace-events", "")];
        assert_snapshot!(shown(&wanted(Engine::Redis, GIB, &settings), &[]));
    }

    #[test]
    fn what_is_tuned_fits_into_the_memory_it_was_given() {
        for memory in [64 * MIB, 256 * MIB, GIB, 64 * GIB] {
            let settings = tuned(&wanted(Engine::Postgres, memory, &[]));
            let size = |name: &str| {
                settings[name]
                    .trim_end_matches("kB")
                    .parse::<u64>()
                    .unwrap()
                    * KIB
            };
            assert!(size("shared_buffers") <= memory / 4, "{memory}");
            let connections = settings["max_connections"].parse::<u64>().unwrap();
            assert!(size("work_mem") * connections <= memory / 2 || size("work_mem") == MIB);
            let settings = tuned(&wanted(Engine::Redis, memory, &[]));
            assert!(settings["maxmemory"].parse::<u64>().unwrap() < memory);
        }
    }

    #[test]
    fn ports_are_spread_over_their_range() {
        let scope = |app: &str| Scope {
            app: app.parse().unwrap(),
            environment: "production".parse().unwrap(),
        };
        let ports: Vec<u16> = ["a", "b", "c", "d"]
            .map(|app| port_from(&scope(app), "main"))
            .into();
        assert!(ports.iter().all(|port| PORTS.contains(port)));
        assert!(ports.windows(2).all(|pair| pair[0] != pair[1]), "{ports:?}");
    }
}
