use super::*;
use crate::schema::Column;

fn number(at: u16, how: Comparison, number: i64) -> Condition {
    Condition::Number(at, how, number)
}

fn table(checks: Vec<Check>) -> Table {
    let column = |(name, kind): (&str, Type)| Column {
        name: name.into(),
        kind,
        nullable: true,
        default: None,
        generated_key: false,
        id: 0,
    };
    let columns = [
        ("id", Type::Int64),
        ("price", Type::Decimal { limits: None }),
        ("status", Type::Text { max: None }),
    ];
    Table {
        id: 1,
        name: "t".into(),
        columns: columns.into_iter().map(column).collect(),
        key: vec![0],
        unique: vec![],
        foreign_keys: vec![],
        direction: Default::default(),
        conflict: Default::default(),
        insert: Default::default(),
        counters: vec![],
        before: false,
        columns_ever: 0,
        indexes: vec![vec![1]],
        checks: Checks(checks),
    }
}

fn check(condition: Condition) -> Check {
    Check {
        name: None,
        condition,
    }
}

fn samples() -> Vec<Check> {
    use Comparison::{AtLeast, Equal, Greater, Less};
    let all = Condition::all(vec![
        number(0, AtLeast, i64::MIN),
        Condition::any(vec![
            number(0, Less, i64::MAX),
            Condition::Columns(0, Equal, 0),
        ]),
        Condition::Numbers(0, false, vec![-1, 0, 1]),
        Condition::Texts(2, true, vec!["it's".into(), String::new(), "größer".into()]),
        Condition::Null(1, false),
    ]);
    vec![
        Check {
            name: Some("all of it".into()),
            condition: all,
        },
        check(number(0, Greater, 0)),
    ]
}

#[test]
fn checks_come_back_as_they_were_sent() {
    let sent = table(samples());
    let bytes = minicbor::to_vec(&sent).unwrap();
    assert_eq!(minicbor::decode::<Table>(&bytes).unwrap(), sent);
}

#[test]
fn a_table_without_checks_is_written_as_before_and_one_from_before_has_none() {
    let sent = table(Vec::new());
    let bytes = minicbor::to_vec(&sent).unwrap();
    assert_eq!(Decoder::new(&bytes).array().unwrap(), Some(13));
    assert_eq!(minicbor::decode::<Table>(&bytes).unwrap(), sent);
}

/// Thirteen fields are all that a program from before reads of a table; it skips what follows.
#[test]
fn a_reader_of_before_passes_over_checks() {
    let bytes = minicbor::to_vec(table(samples())).unwrap();
    let mut decoder = Decoder::new(&bytes);
    assert_eq!(decoder.array().unwrap(), Some(14));
    for _ in 0..14 {
        decoder.skip().unwrap();
    }
    assert_eq!(decoder.position(), bytes.len());
}

#[test]
fn what_is_unknown_or_too_large_is_left_out_and_the_rest_taken() {
    let known = check(number(0, Comparison::Less, 5));
    let mut deep = number(0, Comparison::Less, 5);
    for _ in 0..DEPTH {
        deep = Condition::All(vec![deep]);
    }
    let long = Condition::Numbers(0, true, (0..600).collect());
    let wide = Condition::Texts(2, true, vec!["x".repeat(TEXT + 1)]);
    for large in [deep, long, wide] {
        assert!(!large.is_bounded(), "{large:?}");
        let sent = Checks(vec![check(large), known.clone()]);
        let bytes = minicbor::to_vec(&sent).unwrap();
        let read: Checks = minicbor::decode(&bytes).unwrap();
        assert_eq!(read.0, std::slice::from_ref(&known));
    }
    // A word of a later version, one with a field more, a comparison that there is not, another length.
    type Strange = fn(&mut Encoder<Vec<u8>>);
    let strange: [Strange; 4] = [
        |to| drop(to.array(2).unwrap().u8(99).unwrap().array(0)),
        |to| drop(to.array(3).unwrap().u8(6).unwrap().array(0).unwrap().null()),
        |to| {
            let to = to.array(2).unwrap().u8(2).unwrap().array(3).unwrap();
            let to = to.u8(0).unwrap().array(2).unwrap().u8(77).unwrap();
            drop(to.array(0).unwrap().u8(1));
        },
        |to| {
            let to = to.array(2).unwrap().u8(4).unwrap().array(3).unwrap();
            drop(
                to.u8(0)
                    .unwrap()
                    .bool(true)
                    .unwrap()
                    .begin_array()
                    .unwrap()
                    .end(),
            );
        },
    ];
    for write in strange {
        let mut to = Encoder::new(Vec::new());
        to.array(2).unwrap().array(2).unwrap().null().unwrap();
        write(&mut to);
        to.encode(&known).unwrap();
        let read: Checks = minicbor::decode(to.writer()).unwrap();
        assert_eq!(read.0, std::slice::from_ref(&known));
    }
}

#[test]
fn a_list_that_ends_early_or_nests_without_end_is_refused_without_a_panic() {
    let mut bytes = vec![0x9a, 0xff, 0xff, 0xff, 0xff];
    assert!(minicbor::decode::<Checks>(&bytes).is_err());
    bytes = vec![0x81, 0x82, 0xf6];
    for _ in 0..100_000 {
        bytes.extend([0x82, 0x00, 0x81, 0x81]);
    }
    assert!(minicbor::decode::<Checks>(&bytes).is_err());
}

#[test]
fn no_more_than_a_hundred_checks_are_taken() {
    let one = check(Condition::Null(0, false));
    let sent = Checks(vec![one; 150]);
    let bytes = minicbor::to_vec(&sent).unwrap();
    assert_eq!(minicbor::decode::<Checks>(&bytes).unwrap().0.len(), CHECKS);
}

#[test]
fn a_check_fits_where_its_columns_are_there_and_compare_so() {
    let of = table(Vec::new());
    for check in samples() {
        assert!(check.fits(&of), "{check:?}");
    }
    let strange = [
        number(7, Comparison::Less, 5),
        number(1, Comparison::Less, 5),
        number(2, Comparison::Less, 5),
        Condition::Columns(0, Comparison::Less, 1),
        Condition::Numbers(0, true, vec![]),
        Condition::Texts(0, true, vec!["x".into()]),
        Condition::Texts(2, true, vec!["a\0b".into()]),
        Condition::Null(9, true),
        Condition::All(vec![]),
        Condition::Any(vec![Condition::Null(9, true)]),
    ];
    for condition in strange {
        assert!(!check(condition.clone()).fits(&of), "{condition:?}");
    }
}

#[test]
fn not_is_drawn_into_the_comparisons() {
    use Comparison::{AtLeast, AtMost, Greater, Less};
    let inside = Condition::all(vec![number(0, AtLeast, 1), number(0, AtMost, 9)]);
    let outside = Condition::any(vec![number(0, Less, 1), number(0, Greater, 9)]);
    assert_eq!(inside.clone().negated(), outside);
    assert_eq!(outside.negated(), inside);
    let list = Condition::Texts(2, true, vec!["a".into()]);
    assert_eq!(list.clone().negated().negated(), list);
}
