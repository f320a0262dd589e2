//! A copy of a managed database beside it, on the same server, for a while.
//!
//! It is made by the engine's own dump and restore: a template copy would need that nobody is connected. The dump lies in the
//! store's folder, the copy has a name that follows from the store's. Both go when the [`DatabaseCopy`] is dropped; what a server that
//! died left of them goes at the start of the next one, or when the next copy is made.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use landfast_datastore::{Login, Program, Store, connection_url, database_name, programs};
use landfast_datastore_client::{Access, COPYING, Session};
use landfast_spec::Engine;
use landfast_target::{Elsewhere, Exit, ProgramEnd, ProgramRun};
use landfast_types::{Bytes, ImageId, Scope, Secret, StoreName};
use tokio::{sync::OwnedMutexGuard, time::sleep};

use super::{
    connections::{self, Side},
    container, credentials, definers, host,
    rotation::operator_login,
};
use crate::{actions::chain, planning::Refusal, shared::Shared};

/// Database names are at most 63 bytes long.
const NAME_PREFIX_MAX: usize = 50;
/// The code of a refusal that a later try may not meet.
pub(crate) const BUSY: &str = "store-busy";
/// The server of a copy is asked so often, while a program may make no progress, whether it works on it.
const LOOKS: u32 = 20;
/// Room that a copy must leave free.
const SPARE: u64 = 256 << 20;

/// What keeps a client of MariaDB from files that we did not write. It must be the first.
const NO_DEFAULTS: &str = "--no-defaults";

/// A copy; dropping it removes it.
pub(crate) struct DatabaseCopy {
    shared: Arc<Shared>,
    store: Store,
    /// With a login that may there what the owner may.
    pub(crate) url: Secret<String>,
    /// The size of what was copied.
    pub(crate) size: Bytes,
    is_removed: bool,
    /// Held until it is gone.
    one_at_a_time: Option<OwnedMutexGuard<()>>,
}

impl DatabaseCopy {
    /// Makes one; says each thing it begins.
    ///
    /// # Errors
    /// Why not, and what helps.
    pub(crate) async fn make(
        shared: &Arc<Shared>,
        scope: &Scope,
        name: &StoreName,
        mut tell: impl FnMut(String),
    ) -> Result<Self, Refusal> {
        let failed = |reason: String| refusal("store-copy-failed", name, reason, None);
        let handle = shared.stores.handle(scope, name);
        let handle = handle.ok_or_else(|| {
            let reason = "a copy can only be made of a database that Landfast runs".to_owned();
            let hint = "rehearse an external one on a copy of your own".to_owned();
            refusal("store-refused", name, reason, Some(hint))
        })?;
        let Ok(one_at_a_time) = Arc::clone(&handle.copying).try_lock_owned() else {
            let reason = "another rehearsal has its copy just now".to_owned();
            return Err(refusal(BUSY, name, reason, None));
        };
        // The operator is there from here on.
        connections::managed_url(shared, scope, name, operator_login, Side::Host)
            .await
            .map_err(failed)?;
        let store = handle.view.borrow().store.clone();
        let tools = Tools::find(shared, &store).await?;
        let access = host::access(shared, &store).map_err(failed)?;
        let size = room(shared, &store, &access).await?;
        let (login, password) = match store.wanted.engine {
            // Whoever may write to two databases of a server may write to one from the other.
            Engine::Mariadb => (Login::Rehearsal, credentials::fresh()),
            Engine::Postgres | Engine::Mysql | Engine::Redis | Engine::S3 => {
                // While the copy is there no rotation takes it away.
                let login = operator_login(handle.rotation.borrow().rotation.given());
                let known = credentials::password(shared, scope, name, login);
                (login, known.map_err(failed)?)
            }
        };
        let address = host::address(shared, &store).await.map_err(failed)?;
        let copy = Self {
            url: connection_url(
                store.wanted.engine,
                &login.to_string(),
                &password,
                &address.to_string(),
                &copy_name(scope),
            ),
            shared: Arc::clone(shared),
            store,
            size,
            is_removed: false,
            one_at_a_time: Some(one_at_a_time),
        };
        tell(format!("dumping {size}"));
        copy.dump(&tools, &access).await.map_err(failed)?;
        tell("restoring it beside".to_owned());
        let restored = copy.restore(&tools, &access, login, &password).await;
        restored.map_err(failed)?;
        Ok(copy)
    }

