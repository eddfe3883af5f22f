//! When the request was taken that an append belongs to. Floor 3.
//!
//! It is the task's own, as the span of the request is: what lies between a request and its appends need not know of it.

use tokio::{task::futures::TaskLocalFuture, time::Instant};

tokio::task_local! {
    static TAKEN_AT: Instant;
}

/// The future as work on what was taken at an instant: the times of its appends begin then.
pub fn taken_at<F: Future>(instant: Instant, future: F) -> TaskLocalFuture<Instant, F> {
    TAKEN_AT.scope(instant, future)
}

/// When the request in work was taken; where nobody says so, now.
pub(super) fn of_request() -> Instant {
    TAKEN_AT
        .try_with(|instant| *instant)
        .unwrap_or_else(|_| Instant::now())
}
