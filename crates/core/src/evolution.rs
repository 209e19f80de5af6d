//! How the shared tables change while offices are away (P10): the next schema version from what the head's catalogue
//! says, and rows of one version read under another.
//!
//! Tables and columns are the same across versions where their numbers are; names and types come and go. `matching` finds
//! them in the catalogue, `next` makes the version, `versions` keeps it, `lift` and `lost` read rows across it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::books;
use crate::change::Key;
use crate::check;
use crate::failure::OfficeResult;
use crate::office::conclude;
use crate::port::{Database, Inspection, Origin, Purpose};
use crate::schema::{ColumnId, Rules, Table};
use crate::value::Value;

mod lift;
mod lost;
mod matching;
mod next;
mod versions;

pub(crate) use lift::fill_row;
pub use lift::{Lift, Lifted, fill};
pub(crate) use lost::LostPart;
pub use lost::{LostVersion, Shapes};
pub use next::{Next, follow};
pub use versions::Versions;

/// The engine's own names of the head's tables and columns, as of the present version.
pub(crate) const ORIGINS: &str = "origins";
/// What a person said was renamed, until it is found.
pub(crate) const RENAMED: &str = "renamed";
/// The words with which the present version's checks were read ([`check::WORDS`]).
const WORDS: &str = "check-words";

/// How many rows are looked at at a time.
const ROWS: usize = 1_000;

/// What the head does when its own tables change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    /// The branches' tables change likewise.
    #[default]
    Follow,
    /// A person is asked first; until then nothing is sent.
    Ask,
    /// Nothing is sent until the tables are again what they were.
    Refuse,
}

/// A column or table that a person says was renamed, where the engine cannot tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The table, by its name before.
    pub table: String,
    /// The column by its name before; none where the table itself was renamed.
    pub column: Option<String>,
    /// The name now.
    pub to: String,
}

impl Renamed {
    /// What a person said, in the open transaction.
    pub(crate) async fn load<D: Database>(db: &mut D) -> OfficeResult<Vec<Self>> {
        let known = books::load::<Vec<(String, Option<String>, String)>, D>(db, RENAMED).await?;
        let known = known.unwrap_or_default().into_iter();
        Ok(known
            .map(|(table, column, to)| Self { table, column, to })
            .collect())
    }
}

/// What the head remembers of its tables besides the present version.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The engine's own names of tables and columns.
    pub origins: BTreeMap<String, Origin>,
    /// What a person said was renamed.
    pub renamed: Vec<Renamed>,
    /// With which words checks were read; none where the program that looked knew of none.
    pub words: Option<u32>,
}

impl Known {
    /// What is remembered, in the open transaction.
    pub(crate) async fn load<D: Database>(db: &mut D) -> OfficeResult<Self> {
        Ok(Self {
            origins: books::load(db, ORIGINS).await?.unwrap_or_default(),
            renamed: Renamed::load(db).await?,
            words: books::load(db, WORDS).await?,
        })
    }

    /// Remembers how the tables were read.
    pub(crate) async fn store<D: Database>(
        db: &mut D,
        origins: &BTreeMap<String, Origin>,
    ) -> OfficeResult<()> {
        books::store(db, ORIGINS, origins).await?;
        books::store(db, WORDS, &check::WORDS).await
    }
}

/// Says by which rules a table is shared; nothing where it is not.
pub type RulesOf = dyn Fn(&Table) -> Option<Rules> + Send + Sync;

/// The head's plan: which tables are shared, by which rules, and what a changed table means.
#[derive(Clone)]
pub struct Plan {
    /// The rules of a table, or nothing where it is not shared.
    pub rules: Arc<RulesOf>,
    /// What a changed table means.
    pub follow: Follow,
}

impl Default for Plan {
    /// What is shared stays shared, with the rules that it has; nothing is added.
    fn default() -> Self {
        Self {
            rules: Arc::new(|table| (table.id != 0).then(|| table.rules())),
            follow: Follow::Follow,
        }
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("follow", &self.follow)
            .finish_non_exhaustive()
    }
}

/// What the head would do now by this plan, and what its tables are. Nothing is changed.
pub async fn preview<D: Database>(db: &mut D, plan: &Plan) -> OfficeResult<(Next, Inspection)> {
    db.begin(Purpose::Read).await?;
    let outcome = async {
        let present = books::newest_schema(db).await?.unwrap_or_default();
        Ok((present, Known::load(db).await?))
    };
    let outcome: OfficeResult<_> = outcome.await;
    let (present, known) = conclude(db, outcome).await?;
    let found = db.definitions().await?;
    Ok((follow(&present, &known, &found, plan), found))
}

/// Captures the rows in which a new column holds something else than its default: nobody else can know.
pub async fn recapture_filled<D: Database>(
    db: &mut D,
    table: &Table,
    column: ColumnId,
) -> OfficeResult<()> {
    let Some(place) = table.columns.iter().position(|one| one.id == column) else {
        return Ok(());
    };
    let default = table
        .columns
        .get(place)
        .and_then(|column| column.default.clone())
        .unwrap_or(Value::Null);
    let mut after: Option<Key> = None;
    loop {
        let rows = db.chunk(table, after.as_ref(), ROWS).await?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        after = Some(table.key_of(last));
        let filled = rows.iter().filter(|row| {
            let mut value = row.0.get(place).into_iter();
            value.any(|value| *value != default)
        });
        let keys: Vec<Key> = filled.map(|row| table.key_of(row)).collect();
        if !keys.is_empty() {
            db.recapture(table, Some(&keys)).await?;
        }
        if rows.len() < ROWS {
            return Ok(());
        }
    }
}
