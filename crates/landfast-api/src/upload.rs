//! How an artifact travels: first its blobs, each resumable, then the listing that joins them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which of these blobs does the store lack?
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MissingBlobsRequest {
    /// SHA-256 digests, 64 lower-case hexadecimal digits each. At most 10,000.
    pub digests: Vec<String>,
}

/// The blobs the store lacks, in the order asked. A blob not named here is there, whole and checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct MissingBlobs {
    pub missing: Vec<MissingBlob>,
}

/// A blob the store lacks, or has the beginning of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MissingBlob {
    pub digest: String,
    /// How many bytes of it are already there: the next piece begins here.
    pub offset: u64,
}

/// How much of a blob is there after a piece was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobSize {
    pub size: u64,
}

/// What an artifact is made of. Its digest depends on this listing alone, never on order or times.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ArtifactListing {
    pub files: Vec<ArtifactEntry>,
}

/// One file, folder or symbolic link of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactEntry {
    /// Relative to the artifact's root, with `/` between the parts; never `..`, never absolute.
    pub path: String,
    pub kind: ArtifactEntryKind,
    /// Files only.
    #[serde(default)]
    pub executable: bool,
    /// Files only, in bytes.
    #[serde(default)]
    pub size: u64,
    /// Files only: SHA-256 of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Links only: where it points, inside the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What an entry of an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactEntryKind {
    File,
    Folder,
    Link,
}

/// The artifact is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactCreated {
    pub digest: String,
}
