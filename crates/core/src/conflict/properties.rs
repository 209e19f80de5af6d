#![allow(clippy::unwrap_used, clippy::panic)]
//! What must hold for any two branches that change one row at the same time, in whatever order and portions their
//! changes reach the head. The head here is the rules alone, with the versions that they need; the machines with their
//! books, links and crashes are the simulator's.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::table;
use super::*;
use crate::schema::Counter;
use crate::value::Value;

/// The row's columns besides the key: name, phone, quantity.
type Content = [Option<i64>; 3];
/// When the version that all start from was made.
const START: i64 = 1_000;

fn row(content: &Content) -> Row {
    let text = |value: Option<i64>| value.map_or(Value::Null, |v| Value::Text(v.to_string()));
    let number = content[2].map_or(Value::Null, Value::Int);
    Row(vec![
        Value::Int(1),
        text(content[0]),
        text(content[1]),
        number,
    ])
}

fn quantity(row: Option<&Row>) -> i64 {
    match row.map(|row| &row.0[3]) {
        Some(Value::Int(quantity)) => *quantity,
        other => panic!("no quantity: {other:?}"),
    }
}

fn office(name: &str) -> OfficeName {
    OfficeName::new(name).unwrap()
}

/// A branch's change as it reaches the head: one batch.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    before: Option<Row>,
    theirs: Option<Row>,
    at: i64,
}

/// The changes of a branch that hears nothing meanwhile: each is made on the one before.
fn batches(start: Option<&Row>, rows: Vec<(i64, Option<Row>)>) -> Vec<Change> {
    let mut before = start.cloned();
    let numbered = (1..).zip(rows).map(|(number, (at, theirs))| Change {
        number,
        before: std::mem::replace(&mut before, theirs.clone()),
        theirs,
        at,
    });
    numbered.collect()
}

/// The head's side of one row.
struct Judge {
    table: Table,
    row: Option<Row>,
    at: i64,
    by: OfficeName,
    /// The batch that brought the version just as it is; none where the head made it.
    batch: Option<u64>,
    /// A change of this branch is held: what follows is held with it.
    held: Vec<OfficeName>,
    /// Batches that are here, so that one that comes twice is dropped.
    cursors: BTreeMap<OfficeName, u64>,
}

impl Judge {
    fn new(table: &Table, start: Option<Row>) -> Self {
        Self {
            table: table.clone(),
            row: start,
            at: START,
            by: office("HO"),
            batch: None,
            held: Vec::new(),
            cursors: BTreeMap::new(),
        }
    }

    fn hear(&mut self, origin: &OfficeName, change: &Change) -> Option<Decision> {
        let cursor = self.cursors.entry(origin.clone()).or_default();
        if change.number <= *cursor {
            return None;
        }
        *cursor = change.number;
        if self.held.contains(origin) {
            return None;
        }
        let untouched = self.by == office("HO");
        let own = self.by == *origin && self.batch == Some(change.number - 1);
        let facts = Facts {
            table: &self.table,
            origin,
            on_present_version: own || (untouched && change.number == 1),
            inserted: change.before.is_none() && change.number == 1,
            before: change.before.as_ref(),
            theirs: change.theirs.as_ref(),
            at: Micros(change.at),
            ours: self.row.as_ref(),
            present: Some((Micros(self.at), &self.by)),
        };
        let decision = decide(&facts);
        match &decision {
            Decision::Accept | Decision::Win(_) => {
                self.put(change.theirs.clone(), change, origin, true)
            }
            Decision::Merge(row, _) => self.put(Some(row.clone()), change, origin, false),
            Decision::Hold(_) => self.held.push(origin.clone()),
            Decision::Lose(_) | Decision::Same => {}
        }
        Some(decision)
    }

    fn put(&mut self, row: Option<Row>, change: &Change, origin: &OfficeName, as_sent: bool) {
        self.row = row;
        self.at = change.at.max(self.at + 1);
        self.by = origin.clone();
        self.batch = as_sent.then_some(change.number);
    }
}

/// A change, the head's row when it came, and what was decided.
type Decided = (Change, Option<Row>, Decision);

