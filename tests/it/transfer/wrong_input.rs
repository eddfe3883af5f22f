//! What is refused: files that are cut off, changed or none at all, and targets that have something else.

use std::path::PathBuf;

use super::{Said, count, export, import, make_events, pipe, run, tidings};
use crate::support::client::Client;
use crate::support::in_process::{Database, Engine};
use crate::support::load::{Append, NewEvent};
use crate::support::server::TestServer;

const EVENTS: i64 = 1000;

struct Exported {
    source: Database,
    folder: tempfile::TempDir,
    text: String,
}

impl Exported {
    async fn make() -> Exported {
        let source = Database::make(Engine::Sqlite);
        make_events(&source.url(), EVENTS).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("whole");
        export(&source.url(), &file).succeed();
        let text = std::fs::read_to_string(file).unwrap();
        Exported {
            source,
            folder,
            text,
        }
    }

    fn file(&self, text: &str) -> PathBuf {
        let file = self.folder.path().join("file");
        std::fs::write(&file, text).unwrap();
        file
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_cut_off_is_an_error_and_the_whole_one_goes_on_behind_it() {
    let exported = Exported::make().await;
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let target = Database::make(engine);
        // In the middle of a line, behind one, and before the last.
        let half = exported.text.len() / 2;
        let line = exported.text[..half].rfind('\n').unwrap() + 1;
        let last = exported.text.trim_end().rfind('\n').unwrap() + 1;
        for end in [half, line, last] {
            let file = exported.file(&exported.text[..end]);
            import(&target.url(), 4, &file).fail("it was cut off");
            let (_, said) = TestServer::on(&target.url()).start_and_fail();
            assert!(said.contains("not finished"), "{said}");
        }
        let said = import(&target.url(), 4, &exported.file(&exported.text)).succeed();
        assert_eq!(said.skipped(), EVENTS as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_changed_is_an_error() {
    let exported = Exported::make().await;
    let lines: Vec<&str> = exported.text.lines().collect();
    let without = |line: usize| {
        let mut lines = lines.clone();
        lines.remove(line);
        lines.join("\n") + "\n"
    };
    for (what, text, problem) in [
        ("nothing", String::new(), "not one line came"),
        (
            "something else",
            "hello\nworld\n".to_owned(),
            "no export of tidings",
        ),
        (
            "other JSON",
            "{\"a\":1}\n".to_owned(),
            "no export of tidings",
        ),
        ("without its first line", without(0), "no export of tidings"),
        (
            "a later format",
            exported.text.replacen("\"format\":1", "\"format\":99", 1),
            "use a newer one",
        ),
        (
            "a broken line",
            exported
                .text
                .replacen("\"data\":{\"n\":77}", "\"data\":{\"n\":77", 1),
            "line 79 of the export is broken",
        ),
        (
            "another number",
            exported.text.replacen("{\"n\":77}", "{\"n\":78}", 1),
            "the events that are stored are not those of the export",
        ),
        ("an event missing", without(300), "does not follow"),
        (
            "the last event missing",
            without(EVENTS as usize + 1),
            "the events that are stored are not those",
        ),
        (
            "an event twice",
            exported
                .text
                .replacen(lines[10], &format!("{}\n{}", lines[10], lines[10]), 1),
            "does not follow the one before it, between the lines 3 and 1003",
        ),
        (
            "another partition",
            exported
                .text
                .replacen("\"partition\":0", "\"partition\":7", 1),
            "line 3 of the export is broken: there is no partition 7",
        ),
        (
            "a number of partitions that there is not",
            exported
                .text
                .replacen("\"partitions\":1", "\"partitions\":3", 1),
            "no export of tidings",
        ),
        (
            "a kind of line that only others know",
            exported
                .text
                .replacen(lines[10], "{\"happening\":{\"id\":1}}", 1),
            "line 11 of the export is broken: unknown variant `happening`",
        ),
        (
            "junk",
            exported.text.replacen(lines[10], "\0\u{7f} junk \\", 1),
            "line 11 of the export is broken: expected value (column 1)",
        ),
        (
            "much junk",
            exported
                .text
                .replacen(lines[10], &"junk ".repeat(20 << 20), 1),
            "line 11 of the export is broken: expected value (column 1)",
        ),
        (
            "junk behind a line",
            exported
                .text
                .replacen(lines[10], &format!("{} {{}}", lines[10]), 1),
            "line 11 of the export is broken: trailing characters",
        ),
        (
            "two exports",
            format!("{}\n{}", lines[0], exported.text),
            "line 2 of the export is broken: a second export begins here",
        ),
        (
            "another type",
            exported
                .text
                .replacen("\"type\":\"counted\"", "\"type\":\"\"", 1),
            "must not be empty",
        ),
    ] {
        let target = Database::make(Engine::Sqlite);
        let file = exported.file(&text);
        let said = import(&target.url(), 1, &file);
        assert!(
            !said.succeeded && said.err.contains(problem),
            "{what}: {said:?}"
        );
    }
    let target = Database::make(Engine::Sqlite);
    import(&target.url(), 1, &exported.folder.path().join("nowhere")).fail("cannot read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_with_other_data_is_refused_and_left_as_it_is() {
    let exported = Exported::make().await;
    let file = exported.file(&exported.text);
    let target = Database::make(Engine::Postgres);
    let mut server = TestServer::start(&target.url());
    let event = NewEvent::new(uuid::Uuid::new_v4(), serde_json::json!({}));
    Append::Event(event)
        .send_until_acknowledged(&Client::new(&server))
        .await;
    import(&target.url(), 1, &file).fail("the database has data of its own (in events)");
    server.kill9();
    import(&target.url(), 1, &file).fail("the database has data of its own (in events)");
    import(&target.url(), 4, &file).fail("the database has 1 partitions");
    let mut server = TestServer::start(&target.url());
    server.kill9();

    // One that a server has only been started on.
    let target = Database::make(Engine::Sqlite);
    TestServer::start(&target.url()).kill9();
    import(&target.url(), 1, &file).fail("the database has data of its own (in domains)");

    // One that another export was begun in.
    let other = Exported::make().await;
    let target = Database::make(Engine::Sqlite);
    let half = exported.file(&exported.text[..exported.text.len() / 2]);
    import(&target.url(), 1, &half).fail("it was cut off");
    import(&target.url(), 1, &other.file(&other.text)).fail("was begun in it");
    // And what has more than the export.
    let source = &exported.source;
    let file = exported.file(&exported.text);
    import(&target.url(), 1, &file).succeed();
    let fewer: Vec<&str> = exported.text.lines().collect();
    let fewer = [&fewer[..500], &fewer[fewer.len() - 1..]]
        .concat()
        .join("\n")
        + "\n";
    import(&target.url(), 1, &exported.file(&fewer)).fail("it is an older one");

    // One that was imported, and has a life of its own since: it goes on with it.
    let target = Database::make(Engine::Sqlite);
    let file = exported.file(&exported.text);
    import(&target.url(), 1, &file).succeed();
    TestServer::start(&target.url()).kill9();
    import(&target.url(), 1, &file).fail("a server has been started on the database");
    TestServer::start(&target.url()).kill9();

    // Files that hold something else are not written over.
    let text = exported.file("my notes\n");
    export(&source.url(), &text).fail("no export of tidings");
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "my notes\n");
    let of_other = exported.file(&other.text[..other.text.len() / 2]);
    export(&source.url(), &of_other).fail("holds an export of the database");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_a_file_in_use_is_refused() {
    let source = Database::make(Engine::Sqlite);
    let _server = TestServer::start(&source.url());
    Said::by(tidings(&["export", "--database-url", &source.url()])).fail("in use");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_of_a_hundred_megabytes_is_carried() {
    let source = Database::make(Engine::Sqlite);
    make_events(&source.url(), EVENTS).await;
    let large = "INSERT INTO events (partition_no, position, id, aggregate_id, aggregate_type, event_type, event_data, \
                 event_metadata, version, created_at) SELECT partition_no, position + 1, randomblob(16), aggregate_id, \
                 aggregate_type, event_type, '{\"text\":\"' || hex(zeroblob(50000000)) || '\"}', '{}', version + 1, created_at \
                 FROM events WHERE position = 1000";
    let version = "UPDATE aggregates SET current_version = current_version + 1 \
                   WHERE id = (SELECT aggregate_id FROM events WHERE position = 1000)";
    run(&source.url(), &[large.to_owned(), version.to_owned()]).await;
    let target = Database::make(Engine::Postgres);
    pipe(&source.url(), &target.url(), 4).succeed();
    let sql = "SELECT CAST(max(length(CAST(event_data AS text))) AS bigint) FROM events";
    let bytes = count(&target.url(), sql).await;
    assert!((100_000_000..100_000_100).contains(&bytes), "{bytes}");
}
