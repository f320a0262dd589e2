//! What came back, held against what was acknowledged.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use landfast_backup_postgres::Server;

use crate::writers::{Ack, Log, connect};

/// Rows side by side are one island.
const ISLANDS: &str = "SELECT writer, min(n), max(n) FROM (SELECT writer, n, n - row_number() \
    OVER (PARTITION BY writer ORDER BY n) AS island FROM acked) s GROUP BY writer, island";
const DAMAGED: &str = "SELECT count(*) FROM acked WHERE pad IS DISTINCT FROM repeat(md5(writer || '/' || n), (1 + n % 8)::int)";

/// What a copy has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rows(BTreeMap<i32, Vec<(i64, i64)>>);

/// What is missing in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Missing {
    pub(crate) rows: u64,
    /// The first commit that is missing in part or whole.
    pub(crate) first: Option<Ack>,
}

impl Missing {
    /// From the first lost commit to an instant.
    pub(crate) fn age(&self, end: Instant) -> Duration {
        let first = self.first.map(|ack| end.saturating_duration_since(ack.at));
        first.unwrap_or_default()
    }
}

impl Rows {
    /// Reads them; fails on a row that nobody sent, or one that is not as it was sent.
    pub(crate) async fn read(server: &Server, log: &Log) -> anyhow::Result<Self> {
        let client = connect(Path::new(&server.host), server.port, "postgres").await?;
        let damaged: i64 = client.query_one(DAMAGED, &[]).await?.get(0);
        ensure!(damaged == 0, "{damaged} rows are not as they were sent");
        let mut rows = BTreeMap::<i32, Vec<(i64, i64)>>::new();
        for row in client.query(ISLANDS, &[]).await? {
            let (writer, from, to) = (row.get(0), row.get(1), row.get::<_, i64>(2));
            let sent = log.sent.get(&writer).copied().unwrap_or_default();
            ensure!(
                to <= sent,
                "row {to} of writer {writer} came back, and {sent} was the last that was sent"
            );
            rows.entry(writer).or_default().push((from, to));
        }
        rows.values_mut()
            .for_each(|islands| islands.sort_unstable());
        Ok(Self(rows))
    }

    /// What was acknowledged and is not there. A commit is there whole or not at all.
    pub(crate) fn missing(&self, log: &Log) -> anyhow::Result<Missing> {
        let mut missing = Missing::default();
        for ack in &log.acks {
            let islands = self.0.get(&ack.writer).map_or(&[][..], Vec::as_slice);
            let behind = islands.partition_point(|(from, _)| *from <= ack.from);
            let holds = |place: usize| islands.get(place).copied();
            let island = behind.checked_sub(1).and_then(holds);
            let is_there = island.is_some_and(|(_, to)| ack.to <= to);
            if is_there {
                continue;
            }
            let is_torn = island.is_some_and(|(_, to)| ack.from <= to)
                || holds(behind).is_some_and(|(from, _)| from <= ack.to);
            ensure!(!is_torn, "a commit came back in part: {ack:?}");
            missing.rows += (ack.to - ack.from + 1).unsigned_abs();
            if missing.first.is_none_or(|first| ack.at < first.at) {
                missing.first = Some(*ack);
            }
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(from: i64, to: i64) -> Ack {
        Ack {
            writer: 1,
            from,
            to,
            at: Instant::now(),
            wall: 0,
        }
    }

    #[test]
    fn counts_what_is_missing_and_refuses_half_a_commit() {
        let rows = Rows(BTreeMap::from([(1, vec![(1, 10), (21, 30)])]));
        let log = |acks: &[Ack]| Log {
            acks: acks.to_vec(),
            ..Log::default()
        };
        let missing = |acks: &[Ack]| rows.missing(&log(acks)).map(|missing| missing.rows);
        assert_eq!(missing(&[ack(1, 1), ack(2, 10), ack(21, 30)]).unwrap(), 0);
        assert_eq!(missing(&[ack(11, 20), ack(31, 31)]).unwrap(), 11);
        assert!(missing(&[ack(5, 11)]).is_err());
        assert!(missing(&[ack(20, 21)]).is_err());
        let first = ack(11, 12);
        let later = ack(40, 40);
        let found = rows.missing(&log(&[later, first])).unwrap().first.unwrap();
        assert_eq!(found.from, 11);
    }
}
