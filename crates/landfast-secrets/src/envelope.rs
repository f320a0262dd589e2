//! Sealing and opening one value.

use std::{fmt, path::Path, sync::Arc};

use aws_lc_rs::{
    aead::{
        AES_256_GCM, AES_256_GCM_SIV, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
    },
    error::Unspecified,
    rand,
};
use landfast_types::{Scope, Secret};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    hex,
    key::{Key, KeyError, KeyId},
    source::KeySource,
};

/// The format of envelopes this code writes and reads.
const FORMAT: u8 = 1;
const DATA_KEY_LEN: usize = 32;

/// What an envelope belongs to. It opens nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    pub scope: &'a Scope,
    pub name: &'a str,
    pub version: u64,
}

impl Context<'_> {
    /// The bytes an encryption is bound to: every field with its length before it.
    fn bound(&self, purpose: &str, extra: &[u8]) -> Vec<u8> {
        let version = self.version.to_be_bytes();
        let (app, environment) = (self.scope.app.as_str(), self.scope.environment.as_str());
        let fields: [&[u8]; 6] = [
            purpose.as_bytes(),
            app.as_bytes(),
            environment.as_bytes(),
            self.name.as_bytes(),
            &version,
            extra,
        ];
        let mut bytes = Vec::new();
        for field in fields {
            bytes.extend_from_slice(&(field.len() as u64).to_be_bytes());
            bytes.extend_from_slice(field);
        }
        bytes
    }
}

/// A sealed value, fit to be stored. Its wire form is JSON with hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    format: u8,
    /// The key that wraps the data key.
    key: KeyId,
    /// Nonce, then the wrapped data key with its tag.
    #[serde(with = "hex")]
    data_key: Vec<u8>,
    /// Nonce, then the value with its tag.
    #[serde(with = "hex")]
    value: Vec<u8>,
}

impl Sealed {
    /// The key file this needs.
    pub fn key_id(&self) -> KeyId {
        self.key
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(under {})", self.key)
    }
}

/// Why an envelope did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    #[error(
        "wrong key: secret `{name}` is sealed under key {needed}, but the key file holds {held}"
    )]
    OtherKey {
        name: String,
        needed: KeyId,
        held: KeyId,
    },
    #[error("secret `{name}` has envelope format {found}; this Landfast reads {FORMAT}")]
    Format { name: String, found: u8 },
    #[error(
        "secret `{name}`, version {version}, was tampered with, damaged or moved from elsewhere"
    )]
    Refused { name: String, version: u64 },
}

/// Seals and opens values with one key file. Prints as the key's id.
pub struct Vault {
    key: Key,
    wrapping: LessSafeKey,
    /// Opens what is not re-wrapped yet; seals nothing.
    older: Option<Arc<Self>>,
}

impl Vault {
    /// Opens the key file.
    ///
    /// # Errors
    /// [`KeyError::Missing`], [`KeyError::Exposed`] when others can read it, [`KeyError::Damaged`].
    pub fn open_key(path: &Path) -> Result<Self, KeyError> {
        Self::open(&KeySource::File(path.to_owned()))
    }

    /// Opens the key where it comes from.
    ///
    /// # Errors
    /// As [`Vault::open_key`].
    pub fn open(source: &KeySource) -> Result<Self, KeyError> {
        Key::read(source).map(Self::with)
    }

    /// Makes a new key file, mode 0600, from the operating system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Exists`]: a key is never replaced.
    pub fn create_key(path: &Path) -> Result<Self, KeyError> {
        let key = Key::generate()?;
        key.write(path)?;
        Ok(Self::with(key))
    }

    /// Opens the key file, or makes it where there is none. For a state folder that holds sealed values
    /// already, [`Vault::open_key`] is the right call: a new key opens none of them.
    ///
    /// # Errors
    /// As the two others.
    pub fn open_or_create_key(path: &Path) -> Result<Self, KeyError> {
        match Self::open_key(path) {
            Err(KeyError::Missing { .. }) => {}
            outcome => return outcome,
        }
        match Self::create_key(path) {
            // Another process was faster.
            Err(KeyError::Exists { .. }) => Self::open_key(path),
            outcome => outcome,
        }
    }

    /// Opens what `older` sealed, too. Whatever is sealed from now on is sealed under this key.
    #[must_use]
    pub fn with_older(mut self, older: Arc<Self>) -> Self {
        self.older = Some(older);
        self
    }

    /// The key that is being replaced, while it is.
    pub fn older(&self) -> Option<&Arc<Self>> {
        self.older.as_ref()
    }

    /// The key's name.
    pub fn key_id(&self) -> KeyId {
        self.key.id
    }

    /// The text of the key file, for a copy in a safe place. Whoever has it and the journal has every secret.
    pub fn export(&self) -> Secret<String> {
        Secret::new(std::mem::take(&mut *self.key.text()))
    }

    /// Whether a text is a copy of this key.
    ///
    /// # Errors
    /// [`KeyError::CopyDamaged`], or [`KeyError::CopyOfOther`] where it is one of another key.
    pub fn check_copy(&self, text: &Secret<String>) -> Result<(), KeyError> {
        let copy = Key::parse(text.reveal().trim()).ok_or(KeyError::CopyDamaged)?;
        if copy.id == self.key.id {
            return Ok(());
        }
        Err(KeyError::CopyOfOther {
            copy: copy.id,
            held: self.key.id,
        })
    }

