//! Compares two embedded stores as the ground of the change log: redb and fjall.
//!
//! `log_compare [DIR] [MIB]`: for each store and block size, in a process of its own, commits blocks of
//! random bytes with an fsync each, reads each back as a reader at the tail would, removes the oldest nine
//! tenths, goes on for another tenth, and prints the figures; then kills a writer with SIGKILL, opens what
//! it left, and opens copies of it in which one bit of a block in the middle was changed.
//! `bench/log/run` is the usual way to call it; decision 0001 has the outcome.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use redb::ReadableDatabase;

/// What the log asks of a store: blocks under growing numbers.
trait Store {
    fn append(&mut self, first: u64, block: &[u8]) -> Result<()>;
    fn read(&mut self, first: u64) -> Result<Option<Vec<u8>>>;
    fn trim(&mut self, below: u64) -> Result<()>;
    /// The numbers that are there.
    fn list(&mut self) -> Result<Vec<u64>>;
}

const BLOCKS: redb::TableDefinition<'static, u64, &[u8]> = redb::TableDefinition::new("blocks");

/// redb: one file, or one file for each stretch of `segment` bytes, of which trim removes whole ones.
struct Redb {
    dir: PathBuf,
    segment: u64,
    files: VecDeque<(u64, redb::Database)>,
    filled: u64,
}

impl Redb {
    fn open(dir: &Path, segment: u64) -> Result<Self> {
        let mut firsts: Vec<u64> = std::fs::read_dir(dir)?
            .filter_map(|entry| entry.ok()?.path().file_stem()?.to_str()?.parse().ok())
            .collect();
        firsts.sort_unstable();
        let open =
            |first: u64| Ok((first, redb::Builder::new().set_cache_size(8 << 20).open(path(dir, first))?));
        let files = firsts.into_iter().map(open).collect::<Result<_>>()?;
        Ok(Redb { dir: dir.to_owned(), segment, files, filled: u64::MAX })
    }
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.redb"))
}

impl Store for Redb {
    fn append(&mut self, first: u64, block: &[u8]) -> Result<()> {
        if self.files.is_empty() || self.filled.saturating_add(block.len() as u64) > self.segment {
            let db = redb::Builder::new().set_cache_size(8 << 20).create(path(&self.dir, first))?;
            self.files.push_back((first, db));
            self.filled = 0;
        }
        self.filled += block.len() as u64;
        let (_, db) = self.files.back().context("a file")?;
        let txn = db.begin_write()?;
        txn.open_table(BLOCKS)?.insert(first, block)?;
        txn.commit()?;
        Ok(())
    }

    fn read(&mut self, first: u64) -> Result<Option<Vec<u8>>> {
        let Some((_, db)) = self.files.iter().rfind(|(start, _)| *start <= first) else { return Ok(None) };
        let table = db.begin_read()?.open_table(BLOCKS)?;
        Ok(table.get(first)?.map(|value| value.value().to_vec()))
    }

    fn trim(&mut self, below: u64) -> Result<()> {
        while self.files.get(1).is_some_and(|(start, _)| *start <= below) {
            if let Some((start, db)) = self.files.pop_front() {
                drop(db);
                std::fs::remove_file(path(&self.dir, start))?;
            }
        }
        if self.segment == u64::MAX {
            let (_, db) = self.files.front_mut().context("a file")?;
            let txn = db.begin_write()?;
            txn.open_table(BLOCKS)?.retain_in(..below, |_, _| false)?;
            txn.commit()?;
            db.compact()?;
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for (_, db) in &self.files {
            let table = db.begin_read()?.open_table(BLOCKS)?;
            for entry in table.range::<u64>(..)? {
                all.push(entry?.0.value());
            }
        }
        Ok(all)
    }
}

/// fjall: values of this size in blob files of their own, nothing compressed, small memtables.
struct Fjall {
    db: fjall::Database,
    blocks: fjall::Keyspace,
}

impl Fjall {
    fn open(dir: &Path, blobs: bool) -> Result<Self> {
        let db = fjall::Database::builder(dir.join("fjall"))
            .cache_size(8 << 20)
            .journal_compression(fjall::CompressionType::None)
            .max_journaling_size(64 << 20)
            .open()?;
        let none = fjall::config::CompressionPolicy::all(fjall::CompressionType::None);
        let blob = fjall::KvSeparationOptions::default().compression(fjall::CompressionType::None);
        let blocks = db.keyspace("blocks", || {
            fjall::KeyspaceCreateOptions::default()
                .max_memtable_size(16 << 20)
                .data_block_compression_policy(none)
                .with_kv_separation(blobs.then_some(blob))
        })?;
        Ok(Fjall { db, blocks })
    }
}

impl Store for Fjall {
    fn append(&mut self, first: u64, block: &[u8]) -> Result<()> {
        let mut batch = self.db.batch().durability(Some(fjall::PersistMode::SyncData));
        batch.insert(&self.blocks, first.to_be_bytes(), block);
        Ok(batch.commit()?)
    }

