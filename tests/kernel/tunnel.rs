//! Two nodes with a WireGuard device process each, and traffic between them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use overlayd::{
    ids::{IfName, WgPublicKey},
    platform::linux::{
        device_process::{create_persistent, start},
        uapi::{
            AllowedIpChange, DeviceChange, DeviceState, PeerChange, PeerState, SecretChange, UapiChange, UapiClient,
            UapiError,
        },
    },
    secret::PrivateKey,
};

use crate::lab::{Node, add_address, need_tun, set_up_link};

pub const PORT: u16 = 51820;
pub const GROUP: u32 = 0x4f00_0042;

/// A node with a device named `wgt`, number `n`: 192.0.2.n on the wire, 10.9.0.n in the tunnel.
pub struct End {
    pub node: Node,
    pub number: u8,
    pub key: PrivateKey,
    pub dir: PathBuf,
}

pub fn ifname() -> IfName {
    "wgt".parse().unwrap()
}

impl End {
    pub fn new(number: u8) -> Self {
        let dir = PathBuf::from(format!("/run/wg{number}"));
        let end = Self { node: Node::new(), number, key: PrivateKey::from_random_bytes([number; 32]), dir };
        end.node.run(|| create_persistent(&ifname(), GROUP, 1420)).unwrap();
        end.start().unwrap();
        let change = DeviceChange {
            private_key: Some(SecretChange::Set(end.key.clone())),
            listen_port: Some(PORT),
            fwmark: None,
        };
        end.set(vec![UapiChange::Device(change)]).unwrap();
        let address = end.inner();
        end.node.block_on(move || async move {
            add_address("wgt", address, 24).await;
            set_up_link("wgt").await;
        });
        end
    }

    pub fn start(&self) -> Result<(), String> {
        let dir = self.dir.clone();
        self.node.block_on(move || async move {
            let exe = Path::new(env!("CARGO_BIN_EXE_overlayd"));
            start(exe, &ifname(), &dir).await.map_err(|error| format!("{error:?}"))
        })
    }

    pub fn inner(&self) -> IpAddr {
        IpAddr::from([10, 9, 0, self.number])
    }

    pub fn outer(&self) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, self.number], PORT))
    }

    pub fn public_key(&self) -> WgPublicKey {
        self.key.public_key()
    }

    pub fn client(&self) -> UapiClient {
        // Of a busy machine a call may ask for more than the agent would wait.
        UapiClient::new(&self.dir, &ifname()).with_limit(CALL_LIMIT)
    }

    pub fn set(&self, changes: Vec<UapiChange>) -> Result<(), UapiError> {
        let client = self.client();
        self.node.block_on(move || async move { client.set(&changes).await })
    }

    pub fn get(&self) -> DeviceState {
        let client = self.client();
        self.node.block_on(move || async move { client.get().await }).unwrap()
    }

    pub fn peer(&self, other: &End) -> PeerState {
        let key = other.public_key();
        self.get().peers.into_iter().find(|peer| peer.public_key == key).unwrap()
    }

    pub fn pid(&self) -> i32 {
        let client = self.client();
        self.node.block_on(move || async move { client.server_pid().await }).unwrap()
    }

    /// The whole configuration of `other` as a peer.
    pub fn whole(other: &End) -> PeerChange {
        PeerChange {
            endpoint: Some(other.outer()),
            allowed_ips: vec![AllowedIpChange::Add(format!("{}/32", other.inner()).parse().unwrap())],
            ..PeerChange::of(other.public_key())
        }
    }

    pub fn add(&self, other: &End) {
        self.set(vec![UapiChange::Peer(Self::whole(other))]).unwrap();
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) -> i32 {
        let pid = self.pid();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
        pid
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let client = self.client();
        let pid = self.node.block_on(move || async move { client.server_pid().await });
        if let Ok(pid) = pid {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Two ends on one wire that are each other's peers.
pub fn pair() -> (End, End) {
    need_tun();
    let (a, b) = (End::new(1), End::new(2));
    a.node.wire(&b.node, a.outer().ip(), b.outer().ip(), 24);
    a.add(&b);
    b.add(&a);
    (a, b)
}

/// Waits until the process has ended (a zombie counts); answers how long that took.
pub fn wait_for_end(pid: i32, limit: Duration) -> Option<Duration> {
    let begin = Instant::now();
    while begin.elapsed() < limit {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        let ended = stat.map_or(true, |stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')));
        if ended {
            return Some(begin.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Packets that go from one end to the other and back, one every 2 ms.
pub struct Flood {
    stop: Arc<AtomicBool>,
    sender: std::thread::JoinHandle<Report>,
}

/// What became of a flood.
#[derive(Debug)]
pub struct Report {
    pub sent: u64,
    pub lost: u64,
    /// Longest time between two answers.
    pub gap: Duration,
}

const CALL_LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(2);
/// How long the last packets are waited for.
const GRACE: Duration = Duration::from_millis(700);

impl Flood {
    pub fn start(from: &End, to: &End) -> Self {
        Self::between(from, to, to.inner())
    }

    /// Sends to an address that `to` has.
    pub fn between(from: &End, to: &End, address: IpAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let any_port = SocketAddr::new(address, 0);
        let echo_stop = Arc::clone(&stop);
        let echo = to.node.run(move || UdpSocket::bind(any_port)).unwrap();
        let target = echo.local_addr().unwrap();
        echo.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let mut last = Instant::now();
            while !echo_stop.load(Ordering::Relaxed) || last.elapsed() < GRACE {
                if let Ok((length, from)) = echo.recv_from(&mut buffer) {
                    let _ = echo.send_to(&buffer[..length], from);
                    last = Instant::now();
                }
            }
        });
        let own = SocketAddr::new(from.inner(), 0);
        let socket = from.node.run(move || UdpSocket::bind(own)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let sender_stop = Arc::clone(&stop);
        let sender = std::thread::spawn(move || send(&socket, target, &sender_stop));
        Self { stop, sender }
    }

    pub fn finish(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().unwrap()
    }
}

fn send(socket: &UdpSocket, target: SocketAddr, stop: &AtomicBool) -> Report {
    let mut missing = BTreeMap::new();
    let (mut sent, mut last, mut gap) = (0u64, Instant::now(), Duration::ZERO);
    let mut end: Option<Instant> = None;
    loop {
        let mut buffer = [0; 64];
        while let Ok((8, _)) = socket.recv_from(&mut buffer) {
            let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
            missing.remove(&number);
            gap = gap.max(last.elapsed());
            last = Instant::now();
        }
        match end {
            None => {
                if socket.send_to(&sent.to_be_bytes(), target).is_ok() {
                    missing.insert(sent, ());
                }
                sent += 1;
                if stop.load(Ordering::Relaxed) {
                    end = Some(Instant::now());
                }
            }
            Some(since) if missing.is_empty() || since.elapsed() > GRACE => break,
            Some(_) => {}
        }
        std::thread::sleep(STEP);
    }
    Report { sent, lost: missing.len() as u64, gap }
}

/// Waits until packets pass from one end to the other and back.
pub fn wait_for_traffic(from: &End, to: &End, limit: Duration) -> Option<Duration> {
    let begin = Instant::now();
    while begin.elapsed() < limit {
        let flood = Flood::start(from, to);
        std::thread::sleep(Duration::from_millis(100));
        let report = flood.finish();
        if report.lost < report.sent {
            return Some(begin.elapsed());
        }
    }
    None
}
