//! Networks of environments and stores: made when the first container joins, removed after the last.
//!
//! Bridges do not reach each other: the daemon refuses what goes from one to the next. A store's network leads nowhere
//! else. Nothing is published: who asks from this host goes to a container's own address.

use std::collections::HashMap;

use bollard::{
    models::NetworkCreateRequest,
    query_parameters::{InspectNetworkOptionsBuilder, ListNetworksOptionsBuilder},
};
use landfast_target::ContainerNetwork;
use landfast_types::Scope;

use crate::{
    core::Core,
    daemon::DaemonError,
    name::{self, LABEL_HOST, LABEL_NETWORK},
};

impl Core {
    /// Has a network there.
    pub(crate) async fn make_network(
        &self,
        scope: &Scope,
        network: &ContainerNetwork,
    ) -> Result<(), DaemonError> {
        let name = name::network(&self.host, scope, network);
        // A daemon makes a second one of the same name without a word.
        let _one_maker = self.network_makers.lock().await;
        match self.network_labels(&name).await? {
            Some(labels) if self.is_our_network(&labels) => return Ok(()),
            Some(_) => {
                return Err(DaemonError::Refused {
                    status: 409,
                    message: format!(
                        "a network named `{name}` is there and is not ours; remove it: `docker network rm {name}`"
                    ),
                });
            }
            None => {}
        }
        let request = NetworkCreateRequest {
            name,
            driver: Some("bridge".to_owned()),
            internal: Some(matches!(network, ContainerNetwork::Store(_))),
            attachable: Some(false),
            enable_ipv6: Some(false),
            labels: Some(name::network_labels(&self.host, scope)),
            ..Default::default()
        };
        let made = self.daemon.call(|client| {
            let request = request.clone();
            async move { client.create_network(request).await }
        });
        match made.await {
            // A server that was replaced was faster.
            Err(error) if error.is_conflict() => Ok(()),
            told => told.map(drop),
        }
    }

    fn is_our_network(&self, labels: &HashMap<String, String>) -> bool {
        let host = labels.get(LABEL_HOST);
        host.is_some_and(|host| host == self.host.as_str()) && labels.contains_key(LABEL_NETWORK)
    }

    async fn network_labels(
        &self,
        name: &str,
    ) -> Result<Option<HashMap<String, String>>, DaemonError> {
        let asked = self.daemon.call(|client| {
            let name = name.to_owned();
            let options = InspectNetworkOptionsBuilder::default().build();
            async move { client.inspect_network(&name, Some(options)).await }
        });
        match asked.await {
            Ok(found) => Ok(Some(found.labels.unwrap_or_default())),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes networks of ours that no container is in and no start is about to join.
    pub(crate) async fn sweep_networks(&self) -> Result<(), DaemonError> {
        let _nothing_is_started = self.networks.write().await;
        let filters = name::filter(&self.host, &[]);
        let listed = self.daemon.call(|client| {
            let options = ListNetworksOptionsBuilder::default()
                .filters(&filters)
                .build();
            async move { client.list_networks(Some(options)).await }
        });
        for network in listed.await? {
            let Some(name) = network.name else { continue };
            if !network
                .labels
                .is_some_and(|labels| self.is_our_network(&labels))
            {
                continue;
            }
            let removed = self.daemon.call(|client| {
                let name = name.clone();
                async move { client.remove_network(&name).await }
            });
            match removed.await {
                Ok(()) => tracing::debug!(network = %name, "nothing was in it any more"),
                // Somebody is in it; a daemon says 403, Podman 409.
                Err(DaemonError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