    fn read(&mut self, first: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.blocks.get(first.to_be_bytes())?.map(|value| value.to_vec()))
    }

    fn trim(&mut self, below: u64) -> Result<()> {
        for first in self.list()? {
            if first < below {
                self.blocks.remove(first.to_be_bytes())?;
            }
        }
        self.db.persist(fjall::PersistMode::SyncData)?;
        self.blocks.rotate_memtable_and_wait()?;
        Ok(self.blocks.major_compact()?)
    }

    fn list(&mut self) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for entry in self.blocks.iter() {
            all.push(u64::from_be_bytes(entry.key()?.as_ref().try_into()?));
        }
        Ok(all)
    }
}

const STORES: [&str; 4] = ["redb", "redb-segments", "fjall", "fjall-blobs"];

fn open(store: &str, dir: &Path) -> Result<Box<dyn Store>> {
    Ok(match store {
        "redb" => Box::new(Redb::open(dir, u64::MAX)?),
        "redb-segments" => Box::new(Redb::open(dir, 64 << 20)?),
        "fjall" => Box::new(Fjall::open(dir, false)?),
        "fjall-blobs" => Box::new(Fjall::open(dir, true)?),
        other => bail!("no store {other}"),
    })
}

/// A block that says which one it is, and proves that it is whole.
fn fill(block: &mut [u8], first: u64) {
    SmallRng::seed_from_u64(first).fill_bytes(block);
    block[..8].copy_from_slice(&first.to_le_bytes());
}

