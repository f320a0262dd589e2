//! Variables of a service: values, secrets, and what a store gives by itself.

use landfast_spec::{Engine, is_reserved_variable};

use crate::{
    compose::{Converter, Role, is_host, is_unset, pairs, service::is_variable},
    draft::{Table, Toml},
    interpolate::{Dotenv, dotenv},
    is_credential,
    ledger::At,
    looks_secret, names_a_secret,
};

/// What the variables of a service say.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// `[services.NAME.env]`.
    pub(super) table: Table,
    /// `PORT`.
    pub(super) port: Option<u16>,
    /// Hosts in `VIRTUAL_HOST`.
    pub(super) hosts: Vec<String>,
    /// Stores it speaks of, by their names in the manifest.
    pub(super) uses: Vec<String>,
}

impl Converter<'_> {
    pub(super) fn environment(&mut self, service: &str, at: &At<'_>) -> Environment {
        let mut environment = Environment::default();
        self.env_files(at, &mut environment);
        for (name, value, at) in at.get("environment").iter().flat_map(pairs) {
            let value = value.filter(|value| !is_unset(at.node, Some(value)));
            self.variable(service, &name, value, &at, &mut environment);
        }
        environment
    }

    fn env_files(&mut self, at: &At<'_>, environment: &mut Environment) {
        let Some(files) = at.get("env_file") else {
            return;
        };
        let items = if files.items().next().is_some() {
            files.items().collect()
        } else {
            vec![files]
        };
        for item in items {
            let path_at = item.get("path").unwrap_or_else(|| item.clone());
            let Some(path) = path_at.text() else {
                self.ledger.wrong(&item, "the path of a file");
                continue;
            };
            for (key, value) in item.fields() {
                match key {
                    "path" => {}
                    "required" => self.ledger.replaced(&value, "the file is read once, now"),
                    _ => self.ledger.not_carried(
                        &value,
                        "the file is read as `NAME=value` lines",
                        "check what was written to `env`",
                    ),
                }
            }
            let Some(text) = (self.read)(&path) else {
                let instead = format!(
                    "write its variables to `env`, its secrets by `landfast secret import < {path}`"
                );
                self.ledger
                    .not_carried(&path_at, format!("`{path}` cannot be read here"), instead);
                continue;
            };
            let Dotenv {
                values,
                broken,
                secrets,
            } = dotenv(&text, self.variables);
            for (name, value) in values {
                let mut node = path_at.node.clone();
                node.secret = secrets.get(&name).cloned();
                let mut at = At {
                    node: &node,
                    ..path_at.clone()
                };
                at.path = format!("{}:{name}", path_at.path);
                let value = value.or_else(|| self.variables.get(&name).cloned());
                self.variable(&path, &name, value, &at, environment);
            }
            for line in broken {
                self.decide(format!("{path}:{line} is no `NAME=value` and was left out"));
            }
            self.ledger.carried(&path_at, "env");
        }
    }

    fn variable(
        &mut self,
        found: &str,
        name: &str,
        value: Option<String>,
        at: &At<'_>,
        environment: &mut Environment,
    ) {
        let to = format!("env.{name}");
        if !is_variable(name) {
            let better = name
                .replace(|c: char| !c.is_ascii_alphanumeric(), "_")
                .to_uppercase();
            self.ledger.not_carried(
                at,
                "a variable's name has letters, digits and `_`",
                format!("most programs read `{better}` too"),
            );
            return;
        }
        if name == "PORT" {
            environment.port = value.as_deref().and_then(|value| value.trim().parse().ok());
            match environment.port {
                Some(_) => self.ledger.carried(at, "port"),
                None => self
                    .ledger
                    .not_carried(at, "it is no port", "write `port` by hand"),
            }
            return;
        }
        if matches!(
            name,
            "VIRTUAL_HOST"
                | "LETSENCRYPT_HOST"
                | "VIRTUAL_PORT"
                | "VIRTUAL_PATH"
                | "LETSENCRYPT_EMAIL"
        ) {
            if name == "VIRTUAL_HOST" {
                let hosts = value.iter().flat_map(|value| value.split(','));
                let hosts = hosts.map(|host| host.trim().to_lowercase());
                let hosts = hosts.filter(|host| is_host(host)).collect::<Vec<_>>();
                match hosts.is_empty() {
                    true => self.ledger.not_carried(
                        at,
                        "it names no host",
                        "write a route by hand: host, service",
                    ),
                    false => self.ledger.carried(at, "a route"),
                }
                environment.hosts.extend(hosts);
            } else {
                self.ledger.replaced(
                    at,
                    "Landfast's proxy, which finds instances and obtains certificates by itself",
                );
            }
            return;
        }
        if is_reserved_variable(name) {
            self.ledger.not_carried(
                at,
                format!("`{name}` is set by Landfast for each instance"),
                "rename it",
            );
            return;
        }
        let Some(value) = value else {
            let required = Toml::Inline(vec![("required".to_owned(), Toml::Flag(true))]);
            environment
                .table
                .set(name, required)
                .comment("the file takes it from the shell");
            self.draft.need_secret(name, found, None);
            self.ledger.carried(at, to);
            return;
        };
        if value.contains('\0') {
            self.ledger
                .not_carried(at, "its value holds a NUL character", "remove it");
            return;
        }
        if let Some(secret) = value
            .strip_prefix("/run/secrets/")
            .filter(|rest| !rest.is_empty())
        {
            let secret = self.secret_name(secret);
            if name == format!("{secret}_FILE") {
                self.ledger
                    .carried(at, format!("Landfast sets it for the secret {secret}"));
            } else {
                environment
                    .table
                    .set_text(name, format!("/run/secrets/{secret}"));
                self.ledger.carried(at, to);
            }
            return;
        }
        let stores = self.stores_in(&value);
        if let Some((store, engine)) = stores.first().cloned() {
            for (store, _) in &stores {
                if !environment.uses.contains(store) {
                    environment.uses.push(store.clone());
                }
            }
            self.of_a_store(name, &value, &store, engine, at);
            return;
        }
        let by_name = names_a_secret(name) && !name.ends_with("_FILE");
        let is_secret = (by_name && looks_secret(name, &value)) || is_credential(&value);
        if !value.is_empty() && (is_secret || at.node.secret.is_some()) {
            let required = Toml::Inline(vec![("required".to_owned(), Toml::Flag(true))]);
            environment
                .table
                .set(name, required)
                .comment("a secret: its value is not written here");
            self.draft.need_secret(name, found, None);
            self.ledger
                .carried(at, format!("the secret {name}; its value was not written"));
            return;
        }
        environment.table.set_text(name, value);
        self.ledger.carried(at, to);
    }

    /// A variable that holds the address of what is a store now.
    fn of_a_store(&mut self, name: &str, value: &str, store: &str, engine: Engine, at: &At<'_>) {
        let prefix = store.to_uppercase().replace('-', "_");
        let own = format!("{prefix}_URL");
        let customary = match engine {
            Engine::Redis => "REDIS_URL",
            Engine::Postgres | Engine::Mariadb | Engine::Mysql | Engine::S3 => "DATABASE_URL",
        };
        if value.contains("://") && (name == own || name == customary) {
            self.ledger
                .carried(at, format!("`uses`: the store `{store}` gives it"));
            return;
        }
        let what = if value.contains("://") {
            "an address"
        } else {
            "the host"
        };
        self.ledger.not_carried(
            at,
            format!("it is {what} of what is the store `{store}` now, which has a login of its own"),
            format!("read `{own}` (or `{customary}`) in the app, or take the table of the store away and name one of your own in `external`"),
        );
    }

    /// The stores whose hosts a value names.
    fn stores_in(&self, value: &str) -> Vec<(String, Engine)> {
        let stores = self.roles.iter().filter_map(|(name, role)| match role {
            Role::Store(engine) if names_host(value, name) => {
                Some((self.names.get(name)?.clone(), *engine))
            }
            Role::Store(_) | Role::Service | Role::Job | Role::Proxy | Role::Inactive => None,
        });
        stores.collect()
    }
}

