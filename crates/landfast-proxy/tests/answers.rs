//! What the proxy does with answers: compression, static files of two releases, sticky sessions, error pages.

mod support;

use std::{collections::BTreeSet, fs, io::Read as _, path::Path};

use landfast_routing::snapshot::{
    FilesRoot, MissingFile, Mode, RouteAnswers, RouteFiles, Snapshot,
};
use landfast_store::Store;
use landfast_types::{Digest, ReleaseId, Timestamp};
use support::*;

fn with_answers(mut snapshot: Snapshot, answers: RouteAnswers) -> Snapshot {
    snapshot.routes[0].answers = answers;
    snapshot
}

fn compressing() -> RouteAnswers {
    RouteAnswers {
        compress: true,
        ..RouteAnswers::default()
    }
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    // What was flushed can be read, also while the end is missing.
    drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut text));
    text
}

#[tokio::test]
async fn answers_are_compressed_as_the_client_asks_and_only_where_it_helps() {
    let proxy = Proxy::start().await;
    let one = Upstream::start("one").await;
    let plain = snapshot(1, service(vec![group(1, 100, vec![one.backend()])]));
    proxy.put(&with_answers(plain, compressing())).await;
    let address = proxy.http().await;

    let got = ask(address, "GET", "/json/5000", "accept-encoding: gzip\r\n").await;
    assert_eq!(got.header("content-encoding").as_deref(), Some("gzip"));
    assert_eq!(got.header("vary").as_deref(), Some("accept-encoding"));
    assert_eq!(got.header("etag").as_deref(), Some("W/\"v1\""));
    assert_eq!(got.header("content-length"), None);
    assert!(got.is_whole && got.body.len() < 200, "{}", got.body.len());
    assert_eq!(gunzip(&got.body), vec![b'7'; 5_000]);

    let got = ask(
        address,
        "GET",
        "/json/5000",
        "accept-encoding: gzip;q=0.5\r\naccept-encoding: zstd\r\n",
    )
    .await;
    assert_eq!(got.header("content-encoding").as_deref(), Some("zstd"));
    let text = zstd::stream::decode_all(&got.body[..]).expect("zstd");
    assert_eq!(text, vec![b'7'; 5_000]);

    for (path, fields) in [
        ("/json/5000", ""),
        ("/json/5000", "accept-encoding: gzip;q=0, identity\r\n"),
        ("/json/1023", "accept-encoding: gzip\r\n"),
        ("/big/5000", "accept-encoding: gzip\r\n"),
    ] {
        let got = ask(address, "GET", path, fields).await;
        assert_eq!(got.header("content-encoding"), None, "{path} {fields}");
        assert!(got.header("content-length").is_some(), "{path} {fields}");
        let varies = path == "/json/5000";
        assert_eq!(got.header("vary").is_some(), varies, "{path} {fields}");
    }
    let head = ask(address, "HEAD", "/json/5000", "accept-encoding: gzip\r\n").await;
    assert_eq!(head.header("content-length").as_deref(), Some("5000"));
}

#[tokio::test]
async fn what_an_instance_has_sent_reaches_the_client_before_the_rest_is_there() {
    let proxy = Proxy::start().await;
    let one = Upstream::start("one").await;
    let plain = snapshot(1, service(vec![group(1, 100, vec![one.backend()])]));
    proxy.put(&with_answers(plain, compressing())).await;
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    wire.send("GET /drip/3/100 HTTP/1.1\r\nhost: shop.example\r\naccept-encoding: gzip\r\n\r\n")
        .await
        .expect("sent");
    let head = wire.head().await.to_ascii_lowercase();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut seen = Vec::new();
    let mut stages = BTreeSet::new();
    loop {
        let piece = wire.chunk().await.expect("a chunk");
        if piece.is_empty() {
            break;
        }
        seen.extend(piece);
        stages.insert(gunzip(&seen).len());
    }
    assert_eq!(gunzip(&seen), b"piece 0\npiece 1\npiece 2\n");
    assert!(stages.contains(&8) && stages.contains(&16), "{stages:?}");
    // Events are left alone, and come as they are sent.
    let mut wire = Wire::connect(proxy.http().await).await.expect("connected");
    wire.send("GET /sse/1 HTTP/1.1\r\nhost: shop.example\r\naccept-encoding: gzip\r\n\r\n")
        .await
        .expect("sent");
    let head = wire.head().await.to_ascii_lowercase();
    assert!(!head.contains("content-encoding"), "{head}");
    assert_eq!(wire.chunk().await.expect("a chunk"), b"id: 0\n");
}

