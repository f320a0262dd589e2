//! Images of a manifest: brought to the host before a deploy names them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Manifest, Problem};

/// Have the images of this manifest on the server's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagesRequest {
    pub manifest: Manifest,
    /// What was built for it, by the name it was tagged with; the keys are those of `ImageFrame`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub built: BTreeMap<String, String>,
}

/// One image as a release keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinnedImage {
    /// As the manifest names it, or as it was tagged when it was built.
    pub reference: String,
    /// `name@sha256:…`, where a registry has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// What the host's Docker runs: `sha256:` and 64 hexadecimal digits.
    pub id: String,
}

/// What happens to the images, as it happens. The last line is `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ImageFrame {
    /// A layer that is brought here.
    Progress {
        /// The image's key: its name in the manifest, or `build:` and the folder.
        image: String,
        /// The layer's short id; empty for the image as a whole.
        layer: String,
        /// In Docker's words.
        status: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        done_bytes: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total_bytes: Option<u64>,
    },
    /// All of them are on the host.
    Done {
        /// What a deploy pins, by the image's key.
        images: BTreeMap<String, PinnedImage>,
        /// The keys of those that came from a registry for this.
        pulled: Vec<String>,
        warnings: Vec<String>,
    },
    Failed {
        problem: Box<Problem>,
    },
    /// Of a newer server.
    #[serde(other)]
    Unknown,
}
