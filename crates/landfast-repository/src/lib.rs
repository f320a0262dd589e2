//! A repository of backups in a folder or in a bucket of an S3-compatible server: sealed objects under names, and on top
//! of them files in pages, of which only those that changed are stored again.
//!
//! *Objects* are compressed and sealed with AES-256-GCM under a key that is derived for each of them, and bound to their name: one
//! that is changed, cut, swapped or moved does not open, and says so. A put is one request, or one file that is written
//! under another name, synced and renamed. The key is a file; objects and the repository name the key they need, so a wrong
//! key is told from an empty place.
//!
//! *Files* ([`PageWriter`], [`restore_files`]) are cut into pages of 8 KiB, PostgreSQL's own unit of change. A page that is the
//! same as in the parent backup is a reference; the others go, 128 KiB compressed together, into packs of 16 MiB. Every
//! manifest names all packs it needs, so no chain is followed to restore.
//!
//! It never overwrites an object it did not write under that very name, never deletes what it was not told to, never logs
//! or returns a key, and knows nothing of databases. What else lies in the folder or bucket is left alone; what a process of ours that died
//! left half written or half removed in a folder goes a day later, as the folder is listed.

mod error;
pub mod freeing;
mod key;
mod manifest;
mod pages;
mod repository;
mod restore;
mod seal;
mod storage;
mod upload;

pub use landfast_keyfile::KeyId;

pub use crate::{
    error::{KeyError, RepositoryError},
    key::{Key, Keyring},
    manifest::{FileEntry, FileKind, FileMap, PackEntry, PageHash, Run, Tree, TreeError},
    pages::{PAGE_BYTES, PackUse, PageCounts, PageWriter, Parent},
    repository::{Object, Repository},
    restore::{FileSink, RestoreProgress, restore_files},
    storage::{Place, S3Place, Storage},
    upload::{Uploaded, upload_packs},
};
