//! Pruning and sweeping: what is ours and not wanted goes, and nothing else, however much it looks like ours.

use std::collections::BTreeSet;

use overlayd::{
    object::{Key, LinkKind, LinkSpec, Mark, Spec},
    wire::{OverlayMode, Request, Response},
};

use super::scene::{Wish, single};
use crate::{
    container::Container,
    lab::{Node, isolated},
    overlay_node::{IPV4, OverlayNode},
};

/// Links that look like ours and are not: strangers' with our names, another instance's, and one with our very mark on another node.
struct Decoys {
    names: BTreeSet<String>,
    elsewhere: OverlayNode,
}

impl Decoys {
    fn new(node: &OverlayNode) -> Self {
        let elsewhere = OverlayNode::within(Node::new(), "elsewhere", "elsewhere");
        let strangers = ["zl-abc-b", "veth-1-s", "veth-1-g"];
        for name in strangers {
            node.node.join(name, &elsewhere.node);
        }
        make_bridge(node, Mark::of_instance("/another/instance"), "zl-other-0-x-b");
        make_bridge(&elsewhere, node.mark(), "zl-e2e-0-far-b");
        let names = strangers.into_iter().chain(["zl-other-0-x-b"]).map(str::to_owned).collect();
        Self { names, elsewhere }
    }

    fn assert_untouched(&self, node: &OverlayNode) {
        let there = node.link_names();
        assert!(self.names.is_subset(&there), "{there:?}");
        assert!(self.elsewhere.link_names().contains("zl-e2e-0-far-b"));
    }
}

fn make_bridge(node: &OverlayNode, mark: Mark, name: &str) {
    let spec = Spec::Link(LinkSpec::up(LinkKind::Bridge, 1420));
    let create = overlayd::action::Action::Create { key: Key::Link(name.parse().unwrap()), spec };
    for outcome in node.execute_as(mark, vec![create]) {
        outcome.unwrap();
    }
}

fn prune(node: &OverlayNode, live: &str) -> Vec<String> {
    match node.request(Request::PruneOrphanBridges { live_bridge_names: vec![live.into()] }) {
        Response::PrunedBridges { reclaimed } => reclaimed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn prune_takes_no_segment_that_is_new_or_used_or_listed_and_no_decoy() {
    isolated(|| {
        let node = single(IPV4);
        for service in ["live", "new", "used"] {
            node.segment(service, OverlayMode::Auto);
        }
        let container = Container::new();
        node.attach(&container, Wish::to("used"));
        let decoys = Decoys::new(&node);
        assert_eq!(prune(&node, "zl-e2e-0-live-b"), [""; 0]);
        decoys.assert_untouched(&node);
        let names = node.link_names();
        assert!(["zl-e2e-0-live-b", "zl-e2e-0-new-b", "zl-e2e-0-used-b"].iter().all(|name| names.contains(*name)));
        node.assert_no_difference();
    });
}

#[test]
fn prune_answers_when_strays_of_ours_have_gone_and_names_them() {
    isolated(|| {
        let node = single(IPV4);
        node.segment("live", OverlayMode::Auto);
        let decoys = Decoys::new(&node);
        let mut tries = 0;
        // The loop may be faster: what it swept before the request came is not the request's doing.
        crate::overlay_node::until("a prune has swept a stray itself", || {
            tries += 1;
            make_bridge(&node, node.mark(), "zl-e2e-0-lost-b");
            let reclaimed = prune(&node, "zl-e2e-0-live-b");
            assert!(!node.link_names().contains("zl-e2e-0-lost-b"), "it answered before the sweep");
            assert!(reclaimed.iter().all(|name| name == "zl-e2e-0-lost-b"), "{reclaimed:?}");
            !reclaimed.is_empty()
        });
        println!("MEASURED: a prune named a stray at try {tries}");
        decoys.assert_untouched(&node);
        assert!(node.link_names().contains("zl-e2e-0-live-b"));
        node.assert_no_difference();
    });
}

#[test]
fn after_the_store_was_lost_everything_with_our_mark_goes_and_no_decoy() {
    isolated(|| {
        let mut node = single(IPV4);
        node.segment("web", OverlayMode::Auto);
        node.segment("ded", OverlayMode::Dedicated);
        let containers: Vec<Container> = (0..3).map(|_| Container::new()).collect();
        for container in &containers {
            node.attach(container, Wish::to("web").global());
        }
        let decoys = Decoys::new(&node);
        let before: BTreeSet<String> = node.link_names();
        assert!(before.contains("zl-e2e-0-web-b"));
        node.kill();
        node.forget_state();
        node.start();
        crate::overlay_node::until("it is swept", || node.total("overlayd_in_sync") == 1.0 && node.ports().len() == 2);
        let left: BTreeSet<String> = node.link_names();
        let ours = left.iter().filter(|name| name.starts_with("zl-") || name.starts_with("veth-"));
        assert_eq!(ours.cloned().collect::<BTreeSet<_>>(), decoys.names);
        decoys.assert_untouched(&node);
        assert_eq!(node.members(), BTreeSet::new());
        let inside = containers[0].node().run(|| nix::net::if_::if_nameindex().unwrap().iter().count());
        assert_eq!(inside, 1, "only loopback is left in the container");
    });
}
