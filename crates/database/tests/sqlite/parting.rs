//! A backlog that was marked off while it grew is taken in parts, none of which parts a transaction or a row.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use branchline_core::change::{Effect, Key, Row};
use branchline_core::port::{Database, Portion, Purpose};
use branchline_core::schema::ConflictRule;
use branchline_core::value::Value;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};

use super::office::Office;

const ACCOUNTS: i64 = 400;
const START: i64 = 1_000;

const BANK: &str = "
    CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
    CREATE TABLE entry (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
";

/// As `mark` does after a thousand writes.
const MARK: &str = "INSERT OR IGNORE INTO branchline_part
    SELECT number FROM branchline_capture ORDER BY number DESC LIMIT 1";

/// The next portions up to the end of a unit.
async fn unit(office: &mut Office, limit: usize) -> (Vec<Portion>, bool) {
    let mut portions = Vec::new();
    loop {
        let portion = office.ours.take(&office.schema, limit).await.unwrap();
        let (open, more) = (portion.open, portion.more);
        portions.push(portion);
        if !open {
            return (portions, more);
        }
    }
}

/// Writes so many rows in one transaction.
fn enter(office: &Office, from: i64, count: i64) {
    office.does(&format!(
        "WITH RECURSIVE n(id) AS (SELECT {from} UNION ALL SELECT id + 1 FROM n WHERE id < {})
         INSERT INTO entry SELECT id, 'entered' FROM n",
        from + count - 1
    ));
}

#[tokio::test]
async fn what_was_written_between_two_marks_is_a_unit() {
    let mut office = Office::new(BANK).await;
    for (from, count) in [(0, 1_500), (2_000, 1_200), (4_000, 700)] {
        enter(&office, from, count);
        office.ours.mark().await.unwrap();
        office.ours.mark().await.unwrap();
    }
    // Two writes of one row belong together, and so does what lies between them.
    enter(&office, 6_000, 1_100);
    office.ours.mark().await.unwrap();
    enter(&office, 8_000, 900);
    office.does("UPDATE entry SET text = 'again' WHERE id = 6000");
    assert_eq!(
        office.ours.backlog().await.unwrap().writes,
        1_500 + 1_200 + 700 + 1_100 + 900 + 1
    );

    let mut sizes = Vec::new();
    loop {
        office.ours.begin(Purpose::Take).await.unwrap();
        let (portions, more) = unit(&mut office, 1_000).await;
        office.ours.commit().await.unwrap();
        sizes.push(portions.iter().map(|it| it.changes.len()).sum::<usize>());
        if !more {
            break;
        }
    }
    // The 700 were not worth a mark of their own.
    assert_eq!(sizes, [1_500, 1_200, 700 + 1_100 + 900]);
    assert_eq!(office.ours.backlog().await.unwrap().writes, 0);
    assert_eq!(office.texts("SELECT number FROM branchline_part"), [""; 0]);
}

/// Parts that are larger than a portion, in a backlog that is larger than a plan; one is larger than a plan itself.
#[tokio::test]
async fn units_end_beyond_the_plan() {
    let mut office = Office::new(BANK).await;
    let limit = 5;
    let counts = [400, 300, 900, 250, 300, 350];
    for (part, count) in (0..).zip(counts) {
        enter(&office, part * 10_000, count);
        office.does(MARK);
    }
    let mut sizes = Vec::new();
    office.ours.begin(Purpose::Take).await.unwrap();
    loop {
        let (portions, more) = unit(&mut office, limit).await;
        sizes.push(portions.iter().map(|it| it.changes.len()).sum::<usize>());
        if !more {
            break;
        }
    }
    office.ours.commit().await.unwrap();
    assert_eq!(sizes.iter().sum::<usize>(), 2_500);
    assert_eq!(sizes, [400, 300, 900, 250, 300, 350]);
}

/// The first write behind a plan binds what is in it, too.
#[tokio::test]
async fn a_row_written_again_right_behind_the_plan_is_not_parted() {
    let mut office = Office::new(BANK).await;
    for id in 0..128 {
        enter(&office, id, 1);
        office.does(MARK);
    }
    office.does("UPDATE entry SET text = 'again' WHERE id = 50");
    office.does(MARK);
    enter(&office, 1_000, 1);
    let mut sizes = Vec::new();
    office.ours.begin(Purpose::Take).await.unwrap();
    loop {
        let (portions, more) = unit(&mut office, 1).await;
        sizes.push(portions.iter().map(|it| it.changes.len()).sum::<usize>());
        if !more {
            break;
        }
    }
    office.ours.commit().await.unwrap();
    let mut expected = vec![1; 50];
    expected.extend([78, 1]);
    assert_eq!(sizes, expected);
}

/// An application that hardly ever lets the file go neither waits for marks nor prevents them.
#[tokio::test]
async fn a_mark_waits_for_nobody() {
    let mut office = Office::new(BANK).await;
    for part in 0..3 {
        enter(&office, part * 10_000, 1_000);
        office.does("BEGIN IMMEDIATE; INSERT INTO entry VALUES (-1, 'not committed')");
        let called = std::time::Instant::now();
        office.ours.mark().await.unwrap();
        assert!(called.elapsed().as_secs() < 4, "it waited for the lock");
        office.does("ROLLBACK");
    }
    office.ours.begin(Purpose::Take).await.unwrap();
    for more in [true, true, false] {
        let (portions, left) = unit(&mut office, 500).await;
        let changes = portions.iter().map(|portion| portion.changes.len());
        assert_eq!((changes.sum::<usize>(), left), (1_000, more));
    }
    office.ours.commit().await.unwrap();
    assert_eq!(office.texts("SELECT number FROM branchline_part"), [""; 0]);
}

#[tokio::test]
async fn what_is_gathered_and_not_taken_goes_back() {
    let mut office = Office::new(BANK).await;
    enter(&office, 0, 30);
    office.does(MARK);
    enter(&office, 100, 30);
    office.ours.begin(Purpose::Take).await.unwrap();
    let portion = office.ours.take(&office.schema, 10).await.unwrap();
    assert!(portion.open && portion.changes.len() == 10);
    office.ours.commit().await.unwrap();
    assert_eq!(office.ours.backlog().await.unwrap().writes, 50);
    office.ours.begin(Purpose::Take).await.unwrap();
    let (_, more) = unit(&mut office, 10).await;
    office.ours.rollback().await.unwrap();
    assert!(!more, "what went back stands behind the mark");
    assert_eq!(office.ours.backlog().await.unwrap().writes, 50);
    assert_eq!(office.take().await.len(), 50);
}

/// A copy of the accounts that gets what is taken, as the other offices do.
#[derive(Default)]
struct Replica(BTreeMap<Key, Row>);

impl Replica {
    fn follow(&mut self, office: &Office, portions: Vec<Portion>) {
        for taken in portions.into_iter().flat_map(|portion| portion.changes) {
            let table = office.schema.table(taken.table).unwrap();
            let key = taken.effect.key(table);
            assert_eq!(taken.before.as_ref(), self.0.get(&key), "before {key:?}");
            match taken.effect {
                Effect::Put(row) => self.0.insert(key, row),
                Effect::Delete(_) => self.0.remove(&key),
            };
        }
    }

    fn sum(&self) -> i64 {
        let amount = |row: &Row| match row.0[1] {
            Value::Int(amount) => amount,
            _ => panic!("{row:?}"),
        };
        self.0.values().map(amount).sum()
    }
}

/// Money moves between accounts, an account's number changes, the file is rewritten: after every unit there is as much
/// money as before, each row before a change is the one that was taken last, and in the end nothing is missing.
#[tokio::test]
async fn no_unit_parts_a_transaction() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for seed in (0..20).chain([u64::from(now.subsec_nanos())]) {
        println!("seed {seed}");
        parted(seed).await;
    }
}

