//! Pages of the log of events over all partitions. Floor 2.

use futures_util::future::try_join_all;

use super::{
    EventScan, Store, StoreError,
    bounded::{PAGE_BYTES, Part, merge},
};
use crate::domain::{Event, EventFilter, Order, Partition, PartitionCount, Place, Position};

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
    /// order of the log; between partitions they are merged by time. A page of large events ends early.
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
        let (heads, parts) = if self.partitions == PartitionCount::ONE {
            self.scan_one_partition(filter, order, after, first).await?
        } else {
            self.scan_partitions(filter, order, after, first).await?
        };
        if let Some(after) = after
            && after
                .behind
                .iter()
                .zip(&heads)
                .any(|(place, head)| place > head)
        {
            return Ok(EventPageOutcome::NotReached(Place::behind(heads)));
        }
        let start = self.start(order, after, &heads);
        let key = |event: &Event| (event.created_at, event.partition, event.position);
        let page = merge(parts, order, first, key);
        Ok(EventPageOutcome::Page(self.with_places(
            page.rows,
            order,
            &start,
            heads,
            page.is_cut,
        )))
    }

    /// Where a page begins.
    fn start(&self, order: Order, after: Option<&Place>, heads: &[Position]) -> Place {
        match (order, after) {
            (_, Some(after)) => after.clone(),
            (Order::OldestFirst, None) => Place::start(self.partitions),
            (Order::NewestFirst, None) => Place::behind(heads.to_vec()),
        }
    }

    /// The head and the events of the only partition, in one statement.
    async fn scan_one_partition(
        &self,
        filter: &EventFilter,
        order: Order,
        after: Option<&Place>,
        first: usize,
    ) -> Result<(Vec<Position>, Vec<Part<Event>>), StoreError> {
        let partition = Partition(0);
        let (above, up_to) = match (order, after) {
            (Order::OldestFirst, after) => {
                let above = after.map_or(Position::START, |after| after.behind[0]);
                (above, Position::MAX)
            }
            (Order::NewestFirst, Some(after)) => (Position::START, after.last_before(partition)),
            (Order::NewestFirst, None) => (Position::START, Position::MAX),
        };
        let limit = first as u64 + 1;
        let max_bytes = None;
        let scan = EventScan {
            partition,
            above,
            up_to,
            filter,
            order,
            limit,
            max_bytes,
        };
        let (head, events) = self.scan_event_part_and_head(&scan, PAGE_BYTES).await?;
        Ok((vec![head], vec![events]))
    }

    /// The heads and the events of all partitions in which some that pass can lie.
    async fn scan_partitions(
        &self,
        filter: &EventFilter,
        order: Order,
        after: Option<&Place>,
        first: usize,
    ) -> Result<(Vec<Position>, Vec<Part<Event>>), StoreError> {
        // The heads come first: what becomes visible later lies above them, so the page has no hole below its end.
        let heads = self.heads().await?.events;
        let start = self.start(order, after, &heads);
        let partitions = self.partitions_of(filter);
        let max_bytes_of_each = PAGE_BYTES / partitions.len();
        let scans = partitions.iter().map(|&partition| {
            let (above, up_to) = match order {
                Order::OldestFirst => (start.behind[partition.index()], heads[partition.index()]),
                Order::NewestFirst => (Position::START, start.last_before(partition)),
            };
            let limit = first as u64 + 1;
            let max_bytes = None;
            let scan = EventScan {
                partition,
                above,
                up_to,
                filter,
                order,
                limit,
                max_bytes,
            };
            async move { self.scan_event_part(&scan, max_bytes_of_each).await }
        });
        let parts = try_join_all(scans).await?;
        Ok((heads, parts))
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
