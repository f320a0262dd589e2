//! What went wrong, as RFC 9457 says it: one JSON object with a stable code.
//!
//! The `type` is `urn:landfast:problem:` and a code. Codes are for machines and never change; title, detail and
//! hint are for people and may. `landfast explain CODE` prints what a code means.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::At;

/// What each problem's `type` begins with.
pub const PROBLEM_TYPE_PREFIX: &str = "urn:landfast:problem:";

/// A problem (RFC 9457) with Landfast's extensions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:landfast:problem:` and a stable code.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The code in a few words; the same for every problem of this type.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What failed this time, naming the thing: a lower-case fragment without a full stop.
    pub detail: String,
    /// The next thing to do, often a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// `manifest-invalid` only: everything wrong with the manifest, not just the first thing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
    /// `rollout-moving` only: which one, since when and by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// `upload-offset` only: how many bytes of the blob are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// `artifact-missing` and `blob-missing` only: the digests that are not in the store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl Problem {
    /// A problem of a code, with its title, status and usual hint.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("{PROBLEM_TYPE_PREFIX}{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            hint: code.hint().map(str::to_owned),
            diagnostics: Vec::new(),
            moving: None,
            offset: None,
            missing: Vec::new(),
        }
    }

    /// The same problem with another hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Its code; [`ProblemCode::Unknown`] where the server is newer than this reader.
    pub fn code(&self) -> ProblemCode {
        let word = self
            .type_uri
            .strip_prefix(PROBLEM_TYPE_PREFIX)
            .unwrap_or_default();
        ProblemCode::from_word(word).unwrap_or(ProblemCode::Unknown)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.detail.is_empty() {
            &self.title
        } else {
            &self.detail
        })
    }
}

/// The rollout that is in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moving {
    pub rollout: u64,
    pub to: u64,
    pub since: At,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    pub phase: String,
}

