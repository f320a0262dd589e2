//! Certificates: what each host of the routes presents, until when, and what stands in the way of the next one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{At, Level};

/// The certificate of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// As routes name it: `api.example.com`, `*.example.com`.
    pub host: String,
    pub source: CertificateSource,
    pub state: CertificateState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<At>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<At>,
    /// When the next one is ordered; absent where nobody orders one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_order_at: Option<At>,
    /// Orders that failed since the last one that brought a certificate.
    #[serde(default)]
    pub failures: u32,
    /// Why the newest order failed, in the authority's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What somebody should look at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<CertificateAlert>,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateSource {
    /// Obtained and renewed by the server.
    Acme,
    /// Files the manifest names.
    Files,
    #[serde(other)]
    Unknown,
}

/// How a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateState {
    Valid,
    /// The first one is being obtained.
    Ordering,
    /// Valid, and being renewed just now.
    Renewing,
    /// There is none: the host is served over plain HTTP alone.
    Missing,
    Expired,
    #[serde(other)]
    Unknown,
}

impl CertificateState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Ordering => "ordering",
            Self::Renewing => "renewing",
            Self::Missing => "missing",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }
}

/// What somebody should look at, and how soon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateAlert {
    pub level: Level,
    pub text: String,
}

/// Every certificate of a host's routes, in order of name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct CertificateList {
    pub certificates: Vec<Certificate>,
    /// The directory of the authority; absent where ACME is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
}