    /// Removes it, and waits until it is gone.
    pub(crate) async fn remove(mut self) {
        remove(&self.shared, &self.store).await;
        self.is_removed = true;
    }

    async fn dump(&self, tools: &Tools, access: &Access) -> Result<(), String> {
        let folder = folder(&self.shared, &self.store);
        host::remove(&folder).map_err(|error| error.to_string())?;
        let owner = host::owner(&self.store);
        let given = self.shared.target.own_folder(&owner, &folder).await;
        given.map_err(|error| chain(&error))?;
        let mut arguments = reach(access);
        let file = dump_file(&folder);
        arguments.extend(match self.store.wanted.engine {
            Engine::Mariadb => vec![
                // One instant of all tables, and nobody waits for it. Events would run in the copy, too.
                "--single-transaction".to_owned(),
                "--skip-lock-tables".to_owned(),
                "--routines".to_owned(),
                "--triggers".to_owned(),
                format!("--result-file={}", file.display()),
                access.database.clone(),
            ],
            Engine::Postgres | Engine::Mysql | Engine::Redis | Engine::S3 => vec![
                "--format=custom".to_owned(),
                "--compress=1".to_owned(),
                // They would make the copy send or receive.
                "--no-publications".to_owned(),
                "--no-subscriptions".to_owned(),
                format!("--file={}", file.display()),
                format!("--dbname={}", access.database),
            ],
        });
        self.run(tools, &tools.dump, arguments, &folder, access)
            .await?;
        if self.store.wanted.engine == Engine::Mariadb {
            let cleared = tokio::task::spawn_blocking(move || definers::clear(&file)).await;
            let cleared = cleared.map_err(|panic| panic.to_string())?;
            cleared.map_err(|error| format!("failed to read the dump: {error}"))?;
        }
        Ok(())
    }

    async fn restore(
        &self,
        tools: &Tools,
        access: &Access,
        login: Login,
        password: &Secret<String>,
    ) -> Result<(), String> {
        let folder = folder(&self.shared, &self.store);
        let (copy, file) = (copy_name(&self.store.scope), dump_file(&folder));
        let mut session = host::connect(&self.shared, &self.store).await?;
        let made = session.make_beside(&copy, login, password).await;
        made.map_err(|error| chain(&error))?;
        // Views, triggers and routines run with the rights of whoever makes them: in MariaDB those of the copy's login.
        let access = match self.store.wanted.engine {
            Engine::Mariadb => Access {
                login: login.to_string(),
                password: password.clone(),
                ..access.clone()
            },
            Engine::Postgres | Engine::Mysql | Engine::Redis | Engine::S3 => access.clone(),
        };
        let mut arguments = reach(&access);
        arguments.extend(match self.store.wanted.engine {
            Engine::Mariadb => vec![
                format!("--database={copy}"),
                "--abort-source-on-error".to_owned(),
                format!("--execute=source {}", file.display()),
            ],
            Engine::Postgres | Engine::Mysql | Engine::Redis | Engine::S3 => vec![
                "--exit-on-error".to_owned(),
                format!("--dbname={copy}"),
                file.display().to_string(),
            ],
        });
        self.run(tools, &tools.restore, arguments, &folder, &access)
            .await?;
        // It is in the copy now.
        host::remove(&folder).map_err(|error| error.to_string())
    }

