//! The points as a picture: efficiency over the size of the table, one line per strategy, as SVG.
//!
//! The horizontal axis is logarithmic, since sizes double. A pale band behind each line reaches from the worst seed to
//! the best.

use std::fmt::Write;

use super::report::caption;
use super::{of_strategy, Point, Setup};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
/// The corners of the area between the axes.
const LEFT: f64 = 78.0;
const RIGHT: f64 = 830.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 444.0;

/// How a strategy is drawn. The colours differ for colour-blind readers too (Okabe and Ito), and so do the marks.
struct Style {
    number: u8,
    colour: &'static str,
    mark: Mark,
}

#[derive(Clone, Copy)]
enum Mark {
    Circle,
    Square,
    Diamond,
}

/// In the order of the legend, which is that of the lines.
const STYLES: [Style; 3] = [
    Style { number: 3, colour: "#009e73", mark: Mark::Diamond },
    Style { number: 1, colour: "#0072b2", mark: Mark::Circle },
    Style { number: 2, colour: "#d55e00", mark: Mark::Square },
];

/// Draws the points. There must be at least one.
pub fn svg(setup: &Setup, points: &[Point]) -> String {
    let axes = Axes::of(points);
    let mut out = head(setup);
    axes.draw(&mut out);
    for style in &STYLES {
        band(&mut out, &axes, style, points);
    }
    for style in &STYLES {
        line(&mut out, &axes, style, points);
    }
    legend(&mut out, setup);
    out.push_str("</svg>\n");
    out
}

/// Adds a line of SVG.
macro_rules! put {
    ($out:expr, $($format:tt)*) => {
        writeln!($out, $($format)*).expect("writing to memory does not fail")
    };
}

fn head(setup: &Setup) -> String {
    let mut out = String::new();
    put!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">"##
    );
    put!(out, r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"##);
    put!(
        out,
        r#"<text x="{LEFT}" y="34" font-size="18" font-weight="bold">How evenly each strategy spreads load</text>"#
    );
    put!(
        out,
        r##"<text x="{LEFT}" y="58" fill="#555">{}; bands: the worst seed to the best</text>"##,
        caption(setup)
    );
    out
}

/// From sizes and efficiencies to places in the picture.
struct Axes {
    /// Powers of two at the ends of the horizontal axis.
    powers: (i32, i32),
    /// The efficiency at the bottom, in tenths; the top is 1.
    floor_tenths: i32,
}

impl Axes {
    fn of(points: &[Point]) -> Axes {
        let sizes = || points.iter().map(|point| point.entries.log2());
        let least = points.iter().map(|point| point.range.0).fold(1.0, f64::min);
        Axes {
            powers: (
                sizes().fold(f64::MAX, f64::min).floor() as i32,
                sizes().fold(0.0, f64::max).ceil() as i32,
            ),
            floor_tenths: ((least * 10.0).floor() as i32).clamp(0, 9),
        }
    }

    fn x(&self, entries: f64) -> f64 {
        let (first, last) = (self.powers.0 as f64, self.powers.1 as f64);
        LEFT + (entries.log2() - first) / (last - first).max(1.0) * (RIGHT - LEFT)
    }

    fn y(&self, efficiency: f64) -> f64 {
        let floor = self.floor_tenths as f64 / 10.0;
        BOTTOM - (efficiency - floor) / (1.0 - floor) * (BOTTOM - TOP)
    }

