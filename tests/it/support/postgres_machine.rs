//! What a throw-away PostgreSQL needs of its machine: a user, the server's programs, a port.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// The user that the server runs as where the tests run as root.
#[derive(Clone, Copy)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// PostgreSQL refuses to run as root. It steps down to `postgres`, whom Debian's package makes, or to `nobody`: by
/// setuid before exec, as the standard library offers it, since neither sudo nor runuser need be there.
pub(super) fn step_down() -> Option<User> {
    if id_of(&["-u"]) != Some(0) {
        return None;
    }
    let user = ["postgres", "nobody"].iter().find_map(|name| {
        Some(User {
            uid: id_of(&["-u", name])?,
            gid: id_of(&["-g", name])?,
        })
    });
    Some(user.expect("PostgreSQL does not run as root, and there is neither a user postgres nor nobody: make one"))
}

pub(super) fn id_of(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id")
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The folder of the newest server programs on this machine.
pub(super) fn server_programs() -> PathBuf {
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Ok(Output { stdout, .. }) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&stdout).trim()));
    }
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    let number = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str()?.parse::<u32>().ok())
    };
    versions.sort_by_key(|path| std::cmp::Reverse(number(path)));
    folders.extend(versions.into_iter().map(|path| path.join("bin")));
    folders.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));

    let has_programs = |folder: &PathBuf| {
        ["initdb", "pg_ctl", "postgres"]
            .iter()
            .all(|name| folder.join(name).is_file())
    };
    folders.into_iter().find(has_programs).expect(
        "No PostgreSQL server programs on this machine (initdb, pg_ctl, postgres). Install them \
         (Debian, Ubuntu: apt-get install postgresql postgresql-contrib; macOS: brew install postgresql@17), \
         or set TEST_DATABASE_URL to a server on which databases may be created",
    )
}

/// A port that nobody listens on at this moment.
pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("127.0.0.1 has a free port");
    listener
        .local_addr()
        .expect("a listener has an address")
        .port()
}
