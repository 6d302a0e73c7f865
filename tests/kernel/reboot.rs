//! A node whose power goes while it works, and comes back: what was acknowledged is there, and nothing of the earlier boot is.
//!
//! Owns what the guest does in one boot. Leaves the virtual machine, its disk and the cuts to `tests/vm/run --reboots N`.
//!
//! The guest says on the serial line what it asks for and what it was told; the next boot finds those lines in a file. A line about a peer
//! leaves the machine before the request does, so a request that the file does not have was never sent. Of a container only the answer is told:
//! no attachment lives longer than the boot, but the generation of the document does.
//!
//! Which data plane a boot can have is decided outside, and the agent has to find it out.
//!
//! It runs in the guest's own namespaces, as an agent does on a host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::Write,
    net::IpAddr,
    os::{fd::AsRawFd, unix::fs::symlink},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ipnet::IpNet;
use overlayd::{
    object::{Key, Spec},
    platform::linux::DataPlane,
    wire::{OverlayMode, PeerScope, Request, Response},
};

use crate::{
    agent_process::{peer, peer_key},
    container::Container,
    containers::scene::Wish,
    lab::{Node, device_processes, isolated, network, skip},
    overlay_node::{OverlayNode, PORT, until},
    probe::addresses,
};

const CLUSTER: &str = "10.200.0.0/16";
/// Little more than one boot uses, so that an address that is never given back is soon missing.
const SLICE: &str = "10.200.1.0/25";
/// The node's address, with the cluster's prefix.
const NODE: &str = "10.200.1.1/16";
/// 126 hosts of the slice, one of them the node; the segment has as many, one of them its gateway.
const CONTAINERS_MAX: usize = 125;
/// What a boot begins, and the power goes in the middle of.
const ATTACHES: usize = 100;
/// How many attaches are under way at a time.
const CLIENTS: usize = 4;
/// How often a client asks for one container: the agent gives an attach up when the machine stands still for seconds.
const TRIES: usize = 5;
/// What it says then.
const LATE: &str = "has not answered in time";
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
    let links = node.link_names();
    let took = node.start();
    let mut line = SerialLine::open();
    let key = match &told.key {
        None => set_up(&node, &mut line),
        Some(key) => {
            assert_right(&node, key, &told);
            key.clone()
        }
    };
    let peers = peers_of(&node);
    let plane = assert_device(&node, &key, &peers);
    assert_pool_is_whole(&node, &links);
    let numbers: Vec<String> = peers.iter().map(u16::to_string).collect();
    line.say(&format!("has {}", numbers.join(" ")));
    let generation = node.generation();
    line.say(&format!("right {plane}, generation {generation}, {} peers, ready after {took:.1?}", peers.len()));
    work(&node, peers, line);
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
    /// The last request about a peer, when its answer was not seen.
    open: Option<Asked>,
}

/// A request about a peer; one about a container says nothing of the next boot.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Add(u16),
    Remove(u16),
}

impl Asked {
    fn of(words: &[&str]) -> Self {
        match words {
            ["add", peer] => Self::Add(peer.parse().unwrap()),
            ["remove", peer] => Self::Remove(peer.parse().unwrap()),
            other => panic!("{other:?} was never said"),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Add(peer) => format!("add {peer}"),
            Self::Remove(peer) => format!("remove {peer}"),
        }
    }

    fn change(self, peers: &mut BTreeSet<u16>) {
        match self {
            Self::Add(peer) => drop(peers.insert(peer)),
            Self::Remove(peer) => drop(peers.remove(&peer)),
        }
    }

    fn request(self) -> Request {
        let scope = PeerScope::Global;
        match self {
            Self::Add(number) => Request::AddPeer { peer: peer(number), scope },
            Self::Remove(number) => Request::RemovePeer { pubkey: peer_key(number), scope },
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
                ["reboot:", "attached", generation, "."] => told.reached(generation),
                ["reboot:", "told", generation, "."] => {
                    told.reached(generation);
                    told.open.take().expect("an answer has a question").change(&mut told.peers);
                }
                other => panic!("{other:?} is no whole line"),
            }
        }
        told
    }

    /// Several clients speak at once, and the one that was answered first may say so last.
    fn reached(&mut self, generation: &str) {
        self.generation = self.generation.max(generation.parse().unwrap());
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
    node.flags.extend(["--address-rest-secs", "0", "--service-prefix-v4", "25"].map(str::to_owned));
    node
}

