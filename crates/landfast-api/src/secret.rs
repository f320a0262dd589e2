//! Secrets and the key they are sealed under.

use landfast_types::Secret as Hidden;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{At, Rollout};

/// A secret's name and versions, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Secret {
    pub name: String,
    /// The newest.
    pub version: u64,
    pub set_at: At,
    /// How many versions are kept.
    pub versions: u32,
    /// The version the release that serves was pinned to; older than `version`: the next deploy takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<u64>,
}

/// The secrets of an environment, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct SecretList {
    pub secrets: Vec<Secret>,
}

/// The versions of a secret, and what was done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretHistory {
    pub name: String,
    /// Those that are kept, the newest first.
    pub versions: Vec<SecretVersion>,
    /// Everything that was done with it, the newest first: changes, and each time its value was shown.
    pub deeds: Vec<SecretDeed>,
}

/// One version of a secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretVersion {
    pub version: u64,
    pub set_at: At,
    pub state: SecretVersionState,
    /// How it came to be, in words: `set`, `imported`, `rolled back to 3`, `rotated`.
    pub origin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<At>,
    /// The releases that were made with it, of those that are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub releases: Vec<u64>,
}

/// What a version is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecretVersionState {
    /// New releases get it.
    Current,
    /// Kept for releases that pinned it, and for a rollback.
    Kept,
    /// Its value was forgotten.
    Revoked,
    #[serde(other)]
    Unknown,
}

/// One thing that was done with a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretDeed {
    pub at: At,
    /// `set`, `imported`, `rolled-back`, `rotated`, `revoked`, `removed` or `revealed`.
    pub deed: String,
    pub version: u64,
    pub by: String,
}

/// Ask for a value. Each answer is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SecretRevealRequest {
    /// The newest where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// A value. Only over the Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretValue {
    pub name: String,
    pub version: u64,
    #[schema(value_type = String)]
    pub value: Hidden<String>,
}

/// Go back to the value of an earlier version, as a new version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SecretRollbackRequest {
    /// The newest before the current one where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}

/// Set a secret to another value and bring it to the instances.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct SecretRotateRequest {
    /// The new value. One is generated where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub value: Option<Hidden<String>>,
    /// Of a generated value, in characters: 16 to 4096, and 32 where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
    /// Of a generated value: `alphanumeric` (also where it is not given), `hex`, `base64url` or `printable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alphabet: Option<String>,
    /// Leave the instances as they are; the next deploy takes the new value.
    pub no_restart: bool,
}

/// What a rotation began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretRotated {
    pub secret: Secret,
    /// The rollout that brings it to the instances one after another. None where nothing serves that has the secret, and
    /// where nobody was to be restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// Forget the value of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretRevokeRequest {
    pub version: u64,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct SecretImported {
    /// In the order of the file.
    pub secrets: Vec<SecretStored>,
}

/// One name of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretStored {
    pub name: String,
    pub version: u64,
    /// False where it had this value already.
    pub changed: bool,
}

/// The key this host's secrets are sealed under, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretsKey {
    /// 16 hexadecimal digits, derived from the key.
    pub id: String,
    /// `state`, `file` or `credential`.
    pub source: String,
    pub path: String,
    /// How many secrets there are on this host, those of all environments together.
    pub secrets: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exported_at: Option<At>,
    /// When a copy in a safe place was last shown to be one of this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<String>,
    /// The key it replaces, while that is not at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
}

/// What replacing the key did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretsKeyRotated {
    pub key: SecretsKey,
    /// The key that was replaced.
    pub previous: String,
    /// Where it was put aside. It is removed when a copy of the new one is confirmed.
    pub previous_path: String,
    /// How many secrets and passwords were re-wrapped.
    pub rewrapped: u64,
}

/// The text of the key file. Only over the Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretsKeyText {
    pub id: String,
    #[schema(value_type = String)]
    pub text: Hidden<String>,
}
