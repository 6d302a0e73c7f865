//! The command line: arguments in, text and exit status out.
//!
//! Owns flags, the configuration file, rendering and exit statuses. Leaves all work to the rooms below.
//!
//! Upholds I-14: nothing printed here has a secret in it, unless `--with-secrets` asks for it.
//!
//! Exit status: 0 done (for `diff`: no difference), 2 a difference, 1 everything else.

mod args;
mod commands;
mod ctl;
mod demo;
mod diff;
mod node;
mod outcome;
mod publish;
mod purge;
mod run;
mod status;
mod store;

pub use commands::main;
