use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::registrar::Registrar;
use crate::{
    desired::{AddressCounts, Document},
    object::{Key, Subsystem},
    observed::Snapshot,
    reconcile::{ledger::Condition, view::View},
};

/// What the node is like now.
pub struct Node {
    in_sync: IntGauge,
    desired_generation: IntGauge,
    converged_generation: IntGauge,
    objects: IntGaugeVec,
    errors_current: IntGaugeVec,
    segments: IntGauge,
    attachments: IntGauge,
    addresses: IntGaugeVec,
    published_ports: IntGauge,
    peer_sent: IntCounterVec,
    peer_received: IntCounterVec,
    peer_handshake: IntGaugeVec,
}

impl Node {
    pub fn new(registrar: &Registrar<'_>) -> Self {
        let build = registrar.gauges("overlayd_build_info", "Always 1; the version is a label.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let peer_labels = &["interface", "public_key"];
        Self {
            in_sync: registrar.gauge("overlayd_in_sync", "1 when the node is as the document says."),
            desired_generation: registrar.gauge("overlayd_desired_generation", "Generation of the document."),
            converged_generation: registrar
                .gauge("overlayd_converged_generation", "Last generation at which the node was as the document said."),
            objects: registrar.gauges("overlayd_objects", "Wanted objects, by kind and state.", &["kind", "state"]),
            errors_current: registrar.gauges(
                "overlayd_errors_current",
                "Objects that are failing or blocked, by kind.",
                &["kind"],
            ),
            segments: registrar.gauge("overlayd_segments", "Services that have a segment on this node."),
            attachments: registrar.gauge("overlayd_attachments", "Containers, guests and host-shared workloads."),
            addresses: registrar.gauges(
                "overlayd_addresses",
                "Overlay addresses that are not free, by state: attached, reserved, resting.",
                &["state"],
            ),
            published_ports: registrar.gauge("overlayd_published_ports", "Ports of the host that lead to containers."),
            peer_sent: registrar.counters("wireguard_sent_bytes_total", "Bytes sent to the peer.", peer_labels),
            peer_received: registrar.counters(
                "wireguard_received_bytes_total",
                "Bytes received from the peer.",
                peer_labels,
            ),
            peer_handshake: registrar.gauges(
                "wireguard_latest_handshake_seconds",
                "Unix time of the last handshake; 0 is never.",
                peer_labels,
            ),
        }
    }

    /// Brings the gauges to what is known of the node.
    pub fn refresh(&self, document: &Document, view: &View) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.segments.set(number(document.segments().len()));
        self.attachments.set(number(document.attachments().len()));
        let AddressCounts { attached, reserved, resting } = document.address_counts();
        for (state, count) in [("attached", attached), ("reserved", reserved), ("resting", resting)] {
            self.addresses.with_label_values(&[state]).set(number(count));
        }
        let published = document.attachments().values().map(|attachment| attachment.forwards.len()).sum();
        self.published_ports.set(number(published));
        self.in_sync.set(i64::from(view.progress.in_sync));
        self.desired_generation.set(i64::try_from(document.generation()).unwrap_or(i64::MAX));
        self.converged_generation.set(i64::try_from(view.progress.converged).unwrap_or(i64::MAX));
        let counts = view.ledger.counts();
        for part in Subsystem::ALL {
            let count = |word| i64::try_from(counts.get(&(part, word)).copied().unwrap_or(0)).unwrap_or(i64::MAX);
            for word in Condition::WORDS {
                self.objects.with_label_values(&[part.word(), word]).set(count(word));
            }
            self.errors_current.with_label_values(&[part.word()]).set(count("failing") + count("blocked"));
        }
        self.refresh_peers(&view.snapshot);
    }

    fn refresh_peers(&self, snapshot: &Snapshot) {
        self.peer_sent.reset();
        self.peer_received.reset();
        self.peer_handshake.reset();
        for (key, seen) in snapshot.iter() {
            let (Key::Peer { device, public_key }, Some(stats)) = (key, seen.stats) else {
                continue;
            };
            let public_key = public_key.to_string();
            let labels = &[device.as_str(), public_key.as_str()];
            // The device counts; after a reset the counter is brought to what the device says.
            self.peer_sent.with_label_values(labels).inc_by(stats.tx_bytes);
            self.peer_received.with_label_values(labels).inc_by(stats.rx_bytes);
            let handshake = stats.last_handshake.map_or(0, |at| i64::try_from(at.0).unwrap_or(i64::MAX));
            self.peer_handshake.with_label_values(labels).set(handshake);
        }
    }
}
