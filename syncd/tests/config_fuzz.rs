//! Whatever stands in a configuration file, reading it ends with a configuration or with an error that says
//! where: seeded mutations of the examples in `configs/`. `CAUSEWAY_SEED` runs one again, `CAUSEWAY_FUZZ_ROUNDS`
//! says how many.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use syncd::config::Config;

/// A second or two.
const ROUNDS: u64 = 3_000;
/// In the samples, as a password.
const SECRET: &str = "hunter2-of-the-samples";
/// Some are right for some keys; none is what a file would say by accident only.
const VALUES: &[&str] = &[
    "true",
    "1979-05-27T07:32:00Z",
    "{}",
    "[]",
    "''",
    "[[], {}]",
    "{ a.b.c = 1 }",
    "\"\\u0000\"",
    "\"${\"",
    "\"${NO_SUCH_VARIABLE}\"",
    "\"\"\"\n\n\"\"\"",
    "-1",
    "0",
    "0x7fffffffffffffff",
    "9223372036854775808",
    "1e999",
    "nan",
    "-inf",
    "99999999999999999999999999999999999999",
    "\"99999999999999999999GiB\"",
    "\"1e400 h\"",
    "\"-5s\"",
    "\"é→\\U0001F600\"",
    "\"redis://[::1\"",
    "\"redis://a:b@c:99999/-1\"",
    "\"unix://\"",
    "1_",
    "\"",
    "",
];

fn seed() -> u64 {
    let seed = std::env::var("CAUSEWAY_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::random::<u32>().into());
    println!("CAUSEWAY_SEED={seed}");
    seed
}

/// The examples, and one that has a secret in it.
fn samples() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    files.sort();
    let mut samples: Vec<_> = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let minimal = samples.iter().min_by_key(|text| text.len()).unwrap();
    let secret = minimal.replacen("redis://", &format!("redis://causeway:{SECRET}@"), 1);
    assert!(secret.contains(SECRET));
    samples.push(secret);
    samples
}

/// What loading `bytes` as the file `path` says; `Err` holds the error's text.
fn load(path: &Path, bytes: &[u8]) -> Result<(), String> {
    std::fs::write(path, bytes).unwrap();
    match catch_unwind(AssertUnwindSafe(|| Config::load(path))) {
        Ok(loaded) => loaded.map(|_| ()).map_err(|error| error.to_string()),
        Err(_) => panic!("loading panicked on\n{}", String::from_utf8_lossy(bytes)),
    }
}

/// Line and column of an error's text, which begins with `path`; `None` if it is about the whole file.
#[track_caller]
fn place(path: &Path, error: &str) -> Option<(usize, usize)> {
    let rest =
        error.strip_prefix(&format!("{}:", path.display())).unwrap_or_else(|| panic!("no file: {error}"));
    let mut parts = rest.splitn(3, ':');
    let mut number = || parts.next()?.parse().ok();
    let place = number().zip(number());
    let message = if place.is_some() { parts.next().unwrap_or_default() } else { rest };
    assert!(message.starts_with(' ') && message.trim().len() > 5, "says nothing: {error}");
    place
}

/// An error has a place that is there, unless the file is no text; and it shows no password. Returns whether
/// there was one.
fn judge(path: &Path, bytes: &[u8]) -> bool {
    let Err(error) = load(path, bytes) else { return false };
    let found = place(path, &error);
    let Ok(text) = std::str::from_utf8(bytes) else { return true };
    let (line, column) = found.unwrap_or_else(|| panic!("no line: {error}\nof\n{text}"));
    let lines: Vec<_> = text.split('\n').collect();
    let there =
        lines.get(line.wrapping_sub(1)).is_some_and(|l| (1..=l.chars().count() + 1).contains(&column));
    assert!(there, "line {line} column {column} is not there: {error}\nof\n{text}");
    // Where it is still a password, and not moved to where a value may be named.
    if text.matches(SECRET).count() == 1 && text.contains(&format!("{{ url = \"redis://causeway:{SECRET}@")) {
        assert!(!error.contains(SECRET), "{error}");
    }
    true
}

fn mutate(random: &mut SmallRng, samples: &[String]) -> Vec<u8> {
    let mut bytes = samples.choose(random).unwrap().clone().into_bytes();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..bytes.len().max(1)).min(bytes.len());
        let end = (at + random.random_range(0..40)).min(bytes.len());
        match random.random_range(0..9) {
            0 => bytes.insert(at, random.random()),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.truncate(at),
            3 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            4 => bytes.insert(at, *b"[]{}\"'=.,#\n\r\\-_\0".choose(random).unwrap()),
            5 => bytes = with_lines(random, &bytes, |random, lines| *lines.choose(random).unwrap()),
            6 => bytes.splice(at..end, VALUES.choose(random).unwrap().bytes()).for_each(drop),
            7 => {
                let other = samples.choose(random).unwrap().as_bytes();
                let from = random.random_range(0..other.len());
                let piece = &other[from..(from + 60).min(other.len())];
                bytes.splice(at..at, piece.iter().copied()).for_each(drop);
            }
            _ => bytes = with_value(random, &bytes).map_or(bytes, |(mutated, _)| mutated),
        }
    }
    bytes
}

