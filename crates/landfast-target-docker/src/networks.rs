//! Networks of environments and stores: made when the first container joins, removed after the last.
//!
//! Bridges do not reach each other: the daemon refuses what goes from one to the next. A store's network leads nowhere
//! else. Nothing is published: who asks from this host goes to a container's own address.

use std::{collections::HashMap, fs, net::Ipv4Addr, path::Path};

use bollard::{
    models::{Ipam, IpamConfig, NetworkCreateRequest, NetworkInspect},
    query_parameters::{InspectNetworkOptionsBuilder, ListNetworksOptionsBuilder},
};
use landfast_target::ContainerNetwork;
use landfast_types::Scope;

use crate::{
    core::Core,
    daemon::DaemonError,
    name::{self, LABEL_HOST, LABEL_NETWORK},
    record,
};

/// The addresses of a network, `172.20.0.0/16`.
fn subnet_of(found: &NetworkInspect) -> Option<String> {
    let mut all = found.ipam.as_ref()?.config.iter().flatten();
    all.find_map(|config| config.subnet.clone().filter(|subnet| !subnet.contains(':')))
}

/// The last address of a subnet that a host may have: daemons begin with the first.
fn last_of(subnet: &str) -> Option<Ipv4Addr> {
    let (first, bits) = subnet.split_once('/')?;
    let (first, bits): (Ipv4Addr, u32) = (first.parse().ok()?, bits.parse().ok()?);
    let hosts = 32_u32
        .checked_sub(bits)
        .filter(|bits| (3..32).contains(bits))?;
    let broadcast = first.to_bits() | ((1 << hosts) - 1);
    Some(Ipv4Addr::from_bits(broadcast - 1))
}

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
        match self
            .inspect_network(&name)
            .await?
            .map(|found| found.labels.unwrap_or_default())
        {
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
            name: name.clone(),
            driver: Some("bridge".to_owned()),
            internal: Some(matches!(network, ContainerNetwork::Store(_))),
            attachable: Some(false),
            enable_ipv6: Some(false),
            labels: Some(name::network_labels(&self.host, scope)),
            ..Default::default()
        };
        match network {
            ContainerNetwork::Environment => self.create_network(&request).await,
            ContainerNetwork::Store(_) => self.make_lasting(&name, request).await,
        }
    }

    async fn create_network(&self, request: &NetworkCreateRequest) -> Result<(), DaemonError> {
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

    /// Makes a network that has the addresses it had before, as far as nobody took them meanwhile. The daemon chooses
    /// them; asked for by name they are also given out one by one, which it does not do with those of its own choice.
    async fn make_lasting(
        &self,
        name: &str,
        request: NetworkCreateRequest,
    ) -> Result<(), DaemonError> {
        let path = self.settings.state.join("networks").join(name);
        let at = |subnet: &str| NetworkCreateRequest {
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(subnet.to_owned()),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..request.clone()
        };
        if let Ok(subnet) = fs::read_to_string(&path) {
            match self.create_network(&at(subnet.trim())).await {
                Err(DaemonError::Refused { message, .. }) => {
                    tracing::warn!(
                        network = name,
                        message,
                        "its addresses are taken; it gets others"
                    );
                }
                told => return told,
            }
        }
        self.create_network(&request).await?;
        let found = self.inspect_network(name).await?;
        let Some(subnet) = found.as_ref().and_then(subnet_of) else {
            return Ok(());
        };
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            record::write_whole(&path, subnet.as_bytes())
        };
        if let Err(error) = write() {
            tracing::warn!(network = name, %error, "its addresses are not remembered");
            return Ok(());
        }
        let removed = self.daemon.call(|client| {
            let name = name.to_owned();
            async move { client.remove_network(&name).await }
        });
        removed.await?;
        match self.create_network(&at(&subnet)).await {
            // Somebody was faster to take them, or this daemon takes no wishes.
            Err(DaemonError::Refused { .. }) => self.create_network(&request).await,
            told => told,
        }
    }

    /// The address in a network that is kept for the one that keeps its own: the last.
    pub(crate) async fn kept_address(
        &self,
        scope: &Scope,
        network: &ContainerNetwork,
    ) -> Result<Option<Ipv4Addr>, DaemonError> {
        let name = name::network(&self.host, scope, network);
        let found = self.inspect_network(&name).await?;
        Ok(found
            .as_ref()
            .and_then(subnet_of)
            .and_then(|subnet| last_of(&subnet)))
    }

    fn is_our_network(&self, labels: &HashMap<String, String>) -> bool {
        let host = labels.get(LABEL_HOST);
        host.is_some_and(|host| host == self.host.as_str()) && labels.contains_key(LABEL_NETWORK)
    }

    async fn inspect_network(&self, name: &str) -> Result<Option<NetworkInspect>, DaemonError> {
        let asked = self.daemon.call(|client| {
            let name = name.to_owned();
            let options = InspectNetworkOptionsBuilder::default().build();
            async move { client.inspect_network(&name, Some(options)).await }
        });
        match asked.await {
            Ok(found) => Ok(Some(found)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_is_kept() {
        let last = |subnet| last_of(subnet).map(|address| address.to_string());
        assert_eq!(last("172.20.0.0/16").as_deref(), Some("172.20.255.254"));
        assert_eq!(last("10.251.0.64/26").as_deref(), Some("10.251.0.126"));
        assert_eq!(last("10.0.0.0/31"), None);
        assert_eq!(last("fd00::/64"), None);
    }
}
