//! What tests run as a process of its own: `wal-get` as PostgreSQL's `restore_command`, and an archiver that can be killed.

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use landfast_backup_postgres::{Archive, Programs, Server, WalArchiveConfig, WalArchiver};
use landfast_repository::{Key, Keyring, Place, Repository, Storage};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["wal-get", socket, name, path] => {
            landfast_backup_postgres::wal_get(Path::new(socket), name, Path::new(path))
        }
        ["archive", host, port, repository, key, spool] => {
            archive(host, port, repository, key, spool)
        }
        _ => ExitCode::from(64),
    }
}

/// Archives until it is killed.
#[tokio::main(flavor = "current_thread")]
async fn archive(host: &str, port: &str, repository: &str, key: &str, spool: &str) -> ExitCode {
    let keys = Arc::new(Keyring::new(Key::read(Path::new(key)).expect("a key file")));
    let storage = Storage::new(&Place::Folder(repository.into())).expect("a folder");
    let repository = Repository::open(storage, keys).await.expect("a repository");
    let config = WalArchiveConfig {
        server: Server {
            host: host.to_owned(),
            port: port.parse().expect("a port"),
            login: "postgres".to_owned(),
            password: None,
            database: "postgres".to_owned(),
        },
        programs: Programs {
            folder: "/usr/lib/postgresql/15/bin".into(),
            user: None,
            containers: None,
        },
        archive: Archive::new(repository, "main").expect("a name"),
        spool: spool.into(),
        slot: "landfast".to_owned(),
        is_synchronous: false,
        interval: Duration::from_millis(500),
        spool_bytes_max: 1 << 30,
    };
    let archiver = WalArchiver::start(config, |_| {}).await.expect("it starts");
    let mut status = archiver.watch();
    while status.changed().await.is_ok() {}
    ExitCode::FAILURE
}
