//! The configuration of nginx is read and run by nginx itself, whatever paths and names a manifest has.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
};

use landfast_convert::{Expressed, equivalence};

use crate::common::nginx::{Answer, Place, World, configuration, exported, is_here, spec};

const HOSTILE: &str = r##"
app = "shop"

[services.web]
image = "example/web:1"
port  = 3002

[routes.sharp]
host    = "shop.test"
path    = "/a;}{\"\\$x'%"
service = "web"
auth    = { users = ["a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"], realm = "o;ff\"}" }
limits  = { rate = "10/s", by = "header:x!y" }

[routes.sharp.request_headers]
set    = { "#x" = "1;\"}", "'y$z" = "2" }
append = { "x`a|" = "3", X-Good = "4" }
remove = ["*", "'q"]

[routes.sharp.response_headers]
set    = { "#a'$" = "${b}\\" }
append = { "'b" = "c" }
remove = ["*", "#d"]

[routes.off]
host    = "shop.test"
path    = "/off"
service = "web"
auth    = { users = ["a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"], realm = "off" }
limits  = { rate = "10/s", by = "cookie:a-b" }
"##;

#[test]
fn hostile_paths_and_names_stay_words() {
    if !is_here() {
        return;
    }
    let spec = spec(HOSTILE);
    let files = exported(&spec);
    let text = configuration(&files);
    assert_eq!(Place::new("hostile", &spec).refused(text), None, "{text}");
    assert!(
        !text.contains("header *") && !text.contains("header \"*\""),
        "{text}"
    );
    assert!(!text.contains("auth_basic \"off\""), "{text}");
    assert!(
        !text.contains("$cookie_a-b") && !text.contains("$http_x!"),
        "{text}"
    );
}

#[test]
fn what_nginx_has_no_word_for_is_named() {
    let gaps = equivalence(HOSTILE);
    for key in [
        "routes.sharp.request_headers.remove",
        "routes.sharp.request_headers.append",
        "routes.sharp.response_headers.remove",
        "routes.sharp.limits.by",
        "routes.off.limits.by",
    ] {
        let gap = gaps.iter().find(|gap| gap.key == key);
        let gap = gap.unwrap_or_else(|| panic!("{key}"));
        assert!(matches!(gap.expressed, Expressed::Partly { .. }), "{gap:?}");
    }
    let alone = HOSTILE.replace("[\"*\", \"#d\"]", "[\"*\"]");
    let gaps = equivalence(&alone);
    let gap = gaps
        .iter()
        .find(|gap| gap.key == "routes.sharp.response_headers.remove");
    assert!(
        matches!(gap.unwrap().expressed, Expressed::Not { .. }),
        "{gap:?}"
    );
    let plain = equivalence(
        "[routes.a]\nlimits = { by = \"route\" }\n[routes.a.request_headers]\nremove = [\"Cookie\"]\n",
    );
    for gap in plain {
        assert!(matches!(gap.expressed, Expressed::As { .. }), "{gap:?}");
    }
}

#[test]
fn logins_stay_with_nginx_and_odd_paths_reach_the_instance() {
    if !is_here() {
        return;
    }
    let manifest = r##"
app = "shop"

[services.web]
image = "example/web:1"
port  = 3002

[routes.open]
host    = "shop.test"
path    = "/a}{\"x"
service = "web"

[routes.closed]
host    = "shop.test"
path    = "/closed"
service = "web"
auth    = { users = ["a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"] }

[routes.own]
host    = "shop.test"
path    = "/own"
service = "web"
auth    = { users = ["a:$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"] }

[routes.own.request_headers]
set = { Authorization = "Bearer inner" }
"##;
    let world = World::prepared("logins", manifest, |place| {
        for name in ["closed", "own"] {
            // Of the password `pass`, in a form that any nginx can check.
            fs::write(place.join("auth").join(name), "a:{PLAIN}pass\n").unwrap();
        }
    });
    let login = "Authorization: Basic YTpwYXNz";
    let answer = world.get("shop.test", "/a%7D%7B%22x/y", &[login]);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.asked("authorization"), ["Basic YTpwYXNz"]);
    let answer = world.get("shop.test", "/closed", &[]);
    assert_eq!(answer.status, 401);
    let answer = world.get("shop.test", "/closed", &[login]);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.asked("authorization"), [""; 0]);
    let answer = world.get("shop.test", "/own", &[login]);
    assert_eq!(answer.asked("authorization"), ["Bearer inner"]);
}

const SERVICES: &str = r#"
app = "shop"

[services.web]
image = "example/web:1"
port  = 3002

