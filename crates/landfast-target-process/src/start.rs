//! Starting an instance: everything that can be refused is refused before a shim is ordered.

use std::{
    io, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio,
    time::Duration,
};

use landfast_shim::{
    MARK_VARIABLE, find_program,
    wire::{LogSettings, Report, SecretsOrder, ShimOrder},
};
use landfast_target::{Content, InstanceSpec, Observed, StartError};
use landfast_types::{Fence, Secret};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use crate::{
    ProcessTarget, blocking,
    folder::Folder,
    jail, observed,
    ports::{self, Used},
};

/// A shim answers in milliseconds; one that takes longer is stuck, on a disk that hangs, say.
const REPORT_WAIT_MAX: Duration = Duration::from_secs(30);

impl ProcessTarget {
    pub(crate) async fn start_process(
        &self,
        order: Fence,
        spec: &InstanceSpec,
    ) -> Result<Observed, StartError> {
        self.take_generation(order)
            .await
            .map_err(failed("read the generation of orders"))??;
        let folder = self.folder(&spec.id);
        let _starting = self.lock(&folder).await;
        let observe = || format!("observe instance `{}`", spec.id.instance);
        if let Some((state, _)) = folder.observe().await.map_err(failed(observe()))? {
            return Ok(observed(&state));
        }
        let mut shim_order = self.compose(order, spec, &folder).await?;
        let reserved = self.reserve_port(spec, &mut shim_order).await?;
        let started = self.order_shim(&shim_order).await;
        drop(shim_order);
        if let Some(port) = reserved {
            self.ports
                .lock()
                .expect("nobody panics while holding it")
                .release(port);
        }
        match started.map_err(failed("start a shim"))? {
            Report::Started { state } => Ok(observed(&state)),
            // A shim that an earlier server ordered was faster.
            Report::Already => match folder.observe().await.map_err(failed(observe()))? {
                Some((state, _)) => Ok(observed(&state)),
                None => Err(failed(observe())(io::Error::other(
                    "it left without a trace",
                ))),
            },
            Report::Failed { reason } => Err(failed("start a shim")(io::Error::other(reason))),
        }
    }

    async fn compose(
        &self,
        order: Fence,
        spec: &InstanceSpec,
        folder: &Folder,
    ) -> Result<ShimOrder, StartError> {
        let Content::Artifact(artifact) = spec.content else {
            return Err(StartError::NoContainers);
        };
        let Some(cwd) = self.settings.store.path(&artifact) else {
            return Err(StartError::ArtifactMissing(artifact));
        };
        let path = spec.env.get("PATH").map(|path| path.reveal().as_str());
        let command = spec.command.first().cloned().unwrap_or_default();
        let Some(program) = find_program(&command, &cwd, path) else {
            return Err(StartError::CommandMissing { command });
        };
        let mut env = spec.env.clone();
        for (name, path) in &spec.volumes {
            let variable = format!("VOLUME_{}", name.to_uppercase().replace('-', "_"));
            env.insert(variable, Secret::new(path.to_string_lossy().into_owned()));
        }
        let (made, spec_of_jail) = (folder.clone(), spec.clone());
        let (settings, users) = (self.settings.clone(), self.users.clone());
        let made = blocking(move || {
            made.make()?;
            make_open(&settings.temporary)?;
            let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
            let mark = format!("{}.{}", made.key(), random.trim());
            let wanted = spec_of_jail.confinement();
            let jail = jail::order(&settings, users.as_deref(), &wanted, Some(&mark))?;
            Ok((mark, jail))
        });
        let (mark, jail) = made
            .await
            .map_err(failed("make the folders of the instance"))?;
        env.insert(MARK_VARIABLE.to_owned(), Secret::new(mark.clone()));
        let secrets = (!spec.secret_files.is_empty()).then(|| SecretsOrder {
            folder: self.settings.secrets().join(&mark),
            files: spec.secret_files.clone(),
        });
        for (name, path) in secrets.iter().flat_map(|secrets| {
            let names = secrets.files.keys();
            names.map(|name| (name, secrets.folder.join(name)))
        }) {
            // What the manifest says of the variable, it means.
            let path = || Secret::new(path.to_string_lossy().into_owned());
            env.entry(format!("{name}_FILE")).or_insert_with(path);
        }
        let logs = LogSettings {
            folder: spec.log_folder.clone(),
            segment_bytes_max: self.settings.log_segment_bytes_max,
            segments_kept: self.settings.log_segments_kept,
        };
        let grace = self.settings.shutdown_grace.as_millis();
        Ok(ShimOrder {
            scope: spec.id.scope.clone(),
            instance: spec.id.instance.clone(),
            fence: order,
            folder: folder.path().to_owned(),
            program,
            argv: spec.command.clone(),
            env,
            cwd,
            address: None,
            is_job: spec.is_job,
            mark,
            logs,
            grace_ms: u64::try_from(grace).unwrap_or(u64::MAX),
            stop_signal: None,
            jail: Some(jail),
            secrets,
        })
    }

