//! From a command to its outcome: deciding again while others change the aggregate, and counting faults. Floor 4.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Executed, Executor, Processed, not_processed, versions_of};
use crate::{
    appender::{AppendError, CommandAppended},
    commands::{
        CommandError,
        decision::{Decision, Decisions, Subject, faulted, reason_of},
        states::Known,
    },
    domain::{
        AggregateId, Command, CommandId, CommandKind, CommandStatus, CommandStep, ExpectedVersion,
        NewCommand, NewEvent, append::Refusal,
    },
};

/// The longest pause between two tries.
const LONGEST_RETRY_DELAY: Duration = Duration::from_secs(3600);

/// What a command becomes.
pub(super) struct Outcome {
    pub(super) status: CommandStatus,
    pub(super) reason: Option<String>,
}

impl Outcome {
    fn processed() -> Self {
        Self {
            status: CommandStatus::Processed,
            reason: None,
        }
    }

    fn rejected(reason: String) -> Self {
        Self {
            status: CommandStatus::Rejected,
            reason: Some(reason),
        }
    }
}

impl Executor {
    /// What is known of an aggregate without looking: of one that a command makes, that it is not there.
    pub(super) fn guessed(&self, kind: &CommandKind, id: AggregateId) -> Option<Known> {
        let kept = self.states.kept(id);
        match kept {
            None if kind.description.creates => Some(self.states.initial(&kind.aggregate_type)),
            kept => kept,
        }
    }

