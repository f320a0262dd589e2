//! What is done on the host for a store: finding its programs, making its data, starting its server. Each may be repeated.
//!
//! Data is made under another name and renamed when it is whole, so a making that was killed is begun anew and what it
//! left is removed. The configuration is written before each start.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_backup::Writes;
use landfast_datastore::{
    self as datastore, Login, Places, Program, Server, Store, closed_access, database_name,
    parse_version, programs, server, version_fits,
};
use landfast_datastore_client::{Access, Session, access_list};
use landfast_shim::find_program;
use landfast_spec::Engine;
use landfast_target::{Elsewhere, Exit, InstanceRef, ProgramRun, ProgramSpec, Resources};
use landfast_types::{Bytes, Digest, Fence, ImageId, InstanceId, Scope, Secret, StoreName};

use super::{container, credentials, lineage, writes};
use crate::{actions::chain, shared::Shared};

/// The environment of servers and their helpers.
pub(super) const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("LC_ALL", "C.UTF-8"),
];

/// A helper that makes no progress for so long is ended.
const PATIENCE: Duration = Duration::from_secs(300);
/// One segment of the log of a PostgreSQL or MariaDB, a few times over.
const ROOM_MIN: Bytes = Bytes(64 << 20);
/// Or the twentieth part of the disk.
const ROOM_SHARE_MIN: u64 = 20;

/// Where a store lies.
pub(crate) fn places(shared: &Shared, scope: &Scope, name: &StoreName) -> Places {
    let key = Digest::of(format!("{scope}/{name}").as_bytes());
    let key: String = key.as_bytes()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Places {
        folder: absolute(&shared.folders.store(scope, name)),
        sockets: absolute(&shared.folders.run.join("s").join(key)),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whose a store is among the users of the host.
pub(super) fn owner(store: &Store) -> String {
    owner_of(&store.scope, &store.name)
}

/// The same for one that may not be there yet.
pub(crate) fn owner_of(scope: &Scope, name: &StoreName) -> String {
    format!("{scope}/stores/{name}")
}

/// How Landfast reaches a store as its administrator.
pub(crate) fn access(shared: &Shared, store: &Store) -> Result<Access, String> {
    let login = Login::Administrator;
    let database = database_name(&store.scope);
    let places = places(shared, &store.scope, &store.name);
    Ok(Access {
        engine: store.wanted.engine,
        socket: places.socket(store.wanted.engine, store.port),
        port: store.port,
        login: login.to_string(),
        password: credentials::password(shared, &store.scope, &store.name, login)?,
        owner: datastore::owner_of(&database),
        database,
    })
}

/// Connects to a store as its administrator, whose password may be changing just now.
pub(super) async fn connect(shared: &Shared, store: &Store) -> Result<Session, String> {
    let mut access = access(shared, store)?;
    let mut known = credentials::own(shared, &store.scope, &store.name)?;
    loop {
        let mut refused = String::new();
        for password in &known {
            access.password = password.clone();
            match Session::connect(&access).await {
                Ok(session) => return Ok(session),
                Err(error) => refused = chain(&error),
            }
        }
        let now = credentials::own(shared, &store.scope, &store.name)?;
        let is_same = now
            .iter()
            .map(Secret::reveal)
            .eq(known.iter().map(Secret::reveal));
        if is_same {
            return Err(refused);
        }
        known = now;
    }
}

/// The room on the file system a store lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub free: Bytes,
    pub total: Bytes,
    pub folder: PathBuf,
}

impl Room {
    /// Whether a database may not get through the day with it.
    pub fn is_short(&self) -> bool {
        self.free < ROOM_MIN || self.free.0 < self.total.0 / ROOM_SHARE_MIN
    }
}

/// The room a store has, or will have once it is made. `None` where the host does not tell.
pub fn room(shared: &Shared, scope: &Scope, name: &StoreName) -> Option<Room> {
    let folder = places(shared, scope, name).folder;
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let told = rustix::fs::statvfs(there).ok()?;
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(told.f_frsize));
    Some(Room {
        free: bytes(told.f_bavail),
        total: bytes(told.f_blocks),
        folder,
    })
}

