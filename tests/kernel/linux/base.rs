//! Links, addresses, routes, sysctls and hints: what every Linux has.

use super::*;

#[test]
fn a_strangers_link_with_our_name_blocks_and_is_not_touched() {
    in_namespace(|| async {
        let witness = witness();
        stand_in(&witness, "zl-a", 0).await;
        let mut kernel = open();
        let before = everything(&witness).await;
        let seen = look_at(&mut kernel, &["zl-a"]).await;
        let Some(Owner::Stranger(text)) = owner(&seen, &link_key("zl-a")) else { panic!("{seen:?}") };
        assert!(text.contains("bridge"), "{text}");
        let wanted = link_spec(1400, true);
        let none = Spec::Address;
        let actions = [
            create(link_key("zl-a"), wanted.clone()),
            update(link_key("zl-a"), link_spec(1500, true), wanted.clone()),
            delete(link_key("zl-a"), wanted),
            create(address_key("zl-a", "10.9.0.1/24"), none.clone()),
            delete(address_key("zl-a", "10.9.0.1/24"), none),
            create(Key::Sysctl { link: name("zl-a"), setting: Setting::Ipv4RpFilter }, Spec::Sysctl(2)),
            create(route_key("10.9.0.0/16", mark().route_metric()), Spec::Route(RouteSpec::Through(name("zl-a")))),
        ];
        for (action, outcome) in actions.iter().zip(kernel.execute(&actions).await) {
            assert!(matches!(outcome, Err(ActionError::Stranger(_))), "{action:?}: {outcome:?}");
        }
        assert_eq!(everything(&witness).await, before);
    });
}

#[test]
fn a_link_of_another_instance_is_a_stranger_and_is_named_as_one() {
    in_namespace(|| async {
        let witness = witness();
        stand_in(&witness, "zl-b", other_mark().link_group()).await;
        stand_in(&witness, "zl-c", mark().link_group()).await;
        let mut kernel = open();
        let seen = look_at(&mut kernel, &["zl-b"]).await;
        let Some(Owner::Stranger(text)) = owner(&seen, &link_key("zl-b")) else { panic!("{seen:?}") };
        assert!(text.contains("another overlayd instance"), "{text}");
        assert_eq!(owner(&seen, &link_key("zl-c")), Some(&Owner::Ours));
        let outcome = run(&mut kernel, delete(link_key("zl-b"), link_spec(1500, true))).await;
        assert!(matches!(outcome, Err(ActionError::Stranger(_))), "{outcome:?}");
        assert!(find_link(&witness, "zl-b").await.is_some());
        // Without interest in its name it is not even reported.
        assert_eq!(owner(&look_at(&mut kernel, &[]).await, &link_key("zl-b")), None);
    });
}

#[test]
fn a_link_of_ours_is_changed_where_it_drifted_and_deleted() {
    in_namespace(|| async {
        let witness = witness();
        let index = stand_in(&witness, "zl-a", mark().link_group()).await;
        let mut kernel = open();
        let drift = LinkUnspec::new_with_index(index).mtu(1300).down().build();
        witness.link().change(drift).execute().await.unwrap();
        let seen = look_at(&mut kernel, &[]).await;
        let Spec::Link(link) = spec(&seen, &link_key("zl-a")) else { panic!() };
        assert_eq!((link.mtu, link.up), (1300, false));
        let to = link_spec(1400, true);
        for _ in 0..2 {
            run(&mut kernel, update(link_key("zl-a"), link_spec(1300, false), to.clone())).await.unwrap();
        }
        let seen = look_at(&mut kernel, &[]).await;
        let Spec::Link(link) = spec(&seen, &link_key("zl-a")) else { panic!() };
        assert_eq!((link.mtu, link.up), (1400, true));
        for _ in 0..2 {
            run(&mut kernel, delete(link_key("zl-a"), to.clone())).await.unwrap();
        }
        assert_eq!(owner(&look_at(&mut kernel, &["zl-a"]).await, &link_key("zl-a")), None);
    });
}

