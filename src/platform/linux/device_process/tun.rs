//! The TUN device in the kernel: made by the agent, attached to by the device process.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::TimeVal,
};

use crate::ids::IfName;

/// Both sides open the TUN with the same flags; the kernel refuses to attach a queue that differs.
const FLAGS: libc::c_short = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
/// `IFF_TUN_EXCL` (`linux/if_tun.h`): fail instead of attaching to a TUN that exists.
const EXCLUSIVE: u16 = 0x8000;
/// Longest wait for the kernel's acknowledgement; it answers at once unless somebody holds the rtnl lock.
const ANSWER_LIMIT_SECONDS: libc::time_t = 3;
/// `IFF_PERSIST` (`linux/if_tun.h`), as `TUNGETIFF` reports it.
const PERSISTENT: u16 = 0x0800;

mod ioctls {
    // Numbers from linux/if_tun.h.
    nix::ioctl_write_int!(tun_set_iff, b'T', 202);
    nix::ioctl_write_int!(tun_set_persist, b'T', 203);
    nix::ioctl_read!(tun_get_iff, b'T', 210, libc::c_uint);
    nix::ioctl_readwrite_bad!(get_index, libc::SIOCGIFINDEX, libc::ifreq);
    nix::ioctl_readwrite_bad!(get_mtu, libc::SIOCGIFMTU, libc::ifreq);
}

/// Why a TUN could not be made or attached to.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error("open /dev/net/tun")]
    Open(#[source] io::Error),
    /// Some interface has the name. Nothing was touched.
    #[error("make a TUN named {0}: an interface has that name")]
    Exists(IfName),
    #[error("make the TUN {0}")]
    Make(IfName, #[source] io::Error),
    #[error("set link group and MTU of the TUN {0}")]
    Mark(IfName, #[source] io::Error),
    #[error("keep the TUN {0}")]
    Persist(IfName, #[source] io::Error),
    #[error("find an interface named {0}")]
    Missing(IfName),
    #[error("attach to {0}: it is no persistent TUN")]
    NotOurs(IfName),
    #[error("attach to the TUN {0}")]
    Attach(IfName, #[source] io::Error),
}

/// Makes a persistent TUN with this link group and MTU (bytes, at most 65,535) in the network namespace of the calling thread, and answers
/// its interface index. The link is down and has no address.
///
/// # Guarantees
/// The TUN bears its mark before it is persistent: a crash in between leaves nothing (I-04).
///
/// # Errors
/// [`TunError`]; nothing is left behind.
pub fn create_persistent(name: &IfName, group: u32, mtu: u32) -> Result<u32, TunError> {
    let file = open_clone_device()?;
    match set_iff(&file, name, FLAGS | EXCLUSIVE.cast_signed()) {
        Ok(()) => {}
        // EBUSY: a TUN has the name. EINVAL and EEXIST: another kind of link has it.
        Err(_) if index_of(name).is_ok() => return Err(TunError::Exists(name.clone())),
        Err(error) => return Err(TunError::Make(name.clone(), error)),
    }
    let index = index_of(name).map_err(|error| TunError::Make(name.clone(), error))?;
    set_group_and_mtu(index, group, mtu).map_err(|error| TunError::Mark(name.clone(), error))?;
    // SAFETY: the fd is open and the argument is a plain number.
    unsafe { ioctls::tun_set_persist(file.as_raw_fd(), 1) }
        .map_err(|errno| TunError::Persist(name.clone(), errno.into()))?;
    Ok(index)
}

/// Opens the queue of a persistent TUN that exists already, without blocking reads.
///
/// # Errors
/// [`TunError::Missing`] or [`TunError::NotOurs`] when there is none; the request would otherwise make one.
pub(super) fn attach(name: &IfName) -> Result<File, TunError> {
    let before = index_of(name).map_err(|_| TunError::Missing(name.clone()))?;
    let file = open_clone_device()?;
    set_iff(&file, name, FLAGS).map_err(|error| TunError::Attach(name.clone(), error))?;
    let flags = iff_flags(&file).map_err(|error| TunError::Attach(name.clone(), error))?;
    let after = index_of(name).map_err(|_| TunError::Missing(name.clone()))?;
    // Deleted in between: the kernel made a new one, which is not persistent and goes with the file.
    if before != after || flags & PERSISTENT == 0 {
        return Err(TunError::NotOurs(name.clone()));
    }
    Ok(file)
}

/// MTU in bytes, of the interface with this name in the namespace of `socket`.
pub(super) fn mtu_of(socket: BorrowedFd<'_>, name: &IfName) -> io::Result<u16> {
    let mut request = ifreq(name);
    // SAFETY: the request is a whole ifreq that lives through the call; the kernel writes into it.
    unsafe { ioctls::get_mtu(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the call succeeded, so the kernel filled this member of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// A socket on which interfaces can be asked about.
pub(super) fn control_socket() -> io::Result<std::net::UdpSocket> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(std::net::UdpSocket::from(fd))
}

fn open_clone_device() -> Result<File, TunError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(TunError::Open)
}

fn set_iff(file: &File, name: &IfName, flags: libc::c_short) -> io::Result<()> {
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF is declared with an int but takes a pointer to an ifreq, which lives through the call.
    unsafe { ioctls::tun_set_iff(file.as_raw_fd(), (&raw mut request).expose_provenance() as libc::c_ulong) }?;
    Ok(())
}

fn iff_flags(file: &File) -> io::Result<u16> {
    // TUNGETIFF is declared with an unsigned int but fills an ifreq.
    let mut request: libc::ifreq = zeroed_ifreq();
    // SAFETY: the pointer leads to a whole ifreq that lives through the call.
    unsafe { ioctls::tun_get_iff(file.as_raw_fd(), (&raw mut request).cast()) }?;
    // SAFETY: the call succeeded, so the kernel filled this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_flags }.cast_unsigned())
}

fn index_of(name: &IfName) -> io::Result<u32> {
    let socket = control_socket()?;
    let mut request = ifreq(name);
    // SAFETY: the request is a whole ifreq that lives through the call; the kernel writes into it.
    unsafe { ioctls::get_index(socket.as_fd().as_raw_fd(), &raw mut request) }?;
    // SAFETY: the call succeeded, so the kernel filled this member of the union.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    u32::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

fn zeroed_ifreq() -> libc::ifreq {
    // SAFETY: all zeros is a valid ifreq: it is a C struct of integers, addresses and pointers.
    unsafe { std::mem::zeroed() }
}

fn ifreq(name: &IfName) -> libc::ifreq {
    let mut request = zeroed_ifreq();
    // An IfName has at most 15 bytes, so a zero remains at the end.
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *slot = byte.cast_signed() as libc::c_char;
    }
    request
}

/// One `RTM_SETLINK` with both attributes, acknowledged.
fn set_group_and_mtu(index: u32, group: u32, mtu: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::Group(group));
    link.attributes.push(LinkAttribute::Mtu(mtu));
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_LIMIT_SECONDS, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    header.sequence_number = 1;
    send_and_confirm(&socket, NetlinkMessage::new(header, RouteNetlinkMessage::SetLink(link).into()))
}

fn send_and_confirm<T>(socket: &Socket, mut message: NetlinkMessage<T>) -> io::Result<()>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let (reply, _) = socket.recv_from_full()?;
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply).map_err(io::Error::other)?;
    match reply.payload {
        NetlinkPayload::Error(answer) => match answer.code {
            None => Ok(()),
            Some(_) => Err(answer.to_io()),
        },
        _ => Err(io::Error::other("no acknowledgement")),
    }
}