    /// Runs a client of the database as the store's user. Its password is in the environment of that process alone.
    async fn run(
        &self,
        tools: &Tools,
        program: &Path,
        arguments: Vec<String>,
        folder: &Path,
        access: &Access,
    ) -> Result<(), String> {
        let plain = |text: &str| Secret::new(text.to_owned());
        let fixed = host::ENVIRONMENT.map(|(name, value)| (name.to_owned(), plain(value)));
        let mut env = BTreeMap::from(fixed);
        let variable = match self.store.wanted.engine {
            Engine::Mariadb => "MYSQL_PWD",
            Engine::Postgres | Engine::Mysql | Engine::Redis | Engine::S3 => {
                // By this its sessions are found when it is ended.
                env.insert("PGAPPNAME".to_owned(), plain(COPYING));
                "PGPASSWORD"
            }
        };
        env.insert(variable.to_owned(), access.password.clone());
        if let Some(image) = tools.image {
            return self.run_in(image, program, arguments, folder, access).await;
        }
        let run = ProgramRun {
            owner: host::owner(&self.store),
            program: program.to_owned(),
            arguments,
            env,
            folder: folder.to_owned(),
            stdin: Secret::new(Vec::new()),
            named_users: Vec::new(),
            patience: host::patience(&self.shared),
            elsewhere: Elsewhere::default(),
        };
        let ended = tokio::select! {
            ended = self.shared.target.run_program(&run) => ended,
            () = self.look(&run.elsewhere) => unreachable!("it looks for as long as the program runs"),
        };
        let ended = ended.map_err(|error| chain(&error));
        self.judge(program, ended, access).await
    }

    /// The same by the store's image. Docker shows variables: the password is in a file in memory.
    async fn run_in(
        &self,
        image: ImageId,
        program: &Path,
        mut arguments: Vec<String>,
        folder: &Path,
        access: &Access,
    ) -> Result<(), String> {
        const SECRET: &str = "CLIENT";
        let file = container::secret_path(SECRET);
        let password = access.password.reveal();
        let mut env = BTreeMap::new();
        let secret = match self.store.wanted.engine {
            Engine::Mariadb => {
                arguments.retain(|argument| argument != NO_DEFAULTS);
                arguments.insert(0, format!("--defaults-file={file}"));
                format!("[client]\npassword=\"{password}\"\n")
            }
            Engine::Postgres | Engine::Mysql | Engine::Redis | Engine::S3 => {
                env.insert("PGAPPNAME".to_owned(), COPYING.to_owned());
                env.insert("PGSERVICEFILE".to_owned(), file);
                env.insert("PGSERVICE".to_owned(), "store".to_owned());
                format!("[store]\npassword={password}\n")
            }
        };
        let sockets = host::places(&self.shared, &self.store.scope, &self.store.name).sockets;
        let text = program.to_string_lossy();
        let run = container::Run {
            env,
            secrets: BTreeMap::from([(SECRET.to_owned(), Secret::new(secret))]),
            folders: vec![folder, &sockets],
            ..container::Run::of(&text, arguments)
        };
        let elsewhere = run.elsewhere.clone();
        let ended = tokio::select! {
            ended = run.end(&self.shared, &self.store, image) => ended,
            () = self.look(&elsewhere) => unreachable!("it looks for as long as the program runs"),
        };
        self.judge(program, ended, access).await
    }

    async fn judge(
        &self,
        program: &Path,
        ended: Result<ProgramEnd, String>,
        access: &Access,
    ) -> Result<(), String> {
        let ended = match ended {
            Ok(ended) => ended,
            Err(reason) => {
                let waits = self.waits_behind(access).await.unwrap_or_default();
                return Err(format!("{reason}{waits}"));
            }
        };
        if ended.exit == (Exit::Code { code: 0 }) {
            return Ok(());
        }
        let lines = ended.output.lines().filter(|line| !line.trim().is_empty());
        let last: Vec<_> = lines.rev().take(3).collect();
        let said = last.into_iter().rev().collect::<Vec<_>>().join(" / ");
        let full = if said.contains("No space left on device") {
            "; free some space on the state folder's file system"
        } else {
            ""
        };
        let program = program.display();
        Err(format!("`{program}` {}: {said}{full}", ended.exit))
    }

