//! What is looked at when somebody asks: places in the logs, queues, deliveries, connections. Floor 3.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::time::timeout;

use super::{EventCounts, add, gauges};
use crate::{
    domain::{Checkpoint, append::LogName},
    store::{CheckpointPlace, Connections, DeliveryCount, HandlerPlace, Heads, Store, StoreError},
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
    /// Whether the database answers.
    pub is_database_up: bool,
    /// What it says.
    pub database: DatabaseFigures,
}

/// What the database says; none of what it did not say in time.
#[derive(Debug, Default)]
pub struct DatabaseFigures {
    places: Option<Places>,
    handlers: Option<HashMap<String, HandlerPlace>>,
    deliveries: Option<Vec<DeliveryCount>>,
    pending_commands: Option<i64>,
    faulted: Option<u64>,
}

/// Where the logs are, and those who read them.
#[derive(Debug)]
struct Places {
    heads: Heads,
    checkpoints: Vec<CheckpointPlace>,
}

/// The names of the figures, as they are counted where they are late.
const FIGURES: [&str; 5] = [
    "places",
    "handlers",
    "deliveries",
    "pending_commands",
    "faulted_read_models",
];

impl DatabaseFigures {
    /// Asks the database, for one figure after another: each has the same time, and one that is late does not make the others late.
    pub async fn read(store: &Store, time_out: Duration, probe: Duration) -> Self {
        let [places, handlers, deliveries, pending_commands, faulted] = FIGURES;
        let places_of = async {
            // Before the heads: a lag is never too small for what was read later.
            let checkpoints = store.checkpoint_places().await?;
            let heads = store.heads().await?;
            Ok(Places { heads, checkpoints })
        };
        let by_id = |handlers: Vec<HandlerPlace>| {
            let handlers = handlers.into_iter();
            handlers
                .map(|handler| (handler.id.to_string(), handler))
                .collect()
        };
        Self {
            places: figure_of(places, time_out, places_of).await,
            handlers: figure_of(handlers, time_out, store.handler_names(probe))
                .await
                .map(by_id),
            deliveries: figure_of(deliveries, time_out, store.delivery_counts()).await,
            pending_commands: figure_of(pending_commands, time_out, store.pending_commands()).await,
            faulted: figure_of(faulted, time_out, store.faulted_models(0))
                .await
                .map(|(count, _)| count),
        }
    }

    /// The figures that are not known, by name.
    fn missing(&self) -> impl Iterator<Item = &'static str> {
        let known = [
            self.places.is_some(),
            self.handlers.is_some(),
            self.deliveries.is_some(),
            self.pending_commands.is_some(),
            self.faulted.is_some(),
        ];
        let named = FIGURES.into_iter().zip(known);
        named.filter(|(_, known)| !known).map(|(name, _)| name)
    }

    /// Takes in what is newer. What is not known anew stays.
    fn renew(&mut self, newer: Self) {
        fn renew<T>(known: &mut Option<T>, newer: Option<T>) {
            if newer.is_some() {
                *known = newer;
            }
        }
        renew(&mut self.places, newer.places);
        renew(&mut self.handlers, newer.handlers);
        renew(&mut self.deliveries, newer.deliveries);
        renew(&mut self.pending_commands, newer.pending_commands);
        renew(&mut self.faulted, newer.faulted);
    }

    /// The name of the handler of an id, if it is known.
    fn handler_name(&self, id: &str) -> Option<&str> {
        let handler = self.handlers.as_ref()?.get(id)?;
        Some(&handler.name)
    }

    /// The lag of each handler over all partitions that it has begun with, by its name.
    fn handler_lags(&self) -> BTreeMap<&str, i64> {
        let mut lags = BTreeMap::new();
        let Some(places) = &self.places else {
            return lags;
        };
        for place in &places.checkpoints {
            let id = place.name.strip_prefix(HANDLER);
            if let Some(name) = id.and_then(|id| self.handler_name(id)) {
                *lags.entry(name).or_default() += places.lag(place);
            }
        }
        lags
    }
}

/// A figure, if the database tells it in time.
async fn figure_of<T>(
    name: &str,
    time_out: Duration,
    reading: impl Future<Output = Result<T, StoreError>>,
) -> Option<T> {
    match timeout(time_out, reading).await {
        Ok(Ok(figure)) => Some(figure),
        Ok(Err(error)) => {
            let error = &error as &dyn Error;
            tracing::warn!(name, error, "a figure for the metrics cannot be read");
            None
        }
        Err(_) => {
            tracing::warn!(
                name,
                "a figure for the metrics is late: it is told as it was"
            );
            None
        }
    }
}

