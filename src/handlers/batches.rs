//! Handlers that take events in batches, one after another: log, publish, sql. Floor 4.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    place::{Fault, IDLE_EVERY, Place, Stored, stored_delivery},
    spans::BatchSpans,
};
use crate::{
    domain::{
        Delivery, DeliveryId, DeliveryStatus, DeliveryWrite, Event, ExpectedPosition, LastError,
        NewEntry, Position, SqlCall, SqlFunctionName, SqlRun, SqlTry, StreamName, append::Outcome,
    },
    handlers::delays::grown_delay,
    tail::PartitionFollower,
};

/// Events that are read at a time.
const BATCH_EVENTS: usize = 512;
/// Calls of a function in SQL in one transaction: each is a transaction inside, of which PostgreSQL keeps 64 at hand.
const MOST_CALLS: usize = 50;
/// How long calls of one transaction go on: others wait for their turn, and for the checkpoint.
const MOST_WORK: Duration = Duration::from_secs(1);
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
    /// Whether stored deliveries had their turn since it was last looked whether there are events.
    has_retried: bool,
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
            has_retried: false,
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
            let bytes = self.place.handlers.bytes_of_a_task();
            self.follower.read_pages_of(bytes);
            let shut = self.place.endpoint.shut_until();
            // What is due waits for one batch at most, however many events there are; and these for one batch of what is due.
            if shut.is_none() && self.place.is_due() && !self.has_retried {
                self.has_retried = true;
                if let Stored::Lost = self.retry().await? {
                    return Ok(());
                }
                continue;
            }
            self.has_retried = false;
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
                self.log(&wanted);
                self.looked = last;
                Ok(Stored::Yes)
            }
            BatchFunction::Publish(stream) => {
                let writes = wanted.iter().map(|event| self.place.new_delivery(event));
                let writes = writes.collect();
                self.looked = last;
                self.publish(&stream, &wanted, writes, last).await
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
        let stored = self.place.stored;
        let writes = || {
            due.iter()
                .map(|(delivery, event)| stored_delivery(delivery, event))
        };
        let events: Vec<Arc<Event>> = due.iter().map(|(_, event)| event.clone()).collect();
        match self.function.clone() {
            BatchFunction::Log => {
                self.log(&events);
                self.place
                    .save(stored, writes().collect(), Vec::new())
                    .await
            }
            BatchFunction::Publish(stream) => {
                self.publish(&stream, &events, writes().collect(), stored)
                    .await
            }
            BatchFunction::Sql(function) => {
                let tries: Vec<SqlTry> = due.iter().map(|(delivery, _)| again(delivery)).collect();
                self.call(&function, &events, &tries, (stored, stored))
                    .await
            }
        }
    }

    fn log(&self, events: &[Arc<Event>]) {
        let Place {
            handlers, handler, ..
        } = &self.place;
        let spans = handlers.begin_batch(events);
        for event in events {
            handlers.log(handler, event);
        }
        handlers.counts.delivered(events.len());
        handlers.end_batch(spans, handler, |_| Some(Ok(())));
    }

    /// Makes entries of events, and moves the checkpoint.
    async fn publish(
        &mut self,
        stream: &StreamName,
        events: &[Arc<Event>],
        writes: Vec<DeliveryWrite>,
        to: Position,
    ) -> Result<Stored, Fault> {
        let handlers = self.place.handlers.clone();
        let spans = handlers.begin_batch(events);
        let partition = handlers.store.partitions().of_stream(stream);
        let entries = events.iter().map(|event| entry_of(event, stream));
        let entries = entries
            .zip(writes)
            .map(|(entry, write)| (partition, entry, write));
        let saved = self
            .place
            .save_step(to, Vec::new(), entries.collect())
            .await?;
        let Some(saved) = saved else {
            return Ok(Stored::Lost);
        };
        let mut refused: HashSet<Position> = HashSet::new();
        for (event, outcome) in events.iter().zip(saved.entries) {
            if let Outcome::Refused(_) = outcome {
                refused.insert(event.position);
                handlers.counts.failed();
            }
        }
        handlers.counts.delivered(events.len() - refused.len());
        let told = |position| {
            let is_refused = refused.contains(&position);
            Some(if is_refused {
                Err(LastError::entry_refused().to_string())
            } else {
                Ok(())
            })
        };
        handlers.end_batch(spans, &self.place.handler, told);
        Ok(Stored::Yes)
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
            let steps = (self.place.stored, to);
            if let Stored::Lost = self.call(function, now, &tries, steps).await? {
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
        events: &[Arc<Event>],
        tries: &[SqlTry],
        (from, to): (Position, Position),
    ) -> Result<Stored, Fault> {
        let turn = self.place.endpoint.wait_for_turn().await;
        let handlers = self.place.handlers.clone();
        let _permit = handlers.sql_calls.acquire().await;
        let config = &handlers.config;
        let delays: Vec<Duration> = (1..config.attempts)
            .map(|attempt| grown_delay(config, attempt))
            .collect();
        let spans = handlers.begin_batch(events);
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
            most_work: MOST_WORK,
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
        for call in &ran.calls {
            match call {
                SqlCall::Done => self.place.report(&turn, true).await,
                SqlCall::Failed(_) => self.place.report(&turn, false).await,
                SqlCall::HeldBack => {}
            }
        }
        self.report_calls(events, tries, &ran.calls, spans);
        Ok(Stored::Yes)
    }

    /// Tells people what became of calls.
    fn report_calls(
        &self,
        events: &[Arc<Event>],
        tries: &[SqlTry],
        calls: &[SqlCall],
        spans: BatchSpans,
    ) {
        let place = &self.place;
        let mut outcomes: HashMap<Position, Result<(), String>> = HashMap::new();
        for ((event, call), attempt) in events.iter().zip(calls).zip(tries) {
            match call {
                SqlCall::HeldBack => {}
                SqlCall::Done => drop(outcomes.insert(event.position, Ok(()))),
                SqlCall::Failed(error) => {
                    outcomes.insert(event.position, Err(error.to_string()));
                    let attempts = attempt.attempts + 1;
                    if place.is_last(attempts) {
                        place.report_dead(&DeliveryWrite {
                            attempts,
                            last_error: Some(error.clone()),
                            ..place.new_delivery(event)
                        });
                    }
                }
            }
        }
        let told = |position| outcomes.get(&position).cloned();
        place.handlers.end_batch(spans, &place.handler, told);
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
