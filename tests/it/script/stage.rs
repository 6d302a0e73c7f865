use overlayd::{
    ids::{IfName, Netns, WgPublicKey},
    object::{Family, Key, Spec, Subsystem},
    platform::{ActionError, Kernel},
};

/// This stage has no way to do that: a real kernel does not fail on command.
#[derive(Debug)]
pub struct Unsupported(pub &'static str);

/// What goes wrong with the next action, or with the next look.
#[derive(Debug, Clone, Copy)]
pub enum Mishap {
    FailsBeforeItsEffect,
    AnswerIsLost,
    DumpIsCut(Subsystem),
    NothingIsSeen,
}

/// A node on which a story plays: what somebody besides the agent can do to it, and what an onlooker sees.
pub trait Stage {
    type Kernel: Kernel;

    /// The way in for an agent; each agent of the story gets one.
    fn kernel(&self) -> Self::Kernel;

    /// Somebody removes an object.
    fn remove(&mut self, key: &Key) -> Result<(), Unsupported>;

    /// Somebody changes an object, or adds one that looks like ours.
    fn put(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported>;

    /// A container's process begins, in a network namespace of its own; with the pid of `before`, which has ended.
    fn begin(&mut self, name: &str, before: Option<&Netns>) -> Result<Netns, Unsupported>;

    /// It ends, and what the kernel removes with its namespace is gone.
    fn end(&mut self, name: &str) -> Result<(), Unsupported>;

    /// Another program begins to drop what is forwarded, or no longer does.
    fn drop_forwarded(&mut self, family: Family, drops: bool) -> Result<(), Unsupported>;

    /// A link of the host's with this name becomes the way out of the node, or goes.
    fn way_out(&mut self, link: &IfName, is_there: bool) -> Result<(), Unsupported>;

    /// Somebody puts an object of theirs in a place of ours; what was there is gone.
    fn put_stranger(&mut self, key: &Key, spec: Spec) -> Result<(), Unsupported>;

    fn handshake(
        &mut self,
        device: &IfName,
        peer: &WgPublicKey,
        at: overlayd::clock::UnixTime,
    ) -> Result<(), Unsupported>;

    fn mishap(&mut self, mishap: Mishap, after_actions: usize) -> Result<(), Unsupported>;

    /// Every action on the object fails, until [`mend`](Self::mend).
    fn break_object(&mut self, key: &Key, error: ActionError) -> Result<(), Unsupported>;

    fn mend(&mut self, key: &Key) -> Result<(), Unsupported>;

    /// The object as it is now, whosever it is.
    fn see(&self, key: &Key) -> Option<Spec>;

    /// Sessions of this peer that a change has cost.
    fn sessions_lost(&self, device: &IfName, peer: &WgPublicKey) -> Result<u32, Unsupported>;
}
