//! What the server lets see of its work, beside its log. Floor 1.

use std::time::Duration;

use clap::Args;
use url::Url;

use super::{
    documented_defaults,
    values::{boolean, parse_duration},
};

/// Metrics are kept by the minute: to keep them for less makes no sense.
const SHORTEST_RETENTION: Duration = Duration::from_secs(60);

/// What the server lets see of its work, beside its log.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(
    next_help_heading = "Metrics and traces",
    mut_arg("event-metrics", boolean)
)]
pub struct Observability {
    /// Whether this server counts the events that it appends, and how long they take, by type in the table event_metrics.
    /// With false `eventMetrics` lacks what this server appends
    #[arg(
        id = "event-metrics",
        long = "event-metrics",
        env = "TIDINGS_EVENT_METRICS",
        default_value = "true"
    )]
    pub event_metrics: bool,

    /// How long the counts of events are kept, such as 30d or 12h
    #[arg(
        id = "event-metrics-retention",
        long = "event-metrics-retention",
        env = "TIDINGS_EVENT_METRICS_RETENTION",
        value_name = "TIME",
        default_value = "30d",
        value_parser = parse_duration
    )]
    pub event_metrics_retention: Duration,

    /// Where traces are sent to, by OTLP over HTTP, such as `http://localhost:4318`: the address of an OpenTelemetry
    /// collector, to which /v1/traces is added. Without it there are no traces
    #[arg(
        id = "otlp-endpoint",
        long = "otlp-endpoint",
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        hide_env_values = true,
        value_name = "URL",
        value_parser = parse_endpoint
    )]
    pub otlp_endpoint: Option<Url>,
}

/// Reads the address of a collector.
fn parse_endpoint(text: &str) -> Result<Url, String> {
    const RIGHT: &str = "use http://HOST:4318 or https://HOST";
    let url = Url::parse(text).map_err(|_| format!("it is not a URL; {RIGHT}"))?;
    if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
        return Err(format!("it is not an address of HTTP; {RIGHT}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "it holds a name or password; give those as a header, in OTEL_EXPORTER_OTLP_HEADERS"
                .to_owned(),
        );
    }
    Ok(url)
}

impl Default for Observability {
    fn default() -> Self {
        documented_defaults()
    }
}

impl Observability {
    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.event_metrics_retention < SHORTEST_RETENTION {
            problems.push("--event-metrics-retention: must be at least 1m".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_of_http() {
        for right in [
            "http://localhost:4318",
            "https://otel.example/prefix",
            "http://[::1]:4318/",
        ] {
            assert!(parse_endpoint(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "localhost:4318",
            "http://me:secret@localhost:4318",
            "grpc://localhost:4317",
            "/v1/traces",
        ] {
            assert!(parse_endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
