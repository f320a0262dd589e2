//! Bytes as lower-case hexadecimal digits. One spelling per value: upper case is refused, so that no
//! changed byte of an envelope goes unseen.

use std::fmt::Write as _;

use serde::{Deserialize as _, Deserializer, Serializer};
use zeroize::Zeroizing;

/// The digits of some bytes.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
    }
    text
}

/// The bytes of some digits, wiped when dropped.
pub(crate) fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    // The room is taken at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in pairs {
        bytes.push(nibble(pair[0])? << 4 | nibble(pair[1])?);
    }
    Some(bytes)
}

/// For `#[serde(with)]`.
pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(bytes))
}

/// For `#[serde(with)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = decode(&text);
    let bytes =
        bytes.ok_or_else(|| serde::de::Error::custom("not lower-case hexadecimal digits"))?;
    Ok(bytes.to_vec())
}
