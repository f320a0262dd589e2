//! The command line, whole. Every command's help ends with an example.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use landfast_types::{AppName, EnvironmentName, JobName, Network, ServiceName};

use crate::tunnel::HostUrl;

/// Deploys an application from one file, with no request lost.
#[derive(Debug, Parser)]
#[command(
    name = "landfast",
    version,
    about = "Deploys an application from one file, with no request lost",
    disable_help_subcommand = true,
    propagate_version = true,
    after_help = "Start with `landfast init` in your application's folder and `landfast server` on the host.\nExit codes: `landfast help exit-codes`. A code in a message: `landfast explain CODE`."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The manifest
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "landfast.toml",
        env = "LANDFAST_FILE",
        hide_env_values = true
    )]
    pub(crate) file: PathBuf,
    /// The environment [default: production]
    #[arg(
        short,
        long,
        global = true,
        value_name = "NAME",
        env = "LANDFAST_ENVIRONMENT",
        hide_env_values = true
    )]
    pub(crate) environment: Option<EnvironmentName>,
    /// The app, where there is no manifest to name it
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "LANDFAST_APP",
        hide_env_values = true
    )]
    pub(crate) app: Option<AppName>,
    /// Another host: `ssh://[user@]host[:port][?socket=/path]`, or `tcp://127.0.0.1:port`; wins over `--socket`
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "LANDFAST_HOST",
        hide_env_values = true
    )]
    pub(crate) host: Option<HostUrl>,
    /// The server's Unix socket on this host
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "LANDFAST_SOCKET",
        hide_env_values = true
    )]
    pub(crate) socket: Option<PathBuf>,
    /// Print data as JSON on stdout, and errors as one JSON object on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colour; `NO_COLOR` is respected
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorWhen,
    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    Auto,
    Always,
    Never,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Look at this folder and write a commented landfast.toml
    #[command(after_help = "Example:\n  landfast init --name shop")]
    Init(Init),
    /// Check the manifest and show everything wrong with it
    #[command(after_help = "Example:\n  landfast check\n  landfast check -e staging --json")]
    Check,
    /// Show what a deploy would change, need and refuse; changes nothing
    #[command(after_help = "Example:\n  landfast plan\n  landfast plan --strategy canary")]
    Plan(Plan),
    /// Upload the artifacts, make a release and move the environment to it
    #[command(
        after_help = "Ends when the new release serves everything and the old one stands by; `--wait seal` waits until the old one is let go. Ctrl-C detaches: the rollout goes on.\n\nExample:\n  landfast deploy --note \"faster search\"\n  landfast deploy -e staging --strategy blue-green --wait seal\n  landfast deploy --host ssh://deploy@example.com"
    )]
    Deploy(Deploy),
    /// Show the environment: releases, instances, routes, problems, the rollout
    #[command(
        after_help = "Example:\n  landfast status\n  landfast status --follow\n  landfast status --all"
    )]
    Status(Status),
    /// Check whether the host can carry the app: what was measured, and what to do
    #[command(
        after_help = "Asks the server; where none runs here yet, looks at this machine itself. Ends with 8 when something fails.\n\nExample:\n  landfast doctor\n  landfast doctor --users 300\n  landfast doctor --host ssh://deploy@example.com --json"
    )]
    Doctor(Doctor),
    /// Watch requests, errors and latency by release and instance, live
    #[command(
        after_help = "`q` ends it. Without a terminal, or with `--once` or `--json`, it prints one reading.\n\nExample:\n  landfast top\n  landfast top -e staging --once"
    )]
    Top(Top),
    /// Show releases and rollouts, and what each rollout cost
    #[command(after_help = "Example:\n  landfast history --limit 5")]
    History(History),
    /// Pass the manual gate, or take up a parked rollout
    #[command(after_help = "Example:\n  landfast promote --reason \"figures look right\"")]
    Promote(Decision),
    /// Take the rollout back: the old release serves again
    #[command(after_help = "Example:\n  landfast abort --reason \"wrong commit\"")]
    Abort(Decision),
    /// Let the old release go now, instead of after `standby`
    #[command(after_help = "Example:\n  landfast seal")]
    Seal(Decision),
    /// Go back to the last sealed release before the current one, or to another that is kept
    #[command(after_help = "Example:\n  landfast rollback\n  landfast rollback --to 12")]
    Rollback(Rollback),
    /// Run more or fewer instances until the manifest's `replicas` changes
    #[command(after_help = "Example:\n  landfast scale api 5\n  landfast scale api manifest")]
    Scale(Scale),
    /// Replace all instances by new ones of the same release
    #[command(after_help = "Example:\n  landfast restart --reason \"new certificate\"")]
    Restart(Restart),
    /// Show the maintenance page and stop the instances
    #[command(after_help = "Example:\n  landfast stop -e staging --reason \"moving the database\"")]
    Stop(Reason),
    /// Start what `stop` stopped
    #[command(after_help = "Example:\n  landfast start -e staging")]
    Start(Reason),
    /// Show what instances wrote
    #[command(
        after_help = "Example:\n  landfast logs -f\n  landfast logs api --tail 500\n  landfast logs api.r3.17"
    )]
    Logs(Logs),
    /// Show what happens, as it happens
    #[command(after_help = "Example:\n  landfast events\n  landfast events --all --after 0 --json")]
    Events(Events),
    /// Show all routes of the host, in the order they match
    #[command(after_help = "Example:\n  landfast routes")]
    Routes,
    /// Show the certificate of every host: issuer, end, next renewal, what is in the way; renew one by hand
    #[command(
        after_help = "Example:\n  landfast certificates\n  landfast certificates renew api.example.com"
    )]
    Certificates {
        #[command(subcommand)]
        command: Option<CertificatesCommand>,
    },
    /// Run a job now, show its output, and end with its exit code
    #[command(after_help = "Example:\n  landfast run smoke")]
    Run(Run),
    /// Run a command beside an instance, and end with its exit code
    #[command(
        after_help = "Example:\n  landfast exec api -- ./flextime cache-flush\n  landfast exec api.r3.17 -- env"
    )]
    Exec(Exec),
    /// Set, list and remove secrets; values are never shown
    #[command(
        after_help = "Example:\n  landfast secret set API_KEY < key.txt\n  landfast secret list"
    )]
    Secret {
        #[command(subcommand)]
        command: SecretCommand,
    },
    /// Run the server of this host
    #[command(
        after_help = "It starts the proxy and everything that should run. Killing it stops no traffic and no instance.\n\nExample:\n  landfast server\n  landfast server --state ./state --run ./run --http 127.0.0.1:8080"
    )]
    Server(Server),
    /// Move server and proxy of this host to another binary; traffic and instances go on
    #[command(
        after_help = "Checks the new binary against this journal, puts it in the place of the one that runs (kept as `….previous`), hands the proxy over, then the server. Goes back by itself when the new one does not come up. Run it on the host, as the user of the server.\n\nExample:\n  landfast upgrade --binary ./landfast\n  ./landfast upgrade"
    )]
    Upgrade(Upgrade),
    /// Run the proxy alone; the server starts it by itself
    #[command(
        after_help = "Example:\n  landfast proxy --control /run/landfast/proxy.sock --routes routes.json --http 127.0.0.1:8080"
    )]
    Proxy(Proxy),
    /// Explain a code of a message, or list all
    #[command(after_help = "Example:\n  landfast explain LF003\n  landfast explain route-taken")]
    Explain(Explain),
    /// Print the manifest's JSON Schema, for editors
    #[command(after_help = "Example:\n  landfast schema > landfast.schema.json")]
    Schema,
    /// Print the completions of a shell
    #[command(
        after_help = "Example:\n  landfast completions bash > /etc/bash_completion.d/landfast"
    )]
    Completions(Completions),
    /// Write the man pages
    #[command(
        after_help = "Example:\n  landfast man /usr/local/share/man/man1\n  man landfast-deploy"
    )]
    Man(Man),
    /// Show the help of a command, or a topic: exit-codes
    #[command(after_help = "Example:\n  landfast help deploy\n  landfast help exit-codes")]
    Help(Help),
    /// Print this command line as Markdown
    #[command(hide = true)]
    Reference,
    /// Parent of one process instance
    #[command(hide = true)]
    Shim,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The app's name [default: the folder's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<AppName>,
    /// Replace a manifest that is there
    #[arg(long)]
    pub(crate) force: bool,
}

