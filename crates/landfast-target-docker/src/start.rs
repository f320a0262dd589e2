//! Starting a container: everything that can be refused is refused before it runs, and leaves nothing behind.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bollard::{
    models::{
        ContainerCreateBody, ContainerInspectResponse, EndpointSettings, NetworkConnectRequest,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    },
};
use landfast_target::{ContainerUser, Content, HealthSource, InstanceSpec, Observed, StartError};
use landfast_target_process::ownership;
use landfast_types::{Fence, ImageId};

use crate::{
    clock,
    core::{Core, blocking},
    daemon::DaemonError,
    exits::{self, Life},
    images::Image,
    name,
    networks::Ids,
    options::{self, Found, Lacks, Plan, Unfit},
    programs,
    read::Reader,
    record::{Held, Record, Started},
    secrets,
};

/// Copying an image's files, or a busy disk, may take a while.
const START_WAIT_MAX: Duration = Duration::from_secs(120);
/// As whom a container runs where this host has no number to give: `nobody` of most images.
pub(crate) const NOBODY: u32 = 65_534;

/// What a start came to.
enum Begun {
    Observed(Observed),
    /// The daemon has no init to put before an app.
    NoInit,
}

impl Core {
    pub(crate) async fn start(
        &self,
        order: Fence,
        spec: &InstanceSpec,
        reader: Option<&Reader>,
    ) -> Result<Observed, StartError> {
        let Content::Image(image) = spec.content else {
            return Err(StartError::NoPrograms);
        };
        let taken = self.with_records(move |records| records.take_generation(order));
        let taken = taken.await;
        taken.map_err(io_error("read the generation of orders"))??;
        let held = self.hold(&spec.id).await;
        let held = held.map_err(io_error("lock what is remembered of the instance"))?;
        // No network goes away meanwhile.
        let _starting = self.networks.read().await;
        match Box::pin(self.start_held(order, (spec, reader), image, &held)).await? {
            Begun::Observed(observed) => Ok(observed),
            Begun::NoInit => {
                self.go_on_without_init();
                match Box::pin(self.start_held(order, (spec, reader), image, &held)).await? {
                    Begun::Observed(observed) => Ok(observed),
                    Begun::NoInit => Err(StartError::Impossible(
                        "the daemon asks for an init that it does not have".to_owned(),
                    )),
                }
            }
        }
    }

    async fn start_held(
        &self,
        order: Fence,
        (spec, reader): (&InstanceSpec, Option<&Reader>),
        image: ImageId,
        held: &Held,
    ) -> Result<Begun, StartError> {
        let read = held
            .read()
            .map_err(io_error("read what is remembered of the instance"))?;
        let mut record = match read {
            Some(mut record) => {
                if record.started.is_some() || record.ended.is_some() {
                    return self.as_it_is(spec, held, record).await;
                }
                let taken = held.take(&mut record, order);
                taken.map_err(io_error("write down the order"))??;
                record
            }
            None => Record::new(&spec.id, order),
        };
        // A start that was cut short, by this server or the one before it.
        if let Some(left) = self
            .find_by_name(&spec.id)
            .await
            .map_err(self.daemon_error("start"))?
        {
            let state = left.state.clone().unwrap_or_default();
            match exits::life(&state, record.memory_max) {
                Life::Made => self.discard(left.id.as_deref().unwrap_or_default()).await?,
                Life::Runs { .. } | Life::Ended { .. } => {
                    return self.finish(spec, held, record, left).map(Begun::Observed);
                }
            }
        }
        let details = self
            .image(image)
            .await
            .map_err(self.daemon_error("look at the image"))?;
        let details = details.ok_or(StartError::ImageMissing(image))?;
        let lacks = self.lacks().await;
        let own_user = self
            .own_user(spec, &lacks)
            .map_err(io_error("look up the user of the environment"))?;
        let secrets = self.place_of_secrets(spec);
        let place = self
            .place()
            .await
            .map_err(self.daemon_error("find out where this server is"))?;
        let plan = options::plan(
            spec,
            &Found {
                host: &self.host,
                image,
                facts: &details.facts,
                own_user,
                secrets: secrets.as_deref(),
                place: &place,
                has_init: self.has_init(),
                is_read: reader.is_some(),
                is_podman: self.daemon.is_podman(),
            },
        );
        let plan = plan.map_err(|Unfit(reason)| {
            StartError::Impossible(format!("`{}`: {reason}", spec.id.instance))
        })?;
        record.image = Some(image);
        record.is_job = spec.is_job;
        record.memory_max = spec.resources.memory;
        record.asks_health = spec.container.health == HealthSource::Image;
        record.log_folder.clone_from(&spec.log_folder);
        record.secrets = secrets;
        record.networks = plan
            .network
            .iter()
            .chain(plan.more_networks.iter().map(|(name, _)| name))
            .cloned()
            .collect();
        record.protections = options::protections(
            &spec.confinement(),
            details.facts.is_root(),
            own_user,
            &lacks,
        );
        held.write(&record)
            .map_err(io_error("remember the instance"))?;
        // Written down first, so that no sweep takes them for left behind.
        self.write_secrets(spec)
            .map_err(io_error("write the secrets of the container"))?;
        match Box::pin(self.run((spec, reader), &details, &plan, own_user)).await {
            Ok(found) => self.finish(spec, held, record, found).map(Begun::Observed),
            Err(Failure::NoInit) => {
                self.undo(&record).await?;
                Ok(Begun::NoInit)
            }
            Err(Failure::Refused(error)) => {
                self.undo(&record).await?;
                // Its id was not used up.
                held.clear().map_err(io_error("forget what was refused"))?;
                Err(error)
            }
            // It may run. The record stays, and whoever asks next finds out.
            Err(Failure::Uncertain(error)) => Err(error),
        }
    }

