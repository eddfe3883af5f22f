//! What clients ask for, by kind of operation and code. Floor 3.
//!
//! The counters lie in a table, so that counting looks nothing up by its labels.

use std::{sync::OnceLock, time::Duration};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};

use super::{SECONDS, add};

/// What a request runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A query.
    Query,
    /// A mutation.
    Mutation,
    /// A subscription.
    Subscription,
    /// Nothing: it was refused before it was known what it was.
    Unknown,
}

impl Operation {
    const ALL: [Self; 4] = [
        Self::Query,
        Self::Mutation,
        Self::Subscription,
        Self::Unknown,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Mutation => "mutation",
            Self::Subscription => "subscription",
            Self::Unknown => "unknown",
        }
    }
}

/// What a request came to where there was no error.
pub const OK: &str = "OK";

/// The codes of errors, the frequent ones first. The last one is for a code that is none of them: no client can make a new one.
const CODES: [&str; 16] = [
    OK,
    "BAD_USER_INPUT",
    "NOT_FOUND",
    "VERSION_CONFLICT",
    "ID_REUSED",
    "PLACE_NOT_REACHED",
    "AGGREGATE_TYPE_MISMATCH",
    "UNKNOWN_COMMAND_TYPE",
    "READ_MODEL_BEHIND",
    "READ_MODEL_FAULTED",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "RATE_LIMITED",
    "INTERNAL",
    "OTHER",
];

/// What is counted of requests.
pub(super) struct Requests {
    by_labels: IntCounterVec,
    /// By operation and code. Each is there from its first use on: what has never happened takes no line.
    counters: [[OnceLock<IntCounter>; CODES.len()]; Operation::ALL.len()],
    query_seconds: Histogram,
    mutation_seconds: Histogram,
}

impl Requests {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let by_labels = add(
            registry,
            IntCounterVec::new(
                Opts::new(
                    "tidings_requests_total",
                    "Operations that were answered, and subscriptions that have ended, by what they came to.",
                ),
                &["operation", "code"],
            )?,
        )?;
        let seconds = add(
            registry,
            HistogramVec::new(
                HistogramOpts::new(
                    "tidings_request_duration_seconds",
                    "How long queries and mutations took, from their parsed document to the answer.",
                )
                .buckets(SECONDS.to_vec()),
                &["operation"],
            )?,
        )?;
        let seconds = |operation: Operation| seconds.with_label_values(&[operation.as_str()]);
        let requests = Self {
            by_labels,
            counters: Default::default(),
            query_seconds: seconds(Operation::Query),
            mutation_seconds: seconds(Operation::Mutation),
        };
        for operation in Operation::ALL {
            // What is there from the first on can be told from what is lost.
            requests.counter(operation, OK);
        }
        Ok(requests)
    }

    /// Counts one.
    pub(super) fn count(&self, operation: Operation, code: &str, took: Option<Duration>) {
        self.counter(operation, code).inc();
        let seconds = match operation {
            Operation::Query => &self.query_seconds,
            Operation::Mutation => &self.mutation_seconds,
            Operation::Subscription | Operation::Unknown => return,
        };
        if let Some(took) = took {
            seconds.observe(took.as_secs_f64());
        }
    }

    fn counter(&self, operation: Operation, code: &str) -> &IntCounter {
        let known = CODES.iter().position(|known| *known == code);
        let no = known.unwrap_or(CODES.len() - 1);
        self.counters[operation as usize][no].get_or_init(|| {
            let labels = [operation.as_str(), CODES[no]];
            self.by_labels.with_label_values(&labels)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_and_code_is_counted_by_itself_and_an_unknown_code_as_another() {
        let requests = Requests::register(&Registry::new()).expect("the names are right");
        for operation in Operation::ALL {
            for code in CODES {
                requests.count(operation, code, None);
            }
            requests.count(operation, "MADE_UP", None);
        }
        for operation in Operation::ALL {
            for code in CODES {
                let labels = [operation.as_str(), code];
                let counted = requests.by_labels.with_label_values(&labels).get();
                assert_eq!(counted, 1 + u64::from(code == "OTHER"), "{labels:?}");
            }
        }
    }
}
