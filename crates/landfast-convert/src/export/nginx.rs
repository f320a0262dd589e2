//! The configuration of nginx for the routes of a manifest. Instances are found by Docker's name service at each request, so that
//! replicas come and go without a reload.

use std::collections::{BTreeMap, BTreeSet};

use landfast_spec::{
    AppSpec, CorsSpec, CountBySpec, FieldRulesSpec, MissingFile, Protocol, QuotaSpec, RouteSpec,
    SecuritySpec,
};
use serde_json::{Value, json};

use super::{ExportOptions, ExportedFile, join, literal};

/// Where files of the export are in nginx's container.
const FILES: &str = "/srv/files";
const ERRORS: &str = "/srv/errors";
const AUTH: &str = "/etc/nginx/auth";
const TLS: &str = "/etc/nginx/tls";

/// The service of nginx, and its files.
pub(super) fn proxy(spec: &AppSpec, options: &ExportOptions) -> (Value, Vec<ExportedFile>) {
    let mut files = vec![ExportedFile {
        path: "nginx/nginx.conf".to_owned(),
        text: configuration(spec),
    }];
    let mount = |source: String, target: String| json!({ "type": "bind", "source": literal(&source), "target": target, "read_only": true });
    let mut mounts = vec![mount(
        "./nginx/nginx.conf".to_owned(),
        "/etc/nginx/nginx.conf".to_owned(),
    )];
    let mut has_tls = false;
    for (name, route) in &spec.routes {
        if let Some(folder) = &route.files {
            mounts.push(mount(
                join(&options.project, &folder.folder),
                format!("{FILES}/{name}"),
            ));
        }
        if let Some(folder) = &route.error_pages {
            mounts.push(mount(
                join(&options.project, folder),
                format!("{ERRORS}/{name}"),
            ));
        }
        if let Some(auth) = &route.auth {
            let path = format!("nginx/auth-{name}");
            mounts.push(mount(format!("./{path}"), format!("{AUTH}/{name}")));
            let text = auth.users.iter().map(|user| format!("{user}\n")).collect();
            files.push(ExportedFile { path, text });
        }
        if let Some(tls) = &route.tls {
            has_tls = true;
            mounts.push(mount(tls.certificate.clone(), format!("{TLS}/{name}.pem")));
            mounts.push(mount(tls.key.clone(), format!("{TLS}/{name}.key")));
        }
    }
    let mut ports = vec!["${HTTP_PORT:-80}:80".to_owned()];
    if has_tls {
        ports.push("${HTTPS_PORT:-443}:443".to_owned());
    }
    let services = spec
        .routes
        .values()
        .map(|route| route.service.to_string())
        .collect::<BTreeSet<_>>();
    let depends = services
        .into_iter()
        .map(|name| (name, json!({ "condition": "service_started" })));
    let service = json!({
        "image": "${NGINX_IMAGE:-nginx:stable}",
        "ports": ports,
        "volumes": mounts,
        "networks": ["app"],
        "depends_on": depends.collect::<serde_json::Map<_, _>>(),
        "tmpfs": ["/tmp"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
    });
    (service, files)
}

fn configuration(spec: &AppSpec) -> String {
    let mut text = HEAD.to_owned();
    for (name, route) in &spec.routes {
        text.push_str(&maps(name.as_str(), route));
    }
    let mut hosts = BTreeMap::<&str, Vec<(&str, &RouteSpec)>>::new();
    for (name, route) in &spec.routes {
        hosts
            .entry(&route.host)
            .or_default()
            .push((name.as_str(), route));
    }
    if !hosts.contains_key("*") {
        text.push_str(
            "    server {\n        listen 80 default_server;\n        return 404;\n    }\n",
        );
    }
    for (host, routes) in &hosts {
        server(&mut text, spec, host, routes, false);
        if routes.iter().any(|(_, route)| route.tls.is_some()) {
            server(&mut text, spec, host, routes, true);
        }
    }
    text.push_str("}\n");
    text
}

const HEAD: &str = r#"# Written by `landfast export compose`.
worker_processes auto;
pid /tmp/nginx.pid;
error_log /dev/stderr warn;
events {
    worker_connections 4096;
}
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout;
    server_tokens off;
    client_body_temp_path /tmp/client_body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    # Docker's own: names of services become the addresses of their instances.
    resolver 127.0.0.11 valid=2s ipv6=off;
    client_header_timeout 10s;
    geo $dollar {
        default "$";
    }
    map $http_upgrade $connection_upgrade {
        default upgrade;
        '' '';
    }
"#;

/// What stands outside of servers: zones of limits, and headers that depend on others.
fn maps(name: &str, route: &RouteSpec) -> String {
    let mut text = String::new();
    let id = name.replace('-', "_");
    if let Some(rate) = &route.limits.rate {
        let key = match &rate.by {
            CountBySpec::Client => Some("$binary_remote_addr".to_owned()),
            CountBySpec::Route => Some("$server_name".to_owned()),
            CountBySpec::Header { name } => header_variable(name),
            CountBySpec::Cookie { name } => cookie_variable(name),
        };
        let key = key.unwrap_or_else(|| {
            text.push_str("    # No variable has this name in nginx, so clients are counted.\n");
            "$binary_remote_addr".to_owned()
        });
        text.push_str(&format!(
            "    limit_req_zone {key} zone=rate_{id}:10m rate={};\n",
            rate_of(&rate.quota)
        ));
    }
    if let Some(total) = &route.limits.total {
        text.push_str(&format!(
            "    limit_req_zone $server_name zone=total_{id}:1m rate={};\n",
            rate_of(total)
        ));
    }
    if let Some(cors) = &route.cors {
        text.push_str(&cors_map(&id, cors));
    }
    if let Some(security) = &route.security {
        for (header, value, upstream) in security_headers(security, route.tls.is_some()) {
            let known = format!("{id}_{}", upstream.trim_start_matches("$upstream_http_"));
            let other = if security.overwrite {
                quote(&value)
            } else {
                "''".to_owned()
            };
            text.push_str(&format!("    map {upstream} $security_{known} {{ # {header}\n        default {other};\n        '' {};\n    }}\n", quote(&value)));
        }
    }
    text
}

fn cors_map(id: &str, cors: &CorsSpec) -> String {
    let mut text = format!("    map $http_origin $cors_{id} {{\n        default '';\n");
    for origin in &cors.origins {
        if origin == "*" {
            text = format!("    map $http_origin $cors_{id} {{\n        default '*';\n");
            break;
        }
        match origin.split_once("*.") {
            Some((scheme, domain)) => {
                let domain = domain.replace('.', "\\.");
                text.push_str(&format!(
                    "        '~^{scheme}[^./]+\\.{domain}$' $http_origin;\n"
                ));
            }
            None => text.push_str(&format!("        {} $http_origin;\n", quote(origin))),
        }
    }
    text + &format!(
        "    }}\n    map \"$request_method:$http_access_control_request_method:$cors_{id}\" $preflight_{id} {{\n        default 0;\n        '~^OPTIONS:.+:.+$' 1;\n    }}\n"
    )
}

/// Name, value, and the variable of what an instance sent.
fn security_headers(
    security: &SecuritySpec,
    tls: bool,
) -> Vec<(&'static str, String, &'static str)> {
    let mut headers = vec![(
        "X-Content-Type-Options",
        "nosniff".to_owned(),
        "$upstream_http_x_content_type_options",
    )];
    if tls && !security.hsts.is_zero() {
        let mut value = format!("max-age={}", security.hsts.as_secs());
        if security.hsts_subdomains {
            value.push_str("; includeSubDomains");
        }
        headers.push((
            "Strict-Transport-Security",
            value,
            "$upstream_http_strict_transport_security",
        ));
    }
    let frame = match security.frame.as_str() {
        "deny" => Some("DENY"),
        "same-origin" => Some("SAMEORIGIN"),
        _ => None,
    };
    headers.extend(frame.map(|value| {
        (
            "X-Frame-Options",
            value.to_owned(),
            "$upstream_http_x_frame_options",
        )
    }));
    headers.push((
        "Referrer-Policy",
        security.referrer.clone(),
        "$upstream_http_referrer_policy",
    ));
    headers.extend(security.csp.iter().map(|value| {
        (
            "Content-Security-Policy",
            value.clone(),
            "$upstream_http_content_security_policy",
        )
    }));
    headers
}

fn server(text: &mut String, spec: &AppSpec, host: &str, routes: &[(&str, &RouteSpec)], tls: bool) {
    let default = if host == "*" { " default_server" } else { "" };
    let name = if host == "*" { "_" } else { host };
    text.push_str("    server {\n");
    if tls {
        text.push_str(&format!("        listen 443 ssl http2{default};\n"));
        let with = routes.iter().find(|(_, route)| route.tls.is_some());
        if let Some((route, _)) = with {
            text.push_str(&format!("        ssl_certificate {TLS}/{route}.pem;\n        ssl_certificate_key {TLS}/{route}.key;\n        ssl_protocols TLSv1.2 TLSv1.3;\n"));
        }
    } else {
        text.push_str(&format!("        listen 80{default};\n"));
    }
    text.push_str(&format!("        server_name {name};\n"));
    for (name, route) in routes {
        location(text, spec, name, route, tls, routes);
    }
    if !routes.iter().any(|(_, route)| route.path == "/") {
        text.push_str("        location / {\n            return 404;\n        }\n");
    }
    text.push_str("    }\n");
}

fn location(
    text: &mut String,
    spec: &AppSpec,
    name: &str,
    route: &RouteSpec,
    tls: bool,
    routes: &[(&str, &RouteSpec)],
) {
    let has_tls = routes.iter().any(|(_, route)| route.tls.is_some());
    let body = if route.https_only && has_tls && !tls {
        "            return 308 https://$host$request_uri;\n".to_owned()
    } else {
        body(spec, name, route)
    };
    let proxied = upstream(spec, name, route);
    let places = match route.path.as_str() {
        "/" => vec!["/".to_owned()],
        // A prefix ends at a segment.
        path => vec![format!("= {}", word(path)), word(&format!("{path}/"))],
    };
    let redirects = body.contains("return 308");
    for place in places {
        text.push_str(&format!("        location {place} {{\n{body}"));
        match (&route.files, redirects) {
            (_, true) => {}
            (Some(files), false) => {
                let missing = match files.missing {
                    MissingFile::Service => format!("@{name}"),
                    MissingFile::NotFound => "=404".to_owned(),
                    MissingFile::Index => "/index.html".to_owned(),
                };
                text.push_str(&format!("            root {FILES}/{name};\n            try_files $uri $uri/index.html {missing};\n            add_header Cache-Control {} always;\n", quote(&files.cache_control)));
            }
            (None, false) => text.push_str(&proxied),
        }
        text.push_str("        }\n");
    }
    if redirects {
        return;
    }
    if route.files.is_some() {
        text.push_str(&format!(
            "        location @{name} {{\n{body}{proxied}        }}\n"
        ));
    }
    if route.error_pages.is_some() {
        text.push_str(&format!("        location /__errors/{name}/ {{\n            internal;\n            alias {ERRORS}/{name}/;\n        }}\n"));
    }
}

/// What is decided before an instance is asked.
fn body(spec: &AppSpec, name: &str, route: &RouteSpec) -> String {
    let mut text = String::new();
    let id = name.replace('-', "_");
    let mut line = |words: String| text.push_str(&format!("            {words};\n"));
    line(format!("client_max_body_size {}", route.limits.body.0));
    line(format!(
        "client_body_timeout {}",
        super::duration(route.timeouts.idle)
    ));
    line(format!(
        "send_timeout {}",
        super::duration(route.timeouts.idle)
    ));
    if let Some(rate) = &route.limits.rate {
        line(format!(
            "limit_req zone=rate_{id} burst={} nodelay",
            rate.quota.burst.saturating_sub(1).max(1)
        ));
        line("limit_req_status 429".to_owned());
    }
    if let Some(total) = &route.limits.total {
        line(format!(
            "limit_req zone=total_{id} burst={} nodelay",
            total.burst.saturating_sub(1).max(1)
        ));
        line("limit_req_status 429".to_owned());
    }
    for network in &route.allow {
        line(format!("allow {network}"));
    }
    if !route.allow.is_empty() {
        line("deny all".to_owned());
    }
    if let Some(auth) = &route.auth {
        // To nginx, a realm of this name is none at all.
        let realm = match auth.realm.as_str() {
            "off" => "Off",
            realm => realm,
        };
        line(format!("auth_basic {}", quote(realm)));
        line(format!("auth_basic_user_file {AUTH}/{name}"));
    }
    if route.compress {
        line("gzip on".to_owned());
        line("gzip_proxied any".to_owned());
        line("gzip_vary on".to_owned());
        line("gzip_types text/plain text/css text/javascript application/javascript application/json application/xml image/svg+xml".to_owned());
    }
    if let Some(security) = &route.security {
        for (header, _, upstream) in security_headers(security, route.tls.is_some()) {
            line(format!("proxy_hide_header {header}"));
            let known = upstream.trim_start_matches("$upstream_http_");
            if !security.overwrite {
                line(format!("add_header {header} {upstream} always"));
            }
            line(format!("add_header {header} $security_{id}_{known} always"));
        }
    }
    for words in response_headers(&route.response_headers) {
        line(words);
    }
    if let Some(cors) = &route.cors {
        for (header, value) in cors_headers(&id, cors) {
            line(format!("add_header {header} {value} always"));
        }
        text.push_str(&format!(
            "            if ($preflight_{id}) {{\n                return 204;\n            }}\n"
        ));
    }
    if !route.websocket {
        text.push_str("            if ($http_upgrade ~* websocket) {\n                return 403;\n            }\n");
    }
    if route.error_pages.is_some() {
        for code in [404, 502, 503, 504] {
            text.push_str(&format!(
                "            error_page {code} /__errors/{name}/{code}.html;\n"
            ));
        }
    }
    let sealed = spec
        .services
        .get(&route.service)
        .is_some_and(|service| service.protocol == Protocol::H2c);
    if sealed {
        text.push_str(
            "            # Instances speak HTTP/2 alone; nginx does so to gRPC servers.\n",
        );
    }
    text
}

fn response_headers(rules: &FieldRulesSpec) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, value) in &rules.set {
        let name = word(name);
        lines.push(format!("proxy_hide_header {name}"));
        lines.push(format!("add_header {name} {} always", quote(value)));
    }
    lines.extend(
        rules
            .append
            .iter()
            .map(|(name, value)| format!("add_header {} {} always", word(name), quote(value))),
    );
    lines.extend(removed(rules).map(|name| format!("proxy_hide_header {}", word(name))));
    lines
}