    fn draw(&self, out: &mut String) {
        put!(out, r##"<g stroke="#e2e2e2">"##);
        for tenths in self.floor_tenths..=10 {
            let y = self.y(tenths as f64 / 10.0);
            put!(out, r#"<path d="M{LEFT} {y:.1}H{RIGHT}"/>"#);
        }
        for power in self.powers.0..=self.powers.1 {
            let x = self.x(2f64.powi(power));
            put!(out, r#"<path d="M{x:.1} {TOP}V{BOTTOM}"/>"#);
        }
        put!(out, "</g>");
        put!(out, r##"<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#222"/>"##);
        for tenths in self.floor_tenths..=10 {
            let (x, y) = (LEFT - 10.0, self.y(tenths as f64 / 10.0) + 4.5);
            put!(out, r#"<text x="{x}" y="{y:.1}" text-anchor="end">{:.1}</text>"#, tenths as f64 / 10.0);
        }
        for power in self.powers.0..=self.powers.1 {
            let (x, y) = (self.x(2f64.powi(power)), BOTTOM + 20.0);
            put!(out, r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{}</text>"#, 1u64 << power);
        }
        let (x, y) = ((LEFT + RIGHT) / 2.0, BOTTOM + 48.0);
        put!(
            out,
            r#"<text x="{x}" y="{y}" text-anchor="middle">Entries in each node's table from token to node (logarithmic)</text>"#
        );
        let (x, y) = (28.0, (TOP + BOTTOM) / 2.0);
        put!(
            out,
            r#"<text transform="translate({x} {y}) rotate(-90)" text-anchor="middle">Efficiency: mean load / greatest load</text>"#
        );
    }
}

fn band(out: &mut String, axes: &Axes, style: &Style, points: &[Point]) {
    let place = |entries, efficiency| format!("{:.1},{:.1}", axes.x(entries), axes.y(efficiency));
    let points: Vec<&Point> = of_strategy(points, style.number).collect();
    let best = points.iter().map(|point| place(point.entries, point.range.1));
    let worst = points.iter().rev().map(|point| place(point.entries, point.range.0));
    let corners: Vec<String> = best.chain(worst).collect();
    put!(out, r#"<polygon fill="{}" opacity="0.13" points="{}"/>"#, style.colour, corners.join(" "));
}

fn line(out: &mut String, axes: &Axes, style: &Style, points: &[Point]) {
    let points = of_strategy(points, style.number);
    let places: Vec<(f64, f64)> =
        points.map(|point| (axes.x(point.entries), axes.y(point.efficiency))).collect();
    let corners: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    put!(
        out,
        r#"<polyline fill="none" stroke="{}" stroke-width="2.5" points="{}"/>"#,
        style.colour,
        corners.join(" ")
    );
    for (x, y) in places {
        mark(out, style, x, y);
    }
}

fn mark(out: &mut String, style: &Style, x: f64, y: f64) {
    let colour = style.colour;
    let path = match style.mark {
        Mark::Circle => {
            return put!(out, r##"<circle cx="{x:.1}" cy="{y:.1}" r="4.5" fill="{colour}" stroke="#fff"/>"##)
        }
        Mark::Square => "m-4.5 -4.5h9v9h-9z",
        Mark::Diamond => "m0 -6l6 6l-6 6l-6 -6z",
    };
    put!(out, r##"<path d="M{x:.1} {y:.1}{path}" fill="{colour}" stroke="#fff"/>"##);
}

/// In the lower right corner, which lines that rise to the right leave free.
fn legend(out: &mut String, setup: &Setup) {
    let (left, top) = (RIGHT - 412.0, BOTTOM - 92.0);
    put!(
        out,
        r##"<rect x="{left}" y="{top}" width="400" height="80" rx="4" fill="#fff" opacity="0.92" stroke="#bbb"/>"##
    );
    for (row, style) in STYLES.iter().enumerate() {
        let (x, y) = (left + 14.0, top + 18.0 + 22.0 * row as f64);
        put!(out, r#"<path d="M{x} {y}h28" stroke="{}" stroke-width="2.5"/>"#, style.colour);
        mark(out, style, x + 14.0, y);
        let what = match style.number {
            1 => "ranges between random tokens".to_string(),
            2 => format!("random tokens, {} equal partitions", setup.partitions),
            _ => "equal partitions, dealt out evenly".to_string(),
        };
        put!(out, r#"<text x="{}" y="{}">Strategy {}: {what}</text>"#, x + 38.0, y + 4.5, style.number);
    }
}