[services.dead]
image  = "example/web:1"
port   = 3003
health = { ready = "tcp" }
"#;

/// Each route has the host of its name.
fn routes(routes: &[(&str, &str)]) -> String {
    let mut text = SERVICES.to_owned();
    for (name, keys) in routes {
        let host = match keys.contains("host") {
            true => String::new(),
            false => format!("host = \"{name}.test\"\n"),
        };
        let service = match keys.contains("service") {
            true => "",
            false => "service = \"web\"\n",
        };
        text.push_str(&format!("\n[routes.{name}]\n{host}{service}{keys}\n"));
    }
    text
}

#[test]
fn who_may_come_is_let_in_and_nobody_else() {
    if !is_here() {
        return;
    }
    // Of the password `testbed-secret`.
    let users =
        "users = [\"testbed:$2y$05$abcdefghijklmnopqrstuuDq4KtA7TGJh8S75XZDgczy6kBsP.1ii\"]";
    let world = World::start(
        "access",
        &routes(&[
            ("here", "allow = [\"127.0.0.0/8\", \"2001:db8::/32\"]"),
            ("elsewhere", "allow = [\"192.0.2.0/24\"]"),
            (
                "asked",
                &format!("auth = {{ {users}, realm = \"stag$ing\" }}"),
            ),
        ]),
    );
    assert_eq!(world.get("here.test", "/", &[]).status, 200);
    assert_eq!(world.get("elsewhere.test", "/", &[]).status, 403);
    let refused = world.get("asked.test", "/", &[]);
    assert_eq!(refused.status, 401);
    let realm = refused.header("www-authenticate").concat();
    assert!(realm.contains("stag$ing"), "{realm}");
    let login = |text: &str| {
        world.get(
            "asked.test",
            "/",
            &[&format!("Authorization: Basic {text}")],
        )
    };
    // `testbed:testbed-secret`, and another password.
    assert_eq!(login("dGVzdGJlZDp0ZXN0YmVkLXNlY3JldA==").status, 200);
    assert_eq!(login("dGVzdGJlZDpvdGhlcg==").status, 401);
}

#[test]
fn bodies_and_rates_have_their_limits() {
    if !is_here() {
        return;
    }
    let world = World::start(
        "limits",
        &routes(&[
            ("body", "limits = { body = \"1KiB\" }"),
            ("none", "limits = { body = \"0B\" }"),
            ("one", "limits = { rate = \"1/m\", burst = 1 }"),
            ("three", "limits = { rate = \"1/m\", burst = 3 }"),
            ("whole", "limits = { rate = \"3/m\", by = \"route\" }"),
            (
                "both",
                "limits = { rate = \"1/m\", burst = 9, total = \"1/h\", total_burst = 2 }",
            ),
            (
                "key",
                "limits = { rate = \"1/m\", by = \"header:X-Api-Key\" }",
            ),
            ("cookie", "limits = { rate = \"1/m\", by = \"cookie:who\" }"),
        ]),
    );
    let post =
        |host: &str, bytes: usize| world.ask("POST", host, "/", &[], &"x".repeat(bytes)).status;
    assert_eq!(
        (post("body.test", 1_024), post("body.test", 1_025)),
        (200, 413)
    );
    assert_eq!((post("none.test", 2), post("none.test", 0)), (413, 200));
    let ask = |host: &str, count: usize, line: &str| -> Vec<u16> {
        let lines: Vec<_> = Some(line)
            .filter(|line| !line.is_empty())
            .into_iter()
            .collect();
        (0..count)
            .map(|_| world.get(host, "/", &lines).status)
            .collect()
    };
    // The shortest time until one more is let in is 20 s; each of these takes a moment.
    assert_eq!(ask("one.test", 2, ""), [200, 429]);
    assert_eq!(ask("three.test", 4, ""), [200, 200, 200, 429]);
    assert_eq!(ask("whole.test", 4, ""), [200, 200, 200, 429]);
    assert_eq!(ask("both.test", 3, ""), [200, 200, 429]);
    assert_eq!(ask("key.test", 2, "X-Api-Key: a"), [200, 429]);
    assert_eq!(ask("key.test", 2, "X-Api-Key: b"), [200, 429]);
    // Without one it is the client that counts.
    assert_eq!(ask("key.test", 2, ""), [200, 429]);
    assert_eq!(ask("cookie.test", 2, "Cookie: who=a"), [200, 429]);
    assert_eq!(ask("cookie.test", 2, "Cookie: who=b; x=y"), [200, 429]);
    assert_eq!(ask("cookie.test", 2, ""), [200, 429]);
}

