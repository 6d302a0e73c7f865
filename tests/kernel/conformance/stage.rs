//! A real network namespace as a stage: what somebody does to it is done with another hand on the same kernel.
//!
//! Leaves what goes wrong between the agent and the kernel to [`meddled`](super::meddled), and what is done in a container to [`hand`](super::hand).
//!
//! Where an action of our own backend does what another program would, it is used; its tables belong to no socket here, so that the hand may
//! touch those of the agent.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use futures::{TryStreamExt, executor::block_on};
use overlayd::{
    action::Action,
    clock::UnixTime,
    desired::{AttachmentId, Pid},
    ids::{IfName, Netns, WgPublicKey},
    object::{Family, InsideSpec, Key, LinkKind, LinkSpec, Setting, Spec, Subsystem},
    observed::{Coverage, Observation, Owner, Surroundings},
    platform::{
        ActionError, Interest, Kernel,
        linux::{DataPlaneChoice, LinuxKernel, LinuxOptions, netns},
    },
};

use super::{
    hand,
    meddled::{Meddled, Mishaps, lock},
};
use crate::{
    container::Container,
    lab::delete_link,
    overlay_node::until,
    script::stage::{Mishap, Stage, Unsupported},
    world::mark,
};

/// A kind of links that overlayd never makes and every kernel has.
const FOREIGN_KIND: &str = "ifb";

/// The processes of a story, and what names their namespaces.
type Containers = BTreeMap<String, (Container, Netns)>;

#[derive(Clone)]
pub struct RealStage {
    uapi_dir: PathBuf,
    mishaps: Arc<Mutex<Mishaps>>,
    containers: Arc<Mutex<Containers>>,
}

impl RealStage {
    /// An empty stage in the namespace of the calling thread, which has to be inside a tokio runtime.
    pub fn new(story: &str) -> Self {
        let uapi_dir = Path::new("/run/wireguard").join(story);
        Self { uapi_dir, mishaps: Arc::default(), containers: Arc::default() }
    }

    /// One that looks at the same namespace.
    pub fn witness(&self) -> Self {
        self.clone()
    }

    /// The agent's objects as they are.
    pub fn everything(&self) -> BTreeMap<Key, Spec> {
        let links = self.look(&Interest { subsystems: [Subsystem::Link].into(), ..Interest::default() });
        let mut interest = self.interest();
        for link in links.objects.into_keys() {
            if let Key::Link(link) = link {
                interest.keys.extend(Setting::ALL.map(|setting| Key::Sysctl { link: link.clone(), setting }));
            }
        }
        let ours = self.look(&interest).objects.into_iter().filter(|(_, seen)| seen.owner == Owner::Ours);
        ours.map(|(key, seen)| (key, seen.spec)).collect()
    }

    /// What a node has besides our objects, before anything happened to it.
    pub fn surroundings(&self) -> Surroundings {
        let seen = self.look(&Interest { subsystems: [Subsystem::Link].into(), ..Interest::default() });
        seen.surroundings.unwrap()
    }

    fn open(&self) -> LinuxKernel {
        let mut options = LinuxOptions::new(mark(), DataPlaneChoice::Auto, self.uapi_dir.clone());
        options.device_program = env!("CARGO_BIN_EXE_overlayd").into();
        options.plain_tables = true;
        LinuxKernel::open(options).unwrap()
    }

    /// Everything that is ours, and the containers' sides whatever the agent wants there.
    fn interest(&self) -> Interest {
        let mut interest = Interest { subsystems: Subsystem::ALL.into(), ..Interest::default() };
        let containers = self.containers.lock().unwrap();
        // Who has a pid now comes after who had it.
        let mut by_age: Vec<&Netns> = containers.values().map(|(_, netns)| netns).collect();
        by_age.sort_by_key(|netns| netns.start_time);
        for netns in by_age {
            for (link, name) in ends(netns).into_iter().zip(["eth0", "eth1"]) {
                let nothing = InsideSpec {
                    netns: netns.clone(),
                    name: name.parse().unwrap(),
                    mtu: 0,
                    up: true,
                    addresses: [].into(),
                    routes: [].into(),
                };
                interest.insides.insert(link, nothing);
            }
        }
        interest
    }

    fn look(&self, interest: &Interest) -> Observation {
        let seen = block_on(self.open().observe(interest)).unwrap();
        assert!(seen.coverage.values().all(|coverage| *coverage == Coverage::Whole), "{:?}", seen.coverage);
        seen
    }

    fn act(&self, action: Action) {
        let text = format!("{} {}", action.verb(), action.key());
        let outcome = block_on(self.open().execute(&[action])).remove(0);
        outcome.unwrap_or_else(|error| panic!("{text}: {error}"));
    }

    fn is_strangers(&self, key: &Key) -> bool {
        self.find(key).is_some_and(|(_, owner)| owner != Owner::Ours)
    }

    fn find(&self, key: &Key) -> Option<(Spec, Owner)> {
        let mut interest = self.interest();
        interest.keys.insert(key.clone());
        if let Key::Link(name) = key {
            interest.links.insert(name.clone());
        }
        self.look(&interest).objects.remove(key).map(|seen| (seen.spec, seen.owner))
    }
}

/// The host's ends of a container's pairs.
fn ends(netns: &Netns) -> [IfName; 2] {
    AttachmentId::Container(Pid::new(netns.pid).unwrap()).links().unwrap()
}

/// Runs a program that only some machines have.
fn run(program: &str, arguments: &[&str]) -> Result<(), Unsupported> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => panic!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => Err(Unsupported("the program nft is not installed")),
    }
}

impl Stage for RealStage {
    type Kernel = Meddled;

    fn kernel(&self) -> Meddled {
        Meddled { kernel: self.open(), mishaps: self.mishaps.clone() }
    }

