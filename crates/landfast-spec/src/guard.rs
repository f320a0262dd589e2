//! Who may come to a route, and how often: from the tree to the spec, with what these keys make of each other.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    code::Code,
    cursor::Cursor,
    diagnostic::Problem,
    leaf::Leaf,
    spec::{
        AuthSpec, CorsSpec, CountBySpec, FieldRulesSpec, QuotaSpec, RateSpec, RouteLimitsSpec,
        SecuritySpec,
    },
};

/// Reads `[routes.NAME.limits]`.
pub(crate) fn limits(at: &Cursor<'_>) -> RouteLimitsSpec {
    let by = match at.leaf("by") {
        Some(Leaf::CountBy(by)) => by,
        _ => CountBySpec::Client,
    };
    let each = quota(at, "rate", "burst");
    let total = quota(at, "total", "total_burst");
    if !at.has("rate") {
        no_effect(at, "by", "write `rate` too");
    }
    let (rate, total) = match (each, by) {
        (Some(quota), CountBySpec::Route) => {
            no_effect(
                at,
                "total",
                "it is what by = \"route\" says; remove one of them",
            );
            (None, Some(quota))
        }
        (each, by) => (each.map(|quota| RateSpec { by, quota }), total),
    };
    RouteLimitsSpec {
        body: at.bytes_or_default("body"),
        rate,
        total,
    }
}

/// A rate with its burst: without one, what comes in the rate's own unit of time may come at once.
fn quota(at: &Cursor<'_>, rate: &str, burst: &str) -> Option<QuotaSpec> {
    if !at.has(rate) {
        no_effect(at, burst, &format!("write `{rate}` too"));
    }
    let burst = at.optional_count(burst);
    let Some(Leaf::Rate { requests, per_ms }) = at.leaf(rate) else {
        return None;
    };
    Some(QuotaSpec {
        requests,
        per: Duration::from_millis(per_ms),
        burst: burst.unwrap_or(requests),
    })
}

fn no_effect(at: &Cursor<'_>, key: &str, help: &str) {
    if at.has(key) {
        let message = format!("`{key}` has no effect here");
        let problem = Problem::new(Code::NoEffect, at.key_span(key), message);
        at.report(problem.help(help));
    }
}

/// Reads `[routes.NAME.auth]`.
pub(crate) fn auth(route: &Cursor<'_>) -> Option<AuthSpec> {
    let at = route.has("auth").then(|| route.table("auth"))?;
    let realm = at.text("realm");
    Some(AuthSpec {
        users: at.texts("users")?,
        realm: realm.unwrap_or_else(|| at.default_text("realm").to_owned()),
    })
}

/// Reads `[routes.NAME.cors]`.
pub(crate) fn cors(route: &Cursor<'_>) -> Option<CorsSpec> {
    let at = route.has("cors").then(|| route.table("cors"))?;
    let credentials = at.flag("credentials");
    let origins = at.texts("origins")?;
    if credentials && origins.iter().any(|origin| origin == "*") {
        let message =
            "`credentials` with the origin `*` would let any page act as whoever looks at it";
        let problem = Problem::new(Code::BadValue, at.span("credentials"), message);
        at.report(problem.help("name the origins"));
    }
    let headers = at.texts("headers").unwrap_or_default();
    if credentials && headers.iter().any(|name| name == "*") {
        let message = "`*` is no more than a name where credentials go along";
        let problem = Problem::new(Code::BadValue, at.span("headers"), message);
        at.report(problem.help("name the headers"));
    }
    let default = || {
        let words = crate::defaults::CORS_METHODS.words().iter();
        words.map(|word| (*word).to_owned()).collect()
    };
    Some(CorsSpec {
        origins,
        methods: at.texts("methods").unwrap_or_else(default),
        headers,
        expose: at.texts("expose").unwrap_or_default(),
        credentials,
        max_age: at.duration("max_age"),
    })
}

/// Reads `[routes.NAME.security]`.
pub(crate) fn security(route: &Cursor<'_>) -> Option<SecuritySpec> {
    let at = route.has("security").then(|| route.table("security"))?;
    let word = |key| {
        let word = at.text(key);
        word.unwrap_or_else(|| at.default_text(key).to_owned())
    };
    Some(SecuritySpec {
        hsts: at.duration("hsts"),
        hsts_subdomains: at.flag("hsts_subdomains"),
        frame: word("frame"),
        referrer: word("referrer"),
        csp: at.text("csp"),
        overwrite: at.flag("overwrite"),
    })
}

/// Reads `[routes.NAME.request_headers]` or `[routes.NAME.response_headers]`.
pub(crate) fn field_rules(at: &Cursor<'_>) -> FieldRulesSpec {
    FieldRulesSpec {
        set: fields(&at.table("set")),
        append: fields(&at.table("append")),
        remove: at.texts("remove").unwrap_or_default(),
    }
}

/// Names are kept in lower case: an overlay and the file mean the same one.
fn fields(at: &Cursor<'_>) -> BTreeMap<String, String> {
    let each = at.entries().filter_map(|(name, entry)| {
        let text = entry.node.value.as_text()?;
        Some((name.to_ascii_lowercase(), text.to_owned()))
    });
    each.collect()
}