#[test]
fn headers_are_set_added_and_taken_away() {
    if !is_here() {
        return;
    }
    let world = World::start(
        "headers",
        &routes(&[(
            "all",
            r#"
[routes.all.request_headers]
set    = { X-Env = "a $1 \"b\"", X-Other = "one" }
append = { X-Via = "edge", X-New = "$x" }
remove = ["X-Debug", "Cookie"]

[routes.all.response_headers]
set    = { Cache-Control = "no-store", Content-Type = "text/x-own" }
append = { Link = "</a.css>; rel=preload" }
remove = ["X-Powered-By", "X-Secret"]
"#,
        )]),
    );
    let answer = world.get(
        "all.test",
        "/a?b=c",
        &[
            "X-Other: mine",
            "X-Via: client",
            "X-Debug: 1",
            "Cookie: a=b",
            "X-Kept: yes",
            "X-Forwarded-For: 6.6.6.6",
            "X-Forwarded-Proto: https",
            "X-Real-IP: 6.6.6.6",
            "Forwarded: for=6.6.6.6",
            "X-Send: Cache-Control: public|X-Powered-By: x|x-secret: y|Link: </b>|X-Kept: yes",
        ],
    );
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with("GET /a?b=c HTTP/1.1"));
    let asked: [(&str, &[&str]); 13] = [
        ("x-env", &["a $1 \"b\""]),
        ("x-other", &["one"]),
        ("x-via", &["client, edge"]),
        ("x-new", &["$x"]),
        ("x-debug", &[]),
        ("cookie", &[]),
        ("x-kept", &["yes"]),
        ("host", &["all.test"]),
        ("x-forwarded-for", &["127.0.0.1"]),
        ("x-forwarded-proto", &["http"]),
        ("x-forwarded-host", &["all.test"]),
        ("x-real-ip", &[]),
        ("forwarded", &[]),
    ];
    for (name, values) in asked {
        assert_eq!(answer.asked(name), values, "{name}");
    }
    let answered: [(&str, &[&str]); 6] = [
        ("cache-control", &["no-store"]),
        ("content-type", &["text/x-own"]),
        ("link", &["</b>", "</a.css>; rel=preload"]),
        ("x-powered-by", &[]),
        ("x-secret", &[]),
        ("x-kept", &["yes"]),
    ];
    for (name, values) in answered {
        assert_eq!(answer.header(name), values, "{name}");
    }
}

#[test]
fn pages_of_other_origins_read_what_they_may() {
    if !is_here() {
        return;
    }
    let world = World::start(
        "cors",
        &routes(&[
            (
                "some",
                r#"cors = { origins = ["https://app.example.com", "https://*.shop.example"], methods = ["GET", "PUT"], headers = ["x-a"], expose = ["x-total"], credentials = true, max_age = "5m" }"#,
            ),
            ("all", r#"cors = { origins = ["*"] }"#),
        ]),
    );
    let own = "X-Send: Access-Control-Allow-Origin: *|Access-Control-Expose-Headers: y|Access-Control-Allow-Credentials: no";
    let from = |origin: &str| world.get("some.test", "/", &[&format!("Origin: {origin}"), own]);
    for origin in ["https://app.example.com", "https://a-1.shop.example"] {
        let answer = from(origin);
        assert_eq!(answer.header("access-control-allow-origin"), [origin]);
        assert_eq!(answer.header("access-control-allow-credentials"), ["true"]);
        assert_eq!(answer.header("access-control-expose-headers"), ["x-total"]);
        assert_eq!(answer.header("vary"), ["Origin"]);
        // That is for who asks before he sends.
        assert_eq!(answer.header("access-control-allow-methods"), [""; 0]);
        assert_eq!(answer.header("access-control-max-age"), [""; 0]);
    }
    for origin in [
        "https://other.example",
        "https://a.b.shop.example",
        "https://shop.example",
        "http://app.example.com",
        "https://app.example.com.evil.example",
        "https://appxexample.com",
    ] {
        let answer = from(origin);
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.header("access-control-allow-origin"),
            [""; 0],
            "{origin}"
        );
        assert_eq!(answer.header("access-control-allow-credentials"), [""; 0]);
    }
    let ask = |host: &str, origin: &str| {
        let origin = format!("Origin: {origin}");
        let lines = [origin.as_str(), "Access-Control-Request-Method: PUT"];
        world.ask("OPTIONS", host, "/", &lines, "")
    };
    let answer = ask("some.test", "https://app.example.com");
    assert_eq!(answer.status, 204);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        ["https://app.example.com"]
    );
    assert_eq!(answer.header("access-control-allow-methods"), ["GET, PUT"]);
    assert_eq!(answer.header("access-control-allow-headers"), ["x-a"]);
    assert_eq!(answer.header("access-control-max-age"), ["300"]);
    let answer = ask("some.test", "https://other.example");
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("access-control-allow-origin"), [""; 0]);
    // An OPTIONS that is no preflight is the instance's.
    let answer = world.ask(
        "OPTIONS",
        "some.test",
        "/",
        &["Origin: https://app.example.com"],
        "",
    );
    assert!(answer.text().starts_with("OPTIONS / "), "{answer:?}");
    let answer = world.get("all.test", "/", &["Origin: https://x.example", own]);
    assert_eq!(answer.header("access-control-allow-origin"), ["*"]);
    assert_eq!(ask("all.test", "https://x.example").status, 204);
}

