//! Look-ups inside lists, batched into one statement each. Floor 6.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_graphql::dataloader::{DataLoader, Loader};

use super::errors::ApiError;
use crate::{
    domain::{Aggregate, AggregateId, Entry, Event, EventId},
    store::{EntryRange, EventRange, Store},
};

/// The most keys in one statement: SQLite takes 32,766 parameters, four for each range.
const MAX_KEYS: usize = 5000;

/// Everything that is looked up inside lists.
pub(super) struct Loaders {
    pub(super) aggregates: DataLoader<AggregateLoader>,
    pub(super) events: DataLoader<EventLoader>,
    pub(super) event_ranges: DataLoader<EventRangeLoader>,
    pub(super) entry_ranges: DataLoader<EntryRangeLoader>,
}

impl Loaders {
    pub(super) fn new(store: &Store) -> Self {
        Self {
            aggregates: loader(AggregateLoader(store.clone())),
            events: loader(EventLoader(store.clone())),
            event_ranges: loader(EventRangeLoader(store.clone())),
            entry_ranges: loader(EntryRangeLoader(store.clone())),
        }
    }
}

fn loader<T>(loader: T) -> DataLoader<T> {
    DataLoader::new(loader, tokio::spawn)
        .delay(Duration::ZERO)
        .max_batch_size(MAX_KEYS)
}

/// Aggregates by their ids.
pub(super) struct AggregateLoader(Store);

impl Loader<AggregateId> for AggregateLoader {
    type Value = Aggregate;
    type Error = ApiError;

    async fn load(&self, ids: &[AggregateId]) -> Result<HashMap<AggregateId, Aggregate>, ApiError> {
        Ok(self.0.aggregates_by_id(ids).await?)
    }
}

/// Events by their ids.
pub(super) struct EventLoader(Store);

impl Loader<EventId> for EventLoader {
    type Value = Arc<Event>;
    type Error = ApiError;

    async fn load(&self, ids: &[EventId]) -> Result<HashMap<EventId, Arc<Event>>, ApiError> {
        let events = self.0.events_by_id(ids).await?;
        Ok(events
            .into_iter()
            .map(|(id, event)| (id, Arc::new(event)))
            .collect())
    }
}

/// Ranges of events, each of one aggregate, in the order of their versions.
pub(super) struct EventRangeLoader(Store);

impl Loader<EventRange> for EventRangeLoader {
    type Value = Vec<Arc<Event>>;
    type Error = ApiError;

    async fn load(
        &self,
        ranges: &[EventRange],
    ) -> Result<HashMap<EventRange, Self::Value>, ApiError> {
        let mut of_aggregates: HashMap<AggregateId, Vec<Arc<Event>>> = HashMap::new();
        for event in self.0.events_in_ranges(ranges).await? {
            of_aggregates
                .entry(event.aggregate_id)
                .or_default()
                .push(Arc::new(event));
        }
        let mut loaded = HashMap::with_capacity(ranges.len());
        for range in ranges {
            let events = of_aggregates
                .get(&range.aggregate_id)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let inside = |event: &&Arc<Event>| (range.first..=range.last).contains(&event.version);
            let mut events: Vec<_> = events.iter().filter(inside).cloned().collect();
            events.sort_by_key(|event| event.version);
            // Ranges of one aggregate may overlap, and each of them has read the overlap.
            events.dedup_by_key(|event| event.version);
            loaded.insert(*range, events);
        }
        Ok(loaded)
    }
}

/// Ranges of entries, each of one stream, in the order of their positions.
pub(super) struct EntryRangeLoader(Store);

impl Loader<EntryRange> for EntryRangeLoader {
    type Value = Vec<Arc<Entry>>;
    type Error = ApiError;

    async fn load(
        &self,
        ranges: &[EntryRange],
    ) -> Result<HashMap<EntryRange, Self::Value>, ApiError> {
        let mut of_streams: HashMap<_, Vec<Arc<Entry>>> = HashMap::new();
        for entry in self.0.entries_in_ranges(ranges).await? {
            of_streams
                .entry(entry.stream_name.clone())
                .or_default()
                .push(Arc::new(entry));
        }
        let mut loaded = HashMap::with_capacity(ranges.len());
        for range in ranges {
            let entries = of_streams
                .get(&range.stream_name)
                .map(Vec::as_slice)
                .unwrap_or_default();
            let inside = |entry: &&Arc<Entry>| (range.first..=range.last).contains(&entry.position);
            let mut entries: Vec<_> = entries.iter().filter(inside).cloned().collect();
            entries.sort_by_key(|entry| entry.position);
            entries.dedup_by_key(|entry| entry.position);
            loaded.insert(range.clone(), entries);
        }
        Ok(loaded)
    }
}
