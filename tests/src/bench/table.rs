//! The report for people: on a terminal, and as Markdown.

use std::fmt::Write as _;

use super::{Report, Spread, Summary, Tool, summarise};

const MIB: f64 = 1024.0 * 1024.0;
const NOTHING: &str = "–";

const HEAD: [&str; 12] = [
    "case",
    "tool",
    "last node s",
    "over bound",
    "middle node over bound",
    "seed copies",
    "first byte s",
    "CPU s per node",
    "CPU s of the seed",
    "CPU s per GB",
    "node's own MiB",
    "runs",
];

/// All figures in columns, for a terminal.
pub fn terminal(report: &Report) -> String {
    let rows = rows(&summarise(report));
    let all = std::iter::once(HEAD.map(str::to_owned)).chain(rows);
    let all: Vec<[String; HEAD.len()]> = all.collect();
    let width = |column: usize| {
        let cells = all.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = format!("{}\n\n", report.machine);
    for row in &all {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text + &notes(report)
}

/// Two tables for a document: who is how fast, and all figures.
pub fn markdown(report: &Report) -> String {
    let summaries = summarise(report);
    let tools: Vec<Tool> = Tool::ALL
        .into_iter()
        .filter(|tool| summaries.iter().any(|summary| summary.tool == *tool))
        .collect();
    let mut text = "| last node over bound · copies sent by the seed |".to_owned();
    for tool in &tools {
        text += &format!(" {} |", name(*tool));
    }
    text += &format!("\n|---|{}\n", "---|".repeat(tools.len()));
    for of_case in summaries.chunk_by(|left, right| left.case == right.case) {
        text += &format!("| {} |", of_case[0].case.description());
        let ranks = of_case
            .iter()
            .filter_map(|summary| Some((summary.last_s?.median, summary.tool)));
        let best = ranks
            .min_by(|left, right| left.0.total_cmp(&right.0))
            .map(|best| best.1);
        for tool in &tools {
            let summary = of_case.iter().find(|summary| summary.tool == *tool);
            let cell = summary.map_or_else(|| NOTHING.to_owned(), headline);
            match best == Some(*tool) {
                true => text += &format!(" **{cell}** |"),
                false => text += &format!(" {cell} |"),
            }
        }
        text.push('\n');
    }
    text += &format!(
        "\n| {} |\n|{}\n",
        HEAD.join(" | "),
        "---|".repeat(HEAD.len())
    );
    for row in rows(&summaries) {
        text += &format!(
            "| {} |\n",
            row.map(|cell| cell.replace('|', "\\|")).join(" | ")
        );
    }
    text += &notes(report);
    let packages = report
        .packages
        .iter()
        .map(|(name, version)| format!("{name} {version}"));
    let packages: Vec<String> = packages.collect();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\n{}; {}.", report.machine, packages.join(", "));
    text
}

/// How people call it: with the program at the nodes, where that is another.
pub(super) fn name(tool: Tool) -> String {
    match tool {
        Tool::Nginx => "nginx + wget".to_owned(),
        Tool::Udpcast => "udpcast (multicast)".to_owned(),
        Tool::Mbuffer => "mbuffer (pipeline)".to_owned(),
        Tool::Uftp => "uftp (multicast)".to_owned(),
        tool => tool.to_string(),
    }
}

/// The one figure of a case with a tool, and what it cost the seed's link.
fn headline(summary: &Summary) -> String {
    if let Some(skipped) = summary.skipped {
        return format!("at least {:.1}", skipped.at_least_over_bound);
    }
    let Some(last_s) = summary.last_s else {
        return "error".to_owned();
    };
    let copies = summary
        .seed_copies
        .map(|copies| copies.median)
        .unwrap_or_default();
    match summary.last_over_bound {
        Some(over) => format!("{:.2} · {copies:.2}", over.median),
        None if summary.case.is_quick() => format!("{:.0} ms", last_s.median * 1e3),
        None => format!("{:.2} s · {copies:.2}", last_s.median),
    }
}

fn rows(summaries: &[Summary]) -> Vec<[String; HEAD.len()]> {
    summaries.iter().map(row).collect()
}

fn row(summary: &Summary) -> [String; HEAD.len()] {
    let over = match (summary.skipped, summary.behind_nginx_ms, summary.over_nginx) {
        (Some(skipped), ..) => format!("≥ {:.1}", skipped.at_least_over_bound),
        (_, Some(behind), _) => format!("wget {}", offset(behind)),
        (_, _, Some(over)) => format!("{} × wget", show(Some(over), 2)),
        _ => show(summary.last_over_bound, 3),
    };
    let last_s = match summary.skipped {
        Some(skipped) => format!("≥ {:.0}", skipped.at_least_s),
        None => show(summary.last_s, if summary.case.is_quick() { 3 } else { 2 }),
    };
    let runs = match (summary.runs, &summary.errors[..]) {
        (0, []) => "not run".to_owned(),
        (runs, []) => runs.to_string(),
        (runs, errors) => format!("{runs} of {}: {}", runs + errors.len(), errors[0]),
    };
    let mib = |bytes: Option<Spread>| {
        let scaled = bytes.map(|bytes| Spread {
            median: bytes.median / MIB,
            min: bytes.min / MIB,
            max: bytes.max / MIB,
        });
        show(scaled, 1)
    };
    [
        summary.case.to_string(),
        summary.tool.to_string(),
        last_s,
        over,
        show(summary.middle_over_bound, 3),
        show(summary.seed_copies, 2),
        show(summary.first_byte_s, 3),
        show(summary.node_cpu_s, 2),
        show(summary.seed_cpu_s, 2),
        show(summary.cpu_s_per_gb, 2),
        mib(summary.node_own_bytes),
        runs,
    ]
}

/// `median (least-most)`, or the one value, or a dash.
fn show(spread: Option<Spread>, decimals: usize) -> String {
    let Some(Spread { median, min, max }) = spread else {
        return NOTHING.to_owned();
    };
    match min == max {
        true => format!("{median:.decimals$}"),
        false => format!("{median:.decimals$} ({min:.decimals$}-{max:.decimals$})"),
    }
}

/// `+ 40 ms (38-45)`: how much later, or earlier.
fn offset(behind_ms: Spread) -> String {
    let Spread { median, min, max } = behind_ms;
    let sign = if median < 0.0 { '-' } else { '+' };
    match min == max {
        true => format!("{sign} {:.0} ms", median.abs()),
        false => format!("{sign} {:.0} ms ({min:.0} to {max:.0})", median.abs()),
    }
}

/// What a row cannot say.
fn notes(report: &Report) -> String {
    let mut text = String::new();
    for skipped in &report.skipped {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n{} with {} was not run: its seed sends {} copies, which takes at least {:.0} s \
             (--slow runs it).\n",
            skipped.case, skipped.tool, skipped.case.nodes, skipped.at_least_s
        );
    }
    for failure in &report.failures {
        let error = failure.error.lines().next().unwrap_or_default();
        let _ = write!(
            text,
            "\n{} with {}, run {}: {error}\n",
            failure.case, failure.tool, failure.run
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{outcome, report};
    use super::super::{Failure, Skipped};
    use super::*;

    fn sample() -> Report {
        let mut report = report(vec![
            outcome("8x100", Tool::Rootswarm, 1, 8.8),
            outcome("8x100", Tool::Rootswarm, 2, 9.6),
            outcome("8x100", Tool::Nginx, 1, 68.0),
            outcome("4xmax", Tool::Rootswarm, 1, 0.6),
            outcome("4xmax", Tool::Nginx, 1, 0.4),
            outcome("quick", Tool::Rootswarm, 1, 0.051),
            outcome("quick", Tool::Nginx, 1, 0.011),
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
            error: "a | b\nits log".to_owned(),
        });
        report
    }

    #[test]
    fn one_value_or_a_range() {
        assert_eq!(show(None, 2), "–");
        assert_eq!(show(Spread::of([1.5, 1.5]), 2), "1.50");
        assert_eq!(show(Spread::of([3.0, 1.0, 2.0]), 1), "2.0 (1.0-3.0)");
    }

    #[test]
    fn later_or_earlier() {
        let check = |values: &[f64], text: &str| {
            let spread = Spread::of(values.iter().copied());
            assert_eq!(offset(spread.expect("a spread")), text);
        };
        check(&[40.2], "+ 40 ms");
        check(&[-8.0, 3.0, -6.0], "- 6 ms (-8 to 3)");
    }

    #[test]
    fn a_terminal_gets_columns() {
        let text = terminal(&sample());
        let line = |start: &str| {
            let found = text.lines().find(|line| line.starts_with(start));
            found
                .unwrap_or_else(|| panic!("no {start} in\n{text}"))
                .to_owned()
        };
        assert!(
            text.starts_with("2 cores of A & B, Linux 6.1, commit abc\n\ncase   tool"),
            "{text}"
        );
        let rootswarm = line("8x100  rootswarm");
        assert!(
            rootswarm.contains("  9.20 (8.80-9.60)  1.150 (1.100-1.200)  "),
            "{rootswarm}"
        );
        assert!(line("24x50  nginx").contains("  ≥ 384  "), "{text}");
        assert!(line("24x50  nginx").ends_with("not run"), "{text}");
        assert!(line("8x100  udpcast").ends_with("0 of 1: a | b"), "{text}");
        assert!(line("4xmax  rootswarm").contains("1.50 × wget"), "{text}");
        assert!(line("quick  rootswarm").contains("0.051"), "{text}");
        assert!(line("quick  rootswarm").contains("wget + 40 ms"), "{text}");
        let head = line("case ");
        let column = |line: &str, what: &str| {
            let byte = line
                .find(what)
                .unwrap_or_else(|| panic!("no {what} in {line}"));
            line[..byte].chars().count()
        };
        assert_eq!(column(&head, "seed copies"), column(&rootswarm, "1.04"));
        assert!(text.contains("24 copies, which takes at least 384 s (--slow runs it)"));
    }

    #[test]
    fn markdown_has_the_figures_and_marks_the_best() {
        let text = markdown(&sample());
        for line in [
            "| last node over bound · copies sent by the seed | rootswarm | nginx + wget | udpcast \
             (multicast) |",
            "| 8 nodes of 100 Mbit, seed 100 Mbit | **1.15 · 1.04** | 8.50 · 1.04 | error |",
            "| 24 nodes of 50 Mbit, seed 50 Mbit | – | at least 24.0 | – |",
            "| 4 nodes, links not shaped | 0.60 s · 1.04 | **0.40 s · 1.04** | – |",
            "| 1 MB to 1 idle node | 51 ms | **11 ms** | – |",
            "2 cores of A & B, Linux 6.1, commit abc; aria2 1.36.",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line} in\n{text}"
            );
        }
        // Every row of a table has as many cells as its head.
        for table in text.split("\n\n").filter(|block| block.starts_with('|')) {
            let cells = |line: &str| line.replace("\\|", "").matches('|').count();
            let head = table.lines().next().unwrap();
            for line in table.lines() {
                assert_eq!(cells(line), cells(head), "{line}");
            }
        }
    }
}
