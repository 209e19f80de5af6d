//! The suite that holds every database adapter, and the in-memory fake, to the contract of
//! [`branchline_core::port::Database`].
//!
//! An [`Office`] is one database under test. Each case gets a new, empty one. The application's side is played by an
//! [`Application`], which writes plain rows over a connection of its own and knows nothing of Branchline. A crate runs
//! all cases with [`conformance_tests!`](crate::conformance_tests).

use std::future::Future;

use branchline_core::change::{Effect, Key, Row};
use branchline_core::identity::Micros;
use branchline_core::port::{Backlog, Database, First, Portion, Purpose, Taken};
use branchline_core::schema::{Schema, Table, TableId};
use branchline_core::value::{Type, Value, canonical};

pub mod altered;
pub mod before;
pub mod books;
pub mod capture;
pub mod carried;
pub mod catalogue;
pub mod circles;
pub mod columns;
pub mod evolution;
pub mod keys;
pub mod reading;
pub mod references;
pub mod sample;
pub mod sql;
pub mod taking;
pub mod values;
pub mod writing;

/// One statement of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Inserts a row.
    Insert(TableId, Row),
    /// Makes the row with this key into this row, which may have another key.
    Update(TableId, Key, Row),
    /// Deletes the row with this key.
    Delete(TableId, Key),
}

/// The application beside an office: a connection of its own, plain statements, no knowledge of Branchline.
pub trait Application: Send {
    /// Opens a transaction.
    fn begin(&mut self) -> impl Future<Output = ()> + Send;
    /// Runs statements in the open transaction. What the database says against them comes back as text.
    fn run(
        &mut self,
        schema: &Schema,
        ops: &[Op],
    ) -> impl Future<Output = Result<(), String>> + Send;
    /// Commits.
    fn commit(&mut self) -> impl Future<Output = Result<(), String>> + Send;
    /// Rolls back.
    fn roll_back(&mut self) -> impl Future<Output = ()> + Send;
    /// The application's own DDL, which turns one table into another: these statements, by dialect (`None`: in all), as the
    /// owner of the tables. An office without SQL matches the columns by their numbers.
    fn define(
        &mut self,
        from: &Table,
        to: &Table,
        statements: &[(Option<sql::Dialect>, String)],
    ) -> impl Future<Output = ()> + Send;
    /// Does to a table what makes its capture go away (drops a trigger, rebuilds the table).
    fn break_capture(&mut self, table: &Table) -> impl Future<Output = ()> + Send;
}

/// A database under test.
pub trait Office: Sync {
    /// The adapter.
    type Db: Database;
    /// The application's side.
    type App: Application;
    /// Whether two transactions of the application can write at once.
    const CONCURRENT_WRITERS: bool;
    /// Whether capture tells the application's transactions apart. An engine that cannot takes all in one unit.
    const TELLS_TRANSACTIONS_APART: bool;

    /// Opens a handle; several may be open.
    fn open(&self) -> impl Future<Output = Self::Db> + Send;
    /// Connects the application; several may be connected.
    fn application(&self) -> impl Future<Output = Self::App> + Send;
    /// The names of all objects in the database: tables, triggers, functions, types, ...
    fn objects(&self) -> impl Future<Output = Vec<String>> + Send;
    /// The time by the office's clock.
    fn now(&self) -> Micros;
    /// Whether a column found with this type serves for one planned with that type.
    fn serves(&self, planned: &Type, found: &Type) -> bool {
        planned == found
    }
    /// Whether the engine has this referential action.
    fn knows_action(&self, _action: &str) -> bool {
        true
    }
    /// Whether the engine itself can make a column of one type into the other as `convert` does.
    fn casts(&self, _from: &Type, _to: &Type) -> bool {
        true
    }
    /// Whether the engine cannot hold this value, and must say so instead of changing it.
    fn refuses(&self, _kind: &Type, _value: &Value) -> bool {
        false
    }
}

/// An office whose shared tables exist and are captured.
pub(crate) struct Ready<O: Office> {
    pub(crate) schema: Schema,
    pub(crate) db: O::Db,
    pub(crate) app: O::App,
}

