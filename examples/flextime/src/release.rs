//! Which release this process is: the version compiled in and the digest of the executable it runs from.

use std::{fmt::Write as _, fs::File, io, io::Read as _};

use sha2::{Digest as _, Sha256};

/// The identity every answer carries.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub version: &'static str,
    /// SHA-256 of the running executable, in hexadecimal.
    pub digest: String,
}

impl Release {
    /// Reads `/proc/self/exe`, which is the content that runs even when its path was since replaced.
    pub(crate) fn of(version: &'static str) -> io::Result<Self> {
        let mut file = File::open("/proc/self/exe")?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        Ok(Self {
            version,
            digest: hex(&hasher.finalize()),
        })
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes everything");
            text
        })
}
