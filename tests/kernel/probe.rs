//! Who reaches whom, by real packets: a TCP server that tells its clients how it sees them, and looks at many targets at once.
//!
//! Owns servers, probes and counting fragments. Leaves single series of pings to [`overlay_ping`](crate::overlay_ping).

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures::{TryStreamExt, future::join_all};
use ipnet::IpNet;
use nix::sys::socket::{Shutdown, shutdown};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        address::AddressAttribute,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::io::AsyncReadExt;

use crate::{
    lab::Node,
    overlay_ping::{icmp, identity, reply, request},
};

/// The port that servers listen on.
pub const PORT: u16 = 7000;
/// How long an answer is waited for before silence is taken for a "no": TCP sends its first packet again after a second.
pub const SILENCE: Duration = Duration::from_millis(2500);
const CHUNK: usize = 64 * 1024;

/// Answers each connection with the address that it came from.
pub struct Server {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(node: &Node) -> Self {
        let listener = node.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))).unwrap();
        let accepting = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, from)) = accepting.accept() {
                let _ = write!(stream, "{}", from.ip().to_canonical());
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Linux wakes an `accept` that waits on a socket which is shut down.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What came of connecting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tcp {
    /// The server answered, and saw this address.
    Answered(IpAddr),
    /// Nobody listens, but the packet got there.
    Refused,
    /// A router or the own kernel said no.
    Unreachable(String),
    Silent,
}

/// What came of trying to reach one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    pub tcp: Tcp,
    pub ping: bool,
}

impl Reach {
    pub fn is_whole(&self) -> bool {
        self.ping && matches!(self.tcp, Tcp::Answered(_))
    }

    pub fn is_none(&self) -> bool {
        !self.ping && matches!(self.tcp, Tcp::Silent | Tcp::Unreachable(_))
    }
}

/// Tries all addresses at once, each by TCP and by ping.
pub fn reach(node: &Node, targets: &[IpAddr], limit: Duration) -> BTreeMap<IpAddr, Reach> {
    start_reach(node, targets, limit).join().unwrap()
}

/// The same without waiting for it.
pub fn start_reach(node: &Node, targets: &[IpAddr], limit: Duration) -> JoinHandle<BTreeMap<IpAddr, Reach>> {
    let targets = targets.to_vec();
    node.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let connects = join_all(targets.iter().map(|target| connect(*target, limit)));
            let (tcps, pinged) = tokio::join!(connects, ping_all(&targets, limit));
            let reached = targets.iter().zip(tcps);
            reached.map(|(target, tcp)| (*target, Reach { tcp, ping: pinged.contains(target) })).collect()
        })
    })
}

pub fn reach_one(node: &Node, target: IpAddr) -> Reach {
    reach(node, &[target], SILENCE).remove(&target).unwrap()
}

async fn connect(target: IpAddr, limit: Duration) -> Tcp {
    let talk = async {
        let mut stream = tokio::net::TcpStream::connect((target, PORT)).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        text.parse().map_err(|_| std::io::Error::other(text))
    };
    match tokio::time::timeout(limit, talk).await {
        Ok(Ok(seen)) => Tcp::Answered(seen),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Tcp::Refused,
        Ok(Err(error)) => Tcp::Unreachable(error.to_string()),
        Err(_) => Tcp::Silent,
    }
}

