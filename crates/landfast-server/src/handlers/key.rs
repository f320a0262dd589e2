//! The key of the secrets: what it is, a copy of it, and the proof that the copy is one.

use std::sync::Arc;

use axum::{Extension, extract::State, response::Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use landfast_api::{ProblemCode, SecretsKey, SecretsKeyRotated, SecretsKeyText};

use super::{
    actor,
    secret::{text, unstored},
    upload::blocking,
};
use crate::{
    answer::{Answer, Failure, chain},
    idempotency::json_response,
    secrets_key,
    state::{AppState, Transport},
};

pub(crate) async fn show(State(state): State<AppState>) -> Answer<Response> {
    let key = describe(&state).await?;
    Ok(json_response(StatusCode::OK, &key))
}

pub(crate) async fn export(
    State(state): State<AppState>,
    Extension(transport): Extension<Transport>,
    headers: HeaderMap,
) -> Answer<Response> {
    transport.may_see_secrets()?;
    let shared = Arc::clone(state.platform.shared());
    let by = actor(&headers);
    let exported = blocking(move || {
        let (vault, now) = (&shared.secrets.vault(), shared.clock.now());
        // Remembered before it is given out.
        secrets_key::exported(shared.journal.as_ref(), vault, now)?;
        let id = vault.key_id().to_string();
        tracing::warn!(key = id, by, "the key of the secrets was exported");
        let text = vault.export();
        Ok::<_, secrets_key::CopyError>(SecretsKeyText { id, text })
    });
    let exported = exported.await?;
    let exported = exported.map_err(|error| Failure::internal(chain(&error)))?;
    Ok(unstored(&exported))
}

pub(crate) async fn rotate(
    State(state): State<AppState>,
    Extension(transport): Extension<Transport>,
    headers: HeaderMap,
) -> Answer<Response> {
    transport.may_see_secrets()?;
    let shared = Arc::clone(state.platform.shared());
    let (source, by) = (state.settings.key_source(), actor(&headers));
    let rotated = blocking(move || {
        let rotated = secrets_key::rotate(shared.journal.as_ref(), &shared.secrets, &source)?;
        let (old, new) = (rotated.0, shared.secrets.vault().key_id());
        tracing::warn!(%old, %new, by, "the key of the secrets was replaced");
        Ok::<_, secrets_key::RekeyError>(rotated)
    });
    let (previous, aside, rewrapped) = rotated.await?.map_err(|error| match error {
        secrets_key::RekeyError::Credential => {
            let problem = landfast_api::Problem::new(ProblemCode::NotNow, error.to_string());
            let hint = "`landfast secret key export` into a file (mode 0600), start the server with `--secrets-key FILE`, rotate, and make that file the credential";
            Failure::from(problem.with_hint(hint))
        }
        secrets_key::RekeyError::Unopened(_) => {
            let problem = landfast_api::Problem::new(ProblemCode::NotNow, error.to_string());
            let hint = "start the server with the key it was sealed under (`--secrets-key`), or set each anew and revoke its old versions (`landfast secret history NAME`); until then the key stays";
            Failure::from(problem.with_hint(hint))
        }
        error @ (secrets_key::RekeyError::Key(_)
        | secrets_key::RekeyError::Secret(_)
        | secrets_key::RekeyError::Read(_)
        | secrets_key::RekeyError::Left(_)) => Failure::internal(chain(&error)),
    })?;
    let answer = SecretsKeyRotated {
        key: describe(&state).await?,
        previous: previous.to_string(),
        previous_path: aside.display().to_string(),
        rewrapped,
    };
    Ok(json_response(StatusCode::OK, &answer))
}

pub(crate) async fn confirm(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let copy = text(&body, "a key")?;
    let shared = Arc::clone(state.platform.shared());
    shared.secrets.vault().check_copy(&copy).map_err(|error| {
        let problem = landfast_api::Problem::new(ProblemCode::RequestInvalid, error.to_string());
        problem.with_hint(error.hint())
    })?;
    let by = actor(&headers);
    let source = state.settings.key_source();
    let confirmed = blocking(move || {
        let (vault, now) = (&shared.secrets.vault(), shared.clock.now());
        secrets_key::confirmed(shared.journal.as_ref(), vault, now, &by)?;
        secrets_key::forget_aside(&source);
        Ok::<_, secrets_key::CopyError>(())
    });
    let confirmed = confirmed.await?;
    confirmed.map_err(|error| Failure::internal(chain(&error)))?;
    let key = describe(&state).await?;
    Ok(json_response(StatusCode::OK, &key))
}

pub(crate) async fn describe(state: &AppState) -> Answer<SecretsKey> {
    let shared = Arc::clone(state.platform.shared());
    let source = state.settings.key_source();
    let described = blocking(move || {
        secrets_key::describe(shared.journal.as_ref(), &shared.secrets.vault(), &source)
    });
    let described = described.await?;
    described.map_err(|error| Failure::internal(chain(&error)))
}
