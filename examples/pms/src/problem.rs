//! Errors as problem details (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

/// A refusal or failure, as it goes to the client.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// The last part of the `type` address.
    kind: &'static str,
    detail: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            detail: detail.into(),
        }
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
    }

    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        let detail = format!("{what} `{id}` does not exist");
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// A failure of ours. The cause is for the log, not for the client.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        let fields = json!({"error": cause.to_string()});
        crate::log::line(crate::log::Level::Error, "request failed", fields);
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something went wrong here",
        )
    }

    /// A store that does not answer. The cause is for the log, not for the client.
    pub(crate) fn away(store: &'static str, cause: &dyn std::fmt::Display) -> Self {
        let fields = json!({"store": store, "error": cause.to_string()});
        crate::log::line(crate::log::Level::Warn, "a store did not answer", fields);
        let detail = format!("the {store} does not answer; try again in a moment");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-away", detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body: Value = json!({
            "type": format!("https://pms.example/problems/{}", self.kind),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, kind, body.to_string()).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let soon = HeaderValue::from_static("2");
            response.headers_mut().insert(header::RETRY_AFTER, soon);
        }
        response
    }
}
