//! The read models that are really stored, read past the server, and whether each is what its events come to.

use std::collections::{HashMap, HashSet};

use sea_orm::{ConnectionTrait, DatabaseConnection, QueryResult, Statement, TryGetable};
use serde_json::Value;
use uuid::Uuid;

use super::{counting, log::StoredLog};

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredModel {
    pub partition: i16,
    pub aggregate_id: Uuid,
    pub data: Value,
    pub version: i32,
    pub source: String,
    pub fault: Option<String>,
    pub is_deleted: bool,
    pub change_position: i64,
}

/// All read models, and up to where each partition was read for them.
#[derive(Debug)]
pub struct StoredModels {
    pub models: HashMap<Uuid, StoredModel>,
    pub checkpoints: HashMap<(i16, String), i64>,
}

impl StoredModels {
    /// Reads them from the database that a `--database-url` names.
    pub async fn read(database_url: &str) -> StoredModels {
        let database = sea_orm::Database::connect(database_url)
            .await
            .expect("the database can be reached");
        let models = select(
            &database,
            "SELECT partition_no, aggregate_id, CAST(model_data AS text), version, source, fault, deleted_at IS NOT NULL, \
             change_position FROM read_models",
        )
        .await;
        let checkpoints = select(
            &database,
            "SELECT partition_no, name, position FROM checkpoints",
        )
        .await;
        let stored = StoredModels {
            models: models
                .iter()
                .map(model)
                .map(|model| (model.aggregate_id, model))
                .collect(),
            checkpoints: checkpoints
                .iter()
                .map(|row| ((column(row, 0), column(row, 1)), column(row, 2)))
                .collect(),
        };
        database.close().await.expect("the connection closes");
        stored
    }

    /// Waits until all events were looked at by the projector and the publisher.
    ///
    /// # Panics
    ///
    /// Where they were not in time.
    pub async fn read_settled(database_url: &str) -> (StoredLog, StoredModels) {
        let wait = async {
            loop {
                let log = StoredLog::read_whole(database_url).await;
                let stored = StoredModels::read(database_url).await;
                if stored.is_up_to(&log) {
                    // What was read before the checkpoints may be older than they are.
                    let log = StoredLog::read_whole(database_url).await;
                    return (log, StoredModels::read(database_url).await);
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(super::client::LIMIT, wait)
            .await
            .expect("everything is projected in the end")
    }

    fn is_up_to(&self, log: &StoredLog) -> bool {
        let mut heads: HashMap<i16, i64> = HashMap::new();
        for event in &log.events {
            heads.insert(event.partition, event.position);
        }
        heads.iter().all(|(partition, head)| {
            ["read_models", "publish"]
                .iter()
                .all(|name| self.checkpoints.get(&(*partition, (*name).to_owned())) == Some(head))
        })
    }

    /// Each read model of the counting domain equals a fold from the first event; each event of it was published once, in
    /// order; and no event has made more than one change.
    ///
    /// # Panics
    ///
    /// Where that is not so.
    pub fn assert_folded(&self, log: &StoredLog) {
        let aggregates: HashSet<Uuid> = log.events.iter().map(|event| event.aggregate_id).collect();
        assert_eq!(
            self.models.keys().copied().collect::<HashSet<_>>(),
            aggregates,
            "there is a read model for each aggregate"
        );
        for id in aggregates {
            let events = log.of_aggregate(id);
            let model = &self.models[&id];
            assert_eq!(model.version, events.last().unwrap().version, "{model:?}");
            assert_eq!(model.data, counting::folded(events), "{model:?}");
            assert_eq!(model.source, "PROJECTED", "{model:?}");
            assert_eq!(model.is_deleted, model.data.is_null(), "{model:?}");
            assert_eq!(model.fault, None, "{model:?}");
        }
        self.assert_changes(log);
    }

    /// Positions of changes are there once in each partition, and there are no more of them than events.
    pub fn assert_changes(&self, log: &StoredLog) {
        let mut positions = HashSet::new();
        for model in self.models.values() {
            assert!(
                positions.insert((model.partition, model.change_position)),
                "no two read models have the same change: {model:?}"
            );
            let of_partition = log
                .events
                .iter()
                .filter(|event| event.partition == model.partition);
            let events = of_partition.count() as i64;
            assert!(
                (1..=events).contains(&model.change_position),
                "{events} events cannot have made the change {model:?}"
            );
        }
    }
}

/// Every event of the counting domain is in its stream once, those of a partition in their order.
///
/// # Panics
///
/// Where that is not so.
pub fn assert_published(log: &StoredLog) {
    let published: Vec<Uuid> = log
        .of_stream(counting::STREAM)
        .iter()
        .map(|entry| entry.event_id)
        .collect();
    let counted = log
        .events
        .iter()
        .filter(|event| event.aggregate_type == counting::TYPE);
    let places: HashMap<Uuid, (i16, i64)> = counted
        .map(|event| (event.id, (event.partition, event.position)))
        .collect();
    assert_eq!(
        published.len(),
        places.len(),
        "each event is published once"
    );
    let mut last: HashMap<i16, i64> = HashMap::new();
    for id in published {
        let (partition, position) = places[&id];
        let before = last.insert(partition, position).unwrap_or_default();
        assert!(
            position > before,
            "the events of a partition are published in their order"
        );
    }
}

async fn select(database: &DatabaseConnection, sql: &str) -> Vec<QueryResult> {
    let backend = database.get_database_backend();
    let rows = database
        .query_all_raw(Statement::from_string(backend, sql))
        .await;
    rows.expect("the tables can be read")
}

fn model(row: &QueryResult) -> StoredModel {
    let data: String = column(row, 2);
    StoredModel {
        partition: column(row, 0),
        aggregate_id: column(row, 1),
        data: serde_json::from_str(&data).expect("it is JSON"),
        version: column(row, 3),
        source: column(row, 4),
        fault: column(row, 5),
        is_deleted: column(row, 6),
        change_position: column(row, 7),
    }
}

fn column<T: TryGetable>(row: &QueryResult, index: usize) -> T {
    row.try_get_by_index(index)
        .expect("the column is of this type")
}
