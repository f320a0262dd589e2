//! Between rows and values. What has the wrong type or range is damage, never a panic.

use landfast_types::Timestamp;
use rusqlite::{Error, Result, Row};

use crate::{Document, Record, Snapshot, checksum::Checksum};

/// Columns: position, stream, sequence, kind, version, at, body, checksum.
pub(super) fn record(row: &Row<'_>) -> Result<(Record, Checksum)> {
    let record = Record {
        position: number(row, 0)?,
        stream: row.get(1)?,
        sequence: number(row, 2)?,
        kind: row.get(3)?,
        version: row.get(4)?,
        at: Timestamp::from_micros(row.get(5)?),
        body: row.get(6)?,
    };
    Ok((record, row.get(7)?))
}

/// The stream and number of a row of [`record`], as far as they can be read.
pub(super) fn place(row: &Row<'_>) -> (String, u64) {
    (
        row.get(1).unwrap_or_else(|_| "?".to_owned()),
        number(row, 2).unwrap_or(0),
    )
}

/// Columns: collection, key, revision, body, checksum.
pub(super) fn document(row: &Row<'_>) -> Result<(Document, Checksum)> {
    let (collection, key) = (row.get(0)?, row.get(1)?);
    let document = Document {
        collection,
        key,
        revision: number(row, 2)?,
        body: row.get(3)?,
    };
    Ok((document, row.get(4)?))
}

/// Columns: stream, sequence, version, body, checksum.
pub(super) fn snapshot(row: &Row<'_>) -> Result<(Snapshot, Checksum)> {
    let (stream, version, body) = (row.get(0)?, row.get(2)?, row.get(3)?);
    Ok((
        Snapshot {
            stream,
            sequence: number(row, 1)?,
            version,
            body,
        },
        row.get(4)?,
    ))
}

/// Whether an error says that a row is not of the shape it was written in.
pub(super) fn misshapen(error: &Error) -> bool {
    matches!(
        error,
        Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..)
    )
}

/// SQLite counts in `i64`. What we count never comes near its end.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What SQLite counted; a negative number, which only damage makes, becomes 0.
pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A limit for `LIMIT`, where a negative one would mean none.
pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn number(row: &Row<'_>, column: usize) -> Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| Error::IntegralValueOutOfRange(column, number))
}