/// Blocks and bytes on disk of all files below `dir`, as allocated.
fn disk(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { disk(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

/// Changes one bit in the content of the block `first`, wherever below `dir` it is stored.
fn damage(dir: &Path, first: u64, size: usize) -> Result<bool> {
    let mut block = vec![0; size];
    fill(&mut block, first);
    let needle = &block[64..96];
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if damage(&path, first, size)? {
                return Ok(true);
            }
            continue;
        }
        let mut bytes = std::fs::read(&path)?;
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// CPU seconds of this process, bytes it made the kernel write, and its largest resident size in MiB.
fn used() -> Result<(f64, u64, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit(')').next().context("stat")?;
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|w| w.parse::<u64>().ok()).sum();
    let field = |text: &str, name: &str| -> Option<u64> {
        text.lines().find(|l| l.starts_with(name))?.split_whitespace().nth(1)?.parse().ok()
    };
    let io = std::fs::read_to_string("/proc/self/io")?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let written = field(&io, "write_bytes:").context("write_bytes")?;
    Ok((ticks as f64 / 100.0, written, field(&status, "VmHWM:").context("VmHWM")? / 1024))
}

/// One store, one block size: the figures as a line of the table.
fn measure(store: &str, dir: &Path, size: usize, count: u64) -> Result<()> {
    let mut log = open(store, dir)?;
    let mut blocks = vec![vec![0; size]; 4];
    blocks.iter_mut().zip(0..).for_each(|(block, n)| fill(block, n));
    let (cpu, written, _) = used()?;
    let started = Instant::now();
    let (mut commits, mut reads) = (Vec::new(), Vec::new());
    for n in 0..count {
        let block = &mut blocks[(n % 4) as usize];
        block[..8].copy_from_slice(&n.to_le_bytes());
        let at = Instant::now();
        log.append(n, block)?;
        commits.push(at.elapsed());
        let at = Instant::now();
        if log.read(n)?.is_none_or(|read| read != *block) {
            bail!("{store}: block {n} is not there");
        }
        reads.push(at.elapsed());
    }
    let seconds = started.elapsed().as_secs_f64();
    let (cpu_end, written_end, memory) = used()?;
    let full = disk(dir)?;
    let at = Instant::now();
    log.trim(count - count / 10)?;
    let trim = at.elapsed();
    let trimmed = disk(dir)?;
    for n in count..count + count / 10 {
        log.append(n, &blocks[(n % 4) as usize])?;
    }
    let after = disk(dir)?;
    commits.sort_unstable();
    reads.sort_unstable();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let total = mib(size as u64 * count);
    let ms = |times: &[Duration], part: usize| times[times.len() * part / 100].as_secs_f64() * 1e3;
    println!(
        "| {store} | {} | {:.0} | {:.2} / {:.2} | {:.2} | {:.1} | {:.2} | {:.2} | {:.0} ms | {:.2} | {:.2} | {memory} |",
        size / 1024,
        total / seconds,
        ms(&commits, 50),
        ms(&commits, 99),
        ms(&reads, 50),
        (cpu_end - cpu) / total * 1e3,
        mib(written_end - written) / total,
        mib(full) / total,
        trim.as_secs_f64() * 1e3,
        mib(trimmed) / total,
        mib(after) / total,
    );
    Ok(())
}

/// Appends until it is killed, and says each block that is durable.
fn forever(store: &str, dir: &Path, size: usize) -> Result<()> {
    let mut log = open(store, dir)?;
    let mut block = vec![0; size];
    for n in 0.. {
        fill(&mut block, n);
        log.append(n, &block)?;
        println!("{n}");
    }
    Ok(())
}

/// Opens what was left, and counts what is whole of what was acknowledged.
fn recover(store: &str, dir: &Path, size: usize, acked: u64) -> Result<()> {
    let at = Instant::now();
    let mut log = open(store, dir)?;
    let last = log.read(acked)?.is_some();
    let opened = at.elapsed();
    let mut block = vec![0; size];
    let (mut whole, mut wrong, mut failed) = (0, 0, 0);
    for n in 0..=acked {
        fill(&mut block, n);
        match log.read(n) {
            Ok(Some(read)) if read == block => whole += 1,
            Ok(Some(_)) => wrong += 1,
            Ok(None) | Err(_) => failed += 1,
        }
    }
    println!(
        "opened in {:.0} ms; last acknowledged block {}; of {} blocks {whole} whole, {wrong} wrong, {failed} not readable",
        opened.as_secs_f64() * 1e3,
        if last { "there" } else { "missing" },
        acked + 1,
    );
    Ok(())
}

/// Kills a writer, then runs `recover` on what it left, as it is and with one byte changed.
fn crash(store: &str, dir: &Path, size: usize, count: u64) -> Result<()> {
    let me = std::env::current_exe()?;
    let mut child = Command::new(&me)
        .args(["forever", store])
        .arg(dir)
        .arg(size.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut acked = 0;
    for line in BufReader::new(child.stdout.take().context("stdout")?).lines() {
        acked = line?.parse()?;
        if acked == count {
            child.kill()?;
        }
    }
    child.wait()?;
    let copy = tempfile::tempdir_in(dir.parent().context("parent")?)?;
    let copied =
        Command::new("cp").arg("-r").arg(format!("{}/.", dir.display())).arg(copy.path()).status()?;
    anyhow::ensure!(copied.success(), "cp");
    let run = |dir: &Path| -> Result<String> {
        let out = Command::new(&me)
            .args(["recover", store])
            .arg(dir)
            .args([size.to_string(), acked.to_string()])
            .output()?;
        let text = if out.status.success() { out.stdout } else { out.stderr };
        Ok(String::from_utf8_lossy(&text).lines().take(2).collect::<Vec<_>>().join(" "))
    };
    println!("- {store}, killed at {} MiB: {}", (acked * size as u64) >> 20, run(dir)?);
    anyhow::ensure!(damage(copy.path(), count / 2, size)?, "block {} is not found", count / 2);
    let clean = tempfile::tempdir_in(dir.parent().context("parent")?)?;
    let copied =
        Command::new("cp").arg("-r").arg(format!("{}/.", dir.display())).arg(clean.path()).status()?;
    anyhow::ensure!(copied.success() && damage(clean.path(), count / 2, size)?, "cp");
    println!("  - a bit of block {} changed after the crash: {}", count / 2, run(copy.path())?);
    println!("  - the same after a clean stop: {}", run(clean.path())?);
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args.get(i).context("an argument is missing")?.parse::<u64>().context("number");
    let text = |i: usize| args.get(i).map(String::as_str).context("an argument is missing");
    match args.first().map(String::as_str) {
        Some("measure") => return measure(text(1)?, Path::new(text(2)?), number(3)? as usize, number(4)?),
        Some("forever") => return forever(text(1)?, Path::new(text(2)?), number(3)? as usize),
        Some("recover") => return recover(text(1)?, Path::new(text(2)?), number(3)? as usize, number(4)?),
        _ => {}
    }
    let base = PathBuf::from(args.first().map_or("/tmp", String::as_str));
    let mib: u64 = args.get(1).map_or(Ok(256), |text| text.parse())?;
    println!(
        "| store | KiB/commit | MiB/s | commit p50 / p99 ms | read p50 ms | CPU ms/MiB | written/data | disk/data | trim 9/10 | disk after | after 1/10 more | peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for size in [1usize << 10, 64 << 10, 250 << 10, 500 << 10] {
        let count = ((mib << 20) / size as u64).min(4096);
        for store in STORES {
            let dir = tempfile::tempdir_in(&base)?;
            let status = Command::new(std::env::current_exe()?)
                .args(["measure", store])
                .arg(dir.path())
                .args([size.to_string(), count.to_string()])
                .status()?;
            anyhow::ensure!(status.success(), "{store} failed");
        }
    }
    for store in STORES {
        let dir = tempfile::tempdir_in(&base)?;
        crash(store, dir.path(), 250 << 10, (mib << 20) / (250 << 10))?;
    }
    Ok(())
}
