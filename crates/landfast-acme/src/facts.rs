//! What a certificate says of itself.

use landfast_types::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time,
};

use crate::plan::Validity;

/// The part of a certificate that decisions and people need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) validity: Validity,
    /// DNS names, lower case, wildcards as they are.
    pub(crate) names: Vec<String>,
    /// The common name of who signed it, else the organisation, else the whole name.
    pub(crate) issuer: String,
}

impl Facts {
    /// Reads the first certificate of a PEM text: the chain begins with the host's own.
    ///
    /// # Errors
    /// A fragment that says what is wrong with it.
    pub(crate) fn read(pem: &[u8]) -> Result<Self, String> {
        let first = CertificateDer::pem_slice_iter(pem).next();
        let first = first.ok_or("it holds no certificate")?;
        let first = first.map_err(|error| error.to_string())?;
        let (_, certificate) =
            X509Certificate::from_der(&first).map_err(|error| error.to_string())?;
        let names = certificate.subject_alternative_name();
        let names = names.map_err(|error| error.to_string())?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let names = names.filter_map(|name| {
            let GeneralName::DNSName(name) = name else {
                return None;
            };
            Some(name.to_ascii_lowercase())
        });
        Ok(Self {
            validity: Validity {
                not_before: instant(certificate.validity().not_before),
                not_after: instant(certificate.validity().not_after),
            },
            names: names.collect(),
            issuer: issuer(&certificate),
        })
    }

    /// Whether it is for a host: by name, or by a wildcard that stands for exactly one label.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        let names = |name: &String| name == host || Some(name) == wildcard.as_ref();
        self.names.iter().any(names)
    }
}

fn instant(time: ASN1Time) -> Timestamp {
    Timestamp::from_millis(time.timestamp().saturating_mul(1_000))
}

fn issuer(certificate: &X509Certificate<'_>) -> String {
    let name = certificate.issuer();
    let common = name.iter_common_name().chain(name.iter_organization());
    let mut texts = common.filter_map(|attribute| attribute.as_str().ok());
    texts.next().map_or_else(|| name.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reads_names_and_life_of_the_first_certificate() {
        let hosts = ["shop.example".to_owned(), "*.wild.example".to_owned()];
        let issued = rcgen::generate_simple_self_signed(hosts).expect("a certificate");
        let facts = Facts::read(issued.cert.pem().as_bytes()).expect("readable");
        assert!(facts.covers("shop.example") && facts.covers("a.wild.example"));
        assert!(!facts.covers("wild.example") && !facts.covers("a.b.wild.example"));
        assert!(facts.validity.life() > Duration::from_secs(86_400));
        assert_eq!(facts.issuer, "rcgen self signed cert");
        for text in [
            "",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(Facts::read(text.as_bytes()).is_err());
        }
    }
}