/// Whether a value is a host, or an address with this host.
fn names_host(value: &str, host: &str) -> bool {
    if value == host {
        return true;
    }
    let is_end = |rest: &str| {
        let next = rest.chars().next();
        next.is_none_or(|c| matches!(c, ':' | '/' | ',' | '?' | ' ' | ';'))
    };
    let mut from = 0;
    while let Some(index) = value[from..].find(host) {
        let start = from + index;
        let (before, after) = (&value[..start], &value[start + host.len()..]);
        let begins = before.ends_with("//")
            || before.ends_with('@')
            || before.ends_with("host=")
            || before.ends_with("Server=")
            || before.ends_with("Host=");
        if is_end(after) && (begins || (before.is_empty() && after.starts_with(':'))) {
            return true;
        }
        from = start + host.len().max(1);
        while !value.is_char_boundary(from) {
            from += 1;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hosts_and_nothing_like_them() {
        for value in [
            "db",
            "db:5432",
            "postgres://a:b@db:5432/x",
            "postgres://db/x",
            "redis://db",
            "host=db port=1",
            "jdbc:postgresql://db:5432/x",
        ] {
            assert!(names_host(value, "db"), "{value}");
        }
        for value in [
            "",
            "dbx",
            "mydb",
            "postgres://db.example.com/x",
            "the db is here",
            "x-db:1",
            "/db",
        ] {
            assert!(!names_host(value, "db"), "{value}");
        }
    }
}
