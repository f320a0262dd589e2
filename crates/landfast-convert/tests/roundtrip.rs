//! Compose → manifest → Compose: what `docker-compose config` reads of both is the same in meaning, or the key is named as not
//! carried. `docker-compose` needs no daemon for this.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests; docker-compose is the judge"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use landfast_convert::{ExportOptions, Fate, Import, export_compose};
use serde_json::Value;

use crate::common::{Fixture, environment, fixtures, import};

/// Files that docker-compose 1.29 itself refuses: newer keys, or made to be wrong.
const REFUSED: &[&str] = &[
    "broken-values",
    "circle",
    "newer-keys",
    "secrets-configs",
    "windows-paths",
];

#[test]
fn what_comes_back_is_what_was_there_or_is_named() {
    if !has_docker_compose() {
        return;
    }
    let (mut equal, mut files) = (0, 0);
    for fixture in fixtures() {
        if REFUSED.contains(&fixture.name.as_str()) {
            continue;
        }
        files += 1;
        equal += compare(&fixture);
    }
    // Most is carried: what is named only is not what this test is about.
    assert!(files >= 40, "{files}");
    assert!(equal >= 250, "{equal} values came back as they were");
    eprintln!("{files} files, {equal} values came back as they were");
}

#[test]
fn what_is_exported_of_every_file_is_valid() {
    if !has_docker_compose() {
        return;
    }
    for fixture in fixtures()
        .iter()
        .filter(|fixture| REFUSED.contains(&fixture.name.as_str()))
    {
        let folder = Folder::new(&fixture.name);
        exported(&folder, &import(fixture));
    }
}

fn has_docker_compose() -> bool {
    let found = Command::new("docker-compose")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: docker-compose is not installed (make setup)");
    }
    found
}

struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("landfast-roundtrip-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(path.join("shop")).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// How many values were equal. Panics at the first that is neither equal nor named.
fn compare(fixture: &Fixture) -> usize {
    let folder = Folder::new(&fixture.name);
    let shop = folder.0.join("shop");
    for entry in fs::read_dir(&fixture.folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), shop.join(entry.file_name())).unwrap();
    }
    let tree: Value = serde_saphyr::from_str(&fixture.text).unwrap();
    for context in contexts(&tree) {
        if !context.contains("://") {
            fs::create_dir_all(shop.join(context)).unwrap();
        }
    }
    let before = config(&shop, &fixture.file);
    let import = import(fixture);
    let after = exported(&folder, &import);
    let mut equal = 0;
    for (name, service) in before["services"].as_object().unwrap() {
        equal += service_of(fixture, &import, name, service, &after);
    }
    equal
}

fn contexts(tree: &Value) -> BTreeSet<String> {
    let services = tree["services"].as_object().unwrap().values();
    let contexts = services.filter_map(|service| {
        let build = service.get("build")?;
        let context = build.as_str().or_else(|| build["context"].as_str())?;
        Some(context.to_owned())
    });
    contexts.collect()
}

