//! From a release to what the target starts.

use std::{collections::BTreeMap, path::PathBuf};

use landfast_spec::{
    EnvVar, JobSpec, ResourcesSpec, SandboxSpec, SecretDelivery, ServiceSpec, Volume,
};
use landfast_target::{
    Confinement, ContainerOptions, Content, InstanceRef, InstanceSpec, Resources, Sandbox,
};
use landfast_types::{Digest, JobName, Protection, Scope, Secret, ServiceName};

use crate::{release::ReleaseBody, shared::Shared};

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
    let given = environment(shared, id, body, &spec.env, connections, spec.secrets)?;
    Ok(InstanceSpec {
        id: id.clone(),
        content: Content::Artifact(artifact(body, &spec.artifact)?),
        command: spec.command.clone(),
        env: given.env,
        secret_files: given.files,
        listens: spec.port.is_some(),
        resources: resources(spec.resources),
        volumes: volumes(shared, &id.scope, &spec.volumes),
        log_folder: shared.folders.logs(&id.scope, &id.instance),
        is_job: false,
        sandbox: sandbox(&spec.sandbox),
        container: ContainerOptions::default(),
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
    let given = environment(shared, id, body, &job.env, connections, job.secrets)?;
    let Given { mut env, files } = given;
    env.insert("LANDFAST_JOB".into(), Secret::new(name.to_string()));
    env.extend(
        extra
            .into_iter()
            .map(|(name, value)| (name, Secret::new(value))),
    );
    Ok(InstanceSpec {
        id: id.clone(),
        content: Content::Artifact(artifact(body, &job.artifact)?),
        command: job.command.clone(),
        env,
        secret_files: files,
        listens: false,
        resources: resources(job.resources),
        volumes: volumes(shared, &id.scope, &job.volumes),
        log_folder: shared.folders.logs(&id.scope, &id.instance),
        is_job: true,
        sandbox: sandbox(&job.sandbox),
        container: ContainerOptions::default(),
    })
}

fn artifact(body: &ReleaseBody, name: &str) -> Result<Digest, String> {
    let digest = body.artifacts.get(name).copied();
    digest.ok_or_else(|| format!("release {} has no artifact `{name}`", body.release))
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

/// What an instance of a service would be held to on this host.
pub fn forecast(
    shared: &Shared,
    scope: &Scope,
    service: &ServiceSpec,
    artifact: &Digest,
) -> Vec<Protection> {
    shared.target.forecast(&Confinement {
        scope,
        content: &Content::Artifact(*artifact),
        resources: &resources(service.resources),
        volumes: &volumes(shared, scope, &service.volumes),
        sandbox: &sandbox(&service.sandbox),
        container: &ContainerOptions::default(),
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

/// What a process is given. Later wins: the manifest (its overlay included), stores, then secrets; on top of them what
/// Landfast itself tells every process.
fn environment(
    shared: &Shared,
    id: &InstanceRef,
    body: &ReleaseBody,
    vars: &BTreeMap<String, EnvVar>,
    connections: Connections,
    delivery: SecretDelivery,
) -> Result<Given, String> {
    let mut files = BTreeMap::new();
    let mut env: BTreeMap<String, Secret<String>> = BTreeMap::new();
    for (name, var) in vars {
        if let Some(value) = &var.value {
            env.insert(name.clone(), Secret::new(value.clone()));
        }
    }
    env.extend(connections);
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
    // A process finds programs it starts itself; nothing else of the server's own environment reaches it.
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    env.entry("PATH".into())
        .or_insert_with(|| Secret::new(path.into()));
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
