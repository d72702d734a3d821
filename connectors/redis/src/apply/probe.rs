//! What a server can do, asked when it is first needed: it cannot be told from within a transaction,
//! where a refused SELECT would send the rest into another database.

use bytes::{BufMut, Bytes, BytesMut};
use causeway_core::{Batch, Change, Op, Result};

use super::answer::{self, is_transient};
use super::{Link, db_of};
use crate::conn::server_error;
use crate::rdb::crc64;
use crate::resp;

/// The footer of a DUMP payload: RDB version (2 bytes, little-endian), CRC-64.
const FOOTER_BYTES: usize = 10;

/// The value of `change` if it is a DUMP payload.
pub(super) fn payload(change: &Change) -> Option<&Bytes> {
    match change.op {
        Op::Read | Op::State | Op::Put if change.part.is_none() && !change.key.name.is_empty() => {
            change.value.as_ref()
        }
        _ => None,
    }
}

/// The RDB version that a payload says it is of; `None` if it is too short for one.
pub(super) fn payload_version(payload: &[u8]) -> Option<u16> {
    let footer = payload.len().checked_sub(FOOTER_BYTES)?;
    match payload.get(footer..footer + 2) {
        Some(&[low, high]) => Some(u16::from_le_bytes([low, high])),
        _ => None,
    }
}

/// The string "x" as a payload of `version`.
fn tiny_payload(version: u16) -> Bytes {
    let mut payload = BytesMut::from(&[0, 1, b'x'][..]);
    payload.put_u16_le(version);
    payload.put_u64_le(crc64(0, &payload));
    payload.freeze()
}

/// What was asked before: few enough that a list is faster than a map.
pub(super) fn known<T: PartialEq + Copy>(list: &[(T, bool)], of: T) -> Option<bool> {
    list.iter().find(|(known, _)| *known == of).map(|(_, is)| *is)
}

impl Link {
    /// Asks the server what `batch` needs to be known. Returns why the server cannot say just now.
    pub(super) async fn learn(&mut self, batch: &Batch, probe_key: &[u8]) -> Result<Option<String>> {
        for change in &batch.changes {
            let db = db_of(&change.key);
            if known(&self.databases, db).is_none() {
                self.drain().await?;
                self.has_database(db).await?;
            }
            let version = payload(change).and_then(|p| payload_version(p));
            if let Some(version) = version
                && known(&self.payloads, version).is_none()
            {
                self.drain().await?;
                if let Some(reason) = self.try_payload(version, probe_key).await? {
                    return Ok(Some(reason));
                }
            }
        }
        Ok(None)
    }

    /// Whether the server has database `db`. Nothing may be under way.
    pub(super) async fn has_database(&mut self, db: u32) -> Result<bool> {
        if let Some(has) = known(&self.databases, db) {
            return Ok(has);
        }
        let reply = self.call(&[b"SELECT", &resp::decimal(db)]).await?;
        if let Some(text) = reply.error().filter(|text| is_transient(text)) {
            return Err(server_error("SELECT", self.reader.endpoint_label(), text));
        }
        let has = reply.error().is_none();
        if has {
            self.command(&[b"SELECT", b"0"]).await?;
        }
        self.databases.push((db, has));
        Ok(has)
    }

    /// Finds out whether RESTORE takes payloads of `version`: offers one that is expired already, which
    /// the server checks whole and then keeps nothing of, and tells nobody of. Returns why the server
    /// cannot say just now. Nothing may be under way.
    async fn try_payload(&mut self, version: u16, probe_key: &[u8]) -> Result<Option<String>> {
        let payload = tiny_payload(version);
        let reply = self.call(&[b"RESTORE", probe_key, b"1", &payload, b"ABSTTL"]).await?;
        let takes = match reply.error() {
            None => true,
            Some(text) if is_transient(text) => return Ok(Some(answer::shown(text))),
            // No right to RESTORE is like a version that is not taken: the value is written by its type.
            Some(text) if ["ERR ", "NOPERM ", "Bad "].iter().any(|prefix| text.starts_with(prefix)) => false,
            Some(text) => return Err(server_error("RESTORE", self.reader.endpoint_label(), text)),
        };
        self.payloads.push((version, takes));
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_s_version_stands_before_its_checksum() {
        assert_eq!(payload_version(&tiny_payload(10)), Some(10));
        assert_eq!(payload_version(&tiny_payload(0x1234)), Some(0x1234));
        assert_eq!(payload_version(&[0; 9]), None);
    }
}
