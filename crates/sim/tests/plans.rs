//! Plans as files: each is read, and what makes no sense is refused with the file, the field, what
//! was found and what was expected.

use rootswarm_sim::{
    Arrivals, Fault, Override, Plan, PlanError, Racks, Source, When, Who, named_plans, parse_plan,
};
use std::path::Path;

const GOOD: &str = r#"
about = "a plan"
nodes = 100
image = "1GB"
chunk = "auto"
racks = { count = 4, oversubscription = 4, known = true }
arrivals.within = "250ms"

[links]
node = "1Gbit"
seed = "10Gbit"
loss = 0.01

[[faults]]
kind = "vanish"
share = 0.5
when = { bound = 0.5 }

[[faults]]
kind = "seed-killed"
when = { seed-copies = 1.1 }
back-after = "3s"

[expect]
p99 = { 100 = 1.1, 1000 = 1.12 }
seed-copies = 1.1

[small]
nodes = 10
image = "16MiB"
links.seed = "1Gbit"
"#;

fn parse(text: &str, small: bool, overrides: &[&str]) -> Result<Plan, PlanError> {
    let overrides: Result<Vec<Override>, PlanError> =
        overrides.iter().map(|text| text.parse()).collect();
    parse_plan(Path::new("plans/good.toml"), text, small, &overrides?)
}

#[test]
fn a_plan_is_read() {
    let plan = parse(GOOD, false, &[]).expect("a good plan");
    assert_eq!(plan.name, "good");
    assert_eq!((plan.nodes, plan.image_bytes), (100, 1_000_000_000));
    // What the product takes for 1 GB: at most 2,048 chunks.
    assert_eq!(plan.chunk_bytes, 512 << 10);
    assert_eq!(plan.seed_link.up_bits, 10e9);
    assert_eq!(plan.loss, 0.01);
    let racks = Racks {
        count: 4,
        oversubscription: 4.0,
        known: true,
    };
    assert_eq!(plan.racks, Some(racks));
    assert_eq!(plan.arrivals, Arrivals::Within { spread_us: 250_000 });
    // Half of T*, which is 8 s.
    let half = Fault::Vanish {
        who: Who::Share(0.5),
        when: When::AtUs(4_000_000),
    };
    let killed = Fault::SeedKilled {
        when: When::SeedCopies(1.1),
        back_after_us: Some(3_000_000),
    };
    assert_eq!(plan.faults, [half, killed]);
    assert_eq!((plan.expect.p99, plan.expect.last), (Some(1.1), None));
    // Faults may cost more duplicates.
    assert_eq!(plan.expect.duplicates, Some(0.05));
}

#[test]
fn small_sections_and_given_values_lie_over_a_plan() {
    let plan = parse(GOOD, true, &[]).expect("a good plan");
    assert_eq!((plan.nodes, plan.image_bytes), (10, 16 << 20));
    assert_eq!((plan.seed_link.up_bits, plan.node_link.up_bits), (1e9, 1e9));
    assert_eq!(plan.loss, 0.01);

    let given = ["nodes=1000", "links.node=100Mbit", "racks.known=false"];
    let plan = parse(GOOD, true, &given).expect("a good plan");
    assert_eq!((plan.nodes, plan.node_link.up_bits), (1_000, 1e8));
    // That is said of the whole.
    assert_eq!((plan.expect.p99, plan.expect.seed_copies), (None, None));
    assert_eq!(plan.racks.map(|racks| racks.known), Some(false));
    // More than the largest size that is named: its figure.
    let plan = parse(GOOD, false, &["nodes=2000"]).expect("a good plan");
    assert_eq!(plan.expect.p99, Some(1.12));
}

