//! A PostgreSQL server, a repository in a folder and an archiver, for tests.

#![expect(dead_code, reason = "each test file uses its own part")]

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use landfast_backup::Target;
use landfast_backup_postgres::{
    Archive, BackupError, BackupManifest, BackupRequest, Pace, Programs, RestoreRequest, Restored,
    Server, WalArchiveConfig, WalArchiver, WalEvent, back_up, restore,
};
use landfast_repository::{Key, Keyring, Place, Repository, Storage};
use landfast_testbed::Postgres;
use tempfile::TempDir;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Settings of a primary that is archived.
pub(crate) const SETTINGS: &[(&str, &str)] = &[("max_wal_size", "256MB"), ("wal_level", "replica")];

pub(crate) struct World {
    pub(crate) postgres: Postgres,
    pub(crate) folder: TempDir,
    pub(crate) archive: Archive,
    pub(crate) key: PathBuf,
    pub(crate) events: Arc<Mutex<Vec<WalEvent>>>,
}

impl World {
    /// A server and an empty repository in a folder.
    pub(crate) async fn new() -> Self {
        Self::with(Postgres::with_settings(SETTINGS).unwrap()).await
    }

    pub(crate) async fn with(postgres: Postgres) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Folder(folder.path().join("repository"));
        Self::at(postgres, folder, place).await
    }

    pub(crate) async fn at(postgres: Postgres, folder: TempDir, place: Place) -> Self {
        let key_path = folder.path().join("backup.key");
        let key = Key::generate().unwrap();
        key.write(&key_path).unwrap();
        let storage = Storage::new(&place).unwrap();
        let keys = Arc::new(Keyring::new(key));
        let repository = Repository::create(storage, keys).await.unwrap();
        let archive = Archive::new(repository, "main").unwrap();
        Self {
            postgres,
            folder,
            archive,
            key: key_path,
            events: Arc::default(),
        }
    }

    pub(crate) fn server(&self) -> Server {
        Server {
            host: self.postgres.socket_folder().display().to_string(),
            port: self.postgres.port(),
            login: "postgres".to_owned(),
            password: None,
            database: "postgres".to_owned(),
        }
    }

    pub(crate) fn config(&self) -> WalArchiveConfig {
        WalArchiveConfig {
            server: self.server(),
            programs: programs(),
            archive: self.archive.clone(),
            spool: self.folder.path().join("spool"),
            slot: "landfast".to_owned(),
            is_synchronous: false,
            interval: Duration::from_millis(500),
            spool_bytes_max: 1 << 30,
        }
    }

    pub(crate) async fn archiver(&self) -> WalArchiver {
        self.archiver_with(self.config()).await
    }

    pub(crate) async fn archiver_with(&self, config: WalArchiveConfig) -> WalArchiver {
        let events = Arc::clone(&self.events);
        let on_event = move |event| events.lock().unwrap().push(event);
        WalArchiver::start(config, on_event).await.unwrap()
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.postgres.sql("postgres", sql).unwrap()
    }

    pub(crate) async fn back_up(
        &self,
        archiver: &WalArchiver,
        is_full: bool,
    ) -> Result<BackupManifest, BackupError> {
        let request = BackupRequest {
            server: self.server(),
            programs: programs(),
            archive: self.archive.clone(),
            is_full,
            pace: Pace::new(u64::MAX),
            wal_patience: PATIENCE,
        };
        back_up(&request, archiver, |_| {}).await
    }

    pub(crate) fn request(&self, name: &str, target: Target) -> RestoreRequest {
        restore_request(self.folder.path(), self.archive.clone(), name, target)
    }

    pub(crate) async fn restore(
        &self,
        name: &str,
        target: Target,
    ) -> Result<Restored, BackupError> {
        restore(&self.request(name, target), |_| {}).await
    }

    /// Below the archive's own folder.
    pub(crate) fn object(&self, path: &str) -> PathBuf {
        self.folder.path().join("repository/main").join(path)
    }

    /// Writes rows and waits until the archive has them.
    pub(crate) async fn write_archived(&self, archiver: &WalArchiver, rows: &str) {
        self.sql(rows);
        self.settle(archiver).await;
    }

    /// Waits until everything written so far is in the archive.
    pub(crate) async fn settle(&self, archiver: &WalArchiver) {
        let wanted: landfast_backup::Lsn = self
            .sql("SELECT pg_current_wal_flush_lsn()")
            .parse()
            .unwrap();
        for _ in 0..400 {
            archiver.flush().await.unwrap();
            let loaded = self.archive.load().await.unwrap().unwrap();
            if loaded.ledger.end().is_some_and(|end| end.lsn >= wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{wanted} did not arrive: {:?}", archiver.status());
    }
}

pub(crate) fn programs() -> Programs {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let postgres = passwd.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Programs {
        folder: "/usr/lib/postgresql/15/bin".into(),
        user: postgres.filter(|_| is_root),
        containers: None,
    }
}

pub(crate) fn restore_request(
    folder: &Path,
    archive: Archive,
    name: &str,
    target: Target,
) -> RestoreRequest {
    use std::os::unix::fs::PermissionsExt as _;
    // The server's user has to pass through.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).unwrap();
    RestoreRequest {
        archive,
        programs: programs(),
        target,
        accepted: None,
        data: folder.join(name),
        run: folder.join(format!("{name}.run")),
        wal_get: vec![
            env!("CARGO_BIN_EXE_landfast-backup-testapp").into(),
            "wal-get".into(),
        ],
        preload: String::new(),
        login: "postgres".to_owned(),
    }
}

/// One value from a restored server.
pub(crate) fn ask(restored: &Restored, sql: &str) -> String {
    let output = std::process::Command::new("/usr/bin/psql")
        .args(["-XqAt", "-U", "postgres", "-h", &restored.server.host])
        .args([
            "-p",
            &restored.server.port.to_string(),
            "-d",
            "postgres",
            "-c",
            sql,
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
