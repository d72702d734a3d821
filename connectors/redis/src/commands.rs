//! What each command of the replication stream writes: one table, for Redis 7.0 to 8.x and Valkey to 9.
//!
//! Capture asks [`effects`] how a command becomes changes, the rule for concurrent writes asks [`units`]
//! what a change touches. The forms are those of the stream, where time is absolute and what was random
//! is decided: SPOP arrives as SREM, INCRBYFLOAT as SET … KEEPTTL, XADD with its id. A form that the stream
//! does not have today (relative times, blocking pops) is answered safely: its keys are read again.
//!
//! A write on a condition (`SET … NX`, SETNX, HSETNX, `PEXPIREAT … GT`) is in the stream only because its
//! condition held at the origin. It is carried without the condition: it has to hold at the target, too.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use causeway_core::{Change, Class, Op, Unit};

use crate::args::Args;
use crate::resp::{self, Command};

/// The element of a key's value as a whole, its expire-at not included: a string, a list, a stream.
pub const CONTENT: &[u8] = b"#value";
/// The element of a key's expire-at.
pub const TTL: &[u8] = Unit::EXPIRE_AT;

/// What a command of the stream writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effects {
    /// Nothing that is data.
    Nothing,
    /// One key; the command is carried as it came.
    One(Bytes),
    /// Several keys, independently, or one by another command than the one that came.
    Split(Vec<(Bytes, SplitOp)>),
    /// These keys of these databases, from what the target may not hold: they have to be read again.
    Reread(Vec<(u32, Bytes)>),
    /// The whole server or a whole database.
    Whole,
    /// The functions.
    Function,
    /// Not in the table, or not of the form that the table knows.
    Unknown,
}

/// One change of [`Effects::Split`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitOp {
    /// The key is gone.
    Delete,
    /// The RESP array that writes it.
    Command(Bytes),
}

/// How a command's arguments say what it writes. Numbers are indices of arguments, 0 is the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Nothing,
    Whole,
    Function,
    Unknown,
    /// SET key value [options].
    Set,
    /// SETNX key value.
    SetNx,
    /// MSET key value …
    MSet,
    /// MSETEX n key value … [options].
    MSetEx,
    /// HSETNX key field value.
    HSetNx,
    /// SMOVE source destination member.
    SMove,
    /// DEL key …
    Delete,
    /// DELEX key [condition]: the condition held.
    DeleteOne,
    /// Key at 1; all of its value.
    Content(Class),
    /// Key at 2; all of its value (XGROUP).
    Content2,
    /// Key at 1, any of its members.
    AnyMember,
    /// Key at 1, elements from 2 on in steps.
    Elements(usize, Class),
    /// Key at 1, one element at this argument.
    Element(usize, Class),
    /// ZADD key [options] score member …
    ZAdd,
    /// Key at 1, then somewhere FIELDS n field … in steps.
    Fields(usize),
    /// PEXPIREAT key time [condition].
    ExpireAt,
    /// PERSIST key.
    Persist,
    /// Two keys, at 1 and 2, all of both values.
    TwoContents,
    /// The key at this argument has to be read again.
    Reread(usize),
    /// Keys from 1 on, two arguments each, have to be read again.
    RereadBoth,
    /// COPY source destination [DB n].
    Copy,
    /// MOVE key db.
    Move,
    /// The key after STORE or STOREDIST.
    Store,
}

