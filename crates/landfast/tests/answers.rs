//! Static files and error pages through the whole thing: the command line copies them into the release, and the
//! proxy serves those of both releases until the seal.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{fs, path::Path};

use support::host::Host;

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
replicas = 2
health = { ready = "http:/ready", interval = "200ms" }
drain = "2s"
grace = "2s"
sticky = true

[routes.public]
host = "shop.example"
service = "api"
error_pages = "errors"

[routes.web]
host = "web.example"
service = "api"
compress = true
files = { folder = "public", missing = "index", cache_control = "public, max-age=31536000, immutable" }

[deploy]
strategy = "blue-green"
min_ready = "200ms"
standby = "1h"
healthy_deadline = "5s"
"#;

const WEB: &str = "web.example";

fn site(app: &Path, version: &str) {
    let public = app.join("public");
    let _fresh = fs::remove_dir_all(&public);
    fs::create_dir_all(public.join("assets")).unwrap();
    fs::create_dir_all(app.join("errors")).unwrap();
    fs::write(
        app.join("errors/maintenance.html"),
        format!("<h1>closed {version}</h1>"),
    )
    .unwrap();
    let page = format!("<script src=/assets/app.{version}.js></script>");
    fs::write(public.join("index.html"), page).unwrap();
    let asset = public.join(format!("assets/app.{version}.js"));
    fs::write(asset, format!("let version = {version}")).unwrap();
}

#[test]
fn files_of_both_releases_are_served_until_the_seal_and_none_from_the_source() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    site(&app, "1");
    host.expect(&app, &["deploy"], 0);
    let page = |version: &str| {
        (
            200,
            format!("<script src=/assets/app.{version}.js></script>"),
        )
    };
    assert_eq!(host.get(WEB, "/"), page("1"));
    assert_eq!(host.get(WEB, "/some/page"), page("1"));
    assert_eq!(host.get(WEB, "/assets/app.2.js").0, 404);
    assert_eq!(
        host.get("shop.example", "/assets/app.1.js"),
        (200, "1".to_owned()),
        "the service's own"
    );

    // Nothing but a file has changed: that is a release of its own.
    site(&app, "2");
    host.expect(&app, &["deploy"], 0);
    fs::remove_dir_all(app.join("public")).unwrap();
    fs::remove_dir_all(app.join("errors")).unwrap();
    assert_eq!(host.get(WEB, "/"), page("2"));
    for version in ["1", "2"] {
        let path = format!("/assets/app.{version}.js");
        assert_eq!(
            host.get(WEB, &path),
            (200, format!("let version = {version}"))
        );
    }
    host.expect(&app, &["seal"], 0);
    host.until("the old files are gone", || {
        host.get(WEB, "/assets/app.1.js").0 == 404
    });
    assert_eq!(host.get(WEB, "/assets/app.2.js").0, 200);

    host.expect(&app, &["rollback"], 0);
    assert_eq!(host.get(WEB, "/"), page("1"));
    host.expect(&app, &["stop", "--reason", "a test"], 0);
    assert_eq!(
        host.get("shop.example", "/"),
        (503, "<h1>closed 1</h1>".to_owned())
    );
}

#[test]
fn a_folder_that_is_missing_is_named_before_anything_is_sent() {
    let host = Host::start();
    let app = host.app("shop", MANIFEST);
    let output = host.run(&app, &["deploy"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("artifact `errors` cannot be used"), "{said}");
}
