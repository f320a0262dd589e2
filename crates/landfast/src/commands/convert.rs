//! `import` and `export`: reads and writes the files around `landfast-convert`, and says what was not carried.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use landfast_convert::{
    ComposeOptions, ConvertError, ExportOptions, Expressed, Fate, Gap, Import, PROJECT_FILES,
    ProjectFacts, ProjectKind, Source,
};
use landfast_spec::{FOLDER_FILES, FolderFacts, Probe};

use crate::{
    args::{
        Global,
        convert::{
            ExportCommand, ExportCompose, ExportDockerfile, ImportCommand, ImportCompose,
            ImportFile, Kind, Output,
        },
    },
    context::{environment, manifest_folder},
    exit::{Exit, Failure},
    manifest,
    out::Printer,
};

/// Files larger than this are not read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `docker compose` looks for, in its order, and what overrides each.
const COMPOSE_FILES: [(&str, &str); 4] = [
    ("compose.yaml", "compose.override.yaml"),
    ("compose.yml", "compose.override.yml"),
    ("docker-compose.yml", "docker-compose.override.yml"),
    ("docker-compose.yaml", "docker-compose.override.yaml"),
];

pub(super) fn import(
    printer: &Printer,
    global: &Global,
    command: &ImportCommand,
) -> Result<Exit, Failure> {
    match command {
        ImportCommand::Compose(arguments) => compose(printer, global, arguments),
        ImportCommand::Kamal(arguments) => kamal(printer, global, arguments),
        ImportCommand::Procfile(arguments) => procfile(printer, global, arguments),
    }
}

pub(super) fn export(
    printer: &Printer,
    global: &Global,
    command: &ExportCommand,
) -> Result<Exit, Failure> {
    match command {
        ExportCommand::Compose(arguments) => export_compose(printer, global, arguments),
        ExportCommand::Dockerfile(arguments) => export_dockerfile(printer, global, arguments),
    }
}

fn compose(printer: &Printer, global: &Global, arguments: &ImportCompose) -> Result<Exit, Failure> {
    let mut paths = arguments.compose_files.clone();
    paths.extend(arguments.compose.clone());
    if paths.is_empty() {
        let found = COMPOSE_FILES
            .iter()
            .find(|(file, _)| Path::new(file).exists());
        let Some((file, over)) = found else {
            let error = anyhow!("there is no Compose file in this folder");
            return Err(
                Failure::new(Exit::Usage, error).hint("name it: `landfast import compose FILE`")
            );
        };
        paths.push(PathBuf::from(file));
        paths.extend(Some(PathBuf::from(over)).filter(|path| path.exists()));
    }
    let sources = paths
        .iter()
        .map(|path| source(path))
        .collect::<Result<Vec<_>, _>>()?;
    let folder = paths
        .first()
        .map(|path| folder_of(path))
        .unwrap_or_default();
    let read = |path: &str| read_text(&folder.join(path));
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let environment = environment.collect::<BTreeMap<_, _>>();
    let name = folder_name(&folder)?;
    let import = landfast_convert::import_compose(&ComposeOptions {
        sources: &sources,
        environment: &environment,
        profiles: &arguments.profile,
        folder: &name,
        app: global.app.as_ref().map(landfast_types::AppName::as_str),
        read: &read,
    });
    finish(
        printer,
        global,
        &arguments.output,
        import.map_err(|error| refused(&error))?,
    )
}

fn kamal(printer: &Printer, global: &Global, arguments: &ImportFile) -> Result<Exit, Failure> {
    let path = arguments
        .source
        .clone()
        .unwrap_or_else(|| PathBuf::from("config/deploy.yml"));
    let import =
        landfast_convert::import_kamal(&source(&path)?).map_err(|error| refused(&error))?;
    finish(printer, global, &arguments.output, import)
}

fn procfile(printer: &Printer, global: &Global, arguments: &ImportFile) -> Result<Exit, Failure> {
    let path = arguments
        .source
        .clone()
        .unwrap_or_else(|| PathBuf::from("Procfile"));
    let folder = folder_of(&path);
    let mut facts = FolderFacts::new(&folder_name(&folder)?);
    for known in FOLDER_FILES.iter().filter(|known| **known != "Procfile") {
        if let Some(text) = read_text(&folder.join(known)) {
            facts.add_file(known, &text);
        }
    }
    let import = landfast_convert::import_procfile(&source(&path)?, facts);
    finish(printer, global, &arguments.output, import)
}