fn form(name: &[u8]) -> Form {
    use Class::{Absolute, Commuting, Other};
    match name {
        b"SET" => Form::Set,
        b"HSET" | b"HMSET" => Form::Elements(2, Absolute),
        b"PEXPIREAT" | b"EXPIREAT" => Form::ExpireAt,
        b"DEL" | b"UNLINK" => Form::Delete,
        // PFCOUNT keeps its result within the value.
        b"INCR" | b"DECR" | b"INCRBY" | b"DECRBY" | b"PFADD" | b"PFCOUNT" => Form::Content(Commuting),
        b"RPUSH" | b"LPUSH" | b"RPUSHX" | b"LPUSHX" | b"RPOP" | b"LPOP" | b"LREM" | b"LSET" | b"LTRIM"
        | b"LINSERT" => Form::Content(Other),
        b"XADD" | b"XACK" | b"XCLAIM" | b"XDEL" | b"XTRIM" | b"XSETID" | b"XAUTOCLAIM" | b"XACKDEL"
        | b"XDELEX" | b"XCFGSET" => Form::Content(Other),
        b"XGROUP" => Form::Content2,
        b"APPEND" | b"SETRANGE" | b"SETBIT" | b"BITFIELD" => Form::Content(Other),
        b"SADD" | b"SREM" | b"HDEL" | b"ZREM" => Form::Elements(1, Absolute),
        b"ZADD" => Form::ZAdd,
        b"HINCRBY" => Form::Element(2, Commuting),
        b"ZINCRBY" => Form::Element(3, Commuting),
        b"HINCRBYFLOAT" => Form::Element(2, Other),
        b"HSETNX" => Form::HSetNx,
        b"ZPOPMIN" | b"ZPOPMAX" | b"ZREMRANGEBYRANK" | b"ZREMRANGEBYSCORE" | b"ZREMRANGEBYLEX" => {
            Form::AnyMember
        }
        b"HPEXPIREAT" | b"HEXPIREAT" | b"HPERSIST" | b"HGETDEL" => Form::Fields(1),
        b"HSETEX" => Form::Fields(2),
        b"SETNX" => Form::SetNx,
        b"MSET" | b"MSETNX" => Form::MSet,
        b"MSETEX" => Form::MSetEx,
        b"SMOVE" => Form::SMove,
        b"PERSIST" => Form::Persist,
        b"DELEX" | b"DELIFEQ" | b"GETDEL" => Form::DeleteOne,
        b"LMOVE" | b"RPOPLPUSH" => Form::TwoContents,
        b"FLUSHALL" | b"FLUSHDB" | b"SWAPDB" => Form::Whole,
        b"FUNCTION" => Form::Function,
        b"RENAME" | b"RENAMENX" => Form::RereadBoth,
        b"MOVE" => Form::Move,
        b"COPY" => Form::Copy,
        b"SORT" | b"GEORADIUS" | b"GEORADIUSBYMEMBER" => Form::Store,
        b"SUNIONSTORE" | b"SINTERSTORE" | b"SDIFFSTORE" | b"ZUNIONSTORE" | b"ZINTERSTORE" | b"ZDIFFSTORE"
        | b"ZRANGESTORE" | b"GEOSEARCHSTORE" | b"PFMERGE" => Form::Reread(1),
        b"BITOP" | b"PFDEBUG" => Form::Reread(2),
        // The payload may be of a version that the target doesn't take: a state knows how to go on.
        b"RESTORE" | b"RESTORE-ASKING" => Form::Reread(1),
        // Not in any stream that we know: they arrive as one of the above. Should one come nevertheless,
        // what it did cannot be told from its arguments, but what it wrote can.
        b"EXPIRE" | b"PEXPIRE" | b"SETEX" | b"PSETEX" | b"GETSET" | b"GETEX" | b"INCRBYFLOAT" | b"SPOP"
        | b"GEOADD" | b"HEXPIRE" | b"HPEXPIRE" | b"HGETEX" | b"MIGRATE" => Form::Reread(1),
        b"BLMOVE" | b"BRPOPLPUSH" => Form::RereadBoth,
        b"PING" | b"PUBLISH" | b"SPUBLISH" | b"SELECT" | b"MULTI" | b"EXEC" | b"REPLCONF" | b"SCRIPT" => {
            Form::Nothing
        }
        _ => Form::Unknown,
    }
}

/// What `cmd`, which arrived while database `db` was selected, writes.
///
/// Costs no allocation for a command of one key that is carried as it came.
pub fn effects(cmd: &Command, db: u32) -> Effects {
    let mut buffer = [0; 32];
    let form = form(cmd.name_upper(&mut buffer));
    effects_of(form, cmd, db).unwrap_or(Effects::Unknown)
}

