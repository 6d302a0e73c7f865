use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec};

use super::registrar::Registrar;
use crate::{object::Subsystem, reconcile::runtime::Finished};

/// Seconds; from one netlink message to a hung data plane.
const ROUND_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0];
/// Seconds; fdatasync on anything from NVMe to a loaded network disk.
const FSYNC_BUCKETS: [f64; 10] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];

/// Words of the labels; a series that appears only with its first event cannot be watched for an increase.
const VERBS: [&str; 3] = ["create", "update", "delete"];
const RESULTS: [&str; 3] = ["ok", "failed", "skipped"];
const CAUSES: [&str; 4] = ["missing", "changed", "extra", "replaced"];
const ROUND_RESULTS: [&str; 4] = ["unchanged", "changed", "failed", "blind"];
const PHASES: [&str; 4] = ["observe", "plan", "apply", "verify"];

/// What the loop did.
pub struct Loop {
    rounds: IntCounterVec,
    round_seconds: HistogramVec,
    lag_seconds: Histogram,
    diff_pending: IntGaugeVec,
    actions: IntCounterVec,
    drift: IntCounterVec,
    drift_repair_seconds: Histogram,
    pub fsync_seconds: Histogram,
    pub netlink_overruns: IntCounter,
}

impl Loop {
    pub fn new(registrar: &Registrar<'_>) -> Self {
        let figures = Self {
            rounds: registrar.counters("overlayd_reconcile_total", "Rounds, by result.", &["result"]),
            round_seconds: registrar.times_by(
                "overlayd_reconcile_duration_seconds",
                "Time of a round, by phase.",
                &ROUND_BUCKETS,
                &["phase"],
            ),
            lag_seconds: registrar.times(
                "overlayd_convergence_lag_seconds",
                "From the acknowledgement of an edit to its verification in the kernel.",
                &ROUND_BUCKETS,
            ),
            diff_pending: registrar.gauges(
                "overlayd_diff_pending",
                "Differences that the last full round left, by kind and action.",
                &["kind", "action"],
            ),
            actions: registrar.counters(
                "overlayd_actions_total",
                "Actions, by kind, action and result.",
                &["kind", "action", "result"],
            ),
            drift: registrar.counters(
                "overlayd_drift_total",
                "Objects of ours that changed though the document did not.",
                &["kind", "cause"],
            ),
            drift_repair_seconds: registrar.times(
                "overlayd_drift_repair_seconds",
                "From the first sign of drift to the end of its repair.",
                &ROUND_BUCKETS,
            ),
            fsync_seconds: registrar.times(
                "overlayd_store_fsync_seconds",
                "Time to make a group of edits durable.",
                &FSYNC_BUCKETS,
            ),
            netlink_overruns: registrar.counter(
                "overlayd_netlink_overruns_total",
                "Times that kernel events were lost and everything was looked at again.",
            ),
        };
        figures.begin_at_zero();
        figures
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
        for phase in PHASES {
            self.round_seconds.with_label_values(&[phase]);
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
        let times = [round.observe, round.plan, round.apply, round.verify];
        for (phase, time) in PHASES.into_iter().zip(times).filter(|(_, time)| *time > Duration::ZERO) {
            self.round_seconds.with_label_values(&[phase]).observe(time.as_secs_f64());
        }
        for action in &round.actions {
            let kind = action.key.subsystem().word();
            self.actions.with_label_values(&[kind, action.verb, action.result]).inc();
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
}
