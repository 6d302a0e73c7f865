//! What the agent keeps: once, in order, by itself, and not in a damaged store.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use overlayd::wire::{Request, Response};
use serde_json::Value;

use super::{has_device, isolated, running};
use crate::{
    agent_process::{Agent, DEVICE, add_peer, peer_key, setup},
    lab::need_tun,
};

#[test]
fn a_driving_daemon_that_says_everything_a_hundred_times_changes_nothing() {
    isolated(|| {
        need_tun();
        let agent = running(Agent::new("a"));
        let sequence =
            [Request::SetLocalNodeId { node_id: 7 }, Request::SetLocalWgPubkey { pubkey: peer_key(9) }, setup("a")];
        for request in &sequence {
            agent.must(request.clone());
        }
        let before = (agent.generation(), agent.metric("overlayd_actions_total{"), agent.status());
        for _ in 0..100 {
            for request in &sequence {
                let response = agent.must(request.clone());
                if matches!(request, Request::SetupGlobalOverlay { .. }) {
                    assert_eq!(response, Response::BridgeName { name: DEVICE.into() });
                }
            }
        }
        let after = (agent.generation(), agent.metric("overlayd_actions_total{"), agent.status());
        assert_eq!(before, after);
        assert_ne!(agent.status().public_key, Some(peer_key(9)), "the claim is not our key");
        println!(
            "MEASURED: 100 repetitions of the reconnect sequence: generation {} as before, {} actions as before",
            after.0, after.1
        );
    });
}

#[test]
fn the_order_of_requests_from_two_connections_does_not_matter() {
    isolated(|| {
        let dns = |n: u8| Request::RegisterDns { name: format!("n{n}.zone"), ip: [10, 200, 1, n].into() };
        let ours = [vec![setup("a")], (1..20).map(add_peer).collect()].concat();
        let others: Vec<Request> = (1..20).map(dns).chain([Request::SetLocalNodeId { node_id: 3 }]).collect();
        let mut documents = Vec::new();
        for round in 0..4 {
            let agent = running(Agent::without_device(&format!("a{round}")));
            let (mut one, mut two) = (ours.clone(), others.clone());
            if round % 2 == 1 {
                one.reverse();
                two.reverse();
            }
            std::thread::scope(|scope| {
                let agent = &agent;
                scope.spawn(move || send_all(agent, one));
                if round < 2 {
                    scope.spawn(move || send_all(agent, two));
                } else {
                    send_all(agent, two);
                }
            });
            let export = agent.command(&["store", "export"]);
            documents.push(without_history(serde_json::from_slice(&export.stdout).unwrap()));
        }
        assert!(documents[0].to_string().contains("n19.zone"), "{}", documents[0]);
        assert!(documents.iter().all(|document| *document == documents[0]), "{documents:#?}");
    });
}

fn send_all(agent: &Agent<'_>, requests: Vec<Request>) {
    let mut client = agent.raw();
    let count = requests.len();
    for (id, request) in requests.into_iter().enumerate() {
        client.request(id as u64, request);
    }
    for _ in 0..count {
        client.next().expect("an answer");
    }
}

/// An export without the generations at which its records were written, and without the node's own key.
fn without_history(mut export: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for name in
                    ["since", "endpoint_since", "generation", "settled", "node_key", "crc", "sha", "checksum", "at"]
                {
                    fields.remove(name);
                }
                fields.retain(|name, _| name != "node-key");
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut export);
    export
}

