//! From what an instance is to be to what a daemon is told. Pure: the whole of a container's confinement is decided
//! here, and tested here.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig,
    HostConfigLogConfig, Mount, MountBindOptions, MountType, NetworkingConfig, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};
use landfast_target::{
    Confinement, ContainerUser, HealthSource, ImageFacts, InstanceSpec, NetworkJoin,
};
use landfast_types::{ImageId, Protection, ProtectionPart, ProtectionState};

use crate::{
    name::{self, HostId},
    networks::Ids,
    place::Place,
};

/// Processes and threads of a container whose manifest names no number.
pub(crate) const PROCESSES_MAX: u32 = 4_096;
/// Open descriptors of each process of a container whose manifest names no number, as far as the host gives so many.
pub(crate) const DESCRIPTORS_MAX: u32 = 65_536;
/// The daemon keeps so much of what a container writes: enough for the target to read after an absence.
const LOG_BYTES_MAX: &str = "16m";
const LOG_FILES_MAX: &str = "2";
/// Where secrets are files.
pub(crate) const SECRETS: &str = "/run/secrets";
/// Cgroups weigh processors in shares; a core is 1024 (cgroups-v1/cpu).
const SHARES_OF_CORE: u64 = 1_024;
const SHARES_MIN: u64 = 2;
const NANOS_OF_MILLICORE: u64 = 1_000_000;

/// What has been found out before a container is made.
pub(crate) struct Found<'a> {
    pub(crate) host: &'a HostId,
    pub(crate) image: ImageId,
    pub(crate) facts: &'a ImageFacts,
    /// The number of the environment, or of the owner that is asked for.
    pub(crate) own_user: u32,
    /// The folder that holds the secrets.
    pub(crate) secrets: Option<&'a Path>,
    /// How the daemon calls the paths of this server.
    pub(crate) place: &'a Place,
    /// Whether the daemon has a program to put before the app, which reaps and passes signals on.
    pub(crate) has_init: bool,
    /// What it writes is read as it comes, and not kept.
    pub(crate) is_read: bool,
    /// Memory at a path has no owner of its own there: where the image has a folder, its mode holds.
    pub(crate) is_podman: bool,
}

/// What cannot be made of what is asked for, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unfit(pub(crate) String);

/// A container about to be made.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) body: ContainerCreateBody,
    /// Networks to be joined beside the first.
    pub(crate) more_networks: Vec<(String, EndpointSettings)>,
    /// The first network, where its address is.
    pub(crate) network: Option<String>,
    /// The first word of what will run.
    pub(crate) program: String,
}

/// Composes a container.
///
/// # Errors
/// When the image cannot be run as it is asked for.
pub(crate) fn plan(spec: &InstanceSpec, found: &Found<'_>) -> Result<Plan, Unfit> {
    let options = &spec.container;
    let port = port(spec, found.facts)?;
    let program = program(spec, found)?;
    let names: Vec<_> = options
        .networks
        .iter()
        .map(|join| {
            (
                name::network(found.host, &spec.id.scope, &join.network),
                endpoint(join),
            )
        })
        .collect();
    let mut networks = names.into_iter();
    let first = networks.next();
    let network = first.as_ref().map(|(name, _)| name.clone());
    let endpoints = first.map(|(name, endpoint)| HashMap::from([(name, endpoint)]));
    let stop_signal = options.stop_signal.map(|signal| signal.to_string());
    let user = user(spec, found);
    let runs_as = user.clone().unwrap_or_else(|| found.facts.user.clone());
    let body = ContainerCreateBody {
        hostname: Some(name::hostname(&spec.id)),
        user,
        env: Some(environment(spec, port)),
        cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
        entrypoint: options.entrypoint.clone(),
        image: Some(found.image.to_string()),
        labels: Some(name::labels(
            found.host,
            &spec.id,
            &found.image,
            spec.is_job,
        )),
        healthcheck: (options.health == HealthSource::Probes).then(no_check),
        stop_signal,
        network_disabled: Some(network.is_none()),
        networking_config: endpoints.map(|endpoints| NetworkingConfig {
            endpoints_config: Some(endpoints),
        }),
        host_config: Some(host_config(
            spec,
            found,
            network.as_deref(),
            Some(&runs_as),
        )?),
        attach_stdin: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        ..Default::default()
    };
    Ok(Plan {
        body,
        more_networks: networks.collect(),
        network,
        program,
    })
}

