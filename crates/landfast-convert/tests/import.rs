//! Compose files of many shapes: each imports into a manifest that parses, and no key of any is passed over in silence.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod common;

use std::collections::BTreeMap;

use landfast_convert::{Fate, Import, Source, import_compose};
use proptest::prelude::*;

use crate::common::{Fixture, environment, fixtures, import, options};

#[test]
fn there_are_forty_and_each_imports_into_a_manifest_that_parses() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 40, "{}", fixtures.len());
    for fixture in &fixtures {
        let import = import(fixture);
        let parsed = landfast_spec::parse("landfast.toml", &import.manifest, &environment());
        assert!(
            parsed.spec.is_some(),
            "{}: {:#?}\n{}",
            fixture.name,
            parsed.diagnostics,
            import.manifest
        );
    }
}

#[test]
fn every_key_is_carried_or_named() {
    for fixture in fixtures() {
        let import = import(&fixture);
        let tree: serde_json::Value = serde_saphyr::from_str(&fixture.text).unwrap();
        let mut leaves = Vec::new();
        collect(&tree, String::new(), &mut leaves);
        assert!(!leaves.is_empty());
        for leaf in leaves {
            let found = covering(&import, &leaf);
            let Some((path, fate)) = found else {
                panic!(
                    "{}: nothing is said of `{leaf}`\n{:#?}",
                    fixture.name, import.marks
                );
            };
            // Each shape that is no mistake has a reader that knows it.
            if let Fate::NotCarried { reason, .. } = fate {
                let is_made_wrong = fixture.name == "broken-values";
                assert!(
                    is_made_wrong || !reason.contains("nothing reads it"),
                    "{}: {leaf}",
                    fixture.name
                );
            }
            // What is carried is carried value by value; only what is left out may be named as a whole.
            if matches!(fate, Fate::Carried { .. }) {
                assert_eq!(
                    path, leaf,
                    "{}: `{path}` is said to be carried as a whole",
                    fixture.name
                );
            }
        }
    }
}

#[test]
fn what_is_not_carried_has_a_line_a_reason_and_what_to_do() {
    for fixture in fixtures() {
        let import = import(&fixture);
        for mark in import.not_carried() {
            let Fate::NotCarried { reason, instead } = &mark.fate else {
                continue;
            };
            assert!(!reason.is_empty() && !instead.is_empty(), "{mark:?}");
            let text = import.files.get(mark.place.file).unwrap();
            assert!(mark.place.line > 0, "{mark:?} of {text}");
            // Every one of them is in the manifest too, where a person reads it.
            let flat = import
                .manifest
                .lines()
                .map(|line| line.trim_start_matches("# ").trim());
            let flat = flat.collect::<Vec<_>>().join(" ");
            let words = reason.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(
                flat.contains(&words),
                "{}: {words}\n{}",
                fixture.name,
                import.manifest
            );
        }
    }
}

#[test]
fn lines_are_those_of_the_file() {
    let fixture = fixtures()
        .into_iter()
        .find(|fixture| fixture.name == "dev-setup")
        .unwrap();
    let import = import(&fixture);
    let lines = fixture.text.lines().collect::<Vec<_>>();
    for mark in &import.marks {
        let key = mark.path.rsplit('.').next().unwrap();
        let key = key.split(['[', ':']).next().unwrap();
        let line = lines[mark.place.line as usize - 1];
        if !mark.path.contains('[') {
            assert!(
                line.contains(key),
                "{}: line {} is {line}",
                mark.path,
                mark.place.line
            );
        }
    }
}

#[test]
fn values_of_secrets_are_written_nowhere() {
    let planted = [
        "hunter2hunter2",
        "t0ken-value",
        "s3cr3t-smtp",
        "change_me_please",
        "shop:shop",
        "apppw",
        "ncpw",
        "redispw",
        "rootpw",
        "root:example",
        "geo@",
    ];
    for fixture in fixtures() {
        let import = import(&fixture);
        let report = import.report().to_string();
        for secret in planted {
            assert!(
                !import.manifest.contains(secret),
                "{}: {secret}\n{}",
                fixture.name,
                import.manifest
            );
            assert!(!report.contains(secret), "{}: {secret}", fixture.name);
        }
    }
}

#[test]
fn a_profile_that_is_asked_for_is_there() {
    let fixture = fixtures()
        .into_iter()
        .find(|fixture| fixture.name == "profiles")
        .unwrap();
    let without = import(&fixture);
    assert!(!without.manifest.contains("[services.adminer]"));
    let profiles = ["debug".to_owned()];
    let with = common::with_profiles(&fixture, &profiles).unwrap();
    assert!(
        with.manifest.contains("[services.adminer]") && with.manifest.contains("[services.mail]")
    );
}

#[test]
fn bad_files_are_told_with_their_place() {
    for (text, what) in [
        ("services:\n  web:\n    image: \"x\n", "compose.yaml:"),
        ("services:\n\tweb: x\n", "compose.yaml:2"),
        ("- a\n", "compose.yaml:1:1"),
        ("", "no service"),
        ("services: {}\n", "no service"),
        ("web:\n  image: x\n", "no service"),
        ("services:\n  web:\n    image: ${X\n", "compose.yaml:3"),
        (
            "services:\n  web:\n    image: a:${TAG:?which one}\n",
            "which one",
        ),
        (
            "services:\n  a: {image: x}\n  a: {image: y}\n",
            "compose.yaml:3",
        ),
    ] {
        let error = import_text(text).unwrap_err();
        assert!(error.contains(what), "{text}: {error}");
    }
}