pub(crate) async fn ready<O: Office>(office: &O) -> Ready<O> {
    ready_with(office, sample::schema()).await
}

pub(crate) async fn ready_with<O: Office>(office: &O, schema: Schema) -> Ready<O> {
    let mut db = office.open().await;
    db.prepare()
        .await
        .expect("Branchline's own tables can be created");
    db.create_tables(&schema)
        .await
        .expect("the shared tables can be created");
    db.add_foreign_keys(&schema)
        .await
        .expect("the shared tables' foreign keys can be created");
    db.install(&schema).await.expect("capture can be installed");
    Ready {
        schema,
        db,
        app: office.application().await,
    }
}

impl<O: Office> Ready<O> {
    /// One transaction of the application.
    pub(crate) async fn local(&mut self, ops: &[Op]) {
        transaction(&mut self.app, &self.schema, ops)
            .await
            .expect("the application's transaction is legal");
    }

    /// Takes all that is captured, in one transaction; sorted by table and key.
    pub(crate) async fn take_all(&mut self) -> Vec<Taken> {
        take_all(&mut self.db, &self.schema).await
    }

    /// One transaction that writes these effects.
    pub(crate) async fn apply(&mut self, effects: &[(TableId, Effect)]) {
        self.try_apply(effects).await.expect("the rows fit");
    }

    /// One transaction that writes these effects, or is rolled back.
    pub(crate) async fn try_apply(
        &mut self,
        effects: &[(TableId, Effect)],
    ) -> branchline_core::port::DbResult<()> {
        self.db.begin(Purpose::Apply).await.unwrap();
        match self.db.write(&self.schema, effects).await {
            Ok(()) => self.db.commit().await,
            Err(error) => {
                self.db.rollback().await.unwrap();
                Err(error)
            }
        }
    }

    /// What waits in the capture.
    pub(crate) async fn backlog(&mut self) -> Backlog {
        self.db.begin(Purpose::Read).await.unwrap();
        let backlog = self.db.backlog().await.unwrap();
        self.db.commit().await.unwrap();
        backlog
    }

    /// All rows of a table, sorted.
    pub(crate) async fn rows(&mut self, table: TableId) -> Vec<Row> {
        let table = self.schema.table(table).unwrap();
        self.db.begin(Purpose::Read).await.unwrap();
        let rows = self.db.chunk(table, None, 10_000).await.unwrap();
        self.db.rollback().await.unwrap();
        let mut rows: Vec<Row> = rows.iter().map(|row| folded(table, row)).collect();
        rows.sort();
        rows
    }

    pub(crate) fn table(&self, id: TableId) -> Table {
        self.schema.table(id).unwrap().clone()
    }
}

pub(crate) async fn transaction<A: Application>(
    app: &mut A,
    schema: &Schema,
    ops: &[Op],
) -> Result<(), String> {
    app.begin().await;
    match app.run(schema, ops).await {
        Ok(()) => app.commit().await,
        Err(error) => {
            app.roll_back().await;
            Err(error)
        }
    }
}

pub(crate) async fn take_all<D: Database>(db: &mut D, schema: &Schema) -> Vec<Taken> {
    let taken = take_as_it_comes(db, schema).await;
    sorted(schema, taken)
}

/// Takes all that is captured, in one transaction.
pub(crate) async fn take_as_it_comes<D: Database>(db: &mut D, schema: &Schema) -> Vec<Taken> {
    db.begin(Purpose::Take).await.unwrap();
    let mut all = Vec::new();
    loop {
        let Portion {
            changes,
            unreadable,
            open,
            more,
        } = db.take(schema, 1000).await.unwrap();
        assert_eq!(unreadable, []);
        let nothing = changes.is_empty();
        all.extend(changes);
        if !open && !more {
            break;
        }
        assert!(!nothing, "a portion that promises more is not empty");
    }
    db.commit().await.unwrap();
    all
}

