//! What the proxy does with answers on their way out, as the snapshot says it.

use landfast_types::{Digest, ReleaseId, Timestamp};
use serde::{Deserialize, Serialize};

/// How a service's instances are spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Protocol {
    #[default]
    #[serde(rename = "http/1.1")]
    Http1,
    /// HTTP/2 without TLS, known beforehand (RFC 9113, 3.3): what gRPC servers speak.
    #[serde(rename = "h2c")]
    H2c,
}

/// What a route does with answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteAnswers {
    /// Whether answers are compressed for clients that take them so.
    #[serde(default)]
    pub compress: bool,
    #[serde(default)]
    pub files: Option<RouteFiles>,
    /// The artifact with `404.html`, `502.html`, `503.html`, `504.html` and `maintenance.html`, as far as there.
    #[serde(default)]
    pub error_pages: Option<Digest>,
}

/// Static files in front of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteFiles {
    /// Of each release that can still serve or is tested.
    pub roots: Vec<FilesRoot>,
    pub missing: MissingFile,
    /// The value of `Cache-Control`; pages (HTML) always get `no-cache`.
    pub cache_control: String,
}

/// The files of one release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesRoot {
    pub release: ReleaseId,
    /// The folder in the store.
    pub artifact: Digest,
    /// When the release was made: the date of its files.
    pub modified: Timestamp,
    /// Whether clients of other releases may get what only this one has: not before it is exposed.
    pub exposed: bool,
}

/// What follows where no file has the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingFile {
    /// The service is asked.
    #[default]
    Service,
    /// 404, without asking the service.
    NotFound,
    /// `/index.html` where a page was asked for, for apps that route in the browser; else 404.
    Index,
}