/// Why an engine cannot be run on this host, and what helps. Looks for its programs only.
pub(crate) fn programs_missing(engine: Engine, version: &str) -> Option<(String, String)> {
    let programs = programs(engine, version);
    let mut wanted = std::iter::once(&programs.server).chain(&programs.maker);
    let missing = wanted.find(|program| find(program).is_none())?;
    let reason = format!(
        "`{}` of {} {version} is not installed",
        missing.name,
        engine.label()
    );
    let hint = format!(
        "apt-get install {}; the service it starts by itself is not needed: systemctl disable --now {}",
        programs.package, programs.service
    );
    Some((reason, hint))
}

pub(crate) fn find(program: &Program) -> Option<PathBuf> {
    let path = Some(ENVIRONMENT[0].1);
    let mut places = program.places.iter();
    places.find_map(|place| find_program(place, Path::new("/"), path))
}

struct Found {
    server: PathBuf,
    maker: Option<PathBuf>,
}

/// Finds the programs, and refuses those of another version.
async fn found(shared: &Shared, store: &Store) -> Result<Found, String> {
    let (engine, version) = (store.wanted.engine, &store.wanted.version);
    if let Some((reason, hint)) = programs_missing(engine, version) {
        return Err(format!("{reason}; {hint}"));
    }
    let programs = programs(engine, version);
    let server = find(&programs.server).ok_or("its server was removed just now")?;
    let told = run(
        shared,
        store,
        &server,
        vec!["--version".into()],
        Path::new("/"),
        b"",
    )
    .await?;
    let installed = parse_version(engine, &told).unwrap_or_default();
    if !version_fits(&installed, version) {
        let (label, path) = (engine.label(), server.display());
        return Err(format!(
            "`{path}` is {label} {installed}, and the store is of {label} {version}; install `{}` of that version",
            programs.package
        ));
    }
    Ok(Found {
        server,
        maker: programs.maker.as_ref().and_then(find),
    })
}

pub(super) fn patience(shared: &Shared) -> Duration {
    shared.controls.helper_patience.unwrap_or(PATIENCE)
}

/// Runs a helper as the store's user; what it said, when it succeeded.
async fn run(
    shared: &Shared,
    store: &Store,
    program: &Path,
    arguments: Vec<String>,
    folder: &Path,
    stdin: &[u8],
) -> Result<String, String> {
    run_as(shared, owner(store), program, arguments, folder, stdin, &[]).await
}

/// The same for a program that must find the name of its user.
async fn run_as(
    shared: &Shared,
    owner: String,
    program: &Path,
    arguments: Vec<String>,
    folder: &Path,
    stdin: &[u8],
    named_users: &[&str],
) -> Result<String, String> {
    let env = ENVIRONMENT.map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned())));
    let run = ProgramRun {
        owner,
        program: program.to_owned(),
        arguments,
        env: env.into(),
        folder: folder.to_owned(),
        stdin: Secret::new(stdin.to_vec()),
        named_users: named_users.iter().map(ToString::to_string).collect(),
        patience: patience(shared),
        elsewhere: Elsewhere::default(),
    };
    let ended = shared.target.run_program(&run).await;
    let ended = ended.map_err(|error| chain(&error))?;
    if ended.exit == (Exit::Code { code: 0 }) {
        return Ok(ended.output);
    }
    let lines = ended
        .output
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty());
    let last = lines.take(3).collect::<Vec<_>>();
    let said = last.into_iter().rev().collect::<Vec<_>>().join(" / ");
    Err(format!("`{}` {}: {said}", program.display(), ended.exit))
}

/// The programs of a store: of the host, or of its image.
enum Tools {
    Host(Found),
    Image(ImageId, Arc<container::Found>),
}

impl Tools {
    async fn of(shared: &Arc<Shared>, store: &Store) -> Result<Self, String> {
        match &store.wanted.image {
            None => found(shared, store).await.map(Self::Host),
            Some(image) => {
                let found = container::found(shared, store, image).await?;
                let (id, _) = container::pinned(image)?;
                Ok(Self::Image(id, found))
            }
        }
    }
}