/// A store with folders in it.
struct Shelf {
    folder: tempfile::TempDir,
    store: Store,
}

impl Shelf {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().join("store")).expect("a store");
        Self { folder, store }
    }

    fn add(&self, files: &[(&str, &str)]) -> Digest {
        let source = tempfile::tempdir_in(self.folder.path()).expect("a folder");
        for (path, text) in files {
            let path = source.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let link = Path::new("index.html");
        if source.path().join(link).exists() {
            std::os::unix::fs::symlink(link, source.path().join("link.html")).expect("a link");
        }
        self.store.add_local(source.path()).expect("an artifact")
    }

    fn root(&self, release: u64, files: &[(&str, &str)]) -> FilesRoot {
        FilesRoot {
            release: ReleaseId(release),
            artifact: self.add(files),
            modified: Timestamp::from_millis(
                1_700_000_000_000 + i64::try_from(release).expect("small") * 5_000,
            ),
            exposed: true,
        }
    }

    fn put(&self, snapshot: Snapshot, roots: Vec<FilesRoot>, missing: MissingFile) -> Snapshot {
        let files = RouteFiles {
            roots,
            missing,
            cache_control: "public, max-age=60".into(),
        };
        let answers = RouteAnswers {
            files: Some(files),
            ..RouteAnswers::default()
        };
        let mut snapshot = with_answers(snapshot, answers);
        snapshot.store = self.store.root().to_string_lossy().into_owned();
        snapshot
    }
}

