//! A restore: files into a new folder, WAL up to the planned LSN, and the proof that it ended there.
//!
//! States of the folder: *unfinished* (a mark lies in it; `global/pg_control` has another name, so no server starts) ⇒ *recovering*
//! (all files are synced, `recovery.signal` is there, and no `restore_command` is written anywhere: a server that anybody else starts
//! refuses) ⇒ *restored* (out of recovery at the LSN that was asked for; the mark is gone) or *refused* (it ended elsewhere:
//! `pg_control` is renamed away for good).
//!
//! A crash leaves an unfinished folder, which the next restore into it removes first. A folder without the mark is never touched.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_backup::{
    AcceptedLoss, DrillPhases, Lsn, RestorePlan, Target, Timeline, parse_history, plan_restore,
};
use landfast_repository::{FileSink, RepositoryError, RestoreProgress, restore_files};
use landfast_types::{Digest, Secret};
use rustix::process::Signal;

use crate::{
    Archive, BackupError, BackupManifest, Loaded, Programs, ScratchCopy, Server,
    child::{Program, Running},
    clock,
    wal_get::{WalServer, expected_end, own},
};

/// What marks a folder that is ours to remove.
pub const UNFINISHED: &str = "landfast.unfinished";
const CONTROL: &str = "global/pg_control";
const CONTROL_LATER: &str = "global/pg_control.unfinished";
const CONTROL_REFUSED: &str = "global/pg_control.refused";
/// What ALTER SYSTEM set: commands that run as a server recovers, targets of another restore, memory of another host. Nothing of it is for
/// the copy while it recovers.
const SETTINGS: &str = "postgresql.auto.conf";
const SETTINGS_LATER: &str = "postgresql.auto.conf.unfinished";
/// Readings of a ledger whose pieces are gone when they are read.
const PLANS_MAX: u32 = 5;
/// How long the processes of a server that was killed may take to see it.
const UNUSED_MAX: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);
/// How long a server that was shut down in order may take to answer again.
const READY_MAX: Duration = Duration::from_secs(120);

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    pub archive: Archive,
    pub programs: Programs,
    pub target: Target,
    /// Where it may end if WAL is missing.
    pub accepted: Option<AcceptedLoss>,
    /// The new data folder: not there, empty, or left unfinished by a restore.
    pub data: PathBuf,
    /// For the socket and the WAL on its way: a folder of its own on the same file system, with a short path. Made, and removed in
    /// the end.
    pub run: PathBuf,
    /// What runs [`crate::wal_get`]; socket, name and path are added to it.
    pub wal_get: Vec<OsString>,
    /// Libraries without which WAL cannot be replayed (custom resource managers); none as a rule.
    pub preload: String,
    /// A superuser of the restored database, to look whether it is out of recovery.
    pub login: String,
}

/// What a restore does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreStep {
    Planned(RestorePlan),
    Files(RestoreProgress),
    /// Files are whole; WAL is replayed.
    Replaying,
    Ready {
        reached: Lsn,
    },
}

/// A restored server, running on a socket of its own, without network and without archiving. Dropping it kills it.
pub struct Restored {
    pub plan: RestorePlan,
    pub backup: BackupManifest,
    pub data: PathBuf,
    /// Where it ended, and had to end.
    pub reached: Lsn,
    pub phases: DrillPhases,
    /// How to reach it.
    pub server: Server,
    pub(crate) running: Running,
    run: PathBuf,
}

