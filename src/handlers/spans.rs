//! The spans of what handlers do with several events at once. Floor 4.

use std::sync::Arc;

use super::Handlers;
use crate::{
    domain::{Event, EventHandler, Position, Timestamp},
    traces::TracedEvent,
};

/// A batch that is being worked on: those of its events that a trace goes through, and since when. None where there are none.
pub(super) struct BatchSpans(Option<(Vec<TracedEvent>, Timestamp)>);

impl Handlers {
    /// Begins with a batch.
    pub(super) fn begin_batch(&self, events: &[Arc<Event>]) -> BatchSpans {
        BatchSpans(self.traces.traced(events))
    }

    /// Ends with it: a span in the trace of each event. `outcome` says what became of the one at a place; none where the handler
    /// did nothing with it.
    pub(super) fn end_batch(
        &self,
        spans: BatchSpans,
        handler: &EventHandler,
        outcome: impl Fn(Position) -> Option<Result<(), String>>,
    ) {
        if let BatchSpans(Some((mut traced, from))) = spans {
            traced.retain(|event| outcome(event.position()).is_some());
            let fault = |position| outcome(position)?.err();
            self.traces
                .record_handled(&handler.name, &traced, from, fault);
        }
    }
}