fn effects_of(form: Form, cmd: &Command, db: u32) -> Option<Effects> {
    let split = |key: Bytes, args: &[&[u8]]| Effects::Split(vec![(key, SplitOp::Command(encoded(args)))]);
    Some(match form {
        Form::Nothing => Effects::Nothing,
        Form::Whole => Effects::Whole,
        Form::Function => Effects::Function,
        Form::Unknown => return None,
        Form::Content(_)
        | Form::AnyMember
        | Form::Elements(..)
        | Form::Element(..)
        | Form::ZAdd
        | Form::Persist => Effects::One(cmd.slice(1)?),
        Form::Fields(_) if has_relative_time(cmd) => Effects::Reread(vec![(db, cmd.slice(1)?)]),
        Form::Fields(_) => Effects::One(cmd.slice(1)?),
        Form::Content2 => Effects::One(cmd.slice(2)?),
        Form::Set => match set_options(cmd, 3)? {
            SetOptions::Plain => Effects::One(cmd.slice(1)?),
            SetOptions::Relative => Effects::Reread(vec![(db, cmd.slice(1)?)]),
            SetOptions::Reduced(options) => {
                let mut args = vec![&b"SET"[..], cmd.arg(1)?, cmd.arg(2)?];
                args.extend(options);
                split(cmd.slice(1)?, &args)
            }
        },
        Form::SetNx => split(cmd.slice(1)?, &[b"SET", cmd.arg(1)?, cmd.arg(2)?]),
        Form::HSetNx => split(cmd.slice(1)?, &[b"HSET", cmd.arg(1)?, cmd.arg(2)?, cmd.arg(3)?]),
        Form::ExpireAt if cmd.len() > 3 => split(cmd.slice(1)?, &[cmd.arg(0)?, cmd.arg(1)?, cmd.arg(2)?]),
        Form::ExpireAt => Effects::One(cmd.slice(1)?),
        Form::MSet => sets(cmd, 1..cmd.len(), &[])?,
        Form::MSetEx => {
            let n = number(cmd.arg(1)?)?;
            let end = n.checked_mul(2)?.checked_add(2).filter(|&end| end <= cmd.len())?;
            match set_options(cmd, end)? {
                SetOptions::Plain => sets(cmd, 2..end, &tail(cmd, end))?,
                SetOptions::Reduced(options) => sets(cmd, 2..end, &options)?,
                SetOptions::Relative => {
                    let keys = (2..end).step_by(2).map(|i| Some((db, cmd.slice(i)?)));
                    Effects::Reread(keys.collect::<Option<_>>()?)
                }
            }
        }
        Form::SMove => {
            let (from, to, member) = (cmd.slice(1)?, cmd.slice(2)?, cmd.arg(3)?);
            let remove = encoded(&[b"SREM", &from, member]);
            let add = encoded(&[b"SADD", &to, member]);
            Effects::Split(vec![(from, SplitOp::Command(remove)), (to, SplitOp::Command(add))])
        }
        Form::Delete => {
            cmd.arg(1)?;
            let keys = (1..cmd.len()).map(|i| Some((cmd.slice(i)?, SplitOp::Delete)));
            Effects::Split(keys.collect::<Option<_>>()?)
        }
        Form::DeleteOne => Effects::Split(vec![(cmd.slice(1)?, SplitOp::Delete)]),
        Form::TwoContents if cmd.arg(1) == cmd.arg(2) => Effects::One(cmd.slice(1)?),
        // It reads one list to write another: done again for one of the two alone, it would garble both.
        Form::TwoContents => Effects::Reread(vec![(db, cmd.slice(1)?), (db, cmd.slice(2)?)]),
        Form::Reread(at) => Effects::Reread(vec![(db, cmd.slice(at)?)]),
        Form::RereadBoth => Effects::Reread(vec![(db, cmd.slice(1)?), (db, cmd.slice(2)?)]),
        Form::Move => {
            let to = u32::try_from(number(cmd.arg(2)?)?).ok()?;
            Effects::Reread(vec![(db, cmd.slice(1)?), (to, cmd.slice(1)?)])
        }
        Form::Copy => {
            let to = match (3..cmd.len()).find(|&i| cmd.eq_ignore_case(i, b"DB")) {
                Some(i) => u32::try_from(number(cmd.arg(i + 1)?)?).ok()?,
                None => db,
            };
            Effects::Reread(vec![(to, cmd.slice(2)?)])
        }
        Form::Store => {
            // The last one counts, as the server reads them; a key or pattern may be called STORE, too,
            // so that only what stands before the last argument can be the word.
            let store = |&i: &usize| cmd.eq_ignore_case(i, b"STORE") || cmd.eq_ignore_case(i, b"STOREDIST");
            match (2..cmd.len().saturating_sub(1)).rev().find(store) {
                Some(i) => Effects::Reread(vec![(db, cmd.slice(i + 1)?)]),
                None => Effects::Nothing,
            }
        }
    })
}

