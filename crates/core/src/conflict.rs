//! Deciding: facts in, decision out. The head alone does it, once for each change (P4).

use minicbor::{Decode, Encode};

use crate::change::{Base, Key, Row};
use crate::identity::{Micros, OfficeName};
use crate::message::{Keep, Settled};
use crate::schema::{ConflictRule, Direction, InsertRule, SchemaVersion, Table, TableId};

mod merge;

pub(crate) use merge::add_up;

/// What the head knows of a row and of a branch's change to it.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The row's table, with its rules.
    pub table: &'a Table,
    /// The branch.
    pub origin: &'a OfficeName,
    /// Whether the change was made on the head's present version.
    pub on_present_version: bool,
    /// Whether the row did not exist in the version that the change was made on, as far as the branch knew.
    pub inserted: bool,
    /// The row as the branch found it before the change, where the table's rule needs it and it is known.
    pub before: Option<&'a Row>,
    /// The row that the change leaves.
    pub theirs: Option<&'a Row>,
    /// When the change was made.
    pub at: Micros,
    /// The head's present row.
    pub ours: Option<&'a Row>,
    /// When and by whom the head's present version was made, where that is recent enough to be known.
    pub present: Option<(Micros, &'a OfficeName)>,
}

/// What the head does with a branch's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It becomes the row's version; nobody contradicted it.
    Accept,
    /// Both sides say the same, or the branch made a row and took it back; the head's version stands, nothing is listed.
    Same,
    /// It becomes the row's version, and the head's former row is listed.
    Win(Reason),
    /// The head's version stands, and the change is listed.
    Lose(Reason),
    /// It is set aside for a person; the branch keeps its row.
    Hold(Reason),
    /// Both sides' changes fit into this row, which becomes the version; listed where a reason is given.
    Merge(Row, Option<Reason>),
}

/// Why a decision was not plain acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reason {
    /// Two changes to one version; the later one won.
    #[n(0)]
    Newest,
    /// Two changes to one version; the plan prefers the head.
    #[n(1)]
    HeadPreferred,
    /// Two changes to one version; the plan prefers branches.
    #[n(2)]
    BranchPreferred,
    /// Two offices inserted different rows under one key.
    #[n(3)]
    InsertedTwice,
    /// The plan shares this table downwards only.
    #[n(4)]
    DownOnly,
    /// The row is being held already.
    #[n(5)]
    AlreadyHeld,
    /// The head's tables do not take the row.
    #[n(6)]
    DoesNotFit,
    /// Two changes to one version; the plan wants a person to decide.
    #[n(7)]
    AskedFor,
    /// Two changes to one version were put together; columns that both had changed went to the later change.
    #[n(8)]
    Merged,
    /// Concurrent changes of a counter add up to less than its floor.
    #[n(9)]
    BelowFloor,
    /// A comparison found the branch's row different without a change of it on the way.
    #[n(10)]
    Repaired,
    /// This office's tables hold something that is no value of the column.
    #[n(11)]
    Unreadable,
    /// The row was changed at a head that was then restored from a backup, and changed again before that came back.
    #[n(12)]
    Restored,
    /// The row was written under an earlier version of its table, and something of it has no place any more.
    #[n(13)]
    SchemaChanged,
}

