//! A base backup: `pg_basebackup` writes one tar with a manifest, its pages go straight into the repository.
//!
//! A backup exists once its manifest object does, and that is put last: after every page, and after the WAL that makes the
//! copy consistent was seen in the ledger. A crash before leaves packs that nobody names; pruning removes them. A server that found a
//! damaged page has its backup kept as *bad*: never chosen, never built on.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_backup::{
    BackupId, BackupState, BackupSummary, Event, Lsn, PackShare, Timeline, WASTE_PERCENT_MAX,
    packs_to_leave,
};
use landfast_repository::{PageWriter, Parent, RepositoryError, Tree, upload_packs};
use landfast_types::Digest;
use rustix::process::Signal;
use serde::Deserialize;
use tokio::net::unix::pipe;

use crate::{
    Archive, BackupError, Programs, Server, WalArchiver,
    archive::{BackupManifest, is_good},
    child::Running,
    clock,
    pace::{Pace, Paced},
};

const MANIFEST: &str = "backup_manifest";
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 1 << 20;

/// What to back up.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    pub server: Server,
    pub programs: Programs,
    pub archive: Archive,
    /// Store every page again, so that no older object is needed. Otherwise pages that are the same as in the newest good backup
    /// are referred to; the server is read whole either way.
    pub is_full: bool,
    /// How fast it is read while the app uses its server.
    pub pace: Pace,
    /// How long the WAL of the backup may take to reach the archive.
    pub wal_patience: Duration,
}

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupProgress {
    pub bytes: u64,
    /// As the server estimates it.
    pub total: u64,
    pub stored_bytes: u64,
    pub elapsed: Duration,
}

impl BackupProgress {
    /// Bytes per second.
    pub fn rate(&self) -> u64 {
        let millis = self.elapsed.as_millis().max(1);
        u64::try_from(u128::from(self.bytes) * 1_000 / millis).unwrap_or(u64::MAX)
    }

    /// How long the rest takes at that rate; `None` before anything was read.
    pub fn left(&self) -> Option<Duration> {
        let left = self.total.saturating_sub(self.bytes);
        let rate = self.rate();
        (rate > 0).then(|| Duration::from_secs(left / rate))
    }
}