    /// What was begun before, as it is now.
    async fn as_it_is(
        &self,
        spec: &InstanceSpec,
        held: &Held,
        record: Record,
    ) -> Result<Begun, StartError> {
        let pid_of = |observed: Option<Observed>| {
            observed.map(Begun::Observed).ok_or_else(|| {
                io_error("observe the instance")(io::Error::other("it left without a trace"))
            })
        };
        if record.ended.is_some() {
            return pid_of(record.observed(None));
        }
        let container = record
            .started
            .as_ref()
            .map(|started| started.container.clone());
        let container = container.unwrap_or_default();
        let found = self.inspect_with_reason(&container).await;
        let found = found.map_err(self.daemon_error("observe"))?;
        let state = found.as_ref().and_then(|found| found.state.as_ref());
        match state.map(|state| exits::life(state, record.memory_max)) {
            Some(Life::Runs { pid, .. }) => pid_of(record.observed(pid)),
            Some(Life::Ended { exit, at, .. }) => self
                .note_end(held, spec, record, exit, at)
                .map(Begun::Observed),
            Some(Life::Made) | None => self
                .note_end(held, spec, record, landfast_target::Exit::Unknown, None)
                .map(Begun::Observed),
        }
    }

    fn note_end(
        &self,
        held: &Held,
        spec: &InstanceSpec,
        mut record: Record,
        exit: landfast_target::Exit,
        at: Option<landfast_types::Timestamp>,
    ) -> Result<Observed, StartError> {
        let at = at.unwrap_or_else(clock::now);
        record.ended = Some(crate::record::Ended { exit, at });
        held.write(&record)
            .map_err(io_error("remember how it ended"))?;
        self.announce(Some(spec.id.clone()));
        let observed = record.observed(None);
        observed.ok_or_else(|| io_error("observe the instance")(io::Error::other("it has no end")))
    }

