//! Comparing offices: sums over all rows at one place of the log, narrowed where they differ, exchanged instead of the rows.
//!
//! The names of a table's rows are hashes, so that their first bits spread the rows evenly over a tree: [`ROOT`] is
//! the whole table, every [`Node`] has 16 children, and a leaf is all rows whose names begin with the same 16 bits.
//! Each office adds its rows' hashes up in the leaves, once, at the cut; sums of upper nodes follow from them, and do
//! not depend on the order in which an engine returns rows. Head and branch compare from the root downwards, so that
//! what travels is proportional to what differs. The rows of the nodes that are left are listed at a second cut.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::Key;
use crate::failure::OfficeResult;
use crate::identity::{Digest, LogPosition, OfficeName};
use crate::message::{RowDigest, TableNodes, TableRows};
use crate::port::Database;
use crate::schema::{Direction, Schema, Table, TableId};

/// A node of a table's tree: the bits that its rows' names begin with, after a leading 1.
pub type Node = u32;
/// The node that holds the whole table.
pub const ROOT: Node = 1;
/// How many children a node has.
pub const FAN: usize = 16;
/// By how many bits a child's rows' names agree longer.
const STEP_BITS: u32 = 4;
/// By how many bits the names of a leaf's rows agree.
const LEAF_BITS: u32 = 16;
/// How many sums an office keeps of one cut, in all tables; where there would be more, the largest tables keep
/// coarser ones.
const SUMS_KEPT: usize = 512 * 1024;
/// How many rows are read at a time.
const CHUNK_ROWS: usize = 2_000;
/// How many rows an office lists in one answer at the most.
pub const LISTED_ROWS: usize = 40_000;
/// How many bytes of keys an office lists in one answer, about.
const LISTED_BYTES: usize = 6 * 1024 * 1024;
/// How many differing keys are named for each table.
pub const KEYS_NAMED: usize = 20;

/// A comparison of the head with its branches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Its number.
    pub id: u64,
    /// The branch that asked for it.
    pub wanted_by: Option<OfficeName>,
    /// Whether differing rows were repaired; what is said of the tables is what was found afterwards.
    pub repair: bool,
    /// The place in the log.
    pub cut: LogPosition,
    /// Bytes of envelopes that it took.
    pub bytes: u64,
    /// The branches.
    pub branches: Vec<BranchVerification>,
}

/// The comparison with one branch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BranchVerification {
    /// Its name.
    pub name: String,
    /// Whether it answered in time.
    pub answered: bool,
    /// The tables.
    pub tables: Vec<TableVerification>,
}

/// The comparison of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableVerification {
    /// Its name.
    pub name: String,
    /// Rows at the head.
    pub rows: u64,
    /// Rows with different content.
    pub different: u64,
    /// Rows at the head only.
    pub only_head: u64,
    /// Rows at the branch only.
    pub only_branch: u64,
    /// Rows that differ since they are not yet exchanged, or are held; not counted as different.
    pub pending: u64,
    /// More differs than was looked at: the counts are lower bounds.
    pub more: bool,
    /// The branch's table is not what the plan says, so that its rows cannot be compared.
    pub unlike: bool,
    /// Rows that were repaired at the branch.
    pub repaired: u64,
    /// Some of the differing rows' keys.
    pub keys: Vec<Key>,
}

impl TableVerification {
    /// Rows that differ.
    pub fn differing(&self) -> u64 {
        self.different + self.only_head + self.only_branch
    }

    /// Whether no row differs.
    pub fn is_equal(&self) -> bool {
        self.differing() == 0 && !self.more && !self.unlike
    }
}

impl BranchVerification {
    /// Whether no row differs.
    pub fn is_equal(&self) -> bool {
        self.answered && self.tables.iter().all(TableVerification::is_equal)
    }
}

impl Verification {
    /// Whether no row differs anywhere.
    pub fn is_equal(&self) -> bool {
        self.branches.iter().all(BranchVerification::is_equal)
    }

    /// The comparison under the public interface's keys.
    pub fn to_json(&self) -> serde_json::Value {
        let table = |t: &TableVerification| {
            let mut document = serde_json::json!({
                "name": t.name, "equal": t.is_equal(), "rows": t.rows, "different": t.different, "only_head": t.only_head,
                "only_branch": t.only_branch, "pending": t.pending, "more": t.more, "unlike": t.unlike,
                "keys": t.keys.iter().map(Key::to_json).collect::<Vec<_>>(),
            });
            if let Some(fields) = document.as_object_mut().filter(|_| self.repair) {
                fields.insert("repaired".into(), t.repaired.into());
            }
            document
        };
        let branch = |b: &BranchVerification| {
            let mut document = serde_json::json!({
                "name": b.name, "equal": b.is_equal(), "answered": b.answered,
                "tables": b.tables.iter().map(table).collect::<Vec<_>>(),
            });
            if let Some(fields) = document.as_object_mut().filter(|_| self.repair) {
                let repaired: u64 = b.tables.iter().map(|t| t.repaired).sum();
                fields.insert("repaired".into(), repaired.into());
            }
            document
        };
        serde_json::json!({
            "equal": self.is_equal(), "repair": self.repair, "cut": self.cut, "bytes_exchanged": self.bytes,
            "branches": self.branches.iter().map(branch).collect::<Vec<_>>(),
        })
    }
}

