//! Kernel WireGuard: devices, peers, and tunnels with traffic.

use netlink_packet_wireguard::{
    WireguardAllowedIpAttr, WireguardAllowedIpFlags, WireguardAttribute, WireguardPeer, WireguardPeerAttribute,
    WireguardPeerFlags,
};
use rtnetlink::packet_core::{NlasIterator, Parseable};

use super::*;

const DEVICE: &str = "zl-w";

/// True when this kernel makes WireGuard links; else says that the test is skipped.
async fn has_wireguard(test: &str) -> bool {
    let witness = witness();
    let made = witness.link().add(LinkWireguard::new("probe").build()).execute().await;
    if made.is_err() {
        skipped(test, "no kernel WireGuard");
        return false;
    }
    let index = index_of(&witness, "probe").await;
    witness.link().del(index).execute().await.unwrap();
    true
}

fn private_key(seed: u8) -> PrivateKey {
    PrivateKey::from_random_bytes([seed; 32])
}

fn device_spec(seed: u8, listen_port: u16) -> DeviceSpec {
    DeviceSpec { key: KeyPair::from_private(private_key(seed)), listen_port, fwmark: 0 }
}

fn device_key() -> Key {
    Key::Device(name(DEVICE))
}

fn public_key(number: u32) -> WgPublicKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    WgPublicKey::from_bytes(bytes)
}

fn peer_key(public_key: WgPublicKey) -> Key {
    Key::Peer { device: name(DEVICE), public_key }
}

fn host(number: u32) -> Cidr {
    Cidr::host(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number)))
}

fn peer(networks: impl IntoIterator<Item = Cidr>) -> PeerSpec {
    PeerSpec { endpoint: None, keepalive: 0, allowed_ips: networks.into_iter().collect(), preshared: false }
}

fn endpoint(text: &str) -> Option<EndpointSpec> {
    Some(EndpointSpec { address: text.parse().unwrap(), pinned: false, resolved: false })
}

/// A device that is up, with a key and a port.
async fn make_device(kernel: &mut LinuxKernel, seed: u8, port: u16) {
    let actions =
        [create(link_key(DEVICE), link_spec(1400, true)), create(device_key(), Spec::Device(device_spec(seed, port)))];
    for (action, outcome) in actions.iter().zip(kernel.execute(&actions).await) {
        assert_eq!(outcome, Ok(()), "{action:?}");
    }
}

async fn peers_of(kernel: &mut LinuxKernel) -> Observation {
    let interest = Interest { subsystems: [Subsystem::Device, Subsystem::Peer].into(), ..Interest::default() };
    let seen = look(kernel, interest).await;
    assert_eq!(seen.coverage[&Subsystem::Peer], Coverage::Whole);
    seen
}

/// The peers in a captured message.
fn peers_in(message: &[u8]) -> Vec<WireguardPeer> {
    // After nlmsghdr and genlmsghdr.
    NlasIterator::new(&message[20..])
        .filter_map(|attribute| match WireguardAttribute::parse(&attribute.unwrap()).unwrap() {
            WireguardAttribute::Peers(peers) => Some(peers),
            WireguardAttribute::Flags(flags) => panic!("device flags are never sent: {flags:?}"),
            _ => None,
        })
        .flatten()
        .collect()
}

fn assert_replaces_nothing(peers: &[WireguardPeer]) {
    for attribute in peers.iter().flat_map(|peer| peer.iter()) {
        if let WireguardPeerAttribute::Flags(flags) = attribute {
            assert!(!flags.contains(WireguardPeerFlags::ReplaceAllowedIps));
        }
    }
}

fn removal_flags(peers: &[WireguardPeer]) -> usize {
    let networks = peers.iter().flat_map(|peer| peer.iter()).filter_map(|attribute| match attribute {
        WireguardPeerAttribute::AllowedIps(networks) => Some(networks),
        _ => None,
    });
    let flag = WireguardAllowedIpAttr::Flags(WireguardAllowedIpFlags::RemoveMe);
    networks.flatten().filter(|network| network.contains(&flag)).count()
}