/// T* of Kumar and Ross: each of the three terms, and slow nodes.
#[test]
fn the_bound_is_at_the_rate_of_the_links() {
    let bound = |given: &[&str]| {
        let plan = parse(GOOD, false, given).expect("a good plan");
        plan.bound_us() / 1e6
    };
    assert_eq!(bound(&[]), 8.0);
    assert_eq!(bound(&["links.seed=100Mbit"]), 80.0);
    // 2·8 Gbit through 1.5 + 2·1 Gbit/s takes less than 8 Gbit through 1 Gbit/s.
    assert_eq!(
        bound(&["links.seed=1.5Gbit", "nodes=2", "racks.count=1"]),
        8.0
    );
    let slow = GOOD.replace(
        "kind = \"vanish\"\nshare = 0.5\nwhen = { bound = 0.5 }",
        "kind = \"slow\"\nshare = 0.1\nfactor = 0.1",
    );
    let plan = parse(&slow, false, &["links.seed=1Gbit"]).expect("a good plan");
    assert!((plan.bound_us() - 80e6).abs() < 1.0, "{}", plan.bound_us());
    // The uplinks of all: 100·8 Gbit through 1 + 90·1 + 10·0.1 Gbit/s.
    let shared_s = plan.shared_bound_us() / 1e6;
    assert!((shared_s - 800.0 / 92.0).abs() < 1e-6, "{shared_s}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |old: &str, new: &str, expected: &str| {
        assert!(GOOD.contains(old), "{old}");
        let text = GOOD.replacen(old, new, 1);
        let error = parse(&text, false, &[]).expect_err(new).to_string();
        assert_eq!(error, format!("plan plans/good.toml{expected}"));
    };
    refused(
        "nodes = 100",
        "nodes = ",
        " line 3: string values must be quoted, expected literal string",
    );
    refused("nodes = 100", "", ": (top): missing field `nodes`");
    refused(
        "nodes = 100",
        "nodes = \"many\"",
        ": nodes: invalid type: string \"many\", expected i64",
    );
    refused(
        "nodes = 100",
        "nodes = 0",
        ": nodes: found 0, expected 1 to 16384",
    );
    refused(
        "nodes = 100",
        "nodes = -1",
        ": nodes: found -1, expected 1 to 16384",
    );
    refused(
        "loss = 0.01",
        "los = 0.01",
        ": links: unknown field `los`, expected one of `node`, `seed`, `latency`, `jitter`, `loss`, `efficiency`",
    );
    refused(
        "loss = 0.01",
        "loss = 0.9",
        ": links.loss: found 0.9, expected 0 to 0.5",
    );
    refused(
        "loss = 0.01",
        "loss = nan",
        ": links.loss: found NaN, expected 0 to 0.5",
    );
    refused(
        "node = \"1Gbit\"",
        "node = \"fast\"",
        ": links.node: found \"fast\", expected a number and kbit, Mbit or Gbit, as in 100Mbit",
    );
    refused(
        "node = \"1Gbit\"",
        "node = \"1kbit\"",
        ": links.node: found 0.001 Mbit, expected 0.1 Mbit to 400 Gbit",
    );
    refused(
        "image = \"1GB\"",
        "image = \"0B\"",
        ": image: found 0, expected 1 to 1099511627776",
    );
    refused(
        "chunk = \"auto\"",
        "chunk = \"3MiB\"",
        ": chunk: chunk size 3145728 bytes: expected a power of two from 65536 to 16777216",
    );
    refused(
        "chunk = \"auto\"",
        "chunk = \"large\"",
        ": chunk: found \"large\", expected a whole number of bytes with a unit, as in 1GB, 256KiB or 96301056B, or \"auto\"",
    );
    refused(
        "count = 4",
        "count = 101",
        ": racks.count: found 101, expected 1 to 100",
    );
    refused(
        "oversubscription = 4",
        "oversubscription = 0.5",
        ": racks.oversubscription: found 0.5, expected 1 to 1000",
    );
    refused(
        "arrivals.within = \"250ms\"",
        "arrivals = { within = \"250ms\", late = { nodes = 1, at = \"1s\" } }",
        ": arrivals: found both within and late, expected one",
    );
    refused(
        "arrivals.within = \"250ms\"",
        "arrivals.within = \"250\"",
        ": arrivals.within: found \"250\", expected whole microseconds with a unit, as in 100us, 250ms or 10s",
    );
    refused(
        "kind = \"vanish\"",
        "kind = \"sleep\"",
        ": faults[0].kind: found \"sleep\", expected seed-killed, vanish, freeze, corrupt, lie, lost-dials, firewall or slow",
    );
    refused(
        "kind = \"vanish\"\n",
        "",
        ": faults[0]: missing field `kind`",
    );
    refused(
        "share = 0.5",
        "share = 1.5",
        ": faults[0].share: found 1.5, expected 0 to 1",
    );
    refused(
        "share = 0.5",
        "",
        ": faults[0]: missing field `share`, or `first`",
    );
    refused(
        "share = 0.5",
        "share = 0.5\nfirst = 3",
        ": faults[0]: found both share and first, expected one",
    );
    refused(
        "share = 0.5",
        "first = 101",
        ": faults[0].first: found 101, expected 1 to 100",
    );
    refused(
        "when = { seed-copies = 1.1 }",
        "when = { seed-copies = 1000 }",
        ": faults[1].when.seed-copies: found 1000, expected 0 to 100",
    );
    refused(
        "when = { seed-copies = 1.1 }",
        "when = { full-moon = 1 }",
        ": faults[1].when: unknown variant `full-moon`, expected one of `at`, `bound`, `seed-copies`",
    );
    refused(
        "p99 = { 100 = 1.1, 1000 = 1.12 }",
        "p99 = { few = 1.1 }",
        ": expect.p99: found the key \"few\", expected a number of nodes",
    );
    refused(
        "[small]",
        "[small]\nexpect.rack-copies = \"few\"",
        ": expect.rack-copies: invalid type: string \"few\", expected f64",
    );
    refused(
        "[small]",
        "[small]\nfaults = [{ kind = \"slow\" }, { kind = \"slow\" }]",
        ": faults: found 2 of kind slow, expected at most one",
    );
    // A bad small section is found by whoever runs the plan as it is.
    refused(
        "nodes = 10\n",
        "nodes = 0\n",
        ": nodes: found 0, expected 1 to 16384",
    );
}

