//! The endpoints.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use http::{HeaderName, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    database::{Booked, DatabaseError},
    documents,
    health::{Health, Stores},
    model::{Draft, Room, Stay},
    problem::Problem,
};

/// A scan of a signed form.
const DOCUMENT_BYTES_MAX: usize = 10 << 20;
const JSON_BYTES_MAX: usize = 64 << 10;
/// Too many connections, shutting down, a lock that was not given, a deadlock: it is worth another try.
const IS_BUSY: [u16; 4] = [1040, 1053, 1205, 1213];
/// Where what is free came from: `hit`, `miss` or `bypass`.
const CACHE: HeaderName = HeaderName::from_static("x-cache");

/// Everything a request may need.
pub(crate) struct App {
    pub stores: Arc<Stores>,
    pub health: watch::Receiver<Health>,
    pub version: String,
}

type Shared = State<Arc<App>>;

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let document = put(put_document)
        .get(document)
        .layer(DefaultBodyLimit::max(DOCUMENT_BYTES_MAX));
    Router::new()
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/health", get(health))
        .route("/api/rooms", get(rooms))
        .route("/api/rooms/free", get(free))
        .route("/api/rooms/{number}", put(put_room))
        .route("/api/reservations", post(book))
        .route("/api/reservations/{id}", get(reservation).delete(cancel))
        .route("/api/reservations/{id}/history", get(history))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .route("/api/reservations/{id}/document", document)
        .with_state(app)
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, body.to_string()).into_response()
}

/// The process answers. No store is asked: a restart brings none of them back.
async fn live() -> Response {
    answer(StatusCode::OK, &json!({"alive": true}))
}

/// Whether a new process may have clients.
async fn ready(State(app): Shared) -> Response {
    match app.health.borrow().was_ready {
        true => answer(StatusCode::OK, &json!({"ready": true})),
        false => {
            let reason = "the database does not answer, or lacks tables that this release needs";
            let body = json!({"ready": false, "reason": reason});
            answer(StatusCode::SERVICE_UNAVAILABLE, &body)
        }
    }
}

async fn health(State(app): Shared) -> Response {
    let health = app.health.borrow().clone();
    let mut response = answer(health.code(), &health.body(&app.version));
    let never = header::HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, never);
    response
}

