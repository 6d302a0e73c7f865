//! Figures for Prometheus.
//!
//! Owns the names, which dashboards and alerts rely on, and how a round becomes numbers. Leaves serving them to [`page`](super::page).
//!
//! Upholds I-14 (a peer is labelled by its public key, nothing else of it) and I-15 (no label takes a value from a client but peers' keys).
//!
//! Counters are kept as things happen; gauges about the node are read from the loop's view at the moment of the scrape.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::agent::Agent;
use crate::{
    object::{Key, Subsystem},
    observed::Snapshot,
    reconcile::{ledger::Condition, runtime::Finished},
};

/// Seconds; from one netlink message to a hung data plane.
const ROUND_BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0,
];
/// Seconds; fdatasync on anything from NVMe to a loaded network disk.
const FSYNC_BUCKETS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

/// Words of the labels; a series that appears only with its first event cannot be watched for an increase.
const VERBS: [&str; 3] = ["create", "update", "delete"];
const RESULTS: [&str; 3] = ["ok", "failed", "skipped"];
const CAUSES: [&str; 4] = ["missing", "changed", "extra", "replaced"];
const ROUND_RESULTS: [&str; 4] = ["unchanged", "changed", "failed", "blind"];

pub struct Metrics {
    registry: Registry,
    /// One page at a time: the peers' series are emptied and filled again for each.
    page: Mutex<()>,
    in_sync: IntGauge,
    rounds: IntCounterVec,
    round_seconds: HistogramVec,
    lag_seconds: Histogram,
    desired_generation: IntGauge,
    converged_generation: IntGauge,
    objects: IntGaugeVec,
    diff_pending: IntGaugeVec,
    actions: IntCounterVec,
    drift: IntCounterVec,
    drift_repair_seconds: Histogram,
    errors_current: IntGaugeVec,
    pub fsync_seconds: Histogram,
    pub netlink_overruns: IntCounter,
    pub edits: IntCounterVec,
    pub requests: IntCounterVec,
    pub connections: IntGauge,
    pub connections_closed: IntCounterVec,
    pub accept_errors: IntCounter,
    pub events_lost: IntCounter,
    peer_sent: IntCounterVec,
    peer_received: IntCounterVec,
    peer_handshake: IntGaugeVec,
}

/// Makes one metric and registers it. The options are constants of this file, so a failure is a defect of it.
macro_rules! metric {
    ($registry:expr, $kind:ident, $($argument:expr),+) => {{
        let metric = $kind::with_opts($($argument),+);
        match metric.and_then(|metric| $registry.register(Box::new(metric.clone())).map(|()| metric)) {
            Ok(metric) => metric,
            Err(error) => unreachable!("a metric of fixed name and labels registers once: {error}"),
        }
    }};
}

macro_rules! metric_by {
    ($registry:expr, $kind:ident, $options:expr, $labels:expr) => {{
        let metric = $kind::new($options, $labels);
        match metric.and_then(|metric| $registry.register(Box::new(metric.clone())).map(|()| metric)) {
            Ok(metric) => metric,
            Err(error) => unreachable!("a metric of fixed name and labels registers once: {error}"),
        }
    }};
}

impl Metrics {
    pub fn new() -> Self {
        let r = Registry::new();
        let o = |name: &str, help: &str| Opts::new(name, help);
        let h = |name: &str, help: &str, buckets: &[f64]| HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let peer_labels = &["interface", "public_key"];
        let build = metric_by!(
            r,
            IntGaugeVec,
            o("overlayd_build_info", "Always 1; the version is a label."),
            &["version"]
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            page: Mutex::new(()),
            in_sync: metric!(
                r,
                IntGauge,
                o("overlayd_in_sync", "1 when the node is as the document says.")
            ),
            rounds: metric_by!(
                r,
                IntCounterVec,
                o("overlayd_reconcile_total", "Rounds, by result."),
                &["result"]
            ),
            round_seconds: metric_by!(
                r,
                HistogramVec,
                h(
                    "overlayd_reconcile_duration_seconds",
                    "Time of a round, by phase.",
                    &ROUND_BUCKETS
                ),
                &["phase"]
            ),
            lag_seconds: metric!(
                r,
                Histogram,
                h(
                    "overlayd_convergence_lag_seconds",
                    "From the acknowledgement of an edit to its verification in the kernel.",
                    &ROUND_BUCKETS
                )
            ),
            desired_generation: metric!(
                r,
                IntGauge,
                o("overlayd_desired_generation", "Generation of the document.")
            ),
            converged_generation: metric!(
                r,
                IntGauge,
                o(
                    "overlayd_converged_generation",
                    "Last generation at which the node was as the document said."
                )
            ),
            objects: metric_by!(
                r,
                IntGaugeVec,
                o("overlayd_objects", "Wanted objects, by kind and state."),
                &["kind", "state"]
            ),
            diff_pending: metric_by!(
                r,
                IntGaugeVec,
                o(
                    "overlayd_diff_pending",
                    "Differences that the last full round left, by kind and action."
                ),
                &["kind", "action"]
            ),
            actions: metric_by!(
                r,
                IntCounterVec,
                o("overlayd_actions_total", "Actions, by kind, action and result."),
                &["kind", "action", "result"]
            ),
            drift: metric_by!(
                r,
                IntCounterVec,
                o(
                    "overlayd_drift_total",
                    "Objects of ours that changed though the document did not."
                ),
                &["kind", "cause"]
            ),
            drift_repair_seconds: metric!(
                r,
                Histogram,
                h(
                    "overlayd_drift_repair_seconds",
                    "From the first sign of drift to the end of its repair.",
                    &ROUND_BUCKETS
                )
            ),
            errors_current: metric_by!(
                r,
                IntGaugeVec,
                o(
                    "overlayd_errors_current",
                    "Objects that are failing or blocked, by kind."
                ),
                &["kind"]
            ),
            fsync_seconds: metric!(
                r,
                Histogram,
                h(
                    "overlayd_store_fsync_seconds",
                    "Time to make a group of edits durable.",
                    &FSYNC_BUCKETS
                )
            ),
            netlink_overruns: metric!(
                r,
                IntCounter,
                o(
                    "overlayd_netlink_overruns_total",
                    "Times that kernel events were lost and everything was looked at again."
                )
            ),
            edits: metric_by!(
                r,
                IntCounterVec,
                o("overlayd_edits_total", "Edits of the document, by result."),
                &["result"]
            ),
            requests: metric_by!(
                r,
                IntCounterVec,
                o("overlayd_requests_total", "Requests over the socket, by op and result."),
                &["op", "result"]
            ),
            connections: metric!(r, IntGauge, o("overlayd_connections", "Open connections.")),
            connections_closed: metric_by!(
                r,
                IntCounterVec,
                o("overlayd_connections_closed_total", "Closed connections, by reason."),
                &["reason"]
            ),
            accept_errors: metric!(
                r,
                IntCounter,
                o(
                    "overlayd_accept_errors_total",
                    "Connections that could not be accepted (out of descriptors, say)."
                )
            ),
            events_lost: metric!(
                r,
                IntCounter,
                o(
                    "overlayd_events_lost_total",
                    "Events that clients which did not read have lost."
                )
            ),
            peer_sent: metric_by!(
                r,
                IntCounterVec,
                o("wireguard_sent_bytes_total", "Bytes sent to the peer."),
                peer_labels
            ),
            peer_received: metric_by!(
                r,
                IntCounterVec,
                o("wireguard_received_bytes_total", "Bytes received from the peer."),
                peer_labels
            ),
            peer_handshake: metric_by!(
                r,
                IntGaugeVec,
                o(
                    "wireguard_latest_handshake_seconds",
                    "Unix time of the last handshake; 0 is never."
                ),
                peer_labels
            ),
            registry: r,
        };
        metrics.begin_at_zero();
        metrics
    }