fn import_text(text: &str) -> Result<Import, String> {
    let sources = [Source {
        name: "compose.yaml".to_owned(),
        text: text.to_owned(),
    }];
    let environment = BTreeMap::new();
    let read = |_: &str| None;
    import_compose(&options(&sources, &environment, &[], &read)).map_err(|error| error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is cut, doubled or changed in a file: an answer, no panic; and a manifest that parses, or that says where it does not.
    #[test]
    fn changed_files_never_panic(
        which in 0_usize..1_000,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..6, any::<char>()), 1..8),
    ) {
        let fixtures = fixtures();
        let fixture = &fixtures[which % fixtures.len()];
        let mut chars = fixture.text.chars().collect::<Vec<_>>();
        for (index, kind, c) in changes {
            if chars.is_empty() {
                break;
            }
            let at = index.index(chars.len());
            match kind {
                0 => chars.truncate(at),
                1 => chars.insert(at, c),
                2 => chars[at] = c,
                3 => { chars.remove(at); }
                4 => chars[at] = [':', '-', '$', '{', '}', '[', ']', '"', '*', '&', '\n'][c as usize % 11],
                _ => {
                    let end = (at + 20).min(chars.len());
                    let part = chars[at..end].to_vec();
                    chars.extend(part);
                }
            }
        }
        let changed = Fixture { text: chars.into_iter().collect(), ..fixture.clone() };
        if let Ok(import) = common::try_import(&changed) {
            let parsed = landfast_spec::parse("landfast.toml", &import.manifest, &environment());
            let is_said = import.decisions.iter().any(|text| text.contains("landfast check"));
            prop_assert!(parsed.spec.is_some() || is_said, "{:#?}\n{}\n{}", parsed.diagnostics, changed.text, import.manifest);
        }
    }
}

fn collect(value: &serde_json::Value, path: String, leaves: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                collect(value, path, leaves);
            }
        }
        serde_json::Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                collect(value, format!("{path}[{index}]"), leaves);
            }
        }
        _ => leaves.push(path),
    }
}

/// What is said of a path, or of what it is in.
fn covering<'i>(import: &'i Import, leaf: &str) -> Option<(&'i str, &'i Fate)> {
    let marks = import.marks.iter().filter(|mark| {
        let rest = leaf.strip_prefix(mark.path.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    });
    let longest = marks.max_by_key(|mark| mark.path.len())?;
    Some((&longest.path, &longest.fate))
}

/// Secrets of `.env` and of the shell, by the names and by the forms of their values, in keys of every kind.
#[test]
fn secrets_that_are_interpolated_are_written_in_no_key() {
    let text = "services:
  web:
    image: example/web:${TAG}
    command: [serve, --key, '${STRIPE_KEY}']
    entrypoint: run ${JWT_SECRET_V2}
    labels: {note: 'x-${GPG_PASSPHRASE}'}
    build: {context: ., args: {A: '${INNER}', B: plain}}
    environment: ['URL=http://x/${SIGNING}', 'OTHER=${FORM}', 'MODE=${MODE}', 'JWT_SECRET_V3=planted-7']
    healthcheck: {test: [CMD, curl, 'http://a:${PW}@localhost/']}
x-note: ${API_CREDENTIAL_ONE:-planted-8}
";
    let dotenv = "TAG=1.2\nSTRIPE_KEY=planted-1\nJWT_SECRET_V2=planted-2\nINNER=a-$STRIPE_KEY\nSIGNING=b-$JWT_SECRET_V2\nPW=planted-6\nMODE=fast\n";
    let sources = [Source {
        name: "compose.yaml".to_owned(),
        text: text.to_owned(),
    }];
    let shell = BTreeMap::from([
        ("GPG_PASSPHRASE".to_owned(), "planted-3".to_owned()),
        ("FORM".to_owned(), "sk_live_planted-4-0123456789".to_owned()),
    ]);
    let read = |path: &str| (path == ".env").then(|| dotenv.to_owned());
    let import = import_compose(&options(&sources, &shell, &[], &read)).unwrap();
    let report = import.report().to_string();
    for text in [&import.manifest, &report] {
        assert!(!text.contains("planted"), "{text}");
    }
    for path in [
        "services.web.command",
        "services.web.command[2]",
        "services.web.entrypoint",
        "services.web.labels.note",
        "services.web.build.args.A",
        "services.web.healthcheck.test[2]",
        "x-note",
    ] {
        let mark = import.not_carried().find(|mark| mark.path == path);
        let mark = mark.unwrap_or_else(|| panic!("{path}: {:#?}", import.marks));
        assert!(
            format!("{:?}", mark.fate).contains("looks like a secret"),
            "{mark:?}"
        );
    }
    // What is no secret is there.
    for text in ["B = \"plain\"", "MODE", "\"fast\""] {
        assert!(
            import.manifest.contains(text),
            "{text}\n{}",
            import.manifest
        );
    }
    let secrets = import.secrets.iter().map(|secret| secret.name.as_str());
    assert_eq!(
        secrets.collect::<Vec<_>>(),
        ["JWT_SECRET_V3", "OTHER", "URL"]
    );
}
