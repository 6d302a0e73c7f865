//! What the agent makes of clients that are wrong, slow, many, or gone.

use std::{
    net::Shutdown,
    time::{Duration, Instant},
};

use overlayd::wire::{
    AttachHandle, Frame, NatConfig, OverlayMode, PeerScope, PeerSpec, Request, Response, TurnServer, encode,
    limits::{FRAME_COMPLETE_WITHIN, FRAME_MAX},
};
use serde_json::{Value, json};

use super::{isolated, on_a_hung_device, running};
use crate::{
    agent_process::{Agent, PATIENCE, Raw, add_peer, block_on, peer, peer_key, setup, within},
    lab::skip,
};

const MEBIBYTE: u64 = 1024 * 1024;

#[test]
fn every_bad_frame_gets_its_answer_and_the_next_client_is_served() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        let closes: [(&[u8], &str); 4] = [
            (&[0xff, 0xff, 0xff, 0xff], "oversized frame"),
            (&[0x01, 0x00, 0x80, 0x00], "oversized frame"),
            (b"\x05\0\0\0hello", "not JSON"),
            (b"\0\0\0\0", "not JSON"),
        ];
        for (bytes, reason) in closes {
            let series = format!("overlayd_connections_closed_total{{reason=\"{reason}\"}}");
            let before = agent.metric(&series);
            let (mut bad, mut other) = (agent.raw(), agent.raw());
            bad.bytes(bytes).unwrap();
            assert_eq!(bad.next(), None, "{reason}");
            agent.wait_for("the connection to be counted", |agent| agent.metric(&series) == before + 1.0);
            assert_eq!(other.answer(1, Request::Status)["result"], "status", "others are not concerned");
        }
        let refused: [(Value, &str); 6] = [
            (json!({"frame": "request", "id": 7, "request": {"op": "fly"}}), "unknown op \"fly\""),
            (
                json!({"frame": "request", "id": 7, "request": {"op": "add_edge_peer", "name": "x"}}),
                "unknown op \"add_edge_peer\"",
            ),
            (
                json!({"frame": "request", "id": 7, "request": {"op": "set_local_node_id", "node_id": "x"}}),
                "field \"node_id\"",
            ),
            (json!({"frame": "request", "id": 7, "request": 5}), "field \"request\""),
            (json!({"frame": "response", "id": 7, "response": {"result": "ok"}}), "takes requests only"),
            (json!({"frame": "song", "id": 7}), "unknown frame"),
        ];
        let mut client = agent.raw();
        for (frame, words) in refused {
            client.body(frame.to_string().as_bytes());
            let answer = client.next().expect("the connection stays");
            assert_eq!((&answer["id"], &answer["response"]["result"]), (&json!(7), &json!("err")), "{answer}");
            assert!(answer["response"]["message"].as_str().unwrap().contains(words), "{answer}");
        }
        for silent in [json!({"frame": "event", "event": "peer_health_changed"}), json!([]), json!(null)] {
            client.body(silent.to_string().as_bytes());
        }
        assert_eq!(client.answer(8, Request::Status)["result"], "status", "what has no id is passed over");
    });
}

