//! A database of somebody else, by dumps: `pg_dump` writes, and what it writes goes straight into the repository.
//!
//! A dump is a snapshot of one file. It exists once the program has ended well, never before. A drill brings up an empty server of our
//! own, restores the dump into it and asks: that the schema is the one that was dumped, how many rows there are, and what the user wants
//! to know.

use std::{
    fs,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use landfast_backup::{BackupId, Check, DrillPhases};
use landfast_backup_files::{Content, FilesError, Loaded, Series, Snapshot, store_file};
use landfast_repository::freeing;
use landfast_types::{Digest, Secret, Timestamp};
use rustix::process::Signal;

use crate::{
    BackupError, OnCopy, Programs, ScratchCopy, Server, SqlCheck,
    base_backup::blocking_file,
    child::{self, Program, Running},
    clock,
    drill::{PATIENCE, amcheck, sql_check},
    restore::{PORT, make_configuration, own_tree},
    scratch::discard,
};

/// The name of a dump in its snapshot.
pub const DUMP: &str = "dump";
const READ_BYTES: usize = 1 << 20;
const LOOK: Duration = Duration::from_millis(100);
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How long a table that somebody has locked is waited for.
const LOCK_WAIT: &str = "--lock-wait-timeout=60000";
/// How long an empty server may take to answer.
const READY_MAX: Duration = Duration::from_secs(120);

/// The database that is dumped.
#[derive(Debug, Clone)]
pub struct DumpSource {
    /// What leads PostgreSQL's programs there: the variables of its client library, the password among them.
    pub variables: Vec<(&'static str, Secret<String>)>,
    /// `150018`
    pub server_version: i32,
    pub database: String,
    /// Of the server and the database, where it tells: another one is told apart by it.
    pub identity: Option<Digest>,
}

/// What to dump, and where to.
#[derive(Debug, Clone)]
pub struct DumpRequest {
    pub source: DumpSource,
    pub programs: Programs,
    pub series: Series,
    /// Store every page again, so that no older object is needed.
    pub is_full: bool,
    /// How long the program may write nothing before it is ended.
    pub patience: Duration,
}

/// How far a dump is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DumpProgress {
    pub bytes: u64,
    pub stored_bytes: u64,
    pub elapsed: Duration,
}

impl DumpSource {
    fn program(&self, programs: &Programs) -> Program {
        let program = programs.program("pg_dump").args(["--no-password"]);
        let program = program.env("PGAPPNAME", "landfast backup");
        let variables = self.variables.iter();
        variables.fold(program, |program, (name, value)| {
            program.env(name, value.reveal())
        })
    }

    /// Of the schema, as it is just now. Owners and rights are those of another server, and not compared.
    async fn schema(&self, programs: &Programs, patience: Duration) -> Result<Digest, BackupError> {
        schema_of(self.program(programs), patience, None).await
    }
}

async fn schema_of(
    program: Program,
    patience: Duration,
    working: Option<u32>,
) -> Result<Digest, BackupError> {
    let program = program.args([
        "--schema-only",
        "--no-owner",
        "--no-privileges",
        "--no-comments",
        "--no-publications",
        "--no-subscriptions",
        LOCK_WAIT,
    ]);
    let ran = child::run_while(&program, patience, working).await;
    let text = ran.map_err(BackupError::Program)?;
    // Newer minor versions begin and end a dump with a random word; the head names the version of the server.
    let is_other = |line: &&str| {
        ["\\restrict", "\\unrestrict", "--"]
            .iter()
            .any(|head| line.starts_with(head))
    };
    let lines = text.lines().filter(|line| !is_other(line));
    Ok(Digest::of(lines.collect::<Vec<_>>().join("\n").as_bytes()))
}

/// Dumps a database.
///
/// # Errors
/// [`BackupError`]; nothing that could be chosen exists then.
pub async fn dump(
    request: &DumpRequest,
    on_progress: impl Fn(DumpProgress) + Send + Sync,
) -> Result<Snapshot, BackupError> {
    let begun = clock::instant();
    let (source, programs) = (&request.source, &request.programs);
    let before = source.schema(programs, request.patience).await?;
    let program = source
        .program(programs)
        // Compressed with all the rest, and page by page the same where it is.
        .args(["--format=custom", "--compress=0", LOCK_WAIT]);
    let started = Running::start(&program).await;
    let mut running = started.map_err(BackupError::io("start", &program.path))?;
    running.give_way();
    let output = blocking_file(running.stdout()).map_err(BackupError::io("read", &program.path))?;
    let (read, stored) = (Arc::new(AtomicU64::new(0)), AtomicU64::new(0));
    let content = Counted {
        inner: BufReader::with_capacity(READ_BYTES, output),
        read: Arc::clone(&read),
    };
    let progress = || DumpProgress {
        bytes: read.load(Ordering::Relaxed),
        stored_bytes: stored.load(Ordering::Relaxed),
        elapsed: begun.elapsed(),
    };
    let on_stored = |bytes| stored.store(bytes, Ordering::Relaxed);
    let upload = store_file(&request.series, DUMP, request.is_full, content, on_stored);
    let mut upload = Box::pin(upload);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let mut moved = (0, clock::instant());
    let uploaded = loop {
        tokio::select! {
            uploaded = &mut upload => break uploaded.map_err(BackupError::from),
            _ = ticks.tick() => {
                let now = progress();
                on_progress(now);
                let sum = now.bytes + now.stored_bytes;
                if sum != moved.0 {
                    moved = (sum, clock::instant());
                } else if moved.1.elapsed() > request.patience {
                    let seconds = request.patience.as_secs();
                    let what = format!("`pg_dump` wrote nothing for {seconds} s");
                    break Err(BackupError::Stopped(what));
                }
            }
        }
    };
    drop(upload);
    if uploaded.is_err() {
        running.signal(Signal::KILL);
    }
    let ended_well = running.wait().await;
    let ended_well = ended_well.map_err(BackupError::io("wait for", &program.path))?;
    let said = running.said();
    let uploaded = match uploaded {
        Ok(uploaded) if ended_well => uploaded,
        Ok(_) => {
            return Err(BackupError::Program(format!("`pg_dump` failed: {said}")));
        }
        Err(error) => return Err(error),
    };
    let after = source.schema(programs, request.patience).await?;
    let content = Content::Dump {
        server_version: source.server_version,
        database: source.database.clone(),
        source: source.identity,
        // A migration that came between leaves nothing to compare with.
        schema: (before == after).then_some(before),
    };
    Ok(uploaded.finish(content).await?)
}

struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

/// What to drill.
#[derive(Debug, Clone)]
pub struct DumpDrillRequest {
    pub series: Series,
    pub programs: Programs,
    /// For a copy of the dump, the data of the server, and its socket: a short path, ours alone. What is in it is removed.
    pub scratch: PathBuf,
    pub checks: Vec<SqlCheck>,
    /// The data of an empty server lie in `d` of the scratch folder already, made by `initdb` with [`INITDB`] as the user of the
    /// programs: it looks for the name of that user, who may have none. Otherwise they are made.
    pub is_made: bool,
    /// Reads every page and index too.
    pub reads_everything: bool,
    /// How long the programs, and the server that works for them, may do nothing before they are ended.
    pub patience: Duration,
}

/// Arguments of `initdb` for a server that is thrown away.
pub const INITDB: [&str; 6] = [
    "--username=postgres",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--no-sync",
    "--no-instructions",
];

/// What a drill of a dump has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpDrill {
    pub snapshot: Snapshot,
    pub begun: Timestamp,
    pub phases: DrillPhases,
    pub checks: Vec<Check>,
    pub tables: u64,
    pub rows: u64,
}

