//! Many new rows by `COPY`, which costs the server about half of what an upsert does.
//!
//! It overwrites nothing. Where a row is there already, also one that the application has just made, it fails on the
//! row's key, and the usual way is taken; whether rows are new shows in how the last try went.

use std::fmt::Write;

use branchline_core::port::DbResult;
use branchline_core::schema::Table;
use bytes::{Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Statement};

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
    let names: Vec<String> = table.columns.iter().map(|c| ident(&c.name)).collect();
    let sql = format!("COPY {} ({}) FROM STDIN", layout.relation, names.join(", "));
    let statement = db.statement_on(&table.name, &sql, &[]).await?;
    db.send_all("SAVEPOINT branchline_copy".to_owned()).await?;
    match send(db.client()?, &statement, count, columns).await {
        Ok(()) => {
            db.send_all("RELEASE branchline_copy".to_owned()).await?;
            Ok(true)
        }
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            db.pause_copying(&table.name, PAUSE);
            db.execute("ROLLBACK TO branchline_copy; RELEASE branchline_copy")
                .await?;
            Ok(false)
        }
        Err(error) => Err(on_table(&table.name, &error)),
    }
}

async fn send(
    client: &Client,
    statement: &Statement,
    count: usize,
    columns: &[Array<'_>],
) -> Result<(), Error> {
    let sink = client.copy_in::<_, Bytes>(statement).await?;
    let mut sink = std::pin::pin!(sink);
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
    sink.finish().await.map(drop)
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

fn escaped(text: &str, out: &mut BytesMut) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest
        .iter()
        .position(|byte| matches!(byte, b'\\' | b'\t' | b'\n' | b'\r'))
    {
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
