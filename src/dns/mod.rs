//! Names: those of the overlay, which this node answers for, and those that peers' endpoints have.
//!
//! Owns the zone's answers, the server, and asking the host's resolvers. Leaves which names there are to the document, when and where to
//! listen, and what an address means for a peer, to the daemon.
//!
//! Upholds I-15: every question has a time limit, and everything that a client can make us do has a bound.
//!
//! An endpoint's name is resolved by the agent and never by the kernel or a data plane, so that one name that does not resolve concerns
//! one peer (A34).

mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod lookup;
mod serve;
mod shares;
mod stamp;
mod zone;

pub use forward::{Forwarder, Source};
pub use lookup::{Addresses, Lookup};
pub use serve::{Answering, Listening, RESULTS, Witness};
pub use zone::{ANSWER_TTL, NEGATIVE_TTL};
