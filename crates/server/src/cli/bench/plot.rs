//! The figures as one picture, as SVG: gets per second as bars, and below them bytes per object as lines.
//!
//! All scales but that of the kinds are logarithmic.

use std::fmt::Write;

use super::harness::{Figures, Memory};
use super::report::{grouped, kinds, time};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 860.0;
const LEFT: f64 = 230.0;
/// The bars.
const BARS_TOP: f64 = 92.0;
const BARS_RIGHT: f64 = 700.0;
const BAR_STEP: f64 = 44.0;
const BAR: f64 = 26.0;
/// The lines.
const LINES_LEFT: f64 = 92.0;
const LINES_TOP: f64 = 500.0;
const LINES_BOTTOM: f64 = 790.0;
const LINES_RIGHT: f64 = 600.0;

/// Okabe and Ito's colours, which differ for colour-blind readers too; by kind of object.
const COLOURS: [&str; 2] = ["#0072b2", "#d55e00"];
/// A line of the second figure.
struct Series {
    name: &'static str,
    /// As `stroke-dasharray` takes it.
    dashes: &'static str,
    bytes: fn(&Memory) -> f64,
}

const SERIES: [Series; 3] = [
    Series { name: "plain value, stored", dashes: "2 4", bytes: |memory| memory.plain_bytes },
    Series { name: "active object, stored", dashes: "8 4", bytes: |memory| memory.stored_bytes },
    Series { name: "active object, loaded: sandbox", dashes: "none", bytes: |memory| memory.sandbox_bytes },
];

/// Adds a line of SVG.
macro_rules! put {
    ($out:expr, $($format:tt)*) => {
        writeln!($out, $($format)*).expect("writing to memory does not fail")
    };
}

