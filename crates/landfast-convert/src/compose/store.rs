//! Official images of databases become stores.

use landfast_spec::{Engine, is_kept_setting};

use crate::{
    compose::{Converter, image_name, image_tag, pairs, volumes},
    draft::{Table, Toml},
    ledger::At,
    units::{bytes, exact_bytes, words},
    yaml::Value,
};

/// What a store takes at the least.
const MEMORY_MIN: u64 = 64 << 20;
const MARIADB_MEMORY_MIN: u64 = 192 << 20;

/// The engine of an official image; MySQL is not run by Landfast.
pub(super) fn engine(image: &str) -> Option<Engine> {
    let name = image_name(image);
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    match name.strip_prefix("library/").unwrap_or(name) {
        "postgres" => Some(Engine::Postgres),
        "mariadb" => Some(Engine::Mariadb),
        "redis" => Some(Engine::Redis),
        _ => None,
    }
}

/// `16.2-alpine` of PostgreSQL is 16; the others keep two numbers.
pub(super) fn version(engine: Engine, image: &str) -> Option<String> {
    let tag = image_tag(image)?;
    let number = tag.split('-').next().unwrap_or(tag);
    let parts = number
        .split('.')
        .map(|part| part.parse::<u32>().ok())
        .collect::<Option<Vec<_>>>()?;
    let keep = if engine == Engine::Postgres { 1 } else { 2 };
    let parts = parts
        .iter()
        .take(keep)
        .map(u32::to_string)
        .collect::<Vec<_>>();
    Some(parts.join("."))
}

