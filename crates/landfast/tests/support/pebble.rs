//! A certificate authority of our own: Debian's pebble, with a name server that says what a test wants.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use landfast_testbed::free_port;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::host::Host;

/// How this authority misbehaves.
#[derive(Clone, Copy)]
pub struct Manners {
    /// Of a hundred good nonces, how many it refuses.
    pub nonces_refused: u32,
    /// The longest it waits before it looks at a challenge.
    pub slow_s: Option<u32>,
    /// Of a hundred orders, in how many it asks for no new proof where there is an old one.
    pub proofs_reused: u32,
    /// How long its certificates are valid.
    pub life_s: u32,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            nonces_refused: 0,
            slow_s: None,
            proofs_reused: 0,
            life_s: 86_400,
        }
    }
}

/// Both processes; they end with this value.
pub struct Authority {
    folder: PathBuf,
    acme: u16,
    management: u16,
    names: u16,
    processes: Vec<Child>,
}

impl Authority {
    /// Starts it beside a host: challenges are asked at the ports of the host's proxy.
    pub fn start(host: &Host, manners: Manners) -> Self {
        let folder = host.path("authority");
        fs::create_dir_all(&folder).unwrap();
        let [acme, management, names, dns] = [(); 4].map(|()| free_port().unwrap());
        let (cert, key) = own_certificate(&folder);
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{acme}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": cert, "privateKey": key,
            "httpPort": host.http, "tlsPort": host.https,
            "certificateValidityPeriod": manners.life_s,
        }});
        let config_path = folder.join("pebble.json");
        fs::write(&config_path, config.to_string()).unwrap();
        let mut authority = Self {
            folder,
            acme,
            management,
            names,
            processes: Vec::new(),
        };
        let dns = format!("127.0.0.1:{dns}");
        let mut names = program("pebble-challtestsrv");
        names.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        names.args(["-dns01", &dns, "-defaultIPv6", ""]);
        names.args(["-management", &format!("127.0.0.1:{}", authority.names)]);
        authority.run("names.log", names);
        let mut pebble = program("pebble");
        pebble
            .arg("-config")
            .arg(config_path)
            .args(["-dnsserver", &dns]);
        pebble.env("PEBBLE_WFE_NONCEREJECT", manners.nonces_refused.to_string());
        pebble.env("PEBBLE_AUTHZREUSE", manners.proofs_reused.to_string());
        match manners.slow_s {
            None => pebble.env("PEBBLE_VA_NOSLEEP", "1"),
            Some(seconds) => pebble.env("PEBBLE_VA_SLEEPTIME", seconds.to_string()),
        };
        authority.run("pebble.log", pebble);
        for port in [acme, management, authority.names] {
            host.until("the authority listens", || {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
        }
        // The root is made anew with each start; it is asked over TLS by a name nobody checks here.
        let root = curl(&["-sk", &format!("https://127.0.0.1:{management}/roots/0")]);
        fs::write(authority.root(), root.stdout).unwrap();
        authority
    }

    fn run(&mut self, log: &str, mut program: Command) {
        let log = fs::File::create(self.folder.join(log)).unwrap();
        program.stdin(Stdio::null());
        program.stdout(log.try_clone().unwrap()).stderr(log);
        let child = program.spawn();
        self.processes
            .push(child.expect("Debian's pebble is installed (make setup)"));
    }

    /// What the server is started with.
    pub fn arguments(&self) -> Vec<String> {
        let directory = format!("https://127.0.0.1:{}/dir", self.acme);
        let ca = self.folder.join("ca.pem").display().to_string();
        ["--acme-directory".into(), directory, "--acme-ca".into(), ca].into()
    }

    /// The root of what it issues.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// Lets a name lead where nobody listens, or back to the host.
    pub fn lead(&self, name: &str, home: bool) {
        let body = if home {
            serde_json::json!({ "host": format!("{name}.") })
        } else {
            serde_json::json!({ "host": format!("{name}."), "addresses": ["127.0.0.99"] })
        };
        let path = if home { "clear-a" } else { "add-a" };
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.names)).unwrap();
        let head = format!(
            "POST /{path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }

    /// How many orders were ever placed with it.
    pub fn orders(&self) -> usize {
        let log = fs::read_to_string(self.folder.join("pebble.log")).unwrap_or_default();
        log.matches("Added order ").count()
    }

    /// How many certificates it has issued.
    pub fn issued(&self) -> usize {
        let log = fs::read_to_string(self.folder.join("pebble.log")).unwrap_or_default();
        log.matches("Issued certificate serial ").count()
    }

    /// Asks a host over TLS, trusting this authority alone: the body, or why there is none.
    pub fn get(&self, host: &Host, name: &str) -> Result<String, String> {
        ask(host.https, &self.root(), name)
    }

    /// The serial number of the certificate a host presents.
    #[expect(clippy::disallowed_methods, reason = "another implementation of TLS")]
    pub fn serial(&self, host: &Host, name: &str) -> String {
        let script = format!(
            "openssl s_client -connect 127.0.0.1:{} -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -serial",
            host.https
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        for process in &mut self.processes {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// The certificate the directory itself is served with, and the authority that is trusted for it.
fn own_certificate(folder: &std::path::Path) -> (PathBuf, PathBuf) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_made = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let made = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    fs::write(folder.join("ca.pem"), ca_made.pem()).unwrap();
    let (cert_path, key_path) = (folder.join("own.pem"), folder.join("own.key"));
    fs::write(&cert_path, made.pem()).unwrap();
    fs::write(&key_path, key.serialize_pem()).unwrap();
    (cert_path, key_path)
}

#[expect(clippy::disallowed_methods, reason = "the authority is a process")]
fn program(name: &str) -> Command {
    Command::new(name)
}

fn curl(arguments: &[&str]) -> Output {
    program("curl")
        .args(arguments)
        .output()
        .expect("curl is installed")
}

/// Asks over TLS, trusting one root.
pub fn ask(port: u16, root: &std::path::Path, name: &str) -> Result<String, String> {
    let to = format!("{name}:{port}:127.0.0.1");
    let root = root.display().to_string();
    let url = format!("https://{name}:{port}/");
    let output = curl(&[
        "-sS",
        "--max-time",
        "20",
        "--cacert",
        &root,
        "--resolve",
        &to,
        &url,
    ]);
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}
