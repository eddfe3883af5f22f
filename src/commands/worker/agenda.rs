//! What the worker of a partition has read and not begun, works on, and lets alone for a while; all of it bounded. Floor 4.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::{AggregateId, Command};

/// Aggregates whose commands are processed at the same time.
const PLACES: usize = 64;
/// Commands of one aggregate that are taken at a time: a place keeps them until it comes to them.
const COMMANDS_A_PLACE: usize = 32;
/// The bytes of their data and metadata, about; one is taken whatever its size.
const BYTES_A_PLACE: usize = 256 << 10;
/// Aggregates that are let alone at most. Where there are more, nothing is begun until one of them has rested.
const RESTING: usize = 1000;

/// Commands of one aggregate, in the order of their creation.
pub(super) struct Group {
    pub(super) aggregate_id: AggregateId,
    pub(super) commands: Vec<Command>,
    bytes: usize,
    /// Whether there are more of them that were not taken.
    is_cut: bool,
}

/// The agenda of a partition. It is looked for commands only where all that were read have been begun, so an aggregate is
/// either waiting, in flight, resting, or not here.
pub(super) struct Agenda {
    waiting: VecDeque<Group>,
    /// The aggregates that are worked on, and whether there may be commands of theirs that were not read.
    in_flight: HashMap<AggregateId, bool>,
    resting: HashMap<AggregateId, Instant>,
    /// Whether there may be commands that were not read.
    is_open: bool,
}

impl Default for Agenda {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight: HashMap::new(),
            resting: HashMap::new(),
            is_open: true,
        }
    }
}

impl Agenda {
    fn has_place(&self) -> bool {
        self.in_flight.len() < PLACES && self.resting.len() < RESTING
    }