fn port(spec: &InstanceSpec, facts: &ImageFacts) -> Result<Option<u16>, Unfit> {
    if !spec.listens {
        return Ok(spec.container.port);
    }
    match (spec.container.port, facts.ports.as_slice()) {
        (Some(port), _) => Ok(Some(port)),
        (None, [port]) => Ok(Some(*port)),
        (None, []) => Err(Unfit(
            "the image exposes no port; say which one the app listens on: `port = 8080`".to_owned(),
        )),
        (None, [first, ..]) => {
            let ports: Vec<_> = facts.ports.iter().map(u16::to_string).collect();
            Err(Unfit(format!(
                "the image exposes ports {}; say which one the app listens on: `port = {first}`",
                ports.join(", "),
            )))
        }
    }
}

/// What is run first, by the rules of every daemon: the entrypoint, else the command. With an entrypoint of the
/// manifest, the image's command falls away.
fn program(spec: &InstanceSpec, found: &Found<'_>) -> Result<String, Unfit> {
    let own = spec.container.entrypoint.as_ref();
    let entrypoint = own.unwrap_or(&found.facts.entrypoint);
    let command = match (spec.command.is_empty(), own) {
        (false, _) => &spec.command[..],
        (true, Some(_)) => &[],
        (true, None) => &found.facts.command[..],
    };
    let first = entrypoint.iter().chain(command).next();
    first.cloned().ok_or_else(|| {
        Unfit("the image names no command; say what it runs: `command = [\"…\"]`".to_owned())
    })
}

/// As whom it runs. `None`: as the image says.
fn user(spec: &InstanceSpec, found: &Found<'_>) -> Option<String> {
    let own = || Some(format!("{0}:{0}", found.own_user));
    match &spec.container.user {
        ContainerUser::Image => None,
        ContainerUser::NotRoot if found.facts.is_root() => own(),
        ContainerUser::NotRoot => None,
        ContainerUser::Owner(_) => own(),
    }
}

fn environment(spec: &InstanceSpec, port: Option<u16>) -> Vec<String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for name in spec.secret_files.keys() {
        all.insert(format!("{name}_FILE"), format!("{SECRETS}/{name}"));
    }
    // What the manifest says of a variable, it means.
    for (name, value) in &spec.env {
        all.insert(name.clone(), value.reveal().clone());
    }
    for name in spec.volumes.keys() {
        let variable = format!("VOLUME_{}", name.to_uppercase().replace('-', "_"));
        all.insert(
            variable,
            mount_point(spec, name).to_string_lossy().into_owned(),
        );
    }
    if let Some(port) = port {
        all.insert("PORT".to_owned(), port.to_string());
        // Whoever asks comes from outside of the container.
        all.insert("HOST".to_owned(), "0.0.0.0".to_owned());
    }
    all.into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

/// Where a volume is in the container.
pub(crate) fn mount_point(spec: &InstanceSpec, volume: &str) -> PathBuf {
    let named = spec.container.mounts.get(volume);
    named
        .cloned()
        .unwrap_or_else(|| Path::new("/volumes").join(volume))
}

fn endpoint(join: &NetworkJoin) -> EndpointSettings {
    EndpointSettings {
        aliases: Some(join.aliases.clone()),
        ..Default::default()
    }
}

/// Says by its id which network is meant where its name does not.
pub(crate) fn name_networks(body: &mut ContainerCreateBody, ids: &Ids) {
    let mode = body.host_config.as_mut();
    if let Some(mode) = mode.and_then(|config| config.network_mode.as_mut())
        && let Some(id) = ids.get(mode)
    {
        mode.clone_from(id);
    }
    let networks = body.networking_config.as_mut();
    let Some(endpoints) = networks.and_then(|networks| networks.endpoints_config.as_mut()) else {
        return;
    };
    for (name, id) in ids {
        if let Some(mut endpoint) = endpoints.remove(name) {
            endpoint.network_id = Some(id.clone());
            endpoints.insert(id.clone(), endpoint);
        }
    }
}

