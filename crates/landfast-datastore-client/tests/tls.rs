//! TLS to real servers with certificates made here: what each word of an address lets through, and what is said of the rest.

#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use landfast_datastore_client::{
    Abilities, MysqlAddress, PostgresAddress, Protection, StoreError, probe,
};
use landfast_spec::Engine;
use landfast_testbed::{Mariadb, Postgres};
use landfast_types::Secret;
use mysql_async::prelude::Queryable as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// A certificate with its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
}

/// An authority of our own.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    certificate: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            params,
            key,
            certificate,
        }
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let issuer = Issuer::from_params(&self.params, &self.key);
        Pair {
            certificate: params.signed_by(&key, &issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

fn file(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

async fn ask(engine: Engine, url: String) -> Result<Abilities, String> {
    let said = probe(engine, &Secret::new(url)).await;
    match said {
        Ok(abilities) => Ok(abilities.expect("it is asked")),
        Err(error @ StoreError::Untrusted { .. }) => Err(format!("untrusted: {error}")),
        Err(error) => {
            let mut said = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                said = format!("{said}: {next}");
                cause = next.source();
            }
            Err(said)
        }
    }
}

#[track_caller]
fn refused(said: Result<Abilities, String>, parts: &[&str]) {
    let reason = said.expect_err("it is refused");
    for part in parts {
        assert!(reason.contains(part), "`{part}` is not in: {reason}");
    }
    assert!(!reason.contains("testbed"), "no password: {reason}");
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_reached_as_its_address_says() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(), Authority::new());
    let ca = shown(&file(&folder, "ca.pem", &ours.certificate));
    let wrong = shown(&file(&folder, "wrong.pem", &other.certificate));
    let pair = ours.issue("127.0.0.1", |_| ());
    let server = Postgres::with_tls(&pair.certificate, &pair.key).unwrap();
    let at = |query: String| {
        ask(
            Engine::Postgres,
            format!("{}?{query}", server.url("postgres")),
        )
    };

    let full = at(format!("sslmode=verify-full&sslrootcert={ca}"))
        .await
        .unwrap();
    assert_eq!(full.protection, Protection::Full);
    assert!(
        full.create_role && full.create_table && full.replication,
        "{full:?}"
    );
    let address = format!(
        "{}?sslmode=verify-full&sslrootcert={ca}",
        server.url("postgres")
    );
    let address = PostgresAddress::parse(&Secret::new(address)).unwrap();
    let connection = address.connect().await.unwrap();
    let ask_ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = connection.client.query_one(ask_ssl, &[]).await.unwrap();
    assert!(row.get::<_, bool>(0), "the server says that it is TLS");

    for query in [
        "sslmode=require",
        "sslmode=prefer",
        "",
        // The login is bound to the certificate.
        "sslmode=require&channel_binding=require",
    ] {
        assert!(at(query.to_owned()).await.is_ok(), "{query}");
    }
    refused(at("sslmode=disable".to_owned()).await, &["pg_hba.conf"]);
    refused(
        at("sslmode=verify-full".to_owned()).await,
        &["untrusted", "`127.0.0.1`", "sslrootcert"],
    );
    for mode in ["require", "verify-ca", "verify-full"] {
        let query = format!("sslmode={mode}&sslrootcert={wrong}");
        refused(
            at(query).await,
            &["untrusted", "was not made by the authority", "wrong.pem"],
        );
    }
    refused(
        at("sslmode=verify-full&sslrootcert=/nowhere/ca.pem".to_owned()).await,
        &["`/nowhere/ca.pem` cannot be read"],
    );
    let empty = shown(&file(&folder, "empty.pem", "nothing\n"));
    refused(
        at(format!("sslmode=verify-full&sslrootcert={empty}")).await,
        &["holds no certificate"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_a_date_and_a_pinned_certificate_of_postgres_are_judged() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let ca = shown(&file(&folder, "ca.pem", &ours.certificate));
    let ask_it = |server: &Postgres, query: String| {
        ask(
            Engine::Postgres,
            format!("{}?{query}", server.url("postgres")),
        )
    };

    let elsewhere = ours.issue("db.example", |_| ());
    let server = Postgres::with_tls(&elsewhere.certificate, &elsewhere.key).unwrap();
    let full = ask_it(&server, format!("sslmode=verify-full&sslrootcert={ca}")).await;
    refused(
        full,
        &["untrusted", "not for `127.0.0.1`", "sslmode=verify-ca"],
    );
    let loose = ask_it(&server, format!("sslmode=verify-ca&sslrootcert={ca}")).await;
    assert_eq!(loose.unwrap().protection, Protection::Authority);

    let over = ours.issue("127.0.0.1", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let server = Postgres::with_tls(&over.certificate, &over.key).unwrap();
    let old = ask_it(&server, format!("sslmode=verify-ca&sslrootcert={ca}")).await;
    refused(old, &["untrusted", "has expired"]);

    // What many servers have: a certificate that nobody signed, given to its clients as the authority's.
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = own.self_signed(&key).unwrap().pem();
    let pinned = shown(&file(&folder, "own.pem", &own));
    let server = Postgres::with_tls(&own, &key.serialize_pem()).unwrap();
    let full = ask_it(&server, format!("sslmode=verify-full&sslrootcert={pinned}")).await;
    assert_eq!(full.unwrap().protection, Protection::Full);
    let other = ask_it(&server, format!("sslmode=verify-ca&sslrootcert={ca}")).await;
    refused(other, &["untrusted"]);

    // Its own time counts also where it is trusted for itself.
    let mut past = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    past.not_before = date_time_ymd(2020, 1, 1);
    past.not_after = date_time_ymd(2021, 1, 1);
    let past = past.self_signed(&key).unwrap().pem();
    let pinned = shown(&file(&folder, "past.pem", &past));
    let server = Postgres::with_tls(&past, &key.serialize_pem()).unwrap();
    let old = ask_it(&server, format!("sslmode=verify-ca&sslrootcert={pinned}")).await;
    refused(old, &["untrusted", "has expired"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_is_reached_as_its_address_says() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(), Authority::new());
    let ca = shown(&file(&folder, "ca.pem", &ours.certificate));
    let wrong = shown(&file(&folder, "wrong.pem", &other.certificate));
    let pair = ours.issue("127.0.0.1", |_| ());
    let server = Mariadb::with_tls(&pair.certificate, &pair.key).unwrap();
    let at = |query: String| ask(Engine::Mariadb, format!("{}?{query}", server.url("app")));

    let full = at(format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={ca}"))
        .await
        .unwrap();
    assert_eq!(full.protection, Protection::Full);
    assert!(full.create_role && full.create_table, "{full:?}");
    let address = format!("{}?ssl-mode=VERIFY_IDENTITY&ssl-ca={ca}", server.url("app"));
    let address = MysqlAddress::parse(&Secret::new(address)).unwrap();
    let mut connection = address.connect().await.unwrap();
    let cipher: Option<(String, String)> = connection
        .query_first("SHOW STATUS LIKE 'Ssl_cipher'")
        .await
        .unwrap();
    assert!(
        cipher.is_some_and(|(_, cipher)| !cipher.is_empty()),
        "the server says that it is TLS"
    );

    assert_eq!(
        at("ssl-mode=REQUIRED".to_owned()).await.unwrap().protection,
        Protection::Encrypted
    );
    // As MySQL's clients do: in TLS where the server has it.
    assert_eq!(
        at(String::new()).await.unwrap().protection,
        Protection::Preferred
    );
    refused(
        at("ssl-mode=DISABLED".to_owned()).await,
        &["failed to connect"],
    );
    refused(
        at("ssl-mode=VERIFY_IDENTITY".to_owned()).await,
        &["untrusted", "`127.0.0.1`", "ssl-ca"],
    );
    for mode in ["REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"] {
        let query = format!("ssl-mode={mode}&ssl-ca={wrong}");
        refused(
            at(query).await,
            &["untrusted", "was not made by the authority", "wrong.pem"],
        );
    }

    let elsewhere = ours.issue("db.example", |_| ());
    let server = Mariadb::with_tls(&elsewhere.certificate, &elsewhere.key).unwrap();
    let at = |query: String| ask(Engine::Mariadb, format!("{}?{query}", server.url("app")));
    for mode in ["VERIFY_CA", "VERIFY_IDENTITY"] {
        let said = at(format!("ssl-mode={mode}&ssl-ca={ca}")).await;
        refused(said, &["untrusted", "not for `127.0.0.1`"]);
    }

    let bare = Mariadb::start().unwrap();
    let at = |query: &str| ask(Engine::Mariadb, format!("{}{query}", bare.url("app")));
    for query in ["", "?ssl-mode=PREFERRED", "?ssl-mode=DISABLED"] {
        assert!(at(query).await.is_ok(), "{query}");
    }
    refused(at("?ssl-mode=REQUIRED").await, &["failed to connect"]);
}
