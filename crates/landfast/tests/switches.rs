//! An app that is moved to a store that was restored from its backups, and back.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use landfast_api::{At, JobRun};
use serde_json::Value;
use support::shop::{ITEMS, NOTHING_DUE, Shop};

/// How long its job `nap` takes at least.
const NAP: Duration = Duration::from_secs(8);

/// Keeps a session of its database open, and says for each request how many items there are. It is not ready on the port that a file
/// names.
const APP: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, socketserver, subprocess, sys, threading, time
LOCK = threading.Lock()
SESSION = None
def ask(statement):
    global SESSION
    with LOCK:
        if SESSION is None:
            SESSION = subprocess.Popen(["psql", os.environ["DATABASE_URL"], "-qAt"], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
        SESSION.stdin.write(statement + ";\n")
        SESSION.stdin.flush()
        return SESSION.stdout.readline().strip()
def is_refused():
    try:
        return (":" + open(os.environ["FLAG"]).read().strip() + "/") in os.environ["DATABASE_URL"]
    except OSError:
        return False
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        status = 200
        if self.path.startswith("/env/"):
            text = os.environ.get(self.path[5:], "-")
        elif self.path == "/ready":
            status, text = (503, "not here") if is_refused() else (200, "yes")
        elif self.path.startswith("/add/"):
            text = ask("INSERT INTO items (id, name) VALUES (%d, 'added') RETURNING id" % int(self.path[5:]))
        else:
            text = ask("SELECT count(*) FROM items")
        body = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
if sys.argv[1] == "wait":
    time.sleep(600)
if sys.argv[1] == "nap":
    time.sleep(8)
    sys.exit(0)
server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"#;

const HOST: &str = "shop.example";

/// A hundred items, archived and proven; then ten of them are deleted by mistake.
fn shop() -> Shop {
    let shop = Shop::new("postgres");
    let script = shop.app.join("build/app.py");
    fs::write(&script, APP).unwrap();
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    let backup = format!(
        "migrations = \"migrations\"\n\n[stores.main.backup]\nto = \"{}\"\nship = \"1s\"\n{NOTHING_DUE}",
        shop.host.path("backups").display()
    );
    shop.edit("migrations = \"migrations\"\n", &backup);
    let folder = shop.host.path("flags");
    fs::create_dir_all(&folder).unwrap();
    let env = format!(
        "grace = \"2s\"\nsandbox = {{ read_only = [{folder:?}] }}\nenv = {{ FLAG = {:?} }}\n",
        folder.join("flag")
    );
    shop.edit("grace = \"2s\"\n", &env);
    shop.edit(
        "[routes.public]",
        "[jobs.long]\nartifact = \"build\"\ncommand = [\"./app.py\", \"wait\"]\nuses = [\"main\"]\n\n\
         [jobs.nap]\nartifact = \"build\"\ncommand = [\"./app.py\", \"nap\"]\nuses = [\"main\"]\n\n[routes.public]",
    );
    shop.migration("0001_items.sql", ITEMS);
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.sql("INSERT INTO items SELECT n, 'first' FROM generate_series(1, 100) n");
    until_proven(&shop);
    shop
}

fn shown(shop: &Shop) -> Value {
    shop.json(&["backup", "show", "main"])
}

fn until_proven(shop: &Shop) {
    shop.host.until("the backups are proven", || {
        let shown = shown(shop);
        let is_well = shown["troubles"].as_array().is_some_and(Vec::is_empty);
        is_well && !shown["drill"]["passed_at"].is_null() && shown["running"].is_null()
    });
}

fn store(shop: &Shop, name: &str) -> Value {
    let list = shop.json(&["store", "list"]);
    let stores = list["stores"].as_array().unwrap().clone();
    let found = stores.into_iter().find(|store| store["name"] == name);
    found.unwrap_or(Value::Null)
}

fn until_state(shop: &Shop, name: &str, state: &str) {
    shop.host.until(&format!("store {name} is {state}"), || {
        store(shop, name)["state"] == state
    });
}

fn restored(shop: &Shop, name: &str, arguments: &[&str]) {
    shop.ok(&[&["restore", "run", "main", "--as", name], arguments].concat());
    until_state(shop, name, "ready");
}

fn switch(shop: &Shop, to: &str) -> String {
    let output = shop.host.run(
        &shop.app,
        &["restore", "switch", "main", "--to", to, "--yes"],
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

fn items(shop: &Shop) -> String {
    shop.host.get(HOST, "/").1
}

fn port(shop: &Shop, name: &str) -> String {
    let store = store(shop, name);
    let address = store["address"].as_str().unwrap();
    address.rsplit_once(':').unwrap().1.to_owned()
}

fn phase(shop: &Shop) -> String {
    let status = shop.json(&["status"]);
    status["rollout"]["phase"]
        .as_str()
        .unwrap_or("none")
        .to_owned()
}

/// Asks one request after the other; what was answered, in order, without repetitions.
struct Client {
    ends: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Client {
    fn start(port: u16) -> Self {
        let ends = Arc::<AtomicBool>::default();
        let end = Arc::clone(&ends);
        let ask = move || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(120)))?;
            write!(
                stream,
                "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let head = answer.to_lowercase();
            // What the pause allows where it takes longer than 30 s.
            if head.starts_with("http/1.1 503") && head.contains("retry-after") {
                return Ok("later".to_owned());
            }
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            match head.starts_with("HTTP/1.1 200") {
                true => Ok(body.to_owned()),
                false => Ok(answer),
            }
        };
        let thread = std::thread::spawn(move || {
            let mut answers: Vec<String> = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let answer = ask().unwrap_or_else(|error| error.to_string());
                if answers.last() != Some(&answer) {
                    answers.push(answer);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            answers
        });
        Self { ends, thread }
    }

    /// What was answered, but for `later`.
    fn answers(self) -> Vec<String> {
        self.ends.store(true, Ordering::Relaxed);
        let mut answers = self.thread.join().unwrap();
        answers.retain(|answer| answer != "later");
        answers.dedup();
        answers
    }
}

#[test]
fn an_app_moves_to_a_restored_store_under_load_and_back() {
    let shop = shop();
    // What is restored has one migration, what serves has two.
    shop.migration("0002_more.sql", "ALTER TABLE items ADD COLUMN more int;");
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.sql("DELETE FROM items WHERE id > 90");
    assert_eq!(items(&shop), "90");
    restored(&shop, "noon", &["--point", "before-rollout-2"]);
    assert_eq!(store(&shop, "noon")["named"], false);

    let client = Client::start(shop.host.http);
    let said = switch(&shop, "noon");
    assert!(said.contains("noon takes the place of main"), "{said}");
    assert!(said.contains("is served by noon"), "{said}");
    assert_eq!(items(&shop), "100");
    // The moment the last old instance ended is the moment the data changed: never back and forth.
    assert_eq!(client.answers(), ["90", "100"]);
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'items'";
    assert_eq!(shop.sql(columns), "3");
    assert_eq!(shop.applied(), "1 2");

    // Names, and what is in use.
    let noon = store(&shop, "noon");
    assert_eq!(
        (&noon["serves"], &noon["named"]),
        (&"main".into(), &true.into())
    );
    assert_eq!(noon["used_by"].to_string(), "[\"api\",\"long\",\"nap\"]");
    until_state(&shop, "main", "deleted");
    assert_eq!(store(&shop, "main")["served_by"], "noon");
    let said = shop.refused(
        &[
            "store",
            "delete",
            "noon",
            "--confirm",
            "shop/production/noon",
        ],
        11,
    );
    assert!(said.contains("serves `main`"), "{said}");
    let listed = shop.ok(&["store", "list"]);
    assert!(listed.contains("noon serves the app's main"), "{listed}");
    let history = shop.ok(&["history"]);
    assert!(history.contains("served by noon"), "{history}");

    // The archive goes on with it: what is written now is restored later, and proven.
    until_proven(&shop);
    assert_eq!(shown(&shop)["served_by"], "noon");
    assert_eq!(shop.host.get(HOST, "/add/5000").1, "5000");
    shop.ok(&["backup", "now", "main"]);
    shop.ok(&["drill", "main"]);
    restored(&shop, "later", &[]);
    let counted = [
        "store",
        "psql",
        "later",
        "--",
        "-Atc",
        "SELECT count(*) FROM items",
    ];
    assert_eq!(shop.ok(&counted).trim(), "101");

    // Code goes back without the contents; settings reach what serves the name.
    shop.edit("memory = \"256MiB\"\n", "memory = \"272MiB\"\n");
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.host
        .until("the settings are those of the manifest", || {
            store(&shop, "noon")["memory_bytes"] == 272 << 20
        });
    shop.ok(&["rollback", "--wait", "seal"]);
    assert_eq!(items(&shop), "101");

    // The way back is the same way, also after what was written on the other one.
    let client = Client::start(shop.host.http);
    let said = switch(&shop, "main");
    assert!(said.contains("had back for it"), "{said}");
    assert_eq!(client.answers(), ["101", "90"]);
    until_state(&shop, "noon", "deleted");
    let main = store(&shop, "main");
    assert!(
        main["serves"].is_null() && main["served_by"].is_null(),
        "{main}"
    );
    // On a timeline behind that of the other one: the newest moment is that of what serves now.
    until_proven(&shop);
    assert_eq!(shop.host.get(HOST, "/add/7000").1, "7000");
    shop.ok(&["drill", "main", "--full"]);
    restored(&shop, "newest", &[]);
    let counted = [
        "store",
        "psql",
        "newest",
        "--",
        "-Atc",
        "SELECT count(*), max(id) FROM items",
    ];
    assert_eq!(shop.ok(&counted).trim(), "91|7000");
}

#[test]
fn what_is_not_fit_is_refused_with_the_next_step() {
    let shop = shop();
    let refused = |to: &str, code: i32| {
        shop.refused(&["restore", "switch", "main", "--to", to, "--yes"], code)
    };
    let said = refused("nowhere", 9);
    assert!(said.contains("restore run main --as nowhere"), "{said}");
    let said = refused("main", 11);
    assert!(said.contains("served by `main` already"), "{said}");
    restored(&shop, "copy", &[]);
    // Somebody has to say so.
    let ask = ["restore", "switch", "main", "--to", "copy"];
    let said = shop.refused(&ask, 2);
    assert!(said.contains("--yes"), "{said}");
    let (code, said) = shop
        .host
        .on_terminal(&shop.app, &ask, "shop/production/copy");
    assert_ne!(code, 0, "{said}");
    assert_eq!(phase(&shop), "none");
    // A run of a job writes to its end where it began.
    shop.ok(&["run", "long", "--detach"]);
    let said = refused("copy", 11);
    assert!(said.contains("of a job uses store `main`"), "{said}");
}

#[test]
fn an_aborted_switch_and_one_that_does_not_come_up_leave_everything_as_it_was() {
    let shop = shop();
    shop.edit(
        "healthy_deadline = \"30s\"\n",
        "healthy_deadline = \"20s\"\nprogress_deadline = \"40s\"\n",
    );
    shop.ok(&["deploy", "--wait", "seal"]);
    restored(&shop, "copy", &[]);
    shop.sql("INSERT INTO items (id) VALUES (101)");
    let flag = shop.host.path("flags/flag");
    fs::write(&flag, port(&shop, "copy")).unwrap();
    let before = shop.address();
    for is_aborted in [true, false] {
        let mut begun = shop.begin(&["restore", "switch", "main", "--to", "copy", "--yes"]);
        if is_aborted {
            shop.host.until("the new release is being started", || {
                phase(&shop) == "starting the new release"
            });
            let held = store(&shop, "copy");
            assert!(held["serves"].is_null(), "{held}");
            for name in ["copy", "main"] {
                let full = format!("shop/production/{name}");
                let delete = ["store", "delete", name, "--confirm", &full];
                let said = shop.refused(&delete, 11);
                assert!(said.contains("being moved"), "{said}");
            }
            shop.ok(&["abort"]);
        }
        assert_eq!(
            begun.wait().unwrap().code(),
            Some(5),
            "aborted: {is_aborted}"
        );
        // The answers that were held come from the old store.
        assert_eq!(items(&shop), "101");
        let (main, copy) = (store(&shop, "main"), store(&shop, "copy"));
        assert_eq!(
            (&main["state"], &copy["state"]),
            (&"ready".into(), &"ready".into())
        );
        assert!(
            main["served_by"].is_null() && copy["serves"].is_null(),
            "{main} {copy}"
        );
        assert_eq!(
            (&main["named"], &copy["named"]),
            (&true.into(), &false.into())
        );
        assert_eq!(shop.address(), before);
        assert!(shown(&shop)["served_by"].is_null());
        assert_eq!(shown(&shop)["troubles"].to_string(), "[]");
    }
    fs::remove_file(&flag).unwrap();
    switch(&shop, "copy");
    assert_eq!(items(&shop), "100");
    // What nothing serves any more can be deleted at once by hand, and what serves cannot.
    until_state(&shop, "main", "deleted");
}

#[test]
fn a_server_that_dies_while_an_app_moves_ends_in_one_of_the_two() {
    let mut shop = shop();
    let mut names = ["main".to_owned(), "one".to_owned()];
    let phases = [
        "migrating databases",
        "holding requests",
        "ending the old release",
        "starting the new release",
    ];
    for (round, wanted) in phases.into_iter().enumerate() {
        let name = format!("copy{round}");
        restored(&shop, &name, &[]);
        names = [names[0].clone(), name.clone()];
        let ports = names.clone().map(|name| port(&shop, &name));
        let mut begun = shop.begin(&["restore", "switch", "main", "--to", &name, "--yes"]);
        // A phase that is over in a moment may not be seen.
        for _ in 0..2_000 {
            let phase = phase(&shop);
            let is_over = phase == "none" && store(&shop, &name)["serves"] == "main";
            if phase == wanted || is_over {
                break;
            }
        }
        shop.host.kill_server();
        shop.host.start_server();
        drop(begun.wait());
        shop.host.until("it has ended", || phase(&shop) == "none");
        shop.host
            .until("it serves", || shop.host.get(HOST, "/").0 == 200);
        let serving = store(&shop, &name)["serves"] == "main";
        let (winner, loser) = match serving {
            true => (1, 0),
            false => (0, 1),
        };
        // Whoever answers uses the store that has the name, and the archive is of that one.
        assert!(shop.address().contains(&format!(":{}/", ports[winner])));
        until_state(&shop, &names[winner], "ready");
        if serving {
            until_state(&shop, &names[loser], "deleted");
        }
        until_proven(&shop);
        let written = 5_000 + round;
        assert_eq!(
            shop.host.get(HOST, &format!("/add/{written}")).1,
            written.to_string()
        );
        names[0] = names[winner].clone();
    }
    let written = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM items WHERE id >= 5000";
    assert_eq!(shop.sql(written), "5000 5001 5002 5003");
}

fn ask(shop: &Shop, store: &str, statement: &str) -> String {
    let said = shop.ok(&["store", "psql", store, "--", "-Atc", statement]);
    said.trim().to_owned()
}

/// What was restored before the manifest asked for more runs with what it asks for when it takes its place, not when it was restored.
#[test]
fn a_store_goes_by_the_manifest_of_today_before_it_serves_and_jobs_wait() {
    let shop = shop();
    restored(&shop, "copy", &[]);
    assert_eq!(ask(&shop, "copy", "SHOW max_connections"), "51");
    shop.edit(
        "memory = \"256MiB\"\n",
        "memory = \"256MiB\"\nsettings = { max_connections = \"77\", work_mem = \"3MB\" }\n",
    );
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.ok(&["store", "restart", "main"]);
    until_state(&shop, "main", "ready");
    // It is not ready as long as this says so.
    let flag = shop.host.path("flags/flag");
    fs::write(&flag, port(&shop, "copy")).unwrap();
    let mut begun = shop.begin(&["restore", "switch", "main", "--to", "copy", "--yes"]);
    shop.host.until("the new release is being started", || {
        phase(&shop) == "starting the new release"
    });
    // By hand or by the clock: what it wrote would be missing.
    let said = shop.refused(&["run", "long", "--detach"], 11);
    assert!(said.contains("another server"), "{said}");
    fs::remove_file(&flag).unwrap();
    assert_eq!(begun.wait().unwrap().code(), Some(0));
    assert_eq!(ask(&shop, "main", "SHOW max_connections"), "77");
    assert_eq!(ask(&shop, "main", "SHOW work_mem"), "3MB");
    let now = store(&shop, "copy");
    assert_eq!(now["serves"], "main", "{now}");
    assert!(
        now["waits_for_restart"]
            .as_array()
            .is_none_or(Vec::is_empty),
        "{now}"
    );
    // The archive has all that the old store wrote, and a place of before.
    until_proven(&shop);
    let points = shown(&shop)["points"].to_string();
    assert!(points.contains("before-switch-"), "{points}");
}

#[test]
fn a_store_that_was_had_back_in_vain_is_deleted_again() {
    let shop = shop();
    restored(&shop, "copy", &[]);
    switch(&shop, "copy");
    until_state(&shop, "main", "deleted");
    until_proven(&shop);
    // A rollout that has not ended keeps the switch from being recorded.
    shop.edit("standby = \"1s\"\n", "standby = \"10m\"\n");
    shop.host.build(&shop.app, "2", "-");
    let script = shop.app.join("build/app.py");
    fs::write(&script, APP.replace("sleep(600)", "sleep(601)")).unwrap();
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    shop.ok(&["deploy", "--wait", "promotion"]);
    let said = shop.refused(&["restore", "switch", "main", "--to", "main", "--yes"], 11);
    assert!(said.contains("seal"), "{said}");
    until_state(&shop, "main", "deleted");
    assert_eq!(items(&shop), "100");
}

#[test]
fn what_waits_for_an_archive_that_is_away_keeps_a_switch_from_beginning() {
    let shop = shop();
    restored(&shop, "copy", &[]);
    let to = shop.host.path("backups");
    let away = to.with_extension("away");
    fs::rename(&to, &away).unwrap();
    fs::write(&to, "").unwrap();
    assert_eq!(shop.host.get(HOST, "/add/5000").1, "5000");
    let ask_switch = ["restore", "switch", "main", "--to", "copy", "--yes"];
    let said = shop.refused(&ask_switch, 11);
    assert!(
        said.contains("not in its archive") && said.contains("--accept-loss"),
        "{said}"
    );
    assert_eq!(phase(&shop), "none");
    assert_eq!(items(&shop), "101");
    let accepted = [&ask_switch[..], &["--accept-loss"]].concat();
    shop.ok(&accepted);
    assert_eq!(items(&shop), "100");
    fs::remove_file(&to).unwrap();
    fs::rename(&away, &to).unwrap();
    until_proven(&shop);
}

/// Passwords, restarts and the archive are those of the store that serves the name; what else has the old store's name is in nobody's way.
#[test]
fn what_is_asked_of_a_name_reaches_the_store_that_serves_it() {
    let mut shop = shop();
    restored(&shop, "copy", &[]);
    switch(&shop, "copy");
    until_state(&shop, "main", "deleted");
    shop.host.until("the archive is of the new one", || {
        let shown = shown(&shop);
        shown["served_by"] == "copy" && !shown["restorable_to"].is_null()
    });
    // It was written down whose archive it is before anything of it was shipped.
    shop.host.kill_server();
    shop.host.start_server();
    until_proven(&shop);

    let pid = || {
        let folder = shop.host.path("state/stores/shop/production/copy/data");
        let text = fs::read_to_string(folder.join("postmaster.pid")).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let (address, began) = (shop.address(), pid());
    let said = shop.ok(&["store", "rotate", "main"]);
    assert!(said.contains("has one password"), "{said}");
    assert_ne!(shop.address(), address);
    assert!(
        shop.address()
            .contains(&format!(":{}/", port(&shop, "copy")))
    );
    shop.ok(&["store", "restart", "main"]);
    shop.host.until("its server is another one", || {
        store(&shop, "copy")["state"] == "ready" && pid() != began
    });
    assert_eq!(store(&shop, "main")["state"], "deleted");
    // The archive follows with the new password.
    shop.host.until("it takes a row", || {
        let insert = [
            "store",
            "psql",
            "main",
            "--",
            "-Atc",
            "INSERT INTO items VALUES (8000)",
        ];
        shop.host.run(&shop.app, &insert).status.success()
    });
    let before = shown(&shop)["restorable_to"].clone();
    shop.host.until("it is archived again", || {
        let now = shown(&shop);
        let is_well = now["troubles"].as_array().is_some_and(Vec::is_empty);
        is_well && !now["restorable_to"].is_null() && now["restorable_to"] != before
    });
    shop.ok(&["backup", "now", "main"]);
    shop.ok(&["drill", "main"]);
    restored(&shop, "later", &[]);
    assert_eq!(
        ask(&shop, "later", "SELECT count(*) FROM items WHERE id = 8000"),
        "1"
    );

    // A volume of the same name is backed up for itself.
    shop.edit(
        "grace = \"2s\"\n",
        "grace = \"2s\"\nvolumes = { copy = \"managed\" }\n",
    );
    let never = "0 0 29 2 * UTC";
    let to = shop.host.path("backups").display().to_string();
    shop.edit(
        "[routes.public]",
        &format!(
            "[volumes.copy.backup]\nto = \"{to}\"\nwhen = \"{never}\"\nfull = \"{never}\"\n\n[volumes.copy.backup.drill]\n\
             light = \"{never}\"\nfull = \"{never}\"\n\n[routes.public]"
        ),
    );
    shop.ok(&["deploy", "--wait", "seal"]);
    shop.host.until("the volume is backed up", || {
        let shown = shop.json(&["backup", "show", "copy"]);
        !shown["restorable_to"].is_null() && shown["running"].is_null()
    });
    until_proven(&shop);
    switch(&shop, "main");
    until_state(&shop, "copy", "deleted");
}

/// Whoever begins a run looks for a switch, and whoever switches looks for runs: whatever comes first, one of the two sees the other.
#[test]
fn a_run_of_a_job_and_a_switch_never_begin_both() {
    let shop = shop();
    restored(&shop, "copy", &[]);
    let mut refused = 0;
    // From the first look at what runs to the record of the switch there is time for all that was written to be shipped.
    for delay in [0, 150, 300, 500, 800, 1_200] {
        let serving = store(&shop, "copy")["serves"] == "main";
        let to = if serving { "main" } else { "copy" };
        let mut begun = shop.begin(&["restore", "switch", "main", "--to", to, "--yes"]);
        std::thread::sleep(Duration::from_millis(delay));
        let nap = ["run", "nap", "--detach", "--json"];
        let run = shop.host.run(&shop.app, &nap);
        let has_run = run.status.success();
        let code = begun.wait().unwrap().code();
        if has_run && code == Some(0) {
            let run: JobRun = serde_json::from_slice(&run.stdout).unwrap();
            let history = shop.json(&["history"]);
            let switch = &history["rollouts"][0];
            let At(switched_at) = serde_json::from_value(switch["started_at"].clone()).unwrap();
            // It began when the app had moved, or a switch that was long in waiting for what it ships let it end.
            let is_on_the_new = switch["to"] == run.release;
            let had_ended = switched_at.since(run.started_at.0) >= NAP;
            assert!(
                is_on_the_new || had_ended,
                "after {delay} ms {run:?} began on the store that was left: {history}"
            );
        }
        assert!(has_run || code == Some(0), "after {delay} ms neither began");
        refused += u32::from(has_run);
        shop.host.until("nothing moves", || phase(&shop) == "none");
        until_proven(&shop);
        shop.host.until("no run is open", || {
            let again = shop.host.run(&shop.app, &["run", "nap"]);
            again.status.success()
        });
    }
    assert!(refused > 0, "no run was ever in the way");
}
