//! What the rule for concurrent writes costs: the same load by channels that do not have it and by one that
//! has, in turn, so that what else the machine does falls on both.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use causeway_testkit::data::load;
use causeway_testkit::resp::{Command, Connection, Reply, cmd};

use crate::line;
use crate::machine::{Redis, Syncd, channel, dbsize, peak_mib, resident_mib, until};
use crate::measure::{AT_MOST, Bench, Cpu, compare_some, short, small_keys, write_steadily};
use crate::report::{Report, Row};

/// Keys of each kind (text, hash, number) that both sites write in part b.
const SHARED_KEYS: u64 = 1000;

/// One of so many writes of part b goes to a key of those kinds.
const SHARED_EACH: u64 = 10;

/// Part c writes so much, for so long.
const WRITES_PER_SECOND: u64 = 50_000;
const WRITES_FOR: Duration = Duration::from_secs(20);

/// And once to so many keys in turn.
const REPEATED_KEYS: u64 = 100_000;

/// Part c: with the default's 8 times 512 changes under way the line would limit the rate.
const LARGE_BATCHES: &str = "batch = { items_max = 25000, bytes_max = 16777216 }";

/// How the sites are kept equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Each load has a channel of its own, one way: no rule.
    OneWay,
    /// That, and what comes back from the target is read, too, and dropped by the keys' names: no rule
    /// either, but the work that a channel both ways has besides it.
    ReadBack,
    /// One channel both ways: the rule is on.
    TwoWay,
}

impl How {
    fn word(self) -> &'static str {
        match self {
            How::OneWay => "one-way",
            How::ReadBack => "readback",
            How::TwoWay => "two-way",
        }
    }
}

/// Running servers and the daemon between them.
struct Stage {
    syncd: Syncd,
    /// `[dc, cloud]` of each channel.
    sites: Vec<[Redis; 2]>,
    /// Where what is read back would go, if any of it went anywhere.
    _spare: Redis,
    how: How,
    loads: u64,
}

impl Stage {
    /// Starts what `loads` loads need, each from an empty server to another, and waits until it streams. With
    /// a `delay` that lies, each way, between `syncd` and every cloud, and batches are large.
    fn start(bench: &mut Bench, how: How, loads: u64, delay: Option<Duration>) -> Result<Stage> {
        let spare = bench.server()?;
        let (mut sites, mut channels) = (Vec::new(), String::new());
        let direction = if how == How::TwoWay { "both" } else { "dc->cloud" };
        let batch = if delay.is_some() { LARGE_BATCHES } else { "" };
        for n in 0..if how == How::TwoWay { 1 } else { loads } {
            let [dc, cloud] = [bench.server()?, bench.server()?];
            let far = match delay {
                Some(delay) => line::delayed_url(&cloud, delay)?,
                None => cloud.url.clone(),
            };
            let more = format!("snapshot = \"dc\"\n{batch}");
            channels += &channel(&format!("c{n}"), direction, &dc.url, &far, &more);
            if how == How::ReadBack {
                let nothing = "snapshot = \"none\"\nkeys = [\"nothing:*\"]";
                channels += &channel(&format!("r{n}"), "cloud->dc", &spare.url, &far, nothing);
            }
            sites.push([dc, cloud]);
        }
        let mut syncd = bench.start(&channels)?;
        syncd.wait_until_caught_up(AT_MOST)?;
        Ok(Stage { syncd, sites, _spare: spare, how, loads })
    }

    /// From where to where each load goes.
    fn ways(&self) -> Vec<[&Redis; 2]> {
        match (self.how, &self.sites[..]) {
            (How::TwoWay, [[dc, cloud]]) if self.loads == 2 => vec![[dc, cloud], [cloud, dc]],
            (_, sites) => sites.iter().map(|[dc, cloud]| [dc, cloud]).collect(),
        }
    }

    fn cpu(&self) -> Result<Cpu> {
        let sum = |site: usize| self.sites.iter().map(|pair| pair[site].cpu()).sum::<Result<f64>>();
        Ok(Cpu { own: Some(self.syncd.cpu()?), source: sum(0)?, target: sum(1)? })
    }

    fn row(&self, part: &str, what: &str, items: u64, seconds: f64, before: &Cpu) -> Result<Row> {
        let row = self.cpu()?.row([part, what, self.how.word()], items, seconds, before);
        Ok(Row { peak_mib: Some(peak_mib(self.syncd.pid())?), ..row })
    }

