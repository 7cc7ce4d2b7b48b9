//! The report as a picture: for each case a group of bars, the last node's time over the bound.
//!
//! Colours and greys are chosen to be read on white and on black, because nothing tells an SVG in a
//! page which of them it stands on. Bars that would hide the others are cut and say their value.

use std::fmt::Write as _;

use super::{Report, Spread, Summary, Tool, summarise, table};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 152.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 64.0;
const BAR: f64 = 15.0;
const BAR_STEP: f64 = 19.0;
const GROUP_HEAD: f64 = 24.0;
const GROUP_GAP: f64 = 12.0;
const FOOT: f64 = 44.0;
/// Where bars are cut. Everything with peers is below; what a seed sends alone is far above.
const CUT: f64 = 2.5;
const TICK: f64 = 0.5;

/// 4.3:1 on white and 4.4:1 on #0d1117.
const INK: &str = "#767c85";
const FAINT: &str = "#8b949e55";

/// Draws it.
pub fn svg(report: &Report) -> String {
    let summaries: Vec<Summary> = summarise(report)
        .into_iter()
        .filter(|summary| !summary.case.is_quick())
        .collect();
    let groups: Vec<&[Summary]> = summaries
        .chunk_by(|left, right| left.case == right.case)
        .collect();
    let group_height = |group: &[Summary]| GROUP_HEAD + group.len() as f64 * BAR_STEP + GROUP_GAP;
    let bars_height: f64 = groups.iter().map(|group| group_height(group)).sum();
    let height = TOP + bars_height + FOOT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <title>Last node's finish over the lower bound</title>\n"
    );
    text(
        &mut svg,
        0.0,
        16.0,
        "font-size=\"15\" font-weight=\"600\"",
        "Time until the last node has the image",
    );
    text(
        &mut svg,
        0.0,
        35.0,
        "",
        "over the least that is possible on these links; where links are not shaped, over nginx + wget. \
         Shorter is better.",
    );
    let bottom = TOP + bars_height;
    let ticks = (0..=(CUT / TICK) as u32).map(|tick| f64::from(tick) * TICK);
    for value in ticks {
        let (x, stroke) = (x_of(value), if value == 1.0 { INK } else { FAINT });
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{stroke}\"/>"
        );
        text(
            &mut svg,
            x,
            TOP - 6.0,
            "text-anchor=\"middle\"",
            &format!("{value}"),
        );
    }
    let mut y = TOP;
    for group in groups {
        let described = group[0].case.description();
        text(
            &mut svg,
            LEFT + 6.0,
            y + 17.0,
            "font-weight=\"600\"",
            &described,
        );
        for (row, summary) in group.iter().enumerate() {
            bar(&mut svg, y + GROUP_HEAD + row as f64 * BAR_STEP, summary);
        }
        y += group_height(group);
    }
    let runs = summaries
        .iter()
        .map(|summary| summary.runs)
        .max()
        .unwrap_or(0);
    let of_runs = match runs {
        0 | 1 => "One run".to_owned(),
        runs => format!("Median of {runs} runs with the least and the most"),
    };
    let foot = format!("{of_runs}. {}.", report.machine);
    text(&mut svg, 0.0, bottom + 28.0, "font-size=\"11\"", &foot);
    svg += "</svg>\n";
    svg
}

