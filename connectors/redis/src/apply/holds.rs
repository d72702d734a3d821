use bytes::{Bytes, BytesMut};
use causeway_core::{Change, Result};

use super::{RedisTarget, db_of};
use crate::commands;
use crate::resp::{self, Reply};

/// What the replies belong to: one SELECT, a DUMP and a PEXPIRETIME, or an XRANGE.
enum Asked<'a> {
    Database,
    /// The server lacks the database: nothing was asked.
    Nowhere,
    Key(&'a Change),
    /// With these fields and values: another entry may have its id.
    Entry(Vec<&'a [u8]>),
}

/// The fields and values of the one entry that an XRANGE found.
fn fields_of(found: &Reply) -> Option<impl Iterator<Item = &[u8]>> {
    let fields = found.items()?.first()?.items()?.get(1)?.items()?;
    Some(fields.iter().map(|field| field.bytes().map_or(&[][..], Bytes::as_ref)))
}

impl RedisTarget {
    /// Compares payloads byte for byte, in one round trip. A server of another version, or one that encodes
    /// the same content in another way, gives `false`.
    pub(super) async fn holds_now(&mut self, changes: &[Change]) -> Result<Vec<bool>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let link = self.link("compare keys")?;
        link.drain().await?;
        let mut asked = Vec::with_capacity(changes.len() + 2);
        let mut out = BytesMut::new();
        let mut selected = 0;
        for change in changes {
            let db = db_of(&change.key);
            if !link.has_database(db).await? {
                asked.push(Asked::Nowhere);
                continue;
            }
            if db != selected {
                resp::encode(&mut out, &[b"SELECT", &resp::decimal(db)]);
                asked.push(Asked::Database);
                selected = db;
            }
            if let Some((id, fields)) = commands::entry(change) {
                resp::encode(&mut out, &[b"XRANGE", &change.key.name, id, id]);
                asked.push(Asked::Entry(fields));
                continue;
            }
            resp::encode(&mut out, &[b"DUMP", &change.key.name]);
            resp::encode(&mut out, &[b"PEXPIRETIME", &change.key.name]);
            asked.push(Asked::Key(change));
        }
        resp::encode(&mut out, &[b"SELECT", b"0"]);
        link.writer.send(&out).await?;
        let mut held = Vec::with_capacity(changes.len());
        for asked in asked {
            match asked {
                Asked::Database => link.answered("compare keys").await?,
                Asked::Nowhere => held.push(false),
                Asked::Entry(fields) => {
                    let found = link.reader.reply().await?;
                    held.push(fields_of(&found).is_some_and(|found| found.eq(fields)));
                }
                Asked::Key(change) => {
                    let (dump, expire) = (link.reader.reply().await?, link.reader.reply().await?);
                    let value = match dump {
                        Reply::Bulk(value) => value == change.value,
                        _ => false,
                    };
                    // -1 is "never", -2 "no such key".
                    let expire_at = change.expire_at.and_then(|at| i64::try_from(at).ok());
                    let same_expiry = matches!(expire, Reply::Int(at)
                        if Some(at) == expire_at || (at < 0 && change.expire_at.is_none()));
                    held.push(value && same_expiry);
                }
            }
        }
        link.answered("compare keys").await?;
        Ok(held)
    }
}