pub(crate) fn sorted(schema: &Schema, mut taken: Vec<Taken>) -> Vec<Taken> {
    for change in &mut taken {
        let table = schema
            .table(change.table)
            .expect("a taken change names a shared table");
        if let Effect::Put(row) = &mut change.effect {
            *row = folded(table, row);
        }
        if let Some(before) = &mut change.before {
            *before = folded(table, before);
        }
    }
    taken.sort_by_key(|change| {
        (
            change.table,
            change.effect.key(schema.table(change.table).unwrap()),
        )
    });
    taken
}

/// The row with every value in its one spelling.
pub(crate) fn folded(table: &Table, row: &Row) -> Row {
    assert!(table.fits(row), "{row:?} has the shape of `{}`", table.name);
    let values = table.columns.iter().zip(&row.0);
    Row(values
        .map(|(column, value)| canonical(&column.kind, value).into_owned())
        .collect())
}

/// What was taken, without its time: the part that a case can state.
pub(crate) fn gist(taken: &[Taken]) -> Vec<(TableId, Effect, First)> {
    taken
        .iter()
        .map(|change| (change.table, change.effect.clone(), change.first))
        .collect()
}

/// Expands to one test for each case of the suite. The argument is a function without parameters, that returns a
/// future of an [`Office`](crate::conformance::Office) on a new, empty database.
///
/// The crate that uses it needs `tokio` with its macros and threads.
#[macro_export]
macro_rules! conformance_tests {
    ($office:path) => {
        $crate::conformance_tests! { @each $office;
            catalogue: every_step_of_the_installation_can_be_repeated,
            catalogue: uninstalling_removes_everything_and_nothing_else,
            catalogue: creating_tables_leaves_existing_ones_alone,
            catalogue: a_first_copy_is_loaded_in_any_order_and_bound_at_its_end,
            catalogue: an_inspection_finds_the_tables_with_their_keys_and_references,
            catalogue: a_table_that_leaves_the_schema_is_no_longer_captured,
            catalogue: capture_that_the_application_broke_is_missed_and_mended,
            capture: what_the_application_writes_is_taken_as_its_net_effect,
            capture: an_insert_that_is_deleted_again_leaves_a_delete_of_an_inserted_row,
            capture: a_row_deleted_and_inserted_again_was_there_before,
            capture: a_changed_key_is_a_delete_and_an_insert,
            capture: rows_that_swap_their_keys_stay_two_rows,
            capture: what_a_cascade_deletes_is_taken_too,
            capture: what_is_applied_is_not_captured,
            capture: what_the_application_rolled_back_is_not_taken,
            capture: the_backlog_tells_how_much_waits_and_since_when,
            capture: captured_sees_local_writes_not_yet_taken,
            capture: a_local_write_waits_for_an_apply_of_the_same_row,
            capture: all_rows_of_a_table_can_be_captured_again,
            capture: named_rows_can_be_captured_again_even_when_gone,
            capture: tables_and_columns_may_have_any_name,
            before: an_update_and_a_delete_keep_the_row_that_they_found,
            before: the_first_of_several_rows_before_counts,
            before: what_was_inserted_has_no_row_before,
            before: a_row_deleted_and_inserted_again_keeps_the_deleted_row,
            before: a_changed_key_keeps_the_row_under_its_old_key,
            before: rows_that_swap_their_keys_keep_both_rows,
            before: what_a_cascade_deletes_keeps_its_row,
            before: tables_that_need_no_row_before_keep_none,
            before: a_row_captured_again_has_no_known_row_before,
            before: the_row_before_is_the_one_since_the_last_take,
            before: a_take_that_is_rolled_back_leaves_the_row_before,
            before: a_large_transaction_keeps_every_row_before,
            before: rows_before_are_kept_from_the_next_installation_on,
            before: every_value_before_is_as_it_was_read,
            taking: a_take_that_is_rolled_back_takes_nothing,
            taking: a_take_whose_handle_is_dropped_takes_nothing,
            taking: nothing_is_taken_twice,
            taking: portions_return_everything_once,
            taking: a_large_transaction_is_one_unit_in_several_portions,
            taking: transactions_that_share_rows_are_one_unit,
            taking: a_unit_never_holds_half_a_transaction,
            taking: what_commits_late_is_taken_late,
            writing: parents_are_written_before_children_whatever_the_order_given,
            writing: children_are_deleted_before_parents_whatever_the_order_given,
            writing: rows_may_refer_to_rows_of_their_own_table,
            writing: a_child_moves_while_its_old_parent_is_deleted,
            writing: a_put_replaces_the_row_and_leaves_its_children,
            writing: a_put_of_the_same_row_and_a_delete_of_a_missing_one_are_harmless,
            writing: a_unique_value_passes_from_a_deleted_row_to_a_new_one,
            writing: two_rows_swap_a_unique_value,
            writing: a_unique_conflict_is_an_error_and_removes_no_row,
            writing: a_missing_parent_is_an_error_of_a_foreign_key,
            writing: a_parent_with_children_left_cannot_be_deleted,
            writing: many_rows_are_written_at_once,
            writing: rows_handed_over_are_there_for_whatever_is_asked_next,
            writing: what_does_not_fit_of_rows_handed_over_is_told_by_what_is_asked_next,
            references: a_delete_never_reaches_a_child_that_is_not_mentioned,
            references: a_parent_goes_together_with_all_its_children,
            references: a_parent_goes_while_its_children_move,
            references: rows_of_one_table_go_together_or_not_at_all,
            references: rows_of_tables_in_a_circle_go_together_or_not_at_all,
            references: a_child_outside_the_plan_is_not_reached,
            references: an_update_never_reaches_a_child_that_is_not_mentioned,
            reading: existing_rows_are_read_by_key,
            reading: chunks_walk_a_composite_key_without_gap_or_repetition,
            reading: chunks_go_on_after_a_key_that_is_gone,
            reading: chunks_walk_text_keys_without_gap_or_repetition,
            reading: a_transaction_reads_what_it_wrote,
            reading: a_snapshot_stands_still_while_the_application_writes,
            books: values_are_remembered_and_forgotten,
            books: streams_keep_their_entries_in_order,
            books: a_number_is_appended_once,
            books: entries_come_up_to_a_size,
            books: trimming_removes_the_oldest,
            books: notes_belong_to_rows,
            books: rows_and_books_commit_together,
            books: a_dropped_handle_undoes_all,
            books: a_new_transaction_undoes_one_left_open,
            evolution: the_shape_changes_with_what_defines_the_tables,
            columns: columns_come_and_go_and_rows_keep_their_values,
            columns: columns_swap_their_names,
            evolution: tables_are_renamed_in_chains_and_swap_their_names,
            columns: columns_become_other_types,
            keys: keys_become_another_type_with_their_references,
            keys: keys_change_their_columns,
            keys: constraints_and_indexes_follow,
            evolution: tables_come_go_and_stay_without_capture,
            evolution: what_cannot_follow_stays_whole_and_the_others_go_on,
            evolution: what_the_application_did_already_is_not_done_twice,
            circles: tables_that_refer_to_each_other_come_in_one_step,
            circles: tables_are_bound_to_each_other_later,
            circles: tables_in_a_circle_are_renamed_dropped_and_made_again,
            circles: a_reference_that_cannot_be_added_keeps_no_other_out,
            carried: captured_writes_are_taken_in_the_new_shape,
            carried: captured_keys_follow_their_columns,
            carried: rows_before_follow_their_columns,
            carried: notes_follow_their_rows,
            altered: an_alter_by_the_application_captures_nothing,
            altered: the_application_renames_columns_and_goes_on_writing,
            altered: the_application_retypes_columns_and_goes_on_writing,
            altered: the_application_drops_columns_and_goes_on_writing,
            altered: the_application_renames_a_table_and_goes_on_writing,
            values: ordinary_values_of_every_type_come_back_as_they_were,
            values: extreme_values_come_back_as_they_were_or_are_refused,
            values: what_the_application_wrote_is_taken_in_canonical_form,
        }
    };
    (@each $office:path; $($room:ident: $case:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let office = $office().await;
                $crate::conformance::$room::$case(&office).await;
            }
        )*
    };
}