fn set_up(node: &OverlayNode, line: &mut SerialLine) -> String {
    assert_eq!(node.setup(CLUSTER, Some(SLICE), PORT).to_string(), DEVICE);
    node.segment("web", OverlayMode::Auto);
    let key = node.public_key().to_string();
    line.say(&format!("key {key}"));
    key
}

/// The first look is at the kernel and the metrics page only: no client has spoken to the agent yet.
fn assert_right(node: &OverlayNode, key: &str, told: &Told) {
    until("the node is in sync without a client", || {
        node.total("overlayd_in_sync") == 1.0 && node.total("overlayd_attachments") == 0.0
    });
    assert!(addresses(&node.node, DEVICE).contains(&NODE.parse::<IpNet>().unwrap()), "{}", node.log_tail());
    assert_eq!(node.members(), BTreeSet::new(), "of the earlier boot");
    node.assert_no_difference();

    let status = node.status();
    assert_eq!(status.public_key.as_deref(), Some(key), "the node's key");
    assert_eq!(status.node_ip, Some(NODE.parse::<IpNet>().unwrap().addr()));
    let generation = node.generation();
    assert!(generation >= told.generation, "{generation} after {}", told.generation);
    let found = peers_of(node);
    let possible = told.possible_peers();
    assert!(possible.contains(&found), "{found:?} is none of {possible:?}, unanswered {:?}", told.open);
}

/// The device is of the kind that this boot can have, and configured as in every other boot.
fn assert_device(node: &OverlayNode, key: &str, peers: &BTreeSet<u16>) -> String {
    let device = DEVICE.parse().unwrap();
    let (plane, processes) = match std::env::var("OVERLAYD_REBOOT_PLANE").as_deref() {
        Ok("kernel") => (DataPlane::Kernel, 0),
        Ok("userspace") => (DataPlane::Userspace, 1),
        other => panic!("OVERLAYD_REBOOT_PLANE: {other:?}"),
    };
    assert_eq!(node.plane(&device), plane);
    assert_eq!(device_processes(network()).len(), processes, "processes behind userspace devices");
    let (mut devices, mut found) = (Vec::new(), BTreeMap::new());
    for (object, seen) in node.observe().objects {
        match (object, seen.spec) {
            (Key::Device(name), Spec::Device(spec)) => {
                devices.push((name, spec.key.public.map(|key| key.to_string()), spec.listen_port));
            }
            (Key::Peer { public_key, .. }, Spec::Peer(spec)) => {
                let networks: Vec<String> = spec.allowed_ips.iter().map(ToString::to_string).collect();
                let endpoint = spec.endpoint.map(|endpoint| endpoint.address.to_string());
                found.insert(public_key.to_string(), (networks, endpoint, spec.keepalive));
            }
            _ => {}
        }
    }
    assert_eq!(devices, [(device, Some(key.to_owned()), PORT)]);
    let wanted = peers.iter().map(|number| {
        let peer = peer(*number);
        (peer.public_key, (vec![peer.allowed_ips], Some(peer.endpoint), 0))
    });
    assert_eq!(found, wanted.collect());
    format!("{plane:?} data plane").to_lowercase()
}

/// Every address of the slice can be had once, and all of them come back. Nothing is left of those who had them.
fn assert_pool_is_whole(node: &OverlayNode, links: &BTreeSet<String>) {
    let held = Mutex::default();
    attach_many(node, CONTAINERS_MAX, &held, |_| {});
    let one_more = Container::new();
    let refused = node.refused(Wish::to("web").global().of(&one_more));
    assert!(refused.contains("no free address"), "{refused}");
    // As the end of a machine does it: nobody detaches.
    drop(held);
    until("the agent has noticed every end", || {
        node.total("overlayd_attachments") == 0.0 && node.members().is_empty() && node.total("overlayd_in_sync") == 1.0
    });
    let ours = BTreeSet::from([DEVICE, BRIDGE].map(str::to_owned));
    assert_eq!(node.link_names(), links | &ours, "nothing that belongs to nobody");
    node.assert_no_difference();
}

