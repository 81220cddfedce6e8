//! `ringpilot top`: what the daemon does, live, on a terminal.
//! Place: a command; draws what `/api/status` says, once a second.
//! Invariants: foreign text is escaped; the terminal is given back as it was; where there is no terminal, one table is
//! printed and that is all.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table};

use super::Which;
use crate::cli::said;
use crate::problem::Escaped;
use crate::say::{self, Fault};
use crate::settings::show_size;
use crate::status::Snapshot;

/// How often it is drawn anew.
const EVERY: Duration = Duration::from_secs(1);

/// Watch the daemon: sources by rate and lag, outputs, rings, memory.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Keys: q quit, l by lag, r by rate, up and down.\n\nExample:\n  ringpilot top --data-dir /var/lib/ringpilot"
)]
pub struct Args {
    /// Print one snapshot as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
///
/// # Errors
/// When no daemon answers.
pub fn run(args: &Args) -> Result<ExitCode, Fault> {
    if args.json {
        let told: serde_json::Value = args.which.ask("/api/status")?;
        said(say::json(&told))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut view = View::default();
    view.take(args.which.ask("/api/status")?);
    if !std::io::stdout().is_terminal() {
        // A rate needs two looks.
        std::thread::park_timeout(EVERY);
        view.take(args.which.ask("/api/status")?);
        for line in view.lines() {
            said(say::line(line))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut terminal = ratatui::init();
    let ended = watch(args, &mut view, &mut terminal);
    ratatui::restore();
    ended.map(|()| ExitCode::SUCCESS)
}

fn watch(
    args: &Args,
    view: &mut View,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), Fault> {
    let broken = |error: std::io::Error| {
        Fault::new(
            format!("the terminal does not work: {error}"),
            "use `ringpilot explain`",
        )
    };
    let mut due = Instant::now() + EVERY;
    loop {
        terminal.draw(|frame| view.draw(frame)).map_err(broken)?;
        let left = due.saturating_duration_since(Instant::now());
        if event::poll(left).map_err(broken)? {
            if let Event::Key(key) = event::read().map_err(broken)?
                && key.kind != KeyEventKind::Release
            {
                let control = key.modifiers.contains(KeyModifiers::CONTROL);
                match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if control => return Ok(()),
                    KeyCode::Char('l') => view.by_rate = false,
                    KeyCode::Char('r') => view.by_rate = true,
                    KeyCode::Down => view.from = (view.from + 1).min(view.rows().len()),
                    KeyCode::Up => view.from = view.from.saturating_sub(1),
                    _ => {}
                }
            }
            continue;
        }
        due = Instant::now() + EVERY;
        view.take(args.which.ask("/api/status")?);
    }
}

/// Two looks, of which the second is shown and the first gives rates.
#[derive(Debug, Default)]
struct View {
    now: Snapshot,
    rates: HashMap<String, u64>,
    read_rate: u64,
    by_rate: bool,
    from: usize,
}

impl View {
    fn take(&mut self, new: Snapshot) {
        let seconds = (new.uptime_seconds - self.now.uptime_seconds).max(0.1);
        let per_second =
            |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
        let before: HashMap<&str, u64> = self
            .now
            .sources
            .iter()
            .map(|source| (source.id.as_str(), source.read_bytes))
            .collect();
        let is_first = self.now.version.is_empty();
        self.rates = new
            .sources
            .iter()
            .map(|source| {
                let was = before.get(source.id.as_str()).copied().unwrap_or(0);
                let rate = if is_first {
                    0
                } else {
                    per_second(source.read_bytes, was)
                };
                (source.id.clone(), rate)
            })
            .collect();
        self.read_rate = if is_first {
            0
        } else {
            per_second(new.read.bytes, self.now.read.bytes)
        };
        self.now = new;
    }

    /// Sources, those first that are read fastest, or are furthest behind.
    fn rows(&self) -> Vec<[String; 6]> {
        let mut rows: Vec<(u64, u64, [String; 6])> = self
            .now
            .sources
            .iter()
            .map(|source| {
                let lag = source
                    .flows
                    .iter()
                    .map(|flow| flow.lag_bytes)
                    .max()
                    .unwrap_or(0);
                let rate = self.rates.get(&source.id).copied().unwrap_or(0);
                let whose = match source.container.who.as_str() {
                    "" => "(configuration)",
                    who => who,
                };
                let error = source
                    .flows
                    .iter()
                    .find_map(|flow| flow.last_error.as_deref());
                let row = [
                    Escaped(whose).to_string(),
                    Escaped(&source.name).to_string(),
                    source.via.clone(),
                    format!("{}/s", show_size(rate)),
                    show_size(lag),
                    Escaped(error.unwrap_or(&source.path)).to_string(),
                ];
                (rate, lag, row)
            })
            .collect();
        let by_rate = self.by_rate;
        rows.sort_by_key(|(rate, lag, row)| {
            let keys = if by_rate {
                (*rate, *lag)
            } else {
                (*lag, *rate)
            };
            (std::cmp::Reverse(keys), row[0].clone(), row[1].clone())
        });
        rows.into_iter().map(|(_, _, row)| row).collect()
    }

    fn outputs(&self) -> Vec<[String; 6]> {
        self.now
            .outputs
            .iter()
            .map(|output| {
                let account = self.now.ledger.get(&output.name);
                let records = account.map_or(0, |account| account.delivered.records);
                let letters: u64 = output.dead_letters.values().sum();
                [
                    output.name.clone(),
                    output.kind.clone(),
                    if output.up { "up" } else { "DOWN" }.to_owned(),
                    show_size(output.lag_bytes),
                    format!("{records} delivered, {letters} refused"),
                    Escaped(output.trouble.as_deref().unwrap_or_default()).to_string(),
                ]
            })
            .collect()
    }

    fn head(&self) -> [String; 2] {
        let now = &self.now;
        let closes = now.ledger.values().all(|account| account.closes);
        let lost: u64 = now.ledger.values().map(|account| account.lost.bytes).sum();
        [
            format!(
                "ringpilot {} on {}, up {} s: reads {}/s, holds {} in memory, {} sources, {} rings",
                now.version,
                Escaped(&now.node),
                now.uptime_seconds as u64,
                show_size(self.read_rate),
                show_size(now.held_bytes),
                now.sources.len(),
                now.rings.len()
            ),
            format!(
                "ledger {}, {} lost; {} problems{}",
                if closes { "closes" } else { "DOES NOT CLOSE" },
                show_size(lost),
                now.problems.len(),
                if now.problems.is_empty() {
                    ""
                } else {
                    ": see `ringpilot explain`"
                }
            ),
        ]
    }

    fn lines(&self) -> Vec<String> {
        let table = |head: [&str; 6], rows: Vec<[String; 6]>| {
            let all: Vec<[String; 6]> = std::iter::once(head.map(str::to_owned))
                .chain(rows)
                .collect();
            let widths: Vec<usize> = (0..6)
                .map(|n| {
                    all.iter()
                        .map(|row| row[n].chars().count())
                        .max()
                        .unwrap_or(0)
                })
                .collect();
            all.into_iter()
                .map(move |row| {
                    let cells = row
                        .iter()
                        .zip(&widths)
                        .map(|(cell, width)| format!("{cell:width$}"));
                    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
                })
                .collect::<Vec<_>>()
        };
        let mut lines = self.head().to_vec();
        lines.extend(table(OUTPUT_HEAD, self.outputs()));
        lines.extend(table(SOURCE_HEAD, self.rows()));
        lines
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let outputs = self.outputs();
        let height = u16::try_from(outputs.len() + 2).unwrap_or(8).min(10);
        let areas = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(height),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .split(frame.area());
        frame.render_widget(
            ratatui::text::Text::from(self.head().map(Line::from).to_vec()),
            areas[0],
        );
        // No colour: bold and reverse are enough, and NO_COLOR need not be asked.
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let head = Style::new().add_modifier(Modifier::REVERSED);
        let table = |names: [&'static str; 6], rows: Vec<[String; 6]>, widths: [u16; 5]| {
            let rows = rows.into_iter().map(|row| {
                let is_bad = row[2] == "DOWN";
                let row = Row::new(row.map(Cell::from));
                if is_bad { row.style(bold) } else { row }
            });
            let widths: Vec<Constraint> = widths
                .into_iter()
                .map(Constraint::Length)
                .chain([Constraint::Min(10)])
                .collect();
            Table::new(rows, widths).header(Row::new(names).style(head))
        };
        frame.render_widget(table(OUTPUT_HEAD, outputs, [16, 14, 6, 10, 36]), areas[1]);
        let rows = self.rows().split_off(self.from.min(self.rows().len()));
        frame.render_widget(table(SOURCE_HEAD, rows, [32, 16, 7, 12, 10]), areas[2]);
        let order = if self.by_rate { "rate" } else { "lag" };
        let keys = format!("by {order}   q quit   l by lag   r by rate   up, down");
        frame.render_widget(Line::from(keys), areas[3]);
    }
}

const OUTPUT_HEAD: [&str; 6] = ["OUTPUT", "TYPE", "STATE", "LAG", "RECORDS", "TROUBLE"];
const SOURCE_HEAD: [&str; 6] = ["CONTAINER", "LOG", "BY", "RATE", "LAG", "FILE OR ERROR"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_furthest_behind_stands_first_and_a_rate_is_what_came_between_two_looks() {
        let told = |uptime: f64, read: u64| {
            let source = |id: &str, lag: u64, read: u64| {
                serde_json::json!({"id": id, "name": id, "target": "t", "format": "none", "via": "file",
                    "container": {"runtime": "static", "id": "", "name": "", "pod": "", "namespace": "", "who": ""},
                    "path": "/a", "inode": 1, "size_bytes": 1, "read_bytes": read, "state": "following",
                    "trouble": null, "flows": [{"output": "es", "acked_bytes": 0, "lag_bytes": lag,
                    "lag_seconds": 0.0, "last_error": null}]})
            };
            let mut snapshot =
                serde_json::to_value(Snapshot::<Vec<crate::status::Source>>::default())
                    .expect("JSON");
            snapshot["version"] = "1".into();
            snapshot["uptime_seconds"] = uptime.into();
            snapshot["sources"] =
                vec![source("near", 10, read), source("far\u{1b}", 2048, 0)].into();
            serde_json::from_value::<Snapshot>(snapshot).expect("a snapshot")
        };
        let mut view = View::default();
        view.take(told(1.0, 0));
        view.take(told(3.0, 4096));
        let rows = view.rows();
        assert_eq!(
            (rows[0][1].as_str(), rows[0][4].as_str()),
            ("far\\u{1b}", "2KiB")
        );
        assert_eq!(rows[1][3], "2KiB/s");
        view.by_rate = true;
        assert_eq!(view.rows()[0][1], "near");
        let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(120, 20))
            .expect("a terminal");
        terminal.draw(|frame| view.draw(frame)).expect("a picture");
        let drawn = terminal.backend().to_string();
        assert!(
            drawn.contains("by rate") && drawn.contains("near"),
            "{drawn}"
        );
    }
}