/// By how many bits the names of a node's rows agree.
pub fn bits_of(node: Node) -> u32 {
    node.checked_ilog2().unwrap_or_default()
}

fn leaf_of(name: &Digest) -> Node {
    1 << LEAF_BITS | Node::from(u16::from_be_bytes([name.0[0], name.0[1]]))
}

/// The nodes that a row belongs to, from the leaf up to the root.
fn nodes_of(name: &Digest) -> impl Iterator<Item = Node> {
    let leaf = leaf_of(name);
    (0..=LEAF_BITS / STEP_BITS).map(move |step| leaf >> (step * STEP_BITS))
}

fn lies_in(node: Node, upper: Node) -> bool {
    let depth = bits_of(node).checked_sub(bits_of(upper));
    depth.is_some_and(|depth| node >> depth == upper)
}

/// The child of a node.
pub fn child_of(node: Node, index: usize) -> Node {
    node << STEP_BITS | Node::try_from(index % FAN).unwrap_or_default()
}

/// The sums of all tables at one cut.
#[derive(Debug, Default)]
pub struct Sums(BTreeMap<TableId, TableSums>);

/// The sums of one table.
#[derive(Debug)]
pub struct TableSums {
    /// How many rows it had.
    pub rows: u64,
    /// The sum of all its rows.
    pub sum: u64,
    /// By how many bits the names of the rows of each of `parts` agree.
    bits: u32,
    parts: BTreeMap<Node, Part>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    rows: u32,
    sum: u64,
}

impl Default for TableSums {
    fn default() -> Self {
        Self {
            rows: 0,
            sum: 0,
            bits: LEAF_BITS,
            parts: BTreeMap::new(),
        }
    }
}

impl Part {
    fn add(&mut self, rows: u32, sum: u64) {
        self.rows = self.rows.saturating_add(rows);
        self.sum = self.sum.wrapping_add(sum);
    }
}

impl TableSums {
    fn add(&mut self, name: &Digest, content: &Digest) {
        let mut both = name.0.to_vec();
        both.extend(content.0);
        let [a, b, c, d, e, f, g, h, ..] = Digest::of(&both).0;
        let sum = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        self.rows += 1;
        self.sum = self.sum.wrapping_add(sum);
        let node = leaf_of(name) >> (LEAF_BITS - self.bits);
        self.parts.entry(node).or_default().add(1, sum);
    }

    /// Keeps coarser sums only.
    fn fold(&mut self) {
        self.bits = self.bits.saturating_sub(STEP_BITS);
        for (node, part) in std::mem::take(&mut self.parts) {
            let parent = self.parts.entry(node >> STEP_BITS).or_default();
            parent.add(part.rows, part.sum);
        }
    }

    fn below(&self, node: Node) -> impl Iterator<Item = (Node, &Part)> {
        let depth = self.bits.saturating_sub(bits_of(node));
        let first = node << depth;
        let last = first | ((1 << depth) - 1);
        self.parts.range(first..=last).map(|(at, part)| (*at, part))
    }

    /// Whether the sums of this node's children are kept.
    pub fn can_split(&self, node: Node) -> bool {
        bits_of(node) + STEP_BITS <= self.bits
    }

    /// The sums of a node's children; none where they are not kept.
    pub fn children(&self, node: Node) -> Option<[u64; FAN]> {
        if !self.can_split(node) {
            return None;
        }
        let shift = self.bits - bits_of(node) - STEP_BITS;
        let mut sums = [0_u64; FAN];
        for (at, part) in self.below(node) {
            let index = usize::try_from(at >> shift).unwrap_or_default() % FAN;
            if let Some(sum) = sums.get_mut(index) {
                *sum = sum.wrapping_add(part.sum);
            }
        }
        Some(sums)
    }

    /// How many rows a node has, about.
    pub fn rows_in(&self, node: Node) -> u64 {
        if bits_of(node) > self.bits {
            return self.rows >> bits_of(node);
        }
        self.below(node).map(|(_, part)| u64::from(part.rows)).sum()
    }
}

