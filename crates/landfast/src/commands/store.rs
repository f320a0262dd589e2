//! `store`: data stores of an environment. A password is shown only where `--reveal` says so, and goes to a client of a
//! database by its environment.

use std::{
    io::{self, IsTerminal as _},
    os::unix::process::CommandExt as _,
    process::Command,
    time::Duration,
};

use anyhow::anyhow;
use landfast_api::{
    Store, StoreDeleteRequest, StoreImage, StoreMeasures, StoreRotateRequest, StoreRotation,
    StoreState, StoreStatement,
};
use landfast_client::Client;
use landfast_types::{Bytes, Scope, Secret};

use crate::{
    args::{Global, Logs, StoreCommand},
    context::{blocking, scope},
    exit::{Exit, Failure},
    out::{Paint, Printer},
    table::{instant, table},
};

use super::{show::print, stream};

/// How often a rotation is looked at.
const ROTATION_STEP: Duration = Duration::from_millis(300);

pub(super) async fn store(
    printer: &Printer,
    global: &Global,
    client: &Client,
    command: StoreCommand,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    match command {
        StoreCommand::List => {
            let list = client.stores(&scope).await?;
            print(printer, &list, || {
                list_lines(&scope, &list.stores, printer.paint)
            })
        }
        StoreCommand::Show { store } => {
            let store = client.store(&scope, &store).await?;
            print(printer, &store, || show_lines(&store, printer.paint))
        }
        StoreCommand::Connect { store, reveal } => {
            connect(printer, client, &scope, &store, reveal).await
        }
        StoreCommand::Psql { store, arguments } => {
            open(printer, client, &scope, &store, &arguments).await
        }
        StoreCommand::Logs {
            store,
            follow,
            tail,
        } => logs(printer, global, client, &scope, &store, follow, tail).await,
        StoreCommand::Restart { store } => {
            let told = client.restart_store(&scope, &store).await?;
            print(printer, &told, || {
                vec![format!(
                    "{scope} {store} is being restarted; `landfast store show {store}` shows when it is ready"
                )]
            })
        }
        StoreCommand::Rotate {
            store,
            abandon,
            no_wait,
        } => {
            let request = StoreRotateRequest { abandon };
            let told = client.rotate_store(&scope, &store, &request).await?;
            match no_wait {
                true => print(printer, &told, || {
                    vec![format!(
                        "{scope} {store} changes its password; `landfast store show {store}` shows how far it is"
                    )]
                }),
                false => until_settled(printer, client, &scope, told).await,
            }
        }
        StoreCommand::Delete {
            store,
            confirm,
            delay,
        } => {
            let confirm = match confirm {
                Some(confirm) => confirm,
                None => ask_for_the_name(&scope, &store).await?,
            };
            let request = StoreDeleteRequest {
                confirm,
                delay_seconds: delay.map(|delay| delay.as_secs()),
            };
            let told = client.delete_store(&scope, &store, &request).await?;
            print(printer, &told, || {
                vec![format!(
                    "{scope} {store} is deleted; `landfast store undelete {store}` takes it back, `landfast store list` says until when"
                )]
            })
        }
        StoreCommand::Undelete { store } => {
            let told = client.undelete_store(&scope, &store).await?;
            print(printer, &told, || vec![format!("{scope} {store} is back")])
        }
    }
}

/// Stays until a rotation is at its end or does not go on, and says how far it is.
async fn until_settled(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    mut store: Store,
) -> Result<Exit, Failure> {
    let mut said = None;
    loop {
        let rotation = store.rotation.clone().unwrap_or_default();
        let name = store.name.clone();
        if rotation.phase == "settled" {
            return print(printer, &store, || {
                vec![format!(
                    "{scope} {name} has one password, which its instances have"
                )]
            });
        }
        // What failed is tried again; a rollout that was taken back waits for somebody.
        if let Some(reason) = rotation.failure.as_ref().filter(|_| rotation.is_taken_back) {
            let error = anyhow!("{scope} {name} has two passwords still: {reason}");
            let hint = format!(
                "mend the reason, then `landfast store rotate {name}` again, or deploy; until then both are valid"
            );
            return Err(Failure::new(Exit::RolledBack, error).hint(hint));
        }
        let words = rotation_words(&rotation);
        if said.as_ref() != Some(&words) {
            printer.say(&format!("{scope} {name}: {words}"));
            said = Some(words);
        }
        tokio::time::sleep(ROTATION_STEP).await;
        store = client.store(scope, &name).await?;
    }
}

