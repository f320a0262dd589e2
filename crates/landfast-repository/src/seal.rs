//! How an object is sealed.
//!
//! ```text
//! "LFBACKUP" | format (1 byte) | id of the key (8) | salt (16) | frames
//! frame: AES-256-GCM of (coding (1 byte: 0 plain, 1 zstd) | data), its tag behind it
//! ```
//!
//! The key of an object is HKDF-SHA-256 of the repository's key, with the object's salt, for the purpose `object`. The nonce
//! of a frame is its number (12 bytes, big-endian); what it is bound to is its number (8 bytes, big-endian), then the object's name.
//! An object is one frame, except a pack, whose manifest says where its frames begin.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};

use crate::{
    KeyId, RepositoryError,
    key::{Key, Keyring},
};

const MAGIC: &[u8; 8] = b"LFBACKUP";
const FORMAT: u8 = 1;
const SALT_LEN: usize = 16;
/// Before the first frame.
pub(crate) const HEAD_LEN: usize = MAGIC.len() + 1 + 8 + SALT_LEN;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// Far above every frame that is written; a damaged length does not fill the memory.
const FRAME_BYTES_MAX: usize = 2 << 30;
/// The same as `zstd` on the command line.
const LEVEL: i32 = 3;

/// What the frames of one object are sealed with. Shared by the threads that seal them.
pub(crate) struct Seal {
    cipher: LessSafeKey,
    name: Vec<u8>,
    /// What the object begins with.
    pub(crate) head: [u8; HEAD_LEN],
}

impl Seal {
    pub(crate) fn new(key: &Key, name: &str) -> Result<Self, RepositoryError> {
        let mut salt = [0; SALT_LEN];
        rand::fill(&mut salt)
            .map_err(|_| RepositoryError::Stopped("the system gives no random bytes".into()))?;
        let mut head = [0; HEAD_LEN];
        let id = key.id();
        let parts: [&[u8]; 4] = [MAGIC, &[FORMAT], id.as_bytes(), &salt];
        head.copy_from_slice(&parts.concat());
        Ok(Self {
            cipher: cipher(key, &salt),
            name: name.as_bytes().to_vec(),
            head,
        })
    }
}

/// Compresses and seals frames. One for each thread.
pub(crate) struct Sealer {
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
}

impl Sealer {
    pub(crate) fn new() -> Result<Self, RepositoryError> {
        let compressor = zstd::bulk::Compressor::new(LEVEL);
        let compressor = compressor.map_err(|source| RepositoryError::Local {
            doing: "compress".into(),
            source,
        })?;
        Ok(Self {
            compressor,
            compressed: Vec::new(),
        })
    }

    /// Adds a frame behind what `sealed` holds. No two frames of an object have the same number.
    pub(crate) fn frame(&mut self, seal: &Seal, number: u64, data: &[u8], sealed: &mut Vec<u8>) {
        // Less than a sixteenth saved is not worth the time it takes to undo.
        let room = data.len() - data.len() / 16;
        self.compressed.clear();
        self.compressed.reserve_exact(room);
        // The buffer may have more room than this frame may take.
        let done = self
            .compressor
            .compress_to_buffer(data, &mut self.compressed);
        let (coding, text) = match done {
            Ok(len) if len <= room => (ZSTD, self.compressed.as_slice()),
            // It did not fit.
            _ => (PLAIN, data),
        };
        let start = sealed.len();
        sealed.reserve_exact(1 + text.len() + AES_256_GCM.tag_len());
        sealed.push(coding);
        sealed.extend_from_slice(text);
        let tag = seal
            .cipher
            .seal_in_place_separate_tag(
                nonce(number),
                Aad::from(bound(number, &seal.name)),
                &mut sealed[start..],
            )
            .expect("a frame is far below the 64 GiB this cipher takes");
        sealed.extend_from_slice(tag.as_ref());
    }
}

