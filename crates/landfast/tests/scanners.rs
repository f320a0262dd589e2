//! TLS of the real proxy as testssl.sh (Debian) and sslyze (PyPI) judge it: `make proof-tls`.

#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "a test fails where it unwraps, and helpers are shared by several tests"
)]

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::Value;
use support::host::Host;

const NAME: &str = "shop.landfast-proof.com";

/// Findings that are the test's own certificate's, not the proxy's: id, and why.
const OF_THE_TEST: &[(&str, &str)] = &[
    (
        "cert_revocation",
        "a test authority publishes no list of revoked certificates",
    ),
    ("cert_chain_of_trust", "no browser trusts a test authority"),
    ("DNS_CAArecord", "the name exists on this machine alone"),
];

/// What the application sends: headers are its business, and a scanner counts them.
const HEADERS: &[(&str, &str)] = &[
    (
        "strict-transport-security",
        "max-age=63072000; includeSubDomains",
    ),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    ("content-security-policy", "default-src 'none'"),
    ("referrer-policy", "no-referrer"),
];

#[test]
#[ignore = "minutes, and pip: make proof-tls"]
fn no_scanner_finds_anything_of_medium_or_worse() {
    let host = Host::start();
    issue(host.folder.path());
    let folder = host.folder.path().display().to_string();
    let manifest = format!(
        "app = \"shop\"\n[services.api]\nartifact = \"build\"\ncommand = [\"./app.py\", \"serve\"]\nport = 3000\n\
         health = {{ ready = \"http:/ready\", interval = \"200ms\" }}\n\
         [routes.public]\nhost = \"{NAME}\"\nservice = \"api\"\n\
         tls = {{ certificate = \"{folder}/chain.pem\", key = \"{folder}/key.pem\" }}\n\
         [deploy]\nmin_ready = \"200ms\"\nstandby = \"0s\"\n"
    );
    let app = host.app("shop", &manifest);
    let script = app.join("build/app.py");
    let plain = fs::read_to_string(&script).unwrap();
    let headers: String = HEADERS
        .iter()
        .map(|(name, value)| format!("self.send_header({name:?}, {value:?}); "))
        .collect();
    fs::write(
        &script,
        plain.replace(
            "self.end_headers()",
            &format!("{headers}self.end_headers()"),
        ),
    )
    .unwrap();
    host.expect(&app, &["deploy", "--wait", "seal"], 0);

    let looked_at = testssl(&host);
    let accepted = sslyze(&host);
    println!(
        "figure: testssl.sh looked at {looked_at} things, none of medium or worse; sslyze: {accepted}; not counted: {}",
        OF_THE_TEST
            .iter()
            .map(|(id, why)| format!("{id} ({why})"))
            .collect::<Vec<_>>()
            .join(", ")
    );
}

/// Runs testssl.sh; gives how many findings it had.
fn testssl(host: &Host) -> usize {
    let json = host.path("testssl.json");
    let output = run(
        "testssl",
        &[
            "--quiet",
            "--color",
            "0",
            "--warnings",
            "off",
            "--ip",
            "127.0.0.1",
            "--add-ca",
            &host.path("root.pem").display().to_string(),
            "--jsonfile",
            &json.display().to_string(),
            &format!("{NAME}:{}", host.https),
        ],
    );
    let text = fs::read_to_string(&json).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let findings: Vec<Value> = serde_json::from_str(&text).unwrap();
    let field = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let is_ours = |finding: &&Value| {
        let id = field(finding, "id");
        !OF_THE_TEST.iter().any(|(known, _)| id == *known)
    };
    for finding in findings
        .iter()
        .filter(|finding| !matches!(field(finding, "severity").as_str(), "OK" | "INFO"))
    {
        println!(
            "testssl.sh: {} {}: {}",
            field(finding, "severity"),
            field(finding, "id"),
            field(finding, "finding")
        );
    }
    let bad = |finding: &&Value| {
        matches!(
            field(finding, "severity").as_str(),
            "MEDIUM" | "HIGH" | "CRITICAL" | "FATAL"
        )
    };
    let found: Vec<_> = findings.iter().filter(bad).filter(is_ours).collect();
    assert!(found.is_empty(), "{found:#?}");
    let vulnerabilities = [
        "heartbleed",
        "CCS",
        "ROBOT",
        "BREACH",
        "SWEET32",
        "LUCKY13",
        "RC4",
        "TLS1_3",
    ];
    for id in vulnerabilities {
        let judged = findings.iter().any(|finding| field(finding, "id") == id);
        assert!(judged, "testssl.sh did not get as far as {id}");
    }
    findings.len()
}

/// Runs sslyze against Mozilla's "intermediate" configuration; gives its verdict.
fn sslyze(host: &Host) -> String {
    let venv = host.path("venv");
    let made = run("python3", &["-m", "venv", &venv.display().to_string()]);
    assert!(made.status.success(), "{made:?}");
    let pip = venv.join("bin/pip").display().to_string();
    let installed = run(
        &pip,
        &[
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "sslyze",
        ],
    );
    assert!(installed.status.success(), "{installed:?}");
    let program = venv.join("bin/sslyze").display().to_string();
    let target = format!("{NAME}:{}{{127.0.0.1}}", host.https);
    // It demands a certificate that a public root has signed; the test's root stands in for one.
    let root = host.path("root.pem").display().to_string();
    let output = run(
        &program,
        &[
            "--mozilla_config",
            "intermediate",
            "--certinfo_ca_file",
            &root,
            &target,
        ],
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let server = format!("{NAME}:{}: ", host.https);
    let mut lines = text.lines().map(str::trim);
    let verdict = lines.find_map(|line| line.strip_prefix(&server));
    let verdict = verdict.unwrap_or_else(|| panic!("{text}"));
    assert!(
        output.status.success() && verdict == "OK - Compliant.",
        "{text}"
    );
    verdict.to_owned()
}

/// A root, and a certificate by it for as long as a public one has.
fn issue(folder: &Path) {
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![
        rcgen::KeyUsagePurpose::KeyCertSign,
        rcgen::KeyUsagePurpose::CrlSign,
    ];
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "test root");
    let ca_key = KeyPair::generate().unwrap();
    let root = ca.self_signed(&ca_key).unwrap();
    let mut wanted = CertificateParams::new([NAME.to_owned()]).unwrap();
    // Ninety days, of which ten are over.
    let today = jiff::Zoned::now().date();
    let day = |days: i64| {
        let date = today.saturating_add(jiff::Span::new().days(days));
        date_time_ymd(i32::from(date.year()), date.month() as u8, date.day() as u8)
    };
    wanted.not_before = day(-10);
    wanted.not_after = day(80);
    wanted
        .distinguished_name
        .push(rcgen::DnType::CommonName, NAME);
    wanted.use_authority_key_identifier_extension = true;
    wanted.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    wanted.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let made = wanted.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    fs::write(folder.join("root.pem"), root.pem()).unwrap();
    fs::write(folder.join("chain.pem"), made.pem() + &root.pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "the scanners are processes")]
fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{program}: {error} (make setup)"))
}
