//! Secrets at rest: values sealed under a key file, in numbered versions.
//!
//! Each value is encrypted by a fresh 256-bit data key with AES-256-GCM; the data key is wrapped under the
//! key file with AES-256-GCM-SIV, which forgives a repeated nonce on a key that lives for years. Both are
//! bound to app, environment, name and version, so an envelope moved to another place does not open. A new
//! key file re-wraps data keys ([`Vault::rewrap`]) and leaves the values as they are.
//!
//! What it never does: it keeps no envelope (the journal does), prints no value and no key, decides for
//! nobody who may read, replaces a key file that is there, or reads one that others on the host can read. The key
//! leaves it in one way only: as the text of a key file, for a copy in a safe place ([`Vault::export`]).

mod dotenv;
mod envelope;
mod generate;
mod hex;
mod key;
pub mod replace;
pub mod rotation;
mod source;
mod versions;

pub use crate::{
    dotenv::{DOTENV_BYTES_MAX, DotenvEntry, DotenvError, parse_dotenv},
    envelope::{Context, RewrapError, Sealed, UnsealError, Vault},
    generate::{Alphabet, GENERATED_LEN, GENERATED_LEN_MAX, GENERATED_LEN_MIN, generate},
    key::{KeyError, KeyId},
    source::{CREDENTIAL, KeySource},
    versions::{Origin, Resolved, VERSIONS_KEPT, Version, VersionedSecret, VersionsError},
};