/// Opens the frames of one object.
pub(crate) struct Opener {
    cipher: LessSafeKey,
    name: String,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Opener {
    /// Reads the head.
    pub(crate) fn new(keys: &Keyring, name: &str, object: &[u8]) -> Result<Self, RepositoryError> {
        let damaged = |what| RepositoryError::Damaged {
            name: name.to_owned(),
            what,
        };
        let (head, _) = object
            .split_first_chunk::<HEAD_LEN>()
            .ok_or_else(|| damaged("it is cut short"))?;
        if &head[..8] != MAGIC {
            return Err(damaged("it does not begin as an object does"));
        }
        if head[8] != FORMAT {
            return Err(RepositoryError::Format {
                name: name.to_owned(),
                found: head[8],
                reads: FORMAT,
            });
        }
        let needed = KeyId::of(head[9..17].try_into().expect("eight bytes"));
        let key = keys.find(needed, name)?;
        let decompressor =
            zstd::bulk::Decompressor::new().map_err(|source| RepositoryError::Local {
                doing: "decompress".into(),
                source,
            })?;
        Ok(Self {
            cipher: cipher(key, &head[17..]),
            name: name.to_owned(),
            decompressor,
        })
    }

    /// Opens a frame in place; what was compressed lies in `scratch` then. `len_max` bounds what it may grow to.
    pub(crate) fn frame<'a>(
        &mut self,
        number: u64,
        sealed: &'a mut [u8],
        len_max: usize,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], RepositoryError> {
        let name = &self.name;
        let damaged = |what| RepositoryError::Damaged {
            name: name.clone(),
            what,
        };
        let bound = bound(number, self.name.as_bytes());
        let opened = self
            .cipher
            .open_in_place(nonce(number), Aad::from(bound), sealed)
            .map_err(|_| damaged("its content is not what was sealed"))?;
        match opened.split_first() {
            Some((&PLAIN, data)) => Ok(data),
            Some((&ZSTD, data)) => {
                let len = zstd::zstd_safe::get_frame_content_size(data).ok().flatten();
                let len = len.and_then(|len| usize::try_from(len).ok());
                let len = len.filter(|len| *len <= len_max);
                let len = len.ok_or_else(|| damaged("its length makes no sense"))?;
                scratch.clear();
                scratch.reserve_exact(len);
                self.decompressor
                    .decompress_to_buffer(data, scratch)
                    .map_err(|_| damaged("it does not decompress"))?;
                Ok(scratch)
            }
            _ => Err(damaged("its coding is unknown")),
        }
    }
}

/// Seals an object of one frame.
pub(crate) fn seal(key: &Key, name: &str, data: &[u8]) -> Result<Vec<u8>, RepositoryError> {
    let seal = Seal::new(key, name)?;
    let mut sealed = seal.head.to_vec();
    Sealer::new()?.frame(&seal, 0, data, &mut sealed);
    Ok(sealed)
}

/// Opens an object of one frame.
pub(crate) fn open(
    keys: &Keyring,
    name: &str,
    mut object: Vec<u8>,
) -> Result<Vec<u8>, RepositoryError> {
    let mut opener = Opener::new(keys, name, &object)?;
    let mut scratch = Vec::new();
    let opened = opener.frame(0, &mut object[HEAD_LEN..], FRAME_BYTES_MAX, &mut scratch)?;
    let len = opened.len();
    if object[HEAD_LEN] == ZSTD {
        return Ok(scratch);
    }
    // It was opened where it lies, behind the head and the coding.
    object.truncate(HEAD_LEN + 1 + len);
    object.drain(..=HEAD_LEN);
    Ok(object)
}

fn cipher(key: &Key, salt: &[u8]) -> LessSafeKey {
    let derived = key.derive(salt, b"object");
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, derived.as_ref()).expect("it takes 32 bytes"))
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn bound(number: u64, name: &[u8]) -> Vec<u8> {
    let mut bound = number.to_be_bytes().to_vec();
    bound.extend_from_slice(name);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_cut_or_moved_does_not_open() {
        let keys = Keyring::new(Key::generate().unwrap());
        let data = b"the same words, the same words, the same words".repeat(9);
        let sealed = seal(keys.current(), "wal/1", &data).unwrap();
        assert!(sealed.len() < data.len());
        assert_eq!(open(&keys, "wal/1", sealed.clone()).unwrap(), data);
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 4;
            assert!(
                open(&keys, "wal/1", changed).is_err(),
                "bit of byte {place}"
            );
            assert!(open(&keys, "wal/1", sealed[..place].to_vec()).is_err());
        }
        assert!(matches!(
            open(&keys, "wal/2", sealed),
            Err(RepositoryError::Damaged { .. })
        ));
    }

    #[test]
    fn another_key_is_named_and_an_older_one_still_opens() {
        let (old, new) = (Key::generate().unwrap(), Key::generate().unwrap());
        let sealed = seal(&old, "x", b"y").unwrap();
        let (old_id, new_id) = (old.id(), new.id());
        let keys = Keyring::new(new);
        let Err(RepositoryError::WrongKey { needed, held, .. }) = open(&keys, "x", sealed.clone())
        else {
            panic!("opened under another key");
        };
        assert_eq!((needed, held), (old_id, new_id));
        assert_eq!(open(&keys.with_older(old), "x", sealed).unwrap(), b"y");
    }

    #[test]
    fn random_data_is_stored_as_it_is() {
        let keys = Keyring::new(Key::generate().unwrap());
        let mut data = vec![0; 10_000];
        rand::fill(&mut data).unwrap();
        let sealed = seal(keys.current(), "x", &data).unwrap();
        assert_eq!(sealed.len(), HEAD_LEN + 1 + data.len() + 16);
        assert_eq!(open(&keys, "x", sealed).unwrap(), data);
        assert_eq!(
            open(&keys, "e", seal(keys.current(), "e", &[]).unwrap()).unwrap(),
            b""
        );
    }
}