/// Plays two branches' changes into each other: `true` takes the first's next. Some come twice.
fn deliver(
    judge: &mut Judge,
    first: &[Change],
    second: &[Change],
    order: &[bool],
    again: &[bool],
) -> Vec<Decided> {
    let (b1, b2) = (office("b1"), office("b2"));
    let (mut one, mut two) = (first.iter(), second.iter());
    let mut decided = Vec::new();
    let mut turns = order.iter().chain(std::iter::repeat(&true));
    let mut repeats = again.iter().chain(std::iter::repeat(&false));
    loop {
        let from_first = *turns.next().unwrap_or(&true);
        let preferred = if from_first { one.next() } else { two.next() };
        let next = preferred.map(|change| (change, from_first)).or_else(|| {
            let other = if from_first { two.next() } else { one.next() };
            other.map(|change| (change, !from_first))
        });
        let Some((change, is_first)) = next else {
            return decided;
        };
        let origin = if is_first { &b1 } else { &b2 };
        let ours = judge.row.clone();
        let decision = judge.hear(origin, change);
        decided.extend(decision.map(|decision| (change.clone(), ours, decision)));
        if *repeats.next().unwrap_or(&false) {
            assert_eq!(judge.hear(origin, change), None, "it comes twice");
        }
    }
}

fn orders() -> impl Strategy<Value = Vec<bool>> {
    prop::collection::vec(any::<bool>(), 0..10)
}

fn start() -> Row {
    row(&[Some(0), Some(0), Some(100)])
}

fn with_rules(conflict: ConflictRule, insert: InsertRule, counters: bool) -> Table {
    let mut table = Table {
        conflict,
        insert,
        ..table()
    };
    if counters {
        table.counters.push(Counter {
            column: 3,
            floor: Some(0),
        });
    }
    table
}

fn content() -> impl Strategy<Value = Option<Row>> {
    let value = || prop::option::weighted(0.9, 0..4_i64);
    let whole = [value().boxed(), value().boxed(), value().boxed()];
    prop::option::weighted(0.8, whole.prop_map(|content| row(&content)))
}

fn rules() -> impl Strategy<Value = Table> {
    let conflict = prop::sample::select(vec![
        ConflictRule::Newest,
        ConflictRule::Head,
        ConflictRule::Branch,
        ConflictRule::Merge,
        ConflictRule::Hold,
    ]);
    let insert = prop::sample::select(vec![InsertRule::Hold, InsertRule::Newest]);
    (conflict, insert, any::<bool>())
        .prop_map(|(conflict, insert, counters)| with_rules(conflict, insert, counters))
}

