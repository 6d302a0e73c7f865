//! The overlay's resolver, asked over real sockets by the node, its containers and the world outside.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_resolver::proto::{
    op::{Edns, Message, ResponseCode},
    rr::{RData, RecordType},
};
use ipnet::IpNet;
use overlayd::wire::{AttachHandle, OverlayMode, Request, Response};

use crate::{
    container::Container,
    containers::scene::{DUAL, UPLINK, Wish, bridge_of, outside, single, single_with},
    lab::{Node, isolated},
    overlay_node::{OverlayNode, until},
};

mod question;
mod resolved;
mod resolver_host;
mod tools;
mod upstream;

use question::{Question, ask_all};
use upstream::{Upstream, Ways};

const OWN: &str = "10.200.0.1";

fn register(node: &OverlayNode, name: &str, ip: &str) {
    let request = Request::RegisterDns { name: name.into(), ip: ip.parse().unwrap() };
    assert_eq!(node.request(request), Response::Ok);
}

fn unregister(node: &OverlayNode, name: &str) {
    assert_eq!(node.request(Request::UnregisterDns { name: name.into() }), Response::Ok);
}

/// A name is there with the reply to what made it, and gone with the reply to what took it away.
fn comes_and_goes(node: &OverlayNode, name: &str) {
    register(node, name, "10.200.0.78");
    let question = Question::new(&format!("{name}.overlay."), RecordType::A);
    assert_eq!(data(&question.ask_surely(&node.node, server(OWN))), set(&["10.200.0.78"]), "{name}");
    unregister(node, name);
    let gone = question.ask_surely(&node.node, server(OWN));
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain, "{name}");
}

fn server(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 53)
}

/// The answer to a question; waits for the first one of a node that has just begun.
fn told(node: &Node, name: &str, kind: RecordType) -> Message {
    let question = Question::new(name, kind);
    let mut answer = None;
    until("an answer", || {
        answer = question.ask(node, server(OWN));
        answer.is_some()
    });
    answer.unwrap()
}

fn data(message: &Message) -> BTreeSet<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

fn set(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|one| (*one).to_owned()).collect()
}

fn has_soa(message: &Message) -> bool {
    matches!(message.authorities.as_slice(), [soa] if matches!(&soa.data, RData::SOA(data) if data.minimum == 2) && soa.ttl <= 2)
}