#[test]
fn what_needs_an_overlay_or_another_system_is_refused_with_what_to_send() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        let before = agent.generation();
        let service = || "web".to_owned();
        let attach = |handle: AttachHandle| Request::AttachContainer {
            handle,
            service: service(),
            join_global: false,
            ephemeral: false,
            isolation_network: None,
            dns_server: None,
            dns_domain: None,
        };
        let windows = AttachHandle::WindowsContainer { container_id: "c".into(), ip: None };
        let refused = [
            (Request::SetupServiceOverlay { service: service(), mode: OverlayMode::Auto }, "setup_global_overlay"),
            (Request::AllocateIp { service: service(), join_global: false }, "setup_global_overlay"),
            (attach(AttachHandle::GuestManaged { id: "g".into() }), "setup_global_overlay"),
            (attach(AttachHandle::HostShared { id: "h".into() }), "setup_global_overlay"),
            (attach(windows), "Windows"),
            (attach(AttachHandle::LinuxPid { pid: std::process::id() }), "own network namespace"),
            (attach(AttachHandle::LinuxPid { pid: 0 }), "process id"),
            (Request::ReleaseIp { ip: "10.200.1.9".parse().unwrap() }, "10.200.1.9"),
        ];
        for (request, advice) in refused {
            let message = agent.refused(request);
            assert!(message.contains(advice), "{message:?} does not say {advice:?}");
        }
        // What is not there is gone already.
        for request in [
            Request::TeardownServiceOverlay { service: service() },
            Request::DetachContainer { handle: AttachHandle::GuestManaged { id: "g".into() } },
        ] {
            assert_eq!(agent.request(request), Response::Ok);
        }
        assert_eq!(agent.generation(), before);
    });
}

#[test]
fn every_bad_value_is_named_and_changes_nothing() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        agent.request(setup("a"));
        let before = agent.generation();
        let mut tried = 0;
        for (request, field, advice) in bad_values() {
            let shown = format!("{request:.200?}");
            let message = agent.refused(request);
            assert!(message.contains(field), "{shown}: {message:?} does not name {field}");
            assert!(message.contains(advice), "{shown}: {message:?} does not say {advice:?}");
            tried += 1;
        }
        assert_eq!(agent.generation(), before, "nothing of it was kept");
        println!("MEASURED: {tried} bad values refused by name, generation {before} as before");
    });
}

/// Request, what the message names, what it says to do.
fn bad_values() -> Vec<(Request, &'static str, &'static str)> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = serde_json::to_value(setup("a")).unwrap();
        change(&mut value);
        serde_json::from_value::<Request>(value).unwrap()
    };
    let mut bad = Vec::new();
    for (field, text, advice) in [
        ("cluster_cidr", "", "must be ADDRESS/PREFIX"),
        ("cluster_cidr", "10.200.0.0", "must be ADDRESS/PREFIX"),
        ("cluster_cidr", "10.200.0.0/33", "must be ADDRESS/PREFIX"),
        ("cluster_cidr", "10.200.0.1/16", "send the network address"),
        ("cluster_cidr", "fd00::1/48", "send the network address"),
        ("cluster_cidr", "300.0.0.0/8", "must be ADDRESS/PREFIX"),
        ("cluster_cidr", "10.200.0.0/16\n", "must be ADDRESS/PREFIX"),
        ("slice_cidr", "10.200.1.0/24,10.200.2.0/24", "one IPv4 and one IPv6 network"),
        ("slice_cidr", "10.200.1.9/24", "send the network address"),
        ("deployment", "", "must have 1 to 255 bytes"),
        ("deployment", "a b", "may not hold spaces"),
        ("instance_id", "a\nb", "may not hold spaces"),
        ("instance_id", "\u{0}", "may not hold spaces"),
    ] {
        bad.push((with(&|value| value[field] = json!(text)), field, advice));
    }
    bad.push((with(&|value| value["deployment"] = json!("x".repeat(256))), "deployment", "1 to 255 bytes"));
    bad.push((with(&|value| value["slice_cidr"] = json!("10.201.1.0/24")), "slice", "send a slice of that network"));
    bad.push((with(&|value| value["slice_cidr"] = json!("fd00::/64")), "slice", "send a slice of that network"));
    bad.push((with(&|value| value["slice_cidr"] = json!("10.200.1.1/32")), "10.200.1.1/32", "send a prefix shorter"));
    bad.push((with(&|value| value["cluster_cidr"] = json!("10.200.0.0/32")), "10.200.0.0/32", "send a prefix shorter"));
    bad.push((with(&|value| value["wg_port"] = json!(0)), "port", "send a port from 1"));
    let nat = |nat: NatConfig| with(&|value| value["nat"] = serde_json::to_value(&nat).unwrap());
    let many = NatConfig { stun_servers: vec!["s:1".into(); 1000], ..NatConfig::default() };
    bad.push((nat(many), "stun_servers", "send fewer"));
    let turn = TurnServer { credential: "x".repeat(5000).into(), ..TurnServer::default() };
    let long = NatConfig { turn_servers: vec![turn], ..NatConfig::default() };
    bad.push((nat(long), "turn_servers", "send shorter"));
    bad.extend(bad_peers());
    bad.extend(bad_names());
    bad
}