proptest! {
    /// Under `newest`, each later change stands over the earlier, whoever is heard first.
    #[test]
    fn under_newest_the_last_change_stands_whatever_the_order(
        pauses in prop::collection::vec((any::<bool>(), 1..50_i64), 1..8),
        deleted in any::<bool>(),
        (order, again) in (orders(), orders()),
    ) {
        let table = with_rules(ConflictRule::Newest, InsertRule::Hold, false);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let (mut at, mut last) = (START, None);
        let count = pauses.len();
        for (number, (by_first, pause)) in (1..).zip(pauses) {
            at += pause;
            // Each content is written once: the same content twice is one version.
            let gone = deleted && number == count;
            let content = (!gone).then(|| row(&[Some(i64::try_from(number).unwrap()), None, None]));
            last.clone_from(&content);
            if by_first { first.push((at, content)) } else { second.push((at, content)) }
        }
        let mut judge = Judge::new(&table, Some(start()));
        let (first, second) = (batches(Some(&start()), first), batches(Some(&start()), second));
        deliver(&mut judge, &first, &second, &order, &again);
        prop_assert_eq!(judge.row, last);
    }

    /// Every delta counts once, in whatever order, portions and repetitions they come.
    #[test]
    fn a_counters_sum_is_exact_whatever_the_order(
        ones in prop::collection::vec((-50..50_i64, 0..3_i64), 0..6),
        twos in prop::collection::vec((-50..50_i64, 0..3_i64), 0..6),
        conflict in prop::sample::select(vec![
            ConflictRule::Newest, ConflictRule::Head, ConflictRule::Branch, ConflictRule::Merge,
        ]),
        (order, again) in (orders(), orders()),
    ) {
        let table = with_rules(conflict, InsertRule::Hold, true);
        let sold = |deltas: &[(i64, i64)], pace: i64| {
            let (mut left, mut at) = (100, START);
            let rows = deltas.iter().map(|(delta, name)| {
                left += delta;
                at += pace;
                (at, Some(row(&[Some(*name), Some(0), Some(left)])))
            });
            batches(Some(&start()), rows.collect())
        };
        let (first, second) = (sold(&ones, 3), sold(&twos, 5));
        let mut judge = Judge::new(&table, Some(start()));
        let decided = deliver(&mut judge, &first, &second, &order, &again);
        let sum = |deltas: &[(i64, i64)]| deltas.iter().map(|(delta, _)| delta).sum::<i64>();
        let exact = 100 + sum(&ones) + sum(&twos);
        prop_assert_eq!(quantity(judge.row.as_ref()), exact);
        // Overselling is listed by the change that made it show.
        if let Some((_, _, Decision::Merge(row, reason))) = decided.last() {
            let below = *reason == Some(Reason::BelowFloor);
            prop_assert_eq!(below, quantity(Some(row)) < 0);
        }
    }

    /// Two merges give the same row in either order: each column as the only one who changed it left it, a contested
    /// one as the later left it.
    #[test]
    fn merges_commute(
        one in [prop::option::of(0..4_i64), prop::option::of(0..4_i64), prop::option::of(0..4_i64)],
        two in [prop::option::of(0..4_i64), prop::option::of(0..4_i64), prop::option::of(0..4_i64)],
        later in any::<bool>(),
        first_comes_first in any::<bool>(),
    ) {
        let table = with_rules(ConflictRule::Merge, InsertRule::Hold, false);
        let base = [Some(0), Some(0), Some(0)];
        let over = |changes: &Content| -> Content {
            std::array::from_fn(|at| changes[at].or(base[at]))
        };
        let (mine, yours) = (over(&one), over(&two));
        let (at_one, at_two) = if later { (START + 2, START + 1) } else { (START + 1, START + 2) };
        let changes = |content: &Content, at| batches(Some(&row(&base)), vec![(at, Some(row(content)))]);
        let mut judge = Judge::new(&table, Some(row(&base)));
        deliver(&mut judge, &changes(&mine, at_one), &changes(&yours, at_two), &[first_comes_first], &[]);
        let expected: Content = std::array::from_fn(|at| {
            match (mine[at] != base[at], yours[at] != base[at]) {
                (true, true) if later => mine[at],
                (true, true) | (false, true) => yours[at],
                (true, false) | (false, false) => mine[at],
            }
        });
        prop_assert_eq!(judge.row, Some(row(&expected)));
    }

    /// Under every rule: nothing is lost without being listed. What is not listed is the same on both sides, or was
    /// made and taken back; and what is put together lists each column that both sides changed.
    #[test]
    fn nothing_vanishes_without_being_listed(
        table in rules(),
        start in content(),
        ones in prop::collection::vec((1..20_i64, content()), 0..4),
        twos in prop::collection::vec((1..20_i64, content()), 0..4),
        (order, again) in (orders(), orders()),
    ) {
        let timed = |rows: Vec<(i64, Option<Row>)>| {
            let mut at = START;
            let rows = rows.into_iter().map(|(pause, content)| {
                at += pause;
                (at, content)
            });
            batches(start.as_ref(), rows.collect())
        };
        let (first, second) = (timed(ones), timed(twos));
        let mut judge = Judge::new(&table, start.clone());
        let plain = if table.counters.is_empty() { 1..4 } else { 1..3 };
        for (change, ours, decision) in deliver(&mut judge, &first, &second, &order, &again) {
            let taken_back = change.before.is_none() && change.theirs.is_none();
            match decision {
                Decision::Same => prop_assert!(taken_back || ours == change.theirs),
                Decision::Merge(row, reason) => {
                    let (ours, theirs) = (ours.unwrap(), change.theirs.unwrap());
                    let before = change.before.unwrap();
                    for at in plain.clone() {
                        let (ours, theirs, before) = (&ours.0[at], &theirs.0[at], &before.0[at]);
                        prop_assert!(row.0[at] == *ours || row.0[at] == *theirs);
                        let contested = ours != theirs && ours != before && theirs != before;
                        prop_assert!(!contested || reason.is_some());
                        let untouched = if theirs == before { ours } else { theirs };
                        prop_assert!(reason.is_some() || row.0[at] == *untouched || theirs == ours);
                    }
                }
                _ => {}
            }
        }
        let may_hold = table.conflict == ConflictRule::Hold
            || table.insert == InsertRule::Hold
            || !table.counters.is_empty();
        prop_assert!(judge.held.is_empty() || may_hold);
    }
}
