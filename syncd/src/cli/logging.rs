//! The log on stderr, written around the progress line.

use std::io::{self, Write};

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Stderr; a progress line that stands there is taken away while a line of the log is written.
#[derive(Clone)]
struct Around(MultiProgress);

impl Write for Around {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl<'a> MakeWriter<'a> for Around {
    type Writer = Around;

    fn make_writer(&'a self) -> Around {
        self.clone()
    }
}

/// Starts the log: `RUST_LOG` says what (default `info`), `json` how. A second call does nothing.
pub(super) fn start(json: bool, bars: MultiProgress) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Around(bars));
    let _ = if json {
        log.json().flatten_event(true).try_init()
    } else {
        let colour = super::output::colour_stderr();
        log.with_ansi(colour).with_target(false).try_init()
    };
}
