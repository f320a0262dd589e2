//! Commands beside a running container, in it and with its environment.

use std::{io, sync::Arc, time::Duration};

use bollard::{
    container::LogOutput,
    exec::{StartExecOptions, StartExecResults},
    models::ExecConfig,
};
use futures_util::StreamExt as _;
use landfast_target::{ExecOutput, Exit, InstanceRef, ObservedState, TargetError};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};

use crate::{DockerAddress, core::Core, daemon::DaemonError, programs};

const PIECES_MAX: usize = 16;
/// Between the end of the output and the daemon's word on how it ended.
const END_WAIT_MAX: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A command that has begun; whoever drives it passes its output on.
pub(crate) struct Running {
    core: Arc<Core>,
    exec: String,
    container: String,
    output: std::pin::Pin<
        Box<dyn futures_util::Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>,
    >,
    input: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
    stdin: Vec<u8>,
    sender: mpsc::Sender<ExecOutput>,
}

pub(crate) async fn begin(
    core: &Arc<Core>,
    id: &InstanceRef,
    command: Vec<String>,
    stdin: Vec<u8>,
) -> Result<(Running, mpsc::Receiver<ExecOutput>), TargetError> {
    let gone = || TargetError::NoSuchInstance(id.instance.clone());
    let io = |source: io::Error| TargetError::Io {
        doing: format!(
            "run a command beside instance `{}` on Docker at {}",
            id.instance, core.settings.address
        ),
        source,
    };
    let failed = |error: DaemonError| match error.is_missing() || error.is_conflict() {
        true => gone(),
        false => io(error.into_io()),
    };
    let observed = core.observe(id).await?.ok_or_else(gone)?;
    let ObservedState::Running = observed.state else {
        return Err(gone());
    };
    let record = core.remembered(id).await.map_err(io)?.ok_or_else(gone)?;
    let container = record
        .started
        .map(|started| started.container)
        .ok_or_else(gone)?;
    let program = command.first().cloned().unwrap_or_default();
    if let Some(image) = record.image
        && let Some(image) = core.image(image).await.map_err(failed)?
    {
        let found = core.inspect(&container).await.map_err(failed)?;
        let env = found
            .and_then(|found| found.config?.env)
            .unwrap_or_default();
        let path = env
            .iter()
            .find_map(|variable| variable.strip_prefix("PATH="));
        let is_there = programs::is_there(core, &container, &image, &program, path).await;
        if !is_there.map_err(failed)? {
            return Err(TargetError::CommandMissing { command: program });
        }
    }
    let created = core.daemon.call(|client| {
        let (container, command) = (container.clone(), command.clone());
        async move {
            let config = ExecConfig {
                attach_stdin: Some(true),
                attach_stdout: Some(true),
                attach_stderr: Some(true),
                tty: Some(false),
                cmd: Some(command),
                ..Default::default()
            };
            client.create_exec(&container, config).await
        }
    });
    let exec = created.await.map_err(failed)?.id;
    let started = core.daemon.call(|client| {
        let exec = exec.clone();
        async move {
            client
                .start_exec(&exec, Some(StartExecOptions::default()))
                .await
        }
    });
    let StartExecResults::Attached { output, input } = started.await.map_err(failed)? else {
        return Err(io(io::Error::other("the daemon did not attach it")));
    };
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let running = Running {
        core: Arc::clone(core),
        exec,
        container,
        output,
        input,
        stdin,
        sender,
    };
    Ok((running, receiver))
}

impl Running {
    /// Passes its output on until it ends; ends it when nobody reads any more.
    pub(crate) async fn drive(self) {
        let Self {
            core,
            exec,
            container,
            mut output,
            mut input,
            stdin,
            sender,
        } = self;
        let feed = async {
            // A command that does not read its input ends all the same.
            if input.write_all(&stdin).await.is_ok() {
                input.shutdown().await.unwrap_or_default();
            }
            std::future::pending::<()>().await;
        };
        let read = async {
            while let Some(Ok(piece)) = output.next().await {
                let piece = match piece {
                    LogOutput::StdErr { message } => ExecOutput::Stderr(message.into()),
                    LogOutput::StdOut { message }
                    | LogOutput::Console { message }
                    | LogOutput::StdIn { message } => ExecOutput::Stdout(message.into()),
                };
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = read => {}
            () = feed => {}
            () = sender.closed() => {}
        }
        if sender.is_closed() {
            end(&core, &exec, &container).await;
            return;
        }
        let exit = exit_of(&core, &exec).await;
        // A reader that left wants no exit either.
        sender
            .send(ExecOutput::Exited(exit))
            .await
            .unwrap_or_default();
    }
}

async fn exit_of(core: &Core, exec: &str) -> Exit {
    let asking = async {
        loop {
            let told = core.daemon.call(|client| {
                let exec = exec.to_owned();
                async move { client.inspect_exec(&exec).await }
            });
            match told.await {
                Ok(told) if told.running != Some(true) => {
                    return told
                        .exit_code
                        .map_or(Exit::Unknown, crate::exits::exit_of_code);
                }
                Ok(_) => tokio::time::sleep(ASK_AGAIN).await,
                Err(_) => return Exit::Unknown,
            }
        }
    };
    let told = tokio::time::timeout(END_WAIT_MAX, asking).await;
    told.unwrap_or(Exit::Unknown)
}

/// Ends a command that nobody waits for. A daemon cannot: where it is on this host, the process itself is ended, and
/// only when its control group says that it is this container's.
async fn end(core: &Core, exec: &str, container: &str) {
    if !matches!(core.settings.address, DockerAddress::Unix(_)) {
        return;
    }
    let told = core.daemon.call(|client| {
        let exec = exec.to_owned();
        async move { client.inspect_exec(&exec).await }
    });
    let Ok(told) = told.await else { return };
    let pid = told
        .pid
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|_| told.running == Some(true)) else {
        return;
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
    if groups.is_ok_and(|groups| groups.contains(container)) {
        // It may have ended meanwhile.
        pidfd_send_signal(&process, Signal::KILL).unwrap_or_default();
    }
}
