//! Answers to a certificate authority that asks whether a host is ours: HTTP-01 (RFC 8555, 8.3) and TLS-ALPN-01
//! (RFC 8737). They come with the snapshot, so a proxy that was restarted still answers them. What is asked that
//! no snapshot named goes the way of every other request: an app may have an ACME client of its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use http::{
    HeaderValue, Method, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use landfast_routing::snapshot::{Certificate, Challenge, ChallengeAnswer};
use rustls::{server::ClientHello, sign::CertifiedKey};

use crate::{answer::AnswerBody, tls};

/// The protocol an authority offers alone when it asks by TLS-ALPN-01.
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

const WELL_KNOWN: &str = "/.well-known/acme-challenge/";

/// What is answered just now.
#[derive(Default)]
pub(crate) struct Challenges {
    /// Key authorizations by host and token.
    by_http: ArcSwap<BTreeMap<(String, String), String>>,
    by_tls: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.by_http.load().len() + self.by_tls.load().len();
        write!(f, "answers to {open} challenges")
    }
}

impl Challenges {
    /// Puts a snapshot's answers in use. Gives what could not be read.
    pub(crate) fn load(&self, wanted: &[Challenge]) -> Vec<String> {
        let mut by_http = BTreeMap::new();
        let mut by_tls = HashMap::new();
        let mut problems = Vec::new();
        for challenge in wanted {
            let host = challenge.host.to_ascii_lowercase();
            match &challenge.answer {
                ChallengeAnswer::Http {
                    token,
                    key_authorization,
                } => {
                    by_http.insert((host, token.clone()), key_authorization.clone());
                }
                ChallengeAnswer::TlsAlpn {
                    chain_path,
                    key_path,
                } => {
                    let files = Certificate {
                        hosts: vec![host.clone()],
                        chain_path: chain_path.clone(),
                        key_path: key_path.clone(),
                    };
                    match tls::read_answer(&files) {
                        Ok(key) => drop(by_tls.insert(host, key)),
                        Err(problem) => problems.push(format!("challenge of {host}: {problem}")),
                    }
                }
            }
        }
        self.by_http.store(Arc::new(by_http));
        self.by_tls.store(Arc::new(by_tls));
        problems
    }

    /// The answer to a request, where it is an authority's question that is open. `authority` may have a port.
    pub(crate) fn answer(
        &self,
        method: &Method,
        authority: &str,
        path: &str,
    ) -> Option<Response<AnswerBody>> {
        let token = path.strip_prefix(WELL_KNOWN)?;
        if !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        let host = authority
            .split_once(':')
            .map_or(authority, |(host, _port)| host);
        let asked = (host.to_ascii_lowercase(), token.to_owned());
        let text = self.by_http.load().get(&asked).cloned()?;
        let mut response = Response::new(AnswerBody::whole(text));
        let fields = response.headers_mut();
        let kind = HeaderValue::from_static("application/octet-stream");
        fields.insert(CONTENT_TYPE, kind);
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(response)
    }

    /// The certificate that answers a handshake, by the name it asks for.
    pub(crate) fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.by_tls.load().get(name).map(Arc::clone)
    }
}

/// Whether a handshake is an authority's question: it offers the one protocol and no other (RFC 8737, 3).
pub(crate) fn is_question(hello: &ClientHello<'_>) -> bool {
    let Some(mut offered) = hello.alpn() else {
        return false;
    };
    offered.next() == Some(ACME_TLS) && offered.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_the_open_question_of_a_host_and_nothing_else() {
        let challenges = Challenges::default();
        let open = Challenge {
            host: "shop.example".into(),
            answer: ChallengeAnswer::Http {
                token: "t0ken".into(),
                key_authorization: "t0ken.thumb".into(),
            },
        };
        assert!(challenges.load(&[open]).is_empty());
        let asked = |method: Method, host: &str, path: &str| {
            challenges.answer(&method, host, path).is_some()
        };
        let path = "/.well-known/acme-challenge/t0ken";
        assert!(asked(Method::GET, "shop.example", path));
        assert!(asked(Method::HEAD, "SHOP.example:8080", path));
        assert!(!asked(Method::POST, "shop.example", path));
        assert!(!asked(Method::GET, "other.example", path));
        assert!(!asked(Method::GET, "shop.example", &path[..path.len() - 1]));
        assert!(!asked(Method::GET, "shop.example", "/t0ken"));
        challenges.load(&[]);
        assert!(!asked(Method::GET, "shop.example", path), "it is over");
    }
}