#[test]
fn without_kernel_wireguard_a_link_is_left_to_userspace_and_nothing_is_made() {
    in_namespace(|| async {
        let test = "without_kernel_wireguard_a_link_is_left_to_userspace_and_nothing_is_made";
        let made = witness().link().add(LinkWireguard::new("probe").build()).execute().await;
        if made.is_ok() {
            return skipped(test, "this kernel has WireGuard");
        }
        let mut options = options(mark());
        options.data_plane = DataPlaneChoice::Kernel;
        let mut kernel = LinuxKernel::open(options).unwrap();
        let outcome = run(&mut kernel, create(link_key(DEVICE), link_spec(1400, true))).await;
        assert!(matches!(outcome, Err(ActionError::Unsupported(_))), "{outcome:?}");
        assert!(find_link(&witness(), DEVICE).await.is_none());
    });
}

#[test]
fn a_wireguard_link_has_its_mark_from_the_first_notification_on() {
    in_namespace(|| async {
        if !has_wireguard("a_wireguard_link_has_its_mark_from_the_first_notification_on").await {
            return;
        }
        let (connection, _handle, mut events) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).unwrap();
        tokio::spawn(connection);
        let mut kernel = open();
        for _ in 0..2 {
            run(&mut kernel, create(link_key(DEVICE), link_spec(1400, true))).await.unwrap();
        }
        let first = loop {
            let (message, _) = events.next().await.unwrap();
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload
                && link.attributes.contains(&LinkAttribute::IfName(DEVICE.to_owned()))
            {
                break link;
            }
        };
        assert_eq!(group_of(&first), Some(mark().link_group()));
        let seen = look_at(&mut kernel, &[]).await;
        assert_eq!(seen.objects[&link_key(DEVICE)], Observed::ours(link_spec(1400, true)));
        let Spec::Device(device) = spec(&seen, &device_key()) else { panic!() };
        assert_eq!(device.key.public, None);
        assert_eq!(kernel.data_plane(&name(DEVICE)).await, Ok(Some(DataPlane::Kernel)));
        let link = find_link(&witness(), DEVICE).await.unwrap();
        let alias = LinkAttribute::IfAlias(format!("overlayd {}", mark()));
        assert!(link.attributes.contains(&alias));
        run(&mut kernel, delete(link_key(DEVICE), link_spec(1400, true))).await.unwrap();
        assert!(find_link(&witness(), DEVICE).await.is_none());
    });
}

#[test]
fn a_device_is_configured_and_only_what_drifted_is_set_again() {
    in_namespace(|| async {
        if !has_wireguard("a_device_is_configured_and_only_what_drifted_is_set_again").await {
            return;
        }
        let (mut kernel, messages) = open_captured();
        make_device(&mut kernel, 1, 51900).await;
        let wanted = device_spec(1, 51900);
        let seen = peers_of(&mut kernel).await;
        assert_eq!(spec(&seen, &device_key()), &Spec::Device(wanted.clone()));
        messages.try_iter().for_each(drop);
        let mut drifted = wanted.clone();
        drifted.fwmark = 77;
        let drift = update(device_key(), Spec::Device(wanted.clone()), Spec::Device(drifted.clone()));
        run(&mut kernel, drift).await.unwrap();
        assert_eq!(spec(&peers_of(&mut kernel).await, &device_key()), &Spec::Device(drifted.clone()));
        let message = messages.try_recv().unwrap();
        let kinds: Vec<u16> = NlasIterator::new(&message[20..]).map(|nla| nla.unwrap().kind()).collect();
        // WGDEVICE_A_IFINDEX and WGDEVICE_A_FWMARK.
        assert_eq!(kinds, [1, 7]);
        let mut keyless = wanted.clone();
        keyless.key = KeyPair::from_public(Some(public_key(9)));
        let outcome = run(&mut kernel, update(device_key(), Spec::Device(drifted), Spec::Device(keyless))).await;
        assert!(matches!(outcome, Err(ActionError::Failed(_))), "{outcome:?}");
        let taken = UdpSocket::bind("0.0.0.0:51901").unwrap();
        let port = update(device_key(), Spec::Device(wanted), Spec::Device(device_spec(1, 51901)));
        let outcome = run(&mut kernel, port).await;
        assert!(matches!(outcome, Err(ActionError::Failed(_))), "{outcome:?}");
        drop(taken);
    });
}

