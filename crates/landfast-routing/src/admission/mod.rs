//! Whether a request is let in at all, before anything is done for it: who may come, and how often.
//!
//! [`Admission`] is what a snapshot says of a route, [`Gate`] the same made ready to be asked. A rule that cannot be
//! read closes what it was to guard, and is named; it never opens it.

mod fields;
mod origin;
mod path;
mod rate;

use std::{
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, COOKIE},
};
use landfast_types::{Network, Timestamp};
use serde::{Deserialize, Serialize};

pub use self::{
    fields::{Cors, Edits, FieldRules, Frame, Preflight, Security},
    origin::{Origin, Trust, TrustedField},
    path::other_reading,
    rate::{Limiter, Quota, Taken},
};

use self::fields::{Sharing, Shield};

/// How many requests are admitted now, and how many in which time (draft-ietf-httpapi-ratelimit-headers-11).
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// See [`RATE_LIMIT`].
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What a route asks of a request. Empty: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Admission {
    /// The networks that may come; all, where none is named.
    pub allow: Vec<String>,
    /// For each client or key.
    pub rate: Option<Rate>,
    /// For the route as a whole.
    pub total: Option<Quota>,
    /// Whose name and password are asked for.
    pub auth: Option<BasicAuth>,
    /// Which other origins may read answers.
    pub cors: Option<Cors>,
    pub security: Option<Security>,
    pub request_fields: FieldRules,
    pub response_fields: FieldRules,
}

/// Basic authentication (RFC 7617).
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BasicAuth {
    pub realm: String,
    /// `name:hash` as `htpasswd` writes it: bcrypt or Argon2.
    pub users: Vec<String>,
}

impl std::fmt::Debug for BasicAuth {
    /// Without the hashes: whoever reads a log could try passwords against them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.users.iter().filter_map(|user| user.split(':').next());
        f.debug_struct("BasicAuth")
            .field("realm", &self.realm)
            .field("users", &names.collect::<Vec<_>>())
            .finish()
    }
}

/// A quota for each of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub by: CountBy,
    pub quota: Quota,
}

/// What requests are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum CountBy {
    /// The client's address; of IPv6 the first 64 bits, since a client has all that follow to itself.
    Client,
    /// The value of a header. Requests without it are counted by client.
    Header { name: String },
    /// The value of a cookie. Requests without it are counted by client.
    Cookie { name: String },
}

/// What a request shows of itself.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub client: IpAddr,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its client is in none of the networks: 403.
    Network,
    /// Too many of its kind: 429.
    Rate {
        /// How long to stay away.
        wait: Duration,
        report: RateReport,
    },
}

/// What became of the quotas of a route, for the answer's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateReport {
    each: Option<(&'static str, Quota, Taken)>,
    total: Option<(Quota, Taken)>,
}

/// An [`Admission`] ready to be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gate {
    allow: Option<Vec<Network>>,
    each: Option<Each>,
    total: Option<Quota>,
    auth: Option<BasicAuth>,
    sharing: Option<Sharing>,
    shield: Option<Shield>,
    request: Edits,
    response: Edits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Each {
    by: Key,
    quota: Quota,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    Client,
    Header(HeaderName),
    Cookie(String),
}

impl Gate {
    /// Makes a route's rules ready. What cannot be used of them is added to `problems`.
    pub fn compile(rules: &Admission, problems: &mut Vec<String>) -> Self {
        let mut networks = Vec::new();
        for text in &rules.allow {
            match text.parse() {
                Ok(network) => networks.push(network),
                Err(error) => problems.push(format!("allow: {error}")),
            }
        }
        let each = rules.rate.as_ref().map(|rate| {
            let by = match &rate.by {
                CountBy::Client => Key::Client,
                CountBy::Cookie { name } => Key::Cookie(name.clone()),
                CountBy::Header { name } => name.parse().map_or_else(
                    |_| {
                        problems.push(format!("rate: `{name}` is no header; counting by client"));
                        Key::Client
                    },
                    Key::Header,
                ),
            };
            Each {
                by,
                quota: rate.quota,
            }
        });
        Self {
            allow: (!rules.allow.is_empty()).then_some(networks),
            each,
            total: rules.total,
            auth: rules.auth.clone(),
            sharing: (rules.cors.as_ref()).map(|cors| Sharing::compile(cors, problems)),
            shield: (rules.security.as_ref()).map(|rules| Shield::compile(rules, problems)),
            request: Edits::compile(&rules.request_fields, problems),
            response: Edits::compile(&rules.response_fields, problems),
        }
    }

