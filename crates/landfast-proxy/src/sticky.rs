//! Sticky sessions on the way in and out; what a cookie leads to is decided in `landfast_routing::sticky`.

use std::sync::atomic::Ordering;

use http::{HeaderMap, header::SET_COOKIE};
use landfast_routing::{
    files::FilePath,
    sticky::{self, Pin},
};
use landfast_types::ReleaseId;

use crate::{backend::Backend, shared::Live};

/// What a client of a sticky service brought.
#[derive(Debug, Clone)]
pub(crate) struct Sticky {
    cookie: String,
    pub(crate) held: Option<Pin>,
    is_https: bool,
}

impl Sticky {
    /// Nothing where the service lets its clients go anywhere.
    pub(crate) fn of(
        live: &Live,
        service: usize,
        headers: &HeaderMap,
        is_https: bool,
    ) -> Option<Self> {
        let cookie = live.table.services[service].sticky.clone()?;
        Some(Self {
            held: Pin::read(headers, &cookie),
            cookie,
            is_https,
        })
    }

    /// Tells the client where it was answered, unless it knows.
    pub(crate) fn keep(&self, backend: &Backend, fields: &mut HeaderMap) {
        self.set(
            Pin {
                release: sticky::release_tag(&backend.service, backend.release),
                backend: sticky::backend_tag(&backend.id),
            },
            fields,
        );
    }

    /// The same where a page of a release was served, and no instance was asked yet.
    pub(crate) fn keep_release(
        &self,
        live: &Live,
        service: usize,
        release: ReleaseId,
        fields: &mut HeaderMap,
    ) {
        let release = sticky::release_tag(&live.table.services[service].key, release);
        if self.held.is_none_or(|held| held.release != release) {
            self.set(
                Pin {
                    release,
                    backend: 0,
                },
                fields,
            );
        }
    }

    fn set(&self, pin: Pin, fields: &mut HeaderMap) {
        if self.held != Some(pin) {
            fields.append(SET_COOKIE, pin.set_cookie(&self.cookie, self.is_https));
        }
    }
}

/// The release whose files answer a client: its own, or the one whose turn it is. Nothing where no release has
/// weight.
pub(crate) fn release_for(
    live: &Live,
    service: usize,
    preview: bool,
    held: Option<Pin>,
    path: Option<&FilePath>,
) -> Option<ReleaseId> {
    let entry = &live.table.services[service];
    let state = &live.services[service];
    let by_turn = || {
        let is_page = path.is_some_and(FilePath::is_page);
        let turn = if is_page {
            &state.page_turn
        } else {
            &state.asset_turn
        };
        let place = entry.schedule.pick(turn.fetch_add(1, Ordering::Relaxed))?;
        Some(entry.groups[place])
    };
    let group = if preview {
        entry.preview
    } else {
        let pinned = held.and_then(|pin| pin.resolve(&live.table, service));
        pinned.map(|pinned| pinned.group).or_else(by_turn)
    };
    Some(live.table.groups[group?].release)
}
