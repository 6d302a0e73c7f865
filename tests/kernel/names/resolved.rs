//! Names of the overlay on a host whose programs ask systemd-resolved, which is Debian's own.

use std::{
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    resolver_host::{ResolverHost, fetch},
    *,
};
use crate::overlay_node::PORT;

/// Where the host's programs ask.
const STUB: &str = "127.0.0.53";
/// Whoever waits for a resolver for longer than this is held up by it.
const PROMPTLY: Duration = Duration::from_secs(20);

fn by_stub(node: &OverlayNode, name: &str, kind: RecordType) -> Message {
    Question::new(name, kind).patiently().ask(&node.node, server(STUB)).expect("an answer of the stub")
}

fn address_by_stub(node: &OverlayNode) -> BTreeSet<String> {
    data(&by_stub(node, "db.overlay.", RecordType::A))
}

fn device(node: &OverlayNode) -> String {
    node.status().interface.expect("a device")
}

/// The node's overlay is up and its resolver answers.
fn with_names(node: &OverlayNode) {
    register(node, "db", "10.200.0.9");
    told(&node.node, "db.overlay.", RecordType::A);
}

/// A node whose overlay has names, its host's resolver, and the world outside.
fn beside_resolved() -> (OverlayNode, ResolverHost, Node) {
    let mut node = OverlayNode::new("a");
    let host = ResolverHost::start(&node.node);
    let world = outside(&node, &["10.200.0.0/16"]);
    node.start();
    node.setup(DUAL.cluster, Some(DUAL.slices[0]), PORT);
    with_names(&node);
    (node, host, world)
}

