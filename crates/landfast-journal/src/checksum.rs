//! Checksums of what is kept: the first 16 bytes of a SHA-256 over every field, each framed by its length,
//! so that no field can change, or lend a byte to its neighbour, unseen.

use landfast_types::Hasher;

use crate::{Document, Record, Snapshot};

/// The bytes kept beside a row.
pub(crate) type Checksum = [u8; 16];

/// Of a record, its place included.
pub(crate) fn of_record(record: &Record) -> Checksum {
    of(&[
        b"record",
        &record.position.to_be_bytes(),
        record.stream.as_bytes(),
        &record.sequence.to_be_bytes(),
        record.kind.as_bytes(),
        &record.version.to_be_bytes(),
        &record.at.as_micros().to_be_bytes(),
        &record.body,
    ])
}

/// Of a document, its key and revision included.
pub(crate) fn of_document(document: &Document) -> Checksum {
    of(&[
        b"document",
        document.collection.as_bytes(),
        document.key.as_bytes(),
        &document.revision.to_be_bytes(),
        &document.body,
    ])
}

/// Of a snapshot.
pub(crate) fn of_snapshot(snapshot: &Snapshot) -> Checksum {
    of(&[
        b"snapshot",
        snapshot.stream.as_bytes(),
        &snapshot.sequence.to_be_bytes(),
        &snapshot.version.to_be_bytes(),
        &snapshot.body,
    ])
}

fn of(fields: &[&[u8]]) -> Checksum {
    let mut hasher = Hasher::default();
    fields.iter().for_each(|field| hasher.update_framed(field));
    let digest = hasher.finish();
    let (checksum, _) = digest
        .as_bytes()
        .split_first_chunk()
        .expect("a SHA-256 has 32 bytes");
    *checksum
}
