//! What this host remembers of each container it was ever ordered to run: a file under a lock.
//!
//! The record is made before the container, so what has none was never ordered here: that can be said without the
//! daemon. It holds the fence of the newest order, and how the container ended, which outlives the container itself.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use landfast_target::{Exit, InstanceRef, Observed, ObservedState};
use landfast_types::{
    Bytes, Fence, FenceGuard, Generation, ImageId, Protection, StaleFence, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::name::{self, HostId};

/// What is remembered of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: InstanceRef,
    pub(crate) fence: FenceGuard,
    pub(crate) image: Option<ImageId>,
    /// The daemon's name of the container, once it is known to have begun.
    pub(crate) started: Option<Started>,
    pub(crate) ended: Option<Ended>,
    pub(crate) is_job: bool,
    pub(crate) memory_max: Option<Bytes>,
    pub(crate) asks_health: bool,
    #[serde(default)]
    pub(crate) protections: Vec<Protection>,
    pub(crate) log_folder: PathBuf,
    /// Where its secrets are files.
    pub(crate) secrets: Option<PathBuf>,
    /// The networks it joins, by their names.
    #[serde(default)]
    pub(crate) networks: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) container: String,
    pub(crate) at: Timestamp,
    pub(crate) address: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    pub(crate) at: Timestamp,
}

impl Record {
    /// Of an instance that nothing was done for yet.
    pub(crate) fn new(id: &InstanceRef, order: Fence) -> Self {
        Self {
            id: id.clone(),
            fence: FenceGuard::new(order),
            image: None,
            started: None,
            ended: None,
            is_job: false,
            memory_max: None,
            asks_health: false,
            protections: Vec::new(),
            log_folder: PathBuf::new(),
            secrets: None,
            networks: Vec::new(),
        }
    }

    /// What a target tells of it; `None` while it has not begun.
    pub(crate) fn observed(&self, pid: Option<u32>) -> Option<Observed> {
        let state = match (&self.ended, &self.started) {
            (Some(Ended { exit, at }), _) => ObservedState::Exited {
                exit: exit.clone(),
                at: *at,
            },
            (None, Some(_)) => ObservedState::Running,
            (None, None) => return None,
        };
        let started = self.started.as_ref();
        Some(Observed {
            id: self.id.clone(),
            pid: pid.filter(|_| state == ObservedState::Running),
            address: started.and_then(|started| started.address),
            started_at: match (started, &self.ended) {
                (Some(started), _) => started.at,
                (None, Some(ended)) => ended.at,
                (None, None) => Timestamp::EPOCH,
            },
            state,
            is_job: self.is_job,
            protections: self.protections.clone(),
            health: None,
        })
    }
}

/// The records of one state folder.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    folder: PathBuf,
}

/// One record, as long as nobody else may touch it. Its lock ends with the value.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    path: PathBuf,
}

