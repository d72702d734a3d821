//! RESP2, the wire format of Redis, as pure functions on bytes: no I/O.
//!
//! Commands are taken off the front of a buffer whole and kept as they came, so that they can be passed on
//! byte for byte and counted exactly; replies are parsed into values. Both parsers go on where they stopped
//! when more bytes have come, so that a command of a million arguments is looked at once.
//!
//! Source: Redis documentation, "Redis serialization protocol specification".

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// The longest single argument or bulk reply: the server's own `proto-max-bulk-len` by default.
pub const BULK_BYTES_MAX: usize = 512 << 20;
/// The most arguments of a command: what the server itself accepts of a client that has logged in
/// (`processMultibulkBuffer` of networking.c). The count alone sets nothing aside: six bytes at least come
/// with each argument, and the longest command bounds those.
pub const ARGS_MAX: usize = i32::MAX as usize;
/// The most elements of an array in a reply.
const REPLY_ITEMS_MAX: usize = 1 << 24;
/// The longest command: its argument ranges are kept as 32 bits.
const COMMAND_BYTES_MAX: usize = u32::MAX as usize;
/// The longest line: a number, a status, or an error.
const LINE_BYTES_MAX: usize = 64 << 10;
/// How deep arrays may be nested in a reply. The server's own go to about five (`COMMAND DOCS`).
const DEPTH_MAX: usize = 32;
/// What is set aside for an array before its elements have come: a header alone buys no memory.
const RESERVE_MAX: usize = 1024;
/// Arguments whose ranges need no allocation: SET with its options, XADD of two fields.
const INLINE_ARGS: usize = 8;

/// What came is not RESP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (byte {at} of the element)")]
pub struct RespError {
    /// How far into the command or reply.
    pub at: usize,
    /// What was expected, without what came: that could be a value.
    pub reason: &'static str,
}

fn error(at: usize, reason: &'static str) -> RespError {
    RespError { at, reason }
}

/// Appends a command of `args` to `out`.
pub fn encode(out: &mut BytesMut, args: &[&[u8]]) {
    let bytes: usize = args.iter().map(|a| a.len() + 16).sum();
    out.reserve(bytes + 16);
    header(out, b'*', args.len());
    for arg in args {
        encode_bulk(out, arg);
    }
}

/// Appends a command's first line, `*n`: `n` calls of [`encode_bulk`] have to follow.
pub fn encode_array(out: &mut BytesMut, n: usize) {
    header(out, b'*', n);
}

/// Appends one argument.
pub fn encode_bulk(out: &mut BytesMut, arg: &[u8]) {
    header(out, b'$', arg.len());
    out.extend_from_slice(arg);
    out.extend_from_slice(b"\r\n");
}

fn header(out: &mut BytesMut, kind: u8, n: usize) {
    let mut digits = [0u8; 24];
    let mut i = digits.len();
    let mut rest = n;
    loop {
        i -= 1;
        digits[i] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&[kind]);
    out.extend_from_slice(&digits[i..]);
    out.extend_from_slice(b"\r\n");
}

/// The decimal form of `n`, for use as an argument.
pub fn decimal(n: impl Into<i128>) -> Vec<u8> {
    n.into().to_string().into_bytes()
}

#[derive(Clone, PartialEq, Eq)]
enum Args {
    Few(u8, [(u32, u32); INLINE_ARGS]),
    Many(Vec<(u32, u32)>),
}

/// One command, as it came: an array of bulk strings.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// All of it, from `*` on.
    pub raw: Bytes,
    args: Args,
}

/// Without the arguments: they can be values.
impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.arg(0).map(String::from_utf8_lossy);
        write!(f, "Command({:?}, {} arguments, {} bytes)", name.as_deref(), self.len(), self.raw.len())
    }
}

