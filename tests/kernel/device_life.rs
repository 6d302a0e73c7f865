//! Birth and death of a device process, and of what it stands on.

use std::{
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use overlayd::platform::linux::{
    device_process::{TunError, create_persistent, start},
    uapi::{DeviceChange, SecretChange, UapiChange, UapiError},
};

use crate::{
    lab::{delete_link, isolated},
    tunnel::{End, Flood, GROUP, ifname, pair, wait_for_end, wait_for_traffic},
};

fn second() -> Duration {
    Duration::from_secs(1)
}

#[test]
fn a_killed_process_comes_back_with_a_short_gap() {
    isolated(|| {
        let (a, b) = pair();
        wait_for_traffic(&a, &b, 5 * second()).unwrap();
        for (who, name) in [(&a, "the sending side"), (&b, "the far side")] {
            let other = if who.number == a.number { &b } else { &a };
            let flood = Flood::start(&a, &b);
            std::thread::sleep(second() / 5);
            let pid = who.signal(Signal::SIGKILL);
            wait_for_end(pid, second()).expect("dead");
            let begin = Instant::now();
            who.start().unwrap();
            let up = begin.elapsed();
            let key = DeviceChange {
                private_key: Some(SecretChange::Set(who.key.clone())),
                listen_port: Some(crate::tunnel::PORT),
                fwmark: None,
            };
            who.set(vec![UapiChange::Device(key), UapiChange::Peer(End::whole(other))]).unwrap();
            std::thread::sleep(second());
            let report = flood.finish();
            println!("MEASURED: kill -9 of {name}: process up after {up:?}, {report:?}");
            assert!(report.gap < 2 * second(), "{report:?}");
        }
    });
}

#[test]
fn a_deleted_interface_ends_the_process_and_sigterm_leaves_the_interface() {
    isolated(|| {
        let (a, b) = pair();
        let pid = a.pid();
        a.node.block_on(|| async { delete_link("wgt").await });
        let took = wait_for_end(pid, second()).expect("ends with its interface");
        println!("MEASURED: process ended {took:?} after its interface");
        assert!(!a.dir.join("wgt.sock").exists());
        assert!(a.start().unwrap_err().contains("Ended(13)"), "nothing to attach to");
        let pid = b.signal(Signal::SIGTERM);
        let took = wait_for_end(pid, second()).expect("SIGTERM ends it");
        println!("MEASURED: SIGTERM ended the process after {took:?}");
        assert!(!b.dir.join("wgt.sock").exists());
        assert!(b.node.run(|| nix::net::if_::if_nametoindex("wgt")).is_ok(), "the TUN stays");
        b.start().unwrap();
    });
}

#[test]
fn sigterm_under_load_ends_every_one_of_twenty_processes() {
    isolated(|| {
        let (a, b) = pair();
        wait_for_traffic(&a, &b, 5 * second()).unwrap();
        let flood = Flood::start(&a, &b);
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let pid = b.signal(Signal::SIGTERM);
            slowest = slowest.max(wait_for_end(pid, second()).expect("ends within a second"));
            b.start().unwrap();
        }
        flood.finish();
        println!("MEASURED: slowest of 20 stops under traffic: {slowest:?}");
    });
}

#[test]
fn a_removed_socket_file_comes_back() {
    isolated(|| {
        let (a, b) = pair();
        let pid = a.pid();
        std::fs::remove_file(a.dir.join("wgt.sock")).unwrap();
        std::thread::sleep(second() * 3 / 2);
        assert_eq!(a.pid(), pid);
        drop(b);
    });
}

#[test]
fn a_process_of_another_namespace_is_not_spoken_to() {
    isolated(|| {
        let (a, b) = pair();
        let client = a.client();
        let seen = b.node.block_on(move || async move { client.get().await });
        assert!(matches!(seen, Err(UapiError::ForeignNamespace(_))), "{seen:?}");
        assert!(a.start().is_ok(), "a second start finds the first");
    });
}

#[test]
fn a_tun_is_made_with_its_mark_and_never_over_an_interface_that_exists() {
    isolated(|| {
        let (a, b) = pair();
        drop(b);
        let again = a.node.run(|| create_persistent(&ifname(), GROUP, 1420));
        assert!(matches!(again, Err(TunError::Exists(_))), "{again:?}");
        let lo = a.node.run(|| create_persistent(&"lo".parse().unwrap(), GROUP, 1420));
        assert!(matches!(lo, Err(TunError::Exists(_))), "{lo:?}");
        let (group, mtu) = a.node.block_on(|| async {
            use futures::TryStreamExt;
            use rtnetlink::packet_route::link::LinkAttribute;
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            let link = handle.link().get().match_name("wgt").execute().try_next().await.unwrap().unwrap();
            let find = |pick: fn(&LinkAttribute) -> Option<u32>| link.attributes.iter().find_map(pick);
            (
                find(|a| if let LinkAttribute::Group(g) = a { Some(*g) } else { None }),
                find(|a| if let LinkAttribute::Mtu(m) = a { Some(*m) } else { None }),
            )
        });
        assert_eq!((group, mtu), (Some(GROUP), Some(1420)));
    });
}

#[test]
fn a_binary_that_was_deleted_by_an_upgrade_still_starts_a_process() {
    isolated(|| {
        let (a, b) = pair();
        let pid = a.signal(Signal::SIGKILL);
        wait_for_end(pid, second()).expect("dead");
        std::fs::copy(env!("CARGO_BIN_EXE_overlayd"), "/run/overlayd").unwrap();
        let binary = std::fs::File::open("/run/overlayd").unwrap();
        std::fs::remove_file("/run/overlayd").unwrap();
        std::fs::write(a.dir.join("wgt.log"), "").unwrap();
        let dir = a.dir.clone();
        a.node.block_on(move || async move {
            let exe = format!("/proc/self/fd/{}", binary.as_raw_fd());
            start(exe.as_ref(), &ifname(), &dir).await.unwrap();
        });
        let pid = a.pid();
        let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap();
        let environment = String::from_utf8(read("environ")).unwrap();
        assert!(
            environment.split_terminator('\0').all(|line| line.starts_with("PATH=") || line.starts_with("RUST_LOG=")),
            "{environment}"
        );
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), std::path::Path::new("/"));
        let arguments = String::from_utf8(read("cmdline")).unwrap();
        assert_eq!(arguments, "overlayd\0wg-device\0wgt\0--uapi-dir\0/run/wg1\0");
        drop(b);
    });
}

#[test]
fn a_start_right_after_a_kill_succeeds_every_time() {
    isolated(|| {
        let (a, b) = pair();
        let mut slowest = Duration::ZERO;
        for _ in 0..30 {
            let pid = a.signal(Signal::SIGKILL);
            let begin = Instant::now();
            // Not before its death is known: a process that still answers is left alone.
            wait_for_end(pid, second()).expect("dead");
            a.start().unwrap();
            slowest = slowest.max(begin.elapsed());
            assert_ne!(a.pid(), pid);
        }
        println!("MEASURED: slowest of 30 starts after a kill: {slowest:?}");
        drop(b);
    });
}
