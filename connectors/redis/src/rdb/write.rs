//! Elements to native commands. One writer serves both the cutting of large values and the rewriting of
//! DUMP payloads; the sequence of commands depends on the elements and `piece_bytes` alone.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::packed::{Packed, Packing};
use super::read::{Atom, ELEMENT_BYTES_MAX, Parse, Raw, Stop, push_int, push_uint};
use super::stream::Groups;
use super::walk::{Content, Element};

/// The most elements of one command: what a server does in well under 10 ms.
const ELEMENTS_MAX: usize = 1000;

/// The command that collects elements until it is full.
#[derive(Default)]
struct Open {
    verb: &'static str,
    /// The arguments after the key, as bulk strings.
    body: Vec<u8>,
    args: usize,
    elements: usize,
    /// Hash fields that expire: the time, and where the field stands in `body`.
    expiring: Vec<(u64, Range<usize>)>,
}

/// Writes commands for one key into parts.
pub(super) struct Writer {
    pub(super) key: Bytes,
    /// A command begins anew before it would exceed this.
    pub(super) piece_bytes: usize,
    /// A part ends with the command that fills it.
    part_bytes: usize,
    open: Open,
    part: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
    /// Bytes of `ready`.
    ready_bytes: usize,
    /// Pieces of text written: SET first, then APPEND.
    texts: u64,
    pub(super) groups: Groups,
    /// Room for unpacking.
    scratch: (Vec<u8>, Vec<u8>),
}

impl Writer {
    /// `part_bytes` 0 makes each command a part of its own.
    pub(super) fn new(key: Bytes, piece_bytes: usize, part_bytes: usize) -> Self {
        Writer {
            key,
            piece_bytes: piece_bytes.max(1),
            part_bytes,
            open: Open::default(),
            part: Vec::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            texts: 0,
            groups: Groups::default(),
            scratch: Default::default(),
        }
    }

    /// Bytes held.
    pub(super) fn buffered(&self) -> usize {
        self.part.len() + self.ready_bytes + self.open.body.len() + self.groups.bytes()
    }

