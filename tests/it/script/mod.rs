//! Stories in which things happen to a node and its agent: a language, an interpreter, and what it needs of a node.
//!
//! Owns the language ([`language`]), the agent's side of a story ([`Play`]) and the [`Stage`], which is what a kernel has to let itself be
//! done to. Leaves the stories to `fixtures/scripts/`.
//!
//! The interpreter knows the node only through [`Stage`] and the [`Kernel`](overlayd::platform::Kernel) trait, so that the same story runs on the
//! simulation and in a real network namespace. What a stage cannot do it answers with [`Stop::Unsupported`], and the story counts as skipped.

mod language;
mod play;
mod sim;
pub mod stage;

pub use language::{Stop, parse};
pub use play::Play;
pub use sim::SimStage;
