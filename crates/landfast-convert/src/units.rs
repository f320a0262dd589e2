//! Durations, sizes, shares of CPU and command lines as Compose files write them.

use std::time::Duration;

use landfast_types::{Bytes, Cpu};

/// `1h30m`, `1.5s`, `100ms`, `20us`, by the Compose specification; a bare number is seconds for old files.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if let Ok(seconds) = rest.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let mut total = 0_f64;
    while !rest.is_empty() {
        let (number, after) = number(rest)?;
        let len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let factor = match &after[..len] {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return None,
        };
        total += number * factor;
        rest = &after[len..];
    }
    let millis = (total * 1_000.0).round();
    (text.trim() != "" && (0.0..1e15).contains(&millis))
        .then(|| Duration::from_millis(millis as u64))
}

/// `512m`, `1gb`, `1.5g`, `2048k`, `100b`, a number of bytes; always in 1,024, as Docker counts.
pub(crate) fn bytes(text: &str) -> Option<Bytes> {
    let (number, unit) = number(text.trim())?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" | "ki" | "kib" => 1024.0,
        "m" | "mb" | "mi" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gi" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tb" | "ti" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number * factor;
    (1.0..9e18).contains(&bytes).then_some(Bytes(bytes as u64))
}

/// A size that reads back as exactly the same.
pub(crate) fn exact_bytes(bytes: Bytes) -> String {
    for (unit, size) in [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes.0.is_multiple_of(size) && bytes.0 > 0 {
            return format!("{}{unit}", bytes.0 / size);
        }
    }
    format!("{}B", bytes.0)
}

/// `0.5`: cores.
pub(crate) fn cpu(text: &str) -> Option<Cpu> {
    let cores = text.trim().parse::<f64>().ok()?;
    let millicores = (cores * 1_000.0).round();
    (1.0..1e9).contains(&millicores).then_some(Cpu {
        millicores: millicores as u64,
    })
}

fn number(text: &str) -> Option<(f64, &str)> {
    let len = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number = text[..len].parse::<f64>().ok()?;
    number.is_finite().then_some((number, &text[len..]))
}

/// Splits a command line as a POSIX shell would split words, and does nothing else a shell does. `None`: a quote is open.
pub(crate) fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        inner => word.push(inner),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                            other => {
                                word.push('\\');
                                word.push(other);
                            }
                        },
                        inner => word.push(inner),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_compose() {
        for (text, millis) in [
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("250ms", Some(250)),
            ("1500us", Some(2)),
            ("0s", Some(0)),
            ("10", Some(10_000)),
            ("", None),
            ("soon", None),
            ("10 parsecs", None),
            ("1e400s", None),
            ("-1s", None),
        ] {
            let read = duration(text).map(|duration| duration.as_millis());
            assert_eq!(read, millis, "{text}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(bytes("512m"), Some(Bytes(512 << 20)));
        assert_eq!(bytes("1.5GB"), Some(Bytes(3 << 29)));
        assert_eq!(bytes("64"), Some(Bytes(64)));
        for bad in ["", "m", "1x", "-1", "0", "1e30t"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
        assert_eq!(exact_bytes(Bytes(3 << 29)), "1536MiB");
    }

    #[test]
    fn words_of_a_command_line() {
        let check = |line, wanted: Option<&[&str]>| {
            let wanted = wanted.map(|words| words.iter().map(|word| (*word).to_owned()).collect());
            assert_eq!(words(line), wanted, "{line}");
        };
        check(
            "a 'b c' \"d \\\" e\" f\\ g",
            Some(&["a", "b c", "d \" e", "f g"]),
        );
        check("  ", Some(&[]));
        check("a '' b", Some(&["a", "", "b"]));
        check("a 'b", None);
        check("a \\", None);
    }
}
