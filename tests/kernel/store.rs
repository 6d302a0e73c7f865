//! The document store under the real agent: many writers and kills, damage, power cuts.
//!
//! Leaves each part's bytes to the tests beside the store (`src/desired/store/tests/`).
//!
//! Upholds I-01, I-02 and I-12 as seen from outside: by clients, by the command line, and by the person who is called at night.
//!
//! What was asked for and what must be found of it is in `belongings.rs`: three tests compare against one model.

mod belongings;
mod damage;
mod kept;
mod power;
mod writers;

use serde_json::Value;

use crate::{
    agent_process::{Agent, block_on},
    lab,
};

/// Runs the body in namespaces of its own, with the loopback interface up for the metrics page.
fn isolated<F: FnOnce()>(body: F) {
    lab::isolated_as::<F>(|| {
        block_on(lab::set_up_link("lo"));
        body();
    });
}

/// splitmix64: the same in every run.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A number from the environment.
fn asked_for(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What `overlayd store export` prints; it needs no agent.
fn export(agent: &Agent<'_>) -> Value {
    let output = agent.command(&["store", "export"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}; the log ends:\n{}", agent.log_end());
    serde_json::from_slice(&output.stdout).unwrap()
}
