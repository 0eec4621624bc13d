//! Output for people: tables without lines, bars, times and sizes in units that fit.

use std::io::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table};

/// Characters of the longest bar.
const BAR_WIDTH: usize = 20;

/// Writes to standard output. An error is one of the reader's: it went away.
pub(crate) fn out(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.write_all(b"\n")
}

/// A table with these headings and nothing but space between its columns.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !headings.is_empty() {
        table.set_header(headings.to_vec());
    }
    table
}

/// The table as text: two spaces between columns, none at the ends of lines. Numbers stand right.
pub(crate) fn render(mut table: Table, right: &[usize]) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        if right.contains(&column.index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A bar for a share from 0 to 1, in eighths of a character.
pub(crate) fn bar(share: f32) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * (BAR_WIDTH * 8) as f32).round() as usize;
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// Microseconds as people read them.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1_024 => format!("{count} B"),
        1_024..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}

/// The first 12 digits of a digest: enough to tell versions apart by eye.
pub(crate) fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_fit_their_size() {
        assert_eq!([micros(999), micros(1_540), micros(2_000_000)], ["999 µs", "1.5 ms", "2.0 s"]);
        assert_eq!([bytes(1023), bytes(1536), bytes(3 << 20)], ["1023 B", "1.5 KiB", "3.0 MiB"]);
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("ab"), "ab");
    }

    #[test]
    fn bars_grow_in_eighths() {
        assert_eq!([bar(0.0), bar(0.5), bar(2.0)], ["".into(), "█".repeat(10), "█".repeat(20)]);
        assert_eq!(bar(0.025), "▌");
    }

    #[test]
    fn tables_have_no_lines_and_no_trailing_space() {
        let mut table = table(&["MODEL", "VERSION"]);
        table.add_row(["digits", "1"]).add_row(["a", "12"]);
        assert_eq!(render(table, &[1]), "MODEL   VERSION\ndigits        1\na            12");
    }
}