/// Writes the manifest and says what became of the file.
fn finish(
    printer: &Printer,
    global: &Global,
    output: &Output,
    import: Import,
) -> Result<Exit, Failure> {
    let file = output.out.clone().unwrap_or_else(|| global.file.clone());
    let to_stdout = file == Path::new("-");
    if !to_stdout {
        write_new(&file, &import.manifest, output.force)?;
    }
    let name = if to_stdout {
        "-".to_owned()
    } else {
        manifest::name(&file)
    };
    if printer.json {
        let mut report = import.report();
        report["file"] = name.into();
        if to_stdout {
            report["manifest"] = import.manifest.into();
        }
        printer.json(&report)?;
        return Ok(Exit::Done);
    }
    if to_stdout {
        printer.data(&import.manifest)?;
    } else {
        printer.say(&format!("wrote {name} from {}", import.files.join(", ")));
    }
    for decision in &import.decisions {
        printer.say(&format!("  - {decision}"));
    }
    let lost = import.not_carried().collect::<Vec<_>>();
    if lost.is_empty() {
        printer.say("every key was carried");
    } else {
        printer.say(&format!(
            "{} not carried:",
            counted(lost.len(), "key was", "keys were")
        ));
    }
    for mark in lost {
        let Fate::NotCarried { reason, instead } = &mark.fate else {
            continue;
        };
        let file = import.files.get(mark.place.file).map_or("", String::as_str);
        let place = printer
            .paint_error
            .dim(&format!("{file}:{}", mark.place.line));
        printer.say(&format!(
            "  {} {place}\n      {reason}\n      instead: {instead}",
            printer.paint_error.bold(&mark.path)
        ));
    }
    if !import.secrets.is_empty() {
        printer.say("before the first deploy:");
    }
    for secret in &import.secrets {
        printer.say(&format!("  {}   # {}", secret.command, secret.found));
    }
    let hint = "look through it, then run `landfast check` and `landfast plan`";
    printer.say(&format!("{} {hint}", printer.paint_error.good("hint:")));
    Ok(Exit::Done)
}

fn export_compose(
    printer: &Printer,
    global: &Global,
    arguments: &ExportCompose,
) -> Result<Exit, Failure> {
    let (text, spec) = manifest::load(printer, &global.file, &environment(global))?;
    let folder = manifest_folder(&global.file);
    let options = ExportOptions {
        project: relative(&arguments.out, &folder)?,
        folder: relative(&folder, &arguments.out)?,
    };
    let mut files = landfast_convert::export_compose(&spec, &options);
    let gaps = landfast_convert::equivalence(&text);
    let (lost, partly) = (gaps_of(&gaps, true), gaps_of(&gaps, false));
    let file = |path: &str, text: String| landfast_convert::ExportedFile {
        path: path.to_owned(),
        text,
    };
    files.push(file("EQUIVALENCE.md", report(&gaps)));
    let json = serde_json::to_string_pretty(&gaps).context("failed to write the report")?;
    files.push(file("equivalence.json", json + "\n"));
    if !arguments.force
        && let Some(taken) = files
            .iter()
            .find(|file| arguments.out.join(&file.path).exists())
    {
        let error = anyhow!(
            "`{}` is there already",
            arguments.out.join(&taken.path).display()
        );
        return Err(Failure::new(Exit::Failed, error).hint("`--force` replaces it"));
    }
    for file in &files {
        let path = arguments.out.join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("failed to make `{}`", folder.display()))?;
        }
        write_new(&path, &file.text, true)?;
    }
    if printer.json {
        let paths = files
            .iter()
            .map(|file| file.path.as_str())
            .collect::<Vec<_>>();
        printer.json(&serde_json::json!({ "folder": arguments.out.display().to_string(), "files": paths, "equivalence": gaps }))?;
        return Ok(Exit::Done);
    }
    printer.say(&format!(
        "wrote {} to {}",
        counted(files.len(), "file", "files"),
        arguments.out.display()
    ));
    printer.say(&format!(
        "of {} in the manifest, Compose cannot express {}, and {} in part:",
        counted(gaps.len(), "key", "keys"),
        lost.len(),
        partly.len()
    ));
    for line in lost.iter().chain(&partly) {
        printer.say(&format!("  {line}"));
    }
    let hint = format!(
        "read {}, then `cp .env.example .env` there and fill it",
        arguments.out.join("EQUIVALENCE.md").display()
    );
    printer.say(&format!("{} {hint}", printer.paint_error.good("hint:")));
    Ok(Exit::Done)
}

