//! Handlers that take events in batches, one after another: log, publish, sql. Floor 4.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::place::{Fault, IDLE_EVERY, Place, Stored, stored_delivery};
use crate::{
    domain::{
        Delivery, DeliveryId, DeliveryStatus, Event, ExpectedPosition, NewEntry, Position,
        SqlFunctionName, SqlRun, SqlTry, StreamName,
    },
    handlers::delays::retry_delay,
    tail::PartitionFollower,
};

/// Events that are read at a time.
const BATCH_EVENTS: usize = 512;
/// Calls of a function in SQL in one transaction: each is a transaction inside, of which PostgreSQL keeps 64 at hand.
const MOST_CALLS: usize = 50;
/// Stored deliveries that are taken at a time.
const MOST_DUE: usize = 50;

/// What a handler does with a batch.
#[derive(Clone)]
pub(super) enum BatchFunction {
    Log,
    Publish(StreamName),
    Sql(SqlFunctionName),
}

pub(super) struct Batches {
    pub(super) place: Place,
    pub(super) function: BatchFunction,
    pub(super) follower: PartitionFollower,
    /// Changes when the stored deliveries have changed.
    pub(super) revised: watch::Receiver<i64>,
    /// Up to where the log was looked at.
    looked: Position,
}

impl Batches {
    pub(super) fn new(
        place: Place,
        function: BatchFunction,
        follower: PartitionFollower,
        revised: watch::Receiver<i64>,
    ) -> Self {
        Self {
            looked: place.stored,
            place,
            function,
            follower,
            revised,
        }
    }

    /// Goes on until the checkpoint is lost.
    pub(super) async fn run(&mut self) -> Result<(), Fault> {
        let mut changed = self.place.endpoint.watch();
        loop {
            let shut = self.place.endpoint.shut_until();
            let idle_until = self.place.stored_at + IDLE_EVERY;
            let due_at = self.place.next_due.unwrap_or(idle_until);
            let stored = tokio::select! {
                events = self.follower.next(BATCH_EVENTS), if shut.is_none() => self.take(events?).await?,
                () = sleep_until(due_at), if shut.is_none() && self.place.next_due.is_some() => self.retry().await?,
                () = sleep_until(idle_until), if self.looked > self.place.stored => {
                    self.place.save(self.looked, Vec::new(), Vec::new()).await?
                }
                () = sleep_until(shut.unwrap_or(idle_until)), if shut.is_some() => Stored::Yes,
                _ = changed.changed() => Stored::Yes,
                revised = self.revised.changed() => {
                    if revised.is_err() {
                        return Ok(());
                    }
                    self.place.next_due = Some(Instant::now());
                    Stored::Yes
                }
            };
            if matches!(stored, Stored::Lost) {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, events: Vec<Arc<Event>>) -> Result<Stored, Fault> {
        let Some(last) = events.last().map(|event| event.position) else {
            return Ok(Stored::Yes);
        };
        let wanted: Vec<Arc<Event>> = events
            .into_iter()
            .filter(|event| self.place.handler.wants(event))
            .collect();
        if wanted.is_empty() {
            self.looked = last;
            return Ok(Stored::Yes);
        }
        match self.function.clone() {
            BatchFunction::Log => {
                for event in &wanted {
                    self.place.handlers.log(&self.place.handler, event);
                }
                self.place.handlers.counts.delivered(wanted.len());
                self.looked = last;
                Ok(Stored::Yes)
            }
            BatchFunction::Publish(stream) => {
                let partition = self.place.handlers.store.partitions().of_stream(&stream);
                let entries = wanted.iter().map(|event| {
                    let delivery = self.place.new_delivery(event);
                    (partition, entry_of(event, &stream), delivery)
                });
                let entries = entries.collect();
                self.looked = last;
                let stored = self.place.save(last, Vec::new(), entries).await?;
                self.count_delivered(&stored, wanted.len());
                Ok(stored)
            }
            BatchFunction::Sql(function) => self.call_new(&function, &wanted, last).await,
        }
    }

    /// Tries stored deliveries that are due.
    async fn retry(&mut self) -> Result<Stored, Fault> {
        let due = self.place.fetch_due(&HashSet::new(), MOST_DUE).await?;
        if due.is_empty() {
            return Ok(Stored::Yes);
        }
        match self.function.clone() {
            BatchFunction::Log => {
                for (_, event) in &due {
                    self.place.handlers.log(&self.place.handler, event);
                }
                let done = due.iter().map(|(delivery, _)| stored_delivery(delivery));
                let stored = self
                    .place
                    .save(self.place.stored, done.collect(), Vec::new())
                    .await?;
                self.count_delivered(&stored, due.len());
                Ok(stored)
            }
            BatchFunction::Publish(stream) => {
                let partition = self.place.handlers.store.partitions().of_stream(&stream);
                let entries = due.iter().map(|(delivery, event)| {
                    let entry = entry_of(event, &stream);
                    (partition, entry, stored_delivery(delivery))
                });
                let entries = entries.collect();
                let stored = self
                    .place
                    .save(self.place.stored, Vec::new(), entries)
                    .await?;
                self.count_delivered(&stored, due.len());
                Ok(stored)
            }
            BatchFunction::Sql(function) => {
                let tries: Vec<SqlTry> = due.iter().map(|(delivery, _)| again(delivery)).collect();
                let stored = self.place.stored;
                self.call(&function, &tries, stored, stored).await
            }
        }
    }

    async fn call_new(
        &mut self,
        function: &SqlFunctionName,
        wanted: &[Arc<Event>],
        last: Position,
    ) -> Result<Stored, Fault> {
        let mut rest = wanted;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(MOST_CALLS));
            let tries: Vec<SqlTry> = now.iter().map(|event| self.first(event)).collect();
            let to = match (later.is_empty(), now.last()) {
                (false, Some(newest)) => newest.position,
                _ => last,
            };
            if let Stored::Lost = self.call(function, &tries, self.place.stored, to).await? {
                return Ok(Stored::Lost);
            }
            self.looked = self.place.stored;
            if self.place.stored < to {
                // Not all were tried: what is left is read again when it is its turn.
                self.follower.go_on_behind(self.place.stored);
                break;
            }
            rest = later;
            if self.place.endpoint.shut_until().is_some() {
                self.follower.go_on_behind(self.place.stored);
                break;
            }
        }
        Ok(Stored::Yes)
    }

