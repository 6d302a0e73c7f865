//! The desired-state document: what this node should look like. The only thing that a request may change.
//!
//! Owns the [`Document`], the [`Edit`]s and their checks, the rules for names and addresses, and the stored form of every record.
//! Leaves *how* bytes survive a power cut to [`store`], and what the document means to a kernel to
//! [`reconcile::target`](crate::reconcile::target).
//!
//! Upholds I-01 (through the [`Committer`]), I-07 (every choice is made here, once, and kept), I-11, I-12, I-16.
//!
//! The document is nothing but the fold of its records: loading, editing, replaying the journal and importing all go through
//! [`Document::absorb`], so there is no second way to build one.

mod addressing;
mod attachment;
mod committer;
mod directory;
mod document;
mod edit;
mod index;
mod naming;
mod peer_table;
mod record;
mod redact;
mod segment;
pub mod store;
mod stored_key;

pub use addressing::{DEFAULT_SERVICE_PREFIX_V4, DEFAULT_SERVICE_PREFIX_V6, NodeAddress, node_address, service_subnet};
pub use attachment::{AddressRecord, AttachmentId, AttachmentRecord, Forward, GivenId, Pid, Place, SearchDomains};
pub use committer::{Committed, Committer, EditError, Editor, Listener, Submission};
pub use directory::Directory;
pub use document::{AddressCounts, Document, SegmentNet};
pub use edit::{
    AttachRequest, Change, Context, Edit, Grant, GuestGrant, OverlayRequest, PeerRequest, PeerScope, Policy, Refusal,
    ServiceGrant, Subject, Touched, consider,
};
pub use index::AddressHolder;
pub use naming::{Role, interface_name};
pub use record::{
    BadRecord, Candidate, DnsRecord, Mutation, NatSettings, NodeRecord, OverlayRecord, PeerRecord, Record, RecordKey,
    RelayServer, ResolverRecord, TurnServer,
};
pub use redact::redact;
pub use segment::{Dedicated, Lot, SegmentMode, SegmentRecord, SharedBridgeRecord};
