//! One host: state folder, run folder, server, proxy and instances.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{
    Build, command,
    process::{is_alive, kill, replace_file, share, signal, spawn, wait_until},
    scratch,
};

/// How a host is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostSettings {
    /// Further arguments of `landfast server`: the controls of the proofs.
    pub(crate) server_arguments: Vec<String>,
    /// Run a copy of the binary, which can be replaced as an operator does.
    pub(crate) own_binary: bool,
    /// The server is in a session of its own, as a service is, and the command line gives way to it as one on another
    /// machine would: with autogroups (`sched(7)`) the sessions of a host share its cores evenly.
    pub(crate) apart: bool,
    /// The daemon containers run on and images are built by.
    pub(crate) docker: Option<String>,
}

/// A host that is ended when this value is dropped.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) folder: PathBuf,
    pub(crate) http: u16,
    pub(crate) preview: u16,
    landfast: PathBuf,
    settings: HostSettings,
    server: Option<Child>,
    https: u16,
    keep: bool,
}

impl Host {
    /// Starts a server with an empty state folder.
    pub(crate) fn start(build: &Build, name: &str, settings: HostSettings) -> anyhow::Result<Self> {
        let folder = scratch(name)?;
        let landfast = if settings.own_binary {
            let copy = folder.join("bin/landfast");
            replace_file(&build.landfast(), &copy)?;
            copy
        } else {
            build.landfast()
        };
        let mut host = Self {
            landfast,
            http: free_port()?,
            https: free_port()?,
            preview: free_port()?,
            settings,
            folder,
            server: None,
            keep: std::env::var_os("LANDFAST_KEEP").is_some(),
        };
        host.start_server()?;
        Ok(host)
    }

    /// The binary it runs.
    pub(crate) fn landfast(&self) -> &Path {
        &self.landfast
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// The folder a volume of the default kind lies in.
    pub(crate) fn volume(&self, app: &str, environment: &str, name: &str) -> PathBuf {
        self.state()
            .join("volumes")
            .join(app)
            .join(environment)
            .join(name)
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn start_server(&mut self) -> anyhow::Result<Duration> {
        self.spawn_server()?;
        let answered = wait_until("the server answers", Duration::from_secs(30), || {
            self.quiet(&["status", "--host-info", "--json"])
        });
        answered.with_context(|| self.server_log())
    }

    /// Starts the server without waiting.
    pub(crate) fn spawn_server(&mut self) -> anyhow::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("server.log"))?;
        let mut server = self.program();
        server
            .args(["server", "--state"])
            .arg(self.state())
            .arg("--run")
            .arg(self.run())
            .args(["--http", &format!("127.0.0.1:{}", self.http)])
            .args(["--https", &format!("127.0.0.1:{}", self.https)])
            .args(["--preview", &format!("127.0.0.1:{}", self.preview)])
            .args(["--docker", self.settings.docker.as_deref().unwrap_or("off")])
            .args(&self.settings.server_arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.server = Some(spawn(&mut server)?);
        Ok(())
    }

    /// The last lines the server wrote.
    pub(crate) fn server_log(&self) -> String {
        let text = fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// The server's process.
    pub(crate) fn server_pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// kill -9 of the server.
    pub(crate) fn kill_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            drop(server.kill());
            drop(server.wait());
        }
    }

    /// Runs the command line in a folder and gives what it printed.
    pub(crate) fn cli(&self, folder: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
        // In front: behind a `--` it would be another program's.
        let mut cli = self.program();
        cli.arg("--socket")
            .arg(self.run().join("landfast.sock"))
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(docker) = &self.settings.docker {
            cli.env("DOCKER_HOST", docker);
        }
        let started = spawn(&mut cli)?;
        if self.settings.apart {
            share(started.id(), 19);
        }
        let output = started.wait_with_output();
        output.with_context(|| format!("failed to run landfast {arguments:?}"))
    }

    fn program(&self) -> Command {
        if !self.settings.apart {
            return command(&self.landfast);
        }
        let mut apart = command("setsid");
        apart.arg(&self.landfast);
        apart
    }

