//! The integration tests: what can be tested through the public interface, without root and without a kernel of its own.
//!
//! One binary on purpose: each further one would link the whole crate again.

mod any_story;
mod committer;
mod desk;
mod engine;
mod floor_plan;
mod house_rules;
mod link_dns;
mod lives;
mod plan_golden;
mod ports;
mod properties;
mod proxy;
mod runtime;
mod scopes;
#[expect(dead_code, reason = "the kernel tier compares stages by the rest")]
mod script;
mod scripts;
mod secrets;
mod segments;
mod source;
mod wire;
mod world;
