//! Repeating a request is safe: the first answer to a key is kept, and the same key with another body is refused.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use landfast_api::{IDEMPOTENCY_KEY, ProblemCode};
use landfast_journal::Journal;
use landfast_types::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Failure, chain};

const COLLECTION: &str = "idempotency";
const KEY_LEN_MAX: usize = 200;

/// A key together with what was asked under it.
pub(crate) struct Key {
    key: String,
    request: Digest,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    request: Digest,
    status: u16,
    body: serde_json::Value,
}

impl Key {
    /// The request's key, if it has one.
    pub(crate) fn of(headers: &HeaderMap, place: &str, body: &[u8]) -> Answer<Option<Self>> {
        let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
            return Ok(None);
        };
        let key = value
            .to_str()
            .ok()
            .filter(|key| !key.is_empty() && key.len() <= KEY_LEN_MAX);
        let key = key.ok_or_else(|| {
            let detail =
                format!("the {IDEMPOTENCY_KEY} must be 1 to {KEY_LEN_MAX} visible characters");
            Failure::new(ProblemCode::RequestInvalid, detail)
        })?;
        let mut hasher = Hasher::default();
        hasher.update_framed(place.as_bytes());
        hasher.update_framed(body);
        Ok(Some(Self {
            key: key.to_owned(),
            request: hasher.finish(),
        }))
    }

    /// The answer that was given before.
    pub(crate) fn earlier(&self, journal: &Arc<dyn Journal>) -> Answer<Option<Response>> {
        let found = journal.get(COLLECTION, &self.key);
        let found = found.map_err(|error| Failure::internal(chain(&error)))?;
        let Some(document) = found else {
            return Ok(None);
        };
        let kept: Kept = serde_json::from_slice(&document.body)
            .map_err(|error| Failure::internal(error.to_string()))?;
        if kept.request != self.request {
            let detail = format!("`{}` came with another request before", self.key);
            return Err(Failure::new(ProblemCode::KeyReused, detail));
        }
        let status = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
        Ok(Some(json_response(status, &kept.body)))
    }

    /// Keeps the answer for a repetition.
    pub(crate) fn keep<T: Serialize>(&self, journal: &Arc<dyn Journal>, status: u16, answer: &T) {
        let body = serde_json::to_value(answer).unwrap_or_default();
        let kept = Kept {
            request: self.request,
            status,
            body,
        };
        let bytes = serde_json::to_vec(&kept).expect("an answer has text keys");
        if let Err(error) = journal.put(COLLECTION, &self.key, None, bytes) {
            tracing::warn!(
                error = chain(&error),
                "an answer was not kept; repeating the request is not safe"
            );
        }
    }
}

/// A JSON answer.
pub(crate) fn json_response<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let body = serde_json::to_vec(value).expect("wire types have text keys");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
