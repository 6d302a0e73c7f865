//! The operations that an agent is killed in, and the node that they are asked of.
//!
//! Owns the requests, the way back to the state before them, and the text that two states are compared by. Leaves killing to `tracer.rs`.

use std::{net::IpAddr, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use overlayd::{
    action::Action,
    ids::WgPublicKey,
    object::{Key, LinkKind, LinkSpec, Spec},
    observed::Owner,
    wire::{OverlayMode, PeerScope, Request, Response},
};

use crate::{
    container::Container,
    containers::scene::{Wish, bridge_of, inner, single_with},
    lab::{Node, device_processes, network},
    overlay_node::{IPV4, OverlayNode, PORT, add_peer, setup_request, until},
    overlay_ping::Pinger,
};

/// Between two pings of the flow that must not notice.
const PING_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    SetupSegment,
    RemoveSegment,
    Prune,
    Attach,
    Detach,
    ChangeIsolation,
    AddPeer,
    MoveAllowedIp,
    SetupOverlay,
    TeardownOverlay,
    /// The start of an agent that finds nothing: no store, and nothing on the node.
    FirstStart,
    /// A start on a node from which everything was taken, as after a power cut.
    Rebuild,
    /// The process behind the userspace device dies, and the agent starts another.
    LostDevice,
    /// An edit that changes the document and nothing else.
    RegisterDns,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Operation::SetupSegment => "setup of a segment",
            Operation::RemoveSegment => "removal of a segment",
            Operation::Prune => "prune of a stray bridge",
            Operation::Attach => "attach",
            Operation::Detach => "detach",
            Operation::ChangeIsolation => "change of isolation",
            Operation::AddPeer => "add peer",
            Operation::MoveAllowedIp => "move of an allowed IP",
            Operation::SetupOverlay => "setup of the overlay",
            Operation::TeardownOverlay => "teardown of the overlay",
            Operation::FirstStart => "first start",
            Operation::Rebuild => "start on a bare node",
            Operation::LostDevice => "start of a lost device",
            Operation::RegisterDns => "edit of the document alone",
        }
    }

    /// Whether no service outlives it, so that the unrelated flow is one of the host.
    fn takes_all(self) -> bool {
        matches!(self, Operation::SetupOverlay | Operation::TeardownOverlay) || self.is_a_start()
    }

    /// Whether the agent is killed while it starts, and not while it answers.
    pub fn is_a_start(self) -> bool {
        matches!(self, Operation::FirstStart | Operation::Rebuild)
    }
}

pub struct Scene {
    pub node: OverlayNode,
    pub operation: Operation,
    /// The bridge of the service whose flow must not notice.
    bystander: Option<String>,
    subject: Container,
    flow: (Node, IpAddr),
    /// What must live as long as the flow.
    _others: (Vec<Container>, Option<Node>),
}

impl Scene {
    pub fn new(operation: Operation) -> Self {
        let node = single_with(IPV4, &["--address-rest-secs", "0"]);
        let subject = Container::new();
        if operation.takes_all() {
            let outside = Node::new();
            let (own, far) = (IpAddr::from([198, 51, 100, 1]), IpAddr::from([198, 51, 100, 2]));
            node.node.wire(&outside, own, far, 24);
            let flow = (node.node.twin(), far);
            return Self { node, operation, bystander: None, subject, flow, _others: (Vec::new(), Some(outside)) };
        }
        let bystander = Some(bridge_of(&node.segment("web", OverlayMode::Auto)));
        let (one, other) = (Container::new(), Container::new());
        node.attach(&one, Wish::to("web"));
        let far = node.attach(&other, Wish::to("web"));
        let flow = (one.node(), far);
        Self { node, operation, bystander, subject, flow, _others: (vec![one, other], None) }
    }

    pub fn pinger(&self) -> Pinger {
        Pinger::start(&self.flow.0, self.flow.1, PING_PAUSE)
    }

