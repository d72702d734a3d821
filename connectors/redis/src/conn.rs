//! A connection to a server: commands out, replies in, in order. Nothing here knows what they mean, but
//! for what getting in needs, and for what an error says about whose fault it is.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use causeway_core::{BoxError, Error, Result};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

pub use causeway_core::settings::Secret;

pub use crate::endpoint::{Address, Endpoint, TlsFiles};
use crate::resp::{self, Head, Reply, ReplyParser, RespError};

/// How much is asked of the socket at once. A pipelined server fills it.
const READ_BYTES: usize = 128 << 10;
/// With less room than this a read isn't worth its system call.
const READ_BYTES_MIN: usize = 16 << 10;
/// The longest text of a server's error that is passed on.
const ERROR_TEXT_MAX: usize = 200;

type Read = Box<dyn AsyncRead + Send + Sync + Unpin>;
type Write = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// A connection: both halves.
pub struct Conn {
    reader: ConnReader,
    writer: ConnWriter,
    address: Address,
}

/// What comes from the server.
pub struct ConnReader {
    read: Read,
    buf: BytesMut,
    parser: ReplyParser,
    label: String,
    idle: Duration,
}

/// What goes to the server.
pub struct ConnWriter {
    write: Write,
    label: String,
    idle: Duration,
    out: BytesMut,
}

/// The endpoint alone.
impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({})", self.reader.label)
    }
}

/// The endpoint alone.
impl std::fmt::Debug for ConnReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConnReader({})", self.label)
    }
}

/// The endpoint alone.
impl std::fmt::Debug for ConnWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConnWriter({})", self.label)
    }
}

impl Conn {
    /// Connects and authenticates. Of several addresses the first whose `ROLE` is master is taken.
    ///
    /// # Errors
    ///
    /// * `Retry`: refused, reset, no answer in time; of several addresses: none is master.
    /// * `Setup`: the password, user, or certificate is wrong, or the server wants one.
    pub async fn connect(endpoint: &Endpoint) -> Result<Conn> {
        if let [only] = endpoint.addresses.as_slice() {
            return Conn::connect_to(endpoint, only).await;
        }
        let mut last = None;
        for address in &endpoint.addresses {
            let found = async {
                let mut conn = Conn::connect_to(endpoint, address).await?;
                let role = conn.call(&[b"ROLE"]).await?;
                if let Some(text) = role.error() {
                    return Err(server_error("ask for the role", conn.endpoint_label(), text));
                }
                let master = role.items().and_then(|r| r.first()).and_then(Reply::bytes);
                if master.is_some_and(|m| m == "master") {
                    return Ok(conn);
                }
                Err(unavailable("connect", &address.to_string(), "this server is not the master"))
            };
            match found.await {
                Ok(conn) => return Ok(conn),
                Err(error) => last = Some(error),
            }
        }
        // The last one's reason stands for all: the operator sees each server's in its own log.
        Err(match last {
            Some(error @ Error::Setup { .. }) => error,
            Some(error) => Error::Unavailable {
                action: "find the master among several servers".into(),
                endpoint: endpoint.label(),
                source: Box::new(error),
            },
            None => unavailable("connect", "", "no address is configured"),
        })
    }

    async fn connect_to(endpoint: &Endpoint, address: &Address) -> Result<Conn> {
        let label = address.to_string();
        let connect = async {
            let mut conn = Conn::open(endpoint, address, &label).await?;
            conn.authenticate(endpoint).await?;
            Ok(conn)
        };
        match timeout(endpoint.connect_timeout, connect).await {
            Ok(connected) => connected,
            Err(_) => {
                let after = format!("no answer within {:?}", endpoint.connect_timeout);
                // A port without TLS waits for the rest of what it takes for a command.
                let action = if endpoint.tls.is_some() { "connect with TLS" } else { "connect" };
                Err(unavailable(action, &label, after))
            }
        }
    }

