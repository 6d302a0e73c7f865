//! A real network namespace as a stage: what somebody does to it is done with another hand on the same kernel.
//!
//! Mishaps are put between the agent and the kernel: an action that is not passed on, an answer that is swallowed, a look that is cut.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use futures::{TryStreamExt, executor::block_on, stream::BoxStream};
use overlayd::{
    action::Action,
    clock::UnixTime,
    ids::{IfName, WgPublicKey},
    object::{Key, LinkKind, LinkSpec, Spec, Subsystem},
    observed::{Coverage, Observation, Owner},
    platform::{
        ActionError, Hint, Interest, Kernel, ObserveError,
        linux::{DataPlaneChoice, LinuxKernel, LinuxOptions},
    },
};

use crate::{
    lab::delete_link,
    script::stage::{Mishap, Stage, Unsupported},
    world::mark,
};

/// What goes wrong, and when.
#[derive(Default)]
struct Mishaps {
    /// How many actions go well before it.
    once: VecDeque<(usize, Mishap)>,
    always: BTreeMap<Key, ActionError>,
}

impl Mishaps {
    fn take(&mut self, is_meant: impl Fn(Mishap) -> bool) -> Option<Mishap> {
        let position = self.once.iter().position(|(_, mishap)| is_meant(*mishap))?;
        if let Some((actions @ 1.., _)) = self.once.get_mut(position) {
            *actions -= 1;
            return None;
        }
        self.once.remove(position).map(|(_, mishap)| mishap)
    }
}

#[derive(Clone)]
pub struct RealStage {
    uapi_dir: PathBuf,
    mishaps: Arc<Mutex<Mishaps>>,
}

/// The real kernel, and what comes between.
pub struct Meddled {
    kernel: LinuxKernel,
    mishaps: Arc<Mutex<Mishaps>>,
}

fn lock(mishaps: &Mutex<Mishaps>) -> MutexGuard<'_, Mishaps> {
    mishaps.lock().unwrap()
}

impl Kernel for Meddled {
    async fn observe(&mut self, interest: &Interest) -> Result<Observation, ObserveError> {
        if lock(&self.mishaps).take(|mishap| matches!(mishap, Mishap::NothingIsSeen)).is_some() {
            return Err(ObserveError { what: "everything".into(), reason: "simulated".into() });
        }
        let mut seen = self.kernel.observe(interest).await?;
        let is_meant = |mishap| matches!(mishap, Mishap::DumpIsCut(part) if interest.subsystems.contains(&part));
        while let Some(Mishap::DumpIsCut(part)) = lock(&self.mishaps).take(is_meant) {
            seen.objects.retain(|key, _| key.subsystem() != part);
            seen.coverage.insert(part, Coverage::Partial("simulated interruption".into()));
        }
        Ok(seen)
    }

    async fn execute(&mut self, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        let mut outcomes = Vec::new();
        for action in actions {
            let (broken, mishap) = {
                let mut mishaps = lock(&self.mishaps);
                let broken = mishaps.always.get(action.key()).cloned();
                let of_actions = |mishap| matches!(mishap, Mishap::FailsBeforeItsEffect | Mishap::AnswerIsLost);
                let mishap = if broken.is_none() { mishaps.take(of_actions) } else { None };
                (broken, mishap)
            };
            outcomes.push(match (broken, mishap) {
                (Some(error), _) => Err(error),
                (None, Some(Mishap::FailsBeforeItsEffect)) => Err(ActionError::Failed("simulated".into())),
                (None, mishap) => {
                    let outcome = self.kernel.execute(std::slice::from_ref(action)).await.remove(0);
                    if mishap.is_some() { outcome.and(Err(ActionError::Timeout(1_000))) } else { outcome }
                }
            });
        }
        outcomes
    }

    fn hints(&mut self) -> BoxStream<'static, Hint> {
        self.kernel.hints()
    }
}

impl RealStage {
    /// An empty stage in the namespace of the calling thread, which has to be inside a tokio runtime.
    pub fn new(story: &str) -> Self {
        Self { uapi_dir: Path::new("/run/wireguard").join(story), mishaps: Arc::default() }
    }

    /// One that looks at the same namespace.
    pub fn witness(&self) -> Self {
        self.clone()
    }

    /// The agent's objects as they are.
    pub fn everything(&self) -> BTreeMap<Key, Spec> {
        let seen = self.look(&Interest { subsystems: Subsystem::ALL.into(), ..Interest::default() });
        let ours = seen.objects.into_iter().filter(|(_, seen)| seen.owner == Owner::Ours);
        ours.map(|(key, seen)| (key, seen.spec)).collect()
    }

    fn open(&self) -> LinuxKernel {
        let mut options = LinuxOptions::new(mark(), DataPlaneChoice::Auto, self.uapi_dir.clone());
        options.device_program = env!("CARGO_BIN_EXE_overlayd").into();
        LinuxKernel::open(options).unwrap()
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
        let mut interest = Interest { subsystems: Subsystem::ALL.into(), ..Interest::default() };
        interest.keys.insert(key.clone());
        if let Key::Link(name) = key {
            interest.links.insert(name.clone());
        }
        self.look(&interest).objects.remove(key).map(|seen| (seen.spec, seen.owner))
    }
}

impl Stage for RealStage {
    type Kernel = Meddled;

    fn kernel(&self) -> Meddled {
        Meddled { kernel: self.open(), mishaps: self.mishaps.clone() }
    }

    fn remove(&mut self, key: &Key) -> Result<(), Unsupported> {
        let (was, owner) = self.find(key).unwrap_or_else(|| panic!("{key} is not there"));
        match (key, owner) {
            (Key::Link(name), Owner::Stranger(_)) => block_on(delete_link(name.as_str())),
            _ => self.act(Action::Delete { key: key.clone(), was }),
        }
        Ok(())
    }

    fn put(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported> {
        let key = key.clone();
        self.act(match self.see(&key) {
            Some(from) => Action::Update { key, from, to: spec },
            None => Action::Create { key, spec },
        });
        Ok(())
    }

    fn put_stranger(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported> {
        let (Key::Link(name), Spec::Link(LinkSpec { kind: LinkKind::Other(kind), .. })) = (key, spec) else {
            return Err(Unsupported("strangers' objects other than links"));
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
