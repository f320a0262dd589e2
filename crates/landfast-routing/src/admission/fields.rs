//! What a route adds to headers or takes from them: rules of the operator, security headers, and CORS.
//!
//! An answer is dressed in this order: security headers where the application said nothing, CORS, then the operator's
//! own rules, which have the last word.

use std::collections::BTreeMap;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY,
        STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VARY,
        X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
};
use serde::{Deserialize, Serialize};

/// Fields by which messages are told apart and connections kept: no rule touches them.
const FRAMING: [HeaderName; 7] = [
    CONNECTION,
    CONTENT_LENGTH,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Fields that are set, added or taken away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FieldRules {
    pub remove: Vec<String>,
    pub set: BTreeMap<String, String>,
    pub append: BTreeMap<String, String>,
}

/// The security headers of a route's answers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// How long browsers stay with HTTPS (RFC 6797), in seconds; zero says nothing. Sent over HTTPS alone.
    pub hsts_s: u64,
    pub hsts_subdomains: bool,
    pub frame: Frame,
    /// A value of `Referrer-Policy`; empty says nothing.
    pub referrer: String,
    /// A `Content-Security-Policy`; empty says only who may frame.
    pub csp: String,
    /// Replace what the application said as well.
    pub overwrite: bool,
}

/// Who may show an answer in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Frame {
    Deny,
    #[default]
    SameOrigin,
    Any,
}

/// Who may read answers from a page of another origin (the Fetch standard, 3.3).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cors {
    /// `https://a.example`, `https://*.example` (exactly one label), or `*`.
    pub origins: Vec<String>,
    pub methods: Vec<String>,
    pub headers: Vec<String>,
    pub expose: Vec<String>,
    pub credentials: bool,
    pub max_age_s: u64,
}

/// Rules that can be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edits {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    append: Vec<(HeaderName, HeaderValue)>,
}

impl Edits {
    pub(super) fn compile(rules: &FieldRules, problems: &mut Vec<String>) -> Self {
        let free = |name: &str| name.parse().ok().filter(|name| !FRAMING.contains(name));
        let mut pairs = |fields: &BTreeMap<String, String>| {
            let mut pairs = Vec::new();
            for (name, value) in fields {
                match (free(name), HeaderValue::from_str(value)) {
                    (Some(name), Ok(value)) => pairs.push((name, value)),
                    _ => problems.push(format!("`{name}` cannot be set")),
                }
            }
            pairs
        };
        let (set, append) = (pairs(&rules.set), pairs(&rules.append));
        let mut remove = Vec::new();
        for name in &rules.remove {
            match free(name) {
                Some(name) => remove.push(name),
                None => problems.push(format!("`{name}` cannot be removed")),
            }
        }
        Self {
            remove,
            set,
            append,
        }
    }

    /// Carries the rules out.
    pub fn apply(&self, fields: &mut HeaderMap) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            fields.insert(name, value.clone());
        }
        for (name, value) in &self.append {
            fields.append(name, value.clone());
        }
    }
}

/// Security headers ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Shield {
    always: Vec<(HeaderName, HeaderValue)>,
    hsts: Option<HeaderValue>,
    overwrites: bool,
}

impl Shield {
    pub(super) fn compile(rules: &Security, problems: &mut Vec<String>) -> Self {
        let (frame, ancestors) = match rules.frame {
            Frame::Deny => ("DENY", "frame-ancestors 'none'"),
            Frame::SameOrigin => ("SAMEORIGIN", "frame-ancestors 'self'"),
            Frame::Any => ("", ""),
        };
        let has_ancestors = rules.csp.to_ascii_lowercase().contains("frame-ancestors");
        let policy = match rules.csp.trim().trim_end_matches(';') {
            "" => ancestors.to_owned(),
            csp if has_ancestors || ancestors.is_empty() => csp.to_owned(),
            csp => format!("{csp}; {ancestors}"),
        };
        let wanted = [
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, frame),
            (REFERRER_POLICY, rules.referrer.as_str()),
            (CONTENT_SECURITY_POLICY, policy.as_str()),
        ];
        let mut always = Vec::new();
        for (name, value) in wanted {
            match HeaderValue::from_str(value) {
                Ok(value) if !value.is_empty() => always.push((name, value)),
                Ok(_) => {}
                Err(_) => problems.push(format!("security: the value of `{name}` cannot be sent")),
            }
        }
        let hsts = (rules.hsts_s > 0).then(|| {
            let whole = if rules.hsts_subdomains {
                "; includeSubDomains"
            } else {
                ""
            };
            let text = format!("max-age={}{whole}", rules.hsts_s);
            HeaderValue::from_str(&text).expect("a number")
        });
        Self {
            always,
            hsts,
            overwrites: rules.overwrite,
        }
    }

    pub(super) fn apply(&self, fields: &mut HeaderMap, is_https: bool) {
        let hsts = self.hsts.as_ref().filter(|_| is_https);
        let hsts = hsts.map(|value| (&STRICT_TRANSPORT_SECURITY, value));
        let always = self.always.iter().map(|(name, value)| (name, value));
        for (name, value) in always.chain(hsts) {
            if self.overwrites || !fields.contains_key(name) {
                fields.insert(name, value.clone());
            }
        }
    }
}

