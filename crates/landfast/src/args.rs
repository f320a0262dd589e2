//! The command line, whole. Every command's help ends with an example.

pub(crate) mod convert;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use landfast_types::{AppName, EnvironmentName, JobName, Network, ServiceName, StoreName};

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
    /// Make a manifest of a Compose file, of Kamal's deploy.yml or of a Procfile
    #[command(
        after_help = "Every key is carried or named, with its line, the reason and what to do instead. No server is asked.\n\nExample:\n  landfast import compose\n  landfast import kamal config/deploy.yml"
    )]
    Import {
        #[command(subcommand)]
        command: convert::ImportCommand,
    },
    /// Write the app as a Compose file with nginx, or a Dockerfile for the project
    #[command(
        after_help = "No server is asked.\n\nExample:\n  landfast export compose --out compose\n  landfast export dockerfile"
    )]
    Export {
        #[command(subcommand)]
        command: convert::ExportCommand,
    },
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
    /// Set, list, roll back and revoke secrets; values are shown only when asked for
    #[command(
        after_help = "Example:\n  landfast secret set API_KEY < key.txt\n  landfast secret list"
    )]
    Secret {
        #[command(subcommand)]
        command: SecretCommand,
    },
    /// Show, reach and look after data stores: databases, caches and buckets
    #[command(
        after_help = "Example:\n  landfast store list\n  landfast store show main\n  landfast store psql main"
    )]
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Show how far a restore reaches, make, verify and prune backups
    #[command(
        after_help = "What a manifest says in `[stores.NAME.backup]` is done by itself: the log shipped within seconds, backups and drills by the clock.\n\nExample:\n  landfast backup list\n  landfast backup now main\n  landfast backup verify main"
    )]
    Backup {
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// Restore a store or a volume beside the one that is used, or into a folder
    #[command(
        after_help = "Nothing that runs is overwritten. A restore that would end before the archive does is refused, and names the place to accept.\n\nExample:\n  landfast restore run main --as main-restored\n  landfast restore run main --as main-before --point before-rollout-41\n  landfast restore export main --into /srv/restored"
    )]
    Restore {
        #[command(subcommand)]
        command: RestoreCommand,
    },
    /// Prove the newest backup of a store or volume: restore it, check it, remove the copy
    #[command(
        after_help = "Ends with 1 where anything is wrong. The copy has no network and archives nothing.\n\nExample:\n  landfast drill main\n  landfast drill main --full"
    )]
    Drill {
        /// The name of the store or volume
        store: String,
        /// Read every object of the repository, every page and every index too
        #[arg(long)]
        full: bool,
        /// Be refused (exit 11) while something else is done with its backups, instead of waiting for its end
        #[arg(long)]
        no_wait: bool,
    },
    /// Write migrations, ask what they would do to a database and what it has seen, run them by hand
    #[command(arg_required_else_help = true)]
    Migrate {
        #[command(subcommand)]
        command: MigrateCommand,
    },
    /// Run the server of this host
    #[command(
        after_help = "It starts the proxy and everything that should run. Killing it stops no traffic and no instance.\n\nExample:\n  landfast server\n  landfast server --state ./state --run ./run --http 127.0.0.1:8080"
    )]
    Server(Box<Server>),
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

/// Which migrations.
#[derive(Debug, Args)]
pub(crate) struct MigrateFolder {
    /// The store they belong to [default: the only one that has any]
    #[arg(long, value_name = "NAME")]
    pub(crate) store: Option<StoreName>,
    /// Their folder, beside the manifest [default: the store's]
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// What they are written for [default: the store's engine]
    #[arg(long, value_name = "ENGINE", value_enum)]
    pub(crate) engine: Option<EngineArgument>,
}

/// What migrations are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineArgument {
    Postgres,
    Mariadb,
}

impl From<EngineArgument> for landfast_migration::Engine {
    fn from(engine: EngineArgument) -> Self {
        match engine {
            EngineArgument::Postgres => Self::Postgres,
            EngineArgument::Mariadb => Self::Mariadb,
        }
    }
}

/// When a migration runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PhaseArgument {
    Expand,
    Any,
    Contract,
}

