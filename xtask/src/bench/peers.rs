//! The proxies: each with one worker on one core, two upstreams with pools of kept connections, forwarded headers,
//! and no access log.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use landfast_routing::{
    admission::Admission,
    snapshot::{
        Backend, BackendState, Certificate, EjectionPolicy, Group, Mode, Protocol, RetryPolicy,
        Route, RouteAnswers, RouteLimits, RouteTimeouts, Service, Snapshot,
    },
};
use landfast_types::{Fence, Generation, ReleaseId};

use super::machine::{PROXY_CORE, Tree, pinned};
use crate::live::wait_until;

/// Who is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Nginx,
    Haproxy,
    Caddy,
    Landfast,
    /// With its access log on.
    LandfastLogging,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Nginx,
        Self::Haproxy,
        Self::Caddy,
        Self::Landfast,
        Self::LandfastLogging,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
            Self::Landfast => "landfast",
            Self::LandfastLogging => "landfast+log",
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Nginx => 0,
            Self::Haproxy => 1,
            Self::Caddy => 2,
            Self::Landfast => 3,
            Self::LandfastLogging => 4,
        }
    }
}

/// What all peers have in common.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) folder: PathBuf,
    pub(crate) landfast: PathBuf,
    /// The first of the ports of this run.
    pub(crate) port: u16,
}

impl Stage {
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    pub(crate) fn backends(&self) -> [SocketAddr; 2] {
        [self.port, self.port + 1].map(|port| ([127, 0, 0, 1], port).into())
    }
}

/// A proxy that runs.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) tree: Tree,
}

impl Peer {
    pub(crate) fn start(kind: Kind, stage: &Stage) -> anyhow::Result<Self> {
        let port = stage.port + 2 + 2 * kind.number();
        let (http, https) = (port, port + 1);
        let folder = stage.folder.join(kind.name());
        fs::create_dir_all(&folder)?;
        let log = File::create(folder.join("stderr.log"))?;
        let mut command = match kind {
            Kind::Nginx => nginx(stage, &folder, http, https)?,
            Kind::Haproxy => haproxy(stage, &folder, http, https)?,
            Kind::Caddy => caddy(stage, &folder, http, https)?,
            Kind::Landfast => landfast(stage, &folder, http, https, false)?,
            Kind::LandfastLogging => landfast(stage, &folder, http, https, true)?,
        };
        command.stdout(Stdio::null()).stderr(log);
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut peer = Self {
            kind,
            http: address(http),
            https: address(https),
            tree: Tree::start(&mut command)?,
        };
        let (http, https) = (peer.http, peer.https);
        let mut ended = false;
        let answers = wait_until(kind.name(), Duration::from_secs(10), || {
            ended = !matches!(peer.tree.child().try_wait(), Ok(None));
            ended
                || [http, https]
                    .iter()
                    .all(|address| TcpStream::connect(address).is_ok())
        });
        let said = || fs::read_to_string(folder.join("stderr.log")).unwrap_or_default();
        answers.with_context(said)?;
        anyhow::ensure!(!ended, "{} ended at its start:\n{}", kind.name(), said());
        Ok(peer)
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write `{}`", path.display()))
}

fn nginx(stage: &Stage, folder: &Path, http: u16, https: u16) -> anyhow::Result<Command> {
    let [first, second] = stage.backends();
    let (at, shared) = (folder.display(), stage.folder.display());
    // Temporary files off: the largest answer is larger than the default buffers, and a disk is not what is compared.
    let text = format!(
        r#"daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {at}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 19500; }}
http {{
  access_log off;
  server_tokens off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  client_body_temp_path {at}/body;
  proxy_temp_path {at}/proxy;
  fastcgi_temp_path {at}/fastcgi;
  uwsgi_temp_path {at}/uwsgi;
  scgi_temp_path {at}/scgi;
  proxy_max_temp_file_size 0;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_certificate {shared}/cert.pem;
  ssl_certificate_key {shared}/key.pem;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream backends {{
    server {first};
    server {second};
    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{http} backlog=4096;
    listen 127.0.0.1:{https} ssl http2 backlog=4096;
    http2_max_concurrent_streams 256;
    location / {{
      proxy_pass http://backends;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
    }}
  }}
}}
"#
    );
    let path = folder.join("nginx.conf");
    write(&path, &text)?;
    let mut command = pinned(PROXY_CORE, "nginx");
    command.arg("-p").arg(folder).arg("-c").arg(path);
    command.args(["-e", "stderr"]);
    Ok(command)
}

fn haproxy(stage: &Stage, folder: &Path, http: u16, https: u16) -> anyhow::Result<Command> {
    let [first, second] = stage.backends();
    let shared = stage.folder.display();
    let text = format!(
        r#"global
  nbthread 1
  maxconn 9900
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
  timeout http-keep-alive 1h
  http-reuse always
  option forwardfor
frontend all
  bind 127.0.0.1:{http} backlog 4096
  bind 127.0.0.1:{https} backlog 4096 ssl crt {shared}/both.pem alpn h2,http/1.1
  http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
  http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  default_backend backends
backend backends
  balance roundrobin
  server first {first}
  server second {second}
"#
    );
    let path = folder.join("haproxy.cfg");
    write(&path, &text)?;
    let mut command = pinned(PROXY_CORE, "haproxy");
    command.arg("-db").arg("-f").arg(path);
    Ok(command)
}

fn caddy(stage: &Stage, folder: &Path, http: u16, https: u16) -> anyhow::Result<Command> {
    let [first, second] = stage.backends();
    let (at, shared) = (folder.display(), stage.folder.display());
    let text = format!(
        r#"{{
  admin off
  auto_https off
  default_sni localhost
  storage file_system {at}/storage
}}
(upstreams) {{
  reverse_proxy {first} {second} {{
    lb_policy round_robin
    transport http {{
      keepalive_idle_conns_per_host 256
    }}
  }}
}}
http://:{http} {{
  bind 127.0.0.1
  import upstreams
}}
https://:{https} {{
  bind 127.0.0.1
  tls {shared}/cert.pem {shared}/key.pem
  import upstreams
}}
"#
    );
    let path = folder.join("Caddyfile");
    write(&path, &text)?;
    let mut command = pinned(PROXY_CORE, "caddy");
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(path);
    command.env("GOMAXPROCS", "1").env("HOME", folder);
    Ok(command)
}

