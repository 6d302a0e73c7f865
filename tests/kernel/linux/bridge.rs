//! Bridges, their ports, the settings of both, and what the node has besides.

use rtnetlink::packet_route::link::{BridgeStpState, InfoBridge, InfoData, InfoKind, LinkInfo};

use super::{containers::Container, *};

fn bridge_spec(mtu: u32) -> Spec {
    Spec::Link(LinkSpec::up(LinkKind::Bridge, mtu))
}

pub fn veth_spec(container: &Container, inner: &str, mtu: u32, master: Option<&str>) -> Spec {
    Spec::Link(LinkSpec {
        master: master.map(name),
        peer: Some(VethPeer { netns: container.netns(), name: name(inner) }),
        ..LinkSpec::up(LinkKind::Veth, mtu)
    })
}

#[test]
fn a_bridge_is_made_seen_changed_and_removed() {
    in_namespace(|| async {
        let witness = witness();
        let mut kernel = open();
        let key = link_key("zl-a-b");
        for _ in 0..2 {
            run(&mut kernel, create(key.clone(), bridge_spec(1420))).await.unwrap();
        }
        let seen = look_at(&mut kernel, &[]).await;
        assert_eq!(seen.objects.get(&key), Some(&Observed::ours(bridge_spec(1420))));
        let found = find_link(&witness, "zl-a-b").await.unwrap();
        assert_eq!(group_of(&found), Some(mark().link_group()));
        let mut drift = LinkUnspec::new_with_index(found.header.index).mtu(1300).build();
        drift.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::StpState(BridgeStpState::KernelStp)])),
        ]));
        witness.link().change(drift).execute().await.unwrap();
        let seen = look_at(&mut kernel, &[]).await;
        let Spec::Link(now) = spec(&seen, &key) else { panic!() };
        assert_eq!((now.mtu, now.stp), (1300, true), "{now:?}");
        run(&mut kernel, update(key.clone(), Spec::Link(now.clone()), bridge_spec(1420))).await.unwrap();
        assert_eq!(spec(&look_at(&mut kernel, &[]).await, &key), &bridge_spec(1420));
        for _ in 0..2 {
            run(&mut kernel, delete(key.clone(), bridge_spec(1420))).await.unwrap();
        }
        assert!(find_link(&witness, "zl-a-b").await.is_none());
    });
}

#[test]
fn a_bridge_keeps_its_mtu_and_its_hardware_address_when_ports_come_and_go() {
    in_namespace(|| async {
        let witness = witness();
        let mut kernel = open();
        run(&mut kernel, create(link_key("zl-a-b"), bridge_spec(1400))).await.unwrap();
        let address = |link: LinkMessage| {
            link.attributes.into_iter().find(|attribute| matches!(attribute, LinkAttribute::Address(_)))
        };
        let before = address(find_link(&witness, "zl-a-b").await.unwrap());
        for number in 0..8 {
            let container = Container::new();
            let port = format!("veth-{number}-s");
            let wanted = veth_spec(&container, "eth0", 1400, Some("zl-a-b"));
            run(&mut kernel, create(link_key(&port), wanted.clone())).await.unwrap();
            assert_eq!(address(find_link(&witness, "zl-a-b").await.unwrap()), before);
            run(&mut kernel, delete(link_key(&port), wanted)).await.unwrap();
        }
        let seen = look_at(&mut kernel, &[]).await;
        assert_eq!(spec(&seen, &link_key("zl-a-b")), &bridge_spec(1400));
        assert_eq!(address(find_link(&witness, "zl-a-b").await.unwrap()), before);
    });
}

#[test]
fn a_strangers_bridge_gets_no_port_of_ours() {
    in_namespace(|| async {
        let witness = witness();
        stand_in(&witness, "zl-a-b", 0).await;
        let mut kernel = open();
        let container = Container::new();
        let (before, inside) = (everything(&witness).await, container.listing());
        let made = run(&mut kernel, create(link_key("zl-a-b"), bridge_spec(1420))).await;
        assert!(matches!(made, Err(ActionError::Stranger(_))), "{made:?}");
        let veth = veth_spec(&container, "eth0", 1420, Some("zl-a-b"));
        let made = run(&mut kernel, create(link_key("veth-1-s"), veth)).await;
        assert!(matches!(&made, Err(ActionError::Stranger(text)) if text.contains("zl-a-b")), "{made:?}");
        assert_eq!((everything(&witness).await, container.listing()), (before, inside));
    });
}

#[test]
fn a_port_that_lost_its_bridge_is_seen_and_plugged_in_again() {
    in_namespace(|| async {
        let witness = witness();
        let mut kernel = open();
        let container = Container::new();
        let wanted = veth_spec(&container, "eth0", 1420, Some("zl-a-b"));
        run(&mut kernel, create(link_key("zl-a-b"), bridge_spec(1420))).await.unwrap();
        run(&mut kernel, create(link_key("veth-1-s"), wanted.clone())).await.unwrap();
        assert_eq!(spec(&look_at(&mut kernel, &[]).await, &link_key("veth-1-s")), &wanted);
        let index = index_of(&witness, "veth-1-s").await;
        let alone = LinkUnspec::new_with_index(index).nocontroller().down().build();
        witness.link().change(alone).execute().await.unwrap();
        let seen = look_at(&mut kernel, &[]).await;
        let Spec::Link(now) = spec(&seen, &link_key("veth-1-s")) else { panic!() };
        assert_eq!((&now.master, now.up), (&None, false));
        run(&mut kernel, update(link_key("veth-1-s"), Spec::Link(now.clone()), wanted.clone())).await.unwrap();
        assert_eq!(spec(&look_at(&mut kernel, &[]).await, &link_key("veth-1-s")), &wanted);
    });
}

