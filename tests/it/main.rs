//! The integration tests: what can be tested through the public interface, without root and without a kernel of its own.
//!
//! One binary on purpose: each further one would link the whole crate again.

mod wire;