#[test]
fn two_thousand_peers_take_few_messages_and_one_more_takes_one_with_one_peer() {
    in_namespace(|| async {
        if !has_wireguard("two_thousand_peers_take_few_messages_and_one_more_takes_one_with_one_peer").await {
            return;
        }
        let (mut kernel, messages) = open_captured();
        make_device(&mut kernel, 1, 51900).await;
        messages.try_iter().for_each(drop);
        let wanted: Vec<(Key, Spec)> = (0..2000)
            .map(|number| {
                let mut spec = peer([host(number)]);
                spec.keepalive = 25;
                spec.endpoint = endpoint("192.0.2.1:51820");
                (peer_key(public_key(number)), Spec::Peer(spec))
            })
            .collect();
        let actions: Vec<_> = wanted.iter().map(|(key, spec)| create(key.clone(), spec.clone())).collect();
        let started = Instant::now();
        assert!(kernel.execute(&actions).await.iter().all(Result::is_ok));
        println!("2000 peers made in {:?}", started.elapsed());
        let sent: Vec<_> = messages.try_iter().collect();
        println!("2000 peers in {} messages", sent.len());
        assert!(sent.len() <= 10);
        let started = Instant::now();
        let seen = peers_of(&mut kernel).await;
        println!("2000 peers read in {:?}", started.elapsed());
        for (key, wanted) in &wanted {
            assert_eq!(spec(&seen, key), wanted);
        }
        run(&mut kernel, create(peer_key(public_key(5000)), Spec::Peer(peer([host(5000)])))).await.unwrap();
        let sent: Vec<_> = messages.try_iter().collect();
        assert_eq!(sent.len(), 1);
        let peers = peers_in(&sent[0]);
        assert_eq!(peers.len(), 1);
        assert_replaces_nothing(&peers);
        // Executing it all again changes nothing.
        assert!(kernel.execute(&actions).await.iter().all(Result::is_ok));
        assert_eq!(peers_of(&mut kernel).await.objects.len(), 2002);
    });
}

#[test]
fn a_peer_with_five_thousand_allowed_ips_is_written_and_read_back_whole() {
    in_namespace(|| async {
        if !has_wireguard("a_peer_with_five_thousand_allowed_ips_is_written_and_read_back_whole").await {
            return;
        }
        let (mut kernel, messages) = open_captured();
        make_device(&mut kernel, 1, 51900).await;
        let v6 = |number: u32| Cidr::host(IpAddr::V6(Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(number))));
        let mut wanted = peer((0..3000).map(host).chain((0..2000).map(v6)));
        wanted.keepalive = 25;
        let key = peer_key(public_key(1));
        let beside = peer_key(public_key(2));
        let actions = [
            create(key.clone(), Spec::Peer(wanted.clone())),
            create(beside.clone(), Spec::Peer(peer([cidr("10.99.0.0/16")]))),
        ];
        assert!(kernel.execute(&actions).await.iter().all(Result::is_ok));
        let seen = peers_of(&mut kernel).await;
        assert_eq!(spec(&seen, &key), &Spec::Peer(wanted.clone()));
        assert_eq!(spec(&seen, &beside), &Spec::Peer(peer([cidr("10.99.0.0/16")])));
        // All but one away again.
        let few = PeerSpec { allowed_ips: [host(1)].into(), ..wanted.clone() };
        let shrink = update(key.clone(), Spec::Peer(wanted), Spec::Peer(few.clone()));
        run(&mut kernel, shrink).await.unwrap();
        let seen = peers_of(&mut kernel).await;
        assert_eq!(spec(&seen, &key), &Spec::Peer(few));
        assert_eq!(seen.objects.len(), 3, "nothing is left of the parking peer");
        let sent: Vec<_> = messages.try_iter().collect();
        for message in &sent {
            assert_replaces_nothing(&peers_in(message));
        }
        let last = sent.last().unwrap();
        let way = if removal_flags(&peers_in(last)) > 0 { "by WGALLOWEDIP_F_REMOVE_ME" } else { "with a parking peer" };
        seen_here(&format!("single allowed IPs are removed {way}"));
    });
}

