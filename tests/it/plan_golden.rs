//! Golden triples: a document and a node in, the plan as prose out. One folder of `fixtures/plan` is one case.
//!
//! `desired.json` is an export of the document's records with what the planner is told besides, `observed.json` is an
//! [`Observation`], `plan.txt` is what the planner makes of them. `OVERLAYD_BLESS=1` writes `plan.txt` anew; read the diff before it is committed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use overlayd::{
    action::Action,
    clock::UnixTime,
    desired::{Document, Mutation, Record, RecordKey},
    ids::DnsName,
    object::Key,
    observed::{Observation, Snapshot},
    reconcile::{
        explain::Diff,
        plan::{differences, plan},
        step::Plan,
        target::{DEFAULT_MTU, Facts, Scope, lower},
    },
};
use serde::Deserialize;

use crate::world::mark;

/// The left side of a case.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Desired {
    generation: u64,
    /// Up to here an earlier process has told the kernel everything.
    settled: u64,
    records: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    facts: GivenFacts,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct GivenFacts {
    /// Seconds since 1970.
    now: Option<u64>,
    mtu: Option<u32>,
    resolved: BTreeMap<DnsName, IpAddr>,
    suspended: bool,
}

impl Desired {
    fn document(&self) -> Document {
        let decode = |(text, value): (&String, &serde_json::Value)| {
            let key: RecordKey = text.parse().unwrap();
            let record = Record::decode(&key, &serde_json::to_vec(value).unwrap()).unwrap();
            Mutation { key, record: Some(record) }
        };
        let mutations: Vec<Mutation> = self.records.iter().map(decode).collect();
        let mut document = Document::default();
        document.absorb(self.generation, &mutations);
        document
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts::new(mark());
        facts.mtu = self.facts.mtu.unwrap_or(DEFAULT_MTU);
        facts.resolved = self.facts.resolved.clone();
        facts.suspended = self.facts.suspended;
        facts
    }
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/plan");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The diff as a person gets it, and below it the actions in their order.
fn prose(document: &Document, diff: &Diff, plan: &Plan) -> String {
    let mut text = diff.to_text();
    if text.is_empty() {
        text.push_str("(no difference)\n");
    }
    let _ = writeln!(text, "\ngeneration {}, {} actions", document.generation(), plan.steps.len());
    for (number, step) in plan.steps.iter().enumerate() {
        let what = match &step.action {
            Action::Create { spec, .. } => serde_json::to_string(spec).unwrap(),
            Action::Update { from, to, .. } => {
                let field = |change: &overlayd::reconcile::step::FieldChange| format!("{}={}", change.field, change.to);
                differences(from, to).iter().map(field).collect::<Vec<_>>().join(" ")
            }
            Action::Delete { .. } => String::new(),
        };
        let line = format!("{:>2}. {} {} {what}", number + 1, step.action.verb(), step.action.key());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn plan_of(case: &Path) -> String {
    let desired: Desired = read(&case.join("desired.json"));
    let observation: Observation = read(&case.join("observed.json"));
    let document = desired.document();
    let mut snapshot = Snapshot::default();
    snapshot.absorb(observation);
    let told = |_: &Key| desired.settled;
    let target = lower(&document, &desired.facts(), &told, &Scope::Everything);
    let now = UnixTime(desired.facts.now.unwrap_or(1_700_000_000));
    let plan = plan(&target, &snapshot, &Scope::Everything, now);
    prose(&document, &Diff::new(&document, &target, &plan), &plan)
}

#[test]
fn every_case_gives_the_plan_that_was_blessed() {
    let bless = std::env::var_os("OVERLAYD_BLESS").is_some();
    let mut wrong = String::new();
    for case in cases() {
        let (file, plan) = (case.join("plan.txt"), plan_of(&case));
        if bless {
            fs::write(&file, &plan).unwrap();
        }
        let blessed = fs::read_to_string(&file).unwrap_or_default();
        if blessed != plan {
            let name = case.file_name().unwrap_or_default().to_string_lossy();
            let _ = writeln!(wrong, "== {name}\n-- blessed\n{blessed}-- now\n{plan}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}\nIf this is as it should be: OVERLAYD_BLESS=1 cargo test --test it plan_golden");
}

#[test]
fn no_plan_shows_a_private_key() {
    for case in cases() {
        let desired: Desired = read(&case.join("desired.json"));
        let Some(private) = desired.records.get("node-key").and_then(|key| key["private_key"].as_str()) else {
            continue;
        };
        assert!(!plan_of(&case).contains(private), "{}", case.display());
    }
}

#[test]
fn there_are_cases() {
    assert!(cases().len() >= 20);
}
