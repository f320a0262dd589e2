//! Which app, which environment, which server: what nearly every command needs first.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use landfast_client::{Client, Place};
use landfast_types::{AppName, EnvironmentName, Scope};

use crate::{
    args::Global,
    exit::{Exit, Failure},
    manifest,
    out::Printer,
    tunnel::{HostUrl, Tunnel},
};

/// A connection to a server, and the tunnel it goes through where there is one.
pub(crate) struct Connection {
    pub(crate) client: Client,
    tunnel: Option<Tunnel>,
}

impl Connection {
    /// Whether it goes through ssh.
    pub(crate) fn is_tunnelled(&self) -> bool {
        self.tunnel.is_some()
    }

    /// Ends the tunnel.
    pub(crate) async fn close(self) {
        if let Some(tunnel) = self.tunnel {
            tunnel.close().await;
        }
    }
}

/// The environment that was asked for.
pub(crate) fn environment(global: &Global) -> EnvironmentName {
    let default = || EnvironmentName::new(landfast_spec::ENVIRONMENT_DEFAULT);
    match &global.environment {
        Some(environment) => environment.clone(),
        None => default().expect("the default is a name"),
    }
}

/// The app and environment that were asked for. Without `--app` the manifest names the app, even one with errors.
pub(crate) fn scope(global: &Global) -> Result<Scope, Failure> {
    let environment = environment(global);
    if let Some(app) = &global.app {
        return Ok(Scope {
            app: app.clone(),
            environment,
        });
    }
    let text = manifest::read(&global.file)?;
    let app = manifest::app_line(&text)
        .and_then(|app| AppName::new(app).ok())
        .ok_or_else(|| {
            let error = anyhow!("`{}` does not name its app", global.file.display());
            Failure::new(Exit::ManifestInvalid, error).hint("run `landfast check`, or pass `--app`")
        })?;
    Ok(Scope { app, environment })
}

/// Connects to the server that was asked for, through ssh where it is on another host.
pub(crate) async fn connect(printer: &Printer, global: &Global) -> Result<Connection, Failure> {
    let actor = Some(user_name());
    let (place, title, tunnel) = match &global.host {
        None => (Place::Unix(socket(global)), None, None),
        Some(HostUrl::Tcp(address)) => (Place::Tcp(*address), None, None),
        Some(HostUrl::Ssh(target)) => {
            let tunnel = Tunnel::open(*printer, target.clone()).await?;
            (
                Place::Unix(tunnel.socket().to_owned()),
                Some(target.to_string()),
                Some(tunnel),
            )
        }
    };
    printer.detail(&format!(
        "server: {}",
        title.clone().unwrap_or_else(|| place.to_string())
    ));
    Ok(Connection {
        client: Client::build(place, title, actor),
        tunnel,
    })
}

/// Who asks, for the history. Cron and services have no `USER`.
fn user_name() -> String {
    if let Some(user) = std::env::var("USER").ok().filter(|user| !user.is_empty()) {
        return user;
    }
    let user = rustix::process::getuid().as_raw();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    // name:password:uid:…, passwd(5).
    let mut names = accounts.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?);
        (uid.parse() == Ok(user)).then(|| name.to_owned())
    });
    names.next().unwrap_or_else(|| format!("user {user}"))
}

fn socket(global: &Global) -> PathBuf {
    if let Some(socket) = &global.socket {
        return socket.clone();
    }
    let own = run_folder().join(SOCKET_NAME);
    // A user who runs no server of their own means the host's.
    let of_host = Path::new(RUN_FOLDER_ROOT).join(SOCKET_NAME);
    if !own.exists() && of_host.exists() {
        of_host
    } else {
        own
    }
}

/// The server's socket in its run folder.
pub(crate) const SOCKET_NAME: &str = "landfast.sock";
const RUN_FOLDER_ROOT: &str = "/run/landfast";
const STATE_FOLDER_ROOT: &str = "/var/lib/landfast";

/// The run folder of this user's server.
pub(crate) fn run_folder() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from(RUN_FOLDER_ROOT);
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    let runtime = runtime.map_or_else(
        || format!("/run/user/{}", user.as_raw()).into(),
        PathBuf::from,
    );
    runtime.join("landfast")
}

/// The state folder of this user's server.
pub(crate) fn state_folder() -> io::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(STATE_FOLDER_ROOT));
    }
    let folder = |name| {
        std::env::var_os(name)
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
    };
    if let Some(state) = folder("XDG_STATE_HOME") {
        return Ok(state.join("landfast"));
    }
    let home = folder("HOME").ok_or_else(|| io::Error::other("HOME is not set"))?;
    Ok(home.join(".local/state/landfast"))
}

/// A key for a request that must be done once. 128 random bits: two never meet.
pub(crate) fn idempotency_key() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The commit of the git checkout a folder is in, read from its files.
pub(crate) fn git_commit(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let git = folder
        .ancestors()
        .map(|folder| folder.join(".git"))
        .find(|git| git.exists())?;
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    // A worktree's or submodule's `.git` is a file that names the folder.
    let git = match read(git.clone())
        .as_deref()
        .and_then(|text| text.strip_prefix("gitdir: "))
    {
        Some(named) => git.parent()?.join(named.trim()),
        None => git,
    };
    let head = read(git.join("HEAD"))?;
    let commit = match head.trim().strip_prefix("ref: ") {
        None => head.trim().to_owned(),
        Some(name) => {
            let common = read(git.join("commondir")).map(|common| git.join(common.trim()));
            let common = common.unwrap_or_else(|| git.clone());
            let loose = read(git.join(name)).or_else(|| read(common.join(name)));
            match loose {
                Some(commit) => commit.trim().to_owned(),
                None => {
                    let packed = read(common.join("packed-refs"))?;
                    let line = packed
                        .lines()
                        .find(|line| line.ends_with(&format!(" {name}")))?;
                    line.split(' ').next()?.to_owned()
                }
            }
        }
    };
    commit
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then_some(commit)
}

/// The folder a manifest's paths begin in.
pub(crate) fn manifest_folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Runs blocking work beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let result = tokio::task::spawn_blocking(work).await;
    Ok(result.context("a helper thread panicked")?)
}
