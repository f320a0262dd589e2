//! Commands that only show: `status`, `history`, `routes`.

use landfast_api::{
    AppList, EnvironmentState, EnvironmentStatus, GroupRole, History, Host, Rollout, RolloutKind,
    RouteList, RouteWeight,
};
use landfast_client::Client;
use landfast_types::Timestamp;

use crate::{
    args::{self, Global, Wait},
    clock::now,
    context::scope,
    exit::{Exit, Failure},
    follow::{self, Want},
    out::{Paint, Printer},
    table::{bytes, cores, instant, millis, number, percent, since, table},
    view,
};

pub(super) async fn status(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &args::Status,
) -> Result<Exit, Failure> {
    if arguments.all {
        let apps = client.apps().await?;
        return print(printer, &apps, || apps_lines(&apps, printer.paint));
    }
    if arguments.host_info {
        let host = client.host().await?;
        return print(printer, &host, || host_lines(&host));
    }
    let scope = scope(global)?;
    let status = client.status(&scope).await?;
    if arguments.follow {
        if let Some(rollout) = status.rollout {
            return follow::follow(
                printer,
                client,
                &scope,
                rollout,
                Wait::Promotion,
                Want::Forward,
            )
            .await;
        }
        printer.say("no rollout is under way");
    }
    print(printer, &status, || {
        status_lines(&status, now(), printer.paint)
    })
}

pub(super) fn print<T: serde::Serialize>(
    printer: &Printer,
    value: &T,
    lines: impl FnOnce() -> Vec<String>,
) -> Result<Exit, Failure> {
    if printer.json {
        printer.json(value)?;
    } else {
        printer.data(&lines().join("\n"))?;
    }
    Ok(Exit::Done)
}

fn environment_state(state: EnvironmentState, paint: Paint) -> String {
    let word = state.as_str();
    match state {
        EnvironmentState::Serving => paint.good(word),
        EnvironmentState::Degraded | EnvironmentState::Stopped => paint.warn(word),
        EnvironmentState::Down => paint.bad(word),
        EnvironmentState::Empty | EnvironmentState::Unknown => word.to_owned(),
    }
}

/// What a database has seen, in a line.
fn schema_line(schema: &landfast_api::Schema, paint: Paint) -> String {
    let newest = schema.newest.as_ref();
    let newest = newest.map_or(String::new(), |name| format!(", the newest `{name}`"));
    let waiting = schema.waiting.iter().map(|migration| {
        let state = if migration.begun { "begun" } else { "waits" };
        format!("{} ({}, {state})", migration.name, migration.phase.as_str())
    });
    let waiting: Vec<_> = waiting.collect();
    let line = format!(
        "schema {}  {} applied{newest}",
        schema.store, schema.applied
    );
    if waiting.is_empty() {
        line
    } else {
        format!("{line}; {}", paint.warn(&waiting.join(", ")))
    }
}

fn status_lines(status: &EnvironmentStatus, now: Timestamp, paint: Paint) -> Vec<String> {
    let release = status
        .release
        .map_or_else(|| "no release".to_owned(), |id| format!("release {id}"));
    let title = paint.bold(&format!("{}/{}", status.app, status.environment));
    let mut lines = vec![format!(
        "{title}  {}, {release}",
        environment_state(status.state, paint)
    )];
    if let Some(release) = status
        .releases
        .iter()
        .find(|one| Some(one.id) == status.release)
    {
        let commit = release
            .commit
            .as_ref()
            .map(|commit| format!(", commit {}", commit.get(..12).unwrap_or(commit)));
        let note = release.note.as_ref().map(|note| format!(", “{note}”"));
        let words = format!(
            "  made {} UTC{}{}",
            instant(release.created_at),
            commit.unwrap_or_default(),
            note.unwrap_or_default()
        );
        lines.push(paint.dim(&words));
    }
    for problem in &status.problems {
        lines.push(format!("{} {}", paint.bad("problem:"), problem.text));
        lines.extend(
            problem
                .hint
                .iter()
                .map(|hint| format!("{} {hint}", paint.good("hint:"))),
        );
    }
    lines.extend(
        status
            .schemas
            .iter()
            .map(|schema| schema_line(schema, paint)),
    );
    for service in &status.services {
        lines.push(String::new());
        let scaled = if status.scale_overrides.contains_key(&service.service) {
            format!(" (scaled; the manifest says {})", service.replicas_manifest)
        } else {
            String::new()
        };
        lines.push(format!(
            "service {}  {} wanted{scaled}",
            paint.bold(&service.service),
            service.replicas_wanted
        ));
        lines.extend(view::unprotected(&service.protections, paint));
        for group in &service.groups {
            let role = match group.role {
                GroupRole::Serving => "serving",
                GroupRole::Incoming => "incoming",
                GroupRole::Standby => "standing by",
                GroupRole::Leaving => "leaving",
                GroupRole::Unknown => "unknown",
            };
            if group.wanted == 0 && group.instances.is_empty() {
                // Rolling lets the instances go and keeps what starts them.
                lines.push(format!(
                    "  release {} {role}: none runs; kept to be started",
                    group.release
                ));
                continue;
            }
            lines.push(format!(
                "  release {} {role}: {} of {} ready, {} of new requests",
                group.release,
                group.ready,
                group.wanted,
                percent(group.weight_percent),
            ));
        }
        let all = service
            .groups
            .iter()
            .flat_map(|group| group.instances.clone())
            .collect::<Vec<_>>();
        if !all.is_empty() {
            lines.extend(
                view::instances(&all, now, paint)
                    .lines()
                    .map(|line| format!("  {line}")),
            );
            let replaced = view::replaced(&all);
            lines.extend(replaced.iter().map(|line| format!("  {line}")));
        }
    }
    for store in &status.stores {
        lines.push(String::new());
        lines.extend(super::store::show_lines(store, paint));
    }
    let lost = status.backups.iter().filter_map(|one| {
        let rpo = super::backup::rpo(one)?;
        Some(format!("backups of {}: {rpo}", one.store))
    });
    let lost: Vec<_> = lost.collect();
    if !lost.is_empty() {
        lines.push(String::new());
        lines.extend(lost);
    }
    if !status.routes.is_empty() {
        lines.push(String::new());
        for route in &status.routes {
            lines.push(format!(
                "route {}  {}{} → {}",
                route.route, route.host, route.path, route.service
            ));
        }
    }
    if let Some(rollout) = &status.rollout {
        lines.push(String::new());
        lines.extend(view::live(rollout, now, paint));
    }
    lines
}

