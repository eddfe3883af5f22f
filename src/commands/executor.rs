//! The executor: loads an aggregate, lets the domain decide, and appends what was decided with the command itself. Floor 4.

mod settling;

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    CommandError,
    decision::{Subject, faulted},
    states::States,
    turns::Turns,
};
use crate::{
    appender::{AppendError, Appender, CommandAppended},
    config::Config,
    domain::{
        Clock, Command, CommandId, CommandKind, CommandStatus, CommandStep, Domain, Event,
        ExpectedVersion, NewCommand, Version, append::Refusal,
    },
    store::{EventRange, Store},
    tail::Tail,
};

/// What executing a command came to.
#[derive(Clone, Debug)]
pub struct Executed {
    /// The command as it is stored now.
    pub command: Command,
    /// The events that it caused.
    pub events: Vec<Arc<Event>>,
}

/// What processing a pending command came to.
#[derive(Clone, Debug)]
pub struct Processed {
    /// The command as it is stored now, and its events where this call has appended them.
    pub executed: Executed,
    /// Whether this call settled it.
    pub processed: bool,
}

/// Decides on commands and appends what was decided.
pub struct Executor {
    store: Store,
    appender: Arc<Appender>,
    tail: Arc<Tail>,
    domain: Arc<Domain>,
    clock: Arc<dyn Clock>,
    states: States,
    turns: Turns,
    request_timeout: Duration,
    max_event_bytes: usize,
    attempts: i32,
    retry_delay: Duration,
}

impl Executor {
    /// Makes the executor of a server.
    #[must_use]
    pub fn new(
        store: Store,
        appender: Arc<Appender>,
        tail: Arc<Tail>,
        domain: Arc<Domain>,
        clock: Arc<dyn Clock>,
        config: &Config,
    ) -> Self {
        Self {
            states: States::new(&store, domain.clone(), config.commands.state_cache_bytes),
            turns: Turns::new(config.limits.max_queue_requests),
            store,
            appender,
            tail,
            domain,
            clock,
            request_timeout: config.limits.request_timeout,
            max_event_bytes: config.limits.max_event_bytes,
            attempts: i32::try_from(config.commands.attempts).unwrap_or(i32::MAX),
            retry_delay: config.commands.retry_delay,
        }
    }

