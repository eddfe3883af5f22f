//! The newest changes of one partition's read models, kept in memory for everybody who follows them. Floor 3.
//!
//! Only the newest change of each read model is there, as in the table: what it replaces is of use to nobody. So positions
//! have holes, and the window covers a range of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::window::{Extended, TAKE_BYTES, TAKE_ROWS, Windowed};
use crate::domain::{AggregateId, Position, ReadModel};

/// A window of changes, each the newest of its read model, up to its head; bounded in bytes.
#[derive(Debug)]
pub(super) struct ChangeWindow {
    state: RwLock<State>,
    max_bytes: usize,
}

/// What a window knows of one read model.
pub(super) struct Newest {
    pub(super) model: Option<Arc<ReadModel>>,
    pub(super) above: Position,
    pub(super) head: Position,
}

#[derive(Debug)]
struct State {
    changes: BTreeMap<Position, Arc<ReadModel>>,
    of_aggregates: HashMap<AggregateId, Position>,
    /// Every change above this place and up to the head is there.
    above: Position,
    head: Position,
    bytes: usize,
}

impl State {
    fn empty(head: Position) -> Self {
        Self {
            changes: BTreeMap::new(),
            of_aggregates: HashMap::new(),
            above: head,
            head,
            bytes: 0,
        }
    }

    fn take_in(&mut self, model: &Arc<ReadModel>) {
        let replaced = self
            .of_aggregates
            .insert(model.aggregate_id, model.change_position);
        if let Some(model) = replaced.and_then(|position| self.changes.remove(&position)) {
            self.bytes -= model.size_bytes();
        }
        self.bytes += model.size_bytes();
        self.changes.insert(model.change_position, model.clone());
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((position, model)) = self.changes.pop_first() else {
            return false;
        };
        self.of_aggregates.remove(&model.aggregate_id);
        self.bytes -= model.size_bytes();
        self.above = position;
        true
    }
}

impl ChangeWindow {
    /// Some changes behind `after`, and up to where that is all that there are; `None` where the window begins later, so that
    /// the database has to be read.
    pub(super) fn changes_after(&self, after: Position) -> Option<(Vec<Arc<ReadModel>>, Position)> {
        let state = self.read();
        if after < state.above {
            return None;
        }
        let mut bytes = 0;
        let mut taken = Vec::new();
        for model in state.changes.range(after.next()..).map(|(_, model)| model) {
            if taken.len() == TAKE_ROWS || bytes >= TAKE_BYTES {
                let up_to = taken
                    .last()
                    .map_or(after, |last: &Arc<ReadModel>| last.change_position);
                return Some((taken, up_to));
            }
            bytes += model.size_bytes();
            taken.push(model.clone());
        }
        Some((taken, state.head))
    }

    /// The newest change of a read model, and where the window begins and ends, all as of one instant. Without a change there is
    /// none in the window.
    pub(super) fn newest_of(&self, id: AggregateId) -> Newest {
        let state = self.read();
        let position = state.of_aggregates.get(&id);
        Newest {
            model: position.and_then(|position| state.changes.get(position).cloned()),
            above: state.above,
            head: state.head,
        }
    }

    // Nothing panics while it holds the lock, and a state that was left is a whole one.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Windowed for ChangeWindow {
    type Row = ReadModel;

    fn new(head: Position, max_bytes: usize) -> Self {
        Self {
            state: RwLock::new(State::empty(head)),
            max_bytes,
        }
    }

    fn head(&self) -> Position {
        self.read().head
    }

    /// The rows are all changes above `above` and up to `up_to` that are the newest of their read models.
    fn extend(&self, above: Position, rows: &[Arc<ReadModel>], up_to: Position) -> Extended {
        let mut state = self.write();
        if up_to <= state.head {
            return Extended::Unchanged;
        }
        if above > state.head {
            return Extended::Gap;
        }
        let head = state.head;
        let new = rows.iter().filter(|model| model.change_position > head);
        new.for_each(|model| state.take_in(model));
        state.head = up_to;
        while state.bytes > self.max_bytes && state.drop_oldest() {}
        Extended::To(up_to)
    }

