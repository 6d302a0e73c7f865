//! How the agent ends: always in time, always with status 0, and never with the device.

use std::{
    os::unix::process::ExitStatusExt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use overlayd::{client::Client, wire::Request};

use super::{has_device, isolated, on_a_hung_device};
use crate::{
    agent_process::{Agent, DEVICE, add_peer, block_on, setup},
    lab::need_tun,
};

/// How long the clients are waited for before a stop under load.
const LOADED_WITHIN: Duration = Duration::from_secs(2);
const STOPS: usize = 200;

#[test]
fn two_hundred_stops_in_a_row_end_well_and_leave_the_device_alone() {
    isolated(|| {
        let with_device = has_device("the device survives the stops");
        let mut agent = Agent::new("a");
        agent.start();
        let index = with_device.then(|| {
            agent.must(setup("a"));
            agent.must(add_peer(1));
            nix::net::if_::if_nametoindex(DEVICE).unwrap()
        });
        agent.terminate();
        let (mut times, mut early, mut loaded) = (Vec::new(), 0, 0);
        for stop in 0..STOPS {
            agent.spawn();
            let (took, status) = match stop % 5 {
                // Before it is ready, at ever other moments of its start.
                0 => {
                    early += 1;
                    std::thread::sleep(Duration::from_micros(500 * (stop as u64 % 40)));
                    agent.terminate()
                }
                1 | 3 => {
                    loaded += 1;
                    agent.wait_ready();
                    stop_under_load(&mut agent)
                }
                _ => {
                    agent.wait_ready();
                    agent.terminate()
                }
            };
            // Before the first instruction of the program there is nobody who could catch a signal.
            let was_caught = status.success() || (stop % 5 == 0 && status.signal() == Some(Signal::SIGTERM as i32));
            assert!(was_caught, "stop {stop}: {status}; the log ends:\n{}", agent.log_end());
            times.push(took);
        }
        if with_device {
            assert_eq!(nix::net::if_::if_nametoindex(DEVICE).ok(), index, "the very same device");
            assert!(agent.device_pids().len() <= 1);
        }
        agent.start();
        if with_device {
            agent.wait_for("the node to be in sync", |agent| agent.report()["in_sync"] == true);
            assert_eq!(agent.metric("overlayd_actions_total{"), 0.0, "nothing had to be mended");
        }
        times.sort_unstable();
        println!(
            "MEASURED: {STOPS} stops by SIGTERM ({early} before ready, {loaded} under load of 8 clients): median {:?}, slowest {:?}, {} cut short",
            times[times.len() / 2],
            times[times.len() - 1],
            agent.log().matches("cut short").count()
        );
    });
}

/// Sends SIGTERM while eight clients send edits as fast as they are answered.
fn stop_under_load(agent: &mut Agent<'_>) -> (Duration, std::process::ExitStatus) {
    let socket = agent.socket();
    let (end, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for client in 0..8u64 {
            let (socket, end, answered) = (&socket, &end, &answered);
            scope.spawn(move || {
                block_on(async {
                    let Ok(mut connection) = Client::connect(socket).await else {
                        return;
                    };
                    while !end.load(Ordering::Relaxed) {
                        let node_id = client * 1_000_000 + answered.fetch_add(1, Ordering::Relaxed);
                        if connection.request(Request::SetLocalNodeId { node_id }).await.is_err() {
                            return;
                        }
                    }
                });
            });
        }
        let begun = Instant::now();
        while answered.load(Ordering::Relaxed) < 50 && begun.elapsed() < LOADED_WITHIN {
            std::thread::yield_now();
        }
        let stopped = agent.terminate();
        end.store(true, Ordering::Relaxed);
        stopped
    })
}

#[test]
fn an_interrupt_stops_and_a_hangup_does_not() {
    isolated(|| {
        let mut agent = Agent::without_device("a");
        agent.start();
        let before = agent.report()["rounds"].as_u64().unwrap();
        agent.signal(Signal::SIGHUP);
        agent.wait_for("another look at the node", |agent| agent.report()["rounds"].as_u64().unwrap() > before);
        assert!(agent.is_running());
        agent.signal(Signal::SIGINT);
        assert!(agent.wait_for_end().success());
        assert!(!agent.socket().exists(), "no stale socket is left");
    });
}

#[test]
fn a_stop_does_not_wait_for_a_hung_device() {
    isolated(|| {
        let mut agent = on_a_hung_device();
        let mut waiting = agent.raw();
        waiting.request(1, add_peer(1));
        agent.wait_for("the edit to be kept", |agent| agent.generation() == 3);
        let (took, status) = agent.terminate();
        assert!(status.success(), "{status}");
        println!("MEASURED: a stop in the middle of a round with a hung device took {took:?}");
        agent.signal_devices(Signal::SIGCONT);
        agent.start();
        agent.wait_for("the edit to be carried out", |agent| agent.report()["in_sync"] == true);
        assert_eq!(agent.status().peer_count, 1, "what was kept is done by the next start");
    });
}

#[test]
fn a_shutdown_answers_takes_the_device_down_and_the_next_start_brings_it_back() {
    isolated(|| {
        need_tun();
        let mut agent = Agent::new("a");
        agent.start();
        agent.must(setup("a"));
        let key = agent.status().public_key;
        assert!(agent.has_link(DEVICE));
        assert!(routes().contains("unreachable 10.200.0.0/16"), "{}", routes());
        let begun = Instant::now();
        assert_eq!(agent.request(Request::Shutdown), overlayd::wire::Response::Ok);
        assert!(agent.wait_for_end().success());
        println!("MEASURED: a Shutdown took {:?}", begun.elapsed());
        assert!(!agent.has_link(DEVICE));
        assert!(routes().contains("unreachable 10.200.0.0/16"), "traffic must not leak: {}", routes());
        agent.start();
        agent.wait_for("the device to be back", |agent| agent.has_link(DEVICE) && agent.report()["in_sync"] == true);
        assert_eq!(agent.status().public_key, key);
    });
}

/// The namespace's IPv4 routes, as `ip` prints them.
fn routes() -> String {
    let output = std::process::Command::new("ip").args(["-4", "route", "show"]).output();
    output.map_or_else(|error| panic!("ip: {error}"), |output| String::from_utf8(output.stdout).unwrap())
}
