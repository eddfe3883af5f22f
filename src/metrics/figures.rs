//! What is looked at when somebody asks: places in the logs, queues, deliveries, connections. Floor 3.

use std::collections::{BTreeMap, HashMap};

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Registry};

use super::{EventCounts, add, gauges};
use crate::{
    domain::{Checkpoint, append::LogName},
    store::{CheckpointPlace, Connections, DeliveryCount, Heads, Store, StoreError},
};

/// Checkpoints of event handlers are named by the handler's id behind this.
const HANDLER: &str = "handler:";

/// What waits in a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueFigure {
    /// The log.
    pub log: LogName,
    /// The partition.
    pub partition: u8,
    /// Requests.
    pub requests: usize,
    /// Bytes.
    pub bytes: usize,
}

/// What the server looks like at one time.
#[derive(Debug)]
pub struct Figures {
    /// The queues of the appender.
    pub queues: Vec<QueueFigure>,
    /// Open connections of clients.
    pub client_connections: usize,
    /// What the database says; none where it does not.
    pub database: Option<DatabaseFigures>,
}

/// What the database says.
#[derive(Debug)]
pub struct DatabaseFigures {
    heads: Heads,
    checkpoints: Vec<CheckpointPlace>,
    handlers: HashMap<String, String>,
    deliveries: Vec<DeliveryCount>,
    pending_commands: i64,
    faulted: u64,
}

impl DatabaseFigures {
    /// Asks the database.
    ///
    /// # Errors
    /// When it fails.
    pub async fn read(store: &Store) -> Result<Self, StoreError> {
        // Before the heads: a lag is never too small for what was read later.
        let checkpoints = store.checkpoint_places().await?;
        let names = store.handler_names().await?;
        Ok(Self {
            checkpoints,
            heads: store.heads().await?,
            handlers: names
                .into_iter()
                .map(|(id, name)| (id.to_string(), name))
                .collect(),
            deliveries: store.delivery_counts().await?,
            pending_commands: store.pending_commands().await?,
            faulted: store.faulted_models(0).await?.0,
        })
    }

    /// How many events lie behind a checkpoint.
    fn lag(&self, place: &CheckpointPlace) -> i64 {
        let head = self.heads.events.get(place.partition.index());
        (head.map_or(0, |head| head.0) - place.position.0).max(0)
    }

    /// The lag of each handler over all partitions that it has begun with, by its name.
    fn handler_lags(&self) -> BTreeMap<&str, i64> {
        let mut lags = BTreeMap::new();
        for place in &self.checkpoints {
            let id = place.name.strip_prefix(HANDLER);
            if let Some(name) = id.and_then(|id| self.handlers.get(id)) {
                *lags.entry(name.as_str()).or_default() += self.lag(place);
            }
        }
        lags
    }
}

/// What is set anew each time.
pub(super) struct Gauges {
    store: Store,
    up: IntGauge,
    client_connections: IntGauge,
    queue_requests: IntGaugeVec,
    queue_bytes: IntGaugeVec,
    connections: IntGaugeVec,
    most_connections: IntGaugeVec,
    positions: IntGaugeVec,
    projection_lag: IntGaugeVec,
    publish_lag: IntGaugeVec,
    handler_lag: IntGaugeVec,
    deliveries: IntGaugeVec,
    pending_commands: IntGaugeVec,
    faulted: IntGaugeVec,
    unsaved: IntGauge,
    not_counted: IntCounter,
}