    /// Every load at once: one pipeline for each way, with what `commands` gives for its number.
    fn write<I: Iterator<Item = Command>>(&self, commands: impl Fn(u64) -> I + Sync) -> Result<()> {
        let commands = &commands;
        thread::scope(|scope| {
            let writer = |(n, [from, _]): (u64, [&Redis; 2])| {
                let url = from.url.clone();
                scope.spawn(move || load(&url, commands(n), |_| {}))
            };
            let writers: Vec<_> = (0..).zip(self.ways()).map(writer).collect();
            for writer in writers {
                writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
            }
            Ok(())
        })
    }

    fn conflicts(&self) -> Result<f64> {
        self.syncd.metric("causeway_conflicts_total")
    }
}

/// Part a: each load is `keys` SETs of keys that nobody else writes; from the first until every target has
/// all. One load goes from dc to cloud; of two, the second goes back, or between two servers of its own.
pub(crate) fn no_conflicts(
    bench: &mut Bench,
    keys: u64,
    loads: u64,
    rounds: usize,
    report: &mut Report,
) -> Result<()> {
    let what =
        if loads == 1 { format!("{} SETs", short(keys)) } else { format!("{} SETs a site", short(keys)) };
    let hows = [How::OneWay, How::ReadBack, How::TwoWay];
    let runs = in_turn(hows, rounds, |how| {
        eprintln!("bench: a {what} {}", how.word());
        new_keys(&Stage::start(bench, how, loads, None)?, &what, keys)
    })?;
    conclude(report, &runs, &[(2, 0, "two-way against one-way"), (2, 1, "two-way against readback")]);
    Ok(())
}

fn new_keys(stage: &Stage, what: &str, keys: u64) -> Result<Row> {
    let ways = stage.ways();
    let mut targets = Vec::new();
    for [_, to] in &ways {
        let mut connection = to.connect()?;
        let loads = ways.iter().flatten().filter(|redis| redis.port == to.port).count() as u64;
        let all = dbsize(&mut connection)? + loads * keys;
        targets.push((connection, all));
    }
    let (before, start) = (stage.cpu()?, Instant::now());
    stage.write(|n| small_keys(n * keys, (n + 1) * keys))?;
    for (connection, all) in &mut targets {
        until(AT_MOST, Duration::from_millis(5), || Ok(dbsize(connection)? >= *all))
            .with_context(|| format!("a target's {keys} keys; {}", stage.syncd.end()))?;
    }
    let items = keys * stage.loads;
    let row = stage.row("a", what, items, start.elapsed().as_secs_f64(), &before)?;
    for [from, to] in &ways {
        compare_some(from, to, if stage.how == How::TwoWay { items } else { keys })?;
    }
    ensure!(stage.conflicts()? == 0.0, "there were conflicts where nobody made any");
    Ok(row)
}

/// Part b: both sites make `writes` writes, a tenth of them SETs, HSETs and INCRs of some keys; either these
/// are of the site alone, or both write the same. Until both are drained.
pub(crate) fn shared_keys(bench: &mut Bench, writes: u64, rounds: usize, report: &mut Report) -> Result<()> {
    let mut counted = 0.0;
    let runs = in_turn([false, true], rounds, |shared| {
        let what =
            format!("{} writes, {} % shared", short(2 * writes), if shared { 100 / SHARED_EACH } else { 0 });
        eprintln!("bench: b {what}");
        let stage = Stage::start(bench, How::TwoWay, 2, None)?;
        let (before, start) = (stage.cpu()?, Instant::now());
        stage.write(|site| (0..writes).map(move |n| mixed(site, n, writes, shared)))?;
        let mut stage = drained(stage)?;
        let row = stage.row("b", &what, 2 * writes, start.elapsed().as_secs_f64(), &before)?;
        let conflicts = stage.conflicts()?;
        ensure!((conflicts > 0.0) == shared, "{conflicts} conflicts with {what}");
        counted = conflicts;
        check_equal(&mut stage, writes, shared)?;
        Ok(row)
    })?;
    report.findings.push(format!("b: {counted:.0} conflicts were counted in the last run with shared keys"));
    conclude(report, &runs, &[(1, 0, "shared keys against none")]);
    Ok(())
}

