//! Migrations over TLS, on both engines; which addresses lead where is tested beside the client.

#![expect(clippy::unwrap_used, reason = "a test that panics fails")]

use std::{fs, path::Path};

use landfast_migration::{Engine, MigrationSet, SourceFile};
use landfast_migrator::{MigratorError, Options, Session, Stage};
use landfast_testbed::{Mariadb, Postgres};
use landfast_types::Secret;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// An authority in a file, and a certificate of it with its key.
fn certificate(file: &Path) -> (String, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(file, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    (leaf.pem(), key.serialize_pem())
}

async fn run(engine: Engine, url: String) -> Result<Vec<String>, MigratorError> {
    let file = SourceFile {
        name: "0001_items.sql".to_owned(),
        bytes: b"CREATE TABLE items (id bigint PRIMARY KEY);".to_vec(),
    };
    let set = MigrationSet::parse(&[file], engine).unwrap();
    let mut session = Session::connect(engine, &Secret::new(url)).await?;
    let report = session
        .up(&set, Stage::All, &Options::default(), &mut |_| {})
        .await?;
    Ok(report.applied)
}

async fn runs_and_is_refused(engine: Engine, url: &str, word: &str, ours: &Path, other: &Path) {
    let wrong = run(engine, format!("{url}{}", other.display())).await;
    let said = wrong.unwrap_err().to_string();
    assert!(
        said.contains("was not made by the authority") && said.contains(word),
        "{said}"
    );
    let applied = run(engine, format!("{url}{}", ours.display())).await;
    assert_eq!(applied.unwrap(), ["0001_items"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_go_over_tls_and_a_wrong_authority_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (
        folder.path().join("ca.pem"),
        folder.path().join("other.pem"),
    );
    let (pair, _) = (certificate(&ours), certificate(&other));

    let postgres = Postgres::with_tls(&pair.0, &pair.1).unwrap();
    let url = format!(
        "{}?sslmode=verify-full&sslrootcert=",
        postgres.url("postgres")
    );
    runs_and_is_refused(Engine::Postgres, &url, "sslrootcert", &ours, &other).await;

    let mariadb = Mariadb::with_tls(&pair.0, &pair.1).unwrap();
    let url = format!("{}?ssl-mode=VERIFY_IDENTITY&ssl-ca=", mariadb.url("app"));
    runs_and_is_refused(Engine::Mariadb, &url, "ssl-ca", &ours, &other).await;
}
