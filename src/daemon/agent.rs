use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::{broadcast, watch};

use super::{liveness::Followed, metrics::Metrics, proxies::Proxies, resolver::Resolver, settings::Settings};
use crate::{
    clock::SystemClock,
    desired::{Document, Editor},
    object::Mark,
    reconcile::{
        runtime::{Command, Commands},
        view::SharedView,
    },
    wire::Event,
};

/// What the tasks of the process share. Everything in it may be used from any task without waiting for a round.
pub struct Agent {
    pub settings: Settings,
    pub mark: Mark,
    pub clock: SystemClock,
    pub editor: Editor,
    pub document: Arc<RwLock<Document>>,
    pub view: SharedView,
    pub commands: Commands,
    /// Generation up to which every edit was part of a finished round.
    pub covered: watch::Receiver<u64>,
    pub metrics: Metrics,
    pub events: broadcast::Sender<Event>,
    pub followed: Followed,
    pub proxies: Proxies,
    pub resolver: Resolver,
    /// Why the process is to end; `None` while it is not.
    pub stop: watch::Sender<Option<Stop>>,
}

/// Why the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A signal: nothing in the kernel changes.
    Signal,
    /// The wire's `Shutdown`: the device was taken down before.
    Shutdown,
}

impl Agent {
    pub fn document(&self) -> RwLockReadGuard<'_, Document> {
        self.document.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a look at everything: while the process was stopped, or an operator thought it worth a signal, events may have been lost.
    pub fn look_again(&self) {
        let (reply, _) = futures::channel::oneshot::channel();
        // A full queue means that a look is coming anyway.
        let _ = self.commands.clone().try_send(Command::Resync(reply));
    }
}