/// What is lost, or lost in part, a line each.
fn gaps_of(gaps: &[Gap], whole: bool) -> Vec<String> {
    let lines = gaps.iter().filter_map(|gap| match gap.expressed {
        Expressed::Not { missing, instead } if whole => {
            Some(format!("{}: {missing}; {instead}", gap.key))
        }
        Expressed::Partly { what, missing } if !whole => {
            Some(format!("{}: {what}, but {missing}", gap.key))
        }
        Expressed::As { .. } | Expressed::Partly { .. } | Expressed::Not { .. } => None,
    });
    lines.collect()
}

fn report(gaps: &[Gap]) -> String {
    let mut text = "# What Compose does of this manifest, and what it does not\n\nWritten by `landfast export compose`.\n".to_owned();
    let carried = gaps.iter().filter_map(|gap| match gap.expressed {
        Expressed::As { what } => Some(format!("{}: {what}", gap.key)),
        Expressed::Partly { .. } | Expressed::Not { .. } => None,
    });
    let groups = [
        ("Not expressed", gaps_of(gaps, true)),
        ("Expressed in part", gaps_of(gaps, false)),
        ("Expressed", carried.collect()),
    ];
    for (title, lines) in groups {
        text.push_str(&format!("\n## {title}\n\n"));
        for line in &lines {
            let (key, rest) = line.split_once(": ").unwrap_or((line, ""));
            text.push_str(&format!("- `{key}`: {rest}\n"));
        }
        if lines.is_empty() {
            text.push_str("Nothing.\n");
        }
    }
    text.push_str(ALWAYS);
    text
}

/// What no key says, and every deploy of Landfast does.
const ALWAYS: &str = "
## What Landfast does without being told, and Compose does not

- A new release takes requests only once it is ready, and the old one stops only once it has answered what it had begun.
- A failed update is taken back by itself; `landfast rollback` goes back to a release that is pinned whole.
- Requests that were never sent are tried on another instance; instances that fail are left out for a while.
- Secrets are sealed and have versions; logs are kept and rotated; what happened is in a journal.
";

fn export_dockerfile(
    printer: &Printer,
    global: &Global,
    arguments: &ExportDockerfile,
) -> Result<Exit, Failure> {
    let folder = manifest_folder(&global.file);
    let mut facts = ProjectFacts::default();
    for known in PROJECT_FILES {
        if let Some(text) = read_text(&folder.join(known)) {
            facts.files.insert((*known).to_owned(), text);
        }
    }
    if global.file.exists() {
        let text = manifest::read(&global.file)?;
        let spec =
            landfast_spec::parse(&manifest::name(&global.file), &text, &environment(global)).spec;
        let services = spec.iter().flat_map(|spec| spec.services.values());
        if let Some(service) = services
            .clone()
            .find(|service| service.port.is_some())
            .or(services.clone().next())
        {
            facts.port = service.port;
            facts.command = Some(service.command.clone()).filter(|command| !command.is_empty());
            if let Probe::Http { path } = &service.health.ready {
                facts.ready = Some(path.clone());
            }
        }
    }
    facts.port = arguments.port.or(facts.port);
    facts.ready = arguments.ready.clone().or(facts.ready);
    let kind = arguments.kind.map(|kind| match kind {
        Kind::Rust => ProjectKind::Rust,
        Kind::Node => ProjectKind::Node,
        Kind::Static => ProjectKind::Static,
    });
    let Some(files) = landfast_convert::dockerfile(&facts, kind) else {
        let error = anyhow!(
            "there is no Cargo.toml, no package.json and no index.html in `{}`",
            folder.display()
        );
        return Err(Failure::new(Exit::Usage, error)
            .hint("run it in the project's folder, or write the Dockerfile by hand"));
    };
    let texts = [
        ("Dockerfile", &files.dockerfile),
        (".dockerignore", &files.dockerignore),
    ];
    if !arguments.force
        && let Some((taken, _)) = texts.iter().find(|(name, _)| folder.join(name).exists())
    {
        let error = anyhow!("`{}` is there already", folder.join(taken).display());
        return Err(Failure::new(Exit::Failed, error).hint("`--force` replaces it"));
    }
    for (name, text) in texts {
        write_new(&folder.join(name), text, true)?;
    }
    if printer.json {
        let kind = files.kind.word();
        printer.json(&serde_json::json!({ "kind": kind, "files": ["Dockerfile", ".dockerignore"], "decisions": files.decisions }))?;
        return Ok(Exit::Done);
    }
    printer.say(&format!(
        "wrote Dockerfile and .dockerignore for a project of kind {}",
        files.kind.word()
    ));
    for decision in &files.decisions {
        printer.say(&format!("  - {decision}"));
    }
    printer.say(&format!(
        "{} docker build -t NAME . , then image = \"NAME\", or build = \".\" in the manifest",
        printer.paint_error.good("hint:")
    ));
    Ok(Exit::Done)
}

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

