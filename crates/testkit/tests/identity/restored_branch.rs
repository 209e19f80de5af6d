//! A branch's database becomes an older image, alone or with the head's.

use branchline_core::output::Notice;
use branchline_core::value::Value;
use branchline_testkit::conformance::Op;

use crate::company::*;

fn shop() -> Company {
    let mut company = Company::new(2);
    let mut ops: Vec<Op> = (1..=9).map(|id| insert(id, "old")).collect();
    ops.push(Op::Insert(STOCK, amount(1, 100)));
    company.write_head(&ops);
    company.write(0, &[insert(10, "b1's")]);
    company.settle();
    company.assert_even();
    company
}

fn go_on(company: &mut Company) {
    company.write_head(&[update(1, "head's"), insert(20, "head's")]);
    company.write(
        0,
        &[
            insert(21, "b1's"),
            update(2, "b1's"),
            Op::Update(STOCK, key(1), amount(1, 95)),
        ],
    );
    company.settle();
    company.write(0, &[update(21, "b1's, again"), delete(3)]);
    company.write(1, &[insert(22, "b2's")]);
    company.settle();
    company.assert_even();
}

fn assert_all_is_there(company: &mut Company) {
    let names = company.head_names();
    let expected = [
        (1, "head's"),
        (2, "b1's"),
        (20, "head's"),
        (21, "b1's, again"),
        (22, "b2's"),
    ];
    for (id, name) in expected {
        assert_eq!(names[&id], name, "{id}");
    }
    assert!(!names.contains_key(&3));
    assert_eq!(company.head_amount(1), Value::Int(95));
}

#[test]
fn a_restored_branch_gets_back_what_it_had_sent() {
    let mut company = shop();
    let image = company.branches[0].disk.image();
    go_on(&mut company);
    company.cut(0);
    company.restore_branch(0, &image);
    // Its numbers are used a second time before it is heard.
    company.write(0, &[insert(31, "b1's, after")]);
    company.settle();
    company.connect(0);
    company.settle();
    company.assert_even();
    assert!(company.was_noticed(0, |notice| matches!(notice, Notice::Reincarnated)));
    assert_all_is_there(&mut company);
    assert_eq!(company.head_names()[&31], "b1's, after");
    company.write(0, &[insert(32, "b1's, later")]);
    company.settle();
    company.assert_even();
}

#[test]
fn head_and_branch_restored_to_the_same_day_lose_only_what_no_other_branch_has() {
    let mut company = shop();
    let (of_head, of_branch) = (company.head_image(), company.branches[0].disk.image());
    go_on(&mut company);
    company.cut(0);
    company.cut(1);
    company.restore_head(&of_head);
    company.restore_branch(0, &of_branch);
    company.write(0, &[insert(31, "b1's, after")]);
    company.connect(0);
    company.connect(1);
    company.settle();
    company.assert_even();
    assert_all_is_there(&mut company);
    assert_eq!(company.head_names()[&31], "b1's, after");
}

/// The restored head hears the restored branch first and goes on with it; the other branch comes later.
#[test]
fn head_and_branch_restored_go_on_and_take_back_the_rest() {
    let mut company = shop();
    let (of_head, of_branch) = (company.head_image(), company.branches[0].disk.image());
    go_on(&mut company);
    company.cut(0);
    company.cut(1);
    company.restore_head(&of_head);
    company.restore_branch(0, &of_branch);
    company.write(0, &[insert(31, "b1's, after"), update(7, "b1's, after")]);
    company.connect(0);
    company.settle();
    assert_eq!(company.head_names()[&31], "b1's, after");
    company.connect(1);
    company.settle();
    company.assert_even();
    assert_all_is_there(&mut company);
    assert_eq!(company.head_names()[&7], "b1's, after");
}
