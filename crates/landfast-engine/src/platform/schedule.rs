//! Rotations by the clock, as the manifest that serves says: `[stores.main] rotate = …`, `[secrets.TOKEN] rotate = …`.
//!
//! Since when a line counts is a document of the journal, moved on with each time that was kept; so a time that was
//! missed while the server was away is made up for once. What a time begins is written down before it is done. Nothing
//! begins while a rollout is under way, for a restart would end its standby, nor while somebody migrates by hand.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use landfast_datastore::Phase;
use landfast_secrets::{Alphabet, rotation::RotationRejected};
use landfast_spec::{CronLine, SecretSpec};
use landfast_types::{Scope, StoreName, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{DeployError, Platform, RotateError};
use crate::{
    actions::chain,
    driver::{CommandError, View},
    release::ReleaseBody,
    secrets::{NewValue, SecretCall},
    stores,
};

/// The journal's collection of what is rotated by the clock.
const COLLECTION: &str = "rotation-schedules";
/// The wall clock may be set at any time.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// A time kept further ahead of the clock than this was told by a clock that went wrong.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Who did it, for the history.
const BY: &str = "schedule";

/// A schedule and how far it was kept. Read by later versions: fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    line: CronLine,
    /// Times after this one have not come yet.
    since: Timestamp,
    /// The version of the secret when a rotation began that is not at its end.
    #[serde(default)]
    owed_from: Option<u64>,
}

impl Kept {
    fn new(line: &CronLine, since: Timestamp) -> Self {
        Self {
            line: line.clone(),
            since,
            owed_from: None,
        }
    }

    /// What of a schedule that was kept holds still: one that was written anew counts from now on, and so does one that a wrong
    /// clock has moved into the future. What was begun is brought to its end.
    fn fitted(mut self, line: &CronLine, now: Timestamp) -> Self {
        if self.line != *line || self.since > now + AHEAD_MAX {
            self.line.clone_from(line);
            self.since = now;
        }
        self
    }

    /// The time that has come, if one has.
    fn due(&self, now: Timestamp) -> Option<Timestamp> {
        self.line.next_after(self.since).filter(|at| *at <= now)
    }
}

/// Keeps the schedules of all environments, until another server has taken over.
pub(super) async fn run(platform: Weak<Platform>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(platform) = platform.upgrade() else {
            return;
        };
        if platform.shared.replaced.borrow().is_some() {
            return;
        }
        for view in platform.environments() {
            let state = &view.state;
            let serving = state.serving.filter(|_| state.rollout.is_none());
            let is_still = state.queued.is_none() && state.by_hand.is_none() && !state.stopped;
            let serving = serving.filter(|_| is_still);
            if let Some(body) = serving.and_then(|release| view.bodies.get(&release)) {
                platform.keep_schedules(&view, body).await;
            }
        }
    }
}

impl Platform {
    async fn keep_schedules(&self, view: &View, body: &ReleaseBody) {
        let scope = &view.state.scope;
        for (name, store) in &body.spec.stores {
            let Some(line) = &store.rotate else { continue };
            if let Err(reason) = self.keep_store(scope, name, line).await {
                tracing::warn!(%scope, store = %name, reason, "its password is not changed by the clock yet");
            }
        }
        for (name, secret) in &body.spec.secrets {
            if let Err(reason) = self.keep_secret(view, body, name, secret).await {
                tracing::warn!(%scope, secret = name, reason, "not rotated by the clock yet");
            }
        }
    }

    async fn keep_store(
        &self,
        scope: &Scope,
        name: &StoreName,
        line: &CronLine,
    ) -> Result<(), String> {
        let key = format!("{scope}/store/{name}");
        let (mut kept, revision) = self.load(&key, line).await?;
        let now = self.shared.clock.wall();
        let Some(due) = kept.due(now) else {
            return Ok(());
        };
        let name = &stores::served_by(&self.shared, scope, None, name);
        let stores = self.shared.stores.of(scope);
        let mut known = stores.iter().map(|view| &view.store);
        let is_ready = |phase: &Phase| matches!(phase, Phase::Ready { .. });
        // It is asked again: a store that is away is told of elsewhere.
        if !known.any(|store| store.name == *name && is_ready(&store.phase)) {
            return Ok(());
        }
        let rotation = self.shared.stores.rotation(scope, name);
        let begun = rotation.and_then(|view| view.begun.as_ref().map(|(at, _)| *at));
        if begun.is_none_or(|begun| begun < due) {
            match self.rotate_store(scope, name, BY.to_owned()).await {
                Ok(_) => {
                    tracing::info!(%scope, store = %name, "its password is changed by the clock")
                }
                // Whoever began it: there will be a new one.
                Err(RotateError::Store(stores::CommandError::Rotation(
                    RotationRejected::UnderWay,
                ))) => {}
                Err(error) => return Err(chain(&error)),
            }
        }
        kept.since = now;
        self.save(&key, &kept, revision).await.map(drop)
    }

