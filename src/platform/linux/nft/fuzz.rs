//! What must hold whatever nf_tables answers. See [`fuzz`](super::super::fuzz).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::answer::messages,
    element::{Element, of_ruleset, to_ruleset},
    encode::{Attributes, GENERIC, SUBSYSTEM, Verb},
    firewall, guest,
    held::Held,
    read,
    shape::{Half, SetShape, network_sets, sets, table_name},
    watch,
};
use crate::{object::Mark, platform::linux::fuzz::MARKED};

/// The network whose sets are among those that are asked for.
const NETWORK: u32 = 7;

/// Reads a datagram of nf_tables as a dump, and as notifications.
pub(in crate::platform::linux) fn ruleset(datagram: &[u8]) {
    let mut held = BTreeSet::new();
    let table = table_name(Mark::of_instance(MARKED));
    for message in messages(datagram).filter(|message| message.kind >> 8 == SUBSYSTEM) {
        let _ = watch::concerned(&message, &table);
        let Some((family, attributes)) = message.body.first().zip(message.body.get(GENERIC..)) else { continue };
        check_attributes(attributes);
        let verb = message.kind & 0xff;
        if verb == Verb::NewTable as u16 {
            let _ = read::table_seen(attributes);
        } else if verb == Verb::NewChain as u16 {
            let _ = (read::chain(attributes), guest::chain(attributes));
        } else if verb == Verb::NewRule as u16 {
            let _ = read::rule(attributes);
            guest::check_rule(attributes);
        } else if verb == Verb::NewSet as u16 {
            let _ = read::set(attributes);
        } else if verb == Verb::NewElements as u16 {
            held.extend(elements(*family, attributes).unwrap_or_default());
        } else {
            let _ = read::number(attributes, 1);
        }
    }
    check_held(held);
}

/// Attributes end, and none lies outside of what holds them.
fn check_attributes(bytes: &[u8]) {
    let mut length = 0;
    for attribute in read::attributes(bytes) {
        length += 4 + attribute.map_or(0, |(_, value)| value.len());
        assert!(length <= bytes.len() + 4, "attributes of {length} bytes in {}", bytes.len());
    }
}

/// The elements of a message about a set that we have; they are written back as they were read.
fn elements(family: u8, attributes: &[u8]) -> Option<Vec<Element>> {
    let half = Half::BOTH.into_iter().find(|half| half.family() == family)?;
    let name = read::text(attributes, 2)?;
    let of_network = network_sets(half, NETWORK);
    let shape: &SetShape = sets(half).iter().chain(&of_network).find(|shape| shape.name == name)?;
    let elements = read::elements(attributes, half, shape)?;
    let list = elements.iter().fold(Attributes::default(), |list, element| list.join(&firewall::encoded(element)));
    if list.len() < usize::from(u16::MAX) - 4 {
        let again = read::elements(Attributes::default().nest(3, &list).as_bytes(), half, shape);
        assert!(again.as_ref() == Some(&elements), "elements are read back as others: {elements:?}");
    }
    Some(elements)
}

fn check_held(elements: BTreeSet<Element>) {
    let held = Held::new(elements.iter().cloned());
    assert!(held.elements().all(|element| elements.contains(element)), "an element came from nowhere");
    let (_, _) = (held.has_strays(), held.networks().count());
    let ruleset = to_ruleset(&held.fixed);
    if ruleset.intact {
        let again = to_ruleset(&of_ruleset(&ruleset));
        // Networks that lie in others are left out when they are written.
        assert!(again.intact && again.node == ruleset.node && again.gateways == ruleset.gateways, "{ruleset:?}");
    }
    // What is seen can be made whole, and every member can be taken away again.
    let mended = held.mended();
    assert!(mended == Held::new(mended.elements().cloned()), "a mended copy is not what the sets would say");
    let members = held.members();
    let after = mended.members();
    assert!(after.keys().all(|address| members.contains_key(address)), "a member came from nowhere");
    let has_port = members.iter().filter(|(_, spec)| !spec.ports.is_empty());
    assert!(
        has_port.map(|(address, _)| address).all(|address| after.contains_key(address)),
        "a member was mended away"
    );
    let mut emptied = mended;
    let gone: BTreeMap<_, _> = members.keys().map(|address| (*address, None)).collect();
    let change = emptied.change(gone);
    emptied.accept(change);
    assert!(emptied == Held::default(), "something of a member stays behind");
}

