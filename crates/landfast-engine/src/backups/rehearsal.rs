//! Migrations that are pending, run on the copy of a drill.
//!
//! They run with the rights that they have in the app's own database: as a login that acts as its owner. What becomes of them says nothing
//! of the backup, whose verdict is known before they begin. They are left out where they could reach another server than the copy, and
//! where the disk has no room for what they may write: each table once more.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_backup_postgres::{ScratchCopy, Server};
use landfast_datastore::{Login, owner_of};
use landfast_datastore_client::{Access, Session};
use landfast_migration::{Engine, MigrationSet};
use landfast_spec::{AppSpec, Rehearsal as Budget};
use landfast_types::{Bytes, Digest, ReleaseId, Scope, Secret, StoreName, format_duration};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::work::{room_for, sentence};
use crate::{
    actions::chain,
    by_hand::{self, Rehearsed, Trial},
    shared::Shared,
};

/// No drill waits longer for migrations.
const REHEARSAL_MAX: Duration = Duration::from_secs(2 * 3_600);
/// How often it is looked whether the disk still has room.
const LOOK: Duration = Duration::from_millis(500);

/// The migrations of somebody's folder, instead of those of the newest release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationsOf {
    pub spec: AppSpec,
    pub artifacts: BTreeMap<String, Digest>,
}

/// What migrations did on the copy of a drill. Read by later versions: fields are added with `#[serde(default)]` only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRehearsal {
    /// Whose they are; `None`: those of a folder.
    pub release: Option<ReleaseId>,
    /// Of the backup.
    pub copied: Bytes,
    /// How long the copy took.
    pub copying: Duration,
    /// Those that were pending, in order.
    pub migrations: Vec<Trial>,
    /// Why not all of them ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// That was the connection, or a lock, and says nothing of the migrations.
    #[serde(default)]
    pub is_cut_short: bool,
}

impl DrillRehearsal {
    /// The same as of a rehearsal by hand.
    pub fn rehearsed(&self) -> Rehearsed {
        Rehearsed {
            engine: Engine::Postgres,
            copied: self.copied,
            copying: self.copying,
            migrations: self.migrations.clone(),
            failure: self.failure.clone(),
            is_cut_short: self.is_cut_short,
        }
    }
}

/// What is to be rehearsed.
pub(super) struct Plan {
    release: Option<ReleaseId>,
    set: Result<MigrationSet, String>,
    budget: Budget,
}

impl Plan {
    /// Of a folder, or of the newest release; `None` where the store has no migrations.
    pub(super) async fn of(
        shared: &Arc<Shared>,
        scope: &Scope,
        store: &StoreName,
        folder: Option<&MigrationsOf>,
    ) -> Option<Self> {
        let newest = || {
            let view = shared.environment(scope)?;
            let (release, body) = view.bodies.last_key_value()?;
            Some((Some(*release), body.spec.clone(), body.artifacts.clone()))
        };
        let (release, spec, artifacts) = match folder {
            Some(folder) => (None, folder.spec.clone(), folder.artifacts.clone()),
            None => newest()?,
        };
        let known = spec.stores.get(store)?;
        known.migrations.as_ref()?;
        let budget = known.rehearsal.clone().unwrap_or_default();
        let set = by_hand::read_set(shared, &spec, &artifacts, store).await;
        Some(Self {
            release,
            set: set.map_err(|error| chain(&error)),
            budget,
        })
    }

    /// Runs them, as an administrator's server lets the owner, or as the owner itself. `folder` is where the copy lies.
    pub(super) async fn run(
        self,
        copy: Result<ScratchCopy, String>,
        app_database: Option<String>,
        folder: &Path,
        tell: &(impl Fn(String) + Send + Sync),
    ) -> DrillRehearsal {
        let ran = async {
            let set = self.set?;
            let copy = copy?;
            let database = app_database.as_ref().unwrap_or(&copy.server.database);
            let refusal = copy.refusal(database).await;
            if let Some(why) = refusal.map_err(|error| sentence(&error))? {
                return Err(format!("left out: {why}"));
            }
            let bytes = copy.bytes().await.map_err(|error| sentence(&error))?;
            room_for(folder, bytes).map_err(|full| format!("left out: {}", full.reason))?;
            let server = copy.server;
            let url = match app_database {
                Some(database) => owned(&server, database).await?,
                None => address(
                    &server,
                    &server.login,
                    &Secret::new(String::new()),
                    &server.database,
                ),
            };
            let tell = |text: String| tell(format!("rehearsing: {text}"));
            let trying = timeout(
                REHEARSAL_MAX,
                by_hand::on_copy(&set, &url, &self.budget, &tell),
            );
            let ran = tokio::select! {
                ran = trying => ran,
                full = until_full(folder) => return Err(format!("they were stopped: {full}")),
            };
            let late = |_| format!("they took longer than {}", format_duration(REHEARSAL_MAX));
            ran.map_err(late)?.map_err(|error| chain(&error))
        };
        let ran: Result<Rehearsed, String> = ran.await;
        let (migrations, failure, is_cut_short) = match ran {
            Ok(ran) => (ran.migrations, ran.failure, ran.is_cut_short),
            Err(reason) => (Vec::new(), Some(reason), true),
        };
        DrillRehearsal {
            release: self.release,
            copied: Bytes(0),
            copying: Duration::ZERO,
            migrations,
            failure,
            is_cut_short,
        }
    }
}

/// Until the disk has so little room left that others there would miss it.
async fn until_full(folder: &Path) -> String {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Err(full) = room_for(folder, 0) {
            return full.reason;
        }
    }
}

/// A login of its own on the copy, which may in the app's database what its owner may.
async fn owned(server: &Server, database: String) -> Result<Secret<String>, String> {
    let access = Access {
        engine: landfast_spec::Engine::Postgres,
        socket: PathBuf::from(&server.host).join(format!(".s.PGSQL.{}", server.port)),
        port: server.port,
        login: server.login.clone(),
        // Whoever reaches the socket of a copy is let in.
        password: Secret::new("none".to_owned()),
        owner: owner_of(&database),
        database: database.clone(),
    };
    let login = Login::Rehearsal.to_string();
    let password = Secret::new(format!("{:032x}", rand::random::<u128>()));
    let made = async {
        let mut session = Session::connect(&access).await?;
        session.ensure_login(&login, &password).await
    };
    made.await.map_err(|error| chain(&error))?;
    Ok(address(server, &login, &password, &database))
}

fn address(
    server: &Server,
    login: &str,
    password: &Secret<String>,
    database: &str,
) -> Secret<String> {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let (host, port) = (quoted(&server.host), server.port);
    let (login, password) = (quoted(login), quoted(password.reveal()));
    let database = quoted(database);
    Secret::new(format!(
        "host={host} port={port} user={login} password={password} dbname={database} sslmode=disable"
    ))
}
