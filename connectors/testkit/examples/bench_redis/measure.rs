//! The measurements: each starts its own servers, and stops them before the next begins.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_testkit::data::{large_hash, load};
use causeway_testkit::resp::{Command, Connection, encode};

use crate::line;
use crate::machine::{Redis, Syncd, channel, dbsize, peak_mib, until};
use crate::report::{Lag, Row};

/// Bytes of a small key's value.
const VALUE_BYTES: usize = 64;

/// Part c writes so much.
const WRITES_PER_SECOND: u64 = 5_000;

/// After this a run is stuck.
pub(crate) const AT_MOST: Duration = Duration::from_secs(600);

/// What lies between `syncd` and the target.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Line {
    /// Loopback.
    Direct,
    /// A veth pair that delays by so much each way.
    Netem(Duration),
    /// A relay that delays by so much each way.
    Relay(Duration),
}

impl Line {
    fn words(self) -> String {
        match self {
            Line::Direct => String::new(),
            Line::Netem(delay) => format!(", veth {} ms", delay.as_millis()),
            Line::Relay(delay) => format!(", relay {} ms", delay.as_millis()),
        }
    }
}

/// A target's server and the URL at which `syncd` reaches it.
struct Target {
    server: Redis,
    url: String,
}

/// CPU seconds of the three processes at one moment.
pub(crate) struct Cpu {
    pub(crate) own: Option<f64>,
    pub(crate) source: f64,
    pub(crate) target: f64,
}

impl Cpu {
    fn now(source: &Redis, target: &Redis, syncd: Option<&Syncd>) -> Result<Cpu> {
        let own = syncd.map(Syncd::cpu).transpose()?;
        Ok(Cpu { own, source: source.cpu()?, target: target.cpu()? })
    }

    /// What was used since `before` for `items` in `seconds`, as a row of `[part, what, by]`.
    pub(crate) fn row(&self, [part, what, by]: [&str; 3], items: u64, seconds: f64, before: &Cpu) -> Row {
        Row {
            part: part.to_owned(),
            what: what.to_owned(),
            by: by.to_owned(),
            items,
            seconds,
            rate: items as f64 / seconds,
            cpu_own: self.own.zip(before.own).map(|(a, b)| a - b),
            cpu_source: self.source - before.source,
            cpu_target: self.target - before.target,
            ..Row::default()
        }
    }
}

/// Where things are, and how many folders were made.
#[derive(Debug)]
pub(crate) struct Bench {
    syncd: PathBuf,
    dir: PathBuf,
    made: u32,
    /// Where the log is in Kafka.
    pub(crate) brokers: Option<String>,
}

impl Bench {
    pub(crate) fn new(syncd: PathBuf, dir: PathBuf) -> Bench {
        Bench { syncd, dir, made: 0, brokers: None }
    }

    /// Copies `keys` small keys, and a hash of `large` bytes if that isn't 0, to an empty server.
    pub(crate) fn snapshot(&mut self, part: &str, keys: u64, large: u64, line: Line) -> Result<Vec<Row>> {
        let with = if large > 0 { " + big hash" } else { "" };
        let what = format!("copy {} keys{with}{}", short(keys), line.words());
        eprintln!("bench: {part} {what}");
        let source = self.server()?;
        load(&source.url, small_keys(0, keys), |_| {})?;
        if large > 0 {
            load(&source.url, large_hash("bench:large", large), |_| {})?;
        }
        let keys = keys + u64::from(large > 0);
        let mut rows = Vec::new();
        if matches!(line, Line::Direct) {
            // Both ways in which Redis takes a full sync: through a file, as it does unless told
            // otherwise, and straight from the line, which is faster. The faster one is the limit.
            for (by, way) in [("replica", "disabled"), ("diskless", "on-empty-db")] {
                let replica = Redis::start(&self.dir, &["--repl-diskless-load", way])?;
                let before = Cpu::now(&source, &replica, None)?;
                let start = Instant::now();
                replica.follow(&source)?;
                let mut connection = replica.connect()?;
                until(AT_MOST, Duration::from_millis(10), || Ok(is_up(&mut connection)))
                    .context("the replica's link")?;
                let seconds = start.elapsed().as_secs_f64();
                ensure!(dbsize(&mut connection)? == keys, "the replica doesn't have every key");
                rows.push(row(part, &what, by, keys, seconds, &before, &source, &replica, None)?);
            }
        }
        let target = self.target(line)?;
        let before = Cpu { own: Some(0.0), ..Cpu::now(&source, &target.server, None)? };
        let start = Instant::now();
        let mut syncd = self.start_syncd(&source, &target)?;
        syncd.wait_until_caught_up(AT_MOST)?;
        let seconds = start.elapsed().as_secs_f64();
        rows.push(row(part, &what, "syncd", keys, seconds, &before, &source, &target.server, Some(&syncd))?);
        let there = count(&target.server)?;
        ensure!(there == keys, "the target has {there} keys instead of {keys}; {}", syncd.end());
        compare_some(&source, &target.server, keys)?;
        if large > 0 {
            let fields = |redis: &Redis| -> Result<Option<i64>> {
                Ok(redis.connect()?.must(&["HLEN", "bench:large"])?.int())
            };
            ensure!(fields(&source)? == fields(&target.server)?, "the large hash isn't whole");
        }
        Ok(with_ratio(rows))
    }