/// One thing wrong with a manifest, where it is, and how to put it right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diagnostic {
    pub severity: DiagnosticSeverity,
    /// Documented: `landfast explain CODE`.
    pub code: String,
    pub message: String,
    pub file: String,
    /// From 1; 0 where the whole file is meant.
    pub line: u32,
    /// In characters, from 1; 0 where the whole line is meant.
    pub column: u32,
    /// The place in bytes from the start of the file, for editors.
    #[serde(default)]
    pub start: u64,
    #[serde(default)]
    pub end: u64,
    /// What is written beside the marked place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Why, or what to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// Whether a diagnostic stops a deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiagnosticSeverity {
    Error,
    Warning,
    /// Worth knowing.
    Notice,
    #[serde(other)]
    Unknown,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident, $word:literal, $status:literal, $title:literal, $hint:expr;)*) => {
        /// Every code a problem may have.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ProblemCode {
            $($(#[doc = $doc])+ $variant,)*
            /// A code of a newer server.
            Unknown,
        }

        impl ProblemCode {
            /// All known codes, in the order of this page.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* Self::Unknown => "unknown" }
            }

            /// The HTTP status it is answered with.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* Self::Unknown => 500 }
            }

            /// The code in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* Self::Unknown => "unknown problem" }
            }

            /// What to do about it, where that is always the same.
            pub fn hint(self) -> Option<&'static str> {
                match self { $(Self::$variant => $hint,)* Self::Unknown => None }
            }

            /// What it means, in full sentences.
            pub fn explanation(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc, "\n"),+).trim(),)*
                    Self::Unknown => "The server is newer than this client.",
                }
            }

            /// Reads the stable word.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    /// The manifest has errors. Each is listed with its file, line and column, and what to write instead. Nothing
    /// was changed.
    ManifestInvalid, "manifest-invalid", 422, "the manifest has errors", Some("`landfast explain CODE` says more about a code");
    /// The request itself is not what the API expects: a missing field, an unknown word, a malformed number.
    RequestInvalid, "request-invalid", 400, "the request is not understood", None;
    /// There is nothing under this path. The client may be newer than the server: `landfast status` prints both
    /// versions.
    PathUnknown, "path-unknown", 404, "no such path", None;
    /// The path exists, but not with this method.
    MethodNotAllowed, "method-not-allowed", 405, "no such method here", None;
    /// The body, header or field is larger than its bound.
    TooLarge, "too-large", 413, "the request is too large", None;
    /// Nothing was ever deployed under this app and environment on this host.
    EnvironmentUnknown, "environment-unknown", 404, "no such environment", Some("`landfast status --all` lists what this host runs");
    /// The environment never had a rollout of this number.
    RolloutUnknown, "rollout-unknown", 404, "no such rollout", Some("`landfast history` lists them");
    /// The environment never had a release of this number, or it was collected.
    ReleaseUnknown, "release-unknown", 404, "no such release", Some("`landfast history` lists those that are kept");
    /// The release that serves has no service of this name.
    ServiceUnknown, "service-unknown", 404, "no such service", Some("`landfast status` lists the services");
    /// No instance of this id runs, and no log of it is kept.
    InstanceUnknown, "instance-unknown", 404, "no such instance", Some("`landfast status` lists the instances");
    /// The release that serves has no job of this name.
    JobUnknown, "job-unknown", 404, "no such job", None;
    /// The job never had this run, or its record was collected.
    RunUnknown, "run-unknown", 404, "no such run", None;
    /// The environment has no secret of this name.
    SecretUnknown, "secret-unknown", 404, "no such secret", Some("`landfast secret list` lists the names");
    /// The environment has no data store of this name, or it is not one that Landfast runs.
    StoreUnknown, "store-unknown", 404, "no such store", Some("`landfast store list` lists the names");
    /// The store is not in a state in which this can be done: it does not run, is deleted already, or the newest manifest
    /// still names it.
    StoreNotNow, "store-not-now", 409, "not possible with this store now", Some("`landfast store show NAME` shows where it stands");
    /// A change of the manifest cannot be made to the store that is there: another engine or major version, or less
    /// memory. Its data is not touched. Restore a backup or a dump into a new store instead.
    StoreRefused, "store-refused", 409, "the store cannot change in this way", None;
    /// The programs of a managed store are not installed on the server's host.
    StoreProgramMissing, "store-program-missing", 409, "a store's server is not installed", None;
    /// No route of this host gets a certificate for the host by ACME.
    CertificateUnknown, "certificate-unknown", 404, "no such certificate", Some("`landfast certificates` lists them");
    /// The server orders no certificates: it was started with `--acme-off`, or listens on neither port 80 nor 443 and
    /// was given no directory. Certificates that were obtained before serve on.
    AcmeOff, "acme-off", 409, "ACME is off", Some("start the server without `--acme-off`, or with `--acme-directory`");
    /// The manifest wants no backups of this store or volume, or nothing with it was deployed yet.
    BackupsUnknown, "backups-unknown", 404, "it is not backed up", Some("write `backup = { to = … }` in the table of the store or volume and deploy; `landfast backup list` lists those that are");
    /// Work on the backups of this store is under way, or its server is not archived just now. One piece of work is done at a
    /// time.
    BackupsNotNow, "backups-not-now", 409, "not possible with these backups now", Some("`landfast backup list` shows what is under way, and what is wrong");
    /// A backup, its verification, a drill or a restore failed. What was there before is as it was.
    BackupFailed, "backup-failed", 409, "work on backups failed", Some("`landfast backup list` shows how things stand");
    /// A restore would end before the archive does: something between is missing or damaged. It is done when the place it would
    /// end at is named.
    RestoreWouldLose, "restore-would-lose", 409, "the restore would end early", Some("`landfast backup verify` names what is wrong; `--accept-loss LSN` restores as far as it goes");
    /// A file among the migrations of a store cannot be used: its name, its number, its header or its statements. Each is named.
    MigrationsInvalid, "migrations-invalid", 422, "the migrations cannot be used", Some("`landfast migrate lint` shows all of them with their lines");
    /// Migrations were not run, because something must come first: files and history contradict each other, a release in use
    /// would not live with them, or was made for what would be taken back. Nothing was changed.
    MigrationRefused, "migration-refused", 409, "the migration is refused", Some("`landfast migrate plan` shows what would run and what stands in the way");
    /// A migration failed: a statement, a lock that was not given, a database that went away. The message names it and its line.
    /// What ran before it stays; of the step itself nothing does, or the next run finds out.
    MigrationFailed, "migration-failed", 409, "a migration failed", Some("`landfast migrate status` shows how far it came; `landfast migrate up` goes on from there");
    /// Somebody else migrates this environment, or this database, just now. It is done by one at a time, and no release moves
    /// meanwhile.
    MigrationRunning, "migration-running", 409, "migrations are being run", Some("wait for its end; `landfast migrate status` names who runs them");
    /// The database of a store does not answer, or does not let Landfast in.
    DatabaseUnreachable, "database-unreachable", 503, "the database cannot be reached", Some("`landfast store show NAME` shows where it stands");
    /// A migration that would run beside the release that serves would stop or break it: it holds a lock for long, rewrites a
    /// table, or takes away what that release reads. Each is named with its file, its line and the rule.
    MigrationsUnsafe, "migrations-unsafe", 422, "a migration would stop or break the release that serves", Some("`landfast migrate lint` shows each with the safe way to write it; where you know better, the file may allow the rule");
    /// A contract migration was applied to a database, or was begun, that the release does not know: its instances would meet a
    /// schema they cannot live with. Nothing was done. Two ways lead on: forward, with a release that knows the migration, or
    /// back, after the database was restored to a point before it.
    SchemaMovedOn, "schema-moved-on", 409, "the schema has moved on", Some("deploy a release that knows the migration, or restore the database to a point before it");
    /// Another rollout of this environment is moving. One environment is moved by one rollout at a time. Wait for
    /// it, abort it, or deploy with `--supersede`, which takes it back first.
    RolloutMoving, "rollout-moving", 409, "another rollout is moving", Some("`landfast status --follow` watches it; `landfast abort` takes it back, `landfast deploy --supersede` does so first");
    /// There is no rollout to promote, abort or seal.
    NoRollout, "no-rollout", 409, "no rollout is under way", Some("`landfast history` shows how the last one ended");
    /// The rollout is in a state in which this cannot be done, such as promoting one that is rolling back.
    NotNow, "not-now", 409, "not possible in this state", Some("`landfast status` shows where it stands");
    /// No earlier sealed release is kept, so there is nothing to roll back to.
    NothingToRollBackTo, "nothing-to-roll-back-to", 409, "nothing to roll back to", Some("`landfast rollback --to N` goes to any release `landfast history` shows as kept");
    /// The environment was stopped with `landfast stop`; the maintenance page is shown until it is started.
    EnvironmentStopped, "environment-stopped", 409, "the environment is stopped", Some("run `landfast start`");
    /// Another app or environment of this host owns a (host, path) the manifest claims. One owner at a time.
    RouteTaken, "route-taken", 409, "a route is taken", Some("choose another host or path, or remove the route from its owner first");
    /// Old and new release together need more memory or CPU than the host has. `landfast plan` shows the sum.
    DoesNotFit, "does-not-fit", 409, "the rollout does not fit on this host", Some("`landfast plan` shows the sums; lower `resources` or `replicas`, or use the strategy `recreate`");
    /// The service is `exclusive`: two instances of it must never run at once, so there can be only one.
    OneWriter, "one-writer", 409, "an exclusive service has one instance", Some("leave it at 1, or deploy a release in which it is not `exclusive`");
    /// A gate refused before anything moved.
    GateRefused, "gate-refused", 409, "a gate refused", None;
    /// A name is both in `env` and a secret. One of the two has to go, or it would be unclear which one holds.
    SecretShadowsEnv, "secret-shadows-env", 409, "a name is both env and secret", Some("remove it from `env`, or run `landfast secret rm NAME`");
    /// A required variable has no value: neither `env`, nor an overlay, nor a secret gives it one.
    EnvMissing, "env-missing", 409, "a required variable has no value", Some("give it a value in `env`, or run `landfast secret set NAME`");
    /// A file of a listing is not in the store yet. Upload it, then send the listing again.
    BlobMissing, "blob-missing", 409, "a file was not uploaded", None;
    /// The manifest names an artifact that is not in the store. Upload it, then deploy again.
    ArtifactMissing, "artifact-missing", 409, "an artifact is not in the store", None;
    /// An image is not to be had: no registry has it, the registry refuses or does not answer, or what was built is not on the
    /// server's Docker. Nothing was changed.
    ImageMissing, "image-missing", 422, "an image is not to be had", None;
    /// A service or job is a container, and the server uses no Docker, or its Docker does not answer. Containers that run are
    /// not touched.
    DockerUnreachable, "docker-unreachable", 503, "Docker does not answer", Some("`landfast doctor` says what is wrong with it; the server goes on by itself when it answers again");
    /// A service or job is a process, and this server runs containers only: it is in a container itself, and a process would end
    /// with it. Nothing was changed.
    ProcessesRefused, "processes-refused", 422, "this server runs no processes", Some("give it an `image` or a `build`, or run the server on the host itself");
    /// A piece of a blob does not begin where the last one ended. The answer says where to go on.
    UploadOffset, "upload-offset", 409, "the piece does not begin where the last one ended", None;
    /// The uploaded bytes do not have the digest they were announced with. They were dropped; the file changed while
    /// it was read, or the connection is broken.
    UploadCorrupt, "upload-corrupt", 422, "the bytes do not have this digest", Some("run it again; the file changed while it was uploaded");
    /// The same idempotency key came with another body.
    KeyReused, "key-reused", 422, "the idempotency key was used for another request", None;
    /// The command is neither in the artifact nor in PATH.
    CommandMissing, "command-missing", 422, "no such command", None;
    /// The file system of the state folder is full. Nothing was lost: what could not be written was not begun.
    DiskFull, "disk-full", 507, "the disk is full", Some("free some space on the state folder's file system; `landfast status --host-info` shows how much there is");
    /// The proxy does not answer, so traffic cannot be moved. Traffic that flows is not touched.
    ProxyUnreachable, "proxy-unreachable", 503, "the proxy does not answer", Some("the server restarts it by itself; try again in a moment");
    /// The server is reading its journal, or about to end. Instances and traffic are not touched.
    NotReady, "not-ready", 503, "the server is not ready", Some("try again in a moment");
    /// The caller may not do this.
    Forbidden, "forbidden", 403, "not allowed", None;
    /// The server failed in a way nobody foresaw. Its log has the details, under the request id.
    Internal, "internal", 500, "the server failed", Some("the server's log says more");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_is_explained() {
        for code in ProblemCode::ALL {
            let problem = Problem::new(*code, "x");
            assert_eq!(problem.code(), *code);
            assert!((400..600).contains(&problem.status), "{code:?}");
            assert!(code.explanation().ends_with('.'), "{code:?}");
            assert!(!code.title().ends_with('.'), "{code:?}");
        }
    }

    #[test]
    fn a_code_of_a_newer_server_is_unknown_but_readable() {
        let text = r#"{"type":"urn:landfast:problem:moon-phase","title":"t","status":418,"detail":"d","orbit":1}"#;
        let problem: Problem = serde_json::from_str(text).expect("fields it knows are there");
        assert_eq!(problem.code(), ProblemCode::Unknown);
        assert_eq!(problem.to_string(), "d");
    }
}
