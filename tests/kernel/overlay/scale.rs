//! What one more peer costs, and what is said to the device about it, whatever number of peers is there.

use std::{
    io::Write,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, RwLock,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use netlink_packet_wireguard::{WireguardAttribute, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags};
use overlayd::{
    clock::SystemClock,
    desired::{
        Context, Document, Edit, Mutation, OverlayRequest, PeerRequest, Policy, Record, RecordKey, Touched, consider,
    },
    ids::{Cidr, IfName, WgPublicKey},
    object::{Key, KeyPair, Mark, Spec},
    observed::Observed,
    platform::{
        Kernel,
        linux::{
            DataPlane, DataPlaneChoice, LinuxKernel, LinuxOptions, device_process,
            uapi::{PeerChange, Request as UapiRequest, decode_request},
        },
        sim::SimKernel,
    },
    reconcile::{
        engine::Engine,
        target::{Facts, Scope},
        view::Round,
    },
    secret::PrivateKey,
    wire::{Request, Response},
};
use rtnetlink::packet_core::{NlasIterator, Parseable};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use crate::{
    lab::isolated,
    overlay_node::{IN_FLIGHT, IPV4, OverlayNode, PORT, add_peer, block_on, stage, two_nodes},
};

/// Times of which the median is taken, and those before that only warm up.
const TIMED: u32 = 50;
const WARM_UP: u32 = 10;

fn key(number: u32) -> WgPublicKey {
    let mut bytes = [0x5a; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    WgPublicKey::from_bytes(bytes)
}

fn allowed_ip(number: u32) -> Cidr {
    Cidr::host(Ipv4Addr::from(0x0a64_0000 + number).into())
}

fn peer(number: u32) -> Edit {
    Edit::EnsurePeer(PeerRequest {
        scope: overlayd::desired::PeerScope::Node,
        public_key: key(number),
        endpoint: None,
        allowed_ips: [allowed_ip(number)].into(),
        keepalive: 0,
        candidates: Vec::new(),
    })
}

fn edit(document: &mut Document, edit: &Edit) -> Touched {
    let next = document.generation() + 1;
    let change =
        consider(document, edit, &Context { next, now: overlayd::clock::UnixTime(0), policy: &Policy::default() })
            .unwrap_or_else(|refusal| panic!("{edit:?}: {refusal}"));
    if !change.mutations.is_empty() {
        document.absorb(next, &change.mutations);
    }
    change.touched
}

fn document(peers: u32) -> Document {
    document_of((0..peers).map(peer))
}

/// An overlay and what else is asked for.
pub fn document_of(edits: impl IntoIterator<Item = Edit>) -> Document {
    let mut document = Document::default();
    let own = KeyPair::from_private(PrivateKey::from_random_bytes([7; 32]));
    document.absorb(1, &[Mutation { key: RecordKey::NodeKey, record: Some(Record::NodeKey(own)) }]);
    let overlay = OverlayRequest {
        deployment: "e2e".parse().unwrap(),
        instance: "0".parse().unwrap(),
        cluster: IPV4.cluster.parse().unwrap(),
        slice: Some(IPV4.slices[0].parse().unwrap()),
        port: PORT,
        host_adapter_mandatory: false,
        nat: None,
    };
    edit(&mut document, &Edit::EnsureOverlay(overlay));
    for wanted in edits {
        edit(&mut document, &wanted);
    }
    document
}

/// The loop's inside, driven by hand.
pub struct Bench<K> {
    document: Arc<RwLock<Document>>,
    pub engine: Engine<K, SystemClock>,
}

impl<K: Kernel> Bench<K> {
    pub fn new(kernel: K, mark: Mark, document: Document) -> Self {
        let document = Arc::new(RwLock::new(document));
        let engine = Engine::new(kernel, SystemClock, document.clone(), Facts::new(mark));
        Self { document, engine }
    }

    pub async fn full(&mut self) -> Round {
        let round = self.engine.round(Scope::Everything).await;
        assert!(round.in_sync, "{round:?}");
        round
    }

    async fn apply(&mut self, wanted: &Edit) -> Round {
        let touched = edit(&mut self.document.write().unwrap(), wanted);
        let Touched::Keys(keys) = touched else { panic!("{wanted:?} touches {touched:?}") };
        let round = self.engine.round(Scope::Keys(keys)).await;
        assert!(round.in_sync, "{round:?}");
        round
    }
}

pub fn mark() -> Mark {
    Mark::of_instance("/run/scale")
}

pub fn device() -> IfName {
    "zl-e2e-0-g".parse().unwrap()
}

/// The peers in a captured netlink message; a device flag is a defect.
pub fn peers_in(message: &[u8]) -> Vec<WireguardPeer> {
    // After nlmsghdr and genlmsghdr.
    let attributes = NlasIterator::new(&message[20..]);
    let peers = attributes.filter_map(|attribute| match WireguardAttribute::parse(&attribute.unwrap()).unwrap() {
        WireguardAttribute::Peers(peers) => Some(peers),
        WireguardAttribute::Flags(flags) => panic!("device flags are never sent: {flags:?}"),
        _ => None,
    });
    peers.flatten().collect()
}

pub fn replaces_allowed_ips(peer: &WireguardPeer) -> bool {
    peer.iter().any(|attribute| match attribute {
        WireguardPeerAttribute::Flags(flags) => flags.contains(WireguardPeerFlags::ReplaceAllowedIps),
        _ => false,
    })
}

/// Keys and counters of all peers but one.
async fn others(engine: &mut Engine<LinuxKernel, SystemClock>, but: &WgPublicKey) -> Vec<(Key, Observed)> {
    let seen = engine.observe().await.unwrap().objects;
    let is_other = |key: &Key| matches!(key, Key::Peer { public_key, .. } if public_key != but);
    seen.into_iter().filter(|(key, _)| is_other(key)).collect()
}

fn forwarded(mut from: UnixStream, to: PathBuf, said: Arc<Mutex<Vec<Vec<u8>>>>) {
    tokio::spawn(async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\n\n") {
            if from.read_buf(&mut request).await.unwrap() == 0 {
                return;
            }
        }
        said.lock().unwrap().push(request.clone());
        let mut device = UnixStream::connect(to).await.unwrap();
        device.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n\n") {
            assert_ne!(device.read_buf(&mut answer).await.unwrap(), 0);
        }
        let _ = from.write_all(&answer).await;
    });
}