    /// Writes `keys` new keys at the source, pipelined, and waits until the target has every one.
    pub(crate) fn stream(&mut self, part: &str, keys: u64, line: Line) -> Result<Vec<Row>> {
        let what = format!("stream {} SETs{}", short(keys), line.words());
        eprintln!("bench: {part} {what}");
        let mut rows = Vec::new();
        if matches!(line, Line::Direct) {
            let source = self.server()?;
            let replica = self.streaming_replica(&source)?;
            let before = Cpu::now(&source, &replica, None)?;
            let seconds = write_and_wait(&source, &replica, keys)?;
            rows.push(row(part, &what, "replica", keys, seconds, &before, &source, &replica, None)?);
        }
        let source = self.server()?;
        let target = self.target(line)?;
        let mut syncd = self.start_syncd(&source, &target)?;
        syncd.wait_until_caught_up(AT_MOST)?;
        let before = Cpu::now(&source, &target.server, Some(&syncd))?;
        let seconds = write_and_wait(&source, &target.server, keys).with_context(|| syncd.end())?;
        rows.push(row(part, &what, "syncd", keys, seconds, &before, &source, &target.server, Some(&syncd))?);
        compare_some(&source, &target.server, keys)?;
        Ok(with_ratio(rows))
    }

    /// The lag at a steady load, `samples` times.
    pub(crate) fn lag(&mut self, part: &str, samples: usize) -> Result<Vec<Row>> {
        let what = format!("lag at {WRITES_PER_SECOND} SETs/s");
        eprintln!("bench: {part} {what}");
        let mut rows = Vec::new();
        {
            let source = self.server()?;
            let replica = self.streaming_replica(&source)?;
            let before = Cpu::now(&source, &replica, None)?;
            let (writes, seconds, lag) = probe(&source, &replica, samples)?;
            let row = row(part, &what, "replica", writes, seconds, &before, &source, &replica, None)?;
            rows.push(Row { lag_ms: Some(lag), ..row });
        }
        let source = self.server()?;
        let target = self.target(Line::Direct)?;
        let mut syncd = self.start_syncd(&source, &target)?;
        syncd.wait_until_caught_up(AT_MOST)?;
        let before = Cpu::now(&source, &target.server, Some(&syncd))?;
        let (writes, seconds, lag) = probe(&source, &target.server, samples).with_context(|| syncd.end())?;
        let row = row(part, &what, "syncd", writes, seconds, &before, &source, &target.server, Some(&syncd))?;
        rows.push(Row { lag_ms: Some(lag), ..row });
        Ok(rows)
    }

    fn streaming_replica(&self, source: &Redis) -> Result<Redis> {
        let replica = self.server()?;
        replica.follow(source)?;
        let mut connection = replica.connect()?;
        until(AT_MOST, Duration::from_millis(20), || Ok(is_up(&mut connection)))?;
        Ok(replica)
    }

    fn target(&self, line: Line) -> Result<Target> {
        let server = match line {
            Line::Netem(delay) => line::server_behind_netem(&self.dir, delay)?,
            Line::Direct | Line::Relay(_) => self.server()?,
        };
        let url = match line {
            Line::Relay(delay) => line::delayed_url(&server, delay)?,
            Line::Direct | Line::Netem(_) => server.url.clone(),
        };
        Ok(Target { server, url })
    }

    fn start_syncd(&mut self, source: &Redis, target: &Target) -> Result<Syncd> {
        self.start(&channel("bench", "dc->cloud", &source.url, &target.url, "snapshot = \"dc\""))
    }

    /// Starts `syncd` with `channels` and a log of its own. Doesn't wait.
    pub(crate) fn start(&mut self, channels: &str) -> Result<Syncd> {
        self.made += 1;
        let name = format!("syncd-{}", self.made);
        Syncd::start(&self.syncd, &self.dir.join(&name), channels, self.brokers.as_deref(), (&name, None))
    }

