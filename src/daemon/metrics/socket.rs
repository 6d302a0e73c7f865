use prometheus::{IntCounter, IntCounterVec, IntGauge};

use super::registrar::Registrar;

/// What clients did.
pub struct Socket {
    pub edits: IntCounterVec,
    pub requests: IntCounterVec,
    pub connections: IntGauge,
    pub connections_closed: IntCounterVec,
    pub accept_errors: IntCounter,
    pub events_lost: IntCounter,
}

impl Socket {
    pub fn new(registrar: &Registrar<'_>) -> Self {
        Self {
            edits: registrar.counters("overlayd_edits_total", "Edits of the document, by result.", &["result"]),
            requests: registrar.counters(
                "overlayd_requests_total",
                "Requests over the socket, by op and result.",
                &["op", "result"],
            ),
            connections: registrar.gauge("overlayd_connections", "Open connections."),
            connections_closed: registrar.counters(
                "overlayd_connections_closed_total",
                "Closed connections, by reason.",
                &["reason"],
            ),
            accept_errors: registrar.counter(
                "overlayd_accept_errors_total",
                "Connections that could not be accepted (out of descriptors, say).",
            ),
            events_lost: registrar
                .counter("overlayd_events_lost_total", "Events that clients which did not read have lost."),
        }
    }
}