/// Has a container ask for an address in its first network.
pub(crate) fn set_address(body: &mut ContainerCreateBody, address: Ipv4Addr) {
    let networks = body.networking_config.as_mut();
    let endpoints = networks.and_then(|networks| networks.endpoints_config.as_mut());
    for endpoint in endpoints.into_iter().flat_map(HashMap::values_mut) {
        endpoint.ipam_config = Some(EndpointIpamConfig {
            ipv4_address: Some(address.to_string()),
            ..Default::default()
        });
    }
}

/// A check that is not to be run.
fn no_check() -> HealthConfig {
    HealthConfig {
        test: Some(vec!["NONE".to_owned()]),
        ..Default::default()
    }
}

fn host_config(
    spec: &InstanceSpec,
    found: &Found<'_>,
    network: Option<&str>,
    user: Option<&str>,
) -> Result<HostConfig, Unfit> {
    let (options, resources) = (&spec.container, &spec.resources);
    let memory = resources.memory.map(|memory| signed(memory.0));
    let descriptors = resources.descriptors.unwrap_or_else(descriptors_given);
    let descriptors = i64::from(descriptors);
    let shares = options.reservation.cpu.map(|cpu| {
        let shares = cpu.millicores.saturating_mul(SHARES_OF_CORE) / 1_000;
        signed(shares.max(SHARES_MIN))
    });
    Ok(HostConfig {
        memory,
        // As much as the memory alone: nothing is swapped out.
        memory_swap: memory,
        memory_reservation: options.reservation.memory.map(|memory| signed(memory.0)),
        nano_cpus: resources
            .cpu
            .map(|cpu| signed(cpu.millicores.saturating_mul(NANOS_OF_MILLICORE))),
        cpu_shares: shares,
        pids_limit: Some(i64::from(resources.processes.unwrap_or(PROCESSES_MAX))),
        ulimits: Some(vec![ResourcesUlimits {
            name: Some("nofile".to_owned()),
            soft: Some(descriptors),
            hard: Some(descriptors),
        }]),
        init: found.has_init.then_some(true),
        readonly_rootfs: Some(!options.writable_root),
        shm_size: options.shared_memory.map(|size| signed(size.0)),
        tmpfs: Some(tmpfs(spec, user, found.is_podman)),
        mounts: Some(mounts(spec, found)?),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: (!options.capabilities.is_empty()).then(|| options.capabilities.clone()),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        publish_all_ports: Some(false),
        network_mode: Some(network.unwrap_or("none").to_owned()),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        auto_remove: Some(false),
        log_config: Some(log(found.is_read)),
        ..Default::default()
    })
}

fn log(is_read: bool) -> HostConfigLogConfig {
    if is_read {
        return HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        };
    }
    let bounds = [("max-size", LOG_BYTES_MAX), ("max-file", LOG_FILES_MAX)];
    let bounds = bounds.map(|(name, value)| (name.to_owned(), value.to_owned()));
    HostConfigLogConfig {
        typ: Some("json-file".to_owned()),
        config: Some(HashMap::from(bounds)),
    }
}

/// A limit that this host does not let anybody have would keep the container from starting.
fn descriptors_given() -> u32 {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let most = most.and_then(|most| u32::try_from(most).ok());
    most.map_or(DESCRIPTORS_MAX, |most| most.min(DESCRIPTORS_MAX))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Memory that whoever it runs as may write to, also where the image has a folder of root's there.
fn tmpfs(spec: &InstanceSpec, user: Option<&str>, is_podman: bool) -> HashMap<String, String> {
    let mut options = "rw,nosuid,nodev,mode=1777".to_owned();
    let (user, group) = user.map_or(("", ""), |user| {
        user.split_once(':').unwrap_or((user, user))
    });
    if !is_podman && user.parse::<u32>().is_ok() && group.parse::<u32>().is_ok() {
        options.push_str(&format!(",uid={user},gid={group}"));
    }
    let own = std::iter::once(PathBuf::from("/tmp"));
    own.chain(spec.container.tmpfs.iter().cloned())
        .map(|path| (path.to_string_lossy().into_owned(), options.clone()))
        .collect()
}

fn mounts(spec: &InstanceSpec, found: &Found<'_>) -> Result<Vec<Mount>, Unfit> {
    let bind = |from: &Path, at: &Path, read_only| {
        let from = found.place.on_host(from)?;
        Ok(bind(&from, at, read_only))
    };
    let volumes = spec
        .volumes
        .iter()
        .map(|(name, path)| bind(path, &mount_point(spec, name), false));
    let binds = spec
        .container
        .binds
        .iter()
        .map(|each| bind(&each.from, &each.at, each.read_only));
    let secrets = found
        .secrets
        .map(|folder| bind(folder, Path::new(SECRETS), true));
    volumes.chain(binds).chain(secrets).collect()
}

fn bind(from: &Path, at: &Path, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(from.to_string_lossy().into_owned()),
        target: Some(at.to_string_lossy().into_owned()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions::default()),
        ..Default::default()
    }
}