#[test]
fn copies_into_racks_are_not_expected_where_there_are_none() {
    let text = GOOD.replace(
        "racks = { count = 4, oversubscription = 4, known = true }",
        "",
    );
    let error = parse(&text, false, &["expect.rack-copies=1.5"]).expect_err("no racks");
    let expected = "plan plans/good.toml: expect.rack-copies: found in a plan without racks";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn given_values_are_checked_like_the_rest() {
    let refused = |given: &str, expected: &str| {
        let error = parse(GOOD, false, &[given]).expect_err(given);
        assert_eq!(error.to_string(), expected);
    };
    refused(
        "nodes=none",
        "plan plans/good.toml: nodes: invalid type: string \"none\", expected i64",
    );
    refused(
        "nodes",
        "bad value \"nodes\": expected KEY=VALUE, as in nodes=1000 or links.seed=10Gbit",
    );
    refused(
        "links.colour=red",
        "plan plans/good.toml: links: unknown field `colour`, expected one of `node`, `seed`, `latency`, `jitter`, `loss`, `efficiency`",
    );
}

#[test]
fn every_named_plan_is_read_and_can_be_replayed() {
    let names = named_plans().expect("the plans");
    for name in &names {
        for small in [false, true] {
            let source = Source::find(name, small, Vec::new()).expect("a named plan");
            let plan = source.plan(7).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(plan.name, *name);
            assert!(!plan.about.is_empty(), "{name} says nothing about itself");
            let flag = if small { " --small" } else { "" };
            let expected = format!("cargo xtask sim {name}{flag} --seed 7");
            assert_eq!(source.replay(7), expected);
        }
    }
    let given = vec!["nodes=10".parse().expect("a value")];
    let source = Source::find("racks", false, given).expect("a named plan");
    assert_eq!(
        source.replay(3),
        "cargo xtask sim racks --set 'nodes=10' --seed 3"
    );
    assert_eq!(Source::Mixed.replay(3), "cargo xtask sim mixed --seed 3");
    let given = vec!["nodes=10".parse().expect("a value")];
    let error = Source::find("mixed", false, given).expect_err("no fields");
    assert_eq!(
        error.to_string(),
        "plan \"mixed\" is drawn from the seed: expected no other values, found nodes=10"
    );
    let error = Source::find("racs", false, Vec::new()).expect_err("no plan");
    assert!(
        error.to_string().starts_with(
            "no plan \"racs\": expected the path of a TOML file or one of corrupters, "
        )
    );
}

/// PLANS.md is where plans are looked up: it must know every field.
#[test]
fn every_field_is_written_down() {
    let document = include_str!("../PLANS.md");
    let faults = [
        "seed-killed",
        "vanish",
        "freeze",
        "corrupt",
        "lie",
        "lost-dials",
        "slow",
    ];
    let fault = |kind| format!("faults=[{{ kind = \"{kind}\", nonsense = 1 }}]");
    let tables = [
        "",
        "links.",
        "racks.",
        "arrivals.",
        "arrivals.late.",
        "holders.",
    ];
    let more = ["hosts.", "limits.", "expect."];
    let given = tables.iter().chain(&more);
    let given: Vec<(String, &str)> = given
        .map(|table| (format!("{table}nonsense=1"), *table))
        .chain(faults.iter().map(|kind| (fault(kind), "")))
        .collect();
    let mut names = 0;
    for (given, table) in given {
        let error = parse(GOOD, false, &[&given]).expect_err(&given).to_string();
        let (_, expected) = error.split_once("expected ").expect("what there is");
        // The names stand between backquotes.
        for name in expected.split('`').skip(1).step_by(2) {
            names += 1;
            // Values of a small table are named inside it, tables by what is in them.
            let forms = [
                format!("`{table}{name}`"),
                format!("`{name}`"),
                format!("`{name}."),
                format!("{{ {name},"),
                format!(", {name} }}"),
                format!("[[{name}]]"),
            ];
            let known = forms.iter().any(|form| document.contains(form.as_str()));
            assert!(known, "PLANS.md does not name {table}{name}");
        }
    }
    assert!(names >= 50, "{names} names");
}
