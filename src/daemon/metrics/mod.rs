//! Figures for Prometheus.
//!
//! Owns the names, which dashboards and alerts rely on, and how a round becomes numbers. Leaves serving them to [`page`](super::page).
//!
//! Upholds I-14 (a peer is labelled by its public key, nothing else of it) and I-15 (no label takes a value from a client but peers' keys).
//!
//! Counters are kept as things happen; gauges about the node are read from the loop's view at the moment of the scrape.

mod all;
mod loops;
mod node;
mod registrar;
mod resolver;
mod socket;

pub use all::Metrics;
