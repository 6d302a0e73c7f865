//! Containers end to end: real agents, real namespaces, real packets, told what to do over the socket as a driving daemon does.

mod deaths;
mod drift;
mod forward_drop;
mod guests;
mod joined;
mod life;
mod matrix;
mod modes;
mod published;
mod refusals;
mod scale;
pub mod scene;
mod sweep;