impl Reason {
    /// The reason as a word for scripts.
    pub fn code(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::HeadPreferred => "head",
            Self::BranchPreferred => "branch",
            Self::InsertedTwice => "inserted-twice",
            Self::DownOnly => "down-only",
            Self::AlreadyHeld => "already-held",
            Self::DoesNotFit => "does-not-fit",
            Self::AskedFor => "hold",
            Self::Merged => "merged",
            Self::BelowFloor => "below-floor",
            Self::Repaired => "repaired",
            Self::Unreadable => "unreadable",
            Self::Restored => "restored",
            Self::SchemaChanged => "schema-changed",
        }
    }

    /// The reason as a sentence for a person.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Newest => {
                "two offices changed the same version of this row; the later change stands"
            }
            Self::HeadPreferred => {
                "two offices changed the same version of this row; the plan lets the head's stand"
            }
            Self::BranchPreferred => {
                "two offices changed the same version of this row; the plan lets the branch's stand"
            }
            Self::InsertedTwice => {
                "two offices created different rows under the same key; the later one to arrive is held at its office"
            }
            Self::DownOnly => {
                "a branch changed a table that only the head may change; the head's row was restored"
            }
            Self::AskedFor => {
                "two offices changed the same version of this row; the plan wants a person to decide, and until then the branch keeps its row"
            }
            Self::Merged => {
                "two offices changed the same version of this row; their changes were put together, and where both had changed one column the later change stands"
            }
            Self::BelowFloor => {
                "two offices changed this counter at the same time; both changes count, and their sum is below the floor that the plan sets (more was sold than there was)"
            }
            Self::Repaired => {
                "a comparison found that the branch's row differed, though no change of it was on the way; the head's row was restored there"
            }
            Self::Unreadable => {
                "the row holds something that is no value of its column, so it cannot be sent; it is sent when it is mended"
            }
            Self::SchemaChanged => {
                "the branch wrote this row before it knew that the table had changed; what has no place any more is kept here"
            }
            Self::Restored => {
                "the head's database was restored from a backup and this row changed before what it had lost came back; the later change stands"
            }
            Self::AlreadyHeld => {
                "an earlier change to this row is held, so this one is held with it"
            }
            Self::DoesNotFit => {
                "the head's tables do not take this row (a unique value is taken, a parent is missing, or a check fails); it is held at its office"
            }
        }
    }
}

/// The rules, in the order in which they apply.
pub fn decide(facts: &Facts<'_>) -> Decision {
    let same = match (facts.ours, facts.theirs) {
        (Some(ours), Some(theirs)) => ours.digest(facts.table) == theirs.digest(facts.table),
        (None, None) => true,
        _ => false,
    };
    if facts.table.direction == Direction::Down {
        return if same {
            Decision::Same
        } else {
            Decision::Lose(Reason::DownOnly)
        };
    }
    if facts.inserted && facts.theirs.is_none() {
        return Decision::Same;
    }
    if facts.on_present_version {
        return Decision::Accept;
    }
    // Two equal sums are still two changes.
    let adds_up = !facts.table.counters.is_empty() && facts.before.is_some();
    if same && !adds_up {
        return Decision::Same;
    }
    let two_rows = facts.inserted && facts.ours.is_some();
    if two_rows && facts.table.insert == InsertRule::Hold {
        return Decision::Hold(Reason::InsertedTwice);
    }
    if let Some(decision) = merge::together(facts) {
        return decision;
    }
    by_rule(facts)
}

/// The plan's rule alone, between two contents of a row.
fn by_rule(facts: &Facts<'_>) -> Decision {
    match facts.table.conflict {
        ConflictRule::Head => Decision::Lose(Reason::HeadPreferred),
        ConflictRule::Branch => Decision::Win(Reason::BranchPreferred),
        ConflictRule::Hold => Decision::Hold(Reason::AskedFor),
        ConflictRule::Newest | ConflictRule::Merge if is_later(facts) => {
            Decision::Win(Reason::Newest)
        }
        ConflictRule::Newest | ConflictRule::Merge => Decision::Lose(Reason::Newest),
    }
}

/// Whether the change is later than the head's version. A version too old to be known stands. A tie goes to the smaller office name.
fn is_later(facts: &Facts<'_>) -> bool {
    facts
        .present
        .is_some_and(|(at, by)| facts.at > at || (facts.at == at && facts.origin < by))
}

/// A decision, kept whole (P9).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConflictRecord {
    /// Its number at the head, the same at the branch.
    #[n(0)]
    pub id: u64,
    /// The table's name.
    #[n(1)]
    pub table: String,
    /// The column names that the rows stand in.
    #[n(2)]
    pub columns: Vec<String>,
    /// The row's key.
    #[n(3)]
    pub key: Key,
    /// Why it was decided so.
    #[n(4)]
    pub reason: Reason,
    /// When the branch's change was made.
    #[n(5)]
    pub at: Micros,
    /// The branch.
    #[n(6)]
    pub origin: OfficeName,
    /// The version that the change was made on.
    #[n(7)]
    pub base: Base,
    /// The head's row before the decision.
    #[n(8)]
    pub ours: Option<Row>,
    /// The branch's row.
    #[n(9)]
    pub theirs: Option<Row>,
    /// What became of it.
    #[n(10)]
    pub result: Resolution,
    /// When the head decided.
    #[n(11)]
    pub decided: Micros,
    /// The row that both sides changed, where it is known.
    #[n(12)]
    pub before: Option<Row>,
    /// The row made of both sides' changes.
    #[n(13)]
    pub merged: Option<Row>,
    /// What a person needs to know besides, in a sentence: which columns, what the database said.
    #[n(14)]
    pub detail: Option<String>,
    /// The schema version that the rows stand in, and the table's number; [`LOST`] where the head has lost that version.
    #[n(15)]
    pub shape: (SchemaVersion, TableId),
}

