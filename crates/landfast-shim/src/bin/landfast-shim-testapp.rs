//! An app for tests that does on purpose what apps do by mistake. Each word of its arguments is done in turn:
//!
//! | word | what it does |
//! | --- | --- |
//! | `serve` | runs until it is killed |
//! | `sleep=MS` | waits |
//! | `exit=CODE` | ends |
//! | `abort` | kills itself by SIGABRT |
//! | `ignore-term` | from here on, SIGTERM does nothing |
//! | `on-term=CODE,MS` | from here on, SIGTERM ends it with that code after so long |
//! | `child` | starts a grandchild of the shim that ignores SIGTERM, in the same group |
//! | `daemon` | the same in a session of its own, whose parent ends at once |
//! | `orphans=N` | starts N processes that end at once and whose parent ended before |
//! | `flood=BYTES` | writes so much to standard output, in lines of 100 bytes |
//! | `out=TEXT`, `err=TEXT` | writes a line |
//! | `env=NAME` | writes the value of a variable |
//! | `file=NAME` | writes what is in the file a variable names |
//! | `cwd` | writes the working folder |
//! | `cat` | copies standard input to standard output |
//! | `hog=MIB` | takes so much memory and writes to all of it |
//! | `forks=N` | starts N processes that wait, says how many it could, and goes on |
//! | `read=PATH`, `list=PATH`, `write=PATH` | tries it, and says `ok` or why not |
//! | `run=PATH,WORD` | runs another program with a word, and passes its output on |
//! | `status=KEY` | writes what `/proc/self/status` says of it |
//! | `reach=HOST:PORT` | connects there within a second, and says `ok` or why not |
//! | `listen` | accepts on `HOST:PORT` in a thread, answering each connection with its process id |

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream, ToSocketAddrs as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

static TERM_CODE: AtomicI32 = AtomicI32::new(0);
static TERM_MILLIS: AtomicI32 = AtomicI32::new(0);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    for word in &words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "serve" => loop {
                sleep(1_000);
            },
            "sleep" => sleep(number(value)),
            "exit" => return ExitCode::from(u8::try_from(number(value)).unwrap_or(255)),
            "abort" => std::process::abort(),
            "ignore-term" => on_term(libc::SIG_IGN),
            "on-term" => {
                let (code, millis) = value.split_once(',').unwrap_or((value, "0"));
                TERM_CODE.store(i32::try_from(number(code)).unwrap_or(1), Ordering::Relaxed);
                TERM_MILLIS.store(
                    i32::try_from(number(millis)).unwrap_or(0),
                    Ordering::Relaxed,
                );
                on_term(leave as *const () as libc::sighandler_t);
            }
            "child" => again(&["ignore-term", "serve"], false),
            "daemon" => again(&["daemonise"], true),
            "daemonise" => {
                again(&["ignore-term", "serve"], true);
                return ExitCode::SUCCESS;
            }
            "orphans" => {
                for _ in 0..number(value) {
                    again(&["orphan"], false);
                }
            }
            "orphan" => {
                again(&["sleep=20", "exit=0"], false);
                return ExitCode::SUCCESS;
            }
            "flood" => flood(number(value)),
            "out" => say(value),
            "err" => drop(writeln!(io::stderr(), "{value}")),
            "env" => say(&std::env::var(value).unwrap_or_else(|_| "(unset)".to_owned())),
            "file" => {
                let path = std::env::var(value).unwrap_or_default();
                say(&fs::read_to_string(path).unwrap_or_else(|error| format!("{:?}", error.kind())));
            }
            "cwd" => say(&std::env::current_dir().expect("a folder").to_string_lossy()),
            "cat" => drop(io::copy(&mut io::stdin(), &mut io::stdout())),
            "hog" => hog(number(value)),
            "forks" => forks(number(value)),
            "read" => tell(word, fs::read(value).map(drop)),
            "list" => tell(word, fs::read_dir(value).map(drop)),
            "write" => tell(word, fs::write(value, "written")),
            "run" => run(value),
            "status" => status(value),
            "reach" => tell(word, reach(value)),
            "listen" => listen(),
            unknown => {
                drop(writeln!(io::stderr(), "unknown word {unknown}"));
                return ExitCode::from(64);
            }
        }
    }
    ExitCode::SUCCESS
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

