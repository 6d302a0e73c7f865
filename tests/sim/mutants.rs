//! Wrong versions of the agent, made by lying to the right one or by doing something else than it says. Each must be caught.

use overlayd::{
    action::Action,
    object::{Key, Spec},
    observed::{Coverage, Observation, Observed, Owner},
    platform::{ActionError, Interest, sim::SimNode},
};

/// One mistake that an agent like this one could make, and that others have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The reply leaves before the edit is flushed.
    ReplyBeforeFlush,
    /// The first round runs before the document is loaded.
    ActBeforeLoad,
    /// What has a name of ours is ours.
    OwnByName,
    /// A dump that was cut short is taken for the whole.
    TrustPartialDumps,
    /// An object gets its mark after it was made.
    MarkAfterCreate,
    /// A peer is changed by removing and adding it.
    ReplacePeers,
    /// A link is changed by removing and adding it.
    ReplaceLinks,
    /// Addresses are let in before the firewall knows them.
    ForgetMembers,
    /// A stop takes the network down.
    CleanUpAtStop,
    /// The kernel's notifications are not listened to.
    DeafToHints,
    /// Ends of containers are not noticed.
    DeafToEnds,
    /// An error of the kernel is taken for success.
    IgnoreErrors,
    /// What comes is made before what goes is removed.
    BuildBeforeDelete,
    /// A store that cannot be read is taken for an empty one.
    CorruptIsEmpty,
}

impl Mutant {
    pub const ALL: [Mutant; 14] = [
        Mutant::ReplyBeforeFlush,
        Mutant::ActBeforeLoad,
        Mutant::OwnByName,
        Mutant::TrustPartialDumps,
        Mutant::MarkAfterCreate,
        Mutant::ReplacePeers,
        Mutant::ReplaceLinks,
        Mutant::ForgetMembers,
        Mutant::CleanUpAtStop,
        Mutant::DeafToHints,
        Mutant::DeafToEnds,
        Mutant::IgnoreErrors,
        Mutant::BuildBeforeDelete,
        Mutant::CorruptIsEmpty,
    ];

    /// What it makes of a look.
    pub fn distort(self, mut seen: Observation, node: &SimNode, interest: &Interest) -> Observation {
        match self {
            Mutant::TrustPartialDumps => seen.coverage.values_mut().for_each(|coverage| *coverage = Coverage::Whole),
            Mutant::OwnByName => {
                let theirs = node.objects().iter().filter(|(key, _)| interest.subsystems.contains(&key.subsystem()));
                seen.objects.extend(theirs.map(|(key, theirs)| (key.clone(), Observed::ours(theirs.spec.clone()))));
            }
            _ => {}
        }
        seen
    }

    /// What it does instead of an action; `None`: the action. `dies` is asked in the middle.
    pub fn instead(
        self,
        node: &mut SimNode,
        action: &Action,
        dies: impl FnOnce() -> bool,
    ) -> Option<Result<(), ActionError>> {
        let key = action.key();
        match (self, action) {
            (Mutant::MarkAfterCreate, Action::Create { spec, .. }) if !node.objects().contains_key(key) => {
                let outcome = node.execute(action);
                if outcome.is_ok() && dies() {
                    let bare = Observed { owner: Owner::Stranger("nobody's".into()), ..Observed::ours(spec.clone()) };
                    node.place(key.clone(), bare);
                }
                Some(outcome)
            }
            (Mutant::ReplacePeers, Action::Update { key: Key::Peer { .. }, to, .. })
            | (Mutant::ReplaceLinks, Action::Update { key: Key::Link(_), to, .. }) => {
                node.remove(key);
                Some(node.execute(&Action::Create { key: key.clone(), spec: to.clone() }))
            }
            (Mutant::ForgetMembers, Action::Create { spec: Spec::Member(_), .. }) => Some(Ok(())),
            (Mutant::OwnByName, _) => {
                if let Some(theirs) = node.objects().get(key).filter(|seen| seen.owner != Owner::Ours).cloned() {
                    node.place(key.clone(), Observed { owner: Owner::Ours, ..theirs });
                }
                None
            }
            _ => None,
        }
    }
}
