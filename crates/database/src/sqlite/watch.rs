//! Waking up when another connection has committed to the database file.
//!
//! The file system says that something happened, `PRAGMA data_version` whether it was a commit. A slow poll stands in
//! where the file system is silent. Nothing is written, and the application's transactions cost nothing more.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use branchline_core::port::{DatabaseError, DbResult};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::mpsc;

use super::connection::path_of;
use super::error::failure;

/// How long a commit can go unnoticed where the file system does not tell.
const POLL: Duration = Duration::from_millis(200);

/// The shortest time between two looks, so that a busy application costs next to nothing.
const PAUSE: Duration = Duration::from_millis(3);

/// Wakes when another connection than its own has committed. Watching ends when it is dropped.
#[derive(Debug)]
pub struct Watcher {
    /// Holds one wake-up at the most; commits made meanwhile fold into it.
    pub wake: mpsc::Receiver<()>,
}

/// Watches the database file at a path or `sqlite:PATH` address.
pub fn watch(address: &str) -> DbResult<Watcher> {
    let path = path_of(address);
    let connection = Connection::open_with_flags(
        &path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(failure)?;
    connection
        .execute_batch("PRAGMA query_only = ON")
        .map_err(failure)?;
    let seen = data_version(&connection).map_err(failure)?;
    let (hints, hinted) = sync_channel(1);
    let directory = watch_directory(&path, hints);
    let (waker, wake) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("branchline-sqlite-watch".into())
        .spawn(move || {
            follow(&connection, seen, &hinted, &waker);
            drop(directory);
        })
        .map_err(|error| {
            DatabaseError::Other(format!("no thread to watch the database file: {error}"))
        })?;
    Ok(Watcher { wake })
}

/// Looks at the data version after each hint and each poll until nobody listens.
fn follow(connection: &Connection, mut seen: i64, hinted: &Receiver<()>, waker: &mpsc::Sender<()>) {
    while !waker.is_closed() {
        match hinted.recv_timeout(POLL) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            // No watching of the directory: the poll is all there is.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
        }
        // While the writer holds the file this fails; the next look sees the commit.
        if let Ok(version) = data_version(connection)
            && version != seen
        {
            seen = version;
            // A full channel means that a wake-up is waiting already.
            let _ = waker.try_send(());
        }
        std::thread::sleep(PAUSE);
    }
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("PRAGMA data_version")?
        .query_row([], |row| row.get(0))
}

/// Sends a hint whenever the database file, its journal or its write-ahead log changes. None where the file system
/// cannot be watched.
fn watch_directory(path: &Path, hints: SyncSender<()>) -> Option<RecommendedWatcher> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let directory = path.parent().map(Path::to_path_buf)?;
    let ours = [
        suffixed(&path, ""),
        suffixed(&path, "-wal"),
        suffixed(&path, "-journal"),
    ];
    let told = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let changed = !matches!(event.kind, EventKind::Access(_));
        if changed
            && event.paths.iter().any(|path| ours.contains(path))
            && matches!(hints.try_send(()), Err(TrySendError::Disconnected(())))
        {
            tracing::trace!("nobody follows the database file any more");
        }
    };
    let watcher = notify::recommended_watcher(told).and_then(|mut watcher| {
        watcher.watch(&directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| tracing::warn!(%error, "the database file cannot be watched; it is polled instead"))
        .ok()
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