    /// A program that waits for its server advances where that does.
    async fn look(&self, elsewhere: &Elsewhere) {
        let step = host::patience(&self.shared) / LOOKS;
        loop {
            sleep(step).await;
            let asked = async {
                let mut session = host::connect(&self.shared, &self.store).await?;
                let asked = session.copies_advance().await;
                asked.map_err(|error| chain(&error))
            };
            match asked.await {
                Ok(true) => elsewhere.advanced(),
                Ok(false) => {}
                Err(reason) => {
                    tracing::debug!(store = %self.store.name, reason, "the copy was not looked at");
                }
            }
        }
    }

    /// Whom it waits for, where it waits for a lock.
    async fn waits_behind(&self, access: &Access) -> Option<String> {
        let mut session = host::connect(&self.shared, &self.store).await.ok()?;
        let measures = session.measure().await.ok()?;
        let mut waiting = measures.waiting.into_iter();
        let own = waiting.find(|waiting| waiting.login == access.login)?;
        Some(match own.behind.first() {
            Some(login) => format!("; it waits for a lock that `{login}` has"),
            None => "; it waits for a lock".to_owned(),
        })
    }
}

impl Drop for DatabaseCopy {
    fn drop(&mut self) {
        if self.is_removed {
            return;
        }
        let (shared, store) = (Arc::clone(&self.shared), self.store.clone());
        // The next one begins when this one is gone: both have the same name.
        let one_at_a_time = self.one_at_a_time.take();
        let stores = &self.shared.stores;
        stores.spawn(async move {
            remove(&shared, &store).await;
            drop(one_at_a_time);
        });
    }
}

/// The programs that dump and restore.
struct Tools {
    dump: PathBuf,
    restore: PathBuf,
    /// They are those of the store's image.
    image: Option<ImageId>,
}

impl Tools {
    async fn find(shared: &Arc<Shared>, store: &Store) -> Result<Self, Refusal> {
        let (engine, version) = (store.wanted.engine, &store.wanted.version);
        let (dump, restore, package) = match engine {
            Engine::Mariadb => ("mariadb-dump", "mariadb", "mariadb-client".to_owned()),
            Engine::Postgres | Engine::Mysql | Engine::Redis | Engine::S3 => (
                "pg_dump",
                "pg_restore",
                format!("postgresql-client-{version}"),
            ),
        };
        if let Some(image) = &store.wanted.image {
            let failed = |reason: String| refusal("store-copy-failed", &store.name, reason, None);
            let found = container::clients(shared, store, image, [dump, restore]).await;
            let (id, [dump, restore]) = found.map_err(failed)?;
            return Ok(Self {
                dump: dump.into(),
                restore: restore.into(),
                image: Some(id),
            });
        }
        let server = programs(engine, version).server;
        // Clients lie beside their server, or where all programs do.
        let find = |name: &'static str| {
            let beside = server.places.iter().filter_map(|place| {
                let folder = Path::new(place).parent()?;
                let path = folder.join(name);
                (folder != Path::new("")).then(|| path.display().to_string())
            });
            let places = beside
                .chain(["/usr/bin", "/usr/local/bin"].map(|folder| format!("{folder}/{name}")));
            let program = Program {
                name,
                places: places.collect(),
            };
            host::find(&program).ok_or_else(|| {
                let reason = format!("`{name}` is not installed, which makes the copy");
                let hint = Some(format!("apt-get install {package}"));
                refusal("store-program-missing", &store.name, reason, hint)
            })
        };
        Ok(Self {
            dump: find(dump)?,
            restore: find(restore)?,
            image: None,
        })
    }
}