    pub fn reach(&self) -> bool {
        crate::overlay_ping::first_reply(&self.flow.0, self.flow.1, Duration::from_secs(10)).is_some()
    }

    /// Brings the node to the state before the operation, from any state that the operation can leave.
    pub fn prepare(&mut self) {
        for request in self.before() {
            self.node.request(request);
        }
        if self.operation.is_a_start() {
            until("the agent is in sync", || self.node.total("overlayd_in_sync") == 1.0);
            self.node.kill();
        }
        match self.operation {
            Operation::FirstStart => self.node.forget_state(),
            Operation::Rebuild => self.take_everything(),
            _ => {}
        }
    }

    /// Removes every link of ours and the rules, and with them all that is on them.
    fn take_everything(&self) {
        let seen = self.node.observe().objects;
        let ours = seen.into_iter().filter(|(_, seen)| seen.owner == Owner::Ours);
        let is_taken = |key: &Key| matches!(key, Key::Link(_) | Key::Ruleset | Key::Member(_) | Key::Route { .. });
        let deletions = ours.filter(|(key, _)| is_taken(key)).map(|(key, seen)| Action::Delete { key, was: seen.spec });
        // What went with a link before its turn came is no surprise.
        let _ = self.node.execute(deletions.collect());
    }

    /// What happens on the node when the agent is traced already, right before the request.
    pub fn provoke(&self) {
        if self.operation == Operation::LostDevice {
            // The agent is traced, and stands: it cannot be asked.
            let device = "zl-e2e-0-g".parse().unwrap();
            let process = self.node.device_process(&device).expect("a device process");
            kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
            return;
        }
        if self.operation == Operation::Prune {
            // A segment is pruned a minute after it was made; a bridge with our mark and no segment at once, perhaps before the request.
            let spec = Spec::Link(LinkSpec::up(LinkKind::Bridge, 1420));
            let create = Action::Create { key: Key::Link("zl-e2e-0-lost-b".parse().unwrap()), spec };
            for outcome in self.node.execute(vec![create]) {
                outcome.unwrap();
            }
        }
    }

    /// Whether the states before and after the operation are two.
    pub fn changes(&self) -> bool {
        !matches!(self.operation, Operation::Prune | Operation::LostDevice)
    }

    fn before(&self) -> Vec<Request> {
        let segment = Request::SetupServiceOverlay { service: "api".into(), mode: OverlayMode::Auto };
        let attach = Wish::to("api").of(&self.subject);
        match self.operation {
            Operation::SetupSegment => vec![Request::TeardownServiceOverlay { service: "api".into() }],
            Operation::RemoveSegment => vec![segment],
            Operation::Prune => Vec::new(),
            Operation::Attach => vec![segment, self.subject.detach()],
            Operation::Detach => vec![segment, attach],
            Operation::ChangeIsolation => vec![segment, Wish::to("api").fenced("red").global().of(&self.subject)],
            Operation::AddPeer => {
                vec![Request::RemovePeer { pubkey: key(1).to_string(), scope: PeerScope::Global }]
            }
            Operation::MoveAllowedIp => vec![
                add_peer(&key(1), "192.0.2.101:51820", "10.200.101.0/24"),
                add_peer(&key(2), "192.0.2.102:51820", "10.200.102.0/24"),
                moved_to(1),
            ],
            Operation::SetupOverlay => vec![Request::TeardownGlobalOverlay],
            Operation::TeardownOverlay => vec![
                setup_request(IPV4.cluster, Some(IPV4.slices[0]), PORT),
                add_peer(&key(1), "192.0.2.101:51820", "10.200.101.0/24"),
                segment,
                Wish::to("api").global().of(&self.subject),
            ],
            Operation::FirstStart => vec![Request::TeardownGlobalOverlay],
            Operation::Rebuild => vec![segment, Wish::to("api").global().fenced("red").of(&self.subject)],
            Operation::LostDevice => Vec::new(),
            Operation::RegisterDns => vec![Request::UnregisterDns { name: "www.zone".into() }],
        }
    }

