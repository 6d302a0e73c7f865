//! UDP sockets that survive a reconfiguration of the device.
//!
//! gotatun binds anew whenever the port or the key changes, while its old tasks still hold the old socket: on the same port that ends in
//! `EADDRINUSE` and a dead device. So the port is bound here, before gotatun is told, and gotatun gets another handle of what is bound.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gotatun::{
    packet::{Packet, PacketBufPool},
    udp::{
        UdpRecv, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{SockOpt, UdpSocket},
    },
};
use nix::sys::socket::{setsockopt, sockopt};

/// Bytes of each socket buffer: the default of 212 kB loses packets in bursts.
const BUFFER: usize = 4 << 20;
/// Pause after a failed receive, so that an error that stays cannot take the whole processor.
const RECEIVE_PAUSE: Duration = Duration::from_millis(10);

/// The device's socket, shared between gotatun and the part that answers requests.
#[derive(Clone, Default)]
pub(super) struct Sockets(Arc<Mutex<Option<Bound>>>);

#[derive(Clone)]
struct Bound {
    port: u16,
    socket: UdpSocket,
}

impl Sockets {
    /// Binds the port (0: any free one) and answers which one it is. The socket before it is closed once gotatun lets go of it.
    ///
    /// # Errors
    /// When the port cannot be bound; the socket before it stays in use.
    pub(super) fn bind_port(&self, port: u16, mark: u32) -> io::Result<u16> {
        let bound = bind_socket(port, mark)?;
        let port = bound.port;
        *self.lock() = Some(bound);
        Ok(port)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Bound>> {
        // The value is replaced whole, so a panic elsewhere cannot leave it half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UdpTransportFactory for Sockets {
    type Send = UdpSocket;
    type Recv = SteadyReceiver;

    async fn bind(&mut self, params: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, SteadyReceiver)> {
        let mut slot = self.lock();
        let bound = match slot.take() {
            Some(bound) if bound.port == params.port => bound,
            Some(_) | None => bind_socket(params.port, params.fwmark.unwrap_or(0))?,
        };
        *slot = Some(bound.clone());
        Ok((bound.socket.clone(), SteadyReceiver(bound.socket)))
    }
}

/// One socket for both families, or for IPv4 alone where the kernel has no IPv6.
fn bind_socket(port: u16, mark: u32) -> io::Result<Bound> {
    let options = SockOpt {
        fwmark: (mark != 0).then_some(mark),
        recv_buffer_size: Some(BUFFER),
        send_buffer_size: Some(BUFFER),
        only_v6: Some(false),
    };
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let socket = match UdpSocket::bind(both, options) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port).into(), options)?
        }
        other => other?,
    };
    // Above the sysctl limit where we may; the plain option was set by the bind.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
    let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER);
    if let Err(error) = socket.enable_udp_gro() {
        tracing::debug!(%error, "no receive offload");
    }
    let port = socket.local_addr()?.port();
    Ok(Bound { port, socket })
}

/// A receiver that outlives errors. gotatun takes the first failed receive for the end of the device.
pub(super) struct SteadyReceiver(UdpSocket);

impl UdpRecv for SteadyReceiver {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        loop {
            match self.0.recv_from(pool).await {
                Ok(received) => return Ok(received),
                Err(error) => pause_after(&error).await,
            }
        }
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        while let Err(error) = self.0.recv_many_from(buffer, pool, packets).await {
            pause_after(&error).await;
        }
        Ok(())
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.0.enable_udp_gro()
    }
}

async fn pause_after(error: &io::Error) {
    tracing::debug!(%error, "udp receive");
    tokio::time::sleep(RECEIVE_PAUSE).await;
}
