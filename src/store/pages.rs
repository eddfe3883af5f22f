//! Pages of the log of events over all partitions. Floor 2.

use futures_util::future::try_join_all;

use super::{EventScan, Store, StoreError};
use crate::domain::{Event, EventFilter, Order, Partition, Place, Position};

/// A page of events, each with its place.
#[derive(Debug)]
pub struct EventPage {
    /// The events in the order asked for.
    pub events: Vec<(Place, Event)>,
    /// The place that was looked through to.
    pub end: Place,
    /// Whether there is more behind it.
    pub has_next: bool,
}

/// A page, or why there is none.
#[derive(Debug)]
pub enum EventPageOutcome {
    /// The page.
    Page(EventPage),
    /// The place lies above the newest one, which is this.
    NotReached(Place),
}

impl Store {
    /// Reads a page behind a place, or from the end where the order begins. Within a partition the events are in the
    /// order of the log; between partitions they are merged by time.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events_page(
        &self,
        filter: &EventFilter,
        order: Order,
        after: Option<&Place>,
        first: usize,
    ) -> Result<EventPageOutcome, StoreError> {
        // The heads come first: what becomes visible later lies above them, so the page has no hole below its end.
        let heads = self.heads().await?.events;
        if let Some(after) = after
            && after
                .behind
                .iter()
                .zip(&heads)
                .any(|(place, head)| place > head)
        {
            return Ok(EventPageOutcome::NotReached(Place::behind(heads)));
        }
        let start = match (order, after) {
            (_, Some(after)) => after.clone(),
            (Order::OldestFirst, None) => Place::start(self.partitions),
            (Order::NewestFirst, None) => Place::behind(heads.clone()),
        };
        let limit = first + 1;
        let scans = self.partitions_of(filter).into_iter().map(|partition| {
            let (above, up_to) = match order {
                Order::OldestFirst => (start.behind[partition.index()], heads[partition.index()]),
                Order::NewestFirst => (Position::START, start.last_before(partition)),
            };
            let scan = EventScan {
                partition,
                above,
                up_to,
                filter,
                order,
                limit: limit as u64,
                max_bytes: None,
            };
            async move { self.scan_events(&scan).await }
        });
        let mut events: Vec<Event> = try_join_all(scans).await?.into_iter().flatten().collect();
        let key = |event: &Event| (event.created_at, event.partition, event.position);
        match order {
            Order::OldestFirst => events.sort_by_key(key),
            Order::NewestFirst => events.sort_by_key(|event| std::cmp::Reverse(key(event))),
        }
        let has_next = events.len() > first;
        events.truncate(first);
        Ok(EventPageOutcome::Page(
            self.with_places(events, order, &start, heads, has_next),
        ))
    }

    fn with_places(
        &self,
        events: Vec<Event>,
        order: Order,
        start: &Place,
        heads: Vec<Position>,
        has_next: bool,
    ) -> EventPage {
        let mut behind: Vec<Position> = match order {
            Order::OldestFirst => start.behind.clone(),
            Order::NewestFirst => self
                .partitions
                .iter()
                .map(|partition| start.last_before(partition))
                .collect(),
        };
        let mut placed = Vec::with_capacity(events.len());
        for event in events {
            behind[event.partition.index()] = event.position;
            let place = Place {
                behind: behind.clone(),
                event_in: Some(event.partition),
            };
            if order == Order::NewestFirst {
                behind[event.partition.index()] = Position(event.position.0 - 1);
            }
            placed.push((place, event));
        }
        let end = match (placed.last(), order) {
            (Some((place, _)), _) if has_next => place.clone(),
            (_, Order::OldestFirst) => Place::behind(heads),
            (_, Order::NewestFirst) => Place::start(self.partitions),
        };
        EventPage {
            events: placed,
            end,
            has_next,
        }
    }

    /// The partitions in which events that pass can lie.
    fn partitions_of(&self, filter: &EventFilter) -> Vec<Partition> {
        match filter.aggregate_id {
            Some(id) => vec![self.partitions.of_aggregate(id)],
            None => self.partitions.iter().collect(),
        }
    }
}
