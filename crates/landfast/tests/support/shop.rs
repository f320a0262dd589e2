//! An app with one database and its migrations, on a real server that runs the database.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;

use super::host::Host;

/// Databases of several servers at once would take what this machine has.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const MANIFEST: &str = r#"
app = "shop"

[services.api]
artifact = "build"
command = ["./app.py", "serve"]
port = 3000
uses = ["main"]
health = { ready = "http:/ready", interval = "200ms" }
drain = "1s"
grace = "2s"

[stores.main]
engine = "@ENGINE@"
memory = "256MiB"
migrations = "migrations"

[routes.public]
host = "shop.example"
service = "api"

[deploy]
strategy = "rolling"
min_ready = "200ms"
standby = "1s"
healthy_deadline = "30s"
"#;

/// What follows in `[stores.main.backup]` so that nothing comes due in a test, whatever the hour and the day of the week.
/// 29 February comes least often.
pub const NOTHING_DUE: &str = "full = \"0 0 29 2 * UTC\"\n\n[stores.main.backup.drill]\n\
    light = \"0 0 29 2 * UTC\"\nfull = \"0 0 29 2 * UTC\"\n\n";

/// The table of the first migration.
pub const ITEMS: &str = "CREATE TABLE items (id bigint PRIMARY KEY, name varchar(40));";

pub struct Shop {
    pub host: Host,
    pub app: PathBuf,
    // Let go of when all of it has ended.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Shop {
    /// Nothing is deployed yet.
    pub fn new(engine: &str) -> Self {
        Self::on(engine, Host::start)
    }

    /// The same on a host that was made in some way.
    pub fn on(engine: &str, host: impl FnOnce() -> Host) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let host = host();
        let app = host.app("shop", &MANIFEST.replace("@ENGINE@", engine));
        Self {
            host,
            app,
            _turn: Some(turn),
        }
    }

    /// Beside others, where most of the time is waited.
    pub fn beside_others(engine: &str) -> Self {
        Self::beside_others_on(engine, Host::start())
    }

    /// The same on a host that was made in some way.
    pub fn beside_others_on(engine: &str, host: Host) -> Self {
        let app = host.app("shop", &MANIFEST.replace("@ENGINE@", engine));
        Self {
            host,
            app,
            _turn: None,
        }
    }

    /// Release 1 serves, and its migration is this.
    pub fn with_table(engine: &str, table: &str) -> Self {
        let shop = Self::new(engine);
        shop.migration("0001_items.sql", table);
        shop.ok(&["deploy", "--wait", "seal"]);
        shop
    }

    /// Replaces a line of the manifest.
    #[track_caller]
    pub fn edit(&self, line: &str, with: &str) {
        let path = self.app.join("landfast.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(line), "`{line}` is not in {text}");
        fs::write(path, text.replace(line, with)).unwrap();
    }

    pub fn migration(&self, name: &str, text: &str) {
        let folder = self.app.join("migrations");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), text).unwrap();
    }

    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.host.expect(&self.app, arguments, 0)
    }

    /// What it says on stderr when it ends with this code.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.host.run(&self.app, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        self.host.json(&self.app, arguments)
    }

    #[track_caller]
    pub fn sql(&self, statement: &str) -> String {
        let said = self.ok(&["store", "psql", "main", "--", "-Atc", statement]);
        said.trim().to_owned()
    }

    /// The numbers of the migrations that the database has.
    pub fn applied(&self) -> String {
        self.sql("SELECT string_agg(number::text, ' ' ORDER BY number) FROM landfast.migrations WHERE state = 'applied'")
    }

    /// The version that answers.
    pub fn version(&self) -> String {
        self.host
            .get("shop.example", "/version")
            .1
            .trim()
            .to_owned()
    }

    /// The address of the database that instances of the release that answers were given.
    pub fn address(&self) -> String {
        self.host.get("shop.example", "/env/DATABASE_URL").1
    }

    /// A command that goes on meanwhile; its words are kept.
    #[expect(
        clippy::disallowed_methods,
        reason = "a command that is not waited for"
    )]
    pub fn begin(&self, arguments: &[&str]) -> Child {
        Command::new(assert_cmd::cargo::cargo_bin("landfast"))
            .args(arguments)
            .current_dir(&self.app)
            .env("LANDFAST_SOCKET", self.host.path("run/landfast.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}
