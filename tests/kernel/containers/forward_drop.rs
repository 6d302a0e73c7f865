//! Another program drops what is forwarded, as Docker does (A30): the overlay is let through, and nothing else changes for that program.

use std::net::IpAddr;

use overlayd::wire::{OverlayMode, Request};

use super::scene::{DUAL, Wish, inner, single};
use crate::{
    container::Container,
    lab::{isolated, skip_part},
    overlay_node::{OverlayNode, until},
    probe::{Reach, Server, reach_one},
};

const PROGRAMS: [&str; 2] = ["iptables-nft", "ip6tables-nft"];
/// A rule of another instance of the agent, and one that merely talks about us.
const DECOYS: [&str; 2] = ["overlayd 00000000/00000000 from 10.9.0.0/16", "not overlayd's"];

/// Runs a program of both families; answers what they print, line by line.
fn tables(node: &OverlayNode, arguments: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for program in PROGRAMS {
        let mut command = std::process::Command::new(program);
        command.args(arguments.split_whitespace());
        let output = node.node.run(move || command.output()).unwrap();
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        lines.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
    }
    lines
}

fn decoy(node: &OverlayNode, comment: &str) {
    for program in PROGRAMS {
        let mut command = std::process::Command::new(program);
        command.args(["-A", "FORWARD", "-i", "nobody", "-m", "comment", "--comment", comment, "-j", "ACCEPT"]);
        assert!(node.node.run(move || command.status()).unwrap().success());
    }
}

/// Our rules in a chain.
fn ours(node: &OverlayNode, chain: &str) -> Vec<String> {
    let begin = format!("-A {chain} ");
    let is_ours =
        |line: &String| line.starts_with(&begin) && line.contains("10.200.0.0/16") | line.contains("fd00:200::/48");
    tables(node, "-S").into_iter().filter(is_ours).collect()
}

fn installed() -> bool {
    let runs = |program: &&str| std::process::Command::new(program).arg("--version").output().is_ok();
    let all = PROGRAMS.iter().all(runs);
    if !all {
        skip_part("iptables-nft is not installed");
    }
    all
}

#[test]
fn the_overlay_is_let_through_where_another_program_drops_what_is_forwarded() {
    isolated(|| {
        if !installed() {
            return;
        }
        let node = single(DUAL);
        for service in ["web", "api"] {
            node.segment(service, OverlayMode::Auto);
        }
        let (client, server, fenced) = (Container::new(), Container::new(), Container::new());
        node.attach(&client, Wish::to("web"));
        let _ = node.attach(&server, Wish::to("api"));
        let _ = node.attach(&fenced, Wish::to("api").fenced("red"));
        let _servers = [Server::start(&server.node()), Server::start(&fenced.node())];
        let targets = inner(&server, "eth0");
        let reaches = |to: IpAddr| reach_one(&client.node(), to);
        let works = || targets.iter().all(|to| reaches(*to).is_whole());
        assert!(works() && targets.len() == 2);
        assert_eq!(ours(&node, "FORWARD"), Vec::<String>::new());

        DECOYS.iter().for_each(|comment| decoy(&node, comment));
        tables(&node, "-P FORWARD DROP");
        until("the overlay is let through", || ours(&node, "FORWARD").len() == 4);
        println!("{}", tables(&node, "-S").join("\n"));
        assert!(works());
        let blocked: Vec<_> = inner(&fenced, "eth0").into_iter().map(reaches).collect();
        assert!(blocked.len() == 2 && blocked.iter().all(Reach::is_none), "{blocked:?}");
        node.assert_no_difference();

        // Somebody takes our rules away.
        tables(&node, "-D FORWARD 1");
        until("the rules are whole again", || ours(&node, "FORWARD").len() == 4);
        assert!(works());

        // Docker comes, with its chain for others, and begins by flushing.
        tables(&node, "-N DOCKER-USER");
        tables(&node, "-F FORWARD");
        DECOYS.iter().for_each(|comment| decoy(&node, comment));
        tables(&node, "-I FORWARD -j DOCKER-USER");
        until("the rules stand somewhere", || ours(&node, "FORWARD").len() + ours(&node, "DOCKER-USER").len() == 4);
        assert!(works());
        tables(&node, "-F DOCKER-USER");
        DECOYS.iter().for_each(|comment| decoy(&node, comment));
        until("the rules stand again", || ours(&node, "FORWARD").len() + ours(&node, "DOCKER-USER").len() == 4);
        assert!(works());

        // A new process finds them and leaves them be.
        node.resync();
        node.assert_no_difference();

        // Docker is gone; so are our rules, and what looks like them stays.
        let others = |node: &OverlayNode| tables(node, "-S").into_iter().filter(|line| line.contains("nobody")).count();
        let decoys = others(&node);
        tables(&node, "-P FORWARD ACCEPT");
        until("nothing is left of us", || ours(&node, "FORWARD").is_empty() && ours(&node, "DOCKER-USER").is_empty());
        assert!(works());
        assert_eq!(others(&node), decoys);

        tables(&node, "-P FORWARD DROP");
        until("the overlay is let through again", || ours(&node, "DOCKER-USER").len() == 4);
        assert!(works());
        node.request(Request::TeardownGlobalOverlay);
        until("teardown", || ours(&node, "DOCKER-USER").is_empty());
        assert_eq!(others(&node), decoys);
    });
}
