//! Reads every byte of a series, and names each object that is not as it should be.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use landfast_repository::RepositoryError;

use crate::{
    FilesError, Finding, Series,
    series::{chain, tree},
};

const READS_AT_ONCE: usize = 2;

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    pub objects: usize,
    /// As they are stored, packs only; the rest as it is opened.
    pub bytes: u64,
    /// Empty where all is well.
    pub findings: Vec<Finding>,
}

impl Verified {
    /// Takes note of what a read came to. A repository that cannot be reached is no finding.
    fn note(&mut self, object: String, read: Result<u64, FilesError>) -> Result<(), FilesError> {
        match read {
            Ok(bytes) => {
                self.objects += 1;
                self.bytes += bytes;
            }
            Err(FilesError::Repository(error)) if is_about_objects(&error) => {
                let wrong = chain(&error);
                self.findings.push(Finding { object, wrong });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn is_about_objects(error: &RepositoryError) -> bool {
    !error.is_transient()
        && !matches!(
            error,
            RepositoryError::Local { .. } | RepositoryError::Stopped(_)
        )
}

/// Verifies a series. `on_progress` is told how many objects were read.
///
/// # Errors
/// Where the repository cannot be reached. Everything that is wrong with what lies in it is a finding.
pub async fn verify(
    series: &Series,
    mut on_progress: impl FnMut(usize),
) -> Result<Verified, FilesError> {
    let loaded = series.load().await?;
    if loaded.snapshots.is_empty() && loaded.findings.is_empty() {
        return Err(FilesError::Empty);
    }
    let mut verified = Verified {
        objects: 1 + loaded.snapshots.len(),
        bytes: 0,
        findings: loaded.findings.clone(),
    };
    // A pack is read once, whichever snapshots refer to it.
    let mut packs = BTreeMap::new();
    for snapshot in &loaded.snapshots {
        for (part, digest) in [
            ("entries", snapshot.entries),
            ("map", snapshot.map),
            ("hashes", snapshot.hashes),
        ] {
            let read = series.read_part(&snapshot.id, part, digest).await;
            let read = read.map(|bytes| bytes.len() as u64);
            verified.note(series.part(&snapshot.id, part), read)?;
        }
        let fits = async {
            let entries = series.entries(snapshot).await?;
            let map = series.read_part(&snapshot.id, "map", snapshot.map).await?;
            tree(&entries, &snapshot.packs).read_map(&map)?;
            Ok::<_, FilesError>(())
        };
        match fits.await {
            Ok(()) => {}
            // It was named above, or it is the map that does not add up.
            Err(FilesError::Repository(error)) if is_about_objects(&error) => {
                let wrong = chain(&error);
                let object = series.part(&snapshot.id, "map");
                let is_named = verified
                    .findings
                    .iter()
                    .any(|finding| finding.object.starts_with(&series.part(&snapshot.id, "")));
                if !is_named {
                    verified.findings.push(Finding { object, wrong });
                }
            }
            Err(error) => return Err(error),
        }
        for pack in &snapshot.packs {
            packs
                .entry(pack.name.clone())
                .or_insert_with(|| pack.clone());
        }
    }
    let repository = series.repository();
    let mut reads = stream::iter(packs.into_values())
        .map(|pack| async move {
            let read = repository.check_pack(&pack).await;
            (pack.name, read.map_err(FilesError::from))
        })
        .buffer_unordered(READS_AT_ONCE);
    while let Some((object, read)) = reads.next().await {
        verified.note(object, read)?;
        on_progress(verified.objects);
    }
    drop(reads);
    verified.findings.sort();
    verified
        .findings
        .dedup_by(|one, other| one.object == other.object);
    Ok(verified)
}
