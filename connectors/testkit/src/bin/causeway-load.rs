//! Fills a server with the data of a push service, writes on it like an application, and judges whether
//! every acknowledged write arrived on both sites exactly once.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use causeway_testkit::api::{Direction, Status, status};
use causeway_testkit::data::{History, Traffic, TrafficOptions, generate, judge, load};
use clap::{Parser, Subcommand, ValueEnum};

/// Test data and test traffic for Redis.
#[derive(Parser)]
#[command(name = "causeway-load", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Loads keys into a server.
    Fill {
        /// redis://host:port
        #[arg(long)]
        url: String,
        /// How many keys.
        #[arg(long, default_value_t = 1_000_000)]
        keys: u64,
        /// The same seed gives the same data.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Writes on a server until the time is up or SIGTERM or SIGINT comes; then writes down its history.
    Traffic {
        /// redis://host:port
        #[arg(long)]
        url: String,
        /// A word in the names of the keys; each writer has its own.
        #[arg(long)]
        site: String,
        /// How long at most.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Operations per second; 0: as many as go.
        #[arg(long, default_value_t = 2_000)]
        rate: u64,
        /// The same seed does the same operations.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where to write the history.
        #[arg(long)]
        history: PathBuf,
        /// Also changes keys that `fill` loaded here: how many it loaded. For one of two sites only.
        #[arg(long)]
        filled_keys: Option<u64>,
        /// The seed of that `fill`.
        #[arg(long, default_value_t = 1)]
        filled_seed: u64,
    },
    /// Shows how far a daemon is, on stderr, until it is where `--until` says. Exit code 1 if it takes
    /// longer than `--at-most` or a channel fails.
    Follow {
        /// The daemon's `[api] listen`; of several that share the channels of a site all of them, with commas between,
        /// and once more for the daemons of the other site.
        #[arg(long, required = true)]
        api: Vec<String>,
        /// How far.
        #[arg(long, value_enum)]
        until: Until,
        /// In seconds.
        #[arg(long, default_value_t = 600)]
        at_most: u64,
    },
    /// Counts every write of the histories on every server. Exit code 1 if one is lost or doubled.
    Judge {
        /// What `traffic` wrote down; once for each writer.
        #[arg(long, required = true)]
        history: Vec<PathBuf>,
        /// The servers.
        #[arg(long, required = true, num_args = 1..)]
        urls: Vec<String>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Until {
    /// Changes of every site are captured.
    Capturing,
    /// A third of the snapshot is there.
    Copying,
    /// Snapshots are complete.
    Streaming,
    /// Nothing has been under way for two seconds.
    CaughtUp,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("causeway-load: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Fill { url, keys, seed } => {
            let mut said = Instant::now();
            let loaded = load(&url, generate(seed, keys), |commands| {
                if said.elapsed() >= Duration::from_secs(5) {
                    said = Instant::now();
                    eprintln!("{commands} commands so far");
                }
            })?;
            let seconds = loaded.elapsed.as_secs_f64();
            let rate = loaded.commands as f64 / seconds;
            println!("{keys} keys, {} commands in {seconds:.1} s, {rate:.0} commands/s", loaded.commands);
            Ok(ExitCode::SUCCESS)
        }
        Task::Traffic { url, site, seconds, rate, seed, history, filled_keys, filled_seed } => {
            let filled = filled_keys.map(|keys| (filled_seed, keys));
            let traffic = Traffic::start(TrafficOptions { url, site: site.clone(), seed, rate, filled });
            wait(Duration::from_secs(seconds))?;
            let written = traffic.stop();
            written.write(&history)?;
            let History { operations, unknown, refused, .. } = written;
            println!("site {site}: {operations} operations, {unknown} unknown, {refused} refused");
            Ok(ExitCode::SUCCESS)
        }
        Task::Follow { api, until, at_most } => follow(&api, until, Duration::from_secs(at_most)),
        Task::Judge { history, urls } => {
            let histories = history.iter().map(|p| History::read(p)).collect::<Result<Vec<_>>>()?;
            let verdict = judge(&histories, &urls)?;
            println!(
                "{} keys on {} sites: {} increments and {} elements acknowledged, {} keys wrong",
                verdict.keys,
                urls.len(),
                verdict.increments,
                verdict.elements,
                verdict.wrong.len()
            );
            verdict.wrong.iter().take(15).for_each(|line| println!("{line}"));
            Ok(ExitCode::from(u8::from(!verdict.wrong.is_empty())))
        }
    }
}

/// Waits for `most`, or for a signal to end.
fn wait(most: Duration) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            () = tokio::time::sleep(most) => {}
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        Ok(())
    })
}

