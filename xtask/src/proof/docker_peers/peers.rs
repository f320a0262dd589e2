//! Landfast, docker-compose and Swarm, each with three replicas of the example on a daemon of its own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use landfast_testbed::Dockerd;

use super::{HOST, Peer, REPLICAS};
use crate::live::{
    App, AppSettings, Build, Content, Host, HostSettings, command, program_folder, wait_until,
};

const COMPOSE: &str = include_str!("compose.yaml");
const STACK: &str = include_str!("stack.yaml");
const NGINX_COMPOSE: &str = include_str!("nginx-compose.conf");
const NGINX_SWARM: &str = include_str!("nginx-swarm.conf");
/// Where both files publish nginx.
const PORT: u16 = 8080;
const START_MAX: Duration = Duration::from_secs(120);
const PROJECT: &str = "peers";

/// Ours.
pub(super) struct Landfast {
    host: Host,
    app: App,
}

impl Landfast {
    pub(super) fn start(
        build: &Build,
        docker: &Dockerd,
        min_ready: &str,
        deploy: &str,
    ) -> anyhow::Result<Self> {
        let settings = HostSettings {
            docker: Some(docker.address()),
            ..HostSettings::default()
        };
        let host = Host::start(build, "peers-host", settings)?;
        let settings = AppSettings {
            host: HOST.to_owned(),
            gates: r#"["preflight"]"#.to_owned(),
            min_ready: min_ready.to_owned(),
            deploy: deploy.to_owned(),
            replicas: REPLICAS as u32,
            content: Content::Image("flextime:1".to_owned()),
            ..AppSettings::default()
        };
        let app = App::new(&host, build, settings)?;
        let code = app.deploy(&host, "rolling", "seal")?;
        ensure!(code == 0, "the first deploy ended with exit code {code}");
        Ok(Self { host, app })
    }
}

impl Peer for Landfast {
    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.host.http))
    }

    fn receipts(&self) -> PathBuf {
        self.app.receipts(&self.host)
    }

    fn deploy(&mut self, release: u64) -> anyhow::Result<()> {
        self.app.settings.content = Content::Image(format!("flextime:{release}"));
        self.app.write_manifest()?;
        let code = self.app.deploy(&self.host, "rolling", "promotion")?;
        ensure!(code == 0, "the deploy ended with exit code {code}");
        Ok(())
    }
}

/// Debian's docker-compose.
pub(super) struct Compose<'a> {
    docker: &'a Dockerd,
    folder: PathBuf,
    /// New ones are started beside the old ones, which are stopped by hand.
    new_first: bool,
}

impl<'a> Compose<'a> {
    pub(super) fn start(
        docker: &'a Dockerd,
        folder: &Path,
        new_first: bool,
    ) -> anyhow::Result<Self> {
        nginx_image(docker, folder)?;
        fs::write(folder.join("compose.yaml"), COMPOSE)?;
        fs::write(folder.join("nginx-compose.conf"), NGINX_COMPOSE)?;
        fs::create_dir_all(folder.join("data"))?;
        let this = Self {
            docker,
            folder: folder.to_owned(),
            new_first,
        };
        this.compose(1, &["up", "--detach"])?;
        Ok(this)
    }

    fn compose(&self, release: u64, arguments: &[&str]) -> anyhow::Result<String> {
        let mut compose = command("docker-compose");
        compose
            .args(["--file", "compose.yaml", "--project-name", PROJECT])
            .args(arguments)
            .current_dir(&self.folder)
            .env("DOCKER_HOST", self.docker.address())
            .env("RELEASE", release.to_string())
            .env("DATA", self.folder.join("data"));
        output(compose, &format!("docker-compose {}", arguments.join(" ")))
    }

    fn reload(&self, release: u64) -> anyhow::Result<()> {
        let reload = ["exec", "-T", "nginx", "nginx", "-s", "reload"];
        self.compose(release, &reload).map(drop)
    }

    fn replace(&self, release: u64) -> anyhow::Result<()> {
        let listed = self.compose(release, &["ps", "--quiet", "api"])?;
        let old: Vec<&str> = listed.split_whitespace().collect();
        let scale = format!("api={}", 2 * REPLICAS);
        let up = [
            "up",
            "--detach",
            "--no-deps",
            "--no-recreate",
            "--scale",
            &scale,
            "api",
        ];
        self.compose(release, &up)?;
        let listed = self.compose(release, &["ps", "--quiet", "api"])?;
        let all = listed.split_whitespace();
        let new: Vec<&str> = all.filter(|id| !old.contains(id)).collect();
        ensure!(new.len() == REPLICAS, "{} were started", new.len());
        wait_until("the new ones are healthy", START_MAX, || {
            let ask = ["inspect", "--format", "{{.State.Health.Status}}"];
            let said = self.docker.docker(&[&ask[..], &new].concat());
            said.is_ok_and(|said| said.lines().all(|health| health == "healthy"))
        })?;
        self.reload(release)?;
        self.docker.docker(&[&["stop"], &old[..]].concat())?;
        self.docker.docker(&[&["rm"], &old[..]].concat())?;
        self.reload(release)
    }
}

