//! What a doctor finds, on the wire.

use landfast_api::{Diagnosis, Finding, FindingLevel};
use landfast_doctor::Level;

/// Converts findings; the worst of them is the diagnosis.
pub fn diagnosis(findings: Vec<landfast_doctor::Finding>) -> Diagnosis {
    let worst = findings.iter().map(|one| one.level).max();
    Diagnosis {
        level: level(worst.unwrap_or(Level::Ok)),
        findings: findings.into_iter().map(finding).collect(),
    }
}

fn finding(one: landfast_doctor::Finding) -> Finding {
    Finding {
        check: one.check.to_owned(),
        level: level(one.level),
        measured: one.measured,
        advice: one.advice,
    }
}

fn level(level: Level) -> FindingLevel {
    match level {
        Level::Ok => FindingLevel::Ok,
        Level::Warn => FindingLevel::Warn,
        Level::Fail => FindingLevel::Fail,
    }
}
