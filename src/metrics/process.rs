//! What the system knows of this process: CPU, memory, open files. Floor 3. Linux only; elsewhere there are none.

use std::fs;

use prometheus::{Counter, Gauge, Opts, Registry};

/// The names are those that Prometheus' own clients give.
pub(super) struct Process {
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    open_files: Gauge,
    most_files: Gauge,
    threads: Gauge,
    started_at: Gauge,
}

/// What is read of a process. Times are seconds.
#[derive(Debug, PartialEq)]
struct Reading {
    cpu_seconds: f64,
    threads: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
}

impl Process {
    pub(super) fn register(
        registry: &Registry,
        started_at_seconds: f64,
    ) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::with_opts(Opts::new(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let cpu_seconds = Counter::with_opts(Opts::new(
            "process_cpu_seconds_total",
            "CPU time of the process, its own and the system's for it.",
        ))?;
        registry.register(Box::new(cpu_seconds.clone()))?;
        let process = Self {
            cpu_seconds,
            resident_bytes: gauge(
                "process_resident_memory_bytes",
                "Memory of the process that is in RAM.",
            )?,
            virtual_bytes: gauge(
                "process_virtual_memory_bytes",
                "Address space of the process.",
            )?,
            open_files: gauge("process_open_fds", "Open files and sockets.")?,
            most_files: gauge("process_max_fds", "Files and sockets that may be open.")?,
            threads: gauge("process_threads", "Threads of the process.")?,
            started_at: gauge(
                "process_start_time_seconds",
                "When the server started, in seconds after 1970.",
            )?,
        };
        process.started_at.set(started_at_seconds);
        Ok(process)
    }

    /// Reads anew.
    pub(super) fn update(&self) {
        if let Some(reading) = fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|stat| read(&stat))
        {
            let more = reading.cpu_seconds - self.cpu_seconds.get();
            self.cpu_seconds.inc_by(more.max(0.0));
            self.threads.set(reading.threads);
            self.virtual_bytes.set(reading.virtual_bytes);
            self.resident_bytes.set(reading.resident_bytes);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is the folder itself.
            self.open_files.set(files.count().saturating_sub(1) as f64);
        }
        #[cfg(unix)]
        {
            use rustix::process::{Resource, getrlimit};
            if let Some(most) = getrlimit(Resource::Nofile).current {
                self.most_files.set(most as f64);
            }
        }
    }
}

/// Source: proc_pid_stat(5). The second field is a name that can hold anything.
fn read(stat: &str) -> Option<Reading> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The first one here is the third of the page.
    let field = |no: usize| fields.get(no - 3)?.parse::<f64>().ok();
    Some(Reading {
        cpu_seconds: (field(14)? + field(15)?) / ticks_per_second(),
        threads: field(20)?,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page_bytes(),
    })
}

#[cfg(unix)]
fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

#[cfg(not(unix))]
fn ticks_per_second() -> f64 {
    100.0
}

#[cfg(unix)]
fn page_bytes() -> f64 {
    rustix::param::page_size() as f64
}

#[cfg(not(unix))]
fn page_bytes() -> f64 {
    4096.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_name_with_spaces_and_brackets() {
        let rest = (3..=52).map(|no| no.to_string()).collect::<Vec<_>>();
        let stat = format!("1 (a) b) {}", rest.join(" "));
        let reading = read(&stat).expect("all fields are there");
        assert_eq!((reading.cpu_seconds * ticks_per_second()).round(), 29.0);
        assert_eq!((reading.threads, reading.virtual_bytes), (20.0, 23.0));
        assert_eq!(reading.resident_bytes, 24.0 * page_bytes());
        assert_eq!(read("1 (a) 3 4"), None);
    }
}
