//! Tables on a terminal.

/// What stands in the columns behind the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    /// To the right.
    Numbers,
    /// To the left.
    Words,
}

/// One line a row; the first column to the left.
pub(super) fn table(rows: &[Vec<String>], columns: Columns) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |text: &String| text.chars().count();
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(width).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            line += &match (column, columns) {
                (0, _) => format!("{cell:<width$}"),
                (_, Columns::Numbers) => format!("  {cell:>width$}"),
                (_, Columns::Words) => format!("  {cell:<width$}"),
            };
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}
