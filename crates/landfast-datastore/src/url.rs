//! Addresses of stores, as clients of each engine read them.

use std::fmt::Display;

use landfast_spec::Engine;
use landfast_types::Secret;

/// `postgres://login:password@127.0.0.1:15000/database`. Redis has one numbered database.
pub fn connection_url(
    engine: Engine,
    login: &str,
    password: &Secret<String>,
    address: impl Display + Copy,
    database: &str,
) -> Secret<String> {
    let scheme = match engine {
        Engine::Postgres => "postgres",
        Engine::Mariadb | Engine::Mysql => "mysql",
        Engine::Redis => "redis",
        Engine::S3 => "s3",
    };
    let database = if engine == Engine::Redis {
        "0"
    } else {
        database
    };
    let (login, password) = (encode(login), Secret::new(encode(password.reveal())));
    Secret::new(format!(
        "{scheme}://{login}:{}@{address}/{database}",
        password.reveal()
    ))
}

/// Adds who connects to the address of a PostgreSQL that is not ours, unless it says so already.
pub fn with_application_name(url: &Secret<String>, application: &str) -> Secret<String> {
    let text = url.reveal();
    let is_postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
    if !is_postgres || text.contains("application_name=") {
        return url.clone();
    }
    let join = if text.contains('?') { '&' } else { '?' };
    Secret::new(format!(
        "{text}{join}application_name={}",
        encode(application)
    ))
}

/// Everything but letters, digits and `-._~` as `%XX` (RFC 3986, 2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_encoded_and_redis_has_a_number() {
        let address = "127.0.0.1:15000";
        let password = Secret::new("a/b@c:d é".to_owned());
        let url = |engine| connection_url(engine, "release_3", &password, address, "shop");
        assert_eq!(
            url(Engine::Postgres).reveal(),
            "postgres://release_3:a%2Fb%40c%3Ad%20%C3%A9@127.0.0.1:15000/shop"
        );
        assert!(url(Engine::Mariadb).reveal().starts_with("mysql://"));
        assert!(url(Engine::Redis).reveal().ends_with("@127.0.0.1:15000/0"));
    }

    #[test]
    fn a_foreign_postgres_is_told_who_comes() {
        let named = |url: &str| {
            let url = Secret::new(url.to_owned());
            with_application_name(&url, "shop/production r3")
                .reveal()
                .clone()
        };
        let name = "application_name=shop%2Fproduction%20r3";
        assert_eq!(
            named("postgres://a:b@h/d"),
            format!("postgres://a:b@h/d?{name}")
        );
        assert_eq!(
            named("postgresql://h/d?sslmode=require"),
            format!("postgresql://h/d?sslmode=require&{name}")
        );
        assert_eq!(
            named("postgres://h/d?application_name=x"),
            "postgres://h/d?application_name=x"
        );
        assert_eq!(named("mysql://h/d"), "mysql://h/d");
    }
}
