//! Figures gathered over the repetitions, and their medians as a table.

use std::collections::BTreeMap;

use comfy_table::{Table, presets};

/// Figures by run and kind, in the order of their first appearance.
#[derive(Default)]
pub struct Figures {
    rows: Vec<String>,
    values: BTreeMap<(String, &'static str), Vec<f64>>,
}

impl Figures {
    /// Notes a figure.
    pub fn add(&mut self, run: &str, kind: &'static str, value: f64) {
        if !self.rows.iter().any(|known| known == run) {
            self.rows.push(run.to_owned());
        }
        self.values
            .entry((run.to_owned(), kind))
            .or_default()
            .push(value);
    }

    /// A table for each set of kinds: medians, with the lowest and highest where there are several values.
    pub fn text(&self) -> String {
        let mut tables: Vec<(Vec<&str>, Table)> = Vec::new();
        for run in &self.rows {
            let kinds: Vec<&str> = self
                .values
                .keys()
                .filter(|(of, _)| of == run)
                .map(|(_, kind)| *kind)
                .collect();
            if tables
                .last()
                .is_none_or(|(last, _)| !kinds.iter().all(|kind| last.contains(kind)))
            {
                let mut table = Table::new();
                table.load_style(presets::ASCII_MARKDOWN);
                table.set_header(std::iter::once("run").chain(kinds.iter().copied()));
                tables.push((kinds, table));
            }
            if let Some((header, table)) = tables.last_mut() {
                let cells = header.iter().map(|kind| {
                    self.values
                        .iter()
                        .find(|((of, known), _)| of == run && known == kind)
                        .map_or_else(String::new, |(_, v)| shown(v))
                });
                table.add_row(std::iter::once(run.clone()).chain(cells.collect::<Vec<_>>()));
            }
        }
        tables
            .iter()
            .map(|(_, table)| table.to_string())
            .collect::<Vec<_>>()
            .join("\n\n")
    }
}

fn shown(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, middle, high) = (
        sorted[0],
        sorted[sorted.len() / 2],
        sorted[sorted.len() - 1],
    );
    if sorted.len() == 1 {
        return number(middle);
    }
    format!("{} ({}–{})", number(middle), number(low), number(high))
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{:.0}", v),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
