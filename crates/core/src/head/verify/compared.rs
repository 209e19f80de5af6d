//! The comparison with one branch: which nodes differ, which are narrowed, and which rows are listed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{ByTable, Compared};
use crate::message::{TableChildren, TableRows, TableSum};
use crate::schema::{Direction, Schema, TableId};
use crate::verify::{
    FAN, LISTED_ROWS, Node, ROOT, Sums, TableVerification, child_of, compare_rows,
};

/// Up to how many rows a node is listed without being narrowed.
const LISTED_AT_ONCE: u64 = 8;
/// From how many differing children on, a node of few rows is listed as a whole.
const MOST_CHILDREN: usize = FAN / 2;
/// Of how many rows such a node may be.
const LISTED_AS_A_WHOLE: u64 = 512;
/// How many nodes one question asks about.
const NODES_ASKED: usize = 4_096;

impl Compared {
    /// How many rows a node has, at the office that has more, about.
    fn rows_in(&self, sums: &Sums, table: TableId, node: Node) -> u64 {
        let theirs = self.rows.get(&table).copied().unwrap_or_default();
        let ours = sums.of(table).map_or(0, |sums| sums.rows_in(node));
        ours.max(theirs >> crate::verify::bits_of(node))
    }

    /// A node differs: it is narrowed further, or its rows will be listed.
    fn differs(&mut self, sums: &Sums, table: TableId, node: Node) {
        let splits = sums.of(table).is_some_and(|sums| sums.can_split(node));
        let asked: usize = self.narrowing.values().map(BTreeSet::len).sum();
        let small = self.rows_in(sums, table, node) <= LISTED_AT_ONCE;
        let place = if small || !splits || asked >= NODES_ASKED {
            &mut self.suspects
        } else {
            &mut self.narrowing
        };
        place.entry(table).or_default().insert(node);
    }

    pub(super) fn take_sums(&mut self, schema: &Schema, sums: &Sums, theirs: &[TableSum]) {
        for table in &schema.tables {
            let Some(ours) = sums.of(table.id) else {
                continue;
            };
            let of_table = theirs.iter().find(|theirs| theirs.table == table.id);
            let compared = TableVerification {
                name: table.name.clone(),
                rows: ours.rows,
                unlike: of_table.is_none(),
                ..TableVerification::default()
            };
            self.tables.insert(table.id, compared);
            let Some(theirs) = of_table else {
                continue;
            };
            self.rows.insert(table.id, theirs.rows);
            if (theirs.rows, theirs.sum) != (ours.rows, ours.sum) {
                self.differs(sums, table.id, ROOT);
            }
        }
    }

    pub(super) fn take_narrower(&mut self, sums: &Sums, theirs: &[TableChildren]) {
        for (table, nodes) in std::mem::take(&mut self.narrowing) {
            let answers = theirs.iter().filter(|theirs| theirs.table == table);
            let answers: Vec<_> = answers.flat_map(|theirs| &theirs.nodes).collect();
            for node in nodes {
                let answer = answers.iter().find(|answer| answer.node == node);
                let ours = sums.of(table).and_then(|sums| sums.children(node));
                let (Some(answer), Some(ours)) = (answer, ours) else {
                    self.suspects.entry(table).or_default().insert(node);
                    continue;
                };
                let theirs: Vec<u64> = answer.sums().collect();
                let differing = (0..FAN).filter(|at| ours.get(*at) != theirs.get(*at));
                let differing: Vec<usize> = differing.collect();
                let few = self.rows_in(sums, table, node) <= LISTED_AS_A_WHOLE;
                if differing.len() >= MOST_CHILDREN && few {
                    self.suspects.entry(table).or_default().insert(node);
                    continue;
                }
                for at in differing {
                    self.differs(sums, table, child_of(node, at));
                }
            }
        }
    }

    /// Chooses what is listed in this round, as far as the budget of rows goes.
    pub(super) fn choose(&mut self, sums: &Sums, budget: &mut u64) {
        // What was chosen for a round that did not begin.
        for (table, nodes) in std::mem::take(&mut self.listing) {
            self.suspects.entry(table).or_default().extend(nodes);
        }
        let limit = u64::try_from(LISTED_ROWS).unwrap_or(u64::MAX);
        let mut left: ByTable<BTreeSet<Node>> = BTreeMap::new();
        for (table, nodes) in std::mem::take(&mut self.suspects) {
            for node in nodes {
                let rows = self.rows_in(sums, table, node).max(1);
                if rows > limit {
                    self.leave_out(table);
                } else if *budget == 0 {
                    left.entry(table).or_default().insert(node);
                } else {
                    *budget = budget.saturating_sub(rows);
                    self.listing.entry(table).or_default().insert(node);
                }
            }
        }
        self.suspects = left;
    }

    pub(super) fn leave_out(&mut self, table: TableId) {
        if let Some(compared) = self.tables.get_mut(&table) {
            compared.more = true;
        }
    }

    pub(super) fn take_rows(
        &mut self,
        schema: &Schema,
        ours: &[TableRows],
        theirs: &[TableRows],
        repair: bool,
    ) {
        let mut only_there = VecDeque::new();
        let mut listing = std::mem::take(&mut self.listing);
        for table in &schema.tables {
            let (Some(nodes), Some(result)) =
                (listing.remove(&table.id), self.tables.get_mut(&table.id))
            else {
                continue;
            };
            let of_table = |rows: &&TableRows| rows.table == table.id;
            let (Some(ours), Some(theirs)) =
                (ours.iter().find(of_table), theirs.iter().find(of_table))
            else {
                result.more = true;
                continue;
            };
            let before = result.only_branch;
            let mut keys = compare_rows(table, &nodes, ours, theirs, result);
            // What only a branch may write is not the head's to say.
            if repair && table.direction != Direction::Up {
                let gone = usize::try_from(result.only_branch - before).unwrap_or_default();
                let others = keys.split_off(gone.min(keys.len()));
                // Children go before their parents, and come after them.
                for key in keys.into_iter().rev() {
                    only_there.push_front((table.id, key));
                }
                self.to_fetch
                    .extend(others.into_iter().map(|key| (table.id, key)));
            }
        }
        only_there.append(&mut self.to_fetch);
        self.to_fetch = only_there;
    }
}
