//! A world of its own for each test: a daemon with the test app as an image, a state folder, and a broom.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use landfast_target::{
    ContainerNetwork, ContainerOptions, Content, InstanceRef, InstanceSpec, NetworkJoin, Observed,
    Resources, Sandbox, Target, conformance::Subject,
};
use landfast_target_docker::{DockerAddress, DockerSettings, DockerTarget};
use landfast_testbed::{Dockerd, DockerdOptions};
use landfast_types::{Fence, Generation, ImageId, InstanceId, ReleaseId, Scope, Secret, StoreName};

const APP: &str = env!("CARGO_BIN_EXE_landfast-target-docker-app");
pub(crate) const PORT: u16 = 8_080;

pub(crate) struct World {
    pub(crate) dockerd: Dockerd,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) image: ImageId,
}

impl World {
    /// A world with a daemon whose containers outlive it; none where no daemon can be started.
    pub(crate) fn new() -> Option<Self> {
        Self::with(DockerdOptions::default())
    }

    pub(crate) fn with(options: DockerdOptions) -> Option<Self> {
        let dockerd = Dockerd::start_or_skip(options)?;
        let folder = tempfile::tempdir().unwrap();
        let content = content(folder.path());
        let image = dockerd.import("app:1", &content, &["WORKDIR /"]).unwrap();
        Some(Self {
            dockerd,
            folder,
            image: image.parse().unwrap(),
        })
    }

    /// Another image of the app.
    pub(crate) fn import(&self, name: &str, lines: &[&str]) -> ImageId {
        let content = self.folder.path().join("image");
        let id = self.dockerd.import(name, &content, lines).unwrap();
        id.parse().unwrap()
    }

    pub(crate) fn settings(&self) -> DockerSettings {
        self.settings_in("state")
    }

    pub(crate) fn settings_in(&self, state: &str) -> DockerSettings {
        let path = |name: &str| self.folder.path().join(state).join(name);
        let address: DockerAddress = self.dockerd.address().parse().unwrap();
        DockerSettings {
            volumes: Some(path("volumes")),
            users: Some(path("users.json")),
            docker_config: Some(path("client")),
            call_wait_max: Duration::from_secs(20),
            ..DockerSettings::new(address, path("docker"), path("secrets"))
        }
    }

    pub(crate) fn target(&self) -> Arc<DockerTarget> {
        Arc::new(DockerTarget::open(self.settings()).unwrap())
    }

    pub(crate) fn spec(&self, number: u64, words: &[&str]) -> InstanceSpec {
        self.spec_of("shop", number, words)
    }

    pub(crate) fn spec_of(&self, app: &str, number: u64, words: &[&str]) -> InstanceSpec {
        let mut command = vec!["/app".to_owned()];
        command.extend(words.iter().map(|word| (*word).to_owned()));
        InstanceSpec {
            id: id_of(app, number),
            content: Content::Image(self.image),
            command,
            env: BTreeMap::from([("TOKEN".to_owned(), Secret::new("s3cr3t-t0ken".to_owned()))]),
            secret_files: BTreeMap::new(),
            listens: false,
            resources: Resources::default(),
            volumes: BTreeMap::new(),
            log_folder: self.logs(app, number),
            is_job: false,
            sandbox: Sandbox::default(),
            container: options(&[]),
        }
    }

    pub(crate) fn logs(&self, app: &str, number: u64) -> PathBuf {
        self.folder
            .path()
            .join("logs")
            .join(app)
            .join(number.to_string())
    }

    /// All lines of an instance's log, without instants: `o text`.
    pub(crate) fn log(&self, number: u64) -> Vec<String> {
        let segments = landfast_target_process::logs::segments(&self.logs("shop", number)).unwrap();
        let text: String = segments
            .iter()
            .map(|(_, path)| fs::read_to_string(path).unwrap())
            .collect();
        text.lines()
            .filter_map(|line| Some(line.split_once(' ')?.1.to_owned()))
            .collect()
    }

    pub(crate) async fn start(
        &self,
        target: &DockerTarget,
        number: u64,
        words: &[&str],
    ) -> Observed {
        target
            .start(fence(1), &self.spec(number, words))
            .await
            .unwrap()
    }

    /// Runs words to their end, and gives what they wrote.
    pub(crate) async fn lines(&self, target: &DockerTarget, spec: &InstanceSpec) -> Vec<String> {
        target.start(fence(1), spec).await.unwrap();
        target.wait(&spec.id).await.unwrap();
        let segments = landfast_target_process::logs::segments(&spec.log_folder).unwrap();
        let text: String = segments
            .iter()
            .map(|(_, path)| fs::read_to_string(path).unwrap())
            .collect();
        text.lines()
            .filter_map(|line| Some(line.split_once("Z ")?.1[2..].to_owned()))
            .collect()
    }
}

pub(crate) fn options(stores: &[&str]) -> ContainerOptions {
    let join = |network| NetworkJoin {
        network,
        aliases: vec!["app".to_owned()],
    };
    let stores = stores
        .iter()
        .map(|name| join(ContainerNetwork::Store(StoreName::new(name).unwrap())));
    ContainerOptions {
        port: Some(PORT),
        networks: std::iter::once(join(ContainerNetwork::Environment))
            .chain(stores)
            .collect(),
        ..Default::default()
    }
}

pub(crate) fn id_of(app: &str, number: u64) -> InstanceRef {
    InstanceRef {
        scope: Scope {
            app: app.parse().unwrap(),
            environment: "production".parse().unwrap(),
        },
        instance: InstanceId::new("api", ReleaseId(1), number),
    }
}

pub(crate) fn id(number: u64) -> InstanceRef {
    id_of("shop", number)
}

pub(crate) fn fence(revision: u64) -> Fence {
    Fence {
        generation: Generation(1),
        revision,
    }
}

/// The app with the libraries it is linked to.
fn content(folder: &Path) -> PathBuf {
    let content = folder.join("image");
    fs::create_dir(&content).unwrap();
    fs::copy(APP, content.join("app")).unwrap();
    for name in ["etc", "tmp", "run", "volumes"] {
        fs::create_dir(content.join(name)).unwrap();
    }
    // As images have it: Podman gives memory at `/tmp` the mode that is there.
    fs::set_permissions(content.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(
        content.join("etc/passwd"),
        "root:x:0:0::/:/\nweb:x:4711:4711::/:/\n",
    )
    .unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "the linker's own tool says what it needs"
    )]
    let told = std::process::Command::new("ldd").arg(APP).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    for path in told.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = content.join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(path, place).unwrap();
    }
    content
}

impl Subject for World {
    fn open(&self) -> Arc<dyn Target> {
        self.target()
    }

    fn content(&self) -> Content {
        Content::Image(self.image)
    }

    fn program(&self) -> String {
        "/app".to_owned()
    }

    fn log_folder(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    fn container(&self) -> ContainerOptions {
        options(&[])
    }

    fn children_get_the_grace(&self) -> bool {
        false
    }

    fn may_be_given(&self, address: SocketAddr) -> bool {
        address.port() == PORT && self.dockerd.gives(address.ip())
    }
}

/// Waits until something holds, for so long that only what is broken never does.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} never came true");
}
