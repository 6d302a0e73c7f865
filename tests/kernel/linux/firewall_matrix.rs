use std::fs;

use overlayd::object::RulesetSpec;

use super::{
    firewall::create_ruleset,
    firewall_town::{self, Town, WORLD_SIDE, WORLD_SIDE6, connects, seen_as},
    *,
};
use crate::lab::{isolated, skip_part};

fn in_town<F: Future<Output = ()>>(body: impl FnOnce(Town, LinuxKernel) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let town = Town::build().await;
        let mut kernel = LinuxKernel::open(options(mark())).unwrap();
        run(&mut kernel, create_ruleset(firewall_town::ruleset())).await.unwrap();
        for outcome in kernel.execute(&town.members()).await {
            outcome.unwrap();
        }
        body(town, kernel).await;
    });
}

#[test]
fn members_reach_their_network_their_gateway_the_node_and_the_world_and_nothing_else() {
    isolated(|| {
        in_town(|town, _kernel| async move {
            let (count, wrong) = town.mismatches();
            println!("MEASURED: {count} attempts, {} not as they should be", wrong.len());
            assert!(wrong.is_empty(), "{}", wrong.join("\n"));
            for (address, side) in town.world.addresses.into_iter().zip([WORLD_SIDE, WORLD_SIDE6]) {
                let seen = town.place("red1").node.run(move || seen_as(address));
                assert_eq!(seen, side.parse::<IpAddr>().unwrap(), "what leaves the overlay is masqueraded");
            }
            if fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1").is_err() {
                skip_part("no br_netfilter here");
                return;
            }
            fs::write("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "1").unwrap();
            let (_, wrong) = town.mismatches();
            assert!(wrong.is_empty(), "with br_netfilter:\n{}", wrong.join("\n"));
        });
    });
}

#[test]
fn without_the_tables_everybody_reaches_everybody_so_that_the_matrix_can_fail() {
    isolated(|| {
        in_town(|town, mut kernel| async move {
            let was = Spec::Ruleset(RulesetSpec::default());
            run(&mut kernel, Action::Delete { key: Key::Ruleset, was }).await.unwrap();
            let (count, wrong) = town.mismatches();
            println!("MEASURED: without rules {} of {count} attempts are not as they should be", wrong.len());
            assert!(wrong.iter().any(|text| text.starts_with("red1 -> green1")), "{}", wrong.join("\n"));
            assert!(wrong.iter().any(|text| text.starts_with("red1 -> green3")), "{}", wrong.join("\n"));
        });
    });
}

#[test]
fn a_member_that_leaves_its_network_loses_it_at_once_also_on_the_same_bridge() {
    isolated(|| {
        in_town(|town, mut kernel| async move {
            let red1 = town.place("red1").addresses[0];
            for peer in ["red2", "red3"] {
                assert!(town.place(peer).node.run(move || connects(red1, PATIENCE)));
            }
            let from = town.members().into_iter().find(|action| *action.key() == Key::Member(red1)).unwrap();
            let from = from.result().unwrap().clone();
            let Spec::Member(mut to) = from.clone() else { panic!() };
            to.network = None;
            // The port keeps its network while its other address has one.
            for address in town.place("red1").addresses {
                let (from, to) = (from.clone(), Spec::Member(to.clone()));
                run(&mut kernel, Action::Update { key: Key::Member(address), from, to }).await.unwrap();
            }
            for peer in ["red2", "red3"] {
                assert!(!town.place(peer).node.run(move || connects(red1, Duration::from_millis(500))));
            }
            assert!(town.place("flat1").node.run(move || connects(red1, PATIENCE)));
        });
    });
}
