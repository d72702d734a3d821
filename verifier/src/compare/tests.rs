//! Two made-up sites.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A site in memory; each read of a key named in `restless` changes it.
#[derive(Default)]
struct Fake {
    keys: Mutex<BTreeMap<Bytes, State>>,
    restless: Vec<&'static str>,
    /// Names that the log gives and that are none here.
    outside: Vec<&'static str>,
    reads: AtomicU32,
}

const SPACE: Space = Space::Whole;

fn state(digest: u128) -> State {
    State { what: "string", digest, expire_at: None }
}

impl Fake {
    fn with(keys: &[(&'static str, u128)]) -> Fake {
        let keys = keys.iter().map(|(name, digest)| (Bytes::from(*name), state(*digest))).collect();
        Fake { keys: Mutex::new(keys), ..Fake::default() }
    }
}

impl Reader for Fake {
    type Hint = ();

    fn place(&self, _: &Space, name: &[u8]) -> Place {
        match self.outside.iter().any(|one| one.as_bytes() == name) {
            true => Place::Outside,
            false => Place::Key,
        }
    }

    async fn spaces(&self) -> Result<Vec<(Space, u64)>> {
        Ok(vec![(SPACE, 1)])
    }

    /// Two keys a page, each page's last one again on the next one.
    async fn page(&self, _: &Space, cursor: u64) -> Result<Page> {
        let keys = self.keys.lock().unwrap();
        let from = (cursor as usize).saturating_sub(1);
        let names: Vec<Bytes> = keys.keys().skip(from).take(3).cloned().collect();
        let next = (names.len() == 3).then_some(cursor + 2);
        Ok(Page { scanned: names.len() as u64, names, next })
    }

    async fn look(&self, _: &Space, names: &[Bytes]) -> Result<Vec<()>> {
        Ok(vec![(); names.len()])
    }

    async fn read(&self, _: &Space, names: &[Bytes], _: &[()]) -> Result<Vec<Option<State>>> {
        let mut keys = self.keys.lock().unwrap();
        let read = self.reads.fetch_add(1, Ordering::Relaxed);
        for name in &self.restless {
            keys.insert(Bytes::from(*name), state(1000 + u128::from(read)));
        }
        Ok(names.iter().map(|name| keys.get(name).copied()).collect())
    }

    async fn absent(&self, _: &Space, names: &[Bytes]) -> Result<Vec<usize>> {
        let keys = self.keys.lock().unwrap();
        Ok((0..names.len()).filter(|&at| !keys.contains_key(&names[at])).collect())
    }
}

struct Still;

impl Progress for Still {
    fn begin(&self, _: &str, _: u64) {}
    fn expect(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
}

/// Brings the key `late` over while it waits the first time.
struct Brings<'a>(&'a Fake, Rest);

impl Traffic for Brings<'_> {
    async fn rest(&self) -> Rest {
        self.0.keys.lock().unwrap().insert(Bytes::from("late"), state(7));
        self.1
    }
}

async fn run(a: &Fake, b: &Fake, rest: Rest, list_max: usize) -> Outcome {
    let settings = Settings { judge: Judge { expiry_tolerance_ms: 0 }, list_max, rounds_max: 4 };
    compare([a, b], &Brings(b, rest), &Still, settings).await.unwrap()
}

fn kinds(list: &[Difference]) -> Vec<(&str, Option<DifferenceKind>)> {
    list.iter().map(|d| (std::str::from_utf8(&d.name).unwrap(), d.kind)).collect()
}

#[tokio::test]
async fn each_key_is_counted_once_and_what_was_under_way_is_no_difference() {
    let a = Fake::with(&[("a", 1), ("b", 2), ("c", 3), ("d", 4), ("late", 7), ("x", 1)]);
    let b = Fake::with(&[("a", 1), ("b", 2), ("c", 9), ("d", 4), ("y", 1), ("z", 1)]);
    let outcome = run(&a, &b, Rest::Applied, 10).await;
    assert_eq!((outcome.compared, outcome.different, outcome.undecided), (8, 4, 0));
    let expected = [
        ("c", Some(DifferenceKind::Content)),
        ("x", Some(DifferenceKind::Extra)),
        ("y", Some(DifferenceKind::Missing)),
        ("z", Some(DifferenceKind::Missing)),
    ];
    assert_eq!(kinds(&outcome.differences), expected);
}

#[tokio::test]
async fn a_key_that_never_rests_is_undecided() {
    let mut a = Fake::with(&[("a", 1), ("hot", 2), ("late", 7)]);
    a.restless = vec!["hot"];
    let b = Fake::with(&[("a", 1), ("hot", 2)]);
    let outcome = run(&a, &b, Rest::Unknown, 10).await;
    assert_eq!((outcome.compared, outcome.different, outcome.undecided), (3, 0, 1));
    assert_eq!(kinds(&outcome.unsettled), [("hot", None)]);
}

#[tokio::test]
async fn nothing_is_called_different_while_changes_are_still_being_applied() {
    let (a, b) = (Fake::with(&[("a", 1)]), Fake::with(&[("a", 2), ("late", 7)]));
    let outcome = run(&a, &b, Rest::Moving, 10).await;
    assert_eq!((outcome.different, outcome.undecided), (0, 2));
}

#[tokio::test]
async fn the_list_is_capped_and_the_count_is_not() {
    let a = Fake::with(&[("a", 1), ("b", 2), ("c", 3), ("late", 7)]);
    let outcome = run(&a, &Fake::default(), Rest::Applied, 2).await;
    assert_eq!((outcome.different, outcome.differences.len()), (3, 2));
}

/// Names what it holds, one at a time.
struct Names(Vec<Name>);

impl Naming for Names {
    async fn next(&mut self) -> Result<Option<Vec<Name>>> {
        Ok(self.0.pop().map(|name| vec![name.clone(), name]))
    }
}

async fn of_named(a: &Fake, b: &Fake, names: &[&'static str], whole: bool) -> Outcome {
    let settings = Settings { judge: Judge { expiry_tolerance_ms: 0 }, list_max: 10, rounds_max: 4 };
    let key = |name: &&'static str| Name::Key(SPACE, Bytes::from(*name));
    let mut names = Names(names.iter().map(key).chain(whole.then_some(Name::Space(SPACE))).collect());
    compare_named([a, b], &mut names, &Brings(b, Rest::Applied), &Still, settings).await.unwrap()
}

#[tokio::test]
async fn of_what_is_named_each_key_is_compared_once_and_nothing_else() {
    let mut a = Fake::with(&[("a", 1), ("b", 2), ("c", 3), ("late", 7), ("other", 1)]);
    a.outside = vec!["other"];
    let b = Fake::with(&[("a", 1), ("b", 9), ("y", 1), ("other", 2), ("z", 1)]);
    let named = ["a", "b", "c", "a", "gone at both", "late", "y", "other"];
    let outcome = of_named(&a, &b, &named, false).await;
    assert_eq!((outcome.compared, outcome.different, outcome.undecided), (6, 3, 0));
    let expected = [
        ("b", Some(DifferenceKind::Content)),
        ("c", Some(DifferenceKind::Extra)),
        ("y", Some(DifferenceKind::Missing)),
    ];
    let mut found = kinds(&outcome.differences);
    found.sort_unstable();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn where_something_has_no_name_all_is_compared() {
    let a = Fake::with(&[("a", 1), ("b", 2), ("late", 7)]);
    let b = Fake::with(&[("a", 1), ("b", 9), ("z", 1)]);
    let outcome = of_named(&a, &b, &["b"], true).await;
    assert_eq!((outcome.compared, outcome.different), (4, 2));
}
