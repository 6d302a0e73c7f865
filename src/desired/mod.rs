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
mod committer;
mod document;
mod edit;
mod naming;
mod record;
mod redact;
pub mod store;

pub use addressing::{DEFAULT_SERVICE_PREFIX_V4, DEFAULT_SERVICE_PREFIX_V6, NodeAddress, node_address, service_subnet};
pub use committer::{Committed, Committer, EditError, Editor, Listener, Submission};
pub use document::Document;
pub use edit::{Change, Edit, Grant, OverlayRequest, PeerRequest, Refusal, Touched, consider};
pub use naming::{Role, interface_name};
pub use record::{
    BadRecord, Candidate, DnsRecord, Mutation, NatSettings, NodeRecord, OverlayRecord, PeerRecord, Record, RecordKey,
    RelayServer, ResolverRecord, TurnServer,
};
pub use redact::redact;