    async fn keep_secret(
        &self,
        view: &View,
        body: &ReleaseBody,
        name: &str,
        secret: &SecretSpec,
    ) -> Result<(), String> {
        let scope = &view.state.scope;
        let key = format!("{scope}/secret/{name}");
        let (mut kept, mut revision) = self.load(&key, &secret.rotate).await?;
        let now = self.shared.clock.wall();
        let current = async || {
            let (shared, scope) = (Arc::clone(&self.shared), scope.clone());
            let listed = blocking(move || shared.secrets.current(&shared.journal, &scope)).await?;
            let versions = listed.map_err(|error| chain(&error))?;
            let version = versions.get(name).copied();
            version.ok_or_else(|| {
                format!("there is no secret `{name}`: `landfast secret set {name}` gives it its first value")
            })
        };
        if kept.owed_from.is_none() {
            if kept.due(now).is_none() {
                return Ok(());
            }
            kept.owed_from = Some(current().await?);
            kept.since = now;
            revision = self.save(&key, &kept, revision).await?;
        }
        let Some(before) = kept.owed_from else {
            return Ok(());
        };
        if current().await? == before {
            self.generate(view, name, secret).await?;
        }
        let version = current().await?;
        if body
            .secrets
            .get(name)
            .is_some_and(|pinned| *pinned < version)
        {
            let versions = BTreeMap::from([(name.to_owned(), version)]);
            let note = format!("secret {name} rotated by the clock");
            let renewed = async {
                let renewal = self.may_renew(scope).await?;
                self.renew(&renewal, &versions, BY.to_owned(), note).await
            };
            match renewed.await {
                Ok(_) => tracing::info!(%scope, secret = name, version, "rotated by the clock"),
                // Somebody was faster: it is brought to the instances when that is over.
                Err(
                    DeployError::Command(CommandError::Rejected(_)) | DeployError::StandsBy { .. },
                ) => return Ok(()),
                Err(error) => return Err(chain(&error)),
            }
        }
        kept.owed_from = None;
        self.save(&key, &kept, revision).await.map(drop)
    }

    async fn generate(&self, view: &View, name: &str, secret: &SecretSpec) -> Result<(), String> {
        let (length, alphabet) = (secret.length, Alphabet::from_word(&secret.alphabet));
        let alphabet = alphabet.ok_or_else(|| format!("`{}` is no alphabet", secret.alphabet))?;
        let pins = view
            .bodies
            .values()
            .filter_map(|body| body.secrets.get(name));
        let pins = pins.copied().collect();
        let (shared, scope) = (Arc::clone(&self.shared), view.state.scope.clone());
        let name = name.to_owned();
        let rotated = blocking(move || {
            let call = SecretCall {
                journal: &shared.journal,
                now: shared.clock.now(),
                scope: &scope,
                by: BY,
            };
            let value = NewValue::Generated { length, alphabet };
            let pinned = |_name: &str| std::collections::BTreeSet::clone(&pins);
            let rotated = shared.secrets.rotate(&call, &name, value, &pinned);
            shared.position.send_modify(|_| {});
            rotated
        });
        let rotated = rotated.await?;
        rotated.map(drop).map_err(|error| chain(&error))
    }

    /// A schedule with the revision of its document. One that is new, or was written anew, counts from now on.
    async fn load(&self, key: &str, line: &CronLine) -> Result<(Kept, u64), String> {
        let (shared, owned) = (Arc::clone(&self.shared), key.to_owned());
        let found = blocking(move || shared.journal.get(COLLECTION, &owned)).await?;
        let found = found.map_err(|error| chain(&error))?;
        let revision = found.as_ref().map_or(0, |document| document.revision);
        let known = found.map(|document| serde_json::from_slice::<Kept>(&document.body));
        let known = known.transpose().map_err(|error| error.to_string())?;
        let now = self.shared.clock.wall();
        let kept = known.clone().map(|kept| kept.fitted(line, now));
        let kept = kept.unwrap_or_else(|| Kept::new(line, now));
        if known.as_ref() == Some(&kept) {
            return Ok((kept, revision));
        }
        let revision = self.save(key, &kept, revision).await?;
        Ok((kept, revision))
    }