    /// Runs a command that must succeed, and reads its JSON.
    pub(crate) fn json(&self, folder: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let output = self.cli(folder, &arguments)?;
        let shown = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "landfast {arguments:?} failed: {}",
            shown.trim()
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("landfast {arguments:?} printed no JSON"))
    }

    fn quiet(&self, arguments: &[&str]) -> bool {
        self.cli(&self.folder, arguments)
            .is_ok_and(|output| output.status.success())
    }

    /// What the proxy says of itself.
    pub(crate) fn proxy_status(&self) -> anyhow::Result<Value> {
        let output = command("curl")
            .args(["-sS", "--max-time", "10", "--unix-socket"])
            .arg(self.run().join("proxy.sock"))
            .arg("http://proxy/status")
            .output()
            .context("failed to run curl")?;
        serde_json::from_slice(&output.stdout).context("the proxy does not say how it is")
    }

    /// The instances in the proxy's own routing table that get new requests.
    pub(crate) fn routed(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut stream = UnixStream::connect(self.run().join("proxy.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /snapshot HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer
            .split_once("\r\n\r\n")
            .context("the proxy's answer has no end of its head")?;
        let table: Value = serde_json::from_str(body).context("the proxy's table is no JSON")?;
        let services = table["services"].as_object().into_iter().flatten();
        let groups = services.flat_map(|(_, service)| service["groups"].as_array());
        let backends = groups
            .flatten()
            .filter_map(|group| group["backends"].as_array());
        let serving = backends
            .flatten()
            .filter(|backend| backend["state"]["kind"] == "serving");
        let ids = serving.filter_map(|backend| backend["id"].as_str()?.rsplit('/').next());
        Ok(ids.map(str::to_owned).collect())
    }

    /// The processes of the proxy: its holder, and the worker that serves.
    pub(crate) fn proxy(&self) -> anyhow::Result<(u32, u32)> {
        let status = self.proxy_status()?;
        let pid = |key: &str| status[key].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let holder = pid("holder_pid").context("no holder of the proxy runs")?;
        Ok((holder, pid("pid").context("the proxy has no worker")?))
    }

    /// Puts another copy of the binary in its place and hands the proxy over to it. Gives the status of the new worker.
    pub(crate) fn hand_over(&self, build: &Build) -> anyhow::Result<Value> {
        let before = self.proxy_status()?;
        replace_file(&build.landfast(), &self.landfast)?;
        let holder = before["holder_pid"].as_u64().unwrap_or_default();
        signal(u32::try_from(holder)?, "-HUP");
        wait_until(
            "another worker and another holder",
            Duration::from_secs(30),
            || {
                self.proxy_status().is_ok_and(|status| {
                    status["boot"] != before["boot"] && status["holder_pid"] != before["holder_pid"]
                })
            },
        )?;
        self.proxy_status()
    }

    /// Workers of the proxy that were replaced and keep something.
    pub(crate) fn elders(&self) -> Vec<u32> {
        let status = self.proxy_status().unwrap_or_default();
        let elders = status["elders"].as_array().into_iter().flatten();
        elders
            .filter_map(|elder| {
                elder["pid"]
                    .as_u64()
                    .and_then(|pid| u32::try_from(pid).ok())
            })
            .collect()
    }

    /// The instances with their processes: id, shim, instance.
    pub(crate) fn instances(&self) -> Vec<(String, u32, u32)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.run().join("i"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let text = fs::read_to_string(entry.path().join("state.json")).unwrap_or_default();
            let Ok(state) = serde_json::from_str::<Value>(&text) else {
                continue;
            };
            let pid = |key: &str| state[key]["pid"].as_u64().map(|pid| pid as u32);
            let (Some(shim), Some(main)) = (pid("shim"), pid("main")) else {
                continue;
            };
            let id = state["instance"].as_str().unwrap_or_default().to_owned();
            if is_alive(shim) {
                found.push((id, shim, main));
            }
        }
        found.sort();
        found
    }

    /// kill -9 of everything: server, proxy, shims and instances.
    pub(crate) fn kill_everything(&mut self) -> Vec<u32> {
        let instances = self.instances();
        self.kill_server();
        let mut killed = Vec::new();
        if let Ok((holder, worker)) = self.proxy() {
            killed.extend([holder, worker]);
        }
        for (_, shim, main) in instances {
            killed.extend([shim, main]);
        }
        // A host that is lost stops all at once: nobody sees another die and answers it.
        killed.iter().for_each(|pid| signal(*pid, "-STOP"));
        killed.iter().for_each(|pid| kill(*pid));
        killed
    }

    /// Ends everything as an operator would, then makes sure of it.
    pub(crate) fn end(&mut self) {
        if let Some(server) = &self.server {
            signal(server.id(), "-TERM");
        }
        if let Some(mut server) = self.server.take() {
            let ended = wait_until("the server ends", Duration::from_secs(10), || {
                matches!(server.try_wait(), Ok(Some(_)))
            });
            if ended.is_err() {
                drop(server.kill());
                drop(server.wait());
            }
        }
        let instances = self.instances();
        let proxy = self.proxy().ok();
        let elders = self.elders();
        if let Some((holder, _)) = proxy {
            signal(holder, "-TERM");
        }
        for (_, shim, _) in &instances {
            signal(*shim, "-TERM");
        }
        let all: Vec<u32> = instances
            .iter()
            .flat_map(|(_, shim, main)| [*shim, *main])
            .chain(
                proxy
                    .into_iter()
                    .flat_map(|(holder, worker)| [holder, worker]),
            )
            .chain(elders)
            .collect();
        let gone = wait_until("all processes end", Duration::from_secs(15), || {
            all.iter().all(|pid| !is_alive(*pid))
        });
        if gone.is_err() {
            all.iter()
                .filter(|pid| is_alive(**pid))
                .for_each(|pid| kill(*pid));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
        if self.keep || std::thread::panicking() {
            eprintln!("kept: {}", self.folder.display());
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}

/// A port nobody listens on just now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr()?.port())
}