    /// How many complete parts wait.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The oldest complete part.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let part = self.ready.pop_front()?;
        self.ready_bytes -= part.len();
        Some(Bytes::from(part))
    }

    /// Ends the value; afterwards everything is ready, in one part at least (which may be empty).
    pub(super) fn finish(&mut self) -> Parse<()> {
        self.finish_stream()?;
        self.close()?;
        if !self.part.is_empty() || self.ready.is_empty() && self.part_bytes > 0 {
            self.push_part();
        }
        Ok(())
    }

    /// Writes what `element` says.
    pub(super) fn put(&mut self, element: &Element<'_>) -> Parse<()> {
        let (mut first, mut second) = std::mem::take(&mut self.scratch);
        let result = self.put_with(element, &mut first, &mut second);
        self.scratch = (first, second);
        result
    }

    fn put_with(&mut self, element: &Element<'_>, first: &mut Vec<u8>, second: &mut Vec<u8>) -> Parse<()> {
        match *element {
            Element::Head(_) | Element::Nothing => Ok(()),
            Element::Text(raw) => self.text(raw.text(first)?),
            Element::Item(raw) => self.element("RPUSH", &[raw.atom(first)?], None),
            Element::Member(raw) => self.element("SADD", &[raw.atom(first)?], None),
            Element::Scored(raw, score) => {
                let mut text = Vec::new();
                push_score(score, &mut text)?;
                self.element("ZADD", &[Atom::Text(&text), raw.atom(first)?], None)
            }
            Element::Field(field, value, at) => {
                self.element("HSET", &[field.atom(first)?, value.atom(second)?], at)
            }
            Element::Node(packing, raw) => self.blob(packing, Content::List, raw, first),
            Element::Blob(packing, content, raw) => self.blob(packing, content, raw, first),
            Element::Module(_) => Err(Stop::bad("a module's value can't be written as commands")),
            Element::Entries(base, raw) => match raw.atom(first)? {
                Atom::Text(pack) => self.entries(base, pack),
                Atom::Int(_) => Err(Stop::bad("a stream's node is a number")),
            },
            Element::StreamMeta(meta) => self.stream_meta(meta),
            Element::Group { name, last, read } => self.group(name.text(first)?, last, read),
            Element::Pending { id, delivered_ms, deliveries } => {
                self.groups.pending(id, delivered_ms, deliveries)
            }
            Element::Consumer(name) => self.consumer(name.text(first)?),
            Element::Owned(id) => self.owned(id),
        }
    }

    /// A text, or its next piece. Every piece but the last must be of `piece_bytes`, or the sequence of
    /// commands depends on how it came.
    pub(super) fn text(&mut self, text: &[u8]) -> Parse<()> {
        let mut rest = text;
        loop {
            let (piece, after) = rest.split_at(rest.len().min(self.piece_bytes));
            let verb = if self.texts == 0 { "SET" } else { "APPEND" };
            self.texts += 1;
            self.element(verb, &[Atom::Text(piece)], None)?;
            self.close()?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Whether any text was written, be it empty.
    pub(super) fn has_text(&self) -> bool {
        self.texts > 0
    }

    fn blob(&mut self, packing: Packing, content: Content, raw: Raw<'_>, scratch: &mut Vec<u8>) -> Parse<()> {
        let Atom::Text(blob) = raw.atom(scratch)? else {
            return Err(Stop::bad("a packed collection is a number"));
        };
        let mut packed = Packed::new(packing, blob)?;
        let ready_before = self.ready_bytes;
        while let Some(atom) = packed.next()? {
            match content {
                Content::List => self.element("RPUSH", &[atom], None)?,
                Content::Set => self.element("SADD", &[atom], None)?,
                Content::Zset => self.element("ZADD", &[packed.required()?, atom], None)?,
                Content::Hash => self.element("HSET", &[atom, packed.required()?], None)?,
                Content::HashExpiring => {
                    let value = packed.required()?;
                    let at = u64::try_from(packed.number()?).ok().filter(|&ms| ms != 0);
                    self.element("HSET", &[atom, value], at)?;
                }
            }
            self.check_growth(ready_before)?;
        }
        Ok(())
    }

    /// Refuses what unpacks without end: no real node comes near.
    pub(super) fn check_growth(&self, ready_bytes_before: usize) -> Parse<()> {
        if (self.ready_bytes - ready_bytes_before) as u64 > ELEMENT_BYTES_MAX {
            return Err(Stop::bad("a packed collection unpacks to more than 1 GiB"));
        }
        Ok(())
    }

    /// Adds one element to the open command, or begins a new one.
    fn element(&mut self, verb: &'static str, args: &[Atom<'_>], at: Option<u64>) -> Parse<()> {
        let size: usize =
            args.iter().map(|arg| if let Atom::Text(text) = arg { text.len() } else { 8 }).sum();
        let full = self.open.elements >= ELEMENTS_MAX
            || self.open.elements > 0 && self.open.body.len() + size > self.piece_bytes;
        if full || self.open.verb != verb {
            self.close()?;
            self.open.verb = verb;
        }
        let open = &mut self.open;
        for (n, &arg) in args.iter().enumerate() {
            let start = open.body.len();
            bulk(arg, &mut open.body);
            if let (0, Some(at)) = (n, at) {
                open.expiring.push((at, start..open.body.len()));
            }
        }
        open.args += args.len();
        open.elements += 1;
        Ok(())
    }

    /// Ends the open command.
    pub(super) fn close(&mut self) -> Parse<()> {
        if self.open.elements == 0 {
            return Ok(());
        }
        let mut open = std::mem::take(&mut self.open);
        self.head(open.args + 2, open.verb);
        self.part.extend_from_slice(&open.body);
        self.ended();
        // A field's expiry is set after its value: HSET would clear it.
        for same in open.expiring.chunk_by(|a, b| a.0 == b.0) {
            let Some((at, _)) = same.first() else { continue };
            self.head(same.len() + 5, "HPEXPIREAT");
            bulk_uint(*at, &mut self.part);
            bulk(Atom::Text(b"FIELDS"), &mut self.part);
            bulk_uint(same.len() as u64, &mut self.part);
            for (_, field) in same {
                let field = open.body.get(field.clone()).ok_or(Stop::bad("a field's place was lost"))?;
                self.part.extend_from_slice(field);
            }
            self.ended();
        }
        // Keep the memory for the next command.
        open.body.clear();
        open.expiring.clear();
        self.open = Open { verb: "", args: 0, elements: 0, ..open };
        Ok(())
    }

    /// `*args verb key`; for `XGROUP CREATE` the verb is two words.
    fn head(&mut self, args: usize, verb: &str) {
        self.part.push(b'*');
        push_uint(args as u64, &mut self.part);
        self.part.extend_from_slice(b"\r\n");
        for word in verb.split(' ') {
            bulk(Atom::Text(word.as_bytes()), &mut self.part);
        }
        bulk(Atom::Text(&self.key), &mut self.part);
    }

    /// Writes one whole command: `verb key args…`.
    pub(super) fn command(&mut self, verb: &str, args: &[Atom<'_>]) -> Parse<()> {
        self.close()?;
        self.head(verb.split(' ').count() + 1 + args.len(), verb);
        for &arg in args {
            bulk(arg, &mut self.part);
        }
        self.ended();
        Ok(())
    }

    /// Writes one whole command whose arguments after the key are `body`, `args` bulk strings.
    pub(super) fn command_of_body(&mut self, verb: &str, args: usize, body: &[u8]) -> Parse<()> {
        self.close()?;
        self.head(args + 2, verb);
        self.part.extend_from_slice(body);
        self.ended();
        Ok(())
    }

    /// Bytes of the complete parts that wait.
    pub(super) fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// A command is complete: so is the part, if it is large enough.
    fn ended(&mut self) {
        if self.part.len() >= self.part_bytes {
            self.push_part();
        }
    }

    fn push_part(&mut self) {
        self.ready_bytes += self.part.len();
        self.ready.push_back(std::mem::take(&mut self.part));
    }
}

/// Appends `arg` as a RESP bulk string.
pub(super) fn bulk(arg: Atom<'_>, out: &mut Vec<u8>) {
    let mut digits = Vec::new();
    let text = match arg {
        Atom::Text(text) => text,
        Atom::Int(number) => {
            push_int(number, &mut digits);
            &digits
        }
    };
    out.push(b'$');
    push_uint(text.len() as u64, out);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// Appends `number` as a RESP bulk string.
pub(super) fn bulk_uint(number: u64, out: &mut Vec<u8>) {
    let mut digits = Vec::with_capacity(20);
    push_uint(number, &mut digits);
    bulk(Atom::Text(&digits), out);
}

/// The shortest text that reads back as the same double.
fn push_score(score: f64, out: &mut Vec<u8>) -> Parse<()> {
    use std::io::Write;
    let written = if score.is_nan() {
        return Err(Stop::bad("a score is not a number, which no server keeps"));
    } else if score.is_infinite() {
        out.extend_from_slice(if score > 0.0 { b"inf" } else { b"-inf" });
        Ok(())
    } else if score.fract() == 0.0 && score.abs() < 1e15 {
        write!(out, "{score}")
    } else {
        write!(out, "{score:e}")
    };
    written.map_err(|_| Stop::bad("a score can't be printed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain text of all commands, arguments joined by spaces.
    pub(in crate::rdb) fn plain(commands: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(commands);
        text.split('*')
            .skip(1)
            .map(|command| command.split("\r\n").skip(2).step_by(2).collect::<Vec<_>>().join(" "))
            .collect()
    }

    fn written(writer: &mut Writer) -> Vec<String> {
        writer.finish().unwrap();
        let mut all = Vec::new();
        while let Some(part) = writer.pop() {
            all.extend_from_slice(&part);
        }
        plain(&all)
    }

    #[test]
    fn scores_are_exact() {
        for (score, text) in [
            (0.1 + 0.2, "3.0000000000000004e-1"),
            (-0.0, "-0"),
            (1e300, "1e300"),
            (12.0, "12"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (5e-324, "5e-324"),
        ] {
            let mut out = Vec::new();
            push_score(score, &mut out).unwrap();
            assert_eq!(out, text.as_bytes());
            assert_eq!(text.parse::<f64>().unwrap().to_bits(), score.to_bits());
        }
        assert!(push_score(f64::NAN, &mut Vec::new()).is_err());
    }

    /// FF26b.
    #[test]
    fn a_field_expires_after_it_is_set() {
        let mut writer = Writer::new(Bytes::from_static(b"k"), 1000, 1 << 20);
        for (field, at) in [(&b"a"[..], Some(5)), (b"b", Some(5)), (b"c", None), (b"d", Some(6))] {
            writer.put(&Element::Field(Raw::Plain(field), Raw::Int(1), at)).unwrap();
        }
        assert_eq!(
            written(&mut writer),
            ["HSET k a 1 b 1 c 1 d 1", "HPEXPIREAT k 5 FIELDS 2 a b", "HPEXPIREAT k 6 FIELDS 1 d"]
        );
    }

    #[test]
    fn a_long_text_is_set_and_appended() {
        let mut writer = Writer::new(Bytes::from_static(b"k"), 4, 0);
        writer.put(&Element::Text(Raw::Plain(b"abcdefghij"))).unwrap();
        assert_eq!(writer.ready(), 3);
        assert_eq!(written(&mut writer), ["SET k abcd", "APPEND k efgh", "APPEND k ij"]);
    }

    #[test]
    fn commands_end_by_bytes_and_by_elements() {
        let mut writer = Writer::new(Bytes::from_static(b"k"), 1 << 20, 1 << 20);
        for number in 0..2500 {
            writer.put(&Element::Member(Raw::Int(number))).unwrap();
        }
        assert_eq!(written(&mut writer).len(), 3);
        let mut writer = Writer::new(Bytes::from_static(b"k"), 20, 1 << 20);
        for _ in 0..3 {
            writer.put(&Element::Item(Raw::Plain(b"0123456789"))).unwrap();
        }
        assert_eq!(written(&mut writer).len(), 3);
    }
}
