//! Errors as problem details (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::{Value, json};

/// A refusal or failure, as it goes to the client.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// The last part of the `type` address.
    kind: &'static str,
    detail: String,
    errors: Vec<FieldError>,
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct FieldError {
    /// A JSON pointer.
    pub pointer: String,
    pub detail: String,
}

impl FieldError {
    pub(crate) fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

impl Problem {
    pub(crate) fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    pub(crate) fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = format!("{} field(s) are not valid", errors.len());
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            kind: "invalid",
            detail,
            errors,
        }
    }

    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not-found",
            format!("{what} `{id}` does not exist"),
        )
    }

    /// A failure of ours. The cause is for the log, not for the client.
    pub(crate) fn internal(doing: &str, error: &dyn std::fmt::Display) -> Self {
        let cause = json!({"doing": doing, "error": error.to_string()});
        crate::log::line(crate::log::Level::Error, "request failed", cause);
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            format!("failed to {doing}"),
        )
    }

    fn body(&self) -> Value {
        let mut body = json!({
            "type": format!("https://flextime.example/problems/{}", self.kind),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if !self.errors.is_empty() {
            body["errors"] = json!(self.errors);
        }
        body
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body().to_string()).into_response();
        let kind = http::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}
