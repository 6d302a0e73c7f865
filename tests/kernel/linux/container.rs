//! The containers' side of veth pairs: in every kind of namespace, and never in a wrong one.

use super::{
    bridge::veth_spec,
    containers::{Apart, Container},
    *,
};

pub fn inside_spec(container: &Container, addresses: &[&str], routes: &[(&str, Option<&str>)]) -> InsideSpec {
    let route = |(destination, via): &(&str, Option<&str>)| InsideRoute {
        destination: cidr(destination),
        via: via.map(|via| via.parse().unwrap()),
    };
    InsideSpec {
        netns: container.netns(),
        name: name("eth0"),
        mtu: 1420,
        up: true,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        routes: routes.iter().map(route).collect(),
    }
}

const V4: (&[&str], &[(&str, Option<&str>)]) = (&["10.9.0.2/24"], &[("0.0.0.0/0", Some("10.9.0.1"))]);
const V6: (&[&str], &[(&str, Option<&str>)]) = (&["fd00:9::2/64"], &[("::/0", Some("fd00:9::1"))]);
const DUAL: (&[&str], &[(&str, Option<&str>)]) =
    (&["10.9.0.2/24", "fd00:9::2/64"], &[("0.0.0.0/0", Some("10.9.0.1")), ("::/0", Some("fd00:9::1"))]);

fn key() -> Key {
    Key::Inside(name("veth-1-s"))
}

fn interest(wanted: &InsideSpec) -> Interest {
    Interest {
        subsystems: [Subsystem::Link, Subsystem::Inside].into(),
        insides: [(name("veth-1-s"), wanted.clone())].into(),
        ..Interest::default()
    }
}

/// A bridge with the gateways, and a veth of it into the container.
async fn plugged(kernel: &mut LinuxKernel, container: &Container) -> Spec {
    let bridge = Spec::Link(LinkSpec::up(LinkKind::Bridge, 1420));
    let veth = veth_spec(container, "eth0", 1420, Some("zl-a-b"));
    let actions = [
        create(link_key("zl-a-b"), bridge),
        create(link_key("veth-1-s"), veth.clone()),
        create(address_key("zl-a-b", "10.9.0.1/24"), Spec::Address),
        create(address_key("zl-a-b", "fd00:9::1/64"), Spec::Address),
    ];
    for (action, outcome) in actions.iter().zip(kernel.execute(&actions).await) {
        assert_eq!(outcome, Ok(()), "{action:?}");
    }
    veth
}

async fn round_trip(apart: Apart, (addresses, routes): (&[&str], &[(&str, Option<&str>)])) {
    let mut kernel = open();
    let container = Container::start(apart);
    let veth = plugged(&mut kernel, &container).await;
    let wanted = inside_spec(&container, addresses, routes);
    for _ in 0..2 {
        run(&mut kernel, create(key(), Spec::Inside(wanted.clone()))).await.unwrap();
    }
    // Also by a process that has just begun and knows nothing.
    for kernel in [&mut kernel, &mut open()] {
        let seen = look(kernel, interest(&wanted)).await;
        assert_eq!(seen.objects.get(&key()), Some(&Observed::ours(Spec::Inside(wanted.clone()))));
        assert_eq!(spec(&seen, &link_key("veth-1-s")), &veth);
        assert_eq!(seen.coverage[&Subsystem::Inside], Coverage::Whole);
    }
    let less = InsideSpec { addresses: [].into(), routes: [].into(), ..wanted.clone() };
    run(&mut kernel, update(key(), Spec::Inside(wanted.clone()), Spec::Inside(less.clone()))).await.unwrap();
    assert_eq!(spec(&look(&mut kernel, interest(&wanted)).await, &key()), &Spec::Inside(less.clone()));
    run(&mut kernel, update(key(), Spec::Inside(less), Spec::Inside(wanted.clone()))).await.unwrap();
    assert_eq!(spec(&look(&mut kernel, interest(&wanted)).await, &key()), &Spec::Inside(wanted.clone()));
    for _ in 0..2 {
        run(&mut kernel, delete(key(), Spec::Inside(wanted.clone()))).await.unwrap();
    }
    for _ in 0..2 {
        run(&mut kernel, delete(link_key("veth-1-s"), veth.clone())).await.unwrap();
    }
    run(&mut kernel, delete(key(), Spec::Inside(wanted.clone()))).await.unwrap();
    let seen = look(&mut kernel, interest(&wanted)).await;
    assert_eq!(owner(&seen, &key()), None);
    assert!(!container.listing().contains("eth0"));
}

