//! Time as an argument, and how long to wait before a failed thing is tried again.
//!
//! Owns the two readings that the loop needs (an instant that never jumps and a wall clock) and the backoff curve.
//! Leaves timers to [`reconcile::runtime`](crate::reconcile::runtime).
//!
//! Upholds I-16: rooms below `daemon` get a [`Now`] and never ask for one.
//!
//! A handshake is a wall-clock time on a kernel device and an age on the userspace device. Both become
//! [`UnixTime`] at the edge; one type, so that an age is never read as a date again (B2).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Seconds since 1970-01-01 00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    pub fn from_system(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
    }

    /// How long before `self` the moment `earlier` was; zero when it lies ahead (a clock was set back).
    pub fn since(self, earlier: UnixTime) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

/// One reading of both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub unix: UnixTime,
}

/// Where the loop gets its time from. The simulation has its own.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Now;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { instant: Instant::now(), unix: UnixTime::from_system(SystemTime::now()) }
    }
}

/// First wait after a failure: long enough for a burst of events to pass, short enough not to be noticed.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait between two tries of one object: a person who mends the cause sees the effect within it.
pub const BACKOFF_LAST: Duration = Duration::from_secs(30);

/// Wait before try number `attempts + 1`: doubles from [`BACKOFF_FIRST`] up to [`BACKOFF_LAST`].
pub fn backoff(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_LAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_and_stops_growing() {
        assert_eq!(backoff(1), BACKOFF_FIRST);
        assert_eq!(backoff(2), BACKOFF_FIRST * 2);
        assert_eq!(backoff(3), BACKOFF_FIRST * 4);
        assert_eq!(backoff(u32::MAX), BACKOFF_LAST);
    }

    #[test]
    fn a_handshake_ahead_of_a_clock_that_was_set_back_has_age_zero() {
        assert_eq!(UnixTime(10).since(UnixTime(20)), Duration::ZERO);
    }
}