#[test]
fn security_headers_stand_in_for_what_an_instance_does_not_say() {
    if !is_here() {
        return;
    }
    let world = World::start(
        "security",
        &routes(&[
            ("defaults", "security = {}"),
            (
                "own",
                r#"security = { frame = "deny", referrer = "no-referrer", csp = "default-src 'self';" }"#,
            ),
            (
                "over",
                r#"security = { frame = "any", csp = "default-src 'none'; frame-ancestors https://a.example", overwrite = true }"#,
            ),
            (
                "ruled",
                "security = {}\nresponse_headers = { set = { X-Frame-Options = \"ALLOWALL\" }, remove = [\"Referrer-Policy\"] }",
            ),
        ]),
    );
    let own = "X-Send: X-Frame-Options: FROM-APP|Content-Security-Policy: from-app|Referrer-Policy: origin";
    let check = |host: &str, line: &str, wanted: [&[&str]; 4]| {
        let lines: Vec<_> = Some(line)
            .filter(|line| !line.is_empty())
            .into_iter()
            .collect();
        let answer = world.get(host, "/", &lines);
        let names = [
            "x-content-type-options",
            "x-frame-options",
            "referrer-policy",
            "content-security-policy",
        ];
        for (name, wanted) in names.into_iter().zip(wanted) {
            assert_eq!(answer.header(name), wanted, "{host} {line} {name}");
        }
        // Over HTTPS alone.
        assert_eq!(answer.header("strict-transport-security"), [""; 0]);
    };
    let referrer = "strict-origin-when-cross-origin";
    let nosniff: &[&str] = &["nosniff"];
    check(
        "defaults.test",
        "",
        [
            nosniff,
            &["SAMEORIGIN"],
            &[referrer],
            &["frame-ancestors 'self'"],
        ],
    );
    check(
        "defaults.test",
        own,
        [nosniff, &["FROM-APP"], &["origin"], &["from-app"]],
    );
    let policy = "default-src 'self'; frame-ancestors 'none'";
    check(
        "own.test",
        "",
        [nosniff, &["DENY"], &["no-referrer"], &[policy]],
    );
    let policy = "default-src 'none'; frame-ancestors https://a.example";
    check(
        "over.test",
        own,
        [nosniff, &["FROM-APP"], &[referrer], &[policy]],
    );
    check(
        "ruled.test",
        own,
        [nosniff, &["ALLOWALL"], &[], &["from-app"]],
    );
}

#[test]
fn text_is_compressed_where_it_is_asked_for_and_long_enough() {
    if !is_here() {
        return;
    }
    let world = World::start(
        "compress",
        &routes(&[("on", "compress = true"), ("off", "")]),
    );
    let ask = |host: &str, lines: &[&str]| world.get(host, "/", lines);
    let gzip = "Accept-Encoding: gzip";
    let coded = ask("on.test", &[gzip, "X-Size: 4000"]);
    assert_eq!(coded.header("content-encoding"), ["gzip"]);
    assert!(coded.body.len() < 400 && coded.header("vary") == ["Accept-Encoding"]);
    for lines in [
        &[gzip, "X-Size: 1000"][..],
        &["X-Size: 4000"],
        &[gzip, "X-Size: 4000", "X-Send: Content-Type: image/png"],
        &[
            gzip,
            "X-Size: 4000",
            "X-Send: Content-Type: text/event-stream",
        ],
    ] {
        let plain = ask("on.test", lines);
        assert_eq!(plain.header("content-encoding"), [""; 0], "{lines:?}");
    }
    let plain = ask("off.test", &[gzip, "X-Size: 4000"]);
    assert_eq!(
        (plain.body.len(), plain.header("content-encoding").len()),
        (4_000, 0)
    );
}

