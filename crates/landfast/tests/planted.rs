//! Values are planted through every way a secret can come in, and then searched everywhere they could have leaked to:
//! logs, events, answers, what the command line printed, arguments and environments of processes, every file.
//!
//! The search is shown to be able to fail: an app that prints its own secret is found, and so is each form a value
//! could hide in.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::Output,
};

use rustix::process::{Pid, Signal};
use support::host::Host;

/// What every planted value contains; what stands around it makes encodings show.
const CORES: [&str; 7] = [
    "Pl4ntedBySet0q7vKx2mZ",
    "Pl4ntedByFile1w8bLy3nA",
    "Pl4ntedByImport2e9cMz4oB",
    "Pl4ntedMultiLine3r1dNa5pC",
    "Pl4ntedTyped4t2fOb6qD",
    "Pl4ntedRevoked5y3gPc7rE",
    "Pl4ntedWrongType6u4hQd8sF",
];

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
replicas = 2
secrets = "@DELIVERY@"
health = { ready = "http:/ready", interval = "200ms" }
env = { @ENV@ }
drain = "2s"
grace = "2s"

[jobs.fail]
artifact = "build"
command = ["./app.py", "fail"]

[jobs.crash]
artifact = "build"
command = ["./app.py", "crash"]

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1h"
healthy_deadline = "10s"
"#;

/// `serve` holds its secrets in memory and says nothing of them; with the fault `leaks` it prints one, with `exits` it
/// ends at once; `crash` dies of a signal that dumps core.
const APP: &str = r#"#!/usr/bin/env python3
import http.server, os, signal, sys
HELD = [value for name, value in os.environ.items()]
for name, value in list(os.environ.items()):
    if name.endswith("_FILE"):
        with open(value) as file:
            HELD.append(file.read())
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(sum("Pl4nted" in held for held in HELD)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
FAULT = "@FAULT@"
if FAULT == "leaks":
    print([held for held in HELD if "Pl4nted" in held][0], flush=True)
if FAULT == "exits":
    sys.exit(7)
if sys.argv[1] == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if sys.argv[1] == "fail":
    sys.exit(3)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
server.serve_forever()
"#;

/// The forms a value could hide in: raw; hexadecimal; base64 at each of three places, in both
/// alphabets; percent-encoded, where that differs; UTF-16.
fn forms(core: &str) -> Vec<Vec<u8>> {
    let bytes = core.as_bytes();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
    let wide = bytes.iter().flat_map(|byte| [*byte, 0]).collect();
    let mut forms = vec![
        bytes.to_vec(),
        hex.clone().into_bytes(),
        hex.to_uppercase().into_bytes(),
        percent.clone().into_bytes(),
        percent.to_lowercase().into_bytes(),
        wide,
    ];
    for before in 0..3 {
        // The first and the last characters depend on what stands around.
        let text = landfast_api::base64::encode(&[&vec![b'x'; before], bytes].concat());
        let text = text.trim_end_matches('=');
        let inner = &text[(before * 4).div_ceil(3)..text.len() - 1];
        forms.push(inner.as_bytes().to_vec());
        forms.push(inner.replace('+', "-").replace('/', "_").into_bytes());
    }
    forms
}

/// What was looked through, and where something was found.
#[derive(Default)]
struct Search {
    places: usize,
    bytes: usize,
    found: BTreeSet<String>,
}

impl Search {
    fn look(&mut self, place: &str, bytes: &[u8]) {
        self.places += 1;
        self.bytes += bytes.len();
        for core in CORES {
            // Each form is looked for on its own.
            if forms(core).iter().any(|form| contains(bytes, form)) {
                self.found.insert(format!("{place}: {core}"));
            }
        }
    }

    fn folder(&mut self, folder: &Path, except: &dyn Fn(&Path) -> bool) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if except(&path) {
                continue;
            }
            self.look("a file's name", path.as_os_str().as_encoded_bytes());
            if kind.is_dir() {
                self.folder(&path, except);
            } else if kind.is_file() {
                self.look(
                    &path.display().to_string(),
                    &fs::read(&path).unwrap_or_default(),
                );
            }
        }
    }

    /// Arguments of all processes; environments of all but the instances, which were given theirs.
    fn processes(&mut self, instances: &BTreeSet<u32>) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            self.look(&format!("/proc/{pid}/cmdline"), &read("cmdline"));
            self.look(&format!("/proc/{pid}/comm"), &read("comm"));
            if !instances.contains(&pid) && pid != std::process::id() {
                self.look(&format!("/proc/{pid}/environ"), &read("environ"));
            }
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    let Some(first) = part.first() else {
        return false;
    };
    let mut rest = bytes;
    while let Some(place) = rest.iter().position(|byte| byte == first) {
        if rest[place..].starts_with(part) {
            return true;
        }
        rest = &rest[place + 1..];
    }
    false
}

