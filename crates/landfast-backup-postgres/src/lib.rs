//! Backups of PostgreSQL that are proven: continuous WAL, base backups, restores to an LSN, drills.
//!
//! It drives the server's own programs (`pg_receivewal`, `pg_basebackup`, `postgres`) of this host or of an image, argv by argv, and believes none of their exit codes
//! alone: what counts as archived was read back from the repository, and a restore has succeeded when it ended at the LSN the
//! ledger says. Everything is decided in `landfast-backup`; everything is kept through `landfast-repository`.
//!
//! [`WalArchiver`] runs as long as the server does and is the only writer of the ledger. [`back_up`] makes a base backup through it,
//! [`restore`] brings a copy up beside the old server, [`verify`] reads every byte, [`prune`] removes what may go, [`drill`] proves
//! a backup by restoring it. A database of somebody else, whose log cannot be streamed, is kept by [`dump`]s, and [`drill_dump`] proves them.
//!
//! It never writes into a folder it did not make, never changes a setting of the server that is backed up, never lets a copy archive or
//! listen on a network, and never puts a password or a key into an argument, an error or an event.

mod archive;
mod audit;
mod base_backup;
mod child;
mod clock;
mod container;
mod drill;
mod dump;
mod error;
mod pace;
mod prune;
mod receiver;
mod restore;
mod scratch;
mod server;
mod shipper;
mod spool;
mod verify;
mod wal_archiver;
mod wal_get;

pub use crate::{
    archive::{Archive, BackupManifest, Finding, Loaded},
    base_backup::{BackupProgress, BackupRequest, back_up},
    container::{ContainedProgram, ContainedRun, Containers, End},
    drill::{DrillReport, DrillRequest, SqlCheck, drill, drill_and, schema_digest},
    dump::{
        DUMP, DumpDrill, DumpDrillRequest, DumpProgress, DumpRequest, DumpSource, INITDB,
        drill_dump, dump,
    },
    error::BackupError,
    pace::Pace,
    prune::{Pruned, prune, remove_unfinished},
    receiver::ReceiverState,
    restore::{RestoreRequest, RestoreStep, Restored, UNFINISHED, restore},
    scratch::{OnCopy, ScratchCopy},
    server::{Identity, Programs, Server, forget_slot},
    verify::{Verified, verify},
    wal_archiver::{WalArchiveConfig, WalArchiver, WalEvent, WalStatus},
    wal_get::wal_get,
};
