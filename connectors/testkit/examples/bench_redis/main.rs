//! Measures a Redis channel of `syncd` against Redis's own replica, or with `--conflict` the rule for
//! concurrent writes against channels without it, on one machine in one run. Called by `bench/redis` and
//! `bench/conflict`, which build it, give it a folder and end what it leaves behind.

mod conflict;
mod line;
mod machine;
mod measure;
mod report;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, ValueEnum};

use measure::{Bench, Line, compared};
use report::{Report, Row};

/// What `--delay-ms` is by default, each way: of part d, and with `--conflict` of part c.
const DELAY_MS: [u64; 2] = [3, 300];

/// How often each is measured with `--kafka`.
const KAFKA_ROUNDS: usize = 3;

#[derive(Parser)]
struct Arguments {
    /// The rule for concurrent writes, instead of a channel against a replica.
    #[arg(long)]
    conflict: bool,
    /// 200,000 keys instead of 1 and 5 million; with `--conflict` 3 rounds instead of 5, too.
    #[arg(long)]
    quick: bool,
    /// One part; may be repeated. Left out: all.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// The brokers of a Kafka: the same channel with its log there against one with the embedded log.
    #[arg(long, conflicts_with = "conflict")]
    kafka: Option<String>,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Of the line that is delayed, in each direction.
    #[arg(long)]
    delay_ms: Option<u64>,
    /// The daemon's program.
    #[arg(long)]
    syncd: PathBuf,
    /// An empty folder, on the disk that the change log is to be measured on.
    #[arg(long)]
    dir: PathBuf,
    /// Set by this program for part d: it runs in a network namespace of its own.
    #[arg(long, hide = true)]
    in_namespace: bool,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn delay_ms(&self) -> u64 {
        self.delay_ms.unwrap_or(DELAY_MS[usize::from(self.conflict)])
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    A,
    B,
    C,
    D,
    E,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.conflict && arguments.only.contains(&Part::D) {
        Arguments::command().error(ErrorKind::InvalidValue, "bench/conflict has no part d").exit();
    }
    if arguments.kafka.is_none() && arguments.only.contains(&Part::E) {
        Arguments::command().error(ErrorKind::InvalidValue, "part e is of --kafka").exit();
    }
    match run(&arguments) {
        Ok(report) if arguments.json => match serde_json::to_string_pretty(&report) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.into()),
        },
        Ok(report) => {
            print!("{}", report.table());
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("bench: {error:#}");
    ExitCode::from(3)
}

fn run(arguments: &Arguments) -> Result<Report> {
    let mut report = Report { machine: machine::describe(), ..Report::default() };
    if machine::load_average() > 0.5 {
        report.notes.push("others were using this machine: the figures are noisy".to_owned());
    }
    let keys = if arguments.quick { 200_000 } else { 1_000_000 };
    let mut bench = Bench::new(arguments.syncd.clone(), arguments.dir.clone());
    if arguments.conflict {
        measure_rule(arguments, &mut bench, keys, &mut report)?;
        return Ok(report);
    }
    let rows = &mut report.rows;
    if let Some(brokers) = &arguments.kafka {
        rows.extend(measure_kafka(arguments, &mut bench, brokers, keys)?);
        return Ok(report);
    }
    if arguments.in_namespace {
        delayed(&mut bench, keys, Line::Netem, arguments.delay_ms(), rows)?;
        return Ok(report);
    }
    if arguments.wants(Part::A) {
        rows.extend(bench.snapshot("a", keys, 0, Line::Direct)?);
        if !arguments.quick {
            rows.extend(bench.snapshot("a", 5_000_000, 0, Line::Direct)?);
        }
        rows.extend(bench.snapshot("a", keys, 200 << 20, Line::Direct)?);
    }
    if arguments.wants(Part::B) {
        rows.extend(bench.stream("b", keys, Line::Direct)?);
    }
    if arguments.wants(Part::C) {
        rows.extend(bench.lag("c", if arguments.quick { 500 } else { 1500 })?);
    }
    if arguments.wants(Part::D) {
        match line::netem_works() {
            Ok(()) => {
                let inner = in_namespace(arguments)?;
                rows.extend(inner.rows);
            }
            Err(why) => {
                report.notes.push(format!(
                    "d: no netem here ({why}); a relay holds the bytes back instead, and its own CPU slows \
                     both rows"
                ));
                delayed(&mut bench, keys, Line::Relay, arguments.delay_ms(), rows)?;
            }
        }
    }
    Ok(report)
}

/// Parts a to c with the embedded log and with the one in Kafka, and e: one daemon at each site, and two.
fn measure_kafka(arguments: &Arguments, bench: &mut Bench, brokers: &str, keys: u64) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let samples = if arguments.quick { 500 } else { 1500 };
    for part in [Part::A, Part::B, Part::C].into_iter().filter(|part| arguments.wants(*part)) {
        rows.extend(medians(["embedded", "kafka"], |kafka| {
            bench.brokers = (kafka == 1).then(|| brokers.to_owned());
            let measured = match part {
                Part::A => bench.snapshot("a", keys, 0, Line::Direct),
                Part::B => bench.stream("b", keys, Line::Direct),
                _ => bench.lag("c", samples),
            };
            measured?.pop().context("nothing was measured")
        })?);
    }
    if arguments.wants(Part::E) {
        bench.brokers = Some(brokers.to_owned());
        rows.extend(medians(["1 a site", "2 a site"], |two| bench.shared("e", keys, two + 1))?);
    }
    Ok(rows)
}

