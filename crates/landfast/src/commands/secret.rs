//! `secret …`: a value comes from stdin, from a file or is typed unseen; it is never an argument, and shown only where
//! somebody asks for it by `--reveal`.

use std::{
    fs::File,
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use landfast_api::{
    Secret as WireSecret, SecretHistory, SecretRevealRequest, SecretRevokeRequest,
    SecretRollbackRequest, SecretRotateRequest, SecretVersion, SecretVersionState,
};
use landfast_client::Client;
use landfast_types::{Scope, Secret};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::moves::stay;
use crate::{
    args::{Global, SecretCommand, SecretKeyCommand, Wait},
    context::{blocking, scope},
    exit::{Exit, Failure},
    follow::Want,
    out::Printer,
    table::{instant, table},
};

/// The longest value: what an environment variable can carry on Linux (MAX_ARG_STRLEN).
const VALUE_BYTES_MAX: u64 = 128 << 10;
/// The longest dotenv file: as much as the server takes.
const DOTENV_BYTES_MAX: u64 = 4 << 20;
/// The longest copy of a key file.
pub(super) const KEY_BYTES_MAX: u64 = 4 << 10;

pub(super) async fn secret(
    printer: &Printer,
    global: &Global,
    client: &Client,
    command: SecretCommand,
) -> Result<Exit, Failure> {
    // The key is the host's; everything else belongs to an environment.
    if let SecretCommand::Key { command } = command {
        return key(printer, client, command).await;
    }
    let scope = scope(global)?;
    match command {
        SecretCommand::Set { name, from } => set(printer, client, &scope, name, from).await,
        SecretCommand::Get {
            name,
            reveal: false,
            ..
        } => {
            let secret = client.secret(&scope, &name).await?;
            print_list(printer, &scope, &[secret])
        }
        SecretCommand::Get { name, version, .. } => {
            reveal(printer, client, &scope, &name, version).await
        }
        SecretCommand::List => {
            let list = client.secrets(&scope).await?;
            if printer.json {
                printer.json(&list)?;
                return Ok(Exit::Done);
            }
            print_list(printer, &scope, &list.secrets)
        }
        SecretCommand::History { name } => {
            let history = client.secret_history(&scope, &name).await?;
            print_history(printer, &history)
        }
        SecretCommand::Rollback { name, to } => {
            let request = SecretRollbackRequest { to };
            let secret = client.roll_secret_back(&scope, &name, &request).await?;
            let version = secret.version;
            let words = format!(
                "{scope} {name} has its earlier value again, as version {version}; the next deploy takes it"
            );
            say(printer, &secret, &words)
        }
        SecretCommand::Rotate {
            name,
            from,
            length,
            alphabet,
            no_restart,
            wait,
        } => {
            let request = SecretRotateRequest {
                value: new_value(from).await?,
                length,
                alphabet,
                no_restart,
            };
            rotate(printer, client, &scope, &name, &request, wait).await
        }
        SecretCommand::Revoke { name, version } => {
            let request = SecretRevokeRequest { version };
            let history = client.revoke_secret(&scope, &name, &request).await?;
            revoked(printer, &scope, &history, version)
        }
        SecretCommand::Import { path } => import(printer, client, &scope, path).await,
        SecretCommand::Rm { name } => {
            client.remove_secret(&scope, &name).await?;
            let removed = serde_json::json!({ "name": name, "removed": true });
            say(printer, &removed, &format!("{scope} {name} is removed"))
        }
        SecretCommand::Key { .. } => unreachable!("it was done above"),
    }
}

fn say<T: serde::Serialize>(printer: &Printer, answer: &T, words: &str) -> Result<Exit, Failure> {
    if printer.json {
        printer.json(answer)?;
    } else {
        printer.data(words)?;
    }
    Ok(Exit::Done)
}

async fn set(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    name: String,
    from: Option<PathBuf>,
) -> Result<Exit, Failure> {
    let prompt = format!("value of {name} for {scope}: ");
    let value = blocking(move || match from {
        Some(path) => read_file(&path, VALUE_BYTES_MAX).and_then(whole_value),
        None => read_value(&prompt),
    });
    let value = value.await??;
    let secret = client.set_secret(scope, &name, &value).await?;
    let version = secret.version;
    let words = format!("{scope} {name} is set, version {version}; the next deploy takes it");
    say(printer, &secret, &words)
}

/// What somebody wants a secret to be from now on, where it is not to be generated.
async fn new_value(from: Option<PathBuf>) -> Result<Option<Secret<String>>, Failure> {
    let Some(from) = from else {
        return Ok(None);
    };
    let path = (from.as_os_str() != "-").then_some(from);
    let value = blocking(move || {
        read_file_or_stdin(path.as_deref(), VALUE_BYTES_MAX).and_then(whole_value)
    });
    let value = value.await??;
    let text = std::str::from_utf8(value.reveal()).map(str::to_owned);
    let text = text.map_err(|_| Failure::new(Exit::Usage, anyhow!("the value is not UTF-8")))?;
    Ok(Some(Secret::new(text)))
}

async fn rotate(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    name: &str,
    request: &SecretRotateRequest,
    wait: Wait,
) -> Result<Exit, Failure> {
    let rotated = client.rotate_secret(scope, name, request).await?;
    let version = rotated.secret.version;
    let Some(rollout) = rotated.rollout else {
        let words =
            format!("{scope} {name} is rotated, version {version}; the next deploy takes it");
        return say(printer, &rotated, &words);
    };
    printer.say(&format!("{scope} {name} is rotated, version {version}"));
    stay(printer, client, scope, rollout, wait, Want::Forward).await
}

async fn reveal(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    name: &str,
    version: Option<u64>,
) -> Result<Exit, Failure> {
    let request = SecretRevealRequest { version };
    let value = client.reveal_secret(scope, name, &request).await?;
    if printer.json {
        printer.json(&value)?;
        return Ok(Exit::Done);
    }
    // Byte for byte, so that a file or a pipe gets what was set; a terminal wants its line ended.
    let mut stdout = io::stdout().lock();
    stdout.write_all(value.value.reveal().as_bytes())?;
    if stdout.is_terminal() {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()?;
    Ok(Exit::Done)
}

async fn import(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    file: Option<PathBuf>,
) -> Result<Exit, Failure> {
    let text = blocking(move || read_file_or_stdin(file.as_deref(), DOTENV_BYTES_MAX)).await??;
    let imported = client.import_secrets(scope, &text).await?;
    if printer.json {
        printer.json(&imported)?;
        return Ok(Exit::Done);
    }
    for secret in &imported.secrets {
        let what = if secret.changed { "set" } else { "as it was" };
        printer.data(&format!(
            "{scope} {} {what}, version {}",
            secret.name, secret.version
        ))?;
    }
    let changed = imported.secrets.iter().filter(|secret| secret.changed);
    let changed = changed.count();
    let next = if changed == 0 {
        ""
    } else {
        "; the next deploy takes them"
    };
    printer.say(&format!(
        "{changed} of {} secrets changed{next}",
        imported.secrets.len()
    ));
    Ok(Exit::Done)
}

fn revoked(
    printer: &Printer,
    scope: &Scope,
    history: &SecretHistory,
    version: u64,
) -> Result<Exit, Failure> {
    if printer.json {
        printer.json(history)?;
        return Ok(Exit::Done);
    }
    let name = &history.name;
    printer.data(&format!("{scope} {name}, version {version}, is revoked"))?;
    let mut versions = history.versions.iter();
    let used = versions.find(|kept| kept.version == version);
    let releases = used.map(|kept| numbers(&kept.releases)).unwrap_or_default();
    if !releases.is_empty() {
        printer.say(&format!(
            "release {releases} was made with it: what runs keeps it until `landfast restart`, what starts is given the newest"
        ));
    }
    Ok(Exit::Done)
}

fn print_list(printer: &Printer, scope: &Scope, secrets: &[WireSecret]) -> Result<Exit, Failure> {
    if let ([secret], true) = (secrets, printer.json) {
        printer.json(secret)?;
        return Ok(Exit::Done);
    }
    if secrets.is_empty() {
        printer.say(&format!("{scope} has no secrets"));
        return Ok(Exit::Done);
    }
    let row = |one: &WireSecret| {
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
    let rows = secrets.iter().map(row).collect();
    printer.data(&table(&head, &[1, 2, 3], rows))?;
    Ok(Exit::Done)
}

fn print_history(printer: &Printer, history: &SecretHistory) -> Result<Exit, Failure> {
    if printer.json {
        printer.json(history)?;
        return Ok(Exit::Done);
    }
    let version = |one: &SecretVersion| {
        let state = match one.state {
            SecretVersionState::Current => "current",
            SecretVersionState::Kept => "kept",
            SecretVersionState::Revoked => "revoked",
            SecretVersionState::Unknown => "?",
        };
        vec![
            one.version.to_string(),
            state.to_owned(),
            one.origin.clone(),
            numbers(&one.releases),
            instant(one.set_at),
        ]
    };
    let head = ["VERSION", "STATE", "HOW", "RELEASES", "SET (UTC)"];
    let rows = history.versions.iter().map(version).collect();
    printer.data(&table(&head, &[0], rows))?;
    let deed = |one: &landfast_api::SecretDeed| {
        vec![
            instant(one.at),
            one.deed.clone(),
            one.version.to_string(),
            one.by.clone(),
        ]
    };
    let rows = history.deeds.iter().map(deed).collect();
    printer.data("")?;
    printer.data(&table(&["AT (UTC)", "DONE", "VERSION", "BY"], &[2], rows))?;
    Ok(Exit::Done)
}

fn numbers(releases: &[u64]) -> String {
    let releases: Vec<_> = releases.iter().map(ToString::to_string).collect();
    releases.join(", ")
}

async fn key(
    printer: &Printer,
    client: &Client,
    command: Option<SecretKeyCommand>,
) -> Result<Exit, Failure> {
    match command {
        None => {
            let key = client.secrets_key().await?;
            let copy = match key.confirmed_at {
                Some(at) => format!("a copy was confirmed on {} UTC", instant(at)),
                None => "no copy was confirmed: `landfast secret key export`, then `landfast secret key confirm`".to_owned(),
            };
            let words = format!(
                "key {} in {} ({}); {} secrets are sealed under it\n{copy}",
                key.id, key.path, key.source, key.secrets
            );
            say(printer, &key, &words)
        }
        Some(SecretKeyCommand::Export { reveal }) => {
            if io::stdout().is_terminal() && !reveal {
                let refused = anyhow!("the key is not printed to a terminal");
                let failure = Failure::new(Exit::Usage, refused);
                return Err(failure.hint("lead it into a file or a pipe, or add `--reveal`"));
            }
            let key = client.export_secrets_key().await?;
            if printer.json {
                printer.json(&key)?;
                return Ok(Exit::Done);
            }
            let mut stdout = io::stdout().lock();
            stdout.write_all(key.text.reveal().as_bytes())?;
            stdout.flush()?;
            printer.say("put it where only few can read it, then read it back from there: `landfast secret key confirm`");
            Ok(Exit::Done)
        }
        Some(SecretKeyCommand::Rotate) => {
            let rotated = client.rotate_secrets_key().await?;
            let words = format!(
                "key {} in {} replaces key {}; {} secrets and passwords are sealed under it now\nthe old one is aside in {}, until a copy of the new one is confirmed: `landfast secret key export`, then `landfast secret key confirm`",
                rotated.key.id,
                rotated.key.path,
                rotated.previous,
                rotated.rewrapped,
                rotated.previous_path
            );
            say(printer, &rotated, &words)
        }
        Some(SecretKeyCommand::Confirm { path }) => {
            let copy = blocking(move || read_file_or_stdin(path.as_deref(), KEY_BYTES_MAX));
            let key = client.confirm_secrets_key(&copy.await??).await?;
            let words = format!("it is a copy of key {}", key.id);
            say(printer, &key, &words)
        }
    }
}

pub(super) fn read_file_or_stdin(
    path: Option<&Path>,
    bytes_max: u64,
) -> Result<Secret<Vec<u8>>, Failure> {
    if let Some(path) = path {
        return read_file(path, bytes_max);
    }
    let mut bytes = Vec::new();
    let read = io::stdin()
        .lock()
        .take(bytes_max + 1)
        .read_to_end(&mut bytes);
    read.context("failed to read stdin")?;
    within(Secret::new(bytes), "stdin", bytes_max)
}

fn read_file(path: &Path, bytes_max: u64) -> Result<Secret<Vec<u8>>, Failure> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(bytes_max + 3).read_to_end(&mut bytes));
    let bytes = Secret::new(bytes);
    if let Err(error) = read {
        let error = anyhow::Error::new(error).context(format!("failed to read `{name}`"));
        return Err(Failure::new(Exit::Usage, error));
    }
    within(bytes, &name, bytes_max + 2)
}

fn within(bytes: Secret<Vec<u8>>, name: &str, bytes_max: u64) -> Result<Secret<Vec<u8>>, Failure> {
    if bytes.reveal().len() as u64 <= bytes_max {
        return Ok(bytes);
    }
    let error = anyhow!("`{name}` is longer than {} KiB", bytes_max >> 10);
    Err(Failure::new(Exit::Usage, error))
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
    whole_value(Secret::new(value))
}

/// A value without its line end, if it can be one.
fn whole_value(read: Secret<Vec<u8>>) -> Result<Secret<Vec<u8>>, Failure> {
    // Of an editor or `echo`; a value that ends in one is given with two.
    let value = read.reveal();
    let value = match value.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => value,
    };
    let len = value.len() as u64;
    let value = Secret::new(value.to_vec());
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
