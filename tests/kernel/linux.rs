//! `platform::linux` on the kernel at hand. `rtnetlink` is the witness: it makes what strangers make, and looks independently.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use nix::sched::{CloneFlags, setns, unshare};
use overlayd::{
    action::Action,
    ids::{Cidr, IfName, Netns, WgPublicKey},
    object::{
        ADDRESS_PROTOCOL, DeviceSpec, EndpointSpec, FileSpec, InsideRoute, InsideSpec, Key, KeyPair, LinkKind,
        LinkSpec, Mark, PeerSpec, RouteSpec, Setting, Spec, Subsystem, VethPeer,
    },
    observed::{Coverage, Neighbour, Observation, Observed, Owner},
    platform::{
        ActionError, Hint, Interest, Kernel,
        linux::{DataPlane, DataPlaneChoice, LinuxKernel, LinuxOptions, host_candidates, netns},
    },
    secret::PrivateKey,
};
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, LinkWireguard, MulticastGroup, RouteMessageBuilder,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        address::AddressAttribute,
        link::{LinkAttribute, LinkMessage},
        route::{RouteHeader, RouteProtocol},
    },
};

mod base;
mod bridge;
mod container;
mod containers;
mod files;
mod firewall;
mod firewall_matrix;
mod firewall_town;
mod notifications;
mod wireguard;
mod wireguard_scale;

/// Longest wait for something that the kernel does by itself.
const PATIENCE: Duration = Duration::from_secs(10);

fn mark() -> Mark {
    Mark::of_instance("/var/lib/overlayd-test")
}

fn other_mark() -> Mark {
    Mark::of_instance("/var/lib/overlayd-other")
}

#[expect(clippy::explicit_write, reason = "println! is shown only for tests that fail")]
fn skipped(test: &str, reason: &str) {
    writeln!(std::io::stdout(), "SKIPPED: {test}: {reason}").unwrap();
}

/// What this kernel can do, for the table in docs/TESTING.md.
#[expect(clippy::explicit_write, reason = "println! is shown only for tests that fail")]
fn seen_here(what: &str) {
    writeln!(std::io::stdout(), "SEEN: Linux {}: {what}", crate::lab::release()).unwrap();
}

/// Runs a test on a thread of its own in a new network namespace.
fn in_namespace<F, T>(body: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()>,
{
    let test = thread::current().name().unwrap_or("test").to_owned();
    let worker = thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            skipped(&test, &format!("no network namespace of its own: {errno}"));
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(120), body()).await.unwrap();
        });
    });
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

fn witness() -> Handle {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

fn options(mark: Mark) -> LinuxOptions {
    LinuxOptions::new(mark, DataPlaneChoice::Auto, PathBuf::from("/run/overlayd-test"))
}

fn open() -> LinuxKernel {
    LinuxKernel::open(options(mark())).unwrap()
}

fn open_captured() -> (LinuxKernel, Receiver<Vec<u8>>) {
    let (sender, messages) = channel();
    let mut options = options(mark());
    options.capture = Some(sender);
    (LinuxKernel::open(options).unwrap(), messages)
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn link_key(text: &str) -> Key {
    Key::Link(name(text))
}

fn address_key(link: &str, address: &str) -> Key {
    Key::Address { link: name(link), address: address.parse().unwrap() }
}

fn route_key(destination: &str, metric: u32) -> Key {
    Key::Route { destination: cidr(destination), metric }
}

fn link_spec(mtu: u32, up: bool) -> Spec {
    Spec::Link(LinkSpec { up, ..LinkSpec::up(LinkKind::WireGuard, mtu) })
}

fn create(key: Key, spec: Spec) -> Action {
    Action::Create { key, spec }
}

fn delete(key: Key, was: Spec) -> Action {
    Action::Delete { key, was }
}

fn update(key: Key, from: Spec, to: Spec) -> Action {
    Action::Update { key, from, to }
}

async fn run(kernel: &mut LinuxKernel, action: Action) -> Result<(), ActionError> {
    kernel.execute(&[action]).await.remove(0)
}

async fn look(kernel: &mut LinuxKernel, interest: Interest) -> Observation {
    kernel.observe(&interest).await.unwrap()
}

/// Everything, with these names of interest.
async fn look_at(kernel: &mut LinuxKernel, links: &[&str]) -> Observation {
    let interest = Interest {
        subsystems: Subsystem::ALL.into(),
        links: links.iter().map(|link| name(link)).collect(),
        keys: BTreeSet::new(),
        ..Interest::default()
    };
    look(kernel, interest).await
}

fn owner<'a>(seen: &'a Observation, key: &Key) -> Option<&'a Owner> {
    seen.objects.get(key).map(|seen| &seen.owner)
}

fn spec<'a>(seen: &'a Observation, key: &Key) -> &'a Spec {
    &seen.objects.get(key).unwrap_or_else(|| panic!("{key} is not seen")).spec
}

async fn find_link(witness: &Handle, link: &str) -> Option<LinkMessage> {
    let mut found = witness.link().get().match_name(link.to_owned()).execute();
    found.try_next().await.ok().flatten()
}

pub async fn index_of(witness: &Handle, link: &str) -> u32 {
    find_link(witness, link).await.unwrap().header.index
}

fn group_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Group(group) => Some(*group),
        _ => None,
    })
}

/// A link that stands in for a WireGuard link: made like one of ours, of a kind that every kernel has.
async fn stand_in(witness: &Handle, link: &str, group: u32) -> u32 {
    let request = LinkBridge::new(link).link_group(group).up().build();
    witness.link().add(request).execute().await.unwrap();
    index_of(witness, link).await
}

/// All links, addresses and routes as text, without what changes by itself.
async fn everything(witness: &Handle) -> String {
    let mut text = String::new();
    let mut links = witness.link().get().execute();
    while let Some(mut link) = links.try_next().await.unwrap() {
        link.attributes.retain(|attribute| {
            !matches!(
                attribute,
                LinkAttribute::Stats(_)
                    | LinkAttribute::Stats64(_)
                    | LinkAttribute::LinkInfo(_)
                    | LinkAttribute::AfSpecUnspec(_)
            )
        });
        text.push_str(&format!("{link:?}\n"));
    }
    let mut addresses = witness.address().get().execute();
    while let Some(address) = addresses.try_next().await.unwrap() {
        text.push_str(&format!("{address:?}\n"));
    }
    let mut routes = witness.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await.unwrap() {
        text.push_str(&format!("{route:?}\n"));
    }
    text
}

/// The next hint within a short while, or `None`.
async fn next_hint(hints: &mut BoxStream<'static, Hint>) -> Option<Hint> {
    tokio::time::timeout(Duration::from_millis(300), hints.next()).await.ok().flatten()
}