#[test]
fn the_nodes_link_local_gateway_is_ours_and_the_kernels_own_are_not_reported() {
    in_namespace(|| async {
        let mut kernel = open();
        let container = Container::new();
        let wanted = veth_spec(&container, "eth1", 1420, None);
        run(&mut kernel, create(link_key("veth-1-g"), wanted)).await.unwrap();
        let key = address_key("veth-1-g", "fe80::1/64");
        for _ in 0..2 {
            run(&mut kernel, create(key.clone(), Spec::Address)).await.unwrap();
        }
        let seen = look_at(&mut kernel, &[]).await;
        let addresses: Vec<&Key> = seen.objects.keys().filter(|key| matches!(key, Key::Address { .. })).collect();
        assert_eq!(addresses, [&key]);
        assert_eq!(owner(&seen, &key), Some(&Owner::Ours));
        run(&mut kernel, delete(key.clone(), Spec::Address)).await.unwrap();
        assert_eq!(owner(&look_at(&mut kernel, &[]).await, &key), None);
    });
}

fn forwarding(link: &str, setting: Setting) -> Key {
    Key::Sysctl { link: name(link), setting }
}

#[test]
fn forwarding_is_raised_on_our_links_and_the_way_out_and_nowhere_else() {
    in_namespace(|| async {
        let witness = witness();
        let mut kernel = open();
        run(&mut kernel, create(link_key("zl-a-b"), bridge_spec(1420))).await.unwrap();
        let out = stand_in(&witness, "out0", 0).await;
        stand_in(&witness, "other0", 0).await;
        let keys = ["zl-a-b", "out0", "other0"].map(|link| forwarding(link, Setting::Ipv4Forwarding));
        let interest = || Interest {
            subsystems: [Subsystem::Link, Subsystem::Sysctl].into(),
            keys: keys.iter().cloned().collect(),
            ..Interest::default()
        };
        let seen = look(&mut kernel, interest()).await;
        assert!(seen.surroundings.as_ref().unwrap().uplinks.is_empty());
        assert!(matches!(owner(&seen, &keys[1]), Some(Owner::Stranger(_))), "{seen:?}");
        let raise = |key: &Key| update(key.clone(), Spec::Sysctl(0), Spec::Sysctl(1));
        let raised = run(&mut kernel, raise(&keys[1])).await;
        assert!(matches!(raised, Err(ActionError::Stranger(_))), "not the way out yet: {raised:?}");

        witness.address().add(out, "192.0.2.7".parse().unwrap(), 28).execute().await.unwrap();
        let default = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(out).build();
        witness.route().add(default).execute().await.unwrap();
        let seen = look(&mut kernel, interest()).await;
        let surroundings = seen.surroundings.as_ref().unwrap();
        assert_eq!(surroundings.uplinks, [name("out0")].into());
        let here = std::fs::exists("/proc/sys/net/ipv6/conf/lo/force_forwarding").unwrap();
        assert_eq!(surroundings.force_forwarding, here);
        assert_eq!(seen.objects.get(&keys[1]), Some(&Observed::ours(Spec::Sysctl(0))));
        for key in &keys[..2] {
            run(&mut kernel, raise(key)).await.unwrap();
        }
        let seen = look(&mut kernel, interest()).await;
        assert_eq!((spec(&seen, &keys[0]), spec(&seen, &keys[1])), (&Spec::Sysctl(1), &Spec::Sysctl(1)));
        let refused = [
            raise(&keys[2]),
            update(keys[1].clone(), Spec::Sysctl(1), Spec::Sysctl(0)),
            update(forwarding("out0", Setting::Ipv4RpFilter), Spec::Sysctl(0), Spec::Sysctl(1)),
            raise(&forwarding("all", Setting::Ipv4Forwarding)),
            raise(&forwarding("default", Setting::Ipv4Forwarding)),
        ];
        for action in refused {
            let outcome = run(&mut kernel, action.clone()).await;
            assert!(matches!(outcome, Err(ActionError::Stranger(_) | ActionError::Gone(_))), "{action:?}: {outcome:?}");
        }
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/forwarding").unwrap(), "0\n");
    });
}

#[test]
fn ipv6_is_forwarded_link_by_link_where_the_kernel_can() {
    in_namespace(|| async {
        if !std::fs::exists("/proc/sys/net/ipv6/conf/lo/force_forwarding").unwrap() {
            skipped("ipv6_is_forwarded_link_by_link_where_the_kernel_can", "this kernel cannot (before 6.17)");
            return;
        }
        let mut kernel = open();
        run(&mut kernel, create(link_key("zl-a-b"), bridge_spec(1420))).await.unwrap();
        let key = forwarding("zl-a-b", Setting::Ipv6ForceForwarding);
        run(&mut kernel, update(key.clone(), Spec::Sysctl(0), Spec::Sysctl(1))).await.unwrap();
        let interest =
            Interest { subsystems: [Subsystem::Sysctl].into(), keys: [key.clone()].into(), ..Interest::default() };
        assert_eq!(look(&mut kernel, interest).await.objects.get(&key), Some(&Observed::ours(Spec::Sysctl(1))));
    });
}
