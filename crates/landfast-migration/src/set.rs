//! All migrations of one release.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Engine, FileName, FileNameError, Migration, ScriptError};

/// One file of the folder, name and bytes.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Its name without the folder.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// All migrations of a folder, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationSet {
    engine: Engine,
    migrations: BTreeMap<u32, Migration>,
}

/// Why a folder is no set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// A `.sql` file with another kind of name.
    #[error(transparent)]
    Name(#[from] FileNameError),
    /// Two files claim one number.
    #[error(
        "number {number:04} is taken twice, by `{first}` and `{second}`; give the younger one the next free number"
    )]
    Twice {
        /// The number.
        number: u32,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// A way down without a way up.
    #[error("`{file}` undoes nothing: there is no `{expected}`")]
    Orphan {
        /// The file.
        file: String,
        /// What should be there.
        expected: String,
    },
    /// A number between the first and the last is missing.
    #[error(
        "number {number:04} is missing between `{before}` and `{after}`; rename the later files, or restore the one that was lost"
    )]
    Gap {
        /// The first missing number.
        number: u32,
        /// The file before it.
        before: String,
        /// The file behind it.
        after: String,
    },
    /// A file that cannot be read.
    #[error("`{file}`")]
    Script {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: ScriptError,
    },
}

impl MigrationSet {
    /// Reads a folder's files; those that do not end in `.sql` are passed over. Gives every problem at once.
    pub fn parse(files: &[SourceFile], engine: Engine) -> Result<Self, Vec<SetError>> {
        let mut errors = Vec::new();
        let mut ups: BTreeMap<u32, (FileName, &SourceFile)> = BTreeMap::new();
        let mut downs = Vec::new();
        for file in files.iter().filter(|file| file.name.ends_with(".sql")) {
            match file.name.parse::<FileName>() {
                Err(error) => errors.push(error.into()),
                Ok(name) if name.down => downs.push((name, file)),
                Ok(name) => {
                    if let Some((first, _)) = ups.get(&name.number) {
                        errors.push(SetError::Twice {
                            number: name.number,
                            first: first.to_string(),
                            second: name.to_string(),
                        });
                    } else {
                        ups.insert(name.number, (name, file));
                    }
                }
            }
        }
        errors.extend(gap(ups.values().map(|(name, _)| name)));
        let mut migrations = BTreeMap::new();
        for (name, file) in ups.values() {
            let down = downs
                .iter()
                .find(|(down, _)| (down.number, &down.name) == (name.number, &name.name));
            let down = down.map(|(_, file)| file.bytes.as_slice());
            match Migration::parse(name, &file.bytes, down, engine) {
                Ok(migration) => {
                    migrations.insert(name.number, migration);
                }
                Err(source) => errors.push(SetError::Script {
                    file: file.name.clone(),
                    source,
                }),
            }
        }
        let known = ups
            .values()
            .map(|(name, _)| (name.number, name.name.as_str()))
            .collect::<BTreeSet<_>>();
        for (down, _) in &downs {
            if !known.contains(&(down.number, down.name.as_str())) {
                errors.push(SetError::Orphan {
                    file: down.to_string(),
                    expected: FileName {
                        down: false,
                        ..down.clone()
                    }
                    .to_string(),
                });
            }
        }
        if errors.is_empty() {
            Ok(Self { engine, migrations })
        } else {
            Err(errors)
        }
    }

    /// A set without migrations.
    pub fn empty(engine: Engine) -> Self {
        Self {
            engine,
            migrations: BTreeMap::new(),
        }
    }

    /// What they are written for.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The migration of a number.
    pub fn get(&self, number: u32) -> Option<&Migration> {
        self.migrations.get(&number)
    }

    /// All, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Migration> {
        self.migrations.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.migrations.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.migrations.is_empty()
    }

    /// The number the next new file takes.
    pub fn next_number(&self) -> u32 {
        self.migrations.keys().last().map_or(1, |last| last + 1)
    }
}

fn gap<'a>(names: impl Iterator<Item = &'a FileName>) -> Option<SetError> {
    let mut before: Option<&FileName> = None;
    for name in names {
        if let Some(before) = before
            && name.number > before.number + 1
        {
            return Some(SetError::Gap {
                number: before.number + 1,
                before: before.to_string(),
                after: name.to_string(),
            });
        }
        before = Some(name);
    }
    None
}
