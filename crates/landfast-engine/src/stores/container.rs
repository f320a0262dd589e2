//! Stores whose servers are containers: what their images hold, and programs of an image that run to their end.
//!
//! Nothing of a store lies in its container: data, configuration and socket are folders of the host, seen at the same
//! paths, and Landfast reaches the server by the socket as it does with a process. Passwords are files in memory, never
//! arguments or variables, which Docker would show.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use landfast_datastore::{
    Places, Program, Store, StoreImage, parse_version, programs, version_fits,
};
use landfast_target::{
    Bind, ContainerNetwork, ContainerOptions, ContainerUser, Content, Elsewhere, Exit, ImageError,
    Images, InstanceRef, InstanceSpec, NetworkJoin, PinnedImage, ProgramEnd, Resources, Sandbox,
};
use landfast_types::{Bytes, Fence, ImageId, InstanceId, ReleaseId, Scope, Secret};
use tokio::time::{sleep, timeout};

use super::host;
use crate::{actions::chain, platform::registry_login, shared::Shared};

/// The starts of a store have smaller numbers.
pub(super) const RUNS_FROM: u64 = 1 << 40;
/// What is shared by the processes of a server lies there.
const SHARED_MEMORY_MIN: Bytes = Bytes(64 << 20);
/// Where programs find secrets.
const SECRETS: &str = "/run/secrets";
const PASSWD: &str = "passwd";
/// How long a run that was given up may take to be gone.
const UNUSED_MAX: Duration = Duration::from_secs(20);
/// And one that was killed.
const END_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// What was found in images, and the runs of their programs that are under way.
#[derive(Debug, Default)]
pub(super) struct Containers {
    found: Mutex<BTreeMap<(ImageId, String), Arc<Found>>>,
    /// Each with the folders it writes to.
    running: Mutex<BTreeMap<InstanceRef, Vec<PathBuf>>>,
}

impl Containers {
    /// Runs that are under way, which are no strays.
    pub(super) fn running(&self) -> BTreeSet<InstanceRef> {
        self.lock().keys().cloned().collect()
    }

    /// Whether one of them writes to a folder.
    fn writes_to(&self, folder: &Path) -> bool {
        self.lock()
            .values()
            .flatten()
            .any(|writes| writes == folder)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceRef, Vec<PathBuf>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The programs of an image.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) server: String,
    pub(super) maker: Option<String>,
    /// Libraries that may be loaded at the start.
    pub(super) extensions: Vec<&'static str>,
}

/// The image that a store's server is to be a container of.
pub(super) fn pinned(image: &StoreImage) -> Result<(ImageId, PinnedImage), String> {
    let id = image.id.ok_or_else(|| {
        let name = &image.reference;
        format!("no release says what its image `{name}` is; deploy again")
    })?;
    let pinned = PinnedImage {
        reference: image.reference.clone(),
        pinned: image.pinned.clone(),
        id,
    };
    Ok((id, pinned))
}

fn images(shared: &Shared) -> Result<Arc<dyn Images>, String> {
    let images = shared.target.images();
    images.ok_or_else(|| {
        "its server is a container, and this server uses no Docker; `landfast server run --docker` says where it is"
            .to_owned()
    })
}

/// Has a store's image here again where it was removed.
async fn ensure(shared: &Shared, scope: &Scope, image: &StoreImage) -> Result<ImageId, String> {
    let (id, pinned) = pinned(image)?;
    let images = images(shared)?;
    let told = |error: ImageError| chain(&error);
    if images.inspect(&id).await.map_err(told)?.is_some() {
        return Ok(id);
    }
    let login = registry_login(shared, scope, image.reference.registry());
    let login = login.map_err(|error| chain(&error))?;
    let ensured = images.ensure(&pinned, login.as_ref(), None).await;
    ensured.map_err(told)?;
    Ok(id)
}

