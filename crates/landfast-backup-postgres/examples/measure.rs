//! What `cargo xtask bench backup` measures of ours: the library behind a line a command, on a server that is there.
//!
//! ```text
//! measure archive FOLDER SOCKETS PORT   archives; on standard input: full | changed | settle | stop
//! measure restore FOLDER DATA LSN       restores beside it, and ends when standard input does
//! measure verify FOLDER                 reads every byte
//! measure forget PATH…                  drops files from the page cache, so that they are read from the disk again
//! measure wal-get SOCKET NAME PATH      what the restored server runs
//! ```
//!
//! Each answer is one line of JSON. FOLDER holds the repository, its key and the spool.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement prints what it took"
)]

use std::{
    error::Error,
    fs,
    io::{BufRead as _, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use landfast_backup::Target;
use landfast_backup_postgres::{
    Archive, BackupRequest, Pace, Programs, RestoreRequest, Server, WalArchiveConfig, WalArchiver,
    back_up, restore, verify, wal_get,
};
use landfast_repository::{Key, Keyring, Place, Repository, Storage};
use rustix::fs::Advice;
use serde_json::json;

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Done<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Done<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // It is started for each segment: no threads before it is known that they are needed.
    match words.as_slice() {
        ["wal-get", socket, name, path] => {
            return Ok(wal_get(socket.as_ref(), name, path.as_ref()));
        }
        ["forget", paths @ ..] => paths.iter().try_for_each(|path| forget(path.as_ref()))?,
        words => tokio::runtime::Runtime::new()?.block_on(run(words))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(words: &[&str]) -> Done {
    match words {
        ["archive", folder, sockets, port] => archive(folder.as_ref(), sockets, port).await,
        ["restore", folder, data, lsn] => restored(folder.as_ref(), data.into(), lsn).await,
        ["verify", folder] => verified(folder.as_ref()).await,
        _ => Err("usage: measure archive|restore|verify|forget|wal-get …".into()),
    }
}

async fn open(folder: &Path) -> Done<Archive> {
    let (key, place) = (folder.join("backup.key"), folder.join("repository"));
    let is_new = !key.exists();
    if is_new {
        Key::generate()?.write(&key)?;
    }
    let keys = Arc::new(Keyring::new(Key::read(&key)?));
    let storage = Storage::new(&Place::Folder(place))?;
    let repository = if is_new {
        Repository::create(storage, keys).await?
    } else {
        Repository::open(storage, keys).await?
    };
    Ok(Archive::new(repository, "main")?)
}

fn programs() -> Programs {
    Programs {
        folder: "/usr/lib/postgresql/15/bin".into(),
        // All of it runs as the database's user.
        user: None,
        containers: None,
    }
}

async fn archive(folder: &Path, sockets: &str, port: &str) -> Done {
    let archive = open(folder).await?;
    let server = Server {
        host: sockets.to_owned(),
        port: port.parse()?,
        login: "postgres".to_owned(),
        password: None,
        database: "postgres".to_owned(),
    };
    let config = WalArchiveConfig {
        server: server.clone(),
        programs: programs(),
        archive: archive.clone(),
        spool: folder.join("spool"),
        slot: "landfast".to_owned(),
        is_synchronous: false,
        interval: Duration::from_secs(5),
        spool_bytes_max: 4 << 30,
    };
    let archiver = WalArchiver::start(config, |event| eprintln_event(&event)).await?;
    answer(json!({ "ready": true }));
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let begun = Instant::now();
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [kind @ ("full" | "changed")] => {
                let request = BackupRequest {
                    server: server.clone(),
                    programs: programs(),
                    archive: archive.clone(),
                    is_full: *kind == "full",
                    pace: Pace::new(24 << 20),
                    wal_patience: Duration::from_secs(60),
                };
                let backup = back_up(&request, &archiver, |_| {}).await?;
                answer(json!({
                    "id": backup.summary.id, "seconds": begun.elapsed().as_secs_f64(), "bytes": backup.bytes,
                    "same": backup.same_bytes, "stored": backup.stored_bytes, "peak_kib": peak(),
                }));
            }
            ["settle", lsn] => {
                settle(&archive, &archiver, lsn).await?;
                answer(json!({ "settled": lsn, "peak_kib": peak() }));
            }
            _ => break,
        }
    }
    archiver.stop().await?;
    Ok(())
}

/// Waits until the archive reaches a place.
async fn settle(archive: &Archive, archiver: &WalArchiver, lsn: &str) -> Done {
    let wanted = lsn.parse()?;
    loop {
        archiver.flush().await?;
        let loaded = archive.load().await?.ok_or("there is no archive")?;
        if loaded.ledger.end().is_some_and(|end| end.lsn >= wanted) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn restored(folder: &Path, data: PathBuf, lsn: &str) -> Done {
    let begun = Instant::now();
    let mut run = data.clone().into_os_string();
    run.push(".run");
    let request = RestoreRequest {
        archive: open(folder).await?,
        programs: programs(),
        target: Target::Lsn(lsn.parse()?),
        accepted: None,
        data,
        run: run.into(),
        wal_get: vec![std::env::current_exe()?.into(), "wal-get".into()],
        preload: String::new(),
        login: "postgres".into(),
    };
    let restored = restore(&request, |_| {}).await?;
    let (phases, wal) = (restored.phases, restored.plan.wal_bytes());
    answer(json!({
        "seconds": begun.elapsed().as_secs_f64(), "plan": phases.plan.as_secs_f64(),
        "files": phases.restore.as_secs_f64(), "replay": phases.replay.as_secs_f64(), "wal": wal,
        "backup": restored.backup.summary.id, "reached": restored.reached.to_string(),
        "sockets": restored.server.host, "port": restored.server.port, "peak_kib": peak(),
    }));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    restored.finish().await?;
    Ok(())
}

async fn verified(folder: &Path) -> Done {
    let begun = Instant::now();
    let verified = verify(&open(folder).await?, |_| {}).await?;
    answer(json!({
        "seconds": begun.elapsed().as_secs_f64(), "objects": verified.objects, "bytes": verified.bytes,
        "findings": verified.findings.len(), "peak_kib": peak(),
    }));
    Ok(())
}

/// Synced first: what is not on the disk yet stays in the cache whatever is advised.
fn forget(path: &Path) -> Done {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            forget(&entry?.path())?;
        }
        return Ok(());
    }
    // A repository that nobody may read any more is no reason to stop.
    if fs::metadata(path)?.permissions().mode() & 0o444 != 0 {
        let file = fs::File::open(path)?;
        file.sync_data()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// The most that was resident at once, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn answer(line: serde_json::Value) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "events are for whoever looks on")]
fn eprintln_event(event: &landfast_backup_postgres::WalEvent) {
    eprintln!("{event:?}");
}