fn refusal(code: &'static str, name: &StoreName, reason: String, hint: Option<String>) -> Refusal {
    let prefix = format!("store `{name}`");
    let reason = if reason.starts_with(&prefix) {
        reason
    } else {
        format!("{prefix}: {reason}")
    };
    Refusal { code, reason, hint }
}

/// The database's size, where there is room for its copy and the dump.
async fn room(shared: &Shared, store: &Store, access: &Access) -> Result<Bytes, Refusal> {
    let failed = |reason: String| refusal("store-copy-failed", &store.name, reason, None);
    let measured = async { Session::connect(access).await?.measure().await };
    let size = measured
        .await
        .map_err(|error| failed(chain(&error)))?
        .size_bytes;
    let places = host::places(shared, &store.scope, &store.name);
    let disk = rustix::fs::statvfs(&places.folder).map_err(|error| failed(error.to_string()))?;
    let (free, needed) = (disk.f_bavail * disk.f_frsize, size * 2 + SPARE);
    if free < needed {
        let (free, needed, size) = (Bytes(free), Bytes(needed), Bytes(size));
        let reason = format!(
            "a copy of {size} and its dump need {needed}, and {free} is free where `{}` lies",
            places.folder.display()
        );
        let hint = Some("free some space there".to_owned());
        return Err(refusal("disk-short", &store.name, reason, hint));
    }
    Ok(Bytes(size))
}

/// Arguments that lead a client to the server, over its own socket.
fn reach(access: &Access) -> Vec<String> {
    if access.engine == Engine::Mariadb {
        return vec![
            // Nobody's configuration but ours.
            NO_DEFAULTS.to_owned(),
            format!("--socket={}", access.socket.display()),
            format!("--user={}", access.login),
        ];
    }
    let folder = access.socket.parent().unwrap_or(&access.socket);
    vec![
        format!("--host={}", folder.display()),
        format!("--port={}", access.port),
        format!("--username={}", access.login),
        "--no-password".to_owned(),
    ]
}

fn copy_name(scope: &Scope) -> String {
    let mut name = database_name(scope);
    name.truncate(NAME_PREFIX_MAX);
    format!("{name}_rehearsal")
}

fn folder(shared: &Shared, store: &Store) -> PathBuf {
    let places = host::places(shared, &store.scope, &store.name);
    places.folder.join("rehearsal")
}

fn dump_file(folder: &Path) -> PathBuf {
    folder.join("dump")
}

/// Removes a copy and its dump. What cannot be removed now is removed before the next copy, or at the next start.
async fn remove(shared: &Shared, store: &Store) {
    let (scope, name) = (&store.scope, &store.name);
    if let Err(error) = host::remove(&folder(shared, store)) {
        tracing::warn!(%scope, store = %name, %error, "the dump of a rehearsal stays");
    }
    let dropped = async {
        let mut session = host::connect(shared, store).await?;
        let dropped = session.drop_beside(&copy_name(scope)).await;
        dropped.map_err(|error| chain(&error))
    };
    if let Err(reason) = dropped.await {
        tracing::warn!(%scope, store = %name, reason, "the copy of a rehearsal stays");
    }
}

/// At the start of the server: removes what an earlier one left.
pub(super) async fn sweep(shared: Arc<Shared>, scope: Scope, name: StoreName) {
    let Some(handle) = shared.stores.handle(&scope, &name) else {
        return;
    };
    let store = handle.view.borrow().store.clone();
    if !matches!(store.wanted.engine, Engine::Postgres | Engine::Mariadb) {
        return;
    }
    if let Err(reason) = connections::ready(&handle).await {
        tracing::debug!(%scope, store = %name, reason, "nothing was looked for");
        return;
    }
    // A rehearsal that has begun removes it itself.
    let Ok(_one_at_a_time) = handle.copying.try_lock() else {
        return;
    };
    remove(&shared, &store).await;
}
