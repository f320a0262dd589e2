//! Commands that move an environment without a new release.

use anyhow::anyhow;
use landfast_api::{EnvironmentStatus, RollbackRequest, Rollout, ScaleRequest};
use landfast_client::Client;
use landfast_types::Scope;

use crate::{
    args::{self, Decision, Global, Reason, Replicas, Wait},
    context::{idempotency_key, scope},
    exit::{Exit, Failure},
    follow::{self, Want},
    out::Printer,
};

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
async fn stay(
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
    let status = client.stop(&scope, arguments.reason.as_deref()).await?;
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
    let status = client.start(&scope, arguments.reason.as_deref()).await?;
    said(printer, &status, "`landfast status` shows the instances")
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