    /// Seals a value.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`] only.
    pub fn seal(&self, context: &Context<'_>, value: &Secret<String>) -> Result<Sealed, KeyError> {
        let mut data_key = Zeroizing::new([0; DATA_KEY_LEN]);
        rand::fill(data_key.as_mut()).map_err(|_| KeyError::NoRandomness)?;
        let cipher = cipher(&AES_256_GCM, &data_key);
        let bound = context.bound("value", &[]);
        let value = encrypt(&cipher, &bound, value.reveal().as_bytes())?;
        Ok(Sealed {
            format: FORMAT,
            key: self.key.id,
            data_key: self.wrap(context, &data_key)?,
            value,
        })
    }

    /// Opens a value.
    ///
    /// # Errors
    /// [`UnsealError::Refused`] when anything about it or its context is not as it was sealed.
    pub fn unseal(
        &self,
        context: &Context<'_>,
        sealed: &Sealed,
    ) -> Result<Secret<String>, UnsealError> {
        let refused = || UnsealError::Refused {
            name: context.name.to_owned(),
            version: context.version,
        };
        let data_key = self.unwrap(context, sealed)?;
        let cipher = cipher(&AES_256_GCM, &data_key);
        let bound = context.bound("value", &[]);
        let mut bytes = decrypt(&cipher, &bound, &sealed.value).map_err(|_| refused())?;
        String::from_utf8(std::mem::take(&mut *bytes))
            .map(Secret::new)
            .map_err(|error| {
                // Only valid text is ever sealed, so this cannot be; wiped all the same.
                error.into_bytes().zeroize();
                refused()
            })
    }

    /// Moves an envelope from the key of `old` to this one. The value itself is not decrypted.
    ///
    /// # Errors
    /// When `old` does not open the envelope's data key.
    pub fn rewrap(
        &self,
        old: &Self,
        context: &Context<'_>,
        sealed: &Sealed,
    ) -> Result<Sealed, RewrapError> {
        let data_key = old.unwrap(context, sealed)?;
        let data_key = self.wrap(context, &data_key)?;
        Ok(Sealed {
            format: FORMAT,
            key: self.key.id,
            data_key,
            value: sealed.value.clone(),
        })
    }

    fn with(key: Key) -> Self {
        Self {
            wrapping: cipher(&AES_256_GCM_SIV, &key.bytes),
            key,
            older: None,
        }
    }

    fn wrap(
        &self,
        context: &Context<'_>,
        data_key: &[u8; DATA_KEY_LEN],
    ) -> Result<Vec<u8>, KeyError> {
        encrypt(
            &self.wrapping,
            &context.bound("data key", self.key.id.as_bytes()),
            data_key,
        )
    }

    fn unwrap(
        &self,
        context: &Context<'_>,
        sealed: &Sealed,
    ) -> Result<Zeroizing<[u8; DATA_KEY_LEN]>, UnsealError> {
        let (name, version) = (context.name.to_owned(), context.version);
        if sealed.format != FORMAT {
            return Err(UnsealError::Format {
                name,
                found: sealed.format,
            });
        }
        if let Some(older) = self
            .older
            .as_ref()
            .filter(|older| older.key.id == sealed.key)
        {
            return older.unwrap(context, sealed);
        }
        if sealed.key != self.key.id {
            return Err(UnsealError::OtherKey {
                name,
                needed: sealed.key,
                held: self.key.id,
            });
        }
        let bound = context.bound("data key", self.key.id.as_bytes());
        let opened = decrypt(&self.wrapping, &bound, &sealed.data_key);
        let key = opened.and_then(|bytes| bytes.as_slice().try_into().map_err(|_| Unspecified));
        key.map(Zeroizing::new)
            .map_err(|_| UnsealError::Refused { name, version })
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault(key {})", self.key.id)
    }
}

/// Why an envelope was not moved to another key.
#[derive(Debug, thiserror::Error)]
pub enum RewrapError {
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

fn cipher(algorithm: &'static Algorithm, key: &[u8; DATA_KEY_LEN]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both ciphers take 32 bytes"))
}

/// A random nonce, then the ciphertext and its tag.
fn encrypt(cipher: &LessSafeKey, bound: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| KeyError::NoRandomness)?;
    let mut sealed = Vec::with_capacity(NONCE_LEN + plain.len() + cipher.algorithm().tag_len());
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let (_, text) = sealed.split_at_mut(NONCE_LEN);
    let tag = cipher
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), text)
        .expect("a secret is far below the 64 GiB these ciphers take");
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

fn decrypt(
    cipher: &LessSafeKey,
    bound: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Unspecified> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Unspecified)?;
    let mut plain = Zeroizing::new(text.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let length = cipher
        .open_in_place(nonce, Aad::from(bound), &mut plain)?
        .len();
    plain[length..].zeroize();
    plain.truncate(length);
    Ok(plain)
}