fn config(folder: &Path, file: &str) -> Value {
    let output = Command::new("docker-compose")
        .args(["--file", file, "config"])
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "docker-compose refuses {file} in {}: {said}",
        folder.display()
    );
    serde_saphyr::from_str(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

/// Exports what was imported, has docker-compose check it against its schema, and gives what it reads.
fn exported(folder: &Folder, import: &Import) -> Value {
    let parsed = landfast_spec::parse("landfast.toml", &import.manifest, &environment());
    let options = ExportOptions {
        project: "..".to_owned(),
        folder: "out".to_owned(),
    };
    let out = folder.0.join("shop/out");
    for file in export_compose(&parsed.spec.unwrap(), &options) {
        let path = out.join(&file.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &file.text).unwrap();
        if file.path == ".env.example" {
            let filled = file.text.lines().map(|line| {
                if line.ends_with('=') {
                    format!("{line}filled\n")
                } else {
                    format!("{line}\n")
                }
            });
            fs::write(out.join(".env"), filled.collect::<String>()).unwrap();
        }
    }
    for context in ["api", "both", "app", "nginx", "."] {
        fs::create_dir_all(folder.0.join("shop").join(context)).unwrap();
    }
    config(&out, "compose.yaml")
}

fn service_of(
    fixture: &Fixture,
    import: &Import,
    name: &str,
    before: &Value,
    after: &Value,
) -> usize {
    let place = format!("services.{name}");
    let own = import.marks.iter().find(|mark| mark.path == place);
    if own.is_some_and(|mark| matches!(mark.fate, Fate::NotCarried { .. }))
        && !has_key_marks(import, &place)
    {
        return 0;
    }
    // The comment above each table says which service it was.
    let table = import
        .manifest
        .split(&format!("# `{name}` of line"))
        .nth(1)
        .and_then(|rest| rest.lines().find(|line| line.starts_with('[')));
    let slug = table
        .and_then(|line| line.trim_matches(['[', ']']).split('.').nth(1))
        .unwrap_or(name)
        .to_owned();
    let services = after["services"].as_object().unwrap();
    let found = services
        .get(&slug)
        .or_else(|| services.get(&format!("job-{slug}")));
    let Some(found) = found else {
        panic!(
            "{}: `{name}` is neither there as `{slug}` nor named\n{}",
            fixture.name, import.manifest
        );
    };
    let is_store = import.manifest.contains(&format!("[stores.{slug}]"));
    let (old, new) = (normal(before), normal(found));
    let mut equal = 0;
    for (key, value) in &old {
        if is_store && key != "image" {
            continue;
        }
        let same = match (is_store, new.get(key)) {
            (true, Some(other)) => {
                let (old, new) = (store_image(value), store_image(other));
                // An image without a version is given one.
                old.0 == new.0 && (old.1.is_none() || old.1 == new.1)
            }
            // A volume without a name is given one.
            (false, Some(_)) if key.starts_with("mount.") && value.is_empty() => true,
            (false, other) => other == Some(value) || is_filled(import, key, other),
            (true, None) => false,
        };
        if same {
            equal += 1;
            continue;
        }
        assert!(
            is_named(import, name, key),
            "{}: {name}: {key} was {value:?} and came back as {:?}, and nothing says so\n{}",
            fixture.name,
            new.get(key),
            import.manifest
        );
    }
    equal
}

fn has_key_marks(import: &Import, place: &str) -> bool {
    import
        .marks
        .iter()
        .any(|mark| mark.path.starts_with(&format!("{place}.")))
}

/// The major version of a store, where the image names one.
fn store_image(image: &str) -> (String, Option<String>) {
    let (name, tag) = image.split_once(':').unwrap_or((image, ""));
    let major = tag
        .split(['.', '-'])
        .next()
        .filter(|word| word.parse::<u32>().is_ok());
    (name.to_owned(), major.map(str::to_owned))
}

/// A secret comes back as what `.env` was filled with.
fn is_filled(import: &Import, key: &str, value: Option<&String>) -> bool {
    let Some(name) = key.strip_prefix("environment.") else {
        return false;
    };
    value.is_some_and(|value| value == "filled")
        && import.secrets.iter().any(|secret| secret.name == name)
}

/// Whether something is said of the key that a value came from.
fn is_named(import: &Import, service: &str, key: &str) -> bool {
    let parts = key.split('.').collect::<Vec<_>>();
    let says = |path: &str, word: &str| {
        let path = path
            .strip_prefix(&format!("services.{service}."))
            .unwrap_or_default();
        path.starts_with(word)
    };
    import.marks.iter().any(|mark| {
        if matches!(mark.fate, Fate::Carried { .. }) && !key.starts_with("environment.") {
            return false;
        }
        match parts[0] {
            "environment" => {
                let name = key.strip_prefix("environment.").unwrap();
                let carried = matches!(mark.fate, Fate::Carried { .. });
                let of_store = matches!(&mark.fate, Fate::Carried { to } if to.contains("uses") || to.contains("route") || to == "port" || to.contains("Landfast sets"));
                (!carried || of_store) && (mark.path.ends_with(&format!(".{name}")) || mark.path.ends_with(&format!(":{name}")) || (says(&mark.path, "environment[") && of_item(import, mark, name)))
            }
            "cpus" | "memory" | "replicas" | "pids" => says(&mark.path, "deploy") || says(&mark.path, "cpus") || says(&mark.path, "mem_limit") || says(&mark.path, "scale"),
            "health" => says(&mark.path, "healthcheck"),
            "mount" => says(&mark.path, "volumes") || says(&mark.path, "tmpfs"),
            word => says(&mark.path, word),
        }
    })
}

/// An item of a list is known by its place alone, so its value must name the variable.
fn of_item(import: &Import, mark: &landfast_convert::Mark, name: &str) -> bool {
    let file = import.files.get(mark.place.file).unwrap();
    let fixture = fixtures().into_iter().find(|fixture| {
        fixture.file == *file
            && fixture
                .text
                .lines()
                .nth(mark.place.line as usize - 1)
                .is_some_and(|line| line.contains(name))
    });
    fixture.is_some()
}

/// What a service means, key by key.
fn normal(service: &Value) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut put = |key: &str, value: String| values.insert(key.to_owned(), value);
    match service.get("build") {
        Some(build) => {
            let text = |key: &str| build[key].as_str().map(str::to_owned);
            let context = build
                .as_str()
                .map(str::to_owned)
                .or(text("context"))
                .unwrap_or_default();
            put(
                "build.context",
                context.rsplit('/').next().unwrap_or_default().to_owned(),
            );
            for key in ["dockerfile", "target"] {
                text(key).map(|text| put(&format!("build.{key}"), text));
            }
            for (name, value) in build["args"].as_object().into_iter().flatten() {
                put(&format!("build.args.{name}"), scalar(value));
            }
        }
        None => {
            put("image", scalar(&service["image"]));
        }
    }
    for key in ["command", "entrypoint"] {
        argv(&service[key]).map(|argv| put(key, format!("{argv:?}")));
    }
    for (name, value) in service["environment"].as_object().into_iter().flatten() {
        put(
            &format!("environment.{name}"),
            scalar(value).replace("$$", "$"),
        );
    }
    let limits = &service["deploy"]["resources"]["limits"];
    let first = |a: &Value, b: &Value| {
        Some(scalar(if a.is_null() { b } else { a })).filter(|text| !text.is_empty())
    };
    if let Some(cpus) = first(&limits["cpus"], &service["cpus"]) {
        put(
            "cpus",
            format!("{:.3}", cpus.parse::<f64>().unwrap_or_default()),
        );
    }
    if let Some(memory) = first(&limits["memory"], &service["mem_limit"]) {
        put("memory", bytes(&memory).to_string());
    }
    if let Some(pids) = first(&limits["pids"], &service["pids_limit"]) {
        put("pids", pids);
    }
    let replicas = first(&service["deploy"]["replicas"], &service["scale"]);
    put("replicas", replicas.unwrap_or_else(|| "1".to_owned()));
    for volume in service["volumes"].as_array().into_iter().flatten() {
        let (source, target) = mount(volume);
        put(&format!("mount.{target}"), source);
    }
    health(&service["healthcheck"], &mut values);
    values
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn argv(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => Some(items.iter().map(scalar).collect()),
        Value::String(line) => Some(split(line)),
        _ => None,
    }
}

