//! Migrations tried on a copy: what each costs, and whether that is within its budget.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use landfast_datastore::Login;
use landfast_migration::{Engine, MigrationSet};
use landfast_migrator::{MigratorError, Observed, Options, Progress, Session, Stage};
use landfast_spec::{AppSpec, Rehearsal as Budget};
use landfast_types::{Bytes, Digest, Secret, StoreName, format_duration};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{HandError, read_set};
use crate::{
    actions::chain,
    client::now,
    platform::Platform,
    shared::Shared,
    stores::{self, DatabaseCopy},
};

/// What a rehearsal came to.
#[derive(Debug, Clone)]
pub struct Rehearsed {
    pub engine: Engine,
    /// The size of the database.
    pub copied: Bytes,
    /// How long making the copy took.
    pub copying: Duration,
    pub migrations: Vec<Trial>,
    /// Why not all of them ran.
    pub failure: Option<String>,
    /// That was the connection, or a lock, and says nothing of the migrations.
    pub is_cut_short: bool,
}

/// One migration on the copy. Kept in the journal: fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    pub observed: Observed,
    /// Where it costs more than its budget, in words.
    pub exceeded: Vec<String>,
}

impl Rehearsed {
    /// What speaks against running them, in one line.
    ///
    /// # Errors
    /// That.
    pub fn verdict(&self) -> Result<String, String> {
        let mut against: Vec<String> = Vec::new();
        for trial in &self.migrations {
            let title = &trial.observed.migration;
            against.extend(trial.exceeded.iter().map(|why| format!("`{title}` {why}")));
        }
        against.extend(self.failure.clone());
        if !against.is_empty() {
            return Err(against.join("; "));
        }
        let longest = self
            .migrations
            .iter()
            .map(|trial| trial.observed.took)
            .max();
        Ok(match longest {
            None => "nothing was to be run".to_owned(),
            Some(longest) => format!(
                "{} migrations ran on a copy, the longest took {}",
                self.migrations.len(),
                format_duration(rounded(longest))
            ),
        })
    }
}

impl Platform {
    /// Runs what is pending on a copy of a database, and removes the copy. It ends when nobody receives progress any more.
    ///
    /// # Errors
    /// [`HandError`]: the copy was not made. A migration that fails is part of the answer.
    pub async fn rehearse(
        &self,
        spec: &AppSpec,
        artifacts: &BTreeMap<String, Digest>,
        store: &StoreName,
        progress: mpsc::Sender<String>,
    ) -> Result<Rehearsed, HandError> {
        let tell = |text: String| {
            if progress.try_send(text).is_err() {
                tracing::debug!("progress was not told");
            }
        };
        tokio::select! {
            rehearsed = rehearse(self.shared(), spec, artifacts, store, tell) => rehearsed,
            () = progress.closed() => Err(HandError::Ended),
        }
    }
}

/// The same for whoever waits for the end alone. Dropped in the middle, the copy goes.
pub(crate) async fn rehearse(
    shared: &Arc<Shared>,
    spec: &AppSpec,
    artifacts: &BTreeMap<String, Digest>,
    store: &StoreName,
    tell: impl Fn(String) + Send + Sync,
) -> Result<Rehearsed, HandError> {
    let set = read_set(shared, spec, artifacts, store).await?;
    let begun = now();
    let served_by = stores::served_by(shared, &spec.scope(), None, store);
    let copy = DatabaseCopy::make(shared, &spec.scope(), &served_by, &tell).await;
    let copy = copy.map_err(|refusal| HandError::Refused(vec![refusal]))?;
    let copying = now().duration_since(begun);
    let budget = spec.stores.get(store).and_then(|one| one.rehearsal.clone());
    let tried = on_copy(&set, &copy.url, &budget.unwrap_or_default(), &tell).await;
    let tried = tried.map_err(|source| HandError::Migrator {
        store: store.clone(),
        source,
    })?;
    let copied = copy.size;
    copy.remove().await;
    Ok(Rehearsed {
        copied,
        copying,
        ..tried
    })
}

