//! The agent as a process: sockets, tasks, signals, waiting replies, the metrics page.
//!
//! Owns everything that is asynchronous for a reason other than the kernel: who may connect, how much a connection may use, when a reply
//! leaves, what a stop does. Leaves every decision about the node to [`reconcile`](crate::reconcile).
//!
//! Upholds I-01 (a reply leaves after its edit is durable), I-02 (the loop starts after the document is loaded), I-15.
//!
//! A stop changes nothing in the kernel. Killing the process at any instruction is a supported way of stopping it.

mod admit;
mod agent;
mod answer;
mod attach;
mod connection;
mod connections;
mod failed;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod granted;
mod health;
mod listen;
mod listeners;
mod liveness;
mod load;
mod metrics;
mod names;
mod page;
mod proxies;
mod report;
mod resolver;
mod rounds;
mod run;
mod settings;
mod systemd;
mod tidy;

pub use failed::RunError;
pub use run::run;
pub use settings::{LogFormat, ResolverSettings, Settings};