#[test]
fn ipv4_comes_and_goes() {
    in_namespace(|| round_trip(Apart::Network, V4));
}

#[test]
fn ipv6_comes_and_goes() {
    in_namespace(|| round_trip(Apart::Network, V6));
}

#[test]
fn both_families_come_and_go() {
    in_namespace(|| round_trip(Apart::Network, DUAL));
}

#[test]
fn a_container_in_a_user_namespace_of_its_own_is_like_any_other() {
    in_namespace(|| round_trip(Apart::Users, DUAL));
}

#[test]
fn a_container_in_a_pid_namespace_of_its_own_is_like_any_other() {
    in_namespace(|| round_trip(Apart::Pids, DUAL));
}

#[test]
fn ipv6_works_in_a_container_whose_runtime_switched_it_off() {
    in_namespace(|| async {
        let mut kernel = open();
        let container = Container::new();
        container.run(|| {
            for conf in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/disable_ipv6"), "1").unwrap();
            }
        });
        plugged(&mut kernel, &container).await;
        let wanted = inside_spec(&container, DUAL.0, DUAL.1);
        run(&mut kernel, create(key(), Spec::Inside(wanted.clone()))).await.unwrap();
        assert_eq!(spec(&look(&mut kernel, interest(&wanted)).await, &key()), &Spec::Inside(wanted));
        let read = |what: &'static str| {
            container.run(move || std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{what}")).unwrap())
        };
        assert_eq!((read("eth0/disable_ipv6"), read("eth0/accept_ra")), ("0\n".into(), "0\n".into()));
        assert_eq!(read("all/disable_ipv6"), "1\n");
    });
}

#[test]
fn a_next_hop_in_another_network_and_a_link_local_one_are_reached() {
    in_namespace(|| async {
        let mut kernel = open();
        let container = Container::new();
        plugged(&mut kernel, &container).await;
        let routes =
            [("10.200.0.0/16", Some("10.200.7.1")), ("fd00:200::/48", Some("fe80::1")), ("10.77.0.0/24", None)];
        let wanted = inside_spec(&container, &["10.200.7.9/32", "fd00:200::9/128"], &routes);
        run(&mut kernel, create(key(), Spec::Inside(wanted.clone()))).await.unwrap();
        assert_eq!(spec(&look(&mut kernel, interest(&wanted)).await, &key()), &Spec::Inside(wanted));
    });
}