    /// Makes a container and starts it.
    async fn run(
        &self,
        (spec, reader): (&InstanceSpec, Option<&Reader>),
        image: &Arc<Image>,
        plan: &Plan,
        own_user: u32,
    ) -> Result<Box<ContainerInspectResponse>, Failure> {
        let mut ids = Ids::new();
        for join in &spec.container.networks {
            let made = self.make_network(&spec.id.scope, &join.network).await;
            if let Some(id) = made.map_err(|error| self.failure(spec, error))? {
                let name = name::network(&self.host, &spec.id.scope, &join.network);
                ids.insert(name, id);
            }
        }
        let mut body = plan.body.clone();
        options::name_networks(&mut body, &ids);
        if let Some(join) = spec
            .container
            .networks
            .first()
            .filter(|_| spec.container.keeps_address)
        {
            let kept = self.kept_address(&spec.id.scope, &join.network).await;
            if let Some(address) = kept.map_err(|error| self.failure(spec, error))? {
                options::set_address(&mut body, address);
            }
        }
        let volumes = self.make_volumes(spec).await?;
        let container = self.create(spec, body).await?;
        for (network, endpoint) in &plan.more_networks {
            let network = ids.get(network).unwrap_or(network);
            let joined = self.join(network, &container, endpoint).await;
            joined.map_err(|error| self.failure(spec, error))?;
        }
        let path = spec.env.get("PATH").map(|path| path.reveal().as_str());
        let is_there = programs::is_there(self, &container, image, &plan.program, path).await;
        if !is_there.map_err(|error| self.failure(spec, error))? {
            let command = plan.program.clone();
            return Err(Failure::Refused(StartError::CommandMissing { command }));
        }
        let user = plan.body.user.as_ref().map(|_| own_user);
        self.give_volumes(spec, image, user, &container, volumes)
            .await?;
        if let Some(reader) = reader {
            let attached = reader.attach(self, &container).await;
            attached.map_err(|error| self.failure(spec, error))?;
        }
        let started = self.daemon.call_within(START_WAIT_MAX, |client| {
            let container = container.clone();
            async move {
                client
                    .start_container(&container, None::<StartContainerOptions>)
                    .await
            }
        });
        if let Err(error) = started.await {
            return Err(match &error {
                DaemonError::Refused { message, .. }
                    if self.has_init() && is_about_init(message) =>
                {
                    Failure::NoInit
                }
                DaemonError::Refused { message, .. } if is_about_command(message) => {
                    let command = plan.program.clone();
                    Failure::Refused(StartError::CommandMissing { command })
                }
                DaemonError::Refused { .. }
                | DaemonError::Unclear(_)
                | DaemonError::Silent(_)
                | DaemonError::Version(_)
                | DaemonError::Away(_) => self.failure(spec, error),
            });
        }
        let found = self
            .inspect_with_reason(&container)
            .await
            .map_err(|error| self.failure(spec, error))?;
        found.ok_or_else(|| {
            let gone = io::Error::other("it was removed while it was being started");
            Failure::Refused(io_error("start the container")(gone))
        })
    }

    async fn create(
        &self,
        spec: &InstanceSpec,
        body: ContainerCreateBody,
    ) -> Result<String, Failure> {
        let name = name::container(&self.host, &spec.id);
        let created = self.daemon.call_within(START_WAIT_MAX, |client| {
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let body = body.clone();
            async move { client.create_container(Some(options), body).await }
        });
        match created.await {
            Ok(created) => Ok(created.id),
            Err(error) if error.is_conflict() => {
                let found = self.find_by_name(&spec.id).await;
                match found.map_err(|error| self.failure(spec, error))? {
                    Some(found) => Ok(found.id.unwrap_or(name)),
                    None => Err(Failure::Refused(StartError::NameTaken { name })),
                }
            }
            // Podman looks for its init here, Docker at the start.
            Err(DaemonError::Refused { message, .. })
                if self.has_init() && is_about_init(&message) =>
            {
                Err(Failure::NoInit)
            }
            Err(error) if error.is_missing() => match spec.content {
                Content::Image(image) => {
                    self.forget_image(&image);
                    Err(Failure::Refused(StartError::ImageMissing(image)))
                }
                Content::Artifact(_) => Err(self.failure(spec, error)),
            },
            Err(error) => Err(self.failure(spec, error)),
        }
    }

    async fn join(
        &self,
        network: &str,
        container: &str,
        endpoint: &EndpointSettings,
    ) -> Result<(), DaemonError> {
        self.daemon
            .call(|client| {
                let network = network.to_owned();
                let request = NetworkConnectRequest {
                    container: container.to_owned(),
                    endpoint_config: Some(endpoint.clone()),
                };
                async move { client.connect_network(&network, request).await }
            })
            .await
    }

    /// Takes down that it runs.
    fn finish(
        &self,
        spec: &InstanceSpec,
        held: &Held,
        mut record: Record,
        found: Box<ContainerInspectResponse>,
    ) -> Result<Observed, StartError> {
        let state = found.state.clone().unwrap_or_default();
        let (since, pid) = match exits::life(&state, record.memory_max) {
            Life::Runs { pid, since } => (since, pid),
            Life::Ended { since, .. } => (since, None),
            Life::Made => (None, None),
        };
        let network = record.networks.first().map(String::as_str);
        let port = port_of(&found);
        let address = match spec.listens {
            true => address_of(&found, network, port),
            false => None,
        };
        record.started = Some(Started {
            container: found.id.clone().unwrap_or_default(),
            at: since.unwrap_or_else(clock::now),
            address,
        });
        held.write(&record)
            .map_err(io_error("remember the container"))?;
        let observed = record.observed(pid).map(|observed| Observed {
            health: record
                .asks_health
                .then(|| exits::health(state.health.as_ref())),
            ..observed
        });
        observed
            .ok_or_else(|| io_error("observe the container")(io::Error::other("it left no trace")))
    }