    /// Settles a command that was pending when it was read, under the turn of its aggregate.
    pub(super) async fn settle(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Processed, CommandError> {
        if command.status != CommandStatus::Pending {
            return self.settled_before(command).await;
        }
        match self.decide_pending(&command, deadline).await {
            Ok((outcome, appended)) => Ok(Processed {
                executed: Executed {
                    command: settled(command, outcome, &appended),
                    events: appended.events,
                },
                processed: true,
            }),
            Err(CommandError::Faulted { reason }) => {
                self.count_fault(command, &reason, deadline).await
            }
            Err(CommandError::Append(AppendError::Refused(Refusal::CommandSettled { id }))) => {
                let command = self.stored(id).await?;
                let command = command.ok_or(CommandError::NotThere { id })?;
                self.settled_before(command).await
            }
            Err(error) => Err(error),
        }
    }

    async fn decide_pending(
        &self,
        command: &Command,
        deadline: Instant,
    ) -> Result<(Outcome, CommandAppended), CommandError> {
        let name = &command.command_type;
        let kind = self.domain.command(name);
        let kind = kind.ok_or_else(|| faulted(&format!("no decider takes {name} any more")))?;
        let not_json = |_| faulted("it is not JSON");
        let subject = Subject {
            id: command.id,
            command_type: name,
            aggregate_id: command.aggregate_id,
            data: command.data.to_value().map_err(not_json)?,
            text: &command.data,
            metadata: command.metadata.to_value().map_err(not_json)?,
        };
        if let Err(violations) = kind.check(&subject.data) {
            let violations: Vec<String> = violations.iter().map(ToString::to_string).collect();
            let reason = reason_of(&format!("its data: {}", violations.join("; ")));
            return self.reject(&subject, reason, deadline).await;
        }
        let known = self.guessed(kind, command.aggregate_id);
        match self
            .decide_and_append(kind, &subject, None, known, deadline)
            .await
        {
            // An aggregate keeps its type for ever.
            Err(CommandError::TypeMismatch { expected, actual }) => {
                let reason = format!("the aggregate is a {actual}, not a {expected}");
                self.reject(&subject, reason, deadline).await
            }
            Err(CommandError::Append(AppendError::Refused(Refusal::ValueRefused))) => {
                Err(faulted("the database refuses a value of its events"))
            }
            decided => decided,
        }
    }

    /// Decides and appends, again and again while others change the aggregate meanwhile. A fault counts only where nothing has
    /// happened to the aggregate since the version that it comes of: a state that was guessed or kept may be the whole reason.
    pub(super) async fn decide_and_append(
        &self,
        kind: &CommandKind,
        subject: &Subject<'_>,
        record: Option<&Arc<NewCommand>>,
        guessed: Option<Known>,
        deadline: Instant,
    ) -> Result<(Outcome, CommandAppended), CommandError> {
        let id = subject.aggregate_id;
        let load = || self.states.load(id, &kind.aggregate_type, deadline);
        let load_newer = async |version| {
            let loaded = load().await?;
            Ok::<_, CommandError>((loaded.version != version).then_some(loaded))
        };
        let mut known = match guessed {
            Some(known) => known,
            None => load().await?,
        };
        loop {
            if let Some(actual) = known.aggregate_type.as_ref()
                && *actual != kind.aggregate_type
            {
                return Err(CommandError::TypeMismatch {
                    expected: kind.aggregate_type.clone(),
                    actual: actual.clone(),
                });
            }
            let (outcome, events) = match self.decide(kind, subject, &known) {
                Err(fault @ CommandError::Faulted { .. }) => {
                    known = load_newer(known.version).await?.ok_or(fault)?;
                    continue;
                }
                decided => decided?,
            };
            let step = CommandStep {
                id: subject.id,
                aggregate_id: id,
                aggregate_type: Some(kind.aggregate_type.clone()),
                expected_version: ExpectedVersion::Exactly(known.version),
                record: record.cloned(),
                status: outcome.status,
                reason: outcome.reason.clone(),
            };
            match self.appender.append_command(step, events, deadline).await {
                Ok(appended) => {
                    self.states.advance(id, known, &appended.events);
                    return Ok((outcome, appended));
                }
                Err(AppendError::Refused(Refusal::VersionConflict { actual, .. })) => {
                    if actual < known.version {
                        self.states.forget(id);
                    }
                    if Instant::now() >= deadline {
                        return Err(AppendError::contended().into());
                    }
                    known = load().await?;
                }
                Err(AppendError::Refused(refusal @ Refusal::ValueRefused)) => {
                    known = load_newer(known.version).await?.ok_or(refusal)?;
                }
                Err(AppendError::Refused(refusal)) => return Err(refusal.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn decide(
        &self,
        kind: &CommandKind,
        subject: &Subject<'_>,
        known: &Known,
    ) -> Result<(Outcome, Vec<NewEvent>), CommandError> {
        let decisions = Decisions {
            domain: &self.domain,
            clock: self.clock.as_ref(),
            max_event_bytes: self.max_event_bytes,
            place: self.appender.traces().current(),
        };
        Ok(match decisions.decide(kind, subject, known)? {
            Decision::Events(events) => (Outcome::processed(), events),
            Decision::Rejected(reason) => (Outcome::rejected(reason), Vec::new()),
        })
    }

    /// Rejects a pending command whatever its aggregate's state is.
    async fn reject(
        &self,
        subject: &Subject<'_>,
        reason: String,
        deadline: Instant,
    ) -> Result<(Outcome, CommandAppended), CommandError> {
        self.end(
            subject.id,
            subject.aggregate_id,
            Outcome::rejected(reason),
            deadline,
        )
        .await
    }

    /// Gives a pending command an outcome that needs no decision.
    async fn end(
        &self,
        id: CommandId,
        aggregate_id: AggregateId,
        outcome: Outcome,
        deadline: Instant,
    ) -> Result<(Outcome, CommandAppended), CommandError> {
        let step = CommandStep {
            id,
            aggregate_id,
            aggregate_type: None,
            expected_version: ExpectedVersion::Any,
            record: None,
            status: outcome.status,
            reason: outcome.reason.clone(),
        };
        let appended = self
            .appender
            .append_command(step, Vec::new(), deadline)
            .await;
        Ok((outcome, appended?))
    }

    /// Counts a try that failed for a fault: the next one comes later, and after the last one the command is FAILED.
    async fn count_fault(
        &self,
        command: Command,
        reason: &str,
        deadline: Instant,
    ) -> Result<Processed, CommandError> {
        let attempts = command.attempts + 1;
        tracing::warn!(
            command = %command.id,
            attempts,
            "a command of the type {} cannot be decided: {reason}",
            command.command_type
        );
        if attempts < self.attempts {
            let delay = retry_delay(self.retry_delay, attempts);
            self.store.postpone_command(&command, reason, delay).await?;
            // It may not be the worker who tried, and it waits for other instants.
            self.tail.command_bell().wake_worker(command.partition);
        } else {
            let outcome = Outcome {
                status: CommandStatus::Failed,
                reason: Some(reason.to_owned()),
            };
            let (id, aggregate_id) = (command.id, command.aggregate_id);
            match self.end(id, aggregate_id, outcome, deadline).await {
                Ok((outcome, appended)) => {
                    return Ok(Processed {
                        processed: true,
                        ..not_processed(settled(command, outcome, &appended))
                    });
                }
                Err(CommandError::Append(AppendError::Refused(_))) => {}
                Err(error) => return Err(error),
            }
        }
        let id = command.id;
        let command = self.stored(id).await?;
        Ok(not_processed(command.ok_or(CommandError::NotThere { id })?))
    }
}

/// A pending command that was settled just now.
fn settled(command: Command, outcome: Outcome, appended: &CommandAppended) -> Command {
    Command {
        status: outcome.status,
        reason: outcome.reason,
        attempts: command.attempts + 1,
        versions: versions_of(&appended.events),
        processed_at: Some(appended.at),
        ..command
    }
}

/// The pause after so many tries that failed.
fn retry_delay(first: Duration, attempts: i32) -> Duration {
    let exponent = u32::try_from(attempts - 1).unwrap_or(0).min(16);
    first
        .saturating_mul(4_u32.saturating_pow(exponent))
        .min(LONGEST_RETRY_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_is_four_times_as_long_up_to_an_hour() {
        let delays: Vec<u64> = (1..=8)
            .map(|attempts| retry_delay(Duration::from_secs(1), attempts).as_secs())
            .collect();
        assert_eq!(delays, [1, 4, 16, 64, 256, 1024, 3600, 3600]);
        assert_eq!(
            retry_delay(Duration::from_secs(9000), 1),
            LONGEST_RETRY_DELAY
        );
        assert_eq!(
            retry_delay(Duration::from_secs(1), i32::MAX),
            LONGEST_RETRY_DELAY
        );
    }
}
