//! Runs a plan.
//!
//! Owns which steps are handed over together and which are skipped because what they stand on failed. Leaves retrying to the engine.
//!
//! Upholds I-10 and I-15 (a message carries a bounded number of peers).
//!
//! Only neighbours in the plan travel together, so that handing over several steps never changes their order.

use super::{order::Undone, step::Step};
use crate::{
    action::Action,
    object::{Key, Subsystem},
    platform::{ActionError, Kernel},
};

/// Peers handed to the platform in one call; it may still need several messages for them.
const TOGETHER_MAX: usize = 512;

/// What became of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Not tried: the object named here failed before.
    Skipped(Key),
    Failed(ActionError),
}

/// Runs the steps in order and says what became of each, in the same order.
pub async fn apply<K: Kernel>(kernel: &mut K, steps: &[Step]) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(steps.len());
    let mut undone = Undone::default();
    // A kernel or a device that does not answer would cost its time limit again for every step that is left (B1).
    let mut hung: Option<Key> = None;
    while outcomes.len() < steps.len() {
        let rest = &steps[outcomes.len()..];
        let first = &rest[0].action;
        if let Some(cause) = &hung {
            outcomes.push(Outcome::Skipped(cause.clone()));
            continue;
        }
        if let Some(cause) = undone.cause(first) {
            outcomes.push(Outcome::Skipped(cause.clone()));
            undone.note(first);
            continue;
        }
        let together = rest
            .iter()
            .take(TOGETHER_MAX)
            .take_while(|step| travels_with(first, &step.action) && undone.cause(&step.action).is_none())
            .count()
            .max(1);
        let actions: Vec<Action> = rest[..together].iter().map(|step| step.action.clone()).collect();
        let mut results = kernel.execute(&actions).await.into_iter();
        for step in &rest[..together] {
            let no_outcome = || Err(ActionError::Failed("the platform gave no outcome".into()));
            match results.next().unwrap_or_else(no_outcome) {
                Ok(()) => outcomes.push(Outcome::Done),
                Err(error) => {
                    undone.note(&step.action);
                    if let ActionError::Timeout(_) = error {
                        hung = Some(step.action.key().clone());
                    }
                    outcomes.push(Outcome::Failed(error));
                }
            }
        }
    }
    outcomes
}

fn travels_with(first: &Action, other: &Action) -> bool {
    // Peers of one device share a message, members of the firewall a transaction.
    let part = first.key().subsystem();
    matches!(part, Subsystem::Peer | Subsystem::Member)
        && other.key().subsystem() == part
        && first.key().link() == other.key().link()
}
