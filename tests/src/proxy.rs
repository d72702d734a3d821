//! The line between the daemon and a server, in the test's hands.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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

/// The line between the daemon and a server: can be cut and stalled, and its bytes can be damaged.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
    stalled: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

/// What is done to the bytes of one connection.
pub type Meddle = Box<dyn FnMut(&mut Vec<u8>) -> Line + Send>;

impl Proxy {
    /// `meddle` is asked for each connection, by its number, what is done to what the server sends on it.
    pub fn start(upstream: u16, mut meddle: impl FnMut(usize) -> Meddle + Send + 'static) -> Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", free_port()?))?;
        let proxy = Proxy {
            port: listener.local_addr()?.port(),
            open: Arc::default(),
            stalled: Arc::default(),
            ended: Arc::default(),
        };
        let (open, stalled) = (Arc::clone(&proxy.open), Arc::clone(&proxy.stalled));
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
                let (back, held) = (meddle(number), Arc::clone(&stalled));
                std::thread::spawn(move || pump(server, to_client, &held, back));
                let held = Arc::clone(&stalled);
                std::thread::spawn(move || pump(client, to_server, &held, through));
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
        self.stalled.store(stalled, Ordering::SeqCst);
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

fn pump(mut from: TcpStream, mut to: TcpStream, stalled: &AtomicBool, mut meddle: Meddle) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        while stalled.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut bytes = buffer[..n].to_vec();
        let line = meddle(&mut bytes);
        if to.write_all(&bytes).is_err() || line == Line::Cut {
            break;
        }
    }
    let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