/// Makes the data folder, whole or not at all.
pub(crate) async fn make(shared: &Arc<Shared>, store: &Store) -> Result<(), String> {
    let places = places(shared, &store.scope, &store.name);
    if places.data().exists() {
        return Ok(());
    }
    let tools = Tools::of(shared, store).await?;
    let io = |error: io::Error| format!("failed to make `{}`: {error}", places.folder.display());
    fs::create_dir_all(&places.folder).map_err(io)?;
    remove_leftovers(&places.folder).map_err(io)?;
    let making = places
        .folder
        .join(format!("making.{:016x}", rand::random::<u64>()));
    let given = shared.target.own_folder(&owner(store), &making).await;
    given.map_err(|error| chain(&error))?;
    let access = access(shared, store)?;
    match tools {
        Tools::Host(found) => match (store.wanted.engine, found.maker) {
            (Engine::Postgres, Some(maker)) => {
                make_postgres(shared, store, &maker, &making, &access).await?
            }
            (Engine::Mariadb, Some(maker)) => {
                make_mariadb(shared, store, &maker, &found.server, &making, &access).await?;
            }
            (
                Engine::Postgres | Engine::Mariadb | Engine::Redis | Engine::Mysql | Engine::S3,
                _,
            ) => {}
        },
        Tools::Image(id, found) => {
            make_in_image(shared, store, id, &found, &making, &access).await?;
        }
    }
    fs::rename(&making, places.data()).map_err(io)?;
    File::open(&places.folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io)
}

/// What an earlier making left. One that is still being written to is left to the next.
fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with("making.")
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::debug!(path = %path.display(), %error, "a leftover stays");
        }
    }
    Ok(())
}

async fn make_postgres(
    shared: &Shared,
    store: &Store,
    maker: &Path,
    making: &Path,
    access: &Access,
) -> Result<(), String> {
    // Memory, not a file: see `ProgramRun::stdin`.
    let arguments = initdb(making, access, "/dev/stdin");
    let password = Secret::new(format!("{}\n", access.password.reveal()));
    let stdin = password.reveal().as_bytes();
    let owner = owner(store);
    let made = run_as(shared, owner, maker, arguments, making, stdin, &NAMED).await;
    made.map(drop)
}

fn initdb(making: &Path, access: &Access, password: &str) -> Vec<String> {
    vec![
        "-D".to_owned(),
        making.to_string_lossy().into_owned(),
        format!("--username={}", access.login),
        "--auth=scram-sha-256".to_owned(),
        format!("--pwfile={password}"),
        "--data-checksums".to_owned(),
        "--encoding=UTF8".to_owned(),
        "--locale=C.UTF-8".to_owned(),
        "--no-instructions".to_owned(),
    ]
}

/// The same by the programs of an image.
async fn make_in_image(
    shared: &Arc<Shared>,
    store: &Store,
    id: ImageId,
    found: &container::Found,
    making: &Path,
    access: &Access,
) -> Result<(), String> {
    const SECRET: &str = "FIRST";
    let file = container::secret_path(SECRET);
    let places = places(shared, &store.scope, &store.name);
    let folders = || vec![making];
    match (store.wanted.engine, &found.maker) {
        (Engine::Postgres, Some(maker)) => {
            let password = Secret::new(format!("{}\n", access.password.reveal()));
            let run = container::Run {
                secrets: BTreeMap::from([(SECRET.to_owned(), password)]),
                folders: folders(),
                named_in: Some(&places.folder),
                ..container::Run::of(maker, initdb(making, access, &file))
            };
            run.succeed(shared, store, id).await.map(drop)
        }
        (Engine::Mariadb, Some(maker)) => {
            let run = container::Run {
                folders: folders(),
                named_in: Some(&places.folder),
                ..container::Run::of(maker, install_db(making))
            };
            run.succeed(shared, store, id).await?;
            // A server that reads the statements, and is told by the last of them to end.
            let mut arguments = bootstrap(making);
            arguments.extend([
                format!("--init-file={file}"),
                "--skip-networking".to_owned(),
                format!("--socket={}", making.join("making.sock").display()),
            ]);
            let statements = first_statements(access, "SHUTDOWN;\n");
            let run = container::Run {
                secrets: BTreeMap::from([(SECRET.to_owned(), statements)]),
                folders: folders(),
                ..container::Run::of(&found.server, arguments)
            };
            run.succeed(shared, store, id).await.map(drop)
        }
        (Engine::Postgres | Engine::Mariadb | Engine::Redis | Engine::Mysql | Engine::S3, _) => {
            Ok(())
        }
    }
}

