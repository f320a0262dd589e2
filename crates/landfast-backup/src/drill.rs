//! What a drill has shown.

use std::time::Duration;

use landfast_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Lsn;

/// How long each part of a drill took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrillPhases {
    /// Reading the ledger and choosing.
    pub plan: Duration,
    /// Files.
    pub restore: Duration,
    /// WAL, until the server is out of recovery.
    pub replay: Duration,
    pub checks: Duration,
}

impl DrillPhases {
    /// Until the database would have served: without the checks.
    pub fn rto(&self) -> Duration {
        self.plan + self.restore + self.replay
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// `pg_amcheck`, `pg_checksums`, `schema`, or the name of the user's own.
    pub name: String,
    /// What was wrong; `None` where nothing was. Told to webhooks, so nothing of the database is in it.
    pub wrong: Option<String>,
    /// What a check of the user's own gave, or the server said to it, where that was wrong: for whoever may see the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave: Option<String>,
}

impl Check {
    /// A check that passed, or what was wrong.
    pub fn of(name: impl Into<String>, wrong: Result<(), String>) -> Self {
        Self {
            name: name.into(),
            wrong: wrong.err(),
            gave: None,
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillFacts {
    /// Where the ledger says it had to end.
    pub wanted: Lsn,
    /// Where it ended.
    pub reached: Lsn,
    pub is_in_recovery: bool,
    /// The newest heartbeat row in the restored database.
    pub newest: Option<Timestamp>,
    /// When the drill began.
    pub begun: Timestamp,
    pub checks: Vec<Check>,
}

/// Whether a backup is proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It was restored, and nothing was wrong. The time is what would have been lost had the host gone when it began.
    Passed { rpo: Option<Duration> },
    /// Each reason on its own.
    Failed { reasons: Vec<String> },
}

/// Judges a drill. A drill that checked nothing has not passed.
pub fn judge_drill(facts: &DrillFacts) -> Verdict {
    let mut reasons = Vec::new();
    if facts.is_in_recovery {
        reasons.push("the server is still in recovery".to_owned());
    }
    if facts.reached != facts.wanted {
        let (reached, wanted) = (facts.reached, facts.wanted);
        reasons.push(format!("it ended at {reached} instead of {wanted}"));
    }
    if facts.checks.is_empty() {
        reasons.push("nothing was checked".to_owned());
    }
    for check in &facts.checks {
        if let Some(wrong) = &check.wrong {
            reasons.push(format!("{}: {wrong}", check.name));
        }
    }
    if reasons.is_empty() {
        let rpo = facts.newest.map(|newest| facts.begun.since(newest));
        return Verdict::Passed { rpo };
    }
    Verdict::Failed { reasons }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> DrillFacts {
        DrillFacts {
            wanted: Lsn(9),
            reached: Lsn(9),
            is_in_recovery: false,
            newest: Some(Timestamp::from_millis(10_000)),
            begun: Timestamp::from_millis(14_000),
            checks: vec![Check::of("pg_amcheck", Ok(()))],
        }
    }

    #[test]
    fn passes_only_when_everything_was_seen_to_be_right() {
        let rpo = Some(Duration::from_secs(4));
        assert_eq!(judge_drill(&facts()), Verdict::Passed { rpo });
        let broken: [fn(&mut DrillFacts); 4] = [
            |facts| facts.is_in_recovery = true,
            |facts| facts.reached = Lsn(8),
            |facts| facts.checks.clear(),
            |facts| facts.checks[0].wrong = Some("a heap is damaged".into()),
        ];
        for break_it in broken {
            let mut facts = facts();
            break_it(&mut facts);
            assert!(
                matches!(judge_drill(&facts), Verdict::Failed { reasons } if reasons.len() == 1)
            );
        }
    }
}