#[test]
fn addresses_are_made_seen_and_removed_and_a_strangers_stays() {
    in_namespace(|| async {
        let witness = witness();
        let index = stand_in(&witness, "zl-a", mark().link_group()).await;
        let mut kernel = open();
        let ours = ["10.9.0.1/24", "fd00:9::1/64"].map(|address| address_key("zl-a", address));
        for key in &ours {
            for _ in 0..2 {
                run(&mut kernel, create(key.clone(), Spec::Address)).await.unwrap();
            }
        }
        let made =
            witness.address().get().set_link_index_filter(index).execute().try_collect::<Vec<_>>().await.unwrap();
        let ours_is = AddressAttribute::Protocol(ADDRESS_PROTOCOL.into());
        let count = made.iter().filter(|address| address.attributes.contains(&ours_is)).count();
        seen_here(&format!("{count} of our {} addresses say who made them (IFA_PROTO)", ours.len()));
        // A kernel before 5.18 does not say, and every address on a link of ours is ours (docs/OWNERSHIP.md).
        assert!([0, ours.len()].contains(&count), "{made:?}");
        let kernel_says = count > 0;
        let foreign = address_key("zl-a", "10.77.0.1/24");
        let foreign_address = IpAddr::from([10, 77, 0, 1]);
        witness.address().add(index, foreign_address, 24).execute().await.unwrap();
        let seen = look_at(&mut kernel, &[]).await;
        for key in &ours {
            assert_eq!(owner(&seen, key), Some(&Owner::Ours), "{key}");
        }
        assert_eq!(matches!(owner(&seen, &foreign), Some(Owner::Stranger(_))), kernel_says, "{seen:?}");
        assert_eq!(seen.coverage[&Subsystem::Address], Coverage::Whole);
        let link_local =
            |key: &&Key| matches!(key, Key::Address { address, .. } if address.to_string().starts_with("fe80"));
        assert_eq!(seen.objects.keys().find(link_local), None);
        // No route came with the address; the local table has a broadcast for it before Linux 5.14.
        let routes = witness.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let mut routes = routes.try_collect::<Vec<_>>().await.unwrap();
        routes.retain(|route| route.header.table == libc::RT_TABLE_MAIN);
        assert!(!format!("{routes:?}").contains("10.9.0.0"), "{routes:?}");
        let outcome = run(&mut kernel, delete(foreign.clone(), Spec::Address)).await;
        assert_eq!(matches!(outcome, Err(ActionError::Stranger(_))), kernel_says, "{outcome:?}");
        for key in &ours {
            for _ in 0..2 {
                run(&mut kernel, delete(key.clone(), Spec::Address)).await.unwrap();
            }
        }
        let seen = look_at(&mut kernel, &[]).await;
        assert!(ours.iter().all(|key| owner(&seen, key).is_none()));
        assert_eq!(owner(&seen, &foreign).is_some(), kernel_says);
        // A wanted address that somebody else made is what was wanted.
        run(&mut kernel, create(foreign, Spec::Address)).await.unwrap();
    });
}

#[test]
fn routes_carry_our_mark_and_come_and_go_in_both_families() {
    in_namespace(|| async {
        let witness = witness();
        stand_in(&witness, "zl-a", mark().link_group()).await;
        let mut kernel = open();
        let through = Spec::Route(RouteSpec::Through(name("zl-a")));
        let refused = Spec::Route(RouteSpec::Unreachable);
        let (metric, fallback) = (mark().route_metric(), mark().fallback_metric());
        let routes = [
            (route_key("10.9.0.0/16", metric), through.clone()),
            (route_key("10.9.0.0/16", fallback), refused.clone()),
            (route_key("fd00:9::/48", metric), through),
            (route_key("fd00:9::/48", fallback), refused),
        ];
        for (key, spec) in &routes {
            for _ in 0..2 {
                run(&mut kernel, create(key.clone(), spec.clone())).await.unwrap();
            }
        }
        let mut listed = witness.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        while let Some(route) = listed.try_next().await.unwrap() {
            if route.header.table == RouteHeader::RT_TABLE_MAIN {
                assert_eq!(route.header.protocol, RouteProtocol::from(157), "{route:?}");
            }
        }
        let seen = look_at(&mut kernel, &[]).await;
        for (key, wanted) in &routes {
            assert_eq!(seen.objects.get(key), Some(&Observed::ours(wanted.clone())), "{key}");
        }
        assert_eq!(seen.coverage[&Subsystem::Route], Coverage::Whole);
        for (key, was) in &routes {
            for _ in 0..2 {
                run(&mut kernel, delete(key.clone(), was.clone())).await.unwrap();
            }
        }
        let seen = look_at(&mut kernel, &[]).await;
        assert!(routes.iter().all(|(key, _)| owner(&seen, key).is_none()), "{seen:?}");
    });
}