/// A host with an app, everything the command line printed, and everything the API answered.
struct World {
    host: Host,
    app: PathBuf,
    said: Vec<(String, Vec<u8>)>,
}

impl World {
    fn new() -> Self {
        let host = Host::start();
        let app = host.app("shop", "");
        let mut world = Self {
            host,
            app,
            said: Vec::new(),
        };
        world.manifest("files", "");
        world.build("");
        world
    }

    fn manifest(&mut self, delivery: &str, env: &str) {
        let text = MANIFEST
            .replace("@DELIVERY@", delivery)
            .replace("@ENV@", env);
        fs::write(self.app.join("landfast.toml"), text).unwrap();
    }

    fn build(&mut self, fault: &str) {
        let file = self.app.join("build/app.py");
        fs::write(&file, APP.replace("@FAULT@", fault)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&mut self, arguments: &[&str]) -> Output {
        self.run_with(arguments, "")
    }

    fn run_with(&mut self, arguments: &[&str], stdin: &str) -> Output {
        let output = self.host.run_with(&self.app, arguments, stdin);
        let said = [output.stdout.clone(), output.stderr.clone()].concat();
        self.said.push((format!("landfast {arguments:?}"), said));
        output
    }

    #[track_caller]
    fn ok(&mut self, arguments: &[&str], stdin: &str) {
        let output = self.run_with(arguments, stdin);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// Everything the API answers to whoever asks for anything but a value.
    fn ask(&mut self) {
        let environment = "/v1/apps/shop/environments/production";
        let paths = [
            "/v1/host",
            "/v1/apps",
            "/v1/routes",
            "/v1/traffic",
            "/v1/metrics",
            "/v1/certificates",
            "/v1/host/secrets-key",
            environment,
            &format!("{environment}/history"),
            &format!("{environment}/rollouts"),
            &format!("{environment}/secrets"),
            &format!("{environment}/secrets/BY_SET"),
            &format!("{environment}/secrets/BY_SET/history"),
            &format!("{environment}/logs?tail=10000"),
        ];
        for path in paths {
            let answer = self.get(path, "");
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{path}");
            self.said.push((format!("GET {path}"), answer));
        }
        // From the first event on: the stream does not end, so it is read until it is silent.
        let events = self.get("/v1/events", "Last-Event-ID: 0\r\n");
        assert!(
            contains(&events, b"secret-set"),
            "events tell of secrets, too"
        );
        self.said.push(("GET /v1/events".into(), events));
    }

    fn get(&self, path: &str, header: &str) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.host.path("run/landfast.sock")).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        let mut piece = [0; 65_536];
        while let Ok(count) = stream.read(&mut piece) {
            if count == 0 {
                break;
            }
            answer.extend_from_slice(&piece[..count]);
        }
        answer
    }

    /// The processes that were given secrets: instances, found by the mark in their environment.
    fn instances(&self) -> BTreeSet<u32> {
        let status = self.host.json(&self.app, &["status"]);
        let mut pids = BTreeSet::new();
        collect_pids(&status, &mut pids);
        pids
    }

    /// Looks through everything. `except` names what may hold values.
    fn search(&mut self, except: &dyn Fn(&Path) -> bool) -> Search {
        let mut search = Search::default();
        let instances = self.instances();
        search.processes(&instances);
        search.folder(self.host.folder.path(), except);
        for (place, bytes) in &self.said {
            search.look(place, bytes);
        }
        search
    }
}