impl Peer for Compose<'_> {
    fn address(&self) -> SocketAddr {
        published(self.docker)
    }

    fn receipts(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn deploy(&mut self, release: u64) -> anyhow::Result<()> {
        if self.new_first {
            return self.replace(release);
        }
        self.compose(release, &["up", "--detach"])?;
        self.reload(release)
    }
}

/// A Swarm of one node.
pub(super) struct Swarm<'a> {
    docker: &'a Dockerd,
    folder: PathBuf,
}

impl<'a> Swarm<'a> {
    pub(super) fn start(docker: &'a Dockerd, folder: &Path) -> anyhow::Result<Self> {
        nginx_image(docker, folder)?;
        fs::write(folder.join("stack.yaml"), STACK)?;
        fs::write(folder.join("nginx-swarm.conf"), NGINX_SWARM)?;
        fs::create_dir_all(folder.join("data"))?;
        let own = docker.host().to_string();
        docker.docker(&["swarm", "init", "--advertise-addr", &own])?;
        let mut deploy = docker.client()?;
        deploy
            .args(["stack", "deploy", "--resolve-image", "never"])
            .arg("--compose-file")
            .arg(folder.join("stack.yaml"))
            .arg(PROJECT)
            .env("RELEASE", "1")
            .env("DATA", folder.join("data"))
            .env("FOLDER", folder);
        output(deploy, "docker stack deploy")?;
        let this = Self {
            docker,
            folder: folder.to_owned(),
        };
        let ready = wait_until("Swarm's tasks run", START_MAX, || this.is_complete());
        ready.with_context(|| this.said())?;
        Ok(this)
    }

    fn is_complete(&self) -> bool {
        let listed = self
            .docker
            .docker(&["service", "ls", "--format", "{{.Replicas}}"]);
        let wanted = format!("{REPLICAS}/{REPLICAS}");
        listed.is_ok_and(|listed| {
            let mut counts: Vec<&str> = listed.lines().collect();
            counts.sort_unstable();
            counts == ["1/1", wanted.as_str()]
        })
    }

    /// Why its tasks do not run, in Docker's own words.
    fn said(&self) -> String {
        let ask = [
            "stack",
            "ps",
            "--no-trunc",
            "--format",
            "{{.Name}}: {{.CurrentState}} {{.Error}}",
            PROJECT,
        ];
        self.docker.docker(&ask).unwrap_or_default()
    }
}

impl Peer for Swarm<'_> {
    fn address(&self) -> SocketAddr {
        published(self.docker)
    }

    fn receipts(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn deploy(&mut self, release: u64) -> anyhow::Result<()> {
        let (image, service) = (format!("flextime:{release}"), format!("{PROJECT}_api"));
        let update = [
            "service",
            "update",
            "--quiet",
            "--no-resolve-image",
            "--image",
            &image,
            &service,
        ];
        self.docker.docker(&update)?;
        let state = ["inspect", "--format", "{{.UpdateStatus.State}}", &service];
        let state = self.docker.docker(&[&["service"], &state[..]].concat())?;
        ensure!(state == "completed", "the update is {state}");
        Ok(())
    }
}

fn published(docker: &Dockerd) -> SocketAddr {
    let address: Ipv4Addr = docker.host();
    SocketAddr::from((address, PORT))
}

/// `nginx:stable` of this machine's nginx.
fn nginx_image(docker: &Dockerd, scratch: &Path) -> anyhow::Result<()> {
    let folder = scratch.join("nginx");
    program_folder(&folder, &["/usr/sbin/nginx"])?;
    for name in ["var/log/nginx", "var/lib/nginx", "run", "tmp", "etc/nginx"] {
        fs::create_dir_all(folder.join(name))?;
    }
    fs::write(
        folder.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/false\n",
    )?;
    fs::write(folder.join("etc/group"), "root:x:0:\n")?;
    let lines = ["ENV PATH=/usr/sbin:/usr/bin"];
    docker.import("nginx:stable", &folder, &lines)?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Runs a program that must succeed, and gives what it printed.
fn output(mut program: std::process::Command, what: &str) -> anyhow::Result<String> {
    let output = program
        .output()
        .with_context(|| format!("failed to start {what}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{what}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
