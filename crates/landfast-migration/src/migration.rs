//! One migration: its number, name, phase, checksum and what it does.

use std::{collections::BTreeSet, fmt, str::FromStr};

use landfast_types::Digest;
use serde::{Deserialize, Serialize};

use crate::{Engine, Header, ObjectName, Script, ScriptError, ddl::read, script::normalise};

/// When a migration runs in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Before new instances start; the old release must live with it.
    Expand,
    /// Harms neither release; runs with `expand`.
    Any,
    /// After the seal: the old release could not live with it.
    Contract,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expand => "expand",
            Self::Any => "any",
            Self::Contract => "contract",
        })
    }
}

impl FromStr for Phase {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "expand" => Ok(Self::Expand),
            "any" => Ok(Self::Any),
            "contract" => Ok(Self::Contract),
            other => Err(format!(
                "`phase={other}`: it is `expand`, `contract` or `any`"
            )),
        }
    }
}

/// `NNNN_name.sql` or `NNNN_name.down.sql`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName {
    /// The number, from 1.
    pub number: u32,
    /// What stands between the number and the ending.
    pub name: String,
    /// Whether it undoes.
    pub down: bool,
}

/// Why a file name is none of a migration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not `NNNN_name.sql` or `NNNN_name.down.sql`: four digits or more, from 0001, then lower-case words joined by `_`"
)]
pub struct FileNameError(pub String);

impl FromStr for FileName {
    type Err = FileNameError;
    fn from_str(text: &str) -> Result<Self, FileNameError> {
        let error = || FileNameError(text.to_owned());
        let stem = text.strip_suffix(".sql").ok_or_else(error)?;
        let (stem, down) = match stem.strip_suffix(".down") {
            Some(stem) => (stem, true),
            None => (stem, false),
        };
        let (digits, name) = stem.split_once('_').ok_or_else(error)?;
        let named = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if digits.len() < 4 || !digits.bytes().all(|b| b.is_ascii_digit()) || !named {
            return Err(error());
        }
        match digits.parse() {
            Ok(number) if number > 0 => Ok(Self {
                number,
                name: name.to_owned(),
                down,
            }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let down = if self.down { ".down" } else { "" };
        write!(f, "{:04}_{}{down}.sql", self.number, self.name)
    }
}

/// One numbered migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its place in the order.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// What it is written for.
    pub engine: Engine,
    /// The way up.
    pub up: Script,
    /// The way down, if there is one.
    pub down: Option<Script>,
    /// SHA-256 of the way up: LF line ends, no byte order mark, no blanks at line ends or behind the last line.
    pub checksum: Digest,
    /// SHA-256 of the bytes as they lie in the file.
    pub checksum_raw: Digest,
}

impl Migration {
    /// Reads a migration from the bytes of its two files.
    pub fn parse(
        file: &FileName,
        up: &[u8],
        down: Option<&[u8]>,
        engine: Engine,
    ) -> Result<Self, ScriptError> {
        Ok(Self {
            number: file.number,
            name: file.name.clone(),
            engine,
            up: Script::parse(up, engine)?,
            down: down.map(|bytes| Script::parse(bytes, engine)).transpose()?,
            checksum: checksum(up)?,
            checksum_raw: Digest::of(up),
        })
    }

    /// What the head of the file chose.
    pub fn header(&self) -> &Header {
        &self.up.header
    }

    /// When it runs.
    pub fn phase(&self) -> Phase {
        self.up.header.phase
    }

    /// `0042_add_price`, as people call it.
    pub fn title(&self) -> String {
        format!("{:04}_{}", self.number, self.name)
    }

    /// The objects its statements act on.
    pub fn objects(&self) -> BTreeSet<ObjectName> {
        let readings = self
            .up
            .statements
            .iter()
            .map(|statement| read(statement, self.engine));
        readings.flat_map(|reading| reading.objects).collect()
    }

    /// Every word and name in it, those in bodies of functions included: what it could touch without saying so first.
    fn mentions(&self) -> BTreeSet<String> {
        self.up
            .statements
            .iter()
            .flat_map(|statement| {
                statement
                    .text
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
            })
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect()
    }

    /// The names of objects that both touch. A name that one acts on counts as shared when the other mentions it at all.
    pub fn shared_with(&self, other: &Self) -> Vec<String> {
        let named = |one: &Self, other: &Self| {
            let mentions = other.mentions();
            one.objects()
                .into_iter()
                .filter(|object| mentions.contains(&object.name.to_lowercase()))
                .map(|object| object.name)
                .collect::<BTreeSet<_>>()
        };
        named(self, other)
            .union(&named(other, self))
            .cloned()
            .collect()
    }
}

/// The checksum that does not change when an editor or a version control system changes line ends.
fn checksum(bytes: &[u8]) -> Result<Digest, ScriptError> {
    let text = normalise(bytes)?;
    let lines = text
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n");
    Ok(Digest::of(lines.trim_end().as_bytes()))
}
