//! Commands that move an environment without a new release.

use std::time::Duration;

use anyhow::anyhow;
use landfast_api::{
    EnvironmentState, EnvironmentStatus, RollbackRequest, Rollout, RolloutKind, ScaleRequest,
};
use landfast_client::Client;
use landfast_types::Scope;

use crate::{
    args::{self, Decision, Global, Reason, Replicas, Wait},
    context::{idempotency_key, scope},
    exit::{Exit, Failure},
    follow::{self, Want},
    out::Printer,
};

/// `stop` and `start` wait so long for what they ask for: longer than an instance may take to become ready.
const SETTLE_MAX: Duration = Duration::from_secs(600);
const SETTLE_STEP: Duration = Duration::from_millis(200);

/// The rollout that was named, or the one under way.
async fn rollout_id(client: &Client, scope: &Scope, named: Option<u64>) -> Result<u64, Failure> {
    if let Some(id) = named {
        return Ok(id);
    }
    let status = client.status(scope).await?;
    status.rollout.map(|rollout| rollout.id).ok_or_else(|| {
        let failure = Failure::new(Exit::NotNow, anyhow!("no rollout of {scope} is under way"));
        failure.hint("`landfast rollback` goes back to the release before; `landfast history` shows the last one")
    })
}

/// Follows what was just begun or decided.
pub(super) async fn stay(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    rollout: Rollout,
    wait: Wait,
    want: Want,
) -> Result<Exit, Failure> {
    if wait == Wait::Start {
        if printer.json {
            printer.json(&rollout)?;
        } else {
            let Rollout { id, phase, .. } = &rollout;
            printer.data(&format!("rollout {id} of {scope}: {phase}"))?;
        }
        return Ok(Exit::Done);
    }
    follow::follow(printer, client, scope, rollout, wait, want).await
}

pub(super) async fn promote(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &Decision,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let id = rollout_id(client, &scope, arguments.rollout).await?;
    let rollout = client
        .promote(&scope, id, arguments.reason.as_deref())
        .await?;
    stay(
        printer,
        client,
        &scope,
        rollout,
        arguments.wait,
        Want::Forward,
    )
    .await
}

pub(super) async fn abort(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &Decision,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let id = rollout_id(client, &scope, arguments.rollout).await?;
    let rollout = client
        .abort(&scope, id, arguments.reason.as_deref())
        .await?;
    stay(printer, client, &scope, rollout, arguments.wait, Want::Back).await
}

pub(super) async fn seal(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &Decision,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let id = rollout_id(client, &scope, arguments.rollout).await?;
    let rollout = client.seal(&scope, id, arguments.reason.as_deref()).await?;
    let wait = if arguments.wait == Wait::Start {
        Wait::Start
    } else {
        Wait::Seal
    };
    stay(printer, client, &scope, rollout, wait, Want::Forward).await
}

pub(super) async fn rollback(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: args::Rollback,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let request = RollbackRequest {
        to: arguments.to,
        reason: arguments.reason,
    };
    let rollout = client
        .rollback(&scope, &request, &idempotency_key())
        .await?;
    // Until its seal it is the rollout itself that is taken back, as was asked; after it, another one leads back.
    let want = if rollout.kind == RolloutKind::Rollback {
        Want::Forward
    } else {
        Want::Back
    };
    stay(printer, client, &scope, rollout, arguments.wait, want).await
}

pub(super) async fn restart(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &args::Restart,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let rollout = client
        .restart(&scope, arguments.reason.as_deref(), &idempotency_key())
        .await?;
    stay(
        printer,
        client,
        &scope,
        rollout,
        arguments.wait,
        Want::Forward,
    )
    .await
}

pub(super) async fn scale(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &args::Scale,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    let replicas = match arguments.replicas {
        Replicas::Count(replicas) => Some(replicas),
        Replicas::Manifest => None,
    };
    let request = ScaleRequest {
        service: arguments.service.to_string(),
        replicas,
    };
    let answer = client.scale(&scope, &request).await?;
    if printer.json {
        printer.json(&answer)?;
        return Ok(Exit::Done);
    }
    let landfast_api::ScaleAnswer {
        service,
        replicas,
        replicas_before,
        replicas_manifest,
    } = &answer;
    let manifest = if replicas == replicas_manifest {
        "as the manifest says".to_owned()
    } else {
        format!("the manifest says {replicas_manifest}; this holds until that changes")
    };
    printer.data(&format!(
        "{scope} {service}: {replicas_before} → {replicas} instances, {manifest}"
    ))?;
    Ok(Exit::Done)
}

pub(super) async fn stop(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &Reason,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    client.stop(&scope, arguments.reason.as_deref()).await?;
    let is_stopped = |status: &EnvironmentStatus| {
        status.state == EnvironmentState::Stopped && ready(status) == 0
    };
    let status = settle(printer, client, &scope, is_stopped).await?;
    said(
        printer,
        &status,
        "the maintenance page is shown until `landfast start`",
    )
}

pub(super) async fn start(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: &Reason,
) -> Result<Exit, Failure> {
    let scope = scope(global)?;
    client.start(&scope, arguments.reason.as_deref()).await?;
    let is_serving = |status: &EnvironmentStatus| status.state == EnvironmentState::Serving;
    let status = settle(printer, client, &scope, is_serving).await?;
    said(printer, &status, "`landfast status` shows the instances")
}

/// Waits until an environment is where it was sent, and says how far it is.
async fn settle(
    printer: &Printer,
    client: &Client,
    scope: &Scope,
    is_there: impl Fn(&EnvironmentStatus) -> bool,
) -> Result<EnvironmentStatus, Failure> {
    let began = tokio::time::Instant::now();
    let mut said = None;
    loop {
        let status = client.status(scope).await?;
        if is_there(&status) {
            return Ok(status);
        }
        let ready = ready(&status);
        if said.replace(ready) != Some(ready) {
            printer.say(&format!("{scope}: {ready} instances ready"));
        }
        if began.elapsed() > SETTLE_MAX {
            let failure = anyhow!(
                "{scope} is {} with {ready} instances ready, after {} minutes",
                status.state.as_str(),
                SETTLE_MAX.as_secs() / 60
            );
            let failure = Failure::new(Exit::Failed, failure);
            return Err(failure.hint("it goes on without this command; `landfast status` shows it"));
        }
        tokio::time::sleep(SETTLE_STEP).await;
    }
}

fn ready(status: &EnvironmentStatus) -> u32 {
    let groups = status.services.iter().flat_map(|service| &service.groups);
    groups.map(|group| group.ready).sum()
}

fn said(printer: &Printer, status: &EnvironmentStatus, then: &str) -> Result<Exit, Failure> {
    if printer.json {
        printer.json(status)?;
    } else {
        let EnvironmentStatus {
            app,
            environment,
            state,
            ..
        } = status;
        printer.data(&format!(
            "{app}/{environment} is {}; {then}",
            state.as_str()
        ))?;
    }
    Ok(Exit::Done)
}
