//! Makes two reports of the same thing equal, whatever kernel or data plane they come from.
//!
//! Owns the rules that need no kernel to be stated. Leaves each backend's own spelling (an IPv6 `unreachable` route with device
//! `lo`, a TUN that is a WireGuard link) to that backend.
//!
//! Upholds I-08: a difference in spelling is not a difference.
//!
//! An IPv4 endpoint comes back as `::ffff:a.b.c.d` from a data plane with one socket for both families.

use std::net::{IpAddr, SocketAddr};

/// The endpoint as the document would write it: IPv4 as IPv4, no flow label, a scope only where it means something.
pub fn endpoint(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(mut v6) => {
            if let Some(v4) = v6.ip().to_ipv4_mapped() {
                return SocketAddr::new(IpAddr::V4(v4), v6.port());
            }
            v6.set_flowinfo(0);
            if !v6.ip().is_unicast_link_local() {
                v6.set_scope_id(0);
            }
            SocketAddr::V6(v6)
        }
    }
}

/// True for addresses that a kernel gives to a link by itself: nobody wrote them, so nobody wants to be told (IPv6 link-local).
pub fn is_kernel_made(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_endpoint_equals_the_ipv4_one() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:51820".parse().unwrap();
        assert_eq!(endpoint(mapped), "192.0.2.7:51820".parse().unwrap());
    }

    #[test]
    fn a_scope_stays_only_on_link_local_endpoints() {
        let local: SocketAddr = "[fe80::1%3]:51820".parse().unwrap();
        assert_eq!(endpoint(local), local);
        let global: SocketAddr = "[2001:db8::1%3]:51820".parse().unwrap();
        assert_eq!(endpoint(global), "[2001:db8::1]:51820".parse().unwrap());
    }
}
