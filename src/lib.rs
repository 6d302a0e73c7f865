//! overlayd: the node agent that owns everything on one machine that touches the overlay network.
//!
//! A request over the socket changes one thing only, the [desired-state document](desired). A [loop](reconcile) compares that
//! document with what the kernel [really holds](observed) and applies the smallest change. Start, crash, drift and ordinary work are
//! the same code path. `docs/ARCHITECTURE.md` has the floor plan; modules are listed here from the ground floor up.

// F0
pub mod clock;
pub mod failure;
pub mod ids;
pub mod secret;
// F1
pub mod action;
pub mod object;
// F2
pub mod desired;
pub mod observed;
pub mod wire;
// F3
pub mod dns;
pub mod platform;
pub mod proxy;
// F4 (its pure half is F3)
pub mod reconcile;
// F5
pub mod client;
pub mod daemon;
// F6
pub mod cli;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