#[test]
fn an_update_changes_each_field_and_only_that_and_a_moved_allowed_ip_is_not_removed() {
    in_namespace(|| async {
        if !has_wireguard("an_update_changes_each_field_and_only_that_and_a_moved_allowed_ip_is_not_removed").await {
            return;
        }
        let (mut kernel, messages) = open_captured();
        make_device(&mut kernel, 1, 51900).await;
        let (a, b) = (peer_key(public_key(1)), peer_key(public_key(2)));
        let mut now = peer([host(1), host(2)]);
        assert_eq!(run(&mut kernel, create(a.clone(), Spec::Peer(now.clone()))).await, Ok(()));
        let steps: [fn(&mut PeerSpec); 4] = [
            |peer| peer.keepalive = 15,
            |peer| peer.endpoint = endpoint("[2001:db8::1]:51820"),
            |peer| assert!(peer.allowed_ips.insert(host(3))),
            |peer| assert!(peer.allowed_ips.remove(&host(1))),
        ];
        for step in steps {
            let mut to = now.clone();
            step(&mut to);
            let change = update(a.clone(), Spec::Peer(now), Spec::Peer(to.clone()));
            // Twice: the second time there is nothing left to do, and no harm.
            run(&mut kernel, change.clone()).await.unwrap();
            run(&mut kernel, change).await.unwrap();
            assert_eq!(spec(&peers_of(&mut kernel).await, &a), &Spec::Peer(to.clone()));
            now = to;
        }
        messages.try_iter().for_each(drop);
        // host(2) moves from a to b in one batch, the removal first.
        let less = PeerSpec { allowed_ips: [host(3)].into(), ..now.clone() };
        let batch = [
            update(a.clone(), Spec::Peer(now), Spec::Peer(less.clone())),
            create(b.clone(), Spec::Peer(peer([host(2)]))),
        ];
        assert!(kernel.execute(&batch).await.iter().all(Result::is_ok));
        let sent: Vec<_> = messages.try_iter().collect();
        assert_eq!(sent.len(), 1);
        assert_eq!(removal_flags(&peers_in(&sent[0])), 0);
        let seen = peers_of(&mut kernel).await;
        assert_eq!(spec(&seen, &a), &Spec::Peer(less.clone()));
        assert_eq!(spec(&seen, &b), &Spec::Peer(peer([host(2)])));
        // A late removal of what b holds now takes nothing from b.
        let stale = PeerSpec { allowed_ips: [host(2), host(3)].into(), ..less.clone() };
        run(&mut kernel, update(a.clone(), Spec::Peer(stale), Spec::Peer(less))).await.unwrap();
        assert_eq!(spec(&peers_of(&mut kernel).await, &b), &Spec::Peer(peer([host(2)])));
        for _ in 0..2 {
            run(&mut kernel, delete(b.clone(), Spec::Peer(peer([])))).await.unwrap();
        }
        assert_eq!(peers_of(&mut kernel).await.objects.len(), 2);
    });
}

#[test]
fn a_bad_peer_in_a_batch_fails_alone_and_a_batch_of_removals_is_right() {
    in_namespace(|| async {
        if !has_wireguard("a_bad_peer_in_a_batch_fails_alone_and_a_batch_of_removals_is_right").await {
            return;
        }
        let mut kernel = open();
        make_device(&mut kernel, 1, 51900).await;
        let spec_of = |numbers: [u32; 2]| Spec::Peer(peer(numbers.map(host)));
        let mut batch: Vec<_> =
            (0..50).map(|number| create(peer_key(public_key(number)), spec_of([number, 1000 + number]))).collect();
        batch.insert(25, create(peer_key(public_key(99)), Spec::Address));
        let outcomes = kernel.execute(&batch).await;
        let failed: Vec<_> = (0..batch.len()).filter(|at| outcomes[*at].is_err()).collect();
        assert_eq!(failed, [25]);
        // Half of the peers give one allowed IP up, the other half pass one on to their neighbour.
        let changes: Vec<_> = (0..50)
            .map(|number| {
                let to = if number % 2 == 0 {
                    peer([host(number)])
                } else {
                    peer([host(number), host(1000 + (number + 2) % 50)])
                };
                (peer_key(public_key(number)), number, to)
            })
            .collect();
        let actions: Vec<_> = changes
            .iter()
            .map(|(key, number, to)| update(key.clone(), spec_of([*number, 1000 + number]), Spec::Peer(to.clone())))
            .collect();
        assert!(kernel.execute(&actions).await.iter().all(Result::is_ok));
        let seen = peers_of(&mut kernel).await;
        for (key, _, to) in &changes {
            assert_eq!(spec(&seen, key), &Spec::Peer(to.clone()));
        }
        assert_eq!(seen.objects.len(), 51);
    });
}

