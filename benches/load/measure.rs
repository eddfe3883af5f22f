//! What one timed piece gives: a rate, latencies, and who used the processor meanwhile.

use std::time::{Duration, Instant};

/// One timed piece.
#[derive(Clone, Debug, Default)]
pub struct Measurement {
    /// What was done in the time, in the unit that is counted (events, rows, calls).
    pub operations: u64,
    pub rate: f64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub errors: u64,
    pub first_error: Option<String>,
    pub cpu: Cpu,
}

impl Measurement {
    /// Counts each call as so many of what is counted.
    pub fn times(mut self, factor: u64) -> Measurement {
        self.operations *= factor;
        self.rate *= factor as f64;
        self
    }
}

/// Seconds of processor time, user and system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub wall: f64,
    pub server: f64,
    pub postgres: f64,
    pub client: f64,
    /// Of everything else on the machine: where this is not small, a figure is worth little.
    pub others: f64,
}

/// Reads /proc at the start and at the end of a piece.
pub struct CpuClock {
    server: Option<u32>,
    postgres: Option<u32>,
    started: Instant,
    at_start: [f64; 4],
}

impl CpuClock {
    pub fn start(server: Option<u32>, postgres: Option<u32>) -> CpuClock {
        let mut clock = CpuClock {
            server,
            postgres,
            started: Instant::now(),
            at_start: [0.0; 4],
        };
        clock.at_start = clock.read();
        clock
    }

    pub fn stop(&self) -> Cpu {
        let now = self.read();
        let [server, postgres, client, all] =
            std::array::from_fn(|index| now[index] - self.at_start[index]);
        let others = (all - server - postgres - client).max(0.0);
        Cpu {
            wall: self.started.elapsed().as_secs_f64(),
            server,
            postgres,
            client,
            others,
        }
    }

    fn read(&self) -> [f64; 4] {
        let server = self.server.map_or(0.0, |pid| ProcessTimes::of(pid).own);
        // A backend that has ended is counted with the postmaster's children.
        let postgres = self.postgres.map_or(0.0, |pid| {
            let postmaster = ProcessTimes::of(pid);
            let backends = children_of(pid)
                .into_iter()
                .map(|child| ProcessTimes::of(child).own);
            postmaster.own + postmaster.children + backends.sum::<f64>()
        });
        // pgbench is a child of this process; it has ended when the clock is read again.
        let client = ProcessTimes::of(std::process::id());
        [
            server,
            postgres,
            client.own + client.children,
            busy_seconds(),
        ]
    }
}

struct ProcessTimes {
    own: f64,
    children: f64,
}

impl ProcessTimes {
    /// Zero where the process has ended meanwhile.
    fn of(pid: u32) -> ProcessTimes {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in parentheses may hold anything; the state and all numbers come behind it.
        let numbers: Vec<f64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| {
                rest.split_whitespace()
                    .map(|word| word.parse().unwrap_or(0.0))
                    .collect()
            })
            .unwrap_or_default();
        // Linux counts here in hundredths of a second, whatever its own clock.
        let seconds = |index: usize| numbers.get(index).copied().unwrap_or(0.0) / 100.0;
        ProcessTimes {
            own: seconds(11) + seconds(12),
            children: seconds(13) + seconds(14),
        }
    }
}

/// What all processors have worked since the machine was started.
fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user, nice, system, (idle, iowait), irq, softirq
    [0, 1, 2, 5, 6]
        .iter()
        .map(|index| ticks.get(*index).copied().unwrap_or(0.0))
        .sum::<f64>()
        / 100.0
}

fn children_of(pid: u32) -> Vec<u32> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|child| child.parse().ok())
        .collect()
}

/// The value below which this share of the sorted values lies; 0 of none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted
        .get(index.saturating_sub(1).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