fn rotation_words(rotation: &StoreRotation) -> String {
    let failure = rotation.failure.as_ref();
    let failure = failure.map_or_else(String::new, |reason| format!(", not yet: {reason}"));
    let waits_for = rotation.waits_for.as_deref();
    let words = match (rotation.phase.as_str(), rotation.rollout) {
        ("preparing", _) => "a second login gets the new password".to_owned(),
        ("verifying", _) => "the new password is tried".to_owned(),
        ("replacing", Some(rollout)) => {
            format!("rollout {rollout} replaces the instances that have the old password")
        }
        ("counting" | "replacing", _) => {
            let given = "instances that start are given the new password";
            waits_for.map_or_else(
                || given.to_owned(),
                |waits_for| format!("{given}; the others are replaced once {waits_for}"),
            )
        }
        ("closing", _) => waits_with(
            "no instance has the old password; its login is removed",
            waits_for,
        ),
        ("renewing", _) => waits_with("Landfast's own password is changed", waits_for),
        (other, _) => other.to_owned(),
    };
    format!("{words}{failure}")
}

fn waits_with(words: &str, waits_for: Option<&str>) -> String {
    waits_for.map_or_else(
        || words.to_owned(),
        |waits_for| format!("{words} once {waits_for}"),
    )
}

/// Asks for what is to be deleted, by its whole name. Without a terminal nobody can be asked.
async fn ask_for_the_name(scope: &Scope, store: &str) -> Result<String, Failure> {
    let name = format!("{scope}/{store}");
    let prompt = format!("All data of {name} will be removed after the delay. Type its whole name");
    typed_name(&name, &format!("--confirm {name}"), &prompt).await
}

