use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{BadId, DnsName, text_identifier};

/// Where a peer is reached: an address or a host name, and a UDP port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    pub host: Host,
    pub port: u16,
}

/// The host part of an [`Endpoint`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    Address(IpAddr),
    /// Resolved by the agent, and again when its records expire; never by the kernel.
    Name(DnsName),
}

impl Endpoint {
    /// The socket address, when no resolution is needed.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.host {
            Host::Address(ip) => Some(SocketAddr::new(*ip, self.port)),
            Host::Name(_) => None,
        }
    }
}

impl FromStr for Endpoint {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |rule| BadId::new("endpoint", text, rule);
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| bad("must be HOST:PORT; an IPv6 address in brackets"))?;
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad("must end in a port from 1 to 65535"));
        }
        let port: u16 = port.parse().map_err(|_| bad("must end in a port from 1 to 65535"))?;
        if port == 0 {
            return Err(bad("must end in a port from 1 to 65535"));
        }
        let host = if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Host::Address(IpAddr::V6(
                inner.parse::<Ipv6Addr>().map_err(|_| bad("has no IPv6 address between its brackets"))?,
            ))
        } else if host.contains(':') {
            return Err(bad("must have its IPv6 address in brackets, as [2001:db8::1]:51820"));
        } else if let Ok(ip) = host.parse::<IpAddr>() {
            Host::Address(ip)
        } else if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(bad("has neither an IPv4 address nor a host name before the port"));
        } else {
            Host::Name(host.parse().map_err(|_| bad("has neither an address nor a host name before the port"))?)
        };
        if let Host::Address(ip) = &host
            && (ip.is_unspecified() || ip.is_multicast())
        {
            return Err(bad("cannot be reached: it is the unspecified or a multicast address"));
        }
        Ok(Self { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Address(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_identifier!(Endpoint);
