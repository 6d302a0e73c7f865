//! Two agents: in one namespace, and joined by a wire.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, UdpSocket},
    process::Stdio,
    time::Duration,
};

use overlayd::wire::{PeerScope, PeerSpec, Request};
use serde_json::{Value, json};

use super::isolated;
use crate::{
    agent_process::{Agent, DEVICE, PATIENCE, add_peer, setup, within},
    lab::{Node, need_tun},
};

/// The overlay of instance `b`, beside that of [`setup`]`("a")`.
fn second_setup() -> Request {
    let mut value = serde_json::to_value(setup("b")).unwrap();
    value["cluster_cidr"] = json!("10.100.0.0/16");
    value["slice_cidr"] = json!("10.100.1.0/24");
    value["wg_port"] = json!(51821);
    serde_json::from_value(value).unwrap()
}

#[test]
fn two_instances_in_one_namespace_converge_and_purging_one_leaves_the_other_working() {
    isolated(|| {
        need_tun();
        let (mut a, mut b) = (Agent::new("a"), Agent::at("b", 9587));
        a.start();
        b.start();
        a.must(setup("a"));
        a.must(add_peer(1));
        b.must(second_setup());
        b.must(add_peer(2));
        for agent in [&a, &b] {
            agent.wait_for("the node to be in sync", |agent| agent.report()["in_sync"] == true);
            assert_eq!(agent.ask(&["diff"]), (0, String::new()));
        }
        let acted = b.metric("overlayd_actions_total{");
        let while_it_runs = a.command(&["purge"]);
        assert_eq!(while_it_runs.status.code(), Some(1), "{while_it_runs:?}");
        a.terminate();
        let purged = a.command(&["purge"]);
        assert!(purged.status.success(), "{purged:?}");
        assert!(!a.has_link(DEVICE));
        assert_eq!(b.look_again()["in_sync"], true);
        assert_eq!(b.ask(&["diff"]), (0, String::new()));
        assert_eq!(b.metric("overlayd_actions_total{"), acted, "the other one had nothing to mend");
        b.must(add_peer(3));
        a.start();
        a.wait_for("the purged instance to be back", |agent| {
            agent.report()["in_sync"] == true && agent.has_link(DEVICE)
        });
    });
}

#[test]
fn a_second_agent_for_the_same_instance_is_blocked_and_the_first_is_untouched() {
    isolated(|| {
        need_tun();
        let (mut a, mut b) = (Agent::new("a"), Agent::at("b", 9587));
        a.start();
        b.start();
        a.must(setup("a"));
        a.wait_for("the node to be in sync", |agent| agent.report()["in_sync"] == true);
        let index = nix::net::if_::if_nametoindex(DEVICE).unwrap();
        let message = b.refused(setup("a"));
        assert!(message.contains("blocked") && message.contains("another overlayd instance"), "{message}");
        let report = b.report();
        assert!(report["troubled"].to_string().contains("blocked"), "{report}");
        assert_eq!(nix::net::if_::if_nametoindex(DEVICE).ok(), Some(index));
        assert_eq!(a.look_again()["in_sync"], true);
        assert_eq!(a.ask(&["diff"]), (0, String::new()));
        println!("MEASURED: the second one says: {message}");
    });
}

#[test]
fn a_watcher_hears_when_a_peer_is_heard_for_the_first_time() {
    isolated(|| {
        need_tun();
        let (left, right) = (Node::new(), Node::new());
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        left.wire(&right, address(1), address(2), 24);
        let (mut a, mut b) = (Agent::inside(&left, "a"), Agent::inside(&right, "b"));
        for (agent, slice) in [(&mut a, "10.200.1.0/24"), (&mut b, "10.200.2.0/24")] {
            agent.start();
            let mut value = serde_json::to_value(setup("a")).unwrap();
            value["slice_cidr"] = json!(slice);
            agent.must(serde_json::from_value(value).unwrap());
        }
        let keys = [a.status().public_key.unwrap(), b.status().public_key.unwrap()];
        for (agent, key, n) in [(&a, &keys[1], 2), (&b, &keys[0], 1)] {
            let peer = PeerSpec {
                public_key: key.clone(),
                endpoint: format!("192.0.2.{n}:51820"),
                allowed_ips: format!("10.200.{n}.0/24"),
                persistent_keepalive_secs: 0,
                candidates: Vec::new(),
            };
            agent.must(Request::AddPeer { peer, scope: PeerScope::Global });
            agent.look_again();
        }
        let mut command = a.overlayd();
        command.args(["ctl", "watch", "--socket"]).arg(a.socket()).stdout(Stdio::piped());
        let mut watcher = command.spawn().unwrap();
        a.wait_for("the watcher", |agent| agent.metric("overlayd_connections ") == 1.0);
        let lines = BufReader::new(watcher.stdout.take().unwrap());
        let first = std::thread::spawn(move || lines.lines().next().and_then(Result::ok));
        let heard = within(PATIENCE, || {
            left.run(|| {
                let socket = UdpSocket::bind("10.200.1.1:0").unwrap();
                socket.send_to(b"hello", "10.200.2.1:9").unwrap();
            });
            std::thread::sleep(Duration::from_millis(100));
            a.look_again();
            first.is_finished()
        });
        watcher.kill().unwrap();
        watcher.wait().unwrap();
        let line = first.join().unwrap().unwrap_or_default();
        assert!(heard, "{line}; the log ends:\n{}", a.log_end());
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event, json!({"event": "peer_health_changed", "pubkey": keys[1], "healthy": true}));
    });
}