    fn count_delivered(&self, stored: &Stored, count: usize) {
        if matches!(stored, Stored::Yes) {
            self.place.handlers.counts.delivered(count);
        }
    }

    fn first(&self, event: &Event) -> SqlTry {
        SqlTry {
            id: DeliveryId(self.place.handlers.clock.new_id()),
            is_new: true,
            position: event.position,
            attempts: 0,
        }
    }

    async fn call(
        &mut self,
        function: &SqlFunctionName,
        tries: &[SqlTry],
        from: Position,
        to: Position,
    ) -> Result<Stored, Fault> {
        let turn = self.place.endpoint.wait_for_turn().await;
        let handlers = self.place.handlers.clone();
        let _permit = handlers.sql_calls.acquire().await;
        let config = &handlers.config;
        let delays: Vec<Duration> = (1..config.attempts)
            .map(|attempt| retry_delay(config, attempt, handlers.clock.new_id()))
            .collect();
        let run = SqlRun {
            handler_id: self.place.handler.id,
            function,
            from,
            to,
            token: self.place.token,
            tries,
            delays: &delays,
            most_failures: self.place.endpoint.failures_left(),
            time_out: config.time_out,
        };
        let ran = handlers
            .store
            .run_sql_handler(self.place.partition, &run)
            .await?;
        let Some(ran) = ran else {
            return Ok(Stored::Lost);
        };
        self.place.has_stored(ran.reached);
        self.place.is_due_in(ran.next_due);
        for (call, tried) in ran.calls.iter().zip(tries) {
            self.place.report(&turn, call.is_none()).await;
            let attempts = u32::try_from(tried.attempts + 1).unwrap_or(u32::MAX);
            if call.is_some() && attempts >= config.attempts {
                handlers.counts.dead();
            }
        }
        Ok(Stored::Yes)
    }
}

/// The entry that shows an event in a stream.
pub(super) fn entry_of(event: &Event, stream: &StreamName) -> NewEntry {
    NewEntry {
        stream_name: stream.clone(),
        event_id: event.id,
        event_type: event.event_type.clone(),
        data: event.data.clone(),
        expected_position: ExpectedPosition::Any,
    }
}

fn again(delivery: &Delivery) -> SqlTry {
    debug_assert_eq!(delivery.status, DeliveryStatus::Retrying);
    SqlTry {
        id: delivery.id,
        is_new: false,
        position: delivery.position,
        attempts: delivery.attempts,
    }
}