impl Command {
    /// A command of `args`.
    pub fn of(args: &[&[u8]]) -> Command {
        let mut raw = BytesMut::new();
        encode(&mut raw, args);
        let mut ranges = Vec::with_capacity(args.len());
        let mut from = 0;
        let digits = |n: usize| n.checked_ilog10().map_or(1, |d| d as usize + 1);
        from += digits(args.len()) + 3;
        for arg in args {
            from += digits(arg.len()) + 3;
            ranges.push((from as u32, (from + arg.len()) as u32));
            from += arg.len() + 2;
        }
        Command { raw: raw.freeze(), args: Args::of(ranges) }
    }

    /// How many arguments, the name included. 0 for an empty array, which is no command.
    pub fn len(&self) -> usize {
        self.args.ranges().len()
    }

    /// Whether it has no arguments, not even a name.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn range(&self, i: usize) -> Option<Range<usize>> {
        let &(start, end) = self.args.ranges().get(i)?;
        Some(start as usize..end as usize)
    }

    /// Argument `i`; 0 is the name.
    pub fn arg(&self, i: usize) -> Option<&[u8]> {
        self.raw.get(self.range(i)?)
    }

    /// Argument `i` as a reference to the command's own bytes: it keeps all of them in memory.
    pub fn slice(&self, i: usize) -> Option<Bytes> {
        Some(self.raw.slice(self.range(i)?))
    }

    /// All arguments, the name first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.args.ranges().iter().map(|&(start, end)| &self.raw[start as usize..end as usize])
    }

    /// Whether argument `i` is `text`, letter case aside.
    pub fn eq_ignore_case(&self, i: usize, text: &[u8]) -> bool {
        self.arg(i).is_some_and(|a| a.eq_ignore_ascii_case(text))
    }

    /// The name in upper case, written into `buffer`; empty if it is longer than that. No command of Redis
    /// is longer than 20.
    pub fn name_upper<'b>(&self, buffer: &'b mut [u8; 32]) -> &'b [u8] {
        let name = self.arg(0).unwrap_or_default();
        match buffer.get_mut(..name.len()) {
            Some(to) => {
                to.copy_from_slice(name);
                to.make_ascii_uppercase();
                to
            }
            None => &[],
        }
    }
}

impl Args {
    fn of(ranges: Vec<(u32, u32)>) -> Args {
        if ranges.len() <= INLINE_ARGS {
            let mut few = [(0, 0); INLINE_ARGS];
            for (to, from) in few.iter_mut().zip(&ranges) {
                *to = *from;
            }
            return Args::Few(ranges.len() as u8, few);
        }
        Args::Many(ranges)
    }

    fn ranges(&self) -> &[(u32, u32)] {
        match self {
            Args::Few(n, few) => few.get(..usize::from(*n)).unwrap_or_default(),
            Args::Many(many) => many,
        }
    }

    fn push(&mut self, range: (u32, u32)) {
        match self {
            Args::Few(n, few) => match few.get_mut(usize::from(*n)) {
                Some(to) => {
                    *to = range;
                    *n += 1;
                }
                None => {
                    let mut many = Vec::with_capacity(4 * INLINE_ARGS);
                    many.extend_from_slice(few);
                    many.push(range);
                    *self = Args::Many(many);
                }
            },
            Args::Many(many) => many.push(range),
        }
    }
}

/// A line's end, its `\r\n` not included, if it is there.
fn line_end(buf: &[u8], from: usize) -> Result<Option<usize>, RespError> {
    let window = buf.get(from..).unwrap_or_default();
    let window = window.get(..LINE_BYTES_MAX + 2).unwrap_or(window);
    match window.iter().position(|&b| b == b'\r') {
        Some(i) if i + 1 == window.len() && i <= LINE_BYTES_MAX => Ok(None),
        Some(i) if window.get(i + 1) == Some(&b'\n') => Ok(Some(from + i)),
        Some(i) => Err(error(from + i, "a line that ends with \\r\\n was expected")),
        None if window.len() > LINE_BYTES_MAX => Err(error(from, "a line is too long")),
        None => Ok(None),
    }
}

