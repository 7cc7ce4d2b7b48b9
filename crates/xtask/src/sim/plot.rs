//! The plot of a run: what the nodes hold and what the seed has sent, over time, as an SVG.
//!
//! No background and mid-toned colours: it is read on white and on dark pages alike. Lines differ
//! in their dashes too, for those who see colours differently and for print.

use std::fmt::Write as _;

use rootswarm_sim::Sample;

use super::Run;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 56.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 48.0;

/// Text and axes: 4.5:1 against white and against black.
const GREY: &str = "#767676";

struct Line {
    name: &'static str,
    colour: &'static str,
    dashes: &'static str,
    of: fn(&Sample) -> f64,
    /// Whether it is read from the right axis.
    copies: bool,
}

const LINES: [Line; 4] = [
    Line {
        name: "fastest node",
        colour: "#0d9488",
        dashes: "2 3",
        of: |at| at.fastest,
        copies: false,
    },
    Line {
        name: "median node",
        colour: "#3b82f6",
        dashes: "none",
        of: |at| at.median,
        copies: false,
    },
    Line {
        name: "slowest node",
        colour: "#db2777",
        dashes: "8 4",
        of: |at| at.slowest,
        copies: false,
    },
    Line {
        name: "seed's copies (right)",
        colour: "#b45309",
        dashes: "1 5",
        of: |at| at.seed_copies,
        copies: true,
    },
];

/// A step of 1, 2 or 5 times a power of ten that divides `range` into at most `most` parts.
fn step(range: f64, most: f64) -> f64 {
    let rough = (range / most).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    let multiple = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|times| times * power >= rough);
    multiple.unwrap_or(10.0) * power
}

/// The run as an SVG document.
pub fn svg(run: &Run) -> String {
    let (plan, outcome) = (&run.plan, &run.outcome);
    let samples = &outcome.progress;
    let end_s = samples
        .last()
        .map_or(0.0, |at| at.at_s)
        .max(outcome.bound_s);
    let sent = samples.iter().map(|at| at.seed_copies).fold(1.0, f64::max);
    let copies_step = step(sent, 5.0);
    let copies_top = (sent / copies_step).ceil() * copies_step;
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let x = |at_s: f64| LEFT + width * at_s / end_s;
    let y = |share: f64| TOP + height * (1.0 - share);
    let (floor, ceiling, right) = (y(0.0), y(1.0), x(end_s));

    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{GREY}\">\n\
         <title>{}, seed {}</title>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}: {} nodes, {:.0} MB (run with --seed {})</text>\n",
        plan.name,
        run.seed,
        plan.name,
        plan.nodes,
        plan.image_bytes as f64 / 1e6,
        run.seed
    );
    let mut label = |x: f64, y: f64, anchor: &str, what: &str| {
        let _ = writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{what}</text>"
        );
    };
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        label(
            LEFT - 8.0,
            y(share) + 4.0,
            "end",
            &format!("{:.0} %", share * 100.0),
        );
    }
    let ticks = |top: f64, step: f64| {
        let count = (top / step + 1e-9).floor() as u32;
        (0..=count).map(move |tick| f64::from(tick) * step)
    };
    for copies in ticks(copies_top, copies_step) {
        let at = y(copies / copies_top) + 4.0;
        label(
            right + 8.0,
            at,
            "start",
            &format!("{}", (copies * 1e6).round() / 1e6),
        );
    }
    let time_step = step(end_s, 8.0);
    for at_s in ticks(end_s, time_step) {
        label(
            x(at_s),
            floor + 18.0,
            "middle",
            &format!("{}", (at_s * 1e6).round() / 1e6),
        );
    }
    label(
        (LEFT + right) / 2.0,
        HEIGHT - 10.0,
        "middle",
        "seconds from the start",
    );
    label(LEFT - 44.0, TOP - 10.0, "start", "of the image held");
    label(WIDTH - 6.0, TOP - 10.0, "end", "copies sent");
    label(x(outcome.bound_s) - 4.0, ceiling - 6.0, "end", "T*");

    for quarter in 1..=4 {
        let at = y(f64::from(quarter) / 4.0);
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {at:.1}H{right:.1}\" stroke=\"{GREY}\" stroke-opacity=\"0.25\"/>"
        );
    }
    let _ = writeln!(
        text,
        "<path d=\"M{LEFT} {ceiling:.1}V{floor:.1}H{right:.1}V{ceiling:.1}\" fill=\"none\" \
         stroke=\"{GREY}\"/>\n\
         <path d=\"M{:.1} {:.1}V{floor:.1}\" stroke=\"{GREY}\" stroke-dasharray=\"4 4\"/>",
        x(outcome.bound_s),
        ceiling - 16.0,
    );
    for (number, line) in LINES.iter().enumerate() {
        let top = if line.copies { copies_top } else { 1.0 };
        let points = samples.iter().map(|at| {
            let share = ((line.of)(at) / top).clamp(0.0, 1.0);
            format!("{:.1},{:.1}", x(at.at_s), y(share))
        });
        let points = points.collect::<Vec<_>>().join(" ");
        let (colour, dashes) = (line.colour, line.dashes);
        let stroke = format!(
            "fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linecap=\"round\" \
             stroke-dasharray=\"{dashes}\""
        );
        let at = LEFT + 160.0 * number as f64;
        let _ = writeln!(
            text,
            "<polyline points=\"{points}\" {stroke}/>\n\
             <path d=\"M{at:.1} 36H{:.1}\" {stroke}/>\n\
             <text x=\"{:.1}\" y=\"40\">{}</text>",
            at + 24.0,
            at + 30.0,
            line.name
        );
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn steps_are_round() {
        for (range, most, expected) in [
            (1.0, 5.0, 0.2),
            (8.4, 8.0, 2.0),
            (1.1, 5.0, 0.5),
            (770.0, 8.0, 100.0),
            (0.9, 8.0, 0.2),
        ] {
            let found = step(range, most);
            assert!((found - expected).abs() < 1e-9, "{range}/{most}: {found}");
        }
    }
}