/// How many links the host's resolver is told about.
fn told_links(node: &OverlayNode) -> f64 {
    node.metric("overlayd_objects").get(r#"{kind="link_dns",state="realized"}"#).copied().unwrap_or_default()
}

/// The conditions that are not as they should be, of the agent's report.
fn troubles(node: &OverlayNode) -> String {
    let output = node.command(&["status", "--json", "--socket", node.socket().to_str().unwrap()]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["troubled"].to_string()
}

#[test]
fn the_hosts_programs_are_told_the_overlays_names_and_all_others_as_before() {
    fetch();
    isolated(|| {
        let mut node = OverlayNode::new("a");
        let mut host = ResolverHost::start(&node.node);
        let world = outside(&node, &["10.200.0.0/16"]);
        let upstream = Upstream::start(&world, "198.51.100.1");
        node.start();
        node.setup(DUAL.cluster, Some(DUAL.slices[0]), PORT);
        with_names(&node);
        let served = || node.total("overlayd_dns_queries_total");

        let before = upstream.asked();
        assert_eq!(address_by_stub(&node), set(&["10.200.0.9"]));
        let pointer = by_stub(&node, "9.0.200.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(data(&pointer), set(&["db.overlay."]));
        let nobody = by_stub(&node, "nobody.overlay.", RecordType::A);
        assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(upstream.asked(), before, "the world outside is not asked for the overlay's names");
        let before = served();
        assert_eq!(data(&by_stub(&node, "known.example.", RecordType::A)), set(&["192.0.2.7"]));
        let gone = by_stub(&node, "gone.example.", RecordType::A);
        assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(served(), before, "the overlay is not asked for other names");

        let link = device(&node);
        let properties = host.properties(&link);
        let is = |name: &str| String::try_from(properties[name].try_clone().unwrap()).unwrap();
        for feature in ["LLMNR", "MulticastDNS", "DNSSEC", "DNSOverTLS"] {
            assert_eq!(is(feature), "no", "{feature}");
        }
        assert!(!bool::try_from(properties["DefaultRoute"].try_clone().unwrap()).unwrap());
        node.assert_no_difference();
        assert_eq!(told_links(&node), 1.0);

        // The agent dies and comes back.
        node.kill();
        node.start();
        assert_eq!(node.actions(), 0.0, "{}", node.log_tail());
        told(&node.node, "db.overlay.", RecordType::A);
        assert_eq!(address_by_stub(&node), set(&["10.200.0.9"]));

        // The program dies and comes back without what it was told. Nobody looks at the node meanwhile but for the bus's word.
        host.end();
        until("nothing is wanted of a program that is gone", || told_links(&node) == 0.0);
        host.begin();
        let took = until("it is told again", || address_by_stub(&node) == set(&["10.200.0.9"]));
        println!("MEASURED: a restarted systemd-resolved was told again within {took:?}");

        // Somebody takes it back, when the round that told it is over.
        node.resync();
        assert_eq!(told_links(&node), 1.0);
        assert!(host.revert(&link));
        assert_ne!(address_by_stub(&node), set(&["10.200.0.9"]));
        let (lines, status) = node.diff();
        assert!(status != 0 && lines.iter().any(|line| line.contains("link_dns/")), "{lines:?}");
        node.resync();
        assert_eq!(address_by_stub(&node), set(&["10.200.0.9"]));
        assert_eq!(node.metric("overlayd_drift_total")[r#"{cause="missing",kind="link_dns"}"#], 1.0);

        // The agent no longer answers for the zone, and then does again.
        node.kill();
        node.flags.push("--dns=off".into());
        node.start();
        until("the program is told to forget it", || domains(&host, &link) == 0);
        node.kill();
        node.flags.pop();
        node.start();
        until("it is told again", || domains(&host, &link) > 0);
        told(&node.node, "db.overlay.", RecordType::A);
        assert_eq!(address_by_stub(&node), set(&["10.200.0.9"]));

        node.request(Request::TeardownGlobalOverlay);
        node.assert_no_difference();
        assert_eq!(data(&by_stub(&node, "known.example.", RecordType::A)), set(&["192.0.2.7"]));
        let before = upstream.asked();
        assert!(data(&by_stub(&node, "new.overlay.", RecordType::A)).is_empty());
        assert!(upstream.asked() > before, "the overlay's names are as any others");
    });
}

fn domains(host: &ResolverHost, link: &str) -> usize {
    let all = host.properties(link)["Domains"].try_clone().unwrap();
    zbus::zvariant::Array::try_from(all).unwrap().len()
}

#[test]
fn a_link_that_networkd_manages_is_the_trouble_of_its_names_alone() {
    fetch();
    isolated(|| {
        let (node, host, _world) = beside_resolved();
        let link = device(&node);
        let state = format!("/run/systemd/netif/links/{}", host.index(&link));
        std::fs::create_dir_all("/run/systemd/netif/links").unwrap();
        std::fs::write(&state, "ADMIN_STATE=configured\nOPER_STATE=routable\n").unwrap();
        until("the program knows who manages the link", || !host.revert(&link));
        node.resync();
        let trouble = troubles(&node);
        assert!(trouble.contains("link_dns/") && trouble.contains("managed"), "{trouble}");
        assert_eq!(trouble.matches("link_dns/").count(), 1, "{trouble}");
        node.segment("web", OverlayMode::Auto);
        std::fs::remove_file(&state).unwrap();
        until("it is tried again", || !troubles(&node).contains("link_dns/"));
        assert_eq!(address_by_stub(&node), set(&["10.200.0.9"]));
    });
}

#[test]
fn a_bus_that_stops_holds_up_nothing_and_is_spoken_to_again() {
    fetch();
    isolated(|| {
        let (node, host, _world) = beside_resolved();
        let bus = Pid::from_raw(host.bus_pid());
        kill(bus, Signal::SIGSTOP).unwrap();
        let begin = Instant::now();
        node.resync();
        node.resync();
        node.segment("web", OverlayMode::Auto);
        assert!(begin.elapsed() < PROMPTLY, "{:?}", begin.elapsed());
        let trouble = troubles(&node);
        assert!(trouble.contains("link_dns/") && trouble.contains("no answer"), "{trouble}");
        kill(bus, Signal::SIGCONT).unwrap();
        until("it is asked again", || {
            node.resync();
            !troubles(&node).contains("link_dns/")
        });
        kill(bus, Signal::SIGSTOP).unwrap();
        node.request(Request::TeardownGlobalOverlay);
        assert_eq!(node.diff().1, 0);
        kill(bus, Signal::SIGCONT).unwrap();
    });
}

#[test]
fn a_bus_that_never_answers_keeps_no_agent_from_starting() {
    isolated(|| {
        std::fs::create_dir_all("/run/dbus").unwrap();
        let silent = UnixListener::bind("/run/dbus/system_bus_socket").unwrap();
        let mut node = OverlayNode::new("a");
        node.start();
        let begin = Instant::now();
        node.setup(DUAL.cluster, Some(DUAL.slices[0]), PORT);
        assert!(begin.elapsed() < PROMPTLY, "{:?}", begin.elapsed());
        // As far as anybody can know the program does not run.
        node.assert_no_difference();
        std::fs::create_dir_all("/run/systemd/resolve").unwrap();
        node.resync();
        let trouble = troubles(&node);
        assert!(trouble.contains("link_dns/") && trouble.contains("no answer"), "{trouble}");
        node.request(Request::TeardownGlobalOverlay);
        node.assert_no_difference();
        drop(silent);
    });
}
