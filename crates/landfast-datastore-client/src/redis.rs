//! Redis, by its own protocol (RESP2): a few commands on one connection, which is less than a client library brings.

use landfast_datastore::{Measures, Replica, Wanted};
use landfast_types::{Digest, Secret};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::UnixStream,
};

use crate::{Access, StoreError};

/// A longer answer is none of those that are asked for here.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What a login of a release may not: what concerns the server rather than the data.
const RELEASE_RULES: [&str; 7] = [
    "~*",
    "&*",
    "+@all",
    "-@admin",
    "-@dangerous",
    "+info",
    "+keys",
];

/// A connection.
pub(crate) struct Session {
    stream: BufStream<UnixStream>,
}

/// As the server itself writes a password down.
fn hashed(password: &Secret<String>) -> String {
    let digest = Digest::of(password.reveal().as_bytes());
    let bytes = digest.as_bytes().iter();
    let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    format!("#{hex}")
}

/// The users a server starts with, one a line: the administrator, who has two passwords while one is being changed, then the
/// others, each with its own. Written as hashes, as the server itself does.
pub fn access_list(
    administrator: (&str, &[Secret<String>]),
    others: &[(String, Secret<String>)],
) -> String {
    let (name, passwords) = administrator;
    let passwords: Vec<_> = passwords.iter().map(hashed).collect();
    let passwords = passwords.join(" ");
    let mut lines = format!("user default off\nuser {name} on {passwords} ~* &* +@all\n");
    for (login, password) in others {
        let rules = RELEASE_RULES.join(" ");
        lines.push_str(&format!("user {login} on {} {rules}\n", hashed(password)));
    }
    lines
}

impl Session {
    pub(crate) async fn connect(access: &Access) -> Result<Self, StoreError> {
        let stream = UnixStream::connect(&access.socket).await;
        let stream = stream.map_err(|error| failed("connect", error))?;
        let mut session = Self {
            stream: BufStream::new(stream),
        };
        let login = ["AUTH", &access.login, access.password.reveal()];
        session.ask("log in", &login).await?;
        // While it reads its data it answers nothing else.
        session.ask("connect", &["PING"]).await?;
        Ok(session)
    }

    pub(crate) async fn ensure_login(
        &mut self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        let password = hashed(password);
        let mut command = vec!["ACL", "SETUSER", login, "reset", "on", &password];
        command.extend(RELEASE_RULES);
        self.ask("make a login", &command).await.map(drop)
    }

    pub(crate) async fn change_own_password(
        &mut self,
        login: &str,
        password: &Secret<String>,
    ) -> Result<(), StoreError> {
        let password = hashed(password);
        let command = ["ACL", "SETUSER", login, "resetpass", &password];
        self.ask("change its own password", &command)
            .await
            .map(drop)
    }

    pub(crate) async fn sessions_of(&mut self, login: &str) -> Result<u64, StoreError> {
        let list = self.ask("count its sessions", &["CLIENT", "LIST"]).await?;
        let is_own = |line: &&str| {
            let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
            fields.any(|(name, value)| name == "user" && value == login)
        };
        let own = list.lines().filter(is_own).count();
        Ok(u64::try_from(own).unwrap_or(u64::MAX))
    }

    pub(crate) async fn drop_login(&mut self, login: &str) -> Result<(), StoreError> {
        let command = ["ACL", "DELUSER", login];
        self.ask("remove a login", &command).await.map(drop)
    }

    pub(crate) async fn set(
        &mut self,
        wanted: &Wanted,
        settings: &[String],
    ) -> Result<Vec<String>, StoreError> {
        let mut waiting = Vec::new();
        for name in settings {
            // One that was taken away has its default with the next start.
            let Some(value) = wanted.setting(name) else {
                waiting.push(name.clone());
                continue;
            };
            let command = ["CONFIG", "SET", name, &value];
            if self.ask("change a setting", &command).await.is_err() {
                waiting.push(name.clone());
            }
        }
        Ok(waiting)
    }

    pub(crate) async fn measure(&mut self) -> Result<Measures, StoreError> {
        let info = self.ask("measure", &["INFO"]).await?;
        let text = |name: &str| {
            let mut fields = info.lines().filter_map(|line| line.split_once(':'));
            fields
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.trim())
        };
        let number = |name: &str| {
            text(name)
                .and_then(|value| value.parse::<u64>().ok())
                .unwrap_or_default()
        };
        let offset = number("master_repl_offset");
        let replicas = (0..number("connected_slaves")).filter_map(|index| {
            let fields = text(&format!("slave{index}"))?;
            let field = |name: &str| {
                let mut fields = fields.split(',').filter_map(|field| field.split_once('='));
                fields
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| value.to_owned())
            };
            let at = field("offset")?.parse::<u64>().ok()?;
            Some(Replica {
                name: field("ip")?,
                state: field("state")?,
                lag_bytes: offset.saturating_sub(at),
            })
        });
        Ok(Measures {
            connections: number("connected_clients").saturating_sub(1),
            connections_max: number("maxclients"),
            size_bytes: number("used_memory"),
            size_bytes_max: number("maxmemory"),
            hits: number("keyspace_hits"),
            misses: number("keyspace_misses"),
            evicted: number("evicted_keys"),
            commits: number("total_commands_processed"),
            replicas: replicas.collect(),
            ..Measures::default()
        })
    }

    /// Sends a command and reads an answer that is no list.
    async fn ask(&mut self, doing: &'static str, words: &[&str]) -> Result<String, StoreError> {
        let mut request = Secret::new(format!("*{}\r\n", words.len()).into_bytes());
        for word in words {
            let mut next = request.reveal().clone();
            next.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
            request = Secret::new(next);
        }
        let io = |error| failed(doing, error);
        self.stream.write_all(request.reveal()).await.map_err(io)?;
        self.stream.flush().await.map_err(io)?;
        let line = self.line(doing).await?;
        let (kind, rest) = line.split_at_checked(1).unwrap_or(("", ""));
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "-" => Err(failed(doing, rest)),
            "$" => self.bulk(doing, rest).await,
            _ => Err(failed(doing, "an answer of another kind")),
        }
    }

    async fn bulk(&mut self, doing: &'static str, length: &str) -> Result<String, StoreError> {
        let length = length.parse::<usize>().ok();
        let Some(length) = length.filter(|length| *length <= ANSWER_BYTES_MAX) else {
            return Err(failed(doing, "an answer without an end"));
        };
        let mut bytes = vec![0; length + 2];
        let read = self.stream.read_exact(&mut bytes).await;
        read.map_err(|error| failed(doing, error))?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn line(&mut self, doing: &'static str) -> Result<String, StoreError> {
        let mut line = String::new();
        let read = (&mut self.stream).take(64 << 10).read_line(&mut line).await;
        match read.map_err(|error| failed(doing, error))? {
            0 => Err(failed(doing, "the connection was closed")),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

fn failed(doing: &'static str, reason: impl std::fmt::Display) -> StoreError {
    let reason = reason.to_string();
    StoreError::Redis { doing, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_users_holds_hashes_and_shuts_out_the_unnamed() {
        let password = Secret::new("hunter2".to_owned());
        let list = access_list(
            ("landfast", std::slice::from_ref(&password)),
            &[("release_3".to_owned(), password.clone())],
        );
        assert!(list.starts_with("user default off\n"));
        assert!(!list.contains("hunter2"));
        assert!(list.contains(
            "user release_3 on #f52fbd32b2b3b86ff88ef6c490628285f482af15ddcb29541f94bcf526a3f6c7 ~* &* +@all -@admin"
        ));
    }
}
