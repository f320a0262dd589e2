//! Networks of environments and stores: made when the first container joins, removed after the last.
//!
//! Bridges do not reach each other: the daemon refuses what goes from one to the next. A store's network leads nowhere
//! else. Nothing is published: who asks from this host goes to a container's own address.
//!
//! A daemon before 25 makes a second network of a name where an answer came too late. So what is of us is found by its label, and removed by
//! its id: surplus ones that nobody has joined go, and where more than one was joined the same one is joined from then on.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fs,
    net::Ipv4Addr,
    path::Path,
};

use bollard::{
    models::{Ipam, IpamConfig, Network, NetworkCreateRequest},
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
fn subnet_of(found: &Network) -> Option<String> {
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

/// Networks that go by the same name, by that name; `None` where no name has two.
pub(crate) type Ids = BTreeMap<String, String>;

/// What there is by a name.
struct Named {
    /// Ours, the one to be joined first.
    ours: Vec<Network>,
    /// Somebody else has the name, too.
    is_taken: bool,
}

impl Named {
    /// The id of ours, where the name alone does not say which network is meant.
    fn id(&self) -> Option<String> {
        let is_plain = self.ours.len() == 1 && !self.is_taken;
        self.ours.first()?.id.clone().filter(|_| !is_plain)
    }
}

impl Core {
    /// Has a network there. Gives its id where its name is not its alone.
    pub(crate) async fn make_network(
        &self,
        scope: &Scope,
        network: &ContainerNetwork,
    ) -> Result<Option<String>, DaemonError> {
        let name = name::network(&self.host, scope, network);
        // A daemon makes a second one of the same name without a word.
        let _one_maker = self.network_makers.lock().await;
        let found = self.named(&name).await?;
        if !found.ours.is_empty() {
            return Ok(found.id());
        }
        if found.is_taken {
            return Err(DaemonError::Refused {
                status: 409,
                message: format!(
                    "a network named `{name}` is there and is not ours; remove it: `docker network rm {name}`"
                ),
            });
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
        }?;
        Ok(None)
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
        let found = self.named(name).await?.ours.into_iter().next();
        let Some((found, subnet)) = found.and_then(|found| {
            let subnet = subnet_of(&found)?;
            Some((found.id?, subnet))
        }) else {
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
        if !self.remove_network(&found).await? {
            return Ok(());
        }
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
        let found = self.named(&name).await?;
        let subnet = found.ours.first().and_then(subnet_of);
        Ok(subnet.and_then(|subnet| last_of(&subnet)))
    }

    fn is_our_network(&self, labels: &HashMap<String, String>) -> bool {
        let host = labels.get(LABEL_HOST);
        host.is_some_and(|host| host == self.host.as_str()) && labels.contains_key(LABEL_NETWORK)
    }

    /// What there is by a name, after the surplus is gone.
    async fn named(&self, name: &str) -> Result<Named, DaemonError> {
        let filters = HashMap::from([("name".to_owned(), vec![name.to_owned()])]);
        let listed = self.list_networks(&filters).await?;
        // A daemon takes the name for a part of others.
        let named = listed
            .into_iter()
            .filter(|each| each.name.as_deref() == Some(name));
        let (ours, others): (Vec<_>, Vec<_>) = named.partition(|each| {
            let labels = each.labels.as_ref();
            labels.is_some_and(|labels| self.is_our_network(labels))
        });
        Ok(Named {
            ours: match ours.len() {
                0 | 1 => ours,
                _ => self.without_surplus(ours).await?,
            },
            is_taken: !others.is_empty(),
        })
    }

    /// Removes networks of one name that nobody is in. Those that are left are in the same order whenever it is asked.
    async fn without_surplus(&self, all: Vec<Network>) -> Result<Vec<Network>, DaemonError> {
        let mut counted = Vec::new();
        for network in all {
            let id = network.id.clone().unwrap_or_default();
            let asked = self.daemon.call(|client| {
                let id = id.clone();
                async move {
                    let options = InspectNetworkOptionsBuilder::default().build();
                    client.inspect_network(&id, Some(options)).await
                }
            });
            match asked.await {
                Ok(found) => {
                    let joined = found.containers.unwrap_or_default().len();
                    counted.push((Reverse(joined), network.created.clone(), id, network));
                }
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        counted.sort_by(|a, b| (&a.0, &a.1, &a.2).cmp(&(&b.0, &b.1, &b.2)));
        let mut left = Vec::new();
        for (Reverse(joined), _, id, network) in counted {
            if joined == 0 && !left.is_empty() && self.remove_network(&id).await? {
                let name = network.name.as_deref().unwrap_or_default();
                tracing::warn!(
                    network = name,
                    id,
                    "a second network of this name is removed"
                );
                continue;
            }
            left.push(network);
        }
        if let [first, _, ..] = left.as_slice() {
            let name = first.name.as_deref().unwrap_or_default();
            tracing::warn!(
                network = name,
                "containers are in several networks of this name, and do not all reach each other; the next deploys bring them together"
            );
        }
        Ok(left)
    }

    async fn list_networks(
        &self,
        filters: &HashMap<String, Vec<String>>,
    ) -> Result<Vec<Network>, DaemonError> {
        let listed = self.daemon.call(|client| {
            let options = ListNetworksOptionsBuilder::default()
                .filters(filters)
                .build();
            async move { client.list_networks(Some(options)).await }
        });
        listed.await
    }

    /// False where somebody is in it.
    async fn remove_network(&self, id: &str) -> Result<bool, DaemonError> {
        let removed = self.daemon.call(|client| {
            let id = id.to_owned();
            async move { client.remove_network(&id).await }
        });
        match removed.await {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(true),
            // A daemon says 403, Podman 409.
            Err(DaemonError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes networks of ours that no container is in and no start is about to join.
    pub(crate) async fn sweep_networks(&self) -> Result<(), DaemonError> {
        let _nothing_is_started = self.networks.write().await;
        let filters = name::filter(&self.host, &[]);
        for network in self.list_networks(&filters).await? {
            let Some(id) = network.id else { continue };
            if !network
                .labels
                .is_some_and(|labels| self.is_our_network(&labels))
            {
                continue;
            }
            if self.remove_network(&id).await? {
                let name = network.name.unwrap_or_default();
                tracing::debug!(network = %name, "nothing was in it any more");
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
