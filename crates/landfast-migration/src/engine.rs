//! The two kinds of SQL that migrations are written in.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The engine a migration is for. It decides how text is split, what is atomic and which lints apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// PostgreSQL: schema changes are transactional.
    Postgres,
    /// MariaDB, and MySQL where it is alike: each schema change commits by itself.
    #[serde(alias = "mysql")]
    Mariadb,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
        })
    }
}

impl std::str::FromStr for Engine {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "postgres" | "postgresql" => Ok(Self::Postgres),
            "mariadb" | "mysql" => Ok(Self::Mariadb),
            other => Err(format!("`{other}` is neither `postgres` nor `mariadb`")),
        }
    }
}
