use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    channel::mpsc,
    stream::{BoxStream, StreamExt},
};

use super::SimNode;
use crate::{
    action::Action,
    object::{Key, Subsystem},
    observed::{Coverage, Observation},
    platform::{ActionError, Hint, Interest, Kernel, ObserveError},
};

/// What goes wrong, once, at the next opportunity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The next action fails and has no effect.
    FailBefore(ActionError),
    /// The next action has its effect and its answer is lost.
    FailAfter(ActionError),
    /// The next dump of this subsystem ends early and shows nothing of it.
    CutDump(Subsystem),
    /// The next look fails altogether.
    Blind,
}

/// A kernel in memory. Clones share the node: one for the engine, one for the test.
#[derive(Clone, Default)]
pub struct SimKernel {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    node: SimNode,
    /// How many actions go well before it, and what goes wrong then.
    faults: VecDeque<(usize, Fault)>,
    /// Objects whose every action fails until the entry is removed.
    broken: BTreeMap<Key, ActionError>,
    hints: Vec<mpsc::UnboundedSender<Hint>>,
    calls: usize,
    looks: usize,
}

impl SimKernel {
    pub fn new(node: SimNode) -> Self {
        let shared = Shared { node, ..Shared::default() };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Looks at or changes the node as somebody outside the agent would; no hint is given.
    pub fn node<T>(&self, work: impl FnOnce(&mut SimNode) -> T) -> T {
        work(&mut self.lock().node)
    }

    pub fn inject(&self, fault: Fault) {
        self.inject_after(0, fault);
    }

    /// The same, once this many more actions went well.
    pub fn inject_after(&self, actions: usize, fault: Fault) {
        self.lock().faults.push_back((actions, fault));
    }

    /// Makes every action on `key` fail until [`mend`](Self::mend).
    pub fn break_object(&self, key: Key, error: ActionError) {
        self.lock().broken.insert(key, error);
    }

    pub fn mend(&self, key: &Key) {
        self.lock().broken.remove(key);
    }

    /// From now on everything works again.
    pub fn heal(&self) {
        let mut shared = self.lock();
        shared.faults.clear();
        shared.broken.clear();
    }

    pub fn hint(&self, hint: Hint) {
        self.lock().hints.retain(|sender| sender.unbounded_send(hint).is_ok());
    }

    /// Calls of `execute` so far: messages on the wire of a real kernel.
    pub fn calls(&self) -> usize {
        self.lock().calls
    }

    /// Calls of `observe` so far: dumps of a real kernel.
    pub fn looks(&self) -> usize {
        self.lock().looks
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn take_fault(&mut self, is_meant: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let position = self.faults.iter().position(|(_, fault)| is_meant(fault))?;
        if let Some((actions @ 1.., _)) = self.faults.get_mut(position) {
            *actions -= 1;
            return None;
        }
        self.faults.remove(position).map(|(_, fault)| fault)
    }

    fn execute(&mut self, action: &Action) -> Result<(), ActionError> {
        if let Some(error) = self.broken.get(action.key()) {
            return Err(error.clone());
        }
        match self.take_fault(|fault| matches!(fault, Fault::FailBefore(_) | Fault::FailAfter(_))) {
            Some(Fault::FailBefore(error)) => Err(error),
            Some(Fault::FailAfter(error)) => self.node.execute(action).and(Err(error)),
            Some(Fault::CutDump(_) | Fault::Blind) | None => self.node.execute(action),
        }
    }

    fn observe(&mut self, interest: &Interest) -> Result<Observation, ObserveError> {
        self.looks += 1;
        if self.take_fault(|fault| *fault == Fault::Blind).is_some() {
            return Err(ObserveError { what: "everything".into(), reason: "simulated".into() });
        }
        let mut seen = self.node.observe(interest);
        let is_meant = |fault: &Fault| matches!(fault, Fault::CutDump(part) if interest.subsystems.contains(part));
        while let Some(Fault::CutDump(part)) = self.take_fault(is_meant) {
            seen.objects.retain(|key, _| key.subsystem() != part);
            seen.coverage.insert(part, Coverage::Partial("simulated interruption".into()));
        }
        Ok(seen)
    }
}

impl Kernel for SimKernel {
    fn observe(&mut self, interest: &Interest) -> impl Future<Output = Result<Observation, ObserveError>> + Send {
        let seen = self.lock().observe(interest);
        async move { seen }
    }

    fn execute(&mut self, actions: &[Action]) -> impl Future<Output = Vec<Result<(), ActionError>>> + Send {
        let mut shared = self.lock();
        shared.calls += 1;
        let outcomes: Vec<_> = actions.iter().map(|action| shared.execute(action)).collect();
        drop(shared);
        async move { outcomes }
    }

    fn hints(&mut self) -> BoxStream<'static, Hint> {
        let (sender, receiver) = mpsc::unbounded();
        self.lock().hints.push(sender);
        receiver.boxed()
    }
}
