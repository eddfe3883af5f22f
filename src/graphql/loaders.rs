//! What is looked up inside lists. Floor 6.

use std::{collections::HashMap, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    batching::{Batch, Batches, LookUp},
    errors::ApiError,
};
use crate::{
    app::App,
    domain::{
        Aggregate, AggregateId, Command, Delivery, DeliveryId, DeliveryStatus, Domain, Entry,
        Event, EventId, HandlerId, Partition, Position, ReadModel,
    },
    states::{self, FoldBudget, Folded, StateAt},
    store::{CommandPlace, EntryRange, EventRange, Store},
};

/// How large what one look-up finds may be. Its lists have no place to say that there is more.
const LOOKED_UP_BYTES: usize = 64 << 20;

fn too_large(field: &str) -> ApiError {
    let most_mib = LOOKED_UP_BYTES >> 20;
    let message = format!("would be larger than {most_mib} MiB in this answer: ask for fewer");
    ApiError::bad_input(field, message)
}

/// The look-ups of one operation.
pub(super) struct Loaders {
    store: Store,
    pub(super) aggregates: Batch<AggregateById>,
    pub(super) events: Batch<EventById>,
    pub(super) event_ranges: Batch<EventsInRange>,
    pub(super) commands: Batch<CommandsOfAggregate>,
    pub(super) entry_ranges: Batch<EntriesInRange>,
    pub(super) read_models: Batch<ReadModelOf>,
    pub(super) events_at: Batch<EventAt>,
    pub(super) deliveries: Batch<DeliveriesOfHandler>,
    pub(super) handler_lags: Batch<LagOfHandler>,
    folding: Folding,
    pub(super) states: Batch<StateOf, Folding>,
}

impl Loaders {
    pub(super) fn new(app: &App, max_folded_events: usize) -> Arc<Self> {
        let store = app.store().clone();
        Arc::new(Self {
            folding: Folding {
                store: store.clone(),
                domain: app.domain().clone(),
                budget: Arc::new(FoldBudget::new(max_folded_events)),
            },
            store,
            aggregates: Batch::default(),
            events: Batch::default(),
            event_ranges: Batch::default(),
            commands: Batch::default(),
            entry_ranges: Batch::default(),
            read_models: Batch::default(),
            events_at: Batch::default(),
            deliveries: Batch::default(),
            handler_lags: Batch::default(),
            states: Batch::default(),
        })
    }

    /// Says that an answer is done: the next one of a subscription may fold as much again.
    pub(super) fn begin_next_answer(&self) {
        self.folding.budget.renew();
    }
}

impl Batches for Arc<Loaders> {
    fn take_all(&self) -> Vec<BoxFuture<'static, ()>> {
        let store = &self.store;
        let asked = [
            self.aggregates.take(store),
            self.events.take(store),
            self.event_ranges.take(store),
            self.commands.take(store),
            self.entry_ranges.take(store),
            self.read_models.take(store),
            self.events_at.take(store),
            self.deliveries.take(store),
            self.handler_lags.take(store),
            self.states.take(&self.folding),
        ];
        asked.into_iter().flatten().collect()
    }
}

/// Aggregates by their ids.
pub(super) struct AggregateById;

impl LookUp for AggregateById {
    type Key = AggregateId;
    type Value = Aggregate;

    async fn find(
        store: &Store,
        ids: Vec<AggregateId>,
    ) -> Result<HashMap<AggregateId, Aggregate>, ApiError> {
        Ok(store.aggregates_by_id(&ids).await?)
    }
}

/// Events by their ids.
pub(super) struct EventById;

impl LookUp for EventById {
    type Key = EventId;
    type Value = Arc<Event>;

    async fn find(
        store: &Store,
        ids: Vec<EventId>,
    ) -> Result<HashMap<EventId, Arc<Event>>, ApiError> {
        let events = store.events_by_id_up_to(&ids, LOOKED_UP_BYTES).await?;
        Ok(events
            .ok_or_else(|| too_large("event"))?
            .into_iter()
            .map(|(id, event)| (id, Arc::new(event)))
            .collect())
    }
}