#[test]
fn a_foreign_preshared_key_shows_and_is_cleared() {
    in_namespace(|| async {
        let test = "a_foreign_preshared_key_shows_and_is_cleared";
        if !has_wireguard(test).await {
            return;
        }
        let mut kernel = open();
        make_device(&mut kernel, 1, 51900).await;
        let key = peer_key(public_key(1));
        run(&mut kernel, create(key.clone(), Spec::Peer(peer([host(1)])))).await.unwrap();
        // `wg` acts in the namespace of the thread that starts it.
        let text = public_key(1).to_string();
        let mut file = std::env::temp_dir();
        file.push("overlayd-test-psk");
        std::fs::write(&file, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n").unwrap();
        let arguments = ["set", DEVICE, "peer", &text, "preshared-key", file.to_str().unwrap()];
        match std::process::Command::new("wg").args(arguments).status() {
            Ok(status) => assert!(status.success()),
            Err(error) => return skipped(test, &format!("no wg: {error}")),
        }
        let foreign = PeerSpec { preshared: true, ..peer([host(1)]) };
        assert_eq!(spec(&peers_of(&mut kernel).await, &key), &Spec::Peer(foreign.clone()));
        let clear = update(key.clone(), Spec::Peer(foreign), Spec::Peer(peer([host(1)])));
        run(&mut kernel, clear).await.unwrap();
        assert_eq!(spec(&peers_of(&mut kernel).await, &key), &Spec::Peer(peer([host(1)])));
    });
}

#[test]
fn a_device_deleted_from_outside_is_drift_like_any_other() {
    in_namespace(|| async {
        if !has_wireguard("a_device_deleted_from_outside_is_drift_like_any_other").await {
            return;
        }
        let mut kernel = open();
        make_device(&mut kernel, 1, 51900).await;
        let mut hints = kernel.hints();
        look_at(&mut kernel, &[DEVICE]).await;
        while next_hint(&mut hints).await.is_some() {}
        let witness = witness();
        let index = index_of(&witness, DEVICE).await;
        witness.link().del(index).execute().await.unwrap();
        assert_eq!(next_hint(&mut hints).await, Some(Hint::Changed(Subsystem::Link)));
        let outcome = run(&mut kernel, create(peer_key(public_key(1)), Spec::Peer(peer([])))).await;
        assert!(matches!(outcome, Err(ActionError::Gone(_))), "{outcome:?}");
        let seen = look_at(&mut kernel, &[DEVICE]).await;
        assert!(seen.objects.is_empty());
        assert_eq!(seen.coverage[&Subsystem::Peer], Coverage::Whole);
        make_device(&mut kernel, 1, 51900).await;
        assert!(peers_of(&mut kernel).await.objects.contains_key(&device_key()));
    });
}

/// Two nodes, each in a namespace of its own, with a veth pair between them.
struct Pair {
    a: LinuxKernel,
    b: LinuxKernel,
    sender: UdpSocket,
    /// The far node's namespace, held so that it stays.
    _far: File,
}

fn own_namespace() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

async fn set_up_end(witness: &Handle, link: &str, address: &str) {
    let index = index_of(witness, link).await;
    witness.address().add(index, address.parse().unwrap(), 24).execute().await.unwrap();
    let up = LinkUnspec::new_with_index(index).up().build();
    witness.link().change(up).execute().await.unwrap();
}

fn overlay_actions(address: &str) -> [Action; 2] {
    [
        create(address_key(DEVICE, address), Spec::Address),
        create(route_key("10.9.0.0/24", mark().route_metric()), Spec::Route(RouteSpec::Through(name(DEVICE)))),
    ]
}

async fn pair() -> Pair {
    // Node a lives in the namespace that the test already has.
    let witness_a = witness();
    let near = own_namespace();
    let mut a = open();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let far = own_namespace();
    let witness_b = witness();
    let mut b = open();
    let mut peer_end = LinkMessage::default();
    peer_end.attributes.extend([LinkAttribute::IfName("eth0".into()), LinkAttribute::NetNsFd(near.as_raw_fd())]);
    let mut veth = LinkVeth::new("eth0", "ignored").build();
    veth.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::LinkInfo(_)));
    veth.attributes.push(LinkAttribute::LinkInfo(vec![
        rtnetlink::packet_route::link::LinkInfo::Kind(rtnetlink::packet_route::link::InfoKind::Veth),
        rtnetlink::packet_route::link::LinkInfo::Data(rtnetlink::packet_route::link::InfoData::Veth(
            rtnetlink::packet_route::link::InfoVeth::Peer(peer_end),
        )),
    ]));
    witness_b.link().add(veth).execute().await.unwrap();
    set_up_end(&witness_a, "eth0", "192.0.2.1").await;
    set_up_end(&witness_b, "eth0", "192.0.2.2").await;
    make_device(&mut a, 1, 51900).await;
    make_device(&mut b, 2, 51900).await;
    let mut of_b = peer([cidr("10.9.0.2/32"), cidr("10.50.0.0/16")]);
    of_b.endpoint = endpoint("192.0.2.2:51900");
    let of_a = PeerSpec { endpoint: endpoint("192.0.2.1:51900"), ..peer([cidr("10.9.0.1/32")]) };
    let mut actions = overlay_actions("10.9.0.1/32").to_vec();
    actions.push(create(peer_key(private_key(2).public_key()), Spec::Peer(of_b)));
    assert!(a.execute(&actions).await.iter().all(Result::is_ok));
    let mut actions = overlay_actions("10.9.0.2/32").to_vec();
    actions.push(create(peer_key(private_key(1).public_key()), Spec::Peer(of_a)));
    assert!(b.execute(&actions).await.iter().all(Result::is_ok));
    let sender = UdpSocket::bind("10.9.0.2:0").unwrap();
    Pair { a, b, sender, _far: far }
}

