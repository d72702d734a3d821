//! Changes for this module's tests.

use bytes::Bytes;
use causeway_core::{Change, Group, Hlc, Key, Op, Part, Position, Seq, Space, Term};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

/// Printable, without spaces, as a position's words are; without what its text is taken apart by.
fn word() -> impl Strategy<Value = Bytes> {
    "[!-?A-~]{0,6}".prop_map(|text| Bytes::from(text.replace('/', "")))
}

/// Small ones, large ones, and the ends.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..4u64, any::<u64>(), Just(u64::MAX)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Read),
        Just(Op::Put),
        Just(Op::Delete),
        Just(Op::Command),
        Just(Op::State),
        Just(Op::Refresh),
        Just(Op::Ddl),
        Just(Op::Fence),
        Just(Op::Position),
    ]
}

fn space() -> impl Strategy<Value = Space> {
    prop_oneof![
        Just(Space::Whole),
        any::<u32>().prop_map(Space::Db),
        bytes(6).prop_map(Space::Table),
        bytes(6).prop_map(Space::Index),
        bytes(6).prop_map(Space::Bucket),
    ]
}

prop_compose! {
    /// Any change that the log takes.
    pub(super) fn change()(
        (op, space, name, value, before) in
            (op(), space(), bytes(20), option::of(bytes(40)), option::of(bytes(9))),
        (seq, term, hlc, seen, low) in (number(), number(), number(), number(), number()),
        (history, at, context) in (word(), number(), word()),
        group in option::of((number(), any::<u32>(), any::<bool>())),
        part in option::of((any::<u32>(), any::<bool>())),
        (time, expire_at, tenant, epoch, uncertain, intake) in
            (number(), option::of(number()), option::of(bytes(8)), number(), any::<bool>(), option::of(bytes(8))),
    ) -> Change {
        Change {
            op,
            seq: Seq(if op == Op::Fence { 0 } else { seq }),
            term: Term(term),
            key: Key { space, name },
            value,
            before,
            hlc: Hlc(hlc),
            seen: Seq(seen),
            low: Seq(low),
            pos: Position { history, at, context },
            group: group.map(|(id, n, last)| Group { id, n, last }),
            part: part.map(|(n, last)| Part { n, last }),
            time,
            expire_at,
            tenant,
            epoch,
            uncertain,
            intake,
        }
    }
}

/// The `n`th of a run of changes as a Redis stream brings them: about 150 bytes of key and value.
pub(super) fn typical(n: u64) -> Change {
    let value =
        format!("*3\r\n$3\r\nSET\r\n$28\r\npush:app-{:05}:dev-{:012}\r\n$70\r\n{:070}\r\n", n % 20_000, n, n);
    let key =
        Key { space: Space::Db(0), name: Bytes::from(format!("push:app-{:05}:dev-{:012}", n % 20_000, n)) };
    let pos = Position {
        history: Bytes::from_static(b"8371445ef47dcc0bb2db5f1d4b6d3b9ea5e1f9a2"),
        at: 1_000_000 + n * 143,
        context: Bytes::from_static(b"0"),
    };
    let time = 1_760_000_000_000 + n / 100;
    let mut change = Change::captured(Op::Command, key, Some(Bytes::from(value)), pos, time);
    change.seq = Seq(n);
    change.term = Term(3);
    change.hlc = Hlc(time << 21 | (n % 100) << 9);
    change.seen = Seq(n / 7);
    change.low = Seq(n / 7);
    change.tenant = Some(Bytes::from(format!("app-{:05}", n % 20_000)));
    change
}
