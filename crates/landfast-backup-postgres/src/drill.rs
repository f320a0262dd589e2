//! A drill: the newest chain restored into a scratch server, checked, measured, removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use landfast_backup::{Check, DrillFacts, DrillPhases, Rates, Verdict, judge_drill};
use landfast_repository::freeing;
use landfast_types::{Digest, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    BackupError, OnCopy, Programs, RestoreRequest, RestoreStep, Server, UNFINISHED, child, clock,
    receiver::chain, restore, restore::start_again, scratch::discard,
};

/// A program that works for nobody to see for so long is ended.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long a check of the user's own may take.
const CHECK_MAX: Duration = Duration::from_secs(3_600);

/// A check of the user's own: a query whose first column of the first row is compared as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlCheck {
    pub name: String,
    pub database: String,
    pub sql: String,
    pub expected: String,
}

/// What to drill.
#[derive(Debug, Clone)]
pub struct DrillRequest {
    pub restore: RestoreRequest,
    pub checks: Vec<SqlCheck>,
    /// The databases whose schema is compared, with the digest it had ([`DrillReport::schemas`]); none is compared where none is given.
    pub schemas: Vec<(String, Option<Digest>)>,
    /// Where the heartbeat lies.
    pub heartbeat_database: String,
    /// Reads every page and index too; without it a drill is lighter.
    pub reads_everything: bool,
}

/// What a drill has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillReport {
    pub facts: DrillFacts,
    pub verdict: Verdict,
    pub phases: DrillPhases,
    /// For the next estimate.
    pub rates: Rates,
    /// Of the backup's files.
    pub bytes: u64,
    /// Of each database that was asked for.
    pub schemas: Vec<(String, Digest)>,
}

/// Restores, checks, and removes the copy. The report is there whether it passed or not.
///
/// # Errors
/// Where there is no copy to check: that drill has failed, too.
pub async fn drill(
    request: &DrillRequest,
    on_step: impl FnMut(RestoreStep) + Send,
) -> Result<DrillReport, BackupError> {
    drill_and(request, on_step, None).await
}

/// The same, with something that is done with the copy when all that the verdict needs is known. Nothing that becomes of the copy
/// then changes it.
///
/// # Errors
/// As [`drill`].
pub async fn drill_and(
    request: &DrillRequest,
    on_step: impl FnMut(RestoreStep) + Send,
    on_copy: Option<OnCopy<'_>>,
) -> Result<DrillReport, BackupError> {
    let begun = clock::now();
    let restored = restore(&request.restore, on_step).await?;
    let (data, phases) = (restored.data.clone(), restored.phases);
    // From here on it is a scratch copy: whatever happens, the next drill may remove it.
    let mark = data.join(UNFINISHED);
    fs::write(&mark, "a drill\n").map_err(BackupError::io("write", &mark))?;
    let begun_checks = clock::instant();
    let programs = &request.restore.programs;
    let mut checks = Vec::new();
    for check in &request.checks {
        checks.push(sql_check(&restored.server, check).await);
    }
    let mut schemas = Vec::new();
    for (database, expected) in &request.schemas {
        let (check, digest) = schema(
            programs,
            &restored.server,
            database,
            &request.restore.run,
            *expected,
        )
        .await;
        checks.push(check);
        schemas.extend(digest.map(|digest| (database.clone(), digest)));
    }
    // It brings an extension of its own, so the schema was read before.
    if request.reads_everything {
        let working = restored.running.pid();
        checks.push(amcheck(programs, &restored.server, working).await);
    }
    let newest = heartbeat(&restored.server, &request.heartbeat_database).await;
    let (reached, plan) = (restored.reached, restored.plan.clone());
    let bytes = restored.backup.bytes;
    let has_checksums = restored.backup.has_checksums;
    restored.finish().await?;
    if request.reads_everything && has_checksums {
        checks.push(checksums(programs, &data).await);
    }
    let phases = DrillPhases {
        checks: begun_checks.elapsed(),
        ..phases
    };
    if let Some(on_copy) = on_copy {
        match start_again(&request.restore).await {
            Ok((copy, running)) => {
                on_copy(Ok(copy)).await;
                discard(running, &data).await;
            }
            Err(error) => {
                let why = chain(&error);
                on_copy(Err(format!("the copy's server did not start again: {why}"))).await;
            }
        }
        let run = &request.restore.run;
        if let Err(error) = freeing::remove_tree(run) {
            tracing::debug!(%error, "the folder of a socket stays until the next drill");
        }
    }
    let copy = data.clone();
    let removed = tokio::task::spawn_blocking(move || freeing::remove_tree(&copy)).await;
    removed
        .map_err(io::Error::other)
        .flatten()
        .map_err(BackupError::io("remove", &data))?;
    let facts = DrillFacts {
        // A restore that ends elsewhere is an error before this.
        wanted: reached,
        reached,
        is_in_recovery: false,
        newest,
        begun,
        checks,
    };
    let rate = |bytes: u64, took: Duration| {
        let millis = took.as_millis().max(1);
        u64::try_from(u128::from(bytes) * 1_000 / millis).unwrap_or(u64::MAX)
    };
    Ok(DrillReport {
        verdict: judge_drill(&facts),
        facts,
        phases,
        rates: Rates {
            restore: rate(bytes, phases.restore),
            replay: rate(plan.wal_bytes(), phases.replay),
        },
        bytes,
        schemas,
    })
}

