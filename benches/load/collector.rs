//! What counting costs: batches handed to the collector as the appender hands them, with nothing else beside them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidings::app::App;
use tidings::config::Config;
use tidings::domain::append::{BatchReport, LogName};
use tidings::domain::{
    AggregateId, AggregateType, Domain, Event, EventId, EventType, Json, Partition, Position,
    SystemClock, Timestamp, Version,
};
use uuid::Uuid;

/// Events that are counted in all, and in a batch; each is a request of its own.
const EVENTS: usize = 2_000_000;
const BATCH: usize = 64;
const TYPES: usize = 8;

/// Nanoseconds for each event: with the counts by type, and with them turned off.
#[derive(Clone, Copy, Debug)]
pub struct Collecting {
    pub counted_ns: f64,
    pub not_counted_ns: f64,
}

/// Measures on a database of its own.
pub fn run(database_url: &str) -> Result<Collecting, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let measure = |event_metrics: bool| {
        runtime.block_on(async {
            let mut config = Config::default();
            config.database.url = database_url.parse()?;
            config.background.enabled = false;
            config.observability.event_metrics = event_metrics;
            let app = App::start_with(&config, Domain::guide(), Arc::new(SystemClock))
                .await
                .map_err(|error| error.to_string())?;
            let each_ns = count(&app);
            app.stop().await;
            Ok::<_, String>(each_ns)
        })
    };
    Ok(Collecting {
        counted_ns: measure(true)?,
        not_counted_ns: measure(false)?,
    })
}

fn count(app: &App) -> f64 {
    let events: Vec<Arc<Event>> = (0..BATCH).map(event).collect();
    let requests = vec![(Duration::from_millis(1), 1); BATCH];
    let batch = BatchReport {
        log: LogName::Events,
        took: Duration::from_millis(1),
        is_committed: true,
        size: BATCH,
        requests: &requests,
        events: &events,
    };
    let began = Instant::now();
    for _ in 0..EVENTS / BATCH {
        app.metrics().count_batch(&batch);
    }
    began.elapsed().as_secs_f64() * 1e9 / EVENTS as f64
}

fn event(no: usize) -> Arc<Event> {
    let event_type = format!("something_of_kind_{}_happened", no % TYPES);
    Arc::new(Event {
        partition: Partition(0),
        position: Position(1),
        id: EventId(Uuid::from_u128(1)),
        aggregate_id: AggregateId(Uuid::from_u128(1)),
        aggregate_type: AggregateType::stored("user"),
        event_type: EventType::stored(event_type),
        data: Json::empty_object(),
        metadata: Json::empty_object(),
        version: Version(1),
        created_at: Timestamp::from_micros(1),
    })
}
