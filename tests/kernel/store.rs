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

use crate::agent_process::{Agent, isolated};

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
