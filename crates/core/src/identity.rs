//! Who an office is, and how its batches and the head's log are numbered.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// The longest office name, in bytes. Names become queue names and file names.
pub const MAX_NAME_BYTES: usize = 64;

/// The name of an office, unique within one company: ASCII letters, digits, `-`, `_` and `.`.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[cbor(transparent)]
#[serde(try_from = "String", into = "String")]
pub struct OfficeName(#[n(0)] String);

/// Why a text is not an office name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an office name: use 1 to 64 ASCII letters, digits, `-`, `_` or `.`, starting with a letter or digit"
)]
pub struct NotAName(pub String);

impl OfficeName {
    /// Checks and wraps a name.
    pub fn new(name: impl Into<String>) -> Result<Self, NotAName> {
        let name = name.into();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts_well && name.len() <= MAX_NAME_BYTES && name.chars().all(legal) {
            Ok(Self(name))
        } else {
            Err(NotAName(name))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a name that came from outside obeys the rules of [`OfficeName::new`].
    pub fn is_valid(&self) -> bool {
        Self::new(self.0.clone()).is_ok()
    }
}

impl fmt::Display for OfficeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for OfficeName {
    type Error = NotAName;
    fn try_from(name: String) -> Result<Self, NotAName> {
        Self::new(name)
    }
}

impl From<OfficeName> for String {
    fn from(name: OfficeName) -> Self {
        name.0
    }
}

/// A fresh identity that an office takes when its database is new or was restored (a UUID v7, passed in).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Incarnation(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize)]
        #[cbor(transparent)]
        #[serde(transparent)]
        pub struct $name(#[n(0)] pub u64);

        impl $name {
            /// Before the first: nothing has happened yet.
            pub const NONE: Self = Self(0);

            /// The number that follows.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }

            /// The number before, or [`Self::NONE`].
            #[must_use]
            pub const fn previous(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// The number of a branch's batch, counted from 1 without gaps within one incarnation.
    BatchNumber
}
counter! {
    /// A place in the head's log, counted from 1 without gaps.
    LogPosition
}

/// Microseconds since 1970-01-01 00:00 UTC, as an office's clock told it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize,
)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Micros(#[n(0)] pub i64);

impl Micros {
    /// This time plus a number of milliseconds.
    #[must_use]
    pub const fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1000)))
    }

    /// Whether, by this time, so many milliseconds have passed since an earlier one. A clock that was set back counts
    /// as having passed: whoever waits for it would wait for as long as it jumped.
    #[must_use]
    pub const fn has_passed(self, millis: i64, since: Self) -> bool {
        self.0 < since.0 || self.0 > since.plus_millis(millis).0
    }
}

/// A BLAKE3 hash, cut to 16 bytes: chains batches, names rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Digest(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl Digest {
    /// The hash of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut cut = [0; 16];
        cut.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
        Self(cut)
    }
}