/// `SET key value options` for each pair in `range`.
fn sets(cmd: &Command, range: Range<usize>, options: &[&[u8]]) -> Option<Effects> {
    let mut all = Vec::with_capacity(range.len() / 2);
    for i in range.step_by(2) {
        let mut args = vec![&b"SET"[..], cmd.arg(i)?, cmd.arg(i + 1)?];
        args.extend(options);
        all.push((cmd.slice(i)?, SplitOp::Command(encoded(&args))));
    }
    (!all.is_empty()).then_some(Effects::Split(all))
}

enum SetOptions<'a> {
    /// None, or such that can be carried: KEEPTTL, EXAT, PXAT.
    Plain,
    /// Those that can be carried, without the conditions and GET.
    Reduced(Vec<&'a [u8]>),
    /// Counts from when it was executed.
    Relative,
}

/// Reads SET's options from argument `from` on; `None` if one is not known.
fn set_options(cmd: &Command, from: usize) -> Option<SetOptions<'_>> {
    let mut kept = Vec::new();
    let mut reduced = false;
    let mut i = from;
    while let Some(word) = cmd.arg(i) {
        let is = |text: &[u8]| word.eq_ignore_ascii_case(text);
        if is(b"PXAT") || is(b"EXAT") {
            kept.extend([word, cmd.arg(i + 1)?]);
            i += 2;
        } else if is(b"KEEPTTL") {
            kept.push(word);
            i += 1;
        } else if is(b"NX") || is(b"XX") || is(b"GET") {
            reduced = true;
            i += 1;
        } else if is(b"IFEQ") || is(b"IFNE") || is(b"IFDEQ") || is(b"IFDNE") {
            reduced = true;
            i += 2;
        } else if is(b"EX") || is(b"PX") {
            return Some(SetOptions::Relative);
        } else {
            return None;
        }
    }
    Some(if reduced { SetOptions::Reduced(kept) } else { SetOptions::Plain })
}

fn tail(cmd: &Command, from: usize) -> Vec<&[u8]> {
    (from..cmd.len()).filter_map(|i| cmd.arg(i)).collect()
}

/// Whether EX or PX stands before the fields of HSETEX and the like.
fn has_relative_time(cmd: &Command) -> bool {
    (2..cmd.len())
        .take_while(|&i| !cmd.eq_ignore_case(i, b"FIELDS"))
        .any(|i| cmd.eq_ignore_case(i, b"EX") || cmd.eq_ignore_case(i, b"PX"))
}

fn number(arg: &[u8]) -> Option<usize> {
    std::str::from_utf8(arg).ok()?.parse().ok()
}

fn encoded(args: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::new();
    resp::encode(&mut out, args);
    out.freeze()
}

/// What `change` touches, and how.
///
/// An element is [`CONTENT`], [`TTL`], or a field or member with one newline before it, which is how it
/// stands in the command: so it costs no copy, and a field called `#ttl` is none. A change to a value as a
/// whole overlaps neither with its expire-at nor with single elements, which only another type has; what
/// touches all of it (SET, a delete, a state, ZPOPMIN) has no element and overlaps with everything.
pub fn units(change: &Change) -> Vec<(Unit, Class)> {
    let whole = |class| vec![(Unit { key: change.key.clone(), element: None }, class)];
    match change.op {
        Op::Read | Op::Put | Op::State | Op::Refresh => whole(Class::Absolute),
        Op::Delete => whole(Class::Observed),
        Op::Ddl | Op::Fence | Op::Position => whole(Class::Other),
        Op::Command => match change.value.as_ref().and_then(|value| command_units(change, value)) {
            Some(units) if !units.is_empty() => units,
            _ => whole(Class::Other),
        },
    }
}