/// Restores, and gives the running server.
///
/// # Errors
/// [`BackupError::Plan`] before anything is written; [`BackupError::EndedEarly`] where the server came up elsewhere than planned:
/// the copy is made unusable then.
pub async fn restore(
    request: &RestoreRequest,
    mut on_step: impl FnMut(RestoreStep) + Send,
) -> Result<Restored, BackupError> {
    let mut phases = DrillPhases::default();
    let begun = clock::instant();
    let archive = &request.archive;
    let mut attempt = 1;
    let (loaded, plan, wanted) = loop {
        match planned(request).await {
            // An archiver that runs meanwhile has put its pieces together. What is really gone is so in a newer ledger, too.
            Err(BackupError::Repository(RepositoryError::Missing { .. }))
                if attempt < PLANS_MAX =>
            {
                attempt += 1;
            }
            planned => break planned?,
        }
    };
    let Loaded { ledger, .. } = &loaded;
    let backup = loaded
        .backups
        .iter()
        .find(|backup| backup.summary.id == plan.backup);
    let backup = backup.expect("a plan names a backup it was given").clone();
    on_step(RestoreStep::Planned(plan.clone()));
    phases.plan = begun.elapsed();

    let begun = clock::instant();
    files(request, &backup, |progress| {
        on_step(RestoreStep::Files(progress))
    })
    .await?;
    phases.restore = begun.elapsed();

    let begun = clock::instant();
    on_step(RestoreStep::Replaying);
    make_configuration(&request.run, request.programs.user)
        .map_err(BackupError::io("make", &request.run))?;
    let user = request.programs.user;
    let (known, wanted_plan) = (ledger.clone(), plan.clone());
    let wal = match request.programs.containers {
        None => WalServer::start(archive.clone(), known, wanted_plan, &request.run, user),
        Some(_) => {
            let folders = (request.run.as_path(), request.data.as_path());
            WalServer::start_for_container(archive.clone(), known, wanted_plan, folders, user)
        }
    }?;
    let program = server_program(request, Some(&plan))?;
    let started = Running::start_apart(&program).await;
    let (mut running, reachable) = started.map_err(BackupError::io("start", &program.path))?;
    if let Some(why) = &reachable {
        tracing::warn!(
            why,
            "the server of a restored copy has the network of this host"
        );
    }
    let server = server_of(request);
    wait_ready(&mut running, &server, &wal).await?;
    phases.replay = begun.elapsed();
    let (timeline, reached) = ended_at(&server, &request.data).await?;
    if (timeline, reached) != (plan.timeline(), wanted) {
        running.signal(Signal::KILL);
        running
            .wait()
            .await
            .map_err(BackupError::io("wait for", &program.path))?;
        let (control, refused) = (
            request.data.join(CONTROL),
            request.data.join(CONTROL_REFUSED),
        );
        fs::rename(&control, refused).map_err(BackupError::io("rename", control))?;
        return Err(BackupError::EndedEarly {
            reached,
            timeline,
            wanted,
            said: wal.stopped().unwrap_or_else(|| running.said()),
        });
    }
    // They are for the server that takes its place; this one has read what it reads.
    let settings = request.data.join(SETTINGS_LATER);
    match fs::rename(&settings, request.data.join(SETTINGS)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(BackupError::io("rename", settings)(error));
        }
        _ => {}
    }
    let mark = request.data.join(UNFINISHED);
    fs::remove_file(&mark).map_err(BackupError::io("remove", mark))?;
    on_step(RestoreStep::Ready { reached });
    Ok(Restored {
        plan,
        backup,
        data: request.data.clone(),
        reached,
        phases,
        server,
        running,
        run: request.run.clone(),
    })
}

fn server_of(request: &RestoreRequest) -> Server {
    Server {
        host: request.run.display().to_string(),
        port: PORT,
        login: request.login.clone(),
        password: None,
        database: "postgres".to_owned(),
    }
}

/// Starts the server of a copy again that was shut down in order, and waits until it answers.
pub(crate) async fn start_again(
    request: &RestoreRequest,
) -> Result<(ScratchCopy, Running), BackupError> {
    // Nothing of what ALTER SYSTEM set is for it either, and nobody else takes its place.
    let settings = request.data.join(SETTINGS);
    match fs::remove_file(&settings) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(BackupError::io("remove", settings)(error));
        }
        _ => {}
    }
    make_configuration(&request.run, request.programs.user)
        .map_err(BackupError::io("make", &request.run))?;
    let program = server_program(request, None)?;
    let started = Running::start_apart(&program).await;
    let (mut running, reachable) = started.map_err(BackupError::io("start", &program.path))?;
    let server = server_of(request);
    let begun = clock::instant();
    while server.connect().await.is_err() {
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
    Ok((ScratchCopy { server, reachable }, running))
}

