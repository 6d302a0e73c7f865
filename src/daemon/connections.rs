//! Who is connected, and how much memory their unfinished frames hold together.
//!
//! Owns the two limits over all connections. Leaves the limits of one connection to [`connection`](super::connection).
//!
//! Upholds I-15 (B17, B28).
//!
//! When there are too many, the connection that has been idle longest is closed, not the new one refused: a leak in one client must not
//! lock out the others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

/// Bytes that the unfinished frames of all connections may hold together: eight of the largest.
const HELD_MAX: usize = 8 * crate::wire::limits::FRAME_MAX;

/// A frame that holds no more than this is never the one that is too much: others may have used the memory up, and ordinary requests must
/// still get through.
const HELD_SMALL: usize = 64 * 1024;

/// All open connections.
#[derive(Default)]
pub struct Connections {
    open: Mutex<BTreeMap<u64, Arc<Seat>>>,
    held: AtomicUsize,
}

/// One open connection, as the others see it.
pub struct Seat {
    pub id: u64,
    last_active: Mutex<Instant>,
    /// Requests that are being worked on.
    busy: AtomicUsize,
    /// Wakes the connection to close itself.
    pub close: Notify,
}

impl Seat {
    pub fn touch(&self) {
        *self.last_active.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub fn begin(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    pub fn end(&self) {
        self.busy.fetch_sub(1, Ordering::Relaxed);
        self.touch();
    }
}

impl Connections {
    /// Gives a new connection its seat.
    pub fn enter(&self, id: u64) -> Arc<Seat> {
        let seat = Arc::new(Seat {
            id,
            last_active: Mutex::new(Instant::now()),
            busy: AtomicUsize::new(0),
            close: Notify::new(),
        });
        self.lock().insert(id, seat.clone());
        seat
    }

    pub fn leave(&self, id: u64) {
        self.lock().remove(&id);
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Closes the connection that has been idle longest. False when every one is busy.
    pub fn close_idlest(&self) -> bool {
        let mut open = self.lock();
        let idle = open.values().filter(|seat| seat.busy.load(Ordering::Relaxed) == 0);
        let since = |seat: &&Arc<Seat>| *seat.last_active.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(id) = idle.min_by_key(since).map(|seat| seat.id) else {
            return false;
        };
        if let Some(seat) = open.remove(&id) {
            // A permit is kept for a connection that is not waiting yet.
            seat.close.notify_one();
        }
        true
    }

    /// Accounts for a change in what one connection's unfinished frame holds. False when all together hold too much and this one is not small.
    pub fn hold(&self, before: usize, now: usize) -> bool {
        let held = if now >= before {
            self.held.fetch_add(now - before, Ordering::Relaxed) + (now - before)
        } else {
            self.held.fetch_sub(before - now, Ordering::Relaxed) - (before - now)
        };
        held <= HELD_MAX || now <= HELD_SMALL
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Seat>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_connection_is_closed_and_a_busy_one_never() {
        let connections = Connections::default();
        let busy = connections.enter(1);
        busy.begin();
        let idle = connections.enter(2);
        connections.enter(3);
        assert!(connections.close_idlest());
        assert_eq!(connections.len(), 2);
        assert!(idle.last_active.lock().unwrap().elapsed() < std::time::Duration::from_secs(60));
        assert!(connections.close_idlest());
        assert!(!connections.close_idlest(), "only the busy one is left");
    }

    #[test]
    fn the_memory_of_unfinished_frames_is_bounded_over_all_connections() {
        let connections = Connections::default();
        assert!(connections.hold(0, HELD_MAX));
        assert!(connections.hold(0, HELD_SMALL), "ordinary requests still get through");
        assert!(!connections.hold(HELD_SMALL, HELD_SMALL + 1));
        assert!(connections.hold(HELD_MAX, 0));
    }
}
