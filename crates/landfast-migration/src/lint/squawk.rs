//! squawk as a second opinion, behind our own ids.

use squawk_linter::{Linter, Rule as SquawkRule};
use squawk_syntax::SourceFile;

use super::catalogue::{EXCUSED, RULES};

/// What squawk said.
pub(super) struct Violation {
    /// Our rule; `None` for what is excused.
    pub(super) rule: Option<&'static str>,
    /// Its name for it.
    pub(super) message: String,
    /// Where, in bytes.
    pub(super) at: usize,
}

/// What its default rules find. Syntax errors are none of its business: the database decides what it understands.
pub(super) fn violations(text: &str, in_transaction: bool) -> Vec<Violation> {
    let parsed = SourceFile::parse(text);
    let mut linter = Linter::with_default_rules();
    linter.settings.assume_in_transaction = in_transaction;
    linter
        .lint(&parsed, text)
        .into_iter()
        .map(|violation| Violation {
            rule: ours(violation.code),
            message: violation.code.to_string(),
            at: usize::from(violation.text_range.start()),
        })
        .collect()
}

/// The rule that stands for one of squawk's.
fn ours(code: SquawkRule) -> Option<&'static str> {
    let name = code.to_string();
    if EXCUSED.iter().any(|(excused, _)| *excused == name) {
        return None;
    }
    let known = RULES
        .iter()
        .find(|rule| rule.squawk.contains(&name.as_str()));
    // A rule squawk has learnt since: better a vague finding than none.
    Some(known.map_or("PG102", |rule| rule.id))
}