/// When what the command at `start` writes is to expire, in milliseconds since 1970, and where in `commands` that
/// stands; `None`: the command does not say.
pub(crate) fn expire_at(commands: &[u8], start: usize) -> Option<(Range<usize>, u64)> {
    let mut args = Args::at(commands, start)?;
    let is = |range: &Range<usize>, word: &[u8]| {
        commands.get(range.clone()).is_some_and(|arg| arg.eq_ignore_ascii_case(word))
    };
    let name = args.next()?;
    let at = match commands.get(name.clone())?.len() {
        // SET key value [… PXAT time …]
        3 if is(&name, b"SET") => {
            args.by_ref().skip(2).find(|arg| is(arg, b"PXAT")).and_then(|_| args.next())
        }
        // HSETEX key [… PXAT time …] FIELDS count field value …
        6 if is(&name, b"HSETEX") => {
            let word = args.by_ref().skip(1).find(|arg| is(arg, b"PXAT") || is(arg, b"FIELDS"))?;
            args.next().filter(|_| is(&word, b"PXAT"))
        }
        // RESTORE key time payload [… ABSTTL …]
        7 if is(&name, b"RESTORE") => args.nth(1).filter(|_| args.skip(1).any(|arg| is(&arg, b"ABSTTL"))),
        9 if is(&name, b"PEXPIREAT") => args.nth(1),
        10 if is(&name, b"HPEXPIREAT") => args.nth(1),
        _ => None,
    }?;
    let time = std::str::from_utf8(commands.get(at.clone())?).ok()?.parse().ok()?;
    Some((at, time)).filter(|(_, time)| *time > 0)
}

/// Of an `XADD` where in its value the entry's id stands, and as which argument; `None`: it is something else, or the
/// server chooses the id.
fn entry_id(change: &Change) -> Option<(Range<usize>, usize)> {
    let value = change.value.as_deref().filter(|_| change.op == Op::Command)?;
    let mut args = Args::at(value, 0)?;
    let is = |range: Option<&Range<usize>>, words: &[&[u8]]| {
        let arg = range.and_then(|range| value.get(range.clone()));
        arg.is_some_and(|arg| words.iter().any(|word| arg.eq_ignore_ascii_case(word)))
    };
    if !is(args.next().as_ref(), &[b"XADD"]) {
        return None;
    }
    // XADD key [NOMKSTREAM] [MAXLEN | MINID [= | ~] threshold [LIMIT count]] id field value …
    let mut args = args.enumerate().skip(1).peekable();
    args.next_if(|(_, arg)| is(Some(arg), &[b"NOMKSTREAM"]));
    if args.next_if(|(_, arg)| is(Some(arg), &[b"MAXLEN", b"MINID"])).is_some() {
        args.next_if(|(_, arg)| is(Some(arg), &[b"=", b"~"]));
        args.next();
        if args.next_if(|(_, arg)| is(Some(arg), &[b"LIMIT"])).is_some() {
            args.next();
        }
    }
    let (at, id) = args.next()?;
    (args.count() >= 2 && !is(Some(&id), &[b"*"])).then_some((id, at + 1))
}

/// Of an `XADD` the entry's id, and its fields and values; `None` as for [`with_next_id`].
pub(crate) fn entry(change: &Change) -> Option<(&[u8], Vec<&[u8]>)> {
    let (range, id) = entry_id(change)?;
    let value = change.value.as_deref()?;
    let fields = Args::at(value, 0)?.skip(id + 1).map_while(|range| value.get(range));
    Some((value.get(range)?, fields.collect()))
}

/// The `XADD` of `change` with an id that the server chooses, which is above all that the stream had; `None`: it is
/// something else, or has one already.
pub fn with_next_id(change: &Change) -> Option<Change> {
    let (_, id) = entry_id(change)?;
    let value = change.value.as_deref()?;
    let args: Vec<&[u8]> = Args::at(value, 0)?.map_while(|range| value.get(range)).collect();
    let args: Vec<&[u8]> =
        args.iter().enumerate().map(|(at, arg)| if at == id { b"*" } else { *arg }).collect();
    let mut value = BytesMut::new();
    resp::encode(&mut value, &args);
    Some(Change { value: Some(value.freeze()), ..change.clone() })
}

