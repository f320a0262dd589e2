//! The stream of events: read from the journal, so that a reader who was away misses nothing.

use std::{convert::Infallible, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, header};
use landfast_api::{EVENT_HEARTBEAT_S, EVENT_STREAM, Event as WireEvent, ProblemCode};
use landfast_engine::{EVENT_KIND, read_secret_record, stores::read_rotation_record};
use landfast_rollout::Event;
use landfast_types::Scope;
use tokio::{
    sync::{mpsc, watch},
    time::Interval,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use crate::{
    answer::{Answer, Failure, chain},
    certificates,
    state::{AppState, until_leaving},
    wire,
};

const PAGE: usize = 500;
const HEARTBEAT: Duration = Duration::from_secs(EVENT_HEARTBEAT_S);
/// Pieces waiting for a slow reader; the reader of the journal waits beyond that.
const WAITING_MAX: usize = 16;

/// Streams the events of one environment, or of all, from where the reader left off.
pub(crate) async fn stream(
    state: AppState,
    headers: &HeaderMap,
    scope: Option<Scope>,
) -> Answer<Response> {
    let after = match headers.get("last-event-id") {
        Some(value) => {
            let number = value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse::<u64>().ok());
            Some(number.ok_or_else(|| {
                Failure::new(
                    ProblemCode::RequestInvalid,
                    "Last-Event-ID must be a number",
                )
            })?)
        }
        None => None,
    };
    let journal = state.platform.shared().journal.clone();
    let position = match after {
        Some(position) => position,
        None => tokio::task::spawn_blocking(move || journal.last_position())
            .await
            .map_err(|error| Failure::internal(error.to_string()))?
            .map_err(|error| Failure::internal(chain(&error)))?,
    };
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    state.spawn(follow(state.clone(), scope, position, sender));
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<Bytes, Infallible>));
    let response = Response::builder()
        .header(header::CONTENT_TYPE, EVENT_STREAM)
        .header(header::CACHE_CONTROL, "no-store")
        .header("x-accel-buffering", "no")
        .body(body);
    response.map_err(|error| Failure::internal(error.to_string()))
}

async fn follow(
    state: AppState,
    scope: Option<Scope>,
    mut position: u64,
    sender: mpsc::Sender<Bytes>,
) {
    let shared = state.platform.shared().clone();
    let mut news = shared.position.subscribe();
    let mut leaving = state.leaving.clone();
    if sender
        .send(Bytes::from_static(b": connected\n\n"))
        .await
        .is_err()
    {
        return;
    }
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.reset();
    loop {
        news.borrow_and_update();
        let journal = shared.journal.clone();
        let page = tokio::task::spawn_blocking(move || journal.read_all(position, PAGE)).await;
        let page = match page {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "events cannot be read");
                return;
            }
            Err(_) => return,
        };
        let full = page.len() == PAGE;
        let mut text = String::new();
        for record in page {
            position = record.position;
            // Certificates belong to the host, not to one environment.
            if record.kind == certificates::RECORD_KIND && scope.is_none() {
                text.extend(certificates::event(&record).map(|wire| as_text(&wire)));
            }
            if let Some((of, done)) = read_secret_record(&record)
                && scope.as_ref().is_none_or(|scope| *scope == of)
            {
                text.push_str(&as_text(&wire::secret_event(&record, &of, &done)));
            }
            if let Some(step) = read_rotation_record(&record)
                && scope.as_ref().is_none_or(|scope| *scope == step.0)
            {
                let told = wire::rotation_event(&record, &step);
                text.extend(told.map(|wire| as_text(&wire)));
            }
            if record.kind != EVENT_KIND {
                continue;
            }
            let of = record
                .stream
                .strip_prefix("environment/")
                .and_then(parse_scope);
            let Some(of) = of.filter(|of| scope.as_ref().is_none_or(|scope| scope == of)) else {
                continue;
            };
            let Ok(event) = record.json::<Event>() else {
                continue;
            };
            if let Some(wire) = wire::event(record.position, &of, &event) {
                text.push_str(&as_text(&wire));
            }
        }
        if !text.is_empty() {
            if sender.send(Bytes::from(text)).await.is_err() {
                return;
            }
            beat.reset();
        }
        if full {
            continue;
        }
        let turn = tokio::select! {
            turn = turn(&mut news, &mut beat) => turn,
            () = until_leaving(&mut leaving) => Turn::Over,
            () = sender.closed() => Turn::Over,
        };
        match turn {
            Turn::News => {}
            Turn::Beat => {
                let sent = sender.send(Bytes::from_static(b": still here\n\n")).await;
                if sent.is_err() {
                    return;
                }
            }
            Turn::Over => return,
        }
    }
}

enum Turn {
    /// The journal has grown, perhaps by something this reader is told.
    News,
    /// Nothing was sent for a while.
    Beat,
    Over,
}

/// What is next. The beat goes its own way: news that this reader is not told of would put it off for ever.
async fn turn(news: &mut watch::Receiver<u64>, beat: &mut Interval) -> Turn {
    tokio::select! {
        biased;
        _ = beat.tick() => Turn::Beat,
        changed = news.changed() => if changed.is_ok() { Turn::News } else { Turn::Over },
    }
}

fn as_text(event: &WireEvent) -> String {
    let data = serde_json::to_string(event).expect("an event has text keys");
    let (id, kind) = (event.sequence, &event.kind);
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n")
}

fn parse_scope(text: &str) -> Option<Scope> {
    let (app, environment) = text.split_once('/')?;
    Some(Scope {
        app: app.parse().ok()?,
        environment: environment.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn news_of_others_do_not_put_the_heartbeat_off() {
        let (sender, mut news) = watch::channel(0);
        let mut beat = tokio::time::interval(Duration::from_millis(20));
        beat.reset();
        let mut beats = 0;
        // News come more often than the heart beats.
        for position in 1..=2_000 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            sender.send_replace(position);
            match turn(&mut news, &mut beat).await {
                Turn::Beat => beats += 1,
                Turn::News => drop(news.borrow_and_update()),
                Turn::Over => panic!("the sender is there"),
            }
            if beats == 3 {
                return;
            }
        }
        panic!("{beats} beats");
    }
}