#[test]
fn what_changed_in_the_container_is_seen_and_set_right_and_what_it_added_stays() {
    in_namespace(|| async {
        let mut kernel = open();
        let container = Container::new();
        plugged(&mut kernel, &container).await;
        let wanted = inside_spec(&container, DUAL.0, DUAL.1);
        run(&mut kernel, create(key(), Spec::Inside(wanted.clone()))).await.unwrap();
        container.ask(|witness| async move {
            let index = index_of(&witness, "eth0").await;
            // A container's own: another address, a route, and another name.
            witness.address().add(index, "10.66.0.9".parse().unwrap(), 24).execute().await.unwrap();
            let own = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::new(10, 55, 0, 0), 16)
                .gateway(Ipv4Addr::new(10, 9, 0, 7))
                .build();
            witness.route().add(own).execute().await.unwrap();
            let down = LinkUnspec::new_with_index(index).down().mtu(1280).build();
            witness.link().change(down).execute().await.unwrap();
            let renamed = LinkUnspec::new_with_index(index).name("net7".to_owned()).build();
            witness.link().change(renamed).execute().await.unwrap();
        });
        let seen = look(&mut kernel, interest(&wanted)).await;
        let Spec::Inside(now) = spec(&seen, &key()) else { panic!() };
        assert_eq!((now.mtu, now.up, now.name.clone()), (1280, false, name("eth0")));
        assert_ne!(now.routes, wanted.routes);
        let repair = update(key(), Spec::Inside(now.clone()), Spec::Inside(wanted.clone()));
        run(&mut kernel, repair).await.unwrap();
        assert_eq!(spec(&look(&mut kernel, interest(&wanted)).await, &key()), &Spec::Inside(wanted));
        let listing = container.listing();
        assert!(listing.contains("10.66.0.9") && listing.contains("net7"), "{listing}");
    });
}

#[test]
fn another_address_and_gateway_replace_the_old_ones() {
    in_namespace(|| async {
        let mut kernel = open();
        let container = Container::new();
        plugged(&mut kernel, &container).await;
        let mut before = inside_spec(&container, DUAL.0, DUAL.1);
        run(&mut kernel, create(key(), Spec::Inside(before.clone()))).await.unwrap();
        // In the same network, in which the first address is the primary one, and then in another.
        for (addresses, routes) in [
            (["10.9.0.3/24", "fd00:9::3/64"], [("0.0.0.0/0", Some("10.9.0.1")), ("::/0", Some("fd00:9::1"))]),
            (["10.9.0.3/24", "fd00:9::3/64"], [("0.0.0.0/0", Some("10.9.0.9")), ("::/0", Some("fd00:9::9"))]),
            (["10.8.0.3/24", "fd00:8::3/64"], [("0.0.0.0/0", Some("10.8.0.1")), ("::/0", Some("fd00:8::1"))]),
        ] {
            let after = inside_spec(&container, &addresses, &routes);
            run(&mut kernel, update(key(), Spec::Inside(before), Spec::Inside(after.clone()))).await.unwrap();
            assert_eq!(spec(&look(&mut kernel, interest(&after)).await, &key()), &Spec::Inside(after.clone()));
            before = after;
        }
    });
}

#[test]
fn a_default_route_of_the_containers_own_is_in_the_way_and_stays() {
    in_namespace(|| async {
        let mut kernel = open();
        let container = Container::new();
        container.ask(|witness| async move {
            let index = stand_in(&witness, "own0", 0).await;
            let default = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).build();
            witness.route().add(default).execute().await.unwrap();
        });
        plugged(&mut kernel, &container).await;
        let wanted = inside_spec(&container, V4.0, V4.1);
        let made = run(&mut kernel, create(key(), Spec::Inside(wanted.clone()))).await;
        assert!(matches!(&made, Err(ActionError::Stranger(text)) if text.contains("0.0.0.0/0")), "{made:?}");
        let seen = look(&mut kernel, interest(&wanted)).await;
        let Spec::Inside(now) = spec(&seen, &key()) else { panic!() };
        assert!(now.routes.is_empty(), "{now:?}");
    });
}

#[test]
fn a_name_that_is_taken_in_the_container_blocks_and_leaves_nothing() {
    in_namespace(|| async {
        let witness = witness();
        let mut kernel = open();
        let container = Container::new();
        container.ask(|witness| async move { stand_in(&witness, "eth0", 0).await });
        let (before, inside) = (everything(&witness).await, container.listing());
        let made = run(&mut kernel, create(link_key("veth-1-s"), veth_spec(&container, "eth0", 1420, None))).await;
        let Err(ActionError::Stranger(text)) = made else { panic!("{made:?}") };
        assert!(text.contains("already has a link named eth0"), "{text}");
        assert_eq!((everything(&witness).await, container.listing()), (before, inside));
    });
}

