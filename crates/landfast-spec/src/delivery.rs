//! How processes are given secrets.

use serde::{Deserialize, Serialize};

/// How a process is given the secrets it does not name in `env`. Those it names there are variables either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretDelivery {
    /// Variables of their names. Also what a release means that was made before there was a choice.
    #[default]
    Environment,
    /// Files of their own, whose paths are in `NAME_FILE`.
    Files,
}

impl SecretDelivery {
    /// The words in the manifest.
    pub const WORDS: &[&str] = &["files", "environment"];

    /// Reads the word.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "files" => Some(Self::Files),
            "environment" => Some(Self::Environment),
            _ => None,
        }
    }
}
