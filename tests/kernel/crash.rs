//! The agent killed at every system call by which an operation changes something, and started again.
//!
//! Owns the order of such a test: one run that is not disturbed, then one run for each moment. Leaves tracing to `tracer.rs` and the
//! operations to `scene.rs`.
//!
//! Upholds I-01 as seen from outside, over every moment at which an agent can die: whenever the agent dies, the node ends as if it had not, and unrelated traffic goes on.
//!
//! An ordinary run takes a sample, always the same; `OVERLAYD_CRASH_SEED` gives another, `OVERLAYD_CRASH_ALL=1` every moment.

mod calls;
mod scene;
mod tracer;

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use overlayd::{
    client::Client,
    wire::{Request, Response},
};

use self::{
    calls::Call,
    scene::{Operation, Scene},
    tracer::{Moment, Trace, kill_at},
};
use crate::{
    lab::{isolated, isolated_as, skip},
    overlay_node::{block_on, until},
};

/// Kills in a run that takes a sample.
const SAMPLE: usize = 8;
/// After this long a state that differs is a failure.
const SETTLED: Duration = Duration::from_secs(5);

/// A traced run of the operation that ends with the agent's death.
struct Run {
    trace: Trace,
    /// What the client was told before the agent died.
    answer: Option<Response>,
}

fn run(scene: &mut Scene, moment: Option<Moment>) -> Run {
    let mut held = scene.operation.is_a_start().then(|| scene.node.spawn_held());
    let (socket, request) = (scene.node.socket(), scene.request());
    let agent = scene.node.agent_pid();
    let (answer, is_over) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let (answered, over, mut client) = (Arc::clone(&answer), Arc::clone(&is_over), None);
    let stage = &*scene;
    let begin = || {
        if let Some(held) = &mut held {
            held.write_all(b"begin\n").unwrap();
        }
        stage.provoke();
        client = Some(std::thread::spawn(move || {
            if let Some(response) = block_on(ask_once(&socket, request, &over)) {
                let _ = answered.set(response);
            }
        }));
    };
    // A thread of its own: it is to have no children of which it would wait.
    let traced =
        std::thread::scope(|scope| scope.spawn(|| kill_at(agent, moment, begin, || answer.get().is_some())).join());
    let trace = traced.unwrap();
    is_over.store(true, Ordering::SeqCst);
    client.expect("it was begun").join().unwrap();
    scene.node.forget_agent();
    Run { trace, answer: answer.get().cloned() }
}