#[test]
fn a_veth_that_leads_elsewhere_is_not_taken_for_the_wanted_one() {
    in_namespace(|| async {
        let witness = witness();
        let mut kernel = open();
        let (first, second) = (Container::new(), Container::new());
        plugged(&mut kernel, &first).await;
        let inside = second.listing();
        let there = run(&mut kernel, create(link_key("veth-1-s"), veth_spec(&second, "eth0", 1420, None))).await;
        assert!(matches!(there, Err(ActionError::Failed(_))), "{there:?}");
        let wrong = inside_spec(&second, V4.0, V4.1);
        let made = run(&mut kernel, create(key(), Spec::Inside(wrong.clone()))).await;
        assert!(matches!(made, Err(ActionError::Gone(_))), "{made:?}");
        let seen = look(&mut open(), interest(&wrong)).await;
        assert_eq!(owner(&seen, &key()), None);
        let Spec::Link(link) = spec(&seen, &link_key("veth-1-s")) else { panic!() };
        assert_eq!(link.peer, None);
        assert_eq!(second.listing(), inside);
        // A stranger's link of that name is not even looked behind.
        let stranger = LinkVeth::new("veth-2-s", "veth-2-t").build();
        witness.link().add(stranger).execute().await.unwrap();
        let made = run(&mut kernel, create(Key::Inside(name("veth-2-s")), Spec::Inside(wrong))).await;
        assert!(matches!(made, Err(ActionError::Stranger(_))), "{made:?}");
    });
}

#[test]
fn a_process_that_is_not_the_one_that_was_named_is_never_entered() {
    in_namespace(|| async {
        let mut kernel = open();
        let mut container = Container::new();
        let real = container.netns();
        let wrong = [
            Netns { start_time: real.start_time + 1, ..real.clone() },
            Netns { boot_id: "5b2e7d7e-0000-0000-0000-000000000000".into(), ..real.clone() },
            Netns { inode: real.inode + 1, ..real.clone() },
        ];
        assert!(netns::open(&real).is_ok());
        let inside = container.listing();
        for netns in wrong {
            assert!(matches!(netns::open(&netns), Err(netns::NetnsError::Gone(..))), "{netns:?}");
            let peer = Some(VethPeer { netns: netns.clone(), name: name("eth0") });
            let veth = Spec::Link(LinkSpec { peer, ..LinkSpec::up(LinkKind::Veth, 1420) });
            let made = run(&mut kernel, create(link_key("veth-1-s"), veth)).await;
            assert!(matches!(made, Err(ActionError::Gone(_))), "{made:?}");
        }
        assert_eq!(container.listing(), inside);
        plugged(&mut kernel, &container).await;
        let wanted = inside_spec(&container, V4.0, V4.1);
        let living = netns::Liveness::of(&real).unwrap();
        let alive = tokio::time::timeout(Duration::from_millis(50), living.gone()).await;
        assert!(alive.is_err(), "it lives");
        container.end();
        tokio::time::timeout(PATIENCE, living.gone()).await.unwrap();
        assert!(matches!(netns::open(&real), Err(netns::NetnsError::Gone(..))));
        assert!(matches!(netns::Liveness::of(&real), Err(netns::NetnsError::Gone(..))));
        let pid = container.pid;
        assert_eq!(netns::identify(pid), Err(netns::NetnsError::NoProcess(pid)));
        let seen = look(&mut kernel, interest(&wanted)).await;
        assert_eq!((owner(&seen, &key()), &seen.coverage[&Subsystem::Inside]), (None, &Coverage::Whole));
    });
}

#[test]
fn a_process_that_ended_and_was_not_waited_for_has_ended() {
    in_namespace(|| async {
        let mut zombie = std::process::Command::new("true").spawn().unwrap();
        let pid = zombie.id();
        let started = Instant::now();
        while netns::identify(pid) != Err(netns::NetnsError::Ended(pid)) {
            assert!(started.elapsed() < PATIENCE, "{:?}", netns::identify(pid));
            tokio::task::yield_now().await;
        }
        zombie.wait().unwrap();
        assert_eq!(netns::identify(pid), Err(netns::NetnsError::NoProcess(pid)));
    });
}