fn collect_pids(value: &serde_json::Value, pids: &mut BTreeSet<u32>) {
    match value {
        serde_json::Value::Object(fields) => {
            let pid = fields.get("pid").and_then(serde_json::Value::as_u64);
            pids.extend(pid.and_then(|pid| u32::try_from(pid).ok()));
            fields.values().for_each(|inner| collect_pids(inner, pids));
        }
        serde_json::Value::Array(items) => {
            items.iter().for_each(|inner| collect_pids(inner, pids));
        }
        _ => {}
    }
}

/// Puts a value in by every way there is.
fn plant(world: &mut World) {
    // Characters that every quoting and every encoding treats in another way.
    let around = |core: &str| format!("a \"{core}\" \\ %2F+/=é' $HOME");
    world.ok(&["secret", "set", "BY_SET"], &around(CORES[0]));
    let file = world.app.join("value.txt");
    fs::write(&file, around(CORES[1])).unwrap();
    let file_name = file.display().to_string();
    world.ok(&["secret", "set", "BY_DISK", "--from", &file_name], "");
    fs::remove_file(file).unwrap();
    let dotenv = format!(
        "export BY_IMPORT='{}'\nMULTI=\"-----BEGIN\n{}\n-----END\"\n",
        CORES[2], CORES[3]
    );
    world.ok(&["secret", "import"], &dotenv);
    let (code, shown) = world
        .host
        .on_terminal(&world.app, &["secret", "set", "TYPED"], CORES[4]);
    assert_eq!(code, 0, "{shown}");
    world.said.push(("the terminal".into(), shown.into_bytes()));
    world.ok(&["secret", "set", "REVOKED"], CORES[5]);
    world.ok(&["secret", "set", "REVOKED"], "another value");
    world.ok(&["secret", "revoke", "REVOKED", "1"], "");
    // Refused ones must not be quoted either.
    let refused = format!("GOOD=1\nBAD {}\nWORSE='{}", CORES[0], CORES[1]);
    assert!(
        !world
            .run_with(&["secret", "import"], &refused)
            .status
            .success()
    );
    let refused = world.run_with(&["secret", "set", "PORT"], CORES[0]);
    assert!(!refused.status.success());
    let refused = world.run_with(&["secret", "key", "confirm"], CORES[0]);
    assert!(!refused.status.success());
    let long = CORES[0].repeat(10_000);
    assert!(
        !world
            .run_with(&["secret", "set", "LONG"], &long)
            .status
            .success()
    );
}

/// A life with everything that goes wrong in one.
fn live(world: &mut World) {
    world.ok(&["plan"], "");
    world.ok(&["deploy"], "");
    assert_eq!(world.host.get("shop.example", "/"), (200, "5".to_owned()));
    world.ok(&["exec", "api", "--", "/bin/true"], "");
    world.run(&["exec", "api", "--", "no-such-command"]);
    world.run(&["run", "fail"]);
    world.run(&["run", "crash"]);
    // All of them as variables.
    world.manifest("environment", "");
    world.ok(&["deploy"], "");
    assert_eq!(world.host.get("shop.example", "/"), (200, "5".to_owned()));
    // A value that is not of its type: the start fails, and the reason must not quote it.
    world.ok(&["secret", "set", "NUMBER"], CORES[6]);
    world.manifest("files", "NUMBER = { type = \"integer\", required = true }");
    let failed = world.run(&["deploy"]);
    assert!(!failed.status.success());
    world.ok(&["secret", "rm", "NUMBER"], "");
    world.manifest("files", "");
    world.build("exits");
    let failed = world.run(&["deploy"]);
    assert!(!failed.status.success());
    world.build("");
    world.ok(&["deploy"], "");
    world.ok(&["seal"], "");
    world.ok(&["rollback"], "");
    world.ok(&["deploy"], "");
    // Sealed: what crashes before is taken back to the release with variables, if it is slow to come back.
    world.ok(&["seal"], "");
    // Instances and the server crash; what dumps core would hold values.
    for pid in world.instances() {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::SEGV).unwrap();
    }
    world.host.until("it serves again", || {
        world.host.get("shop.example", "/").0 == 200
    });
    let server = Pid::from_raw(i32::try_from(world.host.server_pid()).unwrap()).unwrap();
    rustix::process::kill_process(server, Signal::ABORT).unwrap();
    world.host.kill_server();
    world.host.start_server();
    world.host.until("the server has taken everything up", || {
        world.host.run(&world.app, &["status"]).status.success()
    });
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["status", "--all"],
        &["status", "--host-info"],
        &["history"],
        &["history", "--json"],
        &["plan", "--json"],
        &["routes"],
        &["logs", "api", "-n", "1000"],
        &["secret", "list"],
        &["secret", "list", "--json"],
        &["secret", "get", "BY_SET"],
        &["secret", "history", "BY_SET"],
        &["secret", "history", "REVOKED", "--json"],
        &["secret", "key"],
        &["doctor"],
    ] {
        world.run(arguments);
    }
    world.ask();
}

