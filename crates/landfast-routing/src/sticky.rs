//! Sticky sessions: which release and instance a cookie names, and what the cookie says.
//!
//! The value is opaque: hashes of the release and the instance, so it tells nobody how many there are. It is
//! not signed, since it grants nothing: it can only name what takes requests anyway, and whoever wants a
//! certain instance could as well keep the cookie it was given.

use http::{HeaderMap, HeaderValue, header::COOKIE};
use landfast_types::{Digest, ReleaseId, ServiceKey};

use crate::table::Table;

/// What a client holds: tags of its release and its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    pub release: u64,
    /// Zero: no instance yet.
    pub backend: u64,
}

/// Where a pin leads in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pinned {
    /// Into [`Table::groups`]: a group with weight.
    pub group: usize,
    /// Into [`Table::backends`], when the instance takes requests.
    pub backend: Option<usize>,
}

/// The cookie of a service. Two services of one host have two.
pub fn cookie_name(service: &ServiceKey) -> String {
    format!(
        "landfast-{:08x}",
        tag(&["cookie", &service.to_string()]) >> 32
    )
}

/// The tag of a release of a service.
pub fn release_tag(service: &ServiceKey, release: ReleaseId) -> u64 {
    tag(&["release", &service.to_string(), &release.to_string()])
}

/// The tag of a backend.
pub fn backend_tag(id: &str) -> u64 {
    tag(&["backend", id])
}

fn tag(words: &[&str]) -> u64 {
    let digest = Digest::of(words.join("\n").as_bytes());
    let bytes = digest.as_bytes();
    let first: [u8; 8] = std::array::from_fn(|index| bytes[index]);
    // Zero stands for none.
    u64::from_be_bytes(first).max(1)
}

impl Pin {
    /// The pin a request brings.
    pub fn read(headers: &HeaderMap, cookie: &str) -> Option<Self> {
        let values = headers.get_all(COOKIE).iter();
        let pairs = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        let mut ours = pairs.filter(|(name, _)| *name == cookie);
        ours.find_map(|(_, value)| Self::parse(value))
    }

    fn parse(value: &str) -> Option<Self> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if value.len() != 32 || !value.bytes().all(is_hex) {
            return None;
        }
        let (release, backend) = value.split_at(16);
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            release: number(release)?,
            backend: number(backend)?,
        })
    }

    /// Where it leads: nowhere once its release has no weight any more, as after a rollback. The instance is only
    /// named while it takes requests.
    pub fn resolve(self, table: &Table, service: usize) -> Option<Pinned> {
        let entry = table.services.get(service)?;
        let group = entry.groups.iter().copied().find(|group| {
            let group = &table.groups[*group];
            group.weight > 0 && release_tag(&entry.key, group.release) == self.release
        })?;
        let serving = table.groups[group].serving.iter().copied();
        let backend = serving
            .into_iter()
            .find(|slot| backend_tag(&table.backends[*slot].id) == self.backend);
        Some(Pinned { group, backend })
    }

    /// The field that gives a client its pin. It lasts as long as the browser's session.
    pub fn set_cookie(self, name: &str, is_https: bool) -> HeaderValue {
        let secure = if is_https { "; Secure" } else { "" };
        let Self { release, backend } = self;
        let text =
            format!("{name}={release:016x}{backend:016x}; Path=/; HttpOnly; SameSite=Lax{secure}");
        HeaderValue::from_str(&text).expect("hexadecimal digits and words")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{
        Backend, BackendState, EjectionPolicy, Group, Mode, RetryPolicy, Service, Snapshot,
    };

    fn key() -> ServiceKey {
        "shop/production/api".parse().expect("a key")
    }

    /// Release, weight, and whether each backend serves.
    type Case<'a> = (u64, u32, &'a [(&'a str, bool)]);

    fn table(groups: &[Case<'_>]) -> Table {
        let backend = |(id, is_serving): &(&str, bool)| Backend {
            id: (*id).into(),
            address: "127.0.0.1:1".parse().expect("an address"),
            state: if *is_serving {
                BackendState::Serving
            } else {
                BackendState::Draining {
                    requests_ms: 1,
                    streams_ms: 1,
                }
            },
        };
        let group = |(release, weight, backends): &Case<'_>| Group {
            release: ReleaseId(*release),
            weight: *weight,
            backends: backends.iter().map(backend).collect(),
        };
        let service = Service {
            mode: Mode::Serve,
            groups: groups.iter().map(group).collect(),
            preview: None,
            health: None,
            retry: RetryPolicy {
                attempts_max: 1,
                budget_percent: 20,
            },
            ejection: EjectionPolicy {
                failures: 5,
                first_ms: 1,
                max_ms: 1,
            },
            slow_start_ms: 0,
            sticky: true,
            protocol: crate::snapshot::Protocol::default(),
        };
        let snapshot = Snapshot {
            version: 1,
            services: [(key(), service)].into(),
            ..Snapshot::default()
        };
        Table::compile(&snapshot).0
    }

    fn pin(release: u64, id: &str) -> Pin {
        Pin {
            release: release_tag(&key(), ReleaseId(release)),
            backend: backend_tag(id),
        }
    }

    #[test]
    fn what_is_given_is_read_back() {
        let name = cookie_name(&key());
        let given = pin(3, "shop/production/api.r3.1").set_cookie(&name, true);
        let given = given.to_str().expect("text");
        let (pair, attributes) = given.split_once(';').expect("attributes");
        assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Lax; Secure");
        assert!(
            !pin(3, "a")
                .set_cookie(&name, false)
                .to_str()
                .expect("text")
                .contains("Secure")
        );
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, format!("a=b; {pair}").parse().expect("a value"));
        assert_eq!(
            Pin::read(&headers, &name),
            Some(pin(3, "shop/production/api.r3.1"))
        );
        assert_eq!(Pin::read(&headers, "another"), None);
        for odd in [
            "",
            "1",
            "g".repeat(32).as_str(),
            "+".repeat(32).as_str(),
            "A".repeat(32).as_str(),
        ] {
            headers.insert(COOKIE, format!("{name}={odd}").parse().expect("a value"));
            assert_eq!(Pin::read(&headers, &name), None, "{odd}");
        }
    }

    #[test]
    fn a_pin_leads_to_its_release_and_only_to_an_instance_that_takes_requests() {
        let table = table(&[
            (1, 95, &[("a", true), ("b", false)]),
            (2, 5, &[("c", true)]),
            (3, 0, &[("d", true)]),
        ]);
        let slot = |id: &str| table.backends.iter().position(|backend| backend.id == id);
        let found = |release, id| pin(release, id).resolve(&table, 0);
        assert_eq!(
            found(1, "a"),
            Some(Pinned {
                group: 0,
                backend: slot("a")
            })
        );
        assert_eq!(
            found(1, "b"),
            Some(Pinned {
                group: 0,
                backend: None
            })
        );
        assert_eq!(
            found(2, "gone"),
            Some(Pinned {
                group: 1,
                backend: None
            })
        );
        // An instance of another release is not the one that was meant.
        assert_eq!(
            found(2, "a"),
            Some(Pinned {
                group: 1,
                backend: None
            })
        );
        assert_eq!(found(3, "d"), None, "taken back");
        assert_eq!(found(4, "a"), None);
    }
}