    pub fn request(&self) -> Request {
        match self.operation {
            Operation::SetupSegment => Request::SetupServiceOverlay { service: "api".into(), mode: OverlayMode::Auto },
            Operation::RemoveSegment => Request::TeardownServiceOverlay { service: "api".into() },
            Operation::Prune => {
                Request::PruneOrphanBridges { live_bridge_names: self.bystander.clone().into_iter().collect() }
            }
            Operation::Attach => Wish::to("api").global().fenced("red").of(&self.subject),
            Operation::Detach => self.subject.detach(),
            Operation::ChangeIsolation => Wish::to("api").fenced("blue").global().of(&self.subject),
            Operation::AddPeer => add_peer(&key(1), "192.0.2.101:51820", "10.200.101.0/24"),
            Operation::MoveAllowedIp => moved_to(2),
            Operation::SetupOverlay => setup_request(IPV4.cluster, Some(IPV4.slices[0]), PORT),
            Operation::TeardownOverlay => Request::TeardownGlobalOverlay,
            Operation::FirstStart | Operation::Rebuild => Request::Status,
            // Answered only when there is a device again.
            Operation::LostDevice => setup_request(IPV4.cluster, Some(IPV4.slices[0]), PORT),
            Operation::RegisterDns => {
                Request::RegisterDns { name: "www.zone".into(), ip: IpAddr::from([10, 200, 0, 9]) }
            }
        }
    }

    /// Whether two answers to the operation say the same; one that a repeated request got may say that there is nothing to do any more.
    pub fn is_same_answer(first: &Response, again: &Response) -> bool {
        match (first, again) {
            (Response::PrunedBridges { .. }, Response::PrunedBridges { .. }) => true,
            (Response::Status(_), Response::Status(_)) => true,
            (first, again) => first == again,
        }
    }

    /// The node as lines of text: objects of ours, the inside of the container, device processes, the document. Keys are compared by whether
    /// they are the document's: a new overlay may have a new one.
    pub fn state(&self) -> Vec<String> {
        let seen = self.node.observe().objects;
        let mut lines: Vec<String> =
            seen.iter().map(|(key, seen)| format!("{key} {:?} {:?}", seen.spec, seen.owner)).collect();
        lines.extend(self.document());
        if self.node.is_started()
            && let Some(key) = self.node.status().public_key
        {
            lines = lines.iter().map(|line| line.replace(&key, "KEY")).collect();
        }
        for link in ["eth0", "eth1"] {
            lines.push(format!("inside {link} {:?}", inner(&self.subject, link)));
        }
        lines.push(format!("device processes {}", device_processes(self.node.node.run(network)).len()));
        let sockets = std::fs::read_dir(self.node.uapi_dir()).into_iter().flatten().flatten();
        lines.extend(sockets.map(|entry| format!("socket {}", entry.file_name().to_string_lossy())));
        lines.sort();
        lines
    }

    /// The records of the document, without what tells when they were written, and without the key.
    fn document(&self) -> Vec<String> {
        let records = match self.node.records() {
            Ok(records) => records,
            Err(output) => return vec![format!("no document: {}", output.status)],
        };
        // An address that rests is only remembered, until the next one is handed out.
        let records = records.into_iter().filter(|(_, record)| record["state"] != "resting");
        let timeless = records.map(|(key, mut record)| {
            let fields = record.as_object_mut().expect("a record is an object");
            fields.retain(|name, _| !["since", "endpoint_since", "created", "until"].contains(&name.as_str()));
            // A new store has a new one.
            match key.as_str() {
                "node-key" => "record node-key".to_owned(),
                _ => format!("record {key} {record}"),
            }
        });
        timeless.collect()
    }
}

fn key(number: u8) -> WgPublicKey {
    WgPublicKey::from_bytes([number; 32])
}

fn moved_to(peer: u8) -> Request {
    Request::AddAllowedIp { pubkey: key(peer).to_string(), cidr: "10.200.150.0/24".into(), scope: PeerScope::Global }
}
