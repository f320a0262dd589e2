//! The JSON Schema and the decoder say the same about the same files.

use landfast_spec::{CATALOGUE, Kind, Severity, json_schema, parse};
use landfast_types::EnvironmentName;
use serde_json::{Value, json};

/// What of JSON Schema 2020-12 our schema uses. A keyword it does not know is an error, so the schema cannot
/// grow past its test.
fn refuse(schema: &Value, root: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let rules = schema.as_object().expect("a schema is an object");
    let mut say = |what: String| found.push(format!("{at}: {what}"));
    for (keyword, rule) in rules {
        match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" | "examples" => {}
            "type" => {
                let is = |word: &str| match word {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "number" => value.is_number(),
                    "integer" => value.is_i64() || value.is_u64(),
                    other => panic!("type {other}"),
                };
                let fits = match rule.as_array() {
                    Some(words) => words.iter().any(|word| is(word.as_str().expect("word"))),
                    None => is(rule.as_str().expect("word")),
                };
                if !fits {
                    say(format!("not of type {rule}"));
                }
            }
            "enum" => {
                if !rule.as_array().expect("list").contains(value) {
                    say(format!("not one of {rule}"));
                }
            }
            "minimum" | "maximum" | "minLength" | "maxLength" | "minItems" | "maxItems" => {
                let bound = rule.as_f64().expect("number");
                let size = match keyword.as_str() {
                    "minimum" | "maximum" => value.as_f64(),
                    "minLength" | "maxLength" => {
                        value.as_str().map(|text| text.chars().count() as f64)
                    }
                    _ => value.as_array().map(|items| items.len() as f64),
                };
                let is_low = keyword.starts_with("min");
                if size.is_some_and(|size| if is_low { size < bound } else { size > bound }) {
                    say(format!("{keyword} {bound}"));
                }
            }
            "uniqueItems" => {
                let items = value.as_array().cloned().unwrap_or_default();
                if (1..items.len()).any(|index| items[..index].contains(&items[index])) {
                    say("not unique".to_owned());
                }
            }
            // The workspace has no engine for patterns: keys and types are compared here, forms are not.
            "pattern" | "propertyNames" => {}
            "required" => {
                for name in rule.as_array().expect("list") {
                    let name = name.as_str().expect("name");
                    if value.is_object() && value.get(name).is_none() {
                        say(format!("{name} is missing"));
                    }
                }
            }
            "properties" | "additionalProperties" | "items" | "$ref" | "anyOf" => {}
            other => panic!("keyword {other} is not known to the test"),
        }
    }
    if let Some(target) = rules.get("$ref").and_then(Value::as_str) {
        let target = root
            .pointer(target.trim_start_matches('#'))
            .expect("it leads somewhere");
        refuse(target, root, value, at, found);
    }
    if let Some(Value::Array(choices)) = rules.get("anyOf") {
        let fits = |choice: &Value| {
            let mut inner = Vec::new();
            refuse(choice, root, value, at, &mut inner);
            inner.is_empty()
        };
        if !choices.iter().any(fits) {
            found.push(format!("{at}: no choice fits"));
        }
    }
    if let (Some(items), Some(values)) = (rules.get("items"), value.as_array()) {
        values
            .iter()
            .for_each(|value| refuse(items, root, value, at, found));
    }
    if let Some(fields) = value.as_object() {
        let none = json!({});
        let properties = rules.get("properties").unwrap_or(&none);
        for (name, field) in fields {
            let at = format!("{at}/{name}");
            match (properties.get(name), rules.get("additionalProperties")) {
                (Some(schema), _) => refuse(schema, root, field, &at, found),
                (None, Some(Value::Bool(false))) => found.push(format!("{at}: unknown")),
                (None, Some(schema)) => refuse(schema, root, field, &at, found),
                (None, None) => {}
            }
        }
    }
}

fn schema_says(text: &str) -> Vec<String> {
    let value: Value = toml::from_str(text).expect("TOML");
    let (schema, mut found) = (json_schema(), Vec::new());
    refuse(&schema, &schema, &value, "", &mut found);
    found
}