/// Which database.
#[derive(Debug, Args)]
pub(crate) struct MigrateStore {
    /// The store [default: the only one that has migrations]
    #[arg(long, value_name = "NAME")]
    pub(crate) store: Option<StoreName>,
}

impl MigrateCommand {
    /// Whether it does without a server.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Lint { .. } | Self::New { .. } | Self::RenameColumn { .. } => true,
            Self::Status { .. }
            | Self::Plan { .. }
            | Self::Rehearse { .. }
            | Self::Up { .. }
            | Self::Down { .. }
            | Self::Accept { .. } => false,
        }
    }
}

/// What a rehearsal's copy is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RehearseSource {
    /// The newest backup
    Backup,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MigrateCommand {
    /// Show what a database says was done to it, beside the files of the folder
    #[command(
        after_help = "Example:\n  landfast migrate status\n  landfast migrate status --store main --json"
    )]
    Status {
        #[command(flatten)]
        store: MigrateStore,
    },
    /// Show what the folder would run on a database, when, and which releases live with it
    #[command(
        after_help = "Nothing is changed. Ends with 8 when files and history contradict each other, or a migration waits for another.\n\nExample:\n  landfast migrate plan"
    )]
    Plan {
        #[command(flatten)]
        store: MigrateStore,
    },
    /// Run pending migrations now, outside a rollout
    #[command(
        after_help = "Runs those of phases `expand` and `any`. Refused while a rollout moves; no release moves meanwhile. Ctrl-C ends it, and what was not committed is taken back.\n\nExample:\n  landfast migrate up\n  landfast migrate up --contract"
    )]
    Up {
        #[command(flatten)]
        store: MigrateStore,
        /// Run those of phase `contract` instead; only where every release in use knows them
        #[arg(long)]
        contract: bool,
    },
    /// Run pending migrations on a copy of the database, and show what each costs
    #[command(
        after_help = "The copy is made beside it, on the same server, and removed at the end: managed databases only. With `--from backup` it is the newest backup, restored into a server of its own, which drills that backup as well; of an external database its dump. Ends with 3 when a migration fails, or costs more than `[stores.NAME.rehearsal]` allows; rollouts then refuse it, too.\n\nExample:\n  landfast migrate rehearse\n  landfast migrate rehearse --from backup"
    )]
    Rehearse {
        #[command(flatten)]
        store: MigrateStore,
        /// What the copy is made of, instead of the database that runs
        #[arg(long, value_enum, value_name = "WHAT")]
        from: Option<RehearseSource>,
    },
    /// Take the newest migration back by its way down
    #[command(
        after_help = "Never one that a release in use was made for, and no contract migration: what that dropped is gone.\n\nExample:\n  landfast migrate down"
    )]
    Down {
        #[command(flatten)]
        store: MigrateStore,
    },
    /// Take a migration for applied as its file is now
    #[command(
        after_help = "For a file that was changed after it ran, and for a step nobody can judge after a crash. Runs nothing. The history keeps the reason.\n\nExample:\n  landfast migrate accept 12 --reason \"only a comment was changed\""
    )]
    Accept {
        #[command(flatten)]
        store: MigrateStore,
        /// The migration's number
        number: u32,
        /// Why, for whoever reads the history
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Show what migrations lock, rewrite or break, and what to write instead
    #[command(
        after_help = "Ends with 3 when there is an error. `--from N` looks at the migrations from N on as one run: a table that one of them creates is empty.\n\nExample:\n  landfast migrate lint\n  landfast migrate lint --from 12 --sarif > lint.sarif\n  landfast migrate lint --folder migrations --engine mariadb"
    )]
    Lint {
        #[command(flatten)]
        folder: MigrateFolder,
        /// Only migrations from this number on [default: 1]
        #[arg(long, value_name = "N")]
        from: Option<u32>,
        /// Print SARIF 2.1.0, for code hosts
        #[arg(long)]
        sarif: bool,
    },
    /// Write the files of the next migration
    #[command(
        after_help = "Example:\n  landfast migrate new add_price\n  landfast migrate new drop_old_price --phase contract"
    )]
    New {
        #[command(flatten)]
        folder: MigrateFolder,
        /// Lower-case words joined by `_`
        name: String,
        /// When it runs
        #[arg(long, value_name = "PHASE", value_enum, default_value = "expand")]
        phase: PhaseArgument,
    },
    /// Write the migrations that rename a column without breaking either release
    #[command(
        after_help = "Writes three: a new column kept in step by triggers, a backfill, and the contract that drops the old one after the seal. The next release reads and writes the new name.\n\nExample:\n  landfast migrate rename-column items mail email --type \"varchar(50)\""
    )]
    RenameColumn {
        #[command(flatten)]
        folder: MigrateFolder,
        /// The table, with its schema if it needs one
        table: String,
        /// The column's name now
        from: String,
        /// Its name to be
        to: String,
        /// Its type as it is declared, without NOT NULL
        #[arg(long = "type", value_name = "TYPE")]
        data_type: String,
        /// A unique, indexed column, for the backfill's ranges
        #[arg(long, value_name = "COLUMN", default_value = "id")]
        key: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Set a secret to what stdin or a file says, or to what is typed unseen
    #[command(
        after_help = "One line end after the value is left out. The next deploy takes the new value.\n\nExample:\n  landfast secret set API_KEY\n  landfast secret set API_KEY < key.txt\n  landfast secret set TLS_KEY --from key.pem"
    )]
    Set {
        /// The secret's name
        name: String,
        /// Read the value from this file
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// Show a secret's versions in a line, or its value
    #[command(
        disable_version_flag = true,
        after_help = "`--reveal` prints the value, and records who asked.\n\nExample:\n  landfast secret get API_KEY\n  landfast secret get API_KEY --reveal"
    )]
    Get {
        /// The secret's name
        name: String,
        /// Print the value itself
        #[arg(long)]
        reveal: bool,
        /// The value of this version, not of the newest
        #[arg(long, value_name = "N", requires = "reveal")]
        version: Option<u64>,
    },
    /// List names and versions
    #[command(after_help = "Example:\n  landfast secret list --json")]
    List,
    /// Show the versions of a secret, and who did what with it
    #[command(after_help = "Example:\n  landfast secret history API_KEY")]
    History {
        /// The secret's name
        name: String,
    },
    /// Go back to the value of an earlier version, as a new version
    #[command(
        after_help = "The next deploy takes it.\n\nExample:\n  landfast secret rollback API_KEY\n  landfast secret rollback API_KEY --to 3"
    )]
    Rollback {
        /// The secret's name
        name: String,
        /// The version; without it the one before the current one
        #[arg(long, value_name = "N")]
        to: Option<u64>,
    },
    /// Set a secret to a generated value and bring it to the instances one after another
    #[command(
        after_help = "A release is made that differs from the one that serves in this secret alone, and rolled out instance by instance; `landfast rollback` goes back to the earlier value. Other secrets stay at the versions the release has. Refused while a rollout moves.\n\nExample:\n  landfast secret rotate SESSION_KEY\n  landfast secret rotate SESSION_KEY --length 64 --alphabet hex --no-restart\n  new-key | landfast secret rotate API_KEY --from -"
    )]
    Rotate {
        /// The secret's name
        name: String,
        /// Take the new value from this file, or from stdin (`-`), instead of generating one
        #[arg(long, value_name = "FILE", conflicts_with_all = ["length", "alphabet"])]
        from: Option<PathBuf>,
        /// Characters of the generated value, 16 to 4096 [default: 32]
        #[arg(long, value_name = "N")]
        length: Option<u32>,
        /// What it is made of: alphanumeric, hex, base64url or printable [default: alphanumeric]
        #[arg(long, value_name = "WORD")]
        alphabet: Option<String>,
        /// Leave the instances as they are; the next deploy takes it
        #[arg(long)]
        no_restart: bool,
        /// How long to stay
        #[arg(long, value_name = "UNTIL", default_value = "promotion")]
        wait: Wait,
    },
    /// Forget the value of a version for good
    #[command(
        after_help = "A release that was made with it is given the newest from then on. Instances that run keep what they were started with until they are replaced: `landfast restart`.\n\nExample:\n  landfast secret revoke API_KEY 3"
    )]
    Revoke {
        /// The secret's name
        name: String,
        /// The version
        #[arg(id = "number", value_name = "N")]
        version: u64,
    },
    /// Set all secrets of a dotenv file, or none of them
    #[command(
        after_help = "Quotes, `export`, comments and values over several lines are understood; `$NAME` stays as it is. A name that has its value already gets no new version.\n\nExample:\n  landfast secret import .env.production\n  landfast secret import < secrets.env"
    )]
    Import {
        /// The file; without it, stdin
        #[arg(value_name = "FILE")]
        path: Option<PathBuf>,
    },
    /// Leave a secret out of new releases
    #[command(after_help = "Example:\n  landfast secret rm API_KEY")]
    Rm {
        /// The secret's name
        name: String,
    },
    /// The key all secrets of this host are sealed under
    #[command(after_help = "Example:\n  landfast secret key")]
    Key {
        #[command(subcommand)]
        command: Option<SecretKeyCommand>,
    },
}