/// A daemon that doesn't answer is waited for: it may be starting.
fn follow(apis: &[String], until: Until, at_most: Duration) -> Result<ExitCode> {
    let start = Instant::now();
    let mut said = Instant::now();
    let mut caught_up_since = None;
    let mut rates = Rates::default();
    let mut last = "it never answered".to_owned();
    while start.elapsed() < at_most {
        match served(apis) {
            Ok(status) => {
                last = rates.line(&status);
                let failed = status.channels.iter().any(|c| c.state == "failed");
                if failed || status.directions().any(|d| d.phase == "failed") {
                    eprintln!("failed: {last}");
                    return Ok(ExitCode::from(1));
                }
                if !status.is_caught_up() {
                    caught_up_since = None;
                }
                let there = match until {
                    Until::Capturing => status.is_capturing(),
                    Until::Copying => is_copying(&status),
                    Until::Streaming => status.is_streaming(),
                    Until::CaughtUp => {
                        status.is_caught_up()
                            && caught_up_since.get_or_insert_with(Instant::now).elapsed().as_secs() >= 2
                    }
                };
                if there {
                    eprintln!("{last}");
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Err(error) => last = format!("{error:#}"),
        }
        if said.elapsed() >= Duration::from_secs(2) {
            said = Instant::now();
            eprintln!("{last}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    eprintln!("gave up after {} s: {last}", at_most.as_secs());
    Ok(ExitCode::from(1))
}

/// What the daemons tell of the channels that they serve. Every channel has one that does at each site.
fn served(apis: &[String]) -> Result<Status> {
    let mut all = Status { channels: Vec::new() };
    for site in apis {
        let told: Vec<_> = site.split(',').map(status).collect();
        let count = told.iter().flatten().map(|status| status.channels.len()).max();
        let channels = told.iter().flatten().flat_map(|status| &status.channels);
        let served: Vec<_> = channels.filter(|channel| !channel.directions.is_empty()).cloned().collect();
        match told.into_iter().find_map(Result::err) {
            Some(error) if count.is_none() => return Err(error),
            _ => ensure!(Some(served.len()) == count, "{site}: a channel is not served yet"),
        }
        all.channels.extend(served);
    }
    Ok(all)
}

fn is_copying(status: &Status) -> bool {
    let third = |d: &Direction| {
        d.snapshot.as_ref().is_some_and(|s| s.done.unwrap_or(0) * 3 >= s.total.unwrap_or(u64::MAX / 3))
    };
    status.is_streaming() || status.directions().any(third)
}

/// Keys per second of the copies, from one look to the next.
#[derive(Default)]
struct Rates {
    started: Vec<(Instant, u64)>,
}

impl Rates {
    fn line(&mut self, status: &Status) -> String {
        let mut directions: Vec<&Direction> = Vec::new();
        // Two daemons may tell of each; the first one is that of its origin, or of both.
        for direction in status.directions() {
            if directions.iter().all(|known| (&known.from, &known.to) != (&direction.from, &direction.to)) {
                directions.push(direction);
            }
        }
        self.started.resize_with(directions.len(), || (Instant::now(), 0));
        let of = |(direction, started): (&&Direction, &mut (Instant, u64))| Self::of(direction, started);
        directions.iter().zip(&mut self.started).map(of).collect::<Vec<_>>().join("; ")
    }

    fn of(direction: &Direction, started: &mut (Instant, u64)) -> String {
        let Direction { from, to, phase, .. } = direction;
        let mut line = format!("{from}->{to} {phase}");
        let done = direction.snapshot.as_ref().and_then(|s| s.done).unwrap_or(0);
        // A copy that begins again counts from its beginning.
        if phase != "snapshot" || done < started.1 || started.1 == 0 {
            *started = (Instant::now(), done);
        }
        if let (Some(snapshot), "snapshot") = (&direction.snapshot, phase.as_str()) {
            let rate = (done - started.1) as f64 / started.0.elapsed().as_secs_f64().max(0.001);
            line += &format!(" {done}");
            if let Some(total) = snapshot.total {
                line += &format!(" of {total} keys");
                if rate >= 1.0 {
                    let left = total.saturating_sub(done) as f64 / rate;
                    line += &format!(", {rate:.0}/s, {left:.0} s left");
                }
            }
        }
        match direction.lag.changes {
            Some(changes) => line + &format!(", lag {changes} changes"),
            None => line + ", lag unknown",
        }
    }
}