fn apps_lines(apps: &AppList, paint: Paint) -> Vec<String> {
    let row = |one: &landfast_api::AppSummary| {
        vec![
            format!("{}/{}", one.app, one.environment),
            environment_state(one.state, paint),
            one.release
                .map_or_else(|| "–".to_owned(), |release| release.to_string()),
            format!("{}/{}", one.instances_ready, one.instances_wanted),
            one.rollout
                .as_ref()
                .map(|rollout| {
                    format!("{} → release {}: {}", rollout.id, rollout.to, rollout.phase)
                })
                .unwrap_or_default(),
        ]
    };
    if apps.apps.is_empty() {
        return vec!["nothing was deployed on this host yet".to_owned()];
    }
    let head = ["ENVIRONMENT", "STATE", "RELEASE", "READY", "ROLLOUT"];
    vec![table(&head, &[2, 3], apps.apps.iter().map(row).collect())]
}

fn host_lines(host: &Host) -> Vec<String> {
    let list = |addresses: &[String]| {
        if addresses.is_empty() {
            "–".to_owned()
        } else {
            addresses.join(", ")
        }
    };
    let proxy = match (host.proxy.reachable, &host.proxy.version, host.proxy.pid) {
        (true, Some(version), Some(pid)) => format!("{version}, pid {pid}"),
        (true, _, _) => "running".to_owned(),
        (false, _, _) => "does not answer".to_owned(),
    };
    let resources = &host.resources;
    let mut lines = vec![
        format!("host       {}", host.name),
        format!(
            "server     {}, pid {}, start {}, since {} UTC",
            host.version,
            host.pid,
            host.generation,
            instant(host.started_at)
        ),
        format!("client     {}", env!("CARGO_PKG_VERSION")),
        format!("proxy      {proxy}"),
        format!("http       {}", list(&host.listeners.http)),
        format!("https      {}", list(&host.listeners.https)),
        format!(
            "preview    {}",
            host.listeners.preview.as_deref().unwrap_or("–")
        ),
        format!(
            "api        {}",
            list(
                &[
                    vec![host.listeners.socket.clone()],
                    host.listeners.tcp.clone()
                ]
                .concat()
            )
        ),
        format!("state      {}", host.folders.state),
        format!("run        {}", host.folders.run),
        format!(
            "cpu        {}, {} promised",
            cores(resources.cpu_millis),
            cores(resources.cpu_promised_millis)
        ),
        format!(
            "memory     {}, {} available, {} promised",
            bytes(resources.memory_bytes),
            bytes(resources.memory_available_bytes),
            bytes(resources.memory_promised_bytes),
        ),
        format!(
            "disk       {}, {} free",
            bytes(resources.disk_bytes),
            bytes(resources.disk_free_bytes)
        ),
    ];
    lines.extend(
        host.proxy
            .problems
            .iter()
            .chain(&host.notes)
            .map(|note| format!("note       {note}")),
    );
    lines
}

