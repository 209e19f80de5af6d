//! A map from rows' names. A name is a hash already, so its own bytes say where to look.
//!
//! It never tells its order, other than what follows from the names put in: nothing differs from run to run.

// The ban is for maps whose order is drawn at random.
#![allow(clippy::disallowed_types)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::identity::Digest;

/// A map from rows' names.
#[derive(Clone, Debug)]
pub(crate) struct ByName<V>(HashMap<Digest, V, BuildHasherDefault<Own>>);

/// Takes the last bytes that it is given for the hash.
#[derive(Clone, Copy, Debug, Default)]
struct Own(u64);

impl Hasher for Own {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 = u64::from_be_bytes(*last);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl<V> Default for ByName<V> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<V> ByName<V> {
    pub fn get(&self, name: &Digest) -> Option<&V> {
        self.0.get(name)
    }

    pub fn contains_key(&self, name: &Digest) -> bool {
        self.0.contains_key(name)
    }

    pub fn insert(&mut self, name: Digest, value: V) -> Option<V> {
        self.0.insert(name, value)
    }

    pub fn remove(&mut self, name: &Digest) -> Option<V> {
        self.0.remove(name)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in no order that means anything.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &Digest> {
        self.0.keys()
    }

    pub fn retain(&mut self, keep: impl FnMut(&Digest, &mut V) -> bool) {
        self.0.retain(keep);
    }

    /// Takes over another one's; of names that both have, the other's.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}