impl Converter<'_> {
    pub(super) fn store(&mut self, name: &str, at: &At<'_>, engine: Engine) -> Table {
        let own = self.names.get(name).cloned().unwrap_or_default();
        let mut table = Table::default();
        let label = engine.label();
        table.comment(format!(
            "`{name}` of line {}, kept by Landfast: data, login, backups and migrations.",
            at.place.line
        ));
        table.set_text("engine", engine.word());
        let image = at.get("image").and_then(|at| at.text()).unwrap_or_default();
        match version(engine, &image) {
            Some(version) => {
                let is_tested = engine.tested_version().is_some_and(|tested| {
                    tested == version || tested.starts_with(&format!("{version}."))
                });
                let line = table.set_text("version", &version);
                if !is_tested {
                    line.comment(format!(
                        "its programs of this version must be on the server; tested with {}",
                        engine.tested_version().unwrap_or("none")
                    ));
                }
            }
            None => table.hint(format!(
                "version = \"{}\"   # the image names none",
                engine.tested_version().unwrap_or("15")
            )),
        }
        let prefix = own.to_uppercase().replace('-', "_");
        self.decide(format!("`{name}` is the {label} store `{own}`: services that use it get `{prefix}_URL`. Its data is not moved: dump it there and restore it here"));
        table.hint("backup = { to = \"/backup\" }   # see docs/backups.md");
        for (key, value) in at.fields() {
            match key {
                "image" => self.ledger.carried(&value, format!("stores.{own}")),
                "environment" => self.store_environment(&value),
                "env_file" => self.ledger.replaced(&value, "Landfast makes the database and its login"),
                "command" => self.store_command(engine, &value, &mut table),
                "volumes" => {
                    for item in value.items() {
                        self.store_volume(&item);
                    }
                }
                "ports" | "expose" => self.ledger.not_carried(&value, "a store is reached by the services that use it alone", format!("`landfast store psql {own}` and its like, over the server")),
                "mem_limit" => self.store_memory(engine, &value, &mut table),
                "deploy" => self.store_deploy(engine, &value, &mut table),
                "healthcheck" => self.ledger.replaced(&value, "Landfast asks the store itself"),
                "restart" | "init" | "networks" | "stop_grace_period" | "stop_signal" | "logging" | "tmpfs" | "read_only" | "cap_drop" | "cap_add" | "security_opt" | "user" | "shm_size" | "container_name" | "hostname" | "attach" => {
                    self.ledger.replaced(&value, "Landfast keeps the store");
                }
                "secrets" => self.ledger.replaced(&value, "Landfast makes the login, and changes its password by itself"),
                "profiles" => self.ledger.carried_whole(&value, "the profile was asked for"),
                "extends" => self.ledger.carried_whole(&value, "its keys are here"),
                _ if key.starts_with("x-") => self.ledger.replaced(&value, "an extension says nothing by itself"),
                _ => self.ledger.not_carried(&value, "a store of Landfast has no such key", "look at `[stores.*]` in docs/reference/manifest.md, or keep it as a service of another image name"),
            }
        }
        table
    }

    fn store_environment(&mut self, at: &At<'_>) {
        const KNOWN: &[&str] = &[
            "POSTGRES_USER",
            "POSTGRES_PASSWORD",
            "POSTGRES_DB",
            "POSTGRES_HOST_AUTH_METHOD",
            "PGDATA",
            "MARIADB_ROOT_PASSWORD",
            "MARIADB_USER",
            "MARIADB_PASSWORD",
            "MARIADB_DATABASE",
            "MARIADB_RANDOM_ROOT_PASSWORD",
            "MARIADB_ALLOW_EMPTY_ROOT_PASSWORD",
            "MARIADB_AUTO_UPGRADE",
            "MYSQL_ROOT_PASSWORD",
            "MYSQL_USER",
            "MYSQL_PASSWORD",
            "MYSQL_DATABASE",
            "MYSQL_RANDOM_ROOT_PASSWORD",
            "MYSQL_ALLOW_EMPTY_PASSWORD",
            "REDIS_PASSWORD",
            "ALLOW_EMPTY_PASSWORD",
            "TZ",
            "PGUSER",
            "PGPASSWORD",
            "LANG",
        ];
        for (name, _, item) in pairs(at) {
            let base = name.strip_suffix("_FILE").unwrap_or(&name);
            if KNOWN.contains(&base) {
                self.ledger.replaced(
                    &item,
                    "Landfast makes the database and its login, and gives services the address",
                );
            } else {
                self.ledger.not_carried(
                    &item,
                    "a store has no variables",
                    "`settings` in its table",
                );
            }
        }
    }

    fn store_command(&mut self, engine: Engine, at: &At<'_>, table: &mut Table) {
        let argv = match &at.node.value {
            Value::Text(line) => words(line),
            Value::List(_) => at.items().map(|item| item.text()).collect(),
            Value::Null | Value::Flag(_) | Value::Integer(_) | Value::Float(_) | Value::Map(_) => {
                None
            }
        };
        let settings = argv.as_deref().and_then(|argv| settings(engine, argv));
        let Some(settings) = settings else {
            self.ledger.not_carried(
                at,
                "only settings can be read from it",
                "write them in `settings`",
            );
            return;
        };
        let mut left = Vec::new();
        for (key, value) in settings {
            let memory = (key == "maxmemory").then(|| bytes(&value)).flatten();
            if let Some(size) = memory.filter(|size| size.0 >= MEMORY_MIN) {
                table.set_text("memory", exact_bytes(size));
            } else if is_kept_setting(engine, &key) || value.contains(char::is_control) {
                left.push(key);
            } else {
                table.set_in("settings", &key, Toml::Text(value));
            }
        }
        self.ledger.carried_whole(at, "settings");
        if !left.is_empty() {
            let mut pseudo = at.clone();
            pseudo.path.push_str(":own");
            let reason = format!("{} is Landfast's own to set", left.join(", "));
            self.ledger
                .not_carried(&pseudo, reason, "nothing is to be done");
        }
    }

    fn store_volume(&mut self, item: &At<'_>) {
        let mount = volumes::read(item);
        let target = mount.map(|mount| mount.target).unwrap_or_default();
        let is_data = ["/var/lib/postgresql", "/var/lib/mysql", "/data", "/bitnami"];
        if is_data.iter().any(|place| target.starts_with(place)) {
            self.ledger.replaced(
                item,
                "Landfast keeps the data of a store; what is in it now is moved by a dump",
            );
        } else if target.starts_with("/docker-entrypoint-initdb.d") {
            self.ledger.not_carried(item, "a store begins empty", "make the files migrations: `migrations` in the table of the store, see docs/migrations.md");
        } else {
            self.ledger.not_carried(
                item,
                "a store is configured by its table",
                "`settings` in its table",
            );
        }
    }

    fn store_memory(&mut self, engine: Engine, at: &At<'_>, table: &mut Table) {
        let least = if engine == Engine::Mariadb {
            MARIADB_MEMORY_MIN
        } else {
            MEMORY_MIN
        };
        match at.text().and_then(|text| bytes(&text)) {
            Some(size) if size.0 >= least => {
                table.set_text("memory", exact_bytes(size));
                self.ledger.carried(at, "memory");
            }
            _ => self.ledger.not_carried(
                at,
                format!(
                    "it is less than such a store takes, {}",
                    landfast_types::Bytes(least)
                ),
                "the default is used",
            ),
        }
    }

    fn store_deploy(&mut self, engine: Engine, at: &At<'_>, table: &mut Table) {
        for (key, value) in at.fields() {
            if key != "resources" {
                let one = value.text().as_deref() == Some("1");
                match key {
                    "restart_policy" | "mode" | "update_config" => {
                        self.ledger.replaced(&value, "Landfast keeps the store")
                    }
                    "replicas" if one => self.ledger.replaced(&value, "Landfast keeps the store"),
                    _ => self.ledger.not_carried(
                        &value,
                        "a store is one server",
                        "nothing is to be done",
                    ),
                }
                continue;
            }
            for (group, value) in value.fields() {
                for (key, value) in value.fields() {
                    match (group, key) {
                        ("limits", "memory") => self.store_memory(engine, &value, table),
                        ("reservations", "memory") => {
                            self.ledger.replaced(&value, "`memory` of the store")
                        }
                        _ => self.ledger.not_carried(
                            &value,
                            "a store is given memory alone",
                            "`memory` in its table",
                        ),
                    }
                }
            }
        }
    }
}