/// What there is, what is done with it, and where that has to end.
async fn planned(request: &RestoreRequest) -> Result<(Loaded, RestorePlan, Lsn), BackupError> {
    let archive = &request.archive;
    let loaded = archive.load().await?;
    let loaded = loaded.ok_or_else(|| BackupError::EmptyArchive(archive.name().to_owned()))?;
    let (ledger, backups) = (&loaded.ledger, loaded.summaries());
    let plan = plan_restore(ledger, &backups, &request.target, request.accepted)?;
    let wanted = expected_end(archive, ledger, &plan).await?;
    Ok((loaded, plan, wanted))
}

impl Restored {
    /// Gives a login of the copy a password: that of the archive may have been changed since.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn set_password(
        &self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), BackupError> {
        let session = self.server.connect().await?;
        let quoted = |text: &str, quote: char| text.replace(quote, &format!("{quote}{quote}"));
        // Nothing of it is written to the copy's log.
        let statement = Secret::new(format!(
            "SET log_statement = 'none'; SET log_min_error_statement = 'panic'; \
             SET password_encryption = 'scram-sha-256'; ALTER ROLE \"{}\" PASSWORD '{}'",
            quoted(login, '"'),
            quoted(password.reveal(), '\'')
        ));
        let done = session.client.batch_execute(statement.reveal()).await;
        done.map_err(BackupError::server("set the password"))
    }

    /// Lets nobody in any more by these logins: whoever knew a password of them at the restored moment knows it still.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn close_logins(&self, is_closed: impl Fn(&str) -> bool) -> Result<(), BackupError> {
        let failed = || BackupError::server("close the logins of the restored moment");
        let session = self.server.connect().await?;
        let asked = "SELECT rolname::text FROM pg_roles WHERE rolcanlogin";
        let rows = session.client.query(asked, &[]).await.map_err(failed())?;
        let names = rows.iter().map(|row| row.get::<_, String>(0));
        for name in names.filter(|name| is_closed(name)) {
            let quoted = name.replace('"', "\"\"");
            let statement = format!("ALTER ROLE \"{quoted}\" NOLOGIN PASSWORD NULL");
            let done = session.client.batch_execute(&statement).await;
            done.map_err(failed())?;
        }
        Ok(())
    }

    /// Shuts the server down in order; the data folder is ready for one of the app's own.
    ///
    /// # Errors
    /// Where it does not end well.
    pub async fn finish(mut self) -> Result<(), BackupError> {
        // PostgreSQL's fast shutdown: in order, without waiting for whoever is connected.
        self.running.signal(Signal::INT);
        let ended = self.running.wait().await;
        let ended = ended.map_err(BackupError::io("wait for", &self.data))?;
        fs::remove_dir_all(&self.run).map_err(BackupError::io("remove", &self.run))?;
        if ended {
            return Ok(());
        }
        Err(BackupError::NotReady(self.running.said()))
    }
}

/// One port for every restored server: it listens on its own socket only.
pub(crate) const PORT: u16 = 5432;

/// Files, whole and synced, in a folder that no server starts on yet but ours.
async fn files(
    request: &RestoreRequest,
    backup: &BackupManifest,
    on_progress: impl FnMut(RestoreProgress),
) -> Result<(), BackupError> {
    let data = &request.data;
    // A server in a container outlives whoever started it, and holds the folder that is emptied here.
    if let Some(containers) = &request.programs.containers {
        let cleared = containers.clear(data).await;
        cleared.map_err(BackupError::io("make sure that nobody works in", data))?;
    }
    unused(data).await?;
    make_empty(data)?;
    let mark = data.join(UNFINISHED);
    fs::write(&mark, "a restore has not ended here\n").map_err(BackupError::io("write", mark))?;
    let repository = request.archive.repository();
    let name = request.archive.backup_path(&backup.summary.id, "map");
    let map = repository.get(&name).await?;
    if Digest::of(&map) != backup.map {
        let what = "it is not the map of this backup";
        return Err(RepositoryError::Damaged { name, what }.into());
    }
    let maps = backup.tree.read_map(&map)?;
    let sink = FileSink {
        root: data.clone(),
        renamed: [(CONTROL, CONTROL_LATER), (SETTINGS, SETTINGS_LATER)]
            .map(|(name, later)| (name.to_owned(), later.to_owned()))
            .into(),
    };
    restore_files(repository, &backup.tree, &maps, &sink, on_progress).await?;
    let (data, user) = (data.clone(), request.programs.user);
    let finished = tokio::task::spawn_blocking(move || finish_files(&data, user)).await;
    finished
        .map_err(|error| BackupError::Stopped(error.to_string()))?
        .map_err(BackupError::io("sync", &request.data))
}