/// Finds the programs of a store in its image, and refuses those of another version.
pub(super) async fn found(
    shared: &Arc<Shared>,
    store: &Store,
    image: &StoreImage,
) -> Result<Arc<Found>, String> {
    let id = ensure(shared, &store.scope, image).await?;
    let (engine, version) = (store.wanted.engine, &store.wanted.version);
    let key = (id, version.clone());
    let known = {
        let found = &shared.stores.containers.found;
        let found = found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(&key).cloned()
    };
    if let Some(known) = known {
        return Ok(known);
    }
    let (name, label) = (&image.reference, engine.label());
    let wanted = programs(engine, version);
    let server = places(shared, id, &wanted.server).await?;
    let server = server.into_iter().next().ok_or_else(|| {
        let program = wanted.server.name;
        format!("image `{name}` has no `{program}`; name one that brings {label} {version}")
    })?;
    let run = Run::of(&server, vec!["--version".to_owned()]);
    let told = run.succeed(shared, store, id).await?;
    let brought = parse_version(engine, &told).unwrap_or_default();
    if !version_fits(&brought, version) {
        return Err(format!(
            "image `{name}` brings {label} {brought}, and the store is of {label} {version}; name an image of that version"
        ));
    }
    let maker = match &wanted.maker {
        None => None,
        Some(program) => {
            let places = places(shared, id, program).await?;
            let beside = Path::new(&server).parent();
            let mut own = places
                .iter()
                .filter(|place| Path::new(place).parent() == beside);
            let maker = own.next().or(places.first()).cloned();
            let missing = || format!("image `{name}` has no `{}`", program.name);
            Some(maker.ok_or_else(missing)?)
        }
    };
    let found = Arc::new(Found {
        extensions: extensions(shared, id, &server).await?,
        server,
        maker,
    });
    let known = &shared.stores.containers.found;
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.insert(key, Arc::clone(&found));
    Ok(found)
}

/// Where clients of a store are in its image: beside its server, or where its `PATH` leads.
pub(super) async fn clients(
    shared: &Arc<Shared>,
    store: &Store,
    image: &StoreImage,
    names: [&'static str; 2],
) -> Result<(ImageId, [String; 2]), String> {
    let found = found(shared, store, image).await?;
    let (id, _) = pinned(image)?;
    let folder = Path::new(&found.server).parent();
    let mut all = [const { String::new() }; 2];
    for (place, name) in all.iter_mut().zip(names) {
        let beside = folder.unwrap_or(Path::new("/usr/bin")).join(name);
        let wanted = [beside.to_string_lossy().into_owned(), name.to_owned()];
        let found = images(shared)?.find(&id, &wanted).await;
        let found = found.map_err(|error| chain(&error))?;
        let missing = || {
            format!(
                "image `{}` has no `{name}`, which makes the copy",
                image.reference
            )
        };
        *place = found.into_iter().next().ok_or_else(missing)?;
    }
    Ok((id, all))
}

/// The folder of an image in which its server lies, with all of these programs beside it.
pub(super) async fn beside_server(
    shared: &Arc<Shared>,
    store: &Store,
    image: &StoreImage,
    names: &[&str],
) -> Result<(ImageId, PathBuf), String> {
    let found = found(shared, store, image).await?;
    let (id, _) = pinned(image)?;
    let folder = Path::new(&found.server).parent();
    let folder = folder.unwrap_or(Path::new("/usr/bin")).to_owned();
    let wanted = names.iter().map(|name| folder.join(name));
    let wanted: Vec<_> = wanted
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    let there = images(shared)?.find(&id, &wanted).await;
    let there = there.map_err(|error| chain(&error))?;
    if let Some(missing) = wanted.iter().find(|path| !there.contains(path)) {
        let image = &image.reference;
        return Err(format!(
            "image `{image}` has no `{missing}`, which its backups need; name an image that brings all programs of its server"
        ));
    }
    Ok((id, folder))
}

/// Where an image has a program, the best first: what its own `PATH` leads to.
async fn places(shared: &Shared, id: ImageId, program: &Program) -> Result<Vec<String>, String> {
    let mut wanted = vec![program.name.to_owned()];
    let others = program.places.iter().filter(|place| place.contains('/'));
    wanted.extend(others.cloned());
    let found = images(shared)?.find(&id, &wanted).await;
    found.map_err(|error| chain(&error))
}

async fn extensions(
    shared: &Shared,
    id: ImageId,
    server: &str,
) -> Result<Vec<&'static str>, String> {
    const STATEMENTS: &str = "pg_stat_statements";
    let root = Path::new(server).parent().and_then(Path::parent);
    let root = root.unwrap_or(Path::new("/usr/local"));
    let wanted = ["lib", "lib/postgresql"].map(|folder| {
        let library = root.join(folder).join(format!("{STATEMENTS}.so"));
        library.to_string_lossy().into_owned()
    });
    let found = images(shared)?.find(&id, &wanted).await;
    let found = found.map_err(|error| chain(&error))?;
    Ok(found.first().map(|_| STATEMENTS).into_iter().collect())
}