#[test]
fn files_are_found_below_their_path_and_hidden_ones_are_not() {
    if !is_here() {
        return;
    }
    let cache = "cache_control = \"public, max-age=60\"";
    let manifest = routes(&[
        (
            "site",
            &format!("files = {{ folder = \"public\", {cache} }}\ncompress = true"),
        ),
        (
            "below",
            &format!(
                "path = \"/assets\"\nfiles = {{ folder = \"public\", {cache}, missing = \"not-found\" }}\nerror_pages = \"errors\""
            ),
        ),
        ("rest", "host = \"below.test\""),
        (
            "app",
            &format!(
                "path = \"/app\"\nfiles = {{ folder = \"public\", {cache}, missing = \"index\" }}"
            ),
        ),
    ]);
    let world = World::prepared("files", &manifest, |place| {
        for route in ["site", "below/assets", "app/app"] {
            let folder = place.join("files").join(route);
            fs::create_dir_all(folder.join("about")).unwrap();
            fs::create_dir_all(folder.join(".well-known")).unwrap();
            fs::write(folder.join("index.html"), "home").unwrap();
            fs::write(folder.join("about/index.html"), "about").unwrap();
            fs::write(folder.join("a.js"), "script").unwrap();
            fs::write(folder.join("a.js.gz"), "coded before").unwrap();
            fs::write(folder.join(".env"), "SECRET").unwrap();
            fs::write(folder.join(".well-known/security.txt"), "contact").unwrap();
            symlink("/etc/passwd", folder.join("link")).unwrap();
        }
        fs::write(place.join("errors/below/assets/404.html"), "").unwrap();
        fs::write(place.join("errors/below/404.html"), "our own page").unwrap();
    });
    let get = |host: &str, path: &str| world.get(host, path, &[]);
    let is = |answer: &Answer, status: u16, text: &str| {
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (status, text),
            "{answer:?}"
        );
    };
    for (host, prefix) in [
        ("site.test", ""),
        ("below.test", "/assets"),
        ("app.test", "/app"),
    ] {
        let page = get(host, &format!("{prefix}/"));
        is(&page, 200, "home");
        // A new release is seen.
        assert_eq!(page.header("cache-control"), ["no-cache"]);
        is(&get(host, &format!("{prefix}/about/")), 200, "about");
        let script = get(host, &format!("{prefix}/a.js"));
        is(&script, 200, "script");
        assert_eq!(script.header("cache-control"), ["public, max-age=60"]);
        let coded = world.get(host, &format!("{prefix}/a.js"), &["Accept-Encoding: gzip"]);
        is(&coded, 200, "coded before");
        is(
            &get(host, &format!("{prefix}/.well-known/security.txt")),
            200,
            "contact",
        );
    }
    // What is not there is asked of the service, or not there.
    for path in ["/more", "/.env", "/about/.env"] {
        let answer = get("site.test", path);
        assert!(
            answer.status == 200 && answer.text().starts_with(&format!("GET {path} ")),
            "{answer:?}"
        );
        assert_eq!(answer.header("cache-control"), [""; 0]);
    }
    // Files are read; what is sent is the service's.
    for path in ["/", "/a.js", "/about"] {
        let answer = world.ask("POST", "site.test", path, &[], "x");
        assert!(
            answer.text().starts_with(&format!("POST {path} ")),
            "{answer:?}"
        );
    }
    for (host, path) in [("below.test", "/assets/a.js"), ("app.test", "/app/")] {
        let answer = world.ask("POST", host, path, &[], "x");
        assert!([404, 405].contains(&answer.status), "{answer:?}");
    }
    // The relative links of a folder's page need the slash.
    for (host, path) in [
        ("site.test", "/about"),
        ("below.test", "/assets/about"),
        ("app.test", "/app/about"),
    ] {
        let sent = get(host, &format!("{path}?a=%20b"));
        assert_eq!(sent.status, 308, "{sent:?}");
        assert_eq!(
            sent.header("location"),
            [format!("http://{host}{path}/?a=%20b")]
        );
    }
    for path in ["/assets/more", "/assets/.env", "/assets/more.html"] {
        is(&get("below.test", path), 404, "our own page");
    }
    assert_ne!(get("below.test", "/assets/link").status, 200);
    assert!(
        get("below.test", "/assetsx")
            .text()
            .starts_with("GET /assetsx ")
    );
    for path in ["/app/more", "/app/a/b", "/app/more.html", "/app/v/"] {
        is(&get("app.test", path), 200, "home");
    }
    assert_eq!(get("app.test", "/app/more.js").status, 404);
    let page = world.get("app.test", "/app/v1.2", &["Accept: text/html,*/*"]);
    is(&page, 200, "home");
}

