use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::generate;
use crate::resp::{Command, Connection, drain, encode};

/// What a load did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Commands that the server took.
    pub commands: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Loads the data of `seed` ([`generate`]) into the server at `url`.
///
/// # Errors
///
/// As [`load`].
pub fn fill(url: &str, seed: u64, keys: u64) -> Result<Loaded> {
    load(url, generate(seed, keys), |_| {})
}

/// Sends `commands` over one connection without waiting for replies in between, while another thread
/// reads those. `progress` is called now and then with how many commands were answered so far.
///
/// # Errors
///
/// The connection's; the first error that the server replied. What it took by then stays.
pub fn load(
    url: &str,
    commands: impl Iterator<Item = Command>,
    mut progress: impl FnMut(u64),
) -> Result<Loaded> {
    const BUFFER: usize = 1 << 18;
    let start = Instant::now();
    let (mut writer, mut reader) =
        Connection::open(url).with_context(|| format!("connect to {url}"))?.split();
    // At most so many buffers whose replies were not read yet.
    let (sent, to_read) = mpsc::sync_channel::<u64>(64);
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let answered = &answered;
        let reading = scope.spawn(move || -> Result<u64> {
            let mut total = 0;
            while let Ok(n) = to_read.recv() {
                if let Some(text) = drain(&mut reader, n).context("read replies")? {
                    bail!("the server refused a command: {text}");
                }
                total += n;
                answered.store(total, Ordering::Relaxed);
            }
            Ok(total)
        });
        let mut buffer = Vec::with_capacity(BUFFER + (1 << 16));
        let mut n = 0;
        let mut failed = None;
        for command in commands {
            encode(&command, &mut buffer);
            n += 1;
            if buffer.len() >= BUFFER {
                // A send that fails has a reader that ended with an error of its own.
                if sent.send(n).is_err() {
                    break;
                }
                if let Err(error) = writer.write_all(&buffer) {
                    failed = Some(error);
                    break;
                }
                buffer.clear();
                n = 0;
                progress(answered.load(Ordering::Relaxed));
            }
        }
        if failed.is_none() && n > 0 && sent.send(n).is_ok() {
            failed = writer.write_all(&buffer).err();
        }
        drop(sent);
        let commands = reading.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))??;
        match failed {
            Some(error) => Err(error).context("send commands"),
            None => Ok(Loaded { commands, elapsed: start.elapsed() }),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::{Options, RedisServer, redis_server};

    #[test]
    fn a_fill_makes_exactly_the_keys_asked_for() {
        if redis_server().is_none() {
            return;
        }
        let server = RedisServer::start(Options::default()).unwrap();
        fill(&server.url(), 1, 12_000).unwrap();
        let mut connection = server.connect().unwrap();
        let mut total = 0;
        for db in super::super::DATABASES {
            connection.must(&["SELECT", &db.to_string()]).unwrap();
            total += connection.must(&["DBSIZE"]).unwrap().int().unwrap();
        }
        assert_eq!(total, 12_000);
    }

    #[test]
    fn a_refused_command_ends_the_load_with_the_servers_words() {
        if redis_server().is_none() {
            return;
        }
        let server = RedisServer::start(Options::default()).unwrap();
        let commands = [crate::resp::cmd(&["NOSUCH"])];
        let error = load(&server.url(), commands.into_iter(), |_| {}).unwrap_err();
        assert!(format!("{error:#}").contains("unknown command"), "{error:#}");
    }
}
