//! The picture of one server: a strip for each tool, with requests/s over time, failures below, and a line at each deploy.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use plotters::chart::ChartContext;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::record::{MOMENT, Row};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Seconds to the right, shares of the scale up.
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const WIDTH: u32 = 880;
/// The heights: above the strips, of one, and below them.
const HEAD: u32 = 62;
const STRIP: u32 = 54;
const FOOT: u32 = 26;
/// What is left for words on both sides of the strips.
const LEFT: u32 = 205;
const RIGHT: u32 = 135;
/// How far a strip reaches: from the most failures below to the most requests above.
const REACH: Range<f64> = -0.4..1.0;

const TEXT: RGBColor = RGBColor(31, 35, 40);
const FAINT: RGBColor = RGBColor(101, 109, 118);
const LINE: RGBColor = RGBColor(208, 215, 222);
const RATE: RGBColor = RGBColor(128, 178, 234);
const GOOD: RGBColor = RGBColor(26, 127, 55);
const BAD: RGBColor = RGBColor(207, 34, 46);

/// What is the same for all strips of a picture.
struct Scale {
    /// In seconds.
    time: f64,
    /// The most requests/s that fit, and the most failures in a moment.
    rate: f64,
    failed: f64,
}

pub fn draw(file: &Path, server: &str, rows: &[Row], time: Duration) -> Result<()> {
    let strips = STRIP * u32::try_from(rows.len())?;
    let area = SVGBackend::new(file, (WIDTH, HEAD + strips + FOOT)).into_drawing_area();
    // Not transparent, for it is shown on dark pages, too.
    area.fill(&WHITE)?;
    let undisturbed = rows.iter().map(|row| row.undisturbed.tally.rate()).fold(1.0, f64::max);
    let failed = rows.iter().flat_map(|row| &row.deployed.moments).map(|moment| moment.failed).max();
    let scale = Scale { time: time.as_secs_f64(), rate: 1.2 * undisturbed, failed: failed.unwrap_or(0).max(1).into() };
    let (head, rest) = area.split_vertically(HEAD);
    draw_head(&head, server)?;
    let (rest, foot) = rest.split_vertically(strips);
    for (strip, row) in rest.split_evenly((rows.len(), 1)).iter().zip(rows) {
        draw_strip(strip, row, &scale)?;
    }
    draw_foot(&foot, &scale)?;
    Ok(area.present()?)
}

fn draw_head(area: &Area, server: &str) -> Result<()> {
    let title = format!("{server}, replaced every second under load");
    write(area, (LEFT, 8), &title, HPos::Left, 18, &TEXT)?;
    let mut at = LEFT;
    // Each with what it is drawn like, and how wide that is in all.
    let legend =
        [("requests/s (the line: undisturbed)", RATE, 230), ("failed requests", BAD, 125), ("deploys", FAINT, 0)];
    for (what, color, width) in legend {
        let left = i32::try_from(at)?;
        area.draw(&Rectangle::new([(left, 39), (left + if width > 0 { 10 } else { 1 }, 49)], color.filled()))?;
        write(area, (at + 16, 38), what, HPos::Left, 12, &FAINT)?;
        at += width;
    }
    Ok(())
}

fn draw_strip(area: &Area, row: &Row, scale: &Scale) -> Result<()> {
    write(area, (12, 8), row.tool.title, HPos::Left, 14, &TEXT)?;
    write(area, (12, 26), row.tool.detail, HPos::Left, 12, &FAINT)?;
    let failed = row.deployed.failed();
    let color = if failed == 0 { &GOOD } else { &BAD };
    write(area, (WIDTH - 12, 7), &format!("{} failed", grouped(failed)), HPos::Right, 15, color)?;
    let ratio = format!("{:.0} % of undisturbed", 100.0 * row.ratio());
    write(area, (WIDTH - 12, 26), &ratio, HPos::Right, 12, &FAINT)?;
    let mut builder = ChartBuilder::on(area);
    builder.margin_left(LEFT).margin_right(RIGHT).margin_top(2).margin_bottom(2);
    let mut chart = builder.build_cartesian_2d(0.0..scale.time, REACH)?;
    draw_rate(&mut chart, row, scale)?;
    draw_failures(&mut chart, row, scale)?;
    chart.draw_series([PathElement::new([(0.0, 0.0), (scale.time, 0.0)], FAINT)])?;
    Ok(())
}

/// The rate as an area, with the undisturbed one as a line, and the deploys.
fn draw_rate(chart: &mut Chart, row: &Row, scale: &Scale) -> Result<()> {
    let moments = row.deployed.moments.iter().take((scale.time / MOMENT.as_secs_f64()) as usize);
    let steps = moments.zip(0..).flat_map(|(moment, number)| {
        let height = (f64::from(moment.answered) / MOMENT.as_secs_f64() / scale.rate).min(1.0);
        [(start(number), height), (start(number + 1), height)]
    });
    let outline: Vec<_> = [(0.0, 0.0)].into_iter().chain(steps).chain([(scale.time, 0.0)]).collect();
    chart.draw_series([Polygon::new(outline, RATE)])?;
    let undisturbed = row.undisturbed.tally.rate() / scale.rate;
    chart.draw_series([PathElement::new([(0.0, undisturbed), (scale.time, undisturbed)], LINE)])?;
    let times = row.deploys.iter().map(|deploy| deploy.begun.as_secs_f64());
    chart.draw_series(times.map(|time| PathElement::new([(time, REACH.start), (time, REACH.end)], FAINT.mix(0.5))))?;
    Ok(())
}

/// Bars that hang down. A single failure is to be seen beside hundreds, so their length is logarithmic.
fn draw_failures(chart: &mut Chart, row: &Row, scale: &Scale) -> Result<()> {
    let moments = row.deployed.moments.iter().zip(0..).filter(|(moment, _)| moment.failed > 0);
    chart.draw_series(moments.map(|(moment, number)| {
        let share = (1.0 + f64::from(moment.failed)).ln() / (1.0 + scale.failed).ln();
        let end = REACH.start * share.max(0.3);
        // What fails after the last moment, waiting, is shown in that.
        let left = start(number).min(scale.time - MOMENT.as_secs_f64());
        Rectangle::new([(left, 0.0), (left + MOMENT.as_secs_f64(), end)], BAD.filled())
    }))?;
    Ok(())
}

/// The axis of time.
fn draw_foot(area: &Area, scale: &Scale) -> Result<()> {
    let seconds = scale.time.floor() as u32;
    let step = (seconds / 4).max(1);
    for second in (0..=seconds).step_by(step as usize) {
        let at = LEFT + (f64::from(WIDTH - LEFT - RIGHT) * f64::from(second) / scale.time) as u32;
        write(area, (at, 4), &format!("{second} s"), HPos::Center, 12, &FAINT)?;
    }
    Ok(())
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", grouped(number / 1000), number % 1000) }
}

/// When a moment begins, in seconds.
fn start(number: u32) -> f64 {
    f64::from(number) * MOMENT.as_secs_f64()
}

/// Words, whose top is at this height. The font is the reader's own.
fn write(area: &Area, at: (u32, u32), words: &str, side: HPos, size: u32, color: &RGBColor) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(color).pos(Pos::new(side, VPos::Top));
    Ok(area.draw_text(words, &style, (i32::try_from(at.0)?, i32::try_from(at.1)?))?)
}
