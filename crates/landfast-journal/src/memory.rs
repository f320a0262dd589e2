//! A journal in memory, for tests and the simulator. It keeps the same promises but one: nothing is on disk.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use landfast_types::Generation;

use crate::{
    AppendError, Change, CompactError, Document, DocumentConflict, Journal, NewRecord, PutError,
    RECORDS_KEPT, ReadError, Record, Snapshot, SnapshotError, StorageError,
};

/// A journal in memory.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone)]
struct State {
    records: BTreeMap<u64, Record>,
    streams: BTreeMap<String, Stream>,
    snapshots: BTreeMap<String, Snapshot>,
    documents: BTreeMap<(String, String), Document>,
    position: u64,
    revision: u64,
    generation: u64,
    full: bool,
}

#[derive(Debug, Default, Clone)]
struct Stream {
    last: u64,
    compacted: u64,
    /// Sequence to position.
    positions: BTreeMap<u64, u64>,
}

impl MemoryJournal {
    /// What a restart at this moment would find: an independent copy.
    pub fn fork(&self) -> Self {
        let mut state = self.state().clone();
        state.full = false;
        Self {
            state: Mutex::new(state),
        }
    }

    /// From now on every write is refused as on a full disk (`true`), or none is (`false`).
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing between two changes of one write can panic, so what a poisoned lock guards is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a write, which must change nothing when it refuses.
    fn write<T, E: From<StorageError>>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut state = self.state();
        if state.full {
            return Err(StorageError::Full {
                path: PathBuf::from("memory"),
            }
            .into());
        }
        work(&mut state)
    }
}

impl State {
    fn last(&self, stream: &str) -> u64 {
        self.streams.get(stream).map_or(0, |stream| stream.last)
    }

    /// Changes documents, all or none.
    fn change_all(&mut self, changes: &[Change]) -> Result<(), DocumentConflict> {
        let revision = self.revision;
        let mut undo = Vec::new();
        for change in changes {
            let (Change::Put {
                collection, key, ..
            }
            | Change::Delete {
                collection, key, ..
            }) = change;
            let place = (collection.clone(), key.clone());
            let before = self.documents.get(&place).cloned();
            undo.push((place, before));
            let Err(conflict) = self.change(change) else {
                continue;
            };
            self.revision = revision;
            for (place, before) in undo.into_iter().rev() {
                match before {
                    Some(document) => self.documents.insert(place, document),
                    None => self.documents.remove(&place),
                };
            }
            return Err(conflict);
        }
        Ok(())
    }

    fn change(&mut self, change: &Change) -> Result<(), DocumentConflict> {
        let (collection, key, expected) = match change {
            Change::Put {
                collection,
                key,
                expected,
                ..
            }
            | Change::Delete {
                collection,
                key,
                expected,
            } => (collection, key, *expected),
        };
        let place = (collection.clone(), key.clone());
        let found = self
            .documents
            .get(&place)
            .map_or(0, |document| document.revision);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            let (collection, key) = place;
            return Err(DocumentConflict {
                collection,
                key,
                expected,
                found,
            });
        }
        self.revision += 1;
        match change {
            Change::Put {
                collection,
                key,
                body,
                ..
            } => {
                let document = Document {
                    collection: collection.clone(),
                    key: key.clone(),
                    revision: self.revision,
                    body: body.clone(),
                };
                self.documents.insert(place, document);
            }
            Change::Delete { .. } => {
                self.documents.remove(&place);
            }
        }
        Ok(())
    }
}

impl Journal for MemoryJournal {
    fn append_with(
        &self,
        stream: &str,
        expected: u64,
        records: &[NewRecord],
        changes: &[Change],
    ) -> Result<u64, AppendError> {
        self.write(|state| {
            let found = state.last(stream);
            if found != expected {
                return Err(AppendError::Conflict {
                    stream: stream.to_owned(),
                    expected,
                    found,
                });
            }
            state.change_all(changes)?;
            for record in records {
                state.position += 1;
                let entry = state.streams.entry(stream.to_owned()).or_default();
                entry.last += 1;
                entry.positions.insert(entry.last, state.position);
                let record = Record {
                    position: state.position,
                    stream: stream.to_owned(),
                    sequence: entry.last,
                    kind: record.kind.clone(),
                    version: record.version,
                    at: record.at,
                    body: record.body.clone(),
                };
                state.records.insert(state.position, record);
            }
            Ok(state.last(stream))
        })
    }

    fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        let state = self.state();
        let Some(entry) = state.streams.get(stream) else {
            return Ok(Vec::new());
        };
        if after < entry.compacted {
            let upto = entry.compacted;
            return Err(ReadError::Compacted {
                stream: stream.to_owned(),
                upto,
            });
        }
        let positions = entry.positions.range(after.saturating_add(1)..).take(limit);
        Ok(positions
            .filter_map(|(_, position)| state.records.get(position))
            .cloned()
            .collect())
    }

    fn read_all(&self, after_position: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        let from = after_position.saturating_add(1);
        let state = self.state();
        Ok(state
            .records
            .range(from..)
            .take(limit)
            .map(|(_, record)| record.clone())
            .collect())
    }

    fn last(&self, stream: &str) -> Result<u64, ReadError> {
        Ok(self.state().last(stream))
    }

    fn last_position(&self) -> Result<u64, ReadError> {
        Ok(self.state().position)
    }

    fn streams(&self) -> Result<Vec<String>, ReadError> {
        Ok(self.state().streams.keys().cloned().collect())
    }

    fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        self.write(|state| {
            let last = state.last(&snapshot.stream);
            if snapshot.sequence > last {
                let (stream, sequence) = (snapshot.stream.clone(), snapshot.sequence);
                return Err(SnapshotError::Ahead {
                    stream,
                    sequence,
                    last,
                });
            }
            let kept = state.snapshots.get(&snapshot.stream);
            if kept.is_none_or(|kept| kept.sequence <= snapshot.sequence) {
                state
                    .snapshots
                    .insert(snapshot.stream.clone(), snapshot.clone());
            }
            Ok(())
        })
    }

    fn load_snapshot(&self, stream: &str) -> Result<Option<Snapshot>, ReadError> {
        Ok(self.state().snapshots.get(stream).cloned())
    }

    fn compact(&self, stream: &str, upto: u64) -> Result<u64, CompactError> {
        self.write(|state| {
            let covered = state
                .snapshots
                .get(stream)
                .map_or(0, |snapshot| snapshot.sequence);
            if covered < upto {
                return Err(CompactError::NotCovered {
                    stream: stream.to_owned(),
                    upto,
                });
            }
            let State {
                records, streams, ..
            } = state;
            let Some(entry) = streams.get_mut(stream) else {
                return Ok(0);
            };
            let upto = upto
                .min(entry.last.saturating_sub(RECORDS_KEPT))
                .max(entry.compacted);
            let kept = entry.positions.split_off(&(upto + 1));
            let gone = std::mem::replace(&mut entry.positions, kept);
            for position in gone.values() {
                records.remove(position);
            }
            entry.compacted = upto;
            Ok(gone.len() as u64)
        })
    }

    fn change(&self, changes: &[Change]) -> Result<u64, PutError> {
        self.write(|state| {
            state.change_all(changes)?;
            Ok(state.revision)
        })
    }

    fn get(&self, collection: &str, key: &str) -> Result<Option<Document>, ReadError> {
        let place = (collection.to_owned(), key.to_owned());
        Ok(self.state().documents.get(&place).cloned())
    }

    fn list(
        &self,
        collection: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, ReadError> {
        let state = self.state();
        let documents = state.documents.values().filter(|document| {
            document.collection == collection
                && after.is_none_or(|after| document.key.as_str() > after)
        });
        Ok(documents.take(limit).cloned().collect())
    }

    fn next_generation(&self) -> Result<Generation, StorageError> {
        self.write(|state| {
            state.generation += 1;
            Ok(Generation(state.generation))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_promises_of_a_journal() {
        crate::conformance::check(&MemoryJournal::default());
    }

    #[test]
    fn refuses_writes_and_nothing_else_while_full() {
        let journal = MemoryJournal::default();
        journal.put("keys", "a", None, b"1".to_vec()).unwrap();
        journal.set_full(true);
        let refused = journal.put("keys", "a", None, b"2".to_vec());
        assert!(matches!(
            refused,
            Err(PutError::Storage(StorageError::Full { .. }))
        ));
        assert_eq!(journal.get("keys", "a").unwrap().unwrap().body, b"1");
        let fork = journal.fork();
        fork.put("keys", "a", None, b"3".to_vec()).unwrap();
        assert_eq!(journal.get("keys", "a").unwrap().unwrap().body, b"1");
    }
}