fn sleep(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

fn say(text: &str) {
    drop(writeln!(io::stdout(), "{text}"));
}

fn flood(bytes: u64) {
    let line = [b'x'; 99];
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    for _ in 0..bytes / 100 {
        stdout.write_all(&line).expect("the shim reads");
        stdout.write_all(b"\n").expect("the shim reads");
    }
}

fn tell(word: &str, result: io::Result<()>) {
    match result {
        Ok(()) => say(&format!("{word} ok")),
        Err(error) => say(&format!("{word} {:?}", error.kind())),
    }
}

fn hog(mebibytes: u64) {
    let mut all = Vec::new();
    for _ in 0..mebibytes {
        let mut piece = vec![0_u8; 1 << 20];
        piece.iter_mut().step_by(4_096).for_each(|byte| *byte = 1);
        all.push(std::hint::black_box(piece));
    }
    say(&format!("holds {} MiB", all.len()));
}

/// Bounded, so that a test of a bound that does not hold ends too.
#[expect(
    clippy::disallowed_methods,
    reason = "a test app that starts processes is the point"
)]
fn forks(count: u64) {
    let mut started = 0;
    for _ in 0..count {
        let mut command = Command::new(std::env::current_exe().expect("it exists"));
        command.args(["ignore-term", "serve"]).stdin(Stdio::null());
        match command.spawn() {
            Ok(_) => started += 1,
            Err(error) => {
                say(&format!("stopped by {:?}", error.kind()));
                break;
            }
        }
    }
    say(&format!("started {started}"));
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test app that starts processes is the point"
)]
fn run(value: &str) {
    let (program, word) = value.split_once(',').unwrap_or((value, ""));
    match Command::new(program).arg(word).output() {
        Ok(output) => drop(io::stdout().write_all(&output.stdout)),
        Err(error) => say(&format!("run {:?}", error.kind())),
    }
}

fn status(key: &str) {
    let text = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find(|(name, _)| *name == key);
    let value = value.map_or("(none)", |(_, value)| value.trim());
    say(&format!("{key} {}", value.replace('\t', " ")));
}

fn reach(place: &str) -> io::Result<()> {
    let addresses = place.to_socket_addrs()?;
    let mut told = Err(io::ErrorKind::NotFound.into());
    for address in addresses {
        told = TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(drop);
    }
    told
}

fn listen() {
    let variable = |name| std::env::var(name).expect("the target sets it");
    let address = format!("{}:{}", variable("HOST"), variable("PORT"));
    let listener = TcpListener::bind(&address).expect("the port is free");
    say(&format!("listening on {address}"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut one = [0];
            drop(stream.read(&mut one));
            drop(write!(stream, "{}", std::process::id()));
        }
    });
}

/// Starts this program again and waits for it only when it is to end at once.
#[expect(
    clippy::disallowed_methods,
    reason = "a test app that starts processes is the point"
)]
#[expect(
    clippy::zombie_processes,
    reason = "that it leaves orphans is the point"
)]
fn again(words: &[&str], in_new_session: bool) {
    let mut command = Command::new(std::env::current_exe().expect("it exists"));
    command.args(words).stdin(Stdio::null());
    if in_new_session {
        let detach = || rustix::process::setsid().map(drop).map_err(io::Error::from);
        #[expect(unsafe_code, reason = "setsid in the child is what daemons do")]
        // SAFETY: setsid is async-signal-safe and nothing else is done.
        unsafe {
            command.pre_exec(detach);
        }
    }
    let mut child = command.spawn().expect("it starts");
    if matches!(words, ["daemonise" | "orphan"]) {
        child.wait().expect("it is ours");
    }
}

#[expect(unsafe_code, reason = "signal handlers have no safe wrapper here")]
fn on_term(handler: libc::sighandler_t) {
    // SAFETY: the handler is SIG_IGN or `leave`, which only sleeps and exits.
    unsafe { libc::signal(libc::SIGTERM, handler) };
}

#[expect(
    unsafe_code,
    reason = "a signal handler may only make async-signal-safe calls"
)]
extern "C" fn leave(_signal: libc::c_int) {
    let millis = u32::try_from(TERM_MILLIS.load(Ordering::Relaxed)).unwrap_or(0);
    // SAFETY: both calls are async-signal-safe.
    unsafe {
        libc::usleep(millis * 1_000);
        libc::_exit(TERM_CODE.load(Ordering::Relaxed));
    }
}