/// A line more, at a random place: a key or a table twice, or where it doesn't belong.
fn with_lines<'b>(
    random: &mut SmallRng,
    bytes: &'b [u8],
    more: impl FnOnce(&mut SmallRng, &[&'b [u8]]) -> &'b [u8],
) -> Vec<u8> {
    let mut lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
    let line = more(random, &lines);
    let at = random.random_range(0..=lines.len());
    lines.insert(at, line);
    lines.join(&b'\n')
}

/// One key with another value, and the number of its line, from 1.
fn with_value(random: &mut SmallRng, bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut lines: Vec<_> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let is_key = |line: &Vec<u8>| line.first().is_some_and(u8::is_ascii_lowercase) && line.contains(&b'=');
    let keys: Vec<usize> = (0..lines.len()).filter(|i| lines.get(*i).is_some_and(is_key)).collect();
    let at = *keys.choose(random)?;
    let line = lines.get_mut(at)?;
    let equals = line.iter().position(|byte| *byte == b'=')?;
    line.truncate(equals + 1);
    line.extend_from_slice(VALUES.choose(random)?.as_bytes());
    Some((lines.join(&b'\n'), at + 1))
}

fn rounds() -> u64 {
    std::env::var("CAUSEWAY_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

#[test]
fn any_file_gives_a_configuration_or_an_error_with_a_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncd.toml");
    let (samples, mut random) = (samples(), SmallRng::seed_from_u64(seed()));
    for sample in &samples {
        load(&path, sample.as_bytes()).unwrap();
    }
    let rounds = rounds();
    let refused = (0..rounds).filter(|_| judge(&path, &mutate(&mut random, &samples))).count() as u64;
    // Both ends are reached, and often.
    assert!((rounds / 4..rounds - rounds / 50).contains(&refused), "{refused} of {rounds} refused");
}

/// A value of a wrong type or outside its bounds is named by its line, which holds its key.
#[test]
fn a_wrong_value_is_named_where_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncd.toml");
    let (samples, mut random) = (samples(), SmallRng::seed_from_u64(seed()));
    for _ in 0..rounds() / 4 {
        let sample = samples.choose(&mut random).unwrap();
        let Some((bytes, line)) = with_value(&mut random, sample.as_bytes()) else { continue };
        let Err(error) = load(&path, &bytes) else { continue };
        let found = place(&path, &error).map(|(line, _)| line);
        // What needs another key that this one no longer agrees with may be named there.
        let named = String::from_utf8_lossy(&bytes);
        let key = named.lines().nth(line - 1).and_then(|l| l.split('=').next()).unwrap_or_default().trim();
        assert!(
            found == Some(line) || error.contains(key),
            "line {line} is wrong, but: {error}\nof\n{named}"
        );
    }
}

/// Deep files are refused, or read, with the stack that the program has.
#[test]
fn nesting_has_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncd.toml");
    let minimal = samples().into_iter().min_by_key(String::len).unwrap();
    for depth in [10, 200, 2_000, 50_000] {
        let dotted = vec!["a"; depth].join(".");
        for more in [
            format!("deep = {}{}", "[".repeat(depth), "]".repeat(depth)),
            format!("deep = {}1{}", "{ a = ".repeat(depth), " }".repeat(depth)),
            format!("deep = {}", "[".repeat(depth)),
            format!("{dotted} = 1"),
            format!("deep = {{ {dotted} = 1 }}"),
            format!("[{dotted}]\nb = 1"),
            format!("[[{dotted}]]\nb = 1"),
        ] {
            judge(&path, format!("{minimal}\n{more}\n").as_bytes());
        }
    }
}

/// A long file is no reason to panic, whatever is long in it.
#[test]
fn a_long_file_is_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("syncd.toml");
    let minimal = samples().into_iter().min_by_key(String::len).unwrap();
    let many = |line: &str| line.repeat(2_000);
    for more in [
        many("# a comment\n"),
        many("[[channel]]\n"),
        format!("keys = [{}]\n", many("\"push:*\", ")),
        format!("keys = [\"{}\"]\n", "*".repeat(1_000_000)),
        format!("{} = 1\n", "k".repeat(1_000_000)),
        format!("dbs = {}\n", "9".repeat(1_000_000)),
    ] {
        judge(&path, format!("{minimal}\n{more}").as_bytes());
    }
}
