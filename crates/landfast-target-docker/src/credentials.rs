//! Logins of registries, as Docker's own client keeps them on this host: in its configuration, or behind a helper.

use std::{collections::BTreeMap, io, path::Path, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bollard::auth::DockerCredentials;
use landfast_target::{ImageError, RegistryLogin};
use landfast_types::Secret;
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command};

/// How Docker's client files its own registry.
const DOCKER_IO: [&str; 3] = [
    "https://index.docker.io/v1/",
    "index.docker.io",
    "docker.io",
];
const HELPER_WAIT_MAX: Duration = Duration::from_secs(30);
/// What a helper says when it knows nothing of a registry.
const HELPER_KNOWS_NOTHING: &str = "credentials not found";
/// What a helper gives for a user when the password is a token.
const TOKEN_USER: &str = "<token>";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<Secret<String>>,
    identitytoken: Option<Secret<String>>,
}

#[derive(Debug, Deserialize)]
struct Helped {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: Secret<String>,
}

/// What a configuration says of a registry.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Login(RegistryLogin),
    Token(Secret<String>),
    /// Ask this program about this server.
    Helper {
        program: String,
        server: String,
    },
}

/// The login that a registry is to be asked with: the given one, else what Docker's configuration in a folder says.
pub(crate) async fn find(
    registry: &str,
    given: Option<&RegistryLogin>,
    folder: Option<&Path>,
) -> Result<Option<DockerCredentials>, ImageError> {
    if let Some(login) = given {
        return Ok(Some(of_login(registry, login)));
    }
    let failed = |detail: String| ImageError::Login {
        registry: registry.to_owned(),
        detail,
    };
    let Some(path) = folder.map(|folder| folder.join("config.json")) else {
        return Ok(None);
    };
    let text = match tokio::fs::read(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(format!("`{}`: {error}", path.display()))),
    };
    let said = said(&text, registry);
    let said = said.map_err(|error| failed(format!("`{}`: {error}", path.display())))?;
    Ok(match said {
        Said::Nothing => None,
        Said::Login(login) => Some(of_login(registry, &login)),
        Said::Token(token) => Some(of_token(registry, &token)),
        Said::Helper { program, server } => ask(&program, &server)
            .await
            .map_err(|error| failed(format!("`{program}`: {error}")))?
            .map(|helped| match helped.user == TOKEN_USER {
                true => of_token(registry, &helped.secret),
                false => of_login(
                    registry,
                    &RegistryLogin {
                        user: helped.user,
                        password: helped.secret,
                    },
                ),
            }),
    })
}

fn of_login(registry: &str, login: &RegistryLogin) -> DockerCredentials {
    DockerCredentials {
        username: Some(login.user.clone()),
        password: Some(login.password.reveal().clone()),
        serveraddress: Some(registry.to_owned()),
        ..Default::default()
    }
}

fn of_token(registry: &str, token: &Secret<String>) -> DockerCredentials {
    DockerCredentials {
        identitytoken: Some(token.reveal().clone()),
        serveraddress: Some(registry.to_owned()),
        ..Default::default()
    }
}

/// What a configuration says of a registry: a helper for it first, then a helper for all, then what is in the file.
fn said(text: &[u8], registry: &str) -> Result<Said, String> {
    let config: Config = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let names = names(registry);
    let helper = |name: &str, server: &str| Said::Helper {
        program: format!("docker-credential-{name}"),
        server: server.to_owned(),
    };
    for name in &names {
        if let Some(found) = config.helpers.get(*name) {
            return Ok(helper(found, name));
        }
    }
    if let Some(store) = config.store.as_deref().filter(|store| !store.is_empty()) {
        return Ok(helper(store, names[0]));
    }
    let is_meant = |key: &str| names.contains(&key) || names.contains(&host_of(key));
    let Some((_, auth)) = config.auths.iter().find(|(key, _)| is_meant(key)) else {
        return Ok(Said::Nothing);
    };
    if let Some(token) = auth
        .identitytoken
        .as_ref()
        .filter(|token| !token.reveal().is_empty())
    {
        return Ok(Said::Token(token.clone()));
    }
    let Some(encoded) = auth.auth.as_ref().filter(|auth| !auth.reveal().is_empty()) else {
        return Ok(Said::Nothing);
    };
    let broken = || format!("the entry of `{registry}` is not `user:password` in base64");
    let decoded = STANDARD.decode(encoded.reveal()).map_err(|_| broken())?;
    let decoded = String::from_utf8(decoded).map_err(|_| broken())?;
    let (user, password) = decoded.split_once(':').ok_or_else(broken)?;
    Ok(Said::Login(RegistryLogin {
        user: user.to_owned(),
        password: Secret::new(password.trim_end_matches('\0').to_owned()),
    }))
}

