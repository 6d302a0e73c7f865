//! UAPI text → typed request, or the errno that the asker gets.

use std::net::SocketAddr;

use ipnet::IpNet;
use zeroize::Zeroize;

use super::{AllowedIpChange, PeerChange, PresharedKey, SecretChange, SetRequest};
use crate::{
    ids::{Cidr, WgPublicKey},
    secret::PrivateKey,
};

/// What somebody asks of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Get,
    Set(SetRequest),
}

/// Reads one request up to, and without, its blank line. Nothing is applied unless the whole of it can be read.
///
/// # Errors
/// The errno to answer: `EINVAL` for a line that is no `key=value`, an unknown key, a value that is not what the key takes, or a key at
/// the wrong level; `EPROTO` for another protocol version or operation.
pub fn decode_request(text: &[u8]) -> Result<Request, i32> {
    let text = std::str::from_utf8(text).map_err(|_| libc::EINVAL)?;
    let mut lines = text.lines();
    match lines.next() {
        Some("get=1") => match lines.next() {
            None => Ok(Request::Get),
            Some(_) => Err(libc::EINVAL),
        },
        Some("set=1") => decode_set(lines).map(Request::Set),
        Some(_) | None => Err(libc::EPROTO),
    }
}

fn decode_set(lines: std::str::Lines<'_>) -> Result<SetRequest, i32> {
    let mut request = SetRequest::default();
    for line in lines {
        let (key, value) = line.split_once('=').ok_or(libc::EINVAL)?;
        if key == "public_key" {
            let public_key = WgPublicKey::from_bytes(hex_key(value)?);
            request.peers.push(PeerChange::of(public_key));
        } else if let Some(peer) = request.peers.last_mut() {
            set_peer_field(peer, key, value)?;
        } else {
            set_device_field(&mut request, key, value)?;
        }
    }
    Ok(request)
}

fn set_device_field(request: &mut SetRequest, key: &str, value: &str) -> Result<(), i32> {
    match key {
        "private_key" => request.device.private_key = Some(secret(value, PrivateKey::from_random_bytes)?),
        "listen_port" => request.device.listen_port = Some(number(value)?),
        "fwmark" => request.device.fwmark = Some(number(value)?),
        "replace_peers" => request.replace_peers = only_true(value)?,
        _ => return Err(libc::EINVAL),
    }
    Ok(())
}

fn set_peer_field(peer: &mut PeerChange, key: &str, value: &str) -> Result<(), i32> {
    match key {
        "remove" => peer.remove = only_true(value)?,
        "update_only" => peer.update_only = only_true(value)?,
        "preshared_key" => peer.preshared_key = Some(secret(value, PresharedKey::from_bytes)?),
        "endpoint" => {
            let endpoint: SocketAddr = value.parse().map_err(|_| libc::EINVAL)?;
            if endpoint.port() == 0 {
                return Err(libc::EINVAL);
            }
            peer.endpoint = Some(endpoint);
        }
        "persistent_keepalive_interval" => peer.keepalive = Some(number(value)?),
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = only_true(value)?;
            // The kernel empties the list first, wherever the line stands.
            peer.allowed_ips.clear();
        }
        "allowed_ip" => peer.allowed_ips.push(allowed_ip(value)?),
        "protocol_version" => {
            if value != "1" {
                return Err(libc::EPROTO);
            }
        }
        _ => return Err(libc::EINVAL),
    }
    Ok(())
}

fn allowed_ip(value: &str) -> Result<AllowedIpChange, i32> {
    let (text, removes) = match value.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (value, false),
    };
    let net: IpNet = text.parse().map_err(|_| libc::EINVAL)?;
    // Host bits are cut off, as the kernel does.
    let net = Cidr::containing(net);
    Ok(if removes { AllowedIpChange::Remove(net) } else { AllowedIpChange::Add(net) })
}

fn secret<T>(value: &str, make: impl FnOnce([u8; 32]) -> T) -> Result<SecretChange<T>, i32> {
    let mut bytes = hex_key(value)?;
    if bytes == [0; 32] {
        return Ok(SecretChange::Clear);
    }
    let key = make(bytes);
    bytes.zeroize();
    Ok(SecretChange::Set(key))
}

/// 32 bytes of hexadecimal digits.
pub(super) fn hex_key(value: &str) -> Result<[u8; 32], i32> {
    let digits = value.as_bytes();
    if digits.len() != 64 {
        return Err(libc::EINVAL);
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Ok(bytes)
}

fn hex_digit(digit: u8) -> Result<u8, i32> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(libc::EINVAL),
    }
}

/// A decimal number without a sign.
pub(super) fn number<T: std::str::FromStr>(value: &str) -> Result<T, i32> {
    if !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(libc::EINVAL);
    }
    value.parse().map_err(|_| libc::EINVAL)
}

