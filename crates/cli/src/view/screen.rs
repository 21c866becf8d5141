//! What the view looks like: [`draw`].

use std::time::Duration;

use anstyle::AnsiColor;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{self, Block, Cell, Paragraph};

use super::Live;
use super::table::{COLUMNS, Column, Order, Row, Table, count, rate};
use crate::report;

/// Below this height, output has no place.
const LEAST_HEIGHT_WITH_OUTPUT: u16 = 16;
/// As wide as `00:00:00`, and a gap.
const CLOCK_WIDTH: u16 = 9;
const KEYS: &str =
    "q quit  / filter  space pause  \u{2190}\u{2192} sort  i invert  \u{2191}\u{2193} scroll";

/// Whether colours may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Palette {
    Colors,
    Plain,
}

/// Draws everything; it is `time` since the view began.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    live: &mut Live,
    output: &[String],
    time: Duration,
    palette: Palette,
) {
    let output_height = match frame.area().height {
        height @ LEAST_HEIGHT_WITH_OUTPUT.. if !output.is_empty() => height / 4,
        _ => 0,
    };
    let [title, state, rows, pane, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(output_height),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_title(frame, &live.title, time, title);
    let shown = live.table.shown();
    frame.render_widget(state_line(&live.table, shown.len()), state);
    // Below the header.
    live.height = usize::from(rows.height.saturating_sub(1));
    live.first = live.first.min(shown.len().saturating_sub(live.height));
    let visible = shown.iter().skip(live.first).take(live.height);
    let columns = columns(usize::from(rows.width), live.table.order.column, &shown);
    let widths = columns.iter().map(|&(_, width)| constraint(width));
    let table = widgets::Table::new(visible.map(|row| row_of(&columns, row, palette)), widths);
    frame.render_widget(table.header(header(&columns, live.table.order)), rows);
    draw_output(frame, output, pane);
    frame.render_widget(foot_line(live), foot);
}

fn draw_title(frame: &mut Frame<'_>, title: &str, time: Duration, area: Rect) {
    let widths = [Constraint::Fill(1), Constraint::Length(CLOCK_WIDTH)];
    let [left, right] = Layout::horizontal(widths).areas(area);
    let title = elided(title, usize::from(left.width));
    frame.render_widget(Line::from(title).reversed(), left);
    let seconds = time.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let clock = format!(" {hours:02}:{minutes:02}:{:02}", seconds % 60);
    frame.render_widget(Line::from(clock).reversed(), right);
}

fn state_line(table: &Table, shown: usize) -> Line<'_> {
    let (accesses, rate) = (count(table.accesses), rate(table.rate));
    let rows = table.count();
    let mut line = Line::default();
    if table.is_paused {
        line.push_span(Span::raw(" PAUSED ").reversed());
        line.push_span(" ");
    }
    line.push_span(format!("{accesses} accesses, {rate} a second, {rows} rows"));
    if table.lost != 0 {
        line.push_span(Span::raw(format!(", {} lost", count(table.lost))).bold());
    }
    if !table.filter.is_empty() {
        let filter = &table.filter;
        line.push_span(format!(", {shown} with \u{201c}{filter}\u{201d}"));
    }
    line
}

fn foot_line(live: &Live) -> Line<'_> {
    let filter = &live.table.filter;
    match live.quits {
        _ if live.is_typing => {
            let text = format!("filter: {filter}\u{2588}  Enter: keep it  Esc: drop it");
            Line::from(text).bold()
        }
        0 => Line::from(KEYS).dim(),
        _ => Line::from(live.ending).bold(),
    }
}

fn draw_output(frame: &mut Frame<'_>, output: &[String], area: Rect) {
    let border = Block::new().title(Line::from(" output ").dim()).dim();
    let border = border.borders(widgets::Borders::TOP);
    let inside = border.inner(area);
    frame.render_widget(border, area);
    let hidden = output.len().saturating_sub(usize::from(inside.height));
    let lines = output[hidden..].iter().map(|line| Line::from(&**line));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), inside);
}

