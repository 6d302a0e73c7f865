//! What a container's coming and going tells the loop: nothing, when it is our own doing.

use super::{bridge::veth_spec, container::inside_spec, containers::Container, *};

async fn count(hints: &mut BoxStream<'static, Hint>) -> Vec<Hint> {
    let mut all = Vec::new();
    while let Some(hint) = next_hint(hints).await {
        all.push(hint);
    }
    all
}

/// Waits until the link has gone through what a link goes through: the kernel's own addresses and routes come late.
async fn come_to_rest(witness: &Handle, link: &str) {
    let started = Instant::now();
    loop {
        let mut addresses = witness.address().get().execute();
        let index = index_of(witness, link).await;
        let mut settled = false;
        while let Some(address) = addresses.try_next().await.unwrap() {
            let tentative = format!("{address:?}").contains("Tentative");
            settled |= address.header.index == index && !tentative;
        }
        if settled || started.elapsed() > PATIENCE {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn attaching_and_detaching_makes_no_hint_and_meddling_does() {
    in_namespace(|| async {
        let witness = witness();
        let mut kernel = open();
        let mut hints = kernel.hints();
        let bridge = Spec::Link(LinkSpec::up(LinkKind::Bridge, 1420));
        run(&mut kernel, create(link_key("zl-a-b"), bridge.clone())).await.unwrap();
        run(&mut kernel, create(address_key("zl-a-b", "10.9.0.1/24"), Spec::Address)).await.unwrap();
        look_at(&mut kernel, &["zl-a-b", "veth-1-s"]).await;
        count(&mut hints).await;

        let container = Container::new();
        let veth = veth_spec(&container, "eth0", 1420, Some("zl-a-b"));
        let inside = Spec::Inside(inside_spec(&container, &["10.9.0.2/24", "fd00:9::2/64"], &[]));
        let global = veth_spec(&container, "eth1", 1420, None);
        let through = Spec::Route(RouteSpec::Through(name("veth-1-g")));
        let actions = [
            create(link_key("veth-1-s"), veth.clone()),
            create(link_key("veth-1-g"), global.clone()),
            create(address_key("veth-1-g", "fe80::1/64"), Spec::Address),
            create(Key::Inside(name("veth-1-s")), inside.clone()),
            create(route_key("10.8.0.2/32", mark().route_metric()), through.clone()),
            create(address_key("zl-a-b", "fd00:9::1/64"), Spec::Address),
            create(route_key("fd00:8::2/128", mark().route_metric()), through),
            delete(address_key("zl-a-b", "fd00:9::1/64"), Spec::Address),
        ];
        for (action, outcome) in actions.iter().zip(kernel.execute(&actions).await) {
            assert_eq!(outcome, Ok(()), "{action:?}");
        }
        come_to_rest(&witness, "veth-1-s").await;
        assert_eq!(count(&mut hints).await, [], "attach");

        let index = index_of(&witness, "veth-1-s").await;
        let alone = LinkUnspec::new_with_index(index).nocontroller().build();
        witness.link().change(alone).execute().await.unwrap();
        assert!(count(&mut hints).await.contains(&Hint::Changed(Subsystem::Link)), "the bridge was taken away");
        let seen = look_at(&mut kernel, &[]).await;
        run(&mut kernel, update(link_key("veth-1-s"), spec(&seen, &link_key("veth-1-s")).clone(), veth.clone()))
            .await
            .unwrap();
        assert_eq!(count(&mut hints).await, [], "repair");

        run(&mut kernel, delete(Key::Inside(name("veth-1-s")), inside)).await.unwrap();
        run(&mut kernel, delete(link_key("veth-1-s"), veth)).await.unwrap();
        run(&mut kernel, delete(link_key("veth-1-g"), global.clone())).await.unwrap();
        assert_eq!(count(&mut hints).await, [], "detach");

        run(&mut kernel, create(link_key("veth-1-g"), global)).await.unwrap();
        let index = index_of(&witness, "veth-1-g").await;
        witness.link().del(index).execute().await.unwrap();
        assert!(count(&mut hints).await.contains(&Hint::Changed(Subsystem::Link)), "deleted by somebody");
    });
}
