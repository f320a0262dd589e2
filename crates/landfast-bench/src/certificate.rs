//! One certificate for all peers.

use std::{fs, path::Path};

use anyhow::Context as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

/// Writes a self-signed certificate for `localhost`, its key, and both in one file (as HAProxy wants it).
pub(crate) fn write(folder: &Path) -> anyhow::Result<()> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let params = CertificateParams::new(["localhost".to_owned()])?;
    let certificate = params.self_signed(&key)?.pem();
    let key = key.serialize_pem();
    let both = format!("{certificate}{key}");
    for (name, text) in [
        ("cert.pem", &certificate),
        ("key.pem", &key),
        ("both.pem", &both),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    Ok(())
}
