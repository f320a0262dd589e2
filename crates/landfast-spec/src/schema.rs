//! The JSON Schema of the manifest, for editors: printed from the catalogue, so it knows the keys the decoder
//! knows and no others. Forms are given as patterns; what reaches across keys only the decoder can say.

use serde_json::{Map, Value, json};

use crate::catalogue::{Key, Kind, child, children};

const NAME: &str = "^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$";
const DURATION: &str = r"^\s*(0|([0-9]+(\.[0-9]+)?(us|ms|s|m|h|d)\s*)+)$";
const VARIABLE: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
const REGISTRY: &str = r"^[A-Za-z0-9.\[\]:-]+$";
const SETTING: &str = "^[a-z][a-z0-9_.-]*$";

/// The schema, draft 2020-12.
pub fn json_schema() -> Value {
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "landfast.toml",
        "description": "One app for Landfast: its services, jobs, routes and how they are deployed.",
    });
    extend(&mut schema, table("", |_| true));
    let overlay = table("", |key| !matches!(key.path, "app" | "environments"));
    schema["$defs"] = json!({ "overlay": without_required(overlay) });
    schema
}

fn extend(schema: &mut Value, more: Value) {
    if let (Value::Object(schema), Value::Object(more)) = (schema, more) {
        schema.extend(more);
    }
}

fn table(parent: &str, wanted: impl Fn(&Key) -> bool) -> Value {
    let keys = || children(parent).filter(|key| key.later.is_none() && wanted(key));
    let properties = keys()
        .map(|key| (key.name().to_owned(), property(key)))
        .collect::<Map<_, _>>();
    let required = keys()
        .filter(|key| key.required)
        .map(Key::name)
        .collect::<Vec<_>>();
    let mut schema =
        json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if matches!(parent, "services.*" | "jobs.*") {
        // What is run says what must be said of it; a plain process has no command of its own.
        schema["anyOf"] = json!([
            { "required": ["artifact", "command"] },
            { "required": ["image"] },
            { "required": ["build"] },
        ]);
    }
    schema
}