/// Measures two ways, the first and the second in turn, and takes of each the run with the middle rate.
fn medians(names: [&str; 2], mut measure: impl FnMut(usize) -> Result<Row>) -> Result<Vec<Row>> {
    let mut both = [Vec::new(), Vec::new()];
    for _ in 0..KAFKA_ROUNDS {
        for (way, rows) in both.iter_mut().enumerate() {
            rows.push(Row { by: names[way].to_owned(), ratio: None, ..measure(way)? });
        }
    }
    Ok(compared(both.map(|mut rows: Vec<Row>| {
        rows.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        rows.into_iter().nth(KAFKA_ROUNDS / 2).into_iter().collect()
    })))
}

/// The parts of `bench/conflict`.
fn measure_rule(arguments: &Arguments, bench: &mut Bench, keys: u64, report: &mut Report) -> Result<()> {
    let rounds = if arguments.quick { 3 } else { 5 };
    if arguments.wants(Part::A) {
        conflict::no_conflicts(bench, keys, 1, rounds, report)?;
        conflict::no_conflicts(bench, keys / 2, 2, rounds, report)?;
    }
    if arguments.wants(Part::B) {
        conflict::shared_keys(bench, keys / 2, rounds, report)?;
    }
    if arguments.wants(Part::C) {
        conflict::memory(bench, Duration::from_millis(arguments.delay_ms()), report)?;
    }
    Ok(())
}

/// Part d: `syncd` over the same line without and with delay.
fn delayed(
    bench: &mut Bench,
    keys: u64,
    line: fn(Duration) -> Line,
    delay_ms: u64,
    rows: &mut Vec<report::Row>,
) -> Result<()> {
    let (without, with) = (line(Duration::ZERO), line(Duration::from_millis(delay_ms)));
    let both = [bench.snapshot("d", keys, 0, without)?, bench.snapshot("d", keys, 0, with)?];
    rows.extend(measure::compared(both));
    let both = [bench.stream("d", keys, without)?, bench.stream("d", keys, with)?];
    rows.extend(measure::compared(both));
    Ok(())
}

/// Runs part d by this same program in a network namespace of its own.
fn in_namespace(arguments: &Arguments) -> Result<Report> {
    let dir = arguments.dir.join("namespace");
    std::fs::create_dir(&dir)?;
    let mut command = Command::new("unshare");
    command.arg("--net").arg(std::env::current_exe()?).args(["--in-namespace", "--json", "--only", "d"]);
    command.arg("--delay-ms").arg(arguments.delay_ms().to_string());
    command.arg("--syncd").arg(&arguments.syncd).arg("--dir").arg(dir);
    if arguments.quick {
        command.arg("--quick");
    }
    let done = command.stderr(Stdio::inherit()).output().context("unshare")?;
    ensure!(done.status.success(), "part d ended with {}", done.status);
    Ok(serde_json::from_slice(&done.stdout)?)
}