/// Our own tables as we make them, which is how the kernel describes them.
#[cfg(test)]
pub(in crate::platform::linux) mod seeds {
    use super::{super::encode::Body, *};
    use crate::{
        object::{MemberSpec, NetworkId, RulesetSpec},
        platform::linux::{
            nft::{
                element::{of_member, of_port},
                rules::rules,
                shape::{chains, network_chain, table_comment},
            },
            socket::frame,
        },
    };

    pub(in crate::platform::linux) fn all() -> Vec<(String, Vec<u8>)> {
        let mark = Mark::of_instance(MARKED);
        let table = table_name(mark);
        let told = |verb: Verb, half: Half, attributes: &Attributes| {
            let message = frame(verb.kind(), 2, &Body::new(half.family(), attributes));
            [b"n", &message[..]].concat()
        };
        let mut all = Vec::new();
        let own = Attributes::default().text(1, &table).number(2, 0).bytes(6, &table_comment(mark));
        all.push(("own-table".into(), told(Verb::NewTable, Half::Inet, &own)));
        for (number, shape) in sets(Half::Inet).iter().enumerate().filter(|(number, _)| number % 4 == 0) {
            all.push((format!("own-set-{number}"), told(Verb::NewSet, Half::Inet, &shape.request(&table, 1))));
        }
        for (number, shape) in chains(Half::Inet)[..2].iter().chain([&network_chain(NETWORK)]).enumerate() {
            all.push((format!("own-chain-{number}"), told(Verb::NewChain, Half::Inet, &shape.request(&table))));
        }
        for (number, rule) in rules(Half::Inet).iter().take(3).enumerate() {
            all.push((format!("own-rule-{number}"), told(Verb::NewRule, Half::Inet, &rule.request(&table))));
        }
        for ((half, set), elements) in by_set() {
            let list = elements.iter().fold(Attributes::default(), |list, one| list.join(&firewall::encoded(one)));
            let request = Attributes::default().text(1, &table).text(2, &set).nest(3, &list);
            all.push((format!("own-{}-{set}", half.word()), told(Verb::NewElements, half, &request)));
        }
        let member: Vec<u8> = all
            .iter()
            .filter(|(name, _)| name.contains("4") || name.contains("port"))
            .flat_map(|(_, bytes)| bytes[1..].to_vec())
            .collect();
        all.push(("own-member".into(), [b"n", &member[..]].concat()));
        all
    }

    fn by_set() -> BTreeMap<(Half, String), Vec<Element>> {
        let spec = RulesetSpec {
            intact: true,
            overlay: ["10.200.0.0/16", "fd00:200::/48"].map(|net| net.parse().unwrap()).into(),
            local: ["10.200.95.0/26", "10.200.95.64/26"].map(|net| net.parse().unwrap()).into(),
            node: ["10.200.0.1".parse().unwrap()].into(),
            gateways: [("zl-a-b".parse().unwrap(), "10.200.95.1".parse().unwrap())].into(),
            links: ["zl-a-b".parse().unwrap()].into(),
        };
        let member = MemberSpec { ports: ["veth-7-s".parse().unwrap()].into(), network: Some(NetworkId(NETWORK)) };
        let port = "veth-7-s".parse().unwrap();
        let elements = of_ruleset(&spec)
            .into_iter()
            .chain(of_member(&"10.200.95.2".parse().unwrap(), &member))
            .chain(of_member(&"fd00:200::2".parse().unwrap(), &member))
            .chain(of_port(&port, Some(NetworkId(NETWORK))));
        let mut all: BTreeMap<(Half, String), Vec<Element>> = BTreeMap::new();
        for element in elements {
            all.entry((element.half, element.set.to_string())).or_default().push(element);
        }
        all
    }
}
