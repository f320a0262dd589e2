//! The screen of `landfast top`, and the same as text.

use landfast_types::Timestamp;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table},
};

use super::{
    Screen,
    meter::{Rates, Reading},
};
use crate::table::{bytes, instant, millis, percent, since, table};

/// Problems that are shown at most; `landfast status` has all.
const PROBLEMS_MAX: usize = 3;

const GROUP_HEAD: [&str; 9] = [
    "SERVICE", "RELEASE", "ROLE", "WEIGHT", "READY", "REQ/S", "ERRORS", "P50", "P99",
];
const INSTANCE_HEAD: [&str; 8] = [
    "INSTANCE",
    "STATE",
    "FOR",
    "REQ/S",
    "ERRORS",
    "P99",
    "IN FLIGHT",
    "MEMORY",
];

/// One reading as text, for pipes and for people without a terminal.
pub(super) fn text(reading: &Reading) -> String {
    let groups = table(&GROUP_HEAD, &[1, 3, 4, 5, 6, 7, 8], group_rows(reading));
    let instance = |(id, rates): (&String, &Rates)| {
        vec![
            id.clone(),
            rate(rates),
            percent(rates.errors_percent),
            millis(rates.p99_ms),
            rates.in_flight.to_string(),
        ]
    };
    let head = ["INSTANCE", "REQ/S", "ERRORS", "P99", "IN FLIGHT"];
    let rows = reading.instances.iter().map(instance).collect();
    format!("{groups}\n\n{}", table(&head, &[1, 2, 3, 4], rows))
}

fn rate(rates: &Rates) -> String {
    format!("{:.1}", rates.requests_per_second)
}

fn group_rows(reading: &Reading) -> Vec<Vec<String>> {
    let row = |group: &super::meter::GroupRates| {
        vec![
            group.service.clone(),
            group.release.to_string(),
            group.role.clone(),
            percent(group.weight_percent),
            format!("{}/{}", group.ready, group.wanted),
            rate(&group.rates),
            percent(group.rates.errors_percent),
            millis(group.rates.p50_ms),
            millis(group.rates.p99_ms),
        ]
    };
    reading.groups.iter().map(row).collect()
}

/// Draws everything.
pub(super) fn screen(frame: &mut Frame<'_>, screen: &Screen, now: Timestamp) {
    let messages = messages(screen, now);
    let groups = u16::try_from(screen.reading.groups.len()).unwrap_or(u16::MAX);
    let [title, past, group_area, message_area, instances, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(groups.saturating_add(1).min(12)),
        Constraint::Length(u16::try_from(messages.len()).unwrap_or(u16::MAX)),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head_line(screen)), title);
    sparkline(frame, past, screen);
    let rows = group_rows(&screen.reading).into_iter().map(Row::new);
    let widths = [14, 8, 10, 8, 7, 9, 8, 9, 9].map(Constraint::Length);
    frame.render_widget(
        Table::new(rows, widths).header(header(screen, &GROUP_HEAD)),
        group_area,
    );
    frame.render_widget(Paragraph::new(messages), message_area);
    instance_table(frame, instances, screen, now);
    let foot_line = Line::from(" q quits · `landfast status` shows routes and all problems");
    frame.render_widget(Paragraph::new(foot_line).style(dim(screen)), foot);
}

fn style(screen: &Screen, style: Style) -> Style {
    if screen.colour { style } else { Style::new() }
}

fn dim(screen: &Screen) -> Style {
    style(screen, Style::new().add_modifier(Modifier::DIM))
}

