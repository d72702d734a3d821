//! A blocking Redis connection for tests: pipelining by hand, and no reconnect behind the caller's back.
//!
//! The client libraries hide when a connection died; a test that counts acknowledged writes has to know.

use std::io::{self, BufRead, BufReader, Write as _};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// A command: its name and its arguments.
pub type Command = Vec<Vec<u8>>;

/// Replies longer than this are not believed; the longest that tests read is one large value.
const LEN_MAX: usize = 1 << 30;

/// Makes a [`Command`] from words: `cmd(&["SET", "k", "v"])`.
pub fn cmd<A: AsRef<[u8]>>(words: &[A]) -> Command {
    words.iter().map(|w| w.as_ref().to_vec()).collect()
}

/// Appends `words` to `out` as one RESP array.
pub fn encode<A: AsRef<[u8]>>(words: &[A], out: &mut Vec<u8>) {
    push_header(b'*', words.len(), out);
    for word in words {
        let word = word.as_ref();
        push_header(b'$', word.len(), out);
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn push_header(kind: u8, n: usize, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(n.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// What a server answered (RESP2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR …`
    Error(String),
    /// `:1`
    Int(i64),
    /// `$…`; `None` is the null bulk.
    Bulk(Option<Vec<u8>>),
    /// `*…`; `None` is the null array, which EXEC answers when a watched key was touched.
    Array(Option<Vec<Reply>>),
}

impl Reply {
    /// The first error in it, nested ones included.
    pub fn error(&self) -> Option<&str> {
        match self {
            Reply::Error(text) => Some(text),
            Reply::Array(Some(items)) => items.iter().find_map(Reply::error),
            _ => None,
        }
    }

    /// Its text: of a bulk, a simple string or a number; `None` of anything else.
    pub fn text(&self) -> Option<String> {
        match self {
            Reply::Simple(text) => Some(text.clone()),
            Reply::Int(n) => Some(n.to_string()),
            Reply::Bulk(Some(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }

    /// Its items; none of anything but an array.
    pub fn items(&self) -> &[Reply] {
        match self {
            Reply::Array(Some(items)) => items,
            _ => &[],
        }
    }

    /// Its number, also where it came as text.
    pub fn int(&self) -> Option<i64> {
        match self {
            Reply::Int(n) => Some(*n),
            _ => self.text()?.parse().ok(),
        }
    }
}

/// Reads one reply.
///
/// # Errors
///
/// Those of `input`; `InvalidData` for what is not RESP2.
pub fn read_reply(input: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = Vec::new();
    input.read_until(b'\n', &mut line)?;
    let text = match line.strip_suffix(b"\r\n") {
        Some(text) if !text.is_empty() => text,
        _ if line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
        _ => return Err(garbage("a line that doesn't end with CR LF")),
    };
    let rest = String::from_utf8_lossy(&text[1..]).into_owned();
    let number = || rest.parse::<i64>().map_err(|_| garbage("a number that is none"));
    match text[0] {
        b'+' => Ok(Reply::Simple(rest)),
        b'-' => Ok(Reply::Error(rest)),
        b':' => Ok(Reply::Int(number()?)),
        b'$' => match bounded(number()?)? {
            None => Ok(Reply::Bulk(None)),
            Some(len) => {
                let mut bytes = vec![0; len + 2];
                input.read_exact(&mut bytes)?;
                bytes.truncate(len);
                Ok(Reply::Bulk(Some(bytes)))
            }
        },
        b'*' => match bounded(number()?)? {
            None => Ok(Reply::Array(None)),
            Some(len) => {
                (0..len).map(|_| read_reply(input)).collect::<io::Result<_>>().map(|v| Reply::Array(Some(v)))
            }
        },
        _ => Err(garbage("an unknown type byte")),
    }
}

fn bounded(n: i64) -> io::Result<Option<usize>> {
    match usize::try_from(n) {
        Ok(n) if n <= LEN_MAX => Ok(Some(n)),
        Ok(_) => Err(garbage("a length over 1 GiB")),
        Err(_) => Ok(None),
    }
}

fn garbage(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("reply is not RESP: {what}"))
}

/// One connection to a server at `redis://[user:password@]host:port[/db]`.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl Connection {
    /// Connects, logs in if the URL says how, and selects its database. A call that gets no reply for
    /// 30 s fails.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a URL of another form, `Other` for a refused login, those of the socket.
    pub fn open(url: &str) -> io::Result<Connection> {
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, "expected redis://host:port[/db]");
        let rest = url.strip_prefix("redis://").ok_or_else(bad)?;
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(l, r)| (Some(l), r));
        let (address, db) = rest.split_once('/').unwrap_or((rest, ""));
        let address = address.to_socket_addrs()?.next().ok_or_else(bad)?;
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut connection =
            Connection { input: BufReader::with_capacity(1 << 16, stream.try_clone()?), stream };
        if let Some((user, password)) = login.and_then(|l| l.split_once(':')) {
            let user = if user.is_empty() { "default" } else { user };
            connection.must(&["AUTH", user, password])?;
        }
        if !db.is_empty() && db != "0" {
            connection.must(&["SELECT", db])?;
        }
        Ok(connection)
    }

    /// Writes bytes that [`encode`] made.
    ///
    /// # Errors
    ///
    /// Those of the socket; what of it the server executed is unknown then.
    pub fn write(&mut self, encoded: &[u8]) -> io::Result<()> {
        self.stream.write_all(encoded)
    }

    /// Reads the next reply.
    ///
    /// # Errors
    ///
    /// As [`read_reply`].
    pub fn read(&mut self) -> io::Result<Reply> {
        read_reply(&mut self.input)
    }

    /// Sends one command and reads its reply, errors of the server included.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn call<A: AsRef<[u8]>>(&mut self, words: &[A]) -> io::Result<Reply> {
        let mut out = Vec::new();
        encode(words, &mut out);
        self.write(&out)?;
        self.read()
    }

    /// Like [`call`](Connection::call), but an error reply is an `Err`, too.
    ///
    /// # Errors
    ///
    /// Those of the connection; `Other` with the server's text.
    pub fn must<A: AsRef<[u8]>>(&mut self, words: &[A]) -> io::Result<Reply> {
        let reply = self.call(words)?;
        match reply.error() {
            Some(text) => Err(io::Error::other(text.to_owned())),
            None => Ok(reply),
        }
    }

    /// Sends all of `commands` at once and reads as many replies.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub fn pipeline(&mut self, commands: &[Command]) -> io::Result<Vec<Reply>> {
        let mut replies = Vec::with_capacity(commands.len());
        // In pieces, so that neither side's buffers fill while the other doesn't read.
        for chunk in commands.chunks(256) {
            let mut out = Vec::new();
            chunk.iter().for_each(|c| encode(c, &mut out));
            self.write(&out)?;
            for _ in chunk {
                replies.push(self.read()?);
            }
        }
        Ok(replies)
    }

    /// The socket's two ends, for a writer and a reader on threads of their own.
    pub(crate) fn split(self) -> (TcpStream, BufReader<TcpStream>) {
        (self.stream, self.input)
    }
}