fn bad_peers() -> Vec<(Request, &'static str, &'static str)> {
    let add = |change: &dyn Fn(&mut PeerSpec)| {
        let mut peer = peer(1);
        change(&mut peer);
        Request::AddPeer { peer, scope: PeerScope::Global }
    };
    let key = "must be base64 of";
    let mut bad = vec![
        (add(&|peer| peer.public_key = String::new()), "public_key", key),
        (add(&|peer| peer.public_key = "00".repeat(32)), "public_key", key),
        (add(&|peer| peer.public_key = "AAAA".into()), "public_key", key),
        (add(&|peer| peer.public_key.push('\n')), "public_key", key),
        (
            add(&|peer| peer.public_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into()),
            "public_key",
            "all zeros",
        ),
        (add(&|peer| peer.persistent_keepalive_secs = 65536), "persistent_keepalive_secs", "from 0 to 65535"),
        (Request::SetLocalWgPubkey { pubkey: "x".into() }, "pubkey", key),
        (Request::RemovePeer { pubkey: "x".into(), scope: PeerScope::Global }, "pubkey", key),
    ];
    for (endpoint, advice) in [
        ("192.0.2.1", "must be HOST:PORT"),
        ("192.0.2.1:0", "a port from 1 to 65535"),
        ("192.0.2.1:65536", "a port from 1 to 65535"),
        ("192.0.2.1:+1", "a port from 1 to 65535"),
        ("192.0.2.256:1", "neither an IPv4 address nor a host name"),
        ("2001:db8::1:51820", "in brackets"),
        ("[192.0.2.1]:1", "IPv6 address between"),
        ("exa mple.org:1", "neither an address nor a host name"),
        ("192.0.2.1:1\nremove=true", "a port from 1 to 65535"),
        ("0.0.0.0:1", "cannot be reached"),
        ("[ff02::1]:1", "cannot be reached"),
        (":1", "before the port"),
    ] {
        bad.push((add(&|peer| peer.endpoint = endpoint.into()), "endpoint", advice));
    }
    for (networks, advice) in [
        ("10.0.0.1/8", "send the network address"),
        ("10.0.0.0/8;10.1.0.0/16", "must be ADDRESS/PREFIX"),
        ("10.0.0.0/8, everything", "must be ADDRESS/PREFIX"),
        ("10.0.0.0/8\nallowed_ip=0.0.0.0/0", "must be ADDRESS/PREFIX"),
    ] {
        bad.push((add(&|peer| peer.allowed_ips = networks.into()), "allowed_ips", advice));
    }
    let allow =
        |pubkey: String, cidr: &str| Request::AddAllowedIp { pubkey, cidr: cidr.into(), scope: PeerScope::Global };
    bad.push((allow(peer_key(1), "10.0.0.0/99"), "cidr", "must be ADDRESS/PREFIX"));
    bad.push((allow(peer_key(1), "10.0.0.0/8"), "public key", "add the peer first"));
    bad
}

