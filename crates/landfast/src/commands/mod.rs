//! Every command but the roles: each asks the server, and prints what it says.

mod backup;
mod certificates;
mod check;
mod convert;
mod deploy;
mod doctor;
mod explain;
mod images;
mod init;
mod jobs;
mod migrate;
mod migrations;
mod moves;
mod secret;
mod show;
mod store;
mod stream;
mod upgrade;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::{Command, Global},
    context::{Connection, connect},
    exit::{Exit, Failure},
    out::Printer,
    reference, top,
};

/// Runs a command to its end.
pub(crate) fn run(printer: &Printer, global: &Global, command: Command) -> Result<Exit, Failure> {
    if let Some(result) = without_server(printer, global, &command) {
        return result;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("failed to start the runtime")?;
    runtime.block_on(async {
        // What is wrong with the folder is said before a server is looked for.
        let prepared = deploy::prepare(printer, global, &command).await?;
        let connection = connect(printer, global).await?;
        // A command that follows a rollout meets Ctrl-C itself: it detaches.
        let follows = matches!(
            command,
            Command::Deploy(_)
                | Command::Promote(_)
                | Command::Abort(_)
                | Command::Seal(_)
                | Command::Rollback(_)
                | Command::Restart(_)
                | Command::Status(_)
        );
        let tunnelled = connection.is_tunnelled();
        let result = tokio::select! {
            result = dispatch(printer, global, &connection, command, prepared) => result,
            exit = ended_by_signal(!follows), if tunnelled => exit,
        };
        connection.close().await;
        result
    })
}

/// The commands that need no server; `None` for the others.
fn without_server(
    printer: &Printer,
    global: &Global,
    command: &Command,
) -> Option<Result<Exit, Failure>> {
    let printed =
        |result: std::io::Result<()>| Some(result.map(|()| Exit::Done).map_err(Into::into));
    match command {
        Command::Init(arguments) => Some(init::init(printer, global, arguments)),
        Command::Check => Some(check::check(printer, global)),
        Command::Import { command } => Some(convert::import(printer, global, command)),
        Command::Export { command } => Some(convert::export(printer, global, command)),
        Command::Migrate { command } if command.is_local() => {
            Some(migrate::migrate(printer, global, command))
        }
        Command::Explain(arguments) => Some(explain::explain(printer, arguments)),
        Command::Schema => printed(printer.json(&landfast_spec::json_schema())),
        Command::Completions(arguments) => Some(explain::completions(printer, arguments)),
        Command::Man(arguments) => Some(explain::man(printer, arguments)),
        Command::Help(arguments) => Some(explain::help(printer, arguments)),
        Command::Reference => printed(printer.data(&reference::markdown())),
        Command::Plan(_)
        | Command::Deploy(_)
        | Command::Status(_)
        | Command::Doctor(_)
        | Command::Top(_)
        | Command::History(_)
        | Command::Promote(_)
        | Command::Abort(_)
        | Command::Seal(_)
        | Command::Rollback(_)
        | Command::Scale(_)
        | Command::Restart(_)
        | Command::Stop(_)
        | Command::Start(_)
        | Command::Logs(_)
        | Command::Events(_)
        | Command::Routes
        | Command::Certificates { .. }
        | Command::Run(_)
        | Command::Exec(_)
        | Command::Secret { .. }
        | Command::Store { .. }
        | Command::Backup { .. }
        | Command::Restore { .. }
        | Command::Drill { .. }
        | Command::Migrate { .. }
        | Command::Server(_)
        | Command::Upgrade(_)
        | Command::Proxy(_)
        | Command::Shim => None,
    }
}

/// Waits for a signal that would end this process, so that ssh is ended first.
async fn ended_by_signal(interrupt_too: bool) -> Result<Exit, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => Ok(Exit::Command(128 + 15)),
        _ = hang_up.recv() => Ok(Exit::Command(128 + 1)),
        _ = tokio::signal::ctrl_c(), if interrupt_too => Ok(Exit::Detached),
    }
}

async fn dispatch(
    printer: &Printer,
    global: &Global,
    connection: &Connection,
    command: Command,
    prepared: Option<deploy::Prepared>,
) -> Result<Exit, Failure> {
    let client = &connection.client;
    match command {
        Command::Plan(arguments) => deploy::plan(printer, client, arguments, prepared).await,
        Command::Deploy(arguments) => {
            deploy::deploy(printer, global, client, arguments, prepared).await
        }
        Command::Status(arguments) => show::status(printer, global, client, &arguments).await,
        Command::Doctor(arguments) => doctor::doctor(printer, global, client, &arguments).await,
        Command::History(arguments) => show::history(printer, global, client, &arguments).await,
        Command::Top(arguments) => top::top(printer, global, client, &arguments).await,
        Command::Backup { command } => backup::backup(printer, global, client, command).await,
        Command::Restore { command } => backup::restore(printer, global, client, command).await,
        Command::Drill {
            store,
            full,
            no_wait,
        } => backup::drill(printer, global, client, &store, (full, no_wait)).await,
        Command::Routes => show::routes(printer, client).await,
        Command::Certificates { command } => {
            certificates::certificates(printer, client, command).await
        }
        Command::Promote(arguments) => moves::promote(printer, global, client, &arguments).await,
        Command::Abort(arguments) => moves::abort(printer, global, client, &arguments).await,
        Command::Seal(arguments) => moves::seal(printer, global, client, &arguments).await,
        Command::Rollback(arguments) => moves::rollback(printer, global, client, arguments).await,
        Command::Restart(arguments) => moves::restart(printer, global, client, &arguments).await,
        Command::Scale(arguments) => moves::scale(printer, global, client, &arguments).await,
        Command::Stop(arguments) => moves::stop(printer, global, client, &arguments).await,
        Command::Start(arguments) => moves::start(printer, global, client, &arguments).await,
        Command::Logs(arguments) => stream::logs(printer, global, client, arguments).await,
        Command::Events(arguments) => stream::events(printer, global, client, &arguments).await,
        Command::Run(arguments) => jobs::run(printer, global, client, &arguments).await,
        Command::Exec(arguments) => jobs::exec(printer, global, client, arguments).await,
        Command::Upgrade(arguments) => upgrade::upgrade(printer, global, client, &arguments).await,
        Command::Secret { command } => secret::secret(printer, global, client, command).await,
        Command::Store { command } => store::store(printer, global, client, command).await,
        Command::Migrate { command } => {
            migrations::migrate(printer, global, client, command, prepared).await
        }
        Command::Init(_)
        | Command::Check
        | Command::Import { .. }
        | Command::Export { .. }
        | Command::Server(_)
        | Command::Proxy(_)
        | Command::Explain(_)
        | Command::Schema
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Help(_)
        | Command::Reference
        | Command::Shim => unreachable!("these need no server and were done before"),
    }
}