fn finish_files(data: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    fs::write(data.join("recovery.signal"), "")?;
    // Left by a server that was not stopped in order.
    for name in ["postmaster.pid", "standby.signal"] {
        match fs::remove_file(data.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    own_tree(data, user)?;
    rustix::fs::syncfs(fs::File::open(data)?)?;
    fs::rename(data.join(CONTROL_LATER), data.join(CONTROL))?;
    fs::File::open(data.join("global"))?.sync_all()
}

pub(crate) fn own_tree(path: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    if user.is_none() {
        return Ok(());
    }
    own(path, user)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            own_tree(&entry.path(), user)?;
        } else {
            own(&entry.path(), user)?;
        }
    }
    Ok(())
}

/// Waits until nobody works in a folder. The processes of a server see a moment later that it was killed, and would write until then into
/// files that have the names of theirs; the file by which another server would notice is removed with the rest.
pub(crate) async fn unused(data: &Path) -> Result<(), BackupError> {
    let begun = clock::instant();
    while is_used(data) {
        if begun.elapsed() > UNUSED_MAX {
            let what = format!("a server still works in `{}`", data.display());
            return Err(BackupError::Stopped(what));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// PostgreSQL's processes have the data folder for their own.
fn is_used(data: &Path) -> bool {
    let Ok(data) = fs::canonicalize(data) else {
        return false;
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut places = processes.filter_map(|entry| fs::read_link(entry.path().join("cwd")).ok());
    places.any(|place| place == data)
}

/// Makes the data folder, or empties it where a restore left it unfinished.
fn make_empty(data: &Path) -> Result<(), BackupError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let is_ours = data.join(UNFINISHED).is_file();
    if is_ours {
        // The mark goes last, so that what is half removed is still ours.
        let entries = fs::read_dir(data).map_err(BackupError::io("read", data))?;
        for entry in entries {
            let entry = entry.map_err(BackupError::io("read", data))?;
            let path = entry.path();
            if entry.file_name() == UNFINISHED {
                continue;
            }
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            removed.map_err(BackupError::io("remove", path))?;
        }
        return Ok(());
    }
    match fs::read_dir(data) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(BackupError::NotEmpty(data.to_owned()));
            }
            fs::set_permissions(data, fs::Permissions::from_mode(0o700))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().mode(0o700).create(data)
        }
        Err(error) => Err(error),
    }
    .map_err(BackupError::io("make", data))
}

/// A folder for the socket of a server, with a configuration that lets its owner in and nobody else.
pub(crate) fn make_configuration(run: &Path, user: Option<(u32, u32)>) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match fs::remove_dir_all(run) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(run)?;
    // Nothing of the copy's own configuration is used: who may connect, what it loads, where it archives to.
    fs::write(run.join("postgresql.conf"), "")?;
    fs::write(run.join("pg_hba.conf"), "local all all trust\n")?;
    fs::write(run.join("pg_ident.conf"), "")?;
    for name in ["", "postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        own(&run.join(name), user)?;
    }
    Ok(())
}

