//! A thousand containers: the next costs what the first did, and a new agent has nothing to do.

use std::time::{Duration, Instant};

use overlayd::wire::OverlayMode;

use super::scene::{Wish, single};
use crate::{
    container::Container,
    lab::isolated,
    overlay_node::{IPV4, OverlayNode},
};

/// With as many containers as its subnet has room for, a service has 61; here 53.
const SERVICES: usize = 20;
const MANY: usize = 1000;
/// Attaches of which the median is taken.
const SERIES: usize = 50;

fn attach_timed(node: &OverlayNode, containers: &mut Vec<Container>, count: usize) -> Vec<Duration> {
    let timed = |_| {
        let container = Container::new();
        let begin = Instant::now();
        node.attach(&container, Wish::to(&service(containers.len())));
        containers.push(container);
        begin.elapsed()
    };
    (0..count).map(timed).collect()
}

fn service(number: usize) -> String {
    format!("service-{}", number % SERVICES)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_thousand_attachments_need_nothing_from_a_new_agent_and_the_next_costs_what_the_first_did() {
    isolated(|| {
        let mut node = single(IPV4);
        for number in 0..SERVICES {
            node.segment(&service(number), OverlayMode::Auto);
        }
        let mut containers = Vec::new();
        attach_timed(&node, &mut containers, 9);
        let first = median(attach_timed(&node, &mut containers, SERIES));
        attach_timed(&node, &mut containers, MANY - SERIES - 9);
        let last = median(attach_timed(&node, &mut containers, SERIES));
        println!(
            "MEASURED: attach of the 10th {first:?}, of the {}th {last:?} (median of {SERIES}): {:.2}x",
            MANY + 1,
            last.as_secs_f64() / first.as_secs_f64()
        );
        let before = node.observe().objects;
        node.kill();
        let took = node.start();
        assert_eq!(node.actions(), 0.0, "{:?}", node.metric("overlayd_actions_total"));
        assert_eq!(node.total("overlayd_in_sync"), 1.0);
        node.assert_no_difference();
        assert_eq!(node.observe().objects, before);
        println!(
            "MEASURED: {} attachments: a new agent was in sync {took:?} after its start, without a change",
            containers.len()
        );
        let begin = Instant::now();
        drop(containers);
        let ended = begin.elapsed();
        crate::overlay_node::until("every end was noticed", || {
            node.total("overlayd_attachments") == 0.0 && node.ports().is_empty()
        });
        println!("MEASURED: all ended within {ended:?}; noticed and tidied up {:?} after the first", begin.elapsed());
        crate::overlay_node::until("nothing is left to do", || node.diff().1 == 0);
    });
}
