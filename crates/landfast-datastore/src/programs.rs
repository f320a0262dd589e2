//! Which programs run a store, where distributions put them, and which package brings them.

use landfast_spec::Engine;

/// One program and the places it is looked for, in order. A bare name is looked up in PATH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub places: Vec<String>,
}

/// The programs of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pub server: Program,
    /// Makes the data folder; Redis needs none.
    pub maker: Option<Program>,
    /// The package of Debian and its relatives.
    pub package: String,
    /// The service the package starts by itself, which is not needed.
    pub service: &'static str,
}

/// The programs for an engine's major version.
pub fn programs(engine: Engine, version: &str) -> Programs {
    let program = |name: &'static str, folders: &[String]| {
        let in_folders = folders.iter().map(|folder| format!("{folder}/{name}"));
        let places = in_folders.chain([name.to_owned()]).collect();
        Program { name, places }
    };
    let system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"].map(str::to_owned);
    match engine {
        Engine::Postgres => {
            let folders = [
                format!("/usr/lib/postgresql/{version}/bin"),
                format!("/usr/pgsql-{version}/bin"),
                format!("/usr/lib/postgresql{version}/bin"),
            ];
            Programs {
                server: program("postgres", &folders),
                maker: Some(program("initdb", &folders)),
                package: format!("postgresql-{version}"),
                service: "postgresql",
            }
        }
        Engine::Mariadb | Engine::Mysql | Engine::S3 => Programs {
            server: program("mariadbd", &system),
            maker: Some(program("mariadb-install-db", &system)),
            package: "mariadb-server".to_owned(),
            service: "mariadb",
        },
        Engine::Redis => Programs {
            server: program("redis-server", &system),
            maker: None,
            package: "redis-server".to_owned(),
            service: "redis-server",
        },
    }
}

/// The version in what a server prints for `--version`: `postgres (PostgreSQL) 15.8 (Debian …)`,
/// `mariadbd  Ver 10.11.6-MariaDB-…`, `Redis server v=7.0.15 sha=…`.
pub fn parse_version(engine: Engine, output: &str) -> Option<String> {
    let behind = match engine {
        Engine::Postgres => "(PostgreSQL) ",
        Engine::Mariadb | Engine::Mysql | Engine::S3 => "Ver ",
        Engine::Redis => "v=",
    };
    let (_, rest) = output.split_once(behind)?;
    let version: String = rest
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let version = version.trim_end_matches('.').to_owned();
    (!version.is_empty()).then_some(version)
}

/// Whether an installed version is of the major version that is wanted: `15.8` is of `15`, `10.11.6` of `10.11`.
pub fn version_fits(installed: &str, wanted: &str) -> bool {
    let rest = installed.strip_prefix(wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_servers_print() {
        for (engine, output, version) in [
            (
                Engine::Postgres,
                "postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)",
                "15.8",
            ),
            (
                Engine::Mariadb,
                "mariadbd  Ver 10.11.6-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64",
                "10.11.6",
            ),
            (
                Engine::Redis,
                "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc",
                "7.0.15",
            ),
        ] {
            assert_eq!(parse_version(engine, output).as_deref(), Some(version));
        }
        assert_eq!(parse_version(Engine::Redis, "not found"), None);
    }

    #[test]
    fn a_major_version_is_a_whole_part() {
        assert!(version_fits("15.8", "15"));
        assert!(version_fits("10.11.6", "10.11"));
        assert!(!version_fits("10.1", "10.11"));
        assert!(!version_fits("150.1", "15"));
    }

    #[test]
    fn names_the_package_that_is_missing() {
        let programs = programs(Engine::Postgres, "15");
        assert_eq!(programs.package, "postgresql-15");
        assert_eq!(
            programs.server.places[0],
            "/usr/lib/postgresql/15/bin/postgres"
        );
        assert_eq!(
            programs.server.places.last().map(String::as_str),
            Some("postgres")
        );
    }
}