/// Words of a line, with quotes.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut open) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (Some(_), c) => word.push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                open = true;
            }
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() || open {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            (None, c) => word.push(c),
        }
    }
    if !word.is_empty() || open {
        words.push(word);
    }
    words
}

fn bytes(text: &str) -> u64 {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let factor = match text[end..].to_lowercase().as_str() {
        "k" | "kb" => 1_u64 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => 1,
    };
    (text[..end].parse::<f64>().unwrap_or_default() * factor as f64) as u64
}

/// Source and target of a mount; a named volume by the name that the manifest gives it.
fn mount(value: &Value) -> (String, String) {
    let (source, target) = match value {
        Value::String(text) => {
            let parts = text.split(':').collect::<Vec<_>>();
            match parts[..] {
                [target] => (String::new(), target.to_owned()),
                [source, target, ..] => (source.to_owned(), target.to_owned()),
                [] => Default::default(),
            }
        }
        other => (scalar(&other["source"]), scalar(&other["target"])),
    };
    let source = if source.starts_with('/') {
        source
    } else {
        source.replace('_', "-")
    };
    (source, target.trim_end_matches('/').to_owned())
}

fn health(value: &Value, values: &mut BTreeMap<String, String>) {
    let Some(fields) = value.as_object() else {
        return;
    };
    if fields.get("disable").is_some_and(|flag| flag == true) {
        values.insert("health.test".to_owned(), "none".to_owned());
        return;
    }
    let test = match &value["test"] {
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(" "),
        other => scalar(other),
    };
    let asked = if test == "NONE" {
        "none".to_owned()
    } else if let Some(index) = test.find("http://") {
        let rest = &test[index + 7..];
        let rest = rest.split([' ', '\'', '"']).next().unwrap_or_default();
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port = authority.split_once(':').map_or("80", |(_, port)| port);
        format!("http {port} /{path}")
    } else if test.contains("nc -z") || test.contains("nc ") {
        let port = test
            .split_whitespace()
            .find(|word| word.parse::<u16>().is_ok());
        format!("tcp {}", port.unwrap_or_default())
    } else {
        test
    };
    if !asked.is_empty() {
        values.insert("health.test".to_owned(), asked);
    }
    for key in ["interval", "timeout"] {
        if let Some(text) = fields.get(key) {
            values.insert(format!("health.{key}"), millis(&scalar(text)).to_string());
        }
    }
    if let Some(count) = fields.get("retries") {
        values.insert("health.retries".to_owned(), scalar(count));
    }
}

fn millis(text: &str) -> u64 {
    let mut total = 0.0;
    let mut rest = text;
    while let Some(end) = rest.find(|c: char| !c.is_ascii_digit() && c != '.') {
        let number = rest[..end].parse::<f64>().unwrap_or_default();
        let after = &rest[end..];
        let len = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        total += number
            * match &after[..len] {
                "ms" => 1.0,
                "s" => 1_000.0,
                "m" => 60_000.0,
                "h" => 3_600_000.0,
                _ => 0.0,
            };
        rest = &after[len..];
    }
    total as u64
}