/// An overlay need not say again what the file says.
fn without_required(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(fields) => {
            if fields.get("required").is_some_and(Value::is_array) {
                fields.remove("required");
            }
            fields
                .values_mut()
                .for_each(|field| *field = without_required(field.take()));
        }
        Value::Array(items) => {
            items
                .iter_mut()
                .for_each(|item| *item = without_required(item.take()));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    schema
}

fn property(key: &Key) -> Value {
    let mut schema = form(key);
    schema["description"] = json!(key.doc);
    if let Some(setting) = key.default {
        schema["default"] = toml_to_json(&setting.value.to_string());
    }
    if !key.example.is_empty() && !key.kind.is_table() {
        schema["examples"] = json!([toml_to_json(key.example)]);
    }
    schema
}

fn named(pattern: &str, value: Value) -> Value {
    json!({
        "type": "object",
        "propertyNames": { "pattern": pattern },
        "additionalProperties": value,
    })
}

/// Values are written in TOML, which for all of them is also JSON.
fn toml_to_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

fn form(key: &Key) -> Value {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    match key.kind {
        Kind::Name | Kind::ServiceName => text(NAME),
        Kind::SecretName => text(VARIABLE),
        Kind::SecretNames => json!({ "type": "array", "items": text(VARIABLE) }),
        Kind::ImageName => text(r"^[A-Za-z0-9\[][A-Za-z0-9._:/@\[\]-]*$"),
        Kind::Build => json!({
            "anyOf": [{ "type": "string", "minLength": 1 }, table(key.path, |_| true)],
        }),
        Kind::BuildArguments => named(VARIABLE, json!({ "type": ["string", "number", "boolean"] })),
        Kind::VolumePlace => text("^(managed|/.+)$"),
        Kind::ContainerPath => text("^/[^:,]+$"),
        Kind::ContainerPaths => json!({ "type": "array", "items": text("^/[^:,]+$") }),
        Kind::Capabilities => json!({ "type": "array", "items": text("^[A-Za-z_]+$") }),
        Kind::Version => text(r"^[0-9]{1,4}(\.[0-9]{1,4}){0,2}$"),
        Kind::Settings => named(SETTING, json!({ "type": ["string", "number", "boolean"] })),
        Kind::ServiceNames | Kind::StoreNames => json!({ "type": "array", "items": text(NAME) }),
        Kind::ArtifactPath => json!({ "type": "string", "minLength": 1 }),
        Kind::HostPath => text("^/.+$"),
        Kind::HostPaths => json!({ "type": "array", "items": text("^/.+$") }),
        Kind::Argv => {
            json!({ "type": "array", "minItems": 1, "maxItems": 256, "items": { "type": "string" } })
        }
        Kind::Port => json!({ "type": "integer", "minimum": 1, "maximum": 65_535 }),
        Kind::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Duration { .. } => text(DURATION),
        Kind::Size { .. } => {
            text(r"^\s*[0-9]+(\.[0-9]+)?\s*(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)\s*$")
        }
        Kind::Cpu => text(r"^\s*[0-9]+(\.[0-9]+)?m?\s*$"),
        Kind::Share => json!({
            "anyOf": [
                { "type": "integer", "minimum": 0, "maximum": 500 },
                text(r"^(100|[0-9]{1,2})\s*%$"),
            ],
        }),
        Kind::Steps => json!({
            "type": "array",
            "minItems": 1,
            "items": { "type": "integer", "minimum": 1, "maximum": 100 },
        }),
        Kind::Word(words) => json!({ "enum": words }),
        Kind::Gates => json!({
            "type": "array",
            "uniqueItems": true,
            "items": { "enum": crate::spec::Gate::WORDS },
        }),
        Kind::When => text(r"^(hand|gate:smoke|\S+(\s+\S+){5})$"),
        Kind::ScheduleUtc => text(r"^\S+(\s+\S+){4,5}$"),
        Kind::BackupPlace => text("^(/|s3://)"),
        Kind::Schedule => text(r"^\S+(\s+\S+){5}$"),
        Kind::Probe => text("^(http:/.*|tcp|image|none)$"),
        Kind::Host => text(r"^(\*|(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*)$"),
        Kind::RoutePath | Kind::RequestPath => text("^/"),
        Kind::Url => text("^https?://"),
        Kind::Rate => text(r"^[0-9]+\s*/s$"),
        Kind::RequestRate => text(r"^[0-9]+\s*/\s*[smh]$"),
        Kind::CountBy => text("^(client|route|(header|cookie):.+)$"),
        Kind::Networks => json!({
            "type": "array",
            "minItems": 1,
            "items": { "type": "string", "pattern": "^[0-9A-Fa-f:.]+(/[0-9]+)?$" },
        }),
        Kind::Line => text("^[ -~]*$"),
        Kind::FieldNames | Kind::Methods => {
            json!({ "type": "array", "items": { "type": "string" } })
        }
        Kind::Origins => json!({
            "type": "array",
            "minItems": 1,
            "items": { "type": "string", "pattern": r"^(\*|https?://[A-Za-z0-9.*-]+(:[0-9]+)?)$" },
        }),
        Kind::PasswordHashes => json!({
            "type": "array",
            "minItems": 1,
            "items": { "type": "string", "pattern": r"^[^:]+:\$(2[aby]|argon2id?)\$" },
        }),
        Kind::Fields => named("^[A-Za-z0-9-]+$", text("^[ -~]*$")),
        Kind::FieldValue => text(r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$"),
        Kind::Page => json!({ "type": "string", "maxLength": 65_536 }),
        Kind::Scalar => json!({ "type": ["string", "number", "boolean"] }),
        Kind::Table => table(key.path, |_| true),
        Kind::Tables => named(NAME, table(&format!("{}.*", key.path), |_| true)),
        Kind::Secrets => named(VARIABLE, table(&format!("{}.*", key.path), |_| true)),
        Kind::Variables => {
            let pattern = format!("{}.*", key.path);
            let scalar = child(&pattern, "value").map_or(Value::Null, form);
            named(
                VARIABLE,
                json!({ "anyOf": [scalar, table(&pattern, |_| true)] }),
            )
        }
        Kind::Registries => named(REGISTRY, table(&format!("{}.*", key.path), |_| true)),
        Kind::Volumes => {
            let place = json!({ "type": "string", "pattern": "^(managed|/.+)$" });
            let table = table(&format!("{}.*", key.path), |_| true);
            named(NAME, json!({ "anyOf": [place, table] }))
        }
        Kind::Overlays => named(NAME, json!({ "$ref": "#/$defs/overlay" })),
    }
}
