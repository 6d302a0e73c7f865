use overlayd::{
    clock::UnixTime,
    ids::{IfName, WgPublicKey},
    object::{Key, Spec},
    observed::{Observed, Owner},
    platform::{
        ActionError,
        sim::{Fault, SimKernel},
    },
};

use super::stage::{Mishap, Stage, Unsupported};

/// A stage in memory, on which everything can be done.
#[derive(Default)]
pub struct SimStage {
    kernel: SimKernel,
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
        self.kernel.node(|node| node.place(key.clone(), Observed::ours(spec)));
        Ok(())
    }

    fn put_stranger(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported> {
        let stranger = Observed { spec, owner: Owner::Stranger("somebody else's".into()), stats: None };
        self.kernel.node(|node| node.place(key.clone(), stranger));
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