/// No version: rows that stand in one that a restored head lost.
pub const LOST: SchemaVersion = 0;

/// How a conflict ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Resolution {
    /// The head's row stands.
    #[n(0)]
    Ours,
    /// The branch's row stands.
    #[n(1)]
    Theirs,
    /// The branch's row is held at the branch.
    #[n(2)]
    Held,
    /// A row made of both sides' changes stands.
    #[n(3)]
    Merged,
}

impl ConflictRecord {
    /// The record under the public interface's keys, with how it was settled afterwards.
    pub fn to_json_with(&self, settled: Option<&Settled>) -> serde_json::Value {
        let mut document = self.to_json();
        let settled = settled.map(|settled| {
            let row = settled.row.as_ref().map(|row| self.row_json(row));
            let keep = match settled.keep {
                Keep::Head => "head",
                Keep::Branch | Keep::Retry => "branch",
                Keep::Base => "base",
            };
            serde_json::json!({ "keep": keep, "at": rfc3339(settled.at), "by": settled.by, "row": row })
        });
        if let Some(fields) = document.as_object_mut() {
            fields.insert("settled".into(), settled.unwrap_or_default());
        }
        document
    }

    /// Whether it came without its rows, since they are large: a head that was restored or promoted does not have them.
    pub fn lacks_rows(&self) -> bool {
        self.ours.is_none() && self.theirs.is_none()
    }

    /// The record without its rows where they are large; the head keeps it whole.
    #[must_use]
    pub fn fit_to_travel(self) -> Self {
        let rows = [&self.ours, &self.theirs, &self.before, &self.merged];
        let bytes: usize = rows
            .into_iter()
            .flatten()
            .map(|row| crate::office::weight_of(&row.0))
            .sum();
        if bytes <= crate::office::RECORD_BYTES {
            return self;
        }
        Self {
            ours: None,
            theirs: None,
            before: None,
            merged: None,
            detail: Some("the rows are large; the head keeps them".into()),
            ..self
        }
    }

    fn row_json(&self, row: &Row) -> serde_json::Value {
        let fields = self.columns.iter().zip(&row.0);
        serde_json::Value::Object(
            fields
                .map(|(name, value)| (name.clone(), value.to_json()))
                .collect(),
        )
    }

    /// The record under the public interface's keys.
    pub fn to_json(&self) -> serde_json::Value {
        let row = |row: &Option<Row>| row.as_ref().map(|row| self.row_json(row));
        let base = match self.base {
            Base::Log(position) => serde_json::json!({ "log": position }),
            Base::Own(batch, position) => {
                serde_json::json!({ "log": position, "own_batch": batch })
            }
            Base::Unknown => serde_json::Value::Null,
        };
        let (result, stands) = match self.result {
            Resolution::Ours => ("ours", row(&self.ours)),
            Resolution::Theirs => ("theirs", row(&self.theirs)),
            Resolution::Held => ("held", row(&self.ours)),
            Resolution::Merged => ("merged", row(&self.merged)),
        };
        serde_json::json!({
            "id": self.id, "table": self.table, "key": self.key.to_json(), "reason": self.reason.code(),
            "explanation": self.reason.sentence(), "at": rfc3339(self.at), "decided_at": rfc3339(self.decided),
            "origin": self.origin, "base": base, "before": row(&self.before), "detail": self.detail, "ours": row(&self.ours), "theirs": row(&self.theirs),
            "result": { "stands": result, "row": stands },
        })
    }
}

/// A time as RFC 3339 text in UTC, to the microsecond.
pub fn rfc3339(at: Micros) -> String {
    let seconds = at.0.div_euclid(1_000_000);
    let micros = at.0.rem_euclid(1_000_000);
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Days since 1970-01-01 as a date of the proleptic Gregorian calendar (Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`).
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