/// Events by their places in the log.
pub(super) struct EventAt;

impl LookUp for EventAt {
    type Key = (Partition, Position);
    type Value = Arc<Event>;

    async fn find(
        store: &Store,
        places: Vec<(Partition, Position)>,
    ) -> Result<HashMap<(Partition, Position), Arc<Event>>, ApiError> {
        let events = store.events_at(&places, LOOKED_UP_BYTES).await?;
        let events = events.ok_or_else(|| too_large("event"))?;
        Ok(events
            .into_iter()
            .map(|(place, event)| (place, Arc::new(event)))
            .collect())
    }
}

/// The first deliveries of one handler that are not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DeliveriesAsked {
    /// The handler.
    pub(super) handler_id: HandlerId,
    /// Only those that are so far.
    pub(super) status: Option<DeliveryStatus>,
    /// Behind this one.
    pub(super) after: Option<DeliveryId>,
    /// How many at most.
    pub(super) first: usize,
}

/// The first deliveries of handlers, in the order of their ids: a statement for each way in which they are asked for.
pub(super) struct DeliveriesOfHandler;

impl LookUp for DeliveriesOfHandler {
    type Key = DeliveriesAsked;
    type Value = Vec<Delivery>;

    async fn find(
        store: &Store,
        asked: Vec<DeliveriesAsked>,
    ) -> Result<HashMap<DeliveriesAsked, Self::Value>, ApiError> {
        let mut ways: HashMap<_, Vec<HandlerId>> = HashMap::new();
        for asked in asked {
            ways.entry((asked.status, asked.after, asked.first))
                .or_default()
                .push(asked.handler_id);
        }
        let mut found = HashMap::new();
        for ((status, after, first), ids) in ways {
            let deliveries = store
                .deliveries_of_handlers(&ids, status, after, first, LOOKED_UP_BYTES)
                .await?;
            let deliveries = deliveries.ok_or_else(|| too_large("deliveries"))?;
            found.extend(deliveries.into_iter().map(|(handler_id, deliveries)| {
                let asked = DeliveriesAsked {
                    handler_id,
                    status,
                    after,
                    first,
                };
                (asked, deliveries)
            }));
        }
        Ok(found)
    }
}

/// How many events handlers have still to look at.
pub(super) struct LagOfHandler;

impl LookUp for LagOfHandler {
    type Key = HandlerId;
    type Value = u64;

    async fn find(store: &Store, ids: Vec<HandlerId>) -> Result<HashMap<HandlerId, u64>, ApiError> {
        Ok(store.handler_lags(&ids).await?)
    }
}

/// Ranges of events, each of one aggregate, in the order of their versions.
pub(super) struct EventsInRange;

impl LookUp for EventsInRange {
    type Key = EventRange;
    type Value = Vec<Arc<Event>>;

    async fn find(
        store: &Store,
        ranges: Vec<EventRange>,
    ) -> Result<HashMap<EventRange, Self::Value>, ApiError> {
        let mut of_aggregates: HashMap<AggregateId, Vec<Arc<Event>>> = HashMap::new();
        let events = store.events_in_ranges(&ranges, LOOKED_UP_BYTES).await?;
        for event in events.ok_or_else(|| too_large("events"))? {
            of_aggregates
                .entry(event.aggregate_id)
                .or_default()
                .push(Arc::new(event));
        }
        let mut found = HashMap::with_capacity(ranges.len());
        for range in ranges {
            let events = of_aggregates.get(&range.aggregate_id).map(Vec::as_slice);
            let inside = |event: &&Arc<Event>| (range.first..=range.last).contains(&event.version);
            let mut events: Vec<_> = events
                .unwrap_or_default()
                .iter()
                .filter(inside)
                .cloned()
                .collect();
            events.sort_by_key(|event| event.version);
            // Ranges of one aggregate may overlap, and each of them has read the overlap.
            events.dedup_by_key(|event| event.version);
            found.insert(range, events);
        }
        Ok(found)
    }
}

/// Read models by their aggregates, tombstones too.
pub(super) struct ReadModelOf;