fn cors_headers(id: &str, cors: &CorsSpec) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("Access-Control-Allow-Origin", format!("$cors_{id}")),
        ("Vary", "Origin".to_owned()),
    ];
    headers.push((
        "Access-Control-Allow-Methods",
        quote(&cors.methods.join(", ")),
    ));
    if !cors.headers.is_empty() {
        headers.push((
            "Access-Control-Allow-Headers",
            quote(&cors.headers.join(", ")),
        ));
    }
    if !cors.expose.is_empty() {
        headers.push((
            "Access-Control-Expose-Headers",
            quote(&cors.expose.join(", ")),
        ));
    }
    if cors.credentials {
        headers.push(("Access-Control-Allow-Credentials", "true".to_owned()));
    }
    headers.push(("Access-Control-Max-Age", cors.max_age.as_secs().to_string()));
    headers
}

/// How an instance is asked.
fn upstream(spec: &AppSpec, name: &str, route: &RouteSpec) -> String {
    let service = spec.services.get(&route.service);
    let port = service.and_then(|service| service.port).unwrap_or(80);
    let h2c = service.is_some_and(|service| service.protocol == Protocol::H2c);
    let id = name.replace('-', "_");
    let kind = if h2c { "grpc" } else { "proxy" };
    let mut lines = vec![format!("set $to_{id} {}:{port}", route.service)];
    lines.push(match h2c {
        true => format!("grpc_pass grpc://$to_{id}"),
        false => format!("proxy_pass http://$to_{id}"),
    });
    if !h2c {
        lines.push("proxy_http_version 1.1".to_owned());
    }
    let mut headers = vec![
        ("Host".to_owned(), "$http_host".to_owned()),
        (
            "X-Forwarded-For".to_owned(),
            "$proxy_add_x_forwarded_for".to_owned(),
        ),
        ("X-Forwarded-Proto".to_owned(), "$scheme".to_owned()),
        ("X-Forwarded-Host".to_owned(), "$http_host".to_owned()),
    ];
    if !h2c {
        headers.push(("Upgrade".to_owned(), "$http_upgrade".to_owned()));
        headers.push(("Connection".to_owned(), "$connection_upgrade".to_owned()));
    }
    let rules = &route.request_headers;
    let is_login = |name: &str| route.auth.is_some() && name.eq_ignore_ascii_case("authorization");
    let mut touched = rules.set.keys().chain(rules.append.keys());
    if route.auth.is_some() && !touched.any(|name| is_login(name)) {
        // What let the client in is not the instance's to see.
        headers.push(("Authorization".to_owned(), "\"\"".to_owned()));
    }
    headers.extend(
        rules
            .set
            .iter()
            .map(|(name, value)| (name.clone(), quote(value))),
    );
    headers.extend(rules.append.iter().filter_map(|(name, value)| {
        let value = quote(value);
        let value = match is_login(name) {
            true => value,
            false => format!("\"{}, {}", header_variable(name)?, &value[1..]),
        };
        Some((name.clone(), value))
    }));
    headers.extend(removed(rules).map(|name| (name.clone(), "\"\"".to_owned())));
    lines.extend(
        headers
            .into_iter()
            .map(|(name, value)| format!("{kind}_set_header {} {value}", word(&name))),
    );
    lines.push(format!(
        "{kind}_connect_timeout {}",
        super::duration(route.timeouts.connect)
    ));
    lines.push(format!(
        "{kind}_read_timeout {}",
        super::duration(route.timeouts.first_byte)
    ));
    lines.push(format!(
        "{kind}_send_timeout {}",
        super::duration(route.timeouts.idle)
    ));
    // As Landfast: one more try, and only where nothing was done yet.
    lines.push(format!("{kind}_next_upstream error timeout"));
    lines.push(format!("{kind}_next_upstream_tries 2"));
    if !h2c {
        lines.push("proxy_request_buffering off".to_owned());
        lines.push("proxy_buffering off".to_owned());
    }
    lines
        .into_iter()
        .map(|line| format!("            {line};\n"))
        .collect()
}

