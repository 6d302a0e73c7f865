//! Typed change → UAPI text.

use std::fmt::Write;

use zeroize::Zeroizing;

use super::{AllowedIpChange, PeerChange, SecretChange, SetRequest};

/// The request as it goes over the socket, blank line included. Holds keys; wiped when dropped.
///
/// The order of lines is the one of the WireGuard cross-platform UAPI; `update_only` follows the key at once.
pub fn encode_set(request: &SetRequest) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(256 + request.peers.len() * 512));
    text.push_str("set=1\n");
    match &request.device.private_key {
        Some(SecretChange::Set(key)) => push_hex(&mut text, "private_key", key.expose_bytes()),
        Some(SecretChange::Clear) => push_hex(&mut text, "private_key", &[0; 32]),
        None => {}
    }
    if let Some(port) = request.device.listen_port {
        push(&mut text, "listen_port", port);
    }
    if let Some(mark) = request.device.fwmark {
        push(&mut text, "fwmark", mark);
    }
    if request.replace_peers {
        push(&mut text, "replace_peers", true);
    }
    for peer in &request.peers {
        push_peer(&mut text, peer);
    }
    text.push('\n');
    text
}

fn push_peer(text: &mut String, peer: &PeerChange) {
    push_hex(text, "public_key", peer.public_key.as_bytes());
    if peer.update_only {
        push(text, "update_only", true);
    }
    if peer.remove {
        push(text, "remove", true);
    }
    match &peer.preshared_key {
        Some(SecretChange::Set(key)) => push_hex(text, "preshared_key", key.expose_bytes()),
        Some(SecretChange::Clear) => push_hex(text, "preshared_key", &[0; 32]),
        None => {}
    }
    if let Some(endpoint) = peer.endpoint {
        push(text, "endpoint", endpoint);
    }
    if let Some(seconds) = peer.keepalive {
        push(text, "persistent_keepalive_interval", seconds);
    }
    if peer.replace_allowed_ips {
        push(text, "replace_allowed_ips", true);
    }
    for change in &peer.allowed_ips {
        match change {
            AllowedIpChange::Add(net) => push(text, "allowed_ip", net),
            AllowedIpChange::Remove(net) => push(text, "allowed_ip", format_args!("-{net}")),
        }
    }
}

pub(super) fn push(text: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{key}={value}");
}

pub(super) fn push_hex(text: &mut String, key: &str, bytes: &[u8; 32]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push_str(key);
    text.push('=');
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::WgPublicKey,
        platform::linux::uapi::{DeviceChange, PresharedKey},
        secret::PrivateKey,
    };

    #[test]
    fn a_full_request_reads_as_the_protocol_describes_it() {
        let mut peer = PeerChange::of(WgPublicKey::from_bytes([0xab; 32]));
        peer.update_only = true;
        peer.preshared_key = Some(SecretChange::Set(PresharedKey::from_bytes([1; 32])));
        peer.endpoint = Some("[2001:db8::1]:51820".parse().unwrap());
        peer.keepalive = Some(25);
        peer.allowed_ips = vec![
            AllowedIpChange::Add("10.1.0.0/16".parse().unwrap()),
            AllowedIpChange::Remove("fd00::/64".parse().unwrap()),
        ];
        let request = SetRequest {
            device: DeviceChange {
                private_key: Some(SecretChange::Set(PrivateKey::from_random_bytes([0; 32]))),
                listen_port: Some(51820),
                fwmark: Some(0),
            },
            replace_peers: false,
            peers: vec![peer],
        };
        let golden = format!(
            "set=1\nprivate_key={}40\nlisten_port=51820\nfwmark=0\npublic_key={}\nupdate_only=true\npreshared_key={}\n\
             endpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\nallowed_ip=10.1.0.0/16\nallowed_ip=-fd00::/64\n\n",
            "00".repeat(31),
            "ab".repeat(32),
            "01".repeat(32),
        );
        assert_eq!(*encode_set(&request), golden);
    }
}