/// `working`: the process of the copy's server.
pub(crate) async fn amcheck(programs: &Programs, server: &Server, working: Option<u32>) -> Check {
    let program = server.reach(programs.program("pg_amcheck"), None);
    let program = program.args(["--all", "--install-missing", "--heapallindexed"]);
    let ran = child::run_while(&program, PATIENCE, working).await;
    Check::of("pg_amcheck", ran.map(drop))
}

async fn checksums(programs: &Programs, data: &PathBuf) -> Check {
    let program = programs
        .program("pg_checksums")
        .arg("--check")
        .arg("--pgdata")
        .arg(data)
        .writes(data);
    let ran = child::run_while(&program, PATIENCE, None).await;
    Check::of("pg_checksums", ran.map(drop))
}

pub(crate) async fn sql_check(server: &Server, wanted: &SqlCheck) -> Check {
    let asked = async {
        let session = server.connect_to(&wanted.database).await?;
        let rows = timeout(CHECK_MAX, session.client.simple_query(&wanted.sql)).await;
        let late =
            |_| BackupError::Stopped(format!("it took longer than {} s", CHECK_MAX.as_secs()));
        let rows = rows
            .map_err(late)?
            .map_err(BackupError::server("run the check"))?;
        let value = rows.iter().find_map(|message| {
            let tokio_postgres::SimpleQueryMessage::Row(row) = message else {
                return None;
            };
            Some(row.get(0).map(str::to_owned))
        });
        Ok::<_, BackupError>(value.flatten())
    };
    let (wrong, gave) = match asked.await {
        Ok(Some(value)) if value == wanted.expected => (Ok(()), None),
        Ok(Some(value)) => {
            let wrong = format!("it gave another answer than `{}`", wanted.expected);
            (Err(wrong), Some(value))
        }
        Ok(None) => (Err("it gave nothing".to_owned()), None),
        Err(error) => {
            let said = chain(&error);
            // What a server says of a statement may hold values of rows.
            let code = if let BackupError::Server { source, .. } = &error {
                source.code()
            } else {
                None
            };
            match code {
                Some(code) => {
                    let wrong = format!("it failed with SQLSTATE {}", code.code());
                    (Err(wrong), Some(said))
                }
                None => (Err(said), None),
            }
        }
    };
    Check {
        gave,
        ..Check::of(&wanted.name, wrong)
    }
}

/// The digest of what `pg_dump --schema-only` writes of a database: the same for two of the same schema. `folder` is for the
/// file its password goes through.
///
/// # Errors
/// Where the program fails, with what it says.
pub async fn schema_digest(
    programs: &Programs,
    server: &Server,
    database: &str,
    folder: &Path,
) -> Result<Digest, BackupError> {
    let passwords = server.write_passwords(folder, programs)?;
    let program = server.reach(programs.program("pg_dump"), passwords.as_deref());
    let program = program
        .args([
            "--schema-only",
            "--no-comments",
            "--no-publications",
            "--no-subscriptions",
        ])
        .arg(format!("--dbname={database}"));
    let dumped = child::run_while(&program, PATIENCE, None).await;
    let dumped = dumped.map_err(BackupError::Program);
    if let Some(passwords) = passwords {
        fs::remove_file(&passwords).map_err(BackupError::io("remove", &passwords))?;
    }
    let text = dumped?;
    // Newer minor versions begin and end a dump with a random word.
    let is_random =
        |line: &&str| line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
    let lines = text.lines().filter(|line| !is_random(line));
    Ok(Digest::of(lines.collect::<Vec<_>>().join("\n").as_bytes()))
}

async fn schema(
    programs: &Programs,
    server: &Server,
    database: &str,
    folder: &Path,
    expected: Option<Digest>,
) -> (Check, Option<Digest>) {
    let name = format!("schema of {database}");
    match schema_digest(programs, server, database, folder).await {
        Ok(digest) => {
            let wrong = match expected {
                Some(expected) if expected != digest => Err("it is another one".to_owned()),
                _ => Ok(()),
            };
            (Check::of(name, wrong), Some(digest))
        }
        Err(why) => (Check::of(name, Err(chain(&why))), None),
    }
}

/// The newest heartbeat in the copy itself.
async fn heartbeat(server: &Server, database: &str) -> Option<Timestamp> {
    let session = server.connect_to(database).await.ok()?;
    let asked = session
        .client
        .query_one("SELECT at_micros FROM landfast.heartbeat", &[])
        .await;
    Some(Timestamp::from_micros(asked.ok()?.get(0)))
}