async fn parted(seed: u64) {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut upto = |below: i64| random.random_range(0..below);
    let mut office = Office::new(BANK).await;
    for table in &mut office.schema.tables {
        table.conflict = ConflictRule::Merge;
    }
    office.ours.install(&office.schema).await.unwrap();
    office.does("PRAGMA synchronous = OFF");
    let mut replica = Replica::default();
    let rows: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id}, {START})")).collect();
    office.does(&format!("INSERT INTO account VALUES {}", rows.join(", ")));
    let mut units = 0;
    // Where the accounts that are used lie: they wander, and so most rows' writes lie near each other.
    let mut window = 0;
    let limit = 1 + usize::try_from(upto(12)).unwrap();
    for round in 0..12 {
        for _ in 0..upto(60) {
            window = (window + upto(4)) % ACCOUNTS;
            // Some rows that wait are written again.
            let from = match upto(30) {
                0 => (window + ACCOUNTS - upto(60)) % ACCOUNTS,
                _ => window,
            };
            let to = (from + 1 + upto(4)) % ACCOUNTS;
            let money = upto(50);
            let moved = match upto(12) {
                0 => format!(
                    "UPDATE account SET id = id + 100000 WHERE id = {from};
                     UPDATE account SET id = id - 100000 WHERE id = 100000 + {from};"
                ),
                1 => format!(
                    "INSERT INTO account SELECT 200000 + {to}, amount FROM account WHERE id = {from};
                     DELETE FROM account WHERE id = {from};
                     INSERT INTO account SELECT {from}, amount FROM account WHERE id = 200000 + {to};
                     DELETE FROM account WHERE id = 200000 + {to};"
                ),
                _ => String::new(),
            };
            office.does(&format!(
                "BEGIN; {moved}
                 UPDATE account SET amount = amount - {money} WHERE id = {from};
                 UPDATE account SET amount = amount + {money} WHERE id = {to}; COMMIT"
            ));
            if upto(3) == 0 {
                office.does(MARK);
            }
        }
        if upto(4) == 0 {
            office.does("VACUUM");
        }
        let last = round == 11;
        let mut transactions = if last { i64::MAX } else { upto(5) };
        while transactions > 0 {
            transactions -= 1;
            office.ours.begin(Purpose::Take).await.unwrap();
            let mut more = true;
            let before = replica.0.clone();
            for _ in 0..=upto(4) {
                let (portions, left) = unit(&mut office, limit).await;
                replica.follow(&office, portions);
                assert_eq!(replica.sum(), ACCOUNTS * START, "seed {seed}");
                units += 1;
                more = left;
                if !more {
                    break;
                }
            }
            if !last && upto(4) == 0 {
                office.ours.rollback().await.unwrap();
                replica.0 = before;
            } else {
                office.ours.commit().await.unwrap();
            }
            if !more {
                break;
            }
        }
    }
    assert!(units > 12, "seed {seed}: only {units} units");
    let end: Vec<String> = office.texts("SELECT id || ' ' || amount FROM account ORDER BY id");
    let there: Vec<String> = replica
        .0
        .values()
        .map(|row| match (&row.0[0], &row.0[1]) {
            (Value::Int(id), Value::Int(amount)) => format!("{id} {amount}"),
            _ => panic!("{row:?}"),
        })
        .collect();
    assert_eq!(there, end, "seed {seed}");
}
