//! Images: from the name a person writes to the one thing that is run, here and after every rollback.

use std::collections::BTreeSet;

use async_trait::async_trait;
use landfast_types::{Bytes, ImageId, ImageReference, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// When a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pull {
    /// Always for what the name means now; brought only when it is another image than the one here. Where the registry
    /// cannot be asked and the name is known here, that one is taken, and [`ResolvedImage::registry_said`] says why.
    #[default]
    Newer,
    /// Only when the name is not known here.
    Missing,
    /// As [`Pull::Newer`], but no answer of the registry is an error.
    Always,
    /// Never.
    Never,
}

/// Who asks a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryLogin {
    pub user: String,
    pub password: Secret<String>,
}

/// What one layer of an image has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The layer's short id; empty for the image as a whole.
    pub layer: String,
    /// In the daemon's words: `Downloading`, `Extracting`, `Pull complete`.
    pub status: String,
    /// Bytes done, and of how many; `None` where the daemon does not say.
    pub done: Option<Bytes>,
    pub of: Option<Bytes>,
}

/// Where progress goes. What the reader does not take in time is left out.
pub type PullProgressSender = mpsc::Sender<PullProgress>;

/// An image as a release keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedImage {
    /// As the manifest says.
    pub reference: ImageReference,
    /// `name@sha256:…`, by which any daemon gets it from the registry. `None` for one that was made here.
    pub pinned: Option<ImageReference>,
    /// What this daemon runs.
    pub id: ImageId,
}

/// What a name meant when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    pub image: PinnedImage,
    /// Why the registry was not followed, in a sentence, when it was asked and the image here was taken all the same.
    pub registry_said: Option<String>,
    /// Whether it was brought from the registry for this.
    pub was_pulled: bool,
    pub facts: ImageFacts,
}

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageFacts {
    pub size: Bytes,
    pub created_at: Option<Timestamp>,
    /// `linux/amd64`.
    pub platform: String,
    /// As the image writes it: a name, a number, `user:group`; empty for root.
    pub user: String,
    /// The number that this user's name has in the image. `None` for one that is a number, and for a name that the image does not know,
    /// as whom nothing starts.
    pub user_number: Option<u32>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    /// TCP ports it exposes, in order.
    pub ports: Vec<u16>,
    /// Paths it declares as volumes.
    pub volumes: Vec<String>,
    /// It brings a check (`HEALTHCHECK`).
    pub has_health_check: bool,
    /// As the image writes it: `SIGQUIT`, `3`.
    pub stop_signal: Option<String>,
}

impl ImageFacts {
    /// Whether it would run as root where nothing else is asked for.
    pub fn is_root(&self) -> bool {
        if let Some(number) = self.user_number {
            return number == 0;
        }
        let user = self.user.split(':').next().unwrap_or("");
        // `00`, `+0` and `-0` are numbers too, to a daemon.
        matches!(user, "" | "root") || user.parse::<i64>() == Ok(0)
    }

    /// The name that [`ImageFacts::user_number`] is to be found for.
    pub fn user_name(&self) -> Option<&str> {
        let user = self.user.split(':').next().unwrap_or("");
        let is_name = !user.is_empty() && user.parse::<i64>().is_err();
        is_name.then_some(user)
    }
}

/// Why an image is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Neither here nor where its name points.
    #[error("image `{reference}` was not found: {detail}")]
    NotFound { reference: String, detail: String },
    #[error("registry `{registry}` refused to give `{reference}`: {detail}")]
    Refused {
        registry: String,
        reference: String,
        detail: String,
    },
    #[error("registry `{registry}` cannot be reached for `{reference}`: {detail}")]
    RegistryAway {
        registry: String,
        reference: String,
        detail: String,
    },
    #[error("there is no room for `{reference}` where the daemon keeps its images: {detail}")]
    DiskFull { reference: String, detail: String },
    /// What the registry sent is not what the name says.
    #[error("`{reference}` came as {found}; it was {wanted} when it was pinned")]
    Changed {
        reference: String,
        wanted: ImageId,
        found: ImageId,
    },
    #[error("the login for `{registry}` cannot be read: {detail}")]
    Login { registry: String, detail: String },
    #[error("failed to {doing}")]
    Io {
        doing: String,
        source: std::io::Error,
    },
}

impl ImageError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::RegistryAway { .. } | Self::Io { .. } => true,
            Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::DiskFull { .. }
            | Self::Changed { .. }
            | Self::Login { .. } => false,
        }
    }
}

/// The images of a daemon. Every call is idempotent.
///
/// An image that was resolved, ensured or claimed carries a tag of ours, so that no clean-up of others takes what a
/// release needs; [`Images::collect`] takes it back.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Finds out which image a name means now, and has it here. `login`: `None` for what the daemon's own
    /// configuration on this host says.
    async fn resolve(
        &self,
        reference: &ImageReference,
        pull: Pull,
        login: Option<&RegistryLogin>,
        progress: Option<&PullProgressSender>,
    ) -> Result<ResolvedImage, ImageError>;

    /// Has the image of a release here again, by its digest where it was removed.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] for one that was made here and is gone.
    async fn ensure(
        &self,
        image: &PinnedImage,
        login: Option<&RegistryLogin>,
        progress: Option<&PullProgressSender>,
    ) -> Result<(), ImageError>;

    /// What an image says of itself; `None` when it is not here.
    async fn inspect(&self, id: &ImageId) -> Result<Option<ImageFacts>, ImageError>;

    /// Where an image has these programs and files, in the order they are asked for: a path as it is, a bare name along
    /// the image's `PATH`. What it does not have is left out.
    async fn find(&self, id: &ImageId, wanted: &[String]) -> Result<Vec<String>, ImageError>;

    /// Takes charge of an image that was made here for Landfast: its name goes when it is collected.
    async fn claim(&self, reference: &ImageReference) -> Result<ResolvedImage, ImageError>;

    /// Lets go of every image that is here through us and that nobody keeps. What a container still runs stays until
    /// the next time. Others' images and names, and all volumes, are left alone.
    ///
    /// Returns what is no longer ours.
    async fn collect(&self, keep: &BTreeSet<ImageId>) -> Result<Vec<ImageId>, ImageError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_many_names() {
        let of = |user: &str, user_number| ImageFacts {
            user: user.to_owned(),
            user_number,
            ..ImageFacts::default()
        };
        for user in [
            "", ":5", "root", "root:app", "0", "0:0", "0:app", "00", "+0", "-0",
        ] {
            assert!(of(user, None).is_root(), "{user}");
        }
        for user in ["1", "01", "app", "1000:0", "app:root", "toor"] {
            assert!(!of(user, None).is_root(), "{user}");
        }
        // What the image says of a name, it means.
        assert!(of("toor", Some(0)).is_root());
        assert!(!of("root", Some(7)).is_root());
        assert_eq!(of("toor:toor", None).user_name(), Some("toor"));
        assert_eq!(of("+0:app", None).user_name(), None);
        assert_eq!(of("", None).user_name(), None);
    }
}
