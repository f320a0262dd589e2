//! The Compose files of the tests.

pub mod nginx;

use std::{collections::BTreeMap, fs, path::PathBuf};

use landfast_convert::{ComposeOptions, ConvertError, Import, Source, import_compose};
use landfast_types::EnvironmentName;

/// One of the files.
#[derive(Clone)]
pub struct Fixture {
    pub name: String,
    pub folder: PathBuf,
    /// The file's own name.
    pub file: String,
    pub text: String,
}

pub fn environment() -> EnvironmentName {
    EnvironmentName::new("production").unwrap()
}

/// All of them, in order of name.
pub fn fixtures() -> Vec<Fixture> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compose");
    let mut folders = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect::<Vec<_>>();
    folders.sort();
    let names = [
        "compose.yaml",
        "compose.yml",
        "docker-compose.yml",
        "docker-stack.yml",
    ];
    let fixtures = folders.into_iter().map(|folder| {
        let file = names
            .iter()
            .find(|name| folder.join(name).exists())
            .unwrap();
        Fixture {
            name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            text: fs::read_to_string(folder.join(file)).unwrap(),
            file: (*file).to_owned(),
            folder,
        }
    });
    fixtures.collect()
}

pub fn options<'a>(
    sources: &'a [Source],
    environment: &'a BTreeMap<String, String>,
    profiles: &'a [String],
    read: &'a dyn Fn(&str) -> Option<String>,
) -> ComposeOptions<'a> {
    ComposeOptions {
        sources,
        environment,
        profiles,
        folder: "shop",
        app: None,
        read,
    }
}

pub fn with_profiles(fixture: &Fixture, profiles: &[String]) -> Result<Import, ConvertError> {
    let sources = [Source {
        name: fixture.file.clone(),
        text: fixture.text.clone(),
    }];
    let environment = BTreeMap::new();
    let folder = fixture.folder.clone();
    let read = move |path: &str| fs::read_to_string(folder.join(path)).ok();
    import_compose(&options(&sources, &environment, profiles, &read))
}

pub fn try_import(fixture: &Fixture) -> Result<Import, ConvertError> {
    with_profiles(fixture, &[])
}

pub fn import(fixture: &Fixture) -> Import {
    try_import(fixture).unwrap_or_else(|error| panic!("{}: {error}", fixture.name))
}
