//! A state directory as a killed agent left it, and what must be found in every part of it.
//!
//! Owns making it once and laying it out again. Each generation brought one record that nothing takes away: a document is told by its keys.
//!
//! It has all that a store can have: two journal segments, two copies, a checkpoint, and edits at the end that only the journal holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use overlayd::wire::{NatCandidate, PeerScope, PeerSpec, Request};
use serde_json::Value;

use crate::agent_process::{Agent, peer};

/// Enough edits for a second copy, and each big enough for a second segment.
const BULK: u16 = 1100;
/// Edits after the last fold.
const TAIL: u16 = 12;

/// The directory and its truth.
pub struct Kept {
    pub state_dir: PathBuf,
    /// Keys of the records, by the generation that brought each.
    keys: Vec<String>,
    records: Value,
    /// The last generation that the checkpoint has.
    pub folded: u64,
    pub last: u64,
}

impl Kept {
    /// Lets an agent write it and kills that; the directory is then `at`.
    pub fn make(agent: &mut Agent<'_>, at: &Path) -> Self {
        agent.start();
        let mut keys = vec![String::new(), "node-key".to_owned()];
        send(agent, (0..BULK).map(big_peer), &mut keys);
        let folded = keys.len() as u64 - 1;
        let copy = agent.state_dir().join(format!("export/last-good-{folded:020}.json"));
        // The copy is written after the fold.
        agent.wait_for("a copy", |_| copy.exists());
        send(
            agent,
            (BULK..BULK + TAIL).map(|n| Request::AddPeer { peer: peer(n), scope: PeerScope::Global }),
            &mut keys,
        );
        agent.kill();
        lay_out(&agent.state_dir(), at);
        let records = with_secrets(agent);
        let last = keys.len() as u64 - 1;
        let kept = Self { state_dir: at.into(), keys, records, folded, last };
        kept.assert_is_in(agent, last);
        kept
    }

    /// The same when other records were added since.
    pub fn assert_is_part_of(&self, agent: &Agent<'_>) {
        let found = with_secrets(agent);
        let is_there = |key: &String| found[key] == self.records[key];
        assert!(self.keys[1..].iter().all(is_there), "records are missing; the log ends:\n{}", agent.log_end());
    }

    /// The store of the agent is the document of that generation, record by record and with the same key.
    pub fn assert_is_in(&self, agent: &Agent<'_>, generation: u64) {
        let found = with_secrets(agent);
        let mut wanted = serde_json::Map::new();
        for key in &self.keys[1..=usize::try_from(generation).unwrap()] {
            wanted.insert(key.clone(), self.records[key].clone());
        }
        let wanted = Value::Object(wanted);
        assert!(wanted["node-key"].to_string().contains("private"), "{}", wanted["node-key"]);
        assert!(found == wanted, "not the document of generation {generation}; the log ends:\n{}", agent.log_end());
    }
}

/// Sends them, some at once, and waits for the answers; each is one generation.
fn send(agent: &Agent<'_>, requests: impl Iterator<Item = Request>, keys: &mut Vec<String>) {
    let mut connection = agent.raw();
    let requests: Vec<Request> = requests.collect();
    for some in requests.chunks(20) {
        for (id, request) in (0..).zip(some) {
            let Request::AddPeer { peer, .. } = request else { unreachable!("peers only") };
            keys.push(format!("peer/node/{}", peer.public_key));
            connection.request(id, request.clone());
        }
        for _ in some {
            let answer = connection.next().expect("an answer");
            assert_eq!(answer["response"]["result"], "ok", "{answer}");
        }
    }
}

pub fn big_peer(number: u16) -> Request {
    let candidate = |n: u32| NatCandidate { candidate_type: "host".into(), address: format!("{n:->200}"), priority: n };
    let peer = PeerSpec { candidates: (0..5).map(candidate).collect(), ..peer(number) };
    Request::AddPeer { peer, scope: PeerScope::Global }
}

fn with_secrets(agent: &Agent<'_>) -> Value {
    let output = agent.command(&["store", "export", "--with-secrets"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut export: Value = serde_json::from_slice(&output.stdout).unwrap();
    export["records"].take()
}

/// Makes `to` a copy of the directory `from`.
pub fn lay_out(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            lay_out(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