    fn remove(&mut self, key: &Key) -> Result<(), Unsupported> {
        let (was, owner) = self.find(key).unwrap_or_else(|| panic!("{key} is not there"));
        match (key, was) {
            (Key::Ruleset, _) if owner != Owner::Ours => run("nft", &["delete", "table", "inet", &table()])?,
            (Key::Link(name), _) => block_on(delete_link(name.as_str())),
            (_, Spec::Inside(was)) => {
                let nothing = InsideSpec { addresses: [].into(), routes: [].into(), ..was.clone() };
                hand::rewire(was, nothing);
            }
            (_, was) => self.act(Action::Delete { key: key.clone(), was }),
        }
        Ok(())
    }

    fn put(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported> {
        let key = key.clone();
        match (self.see(&key), spec) {
            (Some(Spec::Inside(from)), Spec::Inside(to)) => hand::rewire(from, to),
            (Some(Spec::Ruleset(from)), Spec::Ruleset(to)) if from.intact && !to.intact => {
                run("nft", &["flush", "table", "inet", &table()])?;
            }
            (_, Spec::Sysctl(value)) => {
                let Key::Sysctl { link, setting } = &key else { unreachable!("the key of a setting") };
                let (family, name) = setting.path();
                std::fs::write(format!("/proc/sys/net/{family}/conf/{link}/{name}"), value.to_string()).unwrap();
            }
            (Some(from), to) => self.act(Action::Update { key, from, to }),
            (None, spec) => self.act(Action::Create { key, spec }),
        }
        Ok(())
    }

    fn begin(&mut self, name: &str, before: Option<&Netns>) -> Result<Netns, Unsupported> {
        let container = match before {
            None => Container::new(),
            Some(before) => {
                let same = Container::with_pid(i32::try_from(before.pid).unwrap());
                same.ok_or(Unsupported("this process may not choose a pid"))?
            }
        };
        let netns = netns::identify(u32::try_from(container.pid).unwrap()).unwrap();
        self.containers.lock().unwrap().insert(name.to_owned(), (container, netns.clone()));
        Ok(netns)
    }

    fn end(&mut self, name: &str) -> Result<(), Unsupported> {
        let mut containers = self.containers.lock().unwrap();
        let (container, netns) = containers.get_mut(name).unwrap();
        container.kill();
        // The kernel takes a namespace apart some time after its last process has ended.
        let is_there = |link: &IfName| nix::net::if_::if_nametoindex(link.as_str()).is_ok();
        until("the pairs have gone with their namespace", || !ends(netns).iter().any(is_there));
        Ok(())
    }

    fn drop_forwarded(&mut self, family: Family, drops: bool) -> Result<(), Unsupported> {
        let family = if family == Family::Ipv4 { "ip" } else { "ip6" };
        let policy = if drops { "drop" } else { "accept" };
        let chain = format!("{{ type filter hook forward priority 0; policy {policy}; }}");
        run("nft", &["add", "table", family, "filter"])?;
        run("nft", &["add", "chain", family, "filter", "FORWARD", &chain])
    }

    fn way_out(&mut self, link: &IfName, is_there: bool) -> Result<(), Unsupported> {
        if is_there {
            block_on(make_link(link.as_str(), FOREIGN_KIND));
            block_on(hand::default_route(link.as_str()));
        } else {
            block_on(delete_link(link.as_str()));
        }
        Ok(())
    }

    fn put_stranger(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported> {
        if *key == Key::Ruleset {
            if self.see(key).is_some() {
                self.remove(key)?;
            }
            return run("nft", &["add", "table", "inet", &table()]);
        }
        let (Key::Link(name), Spec::Link(LinkSpec { kind: LinkKind::Other(kind), .. })) = (key, spec) else {
            return Err(Unsupported("strangers' objects other than links and tables"));
        };
        // A link of ours with the name makes room.
        if self.see(key).is_some() && !self.is_strangers(key) {
            block_on(delete_link(name.as_str()));
        }
        block_on(make_link(name.as_str(), &kind));
        Ok(())
    }

    fn handshake(&mut self, _: &IfName, _: &WgPublicKey, _: UnixTime) -> Result<(), Unsupported> {
        Err(Unsupported("nobody answers here"))
    }

    fn mishap(&mut self, mishap: Mishap, after_actions: usize) -> Result<(), Unsupported> {
        lock(&self.mishaps).once.push_back((after_actions, mishap));
        Ok(())
    }

    fn break_object(&mut self, key: &Key, error: ActionError) -> Result<(), Unsupported> {
        lock(&self.mishaps).always.insert(key.clone(), error);
        Ok(())
    }

    fn mend(&mut self, key: &Key) -> Result<(), Unsupported> {
        lock(&self.mishaps).always.remove(key);
        Ok(())
    }

    fn see(&self, key: &Key) -> Option<Spec> {
        self.find(key).map(|(spec, _)| spec)
    }

    fn sessions_lost(&self, _: &IfName, _: &WgPublicKey) -> Result<u32, Unsupported> {
        Err(Unsupported("a real kernel does not count lost sessions"))
    }
}

/// The name of our tables.
fn table() -> String {
    format!("overlayd_{:06x}", mark().link_group() & 0x00FF_FFFF)
}

async fn make_link(name: &str, kind: &str) {
    use rtnetlink::{
        LinkMessageBuilder, LinkUnspec,
        packet_route::link::{InfoKind, LinkAttribute, LinkInfo},
    };
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))]);
    let message =
        LinkMessageBuilder::<LinkUnspec>::new().name(name.to_owned()).append_extra_attribute(info).up().build();
    handle.link().add(message).execute().await.unwrap();
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    assert!(found.try_next().await.unwrap().is_some());
}
