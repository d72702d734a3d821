use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

/// Upper bounds of `causeway_apply_seconds`.
const APPLY_SECONDS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0];
const METADATA: Metadata<'static> = Metadata::new("causeway", Level::INFO, None);

/// The daemon's metrics (DESIGN.md §10): counters and gauges are set when they are read.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

/// `channel`, `from` and `to` of a direction.
pub(crate) type Labels = Vec<Label>;

impl Metrics {
    pub(crate) fn new() -> Result<Metrics, BuildError> {
        let apply = Matcher::Full("causeway_apply_seconds".to_owned());
        let recorder =
            PrometheusBuilder::new().set_buckets_for_metric(apply, &APPLY_SECONDS)?.build_recorder();
        for (name, help) in [
            ("causeway_changes_captured_total", "Changes appended to the log."),
            ("causeway_changes_applied_total", "Changes applied to the target, or dropped by rule."),
            ("causeway_snapshot_rows_total", "Keys of the snapshot applied."),
            ("causeway_conflicts_total", "Concurrent writes decided."),
            ("causeway_conflicts_left_out_total", "Decided conflicts that the conflict log does not hold."),
            (
                "causeway_intake_past_total",
                "Changes written at the origin itself though they are to be handed over.",
            ),
            ("causeway_gaps_total", "Gaps of the stream, closed ones included."),
        ] {
            recorder.describe_counter(KeyName::from_const_str(name), None, help.into());
        }
        for (name, help) in [
            ("causeway_lag_changes", "Changes in the log that are not applied."),
            ("causeway_lag_seconds", "Age of the oldest change that is not applied."),
            ("causeway_dead_letters", "Changes that the target refused."),
            ("causeway_intake_waiting", "Changes handed over that the origin's own store does not hold yet."),
            ("causeway_intake_in_topic", "Messages of the origin's intake topic that were not taken yet."),
            ("causeway_left_out", "Keys that cannot be carried."),
            ("causeway_remembered_changes", "Own changes remembered for the peer's to be decided."),
            ("causeway_spilled_changes", "Those of them that are in a file, as memory has no room for them."),
            (
                "causeway_asked_keys",
                "Keys that a site was asked for, and whose states are not in its log yet.",
            ),
            ("causeway_under_way_batches", "Batches sent to the target and not answered yet."),
            (
                "causeway_capture_behind",
                "How much of what the origin keeps for capture is not read yet: 1 is all.",
            ),
            ("causeway_log_queued_bytes", "Bytes that wait to be written to the embedded change log."),
            ("causeway_log_damaged", "Stretches of the origin's log that were found damaged and are kept."),
            ("causeway_group_members", "Daemons in the group of this one's site."),
            ("causeway_channels_here", "Channels that this daemon of the group serves."),
            ("causeway_log_bytes", "Size of the embedded change log on disk."),
        ] {
            recorder.describe_gauge(KeyName::from_const_str(name), None, help.into());
        }
        let help = "From sending a transaction to the store's answer.";
        recorder.describe_histogram(KeyName::from_const_str("causeway_apply_seconds"), None, help.into());
        let handle = recorder.handle();
        Ok(Metrics { recorder, handle })
    }

    pub(crate) fn labels(channel: &str, from: &str, to: &str) -> Labels {
        [("channel", channel), ("from", from), ("to", to)]
            .into_iter()
            .map(|(name, value)| Label::new(name, value.to_owned()))
            .collect()
    }

    pub(crate) fn counter(&self, name: &'static str, labels: Labels) -> Counter {
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    pub(crate) fn gauge(&self, name: &'static str, labels: Labels) -> Gauge {
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    pub(crate) fn histogram(&self, name: &'static str, labels: Labels) -> Histogram {
        self.recorder.register_histogram(&Key::from_parts(name, labels), &METADATA)
    }

    /// Prometheus's text format 0.0.4.
    pub(crate) fn render(&self) -> String {
        self.handle.render()
    }

    /// Histograms are gathered here; call it about this often.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// How often [`Metrics::upkeep`] is due.
pub(crate) const UPKEEP_EVERY: Duration = Duration::from_secs(5);