    /// What is answered to a browser that asks before it sends; nothing where this is no preflight of a route that
    /// shares.
    pub fn preflight(&self, method: &Method, fields: &HeaderMap) -> Option<Preflight> {
        self.sharing.as_ref()?.preflight(method, fields)
    }

    /// The users of whom a request must be one.
    pub fn auth(&self, path: &str) -> Option<&BasicAuth> {
        let auth = self.auth.as_ref();
        auth.filter(|_| !is_certificate_challenge(path))
    }

    /// Makes a request what the application is to see of it: rules carried out, and credentials that were for us
    /// alone taken away.
    pub fn edit_request(&self, fields: &mut HeaderMap) {
        if self.auth.is_some() {
            fields.remove(AUTHORIZATION);
        }
        self.request.apply(fields);
    }

    /// Adds to an answer, ours or the application's, what the route says of all of them.
    pub fn dress(&self, fields: &mut HeaderMap, origin: Option<&HeaderValue>, is_https: bool) {
        if let Some(shield) = &self.shield {
            shield.apply(fields, is_https);
        }
        if let Some(sharing) = &self.sharing {
            sharing.apply(fields, origin);
        }
        self.response.apply(fields);
    }

    /// Lets a request in, or says why not. `limiter` is the route's own.
    ///
    /// # Errors
    /// Why it is refused. It is then counted by no quota.
    #[expect(
        clippy::result_large_err,
        reason = "144 bytes on the stack; boxing them would allocate for each request of a flood"
    )]
    pub fn admit(
        &self,
        asked: &Asked<'_>,
        limiter: &Limiter,
        now: Timestamp,
    ) -> Result<RateReport, Refusal> {
        if let Some(allow) = &self.allow
            && !is_certificate_challenge(asked.path)
            && !allow.iter().any(|network| network.contains(asked.client))
        {
            return Err(Refusal::Network);
        }
        let mut report = RateReport::default();
        if let Some(each) = &self.each {
            let (name, taken) = each.key(asked, |key| limiter.take(key, &each.quota, now));
            report.each = Some((name, each.quota, taken));
            if !taken.is_admitted {
                let wait = taken.wait;
                return Err(Refusal::Rate { wait, report });
            }
        }
        if let Some(quota) = &self.total {
            let taken = limiter.take_whole(quota, now);
            report.total = Some((*quota, taken));
            if !taken.is_admitted {
                if let Some(each) = &self.each {
                    each.key(asked, |key| limiter.give_back(key, &each.quota));
                }
                let wait = taken.wait;
                return Err(Refusal::Rate { wait, report });
            }
        }
        Ok(report)
    }
}

/// A value and what it was taken from: a header's value never counts as a cookie's.
#[derive(Hash)]
enum Counted<'a> {
    Client(u64),
    Value(&'a [u8]),
}

impl Each {
    /// Does something with what a request is counted by, and says what that is called in an answer.
    fn key<T>(&self, asked: &Asked<'_>, act: impl FnOnce(&Counted<'_>) -> T) -> (&'static str, T) {
        let value = match &self.by {
            Key::Client => None,
            Key::Header(name) => asked.headers.get(name).map(HeaderValue::as_bytes),
            Key::Cookie(name) => cookie(asked.headers, name),
        };
        match value {
            Some(value) => ("key", act(&Counted::Value(value))),
            None => ("client", act(&Counted::Client(client_bits(asked.client)))),
        }
    }
}

