//! Backups of files: a tree of folders as it stood, or one file that somebody writes, in snapshots one behind the other.
//!
//! A [`Series`] is what a repository has of one thing: its snapshots, and the list that says which there are. [`snapshot`] reads a
//! tree and stores what changed; SQLite databases in it go through SQLite's own online backup, so that each is whole while it is
//! written. [`restore`] makes a new folder beside, [`verify`] reads every byte, [`prune`] removes what may go.
//!
//! It never follows a link, a mount or a name out of the tree, never writes into the tree it reads, never overwrites anything when
//! it restores, and takes nothing that a snapshot says for a path before it was looked at.

mod clock;
mod entry;
mod error;
mod prune;
mod restore;
mod series;
mod snapshot;
mod sqlite;
mod store;
mod verify;
mod walk;

pub use crate::{
    entry::{Entry, EntryKind, Moment, Note, NoteKind, RawPath},
    error::FilesError,
    prune::{Pruned, prune},
    restore::{RestoredFiles, SqliteCheck, restore},
    series::{Content, Finding, Loaded, Series, Snapshot},
    snapshot::{SnapshotProgress, SnapshotRequest, snapshot},
    store::{Stored, store_file},
    verify::{Verified, verify},
};
