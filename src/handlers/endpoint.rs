//! How the place is that a handler calls: it fails, and after five times in a row its handler pauses and probes. Floor 4.
//!
//! What is known is shared by the handler's dispatchers on one server, and so is how many calls may run.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};

/// After so many failures in a row a handler pauses.
pub(super) const MOST_FAILURES: u32 = 5;
/// The longest pause between two probes.
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// The place that one handler calls.
pub(super) struct Endpoint {
    state: Mutex<State>,
    permits: Arc<Semaphore>,
    /// Changes whenever a call may begin that could not before.
    changed: watch::Sender<()>,
    first_pause: Duration,
    longest_pause: Duration,
}

#[derive(Default)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// Pauses in a row.
    pauses: u32,
    paused_until: Option<Instant>,
    is_probing: bool,
    /// Whether a pause is stored, by this server or another one: whoever succeeds has to end it.
    is_told: bool,
}

/// What the end of a call has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The handler pauses for so long.
    Paused(Duration),
    /// It goes on.
    Resumed,
}

/// The right to call.
pub(super) struct Turn {
    endpoint: Arc<Endpoint>,
    is_probe: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Endpoint {
    pub(super) fn new(
        concurrency: u32,
        first_pause: Duration,
        longest_pause: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            permits: Arc::new(Semaphore::new(concurrency as usize)),
            changed: watch::Sender::new(()),
            first_pause,
            longest_pause: longest_pause.min(LONGEST_PAUSE).max(first_pause),
        })
    }

    /// Begins with a pause that another server, or this one before, has decided on.
    pub(super) fn pause_for(&self, time: Duration) {
        let mut state = self.lock();
        if state.paused_until.is_none() {
            state.failures = MOST_FAILURES;
            state.pauses = 1;
            state.paused_until = Some(Instant::now() + time);
            state.is_told = true;
        }
    }

    /// Takes in that a pause is stored, whoever has decided on it: the next success has to be told.
    pub(super) fn pause_is_stored(&self) {
        self.lock().is_told = true;
    }

    /// Waits for the right to call out of turn, whether the handler is paused or not; what comes of the call says nothing of the
    /// endpoint. It is given back where it is dropped.
    pub(super) async fn wait_out_of_turn(self: &Arc<Self>) -> Option<Turn> {
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        Some(Turn {
            endpoint: self.clone(),
            is_probe: false,
            permit: Some(permit),
        })
    }

    /// Ends a pause, for somebody wants to have it tried.
    pub(super) fn resume(&self) {
        let mut state = self.lock();
        if state.paused_until.take().is_some() {
            state.failures = 0;
            state.pauses = 0;
            drop(state);
            self.changed.send_replace(());
        }
    }

    /// Tells when a call may begin that could not before.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Until when no call may begin; none where one may, as far as the handler's own pause goes.
    pub(super) fn shut_until(&self) -> Option<Instant> {
        let state = self.lock();
        let until = state.paused_until?;
        let now = Instant::now();
        if state.is_probing {
            // Whoever waits is told when the probe has ended.
            return Some(now + self.longest_pause);
        }
        (until > now).then_some(until)
    }

    /// How many more failures in a row may follow before the handler pauses.
    pub(super) fn failures_left(&self) -> u32 {
        let state = self.lock();
        if state.paused_until.is_some() {
            return 1;
        }
        MOST_FAILURES.saturating_sub(state.failures).max(1)
    }

    /// The right to call now, if there is one. While the handler is paused there is one, for the probe.
    pub(super) fn turn(self: &Arc<Self>) -> Option<Turn> {
        let mut state = self.lock();
        let is_probe = match state.paused_until {
            Some(until) if state.is_probing || until > Instant::now() => return None,
            Some(_) => true,
            None => false,
        };
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        state.is_probing = is_probe;
        Some(Turn {
            endpoint: self.clone(),
            is_probe,
            permit: Some(permit),
        })
    }

    /// Waits for the right to call.
    pub(super) async fn wait_for_turn(self: &Arc<Self>) -> Turn {
        let mut changed = self.watch();
        loop {
            if let Some(turn) = self.turn() {
                return turn;
            }
            let until = self.shut_until();
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Tells what came of a call.
    pub(super) fn report(&self, succeeded: bool) -> Option<Change> {
        let mut state = self.endpoint.lock();
        if succeeded {
            state.failures = 0;
            state.pauses = 0;
            state.paused_until = None;
            return std::mem::take(&mut state.is_told).then_some(Change::Resumed);
        }
        state.failures = state.failures.saturating_add(1);
        let begins = state.paused_until.is_none() && state.failures >= MOST_FAILURES;
        // Calls that had begun before the pause say nothing new.
        let goes_on = state.paused_until.is_some() && self.is_probe;
        if !begins && !goes_on {
            return None;
        }
        let factor = 1_u32.checked_shl(state.pauses).unwrap_or(u32::MAX);
        let pause = self.endpoint.first_pause.saturating_mul(factor);
        let pause = pause.min(self.endpoint.longest_pause);
        state.pauses = state.pauses.saturating_add(1).min(31);
        state.paused_until = Some(Instant::now() + pause);
        state.is_told = true;
        Some(Change::Paused(pause))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_probe {
            self.endpoint.lock().is_probing = false;
        }
        // Before anybody is woken by it.
        drop(self.permit.take());
        self.endpoint.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoint() -> Arc<Endpoint> {
        Endpoint::new(2, SECOND, 4 * SECOND)
    }

    fn fail(endpoint: &Arc<Endpoint>) -> Option<Change> {
        endpoint.turn().expect("a turn").report(false)
    }

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_pause_and_probes_come_at_growing_pauses() {
        let endpoint = endpoint();
        for _ in 0..4 {
            assert_eq!(fail(&endpoint), None);
        }
        assert_eq!(endpoint.turn().expect("a turn").report(true), None);
        for _ in 0..4 {
            assert_eq!(fail(&endpoint), None);
        }
        assert_eq!(fail(&endpoint), Some(Change::Paused(SECOND)));
        assert!(endpoint.turn().is_none());
        for pause in [2, 4, 4] {
            tokio::time::advance(4 * SECOND).await;
            let probe = endpoint.turn().expect("a probe");
            assert!(endpoint.turn().is_none(), "one probe at a time");
            assert_eq!(probe.report(false), Some(Change::Paused(pause * SECOND)));
            drop(probe);
            assert!(endpoint.turn().is_none());
        }
        tokio::time::advance(4 * SECOND).await;
        let probe = endpoint.turn().expect("a probe");
        assert_eq!(probe.report(true), Some(Change::Resumed));
        drop(probe);
        assert_eq!(fail(&endpoint), None, "it begins to count anew");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_began_before_the_pause_do_not_make_it_longer() {
        let endpoint = endpoint();
        let late = endpoint.turn().expect("a turn");
        for _ in 0..4 {
            fail(&endpoint);
        }
        assert_eq!(fail(&endpoint), Some(Change::Paused(SECOND)));
        assert_eq!(late.report(false), None);
        assert_eq!(
            late.report(true),
            Some(Change::Resumed),
            "but one that succeeds ends it"
        );
    }

    #[tokio::test]
    async fn a_probe_that_is_given_up_leaves_its_turn() {
        let endpoint = endpoint();
        endpoint.pause_for(Duration::ZERO);
        let probe = endpoint.turn().expect("a probe");
        drop(probe);
        assert!(endpoint.turn().is_some());
    }

    #[tokio::test]
    async fn a_pause_can_be_ended_and_its_end_is_told_once_a_call_succeeds() {
        let endpoint = endpoint();
        for _ in 0..5 {
            fail(&endpoint);
        }
        assert!(endpoint.turn().is_none());
        endpoint.resume();
        assert_eq!(fail(&endpoint), None, "it begins to count anew");
        let turn = endpoint.turn().expect("a turn");
        assert_eq!(turn.report(true), Some(Change::Resumed));
        assert_eq!(turn.report(true), None);
    }

    #[tokio::test]
    async fn whoever_succeeds_ends_a_pause_that_another_server_has_stored() {
        let endpoint = endpoint();
        endpoint.pause_is_stored();
        let turn = endpoint.turn().expect("this server does not pause");
        assert_eq!(turn.report(false), None);
        assert_eq!(turn.report(true), Some(Change::Resumed));
        assert_eq!(turn.report(true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_out_of_turn_waits_for_its_permit_and_not_for_the_end_of_a_pause() {
        let endpoint = endpoint();
        endpoint.pause_for(600 * SECOND);
        let first = endpoint.wait_out_of_turn().await;
        let _second = endpoint.wait_out_of_turn().await;
        let waiting = endpoint.clone();
        let waiting = tokio::spawn(async move { drop(waiting.wait_out_of_turn().await) });
        tokio::time::sleep(SECOND).await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.expect("it has its turn");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_calls_run_at_a_time_and_others_wait_for_their_turn() {
        let endpoint = endpoint();
        let (_first, second) = (endpoint.turn(), endpoint.turn());
        assert!(endpoint.turn().is_none());
        let waiting = endpoint.clone();
        let waiting = tokio::spawn(async move { drop(waiting.wait_for_turn().await) });
        tokio::time::sleep(SECOND).await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.expect("it has its turn");
        assert!(endpoint.turn().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_turn_has_the_probe_when_the_pause_is_over() {
        let endpoint = endpoint();
        endpoint.pause_for(SECOND);
        let begun = Instant::now();
        assert!(endpoint.wait_for_turn().await.is_probe);
        assert_eq!(begun.elapsed(), SECOND);
    }
}