    async fn reserve_port(
        &self,
        spec: &InstanceSpec,
        order: &mut ShimOrder,
    ) -> Result<Option<u16>, StartError> {
        if !spec.listens {
            return Ok(None);
        }
        let run = self.settings.run.clone();
        let used = blocking(move || Used::scan(&run)).await;
        let used = used.map_err(failed("read the ports of other instances"))?;
        let (reserved, (from, to)) = {
            let mut ports = self.ports.lock().expect("nobody panics while holding it");
            (ports.reserve(&used), ports.range())
        };
        let port = reserved.ok_or(StartError::NoPort { from, to })?;
        let address: SocketAddr = ports::address(port);
        order.address = Some(address);
        order
            .env
            .insert("HOST".to_owned(), Secret::new(address.ip().to_string()));
        order
            .env
            .insert("PORT".to_owned(), Secret::new(port.to_string()));
        Ok(Some(port))
    }

    /// Starts `landfast shim` and hands it the order, which is nowhere but in that pipe.
    pub(crate) async fn order_shim(&self, order: &ShimOrder) -> io::Result<Report> {
        let name = format!("{}/{}", order.scope, order.instance);
        let mut child = command(&self.settings.executable)
            // The name is for people who read the process table.
            .args(["shim", &name])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let text = to_json(order)?;
        let mut stdin = child.stdin.take().expect("it was asked for above");
        let mut stdout = child.stdout.take().expect("it was asked for above");
        let mut line = Vec::new();
        let talk = async {
            // A shim that refuses early reads no more; its answer says why.
            let written = stdin.write_all(text.reveal()).await;
            drop(stdin);
            stdout.read_to_end(&mut line).await?;
            // What was started ends at once, having left the shim to init.
            child.wait().await?;
            io::Result::Ok(written)
        };
        let written = match tokio::time::timeout(REPORT_WAIT_MAX, talk).await {
            Ok(talked) => talked?,
            Err(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it does not answer",
                ));
            }
        };
        if line.is_empty() {
            written?;
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it left without an answer",
            ));
        }
        serde_json::from_slice(&line).map_err(io::Error::other)
    }
}

/// Makes a folder that others may pass through but not look into.
pub(crate) fn make_open(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
}

/// The order as JSON, in memory that is wiped and was never moved: it is as large as it may become from the start.
fn to_json(order: &ShimOrder) -> io::Result<Secret<Vec<u8>>> {
    // One byte becomes six at most (`\u0000`).
    let env = order
        .env
        .iter()
        .map(|(name, value)| (name.len() + value.reveal().len()) * 6 + 8);
    let files = order.secrets.iter().flat_map(|secrets| &secrets.files);
    let files = files.map(|(name, value)| (name.len() + value.reveal().len()) * 6 + 8);
    let argv = order.argv.iter().map(|word| word.len() * 6 + 8);
    let len = env.chain(files).chain(argv).sum::<usize>();
    let mut text = Vec::with_capacity(len + (64 << 10));
    serde_json::to_writer(&mut text, order).map_err(io::Error::other)?;
    Ok(Secret::new(text))
}

pub(crate) fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let doing = doing.into();
    move |source| StartError::Io { doing, source }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the process target is where shims are started"
)]
pub(crate) fn command(executable: &Path) -> Command {
    Command::new(executable)
}
