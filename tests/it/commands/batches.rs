//! What a batch of the appender comes to, which forms by chance: commands of every kind beside each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidings::app::App;
use tidings::domain::append::{AppendRequest, AppendedEvent, Outcome, Refusal};
use tidings::domain::{
    AggregateId, AggregateType, Clock, CommandId, CommandStatus, CommandStep, CommandType, Domain,
    EventId, EventType, ExpectedVersion, Json, NewCommand, NewEvent, Partition, Timestamp, Version,
};
use uuid::Uuid;

use crate::support::in_process::{Database, Engine, TestServer};
use crate::support::load::aggregate_in;
use crate::support::log::StoredLog;
use crate::support::on_every_database;

on_every_database!(each_command_of_a_batch_gets_its_own_outcome);

const PARTITION: Partition = Partition(0);

struct Request {
    aggregate: Uuid,
    command: Uuid,
    records: bool,
    status: CommandStatus,
    expected: Option<i32>,
    events: usize,
}

impl Request {
    /// A command that is executed on a version.
    fn execute(aggregate: Uuid, expected: i32, events: usize) -> Self {
        Self {
            aggregate,
            command: Uuid::new_v4(),
            records: true,
            status: CommandStatus::Processed,
            expected: Some(expected),
            events,
        }
    }

    fn create(aggregate: Uuid) -> Self {
        Self {
            status: CommandStatus::Pending,
            expected: None,
            ..Self::execute(aggregate, 0, 0)
        }
    }

    fn settle(&self, expected: i32, events: usize) -> Self {
        Self {
            command: self.command,
            records: false,
            ..Self::execute(self.aggregate, expected, events)
        }
    }

    fn again(&self) -> Self {
        Self { ..*self }
    }