/// Reads `<kind><number>\r\n` at `from`: the number, and where the line ends.
fn length(buf: &[u8], from: usize, kind: u8, max: usize) -> Result<Option<(usize, usize)>, RespError> {
    // By hand, as most of a small command is these lines.
    match buf.get(from) {
        None => return Ok(None),
        Some(&b) if b == kind => {}
        Some(_) => {
            return Err(error(from, if kind == b'*' { "`*` was expected" } else { "`$` was expected" }));
        }
    }
    let mut n = 0usize;
    let mut at = from + 1;
    loop {
        match buf.get(at) {
            None => return Ok(None),
            Some(&d @ b'0'..=b'9') => {
                n = n * 10 + usize::from(d - b'0');
                if n > max {
                    return Err(error(at, "a length is over the limit"));
                }
                at += 1;
            }
            Some(b'\r') if at > from + 1 => break,
            Some(_) => return Err(error(at, "a length in digits was expected")),
        }
    }
    match buf.get(at + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((n, at + 2))),
        Some(_) => Err(error(at, "a line that ends with \\r\\n was expected")),
    }
}

/// Takes commands off a buffer, one at a time.
#[derive(Debug, Default)]
pub struct CommandParser {
    /// Of the command under way: arguments still to come, and how far it was read.
    open: Option<(usize, Args)>,
    at: usize,
}

impl std::fmt::Debug for Args {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} arguments", self.ranges().len())
    }
}

impl CommandParser {
    /// Takes one command off the front of `buf`; `None` if it isn't there whole: `buf` may then only be
    /// appended to before the next call. A bare `\n` in front, which a server sends to keep a link alive,
    /// is left there and counted by [`bare_newlines`].
    ///
    /// # Errors
    ///
    /// What stands there is no command, or is over a limit; the rest of `buf` means nothing then.
    pub fn parse(&mut self, buf: &mut BytesMut) -> Result<Option<Command>, RespError> {
        let (left, args) = match &mut self.open {
            Some(open) => (&mut open.0, &mut open.1),
            None => {
                let Some((n, at)) = length(buf, 0, b'*', ARGS_MAX)? else { return Ok(None) };
                self.at = at;
                let open = self.open.insert((n, Args::Few(0, [(0, 0); INLINE_ARGS])));
                (&mut open.0, &mut open.1)
            }
        };
        while *left > 0 {
            let Some((n, start)) = length(buf, self.at, b'$', BULK_BYTES_MAX)? else { return Ok(None) };
            let end = start + n;
            if end + 2 > COMMAND_BYTES_MAX {
                return Err(error(self.at, "a command is over the limit"));
            }
            match buf.get(end..end + 2) {
                None => return Ok(None),
                Some(b"\r\n") => {}
                Some(_) => return Err(error(end, "\\r\\n was expected after an argument")),
            }
            args.push((start as u32, end as u32));
            *left -= 1;
            self.at = end + 2;
        }
        match self.open.take() {
            Some((_, args)) => Ok(Some(Command { raw: buf.split_to(self.at).freeze(), args })),
            None => Ok(None),
        }
    }

    /// Whether no command is under way: what stands at the front of the buffer is the next one's first byte.
    pub fn is_between(&self) -> bool {
        self.open.is_none()
    }
}

/// How many bare `\n` bytes stand at the front of `buf`.
pub fn bare_newlines(buf: &[u8]) -> usize {
    buf.iter().take_while(|&&b| b == b'\n').count()
}

/// Takes exactly one command off the front of `buf`, and bare `\n` before it: [`CommandParser::parse`] for
/// a buffer that holds it whole.
///
/// # Errors
///
/// As there.
pub fn parse_command(buf: &mut BytesMut) -> Result<Option<Command>, RespError> {
    buf.advance(bare_newlines(buf));
    CommandParser::default().parse(buf)
}