/// Runs what is pending on a copy that is there.
///
/// # Errors
/// [`MigratorError`]: it was not reached. A migration that fails is part of the answer.
pub(crate) async fn on_copy(
    set: &MigrationSet,
    url: &Secret<String>,
    budget: &Budget,
    tell: &(impl Fn(String) + Send + Sync),
) -> Result<Rehearsed, MigratorError> {
    let mut session = Session::connect(set.engine(), url).await?;
    let options = Options {
        release: Some("rehearsal".to_owned()),
        ..Options::default()
    };
    let mut listener = |step: Progress| tell(step.sentence());
    let (seen, ran) = session
        .rehearse(set, Stage::All, &options, &mut listener)
        .await;
    let trial = |observed: Observed| Trial {
        exceeded: exceeded(budget, &observed),
        observed,
    };
    Ok(Rehearsed {
        engine: set.engine(),
        copied: Bytes(0),
        copying: Duration::ZERO,
        migrations: seen.into_iter().map(trial).collect(),
        is_cut_short: ran.as_ref().is_err_and(|error| error.is_of_the_moment()),
        failure: ran.err().map(|error| explained(chain(&error))),
    })
}

/// What a server says to whoever leaves the copy, with what helps.
fn explained(failure: String) -> String {
    // As MariaDB writes it, for a database as for a table of one.
    if failure.contains(&format!("user '{}'@", Login::Rehearsal)) {
        return format!(
            "{failure}; a rehearsal reaches its copy alone: leave the database's name and `USE` out of the migration"
        );
    }
    failure
}

/// Where a migration costs more than it may.
fn exceeded(budget: &Budget, seen: &Observed) -> Vec<String> {
    let mut found = Vec::new();
    let words = |duration: Duration| format_duration(rounded(duration));
    if let Some(may) = budget.duration.filter(|may| seen.took > *may) {
        let (took, may) = (words(seen.took), words(may));
        found.push(format!("took {took}, and may take {may}"));
    }
    let longest = seen.longest_lock();
    if let Some(may) = budget.lock.filter(|may| longest > *may) {
        let table = seen.locks.iter().find(|lock| lock.held == longest);
        let table = table.map_or("a table", |lock| &lock.table);
        let (held, may) = (words(longest), words(may));
        found.push(format!(
            "kept `{table}` locked for {held}, and may for {may}"
        ));
    }
    if let Some((wrote, may)) = seen.wal_bytes.map(Bytes).zip(budget.wal)
        && wrote > may
    {
        found.push(format!("wrote {wrote} to the log, and may write {may}"));
    }
    if let Some(may) = budget.rewrites
        && seen.rewritten.len() > may as usize
    {
        let tables = seen.rewritten.join("`, `");
        found.push(format!(
            "wrote `{tables}` anew, and may do so with {may} tables"
        ));
    }
    found
}

/// To the millisecond: nobody reads further.
fn rounded(duration: Duration) -> Duration {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use landfast_migrator::{Strength, TableLock};

    use super::*;

    fn seen() -> Observed {
        let lock = |table: &str, strength, millis| TableLock {
            table: table.to_owned(),
            mode: "some".to_owned(),
            strength,
            held: Duration::from_millis(millis),
        };
        Observed {
            migration: "0002_wide".to_owned(),
            took: Duration::from_millis(1_500),
            locks: vec![
                lock("items", Strength::Everybody, 1_400),
                lock("shops", Strength::Neither, 1_500),
            ],
            rewritten: vec!["items".to_owned()],
            wal_bytes: Some(2 << 20),
            ways: Vec::new(),
        }
    }

    #[test]
    fn each_budget_is_held_against_what_was_seen() {
        let all = Budget {
            duration: Some(Duration::from_secs(1)),
            lock: Some(Duration::from_secs(1)),
            wal: Some(Bytes(1 << 20)),
            rewrites: Some(0),
        };
        assert_eq!(
            exceeded(&all, &seen()),
            [
                "took 1s 500ms, and may take 1s",
                "kept `items` locked for 1s 400ms, and may for 1s",
                "wrote 2MiB to the log, and may write 1MiB",
                "wrote `items` anew, and may do so with 0 tables",
            ]
        );
        let enough = Budget {
            duration: Some(Duration::from_secs(2)),
            lock: Some(Duration::from_millis(1_400)),
            wal: Some(Bytes(2 << 20)),
            rewrites: Some(1),
        };
        assert_eq!(exceeded(&enough, &seen()), [""; 0]);
        assert_eq!(exceeded(&Budget::default(), &seen()), [""; 0]);
    }
}
