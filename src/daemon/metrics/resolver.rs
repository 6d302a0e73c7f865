use prometheus::{Histogram, IntCounter, IntCounterVec};

use super::registrar::Registrar;
use crate::dns::RESULTS;

/// From a server next door to one that is given up on, seconds.
const FORWARD_BUCKETS: &[f64] = &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];

/// What the overlay's resolver did.
pub struct Resolver {
    pub queries: IntCounterVec,
    pub remembered: IntCounter,
    pub forward_seconds: Histogram,
}

impl Resolver {
    pub fn new(registrar: &Registrar<'_>) -> Self {
        let queries = registrar.counters(
            "overlayd_dns_queries_total",
            "Questions to the overlay's resolver, by result.",
            &["result"],
        );
        for result in RESULTS {
            queries.with_label_values(&[result]);
        }
        Self {
            queries,
            remembered: registrar.counter(
                "overlayd_dns_remembered_total",
                "Questions about other names that were answered from memory.",
            ),
            forward_seconds: registrar.times(
                "overlayd_dns_forward_seconds",
                "Time until the host's servers had answered a question about another name, or were given up on.",
                FORWARD_BUCKETS,
            ),
        }
    }
}