#[test]
fn a_websocket_goes_through_where_it_may() {
    if !is_here() {
        return;
    }
    let world = World::start(
        "websocket",
        &routes(&[("on", "websocket = true"), ("off", "")]),
    );
    let lines = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ];
    let refused = [&["Connection: Upgrade, close"][..], &lines[1..]].concat();
    assert_eq!(world.get("off.test", "/", &refused).status, 403);
    let mut stream = world.connect();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: on.test\r\n{}\r\n\r\n",
        lines.join("\r\n")
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&head)
    );
    for _ in 0..3 {
        stream.write_all(b"to and fro").unwrap();
        let mut back = [0; 10];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"TO AND FRO");
    }
    assert_eq!(world.get("on.test", "/", &[]).status, 200);
}

#[test]
fn hosts_and_paths_lead_to_their_routes() {
    if !is_here() {
        return;
    }
    let named = |name: &str| format!("request_headers = {{ set = {{ X-Route = \"{name}\" }} }}");
    let world = World::start(
        "hosts",
        &routes(&[
            (
                "exact",
                &format!("host = \"a.shop.test\"\n{}", named("exact")),
            ),
            (
                "star",
                &format!("host = \"*.shop.test\"\n{}", named("star")),
            ),
            ("any", &format!("host = \"*\"\n{}", named("any"))),
            (
                "api",
                &format!("host = \"a.shop.test\"\npath = \"/api\"\n{}", named("api")),
            ),
            (
                "deep",
                &format!(
                    "host = \"a.shop.test\"\npath = \"/api/v1\"\n{}",
                    named("deep")
                ),
            ),
        ]),
    );
    for (host, path, route) in [
        ("a.shop.test", "/", "exact"),
        ("a.shop.test", "/apix", "exact"),
        ("a.shop.test", "/api", "api"),
        ("a.shop.test", "/api/x", "api"),
        ("a.shop.test", "/api/v1", "deep"),
        ("a.shop.test", "/api/v1/x", "deep"),
        ("a.shop.test", "/api/v10", "api"),
        ("b.shop.test", "/api", "star"),
        // Exactly one more label.
        ("b.c.shop.test", "/", "any"),
        ("shop.test", "/", "any"),
        ("bxshop.test", "/", "any"),
    ] {
        let answer = world.get(host, path, &[]);
        assert_eq!(answer.asked("x-route"), [route], "{host}{path}");
    }
    // Without a route for any host.
    let world = World::start("hosts-known", &routes(&[("one", "path = \"/only\"")]));
    assert_eq!(world.get("one.test", "/only/x", &[]).status, 200);
    assert_eq!(world.get("one.test", "/", &[]).status, 404);
    assert_eq!(world.get("other.test", "/only", &[]).status, 404);
}

#[test]
fn who_is_silent_or_away_is_not_waited_for() {
    if !is_here() {
        return;
    }
    let manifest = routes(&[
        ("slow", "timeouts = { first_byte = \"300ms\" }"),
        ("calm", ""),
        ("idle", "timeouts = { idle = \"300ms\" }"),
        ("away", "service = \"dead\"\nerror_pages = \"errors\""),
    ]);
    let world = World::prepared("timeouts", &manifest, |place| {
        for code in [404, 502, 503, 504] {
            fs::write(
                place.join(format!("errors/away/{code}.html")),
                format!("page {code}"),
            )
            .unwrap();
        }
    });
    assert_eq!(world.get("slow.test", "/", &["X-Wait: ever"]).status, 504);
    // Of another route: on a busy machine even a prompt answer may take longer than that limit.
    assert_eq!(world.get("calm.test", "/", &[]).status, 200);
    let away = world.get("away.test", "/", &[]);
    assert_eq!((away.status, away.text().as_str()), (502, "page 502"));
    // Of a body of ten bytes one comes: the exchange ends, whatever is said of it.
    let mut stream = world.connect();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: idle.test\r\nContent-Length: 10\r\n\r\nx")
        .unwrap();
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest));
    assert!(
        !rest.starts_with(b"HTTP/1.1 2"),
        "{}",
        String::from_utf8_lossy(&rest)
    );
}