/// A server's answer.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`.
    Simple(Bytes),
    /// `-ERR …`, without the dash. May hold arguments of the command: see
    /// [`server_error`](crate::conn::server_error) before it is shown.
    Error(String),
    /// `:7`.
    Int(i64),
    /// A string, or nil.
    Bulk(Option<Bytes>),
    /// Several, or nil.
    Array(Option<Vec<Reply>>),
}

/// The form alone: an answer can be a value.
impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Simple(text) => write!(f, "Simple({} bytes)", text.len()),
            Reply::Error(text) => write!(f, "Error({})", text.split(' ').next().unwrap_or_default()),
            Reply::Int(_) => f.write_str("Int"),
            Reply::Bulk(None) | Reply::Array(None) => f.write_str("Nil"),
            Reply::Bulk(Some(b)) => write!(f, "Bulk({} bytes)", b.len()),
            Reply::Array(Some(items)) => f.debug_list().entries(items).finish(),
        }
    }
}

impl Reply {
    /// The bytes of a status or a string.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Reply::Simple(b) | Reply::Bulk(Some(b)) => Some(b),
            Reply::Error(_) | Reply::Int(_) | Reply::Bulk(None) | Reply::Array(_) => None,
        }
    }

    /// An integer, or a string that is one.
    pub fn int(&self) -> Option<i64> {
        match self {
            Reply::Int(n) => Some(*n),
            other => std::str::from_utf8(other.bytes()?).ok()?.parse().ok(),
        }
    }

    /// The answer to `TIME`, in milliseconds since 1970.
    pub fn time_ms(&self) -> Option<i64> {
        let [seconds, micros] = self.items()? else { return None };
        Some(seconds.int()?.saturating_mul(1000).saturating_add(micros.int()? / 1000))
    }

    /// The elements of an array.
    pub fn items(&self) -> Option<&[Reply]> {
        match self {
            Reply::Array(Some(items)) => Some(items),
            _ => None,
        }
    }

    /// The error's text.
    pub fn error(&self) -> Option<&str> {
        match self {
            Reply::Error(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is nil.
    pub fn is_nil(&self) -> bool {
        matches!(self, Reply::Bulk(None) | Reply::Array(None))
    }

    /// Whether it is a status of this text.
    pub fn is_simple(&self, text: &[u8]) -> bool {
        matches!(self, Reply::Simple(b) if b == text)
    }
}

/// How a reply begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// An array: its elements follow, each a reply.
    Array {
        /// How many.
        len: usize,
        /// Where the first one begins.
        start: usize,
    },
    /// A string: its bytes follow, and `\r\n`.
    Bulk {
        /// How many. Not checked against any limit: nothing is set aside for it.
        len: usize,
        /// Where the first one is.
        start: usize,
    },
    /// A line, or nil.
    Other,
}

/// Looks at what stands at the front of `buf` and takes nothing; `None`: its first line isn't there whole.
///
/// # Errors
///
/// It is no reply.
pub fn head(buf: &[u8]) -> Result<Option<Head>, RespError> {
    // Far above what a server can hold, and far below what overflows.
    const LEN_MAX: usize = usize::MAX >> 4;
    match buf {
        [] | [b'$' | b'*'] => Ok(None),
        [b'$' | b'*', b'-', ..] => Ok(Some(Head::Other)),
        [b'*', ..] => {
            let found = length(buf, 0, b'*', REPLY_ITEMS_MAX)?;
            Ok(found.map(|(len, start)| Head::Array { len, start }))
        }
        [b'$', ..] => {
            let found = length(buf, 0, b'$', LEN_MAX)?;
            Ok(found.map(|(len, start)| Head::Bulk { len, start }))
        }
        _ => Ok(Some(Head::Other)),
    }
}

/// Takes replies off a buffer, one at a time; elements of an array as they come.
#[derive(Debug, Default)]
pub struct ReplyParser {
    /// The arrays around what comes next: elements still missing, and those that are there.
    open: Vec<(usize, Vec<Reply>)>,
}

impl ReplyParser {
    /// Takes one reply off the front of `buf`; `None` if it isn't there whole.
    ///
    /// # Errors
    ///
    /// What stands there is no reply, or is over a limit; the rest of `buf` means nothing then.
    pub fn parse(&mut self, buf: &mut BytesMut) -> Result<Option<Reply>, RespError> {
        loop {
            let Some(element) = self.element(buf)? else { return Ok(None) };
            let mut done = match element {
                Element::Opened(0) => Reply::Array(Some(Vec::new())),
                Element::Opened(n) => {
                    if self.open.len() == DEPTH_MAX {
                        return Err(error(0, "arrays are nested too deep"));
                    }
                    self.open.push((n, Vec::with_capacity(n.min(RESERVE_MAX))));
                    continue;
                }
                Element::Whole(reply) => reply,
            };
            loop {
                let Some((missing, items)) = self.open.last_mut() else { return Ok(Some(done)) };
                items.push(done);
                *missing -= 1;
                if *missing > 0 {
                    break;
                }
                done = Reply::Array(Some(std::mem::take(items)));
                self.open.pop();
            }
        }
    }

    fn element(&mut self, buf: &mut BytesMut) -> Result<Option<Element>, RespError> {
        let Some(&kind) = buf.first() else { return Ok(None) };
        match kind {
            b'$' | b'*' => {
                if buf.get(1) == Some(&b'-') {
                    return match buf.get(..5) {
                        None => Ok(None),
                        Some(b"$-1\r\n") => {
                            buf.advance(5);
                            Ok(Some(Element::Whole(Reply::Bulk(None))))
                        }
                        Some(b"*-1\r\n") => {
                            buf.advance(5);
                            Ok(Some(Element::Whole(Reply::Array(None))))
                        }
                        Some(_) => Err(error(1, "a length was expected")),
                    };
                }
                let max = if kind == b'$' { BULK_BYTES_MAX } else { REPLY_ITEMS_MAX };
                let Some((n, start)) = length(buf, 0, kind, max)? else { return Ok(None) };
                if kind == b'*' {
                    buf.advance(start);
                    return Ok(Some(Element::Opened(n)));
                }
                match buf.get(start + n..start + n + 2) {
                    None => return Ok(None),
                    Some(b"\r\n") => {}
                    Some(_) => return Err(error(start + n, "\\r\\n was expected after a string")),
                }
                buf.advance(start);
                let bulk = buf.split_to(n).freeze();
                buf.advance(2);
                Ok(Some(Element::Whole(Reply::Bulk(Some(bulk)))))
            }
            b'+' | b'-' | b':' => {
                let Some(end) = line_end(buf, 1)? else { return Ok(None) };
                let line = buf.split_to(end + 2).freeze().slice(1..end);
                Ok(Some(Element::Whole(match kind {
                    b'+' => Reply::Simple(line),
                    b'-' => Reply::Error(String::from_utf8_lossy(&line).into_owned()),
                    _ => Reply::Int(
                        std::str::from_utf8(&line)
                            .ok()
                            .and_then(|n| n.parse().ok())
                            .ok_or(error(1, "an integer was expected"))?,
                    ),
                })))
            }
            _ => Err(error(0, "a reply begins with one of + - : $ *")),
        }
    }
}

enum Element {
    Whole(Reply),
    Opened(usize),
}

/// Takes one reply off the front of `buf` if it is there whole; else `buf` is as it was. Where more bytes
/// may come, a [`ReplyParser`] looks at them once only.
///
/// # Errors
///
/// As [`ReplyParser::parse`].
pub fn parse_reply(buf: &mut BytesMut) -> Result<Option<Reply>, RespError> {
    // A cheap copy of the bytes is not to be had from `BytesMut`; this is for tests and small answers.
    let mut rest = BytesMut::from(&buf[..]);
    let reply = ReplyParser::default().parse(&mut rest)?;
    if reply.is_some() {
        buf.advance(buf.len() - rest.len());
    }
    Ok(reply)
}

#[cfg(test)]
mod tests;