impl Places {
    /// How many events lie behind a checkpoint.
    fn lag(&self, place: &CheckpointPlace) -> i64 {
        let head = self.heads.events.get(place.partition.index());
        (head.map_or(0, |head| head.0) - place.position.0).max(0)
    }
}

/// What is set anew each time.
pub(super) struct Gauges {
    store: Store,
    /// What the database has said last.
    known: Mutex<DatabaseFigures>,
    late: IntCounterVec,
    paused: IntGaugeVec,
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
            known: Mutex::default(),
            late: late_figures(registry)?,
            paused: by(
                "tidings_handler_paused",
                "Whether an event handler waits, for what it calls has failed many times in a row.",
                &["handler"],
            )?,
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

    pub(super) fn set(&self, figures: Figures) {
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
        self.up.set(i64::from(figures.is_database_up));
        for of_database in [
            &self.positions,
            &self.projection_lag,
            &self.publish_lag,
            &self.handler_lag,
            &self.paused,
            &self.deliveries,
            &self.pending_commands,
            &self.faulted,
        ] {
            // What is gone, or is not known now, is left out.
            of_database.reset();
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if figures.is_database_up {
            for late in figures.database.missing() {
                self.late.with_label_values(&[late]).inc();
            }
            known.renew(figures.database);
        } else {
            *known = DatabaseFigures::default();
        }
        self.set_database(&known);
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
        if let Some(places) = &database.places {
            self.set_places(places);
        }
        for (handler, lag) in database.handler_lags() {
            self.handler_lag.with_label_values(&[handler]).set(lag);
        }
        for handler in database.handlers.iter().flat_map(HashMap::values) {
            let is_paused = i64::from(handler.is_paused);
            self.paused
                .with_label_values(&[&handler.name])
                .set(is_paused);
        }
        for deliveries in database.deliveries.iter().flatten() {
            let id = deliveries.handler_id.to_string();
            // One that is registered just now counts under its id.
            let handler = database.handler_name(&id).unwrap_or(&id);
            self.deliveries
                .with_label_values(&[handler, deliveries.status.as_str()])
                .set(deliveries.count);
        }
        if let Some(pending) = database.pending_commands {
            let gauge = self.pending_commands.with_label_values::<&str>(&[]);
            gauge.set(pending);
        }
        if let Some(faulted) = database.faulted {
            let faulted = i64::try_from(faulted).unwrap_or(i64::MAX);
            self.faulted.with_label_values::<&str>(&[]).set(faulted);
        }
    }

    fn set_places(&self, places: &Places) {
        let heads = &places.heads;
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
            for place in places.checkpoints.iter().filter(of_it) {
                gauge
                    .with_label_values(&[&place.partition.to_string()])
                    .set(places.lag(place));
            }
        }
    }
}

fn late_figures(registry: &Registry) -> prometheus::Result<IntCounterVec> {
    let late = Opts::new(
        "tidings_figures_late_total",
        "How often the database did not tell a figure in time for these metrics: it is told as it was.",
    );
    let late = add(registry, IntCounterVec::new(late, &["figure"])?)?;
    for name in FIGURES {
        late.with_label_values(&[name]);
    }
    Ok(late)
}

fn figure(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Partition, Position};

    #[test]
    fn the_lag_of_a_handler_is_that_of_all_partitions_together() {
        let place = |partition, name: &str, position| CheckpointPlace {
            partition: Partition(partition),
            name: name.to_owned(),
            position: Position(position),
        };
        let handler = |(id, name): (&str, &str)| {
            let place = HandlerPlace {
                id: Uuid::nil(),
                name: name.to_owned(),
                is_paused: false,
            };
            (id.to_owned(), place)
        };
        let figures = DatabaseFigures {
            places: Some(Places {
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
            }),
            handlers: Some([("a", "mail"), ("b", "audit")].map(handler).into()),
            ..DatabaseFigures::default()
        };
        let lags = figures.handler_lags();
        assert_eq!(
            lags.into_iter().collect::<Vec<_>>(),
            [("audit", 0), ("mail", 6)]
        );
    }
}
