//! Many new rows by `COPY`, which costs the server about half of what an upsert does.
//!
//! It overwrites nothing. Where a row is there already, also one that the application has just made, it fails on the
//! row's key, and the usual way is taken; whether rows are new shows in how the last try went.
//!
//! The office need not wait for it: it judges the next rows while the server puts these. Until their answer is there nothing
//! else is sent behind them but the question what was captured, which can be asked again.

use std::fmt::Write;

use branchline_core::change::{Effect, Row};
use branchline_core::port::{DatabaseError, DbResult};
use branchline_core::schema::{Table, TableId};
use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use tokio::task::{JoinHandle, yield_now};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyInSink, Error, Statement};

use super::connection::PostgresDatabase;
use super::ddl::ident;
use super::error::on_table;
use super::layout::Layout;
use super::types::Array;

/// Fewer rows are not worth the savepoint.
const ROWS: usize = 64;
/// How many writes to a table go the usual way after a try that failed.
const PAUSE: u32 = 32;
/// Bytes that are sent at a time.
const PIECE: usize = 64 * 1024;
/// So often other tasks have a turn before the office goes on: the connection's, and the one that waits for the answer.
const TURNS: usize = 4;

/// Rows of one table on their way to the server. Where they are not new, they are put the usual way.
pub(super) struct Copying {
    table: Table,
    effects: Vec<(TableId, Effect)>,
    /// Whether they were new.
    answer: JoinHandle<DbResult<bool>>,
}

/// Writes rows as new ones, given as one array for each column. False, and nothing done, where they may not be new.
pub(super) async fn copy(
    db: &mut PostgresDatabase,
    table: &Table,
    layout: &Layout,
    count: usize,
    columns: &[Array<'_>],
) -> DbResult<bool> {
    if count < ROWS || !db.expects_new(&table.name) {
        return Ok(false);
    }
    let sink = fill(db, table, layout, count, columns).await?;
    let new = match sink {
        Ok(mut sink) => is_new(table, sink.as_mut().finish().await),
        Err(error) => is_new(table, Err(error)),
    };
    ended(db, table, new?).await
}

/// As [`copy`], without waiting for the answer: whether the rows were new. Nothing, and nothing done, where they may not be.
pub(super) async fn begin(
    db: &mut PostgresDatabase,
    table: &Table,
    layout: &Layout,
    count: usize,
    columns: &[Array<'_>],
) -> DbResult<Option<JoinHandle<DbResult<bool>>>> {
    if count < ROWS || !db.expects_new(&table.name) {
        return Ok(None);
    }
    let filled = fill(db, table, layout, count, columns).await?;
    let of = table.clone();
    let answer = tokio::spawn(async move {
        match filled {
            Ok(mut sink) => is_new(&of, sink.as_mut().finish().await),
            Err(error) => is_new(&of, Err(error)),
        }
    });
    for _ in 0..TURNS {
        yield_now().await;
    }
    Ok(Some(answer))
}

impl Copying {
    pub(super) fn new(
        table: &Table,
        effects: Vec<(TableId, Effect)>,
        answer: JoinHandle<DbResult<bool>>,
    ) -> Self {
        let table = table.clone();
        Self {
            table,
            effects,
            answer,
        }
    }

    /// Waits for the answer. False where the rows were not new and were put the usual way: what was asked behind them
    /// failed.
    pub(super) async fn end(self, db: &mut PostgresDatabase) -> DbResult<bool> {
        let new = self.answer.await;
        let new = new.map_err(|ended| DatabaseError::Other(ended.to_string()))??;
        if ended(db, &self.table, new).await? {
            return Ok(true);
        }
        let rows: Vec<&Row> = self.effects.iter().filter_map(|(_, e)| e.row()).collect();
        super::apply::put(db, &self.table, &rows, &[]).await?;
        Ok(false)
    }
}

/// Whether rows were new, from what the server said of them.
fn is_new(table: &Table, outcome: Result<u64, Error>) -> DbResult<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Ok(false),
        Err(error) => Err(on_table(&table.name, &error)),
    }
}