#[test]
fn a_second_process_is_told_what_stands_in_its_way() {
    isolated(|| {
        let mut first = running(Agent::without_device("a"));
        let mut second = Agent::without_device("b");
        second.metrics_port = 9587;
        second.arguments.extend(["--state-dir".to_owned(), first.state_dir().display().to_string()]);
        let refused = |agent: &Agent<'_>| {
            let output = agent.run_command().output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            String::from_utf8(output.stderr).unwrap()
        };
        let text = refused(&second);
        assert!(text.contains("/run/a/state") && text.contains("another"), "{text}");
        second.arguments.truncate(2);
        second.arguments.extend(["--socket".to_owned(), first.socket().display().to_string()]);
        let mut command = second.overlayd();
        let output = command.args(["run", "--data-plane", "kernel", "--metrics-listen", "127.0.0.1:9587", "--socket"]);
        let output = output.arg(first.socket()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text.contains("another process listens on /run/a/run/overlayd.sock"), "{text}");
        assert!(first.is_running());
        first.must(Request::Status);
    });
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_at_its_place_is_left_alone() {
    isolated(|| {
        let mut agent = Agent::without_device("a");
        agent.start();
        agent.kill();
        assert!(fs::metadata(agent.socket()).unwrap().file_type().is_socket(), "a killed agent leaves its socket");
        agent.start();
        agent.must(Request::Status);
        fs::remove_file(agent.socket()).unwrap();
        fs::write(agent.socket(), "precious").unwrap();
        assert!(agent.terminate().1.success());
        let output = agent.run_command().output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text.contains("is not a socket; move it away"), "{text}");
        assert_eq!(fs::read_to_string(agent.socket()).unwrap(), "precious");
    });
}

#[test]
fn nobody_else_can_read_what_the_agent_keeps() {
    isolated(|| {
        // A careless umask of whoever starts it must not matter.
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let mut agent = Agent::without_device("a");
        agent.start();
        agent.request(setup("a"));
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&agent.socket()), 0o660);
        assert_eq!(mode(agent.socket().parent().unwrap()), 0o750);
        agent.terminate();
        let mut paths = vec![agent.state_dir()];
        let mut files = 0;
        while let Some(path) = paths.pop() {
            if path.is_dir() {
                assert_eq!(mode(&path), 0o700, "{}", path.display());
                paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                files += 1;
                assert_eq!(mode(&path), 0o600, "{}", path.display());
            }
        }
        assert!(files > 3, "{files}");
    });
}

#[test]
fn a_damaged_store_keeps_the_agent_from_starting_until_it_is_mended() {
    isolated(|| {
        let with_device = has_device("a start on a damaged store leaves the device alone");
        let mut agent = if with_device { Agent::new("a") } else { Agent::without_device("a") };
        agent.start();
        agent.request(setup("a"));
        for n in 1..4 {
            agent.request(add_peer(n));
        }
        let key = agent.report()["public_key"].clone();
        assert!(key.is_string());
        agent.terminate();
        let before = link_names();
        for damaged in damage(&agent.state_dir()) {
            let output = agent.run_command().output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{damaged}: {text}");
            assert!(text.contains("overlayd store"), "{damaged}: {text}");
            assert_eq!(link_names(), before, "{damaged}: the node is as before");
        }
        let recovered = agent.command(&["store", "recover"]);
        let text =
            String::from_utf8_lossy(&recovered.stdout).into_owned() + &String::from_utf8_lossy(&recovered.stderr);
        assert!(recovered.status.success(), "{text}");
        agent.start();
        assert_eq!(agent.report()["public_key"], key, "the node is still itself: {text}");
        assert!(text.contains("LOST: generations") || agent.status().peer_count == 3, "a loss is said: {text}");
        agent.must(Request::Status);
    });
}

/// Spoils the middle of every file of the checkpoint and of the journal.
fn damage(state_dir: &Path) -> Vec<String> {
    let mut spoiled = Vec::new();
    for part in ["sled", "journal"] {
        for entry in fs::read_dir(state_dir.join(part)).unwrap().flatten() {
            let path = entry.path();
            if !path.is_file() {
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            let end = bytes.len().min(middle + 64);
            for byte in &mut bytes[middle.min(8)..end] {
                *byte ^= 0x5a;
            }
            fs::write(&path, bytes).unwrap();
            spoiled.push(path.display().to_string());
        }
    }
    assert!(!spoiled.is_empty());
    vec![spoiled.join(", ")]
}

fn link_names() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let mut names: Vec<String> = table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().into())).collect();
    names.sort();
    names
}

#[test]
fn a_taken_metrics_port_does_not_keep_the_agent_from_its_work() {
    isolated(|| {
        let taken = std::net::TcpListener::bind("127.0.0.1:9586").unwrap();
        let mut agent = Agent::without_device("a");
        agent.spawn();
        agent.wait_for("the socket", |agent| agent.socket().exists());
        agent.must(Request::SetLocalNodeId { node_id: 1 });
        drop(taken);
        assert!(crate::agent_process::within(Duration::from_secs(8), || agent.page("/healthz").is_ok()));
    });
}