/// The write number `n` of site 0 or 1.
fn mixed(site: u64, n: u64, writes: u64, shared: bool) -> Command {
    if n % SHARED_EACH != SHARED_EACH - 1 {
        return small_keys(site * writes + n, site * writes + n + 1).next().unwrap_or_default();
    }
    let (kind, number) = (n / SHARED_EACH % 3, n / SHARED_EACH / 3);
    let key = contested(if shared { 2 } else { site }, kind, number % SHARED_KEYS);
    let value = format!("{site}:{n}");
    match kind {
        0 => cmd(&["SET", &key, &value]),
        1 => cmd(&["HSET", &key, &format!("f{}", number % 7), &value]),
        _ => cmd(&["INCR", &key]),
    }
}

/// Of site 0 or 1 alone, or (2) of both.
fn contested(whose: u64, kind: u64, number: u64) -> String {
    format!("contested:{whose}:{kind}:{number}")
}

/// Waits until each site has what the other wrote last, and nothing is under way.
fn drained(mut stage: Stage) -> Result<Stage> {
    for [from, to] in stage.ways() {
        let last = format!("last:{}", from.port);
        from.connect()?.must(&["SET", &last, "1"])?;
        let mut connection = to.connect()?;
        until(
            AT_MOST,
            Duration::from_millis(5),
            || Ok(connection.must(&["EXISTS", &last])?.int() == Some(1)),
        )
        .with_context(|| format!("the last key; {}", stage.syncd.end()))?;
    }
    stage.syncd.wait_until_caught_up(AT_MOST)?;
    Ok(stage)
}

/// A fast wrong answer is none: the sites are equal, and every INCR of both counts.
fn check_equal(stage: &mut Stage, writes: u64, shared: bool) -> Result<()> {
    let mut counted = 0;
    for [dc, cloud] in &stage.sites {
        let (mut near, mut far) = (dc.connect()?, cloud.connect()?);
        for whose in if shared { 2..3 } else { 0..2 } {
            for number in 0..SHARED_KEYS {
                for kind in 0..3 {
                    let key = contested(whose, kind, number);
                    let (here, there) = (value_of(&mut near, kind, &key)?, value_of(&mut far, kind, &key)?);
                    ensure!(here == there, "{key} differs: {here:?} at dc, {there:?} at cloud");
                    counted += if kind == 2 { here[0].int().unwrap_or(0) } else { 0 };
                }
            }
        }
        compare_some(dc, cloud, 2 * writes)?;
        ensure!(dbsize(&mut near)? > 0, "dc is empty");
    }
    let increments =
        2 * (0..writes).filter(|n| n % SHARED_EACH == SHARED_EACH - 1 && n / SHARED_EACH % 3 == 2).count();
    ensure!(counted == i64::try_from(increments)?, "{counted} of {increments} INCRs count");
    Ok(())
}

/// What a key holds, in one order.
fn value_of(connection: &mut Connection, kind: u64, key: &str) -> Result<Vec<Reply>> {
    if kind != 1 {
        return Ok(vec![connection.must(&["GET", key])?]);
    }
    let mut all = connection.must(&["HGETALL", key])?.items().to_vec();
    // Pairs: of a sorted list of both nothing would be lost, as a value names its write.
    all.sort_by_key(Reply::text);
    Ok(all)
}

/// Part c: a steady load at dc with `delay` each way between `syncd` and cloud; how much memory more than at
/// rest that takes without the rule and with it, with a new key each time and with the same ones in turn.
pub(crate) fn memory(bench: &mut Bench, delay: Duration, report: &mut Report) -> Result<()> {
    let arms = [
        (How::OneWay, u64::MAX),
        (How::ReadBack, u64::MAX),
        (How::TwoWay, u64::MAX),
        (How::TwoWay, REPEATED_KEYS),
    ];
    for (how, keys) in arms {
        let of = if keys == u64::MAX { "new keys".to_owned() } else { format!("{} keys", short(keys)) };
        eprintln!("bench: c {WRITES_PER_SECOND} SETs/s of {of} {}", how.word());
        let stage = Stage::start(bench, how, 1, Some(delay))?;
        let rest = resident_mib(stage.syncd.pid())?;
        let (row, seen) = steadily(&stage, keys, &format!("SETs of {of}, late"))?;
        let grown = row.peak_mib.unwrap_or_default() - rest;
        report.findings.push(format!(
            "c {of}, {}: {:.0} writes/s, {:.2} s on their way (median; {:.2} s at last); {rest:.0} MiB at rest, at \
             most {grown:.0} more; at most {:.0} changes remembered, {:.0} in the file",
            how.word(),
            row.rate,
            seen.lag,
            seen.last_lag,
            seen.remembered,
            seen.spilled
        ));
        report.rows.push(row);
    }
    Ok(())
}