fn decoder_refuses(text: &str) -> bool {
    let production = EnvironmentName::new("production").expect("a name");
    let diagnostics = parse("landfast.toml", text, &production).diagnostics;
    diagnostics
        .iter()
        .any(|one| one.severity == Severity::Error)
}

/// A manifest in which the key at `path` has the given value, whole but for that.
fn manifest_with(path: &str, value: &str) -> String {
    let mut table: toml::Table = toml::from_str(
        "app = \"x\"\nservices.n = { artifact = \"a\", command = [\"a\"], port = 1 }\n\
         routes.n = { host = \"n.example\", service = \"n\" }\njobs.n = { artifact = \"a\", command = [\"a\"] }\n",
    )
    .expect("TOML");
    if path.starts_with("routes.*.tls") || path == "routes.*.https_only" {
        set(
            &mut table,
            "routes.n.tls",
            "{ certificate = \"/c\", key = \"/k\" }",
        );
    }
    if path.starts_with("routes.*.auth.") {
        set(
            &mut table,
            "routes.n.auth.users",
            "[\"ann:$2y$10$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e\"]",
        );
    }
    if path.starts_with("routes.*.cors.") {
        set(
            &mut table,
            "routes.n.cors.origins",
            "[\"https://a.example\"]",
        );
    }
    if path.starts_with("routes.*.files.") {
        set(&mut table, "routes.n.files.folder", "\"public\"");
    }
    if path.starts_with("stores.*") {
        set(&mut table, "stores.n.engine", "\"postgres\"");
    }
    if path.starts_with("secrets.*.") {
        set(&mut table, "secrets.n.rotate", "\"0 3 * * * UTC\"");
    }
    if path.starts_with("stores.*.external.") {
        set(&mut table, "stores.n.external.url_secret", "\"N_URL\"");
    }
    if path.starts_with("stores.*.backup") {
        set(&mut table, "stores.n.backup.to", "\"s3://kept/n\"");
    }
    if path.starts_with("volumes.*.backup") {
        set(&mut table, "services.n.volumes.n", "\"/n\"");
        set(&mut table, "volumes.n.backup.to", "\"s3://kept/n\"");
    }
    if path.starts_with("stores.*.backup.drill.checks") {
        set(
            &mut table,
            "stores.n.backup.drill.checks.n.sql",
            "\"SELECT 1\"",
        );
        set(&mut table, "stores.n.backup.drill.checks.n.expect", "\"1\"");
    }
    if path.starts_with("deploy.probe") {
        set(&mut table, "deploy.probe", "{ path = \"/\" }");
    }
    if path == "deploy.gates" {
        set(&mut table, "jobs.n.when", "\"gate:smoke\"");
    }
    for table_name in ["services", "jobs"] {
        let Some(key) = path.strip_prefix(&format!("{table_name}.*.")) else {
            continue;
        };
        if is_of_containers(key) {
            let process = table[table_name]["n"].as_table_mut().expect("a table");
            process.remove("artifact");
            if !key.starts_with("build") {
                process.insert("image".to_owned(), "nginx".into());
            }
        }
        if key.starts_with("volumes.*.") {
            set(
                &mut table,
                &format!("{table_name}.n.volumes.n.from"),
                "\"managed\"",
            );
        }
    }
    if path.starts_with("registries.*.") {
        for key in ["user_secret", "password_secret"] {
            set(&mut table, &format!("registries.localhost.{key}"), "\"N\"");
        }
    }
    let name = if path.contains(".env.*") { "V" } else { "n" };
    let path = path
        .replacen(".env.*", &format!(".env.{name}"), 1)
        .replacen("registries.*", "registries.localhost", 1)
        .replace('*', "n");
    set(&mut table, &path, value);
    toml::to_string(&table).expect("TOML")
}