pub(super) async fn history(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &args::History,
) -> Result<Exit, Failure> {
    let mut history = client.history(&scope(global)?).await?;
    history.rollouts.truncate(arguments.limit);
    print(printer, &history, || {
        history_lines(&history, now(), printer.paint)
    })
}

fn history_lines(history: &History, now: Timestamp, paint: Paint) -> Vec<String> {
    let rollout = |one: &Rollout| {
        let ledger = &one.ledger;
        let lost = number(ledger.lost);
        vec![
            one.id.to_string(),
            view::releases(one),
            match one.kind {
                RolloutKind::Deploy => view::strategy(one.strategy).to_owned(),
                RolloutKind::Rollback | RolloutKind::Restart | RolloutKind::Unknown => {
                    format!("{}, {}", view::kind(one.kind), view::strategy(one.strategy))
                }
            },
            view::state(one.state, paint),
            instant(one.started_at),
            since(
                one.ended_at.or(one.promoted_at).map_or(now, |at| at.0),
                one.started_at,
            ),
            number(ledger.requests),
            if ledger.lost > 0 {
                paint.bad(&lost)
            } else {
                lost
            },
            millis(ledger.latency_p99.during_ms),
            one.by.clone().unwrap_or_default(),
            one.reason
                .clone()
                // The note is the release's: it says why that was made, not why it was returned to.
                .or_else(|| one.note.clone().filter(|_| one.kind == RolloutKind::Deploy))
                .unwrap_or_default(),
        ]
    };
    let head = [
        "ROLLOUT",
        "MOVED",
        "STRATEGY",
        "ENDED",
        "STARTED (UTC)",
        "TOOK",
        "REQUESTS",
        "LOST",
        "P99",
        "BY",
        "",
    ];
    let rollouts = table(
        &head,
        &[0, 6, 7, 8],
        history.rollouts.iter().map(rollout).collect(),
    );
    let release = |one: &landfast_api::Release| {
        let commit = one
            .commit
            .as_ref()
            .map(|commit| commit.get(..12).unwrap_or(commit).to_owned());
        let artifacts = one
            .artifacts
            .values()
            .map(|digest| digest.get(..12).unwrap_or(digest).to_owned());
        let images = one.images.iter().map(|(key, image)| {
            let id = image.id.trim_start_matches("sha256:");
            format!("{key} ({})", id.get(..12).unwrap_or(id))
        });
        let artifacts = artifacts.chain(images);
        vec![
            one.id.to_string(),
            view::release_state(one).to_owned(),
            if one.sealed {
                "yes".to_owned()
            } else {
                "no".to_owned()
            },
            instant(one.created_at),
            artifacts.collect::<Vec<_>>().join(" "),
            commit.unwrap_or_default(),
            match &one.obstacle {
                None => "yes".to_owned(),
                Some(_) => paint.bad("no"),
            },
            one.note.clone().unwrap_or_default(),
        ]
    };
    let head = [
        "RELEASE",
        "STATE",
        "SEALED",
        "MADE (UTC)",
        "CONTENT",
        "COMMIT",
        "LIVES WITH SCHEMA",
        "NOTE",
    ];
    let releases = table(&head, &[0], history.releases.iter().map(release).collect());
    let mut lines = vec![releases];
    let obstacles = history
        .releases
        .iter()
        .filter_map(|one| one.obstacle.clone());
    // The newest tells the most.
    lines.extend(obstacles.take(1).map(|obstacle| paint.warn(&obstacle)));
    lines.extend([String::new(), rollouts]);
    lines
}

pub(super) async fn routes(printer: &Printer, client: &Client) -> Result<Exit, Failure> {
    let routes = client.routes().await?;
    print(printer, &routes, || routes_lines(&routes))
}

fn routes_lines(routes: &RouteList) -> Vec<String> {
    if routes.routes.is_empty() {
        return vec!["this host has no routes yet".to_owned()];
    }
    let weight = |one: &RouteWeight| format!("release {} {}", one.release, percent(one.percent));
    let row = |one: &landfast_api::Route| {
        let mut traits = vec![one.mode.clone()];
        traits.extend(one.websocket.then(|| "websocket".to_owned()));
        traits.extend(one.https_only.then(|| "https only".to_owned()));
        vec![
            format!("{}{}", one.host, one.path),
            format!("{}/{}/{}", one.app, one.environment, one.service),
            one.weights
                .iter()
                .map(weight)
                .collect::<Vec<_>>()
                .join(", "),
            traits.join(", "),
        ]
    };
    vec![table(
        &["ROUTE", "SERVICE", "TRAFFIC", ""],
        &[],
        routes.routes.iter().map(row).collect(),
    )]
}
