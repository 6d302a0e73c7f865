//! Real packets: ICMP echo and TCP, without a program of the host.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket, sockopt,
};

use crate::platform::lab::Namespace;

/// Type and code of an ICMP echo request (RFC 792).
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// How long a reply may take.
const REPLY_WITHIN: Duration = Duration::from_millis(1000);
/// IPv4 header without options; the raw socket hands it up.
const IPV4_HEADER: usize = 20;

/// What a series of pings came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pings {
    pub sent: u32,
    pub answered: u32,
    pub longest: Duration,
}

/// One echo request and the time until its reply; `None` when there was none.
fn ping_once(socket: &impl std::os::fd::AsFd, to: Ipv4Addr, sequence: u16) -> io::Result<Option<Duration>> {
    use std::os::fd::AsRawFd;
    let fd = socket.as_fd().as_raw_fd();
    let identifier = (std::process::id() & 0xffff) as u16;
    let mut packet = [0_u8; 16];
    packet[0] = ECHO_REQUEST;
    packet[4..6].copy_from_slice(&identifier.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let checksum = internet_checksum(&packet);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    let sent = Instant::now();
    if sendto(fd, &packet, &SockaddrIn::from(std::net::SocketAddrV4::new(to, 0)), MsgFlags::empty()).is_err() {
        return Ok(None);
    }
    let mut buffer = [0_u8; 256];
    while sent.elapsed() < REPLY_WITHIN {
        let Ok(length) = recv(fd, &mut buffer, MsgFlags::empty()) else {
            continue;
        };
        let reply = buffer.get(IPV4_HEADER..length).unwrap_or_default();
        if reply.len() >= 8 && reply[0] == ECHO_REPLY && reply[4..8] == packet[4..8] {
            return Ok(Some(sent.elapsed()));
        }
    }
    Ok(None)
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A thread that pings until it is told to stop.
pub struct Pinger {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Pings>>,
}

impl Pinger {
    /// Pings `to` from inside `from`, one request every `pause`.
    pub fn start(from: Arc<Namespace>, to: IpAddr, pause: Duration) -> io::Result<Self> {
        let IpAddr::V4(to) = to else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || from.run(|| ping_until(to, pause, &stopped)));
        Ok(Self { stop, thread })
    }

    pub fn finish(self) -> io::Result<Pings> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the pinging thread panicked")))
    }
}

fn ping_until(to: Ipv4Addr, pause: Duration, stop: &AtomicBool) -> io::Result<Pings> {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 100_000))?;
    let mut pings = Pings::default();
    let mut sequence = 0_u16;
    while !stop.load(Ordering::Relaxed) {
        sequence = sequence.wrapping_add(1);
        pings.sent += 1;
        if let Some(time) = ping_once(&socket, to, sequence)? {
            pings.answered += 1;
            pings.longest = pings.longest.max(time);
        }
        std::thread::sleep(pause);
    }
    Ok(pings)
}

/// Pings until the first reply, at most for `limit`.
pub fn first_reply(from: &Namespace, to: IpAddr, limit: Duration) -> io::Result<Option<Duration>> {
    let IpAddr::V4(to) = to else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    from.run(|| {
        let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 100_000))?;
        let begun = Instant::now();
        for sequence in 1..=u16::MAX {
            if begun.elapsed() > limit {
                break;
            }
            if let Some(time) = ping_once(&socket, to, sequence)? {
                return Ok(Some(time));
            }
        }
        Ok(None)
    })
}

/// Sends `bytes` bytes over TCP from one namespace to an address in the other and checks what arrives; gives the time it took.
pub fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, bytes: usize) -> io::Result<Duration> {
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(address, 0)))?;
    let target = listener.local_addr()?;
    let receiving = std::thread::spawn(move || -> io::Result<usize> {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0_u8; 64 * 1024];
        let mut total = 0;
        loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Ok(total);
            }
            if buffer[..count].iter().enumerate().any(|(i, byte)| *byte != pattern(total + i)) {
                return Err(io::Error::other("TCP delivered something else than was sent"));
            }
            total += count;
        }
    });
    let begun = Instant::now();
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        let data: Vec<u8> = (0..bytes).map(pattern).collect();
        stream.write_all(&data)
    })?;
    let received = receiving.join().unwrap_or_else(|_| Err(io::Error::other("the receiving thread panicked")))?;
    if received != bytes {
        return Err(io::Error::other(format!("{received} of {bytes} bytes arrived")));
    }
    Ok(begun.elapsed())
}

/// Byte number `position` of the test data: its period is prime to every buffer size.
fn pattern(position: usize) -> u8 {
    (position % 251) as u8
}