/// Makes a backup. One that the server found a damaged page in is returned, too, as bad; older ones stay as they are.
///
/// # Errors
/// [`BackupError`]; nothing that could be chosen exists then.
pub async fn back_up(
    request: &BackupRequest,
    archiver: &WalArchiver,
    on_progress: impl Fn(BackupProgress) + Send + Sync,
) -> Result<BackupManifest, BackupError> {
    let archive = &request.archive;
    let (at, begun) = (clock::now(), clock::instant());
    let session = request.server.connect().await?;
    if let Some(tablespace) = session.tablespace().await? {
        return Err(BackupError::Tablespace(tablespace));
    }
    let total = session.size().await?;
    let pace = &request.pace;
    pace.fit(total);
    let (id, parent) = prepare(archive, request.is_full).await?;
    let parent_id = parent.as_ref().map(|(id, _)| id.clone());
    let parent = parent.map(|(_, parent)| parent);

    let folder = PasswordFolder::make(archiver.spool())?;
    let passwords = request
        .server
        .write_passwords(&folder.0, &request.programs)?;
    let program = request.programs.program("pg_basebackup");
    let program = request
        .server
        .reach(program, passwords.as_deref())
        .args([
            "--pgdata=-",
            "--format=tar",
            "--wal-method=none",
            "--checkpoint=fast",
        ])
        // On the way only: what is stored is authenticated by the repository.
        .args(["--manifest-checksums=CRC32C"])
        .arg(format!("--label=landfast {id}"))
        .env("PGAPPNAME", "landfast backup");
    let started = Running::start(&program).await;
    let mut running = started.map_err(BackupError::io("start", &program.path))?;
    running.give_way();
    let input = blocking_file(running.stdout()).map_err(BackupError::io("read", &program.path))?;

    let (read, stored) = (Arc::new(AtomicU64::new(0)), AtomicU64::new(0));
    let pg_manifest = Arc::new(std::sync::Mutex::new(Vec::new()));
    let fill = {
        let (read, pg_manifest) = (Arc::clone(&read), Arc::clone(&pg_manifest));
        let input = pace.read(input);
        move |writer| fill(writer, input, &read, &pg_manifest)
    };
    let packs = archive.path(&format!("packs/{id}"));
    let on_stored = |bytes| stored.store(bytes, Ordering::Relaxed);
    let upload = upload_packs(archive.repository(), &packs, parent, fill, on_stored);
    let mut upload = Box::pin(upload);
    let mut watching = Box::pin(pace.watch(&session));
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let progress = || BackupProgress {
        bytes: read.load(Ordering::Relaxed),
        total: total.max(read.load(Ordering::Relaxed)),
        stored_bytes: stored.load(Ordering::Relaxed),
        elapsed: begun.elapsed(),
    };
    let uploaded = loop {
        tokio::select! {
            uploaded = &mut upload => break uploaded,
            _ = ticks.tick() => on_progress(progress()),
            () = &mut watching => {}
        }
    };
    drop((upload, watching));
    drop(session);
    if uploaded.is_err() {
        running.signal(Signal::KILL);
    }
    let ended_well = running.wait().await;
    let ended_well = ended_well.map_err(BackupError::io("wait for", &program.path))?;
    let said = running.said();
    let state = if ended_well {
        BackupState::Good
    } else if said.contains("checksum") && uploaded.is_ok() {
        BackupState::Bad { reason: said }
    } else {
        // What the program says explains more than that its output ended.
        return Err(match uploaded {
            Err(error) if said.is_empty() => error.into(),
            _ => BackupError::Program(format!("`pg_basebackup` failed: {said}")),
        });
    };
    let uploaded = uploaded?;
    on_progress(progress());

    let (timeline, start, stop) = {
        let text = pg_manifest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        wal_range(&text)?
    };
    archiver
        .wait_for(timeline, start, stop, request.wal_patience)
        .await?;

    let identity = archiver.identity();
    let map = Tree::write_map(&uploaded.maps);
    let hashes = Tree::write_hashes(&uploaded.maps);
    let manifest = BackupManifest {
        format: BackupManifest::FORMAT,
        summary: BackupSummary {
            id: id.clone(),
            timeline,
            start,
            stop,
            at,
            state,
        },
        system: identity.system,
        server_version: identity.version,
        has_checksums: identity.has_checksums,
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        bytes: uploaded.counts.bytes,
        same_bytes: uploaded.counts.same_bytes,
        stored_bytes: uploaded.stored_bytes + (map.len() + hashes.len()) as u64,
        parent: parent_id,
        map: Digest::of(&map),
        hashes: Digest::of(&hashes),
        tree: uploaded.tree,
    };
    let repository = archive.repository();
    repository
        .put(&archive.backup_path(&id, "map"), map)
        .await?;
    repository
        .put(&archive.backup_path(&id, "hashes"), hashes)
        .await?;
    let bytes = serde_json::to_vec(&manifest).expect("a manifest is plain data");
    let digest = Digest::of(&bytes);
    repository
        .put(&archive.backup_path(&id, "manifest"), bytes)
        .await?;
    archiver
        .record(vec![Event::BackupDone { backup: id, digest }])
        .await?;
    Ok(manifest)
}

/// The next id, and the backup to compare with.
async fn prepare(
    archive: &Archive,
    is_full: bool,
) -> Result<(BackupId, Option<(BackupId, Arc<Parent>)>), BackupError> {
    let mut there = archive.names("packs").await?;
    there.extend(archive.names("backups").await?);
    let Some(loaded) = archive.load().await? else {
        let sequences = there
            .iter()
            .filter_map(|name| name.rsplit('/').nth(1)?.parse::<u64>().ok());
        return Ok((
            BackupId::of(sequences.max().map_or(1, |newest| newest + 1)),
            None,
        ));
    };
    let id = loaded.next_backup(&there);
    let newest = loaded.backups.iter().rev().find(|backup| is_good(backup));
    let Some(newest) = newest.filter(|_| !is_full) else {
        return Ok((id, None));
    };
    let of = &newest.summary.id;
    let repository = archive.repository();
    let map = repository.get(&archive.backup_path(of, "map")).await;
    let hashes = repository.get(&archive.backup_path(of, "hashes")).await;
    match (map, hashes) {
        (Ok(map), Ok(hashes)) => {
            let mut parent = Parent::new(&newest.tree, &map, &hashes)?;
            let shares = parent.uses().into_iter().map(|pack| PackShare {
                stored: pack.stored,
                live: pack.live,
            });
            let shares: Vec<_> = shares.collect();
            parent.leave(packs_to_leave(&shares, WASTE_PERCENT_MAX));
            Ok((id, Some((of.clone(), Arc::new(parent)))))
        }
        // Nothing is built on what cannot be read.
        (Err(error), _) | (_, Err(error)) if error.bad_object().is_some() => Ok((id, None)),
        (Err(error), _) | (_, Err(error)) => Err(error.into()),
    }
}