/// Containers that are attached, and all their addresses.
#[derive(Default)]
struct Held {
    containers: Vec<Container>,
    addresses: BTreeSet<IpAddr>,
}

/// A lock that a client left behind when it failed says no more than that.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many attaches by several clients; `answered` is called by each client, with its number, after each of its answers.
fn attach_many(node: &OverlayNode, count: usize, held: &Mutex<Held>, answered: impl Fn(usize) + Sync) {
    let begun = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (begun, answered) = (&begun, &answered);
            scope.spawn(move || {
                while begun.fetch_add(1, Ordering::Relaxed) < count {
                    attach(node, held);
                    answered(client);
                }
            });
        }
    });
}

/// Attaches a container to the segment and the slice; nobody else has its addresses.
fn attach(node: &OverlayNode, held: &Mutex<Held>) {
    let container = Container::new();
    ask_to_attach(node, &container);
    let inside = container.node();
    let all = ["eth0", "eth1"].iter().flat_map(|link| addresses(&inside, link));
    let own: BTreeSet<IpAddr> = all.map(|net| net.addr()).filter(IpAddr::is_ipv4).collect();
    assert_eq!(own.len(), 2, "{own:?}");
    let mut held = lock(held);
    for address in own {
        assert!(held.addresses.insert(address), "{address} a second time");
    }
    held.containers.push(container);
}

fn ask_to_attach(node: &OverlayNode, container: &Container) {
    for _ in 0..TRIES {
        match node.ask(Wish::to("web").global().of(container)) {
            Response::Attached(_) => return,
            Response::Err { message } if message.contains(LATE) => {
                std::io::stdout().write_all(b"reboot: late .\n").unwrap();
            }
            other => panic!("{other:?}: {}", node.log_tail()),
        }
    }
    panic!("not attached after {TRIES} requests: {}", node.log_tail());
}

/// Asks for a hundred containers and for peers, until the power goes.
fn work(node: &OverlayNode, peers: BTreeSet<u16>, line: SerialLine) -> ! {
    let (line, peers, held) = (Mutex::new(line), Mutex::new(Some(peers)), Mutex::default());
    attach_many(node, ATTACHES, &held, |client| {
        lock(&line).say(&format!("attached {}", node.generation()));
        // One client alone: of several requests without an answer nobody could say which were kept.
        if client == 0 {
            let mut peers = lock(&peers);
            *peers = peers.take().and_then(|peers| change_a_peer(node, peers, &line));
        }
    });
    thread::sleep(WORK_LIMIT);
    panic!("the power stayed on");
}

/// Answers the peers that there are now; nothing when that is not known, and then it was the last change of this boot.
fn change_a_peer(node: &OverlayNode, mut peers: BTreeSet<u16>, line: &Mutex<SerialLine>) -> Option<BTreeSet<u16>> {
    let asked = match (peers.first(), peers.last()) {
        (Some(first), _) if peers.len() > 5 => Asked::Remove(*first),
        (_, last) => Asked::Add(last.map_or(1, |last| last + 1)),
    };
    lock(line).say(&format!("ask {}", asked.text()));
    match node.ask(asked.request()) {
        Response::Err { message } if message.contains(LATE) => return None,
        Response::Err { message } => panic!("{message}: {}", node.log_tail()),
        _ => {}
    }
    asked.change(&mut peers);
    lock(line).say(&format!("told {}", node.generation()));
    Some(peers)
}

/// The peers of the document, by number; that the kernel has them too is no difference.
fn peers_of(node: &OverlayNode) -> BTreeSet<u16> {
    let numbers: BTreeMap<String, u16> = (0..1000).map(|number| (peer_key(number), number)).collect();
    let peers = node.status().peers;
    peers.iter().map(|peer| numbers[&peer.public_key]).collect()
}