#[test]
fn every_kind_of_question_about_the_overlay_gets_its_answer() {
    isolated(|| {
        let node = single(DUAL);
        register(&node, "db", "10.200.0.9");
        register(&node, "db", "10.200.0.10");
        register(&node, "db", "fd00:200:0:1::9");
        register(&node, "four.only", "10.200.0.11");
        register(&node, "full.overlay.", "10.200.0.12");
        let refused = node.refused(Request::RegisterDns { name: "x.example.".into(), ip: OWN.parse().unwrap() });
        assert!(refused.contains("overlay"), "{refused}");
        let host = &node.node;

        let db = told(host, "DB.Overlay.", RecordType::A);
        assert_eq!(data(&db), set(&["10.200.0.9", "10.200.0.10"]));
        assert!(db.metadata.authoritative && db.metadata.recursion_available && !db.metadata.truncation);
        assert_eq!(db.answers[0].name.to_string(), "DB.Overlay.", "as it was asked");
        assert!(db.answers.iter().all(|record| record.ttl == 5));
        assert_eq!(data(&told(host, "db.overlay.", RecordType::AAAA)), set(&["fd00:200:0:1::9"]));
        assert_eq!(data(&told(host, "full.overlay.", RecordType::A)), set(&["10.200.0.12"]));

        // The name is there and the record is not; the name is not there, but one below it is; no such name.
        for (name, kind, code) in [
            ("four.only.overlay.", RecordType::AAAA, ResponseCode::NoError),
            ("four.only.overlay.", RecordType::MX, ResponseCode::NoError),
            ("only.overlay.", RecordType::A, ResponseCode::NoError),
            ("nobody.overlay.", RecordType::A, ResponseCode::NXDomain),
            ("a.db.overlay.", RecordType::A, ResponseCode::NXDomain),
            ("a!b.overlay.", RecordType::A, ResponseCode::NXDomain),
            ("99.0.200.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
            ("x.9.0.200.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
            ("0.200.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NoError),
            ("77.200.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
        ] {
            let answer = told(host, name, kind);
            assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{name} {kind}");
            assert!(answer.metadata.authoritative && has_soa(&answer), "{name} {kind}: {answer:?}");
        }

        for apex in ["overlay.", "200.10.in-addr.arpa."] {
            assert_eq!(data(&told(host, apex, RecordType::NS)), set(&["ns.overlay."]), "{apex}");
            let soa = told(host, apex, RecordType::SOA);
            assert!(matches!(&soa.answers[0].data, RData::SOA(soa) if soa.serial > 0), "{soa:?}");
        }
        assert_eq!(data(&told(host, "ns.overlay.", RecordType::A)), set(&[OWN]));
        assert_eq!(data(&told(host, "9.0.200.10.in-addr.arpa.", RecordType::PTR)), set(&["db.overlay."]));
        let v6 = "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.0.0.0.0.2.0.0.0.d.f.ip6.arpa.";
        assert_eq!(data(&told(host, v6, RecordType::PTR)), set(&["db.overlay."]));

        unregister(&node, "DB.overlay");
        assert_eq!(told(host, "db.overlay.", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(told(host, v6, RecordType::PTR).metadata.response_code, ResponseCode::NXDomain);
        for transfer in [RecordType::AXFR, RecordType::IXFR] {
            let answer = Question::new("overlay.", transfer).by_tcp().ask(host, server(OWN)).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
        }
        let by_ipv6 = Question::new("four.only.overlay.", RecordType::A).patiently();
        assert_eq!(data(&by_ipv6.ask(host, server("fd00:200:0:1::1")).unwrap()), set(&["10.200.0.11"]));
        assert!(node.total("overlayd_dns_queries_total") > 20.0);
    });
}

#[test]
fn containers_are_found_by_service_and_id_and_by_each_other() {
    isolated(|| {
        let node = single(DUAL);
        let bridge = bridge_of(&node.segment("web", OverlayMode::Auto));
        let (one, two) = (Container::new(), Container::new());
        let first = node.attach(&one, Wish::to("web"));
        let second = node.attach(&two, Wish::to("web").fenced("red").global());
        let service = || data(&told(&node.node, "web.overlay.", RecordType::A));
        assert_eq!(service(), set(&[&first.to_string(), &second.to_string()]));
        let own = data(&told(&node.node, &format!("{}.web.overlay.", one.pid), RecordType::A));
        assert_eq!(own, set(&[&first.to_string()]));
        // A container asks its own gateway, and a fenced one may do so too.
        let gateways: Vec<IpAddr> = node.gateways(&bridge).iter().map(IpNet::addr).collect();
        let reaches = |container: &Container| {
            let question = Question::new("web.overlay.", RecordType::A);
            let mut all = gateways.iter().map(|ip| SocketAddr::new(*ip, 53));
            all.any(|at| question.ask(&container.node(), at).is_some_and(|answer| answer.answers.len() == 2))
        };
        until("the first container to be told", || reaches(&one));
        until("the fenced container to be told", || reaches(&two));
        node.request(Request::DetachContainer { handle: two.handle() });
        assert_eq!(service(), set(&[&first.to_string()]), "gone with the answer to the detach");
        let id = format!("{}.web.overlay.", two.pid);
        assert_eq!(told(&node.node, &id, RecordType::A).metadata.response_code, ResponseCode::NXDomain);
        drop(one);
        until("a container that died is forgotten", || service().is_empty());
        let guest = AttachHandle::HostShared { id: "Job-7".into() };
        let Response::Attached(attached) = node.request(Wish::to("batch").request(guest)) else { panic!() };
        let name = data(&told(&node.node, "job-7.batch.overlay.", RecordType::A));
        assert_eq!(name, set(&[&attached.ip.to_string()]));
    });
}

#[test]
fn what_is_too_long_is_cut_and_comes_whole_by_tcp() {
    isolated(|| {
        let node = single(DUAL);
        for last in 2..=202 {
            register(&node, "many", &format!("10.200.9.{last}"));
        }
        told(&node.node, "many.overlay.", RecordType::A);
        let ask = |question: Question| question.ask(&node.node, server(OWN)).unwrap();
        let plain = ask(Question::new("many.overlay.", RecordType::A));
        assert!(plain.metadata.truncation && plain.answers.is_empty() && plain.edns.is_none());
        let more = ask(Question::new("many.overlay.", RecordType::A).taking(4096));
        assert!(more.metadata.truncation && more.answers.is_empty());
        assert_eq!(more.edns.as_ref().map(Edns::max_payload), Some(1232));
        let whole = ask(Question::new("many.overlay.", RecordType::A).by_tcp());
        assert!(!whole.metadata.truncation && whole.answers.len() == 201);
        // One address with more names than a message is to have.
        for n in 0..70 {
            register(&node, &format!("{n}.{}", "site".repeat(10)), "10.200.9.1");
        }
        let back = || Question::new("1.9.200.10.in-addr.arpa.", RecordType::PTR);
        let cut = ask(back().taking(1232));
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.edns.is_some());
        assert_eq!(ask(back().by_tcp()).answers.len(), 64);
    });
}

#[test]
fn every_change_is_seen_by_the_next_question_and_none_is_lost_under_load() {
    isolated(|| {
        let node = single(DUAL);
        register(&node, "stays", "10.200.0.77");
        told(&node.node, "stays.overlay.", RecordType::A);
        let load = ask_all(&node.node, server(OWN), "stays.overlay.");
        for turn in 0..200 {
            comes_and_goes(&node, &format!("n{turn}"));
        }
        let (asked, wrong) = load.end();
        println!("MEASURED: {asked} questions answered beside 400 changes of the zone, {wrong} wrong");
        assert!(asked > 0 && wrong == 0);
    });
}

#[test]
fn a_killed_agent_answers_again_by_itself_and_right_from_the_first_answer_on() {
    const KILLS: u32 = 10;
    isolated(|| {
        let mut node = single(DUAL);
        register(&node, "db", "10.200.0.9");
        let question = Question::new("db.overlay.", RecordType::A).within(Duration::from_millis(5));
        let right = set(&["10.200.0.9"]);
        let mut gaps = Vec::new();
        told(&node.node, "db.overlay.", RecordType::A);
        for turn in 0..KILLS {
            // An edit that nobody but the dead agent could know of.
            let last = format!("10.200.1.{}", turn + 1);
            register(&node, "last", &last);
            node.kill();
            let dead = Instant::now();
            node.start();
            until("it answers", || question.ask(&node.node, server(OWN)).is_some_and(|answer| data(&answer) == right));
            gaps.push(dead.elapsed());
            let found = data(&told(&node.node, "last.overlay.", RecordType::A));
            assert!(found.contains(&last), "{found:?}");
        }
        gaps.sort_unstable();
        let middle = gaps[gaps.len() / 2];
        println!(
            "MEASURED: {KILLS} kills, from the kill to an answer of the next agent: middle {middle:?}, longest {:?}",
            gaps[gaps.len() - 1]
        );
    });
}

#[test]
fn other_names_are_asked_of_the_hosts_servers_and_the_overlay_does_not_wait_for_them() {
    isolated(|| {
        let conf = std::env::temp_dir().join(format!("resolv-{}.conf", std::process::id()));
        // Its own address and one in the overlay are never asked.
        std::fs::write(&conf, format!("nameserver {OWN}\nnameserver 10.200.77.1\nnameserver 198.51.100.1\n")).unwrap();
        let node = single_with(DUAL, &["--resolv-conf", conf.to_str().unwrap()]);
        let world = outside(&node, &["10.200.0.0/16"]);
        let upstream = Upstream::start(&world, "198.51.100.1");
        let ask = |name: &str| Question::new(name, RecordType::A).patiently().ask(&node.node, server(OWN)).unwrap();
        let known = || ask("known.example.");
        register(&node, "db", "10.200.0.9");
        told(&node.node, "db.overlay.", RecordType::A);
        let answer = known();
        assert_eq!((data(&answer), answer.metadata.authoritative), (set(&["192.0.2.7"]), false), "{answer:?}");
        let asked = upstream.asked();
        assert_eq!(data(&known()), set(&["192.0.2.7"]));
        assert_eq!(upstream.asked(), asked, "from memory");
        assert_eq!(node.total("overlayd_dns_remembered_total"), 1.0);
        let gone = ask("gone.example.");
        assert_eq!((gone.metadata.response_code, gone.authorities.len()), (ResponseCode::NXDomain, 1));

        upstream.turn(Ways::Silent);
        let dead = ask("other.example.");
        assert_eq!(dead.metadata.response_code, ResponseCode::ServFail);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ask("third.example."));
            for _ in 0..100 {
                assert_eq!(data(&told(&node.node, "db.overlay.", RecordType::A)), set(&["10.200.0.9"]));
            }
            assert_eq!(waiting.join().unwrap().metadata.response_code, ResponseCode::ServFail);
        });

        // The world outside has no business here, and no connection.
        let by_tcp = Question::new("db.overlay.", RecordType::A).by_tcp().ask(&world, server(OWN));
        assert!(by_tcp.is_none(), "{by_tcp:?}");
        for name in ["db.overlay.", "known.example."] {
            let refused = Question::new(name, RecordType::A).patiently().ask(&world, server(OWN));
            assert_eq!(refused.unwrap().metadata.response_code, ResponseCode::Refused, "{name}");
        }
        upstream.turn(Ways::Answers);
        std::fs::write(&conf, "nameserver 10.200.77.1\n").unwrap();
        std::thread::sleep(Duration::from_millis(1_100));
        let none_left = ask("fourth.example.");
        assert_eq!(none_left.metadata.response_code, ResponseCode::ServFail);
        std::fs::remove_file(conf).unwrap();
    });
}

#[test]
fn the_hosts_servers_are_asked_in_their_order_and_what_one_says_counts() {
    isolated(|| {
        let conf = std::env::temp_dir().join(format!("resolv-order-{}.conf", std::process::id()));
        // A server that means nothing without a link is passed over.
        std::fs::write(&conf, "nameserver fe80::1%lo\nnameserver 198.51.100.1\nnameserver 198.51.100.3\n").unwrap();
        let node = single_with(DUAL, &["--resolv-conf", conf.to_str().unwrap()]);
        let world = outside(&node, &["10.200.0.0/16"]);
        world.add_address(UPLINK, [198, 51, 100, 3].into(), 24);
        let (one, two) = (Upstream::start(&world, "198.51.100.1"), Upstream::start(&world, "198.51.100.3"));
        register(&node, "db", "10.200.0.9");
        told(&node.node, "db.overlay.", RecordType::A);
        let ask = |name: &str| Question::new(name, RecordType::A).patiently().ask(&node.node, server(OWN)).unwrap();
        let knows = |name: &str| assert_eq!(data(&ask(name)), set(&["192.0.2.7"]), "{name}");
        knows("known.example.");
        assert_eq!(ask("gone.example.").metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(two.asked(), 0, "what the first says counts");
        one.turn(Ways::Refuses);
        knows("known.2.example.");
        assert!(one.names().contains("known.2.example.") && two.names().contains("known.2.example."));
        one.turn(Ways::Silent);
        knows("known.3.example.");
        let before = one.asked();
        knows("known.4.example.");
        assert_eq!(one.asked(), before, "one that was silent is asked after the others");
        two.turn(Ways::Silent);
        assert_eq!(ask("known.5.example.").metadata.response_code, ResponseCode::ServFail);
        one.turn(Ways::Answers);
        two.turn(Ways::Answers);
        knows("known.5.example.");

        // Others may know something else: what these said is forgotten with them.
        std::fs::write(&conf, "nameserver 198.51.100.3\n").unwrap();
        until("the other server is asked", || {
            knows("known.example.");
            two.names().contains("known.example.")
        });
        let before = two.asked();
        knows("known.example.");
        assert_eq!(two.asked(), before, "from memory");
        std::fs::remove_file(conf).unwrap();
    });
}

#[test]
fn one_asker_of_other_names_does_not_take_the_place_of_all() {
    // The most of 512 places that is no more than an eighth of what it leaves free.
    const MANY: u16 = 300;
    const PLACES: usize = 57;
    isolated(|| {
        let conf = std::env::temp_dir().join(format!("resolv-greedy-{}.conf", std::process::id()));
        std::fs::write(&conf, "nameserver 198.51.100.1\n").unwrap();
        let node = single_with(DUAL, &["--resolv-conf", conf.to_str().unwrap()]);
        let upstream = Upstream::start(&outside(&node, &["10.200.0.0/16"]), "198.51.100.1");
        upstream.turn(Ways::Silent);
        register(&node, "db", "10.200.0.9");
        told(&node.node, "db.overlay.", RecordType::A);
        let greedy = node.node.run(|| std::net::UdpSocket::bind((OWN, 0))).unwrap();
        greedy.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for id in 0..MANY {
            let question = Question::new(&format!("n{id}.example."), RecordType::A).message(id);
            greedy.send_to(&question.to_vec().unwrap(), server(OWN)).unwrap();
        }
        let mut buffer = [0; 4096];
        let mut answers = || {
            let length = greedy.recv(&mut buffer).unwrap();
            Message::from_vec(&buffer[..length]).unwrap()
        };
        // Whoever has no place is told so at once, before the first of the others is given up.
        let turned_away = usize::from(MANY) - PLACES;
        let ids: BTreeSet<u16> = (0..turned_away)
            .map(|_| {
                let answer = answers();
                assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
                answer.metadata.id
            })
            .collect();
        assert_eq!(ids.len(), turned_away);
        upstream.turn(Ways::Answers);
        let modest = Question::new("known.example.", RecordType::A).patiently();
        let told = modest.ask(&node.node, server("fd00:200:0:1::1")).unwrap();
        assert_eq!(data(&told), set(&["192.0.2.7"]));
        let rest: BTreeSet<u16> = (0..PLACES).map(|_| answers().metadata.id).collect();
        assert!(rest.len() == PLACES && rest.is_disjoint(&ids));
        assert_eq!(upstream.names().len(), PLACES + 1, "nobody was asked for those that had no place");
        std::fs::remove_file(conf).unwrap();
    });
}

#[test]
fn a_taken_port_is_said_and_taken_when_it_is_free() {
    isolated(|| {
        let node = OverlayNode::new("a");
        // Somebody listens on the very address that the node will have.
        let taken = node.node.run(|| {
            use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
            let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
            setsockopt(&socket, sockopt::IpFreebind, &true).unwrap();
            bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrIn::new(10, 200, 0, 1, 53)).unwrap();
            socket
        });
        let mut node = node;
        node.start();
        node.setup(DUAL.cluster, Some(DUAL.slices[0]), crate::overlay_node::PORT);
        register(&node, "db", "10.200.0.9");
        let socket = node.socket().to_string_lossy().into_owned();
        let status = || String::from_utf8(node.command(&["status", "--socket", &socket]).stdout).unwrap();
        until("the trouble is shown", || status().contains("NOT served at 10.200.0.1:53"));
        node.assert_no_difference();
        drop(taken);
        assert_eq!(data(&told(&node.node, "db.overlay.", RecordType::A)), set(&["10.200.0.9"]));
        assert!(!status().contains("NOT served"));
    });
}

#[test]
fn a_resolver_that_is_off_takes_no_port() {
    isolated(|| {
        let node = single_with(DUAL, &["--dns", "off"]);
        register(&node, "db", "10.200.0.9");
        node.node.run(|| std::net::UdpSocket::bind((OWN, 53))).unwrap();
        node.node.run(|| std::net::TcpListener::bind((OWN, 53))).unwrap();
    });
}

#[test]
fn a_resolver_file_is_written_kept_right_and_taken_back_and_nobody_elses_is_touched() {
    isolated(|| {
        let directory = std::env::temp_dir().join(format!("resolver-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = |zone: &str| directory.join(zone);
        let mut node = OverlayNode::new("a");
        node.flags.extend(["--resolver-dir".into(), directory.to_string_lossy().into_owned()]);
        node.start();
        let write = |node: &OverlayNode, zone: &str, port| {
            node.ask(Request::WriteScopedResolver { zone: zone.into(), node_ip: OWN.parse().unwrap(), port })
        };
        let text = |zone: &str| std::fs::read_to_string(path(zone)).unwrap();
        // Before there is an overlay, and with the bytes that the system reads.
        assert_eq!(write(&node, "overlay", None), Response::Ok);
        assert!(text("overlay").ends_with("\nnameserver 10.200.0.1\n") && text("overlay").lines().count() == 2);
        assert_eq!(write(&node, "Two.Overlay.", Some(5353)), Response::Ok);
        assert!(text("two.overlay").ends_with("\nnameserver 10.200.0.1\nport 5353\n"));
        assert_eq!(write(&node, "overlay", Some(15_353)), Response::Ok);
        assert!(text("overlay").ends_with("\nnameserver 10.200.0.1\nport 15353\n"));
        assert_eq!(node.total("overlayd_drift_total"), 0.0);

        // Killed, and spoiled meanwhile.
        node.kill();
        assert!(text("overlay").contains("15353"), "it survives the agent");
        std::fs::write(path("overlay"), format!("{}nameserver 192.0.2.1\n", text("overlay"))).unwrap();
        std::fs::remove_file(path("two.overlay")).unwrap();
        node.start();
        assert!(text("overlay").ends_with("\nnameserver 10.200.0.1\nport 15353\n"));
        assert!(path("two.overlay").exists());

        // Somebody else's file, and a link to one, are left alone.
        std::fs::write(path("theirs"), "nameserver 192.0.2.53\n").unwrap();
        std::os::unix::fs::symlink(path("theirs"), path("link")).unwrap();
        for taken in ["theirs", "link"] {
            let refused = write(&node, taken, None);
            assert!(matches!(&refused, Response::Err { message } if message.contains(taken)), "{refused:?}");
            let removed = node.request(Request::RemoveScopedResolver { zone: taken.into() });
            assert_eq!(removed, Response::Ok);
        }
        assert_eq!(text("theirs"), "nameserver 192.0.2.53\n");
        assert!(path("link").is_symlink());

        let before = node.status();
        for bad in ["../etc", "a/b", "", ".", "..", ".overlay", "a..b", "nul\0", &"x".repeat(300), "ü.overlay", "a b"]
        {
            let refused = node.refused(Request::WriteScopedResolver {
                zone: bad.into(),
                node_ip: OWN.parse().unwrap(),
                port: None,
            });
            assert!(refused.contains("zone"), "{bad:?}: {refused}");
        }
        assert_eq!(node.status(), before);
        for zone in ["overlay", "two.overlay"] {
            assert_eq!(node.request(Request::RemoveScopedResolver { zone: zone.into() }), Response::Ok);
        }
        let left: BTreeSet<String> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, set(&["link", "theirs"]));
        std::fs::remove_dir_all(directory).unwrap();
    });
}