    fn skip_to(&self, head: Position) {
        let mut state = self.write();
        if head > state.head {
            *state = State::empty(head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AggregateType, Json, Partition, ReadModelSource, Timestamp, Version};
    use uuid::Uuid;

    fn change(aggregate: u128, position: i64) -> Arc<ReadModel> {
        Arc::new(ReadModel {
            partition: Partition(0),
            aggregate_id: AggregateId(Uuid::from_u128(aggregate)),
            aggregate_type: AggregateType::new("user").expect("a name"),
            data: Json::empty_object(),
            version: Version(1),
            source: ReadModelSource::Projected,
            fault: None,
            deleted_at: None,
            change_position: Position(position),
            created_at: Timestamp::from_micros(0),
            updated_at: Timestamp::from_micros(0),
        })
    }

    fn changes(places: &[(u128, i64)]) -> Vec<Arc<ReadModel>> {
        places
            .iter()
            .map(|&(aggregate, position)| change(aggregate, position))
            .collect()
    }

    fn extend(window: &ChangeWindow, above: i64, places: &[(u128, i64)], up_to: i64) -> Extended {
        window.extend(Position(above), &changes(places), Position(up_to))
    }

    fn after(window: &ChangeWindow, place: i64) -> Option<(Vec<i64>, i64)> {
        let (taken, up_to) = window.changes_after(Position(place))?;
        let positions = taken.iter().map(|model| model.change_position.0).collect();
        Some((positions, up_to.0))
    }

    #[test]
    fn only_the_newest_change_of_each_read_model_is_left() {
        let window = ChangeWindow::new(Position(5), 100_000);
        assert_eq!(
            extend(&window, 5, &[(1, 6), (2, 7)], 7),
            Extended::To(Position(7))
        );
        assert_eq!(after(&window, 5), Some((vec![6, 7], 7)));
        assert_eq!(extend(&window, 7, &[(1, 8)], 8), Extended::To(Position(8)));
        assert_eq!(after(&window, 5), Some((vec![7, 8], 8)));
        assert_eq!(after(&window, 8), Some((vec![], 8)));
        assert_eq!(after(&window, 4), None, "what lies before is not there");
        let newest = window.newest_of(AggregateId(Uuid::from_u128(1)));
        assert_eq!(newest.model.unwrap().change_position, Position(8));
    }

    #[test]
    fn what_was_read_of_the_database_fits_in_wherever_the_window_has_come_to_meanwhile() {
        let window = ChangeWindow::new(Position(0), 100_000);
        extend(&window, 0, &[(1, 1), (2, 2), (3, 3)], 3);
        // Read behind 1 while 2 and 3 were committed here: aggregate 2 has changed again since.
        assert_eq!(
            extend(&window, 1, &[(3, 3), (2, 5)], 6),
            Extended::To(Position(6))
        );
        assert_eq!(after(&window, 0), Some((vec![1, 3, 5], 6)));
        assert_eq!(extend(&window, 2, &[(3, 3)], 3), Extended::Unchanged);
        assert_eq!(extend(&window, 8, &[(4, 9)], 9), Extended::Gap);
    }

    #[test]
    fn a_window_is_bounded_and_says_where_it_begins() {
        let window = ChangeWindow::new(Position(0), 1000);
        extend(&window, 0, &[(1, 1), (2, 2), (3, 3), (4, 4)], 4);
        assert_eq!(after(&window, 0), None);
        assert_eq!(after(&window, 1), Some((vec![2, 3, 4], 4)));
        window.skip_to(Position(10));
        assert_eq!(after(&window, 4), None);
        assert_eq!(after(&window, 10), Some((vec![], 10)));
    }

    #[test]
    fn what_is_taken_at_a_time_is_bounded() {
        let window = ChangeWindow::new(Position(0), 1_000_000);
        let places: Vec<(u128, i64)> = (1..=300).map(|n| (n as u128, n)).collect();
        extend(&window, 0, &places, 300);
        let (taken, up_to) = after(&window, 0).unwrap();
        assert_eq!((taken.len(), up_to), (TAKE_ROWS, TAKE_ROWS as i64));
    }
}
