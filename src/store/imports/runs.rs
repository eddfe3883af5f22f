//! What a batch makes of aggregates and streams: how far it carries each of them. Floor 2.

use crate::domain::{AggregateId, Entry, Event, Partition, Timestamp};

/// What the events of a batch make of one aggregate, or its entries of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Run<K, N> {
    pub(in crate::store) key: K,
    pub(in crate::store) first: N,
    pub(in crate::store) last: N,
    pub(in crate::store) began_at: Timestamp,
    pub(in crate::store) ended_at: Timestamp,
}

/// The runs of a batch in the order in which they begin; none where one of them has a gap or changes its type.
pub(in crate::store) fn event_runs(events: &[Event]) -> Option<Vec<Run<(AggregateId, &str), i32>>> {
    let rows = events.iter().map(|event| {
        let key = (event.aggregate_id, event.aggregate_type.as_str());
        (event.aggregate_id, key, event.version.0, event.created_at)
    });
    runs(rows, |last| last + 1)
}

/// The same of entries.
pub(in crate::store) fn entry_runs(
    entries: &[(Entry, Option<Partition>)],
) -> Option<Vec<Run<&str, i64>>> {
    let rows = entries.iter().map(|(entry, _)| {
        let name = entry.stream_name.as_str();
        (name, name, entry.position.0, entry.created_at)
    });
    runs(rows, |last| last + 1)
}

fn runs<I: Eq + std::hash::Hash, K: Eq, N: Copy + Eq>(
    rows: impl Iterator<Item = (I, K, N, Timestamp)>,
    next: impl Fn(N) -> N,
) -> Option<Vec<Run<K, N>>> {
    let mut places = std::collections::HashMap::new();
    let mut runs: Vec<Run<K, N>> = Vec::new();
    for (id, key, number, at) in rows {
        let place = *places.entry(id).or_insert(runs.len());
        match runs.get_mut(place) {
            Some(run) if run.key == key && number == next(run.last) => {
                run.last = number;
                run.ended_at = at;
            }
            Some(_) => return None,
            None => runs.push(Run {
                key,
                first: number,
                last: number,
                began_at: at,
                ended_at: at,
            }),
        }
    }
    Some(runs)
}