/// A column, and its width at the moment.
type Sized = (&'static Column, usize);

/// Those for which there is room; among them the one that rows are ordered by.
fn columns(width: usize, order: usize, rows: &[&Row]) -> Vec<Sized> {
    const GAP: usize = 1;
    let mut chosen: Vec<usize> = (0..COLUMNS.len()).collect();
    let needed = |chosen: &[usize]| {
        let widths = chosen.iter().map(|&at| COLUMNS[at].width + GAP);
        widths.sum::<usize>() - GAP
    };
    while chosen.len() > 1 && needed(&chosen) > width {
        let rank = |at: usize| if at == order { 0 } else { COLUMNS[at].rank };
        let last = (0..chosen.len()).max_by_key(|&place| rank(chosen[place]));
        chosen.remove(last.expect("there are two"));
    }
    let left = width.saturating_sub(needed(&chosen));
    let sized = |at: usize| (&COLUMNS[at], COLUMNS[at].width);
    let mut columns: Vec<Sized> = chosen.into_iter().map(sized).collect();
    let (first, width) = &mut columns[0];
    let longest = rows.iter().map(|row| (first.text)(row).len()).max();
    *width += longest.unwrap_or(0).saturating_sub(*width).min(left);
    columns
}

fn constraint(width: usize) -> Constraint {
    Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))
}

fn header(columns: &[Sized], order: Order) -> widgets::Row<'static> {
    let cells = columns.iter().map(|&(column, width)| {
        let is_downward = column.is_number != order.is_inverse;
        let mark = match is_downward {
            _ if column.title != COLUMNS[order.column].title => "",
            true => "\u{25bc}",
            false => "\u{25b2}",
        };
        cell((column, width), &format!("{}{mark}", column.title))
    });
    widgets::Row::new(cells).bold()
}

fn row_of(columns: &[Sized], row: &Row, palette: Palette) -> widgets::Row<'static> {
    let cells = columns.iter().map(|&(column, width)| {
        let cell = cell((column, width), &(column.text)(row));
        match palette {
            Palette::Colors if column.is_outcome() => cell.fg(color(row)),
            _ => cell,
        }
    });
    widgets::Row::new(cells)
}

fn color(row: &Row) -> Color {
    match report::color(row.outcome()) {
        AnsiColor::Red => Color::Red,
        AnsiColor::Green => Color::Green,
        _ => Color::Yellow,
    }
}

fn cell((column, width): Sized, text: &str) -> Cell<'static> {
    let line = Line::from(elided(text, width));
    Cell::from(if column.is_number {
        line.right_aligned()
    } else {
        line
    })
}

/// Cut, with a mark, where it is longer.
fn elided(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width || width == 0 {
        return text.to_owned();
    }
    let kept = text.chars().take(width - 1);
    kept.chain(['\u{2026}']).collect()
}

