//! `cargo xtask docs [--check]`: the documents that are printed from the code.
//!
//! Without `--check` they are written; with it nothing is written, and a document that differs is an error, so a
//! change of the code cannot leave its pages behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{book, errors};

pub(crate) const USAGE: &str = "docs [--check]   write (or only compare) the generated documents";

/// A generated document: its path from the root of the workspace, and what it must hold.
pub(crate) struct Document {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every generated document. A new one is one line here.
fn documents() -> Vec<Document> {
    let document = |path: &str, text| Document {
        path: path.to_owned(),
        text,
    };
    let mut documents = vec![
        document(
            "docs/reference/manifest.md",
            landfast_spec::reference_markdown(),
        ),
        document(
            "docs/reference/defaults.md",
            landfast_spec::defaults_markdown(),
        ),
        document("docs/reference/landfast.schema.json", schema()),
        document("docs/reference/openapi.json", landfast_api::openapi_json()),
    ];
    documents.extend(errors::documents());
    documents
}

/// Pages of codes that no longer exist.
fn left_over(root: &Path, documents: &[Document]) -> anyhow::Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(root.join(errors::FOLDER)) else {
        return Ok(Vec::new());
    };
    let mut left = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_known = documents
            .iter()
            .any(|document| root.join(&document.path) == path);
        if !is_known {
            left.push(path);
        }
    }
    Ok(left)
}

fn schema() -> String {
    format!("{:#}\n", landfast_spec::json_schema())
}

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let check = match arguments {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => bail!("usage: cargo xtask {USAGE}"),
    };
    let manifest_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest_folder
        .parent()
        .context("xtask is inside the workspace")?;
    let mut stale = Vec::new();
    let documents = documents();
    for path in left_over(root, &documents)? {
        if check {
            stale.push(path.display().to_string());
        } else {
            fs::remove_file(&path)?;
        }
    }
    for document in documents {
        let path = root.join(&document.path);
        let is_fresh = fs::read_to_string(&path).is_ok_and(|text| text == document.text);
        if is_fresh {
            continue;
        }
        if check {
            stale.push(document.path);
            continue;
        }
        let folder = path.parent().context("a document is in a folder")?;
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to make {}", folder.display()))?;
        fs::write(&path, &document.text)
            .with_context(|| format!("failed to write {}", document.path))?;
    }
    if !stale.is_empty() {
        bail!(
            "not as the code prints them: {}\nhint: cargo xtask docs",
            stale.join(", ")
        );
    }
    if check {
        let pages = book::check(root)?;
        println!("docs: {pages} pages; every link leads somewhere, every command they show exists");
    }
    Ok(())
}
