//! DUMP payloads: making, opening, and rewriting them as native commands.
//!
//! A payload is the type byte, the value as an RDB has it, the RDB version (2 bytes, little endian) and
//! the CRC-64 of all that (8 bytes, little endian). Source: `createDumpPayload` in Redis's `cluster.c`.

use bytes::{BufMut, Bytes, BytesMut};

use super::crc64::crc64;
use super::read::{Cursor, Parse, Stop, StreamId};
use super::walk::{Element, Walk};
use super::write::Writer;
use super::{RdbError, stream};

/// Bytes of version and checksum, at the end of each payload.
pub const FOOTER_BYTES: usize = 10;

/// Makes a DUMP payload of `type_and_value`: the type byte, then the raw value.
pub fn seal(type_and_value: &[u8], rdb_version: u16) -> Bytes {
    let mut payload = BytesMut::with_capacity(type_and_value.len() + FOOTER_BYTES);
    payload.put_slice(type_and_value);
    put_footer(&mut payload, rdb_version);
    payload.freeze()
}

/// Ends a payload that stands in `payload` alone.
pub(super) fn put_footer(payload: &mut BytesMut, rdb_version: u16) {
    payload.put_u16_le(rdb_version);
    let sum = crc64(0, payload);
    payload.put_u64_le(sum);
}

/// Opens a DUMP payload: its type byte, its raw value, the RDB version of the server that made it.
///
/// # Errors
///
/// Too short, or the checksum is wrong: it was damaged on the way. A checksum of 0 stands for none, as
/// for RESTORE.
pub fn open(payload: &[u8]) -> Result<(u8, &[u8], u16), RdbError> {
    let damaged = |reason| RdbError::new(payload.len() as u64, reason);
    let (rest, sum) =
        payload.split_last_chunk::<8>().ok_or_else(|| damaged("a DUMP payload ends too early"))?;
    let (body, version) =
        rest.split_last_chunk::<2>().ok_or_else(|| damaged("a DUMP payload ends too early"))?;
    let (&kind, value) = body.split_first().ok_or_else(|| damaged("a DUMP payload has no type"))?;
    let sum = u64::from_le_bytes(*sum);
    if sum != 0 && sum != crc64(0, rest) {
        return Err(damaged("a DUMP payload's checksum is wrong"));
    }
    Ok((kind, value, u16::from_le_bytes(*version)))
}

/// Appends to `out` the native commands that make the value of `payload` at `key`, one RESP array each.
///
/// The key must not exist; nothing is deleted first and the key's own expiry is not set (a hash's field
/// expiries are). A command takes 1000 elements or about `piece_bytes`, whatever is reached first, and
/// one element at least; a string is cut into pieces of `piece_bytes`.
///
/// A field whose expiry has passed is set and expired at once, so a hash may end up absent.
/// A stream comes out with its counters, groups, consumers and pending entries, also those whose stream
/// entry was deleted; only the consumers' seen and active times are new. Everything else is equal to the
/// original in content, its encoding is the target's choice; a score of -0 may become 0, as it does inside
/// a server. The target must know `XSETID … ENTRIESADDED` (Redis 7.0) for streams, `HPEXPIREAT` (Redis
/// 7.4, Valkey 9) for fields that expire.
///
/// # Errors
///
/// The payload is damaged, a module's, or of a type unknown here. `out` may have got commands: drop them.
/// `at` counts from the payload's beginning.
pub fn rewrite(key: &[u8], payload: &[u8], piece_bytes: usize, out: &mut Vec<Bytes>) -> Result<(), RdbError> {
    let (kind, value, version) = open(payload)?;
    let walk = Walk::new(kind, version)
        .ok_or_else(|| RdbError::new(0, format!("type {kind} of RDB version {version} is unknown here")))?;
    let mut writer = Writer::new(Bytes::copy_from_slice(key), piece_bytes, 0);
    writer.groups.placeholders = missing_entries(walk.clone(), value)?;
    each_element(walk, value, |element| {
        writer.put(element)?;
        while let Some(command) = writer.pop() {
            out.push(command);
        }
        Ok(())
    })?;
    writer.finish().map_err(|stop| RdbError::stopped(payload.len() as u64, stop))?;
    while let Some(command) = writer.pop() {
        out.push(command);
    }
    Ok(())
}

/// Steps through a complete value.
pub(super) fn each_element(
    mut walk: Walk,
    value: &[u8],
    mut each: impl FnMut(&Element<'_>) -> Parse<()>,
) -> Result<(), RdbError> {
    let mut cursor = Cursor::new(value);
    while !walk.done() {
        let at = cursor.at();
        let rest = value.get(at..).unwrap_or_default();
        let stopped = |stop| RdbError::stopped(at as u64 + 1, stop);
        let (element, len) = walk.step(rest).map_err(stopped)?;
        each(&element).map_err(stopped)?;
        cursor.take(len).map_err(stopped)?;
    }
    if cursor.at() != value.len() {
        return Err(RdbError::new(cursor.at() as u64 + 1, "a DUMP payload goes on after its value"));
    }
    Ok(())
}

/// The ids that groups still hold as pending but the stream no longer has, largest first.
fn missing_entries(walk: Walk, value: &[u8]) -> Result<Vec<StreamId>, RdbError> {
    let (mut pending, mut present, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    if !walk.of_stream() {
        return Ok(pending);
    }
    let mut top = StreamId::default();
    each_element(walk, value, |element| {
        match element {
            Element::Entries(base, raw) => stream::each_entry(*base, raw.text(&mut scratch)?, |id, _, _| {
                if present.last().is_some_and(|&before| before >= id) {
                    return Err(Stop::bad("a stream's entries are not in order"));
                }
                present.push(id);
                Ok(())
            })?,
            Element::StreamMeta(meta) => top = meta.last,
            Element::Pending { id, .. } => pending.push(*id),
            _ => {}
        }
        Ok(())
    })?;
    // 0-0 can't be added, nor what is above the last id given out.
    pending.retain(|id| present.binary_search(id).is_err() && *id > StreamId::default() && *id <= top);
    pending.sort_unstable_by(|a, b| b.cmp(a));
    pending.dedup();
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_again() {
        let payload = seal(b"\x00\x01b", 10);
        assert_eq!(open(&payload).unwrap(), (0, &b"\x01b"[..], 10));
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let payload = seal(b"\x00\x05hello", 10);
        for bit in 0..payload.len() * 8 {
            let mut damaged = payload.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&damaged).is_err(), "bit {bit}");
        }
        assert!(open(&payload[..5]).is_err());
    }

    #[test]
    fn what_follows_the_value_is_refused() {
        let mut out = Vec::new();
        assert!(rewrite(b"k", &seal(b"\x00\x01bx", 10), 100, &mut out).is_err());
        assert!(rewrite(b"k", &seal(b"\x00\x02b", 10), 100, &mut out).is_err());
        assert!(rewrite(b"k", &seal(b"\x00\x01b", 10), 100, &mut out).is_ok());
    }
}
