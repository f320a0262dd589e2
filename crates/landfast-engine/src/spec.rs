//! From a release to what the target starts.

use std::{collections::BTreeMap, path::PathBuf};

use landfast_spec::{
    ContainerSpec, EnvVar, JobSpec, Probe, ResourcesSpec, SandboxSpec, SecretDelivery, ServiceSpec,
    Volume, injected_variables,
};
use landfast_target::{
    Confinement, ContainerNetwork, ContainerOptions, ContainerUser, Content, HealthSource,
    InstanceRef, InstanceSpec, NetworkJoin, Reservation, Resources, Sandbox,
};
use landfast_types::{Digest, ImageId, JobName, Protection, Scope, Secret, ServiceName, StoreName};

use crate::{release::ReleaseBody, shared::Shared, stores::served_by};

/// The variables in which a process is told how to reach its stores.
pub(crate) type Connections = BTreeMap<String, Secret<String>>;

/// What starts an instance of a service.
///
/// # Errors
/// A sentence, when something the release needs is missing.
pub(crate) fn instance_spec(
    shared: &Shared,
    id: &InstanceRef,
    body: &ReleaseBody,
    service: &ServiceName,
    connections: Connections,
) -> Result<InstanceSpec, String> {
    let spec = body.spec.services.get(service);
    let spec =
        spec.ok_or_else(|| format!("release {} has no service `{service}`", body.release))?;
    let wanted = Wanted {
        vars: &spec.env,
        uses: &spec.uses,
        delivery: spec.secrets,
        is_container: spec.container.is_some(),
    };
    let given = environment(shared, id, body, wanted, connections)?;
    Ok(InstanceSpec {
        id: id.clone(),
        content: content(body, spec.artifact.as_deref(), spec.container.as_ref())?,
        command: spec.command.clone(),
        env: given.env,
        secret_files: given.files,
        listens: spec.port.is_some(),
        resources: resources(spec.resources),
        volumes: volumes(shared, &id.scope, &spec.volumes),
        log_folder: shared.folders.logs(&id.scope, &id.instance),
        is_job: false,
        sandbox: sandbox(&spec.sandbox),
        container: service_options(shared, body, service, spec),
    })
}

/// What starts a run of a job, with further variables for this run.
///
/// # Errors
/// A sentence, when something the release needs is missing.
pub(crate) fn job_spec(
    shared: &Shared,
    id: &InstanceRef,
    body: &ReleaseBody,
    name: &JobName,
    job: &JobSpec,
    connections: Connections,
    extra: BTreeMap<String, String>,
) -> Result<InstanceSpec, String> {
    let wanted = Wanted {
        vars: &job.env,
        uses: &job.uses,
        delivery: job.secrets,
        is_container: job.container.is_some(),
    };
    let given = environment(shared, id, body, wanted, connections)?;
    let Given { mut env, files } = given;
    env.insert("LANDFAST_JOB".into(), Secret::new(name.to_string()));
    env.extend(
        extra
            .into_iter()
            .map(|(name, value)| (name, Secret::new(value))),
    );
    Ok(InstanceSpec {
        id: id.clone(),
        content: content(body, job.artifact.as_deref(), job.container.as_ref())?,
        command: job.command.clone(),
        env,
        secret_files: files,
        listens: false,
        resources: resources(job.resources),
        volumes: volumes(shared, &id.scope, &job.volumes),
        log_folder: shared.folders.logs(&id.scope, &id.instance),
        is_job: true,
        sandbox: sandbox(&job.sandbox),
        container: match &job.container {
            Some(container) => {
                container_options(shared, body, container, &job.sandbox, &job.uses, Vec::new())
            }
            None => ContainerOptions::default(),
        },
    })
}

