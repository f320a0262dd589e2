//! Whether this host can carry what it is to carry.

use axum::{extract::State, response::Response};
use http::StatusCode;
use landfast_api::{DoctorRequest, Manifest, Problem, ProblemCode};
use landfast_doctor::{Docker, DockerFacts, Finding, Level, Needs, Places};
use landfast_engine::stores;
use landfast_spec::AppSpec;
use landfast_target::{DaemonFacts, Outage};
use landfast_types::EnvironmentName;

use super::upload::blocking;
use crate::{
    answer::{Answer, Failure, Json, diagnostics},
    idempotency::json_response,
    state::AppState,
    wire,
};

pub(crate) async fn doctor(
    State(state): State<AppState>,
    Json(request): Json<DoctorRequest>,
) -> Answer<Response> {
    let spec = match &request.manifest {
        Some(manifest) => Some(read(manifest, request.environment.as_deref())?),
        None => None,
    };
    let mut needs = spec.as_ref().map_or_else(Needs::default, Needs::of);
    needs.users = request.users;
    needs.ports = Some(instance_ports());
    let proxy = state.platform.shared().hub.status().await.ok();
    let mut findings = vec![listeners(&state.settings.notes)];
    findings.extend(match proxy {
        None => vec![finding(
            "proxy",
            Level::Fail,
            "the proxy does not answer".to_owned(),
            "look into `proxy/proxy.log` in the state folder; the server starts it again by itself",
        )],
        Some(status) if status.problems.is_empty() => {
            let measured = format!("the proxy serves, version {}", status.version);
            vec![finding("proxy", Level::Ok, measured, "")]
        }
        Some(status) => {
            let advice = "correct what it names; until then it serves without it";
            let warn = |problem| finding("proxy", Level::Warn, problem, advice);
            status.problems.into_iter().map(warn).collect()
        }
    });
    let daemon = state.platform.shared().target.daemon().await;
    let is_needed = spec.as_ref().is_some_and(|spec| !spec.images().is_empty());
    // Its own ports are listened on by the proxy: there is nothing to bind.
    let places = Places {
        state: state.settings.state.clone(),
        ports: Vec::new(),
    };
    findings.extend(
        blocking(move || {
            let facts = landfast_doctor::measure(&places, |_| None);
            let mut findings = landfast_doctor::judge(&facts, &needs);
            findings.extend(landfast_doctor::judge_docker(&docker(daemon), is_needed));
            findings
        })
        .await?,
    );
    if let Some(spec) = &spec {
        findings.extend(stores::diagnose(state.platform.shared(), spec).await);
    }
    Ok(json_response(StatusCode::OK, &wire::diagnosis(findings)))
}

/// What is known of the daemon that containers run on.
fn docker(daemon: Option<Result<DaemonFacts, Outage>>) -> Docker {
    match daemon {
        None => Docker::Off,
        Some(Err(outage)) => Docker::Away {
            what: outage.what,
            reason: outage.reason,
        },
        Some(Ok(facts)) => Docker::Answers(DockerFacts {
            what: facts.what,
            api_version: facts.api_version,
            storage_driver: facts.storage_driver,
            cgroup_version: facts.cgroup_version,
            has_live_restore: facts.has_live_restore,
            lacks: facts.lacks,
            elsewhere: facts.elsewhere,
            data: facts.data.as_deref().and_then(landfast_doctor::room),
        }),
    }
}

/// The ports instances are given.
pub fn instance_ports() -> (u16, u16) {
    landfast_target_process::PORTS.into_inner()
}

fn listeners(notes: &[String]) -> Finding {
    if notes.is_empty() {
        let measured = "the proxy listens where it was told".to_owned();
        return finding("listeners", Level::Ok, measured, "");
    }
    let advice = "run the server as root, or give it ports it may bind with --http and --https";
    finding("listeners", Level::Warn, notes.join("; "), advice)
}

fn finding(check: &'static str, level: Level, measured: String, advice: &str) -> Finding {
    let advice = (level != Level::Ok).then(|| advice.to_owned());
    Finding {
        check,
        level,
        measured,
        advice,
    }
}

fn read(manifest: &Manifest, environment: Option<&str>) -> Answer<AppSpec> {
    let environment = environment.unwrap_or(landfast_spec::ENVIRONMENT_DEFAULT);
    let environment: EnvironmentName =
        environment
            .parse()
            .map_err(|error: landfast_types::NameError| {
                Failure::new(ProblemCode::RequestInvalid, error.to_string())
            })?;
    let parsed = landfast_spec::parse(&manifest.file_name, &manifest.text, &environment);
    let Some(spec) = parsed.spec else {
        let detail = format!("{} cannot be used", manifest.file_name);
        let mut problem = Problem::new(ProblemCode::ManifestInvalid, detail);
        problem.diagnostics = diagnostics(&parsed.diagnostics);
        return Err(problem.into());
    };
    Ok(spec)
}