async fn ended(db: &mut PostgresDatabase, table: &Table, new: bool) -> DbResult<bool> {
    if new {
        db.send_all("RELEASE branchline_copy".to_owned()).await?;
    } else {
        db.pause_copying(&table.name, PAUSE);
        db.execute("ROLLBACK TO branchline_copy; RELEASE branchline_copy")
            .await?;
    }
    Ok(new)
}

type Sink = std::pin::Pin<Box<CopyInSink<Bytes>>>;

async fn fill(
    db: &mut PostgresDatabase,
    table: &Table,
    layout: &Layout,
    count: usize,
    columns: &[Array<'_>],
) -> DbResult<Result<Sink, Error>> {
    let names: Vec<String> = table.columns.iter().map(|c| ident(&c.name)).collect();
    let sql = format!("COPY {} ({}) FROM STDIN", layout.relation, names.join(", "));
    let statement = db.statement_on(&table.name, &sql, &[]).await?;
    db.send_all("SAVEPOINT branchline_copy".to_owned()).await?;
    Ok(send(db.client()?, &statement, count, columns).await)
}

async fn send(
    client: &Client,
    statement: &Statement,
    count: usize,
    columns: &[Array<'_>],
) -> Result<Sink, Error> {
    let mut sink = Box::pin(client.copy_in::<_, Bytes>(statement).await?);
    let mut lines = BytesMut::with_capacity(PIECE);
    for at in 0..count {
        for (place, column) in columns.iter().enumerate() {
            if place > 0 {
                lines.extend_from_slice(b"\t");
            }
            line_of(column, at, &mut lines);
        }
        lines.extend_from_slice(b"\n");
        if lines.len() >= PIECE {
            sink.feed(lines.split().freeze()).await?;
            lines.reserve(PIECE);
        }
    }
    sink.feed(lines.freeze()).await?;
    Ok(sink)
}

/// Adds one value in the text format.
fn line_of(column: &Array<'_>, at: usize, out: &mut BytesMut) {
    let written = match column {
        Array::Bool(values) => values.get(at).copied().flatten().map(|value| {
            out.extend_from_slice(if value { b"t" } else { b"f" });
        }),
        Array::Int(values) => number(values, at, out),
        Array::Float(values) => match values.get(at).copied().flatten() {
            Some(value) if value.is_infinite() => {
                let sign: &[u8] = if value < 0.0 { b"-" } else { b"" };
                out.extend_from_slice(sign);
                out.extend_from_slice(b"Infinity");
                Some(())
            }
            // The shortest text that reads as this value.
            _ => number(values, at, out),
        },
        Array::Bytes(values) => values.get(at).copied().flatten().map(|value| {
            out.extend_from_slice(b"\\\\x");
            for byte in value {
                let digits =
                    [byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]);
                out.extend_from_slice(&digits);
            }
        }),
        Array::Text(values) => values.get(at).copied().flatten().map(|value| {
            escaped(value, out);
        }),
    };
    if written.is_none() {
        out.extend_from_slice(b"\\N");
    }
}

fn number<N: std::fmt::Display + Copy>(
    values: &[Option<N>],
    at: usize,
    out: &mut BytesMut,
) -> Option<()> {
    let value = values.get(at).copied().flatten()?;
    write!(out, "{value}").ok()
}

fn is_special(byte: u8) -> bool {
    matches!(byte, b'\\' | b'\t' | b'\n' | b'\r')
}

fn escaped(text: &str, out: &mut BytesMut) {
    let mut rest = text.as_bytes();
    // Looked through without stopping, many bytes at a time: few texts have any.
    if !rest.iter().fold(false, |any, &byte| any | is_special(byte)) {
        out.extend_from_slice(rest);
        return;
    }
    while let Some(at) = rest.iter().position(|&byte| is_special(byte)) {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        let escape: &[u8] = match after.first() {
            Some(b'\t') => b"\\t",
            Some(b'\n') => b"\\n",
            Some(b'\r') => b"\\r",
            _ => b"\\\\",
        };
        out.extend_from_slice(escape);
        rest = after.get(1..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}