impl Pair {
    /// What node a has counted for node b.
    async fn received(&mut self) -> (u64, Option<u64>) {
        let key = peer_key(private_key(2).public_key());
        let seen = peers_of(&mut self.a).await;
        let stats = seen.objects[&key].stats.unwrap();
        (stats.rx_bytes, stats.last_handshake.map(|time| time.0))
    }

    /// Sends until node a has counted more than `before` bytes.
    async fn receive_more(&mut self, before: u64) -> u64 {
        let started = Instant::now();
        loop {
            self.sender.send_to(&[0; 100], "10.9.0.1:9").unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (now, _) = self.received().await;
            if now > before {
                return now;
            }
            assert!(started.elapsed() < PATIENCE, "no traffic");
        }
    }
}

#[test]
fn edits_keep_the_session_and_the_counters_of_every_peer() {
    in_namespace(|| async {
        if !has_wireguard("edits_keep_the_session_and_the_counters_of_every_peer").await {
            return;
        }
        let mut pair = pair().await;
        let first = pair.receive_more(0).await;
        // The handshake alone counts; this is data.
        pair.receive_more(first).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (bytes, handshake) = pair.received().await;
        let age = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
            .abs_diff(handshake.unwrap());
        assert!(age < 60, "a handshake is a date: {age}");
        let key = peer_key(private_key(2).public_key());
        let Spec::Peer(before) = spec(&peers_of(&mut pair.a).await, &key).clone() else { panic!() };
        let mut fewer = before.clone();
        fewer.allowed_ips.remove(&cidr("10.50.0.0/16"));
        let mut slower = fewer.clone();
        slower.keepalive = 120;
        let other = peer_key(public_key(3));
        let edits = [
            update(key.clone(), Spec::Peer(before), Spec::Peer(fewer.clone())),
            update(key.clone(), Spec::Peer(fewer), Spec::Peer(slower.clone())),
            create(other.clone(), Spec::Peer(peer([cidr("10.51.0.0/16")]))),
            delete(other, Spec::Peer(peer([]))),
        ];
        for edit in edits {
            run(&mut pair.a, edit.clone()).await.unwrap();
            let (after, still) = pair.received().await;
            // A keepalive may be counted; a lost session would begin at zero.
            assert!(after >= bytes && after < bytes + 200, "{edit:?}: {bytes} {after}");
            assert_eq!(still, handshake, "{edit:?}");
        }
        let seen = peers_of(&mut pair.a).await;
        assert_eq!(spec(&seen, &key), &Spec::Peer(slower));
        let more = pair.receive_more(bytes + 200).await;
        assert!(more > bytes);
        assert_eq!(pair.received().await.1, handshake, "no new handshake was needed");
        // The far node is untouched and sees the same session.
        assert!(peers_of(&mut pair.b).await.objects.len() == 2);
    });
}