/// What a person types who is asked for a whole name.
pub(super) async fn typed_name(name: &str, flag: &str, prompt: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        let error = anyhow!("nobody is there to be asked for `{name}`");
        return Err(Failure::new(Exit::Usage, error).hint(flag.to_owned()));
    }
    let prompt = format!("{prompt}: ");
    let typed = blocking(move || {
        anstream::eprint!("{prompt}");
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    Ok(typed.await??.trim().to_owned())
}

fn state(store: &Store, paint: Paint) -> String {
    let word = store.state.as_str();
    match store.state {
        StoreState::Ready => paint.good(word),
        StoreState::Down | StoreState::Deleted | StoreState::Removing => paint.bad(word),
        StoreState::Making | StoreState::Starting | StoreState::Stopping => paint.warn(word),
        StoreState::External | StoreState::Unknown => word.to_owned(),
    }
}

fn list_lines(scope: &Scope, stores: &[Store], paint: Paint) -> Vec<String> {
    if stores.is_empty() {
        return vec![format!("{scope} has no stores")];
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    let row = |one: &Store| {
        let version = one.version.as_deref().map(|version| format!(" {version}"));
        let measures = one.measures.as_ref();
        vec![
            one.name.clone(),
            format!("{}{}", one.engine, version.unwrap_or_default()),
            state(one, paint),
            or_dash(measures.map(connections)),
            or_dash(measures.map(|measures| Bytes(measures.size_bytes).to_string())),
            one.used_by.join(", "),
        ]
    };
    let head = ["NAME", "ENGINE", "STATE", "CONNECTIONS", "SIZE", "USED BY"];
    let mut lines = vec![table(&head, &[3, 4], stores.iter().map(row).collect())];
    for one in stores {
        lines.extend(serving(one));
        if let Some(until) = one.deleted_until {
            lines.push(format!("{} is removed at {} UTC", one.name, instant(until)));
        }
        if let Some(trouble) = &one.trouble {
            lines.push(format!("{} {}: {trouble}", paint.bad("problem:"), one.name));
        }
    }
    lines
}

/// Which name it serves, where that is not its own.
fn serving(store: &Store) -> Option<String> {
    let name = &store.name;
    let serves = store.serves.as_ref();
    let serves = serves.map(|serves| format!("{name} serves the app's {serves}"));
    serves.or_else(|| {
        let by = store.served_by.as_ref()?;
        Some(format!("the app's {name} is served by {by}"))
    })
}

fn connections(measures: &StoreMeasures) -> String {
    format!("{}/{}", measures.connections, measures.connections_max)
}

/// A store in a few lines.
pub(super) fn show_lines(store: &Store, paint: Paint) -> Vec<String> {
    let version = store
        .version
        .as_deref()
        .map(|version| format!(" {version}"));
    let mut lines = vec![format!(
        "store {}  {}{}, {}",
        paint.bold(&store.name),
        store.engine,
        version.unwrap_or_default(),
        state(store, paint)
    )];
    if let (Some(address), Some(memory)) = (&store.address, store.memory_bytes) {
        lines.push(format!("  {address}, {} of memory", Bytes(memory)));
    }
    lines.extend(
        store
            .image
            .as_ref()
            .map(|image| format!("  image {}", of_image(image))),
    );
    let next = store.next_image.as_ref();
    lines.extend(next.map(|image| format!("  after a restart image {}", of_image(image))));
    lines.extend(serving(store).map(|line| format!("  {line}")));
    if let Some(trouble) = &store.trouble {
        lines.push(format!("  {} {trouble}", paint.bad("problem:")));
    }
    if let Some(disk) = &store.disk {
        let (free, total) = (Bytes(disk.free_bytes), Bytes(disk.total_bytes));
        let line = format!("{free} of {total} free on its disk");
        lines.push(match disk.is_short {
            true => format!("  {} {line} (`{}`)", paint.bad("problem:"), disk.folder),
            false => format!("  {line}"),
        });
    }
    if !store.waits_for_restart.is_empty() {
        lines.push(format!(
            "  waits for a restart: {}",
            store.waits_for_restart.join(", ")
        ));
    }
    if let Some(rotation) = &store.rotation {
        let rotated = rotation.rotated_at.map(instant);
        match (rotation.phase.as_str(), rotated) {
            ("settled", Some(at)) => lines.push(format!("  password changed at {at} UTC")),
            ("settled", None) => {}
            _ => lines.push(format!("  new password: {}", rotation_words(rotation))),
        }
    }
    if !store.named {
        lines.push("  in no manifest any more; kept".to_owned());
    }
    if let Some(until) = store.deleted_until {
        lines.push(format!("  removed at {} UTC", instant(until)));
    }
    if let Some(measures) = &store.measures {
        lines.extend(measure_lines(measures, paint));
    }
    lines
}

/// Its name, and what that means: the digest of a registry, or the daemon's id of an image that none has.
fn of_image(image: &StoreImage) -> String {
    let digest = |pinned: &String| pinned.split_once('@').map(|(_, digest)| digest.to_owned());
    let meant = image.pinned.as_ref().and_then(digest);
    let reference = &image.reference;
    match meant.or_else(|| image.id.clone()) {
        Some(meant) if !reference.contains(&meant) => format!("{reference} ({meant})"),
        Some(_) | None => reference.clone(),
    }
}

fn measure_lines(measures: &StoreMeasures, paint: Paint) -> Vec<String> {
    let mut lines = vec![format!(
        "  {} connections, {} active, {} idle in a transaction",
        connections(measures),
        measures.active,
        measures.idle_in_transaction
    )];
    let bound = match measures.size_bytes_max {
        0 => String::new(),
        most => format!(" of {}", Bytes(most)),
    };
    let growth = measures.growth_bytes_per_day.map(|growth| {
        let sign = if growth < 0 { "-" } else { "+" };
        format!(", {sign}{} a day", Bytes(growth.unsigned_abs()))
    });
    let hits = measures
        .hit_percent
        .map(|hits| format!(", {hits} % of reads from memory"));
    lines.push(format!(
        "  {}{bound}{}{}",
        Bytes(measures.size_bytes),
        growth.unwrap_or_default(),
        hits.unwrap_or_default()
    ));
    for replica in &measures.replicas {
        let lag = Bytes(replica.lag_bytes);
        lines.push(format!(
            "  replica {} {}, {lag} behind",
            replica.name, replica.state
        ));
    }
    let statement = |word: String, one: &StoreStatement| {
        let behind = match one.behind.as_slice() {
            [] => String::new(),
            behind => format!(" behind {}", behind.join(", ")),
        };
        format!(
            "  {word} {} ms {}{behind}: {}",
            one.millis, one.login, one.text
        )
    };
    lines.extend(
        measures
            .waiting
            .iter()
            .map(|one| statement(paint.bad("waits"), one)),
    );
    lines.extend(
        measures
            .slow
            .iter()
            .map(|one| statement(paint.warn("slow"), one)),
    );
    let costly = measures.costly.iter().take(5).map(|one| {
        let millis = one.mean_micros as f64 / 1_000.0;
        format!("  {} calls, {millis:.1} ms each: {}", one.calls, one.text)
    });
    lines.extend(costly);
    lines
}

async fn connect(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    store: &str,
    reveal: bool,
) -> Result<Exit, Failure> {
    if reveal {
        let connection = client.store_connection(scope, store).await?;
        return print(printer, &connection, || {
            vec![connection.url.reveal().clone()]
        });
    }
    let known = client.store(scope, store).await?;
    let address = known.address.clone();
    let login = known.login.unwrap_or_else(|| "operator".to_owned());
    let shown = serde_json::json!({ "engine": known.engine, "address": address, "login": login });
    print(printer, &shown, || {
        let address = address.unwrap_or_else(|| "somewhere else".to_owned());
        vec![
            format!(
                "{} {store} is at {address}, for the login `{login}`",
                known.engine
            ),
            format!(
                "`landfast store psql {store}` opens a client, `landfast store connect {store} --reveal` shows the address with its password"
            ),
        ]
    })
}

/// Becomes the client of the store.
async fn open(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    store: &str,
    arguments: &[String],
) -> Result<Exit, Failure> {
    let connection = client.store_connection(scope, store).await?;
    if let Some(served_by) = &connection.served_by {
        printer.say(&format!("store {store} is served by {served_by}"));
    }
    let parts =
        Parts::of(connection.url.reveal()).ok_or_else(|| anyhow!("the server gave no address"))?;
    let (program, variable, words) = parts.client(&connection.engine)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "this process becomes the client a person asked for, argv by argv"
    )]
    let mut command = Command::new(program);
    command
        .env(variable, parts.password.reveal())
        .args(words)
        .args(arguments);
    let error = command.exec();
    let failure = Failure::new(
        Exit::Failed,
        anyhow!("failed to start `{program}`: {error}"),
    );
    Err(failure.hint(format!("install the package that brings `{program}`, or use another client with `landfast store connect {store} --reveal`")))
}