/// Of all of PostgreSQL, only `initdb` looks its user up.
const NAMED: [&str; 2] = ["postgres", "nobody"];

/// Makes the data of an empty PostgreSQL that is thrown away again, in place of what is there.
///
/// # Errors
/// A sentence.
pub(crate) async fn make_throwaway(
    shared: &Shared,
    owner: String,
    maker: &Path,
    arguments: &[&str],
    folder: &Path,
) -> Result<(), String> {
    remove(folder).map_err(|error| format!("failed to remove `{}`: {error}", folder.display()))?;
    let given = shared.target.own_folder(&owner, folder).await;
    given.map_err(|error| chain(&error))?;
    let place = ["-D".to_owned(), folder.to_string_lossy().into_owned()];
    let rest = arguments.iter().map(ToString::to_string);
    let arguments = place.into_iter().chain(rest).collect();
    let made = run_as(shared, owner, maker, arguments, folder, &[], &NAMED).await;
    made.map(drop)
}

async fn make_mariadb(
    shared: &Shared,
    store: &Store,
    maker: &Path,
    server: &Path,
    making: &Path,
    access: &Access,
) -> Result<(), String> {
    run(shared, store, maker, install_db(making), making, b"").await?;
    let statements = first_statements(access, "");
    let mut arguments = bootstrap(making);
    arguments.push("--bootstrap".to_owned());
    let stdin = statements.reveal().as_bytes();
    run(shared, store, server, arguments, making, stdin)
        .await
        .map(drop)
}

/// Nobody's configuration but ours. A server that starts removes what looks like temporary tables, also those of another.
fn making_there(making: &Path) -> Vec<String> {
    vec![
        "--no-defaults".to_owned(),
        format!("--datadir={}", making.display()),
        format!("--tmpdir={}", making.display()),
        "--basedir=/usr".to_owned(),
    ]
}

fn install_db(making: &Path) -> Vec<String> {
    let mut arguments = making_there(making);
    arguments.extend([
        "--auth-root-authentication-method=normal".to_owned(),
        "--skip-test-db".to_owned(),
        // Otherwise it looks for the name of its host, which a container without a network need not know.
        "--force".to_owned(),
    ]);
    arguments
}

fn bootstrap(making: &Path) -> Vec<String> {
    let mut arguments = making_there(making);
    arguments.push("--log-warnings=0".to_owned());
    arguments
}

fn first_statements(access: &Access, last: &str) -> Secret<String> {
    // The password is of letters and digits alone.
    let (login, password) = (&access.login, access.password.reveal());
    Secret::new(format!(
        "FLUSH PRIVILEGES;\nCREATE USER '{login}'@'%' IDENTIFIED BY '{password}';\n\
         GRANT ALL PRIVILEGES ON *.* TO '{login}'@'%' WITH GRANT OPTION;\n\
         DELETE FROM mysql.global_priv WHERE User IN ('root', '');\nFLUSH PRIVILEGES;\n{last}"
    ))
}