/// nginx counts by whole numbers a second or a minute.
fn rate_of(quota: &QuotaSpec) -> String {
    let millis = u64::try_from(quota.per.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let requests = u64::from(quota.requests);
    match (requests * 1_000).checked_rem(millis) {
        Some(0) => format!("{}r/s", requests * 1_000 / millis),
        _ => format!("{}r/m", (requests * 60_000).div_ceil(millis).max(1)),
    }
}

/// What is taken away by its name: nginx has no way to take all headers away.
fn removed(rules: &FieldRulesSpec) -> impl Iterator<Item = &String> {
    rules.remove.iter().filter(|name| *name != "*")
}

/// The variable of a header, where it has one: nginx ends a variable's name at any other character.
pub(super) fn header_variable(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    name.chars()
        .all(fits)
        .then(|| format!("$http_{}", name.to_lowercase().replace('-', "_")))
}

/// The variable of a cookie, where it has one.
pub(super) fn cookie_variable(name: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(fits).then(|| format!("$cookie_{name}"))
}

/// A word in which nginx reads no variables: a path of a location, the name of a header. In quotes where it needs them.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./~".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("\"{}\"", escape(text))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Text in double quotes. nginx has no way to write a dollar but a variable that holds one.
fn quote(text: &str) -> String {
    format!("\"{}\"", escape(text).replace('$', "${dollar}"))
}
