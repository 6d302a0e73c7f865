//! Power cuts under the real agent: every call by which it changes its state directory is recorded, and the directory is laid out as a cut
//! after each of them would leave it.
//!
//! Whatever a client had been told by then is in the document, and the agent starts. Nothing in the agent knows of this: sled's own writes are
//! recorded as well.
//!
//! An ordinary run takes a sample of the moments; `OVERLAYD_POWER_ALL=1` all of them.

mod platter;
mod recorder;
mod tracer;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use overlayd::wire::{NatCandidate, Request};
use serde_json::Value;

use self::{
    platter::{Fate, Op, after_cut},
    recorder::Recorder,
    tracer::{Following, STOPS_WITHIN},
};
use super::{
    asked_for,
    belongings::{Belongings, Edit, belongings},
    export, isolated,
};
use crate::{
    agent_process::{Agent, within},
    dice::Dice,
    lab::skip,
};

const CLIENTS: u16 = 4;
/// Request numbers of one client.
const NUMBERS: u64 = 100_000;
/// Moments of an ordinary run.
const SAMPLE: usize = 50;

/// What one client asked for, in order: each request is sent when the one before was answered.
#[derive(Default, Clone)]
struct Client {
    edits: Vec<Edit>,
    chance: Option<Dice>,
}

impl Client {
    fn send(&mut self, number: u16, agent: &Agent<'_>, count: usize) {
        let chance = self.chance.get_or_insert(Dice::of(77, number.into()));
        let mut connection = agent.raw();
        for _ in 0..count {
            let edit = Edit::any(chance);
            let mut request = edit.request(number);
            if let Request::AddPeer { peer, .. } = &mut request {
                // So that a segment fills up.
                let candidate =
                    |n: u32| NatCandidate { candidate_type: "host".into(), address: format!("{n:->230}"), priority: n };
                peer.candidates = (0..60).map(candidate).collect();
            }
            let id = u64::from(number) * NUMBERS + self.edits.len() as u64;
            self.edits.push(edit);
            assert_eq!(connection.answer(id, request)["result"], "ok");
        }
    }

    /// The belongings after so many edits.
    fn after(&self, number: u16, count: usize) -> Belongings {
        let edits = self.edits.iter().take(count);
        edits.fold(Belongings::default(), |belongings, edit| belongings.after(number, edit))
    }
}

/// What the clients know.
struct Told {
    clients: Vec<Client>,
    /// The node's key, without its secret.
    key: Value,
}

/// Starts the agent under the eyes of the recorder.
fn start_followed(agent: &mut Agent<'_>, recorder: Recorder) -> Following {
    let run = agent.run_command();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]).arg(run.get_program()).args(run.get_args());
    command.env_clear().envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    agent.spawn_as(command);
    let state = format!("/proc/{}/stat", agent.pid());
    assert!(within(STOPS_WITHIN, || fs::read_to_string(&state).unwrap().contains(") T ")), "the shell does not stop");
    let following = Following::of(agent.pid(), recorder);
    agent.signal(Signal::SIGCONT);
    agent.wait_ready();
    following
}

/// The clients at once; so many edits each.
fn send_all(agent: &Agent<'_>, clients: &mut [Client], count: usize) {
    std::thread::scope(|scope| {
        for (number, client) in (0..).zip(clients) {
            scope.spawn(move || client.send(number, agent, count));
        }
    });
}

/// Two lives of an agent: a store is made, filled, folded, closed, opened again, and filled until the agent is killed.
fn recorded(agent: &mut Agent<'_>) -> (Vec<Op>, Told) {
    let mut clients = vec![Client::default(); usize::from(CLIENTS)];
    let following = start_followed(agent, Recorder::new(&agent.state_dir()));
    for count in [12, 12, 30] {
        send_all(agent, &mut clients, count);
        // The journal is folded 200 ms after the last edit.
        std::thread::sleep(Duration::from_millis(300));
    }
    agent.signal(Signal::SIGTERM);
    // Whoever waits for it before its tracer is done takes stops from that.
    let recorder = following.finish();
    assert!(agent.wait_for_end().success(), "{}", agent.log_end());
    let following = start_followed(agent, recorder);
    send_all(agent, &mut clients, 20);
    agent.signal(Signal::SIGKILL);
    let recorder = following.finish();
    agent.kill();
    let key = export(agent)["records"]["node-key"].take();
    assert!(key["public_key"].is_string(), "{key}");
    (recorder.ops, Told { clients, key })
}

/// How many of each client's edits had been answered.
fn answered(ops: &[Op]) -> Vec<usize> {
    let mut counts = vec![0; usize::from(CLIENTS)];
    for op in ops {
        if let Op::Reply(id) = op {
            let (client, number) = (id / NUMBERS, id % NUMBERS);
            counts[usize::try_from(client).unwrap()] = usize::try_from(number).unwrap() + 1;
        }
    }
    counts
}

/// Looks at the store of the agent, which lies there as after a cut: what is missing of what was answered.
fn missing(agent: &Agent<'_>, told: &Told, answered: &[usize]) -> Result<(), String> {
    let check = agent.command(&["store", "check"]);
    let report = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
    if !check.status.success() {
        return Err(report);
    }
    if answered.iter().all(|count| *count == 0) && !agent.state_dir().join("FORMAT").exists() {
        return Ok(());
    }
    found(agent, told, answered).map_err(|lost| format!("{lost}\n{report}"))
}

