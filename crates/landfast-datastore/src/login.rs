//! The logins of a store: one for Landfast itself, one for each release. Objects belong to an owner that nobody logs in as.

use std::fmt;

use landfast_types::{Digest, ReleaseId, Scope};

/// The longest name of a database or role that every engine takes.
pub const DATABASE_LEN_MAX: usize = 32;

/// Of the 63 bytes of an application's name; the rest is for a number.
const APPLICATION_PREFIX_LEN_MAX: usize = 43;

/// Who logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Login {
    /// Landfast: everything.
    Administrator,
    /// Instances and jobs of a release: what the owner may.
    Release(ReleaseId),
    /// The other login of a release, for a password that is being changed.
    ReleaseOther(ReleaseId),
    /// Migrations, and people who ask for a connection: what the owner may.
    Operator,
    /// The other login of those, for a password that is being changed.
    OperatorOther,
    /// Migrations that are tried on a copy of a MariaDB database: what the owner may, there and nowhere else. It goes with the copy.
    Rehearsal,
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Administrator => f.write_str("landfast"),
            Self::Release(release) => write!(f, "release_{release}"),
            Self::ReleaseOther(release) => write!(f, "release_{release}_b"),
            Self::Operator => f.write_str("operator"),
            Self::OperatorOther => f.write_str("operator_b"),
            Self::Rehearsal => f.write_str("rehearsal"),
        }
    }
}

impl Login {
    /// Reads what it prints as.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "landfast" => return Some(Self::Administrator),
            "operator" => return Some(Self::Operator),
            "operator_b" => return Some(Self::OperatorOther),
            "rehearsal" => return Some(Self::Rehearsal),
            _ => {}
        }
        let rest = text.strip_prefix("release_")?;
        let (number, is_other) = match rest.strip_suffix("_b") {
            Some(number) => (number, true),
            None => (rest, false),
        };
        let release = ReleaseId(number.parse().ok()?);
        Some(match is_other {
            true => Self::ReleaseOther(release),
            false => Self::Release(release),
        })
    }

    /// The release it is for, when it goes with one.
    pub fn release(self) -> Option<ReleaseId> {
        match self {
            Self::Release(release) | Self::ReleaseOther(release) => Some(release),
            Self::Administrator | Self::Operator | Self::OperatorOther | Self::Rehearsal => None,
        }
    }

    /// Whether it is one of those that migrations and people have.
    pub fn is_operator(self) -> bool {
        matches!(self, Self::Operator | Self::OperatorOther)
    }
}

/// What the sessions of releases on a server of somebody else begin their application's name with; the release's number
/// follows. PostgreSQL cuts longer names off, and with them the number.
pub fn application_prefix(scope: &Scope) -> String {
    let name = format!("{scope} r");
    if name.len() <= APPLICATION_PREFIX_LEN_MAX {
        return name;
    }
    let digest = Digest::of(scope.to_string().as_bytes()).short().to_string();
    format!("landfast {digest} r")
}

/// What the sessions of a release on a server of somebody else are called.
pub fn application_name(scope: &Scope, release: ReleaseId) -> String {
    format!("{}{release}", application_prefix(scope))
}

/// The database of an environment: the app's name, with `_` for `-`.
pub fn database_name(scope: &Scope) -> String {
    let name = scope.app.as_str().replace('-', "_");
    // Names are at most 40 characters, all of one byte.
    name.chars().take(DATABASE_LEN_MAX).collect()
}

/// Who owns what is in a database: a role without a login.
pub fn owner_of(database: &str) -> String {
    format!("{database}_owner")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_read_back() {
        for login in [
            Login::Administrator,
            Login::Operator,
            Login::OperatorOther,
            Login::Rehearsal,
            Login::Release(ReleaseId(3)),
            Login::ReleaseOther(ReleaseId(3)),
        ] {
            assert_eq!(Login::parse(&login.to_string()), Some(login));
        }
        for foreign in ["release_", "release_x", "root", "release_1_c"] {
            assert_eq!(Login::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn an_application_name_keeps_its_number() {
        let scope = |app: &str| Scope {
            app: app.parse().unwrap(),
            environment: "production".parse().unwrap(),
        };
        let newest = ReleaseId(u64::MAX);
        assert_eq!(
            application_name(&scope("shop"), ReleaseId(3)),
            "shop/production r3"
        );
        let long = application_name(&scope(&"a".repeat(40)), newest);
        assert!(
            long.len() <= 63 && long.ends_with(&newest.to_string()),
            "{long}"
        );
        assert_ne!(
            long,
            application_name(&scope(&format!("{}b", "a".repeat(39))), newest)
        );
    }

    #[test]
    fn the_database_is_named_after_the_app() {
        let scope = Scope {
            app: "flex-time".parse().unwrap(),
            environment: "production".parse().unwrap(),
        };
        assert_eq!(database_name(&scope), "flex_time");
        assert_eq!(owner_of("flex_time"), "flex_time_owner");
    }
}
