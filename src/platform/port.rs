use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
};

use futures::stream::BoxStream;

use crate::{
    action::Action,
    ids::IfName,
    object::{InsideSpec, Key, Subsystem},
    observed::Observation,
};

/// What a round wants to know about the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// The subsystems to dump. One that is not named keeps its coverage.
    pub subsystems: BTreeSet<Subsystem>,
    /// Names that the target uses: a link with such a name is reported even when it is a stranger's.
    pub links: BTreeSet<IfName>,
    /// Other objects whose stranger of the same key must be reported (routes, files), and settings whose value is wanted.
    pub keys: BTreeSet<Key>,
    /// Container sides that the target wants, by the host side of their pair: which namespaces to enter, and what counts as ours there.
    pub insides: BTreeMap<IfName, InsideSpec>,
}

/// "Something may have changed." Wakes a round and marks parts stale; never says what is there now (I-13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    Changed(Subsystem),
    /// Events were lost (`ENOBUFS`): nothing cached can be trusted (A9).
    Overrun,
}

/// Why a node could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("observe {what}: {reason}")]
pub struct ObserveError {
    pub what: String,
    pub reason: String,
}

/// Why an action had no effect, in the terms the engine decides by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// Something that is not ours holds the place. Nothing was touched.
    #[error("in the way: {0}")]
    Stranger(String),
    /// The object, or one it needs, is not there (any more).
    #[error("gone: {0}")]
    Gone(String),
    /// This kernel or this machine cannot do it.
    #[error("not supported here: {0}")]
    Unsupported(String),
    /// The kernel does not let this process do it.
    #[error("not permitted: {0}")]
    Denied(String),
    /// No answer within the limit. The effect is unknown.
    #[error("no answer within {0} ms")]
    Timeout(u64),
    /// Everything else, with the kernel's own words.
    #[error("{0}")]
    Failed(String),
}

/// A node's kernel, or a simulated one.
///
/// # Contract
/// - `observe` changes nothing. A dump that was cut short says so in its coverage and is not an error.
/// - `execute` applies the actions in order and answers one outcome for each, in the same order. An action that failed had no effect or an
///   unknown one; the caller looks again. Executing the same action twice is harmless.
/// - Both return within a bounded time, also when the data plane hangs (B1).
pub trait Kernel: Send + 'static {
    fn observe(&mut self, interest: &Interest) -> impl Future<Output = Result<Observation, ObserveError>> + Send;

    fn execute(&mut self, actions: &[Action]) -> impl Future<Output = Vec<Result<(), ActionError>>> + Send;

    /// The stream of hints; taken once.
    fn hints(&mut self) -> BoxStream<'static, Hint>;
}
