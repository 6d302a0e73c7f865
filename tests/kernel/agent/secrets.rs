//! What the agent never says, and whether its figures can be read.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use overlayd::wire::{NatConfig, RelayServer, Request, TurnServer};
use serde_json::Value;

use super::{has_device, isolated, running};
use crate::{
    agent_process::{Agent, DEVICE, add_peer, setup},
    lab::{need_tun, skip_part},
};

const TURN: &str = "turn-credential-7f3e";
const RELAY: &str = "relay-credential-51b9";

fn setup_with_credentials() -> Request {
    let nat = NatConfig {
        enabled: true,
        turn_servers: vec![TurnServer {
            addr: "turn.example.org:3478".into(),
            username: "somebody".into(),
            credential: TURN.into(),
        }],
        relay_server: Some(RelayServer { auth_credential: Some(RELAY.into()), ..RelayServer::default() }),
        ..NatConfig::default()
    };
    let Request::SetupGlobalOverlay {
        deployment,
        instance_id,
        cluster_cidr,
        slice_cidr,
        wg_port,
        host_adapter_mandatory,
        ..
    } = setup("a")
    else {
        unreachable!("that is what it is")
    };
    Request::SetupGlobalOverlay {
        deployment,
        instance_id,
        cluster_cidr,
        slice_cidr,
        wg_port,
        host_adapter_mandatory,
        nat: Some(nat),
    }
}

#[test]
fn no_secret_is_in_anything_that_the_agent_says() {
    isolated(|| {
        let mut agent =
            if has_device("secrets on their way to a device") { Agent::new("a") } else { Agent::without_device("a") };
        agent.arguments.extend(["--log", "trace"].map(String::from));
        agent.environment.push(("RUST_LOG".into(), "trace".into()));
        // An operator who wants to see what the device process says makes this file.
        fs::create_dir_all(agent.uapi_dir()).unwrap();
        let device_log = agent.uapi_dir().join(format!("{DEVICE}.log"));
        fs::write(&device_log, "").unwrap();
        agent.start();
        agent.request(setup_with_credentials());
        agent.request(add_peer(1));
        let mut said = vec![("process list".to_owned(), process_list(&agent))];
        agent.terminate();
        agent.start();
        agent.request(setup_with_credentials());
        agent.look_again();
        for arguments in [
            &["status"][..],
            &["status", "--json"],
            &["diff"],
            &["diff", "--json"],
            &["ctl", "status"],
            &["ctl", "nat-status"],
        ] {
            let (status, text) = agent.ask(arguments);
            assert!(status != 1, "{arguments:?}: {text}");
            said.push((arguments.join(" "), text));
        }
        for arguments in [&["observe"][..], &["store", "check"], &["store", "check", "--json"], &["store", "export"]] {
            let output = agent.command(arguments);
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            said.push((arguments.join(" "), text));
        }
        said.push(("metrics".into(), agent.metrics()));
        said.push(("process list".into(), process_list(&agent)));
        said.push(("log of the device process".into(), fs::read_to_string(&device_log).unwrap()));
        agent.terminate();
        let log = agent.log();
        assert!(
            log.contains("DEBUG") || log.contains("TRACE"),
            "the log is at its most talkative:\n{}",
            agent.log_end()
        );
        let lines = log.lines().count();
        said.push(("log".into(), log));

        let export = agent.command(&["store", "export", "--with-secrets"]);
        let export: Value = serde_json::from_slice(&export.stdout).unwrap();
        let key = find(&export, "private_key").expect("the export with secrets has the key");
        assert!(export.to_string().contains(TURN) && export.to_string().contains(RELAY));
        let raw = STANDARD.decode(&key).unwrap();
        let mut needles = Vec::new();
        for secret in [key.as_bytes(), &raw, TURN.as_bytes(), RELAY.as_bytes()] {
            needles.extend(spellings(secret));
        }
        for (place, text) in &said {
            for needle in &needles {
                assert!(!text.contains(needle.as_str()), "{place} holds {needle}");
            }
        }
        let bytes: usize = said.iter().map(|(_, text)| text.len()).sum();
        println!(
            "MEASURED: {} spellings of 3 secrets looked for in {bytes} bytes of {} places, {lines} lines of log among them: none found",
            needles.len(),
            said.len()
        );
    });
}