/// What is done with the key; without a word it is described.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretKeyCommand {
    /// Print the key file, for a copy in a safe place
    #[command(
        after_help = "Whoever has it and the journal has every secret of this host: put it where only few can read it. It is not printed to a terminal unless asked for with `--reveal`.\n\nExample:\n  landfast secret key export | gpg --encrypt --recipient operations@shop.example > landfast-key.gpg"
    )]
    Export {
        /// Print it to a terminal, too
        #[arg(long)]
        reveal: bool,
    },
    /// Replace the key: everything is sealed under another one from then on
    #[command(
        after_help = "The old key is put aside, beside the new one, until a copy of the new one is confirmed. Keep your copy of the old one as long as you keep copies of the state from before. Instances are not touched. A change that is interrupted goes on when it is asked again, and when the server starts.\n\nExample:\n  landfast secret key rotate"
    )]
    Rotate,
    /// Show that a copy is one of this host's key; `status` stops asking for one then
    #[command(
        after_help = "The copy is read from stdin where no file is named, so that it need not be written in the clear: `gpg --decrypt landfast-key.gpg | landfast secret key confirm`.\n\nExample:\n  landfast secret key confirm /media/safe/landfast.key"
    )]
    Confirm {
        /// The copy; without it, stdin
        #[arg(value_name = "FILE")]
        path: Option<PathBuf>,
    },
}

