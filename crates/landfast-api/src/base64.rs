//! Base64 with padding (RFC 4648, section 4), for bytes inside JSON. Used as `#[serde(with = "…::base64")]`.

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Writes bytes as text.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let sextet = (word >> (18 - 6 * i)) & 63;
            let character = if i <= group.len() {
                char::from(ALPHABET[sextet as usize])
            } else {
                '='
            };
            text.push(character);
        }
    }
    text
}

/// Reads bytes back; `None` for a text that is not base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let last = (text.len() / 4).saturating_sub(1);
    for (i, group) in text.chunks_exact(4).enumerate() {
        let padding = group.iter().rev().take_while(|byte| **byte == b'=').count();
        if padding > 2 || (padding > 0 && i != last) {
            return None;
        }
        let mut word = 0;
        for byte in &group[..4 - padding] {
            let sextet = ALPHABET.iter().position(|letter| letter == byte)?;
            word = word << 6 | u32::try_from(sextet).ok()?;
        }
        word <<= 6 * padding;
        let whole = word.to_be_bytes();
        bytes.extend_from_slice(&whole[1..4 - padding]);
    }
    Some(bytes)
}

/// For `#[serde(with = …)]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(bytes))
}

/// For `#[serde(with = …)]`.
///
/// # Errors
/// When the value is no text, or the text is not base64.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    decode(&text).ok_or_else(|| D::Error::custom("not base64 with padding (RFC 4648)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_vectors_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
        let all = (0..=255).collect::<Vec<u8>>();
        assert_eq!(decode(&encode(&all)), Some(all));
    }

    #[test]
    fn refuses_what_is_not_base64() {
        for text in ["Zg", "Zg=a", "Z===", "Zg==Zg==", "Zm9!"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
