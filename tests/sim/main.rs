//! Whole histories of a node: the real edits, the real committer and the real engine, on a disk and a kernel in memory.
//!
//! The fault model:
//!
//! - An action fails before its effect, or has its effect and the answer is lost.
//! - A dump is cut short and shows nothing of one part; a look fails altogether.
//! - The store refuses an edit. What it wrote survives the process, and survives a power cut only once it was flushed.
//! - The process dies: before and after each write, each flush, each action and each look. These moments are *enumerated*: a history is run
//!   again for each of them, and ends as it does without. A client that got no reply asks again.
//! - The machine loses power: nothing of the kernel is left, no container, and of the disk what was flushed.
//! - Containers end without a detach, and their pids are given to others.
//! - Somebody removes or changes any object of ours, or takes a name of ours.
//!
//! Of what somebody changed, the agent is told before its next round, where the kernel tells of such changes.
//!
//! Not in the model: two agents at once, a clock that runs backwards, and a kernel that lies.
//!
//! What is checked at every step is in [`oracle`]; that the node becomes right when everything works again, in [`machine`].

#[path = "../it/desk.rs"]
#[expect(dead_code, reason = "the tests of single rooms use the rest")]
mod desk;
mod dice;
mod history;
mod machine;
mod mutants;
mod oracle;
#[path = "../it/world.rs"]
#[expect(dead_code, reason = "the tests of single rooms use the rest")]
mod world;

use history::{Event, Weather, draw};
use machine::Machine;
use mutants::Mutant;

const SEEDS: u64 = 5_000;
/// Events of a history.
const LENGTH: usize = 40;

/// How many seeds are run: `OVERLAYD_SIM_SEEDS`.
fn seeds() -> u64 {
    std::env::var("OVERLAYD_SIM_SEEDS").map_or(SEEDS, |text| text.parse().expect("OVERLAYD_SIM_SEEDS is a number"))
}

/// The first of them, for a search that goes on where another ended: `OVERLAYD_SIM_FIRST`.
fn first_seed() -> u64 {
    std::env::var("OVERLAYD_SIM_FIRST").map_or(0, |text| text.parse().expect("OVERLAYD_SIM_FIRST is a number"))
}

/// Runs a history; answers what went wrong.
fn run(events: &[Event], dies_at: Option<u64>) -> (Machine, Vec<String>) {
    run_as(None, events, dies_at)
}

fn run_as(mutant: Option<Mutant>, events: &[Event], dies_at: Option<u64>) -> (Machine, Vec<String>) {
    let mut machine = Machine::new(dies_at, mutant);
    events.iter().for_each(|event| machine.happen(event));
    machine.calm_down();
    let faults = std::mem::take(&mut machine.faults);
    (machine, faults)
}

/// A shorter history that still goes wrong.
fn shrink(events: Vec<Event>, goes_wrong: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let mut events = events;
    let mut size = events.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < events.len() {
            let mut fewer = events.clone();
            fewer.drain(at..(at + size).min(events.len()));
            if goes_wrong(&fewer) {
                events = fewer;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    events
}

fn story(seed: u64, events: &[Event], dies_at: Option<u64>) -> String {
    let (machine, faults) = run(events, dies_at);
    format!(
        "seed {seed}, shrunk to {} steps:\n{}\nwhat went wrong:\n{}",
        events.len(),
        machine.told.join("\n"),
        faults.join("\n")
    )
}

/// What is on one node and in its document and not on the other's.
fn differs_from(one: &Machine, other: &Machine) -> String {
    let (mine, theirs) = (one.ours(), other.ours());
    let objects =
        mine.iter().filter(|(key, spec)| theirs.get(key) != Some(spec)).map(|(key, spec)| format!("  {key}: {spec:?}"));
    let (mine, theirs) = (one.records(), other.records());
    let records = mine.records.iter().filter(|(key, value)| theirs.records.get(*key) != Some(value));
    let records = records.map(|(key, value)| format!("  {key}: {}", String::from_utf8_lossy(value)));
    objects.chain(records).chain([format!("  generation {}", mine.generation)]).collect::<Vec<_>>().join("\n")
}

/// Runs `work` on so many seeds, on all processors.
fn for_all_seeds(first: u64, count: u64, work: impl Fn(u64) -> u64 + Sync) -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|thread| {
                let work = &work;
                let mine = (first + thread..first + count).step_by(usize::try_from(threads).unwrap());
                scope.spawn(move || mine.map(work).sum::<u64>())
            })
            .collect();
        parts.into_iter().map(|part| part.join().unwrap()).sum()
    })
}

