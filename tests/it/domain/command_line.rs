//! `tidings domain check FILE`, and a start with a wrong file.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use tidings::domain::declared::GUIDE;

fn tidings(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn a_right_file_is_described() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("users.toml"), GUIDE).unwrap();
    let output = tidings(folder.path(), &["domain", "check", "users.toml"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "user, its events are published to the stream user_events",
        "  command create_user (requires absent) → user_created",
        "  event user_deleted (state delete)",
        "users.toml is right",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_wrong_file_is_refused_with_its_lines_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("users.toml"),
        GUIDE.replace("absent", "missing"),
    )
    .unwrap();
    for arguments in [
        &["domain", "check", "users.toml"][..],
        &["serve", "--listen", "127.0.0.1:0", "--domain", "users.toml"],
    ] {
        let output = tidings(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        let expected =
            "\nusers.toml:8:12: `requires` must be one of \"absent\", \"present\", \"any\"";
        assert!(text.contains(expected), "{text}");
    }
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 1, "no database is made");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = tidings(folder.path(), &["domain", "check", "nothing.toml"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("cannot read the domain file nothing.toml"),
        "{text}"
    );
}