    async fn open(endpoint: &Endpoint, address: &Address, label: &str) -> Result<Conn> {
        let failed = |e: io::Error| unavailable("connect", label, e);
        let (read, write): (Read, Write) = match (address, &endpoint.tls) {
            (Address::Unix(path), _) => {
                let (read, write) = UnixStream::connect(path).await.map_err(failed)?.into_split();
                (Box::new(read), Box::new(write))
            }
            (Address::Tcp { host, port }, tls) => {
                let socket = TcpStream::connect((host.as_str(), *port)).await.map_err(failed)?;
                socket.set_nodelay(true).map_err(failed)?;
                match tls {
                    None => {
                        let (read, write) = socket.into_split();
                        (Box::new(read), Box::new(write))
                    }
                    Some(files) => {
                        let name = ServerName::try_from(host.clone()).map_err(|e| Error::Setup {
                            action: "connect".into(),
                            endpoint: label.into(),
                            reason: e.to_string(),
                            advice: "give the host as a name or an address that its certificate can hold"
                                .into(),
                        })?;
                        let client = tokio_rustls::TlsConnector::from(files.client(label)?);
                        let socket = client.connect(name, socket).await.map_err(|e| tls_error(label, e))?;
                        let (read, write) = tokio::io::split(socket);
                        (Box::new(read), Box::new(write))
                    }
                }
            }
        };
        let idle = endpoint.io_timeout;
        Ok(Conn {
            reader: ConnReader {
                read,
                buf: BytesMut::new(),
                parser: ReplyParser::default(),
                label: label.into(),
                idle,
            },
            writer: ConnWriter { write, label: label.into(), idle, out: BytesMut::new() },
            address: address.clone(),
        })
    }

    async fn authenticate(&mut self, endpoint: &Endpoint) -> Result<()> {
        let Some(password) = endpoint.password_text(&self.reader.label)? else { return Ok(()) };
        let reply = match &endpoint.user {
            Some(user) => self.call(&[b"AUTH", user.as_bytes(), password.as_bytes()]).await?,
            None => self.call(&[b"AUTH", password.as_bytes()]).await?,
        };
        match reply.error() {
            Some(text) => Err(server_error("authenticate", &self.reader.label, text)),
            None => Ok(()),
        }
    }

    /// Sends a command and waits for its reply. An error reply is a reply: see [`server_error`].
    ///
    /// # Errors
    ///
    /// `Retry`: the connection broke, or what came is no reply. It is of no use then.
    pub async fn call(&mut self, args: &[&[u8]]) -> Result<Reply> {
        self.writer.command(args).await?;
        self.reader.reply().await
    }

    /// Sends commands that are encoded already. Not to be dropped while it waits.
    ///
    /// # Errors
    ///
    /// `Retry`, as [`call`](Conn::call).
    pub async fn send(&mut self, commands: &[u8]) -> Result<()> {
        self.writer.send(commands).await
    }

    /// Waits for the next reply. May be dropped while it waits, without loss.
    ///
    /// # Errors
    ///
    /// `Retry`, as [`call`](Conn::call).
    pub async fn reply(&mut self) -> Result<Reply> {
        self.reader.reply().await
    }

    /// What comes from the server, for a reply that is not to be held whole.
    pub(crate) fn reader(&mut self) -> &mut ConnReader {
        &mut self.reader
    }

    /// The halves, for a reader and a writer that run at once.
    pub fn split(self) -> (ConnReader, ConnWriter) {
        (self.reader, self.writer)
    }

    /// `host:port` of the server that this is connected to.
    pub fn endpoint_label(&self) -> &str {
        &self.reader.label
    }

