//! Attaches that cannot be: each says why, and nothing is left of it.

use std::{collections::BTreeSet, time::Duration};

use overlayd::wire::{AttachHandle, OverlayMode, Request, Response};

use super::scene::{Wish, single_with};
use crate::{
    container::Container,
    lab::{isolated, skip_part},
    overlay_node::{IPV4, OverlayNode, PORT, block_on, until},
};

fn assert_nothing_left(node: &OverlayNode, what: &str) {
    assert_eq!(node.ports(), BTreeSet::new(), "{what}");
    assert_eq!(node.members(), BTreeSet::new(), "{what}");
    assert_eq!(node.total("overlayd_attachments"), 0.0, "{what}");
    node.assert_no_difference();
}

#[test]
fn an_attach_that_cannot_be_says_why_and_leaves_nothing_behind() {
    isolated(|| {
        let node = single_with(IPV4, &["--service-prefix-v4", "29", "--address-rest-secs", "0"]);
        node.segment("web", OverlayMode::Auto);
        let mut dead = Container::new();
        let request = Wish::to("web").of(&dead);
        dead.kill();
        let message = node.refused(request);
        assert!(message.contains("no process") || message.contains("has ended"), "{message}");
        assert_nothing_left(&node, "a dead pid");

        let own = node.node.run(Container::without_namespace);
        let message = node.refused(Wish::to("web").of(&own));
        assert!(message.contains("own network namespace"), "{message}");
        assert_nothing_left(&node, "a pid without a namespace of its own");

        let (taken, far) = (Container::new(), crate::lab::Node::new());
        taken.node().join("eth0", &far);
        let message = node.refused(Wish::to("web").of(&taken));
        assert!(message.contains("eth0"), "{message}");
        assert_nothing_left(&node, "a namespace that has an eth0");

        // A /29 has five addresses for containers.
        let five: Vec<Container> = (0..5).map(|_| Container::new()).collect();
        for container in &five {
            node.attach(container, Wish::to("web"));
        }
        let sixth = Container::new();
        let message = node.refused(Wish::to("web").of(&sixth));
        assert!(message.contains('5'), "{message}");
        assert_eq!(node.ports().len(), 5);
        drop(five);
        until("they have left", || node.total("overlayd_attachments") == 0.0 && node.ports().is_empty());
        node.attach(&sixth, Wish::to("web"));
    });
}

#[test]
fn a_pid_that_was_given_to_another_process_is_another_container() {
    isolated(|| {
        let node = single_with(IPV4, &[]);
        node.segment("web", OverlayMode::Auto);
        let mut first = Container::new();
        let pid = first.pid;
        let address = node.attach(&first, Wish::to("web"));
        // While nobody looks the pid goes to another process.
        node.signal(nix::sys::signal::Signal::SIGSTOP);
        first.kill();
        let Some(second) = Container::with_pid(pid) else {
            node.signal(nix::sys::signal::Signal::SIGCONT);
            skip_part("a pid cannot be chosen here");
            return;
        };
        node.signal(nix::sys::signal::Signal::SIGCONT);
        let again = node.attach(&second, Wish::to("web"));
        assert_ne!(again, address, "the address of the first still rests");
        assert_eq!(super::scene::inner(&second, "eth0"), BTreeSet::from([again]));
        until("only the second is attached", || node.total("overlayd_attachments") == 1.0);
        node.assert_no_difference();
        assert!(matches!(node.request(second.detach()), Response::Ok));
        assert!(matches!(node.request(Request::DetachContainer { handle: second.handle() }), Response::Ok));
        assert_nothing_left(&node, "after the detach");
    });
}

#[test]
fn an_attach_whose_port_a_stranger_has_fails_and_the_stranger_stays() {
    isolated(|| {
        let node = single_with(IPV4, &[]);
        node.segment("web", OverlayMode::Auto);
        let container = Container::new();
        let other = crate::lab::Node::new();
        node.node.join(&container.port(), &other);
        let message = node.refused(Wish::to("web").fenced("red").of(&container));
        assert!(message.contains("another program"), "{message}");
        assert_eq!(node.ports(), BTreeSet::from([container.port()]), "the stranger's");
        assert_eq!(node.members(), BTreeSet::new());
        assert_eq!(node.total("overlayd_attachments"), 0.0);
    });
}

