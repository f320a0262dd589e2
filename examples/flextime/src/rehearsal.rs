//! Endpoints for rehearsals: a judge outside proves with them that no request is lost.
//!
//! They are in every release, so that what is rehearsed is what runs. Each process writes its own log of
//! receipts; an id in it was received whole, and the judge compares the logs of all processes with what it sent.

use std::{
    io::Write as _,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use axum::{
    extract::{Query, Request, State},
    response::Response,
};
use futures_util::StreamExt as _;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    clock,
    http::{APP_TIME, Shared, app_time, json_response},
    problem::Problem,
    release::hex,
};

const WAIT_MAX: Duration = Duration::from_secs(60);

/// `POST /v2/rehearsal/receipts`: reads the whole body, then writes the id to the log, then answers.
pub(crate) async fn receipt(State(app): Shared, request: Request) -> Result<Response, Problem> {
    let bad = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail);
    let id = request
        .headers()
        .get("x-receipt-id")
        .and_then(|id| id.to_str().ok());
    let plain =
        |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    let id = id
        .filter(plain)
        .ok_or_else(|| bad("`x-receipt-id` must have 1 to 128 visible characters"))?
        .to_owned();
    let mut body = request.into_body().into_data_stream();
    let (mut hasher, mut length) = (Sha256::new(), 0_u64);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| bad(&format!("the body ended early: {error}")))?;
        hasher.update(&chunk);
        length += chunk.len() as u64;
    }
    // What the application took begins here: before, it waited for the client.
    let whole = clock::instant();
    let (log_app, line) = (Arc::clone(&app), format!("{id}\n"));
    let written = tokio::task::spawn_blocking(move || {
        // The file is in append mode and the line is one write, so lines are whole whoever else writes.
        log_app
            .receipts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(line.as_bytes())
    });
    match written.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(Problem::internal("write the receipt", &error)),
        Err(error) => return Err(Problem::internal("write the receipt", &error)),
    }
    app.metrics.receipts.fetch_add(1, Ordering::Relaxed);
    let answer = json!({"id": id, "bytes": length, "sha256": hex(&hasher.finalize()), "instance": app.settings.instance});
    let mut response = json_response(StatusCode::OK, &answer);
    response
        .headers_mut()
        .insert(APP_TIME, app_time(clock::instant().duration_since(whole)));
    Ok(response)
}

/// How long to wait.
#[derive(Debug, Deserialize)]
pub(crate) struct WaitQuery {
    ms: u64,
}

/// `GET /v2/rehearsal/wait?ms=3000`: answers after that time.
pub(crate) async fn wait(Query(query): Query<WaitQuery>) -> Response {
    let time = Duration::from_millis(query.ms).min(WAIT_MAX);
    tokio::time::sleep(time).await;
    json_response(
        StatusCode::OK,
        &json!({"waited_milliseconds": time.as_millis() as u64}),
    )
}
