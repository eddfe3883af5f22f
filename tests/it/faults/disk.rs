//! No room on the disk of a SQLite file: appends fail and say so, reads go on, and with room again so do appends.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

use super::*;

const DISK_BYTES: usize = 16 << 20;

/// What runs out.
enum Room {
    /// A filesystem of its own, which this test may mount.
    Disk { folder: PathBuf },
    /// The size that the server's files may have.
    Limit { folder: PathBuf },
}

impl Room {
    fn folder(&self) -> &Path {
        match self {
            Room::Disk { folder } | Room::Limit { folder } => folder,
        }
    }

    /// A small disk where the tests may mount one, which takes root; else a limit.
    fn disk() -> Room {
        let folder = tempfile::tempdir().unwrap().keep();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "tmpfs"])
            .arg(&folder)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Room::Disk { folder };
        }
        eprintln!("no disk can be mounted here: the size of files is limited instead");
        Room::Limit { folder }
    }

    fn limit() -> Room {
        Room::Limit {
            folder: tempfile::tempdir().unwrap().keep(),
        }
    }

    /// Takes all the room that is left.
    fn fill(&self, server: &TestServer) {
        match self {
            Room::Disk { folder } => {
                let mut filler = File::create(folder.join("filler")).unwrap();
                let mut size = 1 << 20;
                while size > 0 {
                    if filler.write_all(&vec![0; size]).is_err() {
                        size /= 2;
                    }
                }
            }
            Room::Limit { folder } => {
                let log = fs::metadata(folder.join("tidings.db-wal")).unwrap().len();
                set_limit(server, Some(log));
            }
        }
    }

    fn make_room(&self, server: &TestServer) {
        match self {
            Room::Disk { folder } => fs::remove_file(folder.join("filler")).unwrap(),
            Room::Limit { .. } => set_limit(server, None),
        }
    }
}

fn set_limit(server: &TestServer, bytes: Option<u64>) {
    let pid = i32::try_from(server.pid()).ok().and_then(Pid::from_raw);
    let limit = Rlimit {
        current: bytes,
        maximum: None,
    };
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Room::Disk { folder } = self {
            let _ = Command::new("umount").arg("-l").arg(folder).status();
        }
        let _ = fs::remove_dir_all(self.folder());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_is_got_over() {
    run_out_of(Room::disk()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_the_size_of_files_loses_nothing_and_is_got_over() {
    run_out_of(Room::limit()).await;
}

async fn run_out_of(room: Room) {
    const ROUNDS: usize = 3;
    let url = format!("sqlite://{}/tidings.db", room.folder().display());
    let mut server = TestServer::on(&url).ignore_file_limit().start();
    let client = Client::new(&server);
    let followers = follow_the_load(&server.ws_url(), true);
    let next = Arc::new(mixed());
    let mut ledger = Ledger::default();
    for round in 0..ROUNDS {
        let next = next.clone();
        let load = Load::start(&client, WRITERS, move |writer, call| next(writer, call));
        load.until_more_acknowledged(100).await;
        room.fill(&server);
        let full = load.counts();
        let failed = load
            .until("appends that fail for want of room", |counts| {
                counts.failed() >= full.failed() + 2 * WRITERS
            })
            .await;
        let read = client
            .query(
                "{ events(first: 1, order: NEWEST_FIRST) { nodes { version } } }",
                json!({}),
            )
            .await
            .unwrap();
        assert!(read["events"]["nodes"][0]["version"].as_i64().unwrap() > 0);
        println!("round {round}: {full:?}, then {failed:?}");
        if round + 1 < ROUNDS {
            room.make_room(&server);
            load.until_more_acknowledged(100).await;
            ledger.add(load.stop().await);
        } else {
            // What was written in part is not taken for a commit afterwards.
            ledger.add(load.stop().await);
            server.kill9();
            if let Room::Disk { .. } = room {
                room.make_room(&server);
            }
            server.restart();
        }
        assert_eq!(ledger.counts.cut, 0, "every call was answered");
        assert_eq!(
            ledger.counts.unknown, 0,
            "nothing of it was done: {:?}",
            ledger.reasons
        );
        ledger.assert_is_all_of(&StoredLog::read_whole(&url).await);
    }
    println!("{:?} {:?}", ledger.counts, ledger.reasons);
    assert_nothing_was_lost(&url, &client, &mut ledger, &followers).await;
}