/// What starts the server of a store.
pub(super) fn server_spec(
    shared: &Shared,
    store: &Store,
    id: InstanceRef,
    image: ImageId,
    program: &str,
    server: landfast_datastore::Server,
) -> InstanceSpec {
    let places = host::places(shared, &store.scope, &store.name);
    let mut arguments = server.arguments;
    let (data, temporary) = (places.data(), temporary(&places));
    let mut writes = vec![data.as_path(), places.sockets.as_path()];
    // `/tmp` is memory there, and what it sorts may be large.
    if store.wanted.engine == landfast_spec::Engine::Mariadb {
        arguments.push(format!("--tmpdir={}", temporary.display()));
        writes.push(&temporary);
    }
    // The folder of the configuration is replaced while the server runs.
    let mut binds = vec![bind(&places.folder, true)];
    binds.extend(writes.into_iter().map(|path| bind(path, false)));
    let memory = store.wanted.memory;
    InstanceSpec {
        log_folder: shared.folders.logs(&store.scope, &id.instance),
        id,
        content: Content::Image(image),
        command: arguments,
        env: environment(),
        secret_files: BTreeMap::new(),
        listens: true,
        resources: Resources {
            memory: Some(memory),
            ..Resources::default()
        },
        volumes: BTreeMap::new(),
        is_job: false,
        sandbox: Sandbox::default(),
        container: ContainerOptions {
            entrypoint: Some(vec![program.to_owned()]),
            port: Some(store.port),
            networks: vec![NetworkJoin {
                network: ContainerNetwork::Store(store.name.clone()),
                aliases: vec![store.name.to_string()],
            }],
            binds,
            user: ContainerUser::Owner(host::owner(store)),
            stop_signal: Some(server.stop_signal),
            keeps_address: true,
            shared_memory: Some(Bytes((memory.0 / 2).max(SHARED_MEMORY_MIN.0))),
            ..ContainerOptions::default()
        },
    }
}

/// Where a MariaDB puts what it sorts.
pub(super) fn temporary(places: &Places) -> PathBuf {
    places.folder.join("temporary")
}

fn bind(path: &Path, read_only: bool) -> Bind {
    Bind {
        from: path.to_owned(),
        at: path.to_owned(),
        read_only,
    }
}

fn environment() -> BTreeMap<String, Secret<String>> {
    // An image says itself where its programs are.
    let plain = [("LC_ALL".to_owned(), Secret::new("C.UTF-8".to_owned()))];
    plain.into()
}

/// Where whoever is outside of its networks reaches a store that runs: the server's own host.
pub(super) async fn address(shared: &Shared, store: &Store) -> Result<SocketAddr, String> {
    let instance = store.instance().ok_or("it does not run")?;
    let id = InstanceRef {
        scope: store.scope.clone(),
        instance: instance.clone(),
    };
    let observed = shared.target.observe(&id).await;
    let observed = observed.map_err(|error| chain(&error))?;
    let address = observed.and_then(|observed| observed.address);
    address.ok_or_else(|| "its container has no address".to_owned())
}

/// A program of an image that runs to its end, without a network.
pub(super) struct Run<'a> {
    pub(super) program: &'a str,
    pub(super) arguments: Vec<String>,
    /// Variables that are no secrets.
    pub(super) env: BTreeMap<String, String>,
    /// Files of these names in [`secret_path`].
    pub(super) secrets: BTreeMap<String, Secret<String>>,
    /// Folders of the host it may write to.
    pub(super) folders: Vec<&'a Path>,
    /// A folder for the file that gives its user a name.
    pub(super) named_in: Option<&'a Path>,
    /// Raised where its work is seen to advance.
    pub(super) elsewhere: Elsewhere,
}

/// Where a run finds a secret.
pub(super) fn secret_path(name: &str) -> String {
    format!("{SECRETS}/{name}")
}

impl<'a> Run<'a> {
    pub(super) fn of(program: &'a str, arguments: Vec<String>) -> Self {
        Self {
            program,
            arguments,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            folders: Vec::new(),
            named_in: None,
            elsewhere: Elsewhere::default(),
        }
    }