fn bad_names() -> Vec<(Request, &'static str, &'static str)> {
    let ip = "10.200.1.5".parse().unwrap();
    let mut bad = Vec::new();
    for (name, advice) in [
        ("", "1 to 253 characters"),
        (".", "1 to 253 characters"),
        ("a..b", "labels of 1 to 63"),
        ("-a.b", "begins or ends with '-'"),
        ("a b.c", "may hold only letters"),
        ("ä.example", "may hold only letters"),
        ("a\n.b", "may hold only letters"),
    ] {
        bad.push((Request::RegisterDns { name: name.into(), ip }, "name", advice));
    }
    for (zone, advice) in [
        ("../../etc/passwd", "labels of 1 to 63"),
        ("..", "labels of 1 to 63"),
        ("a/b", "may hold only letters"),
        ("/etc", "may hold only letters"),
        ("", "1 to 253 characters"),
        ("a\0", "may hold only letters"),
    ] {
        let zone = zone.to_owned();
        bad.push((Request::WriteScopedResolver { zone: zone.clone(), node_ip: ip, port: None }, "zone", advice));
        bad.push((Request::RemoveScopedResolver { zone }, "zone", advice));
    }
    bad
}

#[test]
fn a_frame_that_is_not_completed_in_time_is_closed_and_a_slow_but_steady_client_is_not() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        let (mut header, mut body, mut idle, mut steady) = (agent.raw(), agent.raw(), agent.raw(), agent.raw());
        let begun = Instant::now();
        header.bytes(&[5, 0]).unwrap();
        body.bytes(b"\x40\0\0\0{\"frame\":").unwrap();
        // Bytes that trickle in do not put the end off.
        let (mut ended, mut answered) = ([None, None], 0);
        while begun.elapsed() < FRAME_COMPLETE_WITHIN + Duration::from_secs(3) && ended.contains(&None) {
            for (end, slow) in ended.iter_mut().zip([&mut header, &mut body]) {
                if end.is_none() && slow.is_closed() {
                    *end = Some(begun.elapsed());
                }
            }
            let _ = body.bytes(b" ");
            assert_eq!(steady.answer(answered, Request::Status)["result"], "status");
            answered += 1;
            std::thread::sleep(Duration::from_millis(250));
        }
        for end in ended {
            let end = end.expect("closed");
            assert!(end >= FRAME_COMPLETE_WITHIN && end < FRAME_COMPLETE_WITHIN + Duration::from_secs(2), "{end:?}");
        }
        assert_eq!(idle.answer(1, Request::Status)["result"], "status", "an idle connection may stay");
        println!("MEASURED: half frames closed after {ended:?}; {answered} answers to another client meanwhile");
    });
}

#[test]
fn a_thousand_idle_connections_do_not_keep_a_new_client_out() {
    isolated(|| {
        raise_own_descriptor_limit();
        let agent = running(Agent::without_device("a"));
        let (mut idle, mut slowest) = (Vec::new(), Duration::ZERO);
        for count in 0..1000 {
            idle.push(agent.raw());
            if count % 100 == 99 {
                let begun = Instant::now();
                agent.must(Request::Status);
                slowest = slowest.max(begun.elapsed());
            }
        }
        let mut open = 1000;
        let settled = within(PATIENCE, || {
            open = idle.iter_mut().filter_map(|raw| (!raw.is_closed()).then_some(())).count();
            open <= 256
        });
        assert!(settled, "{open} are open");
        assert!(!idle.last_mut().unwrap().is_closed(), "the longest idle ones were closed, not the newest");
        assert_eq!(idle.last_mut().unwrap().answer(1, Request::Status)["result"], "status");
        assert!(agent.metric("overlayd_connections ") <= 256.0);
        println!("MEASURED: 1000 idle connections: {open} kept, a new client waited {slowest:?} at most");
    });
}

