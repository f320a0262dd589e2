//! The roles of a process that can be killed: an archiver with its backups, and a restore. They end with their standard input, so
//! that nothing outlives a run.

#![expect(
    clippy::exit,
    reason = "a role ends with its standard input, wherever its work is then"
)]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use landfast_backup::{Retention, Target};
use landfast_backup_postgres::{
    Archive, RestoreRequest, RestoreStep, WalArchiver, WalEvent, back_up, prune, restore,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::mpsc,
};

use crate::order::{Ask, Order, Told, programs};

/// Archives, and does what it is asked line by line.
pub async fn archive(path: &Path) -> anyhow::Result<()> {
    let order = Order::read(path)?;
    let archive = order.open().await?;
    let (asks, mut asked) = mpsc::unbounded_channel();
    let heal = order.heals.then(|| asks.clone());
    let on_event = move |event: WalEvent| {
        if let (WalEvent::ChainBroken { .. }, Some(heal)) = (&event, &heal) {
            drop(heal.send(Ask::BackUp { is_full: true }));
        }
        tell(&Told::Event { event });
    };
    let archiver = WalArchiver::start(order.config(&archive), on_event).await?;
    let archiver = Arc::new(archiver);
    let mut status = archiver.watch();
    let telling = tokio::spawn(async move {
        while status.changed().await.is_ok() {
            let status = status.borrow_and_update().clone();
            tell(&Told::Status { status });
        }
    });
    let listening = tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(ask) = serde_json::from_str(&line) {
                drop(asks.send(ask));
            }
        }
        std::process::exit(0);
    });
    tell(&Told::Started);
    while let Some(ask) = asked.recv().await {
        if matches!(ask, Ask::Stop) {
            break;
        }
        let what = format!("{ask:?}");
        match obey(&order, &archive, &archiver, ask).await {
            Ok(told) => tell(&told),
            Err(error) => tell(&Told::Failed {
                what,
                why: format!("{error:#}"),
            }),
        }
    }
    telling.abort();
    listening.abort();
    if let Some(archiver) = Arc::into_inner(archiver) {
        archiver.stop().await?;
    }
    tell(&Told::Flushed);
    std::process::exit(0);
}

async fn obey(
    order: &Order,
    archive: &Archive,
    archiver: &WalArchiver,
    ask: Ask,
) -> anyhow::Result<Told> {
    match ask {
        Ask::BackUp { is_full } => {
            let made = back_up(&order.backup(archive, is_full), archiver, |_| {}).await?;
            Ok(Told::BackedUp {
                id: made.summary.id,
                is_good: made.summary.state == landfast_backup::BackupState::Good,
                took_ms: made.took_ms,
            })
        }
        Ask::Flush => {
            archiver.flush().await?;
            Ok(Told::Flushed)
        }
        Ask::Prune {
            daily,
            wal_heartbeats,
            bad,
            delay,
        } => {
            let retention = Retention {
                daily,
                wal_heartbeats,
                bad,
            };
            let pruned = prune(archive, archiver, &retention, delay, false).await?;
            Ok(Told::Pruned {
                kept: pruned.keep.backups.into_keys().collect(),
                buried: pruned.buried,
                deleted: pruned.deleted,
            })
        }
        Ask::Stop => anyhow::bail!("it is answered before"),
    }
}

/// Restores to the end, shuts the copy down in order, and tells each step.
pub async fn restore_copy(path: &Path, program: PathBuf) -> anyhow::Result<()> {
    let order = Order::read(path)?;
    let archive = order.open().await?;
    let _listening = tokio::spawn(async {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(_)) = lines.next_line().await {}
        std::process::exit(0);
    });
    tell(&Told::Started);
    let request = request(archive, program, order.data, order.run, Target::Latest);
    let on_step = |step: RestoreStep| {
        let name = match step {
            RestoreStep::Planned(_) => "planned",
            RestoreStep::Files(_) => "files",
            RestoreStep::Replaying => "replaying",
            RestoreStep::Ready { .. } => "ready",
        };
        tell(&Told::Step { name: name.into() });
    };
    let restored = restore(&request, on_step).await?;
    let reached = restored.reached;
    restored.finish().await?;
    tell(&Told::Restored { reached });
    std::process::exit(0);
}

/// A restore into a folder of its own; `program` answers to `wal-get`.
pub fn request(
    archive: Archive,
    program: PathBuf,
    data: PathBuf,
    run: PathBuf,
    target: Target,
) -> RestoreRequest {
    RestoreRequest {
        archive,
        programs: programs(),
        target,
        accepted: None,
        data,
        run,
        wal_get: vec![program.into(), "wal-get".into()],
        preload: String::new(),
        login: "postgres".into(),
    }
}

/// One line. Nobody to read it means nobody to work for: the run is gone.
fn tell(told: &Told) {
    let mut line = serde_json::to_vec(told).expect("plain data");
    line.push(b'\n');
    let mut output = std::io::stdout().lock();
    if output
        .write_all(&line)
        .and_then(|()| output.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}