#[cfg(test)]
mod tests {
    use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Recorder, VcpuId};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::style::Modifier;

    use super::*;
    use crate::log::Log;
    use crate::seen::Seen;
    use crate::tally::Tally;

    /// A read of each of the MTRRs, and of an MSR without a name.
    fn live() -> Live {
        let mut seen = Seen::new(Tally::default(), Log::new(None));
        for index in (0x200..0x210).chain([0x474f_4f00]) {
            seen.record(&Event {
                vcpu: VcpuId(1),
                index: MsrIndex(index),
                access: Access::Read,
                reason: ExitReason::FILTER,
                rip: None,
                value: u64::MAX,
                outcome: Outcome::Fault,
                log: false,
            });
        }
        let mut live = Live::new("msrgate: a guest on soft".to_owned(), "It ends.");
        live.table.look(&seen, Duration::ZERO);
        live
    }

    fn drawn(live: &mut Live, width: u16, height: u16, palette: Palette) -> TestBackend {
        let output = ["first", "second"].map(str::to_owned);
        let time = Duration::from_secs(3661);
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| draw(frame, live, &output, time, palette))
            .unwrap();
        terminal.backend().clone()
    }

    fn lines(live: &mut Live, width: u16, height: u16) -> Vec<String> {
        let backend = drawn(live, width, height, Palette::Plain);
        let cells = backend.buffer().content();
        let lines = cells.chunks(usize::from(width));
        lines
            .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    #[test]
    fn screen_of_80_columns_has_all_that_matters() {
        let lines = lines(&mut live(), 80, 24);
        assert!(
            lines[0].starts_with("msrgate: a guest on soft ") && lines[0].ends_with(" 01:01:01")
        );
        assert_eq!(lines[1], "17 accesses, 0.0 a second, 17 rows");
        let head =
            "MSR                 INDEX      PER SEC\u{25bc}   READS  WRITES  VCPU REASON  OUTCOME";
        assert_eq!(lines[2], head);
        let row = "IA32_MTRR_PHYSBASE0 0x200           0.0       1       0     1 filter  #GP";
        assert_eq!(lines[3], row);
        assert_eq!(
            lines[17..20],
            [
                " output \u{2500}".to_owned() + &"\u{2500}".repeat(71),
                "first".to_owned(),
                "second".to_owned()
            ]
        );
        assert_eq!(lines[23], KEYS);
    }

    #[test]
    fn what_is_lost_is_said() {
        let mut live = live();
        live.table.lost = 12;
        live.table.filter = "PHYSBASE1".to_owned();
        let state = "17 accesses, 0.0 a second, 17 rows, 12 lost, 1 with \u{201c}PHYSBASE1\u{201d}";
        assert_eq!(lines(&mut live, 80, 24)[1], state);
    }

    #[test]
    fn small_screen_has_what_matters_most() {
        let lines = lines(&mut live(), 40, 10);
        assert_eq!(lines[2], "MSR                 INDEX      PER SEC\u{25bc}");
        assert_eq!(lines[8], "IA32_MTRR_PHYSMASK2 0x205           0.0");
        assert!(lines[9].starts_with("q quit"));
    }

    #[test]
    fn wide_screen_has_all_columns_and_what_they_are_ordered_by_is_on_any() {
        let mut live = live();
        live.table.order.column = COLUMNS.len() - 1;
        assert!(lines(&mut live, 40, 10)[2].ends_with("LAST READ\u{25bc}"));
        for column in &COLUMNS {
            assert!(lines(&mut live, 120, 10)[2].contains(column.title));
        }
        assert!(lines(&mut live, 120, 10)[3].ends_with(" 0xffffffffffffffff"));
    }

    #[test]
    fn any_size_can_be_drawn_and_any_row_reached() {
        let mut live = live();
        for size in 0..60 {
            live.first = usize::MAX;
            for (width, height) in [(size, size), (size, 24), (80, size), (size * 5, size / 2)] {
                drawn(&mut live, width.max(1), height.max(1), Palette::Colors);
            }
        }
        live.first = usize::MAX;
        assert!(
            lines(&mut live, 80, 10)[8].starts_with("-  "),
            "the last row"
        );
    }

    #[test]
    fn outcome_has_a_colour_only_where_there_may_be_any() {
        for (palette, expected) in [(Palette::Colors, 17), (Palette::Plain, 0)] {
            let backend = drawn(&mut live(), 80, 30, palette);
            let cells = backend.buffer().content().iter();
            let (red, other): (Vec<_>, Vec<_>) = cells.partition(|cell| cell.fg == Color::Red);
            assert_eq!(
                red.iter().filter(|cell| cell.symbol() == "#").count(),
                expected
            );
            assert!(other.iter().all(|cell| cell.fg == Color::Reset));
            assert!(other[0].modifier.contains(Modifier::REVERSED));
        }
    }
}