impl Records {
    /// The records in a folder, which is made when it is needed.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn instances(&self) -> PathBuf {
        self.folder.join("instances")
    }

    fn path(&self, id: &InstanceRef) -> PathBuf {
        let name = name::record(id);
        self.instances().join(format!("{name}.json"))
    }

    /// Takes the lock of a record, unless somebody has it.
    pub(crate) fn try_hold(&self, id: &InstanceRef) -> io::Result<Option<Held>> {
        fs::create_dir_all(self.instances())?;
        let path = self.path(id);
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path.with_extension("lock"))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever forgot the instance meanwhile took the file away, and with it the lock's meaning.
            let is_current = fs::metadata(path.with_extension("lock")).is_ok_and(|now| {
                use std::os::unix::fs::MetadataExt as _;
                file.metadata().is_ok_and(|own| own.ino() == now.ino())
            });
            if is_current {
                return Ok(Some(Held { file, path }));
            }
        }
    }

    /// What is remembered of an instance, without waiting for anybody.
    pub(crate) fn read(&self, id: &InstanceRef) -> io::Result<Option<Record>> {
        read(&self.path(id))
    }

    /// The instances that are not known to have ended; an error where one cannot be read.
    pub(crate) fn open(&self) -> io::Result<Vec<InstanceRef>> {
        let mut open = Vec::new();
        for path in self.paths()? {
            let record = read(&path)?.filter(|record| record.ended.is_none());
            open.extend(record.map(|record| record.id));
        }
        open.sort();
        Ok(open)
    }

    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(self.instances()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    /// Every record that can be read, in order of id.
    pub(crate) fn all(&self) -> io::Result<Vec<Record>> {
        let mut all = Vec::new();
        for path in self.paths()? {
            match read(&path) {
                Ok(record) => all.extend(record),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "what is remembered of a container cannot be read");
                }
            }
        }
        all.sort_by(|a: &Record, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Whether there is an instance that is not known to have ended.
    pub(crate) fn has_living(&self) -> io::Result<bool> {
        let all = self.all()?;
        Ok(all.iter().any(|record| record.ended.is_none()))
    }

    /// Remembers the newest generation of servers that gave an order here, and refuses older ones.
    pub(crate) fn take_generation(&self, order: Fence) -> io::Result<Result<(), StaleFence>> {
        fs::create_dir_all(&self.folder)?;
        let path = self.folder.join("generation");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // Empty when it was just made; what else is no number was cut short by a loss of power.
        let seen = Generation(text.trim().parse().unwrap_or(0));
        if order.generation < seen {
            return Ok(Err(StaleFence {
                refused: order,
                seen: Fence {
                    generation: seen,
                    revision: 0,
                },
            }));
        }
        if order.generation > seen {
            file.rewind()?;
            file.set_len(0)?;
            write!(file, "{}", order.generation)?;
        }
        Ok(Ok(()))
    }

    /// The identity of this state folder, made at the first question from bits that `random` gives.
    pub(crate) fn host(&self, random: impl FnOnce() -> io::Result<u64>) -> io::Result<HostId> {
        fs::create_dir_all(&self.folder)?;
        let path = self.folder.join("host");
        match fs::read_to_string(&path) {
            Ok(text) => HostId::parse(text.trim()).ok_or_else(|| {
                let text = format!("`{}` holds no identity", path.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let host = HostId::of(random()?);
                write_whole(&path, host.as_str().as_bytes())?;
                Ok(host)
            }
            Err(error) => Err(error),
        }
    }
}

impl Held {
    pub(crate) fn read(&self) -> io::Result<Option<Record>> {
        read(&self.path)
    }

    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        write_whole(&self.path, &text)
    }

    /// Takes an order, or refuses it.
    pub(crate) fn take(
        &self,
        record: &mut Record,
        order: Fence,
    ) -> io::Result<Result<(), StaleFence>> {
        let before = record.fence;
        if let Err(stale) = record.fence.take(order) {
            return Ok(Err(stale));
        }
        if record.fence != before {
            self.write(record)?;
        }
        Ok(Ok(()))
    }

    /// Forgets the instance, and keeps the lock.
    pub(crate) fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Forgets the instance.
    pub(crate) fn remove(self) -> io::Result<()> {
        for path in [self.path.clone(), self.path.with_extension("lock")] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        drop(self.file);
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Option<Record>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let text = format!("`{}`: {error}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file whole, or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    use landfast_types::{InstanceId, ReleaseId, Scope};

    use super::*;

    fn id() -> InstanceRef {
        InstanceRef {
            scope: Scope {
                app: "shop".parse().unwrap(),
                environment: "production".parse().unwrap(),
            },
            instance: InstanceId::new("api", ReleaseId(1), 1),
        }
    }

    fn fence(generation: u64, revision: u64) -> Fence {
        Fence {
            generation: Generation(generation),
            revision,
        }
    }

    fn hold(records: &Records) -> Held {
        loop {
            match records.try_hold(&id()).unwrap() {
                Some(held) => return held,
                None => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn keeps_what_was_ordered_and_forgets_it_whole() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().join("docker"));
        assert_eq!(records.read(&id()).unwrap(), None);
        let held = hold(&records);
        let mut record = Record::new(&id(), fence(2, 5));
        held.write(&record).unwrap();
        assert!(held.take(&mut record, fence(2, 4)).unwrap().is_err());
        assert!(held.take(&mut record, fence(2, 6)).unwrap().is_ok());
        assert_eq!(
            records.read(&id()).unwrap().unwrap().fence.seen(),
            fence(2, 6)
        );
        assert_eq!(records.all().unwrap().len(), 1);
        held.remove().unwrap();
        assert_eq!(records.all().unwrap(), []);
        let left = fs::read_dir(folder.path().join("docker/instances")).unwrap();
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn who_waited_for_a_forgotten_record_holds_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().to_owned());
        let held = hold(&records);
        held.write(&Record::new(&id(), fence(1, 1))).unwrap();
        assert!(records.try_hold(&id()).unwrap().is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let held = hold(&records);
                assert_eq!(held.read().unwrap(), None);
                held.write(&Record::new(&id(), fence(1, 2))).unwrap();
            });
            held.remove().unwrap();
            waiting.join().unwrap();
        });
        assert!(records.read(&id()).unwrap().is_some());
        assert!(records.path(&id()).with_extension("lock").exists());
    }

    #[test]
    fn has_one_identity_for_ever_and_takes_no_older_generation() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().to_owned());
        let host = records.host(|| Ok(77)).unwrap();
        assert_eq!(records.host(|| panic!("it is known")).unwrap(), host);
        assert!(records.take_generation(fence(3, 0)).unwrap().is_ok());
        assert!(records.take_generation(fence(2, 9)).unwrap().is_err());
        assert!(records.take_generation(fence(3, 9)).unwrap().is_ok());
    }

    #[test]
    fn what_may_run_is_told_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().to_owned());
        assert!(records.open().unwrap().is_empty());
        let held = records.try_hold(&id()).unwrap().unwrap();
        let mut record = Record::new(&id(), fence(1, 1));
        held.write(&record).unwrap();
        assert_eq!(records.open().unwrap(), [id()]);
        let (exit, at) = (Exit::Unknown, Timestamp::EPOCH);
        record.ended = Some(Ended { exit, at });
        held.write(&record).unwrap();
        assert!(records.open().unwrap().is_empty());
        fs::write(records.instances().join("x.json"), "{").unwrap();
        assert!(records.all().unwrap().len() == 1 && records.open().is_err());
    }
}
