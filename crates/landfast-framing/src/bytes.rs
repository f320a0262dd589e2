//! Classes of bytes, and how long a run of one class is.

/// `tchar` (RFC 9110, 5.6.2).
pub(crate) const TOKEN: u8 = 1;
/// Methods are case-sensitive, and all that are registered are of these. `get` is read as `GET` by some.
pub(crate) const METHOD: u8 = 2;
/// What a path may have: what clients send and `http::Uri` reads, less the backslash, which some take for `/`.
pub(crate) const PATH: u8 = 4;
/// The same of a query.
pub(crate) const QUERY: u8 = 8;
/// What may stand in an unquoted place of a chunk extension or of a host name.
pub(crate) const NAME: u8 = 16;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte: u8 = 0;
    while byte < 0x7f {
        let mut class = 0;
        if byte.is_ascii_alphanumeric() {
            class |= TOKEN | PATH | QUERY | NAME;
        }
        if byte.is_ascii_uppercase() || byte == b'-' || byte == b'_' {
            class |= METHOD;
        }
        if matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        ) {
            class |= TOKEN;
        }
        if matches!(byte, b'-' | b'.' | b'_') {
            class |= NAME;
        }
        let is_plain = matches!(
            byte,
            b'!' | b'$'
                ..=b'/'
                    | b':'
                    | b';'
                    | b'='
                    | b'?'
                    | b'@'
                    | b'['
                    | b']'
                    | b'^'
                    | b'_'
                    | b'{'
                    | b'|'
                    | b'}'
                    | b'~'
        );
        if (is_plain && byte != b'?') || byte == b'"' {
            class |= PATH;
        }
        if is_plain || byte == b'\\' || byte == b'`' {
            class |= QUERY;
        }
        #[expect(
            clippy::indexing_slicing,
            reason = "evaluated by the compiler; there is no index over 255"
        )]
        {
            table[byte as usize] = class;
        }
        byte += 1;
    }
    table
}

pub(crate) fn is(class: u8, byte: u8) -> bool {
    #[expect(
        clippy::indexing_slicing,
        reason = "the table has a place for every byte"
    )]
    let found = CLASSES[usize::from(byte)];
    found & class != 0
}

/// How many bytes at the beginning are of one of the classes.
pub(crate) fn run(class: u8, bytes: &[u8]) -> usize {
    let end = bytes.iter().position(|byte| !is(class, *byte));
    end.unwrap_or(bytes.len())
}

/// Whether a byte may stand in a field value (RFC 9110, 5.5): no control character but the tab.
fn is_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// How many bytes at the beginning may stand in a field value.
pub(crate) fn value_run(bytes: &[u8]) -> usize {
    let mut length = 0;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let stop = first_control(u64::from_le_bytes(*word));
        if stop < 8 {
            let end = word.iter().position(|byte| !is_value(*byte));
            if let Some(end) = end {
                return length + end;
            }
        }
        length += 8;
    }
    length
        + rest
            .iter()
            .position(|byte| !is_value(*byte))
            .unwrap_or(rest.len())
}

/// The place of the first control character among eight bytes, tabs included; 8 where there is none.
fn first_control(word: u64) -> u32 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
    // A borrow can only mark bytes after the first that is really under the bound.
    let under_space = word.wrapping_sub(ONES.wrapping_mul(0x20)) & !word & HIGH;
    let delete = word ^ ONES.wrapping_mul(0x7f);
    let deletes = delete.wrapping_sub(ONES) & !delete & HIGH;
    (under_space | deletes).trailing_zeros() / 8
}

/// Without spaces and tabs around (RFC 9110, 5.6.3).
pub(crate) fn trim(value: &[u8]) -> &[u8] {
    trim_at(value).1
}

/// The same, with how many there were in front.
pub(crate) fn trim_at(value: &[u8]) -> (usize, &[u8]) {
    let is_space = |byte: &u8| matches!(*byte, b' ' | b'\t');
    let Some(begin) = value.iter().position(|byte| !is_space(byte)) else {
        return (0, &[]);
    };
    let end = value.iter().rposition(|byte| !is_space(byte));
    let inner = end.and_then(|end| value.get(begin..=end));
    (begin, inner.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_a_value_ends_at_the_first_control_character_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            for length in 0..40 {
                for place in 0..length {
                    let mut bytes = vec![b'a'; place];
                    bytes.push(byte);
                    bytes.resize(length, b'a');
                    let expected = if is_value(byte) { length } else { place };
                    assert_eq!(value_run(&bytes), expected, "{byte} at {place} of {length}");
                }
            }
        }
    }

    #[test]
    fn trims_spaces_and_tabs_alone() {
        let cases: [(&[u8], &[u8]); 5] = [
            (b" a b\t", b"a b"),
            (b"", b""),
            (b" \t ", b""),
            (b"\x0ba", b"\x0ba"),
            (b"a\xa0", b"a\xa0"),
        ];
        for (value, expected) in cases {
            assert_eq!(trim(value), expected);
        }
    }
}