/// How traffic moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StrategyArg {
    Rolling,
    BlueGreen,
    Canary,
    Recreate,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// In place of the manifest's
    #[arg(long)]
    pub(crate) strategy: Option<StrategyArg>,
}

/// How long a command stays with its rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wait {
    /// Only until it has begun
    Start,
    /// Until the new release serves everything
    Promotion,
    /// Until the old release is let go
    Seal,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// In place of the manifest's, this time only
    #[arg(long)]
    pub(crate) strategy: Option<StrategyArg>,
    /// A word about this release, for `history`
    #[arg(long)]
    pub(crate) note: Option<String>,
    /// The source commit [default: that of the git checkout the manifest is in]
    #[arg(long, env = "LANDFAST_COMMIT", hide_env_values = true)]
    pub(crate) commit: Option<String>,
    /// Take a moving rollout back first, instead of being refused by it
    #[arg(long)]
    pub(crate) supersede: bool,
    /// How long to stay
    #[arg(long, value_name = "UNTIL", default_value = "promotion")]
    pub(crate) wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Stay with the rollout that is under way
    #[arg(short, long, conflicts_with_all = ["all", "host_info"])]
    pub(crate) follow: bool,
    /// Every app and environment of the host in a line
    #[arg(short, long, conflicts_with = "host_info")]
    pub(crate) all: bool,
    /// The host: versions, listeners, folders, resources
    #[arg(long)]
    pub(crate) host_info: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// People who use the app at one time: holds the host against the size known for so many
    #[arg(long, value_name = "N")]
    pub(crate) users: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// At most this many rollouts
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) limit: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Reason {
    /// Why, for `history`
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Decision {
    /// Why, for `history`
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// The rollout [default: the one under way]
    #[arg(long, value_name = "N")]
    pub(crate) rollout: Option<u64>,
    /// How long to stay
    #[arg(long, value_name = "UNTIL", default_value = "promotion")]
    pub(crate) wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Any release that `history` shows as kept
    #[arg(long, value_name = "RELEASE")]
    pub(crate) to: Option<u64>,
    /// Why, for `history`
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// How long to stay
    #[arg(long, value_name = "UNTIL", default_value = "promotion")]
    pub(crate) wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// Why, for `history`
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// How long to stay
    #[arg(long, value_name = "UNTIL", default_value = "promotion")]
    pub(crate) wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// The service
    pub(crate) service: ServiceName,
    /// How many instances, or `manifest` for what the manifest says
    #[arg(value_parser = replicas)]
    pub(crate) replicas: Replicas,
}

/// How many instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replicas {
    Count(u32),
    Manifest,
}