impl DumpDrill {
    /// What was wrong; empty where it has passed.
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self.checks.iter().filter_map(|check| {
            let wrong = check.wrong.as_ref()?;
            Some(format!("{}: {wrong}", check.name))
        });
        wrong.collect()
    }
}

/// Restores a dump into a server of our own, checks it, and removes all of it. Before that something may be done with it, as the owner of
/// what is in it.
///
/// # Errors
/// Where there is nothing to check: that drill has failed, too.
pub async fn drill_dump(
    request: &DumpDrillRequest,
    loaded: &Loaded,
    id: Option<&BackupId>,
    mut on_step: impl FnMut(String) + Send,
    on_copy: Option<OnCopy<'_>>,
) -> Result<DumpDrill, BackupError> {
    let begun = clock::now();
    let (data, run, copy) = (
        request.scratch.join("d"),
        request.scratch.join("r"),
        request.scratch.join("x"),
    );
    for folder in [&run, &copy] {
        emptied(folder)?;
    }
    let mut phases = DrillPhases::default();
    let step = clock::instant();
    on_step("reading the dump".to_owned());
    let restored = landfast_backup_files::restore(&request.series, loaded, id, &copy, |_| {});
    let snapshot = restored.await?.snapshot;
    let Content::Dump { schema, .. } = &snapshot.content else {
        return Err(BackupError::Strange("it holds no dump".to_owned()));
    };
    phases.plan = step.elapsed();
    let step = clock::instant();
    on_step("bringing up an empty server".to_owned());
    if !request.is_made {
        emptied(&data)?;
        make_data(&request.programs, &data).await?;
    }
    let (copied, running) = scratch_server(&request.programs, &data, &run).await?;
    let server = copied.server.clone();
    phases.restore = step.elapsed();
    let step = clock::instant();
    on_step("restoring the dump into it".to_owned());
    let owner = Server {
        login: OWNER.to_owned(),
        ..server.clone()
    };
    let working = running.pid();
    let watch = (request.patience, working);
    let left_out = load(&request.programs, &server, &owner, &copy, watch).await?;
    phases.replay = step.elapsed();
    let step = clock::instant();
    on_step("asking what there is".to_owned());
    let mut checks: Vec<Check> = left_out
        .iter()
        .map(|what| Check::of(what, Ok(())))
        .collect();
    for wanted in &request.checks {
        let wanted = SqlCheck {
            database: DATABASE.to_owned(),
            ..wanted.clone()
        };
        // They may write, and the rows are counted after them.
        checks.push(sql_check(&owner, &wanted).await);
    }
    let (tables, rows) = counted(&owner).await?;
    checks.push(Check::of("rows", Ok(())));
    // What was left out is missing in it.
    if let Some(expected) = schema.filter(|_| left_out.is_empty()) {
        let program = server.reach(request.programs.program("pg_dump"), None);
        let program = program.arg(format!("--dbname={DATABASE}"));
        let found = schema_of(program, request.patience, working).await?;
        let wrong = match found == expected {
            true => Ok(()),
            false => Err("it is another one than was dumped".to_owned()),
        };
        checks.push(Check::of("schema", wrong));
    }
    // It brings an extension of its own, so the schema was read before.
    if request.reads_everything {
        checks.push(amcheck(&request.programs, &server, working).await);
    }
    phases.checks = step.elapsed();
    if let Some(on_copy) = on_copy {
        let server = Server {
            database: DATABASE.to_owned(),
            ..owner
        };
        on_copy(Ok(ScratchCopy { server, ..copied })).await;
    }
    discard(running, &data).await;
    for folder in [&data, &run, &copy] {
        emptied(folder)?;
    }
    Ok(DumpDrill {
        snapshot,
        begun,
        phases,
        checks,
        tables,
        rows,
    })
}

