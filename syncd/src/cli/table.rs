//! Tables of at most [`WIDTH`] columns.

/// Of a table; a terminal that is wider shows the rest as space.
pub(super) const WIDTH: usize = 100;

/// How a cell is shown where colours are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Busy,
    Bad,
    Faint,
}

impl Tone {
    fn paint(self, text: &str) -> String {
        let code = match self {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Busy => "36",
            Tone::Bad => "1;31",
            Tone::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// `text` in `tone`, if `colour`.
pub(super) fn paint(text: &str, tone: Tone, colour: bool) -> String {
    if colour { tone.paint(text) } else { text.to_owned() }
}

/// Rows of cells under a head; cells of a column are as wide as its widest.
pub(super) struct Table {
    head: Vec<(&'static str, Align)>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

enum Row {
    Cells(Vec<(String, Tone)>),
    /// Indented under the row before, over the whole width, wrapped at words.
    Note(String, Tone),
}

impl Table {
    pub(super) fn new(head: &[(&'static str, Align)]) -> Table {
        Table { head: head.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<(String, Tone)>) {
        self.rows.push(Row::Cells(cells));
    }

    pub(super) fn note(&mut self, text: impl Into<String>, tone: Tone) {
        self.rows.push(Row::Note(text.into(), tone));
    }

    /// Lines without a newline at the end.
    pub(super) fn render(&self, colour: bool) -> String {
        let mut widths: Vec<usize> = self.head.iter().map(|(title, _)| title.chars().count()).collect();
        for row in &self.rows {
            if let Row::Cells(cells) = row {
                for (width, (text, _)) in widths.iter_mut().zip(cells) {
                    *width = (*width).max(text.chars().count());
                }
            }
        }
        let head: Vec<_> = self.head.iter().map(|(title, _)| ((*title).to_owned(), Tone::Faint)).collect();
        let mut lines = vec![self.cells(&head, &widths, colour)];
        for row in &self.rows {
            match row {
                Row::Cells(cells) => lines.push(self.cells(cells, &widths, colour)),
                Row::Note(text, tone) => lines.extend(
                    wrap(text, WIDTH - 4).iter().map(|line| format!("    {}", paint(line, *tone, colour))),
                ),
            }
        }
        lines.join("\n")
    }

    fn cells(&self, cells: &[(String, Tone)], widths: &[usize], colour: bool) -> String {
        let mut line = String::new();
        let last = cells.len().saturating_sub(1);
        for (i, ((text, tone), (width, (_, align)))) in
            cells.iter().zip(widths.iter().zip(&self.head)).enumerate()
        {
            let space = " ".repeat(width.saturating_sub(text.chars().count()));
            let text = paint(text, *tone, colour);
            match align {
                Align::Right => line.extend([space.as_str(), &text]),
                Align::Left if i == last => line.push_str(&text),
                Align::Left => line.extend([text.as_str(), &space]),
            }
            if i != last {
                line.push_str("  ");
            }
        }
        line
    }
}

/// Breaks `text` at spaces into lines of at most `width`; a longer word stands alone.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// `1234567` as `1,234,567`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let mut table = Table::new(&[("NAME", Align::Left), ("COUNT", Align::Right), ("END", Align::Left)]);
        table.row(vec![("tags".into(), Tone::Good), ("7".into(), Tone::Plain), ("x".into(), Tone::Plain)]);
        table.note("a word and another", Tone::Bad);
        let plain = "NAME  COUNT  END\ntags      7  x\n    a word and another";
        assert_eq!(table.render(false), plain);
        let mut coloured = table.render(true);
        for code in ["\x1b[2m", "\x1b[32m", "\x1b[1;31m", "\x1b[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, plain);
    }

    #[test]
    fn long_notes_are_wrapped_and_long_numbers_grouped() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("aaaaaaaa b", 5), ["aaaaaaaa", "b"]);
        assert_eq!([0, 999, 1000, 1234567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