    /// Which of the endpoint's addresses this is.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl ConnReader {
    /// As [`Conn::reply`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn reply(&mut self) -> Result<Reply> {
        loop {
            if let Some(reply) = self.ready_reply()? {
                return Ok(reply);
            }
            self.fill().await?;
        }
    }

    /// Waits for the next reply's beginning, and leaves it in the buffer. What was looked at may be taken by
    /// [`reply`](ConnReader::reply), or piece by piece from [`buffer`](ConnReader::buffer).
    ///
    /// # Errors
    ///
    /// As [`reply`](ConnReader::reply).
    pub(crate) async fn head(&mut self) -> Result<Head> {
        loop {
            if let Some(head) = resp::head(&self.buf).map_err(|e| self.garbled(&e))? {
                return Ok(head);
            }
            self.fill().await?;
        }
    }

    fn garbled(&self, e: &RespError) -> Error {
        Error::Garbled {
            endpoint: self.label.clone(),
            what: "reply",
            at: e.at as u64,
            reason: e.reason.into(),
        }
    }

    /// A reply, if one is there without waiting.
    ///
    /// # Errors
    ///
    /// `Retry`: what is there is no reply.
    pub fn ready_reply(&mut self) -> Result<Option<Reply>> {
        self.parser.parse(&mut self.buf).map_err(|e| self.garbled(&e))
    }

    /// Reads more into the buffer, at least one byte. May be dropped while it waits, without loss.
    ///
    /// # Errors
    ///
    /// `Retry`: hung up, broken, or nothing within the timeout.
    pub async fn fill(&mut self) -> Result<usize> {
        // A rest of room is used up first: what was taken off shares this memory.
        if self.buf.capacity() - self.buf.len() < READ_BYTES_MIN {
            self.buf.reserve(READ_BYTES);
        }
        match timeout(self.idle, self.read.read_buf(&mut self.buf)).await {
            Err(_) => {
                let silence = format!("nothing came within {:?}", self.idle);
                Err(unavailable("read", &self.label, silence))
            }
            Ok(Err(e)) => Err(unavailable("read", &self.label, e)),
            Ok(Ok(0)) => Err(unavailable("read", &self.label, "the server hung up")),
            Ok(Ok(n)) => Ok(n),
        }
    }

    /// What was read and not taken yet.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buf
    }

    /// How long [`fill`](ConnReader::fill) waits from now on.
    pub fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// `host:port`.
    pub fn endpoint_label(&self) -> &str {
        &self.label
    }
}

impl ConnWriter {
    /// Sends commands that are encoded already. Not to be dropped while it waits.
    ///
    /// # Errors
    ///
    /// `Retry`: hung up, broken, or the server took nothing within the timeout.
    pub async fn send(&mut self, commands: &[u8]) -> Result<()> {
        let mut rest = commands;
        while !rest.is_empty() {
            match timeout(self.idle, self.write.write(rest)).await {
                Err(_) => {
                    let stuck = format!("the server took nothing within {:?}", self.idle);
                    return Err(unavailable("write", &self.label, stuck));
                }
                Ok(Err(e)) => return Err(unavailable("write", &self.label, e)),
                Ok(Ok(0)) => return Err(unavailable("write", &self.label, "the server hung up")),
                Ok(Ok(n)) => rest = rest.get(n..).unwrap_or_default(),
            }
        }
        match timeout(self.idle, self.write.flush()).await {
            Err(_) => Err(unavailable("write", &self.label, format!("nothing taken within {:?}", self.idle))),
            Ok(flushed) => flushed.map_err(|e| unavailable("write", &self.label, e)),
        }
    }

    /// Sends one command. Not to be dropped while it waits.
    ///
    /// # Errors
    ///
    /// As [`send`](ConnWriter::send).
    pub async fn command(&mut self, args: &[&[u8]]) -> Result<()> {
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        resp::encode(&mut out, args);
        let sent = self.send(&out).await;
        self.out = out;
        sent
    }

    /// `host:port`.
    pub fn endpoint_label(&self) -> &str {
        &self.label
    }
}

/// The line or the server failed: a `Retry`.
pub fn unavailable(action: &str, endpoint: &str, source: impl Into<BoxError>) -> Error {
    Error::Unavailable { action: action.into(), endpoint: endpoint.into(), source: source.into() }
}

fn tls_error(label: &str, e: io::Error) -> Error {
    // A bad certificate stays bad; a line that breaks within the handshake does not.
    let certificate =
        e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).and_then(|e| match e {
            rustls::Error::InvalidCertificate(_)
            | rustls::Error::AlertReceived(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::PeerIncompatible(_) => Some(e.to_string()),
            _ => None,
        });
    match certificate {
        Some(reason) => Error::Setup {
            action: "connect with TLS".into(),
            endpoint: label.into(),
            reason,
            advice:
                "look at `ca_file`, at the host in `url` (the certificate has to name it), and whether this \
                     port speaks TLS"
                    .into(),
        },
        None => unavailable("connect with TLS", label, e),
    }
}

