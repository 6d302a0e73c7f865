//! The life of attachments and segments: attached twice, re-wired, detached, in namespaces of every kind.

use std::collections::BTreeSet;

use overlayd::wire::{OverlayMode, Request, Response};

use super::scene::{DUAL, Wish, inner, single, single_with};
use crate::{
    container::{Container, Nest},
    lab::isolated,
    overlay_node::{IPV4, OverlayNode},
    probe::{Reach, SILENCE, Server, reach},
};

fn reaches_gateway(node: &OverlayNode, container: &Container, bridge: &str) -> bool {
    let gateways: Vec<_> = node.gateways(bridge).into_iter().map(|net| net.addr()).collect();
    let _server = Server::start(&node.node);
    reach(&container.node(), &gateways, SILENCE).values().all(Reach::is_whole)
}

#[test]
fn a_container_is_attached_in_a_user_namespace_and_in_a_nested_pid_namespace_too() {
    isolated(|| {
        let node = single(DUAL);
        node.segment("web", OverlayMode::Auto);
        for nest in [Nest::Network, Nest::User, Nest::Pids] {
            let container = Container::within(nest);
            node.attach(&container, Wish::to("web").global());
            assert!(reaches_gateway(&node, &container, "zl-e2e-0-web-b"), "{nest:?}");
            node.assert_no_difference();
            node.request(container.detach());
            assert_eq!(node.ports(), BTreeSet::new(), "{nest:?}");
        }
    });
}

#[test]
fn attaching_twice_changes_nothing_and_other_settings_re_wire_the_container() {
    isolated(|| {
        let node = single_with(IPV4, &["--address-rest-secs", "0"]);
        node.segment("web", OverlayMode::Auto);
        node.segment("api", OverlayMode::Auto);
        let container = Container::new();
        let first = node.attach(&container, Wish::to("web"));
        let actions = node.actions();
        assert_eq!(node.attach(&container, Wish::to("web")), first);
        assert_eq!(node.actions(), actions);
        assert_eq!(node.attach(&container, Wish::to("web").global()), first, "the address stays");
        assert_eq!(inner(&container, "eth1").len(), 1);
        assert_eq!(node.attach(&container, Wish::to("web")), first);
        assert_eq!(node.ports(), BTreeSet::from([container.port()]), "the second pair has gone");
        let moved = node.attach(&container, Wish::to("api"));
        assert_ne!(moved, first);
        assert_eq!(inner(&container, "eth0"), BTreeSet::from([moved]));
        assert!(reaches_gateway(&node, &container, "zl-e2e-0-api-b"));
        node.assert_no_difference();
    });
}

#[test]
fn segments_leave_with_their_last_container_or_when_the_lot_was_ephemeral_and_stay_when_set_up_again() {
    isolated(|| {
        let node = single(IPV4);
        node.segment("web", OverlayMode::Auto);
        let container = Container::new();
        node.attach(&container, Wish::to("web"));
        node.request(Request::TeardownServiceOverlay { service: "web".into() });
        assert!(node.link_names().contains("zl-e2e-0-web-b"), "somebody is attached");
        node.request(container.detach());
        assert!(!node.link_names().contains("zl-e2e-0-web-b"));
        // Nobody has set it up: the attach makes it, and takes it along.
        node.attach(&container, Wish::to("job").ephemeral());
        assert!(node.link_names().contains("zl-e2e-0-job-b"));
        node.request(container.detach());
        assert!(!node.link_names().contains("zl-e2e-0-job-b"));
        node.segment("web", OverlayMode::Auto);
        node.attach(&container, Wish::to("web"));
        node.request(Request::TeardownServiceOverlay { service: "web".into() });
        node.segment("web", OverlayMode::Auto);
        node.request(container.detach());
        assert!(node.link_names().contains("zl-e2e-0-web-b"), "a setup in between keeps it");
        assert!(matches!(node.segment("web", OverlayMode::Dedicated), Response::ServiceOverlay(_)));
        assert!(node.link_names().contains("zl-e2e-0-web-d"));
        node.segment("web", OverlayMode::Auto);
        assert!(!node.link_names().contains("zl-e2e-0-web-d"));
        node.assert_no_difference();
    });
}

#[test]
fn teardown_of_the_overlay_takes_everything_along() {
    isolated(|| {
        let node = single(DUAL);
        let before = node.link_names();
        node.segment("web", OverlayMode::Shared);
        let container = Container::new();
        node.attach(&container, Wish::to("web").global());
        node.request(Request::TeardownGlobalOverlay);
        let left = node.link_names();
        let ours: Vec<_> = left.iter().filter(|name| name.starts_with("zl-") || name.starts_with("veth-")).collect();
        assert!(ours.is_empty() && left.len() < before.len() + 1, "{left:?}");
        assert_eq!(node.members(), BTreeSet::new());
        node.assert_no_difference();
    });
}