fn raise_own_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < 1200 {
        skip(&format!("this user may have {hard} descriptors only"));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

#[test]
fn a_low_descriptor_limit_leaves_the_agent_alive_and_able_to_keep_edits() {
    isolated(|| {
        for limit in [40, 100] {
            let mut agent = Agent::without_device(&format!("a{limit}"));
            agent.descriptors = Some(limit);
            agent.start();
            let mut idle: Vec<Raw> = (0..200).map(|_| agent.raw()).collect();
            let begun = Instant::now();
            agent.must(Request::SetLocalNodeId { node_id: 5 });
            let waited = begun.elapsed();
            agent.must(Request::Status);
            let name = "still.here".to_owned();
            agent.must(Request::RegisterDns { name, ip: "10.200.1.5".parse().unwrap() });
            assert!(agent.is_running());
            let open = idle.iter_mut().filter_map(|raw| (!raw.is_closed()).then_some(())).count();
            let failed = agent.metric("overlayd_accept_errors_total");
            let complaints = agent.log().matches("cannot accept a connection").count();
            assert!(complaints <= 3, "{complaints} lines of log");
            println!(
                "MEASURED: {limit} descriptors, 200 idle connections: {open} kept, {failed} accepts failed, a new client waited {waited:?}"
            );
            let (_, status) = agent.terminate();
            assert!(status.success(), "{status}");
        }
    });
}

#[test]
fn unfinished_frames_of_the_largest_size_hold_bounded_memory() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        agent.must(Request::Status);
        let before = agent.resident();
        let mut peak = before;
        let senders: Vec<_> = (0..32)
            .map(|_| {
                let mut raw = agent.raw();
                std::thread::spawn(move || {
                    let _ = raw.bytes(&u32::try_from(FRAME_MAX).unwrap().to_le_bytes());
                    let chunk = vec![b' '; 1 << 20];
                    for _ in 0..8 {
                        if raw.bytes(&chunk[..chunk.len() - 1]).is_err() {
                            break;
                        }
                    }
                    raw
                })
            })
            .collect();
        while senders.iter().any(|sender| !sender.is_finished()) {
            peak = peak.max(agent.resident());
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut held: Vec<Raw> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
        peak = peak.max(agent.resident());
        let begun = Instant::now();
        // A request in two pieces: there must be room for it as well.
        let mut split = agent.raw();
        let frame = encode(&Frame::Request { id: 1, request: Request::Status }).unwrap();
        let (first, second) = frame.split_at(frame.len() / 2);
        split.bytes(first).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        split.bytes(second).unwrap();
        assert_eq!(split.next().expect("an answer")["response"]["result"], "status");
        let waited = begun.elapsed();
        let open = held.iter_mut().filter_map(|raw| (!raw.is_closed()).then_some(())).count();
        let grown = (peak - before) / MEBIBYTE;
        assert!(grown < 160, "{grown} MiB");
        println!(
            "MEASURED: 32 unfinished frames of 8 MiB: +{grown} MiB at most (from {} MiB), {open} still open, another client waited {waited:?}",
            before / MEBIBYTE
        );
    });
}

#[test]
fn a_client_that_asks_and_does_not_read_holds_little_memory_and_blocks_nobody() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        agent.request(setup("a"));
        // Without a device the answers say that the peer is not in effect yet; what counts here is the document.
        let mut filler = agent.raw();
        for batch in 0..30 {
            for n in 1..51 {
                filler.request(n.into(), add_peer(batch * 50 + n));
            }
            for _ in 1..51 {
                filler.next().expect("an answer");
            }
        }
        let answer = serde_json::to_vec(&agent.status()).unwrap().len();
        let before = agent.resident();
        let mut deaf: Vec<Raw> = (0..8).map(|_| agent.raw()).collect();
        for raw in &mut deaf {
            raw.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            for id in 0..2000 {
                if raw.bytes(&encode(&Frame::Request { id, request: Request::Status }).unwrap()).is_err() {
                    break;
                }
            }
        }
        let begun = Instant::now();
        agent.must(Request::Status);
        let waited = begun.elapsed();
        let grown = agent.resident().saturating_sub(before) / MEBIBYTE;
        assert!(grown < 48, "{grown} MiB");
        println!(
            "MEASURED: 8 clients that ask for 2000 answers of {answer} bytes each and read none: +{grown} MiB; another waited {waited:?}"
        );
    });
}