fn command_units(change: &Change, value: &Bytes) -> Option<Vec<(Unit, Class)>> {
    let mut args = Args::at(value, 0)?;
    let n = args.left();
    let name = value.get(args.next()?)?;
    let mut upper = [0; 32];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    let form = form(upper);
    let unit = |element: Option<Bytes>| Unit { key: change.key.clone(), element };
    let content = || Some(Bytes::from_static(CONTENT));
    // `$3\r\nabc` has a newline before each argument: the element begins there.
    let element = |arg: Range<usize>| Some(unit(Some(value.slice(arg.start.checked_sub(1)?..arg.end))));
    Some(match form {
        Form::Set | Form::SetNx => {
            let keeps =
                args.skip(2).any(|r| value.get(r).is_some_and(|a| a.eq_ignore_ascii_case(b"KEEPTTL")));
            vec![(unit(if keeps { content() } else { None }), Class::Absolute)]
        }
        Form::Content(class) => vec![(unit(content()), class)],
        Form::Content2 => vec![(unit(content()), Class::Other)],
        Form::AnyMember => vec![(unit(None), Class::Other)],
        Form::ExpireAt | Form::Persist => {
            vec![(unit(Some(Bytes::from_static(TTL))), Class::Absolute)]
        }
        Form::Element(at, class) => vec![(element(args.nth(at - 1)?)?, class)],
        Form::Elements(step, class) => {
            let mut units = Vec::with_capacity(n / step);
            for arg in args.skip(1).step_by(step) {
                units.push((element(arg)?, class));
            }
            units
        }
        Form::HSetNx => vec![(element(args.nth(1)?)?, Class::Absolute)],
        Form::ZAdd => {
            let mut class = Class::Absolute;
            let mut args = args.skip(1).peekable();
            while let Some(word) = args.next_if(|r| value.get(r.clone()).is_some_and(|a| !is_score(a))) {
                let word = value.get(word)?;
                if word.eq_ignore_ascii_case(b"INCR") && class == Class::Absolute {
                    class = Class::Commuting;
                } else if !word.eq_ignore_ascii_case(b"CH") {
                    // NX, XX, GT, LT: what becomes of a member depends on what was there.
                    class = Class::Other;
                }
            }
            let mut units = Vec::with_capacity(n / 2);
            for arg in args.skip(1).step_by(2) {
                units.push((element(arg)?, class));
            }
            units
        }
        // A field's own expire-at goes with the field: HSET takes it away.
        Form::Fields(step) => {
            let mut args = args.skip(1);
            let plain = step == 2;
            let mut class = if plain { Class::Absolute } else { Class::Other };
            loop {
                let word = value.get(args.next()?)?;
                if word.eq_ignore_ascii_case(b"FIELDS") {
                    break;
                }
                if [&b"KEEPTTL"[..], b"FNX", b"FXX"].iter().any(|c| word.eq_ignore_ascii_case(c)) {
                    class = Class::Other;
                }
            }
            let fields = number(value.get(args.next()?)?)?;
            let mut units = Vec::with_capacity(fields.min(n));
            for arg in args.step_by(step).take(fields) {
                units.push((element(arg)?, class));
            }
            units
        }
        Form::TwoContents => {
            let (from, to) = (value.slice(args.next()?), value.slice(args.next()?));
            let key = |name| causeway_core::Key { space: change.key.space.clone(), name };
            let both = Unit { key: key(from), element: content() };
            let mut units = vec![(both, Class::Other)];
            let to = Unit { key: key(to), element: content() };
            if units.iter().all(|(unit, _)| *unit != to) {
                units.push((to, Class::Other));
            }
            units
        }
        _ => return None,
    })
}

/// Whether an argument of ZADD is a score and no option: options are words of letters, of scores only
/// `inf` and `nan` are.
fn is_score(arg: &[u8]) -> bool {
    ![&b"NX"[..], b"XX", b"GT", b"LT", b"CH", b"INCR"].iter().any(|word| arg.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests;
