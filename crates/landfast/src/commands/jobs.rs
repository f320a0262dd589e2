//! `run` and `exec`: commands of the app, run by hand.

use std::io::{self, Read as _, Write as _};

use anyhow::{Context as _, anyhow};
use landfast_api::{ExecFrame, ExecRequest, JobRun, JobRunState, LogQuery, LogStream, ProblemCode};
use landfast_client::Client;
use landfast_types::{InstanceId, Scope};

use crate::{
    args::{self, Global},
    context::{blocking, idempotency_key, scope},
    exit::{Exit, Failure},
    out::Printer,
};

/// The most stdin that is passed on.
const STDIN_BYTES_MAX: u64 = 8 << 20;

pub(super) async fn run(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &args::Run,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let run = client
        .run_job(&scope, arguments.job.as_str(), &idempotency_key())
        .await?;
    printer.detail(&format!("{} runs from release {}", run.run, run.release));
    if arguments.detach {
        if printer.json {
            printer.json(&run)?;
        } else {
            printer.data(&run.run)?;
        }
        return Ok(Exit::Done);
    }
    output(printer, client, &scope, &run).await?;
    // The lines end when the process does; its record follows at once.
    let mut run = run;
    while run.state == JobRunState::Running {
        run = client.job_run(&scope, &run.job, &run.run).await?;
        if run.state == JobRunState::Running {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
    if printer.json {
        printer.json(&run)?;
    }
    let exit = run.exit.clone().unwrap_or_else(|| "ended".to_owned());
    match run.state {
        JobRunState::Succeeded => Ok(Exit::Done),
        JobRunState::Running | JobRunState::Failed | JobRunState::Unknown => {
            let failure = Failure::new(code(run.exit_code), anyhow!("{} {exit}", run.run));
            Err(failure.hint(format!("`landfast logs {}` shows what it wrote", run.run)))
        }
    }
}

/// Prints what a run writes, until it ends.
async fn output(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    run: &JobRun,
) -> Result<(), Failure> {
    let instance = Some(run.run.clone());
    let query = LogQuery {
        service: None,
        instance,
        tail: Some(10_000),
        follow: true,
    };
    let mut lines = client.logs(scope, &query).await?;
    while let Some(line) = lines.next().await? {
        match line.stream {
            _ if printer.json => {}
            LogStream::Stdout | LogStream::Unknown => printer.data(&format!("{}\n", line.line))?,
            LogStream::Stderr => printer.say(&line.line),
            LogStream::Landfast => printer.detail(&line.line),
        }
    }
    Ok(())
}

/// A command that is not there ends as in a shell, so that no code of a command's own is mistaken for it.
fn missing_is_127(failure: Failure) -> Failure {
    let problem = failure.problem.as_ref();
    match problem.is_some_and(|problem| problem.code() == ProblemCode::CommandMissing) {
        true => Failure {
            exit: Exit::Command(127),
            ..failure
        },
        false => failure,
    }
}

pub(super) async fn exec(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: args::Exec,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let stdin = if arguments.stdin {
        read_stdin().await?
    } else {
        Vec::new()
    };
    let is_instance = arguments.target.parse::<InstanceId>().is_ok();
    let (instance, service) = if is_instance {
        (Some(arguments.target), None)
    } else {
        (None, Some(arguments.target))
    };
    let request = ExecRequest {
        service,
        instance,
        command: arguments.command,
        stdin,
    };
    let frames = client.exec(&scope, &request).await;
    let mut frames = frames.map_err(|error| missing_is_127(error.into()))?;
    while let Some(frame) = frames.next().await? {
        if printer.json {
            printer.json_line(&frame)?;
        }
        match frame {
            ExecFrame::Started { instance } => {
                printer.detail(&format!("running beside {instance}"))
            }
            ExecFrame::Stdout { bytes } if !printer.json => printer.raw(&bytes)?,
            ExecFrame::Stderr { bytes } if !printer.json => {
                io::stderr().lock().write_all(&bytes)?
            }
            ExecFrame::Stdout { .. } | ExecFrame::Stderr { .. } => {}
            ExecFrame::Exit { code: Some(0), .. } => return Ok(Exit::Done),
            ExecFrame::Exit { code: number, text } => {
                let failure = Failure::new(code(number), anyhow!("the command {text}"));
                // A command that ends with a code has said why itself.
                return Err(if number.is_some() {
                    failure.said()
                } else {
                    failure
                });
            }
            ExecFrame::Failed { reason } => {
                return Err(Failure::new(
                    Exit::Failed,
                    anyhow!("the command could not go on: {reason}"),
                ));
            }
        }
    }
    Err(Failure::new(
        Exit::Unreachable,
        anyhow!("the command's output ended before it did"),
    ))
}

/// The exit code of a command as our own, never zero.
fn code(code: Option<i32>) -> Exit {
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(0) | None => Exit::Failed,
        Some(code) => Exit::Command(code),
    }
}

async fn read_stdin() -> Result<Vec<u8>, Failure> {
    let read = blocking(|| {
        let mut bytes = Vec::new();
        io::stdin()
            .lock()
            .take(STDIN_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map(|_count| bytes)
    });
    let bytes = read.await?.context("failed to read stdin")?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        let mib = STDIN_BYTES_MAX >> 20;
        return Err(Failure::new(
            Exit::Failed,
            anyhow!("stdin is longer than {mib} MiB"),
        ));
    }
    Ok(bytes)
}
