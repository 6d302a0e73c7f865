//! Sockets that the document asks for, each with the task that serves it.
//!
//! Owns which of them are open, what became of the others, and when those are tried again. Leaves which are wanted, opening and serving to
//! [`proxies`](super::proxies) and [`resolver`](super::resolver).
//!
//! A task whose handle is dropped goes on, and its socket stays: here it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Interval, MissedTickBehavior, interval},
};

/// How often a port that another program has is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What is known of the sockets of one kind, for requests and reports.
pub struct Known<Place>(Mutex<Standing<Place>>);

pub struct Standing<Place> {
    pub open: BTreeSet<Place>,
    /// Why a place is not listened on, for those that are not.
    pub trouble: BTreeMap<Place, String>,
}

impl<Place> Default for Known<Place> {
    fn default() -> Self {
        Self(Mutex::new(Standing { open: BTreeSet::new(), trouble: BTreeMap::new() }))
    }
}

impl<Place> Known<Place> {
    pub fn lock(&self) -> MutexGuard<'_, Standing<Place>> {
        // Each change of it is one call on a map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open sockets of one kind, by where they are; each is there for some purpose.
pub struct Listeners<Place, Purpose> {
    known: Arc<Known<Place>>,
    running: BTreeMap<Place, Running<Purpose>>,
    covered: watch::Receiver<u64>,
    again: Interval,
}

struct Running<Purpose> {
    purpose: Purpose,
    task: JoinHandle<()>,
}

impl<Purpose> Drop for Running<Purpose> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is worth a line in the log about a place.
pub enum News {
    /// It is listened on, after it could not be.
    Open,
    /// It cannot be listened on, for the first time.
    Shut(io::Error),
}

impl<Place: Ord + Copy, Purpose: PartialEq> Listeners<Place, Purpose> {
    pub fn new(known: Arc<Known<Place>>, covered: watch::Receiver<u64>) -> Self {
        let mut again = interval(TRY_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { known, running: BTreeMap::new(), covered, again }
    }

    /// Ends what is not wanted any more, or for another purpose, and answers with what is wanted and not open.
    pub async fn missing(&mut self, mut wanted: BTreeMap<Place, Purpose>) -> BTreeMap<Place, Purpose> {
        let is_wanted = |place: &Place, present: &Running<Purpose>| {
            wanted.get(place) == Some(&present.purpose) && !present.task.is_finished()
        };
        let ending = self.running.iter().filter(|(place, present)| !is_wanted(place, present));
        for place in ending.map(|(place, _)| *place).collect::<Vec<_>>() {
            let Some(mut present) = self.running.remove(&place) else { continue };
            present.task.abort();
            // Until it has ended it holds the very port that may be wanted again.
            let _ = (&mut present.task).await;
        }
        let mut known = self.known.lock();
        known.open.retain(|place| self.running.contains_key(place));
        known.trouble.retain(|place, _| wanted.contains_key(place));
        wanted.retain(|place, _| !self.running.contains_key(place));
        wanted
    }

    /// Keeps what was opened, or notes why it was not.
    pub fn note(&mut self, place: Place, purpose: Purpose, opened: io::Result<JoinHandle<()>>) -> Option<News> {
        let mut known = self.known.lock();
        match opened {
            Ok(task) => {
                self.running.insert(place, Running { purpose, task });
                known.open.insert(place);
                known.trouble.remove(&place).map(|_| News::Open)
            }
            Err(error) => known.trouble.insert(place, error.to_string()).is_none().then_some(News::Shut(error)),
        }
    }

    /// Waits for an edit, or for the time to try again. False when there will be no more edits.
    pub async fn wait(&mut self) -> bool {
        tokio::select! {
            // Every edit is part of some round.
            changed = self.covered.changed() => changed.is_ok(),
            _ = self.again.tick() => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn what_cannot_be_opened_is_told_once_and_tried_again_and_what_is_not_wanted_ends() {
        let (_covered, rounds) = watch::channel(0);
        let known = Arc::new(Known::default());
        let mut listeners = Listeners::new(known.clone(), rounds);
        let wanted = |purpose: &'static str| BTreeMap::from([(53, purpose)]);
        let taken = || Err(io::ErrorKind::AddrInUse.into());
        assert_eq!(listeners.missing(wanted("names")).await, wanted("names"));
        assert!(matches!(listeners.note(53, "names", taken()), Some(News::Shut(_))));
        assert_eq!(listeners.missing(wanted("names")).await, wanted("names"));
        assert!(listeners.note(53, "names", taken()).is_none());
        assert!(known.lock().trouble.contains_key(&53) && known.lock().open.is_empty());

        let socket = Arc::new(());
        let serve = |socket: Arc<()>| async move {
            pending::<()>().await;
            drop(socket);
        };
        assert!(matches!(listeners.note(53, "names", Ok(tokio::spawn(serve(socket.clone())))), Some(News::Open)));
        assert!(known.lock().trouble.is_empty() && known.lock().open.contains(&53));
        assert!(listeners.missing(wanted("names")).await.is_empty());
        assert_eq!(Arc::strong_count(&socket), 2);

        assert_eq!(listeners.missing(wanted("pages")).await, wanted("pages"));
        assert!(known.lock().open.is_empty());
        assert_eq!(Arc::strong_count(&socket), 1, "it was closed before it is wanted again");
    }
}