    /// Writes `keys` new keys, half of them at the source of each of two channels at once, and waits until the targets
    /// have them all. Each site has so many `daemons`, which share the channels.
    pub(crate) fn shared(&mut self, part: &str, keys: u64, daemons: usize) -> Result<Row> {
        let what = format!("stream 2 × {} SETs", short(keys / 2));
        eprintln!("bench: {part} {what}, {daemons} at each site");
        let pairs = [[self.server()?, self.server()?], [self.server()?, self.server()?]];
        let of_pair = |(name, [dc, cloud]): (&str, &[Redis; 2])| {
            channel(name, "both", &dc.url, &cloud.url, "snapshot = \"dc\"")
        };
        let channels: String = ["one", "two"].into_iter().zip(&pairs).map(of_pair).collect();
        self.made += 1;
        let link = format!("shared-{}", self.made);
        let mut all = Vec::new();
        for site in ["dc", "cloud"] {
            for n in 0..daemons {
                let dir = self.dir.join(format!("{link}-{site}-{n}"));
                let place = (link.as_str(), Some(site));
                all.push(Syncd::start(&self.syncd, &dir, &channels, self.brokers.as_deref(), place)?);
            }
        }
        let share = pairs.len() / daemons;
        until(AT_MOST, Duration::from_millis(100), || Ok(all.iter().all(|d| d.caught_up() == Some(share))))
            .context("two channels, evenly shared")?;
        let now = || -> Result<Cpu> {
            let sum = |site: usize| pairs.iter().map(|pair| pair[site].cpu()).sum::<Result<f64>>();
            let own = all.iter().map(Syncd::cpu).sum::<Result<f64>>()?;
            Ok(Cpu { own: Some(own), source: sum(0)?, target: sum(1)? })
        };
        let before = now()?;
        let start = Instant::now();
        thread::scope(|scope| {
            let loads =
                pairs.each_ref().map(|[dc, cloud]| scope.spawn(|| write_and_wait(dc, cloud, keys / 2)));
            let ended = loads.map(|load| load.join().map_err(|_| anyhow::anyhow!("a load panicked"))?);
            ended.into_iter().collect::<Result<Vec<_>>>()
        })?;
        let seconds = start.elapsed().as_secs_f64();
        let row = now()?.row([part, &what, ""], keys, seconds, &before);
        pairs.iter().try_for_each(|[dc, cloud]| compare_some(dc, cloud, keys / 2))?;
        Ok(row)
    }

    /// Starts an empty server.
    pub(crate) fn server(&self) -> Result<Redis> {
        Redis::start(&self.dir, &[])
    }
}

/// The rows of `[without, with]` delay, the second ones compared with the first.
pub(crate) fn compared(both: [Vec<Row>; 2]) -> Vec<Row> {
    let [without, with] = both;
    with_ratio(without.into_iter().chain(with).collect())
}

/// Compares the last row with the fastest before it.
fn with_ratio(mut rows: Vec<Row>) -> Vec<Row> {
    if let Some((last, others)) = rows.split_last_mut() {
        let limit = others.iter().map(|r| r.rate).fold(0.0, f64::max);
        last.ratio = (limit > 0.0).then(|| last.rate / limit);
    }
    rows
}

#[allow(clippy::too_many_arguments, reason = "one call makes one row of what a measurement knows")]
fn row(
    part: &str,
    what: &str,
    by: &str,
    items: u64,
    seconds: f64,
    before: &Cpu,
    source: &Redis,
    target: &Redis,
    syncd: Option<&Syncd>,
) -> Result<Row> {
    let own = syncd.map(Syncd::cpu).transpose()?;
    // Its fork's CPU time counts once the source has seen that it ended.
    let mut connection = source.connect()?;
    until(AT_MOST, Duration::from_millis(10), || {
        let info = connection.must(&["INFO", "persistence"])?.text();
        Ok(info.is_some_and(|text| text.contains("rdb_bgsave_in_progress:0")))
    })?;
    let after = Cpu { own, ..Cpu::now(source, target, None)? };
    let peak_mib = syncd.map(|s| peak_mib(s.pid())).transpose()?;
    Ok(Row { peak_mib, ..after.row([part, what, by], items, seconds, before) })
}

pub(crate) fn short(keys: u64) -> String {
    if keys.is_multiple_of(1_000_000) {
        format!("{} M", keys / 1_000_000)
    } else {
        format!("{} k", keys / 1000)
    }
}

/// SETs of the keys `from..to`. Letters that don't compress: a server's RDB would make runs of one short.
pub(crate) fn small_keys(from: u64, to: u64) -> impl Iterator<Item = Command> {
    (from..to).map(|n| vec![b"SET".to_vec(), format!("bench:{n:012}").into_bytes(), value(n)])
}

/// 64 letters that look like chance.
fn value(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b'a' + (state >> 32) as u8 % 26
    };
    (0..VALUE_BYTES).map(|_| next()).collect()
}

