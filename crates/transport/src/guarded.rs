//! Short critical sections that survive a panicked holder.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks for a few instructions. Everything guarded this way is valid between any two statements, so a poisoned lock
/// is taken over.
pub(crate) fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}
