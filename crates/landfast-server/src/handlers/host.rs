//! The host as a whole.

use std::fs;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header};
use landfast_api::{
    AppList, At, Folders, Health, Host, HostResources, Listeners, ProblemCode, ProxyInfo,
    RouteList, openapi_json,
};
use landfast_engine::planning;

use crate::{
    answer::{self, Answer, Failure},
    certificates, events,
    idempotency::json_response,
    state::AppState,
    wire,
};

pub(crate) async fn health(State(state): State<AppState>) -> Response {
    let health = Health {
        status: "ok".into(),
        version: state.settings.version.clone(),
        generation: state.platform.shared().generation.0,
    };
    json_response(StatusCode::OK, &health)
}

pub(crate) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi_json()).into_response()
}

pub(crate) async fn host(State(state): State<AppState>) -> Response {
    let settings = &state.settings;
    let status = state.platform.shared().hub.status().await.ok();
    let text = |addresses: &[std::net::SocketAddr]| {
        addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let listeners = Listeners {
        socket: settings.run.join("landfast.sock").display().to_string(),
        tcp: settings.tcp.iter().map(ToString::to_string).collect(),
        http: text(
            status
                .as_ref()
                .map_or(&settings.http, |status| &status.http),
        ),
        https: text(
            status
                .as_ref()
                .map_or(&settings.https, |status| &status.https),
        ),
        preview: status
            .as_ref()
            .and_then(|status| status.preview)
            .map(|at| at.to_string()),
    };
    let proxy = ProxyInfo {
        reachable: status.is_some(),
        version: status.as_ref().map(|status| status.version.clone()),
        pid: status.as_ref().map(|status| status.pid),
        problems: status.map(|status| status.problems).unwrap_or_default(),
    };
    let host = Host {
        name: fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        version: settings.version.clone(),
        generation: state.platform.shared().generation.0,
        pid: std::process::id(),
        started_at: At(state.started_at),
        proxy,
        listeners,
        folders: Folders {
            state: settings.state.display().to_string(),
            run: settings.run.display().to_string(),
        },
        resources: resources(&state),
        notes: settings.notes.clone(),
    };
    json_response(StatusCode::OK, &host)
}

fn resources(state: &AppState) -> HostResources {
    let host = planning::host();
    let promised = planning::promised_all(&state.platform.environments());
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim()
            .strip_suffix(" kB")?
            .trim()
            .parse::<u64>()
            .ok()
            .map(|kib| kib << 10)
    });
    let disk = rustix::fs::statvfs(&state.settings.state).ok();
    HostResources {
        cpu_millis: host.cpu.millicores,
        memory_bytes: host.memory.0,
        memory_available_bytes: available.unwrap_or(0),
        disk_bytes: disk
            .as_ref()
            .map_or(0, |stat| stat.f_blocks * stat.f_frsize),
        disk_free_bytes: disk
            .as_ref()
            .map_or(0, |stat| stat.f_bavail * stat.f_frsize),
        cpu_promised_millis: promised.cpu.millicores,
        memory_promised_bytes: promised.memory.0,
    }
}

pub(crate) async fn apps(State(state): State<AppState>) -> Response {
    let folders = &state.platform.shared().folders;
    let views = state.platform.environments();
    let apps = views
        .iter()
        .map(|view| wire::app_summary(view, folders))
        .collect();
    json_response(StatusCode::OK, &AppList { apps })
}

pub(crate) async fn routes(State(state): State<AppState>) -> Response {
    let views = state.platform.environments();
    let mut routes: Vec<_> = views.iter().flat_map(|view| wire::routes(view)).collect();
    // As they match: exact hosts before wildcards before any, then the longest path.
    let rank = |host: &str| match host {
        "*" => 2,
        host if host.starts_with("*.") => 1,
        _ => 0,
    };
    routes.sort_by(|a, b| {
        let key = |route: &landfast_api::Route| {
            (
                rank(&route.host),
                route.host.clone(),
                std::cmp::Reverse(route.path.len()),
            )
        };
        key(a).cmp(&key(b))
    });
    json_response(StatusCode::OK, &RouteList { routes })
}

pub(crate) async fn traffic(State(state): State<AppState>) -> Answer<Response> {
    let stats = state.platform.shared().hub.stats().await;
    let stats = stats
        .map_err(|error| Failure::new(ProblemCode::ProxyUnreachable, answer::chain(&error)))?;
    Ok(json_response(StatusCode::OK, &wire::traffic(&stats)))
}

pub(crate) async fn events(State(state): State<AppState>, headers: HeaderMap) -> Answer<Response> {
    events::stream(state, &headers, None).await
}

pub(crate) async fn metrics(State(state): State<AppState>) -> Response {
    let mut text = state
        .platform
        .shared()
        .hub
        .metrics()
        .await
        .unwrap_or_default();
    text.push_str("# HELP landfast_instances_ready Instances that count as ready.\n");
    text.push_str("# TYPE landfast_instances_ready gauge\n");
    for view in state.platform.environments() {
        let ready = view
            .state
            .instances
            .values()
            .filter(|instance| instance.is_serving())
            .count();
        let scope = &view.state.scope;
        let (app, environment) = (&scope.app, &scope.environment);
        text.push_str(&format!(
            "landfast_instances_ready{{app=\"{app}\",environment=\"{environment}\"}} {ready}\n"
        ));
    }
    let shared = state.platform.shared();
    text.push_str(&wire::store_metrics(&shared.stores.all()));
    text.push_str(&wire::backup_metrics(
        &shared.backups.all(),
        shared.clock.now(),
    ));
    text.push_str(&certificates::metrics(&state.certificates));
    let generation = state.platform.shared().generation;
    text.push_str("# HELP landfast_server_generation Grows with each start of the server.\n");
    text.push_str("# TYPE landfast_server_generation gauge\n");
    text.push_str(&format!("landfast_server_generation {generation}\n"));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
