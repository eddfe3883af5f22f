//! The newest part of one partition's log, kept in memory for everybody who follows it. Floor 3.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use uuid::Uuid;

use crate::domain::{Entry, Event, Position};

/// How much is taken from a window at a time. Whoever takes rows keeps them in memory until they are delivered, also when
/// the window has moved on, so there are not many bytes of them.
pub(super) const TAKE_ROWS: usize = 128;
pub(super) const TAKE_BYTES: usize = 256 << 10;

/// What a log consists of.
pub(super) trait Logged: Send + Sync + 'static {
    /// Its place in its partition's log.
    fn log_position(&self) -> Position;

    /// What tells it from any other one that could stand at its place.
    fn identity(&self) -> Uuid;

    /// About how much memory it takes.
    fn memory_bytes(&self) -> usize;
}

impl Logged for Event {
    fn log_position(&self) -> Position {
        self.position
    }

    fn identity(&self) -> Uuid {
        self.id.0
    }

    fn memory_bytes(&self) -> usize {
        self.size_bytes()
    }
}

impl Logged for Entry {
    fn log_position(&self) -> Position {
        self.entry_position
    }

    fn identity(&self) -> Uuid {
        self.event_id.0
    }

    fn memory_bytes(&self) -> usize {
        self.size_bytes()
    }
}

/// What became of new rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extended {
    /// The window reaches up to here now.
    To(Position),
    /// It had them already.
    Unchanged,
    /// Rows are missing between the window and these.
    Gap,
}

/// A part of one partition's log in memory, up to its head.
pub(super) trait Windowed: Send + Sync + 'static {
    /// What the log consists of.
    type Row: Send + Sync + 'static;

    /// An empty window behind `head`.
    fn new(head: Position, max_bytes: usize) -> Self;

    /// Up to where the window reaches.
    fn head(&self) -> Position;

    /// Takes in all rows that there are above `above` and up to `up_to`, in the order of their positions.
    fn extend(&self, above: Position, rows: &[Arc<Self::Row>], up_to: Position) -> Extended;

    /// Moves on without the rows in between: whoever wants them reads the database.
    fn skip_to(&self, head: Position);
}

/// A window of rows without a gap, up to its head; bounded in bytes.
#[derive(Debug)]
pub(super) struct Window<T> {
    state: RwLock<State<T>>,
    max_bytes: usize,
}

#[derive(Debug)]
struct State<T> {
    rows: VecDeque<Arc<T>>,
    head: Position,
    bytes: usize,
}

impl<T: Logged> Window<T> {
    /// Some rows behind `after`; `None` where the window begins later, so that the database has to be read.
    pub(super) fn rows_after(&self, after: Position) -> Option<Vec<Arc<T>>> {
        let state = self.read();
        let before_first = state.head.0 - i64::try_from(state.rows.len()).unwrap_or(i64::MAX);
        let skip = usize::try_from(after.0 - before_first).ok()?;
        let mut bytes = 0;
        let within = |row: &&Arc<T>| {
            let fits = bytes < TAKE_BYTES;
            bytes += row.memory_bytes();
            fits
        };
        let rows = state.rows.iter().skip(skip).take(TAKE_ROWS);
        Some(rows.take_while(within).cloned().collect())
    }

    /// Its head, and what stands there where it is known.
    pub(super) fn newest(&self) -> (Position, Option<Uuid>) {
        let state = self.read();
        (state.head, state.rows.back().map(|row| row.identity()))
    }