/// The files of running instances are where values belong; nobody but the instance's user reads them.
fn in_secret_files(run: &Path) -> impl Fn(&Path) -> bool {
    let folder = run.join("f");
    move |path: &Path| path.starts_with(&folder)
}

#[test]
fn planted_values_are_nowhere_but_where_they_belong() {
    let mut world = World::new();
    plant(&mut world);
    live(&mut world);
    let run = world.host.path("run");
    let search = world.search(&in_secret_files(&run));
    println!(
        "figure: {} values planted, {} places and {} bytes searched in {} forms, {} found",
        CORES.len(),
        search.places,
        search.bytes,
        forms(CORES[0]).len(),
        search.found.len()
    );
    assert!(
        search.places > 300,
        "too little was searched: {}",
        search.places
    );
    assert_eq!(search.found, BTreeSet::new());
    // Where they belong, they are, behind modes that keep everybody else out.
    let mut files = 0;
    for folder in fs::read_dir(run.join("f")).unwrap().flatten() {
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o077, 0);
        for file in fs::read_dir(folder.path()).unwrap().flatten() {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o400);
            files += 1;
        }
    }
    assert_eq!(files, 2 * 6, "two instances with six secrets each");
    // Once nothing runs, they are gone.
    world.ok(&["stop"], "");
    world.host.until("the files are gone", || {
        fs::read_dir(run.join("f")).is_ok_and(|folders| folders.count() == 0)
    });
}

#[test]
fn the_search_finds_an_app_that_prints_its_secret() {
    let mut world = World::new();
    world.ok(&["secret", "set", "BY_SET"], CORES[0]);
    world.build("leaks");
    world.ok(&["deploy"], "");
    world.run(&["logs", "api"]);
    let run = world.host.path("run");
    let search = world.search(&in_secret_files(&run));
    let found: Vec<_> = search.found.iter().collect();
    assert!(
        found.iter().any(|place| place.contains("/state/logs/")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|place| place.starts_with("landfast [\"logs\"")),
        "{found:?}"
    );
    // And the files of the instances, when they are not left out.
    let search = world.search(&|_| false);
    assert!(search.found.iter().any(|place| place.contains("/run/f/")));
}

#[test]
fn the_search_knows_every_form_a_value_can_hide_in() {
    let core = CORES[0];
    let folder = tempfile::tempdir().unwrap();
    let hex: String = core.bytes().map(|byte| format!("{byte:02x}")).collect();
    let json = serde_json::json!({ "value": format!("before {core} after") }).to_string();
    for around in ["", "x", "xy", "xyz"] {
        let whole = format!("{around}{core}{around}");
        let base64 = landfast_api::base64::encode(whole.as_bytes());
        let cases = [
            whole.clone(),
            base64.clone(),
            base64.replace('+', "-").replace('/', "_"),
            hex.to_uppercase(),
            json.clone(),
        ];
        for (number, case) in cases.iter().enumerate() {
            let file = folder.path().join(number.to_string());
            fs::write(&file, format!("… {case} …")).unwrap();
            let mut search = Search::default();
            search.folder(folder.path(), &|_| false);
            assert_eq!(search.found.len(), 1, "{case}");
            fs::remove_file(file).unwrap();
        }
    }
}