fn only_true(value: &str) -> Result<bool, i32> {
    if value == "true" { Ok(true) } else { Err(libc::EINVAL) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::platform::linux::uapi::{DeviceChange, encode_set};

    fn set(text: &str) -> Result<SetRequest, i32> {
        match decode_request(text.as_bytes())? {
            Request::Set(request) => Ok(request),
            Request::Get => panic!("not a get"),
        }
    }

    fn peer_line() -> String {
        format!("public_key={}\n", "07".repeat(32))
    }

    #[test]
    fn a_request_that_cannot_be_read_whole_is_refused_with_an_errno() {
        for (text, errno) in [
            ("", libc::EPROTO),
            ("get=2", libc::EPROTO),
            ("get=1\nlisten_port=1", libc::EINVAL),
            ("set=1\nlisten_port", libc::EINVAL),
            ("set=1\nlisten_port=65536", libc::EINVAL),
            ("set=1\nlisten_port=+1", libc::EINVAL),
            ("set=1\nfwmark=-1", libc::EINVAL),
            ("set=1\nprivate_key=00", libc::EINVAL),
            ("set=1\nreplace_peers=1", libc::EINVAL),
            ("set=1\nallowed_ip=10.0.0.0/8", libc::EINVAL),
            ("set=1\nx=1", libc::EINVAL),
            ("set=1\npublic_key=zz", libc::EINVAL),
        ] {
            assert_eq!(decode_request(text.as_bytes()), Err(errno), "{text:?}");
        }
        for line in [
            "endpoint=example.org:1",
            "endpoint=10.0.0.1:0",
            "allowed_ip=10.0.0.1/33",
            "private_key=00",
            "listen_port=1",
            "protocol_version=2",
            "persistent_keepalive_interval=70000",
        ] {
            let text = format!("set=1\n{}{line}", peer_line());
            assert!(decode_request(text.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn host_bits_of_an_allowed_ip_are_cut_off_and_a_minus_removes() {
        let text = format!("set=1\n{}allowed_ip=10.1.2.3/16\nallowed_ip=-fd00::1/64", peer_line());
        let peer = set(&text).unwrap().peers.remove(0);
        assert_eq!(
            peer.allowed_ips,
            [
                AllowedIpChange::Add("10.1.0.0/16".parse().unwrap()),
                AllowedIpChange::Remove("fd00::/64".parse().unwrap())
            ]
        );
    }

    #[test]
    fn a_key_of_zeros_takes_the_key_away() {
        let text = format!("set=1\n{}preshared_key={}", peer_line(), "00".repeat(32));
        assert_eq!(set(&text).unwrap().peers[0].preshared_key, Some(SecretChange::Clear));
    }

    #[test]
    fn debug_output_of_a_request_holds_no_key() {
        let text = format!("set=1\nprivate_key={0}\n{1}preshared_key={0}", "5a".repeat(32), peer_line());
        let shown = format!("{:?}", set(&text).unwrap());
        assert!(!shown.contains("5a5a") && !shown.contains("90, 90"), "{shown}");
    }

    fn secret_change<T: std::fmt::Debug + Clone>(make: fn([u8; 32]) -> T) -> impl Strategy<Value = SecretChange<T>> {
        prop_oneof![
            Just(SecretChange::Clear),
            any::<[u8; 32]>()
                .prop_filter("zeros mean no key", |bytes| *bytes != [0; 32])
                .prop_map(move |bytes| SecretChange::Set(make(bytes))),
        ]
    }

    fn cidr() -> impl Strategy<Value = Cidr> {
        (any::<std::net::IpAddr>(), 0u8..=128).prop_map(|(address, length)| {
            let length = if address.is_ipv4() { length % 33 } else { length };
            Cidr::containing(IpNet::new(address, length).unwrap())
        })
    }

    fn peer_change() -> impl Strategy<Value = PeerChange> {
        let endpoint = (any::<std::net::IpAddr>(), 1u16..).prop_map(SocketAddr::from);
        let allowed_ip = prop_oneof![cidr().prop_map(AllowedIpChange::Add), cidr().prop_map(AllowedIpChange::Remove)];
        (
            any::<[u8; 32]>().prop_map(WgPublicKey::from_bytes),
            any::<[bool; 3]>(),
            prop::option::of(secret_change(PresharedKey::from_bytes)),
            prop::option::of(endpoint),
            any::<Option<u16>>(),
            prop::collection::vec(allowed_ip, 0..4),
        )
            .prop_map(|(public_key, flags, preshared_key, endpoint, keepalive, allowed_ips)| PeerChange {
                public_key,
                remove: flags[0],
                update_only: flags[1],
                preshared_key,
                endpoint,
                keepalive,
                replace_allowed_ips: flags[2],
                allowed_ips,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(
            private_key in prop::option::of(secret_change(PrivateKey::from_random_bytes)),
            listen_port in any::<Option<u16>>(),
            fwmark in any::<Option<u32>>(),
            replace_peers in any::<bool>(),
            peers in prop::collection::vec(peer_change(), 0..5),
        ) {
            let request = SetRequest { device: DeviceChange { private_key, listen_port, fwmark }, replace_peers, peers };
            let text = encode_set(&request);
            let (body, end) = text.split_at(text.len() - 1);
            prop_assert_eq!(end, "\n");
            prop_assert!(!body.contains("\n\n"));
            prop_assert_eq!(decode_request(body.as_bytes()), Ok(Request::Set(request)));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), tail in "[a-z_]{1,20}=[-0-9a-f./:\\[\\]]{0,80}") {
            let _ = decode_request(&bytes);
            let _ = decode_request(format!("set=1\n{}{tail}", peer_line()).as_bytes());
        }
    }
}
