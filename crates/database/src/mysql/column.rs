//! What becomes of a column that is there, in a step.

use branchline_core::check::is_whole;
use branchline_core::schema::Column;
use branchline_core::value::Type;

use super::ddl::{Dialect, ident, indexed};
use super::evolve::Step;
use super::layout::Declared;
use super::retype::whole;

/// What becomes of a column that is there. `unchecked` is the table's definition where the check goes that stands with the column.
pub(super) fn changed(
    dialect: &Dialect,
    step: &Step<'_>,
    at: usize,
    live: &Column,
    here: &Declared,
    unchecked: Option<&str>,
) -> Option<String> {
    let column = step.to.columns.get(at)?;
    let to = step.to;
    let is_indexed = indexed(to).contains(&at);
    let was = step.was(column, live, here, is_indexed);
    let stays = step.stays(at, column, here, &was);
    let nullable = column.nullable && !to.is_key(at);
    let follows = step
        .former(column)
        .is_none_or(|former| former.default != column.default);
    let default_differs =
        (follows && live.default != column.default) || (!stays && live.default.is_some());
    // The server makes the check of JSON by itself.
    let own = here.check.as_deref().filter(|_| !here.json);
    let same = stays && nullable == here.nullable && !default_differs;
    let (was_named, named) = (ident(&live.name), ident(&column.name));
    let plain = unchecked
        .zip(own)
        .and_then(|(table, check)| without_check(table, &live.name, check));
    if let Some(plain) = plain.filter(|_| same) {
        return Some(format!("CHANGE COLUMN {was_named} {named} {plain}"));
    }
    if same && unchecked.is_none() {
        let renamed = live.name != column.name;
        return renamed.then(|| format!("RENAME COLUMN {was_named} TO {named}"));
    }
    let (declared, check) = if stays {
        (whole(here), String::new())
    } else {
        dialect.declaration(&column.kind, &column.name, is_indexed)
    };
    let null = if nullable { " NULL" } else { " NOT NULL" };
    let plain = live.default.is_some() || here.default.is_none();
    let default = match (&column.default, &here.default) {
        _ if here.extra.contains("auto_increment") => String::new(),
        (Some(value), _) if follows || plain => dialect.default(&column.kind, &declared, value),
        (None, Some(raw)) if !plain => format!(" DEFAULT {raw}"),
        (_, Some(raw)) if !follows && stays => format!(" DEFAULT {raw}"),
        _ => String::new(),
    };
    let numbered = here.extra.contains("auto_increment");
    let extra = if numbered && is_whole(&column.kind) {
        " AUTO_INCREMENT"
    } else {
        ""
    };
    let update = if here.extra.contains("on update") && stays {
        format!(" ON UPDATE CURRENT_TIMESTAMP({})", here.fraction)
    } else {
        String::new()
    };
    // A column that is declared anew has no check but one that is said again.
    let kept = own.filter(|own| {
        unchecked.is_none() && (stays || outlives(own, &live.name, (&was, &column.kind)))
    });
    let check = match kept.map(|own| with_names(own, &step.renamed())) {
        None => check,
        Some(own) => match check.strip_prefix(" CHECK ") {
            None => format!(" CHECK ({own})"),
            Some(length) => format!(" CHECK ({length} AND ({own}))"),
        },
    };
    Some(format!(
        "CHANGE COLUMN {was_named} {named} {declared}{null}{default}{update}{extra}{check}"
    ))
}

/// Whether a column's check means something for another type too. That of a text's length goes with its type.
fn outlives(check: &str, name: &str, (was, becomes): (&Type, &Type)) -> bool {
    let longest = match was {
        Type::Text { max } => *max,
        Type::Char { length } => Some(*length),
        _ => None,
    };
    let is_length = |longest| check == format!("char_length({}) <= {longest}", ident(name));
    let text = |kind: &Type| matches!(kind, Type::Text { .. } | Type::Char { .. });
    (is_whole(was) && is_whole(becomes))
        || (text(was) && text(becomes) && !longest.is_some_and(is_length))
}

/// A column as the server writes it in the table's definition, after its name and without its check.
fn without_check<'t>(table: &'t str, name: &str, check: &str) -> Option<&'t str> {
    let (_, rest) = table.split_once(&format!("\n  {} ", ident(name)))?;
    let ends = [
        format!(" CHECK ({check}),\n"),
        format!(" CHECK ({check})\n"),
    ];
    let end = ends.iter().filter_map(|end| rest.find(end)).min()?;
    rest.get(..end)
}

/// A check in the server's words, with columns by other names.
fn with_names(check: &str, renamed: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(check.len());
    let mut rest = check.chars().peekable();
    while let Some(c) = rest.next() {
        let mut inner = String::new();
        if !matches!(c, '`' | '\'' | '"') {
            text.push(c);
            continue;
        }
        while let Some(next) = rest.next() {
            if next == c {
                if rest.next_if_eq(&c).is_none() {
                    break;
                }
                inner.push(c);
            } else if next == '\\' && c != '`' {
                inner.push(next);
                inner.extend(rest.next());
                continue;
            }
            inner.push(next);
        }
        let other = renamed
            .iter()
            .find(|(was, _)| c == '`' && *was == inner.replace("``", "`"));
        match other {
            Some((_, becomes)) => text.push_str(&ident(becomes)),
            None => text.extend([c.to_string(), inner, c.to_string()]),
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn columns_in_a_check_get_their_names_and_texts_stay() {
        let renamed = [("a", "b"), ("b", "c`d"), ("x`y", "z")];
        for (check, becomes) in [
            ("`a` > 0 and `b` < `a`", "`b` > 0 and `c``d` < `b`"),
            (r"`a` <> '`a` it\'s `a`'", r"`b` <> '`a` it\'s `a`'"),
            (
                "`a` <> 'q''`a`' and `x``y` = 1",
                "`b` <> 'q''`a`' and `z` = 1",
            ),
            ("`aa` in ('a',\"`b`\")", "`aa` in ('a',\"`b`\")"),
        ] {
            assert_eq!(with_names(check, &renamed), becomes);
        }
    }

    #[test]
    fn a_column_is_found_in_its_table_without_its_check() {
        let table = "CREATE TABLE `t` (\n  `id` int(11) NOT NULL,\n  `a` int(11) COMMENT ' CHECK (`a` > 0)' CHECK (`a` > 0),\n  `b` int(11) CHECK (`b` > 0)\n)";
        assert_eq!(
            without_check(table, "a", "`a` > 0").unwrap(),
            "int(11) COMMENT ' CHECK (`a` > 0)'"
        );
        assert_eq!(without_check(table, "b", "`b` > 0").unwrap(), "int(11)");
        assert_eq!(without_check(table, "c", "`c` > 0"), None);
    }
}