/// Where a restore goes to; the newest moment without it.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct RestoreTo {
    /// The newest heartbeat, dump or snapshot at or before a time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(crate) time: Option<landfast_api::At>,
    /// A place of the server's log; dumps and snapshots have none
    #[arg(long, value_name = "LSN")]
    pub(crate) lsn: Option<String>,
    /// A named place: `before-rollout-41`, `before-migrate-3`
    #[arg(long, value_name = "NAME")]
    pub(crate) point: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RestoreCommand {
    /// Restore into a new store, which runs beside the old one, or a volume into a folder beside it
    #[command(
        after_help = "The app goes on with the old store. Look into the new one with `landfast store psql NEW`; a store that no manifest names is deleted with `landfast store delete`.\n\nExample:\n  landfast restore run main --as main-noon --time 2026-11-20T12:00:00Z"
    )]
    Run {
        /// The name of the store or volume
        store: String,
        /// The name of the new store, or of the folder beside the volume
        #[arg(long = "as", value_name = "NAME")]
        name: String,
        #[command(flatten)]
        to: RestoreTo,
        /// Take what ends at this place, and lose what lies behind: the place that a refused restore named
        #[arg(long, value_name = "LSN")]
        accept_loss: Option<String>,
        /// Be refused (exit 11) while something else is done with its backups, instead of waiting for its end
        #[arg(long)]
        no_wait: bool,
    },
    /// Have the app use a restored store in place of the one it was restored from
    #[command(
        after_help = "A rollout of what serves: the old release ends, then the same one starts on the other store, after the migrations that this lacks. Requests are held for up to 30 seconds meanwhile, then answered 503. What was written to the old store since the restored moment is not in the new one. Until the rollout's end `landfast abort` leaves everything as it was; after it the old store is deleted, and kept for a week: until then the same command leads back.\n\nExample:\n  landfast restore switch main --to main-noon\n  landfast restore switch main --to main"
    )]
    Switch {
        /// The name of the store in the manifest
        store: String,
        /// The store that is to serve it
        #[arg(long, value_name = "STORE")]
        to: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Go on where the archive does not have all that was written to the old store: it is in that store alone then
        #[arg(long)]
        accept_loss: bool,
    },
    /// Restore into a folder of the server's host, and leave the files there
    #[command(
        after_help = "Of a managed database: files that PostgreSQL of the same major version starts on. Of one of somebody else: its newest dump, for `pg_restore`. Of a volume: its files.\n\nExample:\n  landfast restore export main --into /srv/restored"
    )]
    Export {
        /// The name of the store or volume
        store: String,
        /// The folder; it must not be there
        #[arg(long, value_name = "FOLDER")]
        into: String,
        #[command(flatten)]
        to: RestoreTo,
        /// Take what ends at this place, and lose what lies behind: the place that a refused restore named
        #[arg(long, value_name = "LSN")]
        accept_loss: Option<String>,
        /// Be refused (exit 11) while something else is done with its backups, instead of waiting for its end
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// List the stores and volumes that are backed up: how far a restore reaches, what is proven, what is wrong
    #[command(
        after_help = "Ends with 1 where anything is wrong.\n\nExample:\n  landfast backup list --json"
    )]
    List,
    /// Show the backups of one store or volume, and its last drill
    #[command(after_help = "Example:\n  landfast backup show main")]
    Show {
        /// The name of the store or volume
        store: String,
    },
    /// Make a backup now
    #[command(
        after_help = "It goes on when this command ends. Without `--full`, only what changed since the newest good backup is stored.\n\nExample:\n  landfast backup now main\n  landfast backup now main --full"
    )]
    Now {
        /// The name of the store or volume
        store: String,
        /// Store everything again, so that no older object is needed
        #[arg(long)]
        full: bool,
        /// Be refused (exit 11) while something else is done with its backups, instead of waiting for its end
        #[arg(long)]
        no_wait: bool,
    },
    /// Read every byte of its backups; ends with 1 and names what is wrong
    #[command(after_help = "Example:\n  landfast backup verify main")]
    Verify {
        /// The name of the store or volume
        store: String,
        /// Be refused (exit 11) while something else is done with its backups, instead of waiting for its end
        #[arg(long)]
        no_wait: bool,
    },
    /// Remove what is older than the manifest keeps; done after each backup, too
    #[command(
        after_help = "The newest good backup, and what it needs, never goes.\n\nExample:\n  landfast backup prune main --dry-run"
    )]
    Prune {
        /// The name of the store or volume
        store: String,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Be refused (exit 11) while something else is done with its backups, instead of waiting for its end
        #[arg(long)]
        no_wait: bool,
    },
    /// Describe the key that backups of the host are sealed under, export it, show that a copy is one
    #[command(
        after_help = "Example:\n  landfast backup key\n  landfast backup key export > /media/safe/landfast-backup.key"
    )]
    Key {
        #[command(subcommand)]
        command: Option<BackupKeyCommand>,
    },
}