/// What a release pinned for a process of it.
fn content(
    body: &ReleaseBody,
    artifact: Option<&str>,
    container: Option<&ContainerSpec>,
) -> Result<Content, String> {
    let release = body.release;
    match (container, artifact) {
        (Some(container), _) => {
            let key = container.source.key();
            let image = body.images.get(&key);
            let image = image.ok_or_else(|| format!("release {release} has no image `{key}`"))?;
            Ok(Content::Image(image.id))
        }
        (None, Some(name)) => {
            let digest = body.artifacts.get(name).copied();
            let digest =
                digest.ok_or_else(|| format!("release {release} has no artifact `{name}`"))?;
            Ok(Content::Artifact(digest))
        }
        (None, None) => Err(format!("release {release} does not say what is run")),
    }
}

/// What a container of a service is told.
fn service_options(
    shared: &Shared,
    body: &ReleaseBody,
    name: &ServiceName,
    service: &ServiceSpec,
) -> ContainerOptions {
    let Some(container) = &service.container else {
        return ContainerOptions::default();
    };
    let aliases = vec![name.to_string()];
    let sandbox = &service.sandbox;
    let probes = [&service.health.ready, &service.health.live];
    ContainerOptions {
        port: service.port,
        health: match probes.contains(&&Probe::Image) {
            true => HealthSource::Image,
            false => HealthSource::Probes,
        },
        ..container_options(shared, body, container, sandbox, &service.uses, aliases)
    }
}

fn container_options(
    shared: &Shared,
    body: &ReleaseBody,
    container: &ContainerSpec,
    sandbox: &SandboxSpec,
    uses: &[StoreName],
    aliases: Vec<String>,
) -> ContainerOptions {
    let is_container = |name: &&StoreName| {
        let store = body.spec.stores.get(*name);
        store.is_some_and(|store| store.image().is_some())
    };
    // The network of the store that serves the name.
    let stores = uses.iter().filter(is_container).map(|name| NetworkJoin {
        network: ContainerNetwork::Store(served_by(
            shared,
            &body.spec.scope(),
            Some(body.release),
            name,
        )),
        aliases: Vec::new(),
    });
    let environment = NetworkJoin {
        network: ContainerNetwork::Environment,
        aliases,
    };
    let mounts = container.mounts.iter();
    ContainerOptions {
        entrypoint: container.entrypoint.clone(),
        networks: std::iter::once(environment).chain(stores).collect(),
        mounts: mounts
            .map(|(name, path)| (name.clone(), PathBuf::from(path)))
            .collect(),
        tmpfs: sandbox.tmpfs.iter().map(PathBuf::from).collect(),
        writable_root: sandbox.writable,
        user: match sandbox.root {
            true => ContainerUser::Image,
            false => ContainerUser::NotRoot,
        },
        capabilities: sandbox.capabilities.clone(),
        reservation: Reservation {
            cpu: container.reserve.cpu,
            memory: container.reserve.memory,
        },
        ..ContainerOptions::default()
    }
}

fn resources(spec: ResourcesSpec) -> Resources {
    Resources {
        cpu: spec.cpu,
        memory: spec.memory,
        processes: spec.processes,
        descriptors: spec.descriptors,
    }
}

fn sandbox(spec: &SandboxSpec) -> Sandbox {
    let paths = |texts: &[String]| texts.iter().map(PathBuf::from).collect();
    Sandbox {
        server_user: spec.server_user,
        host_files: spec.host_files,
        read_only: paths(&spec.read_only),
        read_write: paths(&spec.read_write),
    }
}

/// What an instance of a service would be held to on this host. Which folder or image it is run from matters only by what
/// lies above it: before there is one, any will do.
pub fn forecast(shared: &Shared, body: &ReleaseBody, name: &ServiceName) -> Vec<Protection> {
    let Some(service) = body.spec.services.get(name) else {
        return Vec::new();
    };
    let any = match service.container {
        Some(_) => Content::Image(ImageId(Digest::of(b""))),
        None => Content::Artifact(Digest::of(b"")),
    };
    let content = content(
        body,
        service.artifact.as_deref(),
        service.container.as_ref(),
    );
    let scope = &body.spec.scope();
    shared.target.forecast(&Confinement {
        scope,
        content: &content.unwrap_or(any),
        resources: &resources(service.resources),
        volumes: &volumes(shared, scope, &service.volumes),
        sandbox: &sandbox(&service.sandbox),
        container: &service_options(shared, body, name, service),
        has_secret_files: false,
    })
}

