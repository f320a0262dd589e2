//! `init`: a first manifest from what lies in the folder.

use std::{fs, io::Write as _};

use anyhow::{Context as _, anyhow};
use landfast_spec::{FOLDER_FILES, FolderFacts};

use crate::{
    args::{Global, Init},
    context::manifest_folder,
    exit::{Exit, Failure},
    manifest,
    out::Printer,
};

/// Files larger than this say nothing to `init`.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub(super) fn init(printer: &Printer, global: &Global, arguments: &Init) -> Result<Exit, Failure> {
    let file = &global.file;
    let folder = manifest_folder(file);
    let name = folder.canonicalize().context("failed to find the folder")?;
    let name = name
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut facts = FolderFacts::new(&name);
    let mut seen = Vec::new();
    for known in FOLDER_FILES {
        let path = folder.join(known);
        let fits =
            fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() <= FILE_BYTES_MAX);
        if fits && let Ok(text) = fs::read_to_string(&path) {
            facts.add_file(known, &text);
            seen.push(*known);
        }
    }
    let mut text = landfast_spec::scaffold(&facts);
    if let Some(app) = arguments.name.as_ref().or(global.app.as_ref()) {
        text = rename(&text, app.as_str());
    }
    write(&file.clone(), &text, arguments.force)?;
    if printer.json {
        let name = manifest::name(file);
        printer.json(
            &serde_json::json!({ "file": name, "app": manifest::app_line(&text), "read": seen }),
        )?;
        return Ok(Exit::Done);
    }
    let from = if seen.is_empty() {
        "nothing it knows".to_owned()
    } else {
        seen.join(", ")
    };
    printer.say(&format!("wrote {} from {from}", manifest::name(file)));
    let hint = "look through it, then run `landfast check` and `landfast plan`";
    printer.say(&format!("{} {hint}", printer.paint_error.good("hint:")));
    Ok(Exit::Done)
}

fn write(file: &std::path::Path, text: &str, force: bool) -> Result<(), Failure> {
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
            return Err(Failure::new(Exit::Failed, error).hint("`--force` replaces it"));
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

/// Gives the first `app = …` line another name.
fn rename(text: &str, app: &str) -> String {
    let mut done = false;
    let lines = text.split_inclusive('\n').map(|line| {
        let is_app = line
            .strip_prefix("app")
            .is_some_and(|rest| rest.trim_start().starts_with('='));
        if is_app && !std::mem::replace(&mut done, true) {
            format!("app = \"{app}\"\n")
        } else {
            line.to_owned()
        }
    });
    lines.collect()
}