fn landfast(
    stage: &Stage,
    folder: &Path,
    http: u16,
    https: u16,
    logs: bool,
) -> anyhow::Result<Command> {
    let routes = folder.join("routes.json");
    // The last good routes: a proxy without a server serves them.
    write(&routes, &serde_json::to_string(&snapshot(stage)?)?)?;
    let mut command = pinned(PROXY_CORE, &stage.landfast);
    command
        .args(["proxy", "--threads", "1"])
        .args(["--http", &format!("127.0.0.1:{http}")])
        .args(["--https", &format!("127.0.0.1:{https}")])
        .arg("--control")
        .arg(folder.join("proxy.sock"))
        .arg("--routes")
        .arg(routes);
    if logs {
        command.arg("--access-log").arg(folder.join("access.log"));
    }
    Ok(command)
}

fn snapshot(stage: &Stage) -> anyhow::Result<Snapshot> {
    let key: landfast_types::ServiceKey = "bench/production/api".parse()?;
    let backends = stage.backends().into_iter().enumerate();
    let backends = backends.map(|(number, address)| Backend {
        id: format!("bench/production/api.r1.{number}"),
        address,
        state: BackendState::Serving,
    });
    let service = Service {
        mode: Mode::Serve,
        groups: vec![Group {
            release: ReleaseId(1),
            weight: 1,
            backends: backends.collect(),
        }],
        preview: None,
        protocol: Protocol::default(),
        sticky: false,
        health: None,
        retry: RetryPolicy {
            attempts_max: 1,
            budget_percent: 20,
        },
        ejection: EjectionPolicy {
            failures: 5,
            first_ms: 10_000,
            max_ms: 300_000,
        },
        slow_start_ms: 0,
    };
    let route = Route {
        name: "bench/production/public".into(),
        host: "*".into(),
        path: "/".into(),
        service: key.clone(),
        websocket: true,
        https_only: false,
        limits: RouteLimits {
            body_bytes_max: 100 << 20,
        },
        timeouts: RouteTimeouts {
            connect_ms: 5_000,
            first_byte_ms: 60_000,
            body_idle_ms: 60_000,
        },
        admission: Admission::default(),
        answers: RouteAnswers::default(),
    };
    Ok(Snapshot {
        version: landfast_routing::snapshot::SNAPSHOT_VERSION,
        fence: Fence {
            generation: Generation(1),
            revision: 1,
        },
        routes: vec![route],
        services: BTreeMap::from([(key, service)]),
        certificates: vec![Certificate {
            hosts: vec!["localhost".into()],
            chain_path: stage.certificate().display().to_string(),
            key_path: stage.folder.join("key.pem").display().to_string(),
        }],
        ..Snapshot::default()
    })
}