impl Sums {
    /// Adds up all tables in the open read transaction.
    pub async fn read<D: Database>(db: &mut D, schema: &Schema) -> OfficeResult<Self> {
        let mut sums = Self::default();
        for table in &schema.tables {
            sums.0.insert(table.id, TableSums::default());
            let mut after = None;
            loop {
                let rows = db.chunk(table, after.as_ref(), CHUNK_ROWS).await?;
                if let Some(of_table) = sums.0.get_mut(&table.id) {
                    for row in &rows {
                        of_table.add(&table.key_of(row).digest(table), &row.digest(table));
                    }
                }
                sums.fit(SUMS_KEPT);
                match rows.last() {
                    Some(last) if rows.len() >= CHUNK_ROWS => after = Some(table.key_of(last)),
                    _ => break,
                }
            }
        }
        Ok(sums)
    }

    fn fit(&mut self, kept: usize) {
        let count = |table: &TableSums| table.parts.len();
        while self.0.values().map(count).sum::<usize>() > kept {
            let foldable = self.0.values_mut().filter(|table| table.bits > 0);
            match foldable.max_by_key(|table| table.parts.len()) {
                Some(largest) => largest.fold(),
                None => break,
            }
        }
    }

    /// The sums of a table.
    pub fn of(&self, table: TableId) -> Option<&TableSums> {
        self.0.get(&table)
    }

    /// All tables with their sums.
    pub fn tables(&self) -> impl Iterator<Item = (TableId, &TableSums)> {
        self.0.iter().map(|(id, table)| (*id, table))
    }
}

/// Lists the rows of these nodes one by one, in the open read transaction, with the names of those that are pending: the
/// captured ones, and those of `unsettled` (a table's names). A node is listed whole or named as left out.
pub async fn list<D: Database>(
    db: &mut D,
    schema: &Schema,
    asked: &[TableNodes],
    unsettled: &BTreeMap<TableId, BTreeSet<Digest>>,
) -> OfficeResult<Vec<TableRows>> {
    let mut budget = Budget::default();
    let mut answers = Vec::new();
    for asked in asked {
        let Some(table) = schema.table(asked.table) else {
            continue;
        };
        let mut wanted: BTreeSet<Node> = asked.nodes.iter().copied().collect();
        let rows = list_table(db, table, &mut wanted, &mut budget).await?;
        let mut pending: BTreeSet<Digest> = BTreeSet::new();
        let captured = db.captured(table, None).await?;
        let captured = captured.into_iter().map(|key| key.digest(table));
        let noted = unsettled.get(&table.id).into_iter().flatten().copied();
        pending.extend(
            captured
                .chain(noted)
                .filter(|name| nodes_of(name).any(|node| wanted.contains(&node))),
        );
        answers.push(TableRows {
            table: table.id,
            rows: rows.into_values().flatten().collect(),
            pending: pending.into_iter().collect(),
            left: asked
                .nodes
                .iter()
                .copied()
                .filter(|node| !wanted.contains(node))
                .collect(),
        });
    }
    Ok(answers)
}

/// What one answer may still hold.
struct Budget {
    rows: usize,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            rows: LISTED_ROWS,
            bytes: LISTED_BYTES,
        }
    }
}

fn listed_bytes(row: &RowDigest) -> usize {
    24 + crate::office::weight_of(&row.key.0)
}

/// Takes nodes out of `wanted`, the fullest first, when the answer becomes too large.
async fn list_table<D: Database>(
    db: &mut D,
    table: &Table,
    wanted: &mut BTreeSet<Node>,
    budget: &mut Budget,
) -> OfficeResult<BTreeMap<Node, Vec<RowDigest>>> {
    let mut listed: BTreeMap<Node, Vec<RowDigest>> = BTreeMap::new();
    let (mut rows_listed, mut bytes) = (0, 0);
    let mut after = None;
    while !wanted.is_empty() {
        let rows = db.chunk(table, after.as_ref(), CHUNK_ROWS).await?;
        for row in &rows {
            let key = table.key_of(row);
            let name = key.digest(table);
            // Nodes asked for on behalf of different branches may lie in each other.
            let Some(node) = nodes_of(&name).filter(|node| wanted.contains(node)).last() else {
                continue;
            };
            let content = row.digest(table);
            let row = RowDigest { key, content };
            rows_listed += 1;
            bytes += listed_bytes(&row);
            listed.entry(node).or_default().push(row);
            while rows_listed > budget.rows || bytes > budget.bytes {
                let fullest = listed.iter().max_by_key(|(_, rows)| rows.len());
                let Some(fullest) = fullest.map(|(node, _)| *node) else {
                    break;
                };
                wanted.retain(|node| !lies_in(*node, fullest));
                for row in listed.remove(&fullest).into_iter().flatten() {
                    rows_listed -= 1;
                    bytes -= listed_bytes(&row);
                }
            }
        }
        match rows.last() {
            Some(last) if rows.len() >= CHUNK_ROWS => after = Some(table.key_of(last)),
            _ => break,
        }
    }
    budget.rows = budget.rows.saturating_sub(rows_listed);
    budget.bytes = budget.bytes.saturating_sub(bytes);
    Ok(listed)
}

