//! The line between the daemon and a server, in the test's hands.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use causeway_testkit::servers::free_port;
use rand::Rng;
use rand::rngs::SmallRng;

/// What a [`Proxy`] does with bytes that a server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// They go on, and what follows them.
    On,
    /// They go on, and then it hangs up.
    Cut,
}

/// What [`Proxy::disturb`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbed {
    /// It hung up.
    Cut,
    /// It stood still for up to 1.2 s, and may have hung up then.
    Stalled,
}

/// The line between the daemon and a server: can be cut, stalled and slow, and its bytes can be damaged.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
    /// To the server, and back.
    ways: [Arc<Way>; 2],
    ended: Arc<AtomicBool>,
}

/// What happens to bytes that go one way.
#[derive(Debug, Default)]
struct Way {
    stalled: AtomicBool,
    delay_ms: AtomicU64,
    /// Of a hundred pieces so many are lost.
    lost: AtomicU64,
}

/// When a sender tries again what was lost, at the least.
const SENT_AGAIN: Duration = Duration::from_millis(200);
/// Pieces of at most 64 KiB that may be on a way.
const ON_THE_WAY: usize = 256;

/// What is done to the bytes of one connection.
pub type Meddle = Box<dyn FnMut(&mut Vec<u8>) -> Line + Send>;

impl Proxy {
    /// `meddle` is asked for each connection, by its number, what is done to what the server sends on it.
    pub fn start(upstream: u16, mut meddle: impl FnMut(usize) -> Meddle + Send + 'static) -> Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", free_port()?))?;
        let proxy = Proxy {
            port: listener.local_addr()?.port(),
            open: Arc::default(),
            ways: Default::default(),
            ended: Arc::default(),
        };
        let (open, [there, back]) = (Arc::clone(&proxy.open), proxy.ways.clone());
        let ended = Arc::clone(&proxy.ended);
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                // Dropping the client tells it that nobody is there.
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
                let copies = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
                let (Ok(to_client), Ok(to_server), Ok(a), Ok(b)) = copies else { continue };
                if let Ok(mut open) = open.lock() {
                    open.extend([a, b]);
                }
                let through: Meddle = Box::new(|_| Line::On);
                pump(server, to_client, &back, meddle(number));
                pump(client, to_server, &there, through);
            }
        });
        Ok(proxy)
    }

    /// Lets everything through.
    pub fn plain(upstream: u16) -> Result<Proxy> {
        Proxy::start(upstream, |_| Box::new(|_| Line::On))
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a [`Link`](crate::Link) is moved to, so that the daemon reaches the server through it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Hangs up on both ends of all connections.
    ///
    /// # Panics
    ///
    /// If one of its own threads did.
    pub fn cut(&self) {
        let mut open = self.open.lock().expect("no pump panics with it");
        open.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    /// Connections stay open and nothing passes, while it is `true`.
    pub fn stall(&self, stalled: bool) {
        self.ways.iter().for_each(|way| way.stalled.store(stalled, Ordering::SeqCst));
    }

    /// The same of what goes to the server, or of what comes from it.
    pub fn stall_one_way(&self, to_server: bool, stalled: bool) {
        self.ways[usize::from(!to_server)].stalled.store(stalled, Ordering::SeqCst);
    }

    /// From now on each piece takes so long, each way, and of a hundred so many are lost and sent again.
    pub fn slow(&self, delay: Duration, lost: u64) {
        for way in &self.ways {
            way.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
            way.lost.store(lost, Ordering::SeqCst);
        }
    }

    /// Cuts it, or stalls it for a while; it is healed when this returns.
    pub fn disturb(&self, random: &mut SmallRng) -> Disturbed {
        if random.random_bool(0.6) {
            self.cut();
            return Disturbed::Cut;
        }
        self.stall(true);
        std::thread::sleep(Duration::from_millis(random.random_range(10..1_200)));
        if random.random_bool(0.5) {
            self.cut();
        }
        self.stall(false);
        Disturbed::Stalled
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.stall(false);
        self.cut();
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// Passes on what comes, each piece when it is due, in a thread that reads and one that writes.
fn pump(mut from: TcpStream, to: TcpStream, way: &Arc<Way>, meddle: Meddle) {
    let (sender, pieces) = sync_channel(ON_THE_WAY);
    let giver = (to, Arc::clone(way));
    std::thread::spawn(move || give(giver.0, &pieces, &giver.1, meddle));
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now(), buffer[..n].to_vec())).is_err() {
                break;
            }
        }
        let _gone = from.shutdown(Shutdown::Read);
    });
}

fn give(mut to: TcpStream, pieces: &Receiver<(Instant, Vec<u8>)>, way: &Way, mut meddle: Meddle) {
    while let Ok((came, mut bytes)) = pieces.recv() {
        let lost = rand::random_range(0..100) < way.lost.load(Ordering::SeqCst);
        let delay = Duration::from_millis(way.delay_ms.load(Ordering::SeqCst));
        let due = came + delay + if lost { SENT_AGAIN } else { Duration::ZERO };
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        while way.stalled.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let line = meddle(&mut bytes);
        if to.write_all(&bytes).is_err() || line == Line::Cut {
            break;
        }
    }
    let _gone = to.shutdown(Shutdown::Both);
}
