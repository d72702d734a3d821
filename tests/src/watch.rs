//! How far the daemon has come in a server's replication stream, as the server itself tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use causeway_testkit::resp::Connection;

const EVERY: Duration = Duration::from_millis(50);

/// An answer to `INFO replication`.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// When it was asked for and when it was there, in seconds.
    asked: f64,
    told: f64,
    /// The end of the stream.
    end: u64,
    /// Up to here the daemon has said that its log holds it; 0 while it is not connected.
    held: u64,
}

impl Look {
    fn read(from: &mut Connection, began: Instant) -> Result<Look> {
        let asked = began.elapsed().as_secs_f64();
        let text = from.must(&["INFO", "replication"])?.text().context("INFO without a text")?;
        let told = began.elapsed().as_secs_f64();
        let number = |line: &str, name: &str| line.split_once(name)?.1.split(',').next()?.trim().parse().ok();
        let most = |line: &str, name| {
            text.lines().filter(|l| l.starts_with(line)).filter_map(|l| number(l, name)).max()
        };
        Ok(Look {
            asked,
            told,
            end: most("master_repl_offset:", "master_repl_offset:").context("no offset")?,
            held: most("slave", ",offset=").unwrap_or(0),
        })
    }
}

/// Looks at a server all the time.
#[derive(Debug)]
pub struct Watch {
    ends: Arc<AtomicBool>,
    looking: JoinHandle<Result<Vec<Look>>>,
}

/// What a [`Watch`] saw.
#[derive(Debug)]
pub struct Captured(Vec<Look>);

impl Watch {
    /// Of the server at `url`; times are from `began` on.
    pub fn start(url: &str, began: Instant) -> Result<Watch> {
        let mut from = Connection::open(url)?;
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let looking = std::thread::spawn(move || {
            let mut looks = Vec::new();
            while !ended.load(Ordering::SeqCst) {
                looks.push(Look::read(&mut from, began)?);
                std::thread::sleep(EVERY);
            }
            Ok(looks)
        });
        Ok(Watch { ends, looking })
    }

    /// Looks no more.
    pub fn end(self) -> Result<Captured> {
        self.ends.store(true, Ordering::SeqCst);
        Ok(Captured(self.looking.join().map_err(|_| anyhow!("a watch panicked"))??))
    }
}

impl Captured {
    /// Whether the daemon was seen connected between the two.
    pub fn was_connected(&self, from: f64, to: f64) -> bool {
        self.0.iter().any(|look| look.asked > from && look.told < to && look.held > 0)
    }

    /// When a write that the server acknowledged by `by` had been captured for sure; `None`: not while it was watched.
    pub fn at(&self, by: f64) -> Option<f64> {
        let from = self.0.partition_point(|look| look.asked < by);
        let end = self.0.get(from)?.end;
        self.0.get(from..)?.iter().find(|look| look.held >= end).map(|look| look.told)
    }
}
