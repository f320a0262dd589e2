//! From what a route's manifest says of who may come to what the proxy is told.

use landfast_routing::admission::{
    Admission, BasicAuth, Cors, CountBy, FieldRules, Frame, Quota, Rate, Security,
};
use landfast_spec::{
    AuthSpec, CorsSpec, CountBySpec, FieldRulesSpec, QuotaSpec, RouteSpec, SecuritySpec,
};

pub(crate) fn admission(route: &RouteSpec) -> Admission {
    let rate = route.limits.rate.as_ref();
    Admission {
        allow: route.allow.clone(),
        rate: rate.and_then(|rate| {
            let by = match &rate.by {
                CountBySpec::Client => CountBy::Client,
                // The manifest's reader makes a total of it.
                CountBySpec::Route => return None,
                CountBySpec::Header { name } => CountBy::Header { name: name.clone() },
                CountBySpec::Cookie { name } => CountBy::Cookie { name: name.clone() },
            };
            let quota = quota(rate.quota);
            Some(Rate { by, quota })
        }),
        total: route.limits.total.map(quota),
        auth: route.auth.as_ref().map(auth),
        cors: route.cors.as_ref().map(cors),
        security: route.security.as_ref().map(security),
        request_fields: field_rules(&route.request_headers),
        response_fields: field_rules(&route.response_headers),
    }
}

fn auth(auth: &AuthSpec) -> BasicAuth {
    BasicAuth {
        realm: auth.realm.clone(),
        users: auth.users.clone(),
    }
}

fn cors(cors: &CorsSpec) -> Cors {
    Cors {
        origins: cors.origins.clone(),
        methods: cors.methods.clone(),
        headers: cors.headers.clone(),
        expose: cors.expose.clone(),
        credentials: cors.credentials,
        max_age_s: cors.max_age.as_secs(),
    }
}

fn security(security: &SecuritySpec) -> Security {
    Security {
        hsts_s: security.hsts.as_secs(),
        hsts_subdomains: security.hsts_subdomains,
        frame: match security.frame.as_str() {
            "deny" => Frame::Deny,
            "any" => Frame::Any,
            _ => Frame::SameOrigin,
        },
        referrer: security.referrer.clone(),
        csp: security.csp.clone().unwrap_or_default(),
        overwrite: security.overwrite,
    }
}

fn field_rules(rules: &FieldRulesSpec) -> FieldRules {
    FieldRules {
        remove: rules.remove.clone(),
        set: rules.set.clone(),
        append: rules.append.clone(),
    }
}

fn quota(quota: QuotaSpec) -> Quota {
    Quota {
        requests: quota.requests,
        per_ms: quota.per.as_millis() as u64,
        burst: quota.burst,
    }
}