fn replicas(text: &str) -> Result<Replicas, String> {
    if text == "manifest" {
        return Ok(Replicas::Manifest);
    }
    let count = text.parse::<u32>().map(Replicas::Count);
    count.map_err(|_not_a_number| "write a number, or `manifest`".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// A service, a job or an instance such as `api.r3.17` [default: all]
    pub(crate) target: Option<String>,
    /// Go on as lines come
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many lines of the past
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub(crate) tail: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Those of the whole host
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Begin after this event instead of now; 0 shows all that are kept
    #[arg(long, value_name = "SEQUENCE")]
    pub(crate) after: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The job
    pub(crate) job: JobName,
    /// Do not wait for it
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// A service, or an instance such as `api.r3.17`
    pub(crate) target: String,
    /// Pass stdin on, read to its end first
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Set a secret to what stdin says, or to what is typed unseen
    #[command(
        after_help = "One line end after the value is left out. The next deploy takes the new value.\n\nExample:\n  landfast secret set API_KEY\n  landfast secret set API_KEY < key.txt"
    )]
    Set {
        /// The variable's name
        name: String,
    },
    /// List names and versions
    #[command(after_help = "Example:\n  landfast secret list --json")]
    List,
    /// Remove a secret and its versions
    #[command(after_help = "Example:\n  landfast secret rm API_KEY")]
    Rm {
        /// The variable's name
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Where everything that must last is kept [default: /var/lib/landfast as root, else ~/.local/state/landfast]
    #[arg(
        long,
        value_name = "FOLDER",
        env = "LANDFAST_STATE",
        hide_env_values = true
    )]
    pub(crate) state: Option<PathBuf>,
    /// Where sockets are; may be emptied at a reboot [default: /run/landfast as root, else $XDG_RUNTIME_DIR/landfast]
    #[arg(
        long,
        value_name = "FOLDER",
        env = "LANDFAST_RUN",
        hide_env_values = true
    )]
    pub(crate) run: Option<PathBuf>,
    /// Where the proxy listens for HTTP [default: 0.0.0.0:80, or 8080 where 80 may not be bound]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) http: Vec<SocketAddr>,
    /// Where the proxy listens for HTTPS [default: 0.0.0.0:443, or 8443 where 443 may not be bound]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) https: Vec<SocketAddr>,
    /// Where a new release can be tested before it gets traffic; on loopback
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) preview: Option<SocketAddr>,
    /// Connections one client may hold at a time; of IPv6 a /64 is one client [default: a quarter of all]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) connections_per_client: u32,
    /// Proxies before this one whose word about a client's address is taken: addresses or networks [default: nobody]
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub(crate) trusted_proxies: Vec<Network>,
    /// The field those proxies set; only this one is read
    #[arg(long, value_name = "FIELD", value_enum, default_value_t)]
    pub(crate) trusted_field: TrustedField,
    /// Serve the API on this loopback address too
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) tcp: Option<SocketAddr>,
    /// Write the log as JSON, one object per line
    #[arg(long)]
    pub(crate) log_json: bool,
    #[command(flatten)]
    pub(crate) acme: Acme,
    /// Read the journal in `--state` as a start does, and do nothing else
    #[arg(long, hide = true)]
    pub(crate) check: bool,
    /// A control of the loss judge: ends instances without waiting for drains; requests are lost
    #[arg(long, hide = true)]
    pub(crate) drain_confirmation_off: bool,
    /// A control of the loss judge: takes instances for ready at once; requests are lost
    #[arg(long, hide = true)]
    pub(crate) health_gate_off: bool,
}

