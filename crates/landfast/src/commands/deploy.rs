//! `plan` and `deploy`: read the manifest, scan the artifacts, upload what is missing, ask, follow.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use landfast_api::{
    ArtifactEntry, ArtifactEntryKind, ArtifactListing, DeployRequest, DiffMark, Manifest,
    MigrateRequest, Plan, PlanRequest, ServicePlan, Strategy,
};
use landfast_client::{Blob, Client, Error};
use landfast_spec::AppSpec;
use landfast_store::{Entry, EntryKind, StoreError, TreeListing};
use landfast_types::{Digest, Scope};

use super::images;
use crate::{
    args::{self, Command, Global, MigrateCommand, StrategyArg, Wait},
    context::{blocking, environment, git_commit, idempotency_key, manifest_folder},
    exit::{Exit, Failure},
    follow::{self, Want},
    manifest,
    out::{Paint, Printer},
    table::{bytes, cores, count, duration, table},
    view,
};

/// The manifest and its artifacts, read and found good.
pub(super) struct Prepared {
    scope: Scope,
    manifest: Manifest,
    spec: AppSpec,
    artifacts: Vec<Artifact>,
}

/// One artifact as it lies in the folder.
struct Artifact {
    /// As the manifest names it.
    name: String,
    path: PathBuf,
    listing: TreeListing,
    /// The migrations of a store.
    is_migrations: bool,
}

impl Prepared {
    /// Where it belongs.
    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// What migrating by hand asks with.
    pub(super) fn request(&self) -> MigrateRequest {
        MigrateRequest {
            manifest: self.manifest.clone(),
            artifacts: self.digests(),
        }
    }

    /// Uploads all of it.
    pub(super) async fn upload(&self, printer: &Printer, client: &Client) -> Result<(), Failure> {
        let all: Vec<&Artifact> = self.artifacts.iter().collect();
        upload(printer, client, &all).await
    }

    fn digests(&self) -> BTreeMap<String, String> {
        let digest = |one: &Artifact| (one.name.clone(), one.listing.digest().to_string());
        self.artifacts.iter().map(digest).collect()
    }
}

/// Reads the manifest and scans its artifacts, for the commands that need them.
pub(super) async fn prepare(
    printer: &Printer,
    global: &Global,
    command: &Command,
) -> Result<Option<Prepared>, Failure> {
    let only_migrations = if let Command::Migrate { command } = command {
        if command.is_local() || matches!(command, MigrateCommand::Status { .. }) {
            return Ok(None);
        }
        true
    } else if matches!(command, Command::Plan(_) | Command::Deploy(_)) {
        false
    } else {
        return Ok(None);
    };
    let (text, spec) = manifest::load(printer, &global.file, &environment(global))?;
    let folder = manifest_folder(&global.file);
    let artifacts = blocking(move || {
        let artifacts = scan(&folder, &spec, only_migrations)?;
        Ok::<_, Failure>((spec, artifacts))
    })
    .await?;
    let (spec, artifacts) = artifacts?;
    for artifact in &artifacts {
        printer.detail(&format!(
            "artifact {}: {}, {}, {}",
            artifact.name,
            artifact.listing.digest().short(),
            count(artifact.listing.files().count() as u64, "file"),
            bytes(artifact.listing.bytes()),
        ));
    }
    let mut scope = spec.scope();
    if let Some(app) = &global.app {
        scope.app = app.clone();
    }
    let manifest = Manifest {
        file_name: manifest::name(&global.file),
        text,
    };
    Ok(Some(Prepared {
        scope,
        manifest,
        spec,
        artifacts,
    }))
}

/// What lies in the folder of what the manifest names: all of it, or the migrations alone.
fn scan(folder: &Path, spec: &AppSpec, only_migrations: bool) -> Result<Vec<Artifact>, Failure> {
    let is_migrations = |name: &str| {
        let mut folders = spec
            .stores
            .values()
            .filter_map(|store| store.migrations.as_deref());
        folders.any(|folder| folder == name)
    };
    let names = spec.artifact_names().into_iter();
    let names = names.filter(|name| !only_migrations || is_migrations(name));
    let scanned = names.map(|name| {
        let path = folder.join(name);
        let name = name.to_owned();
        match landfast_store::scan(&path) {
            Ok(listing) => Ok(Artifact {
                is_migrations: is_migrations(&name),
                name,
                path,
                listing,
            }),
            Err(error) => Err(unusable(&name, error)),
        }
    });
    scanned.collect()
}

