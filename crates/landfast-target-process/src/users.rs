//! A user of its own for each environment and each data store: a number that stays, and that no name belongs to.
//!
//! The number comes from the environment's name, so that it is the same again when the record is lost; the record
//! settles the rare case that two names want the same one. No entry in `/etc/passwd` is made: nobody logs in, the
//! kernel knows numbers only, and an entry that outlived its app could be given to somebody else.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use landfast_types::{Digest, Scope};
use serde::{Deserialize, Serialize};

/// Above what distributions, containers and dynamic users of systemd are given, below 2³¹.
pub(crate) const FIRST: u32 = 1_900_000_000;
const COUNT: u32 = 1 << 27;

/// The record of users in one file of the state folder, and the only one who writes it.
#[derive(Debug)]
pub struct Users {
    path: PathBuf,
    writing: Mutex<()>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// By `app/environment`, or `app/environment/stores/name`.
    users: BTreeMap<String, u32>,
}

impl Users {
    /// The record in this file, which need not be there.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            writing: Mutex::new(()),
        }
    }

    /// The user of an environment as it is or would be.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn look_up(&self, scope: &Scope) -> io::Result<u32> {
        let mut record = self.read()?;
        Ok(give(&mut record, &scope.to_string(), COUNT))
    }

    /// The same, remembered.
    ///
    /// # Errors
    /// When the record cannot be read or written.
    pub fn take(&self, scope: &Scope) -> io::Result<u32> {
        self.take_for(&scope.to_string())
    }

    /// The user of an owner that is no environment, remembered. Their names have more parts than `app/environment`.
    ///
    /// # Errors
    /// When the record cannot be read or written.
    pub fn take_for(&self, owner: &str) -> io::Result<u32> {
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut record = self.read()?;
        let known = record.users.len();
        let user = give(&mut record, owner, COUNT);
        if record.users.len() != known {
            self.write(&record)?;
        }
        Ok(user)
    }

    fn read(&self) -> io::Result<Record> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&bytes).or_else(|error| {
            // The numbers come from the names: nothing that runs gets another one by this.
            let aside = self.path.with_extension("damaged");
            tracing::error!(path = %self.path.display(), %error, "the record of users cannot be read; it is put aside");
            fs::rename(&self.path, aside)?;
            Ok(Record::default())
        })
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let next = self.path.with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(&serde_json::to_vec_pretty(record).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&next, &self.path)?;
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        File::open(folder)?.sync_all()
    }
}

/// The number of an environment: that of its name, or the next that is free.
fn give(record: &mut Record, name: &str, count: u32) -> u32 {
    if let Some(user) = record.users.get(name) {
        return *user;
    }
    let digest = Digest::of(name.as_bytes());
    let hash = digest.as_bytes()[..4]
        .iter()
        .fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    let taken = |user: &u32| record.users.values().any(|other| other == user);
    let mut wanted = (0..count).map(|step| FIRST + (hash % count + step) % count);
    let user = wanted
        .find(|user| !taken(user))
        .expect("there are fewer environments than numbers");
    record.users.insert(name.to_owned(), user);
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(app: &str) -> Scope {
        Scope {
            app: app.parse().unwrap(),
            environment: "production".parse().unwrap(),
        }
    }

    #[test]
    fn gives_each_environment_one_number_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.json");
        let users = Users::new(path.clone());
        let expected = users.look_up(&scope("shop")).unwrap();
        assert!(!path.exists(), "looking changes nothing");
        assert_eq!(users.take(&scope("shop")).unwrap(), expected);
        let other = users.take(&scope("blog")).unwrap();
        assert_ne!(other, expected);
        assert!((FIRST..FIRST + COUNT).contains(&expected));
        // A lost or damaged record gives the same numbers again.
        fs::write(&path, "{ damaged").unwrap();
        let later = Users::new(path.clone());
        assert_eq!(later.take(&scope("blog")).unwrap(), other);
        assert_eq!(later.take(&scope("shop")).unwrap(), expected);
        assert!(path.with_extension("damaged").exists());
    }

    #[test]
    fn two_names_that_want_one_number_get_two() {
        let mut record = Record::default();
        let names = ["a", "b", "c"];
        let mut users: Vec<_> = names
            .iter()
            .map(|name| give(&mut record, name, 3))
            .collect();
        users.sort_unstable();
        assert_eq!(users, [FIRST, FIRST + 1, FIRST + 2]);
    }
}
