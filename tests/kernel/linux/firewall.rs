use std::{collections::BTreeMap, process::Command};

use overlayd::object::{MemberSpec, NetworkId, RulesetSpec};

use super::*;

pub(super) fn plain_options() -> LinuxOptions {
    LinuxOptions { plain_tables: true, ..options(mark()) }
}

pub(super) fn ruleset() -> RulesetSpec {
    RulesetSpec {
        intact: true,
        overlay: ["10.200.0.0/16".parse().unwrap(), "fd00:200::/48".parse().unwrap()].into(),
        local: ["10.200.95.0/26".parse().unwrap(), "10.200.95.64/26".parse().unwrap()].into(),
        node: ["10.200.0.1".parse().unwrap(), "10.200.95.1".parse().unwrap(), "fd00:200::1".parse().unwrap()].into(),
        gateways: [(name("zl-a-b"), "10.200.95.1".parse().unwrap()), (name("zl-a-b"), "10.200.0.1".parse().unwrap())]
            .into(),
        links: [name("zl-a-b"), name("zl-a-g")].into(),
    }
}

pub(super) fn member(port: &str, network: u32) -> MemberSpec {
    MemberSpec { ports: [name(port)].into(), network: (network > 0).then_some(NetworkId(network)) }
}

pub(super) fn create_ruleset(spec: RulesetSpec) -> Action {
    Action::Create { key: Key::Ruleset, spec: Spec::Ruleset(spec) }
}

pub(super) fn create_member(address: &str, spec: MemberSpec) -> Action {
    Action::Create { key: Key::Member(address.parse().unwrap()), spec: Spec::Member(spec) }
}

/// What the backend says of ruleset and members.
pub(super) async fn seen(kernel: &mut LinuxKernel) -> (Option<RulesetSpec>, BTreeMap<IpAddr, MemberSpec>) {
    let subsystems = BTreeSet::from([Subsystem::Ruleset, Subsystem::Member]);
    let seen = look(kernel, Interest { subsystems, ..Interest::default() }).await;
    assert_eq!(seen.coverage.get(&Subsystem::Ruleset), Some(&Coverage::Whole));
    assert_eq!(seen.coverage.get(&Subsystem::Member), Some(&Coverage::Whole));
    let (mut ruleset, mut members) = (None, BTreeMap::new());
    for (key, observed) in seen.objects {
        assert_eq!(observed.owner, Owner::Ours);
        match (key, observed.spec) {
            (Key::Ruleset, Spec::Ruleset(spec)) => ruleset = Some(spec),
            (Key::Member(address), Spec::Member(spec)) => drop(members.insert(address, spec)),
            (key, spec) => panic!("{key}: {spec:?}"),
        }
    }
    (ruleset, members)
}

/// What a program of the netfilter project prints; `None` when it is not installed.
pub(super) fn printed(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

#[test]
fn ruleset_and_members_are_read_back_as_they_were_written() {
    in_namespace(|| async {
        let mut kernel = LinuxKernel::open(options(mark())).unwrap();
        assert_eq!(seen(&mut kernel).await, (None, BTreeMap::new()));
        run(&mut kernel, create_ruleset(ruleset())).await.unwrap();
        let all = [("10.200.95.2", member("veth-1-s", 7)), ("fd00:200::2", member("veth-1-s", 7))];
        for (address, spec) in all.clone() {
            run(&mut kernel, create_member(address, spec)).await.unwrap();
        }
        if let Some(text) = printed("nft", &["list", "ruleset"]) {
            println!("{text}");
            // Both flags are set or none: see `HELD_BY_SOCKET` in the backend.
            let way = if text.contains("flags owner") { "have the flags owner and persist" } else { "have no flags" };
            seen_here(&format!("our nft tables {way}"));
        }
        let (seen, members) = seen(&mut kernel).await;
        assert_eq!(seen, Some(ruleset()));
        assert_eq!(members, all.into_iter().map(|(address, spec)| (address.parse().unwrap(), spec)).collect());
    });
}

/// A kernel before 6.9 cannot give a table to a socket.
#[test]
fn tables_that_belong_to_no_socket_are_made_again_when_somebody_flushes_them() {
    in_namespace(|| async {
        let mut kernel = LinuxKernel::open(plain_options()).unwrap();
        let address: IpAddr = "10.200.95.2".parse().unwrap();
        for _ in 0..2 {
            run(&mut kernel, create_ruleset(ruleset())).await.unwrap();
            run(&mut kernel, create_member("10.200.95.2", member("veth-1-s", 7))).await.unwrap();
            assert_eq!(seen(&mut kernel).await, (Some(ruleset()), [(address, member("veth-1-s", 7))].into()));
            if printed("nft", &["flush", "ruleset"]).is_none() {
                skipped("tables_that_belong_to_no_socket", "nft is not installed");
                return;
            }
            assert_eq!(seen(&mut kernel).await, (None, BTreeMap::new()));
        }
    });
}
