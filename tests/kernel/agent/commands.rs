//! The command line around the agent: settings, `diff`, and what their exit statuses say.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::Command,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::isolated;
use crate::{
    agent_process::{Agent, DEVICE, add_peer, setup},
    lab::{need_tun, skip_part},
};

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    isolated(|| {
        let file = "/run/overlayd.toml";
        fs::write(file, "metrics_listen = \"127.0.0.1:9701\"\nlog = \"debug\"\nconnections_max = 3\n").unwrap();
        for (port, from) in [(9701, "file"), (9702, "environment"), (9703, "flag")] {
            let mut agent = Agent::without_device(from);
            let mut command = agent.overlayd();
            command.args(["run", "--data-plane", "kernel", "--config", file, "--socket"]).arg(agent.socket());
            if port > 9701 {
                command.env("OVERLAYD_METRICS_LISTEN", "127.0.0.1:9702");
            }
            if port > 9702 {
                command.args(["--metrics-listen", "127.0.0.1:9703"]);
            }
            agent.spawn_as(command);
            agent.metrics_port = port;
            agent.wait_ready();
            agent.wait_for("the rest of the file to hold", |agent| agent.log().contains("DEBUG"));
            assert!(agent.terminate().1.success(), "{from}");
        }
    });
}

#[test]
fn a_bad_setting_is_named_and_nothing_is_started() {
    isolated(|| {
        let agent = Agent::without_device("a");
        let attempt = |file: &str, arguments: &[&str]| {
            fs::write("/run/overlayd.toml", file).unwrap();
            let mut command = agent.overlayd();
            command.args(["run", "--config", "/run/overlayd.toml", "--socket"]).arg(agent.socket()).args(arguments);
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{file} {arguments:?}: {text}");
            text
        };
        let bad: [(&str, &[&str], &[&str]); 14] = [
            ("metrics_lisen = \"x\"", &[], &["metrics_lisen", "/run/overlayd.toml"]),
            ("metrics_listen = \"x\"", &[], &["metrics_listen"]),
            ("mtu = 9000", &[], &["9000", "from 1280 to 4000"]),
            ("mtu = \"big\"", &[], &["mtu"]),
            ("resync_secs = 0", &[], &["resync_secs", "at least 1"]),
            ("data_plane = \"magic\"", &[], &["magic", "auto, kernel or userspace"]),
            ("log_format = \"xml\"", &[], &["xml", "human or json"]),
            ("log = \"a=b=c\"", &[], &["a=b=c"]),
            ("socket_group = \"no-such-group\"", &[], &["no-such-group", "no such group"]),
            ("allowed_uids = [-1]", &[], &["allowed_uids"]),
            ("[", &[], &["/run/overlayd.toml"]),
            ("", &["--metrics-listen", "x"], &["--metrics-listen"]),
            ("", &["--mtu", "1"], &["MTU 1"]),
            ("", &["--no-such-flag"], &["--no-such-flag"]),
        ];
        for (file, arguments, words) in bad {
            let text = attempt(file, arguments);
            for word in words {
                assert!(text.contains(word), "{file} {arguments:?}: {text:?} does not say {word:?}");
            }
        }
        assert!(!agent.state_dir().exists(), "nothing was made");
    });
}

#[test]
fn a_diff_says_by_its_status_whether_there_is_a_difference_and_a_mistake_is_none() {
    isolated(|| {
        need_tun();
        let mut agent = Agent::new("a");
        // Not the default, so that a comparison without the agent has to know it too.
        agent.environment.push(("OVERLAYD_MTU".into(), "1380".into()));
        agent.start();
        agent.must(setup("a"));
        agent.must(add_peer(1));
        agent.wait_for("the node to be in sync", |agent| agent.look_again()["in_sync"] == true);
        assert_eq!(agent.ask(&["diff"]).0, 0);
        for mistake in [
            &["diff", "--no-such-flag"][..],
            &["diff", "--desired", "/x"],
            &["diff", "--desired", "/x", "--observed", "/x"],
            &["diff", "--state-dir", "/run/nowhere"],
        ] {
            assert_eq!(agent.command(mistake).status.code(), Some(1), "{mistake:?}");
        }
        let desired = agent.command(&["store", "export"]).stdout;
        agent.signal(Signal::SIGSTOP);
        ip(&["address", "del", "10.200.1.1/16", "dev", DEVICE]);
        let state_dir = agent.state_dir();
        let state_dir = state_dir.to_str().unwrap();
        let (status, offline) = agent.ask(&["diff", "--state-dir", state_dir]);
        assert_eq!(status, 2, "{offline}");
        assert!(offline.contains("does not answer; comparing without it"), "{offline}");
        let alone = agent.command(&["diff"]);
        assert_eq!(alone.status.code(), Some(2));
        let alone = String::from_utf8(alone.stdout).unwrap();
        assert!(alone.contains("10.200.1.1/16"), "{alone}");
        assert!(offline.starts_with(&alone), "{offline}");
        let json = agent.command(&["diff", "--json"]);
        let json: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert!(json["format"].is_u64() || json["version"].is_u64(), "{json}");
        let observed = agent.command(&["observe"]).stdout;
        as_nobody(&desired, &observed, &alone);
        agent.signal(Signal::SIGCONT);
        agent.wait_for("the repair", |agent| agent.metric("overlayd_drift_total{") >= 1.0);
        assert_eq!(agent.ask(&["diff"]).0, 0);
    });
}

/// The same comparison from two files, by a user who may nothing, gives the same lines.
fn as_nobody(desired: &[u8], observed: &[u8], expected: &str) {
    fs::create_dir_all("/run/files").unwrap();
    fs::write("/run/files/desired.json", desired).unwrap();
    fs::write("/run/files/observed.json", observed).unwrap();
    fs::set_permissions("/run/files", fs::Permissions::from_mode(0o755)).unwrap();
    let compare = |command: &mut Command| {
        let files = ["diff", "--desired", "/run/files/desired.json", "--observed", "/run/files/observed.json"];
        command.env_clear().args(files).output()
    };
    let binary = env!("CARGO_BIN_EXE_overlayd");
    let own = compare(&mut Command::new(binary)).unwrap();
    let output = compare(Command::new(binary).uid(65534).gid(65534)).unwrap_or_else(|error| {
        skip_part(&format!("cannot run as nobody ({error}); compared as the test's own user"));
        own
    });
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap_or_else(|error| panic!("ip: {error}"));
    assert!(output.status.success(), "{output:?}");
}