/// What a container is held to. Where the daemon says that its kernel cannot, `lacks` names it.
pub(crate) fn protections(
    wanted: &Confinement<'_>,
    is_root: bool,
    own_user: u32,
    lacks: &Lacks,
) -> Vec<Protection> {
    use ProtectionPart as Part;
    use ProtectionState::{Enforced, Missing, Off, Weaker};
    let (options, resources) = (wanted.container, wanted.resources);
    let limit = |part, given: Option<String>, is_kept: bool, by: &str| match given {
        None => Protection::new(part, Off, "the manifest sets no limit"),
        Some(given) if is_kept => Protection::new(part, Enforced, format!("{by}, {given}")),
        Some(given) => Protection::new(
            part,
            Missing,
            format!("the daemon's kernel cannot keep to {given}"),
        ),
    };
    let user = match (&options.user, is_root) {
        (ContainerUser::Image, true) => Protection::new(Part::User, Off, "root of the container"),
        (ContainerUser::NotRoot, true) | (ContainerUser::Owner(_), _) => {
            Protection::new(Part::User, Enforced, format!("user {own_user}"))
        }
        (ContainerUser::NotRoot | ContainerUser::Image, false) => {
            Protection::new(Part::User, Enforced, "the image's user")
        }
    };
    let privileges = match options.capabilities.as_slice() {
        [] => Protection::new(
            Part::Privileges,
            Enforced,
            "no capability, none to be gained",
        ),
        kept => Protection::new(
            Part::Privileges,
            Weaker,
            format!("none to be gained, but {}", kept.join(", ")),
        ),
    };
    let files = match options.writable_root {
        false => Protection::new(Part::Files, Enforced, "a read-only image of its own"),
        true => Protection::new(Part::Files, Enforced, "an image of its own, writable"),
    };
    let processes = resources.processes.unwrap_or(PROCESSES_MAX);
    let descriptors = resources.descriptors.unwrap_or_else(descriptors_given);
    let mut all = vec![
        user,
        privileges,
        limit(
            Part::Memory,
            resources.memory.map(|memory| memory.to_string()),
            !lacks.memory,
            "cgroup",
        ),
        limit(
            Part::Cpu,
            resources.cpu.map(|cpu| cpu.to_string()),
            !lacks.cpu,
            "cgroup",
        ),
        limit(
            Part::Processes,
            Some(processes.to_string()),
            !lacks.processes,
            "cgroup",
        ),
        Protection::new(Part::Descriptors, Enforced, descriptors.to_string()),
        files,
        Protection::new(Part::Temporary, Enforced, "memory of its own"),
    ];
    if wanted.has_secret_files {
        let (state, kept) = match lacks.memory_for_secrets {
            false => (Enforced, "memory"),
            true => (Weaker, "files on a disk, for as long as it runs"),
        };
        let detail = format!("{kept}, seen at {SECRETS}");
        all.push(Protection::new(Part::Secrets, state, detail));
    }
    all
}

/// What the kernel of a daemon cannot limit, by what the daemon says, and what this host has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lacks {
    pub(crate) memory: bool,
    pub(crate) cpu: bool,
    pub(crate) processes: bool,
    /// Users of containers are few, and others on the host: large numbers mean nobody there.
    pub(crate) users: bool,
    /// The folder of secrets is not in memory.
    pub(crate) memory_for_secrets: bool,
}

