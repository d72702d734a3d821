//! The progress line of `run` on a terminal, and its words for others.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::table::thousands;
use crate::config::format_duration;
use crate::status::{Control, DirectionStatus, Phase};

/// How often the line is drawn again.
const INTERVAL: Duration = Duration::from_millis(500);

/// `snapshot: 250,000 of 1,000,000 keys (25 %), 100,000/s, 7 s left`, as far as it is known.
pub(super) fn snapshot_text(direction: &DirectionStatus) -> String {
    let done = direction.snapshot.done;
    let rate = direction.applied_per_second;
    let mut text = match direction.snapshot.total {
        Some(total) if total > 0 => {
            let percent = (done as f64 / total as f64 * 100.0).min(100.0);
            format!("snapshot: {} of {} keys ({percent:.0} %)", thousands(done), thousands(total))
        }
        _ => format!("snapshot: {} keys", thousands(done)),
    };
    if rate >= 1.0 {
        text.push_str(&format!(", {}/s", thousands(rate as u64)));
    }
    if let Some(left) = time_left(direction) {
        text.push_str(&format!(", {} left", format_duration(left)));
    }
    text
}

/// At the present rate; `None` if that or the total is unknown.
fn time_left(direction: &DirectionStatus) -> Option<Duration> {
    let left = direction.snapshot.total?.checked_sub(direction.snapshot.done)?;
    let rate = direction.applied_per_second;
    (rate >= 1.0).then(|| Duration::from_secs((left as f64 / rate) as u64))
}

fn line(name: &str, direction: &DirectionStatus) -> String {
    let head = format!("{name} {}->{} {}", direction.from, direction.to, direction.phase.as_str());
    let lag = direction.lag.changes.map_or("?".to_owned(), thousands);
    match direction.phase {
        Phase::Snapshot => {
            format!("{name} {}->{} {}", direction.from, direction.to, snapshot_text(direction))
        }
        _ => format!("{head}: {}/s, lag {lag} changes", thousands(direction.applied_per_second as u64)),
    }
}

/// Draws one line a direction on stderr, until dropped. Does nothing where stderr is no terminal.
pub(super) struct Lines {
    task: Option<tokio::task::JoinHandle<()>>,
    bars: MultiProgress,
}

impl Lines {
    /// `bars` is also what the log is written around.
    pub(super) fn start(control: Arc<dyn Control>, bars: MultiProgress) -> Lines {
        if !std::io::stderr().is_terminal() {
            return Lines { task: None, bars };
        }
        let drawn = bars.clone();
        let task = tokio::spawn(async move {
            let mut lines: Vec<ProgressBar> = Vec::new();
            loop {
                let status = control.status();
                let directions = status
                    .channels
                    .iter()
                    .flat_map(|channel| channel.directions.iter().map(|d| (channel.name.as_str(), d)));
                let mut shown = 0;
                for (i, (name, direction)) in directions.enumerate() {
                    shown = i + 1;
                    if i == lines.len() {
                        lines.push(drawn.add(bar()));
                    }
                    if let Some(bar) = lines.get(i) {
                        show(bar, name, direction);
                    }
                }
                // Of channels that another daemon serves now.
                lines.drain(shown..).for_each(|bar| bar.finish_and_clear());
                tokio::time::sleep(INTERVAL).await;
            }
        });
        Lines { task: Some(task), bars }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = self.bars.clear();
        }
    }
}

/// Without a bar: only a snapshot has an end.
const WORDS: &str = "{wide_msg}";
const BAR: &str = "{bar:20.cyan} {wide_msg}";

fn bar() -> ProgressBar {
    ProgressBar::new(1).with_style(style(WORDS))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn show(bar: &ProgressBar, name: &str, direction: &DirectionStatus) {
    match direction.snapshot.total {
        Some(total) if direction.phase == Phase::Snapshot && total > 0 => {
            bar.set_style(style(BAR));
            bar.set_length(total);
            bar.set_position(direction.snapshot.done.min(total));
        }
        _ => bar.set_style(style(WORDS)),
    }
    bar.set_message(line(name, direction));
}
