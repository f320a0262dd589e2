//! Commands that print as things come: `logs` and `events`.

use landfast_api::{Level, LogQuery, LogStream};
use landfast_client::{Client, Followed};
use landfast_types::InstanceId;

use crate::{
    args::{self, Global},
    context::scope,
    exit::{Exit, Failure},
    out::Printer,
    table::instant,
};

pub(super) async fn logs(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: args::Logs,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let is_instance = arguments
        .target
        .as_ref()
        .is_some_and(|word| word.parse::<InstanceId>().is_ok());
    let (instance, service) = if is_instance {
        (arguments.target, None)
    } else {
        (None, arguments.target)
    };
    let query = LogQuery {
        service,
        instance,
        tail: Some(arguments.tail),
        follow: arguments.follow,
    };
    let mut lines = client.logs(&scope, &query).await?;
    while let Some(line) = lines.next().await? {
        if printer.json {
            printer.json_line(&line)?;
            continue;
        }
        let paint = printer.paint;
        let at = line.at.to_string();
        let head = paint.dim(&format!("{at} {}", line.instance));
        let text = match line.stream {
            LogStream::Stdout | LogStream::Unknown => line.line,
            // Told apart without colour too.
            LogStream::Stderr => format!("{} {}", paint.warn("!"), line.line),
            LogStream::Landfast => format!("{} {}", paint.dim("*"), line.line),
        };
        printer.data(&format!("{head} {text}"))?;
    }
    Ok(Exit::Done)
}

pub(super) async fn events(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &args::Events,
) -> Result<Exit, Failure> {
    let scope = if arguments.all {
        None
    } else {
        Some(scope(global)?)
    };
    let mut events = client.events(scope.as_ref(), arguments.after);
    loop {
        match events.next().await? {
            Followed::Connected => printer.detail("connected"),
            Followed::Lost(error) => printer.warn(&format!("{error}; connecting again")),
            Followed::Event(event) if printer.json => printer.json_line(&event)?,
            Followed::Event(event) => {
                let paint = printer.paint;
                let of = match (&event.app, &event.environment) {
                    (Some(app), Some(environment)) if arguments.all => {
                        format!(" {app}/{environment}")
                    }
                    _ => String::new(),
                };
                let kind = match event.level {
                    Level::Info | Level::Unknown => event.kind.clone(),
                    Level::Warning => paint.warn(&event.kind),
                    Level::Error => paint.bad(&event.kind),
                };
                let head = paint.dim(&format!("{} {}{of}", event.sequence, instant(event.at)));
                printer.data(&format!("{head} {kind}: {}", event.text))?;
            }
        }
    }
}
