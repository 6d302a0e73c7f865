//! ICMP echo in both families, one request every so often, and what became of each.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::lab::Node;

/// How long the last replies are waited for.
const GRACE: Duration = Duration::from_secs(3);

/// What a series of pings came to.
#[derive(Debug, Default)]
pub struct Pings {
    pub sent: u64,
    pub lost: u64,
    /// Requests that the kernel refused to send, by what it said.
    pub refused: BTreeMap<String, u64>,
    pub longest: Duration,
}

pub struct Pinger {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Pings>,
}

impl Pinger {
    /// Pings `to` from `node`, one request every `pause`.
    pub fn start(node: &Node, to: IpAddr, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = node.spawn(move || flood(to, pause, &stopped));
        Self { stop, thread }
    }

    pub fn finish(self) -> Pings {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Tells the requests of one sender from those of all others: raw sockets of one namespace hear each other's replies.
pub fn identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    u64::from(std::process::id()) << 32 | NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A raw ICMP socket; it has no ports, all else is as with UDP.
pub fn icmp(to: IpAddr) -> UdpSocket {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket: UdpSocket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap().into();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// An echo request with a number and the address of the sender's stack as identity (RFC 792, RFC 4443).
pub fn request(to: IpAddr, number: u64, identity: u64) -> [u8; 24] {
    let mut packet = [0; 24];
    packet[0] = if to.is_ipv4() { 8 } else { 128 };
    packet[8..16].copy_from_slice(&identity.to_be_bytes());
    packet[16..24].copy_from_slice(&number.to_be_bytes());
    if to.is_ipv4() {
        // The kernel writes the checksum of IPv6.
        let mut sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = !u16::try_from(sum).unwrap();
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The number in a reply to one of our requests.
pub fn reply(to: IpAddr, packet: &[u8], identity: u64) -> Option<u64> {
    // IPv4 hands the IP header up with the packet.
    let (packet, kind) = if to.is_ipv4() { (packet.get(20..)?, 0) } else { (packet, 129) };
    let of = u64::from_be_bytes(packet.get(8..16)?.try_into().ok()?);
    (packet[0] == kind && of == identity).then_some(())?;
    Some(u64::from_be_bytes(packet.get(16..24)?.try_into().ok()?))
}

fn flood(to: IpAddr, pause: Duration, stop: &AtomicBool) -> Pings {
    let socket = icmp(to);
    let identity = identity();
    let mut pings = Pings::default();
    let mut waiting: BTreeMap<u64, Instant> = BTreeMap::new();
    let (mut next, mut ended) = (Instant::now(), None);
    loop {
        let mut buffer = [0; 256];
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            if let Some(sent) = reply(to, &buffer[..length], identity).and_then(|number| waiting.remove(&number)) {
                pings.longest = pings.longest.max(sent.elapsed());
            }
        }
        match ended {
            None if stop.load(Ordering::Relaxed) => ended = Some(Instant::now()),
            None if next <= Instant::now() => {
                next += pause;
                let packet = request(to, pings.sent, identity);
                match socket.send_to(&packet, SocketAddr::new(to, 0)) {
                    Ok(_) => drop(waiting.insert(pings.sent, Instant::now())),
                    Err(error) => {
                        *pings.refused.entry(error.to_string()).or_default() += 1;
                        pings.lost += 1;
                    }
                }
                pings.sent += 1;
            }
            Some(since) if waiting.is_empty() || since.elapsed() > GRACE => break,
            None | Some(_) => {}
        }
        // A slow series looks less often: it may run for long.
        std::thread::sleep(Duration::from_millis(1).max(pause / 100));
    }
    pings.lost += waiting.len() as u64;
    pings
}

/// The time until the first reply, or `None` when there is none within `limit`.
pub fn first_reply(node: &Node, to: IpAddr, limit: Duration) -> Option<Duration> {
    node.run(move || {
        let (socket, begin, identity) = (icmp(to), Instant::now(), identity());
        let mut number = 0;
        while begin.elapsed() < limit {
            // Refused while the way is not there yet.
            let _ = socket.send_to(&request(to, number, identity), SocketAddr::new(to, 0));
            number += 1;
            let sent = Instant::now();
            while sent.elapsed() < Duration::from_millis(50) {
                let mut buffer = [0; 256];
                match socket.recv_from(&mut buffer) {
                    Ok((length, _)) if reply(to, &buffer[..length], identity).is_some() => {
                        return Some(begin.elapsed());
                    }
                    Ok(_) => {}
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        }
        None
    })
}

/// What the kernel says to a packet for `to`; `None` when it takes it.
pub fn refusal(node: &Node, to: IpAddr) -> Option<std::io::ErrorKind> {
    node.run(move || icmp(to).send_to(&request(to, 0, 1), SocketAddr::new(to, 0)).err().map(|error| error.kind()))
}