/// `-c key=value` and `--key value` as settings; `None`: there is something else in it.
fn settings(engine: Engine, argv: &[String]) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut words = argv.iter().peekable();
    words.next_if(|word| {
        matches!(
            word.as_str(),
            "postgres" | "redis-server" | "mariadbd" | "mysqld"
        )
    });
    while let Some(word) = words.next() {
        let pair = if engine == Engine::Postgres {
            let text = match word.strip_prefix("-c") {
                Some("") => words.next()?.clone(),
                Some(text) => text.to_owned(),
                None => word.strip_prefix("--")?.to_owned(),
            };
            let (key, value) = text.split_once('=')?;
            (key.replace('-', "_"), value.to_owned())
        } else {
            let text = word.strip_prefix("--")?;
            match text.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => {
                    let value = words.next_if(|word| !word.starts_with("--"));
                    (
                        text.to_owned(),
                        value.cloned().unwrap_or_else(|| "1".to_owned()),
                    )
                }
            }
        };
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-".contains(c);
        if !pair.0.starts_with(|c: char| c.is_ascii_lowercase()) || !pair.0.chars().all(fits) {
            return None;
        }
        settings.push(pair);
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_official_images_alone() {
        assert_eq!(engine("postgres:16-alpine"), Some(Engine::Postgres));
        assert_eq!(engine("docker.io/library/redis"), Some(Engine::Redis));
        assert_eq!(engine("mariadb@sha256:00"), Some(Engine::Mariadb));
        for other in [
            "mysql:8",
            "bitnami/postgresql",
            "postgis/postgis",
            "localhost:5000/postgres",
            "redis/redis-stack",
            "",
        ] {
            assert_eq!(engine(other), None, "{other}");
        }
    }

    #[test]
    fn versions_are_major() {
        assert_eq!(
            version(Engine::Postgres, "postgres:16.2-alpine").as_deref(),
            Some("16")
        );
        assert_eq!(
            version(Engine::Mariadb, "mariadb:10.11.6").as_deref(),
            Some("10.11")
        );
        assert_eq!(
            version(Engine::Redis, "redis:7-alpine").as_deref(),
            Some("7")
        );
        for none in [
            "postgres",
            "postgres:latest",
            "postgres:alpine",
            "postgres:16beta1",
        ] {
            assert_eq!(version(Engine::Postgres, none), None, "{none}");
        }
    }

    #[test]
    fn commands_are_settings() {
        let read = |engine, line: &str| settings(engine, &words(line).unwrap());
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            read(
                Engine::Postgres,
                "postgres -c max_connections=200 -cshared_buffers=1GB"
            )
            .unwrap(),
            [
                pair("max_connections", "200"),
                pair("shared_buffers", "1GB")
            ]
        );
        assert_eq!(
            read(
                Engine::Redis,
                "redis-server --appendonly yes --save 60 --maxmemory=1gb"
            )
            .unwrap(),
            [
                pair("appendonly", "yes"),
                pair("save", "60"),
                pair("maxmemory", "1gb")
            ]
        );
        assert_eq!(read(Engine::Redis, "sh -c x"), None);
        assert_eq!(read(Engine::Redis, "redis-server /etc/redis.conf"), None);
    }
}
