use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use crate::compare::Progress;

/// A bar with rate and time left on standard error, if that is a terminal.
pub(crate) struct Bar {
    channel: String,
    bar: Mutex<Option<ProgressBar>>,
}

impl Bar {
    /// For the channel of that name.
    pub(crate) fn new(channel: &str) -> Self {
        Bar { channel: channel.to_owned(), bar: Mutex::new(None) }
    }

    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        if let Ok(mut bar) = self.bar.lock() {
            act(&mut bar);
        }
    }
}

impl Progress for Bar {
    fn begin(&self, what: &str, keys: u64) {
        // Hidden by itself where standard error is no terminal.
        let bar = ProgressBar::new(keys);
        let style = "{msg} [{bar:30}] {human_pos}/{human_len} keys, {per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(format!("{}: {what}", self.channel));
        self.with(|slot| *slot = Some(bar));
    }

    fn expect(&self, keys: u64) {
        self.with(|slot| {
            if let Some(bar) = slot {
                bar.inc_length(keys);
            }
        });
    }

    fn advance(&self, keys: u64) {
        self.with(|slot| {
            if let Some(bar) = slot {
                bar.inc(keys);
            }
        });
    }

    fn end(&self) {
        self.with(|slot| {
            if let Some(bar) = slot.take() {
                bar.finish_and_clear();
            }
        });
    }
}
