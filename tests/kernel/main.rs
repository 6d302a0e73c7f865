//! Tests against a real kernel, each in a network and mount namespace of its own. See `lab.rs`.
//!
//! What the kernel at hand lacks is printed as `SKIPPED: <test>: <reason>`.

#![cfg(target_os = "linux")]

mod agent;
mod agent_process;
mod conformance;
mod container;
mod containers;
mod crash;
mod demo;
mod device;
mod device_life;
mod device_scale;
#[path = "../sim/dice.rs"]
mod dice;
mod lab;
mod linux;
mod long_time;
mod names;
mod overheard;
mod overlay;
mod overlay_node;
mod overlay_ping;
mod probe;
mod ptrace;
mod reboot;
#[path = "../it/script/mod.rs"]
mod script;
mod soak;
mod store;
mod tunnel;
mod witness;
#[path = "../it/world.rs"]
#[expect(dead_code, reason = "the tests without a kernel use the rest")]
mod world;
