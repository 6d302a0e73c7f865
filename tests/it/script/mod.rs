//! Stories in which things happen to a node and its agent: a language, an interpreter, and what it needs of a node.
//!
//! Owns the language ([`language`]), the agent's side of a story ([`Play`]) and the [`Stage`](stage::Stage), which is what a kernel has to let
//! itself be done to. Leaves the stories to `fixtures/scripts/`.
//!
//! The interpreter knows the node only through the stage and the [`Kernel`](overlayd::platform::Kernel) trait, so that the same story runs on
//! the simulation and in a real network namespace. Nothing that a story says is a panic: what stops it is a [`Stop`], and what a stage cannot
//! do is [`Stop::Unsupported`].

mod cast;
mod edits;
mod expectations;
mod fields;
mod language;
mod play;
mod sim;
pub mod stage;

pub use language::{Stop, parse};
pub use play::Play;
pub use sim::SimStage;
