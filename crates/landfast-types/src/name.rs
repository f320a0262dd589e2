//! Names and ids. A name is what a person writes in the manifest; an id is what Landfast hands out.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in bytes: what a DNS label still carries with a prefix before it (RFC 1035, 2.3.4).
pub const NAME_LEN_MAX: usize = 40;

/// Why a word is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name must not be empty")]
    Empty,
    #[error("`{0}` is longer than {NAME_LEN_MAX} characters")]
    TooLong(String),
    #[error("`{0}` must start with a letter from a to z")]
    Start(String),
    #[error("`{name}` holds {found:?}; a name is made of a to z, 0 to 9 and `-`")]
    Character { name: String, found: char },
    #[error("`{0}` must not end with `-`")]
    End(String),
}

/// A checked name: `a`–`z`, `0`–`9` and `-`, starting with a letter, not ending with `-`, at most 40 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// Checks a word.
    ///
    /// # Errors
    /// The first rule the word breaks.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let Some(first) = text.chars().next() else {
            return Err(NameError::Empty);
        };
        if text.len() > NAME_LEN_MAX {
            return Err(NameError::TooLong(text.to_owned()));
        }
        let foreign = |c: &char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-');
        if let Some(found) = text.chars().find(foreign) {
            return Err(NameError::Character {
                name: text.to_owned(),
                found,
            });
        }
        if !first.is_ascii_lowercase() {
            return Err(NameError::Start(text.to_owned()));
        }
        if text.ends_with('-') {
            return Err(NameError::End(text.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

macro_rules! named {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Name);

        impl $name {
            /// Checks a word. See [`Name::new`].
            ///
            /// # Errors
            /// The first rule the word breaks.
            pub fn new(text: &str) -> Result<Self, NameError> {
                Name::new(text).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

named! {
    /// An app: everything one `landfast.toml` describes.
    AppName
    /// A place the app runs: `production`, `staging`, …
    EnvironmentName
    /// A long-running process type of an app.
    ServiceName
    /// A process that ends.
    JobName
    /// A route of an app.
    RouteName
    /// A data store of an app.
    StoreName
}

macro_rules! numbered {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(NumberVisitor).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )*};
}

/// Reads a number, or its digits: a map's key is always a text in JSON, and serde's tagged enums hand it on as
/// such.
struct NumberVisitor;

impl serde::de::Visitor<'_> for NumberVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number).map_err(E::custom)
    }

    fn visit_str<E: serde::de::Error>(self, digits: &str) -> Result<u64, E> {
        digits.parse().map_err(E::custom)
    }
}

numbered! {
    /// A release: an immutable, numbered snapshot. Counted from 1 in each environment.
    ReleaseId
    /// A rollout. Counted from 1 in each environment.
    RolloutId
}

/// One running copy: `api.r3.17` is the seventeenth instance this environment ever started, of service
/// `api`, from release 3. Unique in its environment for ever: numbers are never used twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(Box<str>);

impl InstanceId {
    /// Names the instance `number` of a service (or job) from a release.
    pub fn new(process: &str, release: ReleaseId, number: u64) -> Self {
        Self(format!("{process}.r{release}.{number}").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that is not an [`InstanceId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an instance id (they look like `api.r3.17`)")]
pub struct InstanceIdError(String);

impl FromStr for InstanceId {
    type Err = InstanceIdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || InstanceIdError(text.to_owned());
        let mut parts = text.split('.');
        let (Some(name), Some(release), Some(number), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error());
        };
        Name::new(name).map_err(|_| error())?;
        let release = release.strip_prefix('r').ok_or_else(error)?;
        let release = release.parse::<u64>().map_err(|_| error())?;
        let number = number.parse::<u64>().map_err(|_| error())?;
        Ok(Self::new(name, ReleaseId(release), number))
    }
}

impl Serialize for InstanceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for InstanceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One environment of one app, the unit everything is isolated by. Prints as `flextime/production`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    pub app: AppName,
    pub environment: EnvironmentName,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.environment)
    }
}

/// One service of one environment on this host. Prints as `flextime/production/api`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    pub scope: Scope,
    pub service: ServiceName,
}

impl ServiceKey {
    /// Joins a scope and a service.
    pub fn new(scope: &Scope, service: &ServiceName) -> Self {
        Self {
            scope: scope.clone(),
            service: service.clone(),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.scope, self.service)
    }
}

/// A text that is not a [`ServiceKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceKeyError {
    #[error("`{0}` is not a service key (they look like `app/environment/service`)")]
    Shape(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for ServiceKey {
    type Err = ServiceKeyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/');
        let (Some(app), Some(environment), Some(service), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ServiceKeyError::Shape(text.to_owned()));
        };
        let scope = Scope {
            app: AppName::new(app)?,
            environment: EnvironmentName::new(environment)?,
        };
        Ok(Self {
            scope,
            service: ServiceName::new(service)?,
        })
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_a_person_would_write() {
        for name in ["api", "web-1", "a", "flextime"] {
            assert_eq!(Name::new(name).map(|n| n.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn refuses_names_that_would_break_a_path_or_a_label() {
        for (name, error) in [
            ("", NameError::Empty),
            ("1a", NameError::Start("1a".into())),
            (
                "a/b",
                NameError::Character {
                    name: "a/b".into(),
                    found: '/',
                },
            ),
            (
                "A",
                NameError::Character {
                    name: "A".into(),
                    found: 'A',
                },
            ),
            ("a-", NameError::End("a-".into())),
            (
                "..",
                NameError::Character {
                    name: "..".into(),
                    found: '.',
                },
            ),
        ] {
            assert_eq!(Name::new(name), Err(error));
        }
    }

    #[test]
    fn reads_back_the_ids_it_prints() {
        let id = InstanceId::new("api", ReleaseId(3), 17);
        assert_eq!(id.to_string(), "api.r3.17");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("api.3.17".parse::<InstanceId>().is_err());
        assert!("../x.r1.1".parse::<InstanceId>().is_err());
        let key = "shop/production/api".parse::<ServiceKey>().expect("a key");
        assert_eq!(key.to_string(), "shop/production/api");
        assert!("shop/production".parse::<ServiceKey>().is_err());
    }
}
