//! Keys as people type them.

use branchline_core::change::Key;
use branchline_core::schema::Schema;
use branchline_core::value::{Type, Value, canonical};

use crate::exit::{Failure, Outcome};

/// The key of a row of a shared table, from the text of its values in key order.
pub fn parse(schema: &Schema, table: &str, texts: &[String]) -> Outcome<Key> {
    let Some(table) = schema.table_named(table) else {
        let names: Vec<&str> = schema.tables.iter().map(|t| t.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "table `{table}` is not shared; there are: {}",
            names.join(", ")
        )));
    };
    let columns: Vec<_> = table.key_columns().collect();
    if columns.len() != texts.len() {
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "the key of table `{}` has {} values ({}); {} were given",
            table.name,
            columns.len(),
            names.join(", "),
            texts.len()
        )));
    }
    let values = columns.into_iter().zip(texts).map(|(column, text)| {
        let value = value(&column.kind, text).filter(|value| column.kind.holds(value));
        let value = value.map(|value| canonical(&column.kind, &value).into_owned());
        value.ok_or_else(|| {
            Failure::usage(format!(
                "`{text}` is no value of the key column `{}` ({})",
                column.name, column.kind
            ))
        })
    });
    values.collect::<Outcome<Vec<Value>>>().map(Key)
}

fn value(kind: &Type, text: &str) -> Option<Value> {
    Some(match kind {
        Type::Bool => Value::Bool(match text {
            "true" | "t" | "1" => true,
            "false" | "f" | "0" => false,
            _ => return None,
        }),
        Type::Int16 | Type::Int32 | Type::Int64 => Value::Int(text.parse().ok()?),
        Type::Float32 | Type::Float64 => Value::Float(text.parse().ok()?),
        Type::Bytes => Value::Bytes(bytes(text)?),
        _ => Value::Text(text.into()),
    })
}

/// Bytes from hexadecimal digits, as lists show them.
fn bytes(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2);
    let pairs = pairs.map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok());
    pairs.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use branchline_core::schema::{Column, Table};

    fn schema(kinds: &[Type]) -> Schema {
        let columns = kinds.iter().map(|kind| Column {
            name: "part".into(),
            kind: kind.clone(),
            nullable: false,
            default: None,
            generated_key: false,
            id: 0,
        });
        let mut schema = Schema::default();
        schema.tables.push(Table {
            id: 1,
            name: "item".into(),
            columns: columns.collect(),
            key: (0..).take(kinds.len()).collect(),
            unique: vec![],
            foreign_keys: vec![],
            direction: Default::default(),
            conflict: Default::default(),
            insert: Default::default(),
            counters: vec![],
            before: false,
            columns_ever: 0,
            indexes: Vec::new(),
            checks: Default::default(),
        });
        schema
    }

    #[test]
    fn a_key_is_read_by_the_types_of_its_columns() {
        let kinds = [
            Type::Int32,
            Type::Text { max: None },
            Type::Uuid,
            Type::Bytes,
            Type::Bool,
        ];
        let texts = [
            "-7",
            "7",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "00ff",
            "t",
        ];
        let texts = texts.map(String::from);
        let expected = [
            Value::Int(-7),
            Value::Text("7".into()),
            Value::Text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11".into()),
            Value::Bytes(vec![0, 255]),
            Value::Bool(true),
        ];
        assert_eq!(parse(&schema(&kinds), "item", &texts).unwrap().0, expected);
    }

    #[test]
    fn what_is_no_key_is_told() {
        let schema = schema(&[Type::Int16]);
        let told = |table: &str, texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            parse(&schema, table, &texts).err().unwrap().message
        };
        assert!(told("stock", &["1"]).contains("not shared"));
        assert!(told("item", &["1", "2"]).contains("2 were given"));
        assert!(told("item", &["one"]).contains("no value"));
        assert!(told("item", &["40000"]).contains("16-bit"));
        assert!(told("item", &[]).contains("part"));
    }
}
