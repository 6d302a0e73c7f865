//! Two nodes on one machine: converge, talk, lose an agent, be meddled with, and be right again.
//!
//! Owns the story and its checks. Everything in it is real: kernel links, packets, the store on disk, agents as processes.
//!
//! Nothing of the host is touched: the whole demonstration lives in namespaces of its own and ends with its first process.

mod node;
mod packets;
mod stage;
mod story;

pub use stage::{DemoArguments, demo};