    /// Removes a container that never ran for good.
    async fn discard(&self, container: &str) -> Result<(), StartError> {
        let removed = self.remove(container).await;
        removed.map_err(self.daemon_error("remove what was left of a start of"))
    }

    pub(crate) async fn remove(&self, container: &str) -> Result<(), DaemonError> {
        let removed = self.daemon.call_within(START_WAIT_MAX, |client| {
            let container = container.to_owned();
            // `v` takes the volumes that the image declares and nobody named: they are this container's alone.
            let options = RemoveContainerOptionsBuilder::default()
                .v(true)
                .force(true)
                .build();
            async move { client.remove_container(&container, Some(options)).await }
        });
        match removed.await {
            Err(error) if error.is_missing() || error.is_conflict() => Ok(()),
            told => told,
        }
    }

    /// Takes back what a refused start has made.
    async fn undo(&self, record: &Record) -> Result<(), StartError> {
        let found = self.find_by_name(&record.id).await;
        if let Some(left) = found.map_err(self.daemon_error("remove what was left of"))? {
            self.discard(left.id.as_deref().unwrap_or_default()).await?;
        }
        if let Some(folder) = &record.secrets {
            secrets::remove(folder);
        }
        Ok(())
    }

    fn own_user(&self, spec: &InstanceSpec, lacks: &Lacks) -> io::Result<u32> {
        let here = rustix::process::geteuid();
        let has_files = match &spec.container.user {
            ContainerUser::Owner(_) => true,
            ContainerUser::NotRoot | ContainerUser::Image => !spec.volumes.is_empty(),
        };
        // Who is not root gives no folder away: whoever is to write to one is the server's own user.
        if has_files && !here.is_root() && !lacks.users {
            return Ok(here.as_raw());
        }
        let Some(users) = self.users.as_ref().filter(|_| !lacks.users) else {
            return Ok(NOBODY);
        };
        match &spec.container.user {
            ContainerUser::Owner(owner) => users.take_for(owner),
            ContainerUser::NotRoot | ContainerUser::Image => users.take(&spec.id.scope),
        }
    }

    fn place_of_secrets(&self, spec: &InstanceSpec) -> Option<PathBuf> {
        let name = name::record(&spec.id);
        let has_some = !spec.secret_files.is_empty();
        has_some.then(|| secrets::place(&self.settings.secrets, &name))
    }

    fn write_secrets(&self, spec: &InstanceSpec) -> io::Result<()> {
        if spec.secret_files.is_empty() {
            return Ok(());
        }
        let name = name::record(&spec.id);
        secrets::write(&self.settings.secrets, &name, &spec.secret_files).map(drop)
    }

    /// Makes volumes that are not there: a daemon mounts only what is. Says which are to be handed over.
    async fn make_volumes(&self, spec: &InstanceSpec) -> Result<Vec<PathBuf>, Failure> {
        let paths: Vec<_> = spec.volumes.values().cloned().collect();
        let ours = self.settings.volumes.clone();
        let made = blocking(move || {
            let mut given = Vec::new();
            for path in paths {
                let is_ours = ours.as_deref().is_some_and(|ours| path.starts_with(ours));
                let is_new = !path.is_dir();
                std::fs::create_dir_all(&path)?;
                if is_new || is_ours && !path.is_symlink() {
                    given.push(path);
                }
            }
            Ok(given)
        });
        let made = made.await;
        made.map_err(|source| Failure::Refused(io_error("make the volumes")(source)))
    }

