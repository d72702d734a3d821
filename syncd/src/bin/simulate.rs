//! Runs seeds of the simulation and says which fail.

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use syncd::sim::{self, Options, Part};

/// The engine between two stores in memory, with everything that can break breaking.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this one.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens, of the keys that differ in the end.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// And look for a smaller plan that fails before that.
    #[arg(long, requires = "trace")]
    shrink: bool,
    /// Print what happens to these keys instead.
    #[arg(long, requires = "trace")]
    key: Vec<String>,
    /// Both sites write the same keys.
    #[arg(long)]
    collide: bool,
    /// Where they do, sites own some of the keys.
    #[arg(long, requires = "collide")]
    owned: bool,
    /// Where they do, streams are lost, too, snapshots repeated, and stores out of memory.
    #[arg(long, requires = "collide")]
    gaps: bool,
    /// Switch off this part of the rule for concurrent writes; `all`: one after the other, each until a seed
    /// fails.
    #[arg(long, requires = "collide")]
    off: Option<String>,
    /// Retention takes settled records from the logs.
    #[arg(long)]
    trim: bool,
    /// Rows and states of more than a few bytes come in pieces.
    #[arg(long)]
    pieces: bool,
    /// Far more is written, and the daemon dies before it has caught up.
    #[arg(long)]
    rush: bool,
    /// Some of the keys are not written but handed over.
    #[arg(long)]
    intake: bool,
    /// A process for each site.
    #[arg(long)]
    apart: bool,
    /// Run each seed twice and compare the two runs.
    #[arg(long)]
    twice: bool,
    /// Threads; as many as the machine has, if not given.
    #[arg(long)]
    threads: Option<usize>,
}

impl Args {
    fn options(&self) -> Options {
        let Args { collide, owned, apart, gaps, trim, pieces, rush, intake, .. } = *self;
        Options { collide, owned, apart, gaps, trim, pieces, rush, intake, off: None }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let off = match args.off.as_deref() {
        None => None,
        Some("all") => return each_off(&args),
        Some(name) => match Part::ALL.into_iter().find(|part| format!("{part:?}") == name) {
            Some(part) => Some(part),
            None => {
                eprintln!("--off: one of {:?} or all", Part::ALL);
                return ExitCode::from(2);
            }
        },
    };
    let options = Options { off, ..args.options() };
    if args.trace {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stdout).init();
        let seed = args.seed.unwrap_or_default();
        let verdict = sim::trace(seed, options, args.shrink, args.key);
        verdict.failures.iter().for_each(|failure| println!("{failure}"));
        return if verdict.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let (from, seeds) = args.seed.map_or((args.from, args.seeds), |seed| (seed, 1));
    let (begin, late) = (Instant::now(), AtomicU64::new(0));
    let failed = failing(from..from + seeds, args.threads, |seed| {
        let mut verdict = sim::run(seed, options);
        if args.twice && sim::digest(seed, options) != sim::digest(seed, options) {
            verdict.failures.push("two runs of this seed differ".to_owned());
        }
        late.fetch_add(u64::from(verdict.late), Ordering::Relaxed);
        if !verdict.failures.is_empty() {
            println!("seed {seed}: {}", verdict.failures.join("\n    "));
        }
        !verdict.failures.is_empty()
    });
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds, {} failed, {} late, {:.0} seeds/s",
        failed.len(),
        late.load(Ordering::Relaxed),
        seeds as f64 / seconds
    );
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::FAILURE
}

/// Those of `seeds` that fail, ascending.
fn failing(seeds: Range<u64>, threads: Option<usize>, fails: impl Fn(u64) -> bool + Sync) -> Vec<u64> {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if fails(seed)
                && let Ok(mut failed) = failed.lock()
            {
                failed.push(seed);
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut failed = failed.into_inner().unwrap_or_default();
    failed.sort_unstable();
    failed
}

/// Shows that each part of the rule is needed: how many of the seeds fail without it.
fn each_off(args: &Args) -> ExitCode {
    let mut found = true;
    for part in Part::ALL {
        let owned = args.owned || part == Part::Owner;
        let intake = args.intake || part == Part::Delivered;
        let options = Options { off: Some(part), owned, intake, ..args.options() };
        let failed = failing(args.from..args.from + args.seeds, args.threads, |seed| {
            !sim::run(seed, options).failures.is_empty()
        });
        found &= !failed.is_empty();
        let first = failed.first().map_or("-".to_owned(), |seed| (seed - args.from + 1).to_string());
        println!(
            "{:<14} {:>6} of {} seeds fail, the first is number {first}",
            format!("{part:?}"),
            failed.len(),
            args.seeds
        );
    }
    if found { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
