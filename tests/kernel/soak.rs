//! Hours of everything at once: 64 clients, somebody who takes things apart ten times a second, and an agent that is killed every few
//! seconds or left alone.
//!
//! Owns the order of such a run and what must hold at its end. Leaves what clients ask to `client.rs`, the meddling and the kills to
//! `trouble.rs`, and memory and descriptors to `sample.rs`.
//!
//! Upholds I-01 (after every kill the document holds what every client was told), I-09, I-11, I-15.
//!
//! `OVERLAYD_SOAK_SECS` says how long each of the two runs takes, `OVERLAYD_SOAK_DIR` where a table and a picture of it are left.

mod client;
mod sample;
mod trouble;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use overlayd::wire::OverlayMode;
use serde_json::Value;

use self::{
    client::{Belief, Client, Shared},
    sample::Samples,
    trouble::{Kills, Trouble},
};
use crate::{
    containers::scene::{DUAL, single_with},
    lab::{device_processes, isolated, network},
    overlay_node::{OverlayNode, PATIENCE, until},
};

const CLIENTS: usize = 64;
/// Length of a run that nobody asked to be longer.
const SHORT: Duration = Duration::from_secs(20);
/// From this length on, memory is judged: before, caches are still filling.
const LONG: Duration = Duration::from_secs(600);

fn length() -> Duration {
    let asked = std::env::var("OVERLAYD_SOAK_SECS").ok();
    asked.map_or(SHORT, |text| Duration::from_secs(text.parse().expect("OVERLAYD_SOAK_SECS is a number of seconds")))
}

/// The document of a node whose agent is dead or has nothing to do.
fn document(node: &OverlayNode) -> BTreeMap<String, Value> {
    node.records().unwrap_or_else(|output| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn devices_of(node: &OverlayNode) -> Vec<i32> {
    device_processes(node.node.run(network))
}

/// Where the document is not what the clients were told.
fn broken_promises(beliefs: &[Arc<Mutex<Belief>>], document: &BTreeMap<String, Value>) -> Vec<String> {
    let each = beliefs.iter().enumerate().flat_map(|(number, belief)| {
        let broken = belief.lock().unwrap().contradictions(document);
        broken.into_iter().map(move |what| format!("client {number}: {what}"))
    });
    each.collect()
}

/// Ports, addresses and device processes that are on the node and in no record, or the other way round.
fn orphans(node: &OverlayNode, document: &BTreeMap<String, Value>) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap_or_default() };
    let (mut ports, mut members) = (BTreeSet::new(), BTreeSet::new());
    for (key, record) in document {
        let Some(pid) = key.strip_prefix("attachment/pid/") else { continue };
        let global = texts(&record["global"]);
        ports.insert(format!("veth-{pid}-s"));
        ports.extend((!global.is_empty()).then(|| format!("veth-{pid}-g")));
        members.extend([texts(&record["addresses"]), global].concat());
    }
    let devices = 1 + document.values().filter(|record| !record["dedicated"].is_null()).count();
    let seen = [
        ("ports", ports, node.ports()),
        ("members", members, node.members().iter().map(ToString::to_string).collect()),
        ("devices", BTreeSet::from([devices.to_string()]), [devices_of(node).len().to_string()].into()),
    ];
    let differs = seen.into_iter().filter(|(_, wanted, seen)| wanted != seen);
    differs.map(|(what, wanted, seen)| format!("{what}: {wanted:?} in the document, {seen:?} on the node")).collect()
}

fn soak(kills: Kills) {
    let mut node = single_with(DUAL, &["--address-rest-secs", "1"]);
    node.kill();
    node.log_level = "info";
    node.start();
    let held_before = sample::descriptors(node.agent_pid());
    for service in client::SERVICES {
        node.segment(service, OverlayMode::Auto);
    }
    let shared = Arc::new(Shared::new(node.socket(), node.agent_pid()));
    let clients: Vec<Client> = (0..CLIENTS).map(|number| Client::new(number, Arc::clone(&shared))).collect();
    let beliefs: Vec<_> = clients.iter().map(Client::belief).collect();
    let samples = Samples::start(Arc::clone(&shared), node.node.twin());
    let mut trouble = Trouble::new(node, kills, Arc::clone(&shared));
    let threads: Vec<_> = clients.into_iter().map(|client| std::thread::spawn(move || client.live())).collect();
    let begun = Instant::now();
    while begun.elapsed() < length() {
        trouble.next(&|document| broken_promises(&beliefs, document));
    }
    let (node, told) = trouble.end();
    shared.is_over.store(true, Ordering::SeqCst);
    let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("a client")).collect();
    let (tallies, containers): (Vec<_>, Vec<_>) = ended.into_iter().unzip();
    let mut requests = BTreeMap::<&str, u64>::new();
    for (word, count) in tallies.into_iter().flatten() {
        *requests.entry(word).or_default() += count;
    }
    let quiet = || node.total("overlayd_in_sync") == 1.0 && node.diff() == (Vec::new(), 0);
    until("nothing is left to do", quiet);
    let samples = samples.end();
    println!("MEASURED: {kills:?}, {:?}: {told}", begun.elapsed());
    println!("MEASURED: {kills:?}: requests {requests:?}");
    println!("MEASURED: {kills:?}: {samples}");
    samples.keep(&format!("{kills:?}").to_lowercase());
    let held = document(&node);
    assert_eq!(broken_promises(&beliefs, &held), [""; 0]);
    assert_eq!(orphans(&node, &held), [""; 0]);
    let check = node.command(&["store", "check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    drop(containers);
    until("every end was noticed", || node.ports().is_empty() && node.members().is_empty() && quiet());
    // One for each device process that it started since, two for each address at which it answers for the zone, and what it may have had no
    // use for before: the visitor's namespace and socket, sled's file while it folds, a connection of this test.
    let allowed = held_before.len() + devices_of(&node).len() + 2 * served_at(&node) + 4;
    let held = || sample::descriptors(node.agent_pid());
    let begun = Instant::now();
    while held().len() > allowed {
        assert!(begun.elapsed() < PATIENCE, "held before: {held_before:#?}, and now: {:#?}", held());
        std::thread::sleep(Duration::from_millis(50));
    }
    if length() >= LONG {
        samples.assert_flat();
    }
}

/// At how many addresses the agent answers for the overlay's zone.
fn served_at(node: &OverlayNode) -> usize {
    let socket = node.socket().to_string_lossy().into_owned();
    let status = node.command(&["status", "--socket", &socket, "--json"]).stdout;
    let status: Value = serde_json::from_slice(&status).unwrap();
    status["dns"]["listens"].as_array().map_or(0, Vec::len)
}

#[test]
fn an_agent_that_is_killed_all_the_time_keeps_every_promise() {
    isolated(|| soak(Kills::EverySeconds));
}

#[test]
fn an_agent_that_is_left_alone_needs_no_more_from_hour_to_hour() {
    isolated(|| soak(Kills::Never));
}