#[test]
fn a_detach_says_ok_however_often_and_of_whom_nobody_knows() {
    isolated(|| {
        let node = single(DUAL);
        node.segment("web", OverlayMode::Auto);
        let (one, other) = (Container::new(), Container::new());
        for container in [&one, &other] {
            node.attach(container, Wish::to("web").global());
        }
        for _ in 0..3 {
            assert_eq!(node.request(one.detach()), Response::Ok);
            assert_eq!(node.ports(), BTreeSet::from([other.port(), other.global_port()]));
            assert_eq!(inner(&one, "eth0").len() + inner(&one, "eth1").len(), 0);
        }
        assert_eq!(node.request(Container::new().detach()), Response::Ok, "who was never attached");
        let unknown = overlayd::wire::AttachHandle::LinuxPid { pid: (1 << 22) - 3 };
        assert_eq!(node.request(Request::DetachContainer { handle: unknown }), Response::Ok);
        assert_eq!(node.members().len(), 4, "both addresses of both families of the one that is left");
        assert!(reaches_gateway(&node, &other, "zl-e2e-0-web-b"));
        node.assert_no_difference();
    });
}

#[test]
fn a_segment_that_only_an_attach_made_takes_the_mode_of_its_setup_with_its_containers_and_no_other_then() {
    isolated(|| {
        let node = single_with(DUAL, &["--address-rest-secs", "0"]);
        for (service, mode) in [("iso", OverlayMode::Isolated), ("ded", OverlayMode::Dedicated)] {
            let (one, other) = (Container::new(), Container::new());
            for container in [&one, &other] {
                node.attach(container, Wish::to(service));
            }
            let (before, bridge) = (inner(&one, "eth0"), format!("zl-e2e-0-{service}-b"));
            node.segment(service, mode);
            assert_eq!(inner(&one, "eth0"), before, "{service}: the addresses stay");
            assert_eq!(node.link_names().contains(&format!("zl-e2e-0-{service}-d")), mode == OverlayMode::Dedicated);
            assert!(reaches_gateway(&node, &one, &bridge), "{service}");
            let _server = Server::start(&other.node());
            let neighbour: Vec<_> = inner(&other, "eth0").into_iter().collect();
            assert!(reach(&one.node(), &neighbour, SILENCE).values().all(Reach::is_whole), "{service}");
            if mode == OverlayMode::Isolated {
                let stranger = Container::new();
                node.attach(&stranger, Wish::to("flat"));
                let reached = reach(&stranger.node(), &neighbour, SILENCE);
                assert!(reached.values().all(Reach::is_none), "fenced in though attached before: {reached:?}");
            }
            let ask = |mode| Request::SetupServiceOverlay { service: service.into(), mode };
            for other_mode in [OverlayMode::Auto, OverlayMode::Shared] {
                let message = node.refused(ask(other_mode));
                assert!(message.contains("attached"), "{message}");
            }
            node.segment(service, mode);
            node.assert_no_difference();
            for container in [&one, &other] {
                node.request(container.detach());
            }
            node.segment(service, OverlayMode::Shared);
            assert!(!node.link_names().contains(&bridge), "{service} is on the shared bridge now");
            node.attach(&one, Wish::to(service));
            node.assert_no_difference();
        }
    });
}

#[test]
fn an_agent_that_is_killed_changes_nothing_for_containers_and_the_next_one_knows_them() {
    isolated(|| {
        let mut node = single(DUAL);
        node.segment("web", OverlayMode::Auto);
        let (plain, joined) = (Container::new(), Container::new());
        let first = node.attach(&plain, Wish::to("web"));
        node.attach(&joined, Wish::to("web").global());
        let target = inner(&joined, "eth0").into_iter().next().unwrap();
        let flow = crate::overlay_ping::Pinger::start(&plain.node(), target, std::time::Duration::from_millis(5));
        for _ in 0..3 {
            node.kill();
            assert!(reaches_gateway(&node, &joined, "zl-e2e-0-web-b"), "without an agent");
            node.start();
            assert_eq!(node.actions(), 0.0, "{:?}", node.metric("overlayd_actions_total"));
            assert_eq!(node.attach(&plain, Wish::to("web")), first);
            assert_eq!(node.actions(), 0.0);
        }
        let flow = flow.finish();
        assert_eq!(flow.lost, 0, "{flow:?}");
        println!(
            "MEASURED: agent killed and started 3 times: lost {} of {} packets between containers",
            flow.lost, flow.sent
        );
        node.request(plain.detach());
        assert_eq!(node.ports(), BTreeSet::from([joined.port(), joined.global_port()]));
        node.assert_no_difference();
    });
}

#[test]
fn a_container_that_ends_is_noticed_and_its_addresses_rest() {
    isolated(|| {
        let mut node = single(IPV4);
        node.segment("web", OverlayMode::Auto);
        // One ends before the eyes of the agent, one while there is none.
        for is_watched in [true, false] {
            let mut container = Container::new();
            let address = node.attach(&container, Wish::to("web").global());
            if is_watched {
                container.kill();
            } else {
                node.kill();
                container.kill();
                node.start();
            }
            crate::overlay_node::until("the end was noticed", || {
                node.total("overlayd_attachments") == 0.0 && node.ports().is_empty() && node.members().is_empty()
            });
            let next = Container::new();
            assert_ne!(node.attach(&next, Wish::to("web")), address, "it rests");
            node.request(next.detach());
            node.assert_no_difference();
        }
    });
}
