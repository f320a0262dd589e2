//! What a keeper tells: the log, and whoever the manifest names.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_backup_postgres::WalEvent;
use landfast_types::{Bytes, Timestamp};
use serde_json::json;

use super::{super::work, Keeper};
use crate::{stores, webhook};

/// Trouble that lasts as long is told.
const TOLD_AFTER: Duration = Duration::from_secs(45);
/// A disk that is so full is told, until it is less so.
const FULL_PERCENT: u64 = 80;
const CALM_PERCENT: u64 = 75;

impl Keeper {
    /// What the archiver tells.
    pub(super) fn note(&mut self, event: &WalEvent) {
        let (scope, store) = (&self.scope, &self.store);
        match event {
            WalEvent::Receiver { state } => {
                tracing::info!(%scope, %store, ?state, "the receiver of WAL");
            }
            WalEvent::ShippingFailed { why } => {
                tracing::warn!(%scope, %store, why, "WAL is not shipped; it waits on this host");
            }
            WalEvent::Unreadable { why } => {
                tracing::error!(%scope, %store, why, "what was shipped cannot be read back");
            }
            WalEvent::ShippingBack => tracing::info!(%scope, %store, "WAL is shipped again"),
            WalEvent::Late { restorable } => {
                let to = restorable.and_then(|point| point.at);
                let to = to.map_or("nothing yet".to_owned(), |at| at.to_string());
                let status = self.views.borrow().wal.clone().unwrap_or_default();
                let why = status.failing.or(status.unreadable);
                let why = why.map_or(String::new(), |why| format!(": {why}"));
                self.alert(
                    "late",
                    &format!("the archive does not advance; a restore reaches {to}{why}"),
                );
            }
            WalEvent::OnTime { .. } => self.alert("on-time", "the archive advances again"),
            WalEvent::ChainBroken { hole } => {
                self.wants_full = true;
                let (from, to) = (hole.from, hole.to);
                let text = format!(
                    "the chain is broken: WAL from {from} to {to} is lost; a full backup begins"
                );
                self.alert("broken", &text);
            }
        }
    }

    pub(super) fn trouble(&self, reason: String) {
        let at = self.shared.clock.now();
        let known = self.views.borrow().trouble.clone();
        if known.as_ref().is_none_or(|(_, known)| *known != reason) {
            tracing::warn!(scope = %self.scope, store = %self.store, reason, "nothing is backed up");
        }
        let since = known.map_or(at, |(since, _)| since);
        self.show(|view| {
            view.trouble = Some((since, reason));
        });
    }

    pub(super) fn well(&mut self) {
        self.show(|view| view.trouble = None);
        if std::mem::take(&mut self.told) {
            self.alert("on-time", "it is backed up again");
        }
    }

    pub(super) fn tell_trouble(&mut self) {
        if self.told {
            return;
        }
        let trouble = self.views.borrow().trouble.clone();
        let Some((since, reason)) = trouble else {
            return;
        };
        if self.shared.clock.now().since(since) >= TOLD_AFTER {
            self.told = true;
            self.alert("late", &format!("nothing is backed up: {reason}"));
        }
    }

    /// Tells once what is wrong, and once that it is over; also what a server that died had told.
    pub(super) async fn tell_standing(&mut self) {
        let standing = self.views.borrow().standing(self.shared.clock.now());
        let told = &self.book.told;
        let news = standing.iter().any(|(topic, _)| !told.contains_key(topic));
        if !news && told.keys().all(|topic| standing.contains_key(topic)) {
            return;
        }
        let before = std::mem::take(&mut self.book.told);
        for (topic, text) in &before {
            match standing.contains_key(topic) {
                true => drop(self.book.told.insert(topic.clone(), text.clone())),
                false => self.alert("well", &format!("this is over: {text}")),
            }
        }
        for (topic, (state, text)) in standing {
            if !before.contains_key(&topic) {
                self.alert(state, &text);
                self.book.told.insert(topic, text);
            }
        }
        self.save_soon().await;
    }

    /// The disks that get full, of those that the store and what waits for the repository lie on.
    pub(super) fn full_disks(&self) -> BTreeMap<String, String> {
        let store = stores::places(&self.shared, &self.scope, &self.server).folder;
        let spool = work::scratch(&self.shared, &self.scope, &self.server);
        let disk = |folder: &Path| fs::metadata(folder).ok().map(|about| about.dev());
        let spool = Some(spool).filter(|spool| disk(spool) != disk(&store));
        let full = |(topic, folder): (&str, PathBuf)| {
            let told = rustix::fs::statvfs(&folder).ok()?;
            let bytes = |blocks: u64| Bytes(blocks.saturating_mul(told.f_frsize));
            // As `df` counts: what root alone may use is neither taken nor free.
            let taken = told.f_blocks.saturating_sub(told.f_bfree);
            let percent = (taken * 100).div_ceil((taken + told.f_bavail).max(1));
            let most = match self.book.told.contains_key(topic) {
                true => CALM_PERCENT,
                false => FULL_PERCENT,
            };
            let (folder, free) = (folder.display(), bytes(told.f_bavail));
            let text = format!("the disk of `{folder}` is {percent} % full: {free} are left");
            (percent >= most).then(|| (topic.to_owned(), text))
        };
        let spool = spool.map(|spool| ("disk of the log", spool));
        let both = [("disk of the store", store)].into_iter().chain(spool);
        both.filter_map(full).collect()
    }

    /// Tells whoever the manifest names, and the log.
    pub(super) fn alert(&self, state: &str, text: &str) {
        let (scope, store) = (&self.scope, &self.store);
        tracing::error!(%scope, %store, state, "backups: {text}");
        let view = self.views.borrow().clone();
        let message = json!({
            "alert": "backup",
            "environment": scope.to_string(),
            "store": store.to_string(),
            "state": state,
            "text": text,
            "restorable_to": view.restorable_to().map(|at: Timestamp| at.to_string()),
            "at": self.shared.clock.now().to_string(),
        });
        let url = self.shared.environment(scope).and_then(|view| {
            let (_, body) = view.bodies.last_key_value()?;
            body.spec.deploy.webhook.clone()
        });
        if let Some(url) = url {
            self.shared.stores.spawn(async move {
                webhook::deliver(&url, &message.to_string(), "an alert of backups").await;
            });
        }
    }
}