    /// The domain that decides.
    #[must_use]
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Records a command as PENDING. The same one again answers what has become of the first.
    ///
    /// # Errors
    /// When it is wrong, its id stands for something else, or the database cannot take it now.
    pub async fn create(&self, command: NewCommand) -> Result<Command, CommandError> {
        let (command, deadline) = (Arc::new(command), self.deadline());
        let (kind, _) = match self.check(&command) {
            Ok(checked) => checked,
            Err(refusal) => return Ok(self.known_or(refusal, &command).await?.command),
        };
        self.refuse_id_of_other_partition(&command).await?;
        let step = CommandStep {
            id: command.id,
            aggregate_id: command.aggregate_id,
            aggregate_type: Some(kind.aggregate_type.clone()),
            expected_version: ExpectedVersion::Any,
            record: Some(command.clone()),
            status: CommandStatus::Pending,
            reason: None,
        };
        match self
            .appender
            .append_command(step, Vec::new(), deadline)
            .await
        {
            Ok(appended) => {
                let recorded = self.recorded(&command, CommandStatus::Pending, None, &appended);
                Ok(recorded)
            }
            Err(AppendError::Refused(Refusal::CommandKnown { .. })) => {
                let known = self.first_of_id(&command).await?;
                known.ok_or(CommandError::NotThere { id: command.id })
            }
            Err(AppendError::Refused(refusal)) => Err(refusal.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Records a command and processes it at once. The same one again answers the first outcome.
    ///
    /// # Errors
    /// When it is wrong, its id stands for something else, the domain is at fault, or the database cannot take it now.
    pub async fn execute(&self, command: NewCommand) -> Result<Executed, CommandError> {
        let (command, deadline) = (Arc::new(command), self.deadline());
        let lies_ahead = |instant| instant > self.clock.now();
        if command.not_before.is_some_and(lies_ahead) {
            return self.known_or(CommandError::NotBeforeAhead, &command).await;
        }
        let (kind, subject) = match self.check(&command) {
            Ok(checked) => checked,
            Err(refusal) => return self.known_or(refusal, &command).await,
        };
        self.refuse_id_of_other_partition(&command).await?;
        let _turn = self.turns.take(command.aggregate_id, deadline).await?;
        let known = self.guessed(kind, command.aggregate_id);
        let record = Some(&command);
        match self
            .decide_and_append(kind, &subject, record, known, deadline)
            .await
        {
            Ok((outcome, appended)) => Ok(Executed {
                command: self.recorded(&command, outcome.status, outcome.reason, &appended),
                events: appended.events,
            }),
            Err(CommandError::Append(AppendError::Refused(Refusal::CommandKnown { .. }))) => {
                let known = self.first_of_id(&command).await?;
                let known = known.ok_or(CommandError::NotThere { id: command.id })?;
                Ok(self.settle(known, deadline).await?.executed)
            }
            Err(fault @ CommandError::Faulted { .. }) => match self.first_of_id(&command).await? {
                // It was created before, and waits to be decided: that is not settled by this.
                Some(known) if known.status == CommandStatus::Pending => {
                    Ok(self.settle(known, deadline).await?.executed)
                }
                _ => self.known_or(fault, &command).await,
            },
            Err(error) => Err(error),
        }
    }

    /// Processes a pending command now, whatever instant it waits for.
    ///
    /// # Errors
    /// When there is no such command, or the database cannot take it now.
    pub async fn process(&self, id: CommandId) -> Result<Processed, CommandError> {
        let deadline = self.deadline();
        let command = self.stored(id).await?;
        let command = command.ok_or(CommandError::NotThere { id })?;
        if command.status != CommandStatus::Pending || self.leaves(&command).await? {
            return Ok(not_processed(command));
        }
        let _turn = self.turns.take(command.aggregate_id, deadline).await?;
        self.settle(command, deadline).await
    }

    /// Processes a command that was found due; none where it is left to another server.
    ///
    /// # Errors
    /// When the database cannot take it now.
    pub(super) async fn process_due(
        &self,
        command: Command,
    ) -> Result<Option<Processed>, CommandError> {
        let deadline = self.deadline();
        let span = self
            .appender
            .traces()
            .go_on("process command", &command.metadata);
        let _turn = self.turns.take(command.aggregate_id, deadline).await?;
        if self.leaves(&command).await? {
            return Ok(None);
        }
        span.within(self.settle(command, deadline)).await.map(Some)
    }

    /// Whether a pending command is left to the servers whose domain is in force: its type is not known here, and may be there.
    async fn leaves(&self, command: &Command) -> Result<bool, CommandError> {
        if self.domain.command(&command.command_type).is_some() {
            return Ok(false);
        }
        let in_force = self.store.domain_in_force().await?;
        Ok(in_force.is_some_and(|in_force| in_force.fingerprint != self.domain.fingerprint()))
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.request_timeout
    }

    /// The command's kind, and the command as deciders see it, if its type is known and its data right.
    fn check<'c>(
        &self,
        command: &'c NewCommand,
    ) -> Result<(&CommandKind, Subject<'c>), CommandError> {
        let name = &command.command_type;
        let kind = self.domain.command(name);
        let kind = kind.ok_or_else(|| CommandError::UnknownType {
            name: name.clone(),
            known: self
                .domain
                .command_types()
                .map(|kind| kind.description.name.clone())
                .collect(),
        })?;
        let not_json = |_| faulted("it is not JSON");
        let subject = Subject {
            id: command.id,
            command_type: name,
            aggregate_id: command.aggregate_id,
            data: command.data.to_value().map_err(not_json)?,
            text: &command.data,
            metadata: command.metadata.to_value().map_err(not_json)?,
        };
        match kind.check(&subject.data) {
            Ok(()) => Ok((kind, subject)),
            Err(violations) => Err(CommandError::WrongData {
                name: name.clone(),
                violations,
            }),
        }
    }

    /// A repeat of a command that was taken once gets its first outcome, whatever the domain says to it now.
    async fn known_or(
        &self,
        refusal: CommandError,
        command: &NewCommand,
    ) -> Result<Executed, CommandError> {
        if !command.id_is_given {
            return Err(refusal);
        }
        match self.first_of_id(command).await {
            Ok(Some(known)) => Ok(self.settled_before(known).await?.executed),
            Ok(None) | Err(CommandError::IdReused { .. }) => Err(refusal),
            Err(error) => Err(error),
        }
    }

    /// An id means one thing in the whole database, and an append knows only those of its own partition.
    async fn refuse_id_of_other_partition(&self, command: &NewCommand) -> Result<(), CommandError> {
        let partitions = self.store.partitions();
        if partitions.get() == 1 || !command.id_is_given {
            return Ok(());
        }
        let own = partitions.of_aggregate(command.aggregate_id);
        match self.stored(command.id).await? {
            Some(known) if known.partition != own => Err(CommandError::IdReused { id: command.id }),
            _ => Ok(()),
        }
    }

    async fn stored(&self, id: CommandId) -> Result<Option<Command>, CommandError> {
        Ok(self.store.commands_by_id(&[id]).await?.remove(&id))
    }

    /// The command that was stored first with the id of this one, if it is the same.
    async fn first_of_id(&self, command: &NewCommand) -> Result<Option<Command>, CommandError> {
        let Some(known) = self.stored(command.id).await? else {
            return Ok(None);
        };
        let is_the_same = known.aggregate_id == command.aggregate_id
            && known.command_type == command.command_type
            && known.data.same_value(&command.data);
        if is_the_same {
            Ok(Some(known))
        } else {
            Err(CommandError::IdReused { id: command.id })
        }
    }

    /// A command that was settled before, with the events that it caused then.
    async fn settled_before(&self, command: Command) -> Result<Processed, CommandError> {
        let mut processed = not_processed(command);
        let command = &processed.executed.command;
        if let Some((first, last)) = command.versions {
            let range = EventRange {
                aggregate_id: command.aggregate_id,
                first,
                last,
            };
            // They were appended together, so they are as large as one request at most.
            let events = self.store.events_in_ranges(&[range], usize::MAX).await?;
            let mut events = events.unwrap_or_default();
            events.sort_by_key(|event| event.version);
            processed.executed.events = events.into_iter().map(Arc::new).collect();
        }
        Ok(processed)
    }

    /// A command that was recorded just now.
    fn recorded(
        &self,
        command: &NewCommand,
        status: CommandStatus,
        reason: Option<String>,
        appended: &CommandAppended,
    ) -> Command {
        let is_pending = status == CommandStatus::Pending;
        Command {
            partition: self.store.partitions().of_aggregate(command.aggregate_id),
            id: command.id,
            aggregate_id: command.aggregate_id,
            command_type: command.command_type.clone(),
            data: command.data.clone(),
            metadata: command.metadata.clone(),
            status,
            reason,
            attempts: i32::from(!is_pending),
            not_before: command.not_before,
            versions: versions_of(&appended.events),
            created_at: appended.at,
            processed_at: (!is_pending).then_some(appended.at),
        }
    }
}

fn versions_of(events: &[Arc<Event>]) -> Option<(Version, Version)> {
    Some((events.first()?.version, events.last()?.version))
}

fn not_processed(command: Command) -> Processed {
    Processed {
        executed: Executed {
            command,
            events: Vec::new(),
        },
        processed: false,
    }
}
