use bytes::Bytes;
use causeway_core::{Change, Key, Op, Position, Term};
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::samples;
use super::*;

fn context() -> RecordContext {
    RecordContext { channel: "tags".to_owned(), origin: "dc".to_owned() }
}

/// A topic's partition in memory.
#[derive(Default)]
struct Topic(Vec<Message>);

impl Topic {
    fn append(&mut self, changes: &[Change], bytes_max: usize) -> Vec<Offset> {
        let mut offsets = Vec::new();
        for (n, change) in changes.iter().enumerate() {
            offsets.push(Offset(self.0.len() as u64));
            push_messages(change, &context(), bytes_max, n + 1 < changes.len(), &mut self.0);
        }
        offsets
    }

    fn fence(&mut self, term: u64, before: Option<u64>) {
        let key = Key::none();
        let mut change = Change::captured(Op::Fence, key, None, Position::default(), 7);
        change.term = Term(term);
        self.0.push(fence(&change, before, &context()));
    }

    fn end(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, from: u64, assembler: &mut Assembler) -> Vec<(Offset, Change)> {
        let mut out = Vec::new();
        for (at, message) in self.0.iter().enumerate().skip(from as usize) {
            let headers = message.headers.iter().map(|(name, value)| (*name, Some(value.as_ref())));
            let received = Received::new(message.key.as_deref(), message.value.as_deref(), headers);
            assembler.feed(at as u64, received, &mut out).unwrap();
        }
        out
    }
}

fn numbered(term: u64, seqs: std::ops::Range<u64>) -> Vec<Change> {
    let change = |n| Change { term: Term(term), ..samples::typical(n) };
    seqs.map(change).collect()
}

fn seqs(records: &[(Offset, Change)]) -> Vec<u64> {
    records.iter().filter(|(_, c)| c.op != Op::Fence).map(|(_, c)| c.seq.0).collect()
}

proptest! {
    #[test]
    fn any_change_comes_back_in_however_many_pieces(
        changes in vec(samples::change(), 1..6),
        large in vec(any::<u8>(), 0..4000),
        bytes_max in 1000usize..3000,
    ) {
        let mut changes = changes;
        changes.iter_mut().for_each(|change| change.term = Term(5));
        changes.retain(|change| change.op != Op::Fence);
        prop_assume!(!changes.is_empty());
        let large = Bytes::from(large);
        changes[0].value = Some(large.clone());
        changes.last_mut().unwrap().key.name = large.clone();
        changes.last_mut().unwrap().before = Some(large);
        let mut topic = Topic::default();
        let offsets = topic.append(&changes, bytes_max);
        prop_assert!(topic.0.iter().all(|message| message.size() <= bytes_max));
        let read = topic.read(0, &mut Assembler::new(0));
        prop_assert_eq!(&read, &offsets.iter().copied().zip(changes).collect::<Vec<_>>());
        // From anywhere: what begins at or behind that place, and nothing else.
        for from in 0..topic.end() {
            let some = topic.read(from, &mut Assembler::new(0));
            let wanted: Vec<_> = read.iter().filter(|(at, _)| at.0 >= from).cloned().collect();
            prop_assert_eq!(some, wanted);
        }
    }
}

#[test]
fn what_a_fenced_writer_still_brings_is_void() {
    let mut topic = Topic::default();
    topic.fence(0, None);
    topic.append(&numbered(0, 0..3), 10_000);
    let second = topic.end();
    topic.fence(second, Some(0));
    topic.append(&numbered(0, 3..6), 10_000);
    topic.append(&numbered(second, 3..5), 10_000);
    topic.append(&numbered(0, 6..9), 10_000);
    topic.append(&numbered(second, 5..7), 10_000);
    let read = topic.read(0, &mut Assembler::new(0));
    assert_eq!(seqs(&read), [0, 1, 2, 3, 4, 5, 6]);
    assert!(read.iter().filter(|(at, _)| at.0 > second).all(|(_, change)| change.term == Term(second)));
    // Whoever begins among what is void has to know of the fence.
    let some = topic.read(second + 2, &mut Assembler::new(second));
    assert_eq!(seqs(&some), [3, 4, 5, 6]);
}

#[test]
fn an_append_that_its_writer_did_not_finish_is_void() {
    for kept in 0..3 {
        let mut topic = Topic::default();
        topic.fence(0, None);
        topic.append(&numbered(0, 0..2), 10_000);
        topic.append(&numbered(0, 2..5), 10_000);
        topic.0.truncate(3 + kept);
        assert_eq!(seqs(&topic.read(0, &mut Assembler::new(0))), [0, 1], "not before it is whole");
        let second = topic.end();
        topic.fence(second, Some(0));
        topic.append(&numbered(second, 2..4), 10_000);
        let read = topic.read(0, &mut Assembler::new(0));
        assert_eq!(seqs(&read), [0, 1, 2, 3]);
        assert_eq!(read[4].1.term, Term(second));
    }
}

#[test]
fn a_fence_counts_only_in_its_place() {
    let mut topic = Topic::default();
    topic.fence(0, None);
    // Meant for 1, where another one was faster.
    topic.fence(1, Some(0));
    topic.fence(1, Some(0));
    topic.append(&numbered(1, 0..2), 10_000);
    let end = topic.end();
    topic.fence(end, Some(1));
    let read = topic.read(0, &mut Assembler::new(0));
    let fences: Vec<_> =
        read.iter().filter(|(_, c)| c.op == Op::Fence).map(|(at, c)| (at.0, c.term.0)).collect();
    assert_eq!(fences, [(0, 0), (1, 1), (end, end)]);
    assert_eq!(seqs(&read), [0, 1]);
}

#[test]
fn a_large_value_costs_its_pieces_and_not_its_key() {
    let mut change = numbered(0, 0..1).remove(0);
    change.value = Some(Bytes::from(vec![1; 10_000]));
    let mut topic = Topic::default();
    topic.append(std::slice::from_ref(&change), 4000);
    assert_eq!(topic.end(), 4);
    // A consumer that knows nothing of pieces sees which key they are of.
    assert!(topic.0.iter().all(|message| message.key.as_ref() == Some(&change.key.name)));
    let mut lost = Topic(topic.0.drain(1..).collect());
    assert!(lost.read(0, &mut Assembler::new(0)).is_empty(), "its beginning is not there");
    lost.append(&numbered(0, 1..2), 4000);
    assert_eq!(seqs(&lost.read(0, &mut Assembler::new(0))), [1]);
}

#[test]
fn others_messages_and_newer_formats_are_told_apart() {
    let feed = |headers: &[(&'static str, &'static str)]| {
        let headers = headers.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
        Assembler::new(0).feed(0, Received::new(None, None, headers), &mut Vec::new())
    };
    assert_eq!(feed(&[]), Err(Unreadable::Foreign));
    assert_eq!(feed(&[("v", "1")]), Err(Unreadable::Foreign));
    let newer = feed(&[("v", "2"), ("op", "put")]).unwrap_err();
    let id = super::super::PartitionId { channel: "tags".to_owned(), origin: "dc".to_owned(), number: 0 };
    assert!(matches!(newer.told(&id, "t", 5), Error::NewerRecord { place: Offset(5), found: 2, .. }));
    let broken = feed(&[("v", "1"), ("op", "put"), ("origin", "dc"), ("channel", "tags")]).unwrap_err();
    let told = broken.told(&id, "causeway.l.tags.dc", 5).to_string();
    assert!(
        told.contains("records 5..6 in topic causeway.l.tags.dc") && told.contains("`seq` is missing"),
        "{told}"
    );
}