#[test]
fn who_is_nobody_here_is_refused_in_words_and_leaves_nothing_behind() {
    isolated(|| {
        let node = single_with(IPV4, &[]);
        let windows = AttachHandle::WindowsContainer { container_id: "c".into(), ip: None };
        for (what, handle, word) in [
            // Beyond the largest pid that Linux gives (`PID_MAX_LIMIT`), and the largest that fits.
            ("an unknown pid", AttachHandle::LinuxPid { pid: (1 << 22) - 3 }, "no process"),
            ("a pid that cannot be", AttachHandle::LinuxPid { pid: u32::MAX }, "pid"),
            ("pid zero", AttachHandle::LinuxPid { pid: 0 }, "pid"),
            ("a container of Windows", windows, "only on Windows"),
        ] {
            let before = node.link_names();
            let message = node.refused(Wish::to("web").fenced("red").global().request(handle));
            assert!(message.contains(word), "{what}: {message}");
            assert_nothing_left(&node, what);
            assert_eq!(node.link_names(), before, "{what}: not even a bridge");
        }
    });
}

#[test]
fn a_process_that_the_agent_may_not_look_at_is_refused_and_nothing_is_left_behind() {
    isolated(|| {
        const CAP_SYS_PTRACE: libc::c_ulong = 19;
        crate::lab::need_tun();
        block_on(async {});
        let mut node = OverlayNode::new("a");
        node.flags.push("--address-rest-secs=0".into());
        node.lacking.push(CAP_SYS_PTRACE);
        node.start();
        node.setup(IPV4.cluster, Some(IPV4.slices[0]), PORT);
        let container = Container::new();
        let message = node.refused(Wish::to("web").global().of(&container));
        assert!(message.contains("CAP_SYS_PTRACE"), "{message}");
        assert_nothing_left(&node, "a process with more privileges than the agent");
        // With the capability the same agent serves the same container.
        node.kill();
        node.lacking.clear();
        node.start();
        node.attach(&container, Wish::to("web").global());
        assert_eq!(node.ports(), BTreeSet::from([container.port(), container.global_port()]));
    });
}

#[test]
fn a_container_that_dies_while_it_is_being_attached_leaves_nothing_behind() {
    isolated(|| {
        let node = single_with(IPV4, &["--address-rest-secs", "0"]);
        node.segment("web", OverlayMode::Auto);
        let (mut attached, mut refused) = (0, 0);
        for turn in 0..80_u64 {
            let mut container = Container::new();
            let request = Wish::to("web").fenced("red").global().of(&container);
            let killing = std::thread::spawn(move || {
                // From before the agent has read the request to after it has wired the container.
                std::thread::sleep(Duration::from_micros(turn * 100));
                container.kill();
            });
            match node.ask(request) {
                Response::Attached(_) => attached += 1,
                Response::Err { message } => {
                    refused += 1;
                    let words = ["no process", "has ended", "is gone", "ended while", "nothing is left behind"];
                    assert!(words.iter().any(|word| message.contains(word)), "{message}");
                }
                other => panic!("{other:?}"),
            }
            killing.join().unwrap();
        }
        println!(
            "MEASURED: of 80 containers that died around their attach {attached} were attached before, {refused} refused"
        );
        until("every end was noticed", || {
            node.total("overlayd_attachments") == 0.0 && node.ports().is_empty() && node.members().is_empty()
        });
        assert_nothing_left(&node, "all of them are dead");
        assert!(refused > 0, "none died in time");
        let survivor = Container::new();
        let lowest = node.gateways("zl-e2e-0-web-b").first().unwrap().addr();
        let std::net::IpAddr::V4(lowest) = lowest else { panic!("{lowest}") };
        let address = node.attach(&survivor, Wish::to("web"));
        assert_eq!(address, std::net::IpAddr::from((u32::from(lowest) + 1).to_be_bytes()), "no address was lost");
    });
}
