//! Writes YAML: mappings and lists in block style, text in double quotes where it is not plain.

use serde_json::Value;

pub(super) fn write(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text
}

fn block(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                text.push_str(&format!("{indent}{}:", scalar(&Value::from(name.as_str()))));
                below(text, value, depth);
            }
        }
        Value::Array(items) => {
            for item in items {
                text.push_str(&format!("{indent}-"));
                below(text, item, depth);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&format!("{indent}{}\n", scalar(value)));
        }
    }
}

fn below(text: &mut String, value: &Value, depth: usize) {
    let is_block = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    if is_block {
        text.push('\n');
        block(text, value, depth + 1);
    } else {
        text.push_str(&format!(" {}\n", scalar(value)));
    }
}

fn scalar(value: &Value) -> String {
    let Value::String(text) = value else {
        // `{}`, `[]`, numbers, true, false and null are YAML as they are JSON.
        return value.to_string();
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if begins && !word && text.chars().all(plain) {
        return text.clone();
    }
    // YAML's double quotes take JSON's escapes.
    value
        .to_string()
        .replace('\u{7f}', "\\u007f")
        .replace('\u{85}', "\\u0085")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        let value = serde_json::json!({
            "services": { "web": { "image": "a:1", "command": ["sh", "-c", "a: b # c\n\"d\""], "empty": {}, "list": [] } },
            "words": ["yes", "No", "1", "1e3", "~", "", "- x", "*a", "é\u{85}\u{7f}🦀", null, true, 7],
            "nested": [[1, 2], { "a": [{ "b": "c" }] }],
        });
        let text = write(&value);
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read, value, "{text}");
    }
}
