//! What a run prints.

use serde::{Deserialize, Serialize};

/// One measurement; what wasn't measured is null.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `a`, `b`, `c` or `d`.
    pub(crate) part: String,
    /// What was done.
    pub(crate) what: String,
    /// `replica` (Redis's own) or `syncd`; of `bench/conflict` how the channel runs.
    pub(crate) by: String,
    /// Keys or changes.
    pub(crate) items: u64,
    /// From the start until the target had all.
    pub(crate) seconds: f64,
    /// Items per second.
    pub(crate) rate: f64,
    /// Its rate by that of the row that it is compared with.
    pub(crate) ratio: Option<f64>,
    /// CPU seconds of `syncd`.
    pub(crate) cpu_own: Option<f64>,
    /// CPU seconds of the source's server, its fork included.
    pub(crate) cpu_source: f64,
    /// CPU seconds of the target's server.
    pub(crate) cpu_target: f64,
    /// The most memory that `syncd` had.
    pub(crate) peak_mib: Option<f64>,
    /// From the write at the source until it is seen at the target.
    pub(crate) lag_ms: Option<Lag>,
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Lag {
    pub(crate) samples: usize,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Lag {
    /// Of at least one sample.
    pub(crate) fn of(mut samples: Vec<f64>) -> Option<Lag> {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples.get(((samples.len() - 1) as f64 * share).round() as usize).copied();
        let (samples_count, max) = (samples.len(), samples.last().copied()?);
        Some(Lag { samples: samples_count, p50: at(0.5)?, p99: at(0.99)?, max })
    }
}

impl Row {
    /// CPU microseconds of `syncd` for one item.
    pub(crate) fn micros(&self) -> Option<f64> {
        self.cpu_own.map(|s| s * 1e6 / self.items.max(1) as f64)
    }
}

/// A whole run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The machine, in one line.
    pub(crate) machine: String,
    /// What was measured.
    pub(crate) rows: Vec<Row>,
    /// What the rows say together, in words.
    #[serde(default)]
    pub(crate) findings: Vec<String>,
    /// What was left out and why, and what makes figures doubtful.
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// A table of at most 100 columns.
    pub(crate) fn table(&self) -> String {
        let mut out = format!("{}\n\n", self.machine);
        out += &format!(
            "{:<31} {:<8} {:>7} {:>8} {:>5} | {:>6} {:>6} {:>6} {:>7} {:>5}\n",
            "", "by", "seconds", "per s", "ratio", "own", "source", "target", "µs each", "MiB"
        );
        out += &format!("{:>63} | {}\n", "", "CPU seconds");
        for row in &self.rows {
            out += &format!(
                "{:<31} {:<8} {:>7.2} {:>8.0} {:>5} | {:>6} {:>6.2} {:>6.2} {:>7} {:>5}\n",
                format!("{} {}", row.part, row.what),
                row.by,
                row.seconds,
                row.rate,
                text(row.ratio, 2),
                text(row.cpu_own, 2),
                row.cpu_source,
                row.cpu_target,
                text(row.micros(), 1),
                text(row.peak_mib, 0),
            );
            if let Some(Lag { samples, p50, p99, max }) = row.lag_ms {
                out += &format!(
                    "{:>42}lag: p50 {p50:.2} ms, p99 {p99:.2} ms, most {max:.1} ms of {samples}\n",
                    ""
                );
            }
        }
        if self.findings.len() + self.notes.len() > 0 {
            out.push('\n');
        }
        self.findings.iter().for_each(|finding| out += &format!("{finding}\n"));
        self.notes.iter().for_each(|note| out += &format!("note: {note}\n"));
        out
    }
}

fn text(number: Option<f64>, digits: usize) -> String {
    number.map_or_else(|| "-".to_owned(), |n| format!("{n:.digits$}"))
}
