//! What the server takes at most. Floor 1.

use std::time::Duration;

use clap::Args;

use super::{
    documented_defaults,
    values::{parse_bytes, parse_duration},
};

/// What the server takes at most. Whatever is above is refused with a clear error.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Size of a request's body, or of a message on a websocket
    #[arg(long, env = "TIDINGS_MAX_REQUEST_BYTES", value_name = "SIZE", default_value = "16MiB", value_parser = parse_bytes)]
    pub max_request_bytes: usize,

    /// Size of one event's data, and of its metadata, as JSON
    #[arg(long, env = "TIDINGS_MAX_EVENT_BYTES", value_name = "SIZE", default_value = "1MiB", value_parser = parse_bytes)]
    pub max_event_bytes: usize,

    /// Levels of fields in an operation
    #[arg(
        long,
        env = "TIDINGS_MAX_DEPTH",
        value_name = "N",
        default_value = "15"
    )]
    pub max_depth: usize,

    /// Complexity of an operation: its fields, those of a list counted for each element that it can return
    #[arg(
        long,
        env = "TIDINGS_MAX_COMPLEXITY",
        value_name = "N",
        default_value = "50000"
    )]
    pub max_complexity: usize,

    /// Events in one appendEvents
    #[arg(
        long,
        env = "TIDINGS_MAX_EVENTS_PER_APPEND",
        value_name = "N",
        default_value = "1000"
    )]
    pub max_events_per_append: usize,

    /// Events that are folded for one answer, over all its states of aggregates
    #[arg(
        long,
        env = "TIDINGS_MAX_FOLDED_EVENTS",
        value_name = "N",
        default_value = "10000"
    )]
    pub max_folded_events: usize,

    /// Operations that run at the same time on one websocket
    #[arg(
        long,
        env = "TIDINGS_MAX_SUBSCRIPTIONS_PER_CONNECTION",
        value_name = "N",
        default_value = "100"
    )]
    pub max_subscriptions_per_connection: usize,

    /// Open connections of clients, websockets among them
    #[arg(
        long,
        env = "TIDINGS_MAX_CONNECTIONS",
        value_name = "N",
        default_value = "10000"
    )]
    pub max_connections: usize,

    /// Appends that wait for their turn, in each partition
    #[arg(
        long,
        env = "TIDINGS_MAX_QUEUE_REQUESTS",
        value_name = "N",
        default_value = "10000"
    )]
    pub max_queue_requests: usize,

    /// Size of the appends that wait for their turn, in each partition
    #[arg(long, env = "TIDINGS_MAX_QUEUE_BYTES", value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub max_queue_bytes: usize,

    /// Events that are committed together
    #[arg(
        long,
        env = "TIDINGS_MAX_BATCH_EVENTS",
        value_name = "N",
        default_value = "512"
    )]
    pub max_batch_events: usize,

    /// How long a query or mutation may take, but for rebuildReadModels
    #[arg(long, env = "TIDINGS_REQUEST_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub request_timeout: Duration,

    /// How long a client may take to send the head of a request, and how long a connection may be idle between two
    #[arg(long, env = "TIDINGS_HEADER_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub header_timeout: Duration,

    /// How long a new websocket may take to send connection_init
    #[arg(long, env = "TIDINGS_CONNECTION_INIT_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub connection_init_timeout: Duration,

    /// How long a client may take nothing of what is sent to it, before its connection is closed
    #[arg(long, env = "TIDINGS_SEND_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub send_timeout: Duration,

    /// How often a websocket is pinged; one that is silent for three times as long is closed
    #[arg(long, env = "TIDINGS_KEEP_ALIVE", value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    pub keep_alive: Duration,

    /// How much of the newest log is kept in memory for subscriptions, for each partition and log
    #[arg(long, env = "TIDINGS_TAIL_WINDOW_BYTES", value_name = "SIZE", default_value = "16MiB", value_parser = parse_bytes)]
    pub tail_window_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Limits {
    /// What is wrong with them.
    pub(super) fn problems(&self) -> Vec<String> {
        let counts = [
            ("max-request-bytes", self.max_request_bytes),
            ("max-event-bytes", self.max_event_bytes),
            ("max-depth", self.max_depth),
            ("max-complexity", self.max_complexity),
            ("max-events-per-append", self.max_events_per_append),
            ("max-folded-events", self.max_folded_events),
            (
                "max-subscriptions-per-connection",
                self.max_subscriptions_per_connection,
            ),
            ("max-connections", self.max_connections),
            ("max-queue-requests", self.max_queue_requests),
            ("max-queue-bytes", self.max_queue_bytes),
            ("max-batch-events", self.max_batch_events),
            ("tail-window-bytes", self.tail_window_bytes),
        ];
        let times = [
            ("request-timeout", self.request_timeout),
            ("header-timeout", self.header_timeout),
            ("connection-init-timeout", self.connection_init_timeout),
            ("send-timeout", self.send_timeout),
            ("keep-alive", self.keep_alive),
        ];
        let counts = counts
            .into_iter()
            .filter(|(_, count)| *count == 0)
            .map(|(name, _)| format!("--{name}: must be at least 1"));
        let times = times
            .into_iter()
            .filter(|(_, time)| time.is_zero())
            .map(|(name, _)| format!("--{name}: must be at least 1ms"));
        let mut problems: Vec<String> = counts.chain(times).collect();
        if self.max_event_bytes > self.max_request_bytes {
            problems.push("--max-event-bytes: must not be above --max-request-bytes, or no request could carry such an event".to_owned());
        }
        if self.max_queue_bytes < self.max_request_bytes {
            problems.push("--max-queue-bytes: must not be below --max-request-bytes, or the largest request could never be queued".to_owned());
        }
        problems
    }
}
