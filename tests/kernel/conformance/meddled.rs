//! Mishaps between the agent and the kernel: an action that is not passed on, an answer that is swallowed, a look that is cut.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use futures::stream::BoxStream;
use overlayd::{
    action::Action,
    object::Key,
    observed::{Coverage, Observation},
    platform::{ActionError, Hint, Interest, Kernel, ObserveError, linux::LinuxKernel},
};

use crate::script::stage::Mishap;

/// What goes wrong, and when.
#[derive(Default)]
pub struct Mishaps {
    /// How many actions go well before it.
    pub once: VecDeque<(usize, Mishap)>,
    pub always: BTreeMap<Key, ActionError>,
}

impl Mishaps {
    fn take(&mut self, is_meant: impl Fn(Mishap) -> bool) -> Option<Mishap> {
        let position = self.once.iter().position(|(_, mishap)| is_meant(*mishap))?;
        if let Some((actions @ 1.., _)) = self.once.get_mut(position) {
            *actions -= 1;
            return None;
        }
        self.once.remove(position).map(|(_, mishap)| mishap)
    }
}

/// The real kernel, and what comes between.
pub struct Meddled {
    pub kernel: LinuxKernel,
    pub mishaps: Arc<Mutex<Mishaps>>,
}

pub fn lock(mishaps: &Mutex<Mishaps>) -> MutexGuard<'_, Mishaps> {
    mishaps.lock().unwrap()
}

impl Kernel for Meddled {
    async fn observe(&mut self, interest: &Interest) -> Result<Observation, ObserveError> {
        if lock(&self.mishaps).take(|mishap| matches!(mishap, Mishap::NothingIsSeen)).is_some() {
            return Err(ObserveError { what: "everything".into(), reason: "simulated".into() });
        }
        let mut seen = self.kernel.observe(interest).await?;
        let is_meant = |mishap| matches!(mishap, Mishap::DumpIsCut(part) if interest.subsystems.contains(&part));
        while let Some(Mishap::DumpIsCut(part)) = lock(&self.mishaps).take(is_meant) {
            seen.objects.retain(|key, _| key.subsystem() != part);
            seen.coverage.insert(part, Coverage::Partial("simulated interruption".into()));
        }
        Ok(seen)
    }

    async fn execute(&mut self, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        let mut outcomes = Vec::new();
        for action in actions {
            let (broken, mishap) = {
                let mut mishaps = lock(&self.mishaps);
                let broken = mishaps.always.get(action.key()).cloned();
                let of_actions = |mishap| matches!(mishap, Mishap::FailsBeforeItsEffect | Mishap::AnswerIsLost);
                let mishap = if broken.is_none() { mishaps.take(of_actions) } else { None };
                (broken, mishap)
            };
            outcomes.push(match (broken, mishap) {
                (Some(error), _) => Err(error),
                (None, Some(Mishap::FailsBeforeItsEffect)) => Err(ActionError::Failed("simulated".into())),
                (None, mishap) => {
                    let outcome = self.kernel.execute(std::slice::from_ref(action)).await.remove(0);
                    if mishap.is_some() { outcome.and(Err(ActionError::Timeout(1_000))) } else { outcome }
                }
            });
        }
        outcomes
    }

    fn hints(&mut self) -> BoxStream<'static, Hint> {
        self.kernel.hints()
    }
}