impl LookUp for ReadModelOf {
    type Key = AggregateId;
    type Value = Arc<ReadModel>;

    async fn find(
        store: &Store,
        ids: Vec<AggregateId>,
    ) -> Result<HashMap<AggregateId, Arc<ReadModel>>, ApiError> {
        let models = store.read_models_by_id(&ids, LOOKED_UP_BYTES).await?;
        Ok(models
            .ok_or_else(|| too_large("readModel"))?
            .into_iter()
            .map(|(id, model)| (id, Arc::new(model)))
            .collect())
    }
}

/// What states are folded with.
#[derive(Clone)]
pub(super) struct Folding {
    store: Store,
    domain: Arc<Domain>,
    budget: Arc<FoldBudget>,
}

/// States of aggregates.
pub(super) struct StateOf;

impl LookUp<Folding> for StateOf {
    type Key = StateAt;
    type Value = Folded;

    async fn find(
        folding: &Folding,
        wanted: Vec<StateAt>,
    ) -> Result<HashMap<StateAt, Folded>, ApiError> {
        let Folding {
            store,
            domain,
            budget,
        } = folding;
        Ok(states::fold(store, domain, budget, wanted).await?)
    }
}

/// The first commands of one aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CommandsAsked {
    /// The aggregate.
    pub(super) aggregate_id: AggregateId,
    /// Behind this place.
    pub(super) after: Option<CommandPlace>,
    /// How many at most.
    pub(super) first: usize,
}

/// The first commands of aggregates, in the order of their creation. Those of one field are asked for in the same way, so a
/// statement for each way is a statement for each field of the document.
pub(super) struct CommandsOfAggregate;

impl LookUp for CommandsOfAggregate {
    type Key = CommandsAsked;
    type Value = Vec<Command>;

    async fn find(
        store: &Store,
        asked: Vec<CommandsAsked>,
    ) -> Result<HashMap<CommandsAsked, Self::Value>, ApiError> {
        let mut ways: HashMap<_, Vec<AggregateId>> = HashMap::new();
        for asked in asked {
            ways.entry((asked.after, asked.first))
                .or_default()
                .push(asked.aggregate_id);
        }
        let mut found = HashMap::new();
        for ((after, first), ids) in ways {
            let commands = store
                .commands_of_aggregates(&ids, after, first, LOOKED_UP_BYTES)
                .await?;
            let commands = commands.ok_or_else(|| too_large("commands"))?;
            found.extend(commands.into_iter().map(|(aggregate_id, mut commands)| {
                commands.truncate(first);
                let asked = CommandsAsked {
                    aggregate_id,
                    after,
                    first,
                };
                (asked, commands)
            }));
        }
        Ok(found)
    }
}

/// Ranges of entries, each of one stream, in the order of their positions.
pub(super) struct EntriesInRange;

impl LookUp for EntriesInRange {
    type Key = EntryRange;
    type Value = Vec<Arc<Entry>>;

    async fn find(
        store: &Store,
        ranges: Vec<EntryRange>,
    ) -> Result<HashMap<EntryRange, Self::Value>, ApiError> {
        let mut of_streams: HashMap<_, Vec<Arc<Entry>>> = HashMap::new();
        let entries = store.entries_in_ranges(&ranges, LOOKED_UP_BYTES).await?;
        for entry in entries.ok_or_else(|| too_large("entries"))? {
            of_streams
                .entry(entry.stream_name.clone())
                .or_default()
                .push(Arc::new(entry));
        }
        let mut found = HashMap::with_capacity(ranges.len());
        for range in ranges {
            let entries = of_streams.get(&range.stream_name).map(Vec::as_slice);
            let inside = |entry: &&Arc<Entry>| (range.first..=range.last).contains(&entry.position);
            let mut entries: Vec<_> = entries
                .unwrap_or_default()
                .iter()
                .filter(inside)
                .cloned()
                .collect();
            entries.sort_by_key(|entry| entry.position);
            entries.dedup_by_key(|entry| entry.position);
            found.insert(range, entries);
        }
        Ok(found)
    }
}
