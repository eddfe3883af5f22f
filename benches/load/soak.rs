//! A long run for what short ones do not show: memory that grows, rates that fall, files that stay open.

use std::time::{Duration, Instant};

use crate::http_load::Load;
use crate::postgres::Cluster;
use crate::server::TestServer;
use crate::subscribers;
use crate::work::{FRESH_ID, append_event, append_to_stream};

const SEGMENT: Duration = Duration::from_secs(10);
const SUBSCRIBERS: usize = 200;

/// Appends to fresh aggregates, to one aggregate and to one stream, and follows a stream, in turn, and prints a line each
/// time around.
pub fn run(duration: Duration) {
    let cluster = Cluster::private();
    let database = cluster.create_database();
    let server = TestServer::start(&database.url);
    let hot = uuid::Uuid::new_v4().to_string();
    let load = Load {
        address: server.address(),
        connections: 64,
        duration: SEGMENT,
        server: server.pid(),
        postgres: Some(cluster.pid()),
    };
    let started = Instant::now();
    let mut errors = 0;
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>14} {:>10} {:>10}",
        "seconds", "fresh /s", "one /s", "stream /s", "p99 delivery", "MiB", "files"
    );
    while started.elapsed() < duration {
        let [fresh, one, stream] = [
            append_event(FRESH_ID),
            append_event(&hot),
            append_to_stream("hot"),
        ]
        .map(|work| load.run(&work));
        for measurement in [&fresh, &one, &stream] {
            errors += measurement.errors;
            if let Some(error) = &measurement.first_error {
                println!("  {error}");
            }
        }
        let delivery = subscribers::run(&server, &server, cluster.pid(), SUBSCRIBERS, 10, SEGMENT)
            .unwrap_or_else(|error| {
                errors += 1;
                println!("  {error}");
                subscribers::Delivery::default()
            });
        errors += delivery.missing as u64;
        let files =
            std::fs::read_dir(format!("/proc/{}/fd", server.pid())).map_or(0, Iterator::count);
        println!(
            "{:>8} {:>10.0} {:>10.0} {:>10.0} {:>11.1} ms {:>10.1} {files:>10}",
            started.elapsed().as_secs(),
            fresh.rate,
            one.rate,
            stream.rate,
            delivery.from_created_p99_ms,
            server.resident_bytes() as f64 / (1024.0 * 1024.0)
        );
    }
    println!("{errors} errors");
}
