//! Which daemon it is: containers that are not known to have ended are on one daemon, and no other can say that they
//! are gone.
//!
//! Docker says an id, which before Docker 25 all daemons of a host share: where it keeps its data belongs to it. Podman
//! makes up another at each question, and is known by its data alone.

use std::{
    io,
    path::{Path, PathBuf},
};

use bollard::models::{SystemInfo, SystemVersion};
use serde::{Deserialize, Serialize};

use crate::{
    DockerAddress,
    record::{Records, write_whole},
};

const FILE: &str = "daemon.json";

/// The daemon that answered last, as it is kept in the state folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    address: String,
    certificates: Option<PathBuf>,
    id: String,
}

impl Known {
    fn address(&self) -> io::Result<DockerAddress> {
        let mut address: DockerAddress = self.address.parse().map_err(io::Error::other)?;
        if let DockerAddress::Tcp { certificates, .. } = &mut address {
            certificates.clone_from(&self.certificates);
        }
        Ok(address)
    }
}

/// The address of the daemon on which containers of a state folder are that are not known to have ended.
///
/// # Errors
/// When the state folder cannot be read.
pub fn remembered(state: &Path) -> io::Result<Option<DockerAddress>> {
    if !Records::new(state.to_owned()).has_living()? {
        return Ok(None);
    }
    let known = read(&state.join(FILE))?;
    known.map(|known| known.address()).transpose()
}

/// What tells a daemon from every other; `None` where it says nothing of the kind.
pub(crate) fn of(version: &SystemVersion, info: &SystemInfo) -> Option<String> {
    let data = info.docker_root_dir.as_deref()?;
    match is_podman(version) {
        true => Some(format!("podman:{data}")),
        false => {
            let id = info.id.as_deref().filter(|id| !id.is_empty())?;
            Some(format!("{id}:{data}"))
        }
    }
}

pub(crate) fn is_podman(version: &SystemVersion) -> bool {
    let mut parts = version.components.iter().flatten();
    parts.any(|part| part.name.contains("Podman"))
}

/// Takes down which daemon answers, or says in what way it is the wrong one.
pub(crate) fn check(
    state: &Path,
    address: &DockerAddress,
    id: String,
) -> io::Result<Result<(), String>> {
    let path = state.join(FILE);
    let certificates = match address {
        DockerAddress::Tcp { certificates, .. } => certificates.clone(),
        DockerAddress::Unix(_) | DockerAddress::Ssh { .. } => None,
    };
    let now = Known {
        address: address.to_string(),
        certificates,
        id,
    };
    let before = read(&path)?;
    if before.as_ref() == Some(&now) {
        return Ok(Ok(()));
    }
    if let Some(before) = before.filter(|before| before.id != now.id)
        && Records::new(state.to_owned()).has_living()?
    {
        return Ok(Err(format!(
            "another daemon answers there ({}); containers of this server are on the one that was at {} ({}): start that one again, or, when it is gone for good, remove `{}`: what is not found here then counts as ended",
            now.id,
            before.address,
            before.id,
            path.display()
        )));
    }
    std::fs::create_dir_all(state)?;
    write_whole(&path, &serde_json::to_vec_pretty(&now)?)?;
    Ok(Ok(()))
}

fn read(path: &Path) -> io::Result<Option<Known>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let text = format!("`{}`: {error}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::SystemVersionComponents;

    use super::*;

    #[test]
    fn podman_is_known_by_its_data_and_docker_by_its_id() {
        let info = SystemInfo {
            id: Some("made-up".to_owned()),
            docker_root_dir: Some("/data".to_owned()),
            ..Default::default()
        };
        let version = |name: &str| SystemVersion {
            components: Some(vec![SystemVersionComponents {
                name: name.to_owned(),
                ..Default::default()
            }]),
            ..Default::default()
        };
        let id = |name| of(&version(name), &info);
        assert_eq!(id("Podman Engine").as_deref(), Some("podman:/data"));
        assert_eq!(id("Engine").as_deref(), Some("made-up:/data"));
        assert_eq!(of(&version("Engine"), &SystemInfo::default()), None);
    }
}
