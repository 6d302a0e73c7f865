//! What many peers cost.

use std::time::{Duration, Instant};

use overlayd::{
    ids::WgPublicKey,
    platform::linux::uapi::{AllowedIpChange, PeerChange, PresharedKey, SecretChange, UapiChange},
};

use crate::{
    lab::{isolated, need_tun},
    tunnel::{End, Flood, pair, wait_for_traffic},
};

/// A peer as the agent configures it, with two allowed IPs; numbers give different keys and networks.
fn numbered(number: u32) -> PeerChange {
    let mut key = [0x42; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let [_, high, middle, low] = number.to_be_bytes();
    let nets = [format!("10.{}.{middle}.{low}/32", 100 + high), format!("fd00:{number:x}::/64")];
    PeerChange {
        preshared_key: Some(SecretChange::Set(PresharedKey::from_bytes([3; 32]))),
        allowed_ips: nets.iter().map(|net| AllowedIpChange::Add(net.parse().unwrap())).collect(),
        ..PeerChange::of(WgPublicKey::from_bytes(key))
    }
}

fn peers(numbers: std::ops::Range<u32>) -> Vec<UapiChange> {
    numbers.map(numbered).map(UapiChange::Peer).collect()
}

/// Median of nine runs.
fn median(mut run: impl FnMut(u32)) -> Duration {
    let mut times: Vec<Duration> = (0..9)
        .map(|turn| {
            let begin = Instant::now();
            run(turn);
            begin.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn one_more_peer_costs_little_whatever_number_is_there() {
    isolated(|| {
        need_tun();
        let a = End::new(1);
        let mut present = 0;
        for count in [100, 1_000, 10_000] {
            let begin = Instant::now();
            a.set(peers(present..count)).unwrap();
            let all = begin.elapsed();
            let added = count - present;
            let add = median(|turn| a.set(peers(count + turn..count + turn + 1)).unwrap());
            let same = median(|_| a.set(peers(0..1)).unwrap());
            let edit = median(|turn| {
                let keepalive = Some(u16::try_from(turn).unwrap() + 1);
                a.set(vec![UapiChange::Peer(PeerChange { keepalive, ..numbered(1) })]).unwrap();
            });
            let remove = median(|turn| {
                let gone = PeerChange { remove: true, ..numbered(count + turn) };
                a.set(vec![UapiChange::Peer(gone)]).unwrap();
            });
            present = count;
            let get = median(|_| assert_eq!(a.get().peers.len(), present as usize));
            let status = std::fs::read_to_string(format!("/proc/{}/status", a.pid())).unwrap();
            let memory = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
            println!(
                "MEASURED: {count} peers: {added} at once {all:?}; one more {add:?}; the same again {same:?}; \
                 keepalive of one {edit:?}; removal of one {remove:?}; get {get:?}; {memory}"
            );
        }
    });
}

#[test]
fn ten_thousand_peers_come_and_are_read_while_packets_flow() {
    isolated(|| {
        let (a, b) = pair();
        wait_for_traffic(&a, &b, Duration::from_secs(5)).unwrap();
        let flood = Flood::start(&a, &b);
        a.set(peers(0..10_000)).unwrap();
        let report = flood.finish();
        println!("MEASURED: adding 10,000 peers under traffic: {report:?}");
        assert_eq!(report.lost, 0);
        let flood = Flood::start(&a, &b);
        for _ in 0..10 {
            a.get();
        }
        let report = flood.finish();
        println!("MEASURED: 10 dumps of 10,000 peers under traffic: {report:?}");
        assert_eq!(report.lost, 0);
    });
}

#[test]
fn a_thousand_peers_that_do_not_answer_hold_nobody_up() {
    isolated(|| {
        let (a, b) = pair();
        wait_for_traffic(&a, &b, Duration::from_secs(5)).unwrap();
        let flood = Flood::start(&a, &b);
        let silent = |number| PeerChange { endpoint: Some(([192, 0, 2, 99], 9).into()), ..numbered(number) };
        a.set((0..1_000).map(silent).map(UapiChange::Peer).collect()).unwrap();
        let get = median(|_| assert_eq!(a.get().peers.len(), 1_001));
        let report = flood.finish();
        println!("MEASURED: 1,000 silent peers with endpoints: get {get:?}, {report:?}");
        assert_eq!(report.lost, 0);
    });
}