/// The ways in which bytes are commonly printed.
fn spellings(secret: &[u8]) -> Vec<String> {
    let mut ways = vec![STANDARD.encode(secret)];
    ways.extend(std::str::from_utf8(secret).map(String::from));
    let mut hex = String::new();
    for byte in secret {
        let _ = write!(hex, "{byte:02x}");
    }
    ways.push(hex.to_uppercase());
    ways.push(hex);
    let list: Vec<String> = secret.iter().take(12).map(u8::to_string).collect();
    ways.push(list.join(", "));
    ways.push(list.join(","));
    ways
}

fn find(value: &Value, name: &str) -> Option<String> {
    match value {
        Value::Object(fields) => match fields.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            _ => fields.values().find_map(|value| find(value, name)),
        },
        Value::Array(items) => items.iter().find_map(|value| find(value, name)),
        _ => None,
    }
}

/// Command lines and environments of the agent and of its device process.
fn process_list(agent: &Agent<'_>) -> String {
    let pids = agent.device_pids().into_iter().chain([agent.pid().try_into().unwrap()]);
    let read = |pid: i32| ["cmdline", "environ"].map(|file| fs::read(format!("/proc/{pid}/{file}")).unwrap());
    let all: Vec<u8> = pids.flat_map(read).flatten().collect();
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn the_metrics_page_has_every_promised_name_and_promtool_accepts_it() {
    isolated(|| {
        let with_device = has_device("figures about peers");
        let agent = running(if with_device { Agent::new("a") } else { Agent::without_device("a") });
        let names = [
            "overlayd_in_sync",
            "overlayd_reconcile_total",
            "overlayd_reconcile_duration_seconds_bucket",
            "overlayd_convergence_lag_seconds_bucket",
            "overlayd_desired_generation",
            "overlayd_converged_generation",
            "overlayd_objects",
            "overlayd_diff_pending",
            "overlayd_actions_total",
            "overlayd_drift_total",
            "overlayd_drift_repair_seconds_bucket",
            "overlayd_errors_current",
            "overlayd_store_fsync_seconds_bucket",
            "overlayd_netlink_overruns_total",
        ];
        let page = agent.metrics();
        let is_there = |page: &str, name: &str| {
            page.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        };
        for name in names {
            assert!(is_there(&page, name), "{name} is missing before the first edit:\n{page}");
        }
        agent.request(setup("a"));
        agent.request(add_peer(1));
        agent.look_again();
        let page = agent.metrics();
        if with_device {
            for name in
                ["wireguard_sent_bytes_total", "wireguard_received_bytes_total", "wireguard_latest_handshake_seconds"]
            {
                assert!(is_there(&page, name), "{name} is missing:\n{page}");
            }
        }
        promtool(&page);
        for (path, status) in [("/healthz", "200 OK"), ("/readyz", "200 OK"), ("/other", "404 Not Found")] {
            assert!(agent.page(path).unwrap().starts_with(&format!("HTTP/1.1 {status}")), "{path}");
        }
    });
}

fn promtool(page: &str) {
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = started else {
        skip_part("promtool is not installed; the page is read line by line instead");
        return well_formed(page);
    };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    println!("MEASURED: promtool accepts {} lines without a word", page.lines().count());
    well_formed(page);
}

/// Every series has a type and a help text in front of it, and a number behind it; no series comes twice.
fn well_formed(page: &str) {
    let mut seen = std::collections::BTreeSet::new();
    let (mut help, mut kind) = ("", "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split(' ').next().unwrap();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.split(' ').next().unwrap();
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(help == kind && series.starts_with(kind), "{line}");
            assert!(seen.insert(series), "{line} comes twice");
        }
    }
}

#[test]
fn pages_that_are_asked_for_at_once_count_every_byte_once() {
    isolated(|| {
        need_tun();
        let agent = running(Agent::new("a"));
        agent.must(setup("a"));
        for n in 1..100 {
            agent.must(add_peer(n));
        }
        agent.look_again();
        let scrapers: Vec<std::thread::JoinHandle<Vec<String>>> = (0..4)
            .map(|_| {
                let port = agent.metrics_port;
                std::thread::spawn(move || {
                    let probe = || {
                        let mut page = String::new();
                        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
                        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                            .unwrap();
                        std::io::Read::read_to_string(&mut stream, &mut page).unwrap();
                        page
                    };
                    (0..25).map(|_| probe()).collect()
                })
            })
            .collect();
        for page in scrapers.into_iter().flat_map(|thread| thread.join().unwrap()) {
            assert_eq!(page.matches("wireguard_sent_bytes_total{").count(), 99, "no page is seen half filled");
        }
    });
}