    async fn save(&self, key: &str, kept: &Kept, revision: u64) -> Result<u64, String> {
        let body = serde_json::to_vec(kept).map_err(|error| error.to_string())?;
        let (shared, key) = (Arc::clone(&self.shared), key.to_owned());
        let put = blocking(move || shared.journal.put(COLLECTION, &key, Some(revision), body));
        let put = put.await?;
        put.map_err(|error| chain(&error))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    fn at(text: &str) -> Timestamp {
        let instant: jiff::Timestamp = text.parse().unwrap();
        Timestamp::from_micros(instant.as_microsecond())
    }

    fn line(text: &str) -> CronLine {
        CronLine::new(text).unwrap()
    }

    /// Looks from one instant to another; gives the times that came due, and when each was seen to be.
    fn kept_between(
        kept: &mut Kept,
        from: Timestamp,
        until: Timestamp,
        mut pause: impl FnMut() -> Duration,
    ) -> Vec<(Timestamp, Timestamp)> {
        let (mut now, mut fired) = (from, Vec::new());
        while now <= until {
            if let Some(due) = kept.due(now) {
                fired.push((due, now));
                kept.since = now;
            }
            now = now + pause();
        }
        fired
    }

    #[test]
    fn a_time_that_was_missed_is_made_up_for_once() {
        let mut kept = Kept::new(&line("0 3 * * * UTC"), at("2026-11-20T12:00:00Z"));
        assert_eq!(kept.due(at("2026-11-21T02:59:59Z")), None);
        // The server was away for two days.
        let now = at("2026-11-23T10:00:00Z");
        assert_eq!(kept.due(now), Some(at("2026-11-21T03:00:00Z")));
        kept.since = now;
        assert_eq!(kept.due(now), None);
        assert_eq!(
            kept.due(at("2026-11-24T03:00:00Z")),
            Some(at("2026-11-24T03:00:00Z"))
        );
    }

    /// A year of looks, the changes of the clocks in Berlin included.
    #[test]
    fn every_night_of_a_year_fires_once_and_within_one_look() {
        let (from, until) = (at("2026-01-01T12:00:00Z"), at("2027-01-01T12:00:00Z"));
        let line = line("30 2 * * * Europe/Berlin");
        let mut nights = Vec::new();
        let mut night = line.next_after(from);
        while let Some(found) = night.filter(|night| *night <= until) {
            nights.push(found);
            night = line.next_after(found);
        }
        // On 29 March there is no half past two, on 25 October there are two.
        assert!((364..=366).contains(&nights.len()), "{}", nights.len());
        let look = Duration::from_secs(600);
        let mut kept = Kept::new(&line, from);
        let fired = kept_between(&mut kept, from, until, || look);
        let due: Vec<_> = fired.iter().map(|(due, _)| *due).collect();
        assert_eq!(due, nights);
        assert!(fired.iter().all(|(due, seen)| *seen < *due + look));
    }

    /// However long and often the server is away: each time that passes is made up for at the first look after it, and what was
    /// missed together is one rotation.
    #[test]
    fn no_time_is_lost_and_none_counts_twice_however_often_the_server_is_away() {
        let (from, until) = (at("2026-01-01T00:00:00Z"), at("2026-03-01T00:00:00Z"));
        for seed in 0..20 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut kept = Kept::new(&line("0 */6 * * * UTC"), from);
            let mut looks = vec![from];
            let fired = kept_between(&mut kept, from, until, || {
                let away = random.random_bool(0.02);
                let pause = Duration::from_secs(if away {
                    random.random_range(3_600..400_000)
                } else {
                    900
                });
                looks.push(looks[looks.len() - 1] + pause);
                pause
            });
            let expected: Vec<_> = looks
                .windows(2)
                .filter_map(|pair| {
                    let due = kept.line.next_after(pair[0])?;
                    (due <= pair[1] && pair[1] <= until).then_some((due, pair[1]))
                })
                .collect();
            assert_eq!(fired, expected, "seed {seed}");
            assert!(fired.len() > 15, "seed {seed}: {}", fired.len());
        }
    }

    #[test]
    fn a_clock_that_is_set_back_fires_nothing_twice_and_one_that_was_far_ahead_is_forgotten() {
        let line = line("0 3 * * * UTC");
        let mut kept = Kept::new(&line, at("2026-11-20T12:00:00Z"));
        kept.since = at("2026-11-21T03:00:10Z");
        // An hour back: three o'clock comes again, and is done already.
        let now = at("2026-11-21T02:00:10Z");
        let kept = kept.fitted(&line, now);
        assert_eq!(kept.due(at("2026-11-21T03:00:05Z")), None);
        assert!(kept.due(at("2026-11-22T03:00:00Z")).is_some());

        // Ten years ahead for a moment: nothing would come due for as long.
        let mut lost = kept.clone();
        lost.since = at("2036-11-21T00:00:00Z");
        lost.owed_from = Some(7);
        let found = lost.fitted(&line, now);
        assert_eq!(found.since, now);
        assert_eq!(found.owed_from, Some(7), "what was begun is owed still");
        assert!(found.due(at("2026-11-21T03:00:00Z")).is_some());

        // Another line counts from when it was seen.
        let other = CronLine::new("0 1 * * * UTC").unwrap();
        let found = kept.fitted(&other, now);
        assert_eq!((found.line, found.since), (other, now));
    }
}