    fn begin_at_zero(&self) {
        for part in Subsystem::ALL {
            for verb in VERBS {
                for result in RESULTS {
                    self.actions.with_label_values(&[part.word(), verb, result]);
                }
                self.diff_pending.with_label_values(&[part.word(), verb]);
            }
            for cause in CAUSES {
                self.drift.with_label_values(&[part.word(), cause]);
            }
        }
        for result in ROUND_RESULTS {
            self.rounds.with_label_values(&[result]);
        }
    }

    /// Writes down what a round did.
    pub fn round(&self, finished: &Finished<'_>) {
        let round = finished.round;
        let failed = round.actions.iter().any(|action| action.result == "failed");
        let result = match (&round.blind, failed, round.actions.is_empty()) {
            (Some(_), _, _) => "blind",
            (None, true, _) => "failed",
            (None, false, true) => "unchanged",
            (None, false, false) => "changed",
        };
        self.rounds.with_label_values(&[result]).inc();
        for (phase, time) in [
            ("observe", round.observe),
            ("plan", round.plan),
            ("apply", round.apply),
            ("verify", round.verify),
        ] {
            if time > Duration::ZERO {
                self.round_seconds
                    .with_label_values(&[phase])
                    .observe(time.as_secs_f64());
            }
        }
        for action in &round.actions {
            self.actions
                .with_label_values(&[action.key.subsystem().word(), action.verb, action.result])
                .inc();
        }
        for (key, cause) in &round.drift {
            self.drift.with_label_values(&[key.subsystem().word(), cause]).inc();
        }
        if !round.drift.is_empty() {
            self.drift_repair_seconds.observe(finished.since_woken.as_secs_f64());
        }
        for lag in &finished.lags {
            self.lag_seconds.observe(lag.as_secs_f64());
        }
        if round.full {
            for part in Subsystem::ALL {
                for verb in VERBS {
                    let count = round.left.get(&(part, verb)).copied().unwrap_or(0);
                    let count = i64::try_from(count).unwrap_or(i64::MAX);
                    self.diff_pending.with_label_values(&[part.word(), verb]).set(count);
                }
            }
        }
    }

    /// The page, with the gauges as they are now.
    pub fn render(&self, agent: &Agent) -> String {
        let _one_at_a_time = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = agent.document().generation();
        let view = agent.view.read();
        self.in_sync.set(i64::from(view.progress.in_sync));
        self.desired_generation
            .set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.converged_generation
            .set(i64::try_from(view.progress.converged).unwrap_or(i64::MAX));
        let counts = view.ledger.counts();
        for part in Subsystem::ALL {
            let count = |word| i64::try_from(counts.get(&(part, word)).copied().unwrap_or(0)).unwrap_or(i64::MAX);
            for word in Condition::WORDS {
                self.objects.with_label_values(&[part.word(), word]).set(count(word));
            }
            self.errors_current
                .with_label_values(&[part.word()])
                .set(count("failing") + count("blocked"));
        }
        self.peers(&view.snapshot);
        drop(view);
        let mut page = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut page) {
            tracing::error!(%error, "the metrics page could not be written");
        }
        page
    }

    fn peers(&self, snapshot: &Snapshot) {
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
            let handshake = stats
                .last_handshake
                .map_or(0, |at| i64::try_from(at.0).unwrap_or(i64::MAX));
            self.peer_handshake.with_label_values(labels).set(handshake);
        }
    }
}
