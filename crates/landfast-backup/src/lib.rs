//! Backups decided: what the archive of a PostgreSQL server holds, how far it can be restored, from which backup, what may be
//! removed, and what a drill has shown.
//!
//! The heart is the [`Ledger`]: every range of WAL that was shipped, by timeline, with the digest of its bytes and the LSN at which
//! its last whole record ends. A restore is planned against it ([`plan_restore`]), so it is known before it begins which LSN
//! it has to reach; ending earlier is a failure, never a promotion.
//!
//! It never reads a clock, a file, a socket or a database, and trusts no counter of a server: all it knows was read back
//! from the repository by whoever calls it.

mod carry;
mod drill;
mod ledger;
mod lsn;
mod repack;
mod restore;
mod retention;
mod rto;
mod wal;
mod writes;

pub use crate::{
    carry::{Carry, pages_to_drop},
    drill::{Check, DrillFacts, DrillPhases, Verdict, judge_drill},
    ledger::{
        Event, Heartbeat, Hole, Ledger, LedgerError, PAGE_EVENTS_MAX, Page, Piece, PieceKey,
        RestorablePoint, compact,
    },
    lsn::{Lsn, LsnError, Segment, SegmentBytes, Timeline, TimelineSwitch, parse_history},
    repack::{PackShare, WASTE_PERCENT_MAX, packs_to_leave},
    restore::{
        AcceptedLoss, BackupId, BackupState, BackupSummary, Leg, PlanError, RestorePlan, Target,
        plan_restore,
    },
    retention::{Keep, KeepReason, Kept, Retention, what_to_keep, which_to_keep},
    rto::{Rates, RtoEstimate, estimate_rto},
    wal::{Scan, ScanStop, XLOG_PAGE, scan_from_segment_start, scan_wal},
    writes::Writes,
};
