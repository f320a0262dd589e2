//! Certificates: what is there, and renewing one by hand.

use axum::{
    extract::{Path, State},
    response::Response,
};
use http::StatusCode;
use landfast_acme::RenewError;
use landfast_api::ProblemCode;

use crate::{
    answer::{Answer, Failure},
    certificates,
    idempotency::json_response,
    state::AppState,
};

use super::upload::blocking;

pub(crate) async fn list(State(state): State<AppState>) -> Answer<Response> {
    let list = blocking(move || {
        let now = state.platform.shared().clock.wall();
        certificates::list(&state.certificates, &state.settings.acme, now)
    });
    Ok(json_response(StatusCode::OK, &list.await?))
}

pub(crate) async fn renew(
    State(state): State<AppState>,
    Path(host): Path<String>,
) -> Answer<Response> {
    let host = host.to_ascii_lowercase();
    let begun = state.certificates.renew(&host);
    begun.map_err(|error| {
        let code = match error {
            RenewError::Off => ProblemCode::AcmeOff,
            RenewError::Unknown(_) => ProblemCode::CertificateUnknown,
        };
        Failure::new(code, error.to_string())
    })?;
    let listed = blocking(move || {
        let now = state.platform.shared().clock.wall();
        let list = certificates::list(&state.certificates, &state.settings.acme, now);
        list.certificates.into_iter().find(|one| one.host == host)
    });
    let listed = listed.await?;
    let gone = || Failure::new(ProblemCode::CertificateUnknown, "its route is gone");
    Ok(json_response(
        StatusCode::ACCEPTED,
        &listed.ok_or_else(gone)?,
    ))
}