impl Gauges {
    pub(super) fn register(registry: &Registry, store: &Store) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| add(registry, IntGauge::new(name, help)?);
        let by = |name: &str, help: &str, labels: &[&str]| gauges(registry, name, help, labels);
        let build = by(
            "tidings_build_info",
            "The version of the server and the kind of its database; always 1.",
            &["version", "database"],
        )?;
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), store.kind()])
            .set(1);
        Ok(Self {
            store: store.clone(),
            up: gauge(
                "tidings_database_up",
                "Whether the database has answered just now: without it, what it would say is left out.",
            )?,
            client_connections: gauge(
                "tidings_connections",
                "Connections of clients that are open.",
            )?,
            queue_requests: by(
                "tidings_append_queue_requests",
                "Appends that wait for their turn.",
                &["log", "partition"],
            )?,
            queue_bytes: by(
                "tidings_append_queue_bytes",
                "Size of the appends that wait for their turn or are being committed.",
                &["log", "partition"],
            )?,
            connections: by(
                "tidings_database_connections",
                "Connections to the database, idle or in use.",
                &["pool", "state"],
            )?,
            most_connections: by(
                "tidings_database_connections_max",
                "Connections to the database that there can be.",
                &["pool"],
            )?,
            positions: by(
                "tidings_log_position",
                "The newest position of a log, whoever has appended it.",
                &["log", "partition"],
            )?,
            projection_lag: by(
                "tidings_projection_lag_events",
                "Events that are not folded into read models yet.",
                &["partition"],
            )?,
            publish_lag: by(
                "tidings_publish_lag_events",
                "Events that were not looked at yet for publishing.",
                &["partition"],
            )?,
            handler_lag: by(
                "tidings_handler_lag_events",
                "Events that an event handler has not taken up yet.",
                &["handler"],
            )?,
            deliveries: by(
                "tidings_deliveries",
                "Deliveries to event handlers that wait, are tried again or are dead.",
                &["handler", "status"],
            )?,
            pending_commands: by(
                "tidings_commands_pending",
                "Commands that were recorded and are not processed yet.",
                &[],
            )?,
            faulted: by(
                "tidings_read_models_faulted",
                "Read models that stand still behind an event that cannot be folded.",
                &[],
            )?,
            unsaved: gauge(
                "tidings_event_metrics_unsaved",
                "Events that are counted by type and not yet written to event_metrics.",
            )?,
            not_counted: add(
                registry,
                IntCounter::new(
                    "tidings_event_metrics_dropped_total",
                    "Events that were not counted by type, for too many types.",
                )?,
            )?,
        })
    }

    pub(super) fn set(&self, figures: &Figures) {
        self.client_connections
            .set(figure(figures.client_connections));
        for queue in &figures.queues {
            let partition = queue.partition.to_string();
            let labels = [queue.log.as_str(), &partition];
            self.queue_requests
                .with_label_values(&labels)
                .set(figure(queue.requests));
            self.queue_bytes
                .with_label_values(&labels)
                .set(figure(queue.bytes));
        }
        self.set_connections(&self.store.connections());
        self.up.set(i64::from(figures.database.is_some()));
        for of_database in [
            &self.positions,
            &self.projection_lag,
            &self.publish_lag,
            &self.handler_lag,
            &self.deliveries,
            &self.pending_commands,
            &self.faulted,
        ] {
            // What is gone, or is not known now, is left out.
            of_database.reset();
        }
        if let Some(database) = &figures.database {
            self.set_database(database);
        }
    }

    pub(super) fn set_counts(&self, counts: Option<&EventCounts>) {
        let Some(counts) = counts else { return };
        let unsaved = counts.unsaved_events();
        self.unsaved.set(i64::try_from(unsaved).unwrap_or(i64::MAX));
        let more = counts.not_counted().saturating_sub(self.not_counted.get());
        self.not_counted.inc_by(more);
    }

    fn set_connections(&self, connections: &[Connections]) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        for of_pool in connections {
            let idle = of_pool.open.saturating_sub(of_pool.in_use);
            for (state, count) in [("idle", idle), ("in_use", of_pool.in_use)] {
                self.connections
                    .with_label_values(&[of_pool.pool, state])
                    .set(number(count));
            }
            self.most_connections
                .with_label_values(&[of_pool.pool])
                .set(number(of_pool.most));
        }
    }

    fn set_database(&self, database: &DatabaseFigures) {
        let heads = &database.heads;
        for (log, positions) in [
            ("events", &heads.events),
            ("entries", &heads.entries),
            ("read_models", &heads.changes),
        ] {
            for (partition, position) in positions.iter().enumerate() {
                self.positions
                    .with_label_values(&[log, &partition.to_string()])
                    .set(position.0);
            }
        }
        for (gauge, checkpoint) in [
            (&self.projection_lag, Checkpoint::ReadModels),
            (&self.publish_lag, Checkpoint::Publish),
        ] {
            let of_it = |place: &&CheckpointPlace| place.name == checkpoint.as_str();
            for place in database.checkpoints.iter().filter(of_it) {
                gauge
                    .with_label_values(&[&place.partition.to_string()])
                    .set(database.lag(place));
            }
        }
        for (handler, lag) in database.handler_lags() {
            self.handler_lag.with_label_values(&[handler]).set(lag);
        }
        for deliveries in &database.deliveries {
            let id = deliveries.handler_id.to_string();
            // One of a handler that is removed counts under its id.
            let handler = database.handlers.get(&id).unwrap_or(&id);
            self.deliveries
                .with_label_values(&[handler.as_str(), deliveries.status.as_str()])
                .set(deliveries.count);
        }
        self.pending_commands
            .with_label_values::<&str>(&[])
            .set(database.pending_commands);
        let faulted = i64::try_from(database.faulted).unwrap_or(i64::MAX);
        self.faulted.with_label_values::<&str>(&[]).set(faulted);
    }
}

fn figure(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Partition, Position};

    #[test]
    fn the_lag_of_a_handler_is_that_of_all_partitions_together() {
        let place = |partition, name: &str, position| CheckpointPlace {
            partition: Partition(partition),
            name: name.to_owned(),
            position: Position(position),
        };
        let figures = DatabaseFigures {
            heads: Heads {
                events: vec![Position(10), Position(20)],
                ..Heads::default()
            },
            checkpoints: vec![
                place(0, "handler:a", 4),
                place(1, "handler:a", 20),
                place(0, "handler:b", 12),
                place(0, "handler:gone", 1),
                place(0, "read_models", 1),
            ],
            handlers: [("a", "mail"), ("b", "audit")]
                .map(|(id, name)| (id.to_owned(), name.to_owned()))
                .into(),
            deliveries: Vec::new(),
            pending_commands: 0,
            faulted: 0,
        };
        let lags = figures.handler_lags();
        assert_eq!(
            lags.into_iter().collect::<Vec<_>>(),
            [("audit", 0), ("mail", 6)]
        );
    }
}