    /// Hands volumes over to whoever the container runs as.
    async fn give_volumes(
        &self,
        spec: &InstanceSpec,
        image: &Arc<Image>,
        user: Option<u32>,
        container: &str,
        volumes: Vec<PathBuf>,
    ) -> Result<(), Failure> {
        if volumes.is_empty() {
            return Ok(());
        }
        let user = match user {
            Some(user) => Some(user),
            None => programs::user_of(self, container, image)
                .await
                .map_err(|error| self.failure(spec, error))?,
        };
        let Some(user) = user else {
            let text = format!(
                "the image's user `{}` is not in its /etc/passwd",
                image.facts.user
            );
            return Err(Failure::Refused(StartError::Impossible(text)));
        };
        let can_give = rustix::process::geteuid().is_root();
        let given = blocking(move || {
            for path in volumes {
                let refused = match can_give {
                    true => give(&path, user)?,
                    false => unusable_by(&path, user)?,
                };
                if let Some(owner) = refused {
                    return Ok(Some((path, owner)));
                }
            }
            Ok(None)
        });
        let given = given.await;
        match given.map_err(|source| Failure::Refused(io_error("hand the volumes over")(source)))? {
            None => Ok(()),
            Some((path, owner)) => {
                let path = path.display();
                let text = match can_give {
                    true => format!(
                        "`{}` runs as user {user}, and the volume in `{path}` belongs to user {owner}, whose containers may be using it; let it run as {owner}, or stop what uses the volume and run `chown -R {user}:{user} {path}`",
                        spec.id.instance
                    ),
                    false => format!(
                        "`{}` runs as user {user} of its image, and the volume in `{path}` belongs to user {owner}, which this server cannot change, for it is not root; run the server as root, or use an image that names no user",
                        spec.id.instance
                    ),
                };
                Err(Failure::Refused(StartError::Impossible(text)))
            }
        }
    }

    fn failure(&self, spec: &InstanceSpec, error: DaemonError) -> Failure {
        let is_uncertain = error.is_uncertain();
        let error = match error {
            DaemonError::Refused {
                status: 400,
                message,
            } => StartError::Impossible(format!(
                "Docker does not take `{}`: {message}",
                spec.id.instance
            )),
            other @ (DaemonError::Refused { .. }
            | DaemonError::Unclear(_)
            | DaemonError::Silent(_)
            | DaemonError::Version(_)
            | DaemonError::Away(_)) => self.daemon_error("start a container on")(other),
        };
        match is_uncertain {
            true => Failure::Uncertain(error),
            false => Failure::Refused(error),
        }
    }

    pub(crate) fn daemon_error(&self, doing: &str) -> impl FnOnce(DaemonError) -> StartError {
        let doing = format!("{doing}: Docker at {}", self.settings.address);
        move |error| StartError::Io {
            doing,
            source: error.into_io(),
        }
    }
}

/// Why a container does not run.
enum Failure {
    /// Nothing runs, and nothing will.
    Refused(StartError),
    /// The daemon did not say.
    Uncertain(StartError),
    NoInit,
}

pub(crate) fn io_error(doing: &str) -> impl FnOnce(io::Error) -> StartError {
    let doing = doing.to_owned();
    move |source| StartError::Io { doing, source }
}

/// Hands a volume over that is nobody's yet. `Some`: it is this other user's, and cannot be shared.
fn give(volume: &std::path::Path, user: u32) -> io::Result<Option<u32>> {
    let owner = std::fs::symlink_metadata(volume)?.uid();
    if owner == 0 || owner == user {
        return ownership::hand_over(volume, user).map(|()| None);
    }
    // Root of an image comes to terms with what it finds, or takes it by itself.
    let can_share = user == 0 || ownership::is_writable_by(volume, user)?;
    Ok((!can_share).then_some(owner))
}

/// `Some`: it is this other user's, and the container could not write there.
fn unusable_by(volume: &std::path::Path, user: u32) -> io::Result<Option<u32>> {
    let is_usable = user == 0 || ownership::is_writable_by(volume, user)?;
    let owner = std::fs::symlink_metadata(volume)?.uid();
    Ok((!is_usable).then_some(owner))
}

fn is_about_init(message: &str) -> bool {
    ["docker-init", "catatonit", "init binary"]
        .iter()
        .any(|word| message.contains(word))
}

fn is_about_command(message: &str) -> bool {
    message.contains("executable file not found")
        || message.contains("no such file or directory: unknown")
}

/// The port a container was told to listen on.
pub(crate) fn port_of(found: &ContainerInspectResponse) -> Option<u16> {
    let env = found.config.as_ref()?.env.as_ref()?;
    let port = env
        .iter()
        .find_map(|variable| variable.strip_prefix("PORT="))?;
    port.parse().ok()
}

/// Where a container is reached, in its first network.
pub(crate) fn address_of(
    found: &ContainerInspectResponse,
    network: Option<&str>,
    port: Option<u16>,
) -> Option<SocketAddr> {
    let networks = found.network_settings.as_ref()?.networks.as_ref()?;
    let address = networks.get(network?)?.ip_address.as_deref()?;
    let address: IpAddr = address.parse().ok()?;
    Some(SocketAddr::new(address, port?))
}
