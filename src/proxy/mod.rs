//! The free-port proxy: what arrives at a port of the host goes on to a port of a container.
//!
//! Owns copying, for TCP and UDP, and the limits on it. Leaves which port leads where to the document, and starting and stopping to the daemon.
//!
//! Upholds I-15: connections, flows and their idle time have bounds.
//!
//! It works in userspace on purpose: a container that sees a connection sees it come from its gateway, so no rule of anybody's firewall has to
//! change, and it works for clients on the host itself.

mod copy;
mod datagrams;
mod listening;

pub use listening::Listening;