#[test]
fn a_host_with_a_certificate_is_served_over_tls_and_plain_requests_are_sent_there() {
    if !is_here() {
        return;
    }
    let tls = "tls = { certificate = \"/etc/x.pem\", key = \"/etc/x.key\" }";
    let world = World::start(
        "tls",
        &routes(&[
            (
                "first",
                &format!("{tls}\nsecurity = {{ hsts = \"365d\", hsts_subdomains = true }}"),
            ),
            ("second", &format!("{tls}\nhttps_only = false")),
            ("plain", ""),
        ]),
    );
    let sent = world.get("first.test", "/a?b=%20c", &[]);
    assert_eq!(sent.status, 308);
    assert_eq!(sent.header("location"), ["https://first.test/a?b=%20c"]);
    let answer = world.get_tls("first.test", "/a?b=c", "first");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.asked("x-forwarded-proto"), ["https"]);
    let hsts = "max-age=31536000; includeSubDomains";
    assert_eq!(answer.header("strict-transport-security"), [hsts]);
    // Each host has its own certificate.
    assert_eq!(world.get_tls("second.test", "/", "second").status, 200);
    assert_eq!(world.get("second.test", "/", &[]).status, 200);
    assert_eq!(world.get("plain.test", "/", &[]).status, 200);
    // No other host is answered by the first.
    for host in ["plain.test", "other.test"] {
        let (answer, said) = world.tls(host, "/", "first");
        assert!(
            answer.is_empty() && said.contains("unrecognized name"),
            "{said}"
        );
    }
}

#[test]
fn a_path_that_applications_read_otherwise_does_not_pass_a_guard() {
    if !is_here() {
        return;
    }
    let world = World::start(
        "ambiguous",
        &routes(&[
            ("rest", "host = \"a.test\""),
            (
                "admin",
                "host = \"a.test\"\npath = \"/admin\"\nallow = [\"192.0.2.0/24\"]",
            ),
            ("alone", ""),
        ]),
    );
    for path in [
        "/admin;v=1",
        "/x/..;/admin",
        "/x%3b/../admin",
        "/%2561dmin",
        "/x\\..\\admin",
        "/x%5c..%5Cadmin",
        "/admin/../x",
        "/admin/%2e%2E/x",
        "/admin/..%2fx",
        "/admin/..",
        "/./admin",
    ] {
        assert_eq!(world.get("a.test", path, &[]).status, 400, "{path}");
    }
    for path in ["/admin", "/admin/x", "//admin", "/%61dmin", "/admin?a=;"] {
        assert_eq!(world.get("a.test", path, &[]).status, 403, "{path}");
    }
    for path in ["/", "/100%25", "/a.b/..c", "/caf%C3%A9", "/x?y=../;%2561"] {
        let answer = world.get("a.test", path, &[]);
        assert!(
            answer.text().starts_with(&format!("GET {path} ")),
            "{answer:?}"
        );
    }
    // There is no other place it could be meant for.
    assert_eq!(world.get("alone.test", "/admin;v=1", &[]).status, 200);
}

#[test]
fn requests_have_names_and_preflights_and_error_pages_go_by_the_rules() {
    if !is_here() {
        return;
    }
    let cors = "cors = { origins = [\"https://x.example\"] }";
    let away = "service = \"dead\"\nerror_pages = \"errors\"\nsecurity = { frame = \"deny\" }\nresponse_headers = { set = { X-Own = \"1\" } }";
    let manifest = routes(&[
        (
            "near",
            &format!("{cors}\nallow = [\"127.0.0.0/8\", \"2001:db8::/32\"]"),
        ),
        ("far", &format!("{cors}\nallow = [\"192.0.2.0/24\"]")),
        ("away", &format!("{cors}\n{away}")),
    ]);
    let world = World::prepared("rules", &manifest, |place| {
        for code in [404, 502, 503, 504] {
            fs::write(place.join(format!("errors/away/{code}.html")), "page").unwrap();
        }
    });
    let origin = "Origin: https://x.example";
    let ask = |host: &str| {
        let lines = [origin, "Access-Control-Request-Method: PUT"];
        world.ask("OPTIONS", host, "/", &lines, "")
    };
    assert_eq!(ask("near.test").status, 204);
    assert_eq!(ask("far.test").status, 403);
    assert_eq!(
        ask("far.test").header("access-control-allow-methods"),
        [""; 0]
    );
    let page = world.get("away.test", "/", &[origin]);
    assert_eq!((page.status, page.text().as_str()), (502, "page"));
    for (name, value) in [
        ("access-control-allow-origin", "https://x.example"),
        ("x-frame-options", "DENY"),
        ("x-own", "1"),
    ] {
        assert_eq!(page.header(name), [value], "{name}");
    }
    assert_eq!(page.header("x-request-id").len(), 1);
    let named = |line: &str| {
        let lines = [line, "X-Send: X-Request-Id: another"];
        let answer = world.get("near.test", "/", &lines);
        let asked = answer.asked("x-request-id");
        assert_eq!(answer.header("x-request-id"), asked);
        asked.concat()
    };
    assert_eq!(named("X-Request-Id: mine-1"), "mine-1");
    let own = named("X-Request-Id: two words");
    assert!(own.len() == 32 && own != named("X-Other: 1"), "{own}");
}