/// The answer of an agent that listens or soon will; `None` when it dies before.
async fn ask_once(socket: &Path, request: Request, is_over: &AtomicBool) -> Option<Response> {
    let mut client = loop {
        match Client::connect(socket).await {
            Ok(client) => break client,
            Err(_) if is_over.load(Ordering::SeqCst) => return None,
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    client.request(request).await.ok()
}

/// Starts the agent again and waits until it is in sync; says which of both did not happen.
fn recover(scene: &mut Scene, told: Option<&Response>, expected: Option<&Response>) -> Result<(), String> {
    scene.node.start();
    if told.is_none() {
        let again = scene.node.ask(scene.request());
        if let Some(expected) = expected
            && !Scene::is_same_answer(expected, &again)
        {
            return Err(format!("answered {again:?} to the repeated request, {expected:?} otherwise"));
        }
    }
    until("the agent is in sync", || scene.node.total("overlayd_in_sync") == 1.0);
    Ok(())
}

/// What is only in one of two states; waits a while for there to be nothing.
fn difference(scene: &Scene, expected: &[String]) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let state = scene.state();
        let only = |here: &[String], there: &[String], sign| {
            let lines = here.iter().filter(|line| !there.contains(line));
            lines.map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
        };
        let found = [only(expected, &state, '-'), only(&state, expected, '+')].concat();
        if found.is_empty() || begun.elapsed() > SETTLED {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every moment of an operation, in order.
fn moments(calls: &[Call]) -> Vec<Moment> {
    let each = calls.iter().enumerate().flat_map(|(number, call)| {
        let after = call.is_send.then_some(Moment::After(number));
        [Some(Moment::Before(number)), after].into_iter().flatten()
    });
    each.collect()
}

fn takes_all() -> bool {
    std::env::var_os("OVERLAYD_CRASH_ALL").is_some()
}

/// All of them, or every so manieth from an offset that the seed gives.
fn chosen(all: &[Moment], seed: u64) -> Vec<Moment> {
    if takes_all() {
        return all.to_vec();
    }
    let step = all.len().div_ceil(SAMPLE).max(1);
    let offset = usize::try_from(seed % step as u64).unwrap();
    all.iter().skip(offset).step_by(step).copied().collect()
}

fn seed() -> u64 {
    let given = std::env::var("OVERLAYD_CRASH_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or(1)
}

/// The operation undisturbed: its calls, its answer, and the states before and after it.
struct Reference {
    calls: Vec<Call>,
    answer: Option<Response>,
    before: Vec<String>,
    after: Vec<String>,
}

fn reference(scene: &mut Scene) -> Reference {
    scene.prepare();
    let before = scene.state();
    let Run { trace, answer } = run(scene, None);
    assert!(matches!(answer, Some(ref answer) if !matches!(answer, Response::Err { .. })), "{answer:?}");
    recover(scene, answer.as_ref(), None).unwrap();
    assert_eq!(scene.node.actions(), 0.0, "an agent that was not disturbed left work to the next");
    let after = scene.state();
    assert_eq!(before != after, scene.changes(), "what the operation does: {before:#?} {after:#?}");
    Reference { calls: trace.calls, answer, before, after }
}

/// What came of the kills.
#[derive(Default)]
struct Tally {
    runs: usize,
    same: usize,
    /// Runs that made fewer calls than the first one did: they were killed when nothing was left to do.
    beyond: usize,
    failures: Vec<String>,
}

/// Kills at the moment; says whether it came.
fn one_kill(scene: &mut Scene, reference: &Reference, moment: Moment, tally: &mut Tally) -> bool {
    scene.prepare();
    let unlike = difference(scene, &reference.before);
    assert!(unlike.is_empty(), "the way back to the state before differs: {unlike:#?}");
    let Run { trace, answer } = run(scene, Some(moment));
    tally.runs += 1;
    tally.beyond += usize::from(!trace.was_reached);
    let told = answer.clone();
    let recovered = recover(scene, answer.as_ref(), reference.answer.as_ref());
    let unlike = difference(scene, &reference.after);
    if recovered.is_ok() && unlike.is_empty() {
        tally.same += 1;
        return trace.was_reached;
    }
    let last: Vec<_> = trace.calls.iter().rev().take(3).collect();
    tally.failures.push(format!("{moment:?}, calls {last:?}, answer {told:?}: {recovered:?} {unlike:#?}"));
    trace.was_reached
}

/// Kills at the chosen moments. Where all were asked for, also at calls that the first run did not make: how many rounds an operation
/// takes is up to when the kernel's notifications come.
fn kills(scene: &mut Scene, reference: &Reference, all: &[Moment], seed: u64) -> Tally {
    let mut tally = Tally::default();
    for moment in chosen(all, seed) {
        one_kill(scene, reference, moment, &mut tally);
    }
    if takes_all() {
        let mut number = reference.calls.len();
        while one_kill(scene, reference, Moment::Before(number), &mut tally) {
            number += 1;
        }
    }
    tally
}

fn kinds(calls: &[Call]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for call in calls {
        let kind = if call.is_send { format!("{} {}", call.name, call.target) } else { call.name.to_owned() };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

fn killed_at_every_call<F: FnOnce()>(operation: Operation, _named: F) {
    isolated_as::<F>(|| {
        if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            skip("the calls of this processor are not known");
        }
        let mut scene = Scene::new(operation);
        assert!(scene.reach(), "the flow that must not notice");
        let reference = reference(&mut scene);
        let (all, seed) = (moments(&reference.calls), seed());
        let pinger = scene.pinger();
        let begun = Instant::now();
        let tally = kills(&mut scene, &reference, &all, seed);
        let pings = pinger.finish();
        let name = operation.name();
        println!(
            "MEASURED: {name}: {} calls, {} moments; killed at {}, and {} times at the end; the same after {} of {}; lost {} of {} pings; seed {seed}, {:.1} s",
            reference.calls.len(),
            all.len(),
            tally.runs - tally.beyond,
            tally.beyond,
            tally.same,
            tally.runs,
            pings.lost,
            pings.sent,
            begun.elapsed().as_secs_f64(),
        );
        println!("MEASURED: {name}: {:?}", kinds(&reference.calls));
        assert!(tally.runs > 0 && tally.failures.is_empty(), "seed {seed}: {}", tally.failures.join("\n"));
        assert!(tally.beyond < tally.runs, "no moment was ever reached");
        assert_eq!(pings.lost, 0, "{pings:?}");
    });
}

/// That a kill cuts off what the trace says, and that the comparison sees it.
#[test]
fn an_attach_cut_off_before_its_first_call_and_not_repeated_has_not_happened() {
    isolated(|| {
        let mut scene = Scene::new(Operation::Attach);
        let reference = reference(&mut scene);
        scene.prepare();
        let Run { trace, answer } = run(&mut scene, Some(Moment::Before(0)));
        assert!(trace.was_reached && trace.calls.len() == 1, "{:?}", trace.calls);
        assert_eq!(answer, None);
        scene.node.start();
        until("the agent is in sync", || scene.node.total("overlayd_in_sync") == 1.0);
        assert_eq!(difference(&scene, &reference.before), [""; 0]);
        assert_ne!(scene.state(), reference.after);
    });
}

#[test]
fn a_setup_of_a_segment_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::SetupSegment, || {});
}

#[test]
fn a_removal_of_a_segment_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::RemoveSegment, || {});
}

#[test]
fn a_prune_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::Prune, || {});
}

#[test]
fn an_attach_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::Attach, || {});
}

#[test]
fn a_detach_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::Detach, || {});
}

#[test]
fn a_change_of_isolation_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::ChangeIsolation, || {});
}

#[test]
fn an_added_peer_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::AddPeer, || {});
}

#[test]
fn a_moved_allowed_ip_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::MoveAllowedIp, || {});
}

#[test]
fn a_setup_of_the_overlay_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::SetupOverlay, || {});
}

#[test]
fn a_teardown_of_the_overlay_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::TeardownOverlay, || {});
}

#[test]
fn a_first_start_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::FirstStart, || {});
}

#[test]
fn a_start_on_a_bare_node_ends_the_same_whenever_the_agent_dies() {
    killed_at_every_call(Operation::Rebuild, || {});
}

#[test]
fn a_lost_device_is_started_again_whenever_the_agent_dies() {
    killed_at_every_call(Operation::LostDevice, || {});
}

#[test]
fn an_edit_of_the_document_is_there_wholly_or_not_at_all_whenever_the_agent_dies() {
    killed_at_every_call(Operation::RegisterDns, || {});
}
