//! The device process: packets, and changes while they flow.

use std::{
    io::Write,
    net::{SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    process::Command,
    time::{Duration, Instant},
};

use overlayd::platform::linux::uapi::{
    AllowedIpChange, DeviceChange, PeerChange, PresharedKey, SecretChange, UapiChange, UapiError,
};

use crate::{
    lab::{isolated, set_mtu},
    tunnel::{End, Flood, pair, wait_for_traffic},
};

fn second() -> Duration {
    Duration::from_secs(1)
}

/// Waits until the tunnel carries packets, then floods it while `changes` run.
fn flood_during(a: &End, b: &End, changes: impl FnOnce()) -> crate::tunnel::Report {
    wait_for_traffic(a, b, 5 * second()).expect("the tunnel works");
    let flood = Flood::start(a, b);
    std::thread::sleep(second() / 5);
    changes();
    std::thread::sleep(second() / 5);
    flood.finish()
}

fn update(other: &End) -> PeerChange {
    PeerChange { update_only: true, ..PeerChange::of(other.public_key()) }
}

#[test]
fn packets_pass_and_the_device_reads_back_as_it_was_set() {
    isolated(|| {
        let (a, b) = pair();
        let took = wait_for_traffic(&a, &b, 5 * second()).expect("packets pass");
        println!("MEASURED: first packets through a new tunnel after {took:?}");
        let state = a.get();
        assert_eq!(state.public_key, Some(a.public_key()));
        assert_eq!(state.listen_port, crate::tunnel::PORT);
        let peer = a.peer(&b);
        assert_eq!(peer.endpoint, Some(b.outer()));
        assert!(peer.rx > 0 && peer.tx > 0 && !peer.preshared);
        let handshake = peer.last_handshake.expect("a handshake");
        let now = overlayd::clock::UnixTime::from_system(std::time::SystemTime::now());
        assert!(now.since(handshake) < 10 * second(), "a handshake is a date, not an age (B2)");
    });
}

#[test]
fn changes_of_a_live_peer_lose_no_packet_and_keep_its_session() {
    isolated(|| {
        let (a, b) = pair();
        wait_for_traffic(&a, &b, 5 * second()).unwrap();
        let before = a.peer(&b).last_handshake;
        let report = flood_during(&a, &b, || {
            let extra = "10.77.0.0/16".parse().unwrap();
            let psk = PresharedKey::from_bytes([5; 32]);
            let changes = [
                PeerChange { allowed_ips: vec![AllowedIpChange::Add(extra)], ..update(&b) },
                PeerChange { allowed_ips: vec![AllowedIpChange::Remove(extra)], ..update(&b) },
                End::whole(&b),
                PeerChange { keepalive: Some(25), ..update(&b) },
                PeerChange { endpoint: Some(b.outer()), ..update(&b) },
                PeerChange { preshared_key: Some(SecretChange::Set(psk.clone())), ..update(&b) },
            ];
            for _ in 0..10 {
                for change in &changes {
                    a.set(vec![UapiChange::Peer(change.clone())]).unwrap();
                }
            }
            let same = PeerChange { preshared_key: Some(SecretChange::Set(psk)), ..update(&a) };
            b.set(vec![UapiChange::Peer(same)]).unwrap();
        });
        println!("MEASURED: 60 changes of a live peer: {report:?}");
        assert_eq!(report.lost, 0);
        assert_eq!(a.peer(&b).last_handshake, before, "no new handshake");
        assert!(a.peer(&b).preshared && a.peer(&b).keepalive == 25);
        let clear = PeerChange { preshared_key: Some(SecretChange::Clear), ..update(&b) };
        a.set(vec![UapiChange::Peer(clear)]).unwrap();
        assert!(!a.peer(&b).preshared);
    });
}

#[test]
fn wg_show_set_syncconf_and_setconf_work_under_traffic() {
    isolated(|| {
        if Command::new("wg").arg("--version").output().is_err() {
            crate::lab::skip("wireguard-tools are not installed");
        }
        let (a, b) = pair();
        // `wg` knows one directory only.
        std::fs::create_dir_all("/run/wireguard").unwrap();
        std::os::unix::fs::symlink("/run/wg1/wgt.sock", "/run/wireguard/wgt.sock").unwrap();
        let wg = |args: &[&str]| {
            let out = Command::new("wg").args(args).output().unwrap();
            assert!(out.status.success(), "wg {args:?}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        wait_for_traffic(&a, &b, 5 * second()).unwrap();
        let before = a.peer(&b).last_handshake;
        let conf = format!(
            "[Interface]\nPrivateKey={}\nListenPort={}\n[Peer]\nPublicKey={}\nEndpoint={}\nAllowedIPs=10.9.0.2/32\n",
            *a.key.reveal(),
            crate::tunnel::PORT,
            b.public_key(),
            b.outer()
        );
        std::fs::write("/run/wgt.conf", conf).unwrap();
        let report = flood_during(&a, &b, || {
            let key = b.public_key().to_string();
            wg(&["set", "wgt", "peer", &key, "persistent-keepalive", "20", "allowed-ips", "10.9.0.2/32,10.66.0.0/16"]);
            assert!(wg(&["show", "wgt"]).contains("10.66.0.0/16"));
            wg(&["syncconf", "wgt", "/run/wgt.conf"]);
            assert!(!wg(&["show", "wgt"]).contains("10.66.0.0/16"));
            wg(&["setconf", "wgt", "/run/wgt.conf"]);
            let stranger =
                PeerChange { keepalive: Some(9), ..PeerChange::of(overlayd::ids::WgPublicKey::from_bytes([77; 32])) };
            a.set(vec![UapiChange::Peer(stranger)]).unwrap();
            assert_eq!(wg(&["show", "wgt", "peers"]).lines().count(), 2);
            wg(&["syncconf", "wgt", "/run/wgt.conf"]);
            assert_eq!(wg(&["show", "wgt", "peers"]).lines().count(), 1);
        });
        println!("MEASURED: wg set, syncconf, setconf: {report:?}");
        assert_eq!(report.lost, 0);
        assert_eq!(a.peer(&b).last_handshake, before);
    });
}

#[test]
fn an_allowed_ip_moves_between_peers_without_a_gap_and_is_listed_once() {
    isolated(|| {
        let (a, b) = pair();
        let c = End::new(3);
        let shared: std::net::IpAddr = [10, 9, 1, 1].into();
        let net: overlayd::ids::Cidr = "10.9.1.1/32".parse().unwrap();
        let other = PeerChange { endpoint: Some(([192, 0, 2, 2], 9).into()), ..PeerChange::of(c.public_key()) };
        a.set(vec![UapiChange::Peer(other)]).unwrap();
        let take = |key| {
            let change = PeerChange { allowed_ips: vec![AllowedIpChange::Add(net)], ..PeerChange::of(key) };
            a.set(vec![UapiChange::Peer(change)]).unwrap();
        };
        b.node.block_on(move || async move { crate::lab::add_address("wgt", shared, 32).await });
        let holders = || -> Vec<_> {
            a.get()
                .peers
                .into_iter()
                .filter(|peer| peer.allowed_ips.contains(&net))
                .map(|peer| peer.public_key)
                .collect()
        };
        take(c.public_key());
        assert_eq!(holders(), [c.public_key()]);
        take(b.public_key());
        assert_eq!(holders(), [b.public_key()]);
        // A later change of the former owner does not take it back.
        let edit = PeerChange {
            keepalive: Some(5),
            allowed_ips: vec![AllowedIpChange::Add("10.55.0.0/16".parse().unwrap())],
            ..update(&c)
        };
        a.set(vec![UapiChange::Peer(edit)]).unwrap();
        assert_eq!(holders(), [b.public_key()]);
        let report = flood_during(&a, &b, || {
            for _ in 0..5 {
                take(c.public_key());
                take(b.public_key());
            }
        });
        println!("MEASURED: ten moves of another allowed IP beside the flood: {report:?}");
        assert_eq!((report.lost, holders()), (0, vec![b.public_key()]));
    });
}

#[test]
fn firewall_marks_and_ports_change_while_packets_flow() {
    isolated(|| {
        let (a, b) = pair();
        let device = |fwmark, listen_port| UapiChange::Device(DeviceChange { private_key: None, listen_port, fwmark });
        let report = flood_during(&a, &b, || {
            for mark in 1..=30 {
                a.set(vec![device(Some(mark), None)]).unwrap();
            }
        });
        println!("MEASURED: 30 changes of the firewall mark: {report:?}");
        assert_eq!(report.lost, 0);
        assert_eq!(a.get().fwmark, 30);
        let report = flood_during(&a, &b, || {
            for step in 1..=10 {
                a.set(vec![device(None, Some(40_000 + step))]).unwrap();
                std::thread::sleep(second() / 20);
            }
        });
        println!("MEASURED: 10 changes of the port: {report:?}");
        assert_eq!((a.get().listen_port, a.get().fwmark), (40_010, 30));
        // The far side sends to the old port until a packet from the new one reaches it: some loss is in the nature of it.
        assert!(report.lost * 4 < report.sent, "{report:?}");
    });
}

#[test]
fn a_port_that_is_taken_is_refused_and_the_device_lives_on() {
    isolated(|| {
        let (a, b) = pair();
        let taken = a.node.run(|| UdpSocket::bind("0.0.0.0:40001")).unwrap();
        let change = DeviceChange { private_key: None, listen_port: Some(40_001), fwmark: Some(7) };
        let report = flood_during(&a, &b, || {
            let refused = a.set(vec![UapiChange::Device(change)]);
            assert!(matches!(refused, Err(UapiError::Errno(libc::EADDRINUSE))), "{refused:?}");
        });
        drop(taken);
        assert_eq!(report.lost, 0);
        assert_eq!((a.get().listen_port, a.get().fwmark), (crate::tunnel::PORT, 0), "nothing was applied");
    });
}

#[test]
fn clients_that_stall_do_no_harm() {
    isolated(|| {
        let (a, b) = pair();
        let path = a.dir.join("wgt.sock");
        let report = flood_during(&a, &b, || {
            let idle: Vec<_> = (0..20)
                .map(|_| {
                    let mut stream = UnixStream::connect(&path).unwrap();
                    stream.write_all(b"set=1\nlisten_port=1\n").unwrap();
                    stream
                })
                .collect();
            let begin = Instant::now();
            a.get();
            println!("MEASURED: get beside 20 stalled clients: {:?}", begin.elapsed());
            std::thread::sleep(second());
            drop(idle);
        });
        assert_eq!(report.lost, 0);
        assert_eq!(a.get().listen_port, crate::tunnel::PORT);
    });
}

#[test]
fn a_request_with_a_bad_line_changes_nothing() {
    isolated(|| {
        let (a, b) = pair();
        let mut stream = UnixStream::connect(a.dir.join("wgt.sock")).unwrap();
        stream.write_all(b"set=1\nfwmark=5\nlisten_port=40002\nnonsense=1\n\n").unwrap();
        let mut answer = [0; 16];
        let length = std::io::Read::read(&mut stream, &mut answer).unwrap();
        assert_eq!(&answer[..length], b"errno=22\n\n");
        let state = a.get();
        assert_eq!((state.fwmark, state.listen_port), (0, crate::tunnel::PORT));
        drop(b);
    });
}

#[test]
fn large_packets_pass_when_the_mtu_is_large() {
    isolated(|| {
        let (a, b) = pair();
        for end in [&a, &b] {
            end.node.block_on(|| async { set_mtu("wgt", 9000).await });
        }
        // The process looks at the MTU once a second.
        std::thread::sleep(second() * 3 / 2);
        wait_for_traffic(&a, &b, 5 * second()).unwrap();
        let (from, to) = (SocketAddr::new(a.inner(), 0), SocketAddr::new(b.inner(), 0));
        let receiver = b.node.run(move || UdpSocket::bind(to)).unwrap();
        receiver.set_read_timeout(Some(second())).unwrap();
        let sender = a.node.run(move || UdpSocket::bind(from)).unwrap();
        for length in [1300, 4096, 4200, 8900] {
            let sent: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            sender.send_to(&sent, receiver.local_addr().unwrap()).unwrap();
            let mut received = vec![0; 10_000];
            let (got, _) = receiver.recv_from(&mut received).unwrap_or_else(|error| panic!("{length} bytes: {error}"));
            assert_eq!(&received[..got], &sent[..]);
        }
    });
}

#[test]
fn a_new_private_key_is_followed_by_a_handshake_as_soon_as_the_far_side_knows_it() {
    isolated(|| {
        let (a, b) = pair();
        wait_for_traffic(&a, &b, 5 * second()).unwrap();
        let flood = Flood::start(&a, &b);
        let new = overlayd::secret::PrivateKey::from_random_bytes([99; 32]);
        let gone = PeerChange { remove: true, ..PeerChange::of(a.public_key()) };
        let come = PeerChange { public_key: new.public_key(), ..End::whole(&a) };
        b.set(vec![UapiChange::Peer(gone), UapiChange::Peer(come)]).unwrap();
        let key = DeviceChange { private_key: Some(SecretChange::Set(new)), ..DeviceChange::default() };
        a.set(vec![UapiChange::Device(key)]).unwrap();
        std::thread::sleep(second());
        let report = flood.finish();
        println!("MEASURED: key rotation under traffic: {report:?}");
        assert!(report.gap < second(), "{report:?}");
        assert_eq!(a.get().peers.len(), 1);
    });
}
