//! A node whose power goes while it works, and comes back: what was acknowledged is there, and nothing of the earlier boot is.
//!
//! Owns what the guest does in one boot. Leaves the virtual machine, its disk and the cuts to `tests/vm/run --reboots N`.
//!
//! The guest says on the serial line what it asks for and what it was told; the next boot finds those lines in a file. The line leaves the
//! machine before the request does, so a request that the file does not have was never sent.
//!
//! It runs in the guest's own namespaces, as an agent does on a host.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File, OpenOptions},
    io::Write,
    net::IpAddr,
    os::{fd::AsRawFd, unix::fs::symlink},
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use overlayd::{
    client::Client,
    wire::{AgentRequest, AgentResponse, OverlayMode, PeerScope, Request, Response},
};

use crate::{
    agent_process::{peer, peer_key},
    container::Container,
    containers::scene::Wish,
    lab::{Node, isolated, skip},
    overlay_node::{OverlayNode, PORT, block_on, until},
    probe::addresses,
};

const CLUSTER: &str = "10.200.0.0/16";
/// Small, so that an address that is never given back is soon missing.
const SLICE: &str = "10.200.1.0/28";
/// The node's address, with the cluster's prefix.
const NODE: &str = "10.200.1.1/16";
/// 14 hosts, one of them the node.
const CONTAINERS_MAX: usize = 13;
const DEVICE: &str = "zl-e2e-0-g";
const BRIDGE: &str = "zl-e2e-0-web-b";
/// The power goes long before.
const WORK_LIMIT: Duration = Duration::from_secs(600);

#[test]
fn a_node_comes_back_from_a_power_cut() {
    let variable = |name: &str| std::env::var(name).ok();
    let (Some(disk), Some(told)) = (variable("OVERLAYD_REBOOT_DISK"), variable("OVERLAYD_REBOOT_TOLD")) else {
        isolated(|| skip("needs a disk and somebody who cuts the power: just reboot"));
        return;
    };
    let told = Told::read(&fs::read_to_string(told).unwrap());
    let mut node = node_on(Path::new(&disk));
    let took = node.start();
    let mut line = SerialLine::open();
    match &told.key {
        None => set_up(&node, &mut line),
        Some(key) => {
            assert_right(&node, key, &told);
            assert_pool_is_whole(&node);
        }
    }
    let peers = peers_of(&node);
    let numbers: Vec<String> = peers.iter().map(u16::to_string).collect();
    line.say(&format!("has {}", numbers.join(" ")));
    line.say(&format!("right generation {}, {} peers, ready after {took:.1?}", generation(&node), peers.len()));
    work(&node, peers, &mut line);
}

/// What earlier boots said on the serial line.
#[derive(Default)]
struct Told {
    /// The node's public key; none before the first boot.
    key: Option<String>,
    /// The last generation that an answer was seen at.
    generation: u64,
    /// Peers by number as the answers left them.
    peers: BTreeSet<u16>,
    /// The last request, when its answer was not seen.
    open: Option<Asked>,
}

/// A request about a peer; one about a container says nothing of the next boot.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Add(u16),
    Remove(u16),
    Container,
}

impl Asked {
    fn of(words: &[&str]) -> Self {
        match words {
            ["add", peer] => Self::Add(peer.parse().unwrap()),
            ["remove", peer] => Self::Remove(peer.parse().unwrap()),
            ["attach" | "detach"] => Self::Container,
            other => panic!("{other:?} was never said"),
        }
    }

    fn text(self, container: &str) -> String {
        match self {
            Self::Add(peer) => format!("add {peer}"),
            Self::Remove(peer) => format!("remove {peer}"),
            Self::Container => container.to_owned(),
        }
    }

    fn change(self, peers: &mut BTreeSet<u16>) {
        match self {
            Self::Add(peer) => drop(peers.insert(peer)),
            Self::Remove(peer) => drop(peers.remove(&peer)),
            Self::Container => {}
        }
    }
}

