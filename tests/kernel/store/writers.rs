//! Many clients at once, and an agent that is killed again and again.
//!
//! After each kill every edit that was answered is in the document, each that was not is in it or not, never by half, and the generation
//! counts them all. The client asks again and goes on.
//!
//! A kill comes after a number of answers, after a pause (when the journal is folded), or while the agent starts.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use overlayd::wire::Response;

use super::{
    asked_for,
    belongings::{Belongings, Edit, belongings},
    export, isolated,
};
use crate::{
    agent_process::{Agent, PATIENCE, Raw, within},
    dice::Dice,
};

const CLIENTS: u16 = 64;

/// Where clients wait while there is no agent.
#[derive(Default)]
struct Gate {
    state: Mutex<Passage>,
    changed: Condvar,
    /// Counts every client's answers.
    answers: AtomicU64,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct Passage {
    is_open: bool,
    /// Those who are through come back after their next answer.
    calls_back: bool,
    is_over: bool,
    waiting: u16,
}

impl Gate {
    fn set(&self, change: impl FnOnce(&mut Passage)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn state(&self) -> Passage {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the gate is open; false when there is nothing more to do.
    fn pass(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting += 1;
        let mut state = self.changed.wait_while(state, |state| !state.is_open && !state.is_over).unwrap();
        state.waiting -= 1;
        !state.is_over
    }

    /// Waits until every client waits.
    fn gather(&self) {
        assert!(within(PATIENCE, || self.state().waiting == CLIENTS), "{} of {CLIENTS} wait", self.state().waiting);
    }
}

/// One client: what it was told is kept, and what it was not told about.
struct Writer {
    number: u16,
    chance: Dice,
    kept: Belongings,
    open: Option<Edit>,
    /// Edits that changed something.
    changes: u64,
}

impl Writer {
    /// Sends edits on one connection until it breaks or the gate calls.
    fn serve(&mut self, socket: &Path, gate: &Gate) {
        let Ok(mut connection) = Raw::try_connect(socket) else { return };
        while !gate.state().calls_back {
            let edit = self.open.get_or_insert_with(|| Edit::any(&mut self.chance)).clone();
            let Some(answer) = connection.try_answer(1, edit.request(self.number)) else { return };
            assert_eq!(serde_json::from_value::<Response>(answer).unwrap(), Response::Ok, "{edit:?}");
            self.open = None;
            self.now_has(self.kept.after(self.number, &edit));
            gate.answers.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn now_has(&mut self, belongings: Belongings) {
        self.changes += u64::from(belongings != self.kept);
        self.kept = belongings;
    }
}

/// What the kills hit.
#[derive(Default, Debug)]
struct Tally {
    kills: u64,
    /// Edits without an answer that were in the document, and that were not.
    unanswered_kept: u64,
    unanswered_gone: u64,
    slowest_start: Duration,
}

/// Looks at the store of an agent that is not running: nothing that was answered is missing.
fn inspect(agent: &Agent<'_>, writers: &[Mutex<Writer>], tally: &mut Tally) {
    let document = export(agent);
    let found = belongings(&document, CLIENTS);
    let mut changes = 0;
    for (writer, found) in writers.iter().zip(found) {
        let mut writer = writer.lock().unwrap();
        let (kept, number) = (writer.kept.clone(), writer.number);
        let after = writer.open.as_ref().map_or_else(|| kept.clone(), |open| kept.after(number, open));
        let said = format!("client {number}, unanswered {:?}, of {kept:?}", writer.open);
        assert!(found == kept || found == after, "{said}: found {found:?}; the log ends:\n{}", agent.log_end());
        if kept != after {
            let is_in = found == after;
            tally.unanswered_kept += u64::from(is_in);
            tally.unanswered_gone += u64::from(!is_in);
        }
        writer.now_has(found);
        changes += writer.changes;
    }
    assert_eq!(document["generation"], changes + 1, "the first generation made the key, each change one more");
}

/// Starts the agent; its document is the one that the store had before.
fn start(agent: &mut Agent<'_>, tally: &mut Tally) {
    let before = export(agent);
    let begun = Instant::now();
    agent.start();
    tally.slowest_start = tally.slowest_start.max(begun.elapsed());
    let after = export(agent);
    assert_eq!((&before["generation"], &before["records"]), (&after["generation"], &after["records"]));
    assert_eq!(after["generation"], agent.generation());
}

/// Lets the clients in and kills the agent at some moment.
fn kill_under_load(agent: &mut Agent<'_>, gate: &Gate, chance: &mut Dice) {
    gate.set(|state| (state.is_open, state.calls_back) = (true, false));
    let enough = gate.answers.load(Ordering::Relaxed) + 1 + chance.below(1200) as u64;
    assert!(within(PATIENCE, || gate.answers.load(Ordering::Relaxed) >= enough), "{}", agent.log_end());
    let pause = Duration::from_micros(chance.below(4000) as u64);
    let is_paused = chance.one_in(3);
    if is_paused {
        gate.set(|state| (state.is_open, state.calls_back) = (false, true));
        gate.gather();
        // The journal is folded 200 ms after the last edit.
        std::thread::sleep(Duration::from_millis(195 + chance.below(30) as u64));
    }
    std::thread::sleep(pause);
    gate.set(|state| state.is_open = false);
    agent.kill();
    gate.gather();
}

fn kill_at_start(agent: &mut Agent<'_>, chance: &mut Dice) {
    agent.spawn();
    std::thread::sleep(Duration::from_micros(chance.below(60_000) as u64));
    agent.kill();
}

fn kill_again_and_again(agent: &mut Agent<'_>, gate: &Gate, writers: &[Mutex<Writer>]) -> Tally {
    let (kills, mut chance, mut tally) = (asked_for("OVERLAYD_STORE_KILLS", 20), Dice::of(5, 0), Tally::default());
    agent.start();
    gate.gather();
    while tally.kills < kills {
        kill_under_load(agent, gate, &mut chance);
        tally.kills += 1;
        inspect(agent, writers, &mut tally);
        if chance.one_in(4) {
            kill_at_start(agent, &mut chance);
            tally.kills += 1;
            inspect(agent, writers, &mut tally);
        }
        start(agent, &mut tally);
    }
    tally
}

#[test]
fn nothing_answered_is_lost_when_64_clients_write_and_the_agent_is_killed_again_and_again() {
    isolated(|| {
        let mut agent = Agent::without_device("a");
        let begun = Instant::now();
        let gate = Gate::default();
        let writer = |number: u16| Writer {
            number,
            chance: Dice::of(0, number.into()),
            kept: Belongings::default(),
            open: None,
            changes: 0,
        };
        let writers: Vec<Mutex<Writer>> = (0..CLIENTS).map(|number| Mutex::new(writer(number))).collect();
        let socket = agent.socket();
        let tally = std::thread::scope(|scope| {
            for writer in &writers {
                let (gate, socket) = (&gate, &socket);
                scope.spawn(move || {
                    while gate.pass() {
                        writer.lock().unwrap().serve(socket, gate);
                    }
                });
            }
            let tally = catch_unwind(AssertUnwindSafe(|| kill_again_and_again(&mut agent, &gate, &writers)));
            gate.set(|state| state.is_over = true);
            tally.unwrap_or_else(|panic| resume_unwind(panic))
        });
        assert!(agent.terminate().1.success(), "{}", agent.log_end());
        let check = agent.command(&["store", "check"]);
        let report = String::from_utf8(check.stdout).unwrap();
        let is_clean =
            check.status.success() && !["DAMAGED", "mends", "unseen", "LOST"].iter().any(|word| report.contains(word));
        assert!(is_clean, "{report}");
        let Tally { kills, unanswered_kept, unanswered_gone, slowest_start } = tally;
        let answers = gate.answers.load(Ordering::Relaxed);
        let changes: u64 = writers.iter().map(|writer| writer.lock().unwrap().changes).sum();
        println!(
            "MEASURED: {CLIENTS} clients, {kills} kills: {answers} edits answered and {changes} changes kept, none lost; of {} unanswered ones {unanswered_kept} were kept; slowest start {slowest_start:.2?}; {:.1?}",
            unanswered_kept + unanswered_gone,
            begun.elapsed(),
        );
        assert!(unanswered_kept + unanswered_gone > 0, "no kill came between a request and its answer");
    });
}
