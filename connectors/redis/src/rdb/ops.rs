//! What stands between the entries of an RDB: the header and the operation codes.
//! Sources: `rdb.h` and `rdbLoadRioWithLoadingCtx` of Redis 7.0 to 8.0 and Valkey 9.0.

use super::read::{Cursor, Parse, Raw, Stop};
use super::walk::module_name;

/// The highest versions whose types are known, at least by number; higher ones may mean anything.
const REDIS_VERSION_MAX: u16 = 15;
const VALKEY_VERSION_MAX: u16 = 81;

/// One operation code with what belongs to it, or the beginning of an entry.
pub(super) enum Op<'a> {
    Aux(Raw<'a>, Raw<'a>),
    /// Data of this module type; its fields follow.
    ModuleAux(String),
    Select(u32),
    Sizes(u64, u64),
    Function(Raw<'a>),
    /// Engine, name and code, as the release candidates of Redis 7.0 wrote a function.
    FunctionParts(Raw<'a>, Raw<'a>, Raw<'a>),
    ExpireAt(u64),
    /// Of no use to us.
    Skipped,
    /// The end; where the checksum follows, it is not taken.
    End,
    Entry {
        kind: u8,
        name: Raw<'a>,
    },
}

/// Reads the 9 bytes that an RDB begins with; gives the version.
pub(super) fn header(cursor: &mut Cursor<'_>) -> Parse<u16> {
    let head: [u8; 9] = cursor.array()?;
    let (digits, newest) = match (head.strip_prefix(b"REDIS"), head.strip_prefix(b"VALKEY")) {
        (Some(digits), _) => (digits, REDIS_VERSION_MAX),
        (_, Some(digits)) => (digits, VALKEY_VERSION_MAX),
        _ => return Err(Stop::bad("it does not begin like an RDB")),
    };
    let version: u16 = std::str::from_utf8(digits)
        .ok()
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .ok_or(Stop::bad("its version is no number"))?;
    if version == 0 || version > newest {
        return Err(Stop::Bad(
            format!("version {version} is newer than what is known here (up to {newest})").into(),
        ));
    }
    Ok(version)
}

pub(super) fn op<'a>(cursor: &mut Cursor<'a>) -> Parse<Op<'a>> {
    Ok(match cursor.byte()? {
        255 => Op::End,
        254 => {
            let db = cursor.count()?;
            Op::Select(u32::try_from(db).map_err(|_| Stop::bad("a database number that can't be"))?)
        }
        253 => {
            let seconds = i32::from_le_bytes(cursor.array()?);
            Op::ExpireAt(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000).max(1))
        }
        // Before 1970 or at 0, it has expired; RESTORE would take 0 for never.
        252 => Op::ExpireAt(u64::try_from(i64::from_le_bytes(cursor.array()?)).unwrap_or(0).max(1)),
        251 => Op::Sizes(cursor.count()?, cursor.count()?),
        250 => Op::Aux(cursor.string()?, cursor.string()?),
        249 => {
            cursor.byte()?; // access frequency
            Op::Skipped
        }
        248 => {
            cursor.count()?; // idle seconds
            Op::Skipped
        }
        247 => {
            let module = cursor.count()?;
            cursor.count()?;
            cursor.count()?; // when it was saved: before or after the keys
            Op::ModuleAux(module_name(module))
        }
        246 => {
            let (name, engine) = (cursor.string()?, cursor.string()?);
            if cursor.count()? != 0 {
                cursor.string()?; // description
            }
            Op::FunctionParts(engine, name, cursor.string()?)
        }
        245 => Op::Function(cursor.string()?),
        244 => {
            // Slot, keys, expiring keys.
            for _ in 0..3 {
                cursor.count()?;
            }
            Op::Skipped
        }
        op @ 128.. => {
            return Err(Stop::Bad(format!("operation {op} is unknown here").into()));
        }
        kind => Op::Entry { kind, name: cursor.string()? },
    })
}