/// What is done with certificates; without a word they are listed.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificatesCommand {
    /// List them
    #[command(after_help = "Example:\n  landfast certificates list --json")]
    List,
    /// Order a host's certificate now, whatever is planned
    #[command(after_help = "Example:\n  landfast certificates renew api.example.com")]
    Renew {
        /// The host, as its route names it
        #[arg(value_name = "HOST")]
        name: String,
    },
}

/// How hosts are proven to the certificate authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ChallengeArg {
    /// A file over plain HTTP; the authority asks port 80
    #[value(name = "http-01")]
    Http01,
    /// A certificate over TLS; the authority asks port 443
    #[value(name = "tls-alpn-01")]
    TlsAlpn01,
}

/// How certificates are obtained.
#[derive(Debug, Args)]
#[command(next_help_heading = "Certificates (ACME)")]
pub(crate) struct Acme {
    /// Order and renew no certificates; those that are there serve on
    #[arg(long)]
    pub(crate) acme_off: bool,
    /// The directory of the certificate authority [default: Let's Encrypt, where the proxy listens on port 80 or 443]
    #[arg(
        long,
        value_name = "URL",
        env = "LANDFAST_ACME_DIRECTORY",
        conflicts_with = "acme_off"
    )]
    pub(crate) acme_directory: Option<String>,
    /// A mail address the authority may write to; may be given more than once
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "LANDFAST_ACME_CONTACT",
        value_delimiter = ','
    )]
    pub(crate) acme_contact: Vec<String>,
    /// PEM certificates to trust for the directory beside the system's
    #[arg(long, value_name = "FILE", env = "LANDFAST_ACME_CA")]
    pub(crate) acme_ca: Option<PathBuf>,
    /// How hosts are proven, the first choice first; after a failure the next is tried
    #[arg(long, value_name = "KIND", value_delimiter = ',', default_values = ["http-01", "tls-alpn-01"])]
    pub(crate) acme_challenges: Vec<ChallengeArg>,
}

#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    /// The new binary [default: the one that runs this command]
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// The control socket
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,
    /// The last good routes
    #[arg(long, value_name = "FILE")]
    pub(crate) routes: PathBuf,
    /// Where to listen for HTTP
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) http: Vec<SocketAddr>,
    /// Where to listen for HTTPS
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) https: Vec<SocketAddr>,
    /// Where a new release can be tested before it gets traffic; on loopback
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) preview: Option<SocketAddr>,
    /// Connections one client may hold at a time; of IPv6 a /64 is one client [default: a quarter of all]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) connections_per_client: u32,
    /// Proxies before this one whose word about a client's address is taken: addresses or networks [default: nobody]
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub(crate) trusted_proxies: Vec<Network>,
    /// The field those proxies set; only this one is read
    #[arg(long, value_name = "FIELD", value_enum, default_value_t)]
    pub(crate) trusted_field: TrustedField,
    /// The JSON access log
    #[arg(long, value_name = "FILE")]
    pub(crate) access_log: Option<PathBuf>,
    /// Threads that serve [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
}

/// The field by which trusted proxies say who asks.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(crate) enum TrustedField {
    #[default]
    XForwardedFor,
    Forwarded,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A diagnostic's code (`LF003`), a problem's code (`route-taken`) or an exit code (`4`)
    pub(crate) code: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// How often to look, in milliseconds
    #[arg(long = "interval", value_name = "MS", default_value_t = 1_000)]
    pub(crate) interval_ms: u64,
    /// Print one reading and end
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The folder the pages are written into
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Help {
    /// A command, or `exit-codes`
    pub(crate) topic: Vec<String>,
}