async fn metrics(State(app): Shared) -> Response {
    let health = app.health.borrow().clone();
    let (hits, misses) = app.stores.cache.counts();
    let mut text = String::from("# TYPE pms_store_up gauge\n");
    for (store, check) in [
        ("database", &health.database),
        ("redis", &health.redis),
        ("storage", &health.storage),
    ] {
        let up = u8::from(check.result.is_ok());
        text.push_str(&format!("pms_store_up{{store=\"{store}\"}} {up}\n"));
    }
    text.push_str(&format!(
        "# TYPE pms_cache_hits_total counter\npms_cache_hits_total {hits}\n\
         # TYPE pms_cache_misses_total counter\npms_cache_misses_total {misses}\n"
    ));
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

async fn rooms(State(app): Shared) -> Result<Response, Problem> {
    let rooms = app
        .stores
        .database
        .rooms()
        .await
        .map_err(|error| refused(error, ""))?;
    Ok(answer(StatusCode::OK, &json!({"rooms": rooms})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoomBody {
    kind: String,
    price_cents: u32,
}

async fn put_room(
    State(app): Shared,
    Path(number): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
    let RoomBody { kind, price_cents } = read(&body)?;
    let room = Room {
        number,
        kind,
        price_cents,
    };
    if let Some(problem) = room.problem() {
        return Err(Problem::invalid(problem));
    }
    let put = app.stores.database.put_room(&room).await;
    put.map_err(|error| refused(error, &room.number))?;
    app.stores.cache.forget().await;
    Ok(answer(StatusCode::OK, &json!(room)))
}

async fn free(
    State(app): Shared,
    stay: Result<Query<Stay>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(stay) = stay.map_err(|error| bad_request(&error.body_text()))?;
    if let Some(problem) = stay.problem() {
        return Err(Problem::invalid(problem));
    }
    let (source, kept) = app.stores.cache.free(stay).await;
    let rooms = match kept {
        Ok(rooms) => rooms,
        Err(key) => {
            let rooms = app.stores.database.free(stay).await;
            let rooms = rooms.map_err(|error| refused(error, ""))?;
            if let Some(key) = key {
                app.stores.cache.keep(&key, &rooms).await;
            }
            rooms
        }
    };
    let mut response = answer(StatusCode::OK, &json!({"rooms": rooms}));
    let word = header::HeaderValue::from_static(source.word());
    response.headers_mut().insert(CACHE, word);
    Ok(response)
}

async fn book(State(app): Shared, body: Bytes) -> Result<Response, Problem> {
    let draft: Draft = read(&body)?;
    if let Some(problem) = draft.problem() {
        return Err(Problem::invalid(problem));
    }
    let booked = app.stores.database.book(&draft).await;
    let booked = booked.map_err(|error| refused(error, &draft.room))?;
    app.stores.cache.forget().await;
    // From what is known: a database that goes away now takes no booking back.
    let (status, reservation) = match booked {
        Booked::Now(reservation) => (StatusCode::CREATED, reservation),
        Booked::Before(id) => (
            StatusCode::OK,
            read_reservation(&app, &id.to_string()).await?,
        ),
    };
    let id = reservation.id;
    let mut response = answer(status, &json!(reservation));
    let place = header::HeaderValue::from_str(&format!("/api/reservations/{id}"));
    response
        .headers_mut()
        .extend(place.ok().map(|place| (header::LOCATION, place)));
    Ok(response)
}

async fn reservation(State(app): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    let reservation = read_reservation(&app, &id).await?;
    Ok(answer(StatusCode::OK, &json!(reservation)))
}

async fn cancel(State(app): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    let cancelled = app.stores.database.cancel(number(&id)?).await;
    cancelled.map_err(|error| refused(error, &id))?;
    app.stores.cache.forget().await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn history(State(app): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    let reservation = read_reservation(&app, &id).await?;
    let changes = app.stores.database.history(reservation.id).await;
    let changes = changes.map_err(|error| refused(error, &id))?;
    Ok(answer(StatusCode::OK, &json!({"changes": changes})))
}

async fn put_document(
    State(app): Shared,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, Problem> {
    if body.is_empty() {
        return Err(Problem::invalid("the document is empty"));
    }
    let reservation = read_reservation(&app, &id).await?;
    let put = app.stores.documents.put(reservation.id, body).await;
    let sha256 = put.map_err(|error| Problem::away("storage", &error))?;
    let set = app
        .stores
        .database
        .set_document(reservation.id, &sha256)
        .await;
    set.map_err(|error| refused(error, &id))?;
    Ok(answer(StatusCode::CREATED, &json!({"sha256": sha256})))
}

async fn document(State(app): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    let reservation = read_reservation(&app, &id).await?;
    let Some(sha256) = reservation.document_sha256 else {
        return Err(Problem::not_found("document of reservation", &id));
    };
    let document = app.stores.documents.get(reservation.id, &sha256).await;
    let document = document.map_err(|error| Problem::away("storage", &error))?;
    if documents::sha256(&document) != sha256 {
        let detail = "the document in the bucket is not the one that was signed";
        return Err(Problem::new(
            StatusCode::BAD_GATEWAY,
            "document-changed",
            detail,
        ));
    }
    // Whatever was signed is never shown as a page of this host.
    let kind = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment"),
    ];
    Ok((StatusCode::OK, kind, document).into_response())
}

async fn read_reservation(app: &App, id: &str) -> Result<crate::model::Reservation, Problem> {
    let found = app.stores.database.reservation(number(id)?).await;
    found.map_err(|error| refused(error, id))
}

fn number(id: &str) -> Result<u64, Problem> {
    id.parse()
        .map_err(|_| Problem::not_found("reservation", id))
}

fn refused(error: DatabaseError, id: &str) -> Problem {
    match error {
        DatabaseError::RoomUnknown => Problem::not_found("room", id),
        DatabaseError::ReservationUnknown => Problem::not_found("reservation", id),
        DatabaseError::Taken => {
            let detail = format!("room `{id}` is taken in these nights");
            Problem::new(StatusCode::CONFLICT, "taken", detail)
        }
        DatabaseError::Failed(mysql_async::Error::Server(ref said))
            if !IS_BUSY.contains(&said.code) =>
        {
            Problem::internal(&error)
        }
        DatabaseError::Silent | DatabaseError::Failed(_) => Problem::away("database", &error),
    }
}

fn bad_request(detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| bad_request(&error.to_string()))
}
