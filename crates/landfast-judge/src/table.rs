//! The verdict as a table for people.

use std::fmt::{self, Display};

use crate::tally::Verdict;

/// Samples shown.
const SAMPLES_SHOWN: usize = 10;

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = &self.latency;
        writeln!(
            f,
            "run {}: {:.1} s at {} requests/s",
            self.run, self.seconds, self.rate
        )?;
        writeln!(
            f,
            "  {:<11} {:>9} {:>9} {:>6} {:>7}",
            "kind", "sent", "answered", "lost", "faults"
        )?;
        for (kind, totals) in &self.kinds {
            let kind = format!("{kind:?}").to_lowercase();
            writeln!(
                f,
                "  {kind:<11} {:>9} {:>9} {:>6} {:>7}",
                totals.sent, totals.answered, totals.lost, totals.faults
            )?;
        }
        writeln!(
            f,
            "  {:<11} {:>9} {:>9} {:>6} {:>7}",
            "all", self.requests, self.answered, self.lost_total, self.faults
        )?;
        for (release, totals) in &self.releases {
            let statuses: Vec<String> = totals
                .statuses
                .iter()
                .map(|(status, count)| format!("{status}: {count}"))
                .collect();
            writeln!(
                f,
                "  release {release}: {} answers ({}), {} faults, {} streams, p99 {:.1} ms",
                totals.answers,
                statuses.join(", "),
                totals.faults,
                totals.streams_opened,
                totals.latency.p99_ms
            )?;
        }
        writeln!(
            f,
            "  latency ms: p50 {:.1}, p95 {:.1}, p99 {:.1}, max {:.1}",
            latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms
        )?;
        let connections = &self.connections;
        writeln!(
            f,
            "  connections: {} opened, {} times reused, {} closed idle, {} closed as announced",
            connections.opened,
            connections.reused,
            connections.closed_idle,
            connections.closed_announced
        )?;
        if self.limited > 0 {
            writeln!(
                f,
                "  refused over their rate (429), not lost: {}",
                self.limited
            )?;
        }
        let streams = &self.streams;
        writeln!(
            f,
            "  streams: {} opened, {} moved (1012), {} ended between events, {} cut; {} messages, {} echoes, {} events",
            streams.opened,
            streams.moved,
            streams.ended,
            streams.cut,
            streams.messages,
            streams.echoes,
            streams.events
        )?;
        match &self.receipts {
            Some(receipts) => writeln!(
                f,
                "  receipts: {} acknowledged, {} found in {} files, {} missing, {} doubled",
                receipts.acknowledged,
                receipts.found,
                receipts.files,
                receipts.missing,
                receipts.doubled
            )?,
            None => writeln!(f, "  receipts: not compared")?,
        }
        for (name, by_reason, samples) in [
            ("lost", &self.lost_by_reason, &self.lost),
            ("cut", &self.cut_by_reason, &self.cuts),
        ] {
            for (reason, count) in by_reason {
                writeln!(f, "  {name}: {count} × {reason:?}")?;
            }
            for sample in samples.iter().take(SAMPLES_SHOWN) {
                let kept = if sample.kept { "kept" } else { "new" };
                writeln!(
                    f,
                    "    {} {:?} {:?} on a {kept} connection of {} ms: {}{}",
                    sample.at,
                    sample.kind,
                    sample.reason,
                    sample.connection_age_ms,
                    sample.detail,
                    sample
                        .id
                        .as_ref()
                        .map_or(String::new(), |id| format!(" ({id})"))
                )?;
            }
        }
        if !self.valid {
            writeln!(
                f,
                "  INVALID: the judge itself was late {} times (worst {:.0} ms), failed {} times, {} answers cannot be judged",
                self.judge_late,
                self.judge_late_worst_ms,
                self.judge_faults,
                self.judge_late_answers
            )?;
        }
        let verdict = if self.is_clean() {
            "clean"
        } else {
            "not clean"
        };
        write!(
            f,
            "verdict: {verdict}: {} lost, {} streams cut",
            self.lost_total, self.streams_cut
        )
    }
}
