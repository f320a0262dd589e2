//! Data stores in the manifest: what is read, what is refused, and the variables processes are given.

use std::{collections::BTreeSet, fmt::Write as _};

use insta::assert_snapshot;
use landfast_spec::{
    AppSpec, Engine, Part, Place, StoreKind, injected_variables, parse, parse_with_secrets,
};
use landfast_types::{Bytes, EnvironmentName, StoreName};

fn production() -> EnvironmentName {
    EnvironmentName::new("production").expect("a name")
}

/// A manifest with one service, what is added to it, and what follows.
fn with(service: &str, rest: &str) -> String {
    format!(
        "app = \"shop\"\n[services.api]\nartifact = \"api\"\ncommand = [\"./api\"]\n{service}\n{rest}"
    )
}

fn lines(diagnostics: &[landfast_spec::Diagnostic]) -> String {
    let mut output = String::new();
    for one in diagnostics {
        let (line, column, code) = (one.line, one.column, one.code);
        write!(output, "{line}:{column} {code} {}", one.message).expect("writes");
        if let Some(help) = &one.help {
            write!(output, " | {help}").expect("writes");
        }
        output.push('\n');
    }
    output
}

fn said(text: &str) -> String {
    lines(&parse("landfast.toml", text, &production()).diagnostics)
}

fn said_with_secrets(text: &str, secrets: &[&str]) -> String {
    let secrets = secrets
        .iter()
        .map(ToString::to_string)
        .collect::<BTreeSet<_>>();
    lines(&parse_with_secrets("landfast.toml", text, &production(), &secrets).diagnostics)
}

fn spec(text: &str) -> AppSpec {
    let parsed = parse("landfast.toml", text, &production());
    parsed
        .spec
        .unwrap_or_else(|| panic!("{}", lines(&parsed.diagnostics)))
}

fn name(text: &str) -> StoreName {
    StoreName::new(text).expect("a name")
}

