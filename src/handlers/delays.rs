//! How long to wait before a delivery is tried again. Floor 4.

use std::time::Duration;

use uuid::Uuid;

use crate::config;

/// Each pause is so many times as long as the one before.
const GROWTH: u32 = 5;
/// By how much of itself a pause is shorter or longer by chance, so that what failed together is not tried together.
const JITTER: f64 = 0.2;

/// The pause after an attempt that failed, the first one being 1. `chance` is anything random.
pub(super) fn retry_delay(config: &config::Handlers, attempt: u32, chance: Uuid) -> Duration {
    let random = u32::from_be_bytes(last_bytes(chance));
    let share = f64::from(random) / f64::from(u32::MAX);
    grown_delay(config, attempt).mul_f64(1.0 - JITTER + 2.0 * JITTER * share)
}

/// The same, before chance has its part: `tidings_run_sql_handler` draws it by itself for each delivery.
pub(super) fn grown_delay(config: &config::Handlers, attempt: u32) -> Duration {
    let steps = attempt.saturating_sub(1).min(30);
    GROWTH
        .checked_pow(steps)
        .and_then(|factor| config.retry_delay.checked_mul(factor))
        .unwrap_or(config.longest_delay)
        .min(config.longest_delay)
}

/// The bytes of an id that are random in every version.
fn last_bytes(id: Uuid) -> [u8; 4] {
    let bytes = id.as_bytes();
    [bytes[12], bytes[13], bytes[14], bytes[15]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_differ_a_little() {
        let config = config::Handlers::default();
        let least = |attempt| retry_delay(&config, attempt, Uuid::nil());
        let most = |attempt| retry_delay(&config, attempt, Uuid::max());
        assert_eq!(least(1), Duration::from_secs(4));
        assert_eq!(most(1), Duration::from_secs(6));
        assert_eq!(least(3), Duration::from_secs(100));
        assert_eq!(most(7), Duration::from_secs(6 * 3600).mul_f64(1.2));
        assert_eq!(most(7), most(1000));
        assert!((1..6).all(|attempt| most(attempt) < least(attempt + 1)));
    }
}