/// What tells clients apart: an IPv4 address, or the network an IPv6 client has to itself (RFC 6177).
pub fn client_bits(client: IpAddr) -> u64 {
    match client.to_canonical() {
        // Beside all networks of IPv6: `::/32` is nobody's.
        IpAddr::V4(address) => u64::from(Ipv4Addr::to_bits(address)),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?;
        value.strip_prefix(b"=")
    })
}

/// Whether a certificate authority asks for the answer to its challenge (RFC 8555, 8.3): it comes from anywhere,
/// and what it reads is public.
fn is_certificate_challenge(path: &str) -> bool {
    let token = path.strip_prefix("/.well-known/acme-challenge/");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    token.is_some_and(|token| !token.is_empty() && token.bytes().all(is_plain))
}

impl RateReport {
    /// Tells a client how it stands, unless the application did.
    pub fn write(&self, fields: &mut HeaderMap) {
        let each = self.each.iter().copied();
        let total = self.total.map(|(quota, taken)| ("route", quota, taken));
        let (mut policies, mut states) = (Vec::new(), Vec::new());
        for (name, quota, taken) in each.chain(total) {
            let window = seconds(quota.window());
            policies.push(format!("\"{name}\";q={};w={window}", quota.burst.max(1)));
            let until = if taken.is_admitted {
                taken.refill
            } else {
                taken.wait
            };
            states.push(format!(
                "\"{name}\";r={};t={}",
                taken.remaining,
                seconds(until)
            ));
        }
        if policies.is_empty() || fields.contains_key(RATE_LIMIT) {
            return;
        }
        for (name, list) in [(RATE_LIMIT_POLICY, policies), (RATE_LIMIT, states)] {
            let value = HeaderValue::from_str(&list.join(", ")).expect("names and numbers");
            fields.insert(name, value);
        }
    }
}