/// Compares two offices' lists of the rows of these nodes. Adds what is found to `result`, and returns the keys of the
/// rows that differ: first those that the head does not have.
pub fn compare_rows(
    table: &Table,
    nodes: &BTreeSet<Node>,
    ours: &TableRows,
    theirs: &TableRows,
    result: &mut TableVerification,
) -> Vec<Key> {
    let left: BTreeSet<Node> = ours.left.iter().chain(&theirs.left).copied().collect();
    result.more |= nodes.iter().any(|node| left.contains(node));
    let pending: BTreeSet<&Digest> = ours.pending.iter().chain(&theirs.pending).collect();
    let list = |rows: &TableRows| -> BTreeMap<Key, Digest> {
        let looked_at = |row: &&RowDigest| {
            let name = row.key.digest(table);
            nodes_of(&name).any(|node| nodes.contains(&node) && !left.contains(&node))
        };
        let rows = rows.rows.iter().filter(looked_at);
        rows.map(|row| (row.key.clone(), row.content)).collect()
    };
    let (ours, theirs) = (list(ours), list(theirs));
    let all: BTreeSet<&Key> = ours.keys().chain(theirs.keys()).collect();
    let (mut only_there, mut others) = (Vec::new(), Vec::new());
    for key in all {
        let found = (ours.get(key), theirs.get(key));
        match found {
            (Some(a), Some(b)) if a == b => continue,
            // What other branches send up does not come down again.
            (Some(_), None) if table.direction == Direction::Up => continue,
            _ => {}
        }
        if pending.contains(&key.digest(table)) {
            result.pending += 1;
            continue;
        }
        match found {
            (Some(_), Some(_)) => result.different += 1,
            (Some(_), None) => result.only_head += 1,
            _ => result.only_branch += 1,
        }
        if result.keys.len() < KEYS_NAMED {
            result.keys.push(key.clone());
        }
        if found.0.is_none() {
            only_there.push(key.clone());
        } else {
            others.push(key.clone());
        }
    }
    only_there.append(&mut others);
    only_there
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    fn sums_of(rows: impl Iterator<Item = u32>) -> TableSums {
        let mut sums = TableSums::default();
        for number in rows {
            sums.add(&name(number), &name(number + 1));
        }
        sums
    }

    #[test]
    fn sums_do_not_depend_on_the_order_and_children_add_up_to_their_node() {
        let (up, down) = (sums_of(0..3_000), sums_of((0..3_000).rev()));
        assert_eq!((up.rows, up.sum), (3_000, down.sum));
        let mut nodes = vec![ROOT];
        while let Some(node) = nodes.pop() {
            let Some(children) = up.children(node) else {
                continue;
            };
            assert_eq!(down.children(node), Some(children));
            let rows: u64 = (0..FAN).map(|at| up.rows_in(child_of(node, at))).sum();
            assert_eq!(rows, up.rows_in(node));
            if bits_of(node) == 0 {
                let all = children
                    .iter()
                    .fold(0_u64, |sum, part| sum.wrapping_add(*part));
                assert_eq!(all, up.sum);
            }
            nodes.extend(
                (0..FAN)
                    .filter(|at| children[*at] != 0)
                    .map(|at| child_of(node, at)),
            );
        }
    }

    #[test]
    fn coarser_sums_agree_with_finer_ones() {
        let fine = sums_of(0..2_000);
        let mut sums = Sums::default();
        sums.0.insert(1, sums_of(0..2_000));
        sums.0.insert(2, sums_of(0..10));
        sums.fit(300);
        let coarse = sums.of(1).unwrap();
        assert_eq!(coarse.bits, 8);
        assert_eq!(
            sums.of(2).unwrap().bits,
            LEAF_BITS,
            "the smaller keeps its own"
        );
        assert_eq!(coarse.children(ROOT), fine.children(ROOT));
        assert_eq!(
            coarse.children(child_of(ROOT, 3)),
            fine.children(child_of(ROOT, 3))
        );
        assert_eq!(
            coarse.rows_in(child_of(ROOT, 3)),
            fine.rows_in(child_of(ROOT, 3))
        );
        assert!(coarse.children(child_of(child_of(ROOT, 3), 5)).is_none());
    }
}