fn names(registry: &str) -> Vec<&str> {
    match DOCKER_IO.contains(&registry) {
        true => DOCKER_IO.to_vec(),
        false => vec![registry],
    }
}

fn host_of(key: &str) -> &str {
    let rest = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let rest = rest.unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

/// Asks a helper; the server's name goes to its standard input, as Docker's client does it.
#[expect(
    clippy::disallowed_methods,
    reason = "a credential helper is a program; its name is an argv of one word"
)]
async fn ask(program: &str, server: &str) -> io::Result<Option<Helped>> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().expect("it was asked for above");
    let talk = async {
        stdin.write_all(server.as_bytes()).await?;
        drop(stdin);
        child.wait_with_output().await
    };
    let told = tokio::time::timeout(HELPER_WAIT_MAX, talk).await;
    let told = told.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if told.status.success() {
        return serde_json::from_slice(&told.stdout)
            .map(Some)
            .map_err(io::Error::other);
    }
    // Its answers are for people, and may be secret: only the one that is documented is looked at.
    let text = String::from_utf8_lossy(&told.stdout);
    match text.contains(HELPER_KNOWS_NOTHING) {
        true => Ok(None),
        false => Err(io::Error::other(told.status.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str) -> Said {
        Said::Login(RegistryLogin {
            user: user.to_owned(),
            password: Secret::new(password.to_owned()),
        })
    }

    #[test]
    fn reads_what_dockers_client_wrote() {
        // `printf 'me:pa:ss' | base64`
        let file = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6cGE6c3M="},
            "registry.example.com:5000": {"auth": "bWU6cGE6c3M="},
            "https://old.example.com/v2/": {"auth": "bWU6cGE6c3M="},
            "token.example.com": {"identitytoken": "abc"},
            "empty.example.com": {},
            "broken.example.com": {"auth": "?"}
        }}"#;
        for registry in ["docker.io", "registry.example.com:5000", "old.example.com"] {
            assert_eq!(said(file, registry), Ok(login("me", "pa:ss")), "{registry}");
        }
        let token = Said::Token(Secret::new("abc".to_owned()));
        assert_eq!(said(file, "token.example.com"), Ok(token));
        assert_eq!(said(file, "empty.example.com"), Ok(Said::Nothing));
        assert_eq!(said(file, "other.example.com"), Ok(Said::Nothing));
        assert!(said(file, "broken.example.com").is_err());
        assert!(said(b"{", "docker.io").is_err());
    }

    #[test]
    fn helpers_come_first() {
        let file =
            br#"{"auths": {"a.io": {"auth": "bWU6cGE6c3M="}}, "credHelpers": {"a.io": "ecr"}}"#;
        let helper = |program: &str, server: &str| {
            Ok(Said::Helper {
                program: program.to_owned(),
                server: server.to_owned(),
            })
        };
        assert_eq!(said(file, "a.io"), helper("docker-credential-ecr", "a.io"));
        let all = br#"{"credsStore": "pass"}"#;
        let hub = "https://index.docker.io/v1/";
        assert_eq!(
            said(all, "docker.io"),
            helper("docker-credential-pass", hub)
        );
    }
}
