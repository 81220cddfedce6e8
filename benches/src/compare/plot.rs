//! The comparison as a picture: four figures, each way a bar.

use std::path::Path;

use plotters::prelude::*;

use super::{Compare, Cost};

const SIZE: (u32, u32) = (1000, 620);
/// Of a panel: where bars begin and how long the longest is.
const BARS_AT: i32 = 140;
const LONGEST: f64 = 260.0;
const STEP: i32 = 34;
const INK: RGBColor = RGBColor(40, 40, 40);
const COLOURS: [RGBColor; 6] = [
    RGBColor(68, 119, 170),
    RGBColor(204, 102, 119),
    RGBColor(17, 119, 51),
    RGBColor(221, 170, 51),
    RGBColor(136, 136, 136),
    RGBColor(170, 68, 153),
];

/// Writes it as SVG.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(path: &Path, asked: &Compare, costs: &[Cost]) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!(
        "{} pods, {} lines/s each; then {} pods at full speed",
        asked.pods, asked.rate, asked.busy
    );
    let root = root.titled(&title, ("sans-serif", 20).into_font().color(&INK))?;
    type Of = fn(&Cost) -> f64;
    let panels: [(&str, Of); 4] = [
        ("CPU, % of a core", |cost| cost.steady_cpu_percent),
        ("CPU at full speed, s/GB", |cost| {
            cost.full_cpu_seconds_per_gb
        }),
        ("memory (PSS), MB", |cost| cost.pss_bytes as f64 / 1e6),
        ("wake-ups a second", |cost| cost.wakes_per_second),
    ];
    for (area, (title, of)) in root.split_evenly((2, 2)).iter().zip(panels) {
        let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
        area.draw(&Text::new(title, (20, 10), text(17)))?;
        let most = costs.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
        for (n, (cost, colour)) in (0..).zip(costs.iter().zip(COLOURS.iter().cycle())) {
            let (value, y) = (of(cost), 44 + n * STEP);
            // At least a line, so that a small one is seen.
            let end = BARS_AT + ((value / most * LONGEST) as i32).max(1);
            area.draw(&Text::new(cost.way.name(), (20, y + 4), text(14)))?;
            area.draw(&Rectangle::new(
                [(BARS_AT, y), (end, y + 22)],
                colour.filled(),
            ))?;
            let shown = if value < 10.0 {
                format!("{value:.2}")
            } else {
                format!("{value:.0}")
            };
            area.draw(&Text::new(shown, (end + 6, y + 4), text(14)))?;
        }
    }
    Ok(root.present()?)
}