/// Starts the server, unless this start was made before.
pub(crate) async fn start(
    shared: &Arc<Shared>,
    store: &Store,
    instance: &InstanceId,
) -> Result<(), landfast_target::StartError> {
    let failed = |reason: String| landfast_target::StartError::Io {
        doing: "prepare the server".to_owned(),
        source: io::Error::other(reason),
    };
    let id = InstanceRef {
        scope: store.scope.clone(),
        instance: instance.clone(),
    };
    // It may have been started by a server that died before it could say so: then nothing is written or asked again.
    let known = shared.target.observe(&id).await;
    if known.map_err(|error| failed(chain(&error)))?.is_some() {
        return Ok(());
    }
    let places = places(shared, &store.scope, &store.name);
    let tools = Tools::of(shared, store).await.map_err(failed)?;
    if let Some(holder) = port_taken(store) {
        return Err(failed(holder));
    }
    let mut server = match &tools {
        Tools::Host(found) => server_of(store, &places, &found.server),
        Tools::Image(_, found) => server(&store.wanted, &places, store.port, &found.extensions),
    };
    let alone = shared.stores.configure(&store.scope, &store.name).await;
    configure(shared, store, &places, &server)
        .await
        .map_err(failed)?;
    drop(alone);
    let forks = lineage::fork(shared, store).map_err(failed)?;
    server.arguments.extend(forks);
    shared
        .target
        .own_folder(&owner(store), &places.sockets)
        .await?;
    let found = match tools {
        Tools::Host(found) => found,
        Tools::Image(image, found) => {
            if store.wanted.engine == Engine::Mariadb {
                let temporary = container::temporary(&places);
                shared.target.own_folder(&owner(store), &temporary).await?;
            }
            let spec = container::server_spec(shared, store, id, image, &found.server, server);
            return shared
                .target
                .start(fence(shared, store), &spec)
                .await
                .map(drop);
        }
    };
    let env = ENVIRONMENT.map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned())));
    let spec = ProgramSpec {
        id,
        owner: owner(store),
        program: found.server,
        arguments: server.arguments,
        env: BTreeMap::from(env),
        folder: places.data(),
        // The folder of the configuration is replaced while the server runs.
        read_only: vec![places.folder.clone()],
        read_write: vec![places.data(), places.sockets.clone()],
        address: loopback(store),
        resources: Resources {
            memory: Some(store.wanted.memory),
            ..Resources::default()
        },
        log_folder: shared.folders.logs(&store.scope, instance),
        stop_signal: server.stop_signal,
    };
    shared
        .target
        .start_program(fence(shared, store), &spec)
        .await
        .map(drop)
}

fn loopback(store: &Store) -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, store.port).into()
}

/// Where processes of the host reach a store.
pub(super) async fn address(shared: &Shared, store: &Store) -> Result<SocketAddr, String> {
    match is_container(store) {
        true => container::address(shared, store).await,
        false => Ok(loopback(store)),
    }
}

/// Whether its server is a container: it never becomes one, or ceases to be.
pub(super) fn is_container(store: &Store) -> bool {
    store.wanted.image.is_some()
}

pub(crate) fn fence(shared: &Shared, store: &Store) -> Fence {
    Fence {
        generation: shared.generation,
        revision: store.changes,
    }
}

/// A port that somebody else has. A server that is told of it only says so in its log.
pub(crate) fn port_taken(store: &Store) -> Option<String> {
    // In a network of its own nobody else has one.
    if is_container(store) {
        return None;
    }
    match std::net::TcpListener::bind(loopback(store)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Some(format!(
            "its port {} is taken; end whoever listens there (`ss -ltnp sport = :{}`)",
            store.port, store.port
        )),
        Ok(_) | Err(_) => None,
    }
}

fn server_of(store: &Store, places: &Places, program: &Path) -> Server {
    let library = program
        .parent()
        .and_then(Path::parent)
        .map(|root| root.join("lib/pg_stat_statements.so"));
    let is_there = library.is_some_and(|library| library.exists());
    let extensions: &[&str] = if is_there {
        &["pg_stat_statements"]
    } else {
        &[]
    };
    server(&store.wanted, places, store.port, extensions)
}

/// Writes the configuration again, for a server that runs.
pub(crate) async fn reconfigure(shared: &Arc<Shared>, store: &Store) -> Result<(), String> {
    let _alone = shared.stores.configure(&store.scope, &store.name).await;
    let (places, server) = configured(shared, store).await?;
    configure(shared, store, &places, &server).await
}

/// The same where a running PostgreSQL does not find there who is let in, or where it is told that nobody writes; true where it was
/// written. For whoever holds the configuration.
pub(super) async fn mend(shared: &Arc<Shared>, store: &Store) -> Result<bool, String> {
    let (places, server) = configured(shared, store).await?;
    let writes = writes::told(&places)?;
    let is_right = |file: &datastore::Configuration| {
        let path = places.configuration().join(file.name);
        let found = fs::read_to_string(path).unwrap_or_default();
        match file.name {
            "pg_hba.conf" => found == text_of(file, writes),
            // Whatever else has changed takes effect when it is applied.
            "postgresql.conf" => found.contains(&*places.stopped_writes().to_string_lossy()),
            _ => !found.is_empty(),
        }
    };
    if server.configuration.iter().all(is_right) {
        return Ok(false);
    }
    configure(shared, store, &places, &server).await?;
    Ok(true)
}