    /// What it said, when it succeeded.
    pub(super) async fn succeed(
        self,
        shared: &Arc<Shared>,
        store: &Store,
        image: ImageId,
    ) -> Result<String, String> {
        let program = self.program.to_owned();
        let ended = self.end(shared, store, image).await?;
        if ended.exit == (Exit::Code { code: 0 }) {
            return Ok(ended.output);
        }
        let lines = ended.output.lines().rev();
        let lines = lines.filter(|line| !line.trim().is_empty());
        let last: Vec<_> = lines.take(3).collect();
        let said = last.into_iter().rev().collect::<Vec<_>>().join(" / ");
        Err(format!("`{program}` of its image {}: {said}", ended.exit))
    }

    /// Runs it. Dropped in the middle it is ended.
    pub(super) async fn end(
        self,
        shared: &Arc<Shared>,
        store: &Store,
        image: ImageId,
    ) -> Result<ProgramEnd, String> {
        let number = rand::random_range(RUNS_FROM..RUNS_FROM << 10);
        let instance = InstanceId::new(store.name.as_str(), ReleaseId(0), number);
        let id = InstanceRef {
            scope: store.scope.clone(),
            instance,
        };
        let log_folder = shared.folders.logs(&id.scope, &id.instance);
        let spec = self.spec(store, id.clone(), image, &log_folder)?;
        let folders = self.folders.iter().map(|path| path.to_path_buf());
        let under_way = UnderWay::begin(shared, store, id.clone(), folders.collect());
        let started = shared.target.start(host::fence(shared, store), &spec).await;
        started.map_err(|error| chain(&error))?;
        let exit = self.wait(shared, &id).await;
        let output = crate::logs::end_of(&log_folder);
        under_way.finish().await;
        // They say nothing that the end does not.
        drop(fs::remove_dir_all(&log_folder));
        let exit = exit?;
        Ok(ProgramEnd { exit, output })
    }

    /// Whoever makes no progress for so long is ended.
    async fn wait(&self, shared: &Shared, id: &InstanceRef) -> Result<Exit, String> {
        let patience = host::patience(shared);
        loop {
            let seen = self.elsewhere.seen();
            match timeout(patience, shared.target.wait(id)).await {
                Ok(exit) => return exit.map_err(|error| chain(&error)),
                Err(_) if self.elsewhere.seen() != seen => {}
                Err(_) => {
                    let (program, seconds) = (self.program, patience.as_secs());
                    return Err(format!(
                        "`{program}` of its image did not end in {seconds} s and was ended"
                    ));
                }
            }
        }
    }

    fn spec(
        &self,
        store: &Store,
        id: InstanceRef,
        image: ImageId,
        log_folder: &Path,
    ) -> Result<InstanceSpec, String> {
        let mut binds: Vec<_> = self.folders.iter().map(|path| bind(path, false)).collect();
        if let (Some(folder), Some(owned)) = (self.named_in, self.folders.first()) {
            binds.push(passwd(folder, owned)?);
        }
        let mut env = environment();
        let own = self.env.iter();
        env.extend(own.map(|(name, value)| (name.clone(), Secret::new(value.clone()))));
        Ok(InstanceSpec {
            id,
            content: Content::Image(image),
            command: self.arguments.clone(),
            env,
            secret_files: self.secrets.clone(),
            listens: false,
            resources: Resources {
                memory: Some(store.wanted.memory),
                ..Resources::default()
            },
            volumes: BTreeMap::new(),
            log_folder: log_folder.to_owned(),
            is_job: true,
            sandbox: Sandbox::default(),
            container: ContainerOptions {
                entrypoint: Some(vec![self.program.to_owned()]),
                binds,
                user: ContainerUser::Owner(host::owner(store)),
                shared_memory: Some(SHARED_MEMORY_MIN),
                ..ContainerOptions::default()
            },
        })
    }
}

/// A user's name for the number that a folder belongs to: `initdb` looks its user up, and an image knows no owners.
fn passwd(folder: &Path, owned: &Path) -> Result<Bind, String> {
    use std::os::unix::fs::MetadataExt as _;
    let path = folder.join(PASSWD);
    let write = || {
        let owner = fs::metadata(owned)?;
        let (user, group) = (owner.uid(), owner.gid());
        let line = format!("store:x:{user}:{group}::/:/bin/false\n");
        fs::write(&path, line)
    };
    write().map_err(|error| format!("failed to write `{}`: {error}", path.display()))?;
    Ok(Bind {
        from: path,
        at: "/etc/passwd".into(),
        read_only: true,
    })
}