async fn ping_all(targets: &[IpAddr], limit: Duration) -> BTreeSet<IpAddr> {
    let identity = identity();
    let sockets: BTreeMap<bool, _> = targets.iter().map(|target| (target.is_ipv4(), icmp(*target))).collect();
    let (begin, mut asked) = (Instant::now(), None::<Instant>);
    let mut answered = BTreeSet::new();
    while begin.elapsed() < limit && answered.len() < targets.len() {
        // A first packet may be lost to the resolution of a neighbour's address.
        if asked.is_none_or(|asked| asked.elapsed() > Duration::from_millis(400)) {
            asked = Some(Instant::now());
            for (number, target) in targets.iter().enumerate().filter(|(_, target)| !answered.contains(*target)) {
                let packet = request(*target, number as u64, identity);
                let _ = sockets[&target.is_ipv4()].send_to(&packet, SocketAddr::new(*target, 0));
            }
        }
        for socket in sockets.values() {
            let mut buffer = [0; 256];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let number = reply(from.ip(), &buffer[..length], identity);
                answered.extend(number.and_then(|number| targets.get(usize::try_from(number).ok()?)));
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    answered
}

/// Addresses of a link with their prefix lengths, without link-local ones; empty when there is no such link.
pub fn addresses(node: &Node, link: &str) -> BTreeSet<IpNet> {
    let link = link.to_owned();
    node.block_on(move || async move {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let Ok(index) = nix::net::if_::if_nametoindex(link.as_str()) else { return BTreeSet::new() };
        let mut found = BTreeSet::new();
        let mut dump = handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = dump.try_next().await.unwrap() {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            found.extend(address.map(|address| IpNet::new(address, message.header.prefix_len).unwrap()));
        }
        found.retain(|net| !matches!(net.addr(), IpAddr::V6(address) if address.is_unicast_link_local()));
        found
    })
}

/// The unicast routes of the main table as `DESTINATION [via GATEWAY] dev LINK`, without link-local ones.
pub fn routes(node: &Node) -> BTreeSet<String> {
    node.block_on(|| async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let mut found = BTreeSet::new();
        for request in
            [RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let mut dump = handle.route().get(request).execute();
            while let Some(route) = dump.try_next().await.unwrap() {
                found.extend(describe_route(&route));
            }
        }
        found
    })
}

fn describe_route(route: &RouteMessage) -> Option<String> {
    // RT_TABLE_MAIN
    if route.header.table != 254 || route.header.kind != RouteType::Unicast {
        return None;
    }
    let (mut destination, mut via, mut device) = ("default".to_owned(), String::new(), String::new());
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = format!("{address}/{}", route.header.destination_prefix_length);
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = format!("{address}/{}", route.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => via = format!(" via {gateway}"),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => via = format!(" via {gateway}"),
            RouteAttribute::Oif(index) => {
                let name = nix::net::if_::if_indextoname(*index).map(|name| name.to_string_lossy().into_owned());
                device = name.unwrap_or_else(|_| index.to_string());
            }
            _ => {}
        }
    }
    (!destination.starts_with("fe80::") || !via.is_empty()).then(|| format!("{destination}{via} dev {device}"))
}

/// A figure of `/proc/net/snmp` or `snmp6`: `Ip.FragCreates`, `Ip6FragCreates`.
pub fn counter(node: &Node, name: &str) -> u64 {
    let name = name.to_owned();
    node.run(move || {
        if let Some((table, column)) = name.split_once('.') {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let rows: Vec<Vec<&str>> = text
                .lines()
                .filter(|line| line.starts_with(&format!("{table}:")))
                .map(|line| line.split_whitespace().collect())
                .collect();
            let at = rows[0].iter().position(|word| *word == column).unwrap();
            return rows[1][at].parse().unwrap();
        }
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(&name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    })
}

/// Sends so many bytes from one node to an address of another; answers how long that took.
pub fn transfer(from: &Node, to: &Node, address: IpAddr, bytes: u64, limit: Duration) -> Result<Duration, String> {
    let listener = to.run(move || TcpListener::bind((address, 0))).unwrap();
    let target = listener.local_addr().unwrap();
    let begin = Instant::now();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(limit))?;
        let (mut chunk, mut received) = (vec![0; CHUNK], 0);
        loop {
            match stream.read(&mut chunk)? {
                0 => return Ok::<_, std::io::Error>(received),
                count => received += count as u64,
            }
            if begin.elapsed() > limit {
                return Err(std::io::Error::other(format!("{received} bytes in {limit:?}")));
            }
        }
    });
    let sent = from.run(move || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
        stream.set_write_timeout(Some(limit))?;
        let (chunk, mut left) = (vec![0x5a; CHUNK], bytes);
        while left > 0 {
            let length = CHUNK.min(usize::try_from(left).unwrap());
            stream.write_all(&chunk[..length])?;
            left -= length as u64;
        }
        Ok::<_, std::io::Error>(())
    });
    sent.map_err(|error| format!("send: {error}"))?;
    match receiver.join().unwrap() {
        Ok(received) if received == bytes => Ok(begin.elapsed()),
        Ok(received) => Err(format!("{received} of {bytes} bytes arrived")),
        Err(error) => Err(format!("receive: {error}")),
    }
}
