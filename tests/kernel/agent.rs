//! The agent as a process: the real binary, real sockets, a real store. What needs no device runs without one.

mod commands;
mod secrets;
mod socket;
mod state;
mod stops;
mod twins;

use std::fs::File;

use nix::sys::signal::Signal;

use crate::{
    agent_process::{Agent, isolated, setup},
    lab,
};

/// Whether devices can be made; if not, it is said which part is left out.
fn has_device(part: &str) -> bool {
    let can = File::options().read(true).write(true).open("/dev/net/tun").is_ok();
    if !can {
        lab::skip_part(&format!("no /dev/net/tun: {part}"));
    }
    can
}

/// An agent whose overlay is up, on a device process that does not answer until it gets a SIGCONT.
fn on_a_hung_device() -> Agent<'static> {
    lab::need_tun();
    let mut agent = Agent::new("a");
    agent.arguments = ["--data-plane", "userspace"].map(String::from).into();
    agent.start();
    agent.must(setup("a"));
    assert_eq!(agent.device_pids().len(), 1);
    agent.signal_devices(Signal::SIGSTOP);
    agent
}

/// An agent that is ready.
fn running(mut agent: Agent<'static>) -> Agent<'static> {
    agent.start();
    agent
}