/// What a process is given: variables, and secrets as files.
struct Given {
    env: BTreeMap<String, Secret<String>>,
    files: BTreeMap<String, Secret<String>>,
}

/// Whether a secret is a variable of a process: the manifest names it among them, or wants all of them there.
pub(crate) fn is_variable(
    name: &str,
    vars: &BTreeMap<String, EnvVar>,
    delivery: SecretDelivery,
) -> bool {
    delivery == SecretDelivery::Environment || vars.contains_key(name)
}

/// What a process of a release asks for.
struct Wanted<'a> {
    vars: &'a BTreeMap<String, EnvVar>,
    uses: &'a [StoreName],
    delivery: SecretDelivery,
    is_container: bool,
}

/// What a process is given. Later wins: the manifest (its overlay included), stores, then secrets; on top of them what
/// Landfast itself tells every process. Docker shows the variables of a container to whoever asks, so what opens a store
/// is a file there, as secrets are.
fn environment(
    shared: &Shared,
    id: &InstanceRef,
    body: &ReleaseBody,
    wanted: Wanted<'_>,
    connections: Connections,
) -> Result<Given, String> {
    let Wanted {
        vars,
        uses,
        delivery,
        is_container,
    } = wanted;
    let mut files = BTreeMap::new();
    let mut env: BTreeMap<String, Secret<String>> = BTreeMap::new();
    for (name, var) in vars {
        if let Some(value) = &var.value {
            env.insert(name.clone(), Secret::new(value.clone()));
        }
    }
    let parts = injected_variables(uses, |name| Some(body.spec.stores.get(name)?.kind()));
    let opens = |name: &str| parts.get(name).is_none_or(|(_, part)| part.is_secret());
    for (name, value) in connections {
        let is_shown = !is_container || is_variable(&name, vars, delivery) || !opens(&name);
        match is_shown {
            true => env.insert(name, value),
            false => files.insert(name, value),
        };
    }
    for (name, version) in &body.secrets {
        // Whoever breaks into the app does not reach its backups.
        if body.spec.is_for_landfast(name) && !vars.contains_key(name) {
            continue;
        }
        let value = shared
            .secrets
            .reveal(&shared.journal, &id.scope, name, *version);
        let value = value.map_err(|error| format!("secret `{name}`: {error}"))?;
        let place = match is_variable(name, vars, delivery) {
            true => &mut env,
            false => &mut files,
        };
        place.insert(name.clone(), value.value);
    }
    for (name, var) in vars {
        match env.get(name) {
            None if var.required => return Err(format!("variable `{name}` has no value")),
            Some(value) if !var.kind.accepts(value.reveal()) => {
                return Err(format!(
                    "variable `{name}` is not of type {}",
                    var.kind.word()
                ));
            }
            None | Some(_) => {}
        }
    }
    // A process finds programs it starts itself; nothing else of the server's own environment reaches it. An image says
    // itself where its programs are.
    if !is_container {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        env.entry("PATH".into())
            .or_insert_with(|| Secret::new(path.into()));
    }
    for (name, value) in [
        ("LANDFAST_APP", id.scope.app.to_string()),
        ("LANDFAST_ENVIRONMENT", id.scope.environment.to_string()),
        ("LANDFAST_INSTANCE", id.instance.to_string()),
        ("LANDFAST_RELEASE", body.release.to_string()),
    ] {
        env.insert(name.into(), Secret::new(value));
    }
    Ok(Given { env, files })
}

fn volumes(
    shared: &Shared,
    scope: &Scope,
    volumes: &BTreeMap<String, Volume>,
) -> BTreeMap<String, PathBuf> {
    let place = |(name, volume): (&String, &Volume)| {
        let path = match volume {
            Volume::Managed => shared.folders.volume(scope, name),
            Volume::Path { path } => PathBuf::from(path),
        };
        (name.clone(), path)
    };
    volumes.iter().map(place).collect()
}