async fn configured(shared: &Arc<Shared>, store: &Store) -> Result<(Places, Server), String> {
    let places = places(shared, &store.scope, &store.name);
    let server = if store.wanted.image.is_some() {
        match Tools::of(shared, store).await? {
            Tools::Host(found) => server_of(store, &places, &found.server),
            Tools::Image(_, found) => server(&store.wanted, &places, store.port, &found.extensions),
        }
    } else {
        // Asked often: its version was looked at when it started.
        let programs = programs(store.wanted.engine, &store.wanted.version);
        let program = find(&programs.server).ok_or("its server is not installed any more")?;
        server_of(store, &places, &program)
    };
    Ok((places, server))
}

/// What a file of the configuration is to hold: who is let in goes by whether writes are stopped.
fn text_of(file: &datastore::Configuration, writes: Writes) -> Cow<'_, str> {
    match (file.name, writes) {
        ("pg_hba.conf", Writes::Closed) => closed_access(&Login::Administrator.to_string()).into(),
        (_, Writes::Free | Writes::ReadOnly | Writes::Closed) => file.text.as_str().into(),
    }
}

/// For whoever holds the configuration.
async fn configure(
    shared: &Shared,
    store: &Store,
    places: &Places,
    server: &Server,
) -> Result<(), String> {
    let final_place = places.configuration();
    let next = final_place.with_extension("next");
    let users = match store.wanted.engine {
        Engine::Redis => Some(users(shared, store)?),
        Engine::Postgres | Engine::Mariadb | Engine::Mysql | Engine::S3 => None,
    };
    let writes = writes::told(places)?;
    let write = || {
        remove(&next)?;
        fs::create_dir_all(&next)?;
        for file in &server.configuration {
            fs::write(next.join(file.name), text_of(file, writes).as_bytes())?;
        }
        match &users {
            Some(users) => fs::write(next.join("users.acl"), users.reveal()),
            None => Ok(()),
        }
    };
    let io = |error: io::Error| format!("failed to write `{}`: {error}", next.display());
    write().map_err(io)?;
    let given = shared.target.own_folder(&owner(store), &next).await;
    given.map_err(|error| chain(&error))?;
    exchange(&next, &final_place).map_err(io)
}

/// Puts a folder in the place of another one, which is there at each moment where the file system can do that.
fn exchange(next: &Path, place: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, next, CWD, place, RenameFlags::EXCHANGE) {
        Ok(()) => remove(next),
        // There is none yet, or it cannot.
        Err(_) => remove(place).and_then(|()| fs::rename(next, place)),
    }
}

/// The users a Redis starts with.
fn users(shared: &Shared, store: &Store) -> Result<Secret<String>, String> {
    let password = |login| credentials::password(shared, &store.scope, &store.name, login);
    let mut others = Vec::new();
    for login in credentials::logins(shared, &store.scope, &store.name)? {
        if login != Login::Administrator {
            others.push((login.to_string(), password(login)?));
        }
    }
    let own = credentials::own(shared, &store.scope, &store.name)?;
    let name = Login::Administrator.to_string();
    Ok(Secret::new(access_list((&name, &own), &others)))
}

/// Removes all that is kept of a store.
pub(crate) fn remove_all(shared: &Shared, scope: &Scope, name: &StoreName) -> Result<(), String> {
    let places = places(shared, scope, name);
    // Under another name first: what is half gone is never taken for a store.
    let removed = places.folder.with_extension("removed");
    let io = |error: io::Error| format!("failed to remove `{}`: {error}", places.folder.display());
    if places.folder.exists() {
        remove(&removed).map_err(io)?;
        fs::rename(&places.folder, &removed).map_err(io)?;
    }
    remove(&removed).map_err(io)?;
    remove(&places.sockets).map_err(io)?;
    credentials::forget_all(shared, scope, name)
}

pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_takes_the_place_of_another_one_or_of_none() {
        let folder = tempfile::tempdir().unwrap();
        let (next, place) = (folder.path().join("next"), folder.path().join("place"));
        for text in ["first", "second"] {
            fs::create_dir(&next).unwrap();
            fs::write(next.join(text), text).unwrap();
            exchange(&next, &place).unwrap();
            assert_eq!(fs::read_to_string(place.join(text)).unwrap(), text);
            assert!(!next.exists());
        }
        assert!(!place.join("first").exists());
    }
}
