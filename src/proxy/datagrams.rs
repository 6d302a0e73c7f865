//! UDP: each client has a socket of our own towards the container, so that answers find their way back.
//!
//! An answer leaves from the address that the client wrote to: on a host with several addresses the kernel would choose another, and the client
//! would not know whom it hears.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::{io::Interest, net::UdpSocket, task::JoinHandle, time::timeout};

/// Clients of one port at a time (I-15); beyond it the one that was silent longest gives way.
const FLOWS_MAX: usize = 4096;
/// A flow that is silent for so long is over: as long as Linux keeps an answered UDP flow (`nf_conntrack_udp_timeout_stream`).
const SILENT_FOR: Duration = Duration::from_secs(120);
/// The largest datagram there is.
const DATAGRAM_BYTES: usize = 64 * 1024;

/// A client, and the address of this host that it wrote to.
type Flow = (SocketAddr, IpAddr);

struct Running {
    towards: Arc<UdpSocket>,
    heard: Instant,
    answers: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// Makes the kernel tell to which address each datagram was sent.
pub(super) fn tell_destination(socket: &UdpSocket, bound_to: IpAddr) -> io::Result<()> {
    match bound_to {
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

pub(super) async fn serve(socket: UdpSocket, to: SocketAddr) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<Flow, Running> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    let mut tidied = Instant::now();
    loop {
        // An error is about an earlier answer: its client has gone, others have not.
        let Ok((length, flow)) = receive(&socket, &mut buffer).await else { continue };
        if tidied.elapsed() > SILENT_FOR / 4 {
            flows.retain(|_, running| !running.answers.is_finished() && running.heard.elapsed() < SILENT_FOR);
            tidied = Instant::now();
        }
        if flows.get(&flow).is_none_or(|running| running.answers.is_finished()) {
            make_room(&mut flows);
            match open(&socket, flow, to).await {
                Ok(running) => drop(flows.insert(flow, running)),
                Err(error) => {
                    tracing::debug!(client = %flow.0, %to, %error, "a datagram could not be passed on");
                    continue;
                }
            }
        }
        if let Some(running) = flows.get_mut(&flow) {
            running.heard = Instant::now();
            // Lost on the way is what a datagram may be.
            let _ = running.towards.send(&buffer[..length]).await;
        }
    }
}

fn make_room(flows: &mut HashMap<Flow, Running>) {
    if flows.len() < FLOWS_MAX {
        return;
    }
    let silent_longest = flows.iter().min_by_key(|(_, running)| running.heard).map(|(flow, _)| *flow);
    if let Some(flow) = silent_longest {
        flows.remove(&flow);
    }
}

async fn open(socket: &Arc<UdpSocket>, flow: Flow, to: SocketAddr) -> io::Result<Running> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let towards = Arc::new(UdpSocket::bind(SocketAddr::new(any, 0)).await?);
    towards.connect(to).await?;
    let answers = tokio::spawn(answer(socket.clone(), towards.clone(), flow));
    Ok(Running { towards, heard: Instant::now(), answers })
}

/// Carries answers back for as long as there are any.
async fn answer(socket: Arc<UdpSocket>, from: Arc<UdpSocket>, flow: Flow) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        match timeout(SILENT_FOR, from.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                if let Err(error) = send(&socket, &buffer[..length], flow).await {
                    tracing::debug!(client = %flow.0, %error, "an answer could not be passed back");
                }
            }
            // Nobody listens in the container; the client's next datagram tries again.
            Ok(Err(_)) => return,
            Err(_) => return,
        }
    }
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Flow)> {
    socket
        .async_io(Interest::READABLE, || {
            let mut space = nix::cmsg_space!(libc::in6_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let received =
                recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
            let client = received.address.as_ref().and_then(socket_address);
            let to = received.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4PacketInfo(to) => Some(IpAddr::V4(u32::from_be(to.ipi_addr.s_addr).into())),
                ControlMessageOwned::Ipv6PacketInfo(to) => Some(IpAddr::V6(to.ipi6_addr.s6_addr.into())),
                _ => None,
            });
            match (client, to) {
                (Some(client), Some(to)) => Ok((received.bytes, (client, to))),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        })
        .await
}

async fn send(socket: &UdpSocket, bytes: &[u8], (client, from): Flow) -> io::Result<()> {
    let to = SockaddrStorage::from(client);
    let send_with = |message: ControlMessage<'_>| {
        sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], &[message], MsgFlags::empty(), Some(&to))
    };
    socket
        .async_io(Interest::WRITABLE, || {
            let sent = match from {
                IpAddr::V4(from) => send_with(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                })),
                IpAddr::V6(from) => send_with(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                    ipi6_ifindex: 0,
                })),
            };
            sent.map(drop).map_err(io::Error::from)
        })
        .await
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