#[test]
fn whatever_happens_nothing_is_broken_meanwhile_and_all_is_right_afterwards() {
    let weather = Weather { mishaps: true, strangers: true };
    let moments = for_all_seeds(first_seed(), seeds(), |seed| {
        let events = draw(seed, LENGTH, weather);
        let (machine, faults) = run(&events, None);
        if !faults.is_empty() {
            let shrunk = shrink(events, |events| !run(events, None).1.is_empty());
            panic!("{}", story(seed, &shrunk, None));
        }
        machine.moments()
    });
    println!("MEASURED: {} histories, {moments} writes, actions and looks", seeds());
}

#[test]
fn a_history_ends_the_same_wherever_the_process_is_killed_in_it() {
    let weather = Weather { mishaps: false, strangers: true };
    let count = (seeds() / 200).max(1);
    let kills = for_all_seeds(first_seed() / 200, count, |seed| {
        let events = draw(1_000_000 + seed, LENGTH, weather);
        let (whole, faults) = run(&events, None);
        assert!(faults.is_empty(), "{}", story(seed, &events, None));
        for moment in 0..whole.moments() {
            let differs = |events: &[Event]| {
                let (undisturbed, _) = run(events, None);
                let (killed, faults) = run(events, Some(moment));
                !faults.is_empty() || killed.ours() != undisturbed.ours() || killed.records() != undisturbed.records()
            };
            let (killed, faults) = run(&events, Some(moment));
            if !faults.is_empty() || killed.ours() != whole.ours() || killed.records() != whole.records() {
                let shrunk = shrink(events.clone(), differs);
                let (undisturbed, killed) = (run(&shrunk, None).0, run(&shrunk, Some(moment)).0);
                panic!(
                    "killed at moment {moment}: {}\nundisturbed:\n{}\nkilled:\n{}",
                    story(seed, &shrunk, Some(moment)),
                    differs_from(&undisturbed, &killed),
                    differs_from(&killed, &undisturbed)
                );
            }
        }
        whole.moments()
    });
    println!("MEASURED: {count} histories, killed at each of {kills} moments");
}

/// Histories with all weather that a mutant may survive, and then calm ones in which it is killed.
const STORMS: u64 = 200;
const CALMS: u64 = 10;

/// The first thing that is seen to be wrong with a mutant, and where.
fn what_is_wrong(mutant: Mutant) -> Option<String> {
    let storm = |seed| {
        let events = draw(seed, LENGTH, Weather { mishaps: true, strangers: true });
        let fault = run_as(Some(mutant), &events, None).1.into_iter().next()?;
        Some(format!("with seed {seed}: {fault}"))
    };
    let calm = |seed| {
        let events = draw(seed, LENGTH, Weather { mishaps: false, strangers: true });
        let (whole, _) = run_as(Some(mutant), &events, None);
        (0..whole.moments()).find_map(|moment| {
            let fault = run_as(Some(mutant), &events, Some(moment)).1.into_iter().next()?;
            Some(format!("with seed {seed}, killed at moment {moment}: {fault}"))
        })
    };
    (0..STORMS).find_map(storm).or_else(|| (1_000_000..1_000_000 + CALMS).find_map(calm))
}

#[test]
fn every_wrong_version_is_caught() {
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        match what_is_wrong(mutant) {
            Some(found) => println!("MEASURED: {mutant:?} is caught {found}"),
            None => survivors.push(mutant),
        }
    }
    assert_eq!(survivors, [], "these wrong versions were not caught");
}
