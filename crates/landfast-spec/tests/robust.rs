//! No text makes the decoder panic, and what it says always points into the text.

use landfast_spec::{
    FOLDER_FILES, FolderFacts, Severity, Style, check_all, environments, parse, render, scaffold,
};
use landfast_types::EnvironmentName;
use proptest::prelude::*;

const CONTRACT: &str = include_str!("fixtures/contract.toml");
const TEN: &str = include_str!("fixtures/ten-errors.toml");

fn hold(text: &str) {
    let production = EnvironmentName::new("production").expect("a name");
    let parsed = parse("landfast.toml", text, &production);
    let errors = parsed
        .diagnostics
        .iter()
        .any(|one| one.severity == Severity::Error);
    assert_eq!(parsed.spec.is_some(), !errors);
    for one in &parsed.diagnostics {
        assert!(text.get(one.span.clone()).is_some(), "{one} points outside");
        assert!(one.line >= 1 && one.column >= 1);
        assert!(!one.message.is_empty());
    }
    let _ = render(&parsed.diagnostics, text, Style::Plain);
    let _ = environments(text);
    if let Some(spec) = parsed.spec {
        let json = serde_json::to_string(&spec).expect("json");
        let again = serde_json::from_str(&json).expect("reads back");
        assert_eq!(spec, again);
        assert_eq!(
            spec.waves().iter().map(Vec::len).sum::<usize>(),
            spec.services.len()
        );
    }
}

/// Pieces that mean something to the grammar or to the manifest.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just("[[services]]\n".to_owned()),
        Just("\"\"\"".to_owned()),
        Just("'".to_owned()),
        Just("\"".to_owned()),
        Just("=".to_owned()),
        Just("{".to_owned()),
        Just("}".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("\0".to_owned()),
        Just("#".to_owned()),
        Just(".".to_owned()),
        Just("services.api = 1\n".to_owned()),
        Just("env = { A = { value = [] } }\n".to_owned()),
        Just("after = [\"api\", \"worker\"]\n".to_owned()),
        Just("1e999".to_owned()),
        Just("0xffffffffffffffffffff".to_owned()),
        "\\PC{0,12}",
        "[a-z_]{1,9} = [0-9]{1,25}\n",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        hold(&text);
    }

    #[test]
    fn any_mix_of_pieces_is_answered(pieces in prop::collection::vec(piece(), 0..40)) {
        hold(&pieces.concat());
    }

    #[test]
    fn any_mutation_of_a_whole_manifest_is_answered(
        ten in any::<bool>(),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..40, piece()), 1..6),
    ) {
        let mut text = if ten { TEN } else { CONTRACT }.to_owned();
        for (index, length, piece) in cuts {
            let start = text.floor_char_boundary(index.index(text.len() + 1));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end, &piece);
        }
        hold(&text);
    }

    #[test]
    fn any_folder_gives_a_manifest_without_errors(
        folder in "\\PC{0,50}",
        files in prop::collection::vec((prop::sample::select(FOLDER_FILES), "(\\PC{0,60}\n?){0,4}"), 0..6),
        procfile in "([a-z_-]{1,12}: ?[ -~]{0,40}\n){0,4}",
        package in "[ -~]{0,45}",
    ) {
        let mut facts = FolderFacts::new(&folder);
        files.iter().for_each(|(name, text)| facts.add_file(name, text));
        facts.add_file("Procfile", &procfile);
        facts.cargo_bins.push(package.clone());
        facts.cargo_package = Some(package);
        clean(&facts);
    }
}

fn clean(facts: &FolderFacts) -> String {
    let text = scaffold(facts);
    let diagnostics = check_all("landfast.toml", &text);
    assert!(
        diagnostics.is_empty(),
        "{}\n{text}",
        render(&diagnostics, &text, Style::Plain)
    );
    text
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for text in [
        format!("a = {}", "[".repeat(100_000)),
        format!("a = {}1{}", "[".repeat(50_000), "]".repeat(50_000)),
        format!("a = {}", "{ a = ".repeat(50_000)),
        format!("{}a = 1", "a.".repeat(200_000)),
        format!("[{}a]", "a.".repeat(200_000)),
    ] {
        hold(&text);
    }
}

#[test]
fn many_broken_lines_are_answered() {
    hold(&"a b c\n".repeat(20_000));
    hold(&"[x\n".repeat(20_000));
    hold(&"app = \"x\"\n".repeat(20_000));
}

#[test]
fn a_folder_with_a_cargo_package_gets_its_program() {
    let mut facts = FolderFacts::new("My Shop");
    facts.add_file("Cargo.toml", "[package]\nname = \"shop_api\"\n");
    facts.add_file("Dockerfile", "FROM x\nEXPOSE 8080/tcp 9090\n");
    insta::assert_snapshot!(clean(&facts));
}

#[test]
fn a_dockerfile_alone_is_built() {
    let mut facts = FolderFacts::new("shop");
    facts.add_file("Dockerfile", "FROM x\nEXPOSE 8080/tcp\n");
    insta::assert_snapshot!(clean(&facts));
}

#[test]
fn a_procfile_gives_a_service_per_line() {
    let mut facts = FolderFacts::new("shop");
    facts.add_file(
        "package.json",
        r#"{"name": "@acme/shop", "scripts": {"start": "node server.js"}}"#,
    );
    facts.add_file("Procfile", "web: node server.js --port $PORT\nworker: node work.js\nrelease: node migrate.js\n# x: y\n");
    insta::assert_snapshot!(clean(&facts));
}

#[test]
fn an_empty_folder_gets_a_manifest_to_fill_in() {
    let mut facts = FolderFacts::new("…");
    facts.add_file("index.html", "<h1>");
    insta::assert_snapshot!(clean(&facts));
}