#[test]
fn what_routes_append_is_told_apart() {
    if !is_here() {
        return;
    }
    let world = World::start(
        "append",
        &routes(&[
            ("a", "request_headers = { append = { B-C = \"1\" } }"),
            ("a-b", "request_headers = { append = { C = \"2\" } }"),
        ]),
    );
    let answer = world.get("a.test", "/", &["B-C: x"]);
    assert_eq!(answer.asked("b-c"), ["x, 1"]);
    let answer = world.get("a-b.test", "/", &["C: y"]);
    assert_eq!(answer.asked("c"), ["y, 2"]);
}

#[test]
fn values_of_a_manifest_change_no_shape() {
    let text = |value: &str, protocol: &str| {
        let manifest = routes(&[(
            "all",
            &format!("response_headers = {{ set = {{ X-Note = \"{value}\" }} }}"),
        )])
        .replacen("port  = 3002", &format!("port  = 3002\n{protocol}"), 1);
        configuration(&exported(&spec(&manifest))).to_owned()
    };
    let plain = text("note", "");
    let telling = text("return 308 proxy_hide_header", "");
    assert_eq!(
        telling.replace("return 308 proxy_hide_header", "note"),
        plain
    );
    let h2c = "protocol = \"h2c\"\nhealth = { ready = \"tcp\" }";
    let telling = text("proxy_hide_header", h2c);
    assert!(
        telling.contains("x-note \"proxy_hide_header\"")
            && telling.contains("grpc_hide_header x-note"),
        "{telling}"
    );
}

/// Debian's packages are for its own interpreter, which need not be the first in PATH.
const DEBIANS_PYTHON: &str = "/usr/bin/python3";

const GRPC_SERVER: &str = r#"
import grpc
from concurrent import futures
def unary(request, context):
    context.set_trailing_metadata((("x-kept", "yes"),))
    context.send_initial_metadata((("x-secret", "1"), ("x-first", "2")))
    return request.upper()
def down(request, context):
    for number in range(5):
        yield b"%d" % number
class Handler(grpc.GenericRpcHandler):
    def service(self, call):
        return {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/test.Echo/Down": grpc.unary_stream_rpc_method_handler(down),
        }.get(call.method)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Handler(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
"#;

const GRPC_CLIENT: &str = r#"
import sys, grpc
port, certificate = sys.argv[1:]
credentials = grpc.ssl_channel_credentials(open(certificate, "rb").read())
channel = grpc.secure_channel("127.0.0.1:" + port, credentials, (("grpc.ssl_target_name_override", "rpc.test"), ("grpc.default_authority", "rpc.test")))
answer, call = channel.unary_unary("/test.Echo/Unary").with_call(b"hello", timeout=50)
print(answer, sorted(key for key, _ in call.initial_metadata() if key.startswith("x-")), dict(call.trailing_metadata()).get("x-kept"))
print(list(channel.unary_stream("/test.Echo/Down")(b"", timeout=50)))
try:
    channel.unary_unary("/test.Echo/None")(b"", timeout=50)
except grpc.RpcError as error:
    print(error.code().name)
"#;

/// Killed with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn calls_of_grpc_go_through_over_tls() {
    if !is_here() {
        return;
    }
    let mut server = Ended(
        Command::new(DEBIANS_PYTHON)
            .args(["-c", GRPC_SERVER])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut port = String::new();
    let mut lines = std::io::BufReader::new(server.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut lines, &mut port).unwrap();
    assert!(
        !port.is_empty(),
        "python3 with python3-grpcio is missing (`make setup`)"
    );
    let manifest = routes(&[(
        "rpc",
        "tls = { certificate = \"/x.pem\", key = \"/x.key\" }\nresponse_headers = { remove = [\"X-Secret\"] }",
    )])
    .replace("port  = 3002", "port  = 3002\nprotocol = \"h2c\"\nhealth = { ready = \"tcp\" }");
    let world = World::before(
        "grpc",
        &manifest,
        &format!("127.0.0.1:{}", port.trim()),
        |_| {},
    );
    let output = Command::new(DEBIANS_PYTHON)
        .args(["-c", GRPC_CLIENT, &world.https.to_string()])
        .arg(world.place.0.join("tls/rpc.pem"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    let wanted =
        "b'HELLO' ['x-first', 'x-request-id'] yes\n[b'0', b'1', b'2', b'3', b'4']\nUNIMPLEMENTED\n";
    assert_eq!(said, wanted, "{error}");
}