/// In the scratch server.
const DATABASE: &str = "restored";
/// Owns what is restored, and has no rights beyond it: a dump holds code of whoever could write to the database.
const OWNER: &str = "owner";

fn emptied(folder: &Path) -> Result<(), BackupError> {
    freeing::remove_tree(folder).map_err(BackupError::io("remove", folder))
}

async fn make_data(programs: &Programs, data: &Path) -> Result<(), BackupError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let make = || {
        fs::DirBuilder::new().mode(0o700).create(data)?;
        own_tree(data, programs.user)
    };
    make().map_err(BackupError::io("make", data))?;
    let mut initdb = programs.program("initdb").args(INITDB);
    initdb.user = programs.user;
    let initdb = initdb.arg("--pgdata").arg(data);
    let made = child::run_while(&initdb, PATIENCE, None).await;
    made.map(drop).map_err(BackupError::Program)
}

/// An empty server, on a socket of its own and on no network.
async fn scratch_server(
    programs: &Programs,
    data: &Path,
    run: &Path,
) -> Result<(ScratchCopy, Running), BackupError> {
    make_configuration(run, programs.user).map_err(BackupError::io("make", run))?;
    let mut program = programs.program("postgres").arg("-D").arg(data);
    program.user = programs.user;
    program = program.writes(data).writes(run);
    let folder = run.display();
    for setting in [
        format!("config_file={folder}/postgresql.conf"),
        format!("hba_file={folder}/pg_hba.conf"),
        format!("ident_file={folder}/pg_ident.conf"),
        format!("unix_socket_directories={folder}"),
        format!("port={PORT}"),
        "listen_addresses=".to_owned(),
        "logging_collector=off".to_owned(),
        "log_min_messages=warning".to_owned(),
        "max_connections=20".to_owned(),
        "max_wal_senders=0".to_owned(),
        "wal_level=minimal".to_owned(),
        // It is thrown away.
        "fsync=off".to_owned(),
        "full_page_writes=off".to_owned(),
        "autovacuum=off".to_owned(),
    ] {
        program = program.arg("-c").arg(setting);
    }
    // What connects from inside and names no server reaches the copy itself.
    program = program
        .env("PGHOST", run.as_os_str())
        .env("PGPORT", PORT.to_string());
    let started = Running::start_apart(&program).await;
    let (mut running, reachable) = started.map_err(BackupError::io("start", &program.path))?;
    if let Some(why) = &reachable {
        tracing::warn!(
            why,
            "the server of a restored dump has the network of this host"
        );
    }
    let server = Server {
        host: run.display().to_string(),
        port: PORT,
        login: "postgres".to_owned(),
        password: None,
        database: "postgres".to_owned(),
    };
    let begun = clock::instant();
    loop {
        if let Ok(session) = server.connect().await {
            for create in [
                format!("CREATE ROLE {OWNER} LOGIN"),
                format!(
                    "CREATE DATABASE {DATABASE} OWNER {OWNER} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
                ),
            ] {
                let made = session.client.batch_execute(&create).await;
                made.map_err(BackupError::server("make a database"))?;
            }
            return Ok((ScratchCopy { server, reachable }, running));
        }
        if begun.elapsed() > READY_MAX {
            return Err(BackupError::NotReady(running.said()));
        }
        tokio::select! {
            ended = running.wait() => {
                ended.map_err(BackupError::io("wait for", &program.path))?;
                return Err(BackupError::NotReady(running.said()));
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// What a line of a dump's list speaks of, and its name: `2; 3079 16384 EXTENSION - pgcrypto`.
fn entry(line: &str) -> Option<(&'static str, String)> {
    const KINDS: [&str; 8] = [
        "EVENT TRIGGER",
        "EXTENSION",
        "FOREIGN DATA WRAPPER",
        "FOREIGN TABLE",
        "POLICY",
        "SCHEMA",
        "SERVER",
        "USER MAPPING",
    ];
    let (_, rest) = line.split_once("; ")?;
    let rest = rest.splitn(3, ' ').nth(2)?;
    let kind = KINDS.into_iter().find(|kind| {
        let behind = rest.strip_prefix(kind);
        behind.is_some_and(|behind| behind.starts_with(' '))
    })?;
    // The folder of names that it lies in, or `-`, then its own.
    let mut words = rest[kind.len()..].split_whitespace().skip(1);
    Some((kind, words.next().unwrap_or_default().to_owned()))
}

/// Restores a dump as its owner; gives what was left out, and why, a line each. Schemas and extensions come first and from the
/// administrator: they are the server's own code, and many extensions are made by nobody else. Policies come last, when the roles they are
/// for have been made.
async fn load(
    programs: &Programs,
    server: &Server,
    owner: &Server,
    folder: &Path,
    (patience, working): (Duration, Option<u32>),
) -> Result<Vec<String>, BackupError> {
    let file = folder.join(DUMP);
    let list = programs.program("pg_restore").arg("--list").arg(&file);
    let list = child::run_while(&list, patience, None).await;
    let list = list.map_err(BackupError::Program)?;
    let installed = installed(server).await?;
    let (mut first, mut rest, mut policies) = (Vec::new(), Vec::new(), Vec::new());
    let mut left_out = Vec::new();
    for line in list.lines() {
        match entry(line) {
            Some(("EXTENSION", name)) if !installed.contains(&name) => left_out.push(format!(
                "without the extension `{name}`, which is not installed here"
            )),
            Some(("SCHEMA" | "EXTENSION", _)) => first.push(line),
            Some(("POLICY", _)) => policies.push(line),
            Some(("EVENT TRIGGER", name)) => left_out.push(format!(
                "without the event trigger `{name}`, which would run code of the dump as an administrator"
            )),
            Some((kind, name)) => {
                let kind = kind.to_lowercase();
                left_out.push(format!(
                    "without the {kind} `{name}`, which leads to another server"
                ));
            }
            None => rest.push(line),
        }
    }
    let run = async |name: &str, lines: &[&str], whose: &Server| {
        let chosen = folder.join(name);
        let written = fs::write(&chosen, lines.join("\n") + "\n");
        written.map_err(BackupError::io("write", &chosen))?;
        let program = whose.reach(programs.program("pg_restore"), None);
        let mut program = program.args([
            "--exit-on-error",
            // The logins of the other server are not here.
            "--no-owner",
            "--no-privileges",
            "--no-comments",
            "--no-security-labels",
            "--no-tablespaces",
            // They would make the copy send or receive.
            "--no-publications",
            "--no-subscriptions",
        ]);
        if name == "policies" {
            program = program.arg("--single-transaction");
        }
        let program = program
            .arg(format!("--use-list={}", chosen.display()))
            .arg(format!("--dbname={DATABASE}"))
            .arg(&file);
        let loaded = child::run_while(&program, patience, working).await;
        loaded.map(drop).map_err(BackupError::Program)
    };
    run("first", &first, server).await?;
    hand_over(server).await?;
    if let Err(error) = run("rest", &rest, owner).await {
        return Err(match (left_out.as_slice(), error) {
            ([], error) => error,
            (left_out, error) => BackupError::Program(format!(
                "{error}; it was restored {}: install what it needs, and drill it again",
                left_out.join(", ")
            )),
        });
    }
    for _ in 0..ROLES_MAX {
        match run("policies", &policies, owner).await {
            Ok(()) => break,
            Err(BackupError::Program(said)) => match missing_role(&said) {
                Some(role) => make_role(server, role).await?,
                None => return Err(BackupError::Program(said)),
            },
            Err(error) => return Err(error),
        }
    }
    Ok(left_out)
}

/// Roles that the policies of one dump are for.
const ROLES_MAX: usize = 1_000;

/// `ERROR:  role "app" does not exist`
fn missing_role(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("ERROR:  role \"")?;
    Some(rest.split_once("\" does not exist")?.0)
}

/// One that nobody logs in as, and that may nothing.
async fn make_role(server: &Server, role: &str) -> Result<(), BackupError> {
    let session = server.connect().await?;
    let create = format!("CREATE ROLE \"{}\" NOLOGIN", role.replace('"', "\"\""));
    let made = session.client.batch_execute(&create).await;
    made.map_err(BackupError::server("make a role"))
}

/// The extensions that the copy's server has.
async fn installed(server: &Server) -> Result<Vec<String>, BackupError> {
    let session = server.connect().await?;
    let asked = "SELECT name::text FROM pg_available_extensions";
    let rows = session.client.query(asked, &[]).await;
    let rows = rows.map_err(BackupError::server("list its extensions"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Gives the schemas to the owner of what comes into them.
async fn hand_over(server: &Server) -> Result<(), BackupError> {
    const SCHEMAS: &str = "SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, $1::text) FROM pg_namespace \
        WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('information_schema', 'public')";
    let failed = || BackupError::server("hand the schemas over");
    let session = server.connect_to(DATABASE).await?;
    let rows = session.client.query(SCHEMAS, &[&OWNER]).await;
    for row in rows.map_err(failed())? {
        let done = session.client.batch_execute(row.get(0)).await;
        done.map_err(failed())?;
    }
    Ok(())
}

/// Tables and the rows in them.
async fn counted(server: &Server) -> Result<(u64, u64), BackupError> {
    const TABLES: &str = "SELECT format('%I.%I', n.nspname, c.relname) \
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' ORDER BY 1";
    let session = server.connect_to(DATABASE).await?;
    let failed = || BackupError::server("count rows");
    let tables = session.client.query(TABLES, &[]).await.map_err(failed())?;
    let mut rows = 0;
    for table in &tables {
        let name: &str = table.get(0);
        let ask = format!("SELECT count(*) FROM {name}");
        let row = session.client.query_one(&ask, &[]).await;
        rows += row.map_err(failed())?.get::<_, i64>(0).cast_unsigned();
    }
    Ok((tables.len() as u64, rows))
}

impl From<FilesError> for BackupError {
    fn from(error: FilesError) -> Self {
        if let FilesError::Repository(error) = error {
            return Self::Repository(error);
        }
        Self::Files(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_list_of_a_dump() {
        for (line, expected) in [
            (
                "2; 3079 16384 EXTENSION - pgcrypto ",
                Some(("EXTENSION", "pgcrypto")),
            ),
            (
                "7; 2615 16390 SCHEMA - apart theirs",
                Some(("SCHEMA", "apart")),
            ),
            (
                "3466; 3466 16400 EVENT TRIGGER - watch postgres",
                Some(("EVENT TRIGGER", "watch")),
            ),
            (
                "3467; 3256 16410 POLICY public items mine theirs",
                Some(("POLICY", "items")),
            ),
            ("3468; 0 16410 ROW SECURITY public items theirs", None),
            ("215; 1259 16391 TABLE public items theirs", None),
            (";     Format: CUSTOM", None),
            ("3342; 0 0 COMMENT - EXTENSION pgcrypto ", None),
        ] {
            let expected = expected.map(|(kind, name)| (kind, name.to_owned()));
            assert_eq!(entry(line), expected, "{line}");
        }
        let said = "`pg_restore` failed: pg_restore: error: could not execute query: ERROR:  role \"a b\" does not exist / Command was: …";
        assert_eq!(missing_role(said), Some("a b"));
        assert_eq!(missing_role("ERROR:  relation \"a\" does not exist"), None);
    }
}