    /// The next aggregate to work on, if there is a place for it.
    pub(super) fn begin_next(&mut self) -> Option<Group> {
        if !self.has_place() {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.in_flight.insert(next.aggregate_id, next.is_cut);
        Some(next)
    }

    /// Notes that the work on an aggregate has ended. Where it came to nothing, the aggregate is let alone for a while.
    pub(super) fn end(&mut self, id: AggregateId, rests_until: Option<Instant>) {
        let has_more = self.in_flight.remove(&id).unwrap_or_default();
        match rests_until {
            Some(instant) => {
                self.resting.insert(id, instant);
            }
            None => self.is_open |= has_more,
        }
    }

    /// Notes that there may be commands that were not read.
    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    /// Whether it is time to look for commands.
    pub(super) fn wants_look(&self) -> bool {
        self.is_open && self.waiting.is_empty() && self.has_place()
    }

    /// Begins a look for commands; answers the aggregates that it leaves out.
    pub(super) fn begin_look(&mut self) -> Vec<AggregateId> {
        self.is_open = false;
        for has_more in self.in_flight.values_mut() {
            *has_more = true;
        }
        self.left_out()
    }

    /// The aggregates that need no look: in flight, or let alone.
    pub(super) fn left_out(&self) -> Vec<AggregateId> {
        let in_flight = self.in_flight.keys();
        in_flight.chain(self.resting.keys()).copied().collect()
    }

    /// Takes in what a look has found, which may be all or not.
    pub(super) fn take(&mut self, due: Vec<Command>, is_all: bool) {
        self.waiting = by_aggregate(due);
        self.is_open |= !is_all;
    }

    /// When it is to be looked next where nothing happens before; `due` is when the next command is due.
    pub(super) fn wakes_at(&self, due: Instant) -> Option<Instant> {
        let rested = self.resting.values().min().copied();
        if self.is_open {
            // It waits for a place, and needs no other reason.
            return rested;
        }
        Some(rested.map_or(due, |rested| rested.min(due)))
    }

    /// Notes the time: aggregates that were let alone are looked for again.
    pub(super) fn wake(&mut self, now: Instant) {
        self.resting.retain(|_, until| *until > now);
        self.is_open = true;
    }
}

/// The commands of each aggregate in their order, the aggregates in the order of their first ones.
fn by_aggregate(commands: Vec<Command>) -> VecDeque<Group> {
    let mut places: HashMap<AggregateId, usize> = HashMap::new();
    let mut groups: VecDeque<Group> = VecDeque::new();
    for command in commands {
        let id = command.aggregate_id;
        let place = *places.entry(id).or_insert(groups.len());
        if place == groups.len() {
            groups.push_back(Group {
                aggregate_id: id,
                commands: Vec::new(),
                bytes: 0,
                is_cut: false,
            });
        }
        let group = &mut groups[place];
        let bytes = command.data.as_str().len() + command.metadata.as_str().len();
        group.is_cut |= group.commands.len() == COMMANDS_A_PLACE
            || !group.commands.is_empty() && group.bytes + bytes > BYTES_A_PLACE;
        // One that is not taken is followed by none that is.
        if !group.is_cut {
            group.bytes += bytes;
            group.commands.push(command);
        }
    }
    groups
}

/// How long an aggregate is let alone from now on.
pub(super) fn rest(pause: Duration) -> Option<Instant> {
    Some(Instant::now() + pause)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{CommandId, CommandStatus, CommandType, Json, Partition, Timestamp};

    fn command(aggregate: u128, number: u128, data: &str) -> Command {
        Command {
            partition: Partition(0),
            id: CommandId(Uuid::from_u128(number)),
            aggregate_id: AggregateId(Uuid::from_u128(aggregate)),
            command_type: CommandType::new("run").expect("a name"),
            data: Json::stored(format!("\"{data}\"")),
            metadata: Json::empty_object(),
            status: CommandStatus::Pending,
            reason: None,
            attempts: 0,
            not_before: None,
            versions: None,
            created_at: Timestamp::from_micros(0),
            processed_at: None,
        }
    }

    fn begun(agenda: &mut Agenda) -> Vec<Vec<u128>> {
        let numbers = |group: Group| group.commands.iter().map(|c| c.id.0.as_u128()).collect();
        std::iter::from_fn(|| agenda.begin_next().map(numbers)).collect()
    }

    fn id(number: u128) -> AggregateId {
        AggregateId(Uuid::from_u128(number))
    }

    #[test]
    fn commands_are_begun_by_aggregate_in_their_order() {
        let mut agenda = Agenda::default();
        assert!(agenda.wants_look());
        assert!(agenda.begin_look().is_empty());
        let due = [(7, 1), (8, 2), (7, 3), (9, 4), (7, 5)];
        agenda.take(due.map(|(of, no)| command(of, no, "")).into(), true);
        assert_eq!(begun(&mut agenda), [vec![1, 3, 5], vec![2], vec![4]]);
        assert!(!agenda.wants_look(), "that was all");
        agenda.end(id(7), None);
        assert!(!agenda.wants_look(), "nobody has looked meanwhile");
        agenda.open();
        let mut left_out = agenda.begin_look();
        left_out.sort_unstable();
        assert_eq!(left_out, [id(8), id(9)]);
        agenda.take(Vec::new(), true);
        assert!(!agenda.wants_look());
        agenda.end(id(8), None);
        assert!(agenda.wants_look(), "the look has left it out");
    }

    #[test]
    fn places_are_filled_as_they_become_free() {
        let mut agenda = Agenda::default();
        agenda.begin_look();
        let due = (0..100).map(|number| command(number, number, ""));
        agenda.take(due.collect(), false);
        assert_eq!(begun(&mut agenda).len(), PLACES);
        assert!(!agenda.wants_look(), "there are some that wait");
        for number in 0..36 {
            agenda.end(id(number), None);
            assert_eq!(begun(&mut agenda), [vec![64 + number]]);
        }
        assert!(!agenda.wants_look(), "there is no place");
        agenda.end(id(50), None);
        assert!(agenda.wants_look(), "not all were read");
    }

    #[test]
    fn a_place_takes_so_many_commands_and_so_many_bytes() {
        let mut agenda = Agenda::default();
        let large = "x".repeat(BYTES_A_PLACE);
        let many = (0..100).map(|number| command(1, number, ""));
        let rest = [
            (2, 100, &*large),
            (3, 101, ""),
            (3, 102, &*large),
            (3, 103, ""),
        ];
        let rest = rest.map(|(of, number, data)| command(of, number, data));
        agenda.begin_look();
        agenda.take(many.chain(rest).collect(), true);
        let first = (0..COMMANDS_A_PLACE as u128).collect();
        assert_eq!(begun(&mut agenda), [first, vec![100], vec![101]]);
        agenda.end(id(2), None);
        assert!(!agenda.wants_look());
        agenda.end(id(3), None);
        assert!(agenda.wants_look(), "it has more");
    }

    #[test]
    fn an_aggregate_that_rests_is_left_out_until_then() {
        let mut agenda = Agenda::default();
        agenda.begin_look();
        agenda.take(vec![command(1, 1, "")], true);
        begun(&mut agenda);
        let now = Instant::now();
        let (soon, later) = (now + Duration::from_secs(1), now + Duration::from_secs(9));
        agenda.end(id(1), Some(soon));
        assert!(!agenda.wants_look());
        assert_eq!(agenda.wakes_at(later), Some(soon));
        assert_eq!(agenda.left_out(), [id(1)]);
        agenda.wake(now);
        assert_eq!(agenda.begin_look(), [id(1)]);
        agenda.wake(soon);
        assert!(agenda.wants_look());
        assert!(agenda.begin_look().is_empty());
        assert_eq!(agenda.wakes_at(later), Some(later));
    }
}
