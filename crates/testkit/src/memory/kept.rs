//! A value that a transaction's copy of the database shares until one side changes it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Copied only when it is changed while another copy is in being.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept<T>(Arc<T>);

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<I, T: FromIterator<I>> FromIterator<I> for Kept<T> {
    fn from_iter<S: IntoIterator<Item = I>>(items: S) -> Self {
        Self(Arc::new(items.into_iter().collect()))
    }
}