#[tokio::test]
async fn files_are_served_with_all_that_caches_and_downloads_need() {
    let proxy = Proxy::start().await;
    let one = Upstream::start("one").await;
    let shelf = Shelf::new();
    let large: String = (0..40_000).map(|n| format!("{n:07}\n")).collect();
    let root = shelf.root(
        1,
        &[
            ("index.html", "<h1>home</h1>"),
            ("app.js", "let a = 1"),
            ("app.js.gz", "not really gzip"),
            ("docs/index.html", "docs"),
            ("bare/file.txt", "0123456789"),
            ("empty.txt", ""),
            (".env", "SECRET"),
            ("a b.txt", "blank"),
            ("large.txt", &large),
        ],
    );
    let plain = snapshot(1, service(vec![group(1, 100, vec![one.backend()])]));
    let status = proxy
        .put(&shelf.put(plain, vec![root], MissingFile::Service))
        .await;
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    let address = proxy.http().await;

    let home = ask(address, "GET", "/?q=1", "").await;
    assert_eq!((home.status, home.text().as_str()), (200, "<h1>home</h1>"));
    assert_eq!(
        home.header("content-type").as_deref(),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(home.header("cache-control").as_deref(), Some("no-cache"));
    assert_eq!(
        home.header("last-modified").as_deref(),
        Some("Tue, 14 Nov 2023 22:13:25 GMT")
    );
    let etag = home.header("etag").expect("a tag");
    let tagged = format!("if-none-match: \"x\", {etag}\r\n");
    let known = ask(address, "GET", "/index.html", &tagged).await;
    assert_eq!((known.status, known.header("etag")), (304, Some(etag)));
    let dated = "if-modified-since: Tue, 14 Nov 2023 22:13:25 GMT\r\n";
    assert_eq!(ask(address, "GET", "/", dated).await.status, 304);
    assert_eq!(
        ask(address, "GET", "/", "if-match: \"other\"\r\n")
            .await
            .status,
        412
    );

    let script = ask(
        address,
        "GET",
        "/app.js",
        "accept-encoding: br;q=0.9, gzip\r\n",
    )
    .await;
    assert_eq!(script.text(), "not really gzip");
    assert_eq!(script.header("content-encoding").as_deref(), Some("gzip"));
    assert_eq!(
        script.header("content-type").as_deref(),
        Some("text/javascript; charset=utf-8")
    );
    assert_eq!(script.header("vary").as_deref(), Some("accept-encoding"));
    assert_eq!(
        script.header("cache-control").as_deref(),
        Some("public, max-age=60")
    );
    let bare = ask(address, "GET", "/app.js", "").await;
    assert_eq!(
        (bare.text().as_str(), bare.header("vary").is_some()),
        ("let a = 1", true)
    );
    assert_ne!(bare.header("etag"), script.header("etag"));

    let text = "/bare/file.txt";
    let part = ask(address, "GET", text, "range: bytes=2-4\r\n").await;
    assert_eq!((part.status, part.text().as_str()), (206, "234"));
    assert_eq!(
        part.header("content-range").as_deref(),
        Some("bytes 2-4/10")
    );
    let end = ask(address, "GET", text, "range: bytes=-3\r\n").await;
    assert_eq!((end.status, end.text().as_str()), (206, "789"));
    let past = ask(address, "GET", text, "range: bytes=10-\r\n").await;
    assert_eq!(
        (past.status, past.header("content-range").as_deref()),
        (416, Some("bytes */10"))
    );
    let several = ask(address, "GET", text, "range: bytes=0-1,3-4\r\n").await;
    assert_eq!(
        (several.status, several.text().as_str()),
        (200, "0123456789")
    );
    let stale = ask(
        address,
        "GET",
        text,
        "range: bytes=0-1\r\nif-range: \"old\"\r\n",
    )
    .await;
    assert_eq!(stale.status, 200);
    let head = ask(address, "HEAD", text, "range: bytes=0-1\r\n").await;
    assert_eq!(
        (head.status, head.header("content-length").as_deref()),
        (200, Some("10"))
    );

    let got = ask(address, "GET", "/large.txt", "").await;
    assert!(
        got.is_whole && got.body == large.as_bytes(),
        "{}",
        got.body.len()
    );
    let got = ask(
        address,
        "GET",
        "/large.txt",
        "range: bytes=100000-299999\r\n",
    )
    .await;
    assert!(got.body == large.as_bytes()[100_000..300_000]);
    let got = ask(address, "GET", "/empty.txt", "").await;
    assert_eq!(
        (got.status, got.header("content-length").as_deref()),
        (200, Some("0"))
    );
    assert_eq!(ask(address, "GET", "/a%20b.txt", "").await.text(), "blank");

    assert_eq!(ask(address, "GET", "/docs/", "").await.text(), "docs");
    let folder = ask(address, "GET", "/docs?x=1", "").await;
    assert_eq!(
        (folder.status, folder.header("location").as_deref()),
        (308, Some("/docs/?x=1"))
    );
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    let got = ask(address, "GET", "/", upgrade).await;
    assert_eq!(got.header("x-upstream").as_deref(), Some("one"), "no page");
    for path in ["/../app.js", "/bare/../app.js"] {
        assert_eq!(ask(address, "GET", path, "").await.status, 400, "{path}");
    }
    // Everything else is the service's.
    for (method, path) in [
        ("GET", "/bare"),
        ("GET", "/bare/"),
        ("GET", "/.env"),
        ("GET", "/link.html"),
        ("GET", "/docs//index.html"),
        ("POST", "/app.js"),
    ] {
        let got = ask(address, method, path, "").await;
        assert_eq!(
            got.header("x-upstream").as_deref(),
            Some("one"),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn files_alone_answer_what_is_missing_themselves() {
    let proxy = Proxy::start().await;
    let shelf = Shelf::new();
    let pages = shelf.add(&[
        ("404.html", "<h1>lost</h1>"),
        ("503.html", "<h1>later</h1>"),
        ("maintenance.html", "<h1>closed</h1>"),
    ]);
    let root = shelf.root(1, &[("index.html", "home"), ("app.js", "1")]);
    let nobody = serving("gone", "127.0.0.1:1".parse().expect("an address"));
    let base = |revision| snapshot(revision, service(vec![group(1, 100, vec![nobody.clone()])]));
    let with = |revision, missing| {
        let mut snapshot = shelf.put(base(revision), vec![root.clone()], missing);
        snapshot.routes[0].answers.error_pages = Some(pages);
        snapshot
    };
    proxy.put(&with(1, MissingFile::NotFound)).await;
    let address = proxy.http().await;
    let lost = ask(address, "GET", "/no.js", "").await;
    assert_eq!((lost.status, lost.text().as_str()), (404, "<h1>lost</h1>"));
    assert_eq!(
        lost.header("content-type").as_deref(),
        Some("text/html; charset=utf-8")
    );
    let machine = ask(address, "GET", "/no.js", "accept: application/json\r\n").await;
    assert_eq!(
        (machine.status, machine.text().as_str()),
        (404, "not found\n")
    );
    let posted = ask(address, "POST", "/app.js", "content-length: 0\r\n").await;
    assert_eq!(
        (posted.status, posted.header("allow").as_deref()),
        (405, Some("GET, HEAD"))
    );

    proxy.put(&with(2, MissingFile::Index)).await;
    let page = ask(address, "GET", "/some/where", "").await;
    assert_eq!((page.status, page.text().as_str()), (200, "home"));
    assert_eq!(ask(address, "GET", "/no.js", "").await.status, 404);

    // An error of ours gets its page, and keeps its fields.
    let mut down = with(3, MissingFile::Service);
    down.services.get_mut(&key()).expect("it").groups.clear();
    proxy.put(&down).await;
    let later = ask(address, "GET", "/no.js", "").await;
    assert_eq!(
        (later.status, later.text().as_str()),
        (503, "<h1>later</h1>")
    );
    assert_eq!(later.header("retry-after").as_deref(), Some("1"));
    for (page, expected) in [(None, "<h1>closed</h1>"), (Some("mine".to_owned()), "mine")] {
        let mut stopped = with(4, MissingFile::Service);
        stopped.fence = fence(if page.is_none() { 4 } else { 5 });
        stopped.services.get_mut(&key()).expect("it").mode = Mode::Maintenance {
            retry_after_s: 9,
            page,
        };
        proxy.put(&stopped).await;
        let closed = ask(address, "GET", "/", "").await;
        assert_eq!((closed.status, closed.text().as_str()), (503, expected));
        assert_eq!(closed.header("retry-after").as_deref(), Some("9"));
    }
    // A page that is not in the store is told, and the plain text serves.
    let mut broken = with(6, MissingFile::NotFound);
    broken.routes[0].answers.error_pages = Some(Digest::of(b"nothing"));
    let status = proxy.put(&broken).await;
    assert_eq!(status.problems.len(), 1, "{:?}", status.problems);
    assert_eq!(
        ask(address, "GET", "/no.js", "").await.text(),
        "not found\n"
    );
}

#[tokio::test]
async fn an_instances_own_errors_are_passed_on_as_they_are() {
    let proxy = Proxy::start().await;
    let one = Upstream::start("one").await;
    let shelf = Shelf::new();
    let mut wanted = snapshot(1, service(vec![group(1, 100, vec![one.backend()])]));
    wanted.store = shelf.store.root().to_string_lossy().into_owned();
    wanted.routes[0].answers.error_pages =
        Some(shelf.add(&[("404.html", "ours"), ("502.html", "cut")]));
    proxy.put(&wanted).await;
    let address = proxy.http().await;
    let got = get(address, "/status/404").await.expect("an answer");
    assert_eq!((got.status, got.text().as_str()), (404, "one"));
    one.kill().await;
    let got = get(address, "/").await.expect("an answer");
    assert_eq!((got.status, got.text().as_str()), (502, "cut"));
}

#[tokio::test]
async fn in_a_rollout_weights_choose_the_page_and_the_assets_of_both_are_there() {
    let proxy = Proxy::start().await;
    let one = Upstream::start("one").await;
    let shelf = Shelf::new();
    let old = shelf.root(
        1,
        &[("index.html", "old"), ("old.js", "o"), ("same.css", "s")],
    );
    let new = shelf.root(
        2,
        &[("index.html", "new"), ("new.js", "n"), ("same.css", "s")],
    );
    let next = FilesRoot {
        exposed: false,
        ..shelf.root(3, &[("index.html", "next"), ("next.js", "x")])
    };
    let with = |revision, weights: [u32; 2], preview| {
        let mut service = service(vec![
            group(1, weights[0], vec![one.backend()]),
            group(2, weights[1], vec![]),
            group(3, 0, vec![]),
        ]);
        service.preview = preview;
        let roots = vec![old.clone(), new.clone(), next.clone()];
        shelf.put(snapshot(revision, service), roots, MissingFile::NotFound)
    };
    proxy.put(&with(1, [75, 25], None)).await;
    let address = proxy.http().await;
    let mut pages = Vec::new();
    for _ in 0..8 {
        pages.push(ask(address, "GET", "/", "").await.text());
        // A page with an asset, each time: the asset must not take the page's turn.
        for asset in ["/old.js", "/new.js"] {
            assert_eq!(ask(address, "GET", asset, "").await.status, 200, "{asset}");
        }
        assert_eq!(
            ask(address, "GET", "/next.js", "").await.status,
            404,
            "not exposed"
        );
    }
    assert_eq!(
        pages.iter().filter(|page| *page == "new").count(),
        2,
        "{pages:?}"
    );
    // After the switch the old assets go on, until the seal takes the old release away.
    proxy.put(&with(2, [0, 100], Some(ReleaseId(3)))).await;
    assert_eq!(ask(address, "GET", "/", "").await.text(), "new");
    assert_eq!(ask(address, "GET", "/old.js", "").await.text(), "o");
    let tag = |got: &Got| got.header("etag").expect("a tag");
    let same = ask(address, "GET", "/same.css", "").await;
    let preview = proxy.status().await.preview.expect("a preview");
    assert_eq!(ask(preview, "GET", "/", "").await.text(), "next");
    assert_eq!(ask(preview, "GET", "/next.js", "").await.text(), "x");
    // The same content has the same tag in every release.
    proxy.put(&with(3, [100, 0], None)).await;
    assert_eq!(tag(&ask(address, "GET", "/same.css", "").await), tag(&same));
}

#[tokio::test]
async fn a_cookie_keeps_a_client_where_it_is_and_the_weights_true() {
    let proxy = Proxy::start().await;
    let (a, b, c) = (
        Upstream::start("a").await,
        Upstream::start("b").await,
        Upstream::start("c").await,
    );
    let with = |revision, weights: [u32; 2], old: Vec<_>| {
        let mut service = service(vec![
            group(1, weights[0], old),
            group(2, weights[1], vec![c.backend()]),
        ]);
        service.sticky = true;
        snapshot(revision, service)
    };
    proxy
        .put(&with(1, [75, 25], vec![a.backend(), b.backend()]))
        .await;
    let address = proxy.http().await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let got = ask(address, "GET", "/", "").await;
        let cookie = got.header("set-cookie").expect("a cookie");
        let (pair, attributes) = cookie.split_once("; ").expect("attributes");
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        assert!(
            !pair.contains('.'),
            "says nothing of what stands behind: {pair}"
        );
        clients.push((got.text(), format!("cookie: theme=dark; {pair}\r\n")));
        // Those who come back take nobody's turn.
        for (upstream, cookie) in &clients {
            let again = ask(address, "GET", "/", cookie).await;
            assert_eq!(&again.text(), upstream);
            assert_eq!(again.header("set-cookie"), None);
        }
    }
    let on_new = clients
        .iter()
        .filter(|(upstream, _)| upstream == "c")
        .count();
    assert_eq!(on_new, 2, "{clients:?}");

    // An instance that drains gets nobody; its clients stay on their release and learn their new place.
    proxy
        .put(&with(
            2,
            [75, 25],
            vec![draining("a", a.address, 1_000, 1_000), b.backend()],
        ))
        .await;
    let before = a.count();
    for (upstream, cookie) in &clients {
        let got = ask(address, "GET", "/", cookie).await;
        let expected = if upstream == "c" { "c" } else { "b" };
        assert_eq!(got.text(), expected);
        assert_eq!(got.header("set-cookie").is_some(), upstream == "a");
    }
    assert_eq!(a.count(), before);
    // Taken back: everybody goes to the old release.
    proxy.put(&with(3, [100, 0], vec![b.backend()])).await;
    for (_, cookie) in &clients {
        assert_eq!(ask(address, "GET", "/", cookie).await.text(), "b");
    }
    // A cookie of somebody's own making leads nowhere.
    let odd = "cookie: landfast-00000000=x; a\r\n";
    assert!(
        ask(address, "GET", "/", odd)
            .await
            .header("set-cookie")
            .is_some()
    );
}