fn header(screen: &Screen, words: &[&'static str]) -> Row<'static> {
    Row::new(words.iter().map(|word| Cell::from(*word))).style(dim(screen))
}

fn state_style(screen: &Screen, word: &str) -> Style {
    let colour = match word {
        "serving" | "ready" => Color::Green,
        "down" | "unready" | "backoff" => Color::Red,
        "empty" | "ended" | "unknown" => Color::Reset,
        _ => Color::Yellow,
    };
    style(screen, Style::new().fg(colour))
}

fn head_line(screen: &Screen) -> Line<'static> {
    let status = &screen.status;
    let word = status.state.as_str();
    let release = status
        .release
        .map(|release| format!(" · release {release}"))
        .unwrap_or_default();
    Line::from(vec![
        Span::from(format!(" {}/{} ", status.app, status.environment)),
        Span::styled(word, state_style(screen, word)),
        Span::from(format!("{release} · {} UTC", instant(status.at))),
    ])
}

fn sparkline(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let wide = usize::from(area.width.saturating_sub(2));
    let past = &screen.reading.past;
    let shown = &past[past.len().saturating_sub(wide)..];
    let highest = shown.iter().max().copied().unwrap_or(0);
    let block = Block::new()
        .borders(Borders::TOP)
        .title(format!(" requests per second, at most {highest} "));
    let line = Sparkline::default()
        .block(block)
        .data(shown)
        .style(style(screen, Style::new().fg(Color::Cyan)));
    frame.render_widget(line, area);
}

fn messages(screen: &Screen, now: Timestamp) -> Vec<Line<'static>> {
    let bad = style(screen, Style::new().fg(Color::Red));
    let mut lines = Vec::new();
    if let Some(away) = &screen.away {
        lines.push(Line::styled(
            format!(" no news since {}: {away}", since(now, screen.status.at)),
            bad,
        ));
    }
    if let Some(rollout) = &screen.status.rollout {
        lines.push(Line::from(format!(
            " rollout {} · {} · {} · {}",
            rollout.id,
            crate::view::strategy(rollout.strategy),
            crate::view::releases(rollout),
            rollout.state.as_str()
        )));
    }
    let problems = &screen.status.problems;
    for problem in problems.iter().take(PROBLEMS_MAX) {
        lines.push(Line::styled(format!(" ! {}", problem.text), bad));
    }
    if problems.len() > PROBLEMS_MAX {
        let more = problems.len() - PROBLEMS_MAX;
        lines.push(Line::styled(format!(" ! and {more} more"), bad));
    }
    lines
}

fn instance_table(frame: &mut Frame<'_>, area: Rect, screen: &Screen, now: Timestamp) {
    let services = screen.status.services.iter();
    let instances = services
        .flat_map(|service| service.groups.iter().rev())
        .flat_map(|group| &group.instances);
    let row = |one: &landfast_api::Instance| {
        let rates = screen
            .reading
            .instances
            .get(&one.id)
            .copied()
            .unwrap_or_default();
        let word = one.state.as_str();
        Row::new(vec![
            Cell::from(one.id.clone()),
            Cell::from(word).style(state_style(screen, word)),
            Cell::from(since(now, one.since)),
            Cell::from(rate(&rates)),
            Cell::from(percent(rates.errors_percent)),
            Cell::from(millis(rates.p99_ms)),
            Cell::from(rates.in_flight.to_string()),
            Cell::from(one.memory_bytes.map_or_else(|| "–".to_owned(), bytes)),
        ])
    };
    let widths = [22, 10, 8, 9, 8, 9, 10, 10].map(Constraint::Length);
    let rows = instances.map(row).collect::<Vec<_>>();
    let block = Block::new().borders(Borders::TOP);
    let shown = Table::new(rows, widths)
        .header(header(screen, &INSTANCE_HEAD))
        .block(block);
    frame.render_widget(shown, area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::top::meter::{
        Meter,
        tests::{status, traffic},
    };

    fn drawn(colour: bool) -> Terminal<TestBackend> {
        let mut meter = Meter::default();
        meter.take(&status(), &traffic("a", 10, 1_000, 0));
        let reading = meter.take(&status(), &traffic("a", 12, 1_090, 10));
        let mut status = status();
        status.problems.push(landfast_api::Trouble {
            text: "the certificate ends in 3 days".into(),
            hint: None,
        });
        let shown = Screen {
            status,
            reading,
            away: None,
            colour,
        };
        let mut terminal = Terminal::new(TestBackend::new(100, 20)).expect("a test terminal");
        let now = Timestamp::from_micros(0);
        terminal
            .draw(|frame| screen(frame, &shown, now))
            .expect("it draws");
        terminal
    }

    #[test]
    fn shows_rates_by_release_and_instance_and_what_is_wrong() {
        let terminal = drawn(true);
        let text = terminal.backend().to_string();
        for wanted in [
            "shop/production serving",
            "the certificate ends in 3 days",
            "api.r3.2",
            "100.0",
            "10 %",
        ] {
            assert!(text.contains(wanted), "{wanted}\n{text}");
        }
    }

    #[test]
    fn paints_nothing_where_no_colour_is_wanted() {
        let painted = |terminal: &Terminal<TestBackend>| {
            let cells = terminal.backend().buffer().content().iter();
            cells.filter(|cell| cell.fg != Color::Reset).count()
        };
        assert!(painted(&drawn(true)) > 0);
        assert_eq!(painted(&drawn(false)), 0);
    }
}
