use std::collections::BTreeMap;

use overlayd::{
    clock::UnixTime,
    ids::{IfName, Netns, WgPublicKey},
    object::{Family, Key, Setting, Spec},
    observed::{Observed, Owner, Surroundings},
    platform::{
        ActionError,
        sim::{Fault, SimKernel, SimNode},
    },
};

use super::stage::{Mishap, Stage, Unsupported};

/// A stage in memory, on which everything can be done.
#[derive(Default)]
pub struct SimStage {
    kernel: SimKernel,
    containers: BTreeMap<String, Netns>,
}

impl SimStage {
    /// One that has around it what another node has.
    pub fn amid(surroundings: Surroundings) -> Self {
        let mut node = SimNode::default();
        node.surroundings = surroundings;
        Self { kernel: SimKernel::new(node), containers: BTreeMap::new() }
    }
}

impl Stage for SimStage {
    type Kernel = SimKernel;

    fn kernel(&self) -> SimKernel {
        self.kernel.clone()
    }

    fn remove(&mut self, key: &Key) -> Result<(), Unsupported> {
        assert!(self.kernel.node(|node| node.remove(key)), "{key} is not there");
        Ok(())
    }

    fn put(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported> {
        self.kernel.node(|node| node.alter(key.clone(), spec));
        Ok(())
    }

    fn begin(&mut self, name: &str, before: Option<&Netns>) -> Result<Netns, Unsupported> {
        let number = 101 + u32::try_from(self.containers.len()).unwrap();
        let (pid, start_time) = before.map_or((number, 1), |before| (before.pid, before.start_time + 1));
        let netns =
            Netns { pid, start_time, boot_id: "first".into(), device: 4, inode: 4_026_000_000 + u64::from(number) };
        self.containers.insert(name.to_owned(), netns.clone());
        Ok(netns)
    }

    fn end(&mut self, name: &str) -> Result<(), Unsupported> {
        self.kernel.node(|node| node.end_container(&self.containers[name]));
        Ok(())
    }

    fn drop_forwarded(&mut self, family: Family, drops: bool) -> Result<(), Unsupported> {
        self.kernel.node(|node| {
            let dropped = &mut node.surroundings.forward_drop;
            if drops { dropped.insert(family) } else { dropped.remove(&family) }
        });
        Ok(())
    }

    fn way_out(&mut self, link: &IfName, is_there: bool) -> Result<(), Unsupported> {
        self.kernel.node(|node| {
            if is_there {
                node.surroundings.uplinks.insert(link.clone());
            } else {
                node.surroundings.uplinks.remove(link);
                // Settings go with their link.
                for setting in Setting::ALL {
                    node.remove(&Key::Sysctl { link: link.clone(), setting });
                }
            }
        });
        Ok(())
    }

    fn put_stranger(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported> {
        let stranger = Observed { spec, owner: Owner::Stranger("somebody else's".into()), stats: None };
        self.kernel.node(|node| {
            node.remove(key);
            node.place(key.clone(), stranger);
        });
        Ok(())
    }

    fn handshake(&mut self, device: &IfName, peer: &WgPublicKey, at: UnixTime) -> Result<(), Unsupported> {
        self.kernel.node(|node| node.handshake(device, peer, at));
        Ok(())
    }

    fn mishap(&mut self, mishap: Mishap, after_actions: usize) -> Result<(), Unsupported> {
        let fault = match mishap {
            Mishap::FailsBeforeItsEffect => Fault::FailBefore(ActionError::Failed("simulated".into())),
            Mishap::AnswerIsLost => Fault::FailAfter(ActionError::Timeout(1_000)),
            Mishap::DumpIsCut(part) => Fault::CutDump(part),
            Mishap::NothingIsSeen => Fault::Blind,
        };
        self.kernel.inject_after(after_actions, fault);
        Ok(())
    }

    fn break_object(&mut self, key: &Key, error: ActionError) -> Result<(), Unsupported> {
        self.kernel.break_object(key.clone(), error);
        Ok(())
    }

    fn mend(&mut self, key: &Key) -> Result<(), Unsupported> {
        self.kernel.mend(key);
        Ok(())
    }

    fn see(&self, key: &Key) -> Option<Spec> {
        self.kernel.node(|node| node.objects().get(key).map(|seen| seen.spec.clone()))
    }

    fn sessions_lost(&self, device: &IfName, peer: &WgPublicKey) -> Result<u32, Unsupported> {
        Ok(self.kernel.node(|node| node.peer(device, peer).map_or(0, |peer| peer.sessions_lost)))
    }
}
