//! The vocabulary in which the document and the kernel are compared: what can exist on a node.
//!
//! Owns [`Key`] (which object), [`Spec`] (how it should be or is) and [`Mark`] (the proof that it is ours).
//! Leaves where a spec comes from to [`reconcile::target`](crate::reconcile::target) and
//! [`platform`](crate::platform).
//!
//! Upholds I-03, I-04 (the mark is part of the vocabulary), I-14 (a spec compares keys by their public half and prints nothing else).
//!
//! An object has no identity beyond its key: a link that was deleted and made again under the same name is the same object.

mod key;
mod mark;
mod spec;

pub use key::{Family, Key, Setting, Subsystem};
pub use mark::{ADDRESS_PROTOCOL, Mark, ROUTE_PROTOCOL};
pub use spec::{
    DeviceSpec, EndpointSpec, FileSpec, GuestSpec, InsideRoute, InsideSpec, KeyPair, LinkDnsSpec, LinkKind, LinkSpec,
    MemberSpec, NetworkId, PeerSpec, ResolverFeature, RouteSpec, RulesetSpec, Spec, VethPeer,
};