/// What the metrics said.
#[derive(Default)]
struct Seen {
    /// Seconds behind, in the middle and at last: much more if the load is too much.
    lag: f64,
    last_lag: f64,
    remembered: f64,
    spilled: f64,
}

fn steadily(stage: &Stage, keys: u64, what: &str) -> Result<(Row, Seen)> {
    let [[dc, _]] = &stage.sites[..] else { anyhow::bail!("one channel") };
    let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let (before, start) = (stage.cpu()?, Instant::now());
    let seen = thread::scope(|scope| {
        let writer = scope.spawn(|| write_steadily(dc, WRITES_PER_SECOND, keys, &stop, &writes));
        let seen = watch(&stage.syncd);
        stop.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        seen
    })?;
    let items = writes.load(Ordering::Relaxed);
    Ok((stage.row("c", what, items, start.elapsed().as_secs_f64(), &before)?, seen))
}

/// Looks at the metrics until the load ends.
fn watch(syncd: &Syncd) -> Result<Seen> {
    let (start, mut seen, mut lags) = (Instant::now(), Seen::default(), Vec::new());
    while start.elapsed() < WRITES_FOR {
        thread::sleep(Duration::from_millis(100));
        seen.remembered = seen.remembered.max(syncd.metric("causeway_remembered_changes")?);
        seen.spilled = seen.spilled.max(syncd.metric("causeway_spilled_changes")?);
        lags.push(syncd.metric("causeway_lag_seconds")?);
    }
    seen.last_lag = lags.last().copied().unwrap_or(f64::NAN);
    seen.lag = middle(&mut lags);
    Ok(seen)
}

/// Measures each of `arms` in turn, `rounds` times: a list for each arm.
fn in_turn<A: Copy, const N: usize>(
    arms: [A; N],
    rounds: usize,
    mut measure: impl FnMut(A) -> Result<Row>,
) -> Result<[Vec<Row>; N]> {
    let mut runs = [const { Vec::new() }; N];
    for round in 0..rounds {
        for at in 0..N {
            // The other way round each second time: what drifts falls on all.
            let at = if round % 2 == 0 { at } else { N - 1 - at };
            runs[at].push(measure(arms[at])?);
        }
    }
    Ok(runs)
}

/// Reports of each arm the run of the middle rate, and of each pair of arms (by number, with words) the
/// median of the rounds' ratios.
fn conclude<const N: usize>(report: &mut Report, runs: &[Vec<Row>; N], pairs: &[(usize, usize, &str)]) {
    for &(with, without, words) in pairs {
        let ratios = |of: fn(&Row) -> f64| -> Vec<f64> {
            runs[with].iter().zip(&runs[without]).map(|(with, without)| of(with) / of(without)).collect()
        };
        let part = runs[with].first().map(|row| format!("{} {}", row.part, row.what)).unwrap_or_default();
        report.findings.push(format!(
            "{part}, {words}: rate {}, CPU each {}",
            spread(ratios(|row| row.rate)),
            spread(ratios(|row| row.micros().unwrap_or(f64::NAN)))
        ));
    }
    let mut first = None;
    for rows in runs {
        let mut rows: Vec<&Row> = rows.iter().collect();
        rows.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let Some(row) = rows.get(rows.len() / 2).copied().cloned() else { continue };
        let ratio = first.map(|first| row.rate / first);
        first = first.or(Some(row.rate));
        report.rows.push(Row { ratio, ..row });
    }
}

/// `0.95 (0.93 to 0.97)`
fn spread(mut ratios: Vec<f64>) -> String {
    let median = middle(&mut ratios);
    let of = |n: Option<&f64>| n.copied().unwrap_or(f64::NAN);
    format!("{median:.2} ({:.2} to {:.2})", of(ratios.first()), of(ratios.last()))
}

/// The median; sorts.
fn middle(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
