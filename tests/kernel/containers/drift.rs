//! Somebody takes things apart: each is put back, soon, and nothing else is touched.

use std::time::{Duration, Instant};

use overlayd::wire::OverlayMode;

use super::scene::{DUAL, Wish, nft, single};
use crate::{
    container::Container,
    lab::{delete_link, isolated},
    overlay_node::{OverlayNode, until},
    overlay_ping::Pinger,
};

const BRIDGE: &str = "zl-e2e-0-web-b";
const TRIES: usize = 50;

/// Does it again and again; answers how long each repair took.
fn repairs(node: &OverlayNode, what: &str, act: impl Fn()) -> Vec<Duration> {
    let before = node.observe().objects;
    let times = (0..TRIES).map(|_| {
        let drifted = node.total("overlayd_drift_total");
        let begin = Instant::now();
        act();
        let is_mended = || node.total("overlayd_drift_total") > drifted && node.total("overlayd_in_sync") == 1.0;
        until(what, is_mended);
        begin.elapsed()
    });
    let times: Vec<Duration> = times.collect();
    assert_eq!(node.observe().objects, before, "{what}");
    node.assert_no_difference();
    times
}

fn percentile(times: &mut [Duration], of: usize) -> Duration {
    times.sort();
    times[(times.len() * of / 100).min(times.len() - 1)]
}

#[test]
fn bridges_ports_and_addresses_are_put_back_and_other_containers_do_not_notice() {
    isolated(|| {
        let node = single(DUAL);
        node.segment("web", OverlayMode::Auto);
        node.segment("api", OverlayMode::Auto);
        let (container, bystander, partner) = (Container::new(), Container::new(), Container::new());
        node.attach(&container, Wish::to("web").global());
        let _ = node.attach(&bystander, Wish::to("api"));
        let to = node.attach(&partner, Wish::to("api"));
        let flow = Pinger::start(&bystander.node(), to, Duration::from_millis(10));
        let port = container.port();
        let gateway = node.gateways(BRIDGE).into_iter().next().unwrap().addr();
        let mut all = Vec::new();
        let mut measure = |what: &str, act: &dyn Fn()| {
            let mut times = repairs(&node, what, act);
            println!(
                "MEASURED: {what}: mended after {:?} (median), {:?} (p99) of {TRIES}",
                percentile(&mut times, 50),
                percentile(&mut times, 99)
            );
            all.append(&mut times);
        };
        measure("the bridge is deleted", &|| node.node.block_on(|| delete_link(BRIDGE)));
        measure("a port loses its bridge", &|| {
            let port = port.clone();
            node.netlink(|handle| async move {
                let index = crate::linux::index_of(&handle, &port).await;
                let change = rtnetlink::LinkUnspec::new_with_index(index).nocontroller().build();
                handle.link().change(change).execute().await.unwrap();
            });
        });
        measure("the gateway's address is removed", &|| node.remove_address(BRIDGE, gateway));
        measure("a port is taken away with its container's side", &|| {
            let port = port.clone();
            node.node.block_on(move || async move { delete_link(&port).await });
        });
        println!("MEASURED: all {} repairs: p99 {:?}", all.len(), percentile(&mut all, 99));
        let flow = flow.finish();
        println!("MEASURED: a flow of other containers meanwhile: {flow:?}");
        assert_eq!(flow.lost, 0);
    });
}

#[test]
fn settings_are_put_back_and_tables_cannot_be_taken_or_come_back() {
    isolated(|| {
        let node = single(DUAL);
        node.segment("web", OverlayMode::Auto);
        let container = Container::new();
        node.attach(&container, Wish::to("web").fenced("red"));
        let before = node.observe().objects;
        for (setting, value) in [("forwarding", "0"), ("rp_filter", "1")] {
            let path = format!("/proc/sys/net/ipv4/conf/{BRIDGE}/{setting}");
            let mut times = repairs(&node, setting, || {
                let file = path.clone();
                node.node.run(move || std::fs::write(file, value).unwrap());
            });
            println!(
                "MEASURED: {setting} is reset: mended after {:?} (median), {:?} (p99) of {TRIES}",
                percentile(&mut times, 50),
                percentile(&mut times, 99)
            );
        }
        if nft(&node, &["flush", "ruleset"]).is_some() {
            until("the rules stand", || node.observe().objects == before);
        }
        assert_eq!(node.observe().objects, before);
        node.assert_no_difference();
    });
}