impl Told {
    fn read(text: &str) -> Self {
        let mut told = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["reboot:", "key", key, "."] => told.key = Some((*key).to_owned()),
                ["reboot:", "has", peers @ .., "."] => {
                    // From here on it is known whether what had no answer was kept.
                    told.peers = peers.iter().map(|peer| peer.parse().unwrap()).collect();
                    told.open = None;
                }
                ["reboot:", "ask", asked @ .., "."] => told.open = Some(Asked::of(asked)),
                ["reboot:", "told", generation, "."] => {
                    told.generation = generation.parse().unwrap();
                    told.open.take().expect("an answer has a question").change(&mut told.peers);
                }
                other => panic!("{other:?} is no whole line"),
            }
        }
        told
    }

    /// The peers that may be in the document: with and without what was not answered.
    fn possible_peers(&self) -> [BTreeSet<u16>; 2] {
        let mut with = self.peers.clone();
        if let Some(open) = self.open {
            open.change(&mut with);
        }
        [self.peers.clone(), with]
    }
}

/// The way out of the machine that a power cut leaves nothing of but what was said.
struct SerialLine(File);

impl SerialLine {
    fn open() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/ttyS1").unwrap())
    }

    /// Returns when the line has left the machine.
    fn say(&mut self, text: &str) {
        self.0.write_all(format!("reboot: {text} .\n").as_bytes()).unwrap();
        // SAFETY: waits on a descriptor that is open, and touches no memory.
        assert_eq!(unsafe { libc::tcdrain(self.0.as_raw_fd()) }, 0);
    }
}

/// A node in the namespaces of the machine, with its state directory on the disk.
fn node_on(disk: &Path) -> OverlayNode {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let is_disk = |line: &str| line.contains(" ext4 ") && line.split(' ').nth(1) == disk.to_str();
    assert!(mounts.lines().any(is_disk), "{} is no disk: {mounts}", disk.display());
    fs::create_dir_all(disk.join("state")).unwrap();
    symlink(disk.join("state"), "/run/node-state").unwrap();
    let own = Node::of_process(std::process::id().try_into().unwrap()).unwrap();
    let mut node = OverlayNode::within(own, "node", "node");
    node.flags.extend(["--address-rest-secs", "0"].map(str::to_owned));
    node
}

fn set_up(node: &OverlayNode, line: &mut SerialLine) {
    assert_eq!(node.setup(CLUSTER, Some(SLICE), PORT).to_string(), DEVICE);
    node.segment("web", OverlayMode::Auto);
    line.say(&format!("key {}", node.public_key()));
}

/// The first look is at the kernel and the metrics page only: no client has spoken to the agent yet.
fn assert_right(node: &OverlayNode, key: &str, told: &Told) {
    until("the node is in sync without a client", || {
        node.total("overlayd_in_sync") == 1.0 && node.total("overlayd_attachments") == 0.0
    });
    assert!(addresses(&node.node, DEVICE).contains(&NODE.parse::<IpNet>().unwrap()), "{}", node.log_tail());
    assert!(node.link_names().contains(BRIDGE), "{:?}", node.link_names());
    assert_eq!((node.ports(), node.members()), (BTreeSet::new(), BTreeSet::new()), "of the earlier boot");
    node.assert_no_difference();

    let status = node.status();
    assert_eq!(status.public_key.as_deref(), Some(key), "the node's key");
    assert_eq!(status.node_ip, Some(NODE.parse::<IpNet>().unwrap().addr()));
    assert!(generation(node) >= told.generation, "{} after {}", generation(node), told.generation);
    let found = peers_of(node);
    let possible = told.possible_peers();
    assert!(possible.contains(&found), "{found:?} is none of {possible:?}, unanswered {:?}", told.open);
}