/// What became of a preflight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preflight {
    /// The fields of a 204.
    Allowed(HeaderMap),
    /// Its origin may not read anything here.
    Refused,
}

/// CORS ready to be answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sharing {
    origins: Vec<String>,
    is_for_all: bool,
    credentials: bool,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
}

impl Sharing {
    pub(super) fn compile(rules: &Cors, problems: &mut Vec<String>) -> Self {
        let is_for_all = rules.origins.iter().any(|origin| origin == "*");
        // A page of any origin could act as whoever looks at it. Nothing is opened by a contradiction.
        if is_for_all && rules.credentials {
            problems.push("cors: `*` with credentials; sharing with nobody".to_owned());
            return Self::default();
        }
        let mut list = |words: &[String]| {
            let value = HeaderValue::from_str(&words.join(", "));
            if value.is_err() {
                problems.push(format!("cors: {words:?} cannot be sent"));
            }
            value.ok().filter(|value| !value.is_empty())
        };
        Self {
            methods: list(&rules.methods),
            headers: list(&rules.headers),
            expose: list(&rules.expose),
            origins: rules.origins.clone(),
            is_for_all,
            credentials: rules.credentials,
            max_age: Some(HeaderValue::from(rules.max_age_s)),
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        self.is_for_all || self.origins.iter().any(|known| is_origin(known, origin))
    }

    fn share(&self, fields: &mut HeaderMap, origin: Option<&HeaderValue>) {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ] {
            fields.remove(name);
        }
        if self.is_for_all {
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            return;
        }
        // Also where there is no origin: a cache must not give this answer to a page that has one.
        vary(fields, "origin");
        if let Some(origin) = origin.filter(|origin| self.allows(origin)) {
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            if self.credentials {
                let yes = HeaderValue::from_static("true");
                fields.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
            }
        }
    }

    /// What a browser gets that asks before it sends; nothing where this is no preflight.
    pub(super) fn preflight(&self, method: &Method, asked: &HeaderMap) -> Option<Preflight> {
        let origin = asked.get(ORIGIN)?;
        if *method != Method::OPTIONS || !asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        if !self.allows(origin) {
            return Some(Preflight::Refused);
        }
        let mut fields = HeaderMap::new();
        for name in [
            ACCESS_CONTROL_REQUEST_METHOD,
            ACCESS_CONTROL_REQUEST_HEADERS,
        ] {
            vary(&mut fields, name.as_str());
        }
        for (name, value) in [
            (ACCESS_CONTROL_ALLOW_METHODS, &self.methods),
            (ACCESS_CONTROL_ALLOW_HEADERS, &self.headers),
            (ACCESS_CONTROL_MAX_AGE, &self.max_age),
        ] {
            if let Some(value) = value {
                fields.insert(name, value.clone());
            }
        }
        Some(Preflight::Allowed(fields))
    }