/// The parts of an address that Landfast made: letters, digits and `_` only, so nothing in it is encoded.
struct Parts {
    login: String,
    password: Secret<String>,
    host: String,
    port: String,
    database: String,
}

impl Parts {
    fn of(url: &str) -> Option<Self> {
        let (_, rest) = url.split_once("://")?;
        let (credentials, rest) = rest.split_once('@')?;
        let (login, password) = credentials.split_once(':')?;
        let (address, database) = rest.split_once('/')?;
        let (host, port) = address.rsplit_once(':')?;
        Some(Self {
            login: login.to_owned(),
            password: Secret::new(password.to_owned()),
            host: host.to_owned(),
            port: port.to_owned(),
            database: database.to_owned(),
        })
    }

    /// The client of an engine, the variable it takes a password from, and its arguments.
    fn client(&self, engine: &str) -> Result<(&'static str, &'static str, Vec<String>), Failure> {
        let Self {
            login,
            host,
            port,
            database,
            ..
        } = self;
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        match engine {
            "postgres" => Ok((
                "psql",
                "PGPASSWORD",
                words(&["-h", host, "-p", port, "-U", login, "-d", database]),
            )),
            "mariadb" => Ok((
                "mariadb",
                "MYSQL_PWD",
                words(&["-h", host, "-P", port, "-u", login, database]),
            )),
            "redis" => Ok((
                "redis-cli",
                "REDISCLI_AUTH",
                words(&["-h", host, "-p", port, "--user", login, "-n", database]),
            )),
            other => {
                let error = anyhow!("there is no client for `{other}`");
                Err(Failure::new(Exit::Failed, error))
            }
        }
    }
}

async fn logs(
    printer: &Printer,
    global: &Global,
    client: &Client,
    scope: &Scope,
    store: &str,
    follow: bool,
    tail: u32,
) -> Result<Exit, Failure> {
    let known = client.store(scope, store).await?;
    let Some(instance) = known.instance else {
        let error = anyhow!(
            "store `{store}` does not run: it is {}",
            known.state.as_str()
        );
        return Err(Failure::new(Exit::NotNow, error));
    };
    let arguments = Logs {
        target: Some(instance),
        follow,
        tail,
    };
    stream::logs(printer, global, client, arguments).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_its_password_by_its_environment_alone() {
        let url = "postgres://operator:hunter2@127.0.0.1:15000/shop";
        let parts = Parts::of(url).expect("an address");
        for (engine, program) in [
            ("postgres", "psql"),
            ("mariadb", "mariadb"),
            ("redis", "redis-cli"),
        ] {
            let (found, _, words) = parts.client(engine).expect("a client");
            assert_eq!(found, program);
            assert!(
                words.iter().all(|word| !word.contains("hunter2")),
                "{words:?}"
            );
        }
        assert_eq!(parts.password.reveal(), "hunter2");
        assert!(parts.client("s3").is_err());
    }
}
