use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::net::{TcpListener, UdpSocket};

use super::{copy, datagrams};
use crate::ids::Protocol;

/// A port of the host that is held.
pub enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listening {
    /// Takes a port on `address`; port 0 takes one that the kernel finds free.
    ///
    /// # Errors
    /// When the port is taken (`AddrInUse`), or the address is not one of this host.
    pub async fn open(protocol: Protocol, address: IpAddr, port: u16) -> io::Result<Self> {
        let place = SocketAddr::new(address, port);
        match protocol {
            Protocol::Tcp => TcpListener::bind(place).await.map(Self::Tcp),
            Protocol::Udp => {
                let socket = UdpSocket::bind(place).await?;
                datagrams::tell_destination(&socket, address)?;
                Ok(Self::Udp(socket))
            }
        }
    }

    /// # Errors
    /// When the socket's own address cannot be read.
    pub fn port(&self) -> io::Result<u16> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
        .map(|place| place.port())
    }

    /// Passes on everything that arrives until the future is dropped; what is under way ends with it.
    pub async fn serve(self, to: SocketAddr) {
        match self {
            Self::Tcp(listener) => copy::serve(listener, to).await,
            Self::Udp(socket) => datagrams::serve(socket, to).await,
        }
    }
}