#[test]
fn a_store_has_the_tested_version_and_a_modest_memory() {
    let text = with(
        "uses = [\"main\"]",
        "[stores.main]\nengine = \"postgres\"\nmigrations = \"sql\"\nsettings = { work_mem = \"16MB\", max_connections = 50 }\n\
         [stores.cache]\nengine = \"redis\"\nmemory = \"1GiB\"\n\
         [environments.production]\nstores.main.memory = \"2GiB\"\nstores.main.settings.work_mem = \"64MB\"",
    );
    assert_eq!(said(&text), "");
    let spec = spec(&text);
    let main = &spec.stores[&name("main")];
    assert_eq!(
        main.place,
        Place::Managed {
            version: "15".into(),
            memory: Bytes(2 << 30),
            settings: [("max_connections", "50"), ("work_mem", "64MB")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            image: None,
        }
    );
    assert!(
        spec.artifact_names().contains("sql"),
        "migrations are part of a release"
    );
    assert!(spec.stores[&name("cache")].is_managed());
    assert_eq!(
        spec.services.values().next().expect("one").uses,
        [name("main")]
    );
}

#[test]
fn what_is_wrong_with_a_store_is_said_with_the_way_out() {
    let text = with(
        "uses = [\"mian\", \"main\", \"main\", \"Old\"]",
        "[stores.main]\nengine = \"postgresql\"\nversion = 15\n\
         [stores.old]\nengine = \"mysql\"\n\
         [stores.new]\nengine = \"mariadb\"\nversion = \"11.4\"\nsettings = { datadir = \"/tmp\", \"Max\" = 1 }\n\
         [stores.small]\nengine = \"mariadb\"\nmemory = \"64MiB\"\n\
         [stores.cache]\nengine = \"redis\"\nversion = \"7\"\nbucket = \"x\"\nmigrations = \"sql\"\nsettings = { maxmemory = \"1gb\" }\n\
         [stores.files]\nengine = \"s3\"\nmemory = \"1GiB\"\n\
         [stores.far]\nengine = \"postgres\"\nexternal = { url_secret = \"postgres://me:hunter2@db/x\" }\n\
         backup = {}\n",
    );
    assert_snapshot!(said(&text));
    assert!(!said(&text).contains("hunter2"));
}

#[test]
fn uses_without_stores_says_what_to_add() {
    assert_snapshot!(said(&with("uses = [\"main\"]", "")));
}

#[test]
fn a_variable_has_one_giver() {
    let store = "[stores.main]\nengine = \"postgres\"\n[stores.far]\nengine = \"mariadb\"\nexternal = { url_secret = \"FAR_URL\" }";
    let text = with(
        "uses = [\"main\"]\nenv = { DATABASE_URL = \"x\", MAIN_URL = { required = true }, FAR_URL = { required = true } }",
        store,
    );
    assert_snapshot!(said(&text));
    assert_snapshot!(said_with_secrets(&text, &["MAIN_URL"]));
    // What an external store is reached with may have the name it is given in.
    let far = with("uses = [\"far\"]", store);
    assert_snapshot!(said_with_secrets(&far, &["FAR_URL"]));
    assert_snapshot!(said_with_secrets(&far, &[]));
}

#[test]
fn the_first_of_a_kind_has_the_customary_name_unless_a_store_has_it() {
    let engines = [
        ("main", Engine::Postgres),
        ("reports", Engine::Mariadb),
        ("redis", Engine::Mysql),
        ("fast-cache", Engine::Redis),
        ("files", Engine::S3),
    ];
    let kind = |wanted: &StoreName| {
        let mut known = engines.iter();
        known
            .find(|(name, _)| *name == wanted.as_str())
            .map(|(name, engine)| StoreKind {
                engine: *engine,
                has_pool: *name == "main",
            })
    };
    let uses = ["reports", "main", "fast-cache", "redis", "files", "gone"].map(name);
    let variables = injected_variables(&uses, kind);
    let given: Vec<_> = variables
        .iter()
        .filter(|(_, (_, part))| matches!(part, Part::Url | Part::Bucket))
        .map(|(variable, (store, _))| format!("{variable}={store}"))
        .collect();
    assert_eq!(
        given,
        [
            "DATABASE_URL=reports",
            "FAST_CACHE_URL=fast-cache",
            "FILES_BUCKET=files",
            "MAIN_URL=main",
            "REDIS_URL=redis",
            "REPORTS_URL=reports",
            "S3_BUCKET=files",
        ]
    );
    assert_eq!(variables["MAIN_POOL_MAX"], (name("main"), Part::PoolMax));
    assert!(
        !variables.contains_key("DATABASE_POOL_MAX"),
        "all of one prefix are of one store"
    );
    let variables = injected_variables(&[name("main")], kind);
    assert_eq!(variables["DATABASE_POOL_IDLE_MS"].1, Part::PoolIdle);
    assert_eq!(
        injected_variables(&uses, kind)["S3_SECRET_ACCESS_KEY"],
        (name("files"), Part::SecretKey)
    );
}

#[test]
fn a_bucket_at_an_endpoint_has_its_name_in_the_path() {
    let keys = "bucket = \"b\"\naccess_key_secret = \"A\"\nsecret_key_secret = \"S\"";
    let text = |more: &str| {
        with(
            "",
            &format!("[stores.files]\nengine = \"s3\"\n{keys}\n{more}"),
        )
    };
    let place = |more: &str| spec(&text(more)).stores[&name("files")].place.clone();
    let style = |place: &Place| {
        matches!(
            place,
            Place::Bucket {
                path_style: true,
                ..
            }
        )
    };
    assert!(!style(&place("")));
    assert!(style(&place("endpoint = \"http://127.0.0.1:9000\"")));
    assert!(!style(&place(
        "endpoint = \"http://127.0.0.1:9000\"\npath_style = false"
    )));
}

#[test]
fn a_release_without_stores_is_what_it_was() {
    let json = serde_json::to_string(&spec(&with("", ""))).expect("JSON");
    assert!(!json.contains("stores") && !json.contains("uses"), "{json}");
}

#[test]
fn passwords_and_secrets_are_rotated_by_the_clock_of_a_place() {
    let text = with(
        "uses = [\"main\"]",
        "[stores.main]\nengine = \"postgres\"\nrotate = \"0 3 1 * *  Europe/Berlin\"\n\
         [secrets.SESSION_KEY]\nrotate = \"30 4 * * 0 UTC\"\nlength = 64\n\
         [environments.production]\nsecrets.SESSION_KEY.alphabet = \"hex\"",
    );
    assert_eq!(said(&text), "");
    let spec = spec(&text);
    let main = spec.stores[&name("main")].rotate.as_ref().expect("a line");
    assert_eq!(main.as_str(), "0 3 1 * * Europe/Berlin");
    let secret = &spec.secrets["SESSION_KEY"];
    assert_eq!(secret.rotate.as_str(), "30 4 * * 0 UTC");
    assert_eq!((secret.length, secret.alphabet.as_str()), (64, "hex"));
    // A release from before has neither, and reads back.
    let json = serde_json::to_value(&spec).expect("has text keys");
    let mut before = json.clone();
    before.as_object_mut().expect("an object").remove("secrets");
    let before: AppSpec = serde_json::from_value(before).expect("reads back");
    assert!(before.secrets.is_empty());
}

#[test]
fn a_rotation_that_could_never_come_is_refused() {
    let wrong = with(
        "uses = [\"main\"]",
        "[stores.main]\nengine = \"postgres\"\nrotate = \"0 3 1 * *\"\n\
         [stores.old]\nengine = \"mysql\"\nexternal = { url_secret = \"OLD_URL\" }\nrotate = \"0 3 1 * * UTC\"\n\
         [secrets.A-B]\nrotate = \"hand\"\n[secrets.TOKEN]\nlength = 8\n[secrets.PORT]\nrotate = \"0 3 1 * * UTC\"",
    );
    assert_snapshot!(said(&wrong));
}

#[test]
fn a_pool_says_what_one_process_keeps() {
    let text = |store: &str| with("uses = [\"main\"]", &format!("[stores.main]\n{store}"));
    let pool = |store: &str| spec(&text(store)).stores[&name("main")].pool.clone();
    let managed = "engine = \"postgres\"\n";
    assert_eq!(pool(managed), None);
    let shared = pool(&format!("{managed}pool = {{}}")).expect("a pool");
    assert_eq!((shared.max, shared.min), (None, 0));
    let written = pool(&format!(
        "{managed}pool = {{ max = 10, min = 2, timeout = \"2s\", idle = \"1m\" }}"
    ));
    let written = written.expect("a pool");
    assert_eq!((written.max, written.min), (Some(10), 2));
    assert_eq!((written.timeout.as_secs(), written.idle.as_secs()), (2, 60));
    assert_snapshot!(said(&text(&format!(
        "{managed}pool = {{ max = 2, min = 3 }}"
    ))));
    assert_snapshot!(said(&text("engine = \"redis\"\npool = {}")));
    let far = text("engine = \"mysql\"\nexternal = { url_secret = \"FAR\" }\npool = {}");
    assert_snapshot!(said_with_secrets(&far, &["FAR"]));
    let taken = text(&format!("{managed}pool = {{}}")).replace(
        "[stores.main]",
        "[services.api.env]\nDATABASE_POOL_MAX = \"3\"\n[stores.main]",
    );
    assert_snapshot!(said(&taken));
}