#[test]
fn a_client_that_closes_its_sending_half_still_gets_its_answers() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        let mut client = agent.raw();
        for id in 0..40 {
            client.request(id, Request::SetLocalNodeId { node_id: id });
        }
        client.stream.shutdown(Shutdown::Write).unwrap();
        let mut ids: Vec<u64> = Vec::new();
        while let Some(answer) = client.next() {
            assert_eq!(answer["response"]["result"], "ok");
            ids.push(answer["id"].as_u64().unwrap());
        }
        ids.sort_unstable();
        assert_eq!(ids, (0..40).collect::<Vec<_>>());
    });
}

#[test]
fn pipelined_requests_are_applied_in_order_and_each_is_answered_with_its_id() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        let before = agent.generation();
        let mut client = agent.raw();
        // More than are worked on at a time, so that the reader has to wait in between.
        for id in 1..=200 {
            client.request(id, Request::SetLocalNodeId { node_id: 1000 + id });
        }
        let mut ids: Vec<u64> = (1..=200).map(|_| client.next().unwrap()["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=200).collect::<Vec<_>>());
        let export: Value = serde_json::from_slice(&agent.command(&["store", "export"]).stdout).unwrap();
        assert!(export.to_string().contains("\"node_id\":1200"), "{export}");
        assert_eq!(agent.generation(), before + 200, "none was left out, none came twice");
    });
}

#[test]
fn a_client_that_dies_in_the_middle_of_a_request_harms_nobody() {
    isolated(|| {
        let agent = running(Agent::without_device("a"));
        let before = agent.generation();
        for round in 0..50 {
            let mut whole = agent.raw();
            whole.request(1, Request::SetLocalNodeId { node_id: round });
            drop(whole);
            let mut half = agent.raw();
            half.bytes(b"\x40\0\0\0{\"frame\":").unwrap();
            drop(half);
        }
        agent.wait_for("the edits to be kept", |agent| agent.generation() == before + 50);
        agent.wait_for("the connections to be gone", |agent| agent.metric("overlayd_connections ") == 0.0);
    });
}

#[test]
fn a_status_is_answered_in_milliseconds_while_another_request_waits_for_a_hung_device() {
    isolated(|| {
        let agent = on_a_hung_device();
        let mut slow = agent.raw();
        let begun = Instant::now();
        slow.request(1, add_peer(1));
        let mut times = Vec::new();
        while begun.elapsed() < Duration::from_secs(1) {
            let asked = Instant::now();
            // On the same connection too: the answers overtake.
            slow.request(2, Request::Status);
            assert_eq!(slow.next().unwrap()["id"], 2);
            times.push(asked.elapsed());
        }
        let answer = slow.next().unwrap();
        let took = begun.elapsed();
        assert_eq!(answer["id"], 1);
        assert!(answer["response"]["message"].as_str().unwrap().contains("not in effect yet"), "{answer}");
        agent.signal_devices(nix::sys::signal::Signal::SIGCONT);
        agent.wait_for("the peer to be there after all", |agent| agent.look_again()["in_sync"] == true);
        times.sort_unstable();
        let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
        // Each came while the other request still waited; how fast is said below.
        println!(
            "MEASURED: {} status answers beside a request that took {took:?}: median {median:?}, slowest {slowest:?}",
            times.len()
        );
    });
}

#[test]
fn only_the_users_that_are_allowed_may_speak() {
    isolated(|| {
        let mut agent = Agent::without_device("a");
        agent.arguments.extend(["--allowed-uids", "4242"].map(String::from));
        agent.spawn();
        agent.wait_ready();
        let mut client = agent.raw();
        assert_eq!(client.next(), None, "turned away");
        assert_eq!(agent.metric("overlayd_connections_closed_total{reason=\"not allowed\"}"), 1.0);
        assert!(agent.log().contains("turned away"));
        agent.terminate();
        agent.arguments.extend(["--allowed-gids", "7,0"].map(String::from));
        agent.start();
        block_on(async {
            let mut client = overlayd::client::Client::connect(&agent.socket()).await.unwrap();
            client.request(Request::Status).await.unwrap();
        });
    });
}