fn is_up(connection: &mut Connection) -> bool {
    // A server that loads doesn't answer.
    let info = connection.must(&["INFO", "replication"]);
    info.is_ok_and(|reply| reply.text().is_some_and(|text| text.contains("master_link_status:up")))
}

/// Compares the values of a thousand of the first `keys` small keys: a copy that isn't right isn't fast.
pub(crate) fn compare_some(source: &Redis, target: &Redis, keys: u64) -> Result<()> {
    let names = (0..1000).map(|i| format!("bench:{:012}", i * keys / 1000));
    let call: Vec<String> = std::iter::once("MGET".to_owned()).chain(names).collect();
    let equal = source.connect()?.must(&call)? == target.connect()?.must(&call)?;
    ensure!(equal, "the target's values are not the source's");
    Ok(())
}

/// How many keys of the application the server has: without our own.
fn count(redis: &Redis) -> Result<u64> {
    let mut connection = redis.connect()?;
    let own = own_keys(&mut connection)?;
    Ok(dbsize(&mut connection)?.saturating_sub(own))
}

fn own_keys(connection: &mut Connection) -> Result<u64> {
    let (mut cursor, mut n) = ("0".to_owned(), 0);
    loop {
        let reply = connection.must(&["SCAN", &cursor, "MATCH", "causeway:{*", "COUNT", "10000"])?;
        let [next, keys] = reply.items() else { anyhow::bail!("SCAN answers no pair") };
        n += keys.items().len() as u64;
        cursor = next.text().context("no cursor")?;
        if cursor == "0" {
            return Ok(n);
        }
    }
}

/// Writes `keys` keys that are new, and returns after how many seconds the target had them all.
fn write_and_wait(source: &Redis, target: &Redis, keys: u64) -> Result<f64> {
    let mut connection = target.connect()?;
    let already = dbsize(&mut connection)?;
    let start = Instant::now();
    load(&source.url, small_keys(0, keys), |_| {})?;
    // The keys are distinct, so their number says whether all are there, in whatever order they came.
    until(AT_MOST, Duration::from_millis(5), || Ok(dbsize(&mut connection)? >= already + keys))
        .with_context(|| format!("the target's {keys} keys"))?;
    Ok(start.elapsed().as_secs_f64())
}

/// Writes steadily at `source`, and now and then a probe of which it is known when it was written; looks
/// at `target` until it is there. Returns the writes, the seconds, and the lag.
fn probe(source: &Redis, target: &Redis, samples: usize) -> Result<(u64, f64, Lag)> {
    let stop = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    let start = Instant::now();
    let times = thread::scope(|scope| {
        let writer = scope.spawn(|| write_steadily(source, WRITES_PER_SECOND, 100_000, &stop, &writes));
        let times = probe_times(source, target, samples);
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        times
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let lag = Lag::of(times).context("no samples")?;
    Ok((writes.load(Ordering::Relaxed), seconds, lag))
}

fn probe_times(source: &Redis, target: &Redis, samples: usize) -> Result<Vec<f64>> {
    let (mut near, mut far) = (source.connect()?, target.connect()?);
    // The first second is the load's start, not its steady state.
    thread::sleep(Duration::from_secs(1));
    let mut times = Vec::with_capacity(samples);
    for n in 0..samples {
        let text = n.to_string();
        let written = Instant::now();
        near.must(&["SET", "probe", &text])?;
        until(Duration::from_secs(30), Duration::from_micros(50), || {
            Ok(far.must(&["GET", "probe"])?.text().as_deref() == Some(&text))
        })
        .with_context(|| format!("probe {n}"))?;
        times.push(written.elapsed().as_secs_f64() * 1e3);
        // Of no common measure with the writer's or a daemon's own rhythm.
        thread::sleep(Duration::from_micros(7_000 + (n as u64 * 2_711) % 6_000));
    }
    Ok(times)
}

/// Writes `per_second` SETs at `source`, of `keys` keys in turn, until `stop`; `writes` counts them.
pub(crate) fn write_steadily(
    source: &Redis,
    per_second: u64,
    keys: u64,
    stop: &AtomicBool,
    writes: &AtomicU64,
) -> Result<()> {
    let mut connection = source.connect()?;
    let (start, mut done) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * per_second as f64) as u64;
        let mut out = Vec::new();
        let n = due.saturating_sub(done).min(1000);
        for i in done..done + n {
            small_keys(i % keys, i % keys + 1).for_each(|c| encode(&c, &mut out));
        }
        connection.write(&out)?;
        for _ in 0..n {
            ensure!(connection.read()?.error().is_none(), "the source refuses a write");
        }
        done += n;
        writes.store(done, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
