//! The tasks that keep the windows up to date, and the doorbell between servers. Floor 3.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{LogTail, Tail, command_bell::CommandNews, window::Logged};
use crate::{
    domain::{Entry, Event, EventFilter, Order, Partition, Position},
    store::{Doorbell, EventScan, Heads, Store, StoreError},
};

/// How often the heads are polled while somebody follows: rings get lost, and SQL clients do not ring.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// The least time between two rings at other servers.
const RING_EVERY: Duration = Duration::from_millis(25);
/// The pause after a fault of the database.
const PAUSE_AFTER_FAULT: Duration = Duration::from_millis(250);
/// Rows that are read at a time.
const PAGE: u64 = 500;
/// Bytes that are read at a time, about.
const PAGE_BYTES: usize = 4 << 20;
/// A window that is further behind than this begins anew at the head.
const SKIP_ABOVE: i64 = 4 * PAGE as i64;

/// Looks for new rows whenever the doorbell rings and, where other programs write too, every 100 ms.
pub(super) async fn look(tail: Arc<Tail>) {
    let shared = tail.store.doorbell().is_some();
    let mut poll = interval(POLL_EVERY);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let followed = tail.events.is_followed() || tail.entries.is_followed();
        tokio::select! {
            () = tail.stopping.cancelled() => return,
            () = tail.look.notified() => {}
            _ = poll.tick(), if shared && followed => {}
        }
        if let Err(error) = look_once(&tail).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the log cannot be read; trying again"
            );
            tokio::select! {
                () = tail.stopping.cancelled() => return,
                () = sleep(PAUSE_AFTER_FAULT) => tail.look.notify_one(),
            }
        }
    }
}

async fn look_once(tail: &Tail) -> Result<(), StoreError> {
    let Heads { events, entries } = tail.store.heads().await?;
    for partition in tail.store.partitions().iter() {
        catch_up(
            &tail.store,
            &tail.events,
            partition,
            events[partition.index()],
        )
        .await?;
        catch_up(
            &tail.store,
            &tail.entries,
            partition,
            entries[partition.index()],
        )
        .await?;
    }
    Ok(())
}

/// Reads on until the window reaches the head; with nobody to read for, it only moves on.
async fn catch_up<T: Scanned>(
    store: &Store,
    log: &LogTail<T>,
    partition: Partition,
    head: Position,
) -> Result<(), StoreError> {
    let window = &log.windows[partition.index()];
    while window.head() < head {
        let missing = head.0 - window.head().0;
        if !log.is_followed() || missing > SKIP_ABOVE {
            // Followers read this part themselves, each behind its own place.
            window.skip_to(head);
            log.tell(partition, head);
            return Ok(());
        }
        let rows: Vec<Arc<T>> = T::scan(store, partition, window.head(), head)
            .await?
            .into_iter()
            .map(Arc::new)
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        log.extend(partition, &rows);
    }
    Ok(())
}

/// A log whose rows can be read behind a place.
trait Scanned: Logged + Sized {
    fn scan(
        store: &Store,
        partition: Partition,
        above: Position,
        up_to: Position,
    ) -> impl Future<Output = Result<Vec<Self>, StoreError>> + Send;
}

impl Scanned for Event {
    async fn scan(
        store: &Store,
        partition: Partition,
        above: Position,
        up_to: Position,
    ) -> Result<Vec<Self>, StoreError> {
        let filter = &EventFilter::default();
        store
            .scan_events(&EventScan {
                partition,
                above,
                up_to,
                filter,
                order: Order::OldestFirst,
                limit: PAGE,
                max_bytes: Some(PAGE_BYTES),
            })
            .await
    }
}

impl Scanned for Entry {
    async fn scan(
        store: &Store,
        partition: Partition,
        above: Position,
        _up_to: Position,
    ) -> Result<Vec<Self>, StoreError> {
        store.scan_entries(partition, above, PAGE, PAGE_BYTES).await
    }
}

/// Rings at the other servers after commits of this one, at most every 25 ms.
pub(super) async fn ring(tail: Arc<Tail>, doorbell: Arc<dyn Doorbell>) {
    loop {
        tokio::select! {
            () = tail.stopping.cancelled() => return,
            () = tail.committed.notified() => {}
        }
        let text = written(
            &tail.events.heads.borrow(),
            &tail.entries.heads.borrow(),
            tail.commands.take_untold(),
        );
        if let Err(error) = doorbell.ring(&text).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "a ring was lost; the other servers poll"
            );
        }
        sleep(RING_EVERY).await;
    }
}

/// Hears the other servers.
pub(super) async fn listen(tail: Arc<Tail>, doorbell: Arc<dyn Doorbell>) {
    let heard = |text: &str| {
        let news = match read(text) {
            Some((events, entries, commands)) => {
                tail.commands.hear(commands);
                is_above(&events, &tail.events.heads.borrow())
                    || is_above(&entries, &tail.entries.heads.borrow())
            }
            None => {
                tail.commands.hear(CommandNews::ALL);
                true
            }
        };
        if news {
            tail.look.notify_one();
        }
    };
    loop {
        let lost = tokio::select! {
            () = tail.stopping.cancelled() => return,
            lost = doorbell.listen(&heard) => lost,
        };
        let Err(error) = lost;
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "the doorbell was lost; polling until it is back"
        );
        tokio::select! {
            () = tail.stopping.cancelled() => return,
            () = sleep(PAUSE_AFTER_FAULT) => tail.look.notify_one(),
        }
    }
}

/// The text of a ring: the heads of the events and of the entries, and where there is news of commands.
fn written(events: &[Position], entries: &[Position], commands: CommandNews) -> String {
    let list = |heads: &[Position]| {
        heads
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    format!("{} {} {commands}", list(events), list(entries))
}

fn read(text: &str) -> Option<(Vec<Position>, Vec<Position>, CommandNews)> {
    let list = |text: &str| {
        text.split(',')
            .map(|head| head.parse().ok().map(Position))
            .collect::<Option<Vec<_>>>()
    };
    let mut parts = text.split(' ');
    Some((
        list(parts.next()?)?,
        list(parts.next()?)?,
        CommandNews::parse(parts.next()?)?,
    ))
}

fn is_above(heads: &[Position], known: &[Position]) -> bool {
    heads.len() != known.len() || heads.iter().zip(known).any(|(head, known)| head > known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_read_as_it_was_written() {
        let (events, entries) = ([Position(3), Position(0)], [Position(7), Position(9)]);
        let commands = CommandNews {
            pending: 0x8001,
            settled: 2,
        };
        assert_eq!(
            read(&written(&events, &entries, commands)),
            Some((events.to_vec(), entries.to_vec(), commands))
        );
        assert_eq!(read(""), None);
        assert_eq!(read("junk from somebody else"), None);
    }

    #[test]
    fn a_ring_is_news_when_any_head_is_above() {
        assert!(is_above(
            &[Position(1), Position(2)],
            &[Position(1), Position(1)]
        ));
        assert!(!is_above(
            &[Position(1), Position(1)],
            &[Position(1), Position(2)]
        ));
    }
}