#[test]
fn a_strangers_route_in_the_way_blocks_and_is_not_touched() {
    in_namespace(|| async {
        let witness = witness();
        let index = stand_in(&witness, "zl-a", mark().link_group()).await;
        let mut kernel = open();
        let metric = mark().route_metric();
        let foreign = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 9, 0, 0), 16)
            .output_interface(index)
            .priority(metric)
            .protocol(RouteProtocol::Static)
            .build();
        witness.route().add(foreign).execute().await.unwrap();
        let second = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 8, 0, 0), 16)
            .output_interface(index)
            .priority(other_mark().route_metric())
            .protocol(RouteProtocol::from(157))
            .build();
        witness.route().add(second).execute().await.unwrap();
        let before = everything(&witness).await;
        let key = route_key("10.9.0.0/16", metric);
        let through = Spec::Route(RouteSpec::Through(name("zl-a")));
        let created = run(&mut kernel, create(key.clone(), through.clone())).await;
        assert!(matches!(created, Err(ActionError::Stranger(_))), "{created:?}");
        // The kernel does not match it: protocol is part of the request.
        run(&mut kernel, delete(key, through.clone())).await.unwrap();
        let others = route_key("10.8.0.0/16", other_mark().route_metric());
        let deleted = run(&mut kernel, delete(others.clone(), through)).await;
        assert!(matches!(deleted, Err(ActionError::Stranger(_))), "{deleted:?}");
        assert_eq!(everything(&witness).await, before);
        let interest =
            Interest { subsystems: [Subsystem::Route].into(), keys: [others.clone()].into(), ..Interest::default() };
        let seen = look(&mut kernel, interest).await;
        assert!(matches!(owner(&seen, &others), Some(Owner::Stranger(_))));
        assert_eq!(seen.objects.len(), 1);
    });
}

#[test]
fn a_route_that_was_pointed_elsewhere_is_seen_and_pointed_back_in_one_step() {
    in_namespace(|| async {
        let witness = witness();
        stand_in(&witness, "zl-a", mark().link_group()).await;
        stand_in(&witness, "zl-b", mark().link_group()).await;
        let mut kernel = open();
        let through = |link: &str| Spec::Route(RouteSpec::Through(name(link)));
        for destination in ["10.9.0.0/16", "fd00:9::/48"] {
            let key = route_key(destination, mark().route_metric());
            run(&mut kernel, create(key.clone(), through("zl-b"))).await.unwrap();
            assert_eq!(spec(&look_at(&mut kernel, &[]).await, &key), &through("zl-b"));
            run(&mut kernel, update(key.clone(), through("zl-b"), through("zl-a"))).await.unwrap();
            let seen = look_at(&mut kernel, &[]).await;
            assert_eq!(spec(&seen, &key), &through("zl-a"));
            assert_eq!(seen.objects.keys().filter(|seen| **seen == key).count(), 1);
        }
    });
}

#[test]
fn a_setting_that_drifted_is_seen_and_set_back() {
    in_namespace(|| async {
        let witness = witness();
        stand_in(&witness, "zl-a", mark().link_group()).await;
        let mut kernel = open();
        let key = Key::Sysctl { link: name("zl-a"), setting: Setting::Ipv4RpFilter };
        run(&mut kernel, create(key.clone(), Spec::Sysctl(2))).await.unwrap();
        let interest =
            || Interest { subsystems: [Subsystem::Sysctl].into(), keys: [key.clone()].into(), ..Interest::default() };
        assert_eq!(spec(&look(&mut kernel, interest()).await, &key), &Spec::Sysctl(2));
        std::fs::write("/proc/sys/net/ipv4/conf/zl-a/rp_filter", "1").unwrap();
        let seen = look(&mut kernel, interest()).await;
        assert_eq!(spec(&seen, &key), &Spec::Sysctl(1));
        assert_eq!(seen.coverage[&Subsystem::Sysctl], Coverage::Whole);
        run(&mut kernel, update(key.clone(), Spec::Sysctl(1), Spec::Sysctl(2))).await.unwrap();
        assert_eq!(spec(&look(&mut kernel, interest()).await, &key), &Spec::Sysctl(2));
    });
}

#[test]
fn what_hangs_on_a_link_that_is_gone_is_gone_and_removing_it_is_no_failure() {
    in_namespace(|| async {
        let mut kernel = open();
        let peer = Key::Peer { device: name("zl-a"), public_key: WgPublicKey::from_bytes([1; 32]) };
        let through = Spec::Route(RouteSpec::Through(name("zl-a")));
        let things = [
            (address_key("zl-a", "10.9.0.1/24"), Spec::Address),
            (route_key("10.9.0.0/16", mark().route_metric()), through),
            (peer, Spec::Peer(PeerSpec::default())),
        ];
        for (key, spec) in things {
            let made = run(&mut kernel, create(key.clone(), spec.clone())).await;
            assert!(matches!(made, Err(ActionError::Gone(_))), "{key}: {made:?}");
            run(&mut kernel, delete(key, spec)).await.unwrap();
        }
        let seen = look_at(&mut kernel, &["zl-a"]).await;
        assert!(seen.objects.is_empty());
        assert!(seen.coverage.values().all(|coverage| *coverage == Coverage::Whole));
    });
}