fn found(agent: &Agent<'_>, told: &Told, answered: &[usize]) -> Result<(), String> {
    let output = agent.command(&["store", "export"]);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let key = &document["records"]["node-key"];
    // Before the first answer the store may not have been born yet, and a start makes another key.
    if *key != told.key && answered.iter().any(|count| *count > 0) {
        return Err(format!("the key is {key}, it was {}", told.key));
    }
    let document = belongings(&document, CLIENTS);
    for ((number, client), (found, count)) in (0..).zip(&told.clients).zip(document.iter().zip(answered)) {
        let (kept, next) = (client.after(number, *count), client.after(number, count + 1));
        if *found != kept && *found != next {
            return Err(format!("client {number} was told of {count} edits: {kept:?}, found {found:?}"));
        }
    }
    Ok(())
}

/// Lays out the state directory as a cut after those operations leaves it.
fn cut(agent: &Agent<'_>, ops: &[Op], fate: Fate<'_>) {
    let state_dir = agent.state_dir();
    let _ = fs::remove_dir_all(&state_dir);
    fs::create_dir(&state_dir).unwrap();
    after_cut(ops, fate, &state_dir);
}

/// The moments to look at: all, or some. Always the first and the last.
fn moments(ops: &[Op]) -> Vec<usize> {
    let step = if std::env::var_os("OVERLAYD_POWER_ALL").is_some() { 1 } else { ops.len().div_ceil(SAMPLE).max(1) };
    (0..ops.len()).step_by(step).chain([ops.len()]).collect()
}

#[test]
fn after_a_power_cut_at_any_moment_the_agent_starts_and_has_all_that_it_confirmed() {
    isolated(|| {
        if !Path::new("/bin/sh").exists() {
            skip("no /bin/sh to start an agent that waits for its tracer");
        }
        let mut agent = Agent::without_device("a");
        let (ops, told) = recorded(&mut agent);
        let (begun, mut chance) = (Instant::now(), Dice::of(asked_for("OVERLAYD_POWER_SEED", 1), 0));
        let moments = moments(&ops);
        let (mut cuts, mut starts) = (0, 0);
        for (turn, moment) in moments.iter().enumerate() {
            let before = &ops[..*moment];
            let answered = answered(before);
            for choice in 0..3 {
                let fate = match (choice, turn % 2) {
                    (0, 0) => Fate::NothingStays,
                    (0, _) => Fate::AllStays,
                    _ => Fate::Chance(&mut chance),
                };
                cut(&agent, before, fate);
                let lost = missing(&agent, &told, &answered);
                assert!(lost.is_ok(), "cut {choice} at {moment}, after {:?}: {lost:?}", shown(before));
                cuts += 1;
            }
            if turn % 5 == 0 {
                agent.start();
                let lost = found(&agent, &told, &answered);
                assert!(lost.is_ok(), "started after a cut at {moment}, after {:?}: {lost:?}", shown(before));
                agent.kill();
                starts += 1;
            }
        }
        let of = |is_it: fn(&Op) -> bool| ops.iter().filter(|op| is_it(op)).count();
        println!(
            "MEASURED: {} operations ({} writes, {} waits, {} names, {} replies): {cuts} power cuts at {} moments, none lost anything that was confirmed; {starts} starts; {:.1?}",
            ops.len(),
            of(|op| matches!(op, Op::Write(..) | Op::Truncate(..))),
            of(|op| matches!(op, Op::Sync(..) | Op::SyncDir(..))),
            of(|op| matches!(op, Op::Create(..) | Op::MakeDir(_) | Op::Rename(..) | Op::Remove(_))),
            of(|op| matches!(op, Op::Reply(_))),
            moments.len(),
            begun.elapsed(),
        );
        let is_segment = |op: &&Op| matches!(op, Op::Create(name, _) if name.starts_with("journal"));
        assert!(ops.iter().filter(is_segment).count() > 1, "the journal was to begin a second segment");
        assert_eq!(answered(&ops), told.clients.iter().map(|client| client.edits.len()).collect::<Vec<_>>());
        assert_that_waits_matter(&agent, ops, &told);
    });
}

/// The same agent on a disk that lies about waits would be found out.
fn assert_that_waits_matter(agent: &Agent<'_>, ops: Vec<Op>, told: &Told) {
    let answered = answered(&ops);
    cut(agent, &ops, Fate::NothingStays);
    assert_eq!(missing(agent, told, &answered), Ok(()));
    let numbers: Vec<usize> = (0..ops.len()).collect();
    let last_wait = numbers.iter().rev().find(|at| matches!(ops[**at], Op::Sync(..))).unwrap();
    let mut lying = ops.clone();
    lying.remove(*last_wait);
    cut(agent, &lying, Fate::NothingStays);
    assert!(missing(agent, told, &answered).is_err(), "without its last wait nothing is missing");
    let names_only: Vec<Op> = ops.into_iter().filter(|op| !matches!(op, Op::SyncDir(..))).collect();
    cut(agent, &names_only, Fate::NothingStays);
    assert!(missing(agent, told, &answered).is_err(), "without waits for names nothing is missing");
}

/// The last operations, without their bytes.
fn shown(ops: &[Op]) -> Vec<String> {
    let last = ops.iter().rev().take(3).map(|op| match op {
        Op::Write(inode, offset, bytes) => format!("{} bytes of {inode} at {offset}", bytes.len()),
        other => format!("{other:?}"),
    });
    last.collect()
}