#[test]
fn a_dump_beside_a_writer_is_whole_or_says_that_it_is_not() {
    in_namespace(|| async {
        if !has_wireguard("a_dump_beside_a_writer_is_whole_or_says_that_it_is_not").await {
            return;
        }
        let mut reader = open();
        make_device(&mut reader, 1, 51900).await;
        let stays: Vec<_> =
            (0..1000).map(|number| create(peer_key(public_key(number)), Spec::Peer(peer([host(number)])))).collect();
        assert!(reader.execute(&stays).await.iter().all(Result::is_ok));
        // A thread in the same namespace: tasks of one thread would only take turns between dumps.
        let writing = thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut writer = open();
                for number in 2000..2300 {
                    let key = peer_key(public_key(number));
                    run(&mut writer, create(key.clone(), Spec::Peer(peer([])))).await.unwrap();
                    run(&mut writer, delete(key, Spec::Peer(peer([])))).await.unwrap();
                }
            });
        });
        let (mut whole, mut partial) = (0, 0);
        while !writing.is_finished() {
            let interest = Interest { subsystems: [Subsystem::Peer].into(), ..Interest::default() };
            let seen = look(&mut reader, interest).await;
            match &seen.coverage[&Subsystem::Peer] {
                Coverage::Whole => {
                    whole += 1;
                    for action in &stays {
                        assert!(seen.objects.contains_key(action.key()), "a whole dump lacks a peer");
                    }
                }
                Coverage::Partial(reason) => {
                    partial += 1;
                    assert!(reason.contains("changed while"), "{reason}");
                }
                Coverage::Unknown => panic!(),
            }
        }
        writing.join().unwrap();
        println!("dumps beside a writer: {whole} whole, {partial} partial");
    });
}

#[test]
fn an_independent_reader_sees_the_kernel_device_as_overlayd_does() {
    use defguard_wireguard_rs::{WGApi, WireguardInterfaceApi};

    let test = "an_independent_reader_sees_the_kernel_device_as_overlayd_does";
    in_namespace(move || async move {
        if !has_wireguard(test).await {
            return;
        }
        let mut kernel = open();
        make_device(&mut kernel, 1, 51820).await;
        let networks: BTreeSet<Cidr> = (1..200).map(host).collect();
        let wanted = PeerSpec { keepalive: 7, endpoint: endpoint("192.0.2.9:7"), ..peer(networks.clone()) };
        let outcomes = kernel.execute(&[create(peer_key(public_key(1)), Spec::Peer(wanted))]).await;
        assert_eq!(outcomes, [Ok(())]);
        let theirs = WGApi::<defguard_wireguard_rs::Kernel>::new(DEVICE).unwrap().read_interface_data().unwrap();
        assert_eq!(theirs.listen_port, 51820);
        let peer = theirs.peers.into_values().next().unwrap();
        assert_eq!(peer.public_key.as_array(), *public_key(1).as_bytes());
        assert_eq!(peer.endpoint.unwrap().to_string(), "192.0.2.9:7");
        assert_eq!(peer.persistent_keepalive_interval, Some(7));
        let allowed: BTreeSet<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, networks.iter().map(ToString::to_string).collect());
    });
}