/// One tool's line: name, bar, range, value.
fn bar(svg: &mut String, y: f64, summary: &Summary) {
    let baseline = y + BAR - 3.5;
    let weight = match summary.tool {
        Tool::Rootswarm => "text-anchor=\"end\" font-weight=\"600\"",
        _ => "text-anchor=\"end\"",
    };
    text(
        svg,
        LEFT - 8.0,
        baseline,
        weight,
        &table::name(summary.tool),
    );
    let nginx_itself = Spread {
        median: 1.0,
        min: 1.0,
        max: 1.0,
    };
    let measured = summary.last_over_bound.or(summary.over_nginx).or_else(|| {
        let is_unit = summary.tool == Tool::Nginx && summary.last_s.is_some();
        is_unit.then_some(nginx_itself)
    });
    let (value, said, opacity) = match (measured, summary.skipped) {
        (Some(spread), _) => (spread.median, format!("{:.2}", spread.median), 1.0),
        (None, Some(skipped)) => {
            let least = skipped.at_least_over_bound;
            (least, format!("at least {least:.0}"), 0.4)
        }
        (None, None) => (0.0, "error".to_owned(), 1.0),
    };
    let colour = colour(summary.tool);
    let (start, end) = (x_of(0.0), x_of(value));
    let width = end - start;
    let _ = writeln!(
        svg,
        "<rect x=\"{start:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" \
         fill=\"{colour}\" fill-opacity=\"{opacity}\"/>"
    );
    let mut label = end + 6.0;
    if value > CUT {
        // Two strokes across the end say that it goes on.
        for shift in [10.0, 15.0] {
            let (x, low, high) = (end - shift, y + BAR + 1.0, y - 1.0);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{low:.1}\" x2=\"{:.1}\" y2=\"{high:.1}\" \
                 stroke=\"{INK}\" stroke-width=\"2\"/>",
                x + 5.0
            );
        }
    } else if let Some(Spread { min, max, .. }) = measured.filter(|spread| spread.max > spread.min)
    {
        let (middle, min, max) = (y + BAR / 2.0, x_of(min), x_of(max));
        let _ = writeln!(
            svg,
            "<line x1=\"{min:.1}\" y1=\"{middle:.1}\" x2=\"{max:.1}\" y2=\"{middle:.1}\" \
             stroke=\"{INK}\" stroke-width=\"2\"/>"
        );
        label = label.max(max + 6.0);
    }
    text(svg, label, baseline, "", &said);
}

fn x_of(value: f64) -> f64 {
    LEFT + value.min(CUT) / CUT * (WIDTH - LEFT - RIGHT)
}

fn colour(tool: Tool) -> &'static str {
    match tool {
        Tool::Rootswarm => "#2f81f7",
        Tool::Nginx => "#8b949e",
        Tool::Aria2 => "#c69026",
        Tool::Libtorrent => "#a371f7",
        Tool::Udpcast => "#3fa45b",
        Tool::Mbuffer => "#db61a2",
        Tool::Uftp => "#1b7c83",
    }
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    let content = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{outcome, report};
    use super::super::{Failure, Skipped};
    use super::*;

    #[test]
    fn every_figure_is_drawn_and_written() {
        let mut report = report(vec![
            outcome("8x100", Tool::Rootswarm, 1, 8.8),
            outcome("8x100", Tool::Rootswarm, 2, 9.0),
            outcome("8x100", Tool::Nginx, 1, 68.0),
            outcome("4xmax", Tool::Rootswarm, 1, 0.6),
            outcome("4xmax", Tool::Nginx, 1, 0.4),
            outcome("quick", Tool::Nginx, 1, 0.4),
        ]);
        report.skipped.push(Skipped {
            case: "24x50".parse().unwrap(),
            tool: Tool::Nginx,
            at_least_s: 384.0,
            at_least_over_bound: 24.0,
        });
        report.failures.push(Failure {
            case: "8x100".parse().unwrap(),
            tool: Tool::Udpcast,
            run: 1,
            error: "lost".to_owned(),
        });
        let drawn = svg(&report);
        assert_eq!(drawn.matches("<rect").count(), 6, "{drawn}");
        for said in [
            "1.11",
            "8.50",
            "error",
            "at least 24",
            "1.50",
            "1.00",
            "A &amp; B",
        ] {
            assert!(
                drawn.contains(&format!(">{said}<")) || drawn.contains(said),
                "{said}:\n{drawn}"
            );
        }
        // Nothing leaves the picture, and a longer time has a longer bar.
        let widths: Vec<f64> = drawn
            .lines()
            .filter(|line| line.starts_with("<rect"))
            .filter_map(|line| {
                line.split_once(" width=\"")?
                    .1
                    .split_once('"')?
                    .0
                    .parse()
                    .ok()
            })
            .collect();
        let most = WIDTH - LEFT - RIGHT;
        assert_eq!(widths.len(), 6);
        assert!(
            widths.iter().all(|width| (0.0..=most).contains(width)),
            "{widths:?}"
        );
        assert!(widths[0] < widths[1] && widths[1] == most, "{widths:?}");
        assert!(!drawn.contains("idle node"), "{drawn}");
        // Every element is closed.
        let opened = drawn.matches("<text").count();
        assert_eq!(drawn.matches("</text>").count(), opened);
        assert!(drawn.ends_with("</svg>\n"));
    }
}