fn unusable(name: &str, error: StoreError) -> Failure {
    let missing = matches!(&error, StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
    let error = anyhow::Error::from(error).context(format!("artifact `{name}` cannot be used"));
    let failure = Failure::new(Exit::Failed, error);
    if missing {
        failure.hint("build it first, or correct `artifact` in the manifest")
    } else {
        failure
    }
}

fn strategy(strategy: Option<StrategyArg>) -> Option<Strategy> {
    strategy.map(|strategy| match strategy {
        StrategyArg::Rolling => Strategy::Rolling,
        StrategyArg::BlueGreen => Strategy::BlueGreen,
        StrategyArg::Canary => Strategy::Canary,
        StrategyArg::Recreate => Strategy::Recreate,
    })
}

fn prepared(prepared: Option<Prepared>) -> Prepared {
    prepared.expect("`prepare` reads the manifest for these commands")
}

pub(super) async fn plan(
    printer: &Printer,
    client: &Client,
    arguments: args::Plan,
    source: Option<Prepared>,
) -> Result<Exit, Failure> {
    let source = prepared(source);
    // They are small, and what they would do is the plan's to say.
    let (migrations, _): (Vec<&Artifact>, Vec<_>) =
        source.artifacts.iter().partition(|one| one.is_migrations);
    if !migrations.is_empty() {
        upload(printer, client, &migrations).await?;
    }
    let request = PlanRequest {
        manifest: source.manifest.clone(),
        artifacts: source.digests(),
        strategy: strategy(arguments.strategy),
    };
    let plan = client.plan(&source.scope, &request).await;
    let plan = plan.map_err(|error| refused(printer, error))?;
    if printer.json {
        printer.json(&plan)?;
    } else {
        printer.data(&plan_lines(&plan, printer.paint).join("\n"))?;
    }
    warnings(printer, &plan.warnings);
    match plan.refusals.first() {
        None => Ok(Exit::Done),
        Some(first) => {
            let all = plan
                .refusals
                .iter()
                .map(|one| format!("{} ({})", one.reason, one.code));
            let all = all.collect::<Vec<_>>().join("; ");
            let exit = landfast_api::ProblemCode::from_word(&first.code)
                .map_or(Exit::GateRefused, crate::exit::exit_of);
            let failure = Failure::new(exit, anyhow!("a deploy would be refused: {all}"));
            let diagnostics = plan
                .refusals
                .iter()
                .flat_map(|one| &one.diagnostics)
                .cloned();
            let diagnostics = diagnostics.collect::<Vec<_>>();
            for line in manifest::wire_lines(&diagnostics, printer.paint_error) {
                printer.say(&line);
            }
            Err(Failure {
                hint: first.hint.clone(),
                ..failure
            })
        }
    }
}

/// What `scale` set in place of the manifest's replicas.
fn overridden(service: &ServicePlan) -> Option<String> {
    let replicas = service.scale_override?;
    let name = &service.service;
    Some(format!(
        "  {name}: {replicas} by `landfast scale`, until `replicas` changes in the manifest"
    ))
}

/// What the server warns of. What it says of the manifest was shown with its lines already.
fn warnings(printer: &Printer, warnings: &[String]) {
    const OF_MANIFEST: &str = ": warning[LF";
    for warning in warnings.iter().filter(|one| !one.contains(OF_MANIFEST)) {
        printer.warn(warning);
    }
}

fn plan_lines(plan: &Plan, paint: Paint) -> Vec<String> {
    let scope = format!("{}/{}", plan.app, plan.environment);
    if plan.unchanged {
        let from = plan.from.unwrap_or(plan.to);
        let mut lines = vec![format!("{scope}: nothing differs from release {from}")];
        lines.extend(plan.services.iter().filter_map(overridden));
        return lines;
    }
    let releases = match plan.from {
        Some(from) => format!("release {from} → {}", plan.to),
        None => format!("release {}, the first", plan.to),
    };
    let title = format!("{scope}  {releases}, {}", view::strategy(plan.strategy));
    let mut lines = vec![paint.bold(&title)];
    for service in &plan.services {
        let number = |replicas: Option<u32>| {
            replicas.map_or_else(|| "–".to_owned(), |many| many.to_string())
        };
        let replicas = if service.replicas_from == service.replicas_to {
            count(u64::from(service.replicas_to.unwrap_or(0)), "replica")
        } else {
            format!(
                "{} → {} replicas",
                number(service.replicas_from),
                number(service.replicas_to)
            )
        };
        let word = match service.change {
            landfast_api::Change::Added => paint.good("new"),
            landfast_api::Change::Removed => paint.bad("removed"),
            landfast_api::Change::Changed => paint.warn("changed"),
            landfast_api::Change::Unchanged => paint.dim("unchanged"),
            landfast_api::Change::Unknown => "unknown".to_owned(),
        };
        lines.push(String::new());
        lines.push(format!("service {}  {word}, {replicas}", service.service));
        lines.extend(overridden(service));
        lines.extend(service.lines.iter().map(|line| match line.mark {
            DiffMark::Added => paint.good(&format!("  + {}", line.text)),
            DiffMark::Removed => paint.bad(&format!("  - {}", line.text)),
            DiffMark::Kept => format!("    {}", line.text),
        }));
        lines.extend(view::unprotected(&service.protections, paint));
    }
    if !plan.steps.is_empty() {
        lines.push(String::new());
        lines.push("what will happen".to_owned());
        let steps = plan.steps.iter().enumerate();
        lines.extend(steps.map(|(index, step)| format!("  {}. {step}", index + 1)));
    }
    if !plan.gates.is_empty() {
        lines.push(format!("  gates: {}", plan.gates.join(", ")));
    }
    lines.push(String::new());
    let peak = &plan.peak;
    let size = bytes;
    let row = |name: &str, values: [String; 6]| {
        let mut row = vec![name.to_owned()];
        row.extend(values);
        row
    };
    let memory = [
        peak.memory_old_bytes,
        peak.memory_new_bytes,
        peak.memory_standby_bytes,
        peak.memory_peak_bytes,
        peak.memory_others_bytes,
        peak.memory_host_bytes,
    ];
    let cpu = [
        peak.cpu_old_millis,
        peak.cpu_new_millis,
        peak.cpu_standby_millis,
        peak.cpu_peak_millis,
        peak.cpu_others_millis,
        peak.cpu_host_millis,
    ];
    let head = ["", "OLD", "NEW", "STANDBY", "PEAK", "OTHERS", "HOST"];
    let rows = vec![row("memory", memory.map(size)), row("cpu", cpu.map(cores))];
    lines.extend(
        table(&head, &[1, 2, 3, 4, 5, 6], rows)
            .lines()
            .map(str::to_owned),
    );
    lines.push(if peak.fits {
        "it fits".to_owned()
    } else {
        paint.bad("it does not fit")
    });
    if !peak.unbounded.is_empty() {
        let unbounded = peak.unbounded.join(", ");
        lines.push(format!(
            "not in these sums, for want of `resources`: {unbounded}"
        ));
    }
    if !plan.routes.is_empty() {
        lines.push(String::new());
        lines.extend(plan.routes.iter().map(|route| {
            let line = format!(
                "route {}  {}{} → {}",
                route.route, route.host, route.path, route.service
            );
            match &route.taken_by {
                None => line,
                Some(owner) => format!("{line}  {}", paint.bad(&format!("taken by {owner}"))),
            }
        }));
    }
    lines.push(String::new());
    if let Some(obstacle) = &plan.rollback.obstacle {
        lines.push(paint.warn(&format!("way back: {obstacle}")));
    }
    lines.push(match (plan.rollback.to, plan.rollback.expected_ms) {
        (Some(to), Some(ms)) => {
            let expected = duration(std::time::Duration::from_millis(ms));
            format!(
                "rollback to release {to} within {expected}: {}",
                plan.rollback.how
            )
        }
        (Some(to), None) => format!("rollback to release {to}: {}", plan.rollback.how),
        (None, _) => format!("rollback: {}", plan.rollback.how),
    });
    lines
}

/// Says what the server found wrong with the manifest, line by line, before the error itself.
fn refused(printer: &Printer, error: Error) -> Failure {
    if let Error::Problem(problem) = &error {
        for line in manifest::wire_lines(&problem.diagnostics, printer.paint_error) {
            printer.say(&line);
        }
    }
    let moving = if let Error::Problem(problem) = &error {
        problem.moving.clone()
    } else {
        None
    };
    let failure = Failure::from(error);
    let Some(moving) = moving else { return failure };
    let by = moving.by.map(|by| format!(" by {by}")).unwrap_or_default();
    let since = crate::table::instant(moving.since);
    let phase = match moving.phase.as_str() {
        "" => String::new(),
        phase => format!(" ({phase})"),
    };
    let what = format!(
        "rollout {} to release {}, begun{by} at {since} UTC, is moving{phase}",
        moving.rollout, moving.to
    );
    Failure {
        error: anyhow!(what),
        ..failure
    }
}

pub(super) async fn deploy(
    printer: &Printer,
    global: &Global,
    client: &Client,
    arguments: args::Deploy,
    source: Option<Prepared>,
) -> Result<Exit, Failure> {
    let source = prepared(source);
    let all: Vec<&Artifact> = source.artifacts.iter().collect();
    upload(printer, client, &all).await?;
    let folder = manifest_folder(&global.file);
    let images = match source.spec.images().is_empty() {
        true => BTreeMap::new(),
        false => {
            let (scope, spec) = (&source.scope, &source.spec);
            let built = images::build(printer, client, &folder, scope, spec).await?;
            images::resolve(printer, client, scope, &source.manifest, built).await?
        }
    };
    let commit = arguments.commit.or_else(|| git_commit(&folder));
    let request = DeployRequest {
        manifest: source.manifest.clone(),
        artifacts: source.digests(),
        images,
        strategy: strategy(arguments.strategy),
        note: arguments.note,
        commit,
        supersede: arguments.supersede,
    };
    let answer = client
        .deploy(&source.scope, &request, &idempotency_key())
        .await;
    let answer = answer.map_err(|error| refused(printer, error))?;
    warnings(printer, &answer.warnings);
    let Some(rollout) = answer.rollout.clone().filter(|_| !answer.unchanged) else {
        if printer.json {
            printer.json(&answer)?;
        } else {
            let (scope, release) = (&source.scope, answer.release);
            printer.data(&format!(
                "nothing differs from release {release} of {scope}; nothing was done"
            ))?;
        }
        return Ok(Exit::Done);
    };
    if arguments.wait == Wait::Start {
        if printer.json {
            printer.json(&answer)?;
        } else {
            printer.data(&format!(
                "rollout {} to release {} of {} has begun",
                rollout.id, rollout.to, source.scope
            ))?;
        }
        return Ok(Exit::Done);
    }
    follow::follow(
        printer,
        client,
        &source.scope,
        rollout,
        arguments.wait,
        Want::Forward,
    )
    .await
}

/// Uploads what the store lacks, and joins it to artifacts.
async fn upload(
    printer: &Printer,
    client: &Client,
    artifacts: &[&Artifact],
) -> Result<(), Failure> {
    let mut blobs = BTreeMap::<Digest, Blob>::new();
    for artifact in artifacts {
        for entry in &artifact.listing.entries {
            if let EntryKind::File { digest, size, .. } = &entry.kind {
                let path = source_of(&artifact.path, entry);
                blobs.insert(*digest, Blob { path, size: *size });
            }
        }
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let style = ProgressStyle::with_template(
        "uploading {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    );
    bar.set_style(
        style
            .expect("the template is well formed")
            .progress_chars("=> "),
    );
    let mut begun = false;
    let mut done = 0;
    let mut cuts = 0;
    client
        .upload(&blobs, |progress| {
            if !std::mem::replace(&mut begun, true) {
                bar.set_length(progress.bytes_total);
                if printer.live {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
            }
            bar.set_position(progress.bytes_done);
            done = progress.bytes_total;
            cuts = progress.cuts;
        })
        .await?;
    bar.finish_and_clear();
    if begun {
        let resumed = if cuts > 0 {
            format!(", resumed after {}", count(u64::from(cuts), "cut"))
        } else {
            String::new()
        };
        printer.say(&format!("uploaded {}{resumed}", bytes(done)));
    } else {
        printer.detail("the store has every file already");
    }
    for artifact in artifacts {
        let created = client.create_artifact(&wire(&artifact.listing)).await?;
        let digest = artifact.listing.digest().to_string();
        if created.digest != digest {
            let error = anyhow!(
                "the server names artifact `{}` {}, not {digest}",
                artifact.name,
                created.digest
            );
            let hint = "client and server are of different versions";
            return Err(Failure::new(Exit::Failed, error).hint(hint));
        }
    }
    Ok(())
}

/// Where an entry of a scanned path lies: a scanned file is its own only entry.
fn source_of(scanned: &Path, entry: &Entry) -> PathBuf {
    if scanned.is_dir() {
        scanned.join(&entry.path)
    } else {
        scanned.to_owned()
    }
}

fn wire(listing: &TreeListing) -> ArtifactListing {
    let entry = |entry: &Entry| {
        let mut wire = ArtifactEntry {
            path: entry.path.clone(),
            kind: ArtifactEntryKind::Folder,
            executable: false,
            size: 0,
            digest: None,
            target: None,
        };
        match &entry.kind {
            EntryKind::Folder => {}
            EntryKind::File {
                executable,
                size,
                digest,
            } => {
                wire.kind = ArtifactEntryKind::File;
                wire.executable = *executable;
                wire.size = *size;
                wire.digest = Some(digest.to_string());
            }
            EntryKind::Symlink { target } => {
                wire.kind = ArtifactEntryKind::Link;
                wire.target = Some(target.clone());
            }
        }
        wire
    };
    ArtifactListing {
        files: listing.entries.iter().map(entry).collect(),
    }
}
