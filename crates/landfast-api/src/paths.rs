//! Every path of the API, once. The braces are those of OpenAPI and of axum alike.

pub const HEALTH: &str = "/v1/health";
pub const OPENAPI: &str = "/v1/openapi.json";
pub const HOST: &str = "/v1/host";
pub const DOCTOR: &str = "/v1/host/doctor";
pub const APPS: &str = "/v1/apps";
pub const ROUTES: &str = "/v1/routes";
pub const CERTIFICATES: &str = "/v1/certificates";
pub const CERTIFICATE_RENEW: &str = "/v1/certificates/{host}/renew";
pub const TRAFFIC: &str = "/v1/traffic";
pub const EVENTS: &str = "/v1/events";
pub const METRICS: &str = "/v1/metrics";

pub const BLOBS_MISSING: &str = "/v1/blobs/missing";
pub const BLOB: &str = "/v1/blobs/{digest}";
pub const ARTIFACTS: &str = "/v1/artifacts";

pub const ENVIRONMENT: &str = "/v1/apps/{app}/environments/{environment}";
pub const HISTORY: &str = "/v1/apps/{app}/environments/{environment}/history";
pub const ENVIRONMENT_EVENTS: &str = "/v1/apps/{app}/environments/{environment}/events";
pub const LOGS: &str = "/v1/apps/{app}/environments/{environment}/logs";
pub const PLAN: &str = "/v1/apps/{app}/environments/{environment}/plan";
pub const IMAGES: &str = "/v1/apps/{app}/environments/{environment}/images";
pub const ROLLOUTS: &str = "/v1/apps/{app}/environments/{environment}/rollouts";
pub const ROLLOUT: &str = "/v1/apps/{app}/environments/{environment}/rollouts/{id}";
pub const PROMOTE: &str = "/v1/apps/{app}/environments/{environment}/rollouts/{id}/promote";
pub const ABORT: &str = "/v1/apps/{app}/environments/{environment}/rollouts/{id}/abort";
pub const SEAL: &str = "/v1/apps/{app}/environments/{environment}/rollouts/{id}/seal";
pub const ROLLBACK: &str = "/v1/apps/{app}/environments/{environment}/rollback";
pub const SCALE: &str = "/v1/apps/{app}/environments/{environment}/scale";
pub const RESTART: &str = "/v1/apps/{app}/environments/{environment}/restart";
pub const STOP: &str = "/v1/apps/{app}/environments/{environment}/stop";
pub const START: &str = "/v1/apps/{app}/environments/{environment}/start";
pub const JOB_RUNS: &str = "/v1/apps/{app}/environments/{environment}/jobs/{job}/runs";
pub const JOB_RUN: &str = "/v1/apps/{app}/environments/{environment}/jobs/{job}/runs/{run}";
pub const EXEC: &str = "/v1/apps/{app}/environments/{environment}/exec";
pub const SECRETS: &str = "/v1/apps/{app}/environments/{environment}/secrets";
pub const SECRET: &str = "/v1/apps/{app}/environments/{environment}/secrets/{name}";
pub const SECRET_REVEAL: &str = "/v1/apps/{app}/environments/{environment}/secrets/{name}/reveal";
pub const SECRET_HISTORY: &str = "/v1/apps/{app}/environments/{environment}/secrets/{name}/history";
pub const SECRET_ROLLBACK: &str =
    "/v1/apps/{app}/environments/{environment}/secrets/{name}/rollback";
pub const SECRET_REVOKE: &str = "/v1/apps/{app}/environments/{environment}/secrets/{name}/revoke";
pub const SECRET_ROTATE: &str = "/v1/apps/{app}/environments/{environment}/secrets/{name}/rotate";
pub const SECRETS_KEY: &str = "/v1/host/secrets-key";
pub const SECRETS_KEY_EXPORT: &str = "/v1/host/secrets-key/export";
pub const SECRETS_KEY_CONFIRM: &str = "/v1/host/secrets-key/confirm";
pub const SECRETS_KEY_ROTATE: &str = "/v1/host/secrets-key/rotate";
pub const STORES: &str = "/v1/apps/{app}/environments/{environment}/stores";
pub const STORE: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}";
pub const STORE_CONNECTION: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/connection";
pub const STORE_RESTART: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}/restart";
pub const STORE_ROTATE: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}/rotate";
pub const STORE_SWITCH: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}/switch";
pub const STORE_DELETE: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}/delete";
pub const STORE_UNDELETE: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/undelete";

pub const BACKUPS: &str = "/v1/apps/{app}/environments/{environment}/backups";
pub const STORE_BACKUPS: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}/backups";
pub const BACKUPS_VERIFY: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/backups/verify";
pub const BACKUPS_PRUNE: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/backups/prune";
pub const DRILLS: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}/drills";
pub const RESTORES: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}/restores";
pub const BACKUP_KEY: &str = "/v1/host/backup-key";
pub const BACKUP_KEY_EXPORT: &str = "/v1/host/backup-key/export";
pub const BACKUP_KEY_CONFIRM: &str = "/v1/host/backup-key/confirm";

pub const MIGRATIONS: &str = "/v1/apps/{app}/environments/{environment}/stores/{store}/migrations";
pub const MIGRATIONS_PLAN: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/migrations/plan";
pub const MIGRATIONS_UP: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/migrations/up";
pub const MIGRATIONS_DOWN: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/migrations/down";
pub const MIGRATIONS_REHEARSE: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/migrations/rehearse";
pub const MIGRATIONS_ACCEPT: &str =
    "/v1/apps/{app}/environments/{environment}/stores/{store}/migrations/accept";

/// Puts values in place of the braces, in order, percent-encoded (RFC 3986, 2.1).
///
/// # Panics
/// When there are fewer values than braces: that is a slip in the calling code.
pub fn fill(template: &str, values: &[&str]) -> String {
    let mut path = String::with_capacity(template.len());
    let mut values = values.iter();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (_, after) = after
            .split_once('}')
            .expect("every brace of a path is closed");
        path.push_str(before);
        path.push_str(&encode(
            values.next().expect("a value for every brace of the path"),
        ));
        rest = after;
    }
    path.push_str(rest);
    path
}

/// Percent-encodes everything but the unreserved characters.
pub fn encode(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_leave_its_place_in_the_path() {
        assert_eq!(
            fill(SECRET, &["shop", "production", "../a b?"]),
            "/v1/apps/shop/environments/production/secrets/..%2Fa%20b%3F"
        );
        assert_eq!(fill(HEALTH, &[]), HEALTH);
    }
}
