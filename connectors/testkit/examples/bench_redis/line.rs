//! A line between the source's site and the target's that takes time: netem between two network
//! namespaces where the kernel has it, else a relay that holds every byte back.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::machine::Redis;

/// The target's address in its namespace; 198.18.0.0/15 is set aside for benchmarks (RFC 2544).
const FAR: &str = "198.18.0.2";
const NEAR: &str = "198.18.0.1";

/// Whether this process can make namespaces and delay what goes through them; if not, why.
pub(crate) fn netem_works() -> Result<(), String> {
    let script = "ip link add c0 type veth peer name c1 && tc qdisc add dev c0 root netem delay 3ms";
    let tried = Command::new("unshare").args(["--net", "sh", "-c", script]).output();
    match tried {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ")),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

/// A server in a network namespace of its own, at the far end of a veth pair whose both ends delay what
/// they send. To be called by a process that has a namespace of its own, too: both end with their last
/// process, and nothing of them is left.
pub(crate) fn server_behind_netem(dir: &Path, delay: Duration) -> Result<Redis> {
    let server = Redis::spawn(dir, &["unshare", "--net"], FAR, &[])?;
    let pid = server.pid().to_string();
    // Until unshare has done its work, the process is still in our own namespace.
    let own = std::fs::read_link("/proc/self/ns/net")?;
    crate::machine::until(Duration::from_secs(5), Duration::from_millis(5), || {
        Ok(std::fs::read_link(format!("/proc/{pid}/ns/net"))? != own)
    })?;
    // Those of an earlier server go with it, but not at once.
    let _ = command("ip link del c0").stderr(Stdio::null()).status();
    let far = format!("nsenter --target {pid} --net ");
    run("ip link set lo up")?;
    run(&format!("ip link add c0 type veth peer name c1 netns {pid}"))?;
    run(&format!("ip addr add {NEAR}/30 dev c0"))?;
    run(&format!("{far}ip addr add {FAR}/30 dev c1"))?;
    run("ip link set c0 up")?;
    run(&format!("{far}ip link set c1 up"))?;
    if !delay.is_zero() {
        // Without the limit netem drops what is over 1000 packets.
        let netem = format!("root netem delay {}us limit 100000", delay.as_micros());
        run(&format!("tc qdisc add dev c0 {netem}"))?;
        run(&format!("{far}tc qdisc add dev c1 {netem}"))?;
    }
    server.wait()?;
    Ok(server)
}

fn command(words: &str) -> Command {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

fn run(words: &str) -> Result<()> {
    let done = command(words).output().with_context(|| words.to_owned())?;
    ensure!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

/// The URL of a [`relay`] to `server`.
pub(crate) fn delayed_url(server: &Redis, delay: Duration) -> Result<String> {
    let port = relay(&format!("127.0.0.1:{}", server.port), delay)?;
    Ok(format!("redis://127.0.0.1:{port}"))
}

/// Listens on a port of 127.0.0.1 and passes every connection on to `to` (`host:port`), each byte `delay`
/// after it came, both ways. Returns the port. Its threads end with the process.
fn relay(to: &str, delay: Duration) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let to = to.to_owned();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            // A server that is gone is what the caller sees as a closed connection.
            let Ok(far) = TcpStream::connect(&to) else { continue };
            let _ = pass(&near, &far, delay).and_then(|()| pass(&far, &near, delay));
        }
    });
    Ok(port)
}

fn pass(from: &TcpStream, to: &TcpStream, delay: Duration) -> Result<()> {
    // What is on the line at most, each up to 64 KiB and mostly far less: it must not be what limits the rate.
    let (sender, receiver) = sync_channel(8192);
    to.set_nodelay(true)?;
    let (from, to) = (from.try_clone()?, to.try_clone()?);
    thread::spawn(move || take(from, &sender));
    thread::spawn(move || give(to, &receiver, delay));
    Ok(())
}

fn take(mut from: TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if sender.send((Instant::now(), buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}

fn give(mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>, delay: Duration) {
    while let Ok((came, bytes)) = receiver.recv() {
        thread::sleep((came + delay).saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}
