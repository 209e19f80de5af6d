//! Values in canonical form, and the logical types that give them meaning.
//!
//! A value travels in one form whatever engine it came from. What is not a number, a truth value or raw bytes
//! travels as text in PostgreSQL's output format (`DateStyle` ISO, time zone UTC, shortest floats), which every
//! engine's adapter can read and write without loss. [`canonical`] folds the spellings that mean the same.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

mod array;
mod canonical;
mod convert;
mod spelling;
pub use canonical::canonical;
pub(crate) use canonical::feed;
pub use convert::{convert, widens};
pub use spelling::{interval_of_micros, is_spelled, micros_of_interval};

/// A column's value. Which variant is used follows from the column's [`Type`]; see [`Type::holds`].
#[derive(Clone, Debug, Encode, Decode)]
pub enum Value {
    /// SQL's NULL.
    #[n(0)]
    Null,
    /// A truth value.
    #[n(1)]
    Bool(#[n(0)] bool),
    /// A whole number of up to 64 bits.
    #[n(2)]
    Int(#[n(0)] i64),
    /// A float; infinities and NaN are legal.
    #[n(3)]
    Float(#[n(0)] f64),
    /// Text, or any type whose canonical form is text.
    #[n(4)]
    Text(#[n(0)] String),
    /// Raw bytes.
    #[n(5)]
    Bytes(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
}

/// Floats are compared by their bits' total order, so that NaN equals itself and negative zero is not zero;
/// [`canonical`] folds what means the same.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A total order for use in sorted maps; it is not the order of any database.
impl Ord for Value {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        use Value::{Bool, Bytes, Float, Int, Text};
        match (self, other) {
            (Bool(a), Bool(b)) => a.cmp(b),
            (Int(a), Int(b)) => a.cmp(b),
            (Float(a), Float(b)) => a.total_cmp(b),
            (Text(a), Text(b)) => a.cmp(b),
            (Bytes(a), Bytes(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl Value {
    fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Int(_) => 2,
            Self::Float(_) => 3,
            Self::Text(_) => 4,
            Self::Bytes(_) => 5,
        }
    }

    /// Whether this is NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The value for a person: JSON's own types where they fit, hexadecimal for bytes.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(b) => (*b).into(),
            Self::Int(i) => (*i).into(),
            Self::Float(f) if f.is_finite() => (*f).into(),
            Self::Float(f) => f.to_string().into(),
            Self::Text(t) => t.as_str().into(),
            Self::Bytes(b) => b
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
                .into(),
        }
    }
}

/// What a column means, independent of the engine that stores it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// Truth values.
    #[n(0)]
    Bool,
    /// 16-bit whole numbers.
    #[n(1)]
    Int16,
    /// 32-bit whole numbers.
    #[n(2)]
    Int32,
    /// 64-bit whole numbers.
    #[n(3)]
    Int64,
    /// Single precision floats.
    #[n(4)]
    Float32,
    /// Double precision floats.
    #[n(5)]
    Float64,
    /// Exact decimals as text; precision and scale where declared.
    #[n(6)]
    Decimal {
        /// Digits in all and digits after the point.
        #[n(0)]
        limits: Option<(u16, i16)>,
    },
    /// Text, with the longest length in characters where declared.
    #[n(7)]
    Text {
        /// Characters at the most.
        #[n(0)]
        max: Option<u32>,
    },
    /// Text padded with blanks to a length (`CHAR(n)`); travels without the padding.
    #[n(8)]
    Char {
        /// Length in characters.
        #[n(0)]
        length: u32,
    },
    /// Raw bytes.
    #[n(9)]
    Bytes,
    /// `YYYY-MM-DD`, `infinity`, `-infinity`, with ` BC` where needed.
    #[n(10)]
    Date,
    /// `HH:MM:SS.ffffff`.
    #[n(11)]
    Time,
    /// `HH:MM:SS.ffffff+ZZ`.
    #[n(12)]
    TimeTz,
    /// `YYYY-MM-DD HH:MM:SS.ffffff`.
    #[n(13)]
    Timestamp,
    /// `YYYY-MM-DD HH:MM:SS.ffffff+00`, always in UTC.
    #[n(14)]
    TimestampTz,
    /// PostgreSQL's interval text (style `postgres`).
    #[n(15)]
    Interval,
    /// Lower-case hyphenated UUID.
    #[n(16)]
    Uuid,
    /// JSON kept as written.
    #[n(17)]
    Json,
    /// JSON in the engine's own normal form.
    #[n(18)]
    Jsonb,
    /// One of a list of labels.
    #[n(19)]
    Enum {
        /// The type's name where the engine has one.
        #[n(0)]
        name: String,
        /// The labels in order.
        #[n(1)]
        labels: Vec<String>,
    },
    /// A PostgreSQL array in its text form.
    #[n(20)]
    Array(#[n(0)] Box<Type>),
    /// An IP address, with the length of its network where that is not the whole address.
    #[n(21)]
    Inet,
}

impl Type {
    /// Whether a value has the variant that this type uses. NULL fits every type.
    pub fn holds(&self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Self::Bool, Value::Bool(_)) | (Self::Int64, Value::Int(_)) => true,
            (Self::Int16, Value::Int(i)) => i16::try_from(*i).is_ok(),
            (Self::Int32, Value::Int(i)) => i32::try_from(*i).is_ok(),
            (Self::Float32 | Self::Float64, Value::Float(_)) | (Self::Bytes, Value::Bytes(_)) => {
                true
            }
            (
                Self::Bool
                | Self::Int16
                | Self::Int32
                | Self::Int64
                | Self::Float32
                | Self::Float64
                | Self::Bytes,
                _,
            ) => false,
            (_, value) => matches!(value, Value::Text(_)),
        }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool => f.write_str("boolean"),
            Self::Int16 => f.write_str("16-bit integer"),
            Self::Int32 => f.write_str("32-bit integer"),
            Self::Int64 => f.write_str("64-bit integer"),
            Self::Float32 => f.write_str("32-bit float"),
            Self::Float64 => f.write_str("64-bit float"),
            Self::Decimal { limits: None } => f.write_str("decimal"),
            Self::Decimal {
                limits: Some((precision, scale)),
            } => write!(f, "decimal({precision},{scale})"),
            Self::Text { max: None } => f.write_str("text"),
            Self::Text { max: Some(max) } => write!(f, "text of up to {max} characters"),
            Self::Char { length } => write!(f, "char({length})"),
            Self::Bytes => f.write_str("bytes"),
            Self::Date => f.write_str("date"),
            Self::Time => f.write_str("time"),
            Self::TimeTz => f.write_str("time with time zone"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::TimestampTz => f.write_str("timestamp with time zone"),
            Self::Interval => f.write_str("interval"),
            Self::Uuid => f.write_str("uuid"),
            Self::Json => f.write_str("json"),
            Self::Jsonb => f.write_str("jsonb"),
            Self::Enum { name, .. } => write!(f, "enum {name}"),
            Self::Array(of) => write!(f, "array of {of}"),
            Self::Inet => f.write_str("network address"),
        }
    }
}