    fn to_append(&self) -> AppendRequest {
        let aggregate_type = AggregateType::new("kind").unwrap();
        let expected_version = self.expected.map_or(ExpectedVersion::Any, |version| {
            ExpectedVersion::Exactly(Version(version))
        });
        let (id, aggregate_id) = (CommandId(self.command), AggregateId(self.aggregate));
        let events = (0..self.events).map(|index| NewEvent {
            id: EventId(Uuid::new_v4()),
            id_is_given: false,
            aggregate_id,
            aggregate_type: aggregate_type.clone(),
            event_type: EventType::new("happened").unwrap(),
            data: Json::empty_object(),
            metadata: Json::stored(format!(r#"{{"commandId":"{}"}}"#, self.command)),
            expected_version: if index == 0 {
                expected_version
            } else {
                ExpectedVersion::Any
            },
        });
        let record = self.records.then(|| NewCommand {
            id,
            id_is_given: true,
            aggregate_id,
            command_type: CommandType::new("make_it_happen").unwrap(),
            data: Json::empty_object(),
            metadata: Json::empty_object(),
            not_before: None,
        });
        AppendRequest {
            events: events.collect(),
            command: Some(CommandStep {
                id,
                aggregate_id,
                aggregate_type: Some(aggregate_type),
                expected_version,
                record: record.map(Arc::new),
                status: self.status,
                reason: (self.status == CommandStatus::Rejected).then(|| "a rule".to_owned()),
            }),
        }
    }
}

async fn each_command_of_a_batch_gets_its_own_outcome(engine: Engine, partitions: u8) {
    let database = Arc::new(Database::make(engine));
    let server = TestServer::on(database, |config| {
        config.database.partitions = Some(partitions);
    })
    .await;
    let store = server.app.store();
    let append = async |requests: &[Request]| -> Vec<String> {
        let requests: Vec<AppendRequest> = requests.iter().map(Request::to_append).collect();
        let requests: Vec<&AppendRequest> = requests.iter().collect();
        let outcomes = store.append_events(PARTITION, &requests).await.unwrap();
        outcomes.iter().map(describe).collect()
    };
    let (one, two, new) = (aggregate_in(0), aggregate_in(0), aggregate_in(0));
    // A worker must not meddle with those that wait: their instant is far.
    let far = |request: Request| {
        let mut append = request.to_append();
        let record = append
            .command
            .as_mut()
            .and_then(|step| Arc::get_mut(step.record.as_mut()?));
        if let Some(record) = record {
            record.not_before = tidings::domain::Timestamp::parse("2999-01-01T00:00:00Z");
        }
        append
    };
    let waiting = [
        Request::create(one),
        Request::create(one),
        Request::create(new),
    ];
    let created: Vec<AppendRequest> = waiting.iter().map(|request| far(request.again())).collect();
    let created: Vec<&AppendRequest> = created.iter().collect();
    let outcomes = store.append_events(PARTITION, &created).await.unwrap();
    assert_eq!(
        outcomes.iter().map(describe).collect::<Vec<_>>(),
        ["done"; 3]
    );

    let first = Request::execute(one, 0, 2);
    let known = first.again();
    let rejected = Request {
        status: CommandStatus::Rejected,
        ..Request::execute(one, 2, 0)
    };
    assert_eq!(append(&[first]).await, ["1 2"]);
    let missing = Request::create(two).settle(0, 1);
    let outcomes = append(&[
        Request::execute(one, 0, 1),
        waiting[0].settle(2, 1),
        known,
        rejected,
        missing,
        Request::execute(two, 0, 0),
        Request::execute(two, 0, 1),
        waiting[1].settle(9, 0),
        waiting[2].settle(0, 3),
        Request::execute(one, 3, 1),
        Request::execute(two, 1, 0),
        Request::execute(new, 0, 1),
    ])
    .await;
    assert_eq!(
        outcomes,
        [
            "conflict: 2, not 0",
            "3",
            "known",
            "conflict: 3, not 2",
            "settled",
            "done",
            "1",
            "conflict: 3, not 9",
            "1 2 3",
            "4",
            "done",
            "conflict: 3, not 0",
        ]
    );
    // What was settled once is not settled again; what was refused is still pending.
    let outcomes = append(&[
        waiting[0].settle(4, 1),
        waiting[1].settle(4, 1),
        waiting[2].again(),
    ])
    .await;
    assert_eq!(outcomes, ["settled", "5", "known"]);

    let log = StoredLog::read_whole(&server.database.url()).await;
    assert_eq!(log.events.len(), 9);
    let ids = waiting.each_ref().map(|request| CommandId(request.command));
    let commands = store.commands_by_id(&ids).await.unwrap();
    for (id, versions) in ids.iter().zip([(3, 3), (5, 5), (1, 3)]) {
        let command = &commands[id];
        assert_eq!(command.status, CommandStatus::Processed);
        assert_eq!(command.attempts, 1);
        assert_eq!(
            command.versions,
            Some((Version(versions.0), Version(versions.1)))
        );
    }
}

fn describe(outcome: &Outcome<AppendedEvent>) -> String {
    match outcome {
        Outcome::Appended { places, .. } if places.is_empty() => "done".to_owned(),
        Outcome::Appended { places, .. } => places
            .iter()
            .map(|place| place.version.to_string())
            .collect::<Vec<_>>()
            .join(" "),
        Outcome::Duplicate => "duplicate".to_owned(),
        Outcome::Refused(Refusal::CommandKnown { .. }) => "known".to_owned(),
        Outcome::Refused(Refusal::CommandSettled { .. }) => "settled".to_owned(),
        Outcome::Refused(Refusal::VersionConflict {
            expected, actual, ..
        }) => format!("conflict: {actual}, not {expected}"),
        Outcome::Refused(refusal) => refusal.to_string(),
    }
}

/// A clock that is set back.
#[derive(Default)]
struct SetBack {
    is_set_back: AtomicBool,
}

impl Clock for SetBack {
    fn now(&self) -> Timestamp {
        let hours = if self.is_set_back.load(Ordering::SeqCst) {
            1
        } else {
            2
        };
        Timestamp::from_micros(1_700_000_000_000_000).after(Duration::from_secs(3600 * hours))
    }

    fn new_id(&self) -> Uuid {
        Uuid::new_v4()
    }
}

#[tokio::test]
async fn pending_commands_keep_their_order_though_the_clock_is_set_back() {
    let database = Database::make(Engine::Sqlite);
    let config = database.config();
    let clock = Arc::new(SetBack::default());
    let app = App::start_with(&config, Domain::guide(), clock.clone())
        .await
        .unwrap();
    let aggregate_id = AggregateId(Uuid::new_v4());
    let mut made = Vec::new();
    for is_set_back in [false, true, true] {
        clock.is_set_back.store(is_set_back, Ordering::SeqCst);
        let command = NewCommand {
            // The order of the ids is the other way round.
            id: CommandId(Uuid::from_u128(100 - made.len() as u128)),
            id_is_given: true,
            aggregate_id,
            command_type: CommandType::new("delete_user").unwrap(),
            data: Json::empty_object(),
            metadata: Json::empty_object(),
            not_before: Timestamp::parse("2999-01-01T00:00:00Z"),
        };
        made.push(app.executor().create(command).await.unwrap());
    }
    let instants: Vec<Timestamp> = made.iter().map(|command| command.created_at).collect();
    assert!(
        instants.is_sorted_by(|one, next| one < next),
        "{instants:?}"
    );
    app.stop().await;
}