    // Nothing panics while it holds the lock, and a state that was left is a whole one.
    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Logged> Windowed for Window<T> {
    type Row = T;

    fn new(head: Position, max_bytes: usize) -> Self {
        Self {
            state: RwLock::new(State {
                rows: VecDeque::new(),
                head,
                bytes: 0,
            }),
            max_bytes,
        }
    }

    fn head(&self) -> Position {
        self.read().head
    }

    fn extend(&self, _above: Position, rows: &[Arc<T>], _up_to: Position) -> Extended {
        let mut state = self.write();
        let before = state.head;
        for row in rows {
            let position = row.log_position();
            if position <= state.head {
                continue;
            }
            if position != state.head.next() {
                return Extended::Gap;
            }
            state.head = position;
            state.bytes += row.memory_bytes();
            state.rows.push_back(row.clone());
        }
        while state.bytes > self.max_bytes
            && let Some(row) = state.rows.pop_front()
        {
            state.bytes -= row.memory_bytes();
        }
        if state.head == before {
            Extended::Unchanged
        } else {
            Extended::To(state.head)
        }
    }

    fn skip_to(&self, head: Position) {
        let mut state = self.write();
        if head > state.head {
            *state = State {
                rows: VecDeque::new(),
                head,
                bytes: 0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Row(i64);

    impl Logged for Row {
        fn log_position(&self) -> Position {
            Position(self.0)
        }

        fn identity(&self) -> Uuid {
            Uuid::from_u128(self.0 as u128)
        }

        fn memory_bytes(&self) -> usize {
            10
        }
    }

    #[derive(Debug)]
    struct Large(i64);

    impl Logged for Large {
        fn log_position(&self) -> Position {
            Position(self.0)
        }

        fn identity(&self) -> Uuid {
            Uuid::from_u128(self.0 as u128)
        }

        fn memory_bytes(&self) -> usize {
            TAKE_BYTES / 2 + 1
        }
    }

    fn rows(positions: std::ops::RangeInclusive<i64>) -> Vec<Arc<Row>> {
        positions.map(|position| Arc::new(Row(position))).collect()
    }

    fn extend<T: Logged>(window: &Window<T>, rows: &[Arc<T>]) -> Extended {
        let position = |row: Option<&Arc<T>>| row.map_or(Position::START, |row| row.log_position());
        let above = Position(position(rows.first()).0 - 1);
        window.extend(above, rows, position(rows.last()))
    }

    fn positions(rows: Option<Vec<Arc<Row>>>) -> Option<Vec<i64>> {
        rows.map(|rows| rows.iter().map(|row| row.0).collect())
    }

    #[test]
    fn a_window_gives_the_rows_behind_a_place() {
        let window = Window::new(Position(5), 1000);
        assert_eq!(extend(&window, &rows(6..=9)), Extended::To(Position(9)));
        assert_eq!(
            positions(window.rows_after(Position(5))),
            Some(vec![6, 7, 8, 9])
        );
        assert_eq!(positions(window.rows_after(Position(7))), Some(vec![8, 9]));
        let newest = (Position(9), Some(Uuid::from_u128(9)));
        assert_eq!(window.newest(), newest);
        assert_eq!(positions(window.rows_after(Position(9))), Some(vec![]));
    }

    #[test]
    fn what_is_taken_at_a_time_is_bounded() {
        let window = Window::new(Position(0), 1_000_000);
        extend(&window, &rows(1..=300));
        let taken = positions(window.rows_after(Position(0))).unwrap();
        assert_eq!((taken[0], taken.len()), (1, TAKE_ROWS));

        let large = |position| Arc::new(Large(position));
        let window = Window::new(Position(0), 10 * TAKE_BYTES);
        extend(&window, &[large(1), large(2), large(3)]);
        let taken = window.rows_after(Position(0)).unwrap();
        assert_eq!(taken.len(), 2, "up to the first that goes past the bound");
    }

    #[test]
    fn what_lies_before_the_window_has_to_be_read_from_the_database() {
        let window = Window::new(Position(5), 30);
        extend(&window, &rows(6..=9));
        assert_eq!(positions(window.rows_after(Position(4))), None);
        assert_eq!(
            positions(window.rows_after(Position(5))),
            None,
            "the row at 6 was dropped for room"
        );
        assert_eq!(
            positions(window.rows_after(Position(6))),
            Some(vec![7, 8, 9])
        );
    }

    #[test]
    fn a_window_has_no_gap_and_no_repeat() {
        let window = Window::new(Position(0), 1000);
        assert_eq!(extend(&window, &rows(1..=3)), Extended::To(Position(3)));
        assert_eq!(extend(&window, &rows(2..=4)), Extended::To(Position(4)));
        assert_eq!(extend(&window, &rows(6..=7)), Extended::Gap);
        assert_eq!(extend(&window, &rows(1..=4)), Extended::Unchanged);
        assert_eq!(window.head(), Position(4));
        window.skip_to(Position(6));
        assert_eq!(positions(window.rows_after(Position(4))), None);
        assert_eq!(extend(&window, &rows(7..=7)), Extended::To(Position(7)));
    }
}