#[cfg(test)]
mod tests {
    use landfast_target::{
        Bind, ContainerNetwork, ContainerOptions, Content, InstanceRef, Resources, Sandbox,
    };
    use landfast_types::{Bytes, Cpu, Digest, InstanceId, ReleaseId, Scope, Secret, StoreName};

    use super::*;

    fn image() -> ImageId {
        ImageId(Digest::of(b"image"))
    }

    fn spec(container: ContainerOptions) -> InstanceSpec {
        InstanceSpec {
            id: InstanceRef {
                scope: Scope {
                    app: "shop".parse().unwrap(),
                    environment: "production".parse().unwrap(),
                },
                instance: InstanceId::new("api", ReleaseId(3), 17),
            },
            content: Content::Image(image()),
            command: Vec::new(),
            env: BTreeMap::from([("TOKEN".to_owned(), Secret::new("s3cr3t".to_owned()))]),
            secret_files: BTreeMap::from([("KEY".to_owned(), Secret::new("hidden".to_owned()))]),
            listens: true,
            resources: Resources::default(),
            volumes: BTreeMap::from([("up-loads".to_owned(), PathBuf::from("/state/up"))]),
            log_folder: PathBuf::new(),
            is_job: false,
            sandbox: Sandbox::default(),
            container,
        }
    }

    fn facts() -> ImageFacts {
        ImageFacts {
            entrypoint: vec!["/entry".to_owned()],
            command: vec!["serve".to_owned()],
            ports: vec![8_080],
            ..Default::default()
        }
    }

    fn planned(spec: &InstanceSpec, facts: &ImageFacts) -> Result<Plan, Unfit> {
        plan(
            spec,
            &Found {
                host: &HostId::of(1),
                image: image(),
                facts,
                own_user: 1_900_000_001,
                secrets: Some(Path::new("/run/landfast/s")),
                place: &Place::Host,
                has_init: true,
                is_read: false,
                is_podman: false,
            },
        )
    }

