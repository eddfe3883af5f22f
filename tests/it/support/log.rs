//! What is really stored, read past the server by SQL of its own, and whether it is whole.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ConnectionTrait, DbBackend, IsolationLevel, QueryResult, Statement, TransactionTrait,
    TryGetable,
};
use serde_json::Value;
use uuid::Uuid;

/// Everything in the two logs, in the order of their positions in each partition.
#[derive(Debug)]
pub struct StoredLog {
    pub events: Vec<StoredEvent>,
    pub entries: Vec<StoredEntry>,
    pub commands: HashMap<Uuid, StoredCommand>,
    /// The version that each aggregate's own row has.
    versions: HashMap<Uuid, i32>,
}

#[derive(Clone, Debug)]
pub struct StoredEvent {
    pub partition: i16,
    pub position: i64,
    pub id: Uuid,
    pub aggregate_id: Uuid,
    pub aggregate_type: String,
    pub event_type: String,
    pub version: i32,
    /// The command that caused it, as its metadata says.
    pub command_id: Option<Uuid>,
}

#[derive(Clone, Debug)]
pub struct StoredCommand {
    pub aggregate_id: Uuid,
    pub status: String,
    /// The versions of its first and last event.
    pub versions: Option<(i32, i32)>,
    pub is_settled: bool,
}

#[derive(Clone, Debug)]
pub struct StoredEntry {
    pub partition: i16,
    /// Its place in the partition's log of entries.
    pub entry_position: i64,
    pub stream: String,
    pub position: i64,
    pub event_id: Uuid,
}

impl StoredLog {
    /// Reads it from the database that a `--database-url` names.
    pub async fn read(database_url: &str) -> StoredLog {
        let database = sea_orm::Database::connect(database_url)
            .await
            .expect("the database can be reached");
        // One snapshot: a transaction of a server that was killed may still end.
        let backend = database.get_database_backend();
        let isolation = (backend == DbBackend::Postgres).then_some(IsolationLevel::RepeatableRead);
        let snapshot = database.begin_with_config(isolation, None).await;
        let snapshot = snapshot.expect("a transaction begins");
        let select = async |sql: &str| {
            let rows = snapshot
                .query_all_raw(Statement::from_string(backend, sql))
                .await;
            rows.expect("the log can be read")
        };
        let events = select(
            "SELECT partition_no, position, id, aggregate_id, aggregate_type, event_type, version, \
             event_metadata ->> 'commandId' FROM events ORDER BY partition_no, position",
        )
        .await;
        let entries = select(
            "SELECT partition_no, entry_position, stream_name, position, event_id FROM event_streams \
             ORDER BY partition_no, entry_position",
        )
        .await;
        let versions = select("SELECT id, current_version FROM aggregates").await;
        let commands = select(
            "SELECT id, aggregate_id, status, first_version, last_version, \
             CASE WHEN processed_at IS NULL THEN 0 ELSE 1 END FROM commands",
        )
        .await;
        let log = StoredLog {
            events: events.iter().map(event).collect(),
            entries: entries.iter().map(entry).collect(),
            commands: commands
                .iter()
                .map(|row| (column(row, 0), command(row)))
                .collect(),
            versions: versions
                .iter()
                .map(|row| (column(row, 0), column(row, 1)))
                .collect(),
        };
        snapshot.rollback().await.expect("the transaction ends");
        database.close().await.expect("the connection closes");
        log
    }

    /// Reads the data of each event.
    pub async fn data_of_events(database_url: &str) -> HashMap<Uuid, Value> {
        let database = sea_orm::Database::connect(database_url)
            .await
            .expect("the database can be reached");
        let sql = "SELECT id, CAST(event_data AS text) FROM events";
        let statement = Statement::from_string(database.get_database_backend(), sql);
        let rows = database.query_all_raw(statement).await;
        let rows = rows.expect("the log can be read");
        database.close().await.expect("the connection closes");
        let data = |row: &QueryResult| {
            let text: String = column(row, 1);
            (
                column(row, 0),
                serde_json::from_str(&text).expect("it is JSON"),
            )
        };
        rows.iter().map(data).collect()
    }

    /// Reads it and checks that it is whole.
    pub async fn read_whole(database_url: &str) -> StoredLog {
        let log = StoredLog::read(database_url).await;
        log.assert_whole();
        log
    }

    /// Positions of each log and stream, and versions of each aggregate, are 1 … n with no gap; each id is there once.
    ///
    /// # Panics
    ///
    /// Where they are not.
    pub fn assert_whole(&self) {
        let mut heads = HashMap::new();
        let mut versions: HashMap<Uuid, i32> = HashMap::new();
        let mut ids = HashSet::new();
        for event in &self.events {
            assert_follows(
                &mut heads,
                ("events", event.partition.to_string()),
                event.position,
            );
            let version = versions.entry(event.aggregate_id).or_default();
            *version += 1;
            assert_eq!(
                event.version, *version,
                "the next version of its aggregate: {event:?}"
            );
            assert!(ids.insert(event.id), "stored twice: {event:?}");
        }
        for (aggregate, version) in &versions {
            assert_eq!(
                self.versions.get(aggregate),
                Some(version),
                "the row of the aggregate {aggregate} has the version of its last event"
            );
        }
        for (aggregate, version) in &self.versions {
            assert_eq!(
                *version,
                versions.get(aggregate).copied().unwrap_or_default(),
                "the aggregate {aggregate} has as many events as its row says"
            );
        }
        let mut ids = HashSet::new();
        for entry in &self.entries {
            assert_follows(
                &mut heads,
                ("entries", entry.partition.to_string()),
                entry.entry_position,
            );
            assert_follows(&mut heads, ("stream", entry.stream.clone()), entry.position);
            assert!(
                ids.insert((&entry.stream, entry.event_id)),
                "stored twice: {entry:?}"
            );
        }
        self.assert_commands_whole();
    }