/// Without a plan there is nothing to recover.
fn server_program(
    request: &RestoreRequest,
    plan: Option<&RestorePlan>,
) -> Result<Program, BackupError> {
    let run = request.run.display();
    let command = restore_command(request)?;
    let settings = [
        format!("config_file={run}/postgresql.conf"),
        format!("hba_file={run}/pg_hba.conf"),
        format!("ident_file={run}/pg_ident.conf"),
        format!("unix_socket_directories={run}"),
        format!("shared_preload_libraries={}", request.preload),
        format!("port={PORT}"),
        // No network, no archive, nobody to wait for, nobody connected before it is out of recovery.
        "listen_addresses=".to_owned(),
        "archive_mode=off".to_owned(),
        "synchronous_standby_names=".to_owned(),
        "primary_conninfo=".to_owned(),
        "hot_standby=off".to_owned(),
        "max_logical_replication_workers=0".to_owned(),
        "logging_collector=off".to_owned(),
        "log_min_messages=warning".to_owned(),
        "ssl=off".to_owned(),
        "max_connections=20".to_owned(),
        // Prepared transactions in the WAL need a place.
        "max_prepared_transactions=200".to_owned(),
    ];
    let mut program = request.programs.program("postgres");
    program.user = request.programs.user;
    program = program.arg("-D").arg(&request.data);
    program = program.writes(&request.data).writes(&request.run);
    // What connects from inside and names no server reaches the copy itself.
    program = program
        .env("PGHOST", request.run.as_os_str())
        .env("PGPORT", PORT.to_string());
    let recovery = plan.map(|plan| {
        [
            format!("restore_command={command}"),
            format!("recovery_target_timeline={}", plan.timeline()),
        ]
    });
    for setting in settings.into_iter().chain(recovery.into_iter().flatten()) {
        program = program.arg("-c").arg(setting);
    }
    Ok(program)
}

fn restore_command(request: &RestoreRequest) -> Result<String, BackupError> {
    if request.programs.containers.is_some() {
        let [ask, code] = WalServer::pipes(&request.run);
        let (ask, code) = (quoted(ask.as_os_str())?, quoted(code.as_os_str())?);
        return Ok(WalServer::container_command(&ask, &code));
    }
    let socket = WalServer::socket(&request.run);
    let mut words = Vec::new();
    for word in request.wal_get.iter().chain([&socket.into_os_string()]) {
        words.push(quoted(word)?);
    }
    words.push("\"%f\"".to_owned());
    words.push("\"%p\"".to_owned());
    Ok(words.join(" "))
}

/// For the shell that PostgreSQL runs its `restore_command` with. A `%` would be taken for one of its own marks.
fn quoted(word: &std::ffi::OsStr) -> Result<String, BackupError> {
    let text = word
        .to_str()
        .filter(|text| !text.contains(['\'', '%', '\n', '\\']));
    let text = text.ok_or_else(|| {
        BackupError::Strange(format!("{word:?} cannot be part of a restore_command"))
    })?;
    Ok(format!("'{text}'"))
}

/// Ready is: out of recovery. That a server was started says nothing.
async fn wait_ready(
    running: &mut Running,
    server: &Server,
    wal: &WalServer,
) -> Result<(), BackupError> {
    loop {
        tokio::select! {
            ended = running.wait() => {
                ended.map_err(BackupError::io("wait for", Path::new("postgres")))?;
                let said = running.said();
                let Some(why) = wal.stopped() else {
                    return Err(BackupError::NotReady(said));
                };
                return Err(match wal.bad_object() {
                    Some(object) => BackupError::WalUnusable { object, why },
                    None => BackupError::NotReady(why),
                });
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let Ok(session) = server.connect().await else {
            continue;
        };
        let asked = session
            .client
            .query_one("SELECT pg_is_in_recovery()", &[])
            .await;
        if asked.is_ok_and(|row| !row.get::<_, bool>(0)) {
            return Ok(());
        }
    }
}

/// Where recovery ended, as the server wrote it into the history of the timeline it began: the parent, and the LSN.
async fn ended_at(server: &Server, data: &Path) -> Result<(Timeline, Lsn), BackupError> {
    let session = server.connect().await?;
    let asked = session
        .client
        .query_one("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)", &[])
        .await;
    let row = asked.map_err(BackupError::server("ask for its timeline"))?;
    let digits: &str = row.get(0);
    let path = data.join("pg_wal").join(format!("{digits}.history"));
    let text = fs::read_to_string(&path).map_err(BackupError::io("read", &path))?;
    let switches = parse_history(&text).unwrap_or_default();
    let last = switches.last().copied();
    let last =
        last.ok_or_else(|| BackupError::Strange(format!("the history {digits} is empty")))?;
    Ok((last.parent, last.at))
}
