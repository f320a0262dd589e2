//! `migrate lint`, `new` and `rename-column`: what can be said and written without a server or a database.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use landfast_migration::{
    Engine, FileName, MigrationSet, NewFile, Phase, Rename, SourceFile,
    lint::{self, Finding, Severity},
};
use landfast_types::StoreName;

use crate::{
    args::{Global, MigrateCommand, MigrateFolder, PhaseArgument},
    context::manifest_folder,
    exit::{Exit, Failure},
    manifest,
    out::Printer,
};

/// A folder of migrations and what they are written for.
struct Source {
    /// As it was given, for messages.
    name: String,
    path: PathBuf,
    engine: Engine,
}

pub(super) fn migrate(
    printer: &Printer,
    global: &Global,
    command: &MigrateCommand,
) -> Result<Exit, Failure> {
    match command {
        MigrateCommand::Lint {
            folder,
            from,
            sarif,
        } => {
            let source = source(global, folder)?;
            lint_all(printer, &source, from.unwrap_or(1), *sarif)
        }
        MigrateCommand::New {
            folder,
            name,
            phase,
        } => {
            let source = source(global, folder)?;
            let file = FileName {
                number: next_number(&source)?,
                name: name.clone(),
                down: false,
            };
            let file: FileName = file
                .to_string()
                .parse()
                .map_err(|error| Failure::new(Exit::Usage, anyhow!("{error}")))?;
            write(printer, &source, &new_files(&file, (*phase).into()))
        }
        MigrateCommand::RenameColumn {
            folder,
            table,
            from,
            to,
            data_type,
            key,
        } => {
            let source = source(global, folder)?;
            let rename = Rename {
                table: table.clone(),
                from: from.clone(),
                to: to.clone(),
                data_type: data_type.clone(),
                key: key.clone(),
            };
            let files = rename.files(source.engine, read(&source)?.next_number());
            let files = files.map_err(|error| Failure::new(Exit::Usage, anyhow!("{error}")))?;
            write(printer, &source, &files)
        }
        MigrateCommand::Status { .. }
        | MigrateCommand::Plan { .. }
        | MigrateCommand::Rehearse { .. }
        | MigrateCommand::Up { .. }
        | MigrateCommand::Down { .. }
        | MigrateCommand::Accept { .. } => unreachable!("these are asked of a server"),
    }
}

/// The store that was named, or the only one of the manifest that has migrations.
pub(super) fn store_name(global: &Global, wanted: Option<&StoreName>) -> Result<String, Failure> {
    if let Some(wanted) = wanted {
        return Ok(wanted.to_string());
    }
    let any = MigrateFolder {
        store: None,
        folder: None,
        engine: None,
    };
    let stores = stores(global, &any)?;
    match stores.as_slice() {
        [(name, _, _)] => Ok(name.clone()),
        several => {
            let error = match several.len() {
                0 => anyhow!("no store of the manifest has migrations"),
                _ => anyhow!("several stores have migrations"),
            };
            Err(Failure::new(Exit::Usage, error).hint("`--store NAME` chooses one"))
        }
    }
}

/// The migrations of a store as they lie in its folder; `None` where no manifest says where that is.
pub(super) fn local_set(global: &Global, store: &str) -> Result<Option<MigrationSet>, Failure> {
    if !global.file.exists() {
        return Ok(None);
    }
    let any = MigrateFolder {
        store: None,
        folder: None,
        engine: None,
    };
    let stores = stores(global, &any)?;
    let Some((_, name, engine)) = stores.into_iter().find(|(name, ..)| name == store) else {
        return Ok(None);
    };
    let path = manifest_folder(&global.file).join(&name);
    read(&Source { name, path, engine }).map(Some)
}

fn new_files(file: &FileName, phase: Phase) -> Vec<NewFile> {
    let down = FileName {
        down: true,
        ..file.clone()
    };
    let mut files = vec![NewFile {
        name: file.to_string(),
        text: format!("-- landfast: phase={phase}\n"),
    }];
    // What a contract migration drops cannot be brought back by SQL.
    if phase != Phase::Contract {
        files.push(NewFile {
            name: down.to_string(),
            text: format!("-- Takes {file} back.\n"),
        });
    }
    files
}

/// The folder that was named, or the one of the manifest's only database; the engine that was named, or the store's.
fn source(global: &Global, folder: &MigrateFolder) -> Result<Source, Failure> {
    let stores = stores(global, folder)?;
    let stores = stores
        .into_iter()
        .filter(|(store, path, _)| {
            folder
                .store
                .as_ref()
                .is_none_or(|wanted| wanted.as_str() == store)
                && folder
                    .folder
                    .as_ref()
                    .is_none_or(|wanted| wanted == Path::new(path))
        })
        .collect::<Vec<_>>();
    let (name, engine) = match (&folder.folder, stores.as_slice(), folder.engine) {
        (Some(name), _, Some(engine)) => (name.display().to_string(), engine.into()),
        (_, [(_, name, engine)], None) => (name.clone(), *engine),
        (_, [(_, name, _)], Some(engine)) => (name.clone(), engine.into()),
        (Some(name), _, None) => {
            let error = anyhow!(
                "no store of the manifest has its migrations in `{}`",
                name.display()
            );
            return Err(Failure::new(Exit::Usage, error)
                .hint("say what they are for: `--engine postgres` or `--engine mariadb`"));
        }
        (None, several, _) => {
            let error = match several.len() {
                0 => anyhow!("no store of the manifest has migrations"),
                _ => anyhow!("several stores have migrations"),
            };
            return Err(Failure::new(Exit::Usage, error).hint("`--store NAME` chooses one; `--folder DIR --engine ENGINE` does without a manifest"));
        }
    };
    let path = manifest_folder(&global.file).join(&name);
    Ok(Source { name, path, engine })
}

