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
                literal(&format!("{FILES}/{name}{}", below(route))),
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

/// The path of a route, as what stands before a name below it.
fn below(route: &RouteSpec) -> &str {
    route.path.trim_end_matches('/')
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
    let has_tls =
        |routes: &[(&str, &RouteSpec)]| routes.iter().any(|(_, route)| route.tls.is_some());
    let any_has_tls = hosts.values().any(|routes| has_tls(routes));
    if any_has_tls && !hosts.get("*").is_some_and(|routes| has_tls(routes)) {
        // Without one the first host would answer for all others.
        text.push_str("    server {\n        listen 443 ssl http2 default_server;\n        ssl_reject_handshake on;\n        return 404;\n    }\n");
    }
    for (host, routes) in &hosts {
        server(&mut text, spec, host, routes, false);
        if has_tls(routes) {
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
    # For hosts, origins and headers of any length.
    server_names_hash_bucket_size 512;
    map_hash_bucket_size 512;
    variables_hash_max_size 8192;
    variables_hash_bucket_size 128;
    proxy_headers_hash_max_size 4096;
    proxy_headers_hash_bucket_size 256;
    # Clients of a balancer, or of Docker's own proxy (IPv6, rootless), all have its address; name it, and it is believed:
    # set_real_ip_from 172.16.0.0/12;
    # real_ip_header X-Forwarded-For;
    geo $dollar {
        default "$";
    }
    map $http_upgrade $connection_upgrade {
        default upgrade;
        '' '';
    }
    # A client may name its request, as one word.
    map $http_x_request_id $named {
        default $request_id;
        "~^[A-Za-z0-9_.:/+=@-]{1,128}$" $http_x_request_id;
    }
    # What applications read in other ways than nginx does: encoded twice, `;`, `\`, and dots that nginx resolves.
    map $request_uri $ambiguous {
        default 0;
        "~*^[^?]*(%25[0-9a-f]{2}|%3b|%5c|;|\\\\|#)" 1;
        "~*^[^?]*(/|%2f)(\\.|%2e){1,2}(/|%2f|\\?|$)" 1;
    }
    map $request_uri $asked_path {
        default "";
        "~^(?<before_query>[^?]*)" $before_query;
    }
"#;

/// What stands outside of servers: zones of limits, and what depends on others.
fn maps(name: &str, route: &RouteSpec) -> String {
    let mut text = String::new();
    let id = name.replace('-', "_");
    if let Some(rate) = &route.limits.rate {
        let by_name = |variable: Option<String>| {
            variable.map_or_else(
                || "    # No variable has this name in nginx, so clients are counted.\n".to_owned(),
                // Who sends none is counted as a client.
                |variable| {
                    map(
                        &variable,
                        &format!("by_{id}"),
                        &variable,
                        &[("''", "$binary_remote_addr")],
                    )
                },
            )
        };
        let counted = match &rate.by {
            CountBySpec::Client | CountBySpec::Route => String::new(),
            CountBySpec::Header { name } => by_name(header_variable(name)),
            CountBySpec::Cookie { name } => by_name(cookie_variable(name)),
        };
        let key = match &rate.by {
            CountBySpec::Route => "$server_name".to_owned(),
            _ if counted.contains("$by_") => format!("$by_{id}"),
            CountBySpec::Client | CountBySpec::Header { .. } | CountBySpec::Cookie { .. } => {
                "$binary_remote_addr".to_owned()
            }
        };
        text.push_str(&counted);
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
        if !route.allow.is_empty() {
            // Preflights are answered before nginx looks at `allow`.
            let networks: BTreeSet<_> = route.allow.iter().collect();
            text.push_str(&format!("    geo $allowed_{id} {{\n"));
            for network in networks {
                text.push_str(&format!("        {network} 1;\n"));
            }
            text.push_str("    }\n");
        }
        text.push_str(&cors_maps(&id, cors, !route.allow.is_empty()));
    }
    if let Some(security) = &route.security {
        for header in security_headers(security, route) {
            let value = quote(&header.value);
            let other = match security.overwrite {
                true => value.as_str(),
                false => "''",
            };
            let known = format!("security_{id}_{}", header.known());
            text.push_str(&map(
                &header.upstream(),
                &known,
                other,
                &[("''", value.as_str())],
            ));
        }
    }
    for (number, (name, value)) in route.request_headers.append.iter().enumerate() {
        if let Some(variable) = appended(route, name) {
            let (both, value) = (quote_after(&variable, value), quote(value));
            let known = format!("append_{number}_{id}");
            text.push_str(&map(&variable, &known, &both, &[("''", value.as_str())]));
        }
    }
    if let Some(files) = &route.files {
        let prefix = below(route);
        let known = word(&format!(
            "~^(GET|HEAD):{}/\\.well-known(/[^./][^/]*)*$",
            regex(prefix)
        ));
        let words = [
            (known.as_str(), "$uri"),
            ("\"~/\\.\"", NO_FILE),
            ("~^(GET|HEAD):", "$uri"),
        ];
        // Whatever else is asked is the service's, or not there.
        let by = "\"$request_method:$uri\"";
        text.push_str(&map(by, &format!("file_{id}"), NO_FILE, &words));
        // The page of a folder that is asked for with its slash; without it there is a redirect.
        let words = [("~/$", &*format!("${{file_{id}}}index.html"))];
        let file = format!("$file_{id}");
        text.push_str(&map(&file, &format!("folder_{id}"), NO_FILE, &words));
        let cache = quote(&files.cache_control);
        let pages = [("~^text/html", "no-cache")];
        text.push_str(&map(
            "$sent_http_content_type",
            &format!("cache_{id}"),
            &cache,
            &pages,
        ));
        if files.missing == MissingFile::Index {
            let index = quote(&format!("{prefix}/index.html"));
            let pages = [
                (
                    "\"~^(GET|HEAD):[^|]*(/[^./|]*|\\.html?)\\|\"",
                    index.as_str(),
                ),
                ("\"~^(GET|HEAD):.*\\|.*text/html\"", index.as_str()),
            ];
            text.push_str(&map(
                "\"$request_method:$uri|$http_accept\"",
                &format!("page_{id}"),
                NO_FILE,
                &pages,
            ));
        }
    }
    text
}

/// What no file is called: those with a dot in front are served to nobody.
const NO_FILE: &str = "/.none";

/// One map: what it goes by, the variable it makes, and its words, each as nginx reads it.
fn map(by: &str, to: &str, default: &str, words: &[(&str, &str)]) -> String {
    let mut text = format!("    map {by} ${to} {{\n        default {default};\n");
    for (when, then) in words {
        text.push_str(&format!("        {when} {then};\n"));
    }
    text + "    }\n"
}

/// Text that a regular expression takes as it is.
fn regex(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_/~".contains(c) || !c.is_ascii();
    text.chars().fold(String::new(), |mut known, c| {
        if !plain(c) {
            known.push('\\');
        }
        known.push(c);
        known
    })
}

fn is_for_all(cors: &CorsSpec) -> bool {
    cors.origins.iter().any(|origin| origin == "*")
}

/// Whether an origin may read, whether it asks before it sends, and what it is told then.
fn cors_maps(id: &str, cors: &CorsSpec, asks_who: bool) -> String {
    let origins: Vec<_> = cors
        .origins
        .iter()
        .map(|origin| match origin.split_once('*') {
            // One label, as everywhere.
            Some((before, after)) => {
                word(&format!("~*^{}[a-z0-9-]+{}$", regex(before), regex(after)))
            }
            None => word(origin),
        })
        .collect();
    let origins: Vec<_> = origins
        .iter()
        .map(|origin| (origin.as_str(), "$http_origin"))
        .collect();
    let may = match is_for_all(cors) {
        true => map("$http_origin", &format!("cors_{id}"), "'*'", &[]),
        false => map("$http_origin", &format!("cors_{id}"), "''", &origins),
    };
    let asks = map(
        "\"$request_method:$http_access_control_request_method:$http_origin\"",
        &format!("asks_{id}"),
        "0",
        &[("\"~^OPTIONS:[^:]+:.\"", "1")],
    );
    let preflight = map(
        &match asks_who {
            true => format!("\"$allowed_{id}$asks_{id}:$cors_{id}\""),
            false => format!("\"1$asks_{id}:$cors_{id}\""),
        },
        &format!("preflight_{id}"),
        "''",
        &[("11:", "refused"), ("~^11:.", "allowed")],
    );
    let mut text = may + &asks + &preflight;
    if cors.credentials {
        let words = [("''", "''")];
        text.push_str(&map(
            &format!("$cors_{id}"),
            &format!("credentials_{id}"),
            "'true'",
            &words,
        ));
    }
    for (name, value) in preflight_headers(cors) {
        let known = format!("{}_{id}", name.to_lowercase().replace('-', "_"));
        let words = [("allowed", value.as_str())];
        text.push_str(&map(&format!("$preflight_{id}"), &known, "''", &words));
    }
    text
}

/// What is said to a browser that asks before it sends.
fn preflight_headers(cors: &CorsSpec) -> Vec<(&'static str, String)> {
    let max_age = cors.max_age.as_secs().to_string();
    [
        ("Access-Control-Allow-Methods", cors.methods.join(", ")),
        ("Access-Control-Allow-Headers", cors.headers.join(", ")),
        ("Access-Control-Max-Age", max_age),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name, quote(&value)))
    .collect()
}

/// A header that an instance may say itself.
struct SecurityHeader {
    name: &'static str,
    value: String,
}

impl SecurityHeader {
    fn known(&self) -> String {
        self.name.to_lowercase().replace('-', "_")
    }

    /// The variable of what an instance sent.
    fn upstream(&self) -> String {
        format!("$upstream_http_{}", self.known())
    }
}

/// Those that the operator's own rules do not touch: these have the last word.
fn security_headers(security: &SecuritySpec, route: &RouteSpec) -> Vec<SecurityHeader> {
    let mut headers = vec![("X-Content-Type-Options", "nosniff".to_owned())];
    if route.tls.is_some() && !security.hsts.is_zero() {
        let mut value = format!("max-age={}", security.hsts.as_secs());
        if security.hsts_subdomains {
            value.push_str("; includeSubDomains");
        }
        headers.push(("Strict-Transport-Security", value));
    }
    let (frame, ancestors) = match security.frame.as_str() {
        "deny" => ("DENY", "frame-ancestors 'none'"),
        "same-origin" => ("SAMEORIGIN", "frame-ancestors 'self'"),
        _ => ("", ""),
    };
    let own = security.csp.as_deref().unwrap_or_default();
    let own = own.trim().trim_end_matches(';');
    let policy = match own {
        "" => ancestors.to_owned(),
        own if own.to_ascii_lowercase().contains("frame-ancestors") || ancestors.is_empty() => {
            own.to_owned()
        }
        own => format!("{own}; {ancestors}"),
    };
    headers.extend([
        ("X-Frame-Options", frame.to_owned()),
        ("Referrer-Policy", security.referrer.clone()),
        ("Content-Security-Policy", policy),
    ]);
    let rules = &route.response_headers;
    let touched = |name: &str| {
        let mut names = rules.set.keys().chain(&rules.remove);
        names.any(|one| one.eq_ignore_ascii_case(name))
    };
    headers
        .into_iter()
        .filter(|(name, value)| !value.is_empty() && !touched(name))
        .map(|(name, value)| SecurityHeader { name, value })
        .collect()
}

fn server(text: &mut String, spec: &AppSpec, host: &str, routes: &[(&str, &RouteSpec)], tls: bool) {
    let default = if host == "*" { " default_server" } else { "" };
    let name = match host.strip_prefix("*.") {
        _ if host == "*" => "_".to_owned(),
        // Exactly one more label.
        Some(domain) => word(&format!("~^[^.]+\\.{}$", regex(domain))),
        None => host.to_owned(),
    };
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
    // One place alone has no other that a path could be meant for.
    if routes.iter().any(|(_, route)| route.path != "/") {
        text.push_str("        if ($ambiguous) {\n            return 400;\n        }\n");
    }
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
    let redirects = route.https_only && has_tls && !tls;
    let body = match redirects {
        true => "            return 308 https://$host$request_uri;\n".to_owned(),
        false => body(spec, name, route),
    };
    let proxied = upstream(spec, name, route);
    let places = match route.path.as_str() {
        "/" => vec!["/".to_owned()],
        // A prefix ends at a segment.
        path => vec![format!("= {}", word(path)), word(&format!("{path}/"))],
    };
    let id = name.replace('-', "_");
    let write = |lines: &[String]| -> String {
        let lines = lines.iter().map(|line| format!("            {line};\n"));
        lines.collect()
    };
    let root = write(&[
        format!("root {FILES}/{name}"),
        format!("disable_symlinks on from={FILES}/{name}"),
    ]);
    let mut lines = vec!["gzip_static on".to_owned(), "gzip_vary on".to_owned()];
    let rules = &route.response_headers;
    let mut ruled = rules.set.keys().chain(&rules.remove);
    if !ruled.any(|one| one.eq_ignore_ascii_case("cache-control")) {
        lines.push(format!("add_header Cache-Control $cache_{id} always"));
    }
    let as_file = root.clone() + &write(&lines);
    for place in places {
        text.push_str(&format!("        location {place} {{\n{body}"));
        match (&route.files, redirects) {
            (_, true) => {}
            (Some(_), false) => {
                text.push_str(&as_file);
                let line = format!("try_files $file_{id} $folder_{id} @{name}");
                text.push_str(&write(&[line]));
            }
            (None, false) => text.push_str(&proxied),
        }
        text.push_str("        }\n");
    }
    if redirects {
        return;
    }
    if let Some(files) = &route.files {
        // Here, where logins and limits have been asked: what a redirect tells is not for everybody.
        let to_folder = format!(
            "            if (-f $document_root$file_{id}/index.html) {{\n                return 308 $scheme://$http_host$asked_path/$is_args$args;\n            }}\n"
        );
        let rest = match files.missing {
            MissingFile::Service => root + &to_folder + &proxied,
            MissingFile::NotFound => {
                as_file + &to_folder + &write(&[format!("try_files {NO_FILE} =404")])
            }
            MissingFile::Index => {
                as_file + &to_folder + &write(&[format!("try_files $page_{id} =404")])
            }
        };
        text.push_str(&format!(
            "        location @{name} {{\n{body}{rest}        }}\n"
        ));
    }
    if route.error_pages.is_some() {
        let headers = write(&answered(spec, name, route).added);
        text.push_str(&format!("        location /__errors/{name}/ {{\n            internal;\n            alias {ERRORS}/{name}/;\n{headers}        }}\n"));
    }
}

/// What is done to the headers of an answer.
struct Answered {
    /// What an instance says of them is not passed on.
    hidden: Vec<String>,
    added: Vec<String>,
}

fn answered(spec: &AppSpec, name: &str, route: &RouteSpec) -> Answered {
    let id = name.replace('-', "_");
    let hide = match is_sealed(spec, route) {
        true => "grpc_hide_header",
        false => "proxy_hide_header",
    };
    let mut hidden = vec![REQUEST_ID.to_owned()];
    let mut added = vec![format!("add_header {REQUEST_ID} $named always")];
    if let Some(security) = &route.security {
        for header in security_headers(security, route) {
            let name = header.name;
            hidden.push(name.to_owned());
            if !security.overwrite {
                added.push(format!("add_header {name} {} always", header.upstream()));
            }
            let known = header.known();
            added.push(format!("add_header {name} $security_{id}_{known} always"));
        }
    }
    if let Some(cors) = &route.cors {
        let replaced = [
            Some("Access-Control-Allow-Origin"),
            Some("Access-Control-Allow-Credentials"),
            (!cors.expose.is_empty()).then_some("Access-Control-Expose-Headers"),
        ];
        hidden.extend(replaced.into_iter().flatten().map(str::to_owned));
        added.extend(cors_lines(&id, cors));
    }
    let rules = &route.response_headers;
    let add = |(name, value): (&String, &String)| {
        format!("add_header {} {} always", word(name), quote(value))
    };
    hidden.extend(
        rules
            .set
            .keys()
            .chain(removed(rules))
            .map(|name| word(name)),
    );
    added.extend(rules.set.iter().chain(&rules.append).map(add));
    let hidden = hidden.into_iter().map(|name| format!("{hide} {name}"));
    Answered {
        hidden: hidden.collect(),
        added,
    }
}

/// Whether instances speak HTTP/2 alone; nginx does so to gRPC servers.
fn is_sealed(spec: &AppSpec, route: &RouteSpec) -> bool {
    let service = spec.services.get(&route.service);
    service.is_some_and(|service| service.protocol == Protocol::H2c)
}

const REQUEST_ID: &str = "X-Request-Id";

/// What is decided before an instance is asked.
fn body(spec: &AppSpec, name: &str, route: &RouteSpec) -> String {
    let mut text = String::new();
    let id = name.replace('-', "_");
    let mut line = |words: String| text.push_str(&format!("            {words};\n"));
    // To nginx, none at all is no limit.
    line(format!(
        "client_max_body_size {}",
        route.limits.body.0.max(1)
    ));
    line(format!(
        "client_body_timeout {}",
        super::duration(route.timeouts.idle)
    ));
    line(format!(
        "send_timeout {}",
        super::duration(route.timeouts.idle)
    ));
    let quotas = [
        ("rate", route.limits.rate.as_ref().map(|rate| &rate.quota)),
        ("total", route.limits.total.as_ref()),
    ];
    for (zone, quota) in quotas {
        if let Some(quota) = quota {
            // The first is beside those that nginx calls a burst.
            let burst = match quota.burst.saturating_sub(1) {
                0 => String::new(),
                more => format!(" burst={more} nodelay"),
            };
            line(format!("limit_req zone={zone}_{id}{burst}"));
        }
    }
    if quotas.iter().any(|(_, quota)| quota.is_some()) {
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
        if route.files.is_none() {
            line("gzip_vary on".to_owned());
        }
        line("gzip_min_length 1024".to_owned());
        line("gzip_types text/plain text/css text/javascript application/javascript application/json application/xml image/svg+xml".to_owned());
    }
    let answered = answered(spec, name, route);
    for words in answered.hidden.into_iter().chain(answered.added) {
        line(words);
    }
    if route.cors.is_some() {
        for (kind, code) in [("allowed", 204), ("refused", 403)] {
            text.push_str(&format!(
                "            if ($preflight_{id} = {kind}) {{\n                return {code};\n            }}\n"
            ));
        }
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
    text
}

/// What is said to other origins, in the place of what an instance says of it.
fn cors_lines(id: &str, cors: &CorsSpec) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |name: &str, value: &str| lines.push(format!("add_header {name} {value} always"));
    add("Access-Control-Allow-Origin", &format!("$cors_{id}"));
    if !is_for_all(cors) {
        add("Vary", "Origin");
    }
    if cors.credentials {
        add(
            "Access-Control-Allow-Credentials",
            &format!("$credentials_{id}"),
        );
    }
    if !cors.expose.is_empty() {
        add(
            "Access-Control-Expose-Headers",
            &quote(&cors.expose.join(", ")),
        );
    }
    for (name, _) in preflight_headers(cors) {
        let known = name.to_lowercase().replace('-', "_");
        add(name, &format!("${known}_{id}"));
    }
    lines
}

/// How an instance is asked.
fn upstream(spec: &AppSpec, name: &str, route: &RouteSpec) -> String {
    let service = spec.services.get(&route.service);
    let port = service.and_then(|service| service.port).unwrap_or(80);
    let h2c = is_sealed(spec, route);
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
        // What a client says of itself is not passed on.
        ("X-Forwarded-For".to_owned(), "$remote_addr".to_owned()),
        ("X-Forwarded-Proto".to_owned(), "$scheme".to_owned()),
        ("X-Forwarded-Host".to_owned(), "$http_host".to_owned()),
    ];
    let ruled = &route.request_headers;
    let mut ruled = ruled
        .set
        .keys()
        .chain(ruled.append.keys())
        .chain(&ruled.remove);
    if !ruled.any(|name| name.eq_ignore_ascii_case(REQUEST_ID)) {
        headers.push((REQUEST_ID.to_owned(), "$named".to_owned()));
    }
    headers.extend(CLAIMED.map(|name| (name.to_owned(), "\"\"".to_owned())));
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
    headers.extend(
        rules
            .append
            .iter()
            .enumerate()
            .filter_map(|(number, (name, value))| {
                let value = match appended(route, name) {
                    Some(_) => format!("$append_{number}_{id}"),
                    None if is_login(name) => quote(value),
                    None => return None,
                };
                Some((name.clone(), value))
            }),
    );
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

/// What clients claim in other words.
const CLAIMED: [&str; 10] = [
    "Forwarded",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Ssl",
    "X-Forwarded-User",
    "X-Original-Forwarded-For",
    "X-Original-URL",
    "X-Real-IP",
    "X-Rewrite-URL",
    "True-Client-IP",
];

/// The variable of the header that is added to, where it has one and reaches the instance at all.
fn appended(route: &RouteSpec, name: &str) -> Option<String> {
    let is_login = route.auth.is_some() && name.eq_ignore_ascii_case("authorization");
    header_variable(name).filter(|_| !is_login)
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

/// What a variable holds, and text behind it.
fn quote_after(variable: &str, text: &str) -> String {
    format!("\"{variable}, {}", &quote(text)[1..])
}

/// Text in double quotes. nginx has no way to write a dollar but a variable that holds one.
fn quote(text: &str) -> String {
    format!("\"{}\"", escape(text).replace('$', "${dollar}"))
}
