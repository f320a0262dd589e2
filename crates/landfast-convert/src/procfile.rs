//! A Procfile becomes a manifest by the same reader as `landfast init`; what it cannot read is named.

use landfast_spec::{FolderFacts, scaffold};

use crate::{
    Import, Source,
    ledger::{Fate, Mark},
    yaml::Place,
};

/// Imports a Procfile. `facts` is what else was found in its folder.
pub fn import_procfile(source: &Source, facts: FolderFacts) -> Import {
    let mut facts = facts;
    facts.procfile.clear();
    facts.add_file("Procfile", &source.text);
    let manifest = scaffold(&facts);
    let table = manifest.parse::<toml::Table>().unwrap_or_default();
    let has =
        |group: &str, name: &str| table.get(group).and_then(|group| group.get(name)).is_some();
    let mut marks = Vec::new();
    for (line, number) in source.text.lines().zip(1_u32..) {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let name = trimmed.split_once(':').map(|(name, _)| name.trim());
        let slug = name.and_then(crate::slug);
        let fate = match (name, slug) {
            (Some("release"), _) if has("jobs", "release") => Fate::Carried {
                to: "jobs.release".to_owned(),
            },
            (Some(_), Some(slug)) if has("services", &slug) => Fate::Carried {
                to: format!("services.{slug}"),
            },
            _ => Fate::NotCarried {
                reason: "it is no `name: command`".to_owned(),
                instead: "write it as `web: ./server`".to_owned(),
            },
        };
        let path = name.map_or_else(|| format!("line {number}"), str::to_owned);
        let place = Place {
            file: 0,
            line: number,
            column: 1,
        };
        marks.push(Mark { path, place, fate });
    }
    Import {
        manifest,
        files: vec![source.name.clone()],
        marks,
        decisions: vec!["every process type runs from the same artifact; the first of `web`, `api`, `http` and `app` has a route".to_owned()],
        secrets: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_carried_or_named() {
        let source = Source {
            name: "Procfile".to_owned(),
            text: "# c\nweb: bundle exec puma -p $PORT\nworker: ./work\nrelease: ./migrate\nnonsense\n\n1: x\n".to_owned(),
        };
        let import = import_procfile(&source, FolderFacts::new("shop"));
        let fates = import
            .marks
            .iter()
            .map(|mark| (mark.place.line, matches!(mark.fate, Fate::Carried { .. })));
        assert_eq!(
            fates.collect::<Vec<_>>(),
            [(2, true), (3, true), (4, true), (5, false), (7, false)]
        );
        let environment = "production".parse::<String>().unwrap();
        let environment = landfast_types::EnvironmentName::new(&environment).unwrap();
        let parsed = landfast_spec::parse("landfast.toml", &import.manifest, &environment);
        assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
    }
}
