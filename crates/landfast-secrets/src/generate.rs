//! New values from the operating system's randomness.

use aws_lc_rs::rand;
use landfast_types::Secret;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::KeyError;

/// The shortest generated value, in characters. Shorter ones can be set by hand.
pub const GENERATED_LEN_MIN: u32 = 16;
/// The longest generated value, in characters.
pub const GENERATED_LEN_MAX: u32 = 4_096;
/// As long as one is where nobody says otherwise: of letters and digits that is 190 bits.
pub const GENERATED_LEN: u32 = 32;

/// The characters of a generated value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alphabet {
    /// `A` to `Z`, `a` to `z`, `0` to `9`: needs quoting nowhere.
    #[default]
    Alphanumeric,
    /// `0` to `9`, `a` to `f`.
    Hex,
    /// The 64 characters of base64 in URLs (RFC 4648, 5).
    Base64url,
    /// Every visible ASCII character but quotes, the backslash and the backquote.
    Printable,
}

impl Alphabet {
    /// Every alphabet, in the order of the documentation.
    pub const ALL: [Self; 4] = [
        Self::Alphanumeric,
        Self::Hex,
        Self::Base64url,
        Self::Printable,
    ];

    /// The word in manifests and arguments.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Alphanumeric => "alphanumeric",
            Self::Hex => "hex",
            Self::Base64url => "base64url",
            Self::Printable => "printable",
        }
    }

    /// Reads the word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.word() == word)
    }

    /// The characters, each once.
    pub const fn characters(self) -> &'static [u8] {
        match self {
            Self::Alphanumeric => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
            Self::Hex => b"0123456789abcdef",
            Self::Base64url => {
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
            }
            Self::Printable => {
                b"!#$%&()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|}~"
            }
        }
    }
}

/// A value of so many characters, each as likely as any other. The length is held within
/// [`GENERATED_LEN_MIN`] and [`GENERATED_LEN_MAX`].
///
/// # Errors
/// [`KeyError::NoRandomness`] only.
pub fn generate(length: u32, alphabet: Alphabet) -> Result<Secret<String>, KeyError> {
    let length = length.clamp(GENERATED_LEN_MIN, GENERATED_LEN_MAX) as usize;
    let characters = alphabet.characters();
    // Bytes from here on are drawn again: the remainder of a division would favour the first characters.
    let fair = 256 - 256 % characters.len();
    let mut value = String::with_capacity(length);
    let mut drawn = Zeroizing::new([0_u8; 256]);
    while value.len() < length {
        rand::fill(drawn.as_mut()).map_err(|_| KeyError::NoRandomness)?;
        let fair = drawn.iter().filter(|byte| usize::from(**byte) < fair);
        for byte in fair.take(length - value.len()) {
            value.push(char::from(
                characters[usize::from(*byte) % characters.len()],
            ));
        }
    }
    Ok(Secret::new(value))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn every_character_comes_about_as_often_as_any_other() {
        for alphabet in Alphabet::ALL {
            let mut seen: BTreeMap<char, u32> = BTreeMap::new();
            let mut values = BTreeSet::new();
            for _ in 0..200 {
                let value = generate(1_000, alphabet).unwrap();
                assert_eq!(value.reveal().len(), 1_000);
                value
                    .reveal()
                    .chars()
                    .for_each(|c| *seen.entry(c).or_default() += 1);
                values.insert(value.reveal().clone());
            }
            assert_eq!(values.len(), 200);
            let own: BTreeSet<_> = alphabet
                .characters()
                .iter()
                .map(|c| char::from(*c))
                .collect();
            assert_eq!(own.len(), alphabet.characters().len(), "each once");
            assert!(seen.keys().all(|c| own.contains(c)));
            // 200,000 characters: the rarest of 91 is expected 2,200 times, give or take 47.
            let expected = 200_000 / own.len() as u32;
            let within = expected * 4 / 5..=expected * 6 / 5;
            for c in own {
                assert!(
                    within.contains(&seen[&c]),
                    "{c}: {} of {expected}",
                    seen[&c]
                );
            }
        }
    }

    #[test]
    fn no_value_is_too_short_to_be_a_secret() {
        assert_eq!(generate(0, Alphabet::Hex).unwrap().reveal().len(), 16);
    }
}
