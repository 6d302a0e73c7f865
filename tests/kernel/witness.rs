//! An independent reader of userspace devices: what overlayd says of one is held against what `defguard_wireguard_rs` says.

use std::{collections::BTreeSet, os::unix::fs::symlink};

use defguard_wireguard_rs::{Userspace, WGApi};

use crate::{
    lab::isolated,
    tunnel::{pair, wait_for_traffic},
};

#[test]
fn an_independent_reader_sees_the_userspace_device_as_overlayd_does() {
    isolated(|| {
        let (a, b) = pair();
        wait_for_traffic(&a, &b, std::time::Duration::from_secs(5)).expect("packets pass");
        // Its socket directory is fixed; `/run` is this test's own.
        std::fs::create_dir_all("/var/run/wireguard").unwrap();
        symlink(a.dir.join("wgt.sock"), "/var/run/wireguard/wgt.sock").unwrap();
        let theirs = WGApi::<Userspace>::new("wgt").unwrap().read_host().unwrap();
        let ours = a.get();
        assert_eq!(theirs.listen_port, ours.listen_port);
        assert_eq!(theirs.private_key.unwrap().public_key().as_array(), *a.public_key().as_bytes());
        assert_eq!(theirs.peers.len(), ours.peers.len());
        let (theirs, ours) = (theirs.peers.into_values().next().unwrap(), &ours.peers[0]);
        assert_eq!(theirs.public_key.as_array(), *ours.public_key.as_bytes());
        assert_eq!(theirs.endpoint, ours.endpoint);
        assert!(theirs.rx_bytes > 0 && theirs.tx_bytes > 0);
        let handshake = overlayd::clock::UnixTime::from_system(theirs.last_handshake.unwrap());
        assert_eq!(Some(handshake), ours.last_handshake);
        let allowed: BTreeSet<String> = theirs.allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ours.allowed_ips.iter().map(ToString::to_string).collect());
    });
}