/// Whole seconds, rounded up, at least one: who waits that long has waited long enough.
pub fn seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Limiter {
        Limiter::new(std::hash::RandomState::new())
    }

    fn quota(burst: u32) -> Quota {
        Quota {
            requests: 1,
            per_ms: 1_000,
            burst,
        }
    }

    fn gate(rules: &Admission) -> Gate {
        let mut problems = Vec::new();
        let gate = Gate::compile(rules, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        gate
    }

    fn by(by: CountBy) -> Gate {
        let quota = quota(1);
        gate(&Admission {
            rate: Some(Rate { by, quota }),
            ..Admission::default()
        })
    }

    struct Asker {
        client: &'static str,
        path: &'static str,
        headers: HeaderMap,
    }

    fn from(client: &'static str) -> Asker {
        Asker {
            client,
            path: "/",
            headers: HeaderMap::new(),
        }
    }

    impl Asker {
        fn with(mut self, name: &'static str, value: &'static str) -> Self {
            self.headers.append(name, HeaderValue::from_static(value));
            self
        }

        #[expect(clippy::result_large_err, reason = "as the function it calls")]
        fn asks(&self, gate: &Gate, limiter: &Limiter) -> Result<RateReport, Refusal> {
            let asked = Asked {
                client: self.client.parse().expect("an address"),
                path: self.path,
                headers: &self.headers,
            };
            gate.admit(&asked, limiter, Timestamp::EPOCH)
        }
    }

    #[test]
    fn only_the_networks_that_are_named_come_in() {
        let gate = gate(&Admission {
            allow: vec!["10.0.0.0/8".into(), "2001:db8::/32".into()],
            ..Admission::default()
        });
        let limiter = fresh();
        for (client, is_let_in) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("2001:db8::1", true),
            ("192.0.2.1", false),
            ("2001:db9::1", false),
        ] {
            assert_eq!(
                from(client).asks(&gate, &limiter).is_ok(),
                is_let_in,
                "{client}"
            );
        }
        for (path, is_let_in) in [
            ("/.well-known/acme-challenge/abc-_9", true),
            ("/.well-known/acme-challenge/", false),
            ("/.well-known/acme-challenge/../x", false),
            ("/.well-known/acme-challenge/%2e%2e", false),
        ] {
            let asker = Asker {
                path,
                ..from("192.0.2.1")
            };
            assert_eq!(asker.asks(&gate, &limiter).is_ok(), is_let_in, "{path}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_read_opens_nothing() {
        let mut problems = Vec::new();
        let rules = Admission {
            allow: vec!["office".into()],
            ..Admission::default()
        };
        let gate = Gate::compile(&rules, &mut problems);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let refused = from("10.0.0.1").asks(&gate, &fresh());
        assert_eq!(refused, Err(Refusal::Network));
    }

    #[test]
    fn clients_are_told_apart_by_what_they_cannot_choose() {
        let (gate, limiter) = (by(CountBy::Client), fresh());
        for (client, is_let_in) in [
            ("192.0.2.1", true),
            ("192.0.2.1", false),
            ("::ffff:192.0.2.1", false),
            ("192.0.2.2", true),
            ("2001:db8::1", true),
            ("2001:db8::ffff:2", false),
            ("2001:db8:0:1::1", true),
        ] {
            assert_eq!(
                from(client).asks(&gate, &limiter).is_ok(),
                is_let_in,
                "{client}"
            );
        }
    }

    #[test]
    fn keys_are_values_of_a_header_or_a_cookie_and_who_has_none_is_counted_by_address() {
        let name = "X-Api-Key".to_owned();
        let (gate, limiter) = (by(CountBy::Header { name }), fresh());
        let client = "192.0.2.1";
        let asks = |key| {
            from(client)
                .with("x-api-key", key)
                .asks(&gate, &limiter)
                .is_ok()
        };
        assert_eq!((asks("a"), asks("a"), asks("b")), (true, false, true));
        assert!(
            from("192.0.2.2")
                .with("x-api-key", "a")
                .asks(&gate, &limiter)
                .is_err()
        );
        assert!(from(client).asks(&gate, &limiter).is_ok());
        assert!(from(client).asks(&gate, &limiter).is_err());

        let name = "sid".to_owned();
        let (gate, limiter) = (by(CountBy::Cookie { name }), fresh());
        let asks = |cookie| {
            from(client)
                .with("cookie", cookie)
                .asks(&gate, &limiter)
                .is_ok()
        };
        assert!(asks("x=1; sid=a"));
        assert!(!asks("sid=a;y=2"));
        assert!(asks("sidx=a; sid=b"));
        assert!(asks("sidx=a"));
        assert!(!asks("no"));
    }

    #[test]
    fn what_the_whole_refuses_is_not_charged_to_a_client() {
        let gate = gate(&Admission {
            rate: Some(Rate {
                by: CountBy::Client,
                quota: quota(2),
            }),
            total: Some(quota(2)),
            ..Admission::default()
        });
        let limiter = fresh();
        assert!(from("192.0.2.1").asks(&gate, &limiter).is_ok());
        assert!(from("192.0.2.2").asks(&gate, &limiter).is_ok());
        for _ in 0..5 {
            let Err(Refusal::Rate { report, .. }) = from("192.0.2.1").asks(&gate, &limiter) else {
                panic!("it is let in");
            };
            let (_, _, taken) = report.each.expect("the client was counted");
            assert!(taken.is_admitted, "{taken:?}");
        }
    }

    #[test]
    fn an_answer_says_what_is_left() {
        let gate = gate(&Admission {
            rate: Some(Rate {
                by: CountBy::Client,
                quota: quota(3),
            }),
            total: Some(Quota {
                requests: 2_000,
                per_ms: 1_000,
                burst: 1_000,
            }),
            ..Admission::default()
        });
        let report = from("192.0.2.1").asks(&gate, &fresh());
        let mut fields = HeaderMap::new();
        report.expect("let in").write(&mut fields);
        assert_eq!(
            fields[RATE_LIMIT_POLICY],
            "\"client\";q=3;w=3, \"route\";q=1000;w=1"
        );
        assert_eq!(
            fields[RATE_LIMIT],
            "\"client\";r=2;t=1, \"route\";r=999;t=1"
        );
        let mut fields = HeaderMap::from_iter([(RATE_LIMIT, HeaderValue::from_static("own"))]);
        report.expect("let in").write(&mut fields);
        assert_eq!(fields.len(), 1);
    }
}
