//! The tasks that keep the windows up to date, and the doorbell between servers. Floor 3.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    LogTail, Tail,
    command_bell::CommandNews,
    newest::ChangeWindow,
    window::{Window, Windowed},
};
use crate::{
    domain::{Entry, Event, EventFilter, Order, Partition, Position, ReadModel, ReadModelFilter},
    store::{Doorbell, EventScan, Store, StoreError},
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
        let followed =
            tail.events.is_followed() || tail.entries.is_followed() || tail.changes.is_followed();
        tokio::select! {
            () = tail.stopping.cancelled() => return,
            () = tail.look.notified() => {}
            _ = poll.tick(), if shared && followed => {}
        }
        // Asked before: what is committed while this looks has it look once more.
        let untold = tail.untold.swap(false, Ordering::Acquire);
        let looked = look_once(&tail).await;
        if untold && looked.is_ok() {
            tail.committed.notify_one();
        } else if untold {
            tail.untold.store(true, Ordering::Release);
        }
        if let Err(error) = looked {
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
    // Looked at before the database is asked: a log only ever grows, so it cannot be behind these.
    let known = [
        tail.events.window_heads(),
        tail.entries.window_heads(),
        tail.changes.window_heads(),
    ];
    let heads = tail.store.heads().await?;
    let found = [&heads.events, &heads.entries, &heads.changes];
    if known
        .iter()
        .zip(found)
        .any(|(known, found)| is_above(known, found))
    {
        let found = found.map(Vec::as_slice);
        let known = known.each_ref().map(Vec::as_slice);
        tail.store.report_loss(&format!(
            "the heads of events, stream entries and changes of read models are {} and were {}",
            listed(found),
            listed(known)
        ));
        // What the windows hold is no longer true; nothing is added to it.
        return Ok(());
    }
    for partition in tail.store.partitions().iter() {
        let head = |heads: &[Position]| heads[partition.index()];
        catch_up(&tail.store, &tail.events, partition, head(&heads.events)).await?;
        catch_up(&tail.store, &tail.entries, partition, head(&heads.entries)).await?;
        catch_up(&tail.store, &tail.changes, partition, head(&heads.changes)).await?;
    }
    Ok(())
}

/// Reads on until the window reaches the head; with nobody to read for, it only moves on.
async fn catch_up<W: Scanned>(
    store: &Store,
    log: &LogTail<W>,
    partition: Partition,
    head: Position,
) -> Result<(), StoreError> {
    let window = &log.windows[partition.index()];
    while window.head() < head {
        let above = window.head();
        if !log.is_followed() || head.0 - above.0 > SKIP_ABOVE {
            // Followers read this part themselves, each behind its own place.
            window.skip_to(head);
            log.tell(partition, head);
            return Ok(());
        }
        let (rows, up_to) = W::scan(store, partition, above, head).await?;
        if up_to <= above {
            return Ok(());
        }
        let rows: Vec<Arc<W::Row>> = rows.into_iter().map(Arc::new).collect();
        log.extend(partition, above, &rows, up_to);
    }
    Ok(())
}

/// A window whose rows can be read behind a place.
trait Scanned: Windowed + Sized {
    /// The first rows above `above`, and up to where these are all that there are.
    fn scan(
        store: &Store,
        partition: Partition,
        above: Position,
        head: Position,
    ) -> impl Future<Output = Result<(Vec<Self::Row>, Position), StoreError>> + Send;
}

impl Scanned for Window<Event> {
    async fn scan(
        store: &Store,
        partition: Partition,
        above: Position,
        head: Position,
    ) -> Result<(Vec<Event>, Position), StoreError> {
        let filter = &EventFilter::default();
        let scan = EventScan {
            partition,
            above,
            up_to: head,
            filter,
            order: Order::OldestFirst,
            limit: PAGE,
            max_bytes: Some(PAGE_BYTES),
        };
        let events = store.scan_events(&scan).await?;
        let up_to = events.last().map_or(above, |event| event.position);
        Ok((events, up_to))
    }
}

impl Scanned for Window<Entry> {
    async fn scan(
        store: &Store,
        partition: Partition,
        above: Position,
        _head: Position,
    ) -> Result<(Vec<Entry>, Position), StoreError> {
        let entries = store
            .scan_entries(partition, above, PAGE, PAGE_BYTES)
            .await?;
        let up_to = entries.last().map_or(above, |entry| entry.entry_position);
        Ok((entries, up_to))
    }
}

impl Scanned for ChangeWindow {
    async fn scan(
        store: &Store,
        partition: Partition,
        above: Position,
        head: Position,
    ) -> Result<(Vec<ReadModel>, Position), StoreError> {
        let all = &ReadModelFilter::default();
        let changes = store
            .scan_changes(partition, above, all, PAGE, PAGE_BYTES)
            .await?;
        let up_to = looked_through(&changes, above, head, PAGE as usize, PAGE_BYTES);
        Ok((changes, up_to))
    }
}

/// Up to where a page has all changes that there are: a read model that has changed since lies above. The head was read before.
pub(super) fn looked_through(
    changes: &[ReadModel],
    above: Position,
    head: Position,
    page_rows: usize,
    page_bytes: usize,
) -> Position {
    let last = changes
        .last()
        .map_or(above, |change| change.change_position);
    // The page is cut by characters, of which there are no more than bytes.
    let chars = |change: &ReadModel| change.data.as_str().chars().count();
    let is_full =
        changes.len() >= page_rows || changes.iter().map(chars).sum::<usize>() >= page_bytes;
    if is_full { last } else { last.max(head) }
}

/// Rings at the other servers after commits of this one, at most every 25 ms.
pub(super) async fn ring(tail: Arc<Tail>, doorbell: Arc<dyn Doorbell>) {
    loop {
        tokio::select! {
            () = tail.stopping.cancelled() => return,
            () = tail.committed.notified() => {}
        }
        let heads = [
            &*tail.events.heads.borrow(),
            &*tail.entries.heads.borrow(),
            &*tail.changes.heads.borrow(),
        ]
        .map(Vec::clone);
        let text = written(
            heads.each_ref().map(Vec::as_slice),
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
            Some(([events, entries, changes], commands)) => {
                tail.commands.hear(commands);
                is_above(&events, &tail.events.heads.borrow())
                    || is_above(&entries, &tail.entries.heads.borrow())
                    || is_above(&changes, &tail.changes.heads.borrow())
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

/// The text of a ring: the heads of the events, of the entries and of the changes, and where there is news of commands.
fn written(heads: [&[Position]; 3], commands: CommandNews) -> String {
    format!("{} {commands}", listed(heads))
}

fn listed(heads: [&[Position]; 3]) -> String {
    let list = |heads: &[Position]| {
        heads
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    heads.map(list).join(" ")
}

fn read(text: &str) -> Option<([Vec<Position>; 3], CommandNews)> {
    let list = |text: &str| {
        text.split(',')
            .map(|head| head.parse().ok().map(Position))
            .collect::<Option<Vec<_>>>()
    };
    let (heads, commands) = text.rsplit_once(' ')?;
    let lists = heads.split(' ').map(list).collect::<Option<Vec<_>>>()?;
    Some((lists.try_into().ok()?, CommandNews::parse(commands)?))
}

fn is_above(heads: &[Position], known: &[Position]) -> bool {
    heads.len() != known.len() || heads.iter().zip(known).any(|(head, known)| head > known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_read_as_it_was_written() {
        let heads = [
            vec![Position(3), Position(0)],
            vec![Position(7), Position(9)],
            vec![Position(5), Position(1)],
        ];
        let commands = CommandNews {
            pending: 0x8001,
            settled: 2,
        };
        assert_eq!(
            read(&written(heads.each_ref().map(Vec::as_slice), commands)),
            Some((heads, commands))
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
