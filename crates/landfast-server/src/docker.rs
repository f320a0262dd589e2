//! The daemon that containers run on, where there is one.

use std::{io, path::PathBuf, sync::Arc};

use landfast_target::Target;
use landfast_target_docker::{DockerAddress, DockerSettings, DockerTarget};

use crate::run::ServerSettings;

/// Where containers run, and who the registries are asked as.
#[derive(Debug, Clone)]
pub struct DockerPlace {
    pub address: DockerAddress,
    /// The folder in which Docker's client keeps logins, `~/.docker`.
    pub config: Option<PathBuf>,
}

/// The target of containers. The daemon need not answer.
pub(crate) async fn open(settings: &ServerSettings) -> io::Result<Option<Arc<dyn Target>>> {
    let (state, secrets) = (settings.state.join("docker"), settings.run.join("secrets"));
    landfast_target_docker::end_former_way(&secrets).await;
    let Some(place) = &settings.docker else {
        return Ok(None);
    };
    let target = DockerTarget::open(DockerSettings {
        volumes: Some(settings.state.join("volumes")),
        users: Some(settings.state.join("users.json")),
        docker_config: place.config.clone(),
        ..DockerSettings::new(place.address.clone(), state, secrets)
    })?;
    tracing::info!(address = %place.address, "containers run here");
    Ok(Some(Arc::new(target)))
}