/// Name, folder and engine of each store with migrations. Without a manifest there is none, if the folder was named.
fn stores(
    global: &Global,
    folder: &MigrateFolder,
) -> Result<Vec<(String, String, Engine)>, Failure> {
    if folder.folder.is_some() && folder.engine.is_some() {
        return Ok(Vec::new());
    }
    let text = manifest::read(&global.file)?;
    let name = manifest::name(&global.file);
    let environment = global
        .environment
        .clone()
        .or_else(|| landfast_spec::environments(&text).into_iter().next());
    let Some(environment) = environment else {
        return Ok(Vec::new());
    };
    let parsed = landfast_spec::parse(&name, &text, &environment);
    let Some(spec) = parsed.spec else {
        return Err(manifest::invalid(&name, &parsed.diagnostics)
            .hint("`landfast check` shows what is wrong"));
    };
    let found = spec.stores.iter().filter_map(|(store, spec)| {
        let engine = spec.engine.word().parse().ok()?;
        Some((store.to_string(), spec.migrations.clone()?, engine))
    });
    Ok(found.collect())
}

/// The names of the SQL files in the folder; none where there is no folder yet.
fn names(source: &Source) -> Result<Vec<String>, Failure> {
    let entries = match fs::read_dir(&source.path) {
        Ok(entries) => entries,
        // `new` makes the folder.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(anyhow::Error::from(error)
                .context(format!("failed to read `{}`", source.name))
                .into());
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("failed to read `{}`", source.name))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        names.extend(name.ends_with(".sql").then_some(name));
    }
    Ok(names)
}

/// The number behind the last, whatever the files hold: the last one may still be empty.
fn next_number(source: &Source) -> Result<u32, Failure> {
    let names = names(source)?;
    let numbers = names
        .iter()
        .filter_map(|name| name.parse::<FileName>().ok());
    let last = numbers.map(|file| file.number).max().unwrap_or(0);
    Ok(last.saturating_add(1))
}

fn read(source: &Source) -> Result<MigrationSet, Failure> {
    let mut files = Vec::new();
    for name in names(source)? {
        let bytes = fs::read(source.path.join(&name))
            .with_context(|| format!("failed to read `{}/{name}`", source.name))?;
        files.push(SourceFile { name, bytes });
    }
    MigrationSet::parse(&files, source.engine).map_err(|errors| {
        let lines = errors
            .into_iter()
            .map(|error| format!("{:#}", anyhow::Error::from(error)));
        let text = lines.collect::<Vec<_>>().join("\n  ");
        Failure::new(
            Exit::ManifestInvalid,
            anyhow!(
                "the migrations in `{}` cannot be used:\n  {text}",
                source.name
            ),
        )
    })
}

fn lint_all(printer: &Printer, source: &Source, from: u32, sarif: bool) -> Result<Exit, Failure> {
    let set = read(source)?;
    let findings = lint::lint(&set, from);
    if sarif {
        printer.json(&lint::sarif(
            &findings,
            &source.name,
            env!("CARGO_PKG_VERSION"),
        ))?;
    } else if printer.json {
        printer.json(&serde_json::json!({ "engine": source.engine, "migrations": set.len(), "findings": findings }))?;
    } else {
        printer.say_text(&lint::render(&findings, &set, printer.paint_error.colour()));
    }
    let weighs =
        |finding: &&Finding| finding.allowed.is_none() && finding.severity == Severity::Error;
    if findings.iter().any(|finding| weighs(&finding)) {
        let error = anyhow!(
            "the migrations in `{}` are refused: {}",
            source.name,
            lint::summary(&findings)
        );
        return Err(Failure::new(Exit::ManifestInvalid, error).hint("docs/lints has a page for each rule; `-- landfast: allow=RULE why` allows what was judged"));
    }
    printer.say(&format!(
        "{}: {} migrations, {}",
        source.name,
        set.len(),
        lint::summary(&findings)
    ));
    Ok(Exit::Done)
}

fn write(printer: &Printer, source: &Source, files: &[NewFile]) -> Result<Exit, Failure> {
    fs::create_dir_all(&source.path)
        .with_context(|| format!("failed to make `{}`", source.name))?;
    for file in files {
        let name = format!("{}/{}", source.name, file.name);
        // Never over a file that is there.
        let made = fs::File::create_new(source.path.join(&file.name))
            .and_then(|mut made| made.write_all(file.text.as_bytes()));
        made.with_context(|| format!("failed to write `{name}`"))?;
        printer.say(&format!("wrote {name}"));
    }
    if printer.json {
        let names = files
            .iter()
            .map(|file| format!("{}/{}", source.name, file.name))
            .collect::<Vec<_>>();
        printer.json(&serde_json::json!({ "written": names }))?;
    }
    Ok(Exit::Done)
}

impl From<PhaseArgument> for Phase {
    fn from(phase: PhaseArgument) -> Self {
        match phase {
            PhaseArgument::Expand => Self::Expand,
            PhaseArgument::Any => Self::Any,
            PhaseArgument::Contract => Self::Contract,
        }
    }
}