/// Draws the figures. There must be some of both kinds.
pub fn svg(figures: &Figures) -> String {
    let mut out = String::new();
    let size = format!(r#"viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}""#);
    put!(out, r#"<svg xmlns="http://www.w3.org/2000/svg" {size}"#);
    put!(out, r##"font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">"##);
    put!(out, r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"##);
    bars(&mut out, figures);
    lines(&mut out, figures);
    out.push_str("</svg>\n");
    out
}

/// A logarithmic scale over whole powers of ten.
struct Scale {
    powers: (i32, i32),
    places: (f64, f64),
}

impl Scale {
    fn of(numbers: impl Iterator<Item = f64> + Clone, places: (f64, f64)) -> Scale {
        let log = |number: f64| number.max(1.0).log10();
        let least = numbers.clone().map(log).fold(f64::MAX, f64::min).floor() as i32;
        let greatest = numbers.map(log).fold(0.0, f64::max).ceil() as i32;
        Scale { powers: (least, greatest.max(least + 1)), places }
    }

    fn place(&self, number: f64) -> f64 {
        let (first, last) = (f64::from(self.powers.0), f64::from(self.powers.1));
        let share = (number.max(1.0).log10() - first) / (last - first);
        self.places.0 + share * (self.places.1 - self.places.0)
    }

    fn marks(&self) -> impl Iterator<Item = (f64, String)> + '_ {
        (self.powers.0..=self.powers.1).map(|power| {
            let number = 10_f64.powi(power);
            (self.place(number), grouped(number as u64))
        })
    }
}

fn title(out: &mut String, y: f64, text: &str, below: &str) {
    put!(out, r#"<text x="30" y="{y}" font-size="18" font-weight="bold">{text}</text>"#);
    put!(out, r##"<text x="30" y="{}" fill="#555">{below}</text>"##, y + 24.0);
}

fn bars(out: &mut String, figures: &Figures) {
    title(
        out,
        34.0,
        "Gets per second",
        "One node on one thread, without network and disk; µs per get beside the bars",
    );
    let rates = figures.speeds.iter().map(|speed| speed.gets_per_s);
    // Bars begin below the least rate, and leave room for their texts.
    let mut scale = Scale::of(rates, (LEFT, BARS_RIGHT));
    scale.powers.0 = (scale.powers.0 - 1).max(0);
    let bottom = BARS_TOP + BAR_STEP * figures.speeds.len() as f64;
    for (x, text) in scale.marks() {
        put!(out, r##"<path d="M{x:.1} {BARS_TOP}V{bottom}" stroke="#e2e2e2"/>"##);
        put!(out, r#"<text x="{x:.1}" y="{}" text-anchor="middle">{text}</text>"#, bottom + 20.0);
    }
    for (row, speed) in figures.speeds.iter().enumerate() {
        let y = BARS_TOP + BAR_STEP * row as f64 + (BAR_STEP - BAR) / 2.0;
        let x = scale.place(speed.gets_per_s);
        let colour = if row == 0 { "#888" } else { COLOURS[0] };
        put!(
            out,
            r#"<rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="{BAR}" fill="{colour}"/>"#,
            (x - LEFT).max(1.0)
        );
        let middle = y + BAR / 2.0 + 4.5;
        put!(out, r#"<text x="{}" y="{middle:.1}" text-anchor="end">{}</text>"#, LEFT - 10.0, speed.what);
        let rate = grouped(speed.gets_per_s.round() as u64);
        put!(
            out,
            r#"<text x="{:.1}" y="{middle:.1}">{rate}: {} µs</text>"#,
            x + 8.0,
            time(Some(speed.get_us))
        );
    }
    put!(out, r##"<path d="M{LEFT} {BARS_TOP}V{bottom}H{BARS_RIGHT}" fill="none" stroke="#222"/>"##);
}

fn lines(out: &mut String, figures: &Figures) {
    title(out, 444.0, "Bytes per object", "By number of objects");
    let memories = &figures.memories;
    let bytes = memories.iter().flat_map(|memory| SERIES.map(|series| (series.bytes)(memory)));
    let y = Scale::of(bytes, (LINES_BOTTOM, LINES_TOP));
    let counts = memories.iter().map(|memory| f64::from(memory.objects));
    let x = Scale::of(counts, (LINES_LEFT, LINES_RIGHT));
    for (at, text) in y.marks() {
        put!(out, r##"<path d="M{LINES_LEFT} {at:.1}H{LINES_RIGHT}" stroke="#e2e2e2"/>"##);
        put!(out, r#"<text x="{}" y="{:.1}" text-anchor="end">{text}</text>"#, LINES_LEFT - 10.0, at + 4.5);
    }
    for (at, text) in x.marks() {
        put!(out, r##"<path d="M{at:.1} {LINES_TOP}V{LINES_BOTTOM}" stroke="#e2e2e2"/>"##);
        put!(out, r#"<text x="{at:.1}" y="{}" text-anchor="middle">{text}</text>"#, LINES_BOTTOM + 20.0);
    }
    put!(
        out,
        r##"<path d="M{LINES_LEFT} {LINES_TOP}V{LINES_BOTTOM}H{LINES_RIGHT}" fill="none" stroke="#222"/>"##
    );
    let middle = (LINES_LEFT + LINES_RIGHT) / 2.0;
    put!(out, r#"<text x="{middle}" y="{}" text-anchor="middle">Objects</text>"#, LINES_BOTTOM + 46.0);
    let mut row = LINES_TOP + 16.0;
    for (kind, colour) in kinds(memories).into_iter().zip(COLOURS) {
        put!(out, r#"<text x="{}" y="{row}" font-weight="bold">{kind}</text>"#, LINES_RIGHT + 20.0);
        for Series { name, dashes, bytes } in SERIES {
            let of_kind = memories.iter().filter(|memory| memory.kind == kind);
            let places: Vec<String> = of_kind
                .map(|memory| format!("{:.1},{:.1}", x.place(memory.objects.into()), y.place(bytes(memory))))
                .collect();
            let stroke =
                format!(r#"fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}""#);
            put!(out, r#"<polyline {stroke} points="{}"/>"#, places.join(" "));
            row += 22.0;
            put!(out, r#"<path d="M{} {}h28" {stroke}/>"#, LINES_RIGHT + 20.0, row - 4.5);
            put!(out, r#"<text x="{}" y="{row}">{name}</text>"#, LINES_RIGHT + 56.0);
        }
        row += 36.0;
    }
}