    #[test]
    fn a_container_may_as_little_as_it_can() {
        let plan = planned(&spec(ContainerOptions::default()), &facts()).unwrap();
        let host = plan.body.host_config.unwrap();
        assert_eq!(plan.body.user.as_deref(), Some("1900000001:1900000001"));
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.cap_add, None);
        assert_eq!(
            host.security_opt,
            Some(vec!["no-new-privileges:true".to_owned()])
        );
        assert_eq!((host.privileged, host.init), (Some(false), Some(true)));
        assert_eq!(host.pids_limit, Some(4_096));
        assert_eq!(
            (host.port_bindings, host.publish_all_ports),
            (None, Some(false))
        );
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert!(host.tmpfs.unwrap()["/tmp"].contains("uid=1900000001"));
        let restart = host.restart_policy.unwrap();
        assert_eq!(restart.name, Some(RestartPolicyNameEnum::NO));
        // An image's own check is not run beside ours.
        let check = plan.body.healthcheck.unwrap();
        assert_eq!(check.test, Some(vec!["NONE".to_owned()]));
    }

    #[test]
    fn secrets_that_are_files_are_nowhere_in_it() {
        let plan = planned(&spec(ContainerOptions::default()), &facts()).unwrap();
        let text = format!("{:?}", plan.body);
        assert!(!text.contains("hidden"), "{text}");
        let env = plan.body.env.unwrap();
        assert!(
            env.contains(&"KEY_FILE=/run/secrets/KEY".to_owned()),
            "{env:?}"
        );
        assert!(env.contains(&"TOKEN=s3cr3t".to_owned()));
        assert!(env.contains(&"VOLUME_UP_LOADS=/volumes/up-loads".to_owned()));
        assert!(env.contains(&"PORT=8080".to_owned()));
        let mounts = plan.body.host_config.unwrap().mounts.unwrap();
        let secrets = mounts
            .iter()
            .find(|mount| mount.target.as_deref() == Some(SECRETS));
        assert_eq!(secrets.unwrap().read_only, Some(true));
    }

    #[test]
    fn carries_over_what_the_manifest_loosens() {
        let store = ContainerNetwork::Store(StoreName::new("main").unwrap());
        let join = |network, alias: &str| NetworkJoin {
            network,
            aliases: vec![alias.to_owned()],
        };
        let mut spec = spec(ContainerOptions {
            entrypoint: Some(vec!["/other".to_owned()]),
            port: Some(9_000),
            networks: vec![
                join(ContainerNetwork::Environment, "api"),
                join(store, "api"),
            ],
            mounts: BTreeMap::from([("up-loads".to_owned(), PathBuf::from("/data"))]),
            binds: vec![Bind {
                from: "/etc/x".into(),
                at: "/x".into(),
                read_only: true,
            }],
            tmpfs: vec![PathBuf::from("/var/cache")],
            writable_root: true,
            user: ContainerUser::Image,
            capabilities: vec!["NET_BIND_SERVICE".to_owned()],
            reservation: landfast_target::Reservation {
                cpu: Some(Cpu { millicores: 500 }),
                memory: Some(Bytes(32 << 20)),
            },
            health: HealthSource::Image,
            stop_signal: Some(3),
            keeps_address: true,
            shared_memory: Some(Bytes(128 << 20)),
        });
        spec.resources = Resources {
            cpu: Some(Cpu { millicores: 1_500 }),
            memory: Some(Bytes(64 << 20)),
            processes: Some(10),
            descriptors: Some(100),
        };
        let plan = planned(&spec, &facts()).unwrap();
        assert_eq!(plan.program, "/other");
        assert!(
            plan.body
                .env
                .clone()
                .unwrap()
                .contains(&"PORT=9000".to_owned())
        );
        assert_eq!(plan.network.as_deref(), Some("lf-00000000.shop.production"));
        assert_eq!(
            plan.more_networks[0].0,
            "lf-00000000.shop.production.store.main"
        );
        assert_eq!(plan.body.stop_signal.as_deref(), Some("3"));
        assert_eq!((plan.body.user, plan.body.healthcheck), (None, None));
        let host = plan.body.host_config.unwrap();
        assert_eq!(
            (host.memory, host.memory_swap),
            (Some(64 << 20), Some(64 << 20))
        );
        assert_eq!(host.memory_reservation, Some(32 << 20));
        assert_eq!(host.shm_size, Some(128 << 20));
        assert_eq!(
            (host.nano_cpus, host.cpu_shares),
            (Some(1_500_000_000), Some(512))
        );
        assert_eq!(
            (host.pids_limit, host.readonly_rootfs),
            (Some(10), Some(false))
        );
        assert_eq!(host.ulimits.unwrap()[0].hard, Some(100));
        assert_eq!(host.cap_add, Some(vec!["NET_BIND_SERVICE".to_owned()]));
        let targets: Vec<_> = host
            .mounts
            .unwrap()
            .into_iter()
            .filter_map(|m| m.target)
            .collect();
        assert_eq!(targets, ["/data", "/x", SECRETS]);
    }

    #[test]
    fn says_what_an_image_does_not_tell() {
        let bare = ImageFacts::default();
        let quiet = spec(ContainerOptions::default());
        assert!(
            planned(&quiet, &bare)
                .unwrap_err()
                .0
                .contains("exposes no port")
        );
        let two = ImageFacts {
            ports: vec![80, 443],
            ..facts()
        };
        assert!(planned(&quiet, &two).unwrap_err().0.contains("80, 443"));
        let silent = InstanceSpec {
            listens: false,
            ..quiet
        };
        assert!(
            planned(&silent, &bare)
                .unwrap_err()
                .0
                .contains("names no command")
        );
    }

    #[test]
    fn an_image_with_a_user_keeps_it() {
        let spec = spec(ContainerOptions::default());
        for (user, expected) in [
            ("", Some("1900000001:1900000001")),
            ("root", Some("1900000001:1900000001")),
            ("0:0", Some("1900000001:1900000001")),
            ("app", None),
            ("1000:1000", None),
        ] {
            let facts = ImageFacts {
                user: user.to_owned(),
                ..facts()
            };
            let plan = planned(&spec, &facts).unwrap();
            assert_eq!(plan.body.user.as_deref(), expected, "{user:?}");
        }
    }
}