fn fill(
    mut writer: PageWriter,
    input: Paced,
    read: &AtomicU64,
    pg_manifest: &std::sync::Mutex<Vec<u8>>,
) -> Result<PageWriter, RepositoryError> {
    let failed = |source: io::Error| RepositoryError::Local {
        doing: "read what `pg_basebackup` writes".into(),
        source,
    };
    let mut input = Counting {
        inner: BufReader::with_capacity(READ_BYTES, input),
        read,
    };
    let mut archive = tar::Archive::new(&mut input);
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let path = entry.path_bytes().into_owned();
        let path = String::from_utf8(path).map_err(|error| failed(io::Error::other(error)))?;
        let path = path
            .trim_start_matches("./")
            .trim_end_matches('/')
            .to_owned();
        let mode = entry.header().mode().map_err(failed)? & 0o777;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            if !path.is_empty() && path != "." {
                writer.folder(&path, mode);
            }
        } else if !kind.is_file() {
            let what = format!("`{path}` is neither a file nor a folder ({kind:?})");
            return Err(failed(io::Error::other(what)));
        } else if path == MANIFEST {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(failed)?;
            writer.file(&path, mode, bytes.as_slice())?;
            *pg_manifest
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) = bytes;
        } else {
            writer.file(&path, mode, &mut entry)?;
        }
    }
    // To the end, or the program dies of a closed pipe.
    io::copy(&mut input, &mut io::sink()).map_err(failed)?;
    Ok(writer)
}

struct Counting<'a, R> {
    inner: R,
    read: &'a AtomicU64,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

pub(crate) fn blocking_file(pipe: io::Result<pipe::Receiver>) -> io::Result<File> {
    let pipe = pipe?.into_blocking_fd()?;
    // Fewer turns between the two; where so much is not allowed, the pipe stays as it is.
    rustix::pipe::fcntl_setpipe_size(&pipe, READ_BYTES).ok();
    Ok(File::from(pipe))
}

/// Where `pg_basebackup` finds the password. It lies in the spool, so that what a killed backup leaves is removed with the next one.
struct PasswordFolder(PathBuf);

impl PasswordFolder {
    fn make(spool: &Path) -> Result<Self, BackupError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let folder = spool.join("backup");
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder);
        made.map_err(BackupError::io("make", &folder))?;
        Ok(Self(folder))
    }
}

impl Drop for PasswordFolder {
    fn drop(&mut self) {
        // What stays is for its owner only, and goes with the next one.
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, folder = %self.0.display(), "a folder was not removed");
        }
    }
}

/// Part of PostgreSQL's own manifest ("Backup Manifest Format" of its manual).
#[derive(Deserialize)]
struct PgManifest {
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<WalRange>,
}

#[derive(Deserialize)]
struct WalRange {
    #[serde(rename = "Timeline")]
    timeline: Timeline,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

/// The WAL that makes the copy consistent.
fn wal_range(text: &[u8]) -> Result<(Timeline, Lsn, Lsn), BackupError> {
    let manifest: PgManifest =
        serde_json::from_slice(text).map_err(|error| BackupError::PgManifest(error.to_string()))?;
    // One from a primary has one range.
    let [range] = manifest.wal_ranges.as_slice() else {
        let count = manifest.wal_ranges.len();
        return Err(BackupError::PgManifest(format!(
            "it has {count} ranges of WAL"
        )));
    };
    Ok((range.timeline, range.start, range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_range_of_wal() {
        let text = br#"{"PostgreSQL-Backup-Manifest-Version": 1, "Files": [], "WAL-Ranges": [
            {"Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000100"}], "Manifest-Checksum": "x"}"#;
        let range = wal_range(text).unwrap();
        assert_eq!(range, (Timeline(1), Lsn(0x200_0028), Lsn(0x200_0100)));
        assert!(wal_range(b"{}").is_err());
        assert!(wal_range(br#"{"WAL-Ranges": []}"#).is_err());
    }

    #[test]
    fn says_how_long_the_rest_takes() {
        let progress = BackupProgress {
            bytes: 300,
            total: 900,
            stored_bytes: 0,
            elapsed: Duration::from_secs(3),
        };
        assert_eq!(progress.rate(), 100);
        assert_eq!(progress.left(), Some(Duration::from_secs(6)));
    }
}