    /// No command is half done: those that are processed have their events, all others have none, and no event is of a command
    /// that is not there.
    fn assert_commands_whole(&self) {
        let mut caused: HashMap<Uuid, Vec<&StoredEvent>> = HashMap::new();
        for event in &self.events {
            if let Some(command) = event.command_id {
                assert!(
                    self.commands.contains_key(&command),
                    "of no command: {event:?}"
                );
                caused.entry(command).or_default().push(event);
            }
        }
        for (id, command) in &self.commands {
            let events = caused.get(id).map(Vec::as_slice).unwrap_or_default();
            let versions: Vec<i32> = events.iter().map(|event| event.version).collect();
            let expected: Vec<i32> = match command.versions {
                Some((first, last)) => (first..=last).collect(),
                None => Vec::new(),
            };
            assert_eq!(versions, expected, "the events of {id}: {command:?}");
            let is_its_own = |event: &&StoredEvent| event.aggregate_id == command.aggregate_id;
            assert!(events.iter().all(is_its_own), "{command:?}: {events:?}");
            assert!(
                events.is_empty() || command.status == "PROCESSED",
                "{command:?}: {events:?}"
            );
            assert_eq!(
                command.is_settled,
                command.status != "PENDING",
                "{command:?}"
            );
        }
    }

    /// The events of one aggregate, in order.
    pub fn of_aggregate(&self, id: Uuid) -> Vec<&StoredEvent> {
        self.events
            .iter()
            .filter(|event| event.aggregate_id == id)
            .collect()
    }

    /// The entries of one stream, in order.
    pub fn of_stream(&self, name: &str) -> Vec<&StoredEntry> {
        let mut entries: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| entry.stream == name)
            .collect();
        entries.sort_by_key(|entry| entry.position);
        entries
    }

    /// How many partitions hold events.
    pub fn partitions_with_events(&self) -> usize {
        self.events
            .iter()
            .map(|event| event.partition)
            .collect::<HashSet<_>>()
            .len()
    }
}

fn assert_follows(
    heads: &mut HashMap<(&'static str, String), i64>,
    log: (&'static str, String),
    position: i64,
) {
    let head = heads.entry(log.clone()).or_default();
    *head += 1;
    assert_eq!(position, *head, "the next position of {log:?}");
}

fn event(row: &QueryResult) -> StoredEvent {
    StoredEvent {
        partition: column(row, 0),
        position: column(row, 1),
        id: column(row, 2),
        aggregate_id: column(row, 3),
        aggregate_type: column(row, 4),
        event_type: column(row, 5),
        version: column(row, 6),
        command_id: column::<Option<String>>(row, 7)
            .map(|id| id.parse().expect("the id of a command is a UUID")),
    }
}

fn command(row: &QueryResult) -> StoredCommand {
    let first: Option<i32> = column(row, 3);
    StoredCommand {
        aggregate_id: column(row, 1),
        status: column(row, 2),
        versions: first.zip(column(row, 4)),
        is_settled: column::<i32>(row, 5) == 1,
    }
}

fn entry(row: &QueryResult) -> StoredEntry {
    StoredEntry {
        partition: column(row, 0),
        entry_position: column(row, 1),
        stream: column(row, 2),
        position: column(row, 3),
        event_id: column(row, 4),
    }
}

fn column<T: TryGetable>(row: &QueryResult, index: usize) -> T {
    row.try_get_by_index(index)
        .expect("the column is of this type")
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    fn log(places: &[(i64, i32)]) -> StoredLog {
        let aggregate_id = Uuid::new_v4();
        let event = |&(position, version): &(i64, i32)| StoredEvent {
            partition: 0,
            position,
            id: Uuid::new_v4(),
            aggregate_id,
            aggregate_type: "load".to_owned(),
            event_type: "counted".to_owned(),
            version,
            command_id: None,
        };
        StoredLog {
            events: places.iter().map(event).collect(),
            entries: Vec::new(),
            commands: HashMap::new(),
            versions: HashMap::from([(aggregate_id, 2)]),
        }
    }

    #[test]
    fn a_log_with_a_gap_or_a_repeat_is_not_whole() {
        log(&[(1, 1), (2, 2)]).assert_whole();
        for places in [
            [(1, 1), (3, 2)],
            [(1, 1), (2, 3)],
            [(1, 1), (2, 1)],
            [(1, 1), (1, 2)],
        ] {
            assert!(
                catch_unwind(|| log(&places).assert_whole()).is_err(),
                "{places:?}"
            );
        }
        assert!(
            catch_unwind(|| log(&[(1, 1)]).assert_whole()).is_err(),
            "the last event is missing"
        );
    }
}