/// Whether a key of a service or job is for what has an image.
fn is_of_containers(key: &str) -> bool {
    let words = ["image", "pull", "build", "entrypoint", "reserve"];
    let of_sandbox = ["root", "writable", "tmpfs", "capabilities"];
    let first = key.split('.').next().expect("one");
    let in_sandbox = key.strip_prefix("sandbox.");
    words.contains(&first)
        || in_sandbox.is_some_and(|key| of_sandbox.contains(&key))
        || key == "volumes.*.at"
}

fn set(table: &mut toml::Table, path: &str, value: &str) {
    let wrapped: toml::Table = toml::from_str(&format!("v = {value}")).expect("TOML");
    let (parents, name) = path
        .rsplit_once('.')
        .map_or((Vec::new(), path), |(parents, name)| {
            (parents.split('.').collect(), name)
        });
    let mut at = table;
    for parent in parents {
        let entry = at
            .entry(parent)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry.as_table_mut().expect("a table");
    }
    at.insert(name.to_owned(), wrapped["v"].clone());
}

#[test]
fn every_key_of_the_catalogue_is_taken_by_both() {
    for key in CATALOGUE
        .iter()
        .filter(|key| key.later.is_none() && !key.example.is_empty())
    {
        // `after = ["api"]` and the like name what the example's own manifest has.
        let example = if key.kind == Kind::ServiceName {
            "\"n\""
        } else if matches!(key.kind, Kind::ServiceNames | Kind::StoreNames) {
            "[]"
        } else if key.path.contains(".env.*.") && key.name() == "type" {
            "\"string\""
        } else {
            key.example
        };
        let text = manifest_with(key.path, example);
        assert!(!decoder_refuses(&text), "{}:\n{text}", key.path);
        assert_eq!(
            schema_says(&text),
            Vec::<String>::new(),
            "{}:\n{text}",
            key.path
        );
    }
}

#[test]
fn every_misspelt_key_is_refused_by_both() {
    for key in CATALOGUE {
        if key.parent().ends_with(".env.*") && key.name() == "type" {
            continue;
        }
        let text = manifest_with(&format!("{}x", key.path), "1");
        assert!(decoder_refuses(&text), "{}:\n{text}", key.path);
        assert!(!schema_says(&text).is_empty(), "{}:\n{text}", key.path);
    }
}

#[test]
fn every_key_of_a_later_part_is_refused_by_both() {
    for key in CATALOGUE.iter().filter(|key| key.later.is_some()) {
        let text = manifest_with(key.path, "{}");
        assert!(decoder_refuses(&text), "{}", key.path);
        assert!(!schema_says(&text).is_empty(), "{}", key.path);
    }
}

#[test]
fn a_value_of_a_wrong_type_is_refused_by_both() {
    for key in CATALOGUE.iter().filter(|key| key.later.is_none()) {
        let text = manifest_with(key.path, "[[1]]");
        assert!(decoder_refuses(&text), "{}:\n{text}", key.path);
        assert!(!schema_says(&text).is_empty(), "{}:\n{text}", key.path);
        let text = manifest_with(key.path, "1979-05-27");
        assert!(decoder_refuses(&text), "{}:\n{text}", key.path);
    }
}

#[test]
fn every_required_key_is_wanted_by_both() {
    for text in [
        "",
        "app = \"x\"\nservices.a = { command = [\"a\"] }",
        "app = \"x\"\nservices.a = { artifact = \"a\" }",
    ] {
        assert!(decoder_refuses(text), "{text}");
        let is_whole = text.is_empty() || !schema_says(text).is_empty();
        assert!(is_whole, "{text}");
    }
    assert_eq!(schema_says(""), [": app is missing"]);
}

#[test]
fn overlays_need_not_repeat_what_the_file_says() {
    let text = "app = \"x\"\nservices.a = { artifact = \"a\", command = [\"a\"] }\n[environments.production]\nservices.a.replicas = 2\n";
    assert!(!decoder_refuses(text));
    assert_eq!(schema_says(text), Vec::<String>::new());
    let nested = format!("{text}app = \"y\"\n");
    assert!(decoder_refuses(&nested));
    assert_eq!(
        schema_says(&nested),
        ["/environments/production/app: unknown"]
    );
}