#[test]
fn strangers_changes_of_our_things_wake_and_our_own_and_noise_do_not() {
    in_namespace(|| async {
        let witness = witness();
        let index = stand_in(&witness, "zl-a", mark().link_group()).await;
        let mut kernel = open();
        let mut hints = kernel.hints();
        look_at(&mut kernel, &["zl-wanted"]).await;
        while next_hint(&mut hints).await.is_some() {}
        let (route, address) = (route_key("10.9.0.0/16", mark().route_metric()), address_key("zl-a", "10.9.0.1/24"));
        run(&mut kernel, create(address, Spec::Address)).await.unwrap();
        let through = Spec::Route(RouteSpec::Through(name("zl-a")));
        run(&mut kernel, create(route, through)).await.unwrap();
        assert_eq!(next_hint(&mut hints).await, None, "our own changes");
        let noise = stand_in(&witness, "other", 0).await;
        let foreign = IpAddr::from([10, 66, 0, 1]);
        witness.address().add(noise, foreign, 24).execute().await.unwrap();
        assert_eq!(next_hint(&mut hints).await, None, "noise");
        let down = LinkUnspec::new_with_index(index).mtu(1300).build();
        witness.link().change(down).execute().await.unwrap();
        assert_eq!(next_hint(&mut hints).await, Some(Hint::Changed(Subsystem::Link)));
        while next_hint(&mut hints).await.is_some() {}
        witness.address().add(index, foreign, 24).execute().await.unwrap();
        assert_eq!(next_hint(&mut hints).await, Some(Hint::Changed(Subsystem::Address)));
        while next_hint(&mut hints).await.is_some() {}
        stand_in(&witness, "zl-wanted", 0).await;
        assert_eq!(next_hint(&mut hints).await, Some(Hint::Changed(Subsystem::Link)));
    });
}

#[test]
fn notifications_that_were_lost_become_an_overrun() {
    in_namespace(|| async {
        let witness = witness();
        let index = stand_in(&witness, "flood", 0).await;
        let mut kernel = open();
        let mut hints = kernel.hints();
        let started = Instant::now();
        // Nobody reads meanwhile; what 16 MiB (doubled by the kernel) cannot hold is lost.
        for number in 0..150_000_u32 {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::from(0x0b00_0000 + number * 64), 26)
                .output_interface(index)
                .build();
            witness.route().add(route).execute().await.unwrap();
            if started.elapsed() > PATIENCE {
                skipped(
                    "notifications_that_were_lost_become_an_overrun",
                    "this machine is too slow to fill the buffer",
                );
                return;
            }
        }
        assert_eq!(next_hint(&mut hints).await, Some(Hint::Overrun));
    });
}

#[test]
fn foreign_routes_are_neither_reported_nor_in_the_way_of_a_look() {
    in_namespace(|| async {
        let witness = witness();
        let index = stand_in(&witness, "zl-a", mark().link_group()).await;
        for number in 0..3000_u32 {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::from(0x0b00_0000 + number * 256), 24)
                .output_interface(index)
                .build();
            witness.route().add(route).execute().await.unwrap();
        }
        let mut kernel = open();
        let interest = Interest { subsystems: [Subsystem::Route].into(), ..Interest::default() };
        let started = Instant::now();
        let seen = look(&mut kernel, interest).await;
        println!("a look beside 3000 foreign routes: {:?}", started.elapsed());
        assert!(seen.objects.is_empty());
        assert_eq!(seen.coverage[&Subsystem::Route], Coverage::Whole);
    });
}

#[test]
fn candidates_are_the_hosts_own_addresses_and_not_those_of_containers() {
    in_namespace(|| async {
        let witness = witness();
        for (link, address) in [("eth7", "192.0.2.7"), ("docker0", "172.17.0.1"), ("br-12ab", "172.18.0.1")] {
            let index = stand_in(&witness, link, 0).await;
            witness.address().add(index, address.parse().unwrap(), 24).execute().await.unwrap();
        }
        let ours = stand_in(&witness, "zl-a", mark().link_group()).await;
        witness.address().add(ours, "10.9.0.1".parse().unwrap(), 24).execute().await.unwrap();
        let candidates = host_candidates(mark()).await.unwrap();
        assert_eq!(candidates, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    });
}