/// Listens where the agent expects the device, and notes every request.
fn listen_between(agent: &Path, device_dir: &Path) -> Arc<Mutex<Vec<Vec<u8>>>> {
    let said: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    std::fs::create_dir_all(agent).unwrap();
    let name = format!("{}.sock", device());
    let listener = UnixListener::bind(agent.join(&name)).unwrap();
    let (to, log) = (device_dir.join(name), said.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            forwarded(stream, to.clone(), log.clone());
        }
    });
    said
}

fn uapi_sets(said: &Mutex<Vec<Vec<u8>>>) -> Vec<Vec<PeerChange>> {
    let said = std::mem::take(&mut *said.lock().unwrap());
    let requests = said.iter().map(|bytes| decode_request(bytes.trim_ascii_end()).unwrap());
    let sets = requests.filter_map(|request| match request {
        UapiRequest::Set(set) => {
            assert!(!set.replace_peers);
            assert!(set.peers.iter().all(|peer| !peer.replace_allowed_ips));
            Some(set.peers)
        }
        UapiRequest::Get => None,
    });
    sets.collect()
}

fn options(dir: &str) -> LinuxOptions {
    LinuxOptions::new(mark(), DataPlaneChoice::Auto, PathBuf::from(dir))
}

#[test]
fn with_a_thousand_peers_one_more_is_one_message_with_one_peer() {
    isolated(|| block_on(one_more_of_a_thousand()));
}