#[test]
fn the_agents_own_network_is_nobodys_container() {
    in_namespace(|| async {
        let mut host = std::process::Command::new("sh")
            .args(["-c", "exec cat"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = host.id();
        assert_eq!(netns::identify(pid), Err(netns::NetnsError::OwnNamespace(pid)));
        drop(host.stdin.take());
        host.wait().unwrap();
    });
}

#[test]
fn a_look_without_containers_enters_none() {
    in_namespace(|| async {
        let mut kernel = open();
        let container = Container::new();
        plugged(&mut kernel, &container).await;
        let wanted = inside_spec(&container, V4.0, V4.1);
        let only_links = Interest { subsystems: [Subsystem::Link].into(), ..interest(&wanted) };
        let seen = look(&mut open(), only_links).await;
        assert_eq!(owner(&seen, &key()), None);
        assert!(!seen.coverage.contains_key(&Subsystem::Inside));
        // Where the veth leads is known all the same.
        let Spec::Link(link) = spec(&seen, &link_key("veth-1-s")) else { panic!() };
        assert_eq!(link.peer.as_ref().unwrap().netns, container.netns());
    });
}

#[test]
fn how_long_it_takes() {
    in_namespace(|| async {
        const COUNT: u32 = 200;
        let mut kernel = open();
        let bridge = Spec::Link(LinkSpec::up(LinkKind::Bridge, 1420));
        run(&mut kernel, create(link_key("zl-a-b"), bridge)).await.unwrap();
        let containers: Vec<Container> = (0..COUNT).map(|_| Container::new()).collect();
        let (mut attach, mut wire, mut wanted) = (Vec::new(), Vec::new(), Interest::default());
        wanted.subsystems = [Subsystem::Link, Subsystem::Inside].into();
        for (number, container) in containers.iter().enumerate() {
            let veth = format!("veth-{number}-s");
            let address = format!("10.9.{}.{}/16", number / 200 + 1, number % 200 + 2);
            let inside = inside_spec(container, &[&address], &[("0.0.0.0/0", Some("10.9.0.1"))]);
            let spec = veth_spec(container, "eth0", 1420, Some("zl-a-b"));
            let begin = Instant::now();
            run(&mut kernel, create(link_key(&veth), spec)).await.unwrap();
            attach.push(begin.elapsed());
            let begin = Instant::now();
            run(&mut kernel, create(Key::Inside(name(&veth)), Spec::Inside(inside.clone()))).await.unwrap();
            wire.push(begin.elapsed());
            wanted.insides.insert(name(&veth), inside);
        }
        let begin = Instant::now();
        let seen = look(&mut kernel, wanted.clone()).await;
        let whole = begin.elapsed();
        let insides = seen.objects.keys().filter(|key| matches!(key, Key::Inside(_))).count();
        assert_eq!(insides, COUNT as usize, "{:?}", seen.coverage);
        wanted.subsystems = [Subsystem::Link].into();
        let begin = Instant::now();
        look(&mut kernel, wanted).await;
        let links = begin.elapsed();
        let begin = Instant::now();
        run(&mut kernel, delete(link_key("veth-0-s"), Spec::Link(LinkSpec::up(LinkKind::Veth, 1420)))).await.unwrap();
        let removed = begin.elapsed();
        attach.sort();
        wire.sort();
        let (half, most) = (COUNT as usize / 2, COUNT as usize * 99 / 100);
        println!(
            "MEASURED: {COUNT} containers: veth {:?} (p99 {:?}), inside {:?} (p99 {:?}), look at links and insides {whole:?}, at links {links:?}, delete a veth {removed:?}",
            attach[half], attach[most], wire[half], wire[most]
        );
    });
}