/// A run that is no stray. Dropped before its end, it is ended.
pub(super) struct UnderWay {
    shared: Arc<Shared>,
    store: Store,
    id: InstanceRef,
    is_over: bool,
}

impl UnderWay {
    pub(super) fn begin(
        shared: &Arc<Shared>,
        store: &Store,
        id: InstanceRef,
        writes: Vec<PathBuf>,
    ) -> Self {
        let running = &shared.stores.containers;
        running.lock().insert(id.clone(), writes);
        Self {
            shared: Arc::clone(shared),
            store: store.clone(),
            id,
            is_over: false,
        }
    }

    pub(super) async fn finish(mut self) {
        end(&self.shared, &self.store, &self.id).await;
        self.is_over = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let (shared, store, id) = (
            Arc::clone(&self.shared),
            self.store.clone(),
            self.id.clone(),
        );
        if self.is_over {
            return;
        }
        let stores = &self.shared.stores;
        stores.spawn(async move { end(&shared, &store, &id).await });
    }
}

/// Ends a run and forgets it. What cannot be ended now is a stray from then on, and ended as such.
async fn end(shared: &Shared, store: &Store, id: &InstanceRef) {
    let ended = async {
        let fence = host::fence(shared, store);
        let stopped = shared.target.stop(fence, id, Duration::ZERO).await;
        stopped.map_err(|error| chain(&error))?;
        let forgotten = shared.target.forget(id).await;
        forgotten.map_err(|error| chain(&error))
    };
    if let Err(reason) = ended.await {
        tracing::warn!(instance = %id.instance, reason, "a program of an image is still kept");
    }
    shared.stores.containers.lock().remove(id);
}

/// Waits until no run of ours writes to a folder, and ends those of an environment that are nobody's: a server that died has started
/// them, or they could not be ended. What is sorted out here is not waited for by the minute, as strays are.
pub(super) async fn clear(
    shared: &Arc<Shared>,
    store: &Store,
    folder: &Path,
) -> Result<(), String> {
    let containers = &shared.stores.containers;
    let unused = async {
        while containers.writes_to(folder) {
            sleep(LOOK).await;
        }
    };
    let waited = timeout(UNUSED_MAX, unused).await;
    waited.map_err(|_| "a program of an image still writes there; try again".to_owned())?;
    let open = shared.target.open().await;
    let open = open.map_err(|error| format!("what runs cannot be listed: {}", chain(&error)))?;
    // Read after them: a run is taken down before it is started.
    let running = containers.running();
    let left = open.into_iter();
    let left = left.filter(|id| id.scope == store.scope && is_run(id) && !running.contains(id));
    for id in left {
        let instance = &id.instance;
        tracing::info!(scope = %id.scope, %instance, "ending what a server that died has left");
        let fence = Fence {
            generation: shared.generation,
            revision: u64::MAX,
        };
        let stopped = timeout(END_MAX, shared.target.stop(fence, &id, Duration::ZERO)).await;
        let still = |why: String| {
            format!("`{instance}`, which was left here, may still work there: {why}; try again")
        };
        match stopped {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(still(chain(&error))),
            Err(_) => return Err(still("it does not end".to_owned())),
        }
        if let Err(error) = shared.target.forget(&id).await {
            tracing::debug!(scope = %id.scope, %instance, error = chain(&error), "still kept");
        }
    }
    Ok(())
}

/// Whether an instance is a run, and no server of a store, no job and no service.
fn is_run(id: &InstanceRef) -> bool {
    let mut parts = id.instance.as_str().rsplit('.');
    let number = parts.next().and_then(|number| number.parse::<u64>().ok());
    number.is_some_and(|number| number >= RUNS_FROM) && parts.next() == Some("r0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_from_whatever_else_has_a_number() {
        let is = |name: &str, release, number| {
            is_run(&InstanceRef {
                scope: Scope {
                    app: "shop".parse().unwrap(),
                    environment: "production".parse().unwrap(),
                },
                instance: InstanceId::new(name, ReleaseId(release), number),
            })
        };
        assert!(is("main", 0, RUNS_FROM) && is("main", 0, RUNS_FROM << 10));
        assert!(!is("main", 0, 3) && !is("main", 0, RUNS_FROM - 1));
        assert!(!is("api", 2, RUNS_FROM));
    }
}