/// Every address of the slice can be had once, and all of them come back.
fn assert_pool_is_whole(node: &OverlayNode) {
    let mut held = BTreeMap::new();
    for _ in 0..CONTAINERS_MAX {
        let container = Container::new();
        attach(node, container, &mut held);
    }
    let one_more = Container::new();
    let refused = node.refused(Wish::to("web").global().of(&one_more));
    assert!(refused.contains("no free address"), "{refused}");
    for container in held.values() {
        node.request(container.detach());
    }
    assert_eq!(node.total("overlayd_attachments"), 0.0);
}

/// Attaches a container to the segment and the slice; nobody else has its addresses.
fn attach(node: &OverlayNode, container: Container, held: &mut BTreeMap<BTreeSet<IpNet>, Container>) {
    node.attach(&container, Wish::to("web").global());
    let inside = container.node();
    let own: BTreeSet<IpNet> =
        ["eth0", "eth1"].iter().flat_map(|link| addresses(&inside, link)).filter(|net| net.addr().is_ipv4()).collect();
    assert_eq!(own.len(), 2, "{own:?}");
    let taken: BTreeSet<IpAddr> = held.keys().flatten().map(IpNet::addr).collect();
    assert!(own.iter().all(|net| !taken.contains(&net.addr())), "{own:?} of {taken:?}");
    held.insert(own, container);
}

/// Asks for one thing after another until the power goes.
fn work(node: &OverlayNode, mut peers: BTreeSet<u16>, line: &mut SerialLine) -> ! {
    let begun = Instant::now();
    let mut held: BTreeMap<BTreeSet<IpNet>, Container> = BTreeMap::new();
    let mut order: VecDeque<BTreeSet<IpNet>> = VecDeque::new();
    let mut next_peer = peers.last().map_or(1, |last| last + 1);
    for turn in 0_u64.. {
        assert!(begun.elapsed() < WORK_LIMIT, "the power stayed on");
        let is_full = held.len() == CONTAINERS_MAX - 3;
        let asked = match turn % 4 {
            1 if peers.len() > 5 => Asked::Remove(*peers.first().unwrap()),
            1 => Asked::Add(next_peer),
            _ => Asked::Container,
        };
        line.say(&format!("ask {}", asked.text(if is_full { "detach" } else { "attach" })));
        match asked {
            Asked::Add(number) => {
                node.request(Request::AddPeer { peer: peer(number), scope: PeerScope::Global });
                next_peer += 1;
            }
            Asked::Remove(number) => {
                node.request(Request::RemovePeer { pubkey: peer_key(number), scope: PeerScope::Global });
            }
            Asked::Container if is_full => {
                let oldest = order.pop_front().unwrap();
                let container = held.remove(&oldest).unwrap();
                assert_eq!(node.request(container.detach()), Response::Ok);
            }
            Asked::Container => {
                let before: BTreeSet<_> = held.keys().cloned().collect();
                attach(node, Container::new(), &mut held);
                order.extend(held.keys().filter(|own| !before.contains(*own)).cloned());
            }
        }
        asked.change(&mut peers);
        line.say(&format!("told {}", generation(node)));
    }
    unreachable!("the power goes before the turns do")
}

fn report(node: &OverlayNode) -> serde_json::Value {
    let answer = block_on(async {
        Client::connect(&node.socket()).await.unwrap().agent_request(AgentRequest::Status).await.unwrap()
    });
    match answer {
        AgentResponse::Report { report } => report,
        AgentResponse::Err { message } => panic!("{message}"),
    }
}

fn generation(node: &OverlayNode) -> u64 {
    report(node)["generation"].as_u64().unwrap()
}

/// The peers of the document, by number; that the kernel has them too is no difference.
fn peers_of(node: &OverlayNode) -> BTreeSet<u16> {
    let numbers: BTreeMap<String, u16> = (0..1000).map(|number| (peer_key(number), number)).collect();
    let peers = node.status().peers;
    peers.iter().map(|peer| numbers[&peer.public_key]).collect()
}