/// Skips `n` replies and returns the first error text among them.
pub(crate) fn drain(input: &mut impl BufRead, n: u64) -> io::Result<Option<String>> {
    let mut first = None;
    for _ in 0..n {
        if let Some(text) = read_reply(input)?.error() {
            first.get_or_insert_with(|| text.to_owned());
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> io::Result<Reply> {
        read_reply(&mut io::Cursor::new(bytes))
    }

    #[test]
    fn a_command_encodes_as_a_resp_array() {
        let mut out = Vec::new();
        encode(&["SET", "k", ""], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }

    #[test]
    fn replies_of_every_type_are_read() {
        assert_eq!(parse(b"+OK\r\n").unwrap(), Reply::Simple("OK".into()));
        assert_eq!(parse(b":-7\r\n").unwrap().int(), Some(-7));
        assert_eq!(parse(b"$-1\r\n").unwrap(), Reply::Bulk(None));
        let nested = parse(b"*2\r\n$1\r\na\r\n*1\r\n-ERR no\r\n").unwrap();
        assert_eq!(nested.error(), Some("ERR no"));
        assert_eq!(nested.items()[0].text().as_deref(), Some("a"));
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bytes in [&b"?\r\n"[..], b"$x\r\n", b"$99999999999\r\n", b"+OK\n", b""] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
