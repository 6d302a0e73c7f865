use std::{
    error::Error,
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::sys::signal::Signal;

use super::{
    node::Node,
    packets::{Pinger, first_reply, transfer},
};
use crate::{
    action::Action,
    cli::{node::mark_of, outcome::print},
    ids::{Cidr, IfName, WgPublicKey},
    object::{Key, PeerSpec, RouteSpec, Spec},
    platform::{DataPlaneChoice, Kernel, NativeKernel, NativeOptions},
    wire::{PeerScope, PeerSpec as WirePeer, Request, Response},
};

const CLUSTER: &str = "10.200.0.0/16";
const PORT: u16 = 51820;
/// Bytes sent over TCP through the overlay.
const TCP_BYTES: usize = 8 << 20;
/// Time between two pings of the flood that watches for lost packets.
const PING_PAUSE: Duration = Duration::from_millis(10);

type Story<T = ()> = Result<T, Box<dyn Error>>;

/// Tells the whole story; an error is its unhappy end.
pub fn tell(directory: &Path, data_plane: &str) -> Story {
    fs::create_dir_all(directory)?;
    let mut a = Node::new("node-a", directory, data_plane)?;
    let mut b = Node::new("node-b", directory, data_plane)?;
    scene("Two nodes, joined by a cable (a veth pair), an agent on each.");
    a.namespace.join("uplink", net("192.0.2.1/24")?, &b.namespace, "uplink", net("192.0.2.2/24")?)?;
    a.start()?;
    b.start()?;
    done("both agents are ready; neither has anything to do yet");

    converge(&a, &b)?;
    let b_ip: IpAddr = "10.200.1.1".parse()?;
    talk(&a, &b, b_ip)?;
    crash(&mut a, b_ip)?;
    drift(&a, b_ip)?;
    leave(&mut a, &mut b)
}

fn converge(a: &Node, b: &Node) -> Story {
    scene("Each is told over its socket what the overlay should be.");
    let begun = Instant::now();
    for (node, id, slice) in [(a, 1, "10.200.0.0/24"), (b, 2, "10.200.1.0/24")] {
        node.request(Request::SetLocalNodeId { node_id: id })?;
        let device = node.request(Request::SetupGlobalOverlay {
            deployment: "demo".into(),
            instance_id: node.name.trim_start_matches("node-").into(),
            cluster_cidr: CLUSTER.into(),
            slice_cidr: Some(slice.into()),
            wg_port: PORT,
            host_adapter_mandatory: false,
            nat: None,
        })?;
        let Response::BridgeName { name } = device else {
            return Err("setup gave no device name".into());
        };
        let status = node.status()?;
        let address = status.node_ip.map_or_else(|| "no address".into(), |ip| ip.to_string());
        done(&format!("{} has the WireGuard device {name} with {address}", node.name));
    }
    for (node, other, endpoint, slice) in
        [(a, b, "192.0.2.2:51820", "10.200.1.0/24"), (b, a, "192.0.2.1:51820", "10.200.0.0/24")]
    {
        let public_key = other.status()?.public_key.ok_or("the other node has no key")?;
        let peer = WirePeer {
            public_key,
            endpoint: endpoint.into(),
            allowed_ips: slice.into(),
            persistent_keepalive_secs: 0,
            candidates: Vec::new(),
        };
        node.request(Request::AddPeer { peer, scope: PeerScope::Global })?;
    }
    done(&format!("each knows the other as a peer; {} ms after the first request", begun.elapsed().as_millis()));
    Ok(())
}

fn talk(a: &Node, b: &Node, b_ip: IpAddr) -> Story {
    scene("They talk through the overlay.");
    let Some(time) = first_reply(&a.namespace, b_ip, Duration::from_secs(10))? else {
        return Err("no ping came back through the overlay".into());
    };
    done(&format!("ping {b_ip}: the first reply, handshake included, took {:.1} ms", millis(time)));
    let time = transfer(&a.namespace, &b.namespace, b_ip, TCP_BYTES)?;
    done(&format!("TCP: {} MiB arrived intact in {:.2} s", TCP_BYTES >> 20, time.as_secs_f64()));
    Ok(())
}

fn crash(a: &mut Node, b_ip: IpAddr) -> Story {
    scene("The agent of node-a is killed with SIGKILL, in the middle of a ping every 10 ms, and started again.");
    let handshake = handshake_of(a)?;
    let pinger = Pinger::start(a.namespace.clone(), b_ip, PING_PAUSE)?;
    std::thread::sleep(Duration::from_millis(300));
    a.kill()?;
    std::thread::sleep(Duration::from_millis(700));
    a.start()?;
    std::thread::sleep(Duration::from_millis(300));
    let pings = pinger.finish()?;
    check(pings.sent == pings.answered, format!("{} of {} pings were answered", pings.answered, pings.sent))?;
    let actions = a.metric("overlayd_actions_total")?;
    check(actions == 0.0, format!("the new agent found everything in place and made {actions:.0} changes"))?;
    let after = handshake_of(a)?;
    check(
        handshake > 0 && handshake == after,
        "the WireGuard session went on as if nothing had happened (same handshake)".into(),
    )
}

fn drift(a: &Node, b_ip: IpAddr) -> Story {
    scene("Somebody removes an address, a route and a peer by hand while the agent is stopped (SIGSTOP).");
    a.signal(Signal::SIGSTOP)?;
    let status = a.status_from_store()?;
    meddle(a, &status)?;
    let state_dir = a.state_dir();
    let diff = a.command(&["diff", "--state-dir", &state_dir.to_string_lossy()])?;
    let text = String::from_utf8_lossy(&diff.stdout).into_owned();
    print("   overlayd diff says:\n");
    for line in text.lines() {
        print(&format!("     {line}\n"));
    }
    check(diff.status.code() == Some(2), "diff ended with status 2: there is a difference".into())?;
    check(text.lines().count() == 3, format!("it named {} objects", text.lines().count()))?;
    let begun = Instant::now();
    a.signal(Signal::SIGCONT)?;
    a.wait_for("the repair", |node| Ok(node.metric("overlayd_drift_total").is_ok_and(|count| count >= 3.0)))?;
    done(&format!("the agent goes on and mends all of it, {} ms after it could", begun.elapsed().as_millis()));
    let diff = a.command(&["diff", "--state-dir", &state_dir.to_string_lossy()])?;
    check(diff.status.success() && diff.stdout.is_empty(), "diff is empty again".into())?;
    let drift = a.metric("overlayd_drift_total")?;
    check(drift == 3.0, format!("overlayd_drift_total counted {drift}"))?;
    let reply = first_reply(&a.namespace, b_ip, Duration::from_secs(20))?;
    check(reply.is_some(), "pings come back again".into())
}

fn leave(a: &mut Node, b: &mut Node) -> Story {
    scene("The agents are stopped with SIGTERM, then everything is purged.");
    for node in [a, b] {
        let time = node.terminate()?;
        let purged = node.command(&["purge"])?;
        let text = String::from_utf8_lossy(&purged.stdout);
        let count = text.lines().filter(|line| line.starts_with("removed")).count();
        let errors = String::from_utf8_lossy(&purged.stderr);
        check(
            purged.status.success() && count > 0,
            format!("{}: stopped in {} ms; purge removed {count} objects {errors}", node.name, time.as_millis()),
        )?;
        let left = node.command(&["purge"])?;
        check(
            left.status.success() && !String::from_utf8_lossy(&left.stdout).contains("removed"),
            format!("{}: nothing is left", node.name),
        )?;
    }
    Ok(())
}

/// What an operator's slip would do with `ip` and `wg`: remove three objects behind the agent's back.
fn meddle(a: &Node, left: &Victims) -> Story {
    let mark = mark_of(&a.state_dir());
    let cluster: Cidr = CLUSTER.parse()?;
    let device = left.device.clone();
    let removals = [
        (
            Key::Route { destination: cluster, metric: mark.route_metric() },
            Spec::Route(RouteSpec::Through(device.clone())),
        ),
        (Key::Address { link: device.clone(), address: left.address }, Spec::Address),
        (Key::Peer { device, public_key: left.peer }, Spec::Peer(PeerSpec::default())),
    ];
    let uapi_dir = a.uapi_dir();
    let outcomes = a.namespace.run_async(async |_| {
        let mut kernel = NativeKernel::open(NativeOptions::new(mark, DataPlaneChoice::Auto, uapi_dir))?;
        let mut outcomes = Vec::new();
        for (key, was) in removals {
            outcomes.extend(kernel.execute(&[Action::Delete { key, was }]).await);
        }
        Ok(outcomes)
    })?;
    for outcome in outcomes {
        outcome?;
    }
    Ok(())
}

/// What is about to be removed by hand.
struct Victims {
    device: IfName,
    address: IpNet,
    peer: WgPublicKey,
}

impl Node {
    fn status_from_store(&self) -> Story<Victims> {
        let document = crate::cli::node::read_document(&self.state_dir())?;
        Ok(Victims {
            device: document.device_name().ok_or("the document has no overlay")?,
            address: document.node_addresses().first().ok_or("the document has no node address")?.on_device,
            peer: *document.peers().keys().next().ok_or("the document has no peer")?,
        })
    }
}

fn handshake_of(node: &Node) -> Story<i64> {
    node.look_again()?;
    let status = node.status()?;
    Ok(status.peers.first().ok_or("no peer")?.last_handshake_unix_secs)
}

fn net(text: &str) -> Story<IpNet> {
    Ok(text.parse()?)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn scene(what: &str) {
    print(&format!("\n{what}\n"));
}

fn done(what: &str) {
    print(&format!("   ok: {what}\n"));
}

fn check(holds: bool, what: String) -> Story {
    if holds {
        done(&what);
        return Ok(());
    }
    Err(format!("not as it should be: {what}").into())
}
