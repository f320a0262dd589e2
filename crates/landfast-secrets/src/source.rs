//! Where the key comes from.

use std::path::{Path, PathBuf};

/// The name of the credential a service manager may hand the key over with: in a unit of systemd
/// `LoadCredentialEncrypted=landfast-secrets-key:/etc/landfast/secrets.key.cred`.
pub const CREDENTIAL: &str = "landfast-secrets-key";

/// A place of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file of ours in the state folder, made where there is none.
    State(PathBuf),
    /// A file an operator named. It is never made.
    File(PathBuf),
    /// A credential of the service manager, in a folder no other service sees. It is never made.
    Credential(PathBuf),
}

impl KeySource {
    /// The first of: the file an operator named, the credential if there is one, the file in the state folder.
    ///
    /// `credentials` is the folder a service manager names in `CREDENTIALS_DIRECTORY`.
    pub fn choose(named: Option<&Path>, credentials: Option<&Path>, state: &Path) -> Self {
        if let Some(named) = named {
            return Self::File(named.to_owned());
        }
        let credential = credentials.map(|folder| folder.join(CREDENTIAL));
        match credential.filter(|path| path.exists()) {
            Some(path) => Self::Credential(path),
            None => Self::State(state.join("secrets.key")),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::State(path) | Self::File(path) | Self::Credential(path) => path,
        }
    }

    /// In a word: `state`, `file` or `credential`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::State(_) => "state",
            Self::File(_) => "file",
            Self::Credential(_) => "credential",
        }
    }

    /// The bits of a mode that make it readable to somebody who must not. A credential may show those of its group:
    /// systemd gives a service's user its right by an access list, whose mask is shown there.
    pub(crate) fn forbidden_mode(&self) -> u32 {
        match self {
            Self::State(_) | Self::File(_) => 0o077,
            Self::Credential(_) => 0o037,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_named_comes_before_the_credential_and_that_before_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let (named, state) = (Path::new("/etc/key"), Path::new("/state"));
        let choose = |named| KeySource::choose(named, Some(folder.path()), state);
        assert_eq!(choose(None), KeySource::State("/state/secrets.key".into()));
        std::fs::write(folder.path().join(CREDENTIAL), "").unwrap();
        let credential = folder.path().join(CREDENTIAL);
        assert_eq!(choose(None), KeySource::Credential(credential));
        assert_eq!(choose(Some(named)), KeySource::File(named.into()));
        assert_eq!(
            KeySource::choose(None, None, state),
            KeySource::State("/state/secrets.key".into())
        );
    }
}
