//! The integration tests: what can be tested through the public interface, without root and without a kernel of its own.
//!
//! One binary on purpose: each further one would link the whole crate again.

mod committer;
mod engine;
mod floor_plan;
mod house_rules;
mod plan_golden;
mod properties;
mod runtime;
mod script;
mod scripts;
mod secrets;
mod source;
mod wire;
mod world;
