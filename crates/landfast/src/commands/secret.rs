//! `secret set|list|rm`. A value comes from stdin or is typed unseen; it is never an argument, and never shown.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use anyhow::{Context as _, anyhow};
use landfast_client::Client;
use landfast_types::Secret;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::{
    args::{Global, SecretCommand},
    context::{blocking, scope},
    exit::{Exit, Failure},
    out::Printer,
    table::{instant, table},
};

/// The longest value: what an environment variable can carry on Linux (MAX_ARG_STRLEN).
const VALUE_BYTES_MAX: u64 = 128 << 10;

pub(super) async fn secret(
    printer: &Printer,
    global: &Global,
    client: &Client,
    command: SecretCommand,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    match command {
        SecretCommand::Set { name } => {
            let prompt = format!("value of {name} for {scope}: ");
            let value = blocking(move || read_value(&prompt)).await??;
            let secret = client.set_secret(&scope, &name, &value).await?;
            if printer.json {
                printer.json(&secret)?;
            } else {
                let version = secret.version;
                printer.data(&format!(
                    "{scope} {name} is set, version {version}; the next deploy takes it"
                ))?;
            }
        }
        SecretCommand::List => {
            let list = client.secrets(&scope).await?;
            if printer.json {
                printer.json(&list)?;
            } else if list.secrets.is_empty() {
                printer.say(&format!("{scope} has no secrets"));
            } else {
                let row = |one: &landfast_api::Secret| {
                    let pinned = one
                        .pinned
                        .map_or_else(|| "–".to_owned(), |version| version.to_string());
                    vec![
                        one.name.clone(),
                        one.version.to_string(),
                        pinned,
                        one.versions.to_string(),
                        instant(one.set_at),
                    ]
                };
                let head = ["NAME", "VERSION", "IN USE", "KEPT", "SET (UTC)"];
                let rows = list.secrets.iter().map(row).collect();
                printer.data(&table(&head, &[1, 2, 3], rows))?;
            }
        }
        SecretCommand::Rm { name } => {
            client.remove_secret(&scope, &name).await?;
            if printer.json {
                printer.json(&serde_json::json!({ "name": name, "removed": true }))?;
            } else {
                printer.data(&format!("{scope} {name} is removed"))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn read_value(prompt: &str) -> Result<Secret<Vec<u8>>, Failure> {
    let mut value = Vec::new();
    if io::stdin().is_terminal() {
        let quiet = Quiet::new().context("failed to turn the terminal's echo off")?;
        let mut stderr = io::stderr().lock();
        write!(stderr, "{prompt}")?;
        stderr.flush()?;
        let read = io::stdin()
            .lock()
            .take(VALUE_BYTES_MAX + 2)
            .read_until(b'\n', &mut value);
        read.context("failed to read the value")?;
        drop(quiet);
        writeln!(stderr)?;
    } else {
        let read = io::stdin()
            .lock()
            .take(VALUE_BYTES_MAX + 2)
            .read_to_end(&mut value);
        read.context("failed to read the value from stdin")?;
    }
    // Of an editor or `echo`; a value that ends in one is given with two.
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    let len = value.len() as u64;
    let value = Secret::new(value);
    if len == 0 {
        let failure = Failure::new(Exit::Usage, anyhow!("the value is empty"));
        return Err(failure.hint("`landfast secret rm` removes a secret"));
    }
    if len > VALUE_BYTES_MAX {
        let kib = VALUE_BYTES_MAX >> 10;
        return Err(Failure::new(
            Exit::Usage,
            anyhow!("the value is longer than {kib} KiB"),
        ));
    }
    Ok(value)
}

/// The terminal without echo, until dropped.
struct Quiet(rustix::termios::Termios);

impl Quiet {
    fn new() -> rustix::io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Nothing else can be done about a terminal that went away.
        let _gone = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