async fn one_more_of_a_thousand() {
    let (sender, messages) = channel();
    let mut first = options("/run/wg");
    first.capture = Some(sender);
    let mut kernel = LinuxKernel::open(first).unwrap();
    make_link(&mut kernel).await;
    let plane = kernel.data_plane(&device()).await.unwrap().unwrap();
    match plane {
        DataPlane::Kernel => {
            let mut bench = Bench::new(kernel, mark(), document(1000));
            bench.full().await;
            let all: Vec<_> =
                messages.try_iter().map(|message| peers_in(&message)).filter(|peers| !peers.is_empty()).collect();
            println!("MEASURED: kernel: 1,000 peers went in {} messages", all.len());
            check_one_more(&mut bench, || kernel_said(&messages)).await;
        }
        DataPlane::Userspace => {
            device_process::start(Path::new(env!("CARGO_BIN_EXE_overlayd")), &device(), Path::new("/run/wg"))
                .await
                .unwrap();
            let said = listen_between(Path::new("/run/between"), Path::new("/run/wg"));
            let kernel = LinuxKernel::open(options("/run/between")).unwrap();
            let mut bench = Bench::new(kernel, mark(), document(1000));
            bench.full().await;
            println!(
                "MEASURED: userspace: 1,000 peers went in {} messages",
                uapi_sets(&said).iter().filter(|peers| !peers.is_empty()).count()
            );
            check_one_more(&mut bench, || uapi_said(&said)).await;
            let pid = overlayd::platform::linux::uapi::UapiClient::new(Path::new("/run/wg"), &device())
                .server_pid()
                .await
                .unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
}

/// The link alone, so that its device process can be started from the right binary.
async fn make_link(kernel: &mut LinuxKernel) {
    let spec = overlayd::object::LinkSpec::up(overlayd::object::LinkKind::WireGuard, 1420);
    let action = overlayd::action::Action::Create { key: Key::Link(device()), spec: Spec::Link(spec) };
    match kernel.execute(&[action]).await.remove(0) {
        Ok(()) => {}
        Err(error) => crate::lab::skip(&format!("no WireGuard link: {error}")),
    }
}

/// How many peers each configuration message named.
fn kernel_said(messages: &Receiver<Vec<u8>>) -> Vec<usize> {
    let said: Vec<_> = messages.try_iter().map(|message| peers_in(&message)).collect();
    assert!(said.iter().flatten().all(|peer| !replaces_allowed_ips(peer)));
    said.iter().map(Vec::len).collect()
}

fn uapi_said(said: &Mutex<Vec<Vec<u8>>>) -> Vec<usize> {
    uapi_sets(said).iter().map(Vec::len).collect()
}

async fn check_one_more(bench: &mut Bench<LinuxKernel>, said: impl Fn() -> Vec<usize>) {
    let before = others(&mut bench.engine, &key(5000)).await;
    assert_eq!(before.len(), 1000);
    said();
    let round = bench.apply(&peer(5000)).await;
    let added = said();
    assert_eq!(others(&mut bench.engine, &key(5000)).await, before, "the other peers are as they were");
    let moved = Edit::EnsureAllowedIp {
        scope: overlayd::desired::PeerScope::Node,
        peer: key(5000),
        allowed_ip: "10.101.0.0/24".parse().unwrap(),
    };
    bench.apply(&moved).await;
    let widened = said();
    bench.apply(&Edit::RemovePeer { scope: overlayd::desired::PeerScope::Node, peer: key(5000) }).await;
    let removed = said();
    bench.full().await;
    let full = said();
    println!(
        "MEASURED: with 1,000 peers, peers in each configuration message: AddPeer {added:?}, AddAllowedIp {widened:?}, \
         RemovePeer {removed:?}, a full round {full:?}; AddPeer took {:?}; no replace flag; the other 1,000 unchanged",
        round.apply + round.plan
    );
    assert_eq!((added, widened, removed, full), (vec![1], vec![1], vec![1], vec![]));
    assert_eq!(others(&mut bench.engine, &key(5000)).await, before);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn one_more_peer_costs_the_loop_the_same_with_ten_thousand_as_with_a_hundred() {
    let mut medians = Vec::new();
    for count in [100, 10_000] {
        let times = block_on(async {
            let mut bench = Bench::new(SimKernel::default(), mark(), document(count));
            bench.full().await;
            let mut times = Vec::new();
            for turn in 0..WARM_UP + TIMED {
                let begin = Instant::now();
                bench.apply(&peer(20_000 + turn)).await;
                times.push(begin.elapsed());
            }
            times.split_off(WARM_UP as usize)
        });
        medians.push(median(times));
    }
    let ratio = medians[1].as_secs_f64() / medians[0].as_secs_f64();
    // Past the harness, which keeps what a test prints to itself.
    let line = format!(
        "MEASURED: simulator, edit and scoped round: {medians:?} with 100 and 10,000 peers, ratio {ratio:.2}\n"
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(ratio < 5.0, "{medians:?}");
}

fn wire_peer(number: u32) -> Request {
    add_peer(&key(number), "", &allowed_ip(number).to_string())
}

/// Median of whole AddPeers through the socket of a running agent, and how much of one the loop's phases and the disk take on average.
fn add_peers(node: &OverlayNode, from: u32) -> (Duration, String) {
    let sums = || {
        let mut sums = node.metric("overlayd_reconcile_duration_seconds_sum");
        sums.extend(node.metric("overlayd_store_fsync_seconds_sum"));
        sums
    };
    let before = sums();
    let socket = node.socket();
    let times = block_on(async {
        let mut client = overlayd::client::Client::connect(&socket).await.unwrap();
        let mut times = Vec::new();
        for turn in 0..WARM_UP + TIMED {
            let request = wire_peer(from + turn);
            let begin = Instant::now();
            let response = client.request(request).await.unwrap();
            times.push(begin.elapsed());
            assert_eq!(response, Response::Ok);
        }
        times
    });
    let shares = sums().into_iter().map(|(labels, sum)| {
        let part = sum - before.get(&labels).unwrap_or(&0.0);
        let name = if labels.is_empty() { "fsync" } else { labels.as_str() };
        format!("{name} {:.3} ms", part * 1000.0 / f64::from(WARM_UP + TIMED))
    });
    let shares = shares.collect::<Vec<_>>().join(", ");
    (median(times[WARM_UP as usize..].to_vec()), shares)
}

#[test]
fn a_whole_add_peer_with_ten_thousand_peers_is_compared_with_a_hundred() {
    isolated(|| {
        let (a, b) = two_nodes();
        let device = a.setup(IPV4.cluster, Some(IPV4.slices[0]), PORT);
        assert_eq!(a.pour((0..100).map(wire_peer)), 0);
        let (few, few_parts) = add_peers(&a, 20_000);
        let begin = Instant::now();
        let late = a.pour((100..10_000).map(wire_peer));
        let poured = begin.elapsed();
        a.resync();
        let (many, many_parts) = add_peers(&a, 30_000);
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        println!(
            "MEASURED: {}: whole AddPeer over the socket, median of {TIMED}: {few:?} with 100 peers, {many:?} with 10,000; ratio {ratio:.2}; \
             9,900 AddPeers with {IN_FLIGHT} in flight took {poured:?}, {late} answered before their effect",
            stage(&a, &device)
        );
        println!("MEASURED: of one AddPeer with 100 peers on average {few_parts}");
        println!("MEASURED: of one AddPeer with 10,000 peers on average {many_parts}");
        assert!(ratio < 20.0);
        drop(b);
    });
}
