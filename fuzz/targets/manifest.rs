//! Any text as a manifest: never a panic, and every diagnostic points into the text.
#![no_main]

use landfast_spec::{Severity, Style, check_all, parse, render};
use landfast_types::EnvironmentName;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let production = EnvironmentName::new("production").expect("a name");
    let parsed = parse("landfast.toml", text, &production);
    let errors = parsed
        .diagnostics
        .iter()
        .any(|one| one.severity == Severity::Error);
    assert_eq!(parsed.spec.is_some(), !errors);
    for one in parsed.diagnostics.iter().chain(&check_all("landfast.toml", text)) {
        assert!(text.get(one.span.clone()).is_some(), "{one} points outside");
        assert!(one.line >= 1 && one.column >= 1 && !one.message.is_empty());
    }
    drop(render(&parsed.diagnostics, text, Style::Plain));
    if let Some(spec) = parsed.spec {
        let json = serde_json::to_string(&spec).expect("json");
        assert_eq!(spec, serde_json::from_str(&json).expect("reads back"));
    }
});
