//! A repository: sealed objects in a storage, and the one object that says which key they need.

use std::sync::Arc;

use bytes::Bytes;
use landfast_types::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    KeyId, Keyring, RepositoryError, Storage,
    seal::{self, Opener},
};

/// What says that this is a repository.
const MARK: &str = "repository";
const MARK_FORMAT: u8 = 1;

/// An object and its length as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub name: String,
    pub bytes: u64,
}

/// An open repository. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) storage: Storage,
    pub(crate) keys: Arc<Keyring>,
}

/// Plain text, so that a wrong key is told without any key.
#[derive(Serialize, Deserialize)]
struct Mark {
    landfast_backup_repository: u8,
    key: KeyId,
    /// Of the other two, so that a damaged mark is not taken for one of another key or format.
    check: Digest,
}

impl Mark {
    fn new(format: u8, key: KeyId) -> Self {
        Self {
            landfast_backup_repository: format,
            key,
            check: Digest::of(format!("{format} {key}").as_bytes()),
        }
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("three plain fields")
    }

    /// `None` where any byte is another one than was written.
    fn read(text: &[u8]) -> Option<Self> {
        let read: Self = serde_json::from_slice(text).ok()?;
        let written = Self::new(read.landfast_backup_repository, read.key);
        (written.text() == text).then_some(written)
    }
}

impl Repository {
    /// Makes a repository in an empty place.
    ///
    /// # Errors
    /// [`RepositoryError::AlreadyThere`], [`RepositoryError::NotARepository`] where something else lies there.
    pub async fn create(storage: Storage, keys: Arc<Keyring>) -> Result<Self, RepositoryError> {
        let place = storage.label().to_owned();
        if storage.get(MARK).await?.is_some() {
            return Err(RepositoryError::AlreadyThere { place });
        }
        if !storage.list("").await?.is_empty() {
            return Err(RepositoryError::NotARepository { place });
        }
        let mark = Mark::new(MARK_FORMAT, keys.current().id());
        storage.put(MARK, mark.text().into()).await?;
        Ok(Self { storage, keys })
    }

    /// Opens a repository: one small read.
    ///
    /// # Errors
    /// [`RepositoryError::WrongKey`] is told from [`RepositoryError::Empty`] and [`RepositoryError::NotARepository`].
    pub async fn open(storage: Storage, keys: Arc<Keyring>) -> Result<Self, RepositoryError> {
        let place = storage.label().to_owned();
        let Some(text) = storage.get(MARK).await? else {
            return Err(if storage.list("").await?.is_empty() {
                RepositoryError::Empty { place }
            } else {
                RepositoryError::NotARepository { place }
            });
        };
        let mark = Mark::read(&text).ok_or_else(|| RepositoryError::Damaged {
            name: MARK.into(),
            what: "it is not what a repository begins with",
        })?;
        if mark.landfast_backup_repository != MARK_FORMAT {
            return Err(RepositoryError::Format {
                name: MARK.into(),
                found: mark.landfast_backup_repository,
                reads: MARK_FORMAT,
            });
        }
        // Whoever gives a newer key gives the older one with it, as long as objects need that.
        keys.find(mark.key, &place)?;
        Ok(Self { storage, keys })
    }

    /// What it is called in messages.
    pub fn label(&self) -> &str {
        self.storage.label()
    }

    /// The keys it is opened with.
    pub fn keys(&self) -> &Arc<Keyring> {
        &self.keys
    }

    /// Seals and puts an object: one request. Gives its length as it is stored.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn put(&self, name: &str, data: impl Into<Bytes>) -> Result<u64, RepositoryError> {
        let (data, keys, owned) = (data.into(), Arc::clone(&self.keys), name.to_owned());
        let sealed = compute(move || seal::seal(keys.current(), &owned, &data)).await?;
        let bytes = sealed.len() as u64;
        self.storage.put(name, sealed.into()).await?;
        Ok(bytes)
    }

    /// Gets and opens an object.
    ///
    /// # Errors
    /// [`RepositoryError::Missing`], [`RepositoryError::Damaged`], [`RepositoryError::WrongKey`], each naming it.
    pub async fn get(&self, name: &str) -> Result<Vec<u8>, RepositoryError> {
        let found = self.find(name).await?;
        found.ok_or_else(|| RepositoryError::Missing {
            name: name.to_owned(),
        })
    }

    /// As [`Repository::get`], but `None` where there is none.
    ///
    /// # Errors
    /// As [`Repository::get`].
    pub async fn find(&self, name: &str) -> Result<Option<Vec<u8>>, RepositoryError> {
        let Some(sealed) = self.storage.get(name).await? else {
            return Ok(None);
        };
        let (keys, owned) = (Arc::clone(&self.keys), name.to_owned());
        let opened = compute(move || seal::open(&keys, &owned, sealed.into())).await?;
        Ok(Some(opened))
    }

    /// Removes an object; one that is not there is removed already.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn delete(&self, name: &str) -> Result<(), RepositoryError> {
        self.storage.delete(name).await
    }

    /// All objects below a name that ends a folder of names, in order.
    ///
    /// # Errors
    /// Those of the storage.
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>, RepositoryError> {
        let listed = self.storage.list(folder).await?;
        let objects = listed.into_iter().map(|listed| Object {
            name: listed.name,
            bytes: listed.bytes,
        });
        Ok(objects.collect())
    }

    /// Reads every frame of a pack and throws it away.
    ///
    /// # Errors
    /// As [`Repository::get`].
    pub async fn check_pack(&self, pack: &crate::PackEntry) -> Result<u64, RepositoryError> {
        let sealed = self.storage.get(&pack.name).await?;
        let sealed = sealed.ok_or_else(|| RepositoryError::Missing {
            name: pack.name.clone(),
        })?;
        let (keys, pack) = (Arc::clone(&self.keys), pack.clone());
        compute(move || {
            let mut sealed = Vec::from(sealed);
            let bytes = sealed.len() as u64;
            let mut opener = Opener::new(&keys, &pack.name, &sealed)?;
            let mut scratch = Vec::new();
            let mut at = seal::HEAD_LEN;
            for (number, len) in pack.frames.iter().enumerate() {
                let end = at + *len as usize;
                let frame = sealed.get_mut(at..end).ok_or(RepositoryError::Damaged {
                    name: pack.name.clone(),
                    what: "it is cut short",
                })?;
                opener.frame(
                    number as u64,
                    frame,
                    crate::pages::FRAME_BYTES,
                    &mut scratch,
                )?;
                at = end;
            }
            if at != sealed.len() {
                return Err(RepositoryError::Damaged {
                    name: pack.name.clone(),
                    what: "it is longer than it was",
                });
            }
            Ok(bytes)
        })
        .await
    }
}

/// Runs what keeps a processor busy off the threads that wait.
pub(crate) async fn compute<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(RepositoryError::Stopped(error.to_string())),
    }
}
