//! Images made of what this host has: there is no registry to take others from.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

/// Where Debian puts it.
pub const POSTGRES: &str = "/usr/lib/postgresql/15";

#[expect(
    clippy::disallowed_methods,
    reason = "an image is made as one would by hand"
)]
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What an image of the databases holds: the host's own, with what they are linked to.
pub fn databases(content: &Path) {
    for folder in ["bin", "etc", "tmp", "run", "var", "proc", "dev", "sys"] {
        fs::create_dir_all(content.join(folder)).unwrap();
    }
    fs::write(content.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    let mut programs = vec![
        "/usr/bin/redis-server".to_owned(),
        "/usr/bin/redis-cli".to_owned(),
    ];
    let of_postgres = [
        "postgres",
        "initdb",
        "psql",
        "pg_amcheck",
        "pg_basebackup",
        "pg_checksums",
        "pg_dump",
        "pg_isready",
        "pg_receivewal",
        "pg_restore",
    ];
    // `mariadb-install-db` is a script, and runs these.
    let of_mariadb = [
        "/usr/sbin/mariadbd",
        "/usr/bin/mariadb",
        "/usr/bin/mariadb-dump",
        "/usr/bin/my_print_defaults",
        "/usr/bin/resolveip",
        "/usr/bin/awk",
        "/usr/bin/basename",
        "/usr/bin/chmod",
        "/usr/bin/chown",
        "/usr/bin/dirname",
        "/usr/bin/id",
        "/usr/bin/mkdir",
        "/usr/bin/rm",
        "/usr/bin/sed",
        "/usr/bin/touch",
        "/usr/bin/uname",
    ];
    programs.extend(of_mariadb.map(str::to_owned));
    programs.extend(of_postgres.map(|name| format!("{POSTGRES}/bin/{name}")));
    for entry in fs::read_dir(format!("{POSTGRES}/lib")).unwrap().flatten() {
        let path = entry.path().to_string_lossy().into_owned();
        // It is as large as all others together, and done without.
        if path.ends_with(".so") && !path.contains("llvm") {
            programs.push(path);
        }
    }
    for folder in [
        "/usr/share/mysql",
        "/usr/share/postgresql/15",
        "/usr/share/zoneinfo",
        "/usr/lib/locale/C.utf8",
    ] {
        let inside = content.join(folder.trim_start_matches('/'));
        let above = inside.parent().unwrap();
        fs::create_dir_all(above).unwrap();
        said("cp", &["-a", folder, &above.to_string_lossy()]);
    }
    for (name, of) in [("sh", "/bin/dash"), ("cat", "/bin/cat")] {
        fs::copy(of, content.join("bin").join(name)).unwrap();
        programs.push(of.to_owned());
    }
    let words: Vec<&str> = programs.iter().map(String::as_str).collect();
    let libraries = said("ldd", &words);
    let libraries = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let mut all: Vec<String> = libraries.map(str::to_owned).collect();
    all.extend(programs);
    all.sort();
    all.dedup();
    // No program, so it is linked to nothing.
    all.push("/usr/bin/mariadb-install-db".to_owned());
    for path in all {
        let inside = content.join(path.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        fs::copy(&path, inside).unwrap();
    }
    // Libraries are named by both.
    if !content.join("lib64").exists() {
        symlink("usr/lib64", content.join("lib64")).unwrap();
    }
}
