//! Whether all WAL of an archive is still there, looked at from time to time by whoever writes it.

use landfast_backup::{BackupState, Hole, PlanError, Target, plan_restore};

use crate::{BackupError, archive::LedgerWriter};

impl LedgerWriter {
    /// Whether there was one at the last audit.
    pub(crate) fn has_good_backup(&self) -> bool {
        let mut backups = self.backups.values();
        backups.any(|backup| backup.state == BackupState::Good)
    }

    /// Looks which WAL is there, and gives what stands between the newest good backup that reaches furthest and the end; `None` where
    /// nothing does, or there is no good backup at all.
    pub(crate) async fn audit(&mut self) -> Result<Option<Hole>, BackupError> {
        let there = self.archive.pieces_there().await?;
        self.ledger.forget_lost();
        let missing = self.ledger.pieces().filter(|key| !there.contains(key));
        for key in missing.collect::<Vec<_>>() {
            self.ledger.mark_lost(key);
        }
        let known = self.ledger.backups().clone();
        self.backups.retain(|id, _| known.contains_key(id));
        for (id, digest) in known {
            if self.backups.contains_key(&id) {
                continue;
            }
            match self.archive.manifest(&id, Some(digest)).await {
                Ok(manifest) => drop(self.backups.insert(id, manifest.summary)),
                // `verify` names it; no restore begins with it.
                Err(BackupError::Repository(error)) if error.bad_object().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        if !self.has_good_backup() {
            return Ok(None);
        }
        let backups: Vec<_> = self.backups.values().cloned().collect();
        let target = Target::Latest;
        Ok(match plan_restore(&self.ledger, &backups, &target, None) {
            Err(PlanError::WouldEndEarly { hole, .. }) => Some(hole),
            // Not even the WAL that makes the backup consistent is whole.
            Err(_) => self.ledger.holes().pop(),
            Ok(_) => None,
        })
    }
}