    pub(super) fn apply(&self, fields: &mut HeaderMap, origin: Option<&HeaderValue>) {
        self.share(fields, origin);
        if let Some(expose) = &self.expose {
            fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

/// Whether an origin is the one that is known, or has one label where that has a star.
fn is_origin(known: &str, origin: &str) -> bool {
    let Some((before, after)) = known.split_once('*') else {
        return known.eq_ignore_ascii_case(origin);
    };
    let label = (origin.len() > before.len() + after.len())
        .then(|| {
            let (start, rest) = origin.split_at_checked(before.len())?;
            let (label, end) = rest.split_at_checked(rest.len() - after.len())?;
            let fits = start.eq_ignore_ascii_case(before) && end.eq_ignore_ascii_case(after);
            fits.then_some(label)
        })
        .flatten();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    label.is_some_and(|label| label.bytes().all(is_plain))
}

/// Says that an answer depends on a request's field, once.
fn vary(fields: &mut HeaderMap, name: &str) {
    let is_there = fields.get_all(VARY).iter().any(|line| {
        let names = line.to_str().unwrap_or_default().split(',');
        let mut names = names.map(str::trim);
        names.any(|known| known == "*" || known.eq_ignore_ascii_case(name))
    });
    if !is_there {
        let value = HeaderValue::from_str(name).expect("the name of a field");
        fields.append(VARY, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(*name, HeaderValue::from_static(value));
        }
        fields
    }

    fn text(fields: &HeaderMap) -> String {
        let mut lines: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        lines.sort();
        lines.join("\n")
    }

    fn sharing(origins: &[&str], credentials: bool) -> Sharing {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let cors = Cors {
            origins: words(origins),
            methods: words(&["GET", "PUT"]),
            headers: words(&["content-type"]),
            expose: words(&["x-total"]),
            credentials,
            max_age_s: 600,
        };
        Sharing::compile(&cors, &mut Vec::new())
    }

    #[test]
    fn rules_take_away_then_set_then_add() {
        let rules = FieldRules {
            remove: vec!["Server".into()],
            set: [("X-Env".into(), "staging".into())].into(),
            append: [("Set-Cookie".into(), "b=2".into())].into(),
        };
        let mut problems = Vec::new();
        let edits = Edits::compile(&rules, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let mut fields = map(&[
            ("server", "x"),
            ("x-env", "a"),
            ("x-env", "b"),
            ("set-cookie", "a=1"),
        ]);
        edits.apply(&mut fields);
        assert_eq!(
            text(&fields),
            "set-cookie: a=1\nset-cookie: b=2\nx-env: staging"
        );
    }

    #[test]
    fn security_headers_fill_gaps_and_hsts_goes_over_https_alone() {
        let rules = Security {
            hsts_s: 60,
            hsts_subdomains: true,
            referrer: "no-referrer".into(),
            csp: "default-src 'self';".into(),
            ..Security::default()
        };
        let shield = Shield::compile(&rules, &mut Vec::new());
        let mut fields = map(&[("x-frame-options", "DENY")]);
        shield.apply(&mut fields, false);
        let expected = "content-security-policy: default-src 'self'; frame-ancestors 'self'\nreferrer-policy: no-referrer\nx-content-type-options: nosniff\nx-frame-options: DENY";
        assert_eq!(text(&fields), expected);
        let rules = Security {
            overwrite: true,
            frame: Frame::Deny,
            csp: String::new(),
            ..rules
        };
        let shield = Shield::compile(&rules, &mut Vec::new());
        shield.apply(&mut fields, true);
        let expected = "content-security-policy: frame-ancestors 'none'\nreferrer-policy: no-referrer\nstrict-transport-security: max-age=60; includeSubDomains\nx-content-type-options: nosniff\nx-frame-options: DENY";
        assert_eq!(text(&fields), expected);
    }

    #[test]
    fn an_origin_is_one_of_those_named_and_nothing_that_looks_like_it() {
        for (known, origin, expected) in [
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "https://A.Example", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example.evil", false),
            ("https://*.example", "https://a.example", true),
            ("https://*.example", "https://.example", false),
            ("https://*.example", "https://a.b.example", false),
            ("https://*.example", "https://evil/.example", false),
            ("https://*.example:8443", "https://a.example:8443", true),
            ("https://*.example", "null", false),
        ] {
            assert_eq!(is_origin(known, origin), expected, "{known} {origin}");
        }
    }

    #[test]
    fn an_answer_is_shared_with_its_origin_alone() {
        let sharing = sharing(&["https://a.example"], true);
        let mut fields = map(&[("access-control-allow-origin", "*"), ("vary", "Accept")]);
        sharing.apply(
            &mut fields,
            Some(&HeaderValue::from_static("https://a.example")),
        );
        assert_eq!(
            text(&fields),
            "access-control-allow-credentials: true\naccess-control-allow-origin: https://a.example\naccess-control-expose-headers: x-total\nvary: Accept\nvary: origin"
        );
        let mut fields = map(&[("access-control-allow-origin", "*"), ("vary", "Origin")]);
        sharing.apply(
            &mut fields,
            Some(&HeaderValue::from_static("https://evil.example")),
        );
        assert_eq!(
            text(&fields),
            "access-control-expose-headers: x-total\nvary: Origin"
        );
    }

    #[test]
    fn a_preflight_is_answered_and_nothing_else_is() {
        let origin = "https://a.example";
        let asked = map(&[("origin", origin), ("access-control-request-method", "PUT")]);
        let own = sharing(&[origin], false);
        let Some(Preflight::Allowed(fields)) = own.preflight(&Method::OPTIONS, &asked) else {
            panic!("refused");
        };
        assert_eq!(
            text(&fields),
            "access-control-allow-headers: content-type\naccess-control-allow-methods: GET, PUT\naccess-control-max-age: 600\nvary: access-control-request-headers\nvary: access-control-request-method"
        );
        assert_eq!(own.preflight(&Method::GET, &asked), None);
        assert_eq!(
            own.preflight(&Method::OPTIONS, &map(&[("origin", origin)])),
            None
        );
        let other = sharing(&["https://b.example"], false);
        let refused = other.preflight(&Method::OPTIONS, &asked);
        assert_eq!(refused, Some(Preflight::Refused));
        // A contradiction in a snapshot opens nothing.
        let none = sharing(&["*"], true);
        assert_eq!(
            none.preflight(&Method::OPTIONS, &asked),
            Some(Preflight::Refused)
        );
    }
}