/// What is done with the key; without a word it is described.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupKeyCommand {
    /// Print the key file, for a copy in a safe place
    #[command(
        after_help = "Without it no backup can be read, by nobody: keep a copy where the host is not. It is not printed to a terminal unless asked for with `--reveal`.\n\nExample:\n  landfast backup key export | gpg --encrypt --recipient operations@shop.example > landfast-backup-key.gpg"
    )]
    Export {
        /// Print it to a terminal, too
        #[arg(long)]
        reveal: bool,
    },
    /// Show that a copy is one of this host's key; `status` stops asking for one then
    #[command(
        after_help = "Example:\n  landfast backup key confirm /media/safe/landfast-backup.key"
    )]
    Confirm {
        /// The copy; without it, stdin
        #[arg(value_name = "FILE")]
        path: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// List the stores of the environment
    #[command(after_help = "Example:\n  landfast store list --json")]
    List,
    /// Show one: its state, connections, slow statements, locks waited for, size and growth
    #[command(after_help = "Example:\n  landfast store show main")]
    Show {
        /// The store's name
        store: String,
    },
    /// Say how to connect from this host, as a login that may what the app may
    #[command(
        after_help = "The password is shown with `--reveal` only.\n\nExample:\n  landfast store connect main\n  landfast store connect main --reveal --json"
    )]
    Connect {
        /// The store's name
        store: String,
        /// Show the address with its password
        #[arg(long)]
        reveal: bool,
    },
    /// Open the store's own client: psql, mariadb or redis-cli
    #[command(
        visible_alias = "shell",
        after_help = "The password goes by the environment of the client, never by its arguments. Run it on the server's host.\n\nExample:\n  landfast store psql main\n  landfast store psql main -- -c \"SELECT now()\""
    )]
    Psql {
        /// The store's name
        store: String,
        /// Further arguments of the client, after `--`
        #[arg(last = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Show what the store's server wrote
    #[command(after_help = "Example:\n  landfast store logs main --follow")]
    Logs {
        /// The store's name
        store: String,
        /// Go on with new lines as they come
        #[arg(short, long)]
        follow: bool,
        /// How many lines of before
        #[arg(long, value_name = "N", default_value_t = 100)]
        tail: u32,
    },
    /// Restart the store's server: settings that wait for it take effect; it is away for some seconds
    #[command(after_help = "Example:\n  landfast store restart main")]
    Restart {
        /// The store's name
        store: String,
    },
    /// Change the password that instances reach the store with, and end the old one
    #[command(
        after_help = "A second login gets the new password and is tried; instances are replaced one after another and given it; when none has the old one any more, its login is removed. Each step may be interrupted, and goes on by itself. Asked again after an instance did not come up with the new one, it tries another restart.\n\nExample:\n  landfast store rotate main\n  landfast store rotate main --no-wait"
    )]
    Rotate {
        /// The store's name
        store: String,
        /// Give a rotation up that does not get as far as the instances
        #[arg(long)]
        abandon: bool,
        /// Do not stay until the old password is dead
        #[arg(long)]
        no_wait: bool,
    },
    /// Delete a store that the manifest does not name any more; it can be had back for a while
    #[command(
        after_help = "Its server is ended at once, its data removed after the delay.\n\nExample:\n  landfast store delete old --confirm shop/production/old\n  landfast store delete old --delay 30d"
    )]
    Delete {
        /// The store's name
        store: String,
        /// The whole name, `app/environment/store`; asked for on a terminal
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
        /// How long it can be had back [default: 7d]
        #[arg(long, value_name = "TIME", value_parser = landfast_types::parse_duration)]
        delay: Option<std::time::Duration>,
    },
    /// Take a deleted store back, as long as its data is there
    #[command(after_help = "Example:\n  landfast store undelete old")]
    Undelete {
        /// The store's name
        store: String,
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
    /// The file of the key the secrets are sealed under [default: the credential `landfast-secrets-key` of the service manager, else `secrets.key` in the state folder]
    #[arg(
        long,
        value_name = "FILE",
        env = "LANDFAST_SECRETS_KEY",
        hide_env_values = true
    )]
    pub(crate) secrets_key: Option<PathBuf>,
    /// Where containers run: `unix:///PATH`, `tcp://HOST:PORT`, `ssh://[USER@]HOST[:PORT][/SOCKET]`, or `off` [default: where containers run already, else DOCKER_HOST, else the socket of Docker or Podman on this host, where there is one]
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "LANDFAST_DOCKER",
        hide_env_values = true
    )]
    pub(crate) docker: Option<String>,
    /// A folder with `ca.pem`, `cert.pem` and `key.pem`, where `--docker` is TLS over TCP [default: DOCKER_CERT_PATH]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) docker_certificates: Option<PathBuf>,
    /// Start no process that would have to outlive the server, and refuse apps that need one: for a server in a container
    #[arg(long, env = "LANDFAST_CONTAINERS_ONLY", hide_env_values = true)]
    pub(crate) containers_only: bool,
    /// Lead the proxy that answers at this control socket, which others start, instead of starting one: for a proxy in a container of its own
    #[arg(
        long,
        value_name = "PATH",
        env = "LANDFAST_PROXY",
        hide_env_values = true
    )]
    pub(crate) proxy: Option<PathBuf>,
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
    /// Tell how things stand on this loopback address too; nothing is changed, run or revealed from there
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
    /// For tests: how long a program that dumps, restores or makes a store may make no progress
    #[arg(long, hide = true, value_parser = landfast_types::parse_duration)]
    pub(crate) helper_patience: Option<std::time::Duration>,
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
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    pub(crate) routes: Option<PathBuf>,
    /// Ask the proxy at `--control` whether it serves, and do nothing else
    #[arg(long)]
    pub(crate) check: bool,
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
