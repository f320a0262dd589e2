//! What is ours is named and labelled so, by the host it belongs to. Pure.
//!
//! Two Landfasts may share a daemon: each has an identity of its own, and touches nothing that is not labelled with it.

use std::collections::{BTreeMap, HashMap};

use landfast_target::{ContainerNetwork, InstanceRef};
use landfast_types::{ImageId, Scope};

/// Whose it is: the identity of the state folder it was made from.
pub const LABEL_HOST: &str = "dev.landfast.host";
pub(crate) const LABEL_APP: &str = "dev.landfast.app";
pub(crate) const LABEL_ENVIRONMENT: &str = "dev.landfast.environment";
pub(crate) const LABEL_INSTANCE: &str = "dev.landfast.instance";
pub(crate) const LABEL_CONTENT: &str = "dev.landfast.content";
pub(crate) const LABEL_JOB: &str = "dev.landfast.job";
pub(crate) const LABEL_NETWORK: &str = "dev.landfast.network";

/// The identity of one server among all that use a daemon: 64 random bits in hexadecimal digits, kept with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostId(String);

impl HostId {
    /// The identity in a text of sixteen lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 16 && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// An identity from bits that nobody else has.
    pub fn of(bits: u64) -> Self {
        Self(format!("{bits:016x}"))
    }

    /// The whole of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough of it for names; what decides is the label, which holds all.
    pub(crate) fn short(&self) -> &str {
        &self.0[..8]
    }
}

/// The container of an instance.
pub(crate) fn container(host: &HostId, id: &InstanceRef) -> String {
    let InstanceRef { scope, instance } = id;
    let Scope { app, environment } = scope;
    // The dots keep what is one name from being two: no name of a person's holds one.
    format!("lf-{}.{app}.{environment}.{instance}", host.short())
}

/// A network of an environment.
pub(crate) fn network(host: &HostId, scope: &Scope, network: &ContainerNetwork) -> String {
    let Scope { app, environment } = scope;
    match network {
        ContainerNetwork::Environment => format!("lf-{}.{app}.{environment}", host.short()),
        ContainerNetwork::Store(store) => {
            format!("lf-{}.{app}.{environment}.store.{store}", host.short())
        }
    }
}

/// The name under which an image is kept from the clean-ups of others.
pub(crate) fn keeping(host: &HostId, id: &ImageId) -> (String, String) {
    (format!("landfast/{}", host.as_str()), id.short())
}

/// The container by which an image is looked at. It never runs.
pub(crate) fn look(host: &HostId, id: &ImageId) -> String {
    format!("lf-{}.look.{}", host.short(), id.short())
}

/// The label of what is no instance.
pub(crate) fn own_label(host: &HostId) -> HashMap<String, String> {
    HashMap::from([(LABEL_HOST.to_owned(), host.as_str().to_owned())])
}

/// The file name of what is remembered of an instance.
pub(crate) fn record(id: &InstanceRef) -> String {
    let Scope { app, environment } = &id.scope;
    format!("{app}.{environment}.{}", id.instance)
}

/// The host name in a container: the instance's, as far as a host name goes (RFC 1035, 2.3.4).
pub(crate) fn hostname(id: &InstanceRef) -> String {
    let mut name = id.instance.as_str().replace('.', "-");
    name.truncate(63);
    name
}

/// What a container is labelled with.
pub(crate) fn labels(
    host: &HostId,
    id: &InstanceRef,
    image: &ImageId,
    is_job: bool,
) -> HashMap<String, String> {
    let Scope { app, environment } = &id.scope;
    HashMap::from([
        (LABEL_HOST.to_owned(), host.as_str().to_owned()),
        (LABEL_APP.to_owned(), app.to_string()),
        (LABEL_ENVIRONMENT.to_owned(), environment.to_string()),
        (LABEL_INSTANCE.to_owned(), id.instance.to_string()),
        (LABEL_CONTENT.to_owned(), image.to_string()),
        (LABEL_JOB.to_owned(), is_job.to_string()),
    ])
}

/// What a network is labelled with.
pub(crate) fn network_labels(host: &HostId, scope: &Scope) -> HashMap<String, String> {
    let Scope { app, environment } = scope;
    HashMap::from([
        (LABEL_HOST.to_owned(), host.as_str().to_owned()),
        (LABEL_APP.to_owned(), app.to_string()),
        (LABEL_ENVIRONMENT.to_owned(), environment.to_string()),
        (LABEL_NETWORK.to_owned(), "true".to_owned()),
    ])
}

/// Whether labels say that something is this instance of this host.
pub(crate) fn is_ours(
    host: &HostId,
    id: &InstanceRef,
    labels: Option<&HashMap<String, String>>,
) -> bool {
    let says = |label: &str, value: &str| {
        labels.is_some_and(|labels| labels.get(label).is_some_and(|said| said == value))
    };
    says(LABEL_HOST, host.as_str())
        && says(LABEL_APP, id.scope.app.as_str())
        && says(LABEL_ENVIRONMENT, id.scope.environment.as_str())
        && says(LABEL_INSTANCE, id.instance.as_str())
}

/// The filter of a list or of events for what is ours.
pub(crate) fn filter(host: &HostId, more: &[(&str, &[&str])]) -> HashMap<String, Vec<String>> {
    let label = format!("{LABEL_HOST}={}", host.as_str());
    let mut filters = BTreeMap::from([("label".to_owned(), vec![label])]);
    for (name, values) in more {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        filters.insert((*name).to_owned(), values);
    }
    filters.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use landfast_types::{Digest, InstanceId, ReleaseId, StoreName};

    use super::*;

    fn scope(app: &str, environment: &str) -> Scope {
        Scope {
            app: app.parse().unwrap(),
            environment: environment.parse().unwrap(),
        }
    }

    #[test]
    fn names_of_networks_never_meet() {
        let host = HostId::of(7);
        let store = |name| ContainerNetwork::Store(StoreName::new(name).unwrap());
        let names = [
            network(&host, &scope("a-b", "c"), &ContainerNetwork::Environment),
            network(&host, &scope("a", "b-c"), &ContainerNetwork::Environment),
            network(&host, &scope("a", "b"), &store("c")),
            network(
                &host,
                &scope("a", "b-store-c"),
                &ContainerNetwork::Environment,
            ),
            network(&HostId::of(7 << 40), &scope("a", "b"), &store("c")),
        ];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }

    #[test]
    fn only_the_whole_label_makes_it_ours() {
        let host = HostId::of(0x1234_5678_0000_0001);
        let id = InstanceRef {
            scope: scope("shop", "production"),
            instance: InstanceId::new("api", ReleaseId(3), 17),
        };
        let image = ImageId(Digest::of(b"x"));
        let own = labels(&host, &id, &image, false);
        assert!(is_ours(&host, &id, Some(&own)));
        // The names meet; the labels do not.
        let other = HostId::of(0x1234_5678_0000_0002);
        assert_eq!(container(&host, &id), container(&other, &id));
        assert!(!is_ours(&other, &id, Some(&own)));
        assert!(!is_ours(&host, &id, None));
        assert_eq!(HostId::parse(host.as_str()), Some(host));
        assert_eq!(HostId::parse("../../etc/passwd"), None);
    }
}