fn refused(error: &ConvertError) -> Failure {
    let failure = Failure::new(Exit::Failed, anyhow!("{error}"));
    match &error.hint {
        Some(hint) => failure.hint(hint.clone()),
        None => failure,
    }
}

fn source(path: &Path) -> Result<Source, Failure> {
    let failed = |error: anyhow::Error| {
        Failure::new(
            Exit::Usage,
            error.context(format!("failed to read `{}`", path.display())),
        )
    };
    let bytes = fs::read(path).map_err(|error| failed(error.into()))?;
    let text = String::from_utf8(bytes).map_err(|_| failed(anyhow!("it is not UTF-8")))?;
    let name = manifest::name(path);
    Ok(Source { name, text })
}

/// A text that is there, small enough and UTF-8.
fn read_text(path: &Path) -> Option<String> {
    let data = fs::metadata(path).ok()?;
    if !data.is_file() || data.len() > FILE_BYTES_MAX {
        return None;
    }
    fs::read_to_string(path).ok()
}

fn folder_of(path: &Path) -> PathBuf {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new(".")).to_owned()
}

fn folder_name(folder: &Path) -> Result<String, Failure> {
    let whole = folder.canonicalize().context("failed to find the folder")?;
    let name = whole
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    Ok(name.unwrap_or_default())
}

/// The way from one folder to another, which need not exist yet.
fn relative(from: &Path, to: &Path) -> Result<String, Failure> {
    let absolute = |path: &Path| -> Result<Vec<String>, Failure> {
        let path = std::path::absolute(path).context("failed to find the folder")?;
        let mut parts = Vec::new();
        for part in path.components() {
            match part {
                Component::ParentDir => {
                    parts.pop();
                }
                Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
                Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
            }
        }
        Ok(parts)
    };
    let (from, to) = (absolute(from)?, absolute(to)?);
    let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..", from.len() - same);
    let down = to.iter().skip(same).map(String::as_str);
    let parts = up.chain(down).collect::<Vec<_>>();
    Ok(if parts.is_empty() {
        ".".to_owned()
    } else {
        parts.join("/")
    })
}

fn write_new(file: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let mut options = fs::OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let mut open = match options.open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let error = anyhow!("`{}` is there already", manifest::name(file));
            return Err(Failure::new(Exit::Failed, error)
                .hint("`--force` replaces it, `--out` names another"));
        }
        Err(error) => {
            let what = format!("failed to write `{}`", file.display());
            return Err(anyhow::Error::from(error).context(what).into());
        }
    };
    open.write_all(text.as_bytes())
        .with_context(|| format!("failed to write `{}`", file.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_way_between_folders() {
        let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to)).unwrap();
        assert_eq!(way("compose", "."), "..");
        assert_eq!(way(".", "compose"), "compose");
        assert_eq!(way("a/b", "."), "../..");
        assert_eq!(
            way("../other", "."),
            format!("../{}", folder_name(Path::new(".")).unwrap())
        );
        assert_eq!(way(".", "."), ".");
    }
}
