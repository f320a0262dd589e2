//! Small words and tables.

use std::time::Duration;

use landfast_api::At;
use landfast_types::{Bytes, Timestamp, format_duration};

/// A table without lines, its columns apart by two blanks. Columns named in `right` hold numbers.
///
/// Written here because cells may be painted: what is measured is what is seen.
pub(crate) fn table(head: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let head = head
        .iter()
        .map(|word| (*word).to_owned())
        .collect::<Vec<_>>();
    let rows = std::iter::once(head).chain(rows).collect::<Vec<_>>();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| seen_width(cell)).max().unwrap_or(0)
    };
    let widths = (0..columns).map(widest).collect::<Vec<_>>();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let blanks = " ".repeat(widths[column] - seen_width(cell));
            if column > 0 {
                line.push_str("  ");
            }
            if right.contains(&column) {
                line.push_str(&blanks);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&blanks);
            }
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// How many columns a text takes: escapes take none.
fn seen_width(text: &str) -> usize {
    let mut escape = false;
    let seen = |character: &char| {
        if escape {
            escape = !character.is_ascii_alphabetic();
            return false;
        }
        escape = *character == '\u{1b}';
        !escape
    };
    text.chars().filter(seen).count()
}

/// A duration as a person wants to read it: two parts at most, no fractions above a second.
pub(crate) fn duration(duration: Duration) -> String {
    let rounded = match duration.as_secs() {
        0 => Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        1..3_600 => Duration::from_secs(duration.as_secs()),
        3_600..86_400 => Duration::from_secs(duration.as_secs() / 60 * 60),
        _ => Duration::from_secs(duration.as_secs() / 3_600 * 3_600),
    };
    format_duration(rounded)
}

/// How long ago something was.
pub(crate) fn since(now: Timestamp, at: At) -> String {
    let since = now.since(at.0);
    // Below a second nobody cares, and figures that flicker distract.
    if since < Duration::from_secs(1) {
        "0s".to_owned()
    } else {
        duration(since)
    }
}

/// How long until something is.
pub(crate) fn until(now: Timestamp, at: At) -> String {
    since(at.0, At(now))
}

/// An instant to the second, in UTC.
pub(crate) fn instant(at: At) -> String {
    let text = at.to_string();
    let (date, time) = text.split_once('T').unwrap_or(("", &text));
    format!("{date} {}", time.get(..8).unwrap_or(time))
}

/// A number with its thousands apart.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number and its thing, in the singular or plural.
pub(crate) fn count(many: u64, thing: &str) -> String {
    format!(
        "{} {thing}{}",
        number(many),
        if many == 1 { "" } else { "s" }
    )
}

/// A size.
pub(crate) fn bytes(bytes: u64) -> String {
    let text = Bytes(bytes).to_string();
    // `0B`, and not every last byte of a large number.
    if bytes < 1 << 10 {
        format!("{bytes}B")
    } else {
        text
    }
}

/// A share in percent.
pub(crate) fn percent(percent: f64) -> String {
    if percent.fract().abs() < 0.05 {
        format!("{percent:.0} %")
    } else {
        format!("{percent:.1} %")
    }
}

/// A time in milliseconds.
pub(crate) fn millis(ms: Option<f64>) -> String {
    ms.map_or_else(
        || "–".to_owned(),
        |ms| {
            if ms < 10.0 {
                format!("{ms:.1}ms")
            } else {
                format!("{ms:.0}ms")
            }
        },
    )
}

/// Shares of CPU.
pub(crate) fn cores(millis: u64) -> String {
    let cores = millis as f64 / 1_000.0;
    let plural = if millis == 1_000 { "" } else { "s" };
    format!(
        "{} core{plural}",
        if millis.is_multiple_of(1_000) {
            format!("{cores:.0}")
        } else {
            format!("{cores:.1}")
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_short() {
        assert_eq!(duration(Duration::from_millis(3_723_456)), "1h 2m");
        assert_eq!(duration(Duration::from_millis(83_456)), "1m 23s");
        assert_eq!(duration(Duration::from_millis(456)), "456ms");
        assert_eq!(
            (number(1_234_567), number(12)),
            ("1,234,567".into(), "12".into())
        );
        assert_eq!(
            (percent(25.0), percent(33.333)),
            ("25 %".into(), "33.3 %".into())
        );
        assert_eq!(cores(1_500), "1.5 cores");
        assert_eq!(
            instant(At(Timestamp::from_millis(0))),
            "1970-01-01 00:00:00"
        );
    }

    #[test]
    fn tables_have_no_trailing_blanks() {
        let text = table(
            &["A", "B"],
            &[1],
            vec![vec!["x".into(), "1".into()], vec!["yy".into(), "22".into()]],
        );
        assert_eq!(text, "A    B\nx    1\nyy  22");
        let painted = table(
            &["A", "B"],
            &[],
            vec![vec!["\u{1b}[32mx\u{1b}[0m".into(), "1".into()]],
        );
        assert_eq!(painted, "A  B\n\u{1b}[32mx\u{1b}[0m  1");
    }
}
