//! A node in memory: the same trait as the real kernel, with faults on demand.
//!
//! Owns a model of what Linux does with links, addresses, routes, settings and WireGuard peers, as far as overlayd relies on it.
//! Leaves proving that the model is right to `tests/kernel/conformance.rs`: a rule names the story of `fixtures/scripts` that shows it.
//!
//! Upholds the contract of [`Kernel`](super::Kernel), including its bad days: an action fails before or after its effect, a dump is cut short.
//!
//! A peer has a session. It survives every change that the real kernel survives and no other, so a needless change is seen as a lost session.

mod consequences;
mod kernel;
mod node;

pub use kernel::{Fault, SimKernel};
pub use node::{SimNode, SimPeer};