/// What an error reply to `action` means: whose fault it is, and what to do.
///
/// The server's text is shortened, and cut where it quotes arguments: those can be values.
pub fn server_error(action: &str, endpoint: &str, text: &str) -> Error {
    let text = text.split(", with args beginning with").next().unwrap_or_default();
    let text: String = text.chars().take(ERROR_TEXT_MAX).collect();
    let code = text.split(' ').next().unwrap_or_default();
    let advice = match code {
        "LOADING" | "MASTERDOWN" | "OOM" | "BUSY" | "TRYAGAIN" | "NOREPLICAS" | "MISCONF"
        | "NOMASTERLINK" | "IOERR" => return unavailable(action, endpoint, text),
        "ERR" if text.starts_with("ERR max number of clients") => {
            return unavailable(action, endpoint, text);
        }
        "WRONGPASS" => "correct `user` and `password_file` (or the URL) of this site",
        "NOAUTH" => "the server wants a password: give `password_file`, and `user` for an ACL user",
        "NOPERM" => "give the user the rights that connectors/redis/README.md lists, with ACL SETUSER",
        "DENIED" => "the server is in protected mode: give it a password, or bind it to this address",
        "READONLY" => "this server is a replica: name the master, or list all of them in `urls`",
        "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" => {
            "Redis Cluster is not supported: name a server with cluster-enabled no"
        }
        "ERR" if text.contains("without any password configured") || text.contains("no password is set") => {
            "the server has no password: leave it out here, or set one there"
        }
        "ERR" if text.contains("invalid password") => "correct the password of this site",
        "ERR" if text.contains("cluster") => {
            "Redis Cluster is not supported: name a server with cluster-enabled no"
        }
        _ => "see the server's own log; connectors/redis/README.md lists the versions and rights needed",
    };
    Error::Setup { action: action.into(), endpoint: endpoint.into(), reason: text, advice: advice.into() }
}

/// The reply's bytes, or what stands in their place as an error.
///
/// # Errors
///
/// An error reply, as [`server_error`] tells; any other form is `Garbled`.
pub fn bytes_of(action: &str, endpoint: &str, reply: &Reply) -> Result<Bytes> {
    if let Some(text) = reply.error() {
        return Err(server_error(action, endpoint, text));
    }
    reply.bytes().cloned().ok_or_else(|| Error::Garbled {
        endpoint: endpoint.into(),
        what: "reply",
        at: 0,
        reason: format!("{action}: another kind of reply was expected"),
    })
}

#[cfg(test)]
mod tests {
    use causeway_core::ErrorKind;

    use super::*;

    #[test]
    fn an_error_says_whose_fault_it_is() {
        for (text, kind) in [
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Retry),
            ("OOM command not allowed when used memory > 'maxmemory'.", ErrorKind::Retry),
            ("MASTERDOWN Link with MASTER is down", ErrorKind::Retry),
            ("BUSY Redis is busy running a script", ErrorKind::Retry),
            ("ERR max number of clients reached", ErrorKind::Retry),
            ("WRONGPASS invalid username-password pair", ErrorKind::Setup),
            ("NOAUTH Authentication required.", ErrorKind::Setup),
            ("NOPERM this user has no permissions to run the 'psync' command", ErrorKind::Setup),
            ("READONLY You can't write against a read only replica.", ErrorKind::Setup),
            ("MOVED 1 127.0.0.1:7000", ErrorKind::Setup),
            ("ERR something new", ErrorKind::Setup),
        ] {
            let error = server_error("try", "host:1", text);
            assert_eq!(error.kind(), kind, "{text}");
            assert!(error.to_string().starts_with("try at host:1: "), "{error}");
        }
    }

    #[test]
    fn an_error_never_quotes_arguments() {
        let text = "ERR unknown command 'FOO', with args beginning with: 'secret' 'value'";
        assert!(!server_error("try", "host:1", text).to_string().contains("secret"));
        let long = format!("ERR {}", "x".repeat(5000));
        assert!(server_error("try", "host:1", &long).to_string().len() < 500);
    }
}
