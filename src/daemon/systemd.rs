use std::{sync::Arc, time::Duration};

use super::agent::Agent;

/// Tells systemd when the agent is ready and, where it asks for it, that it is alive: only while rounds end.
pub async fn keep_told(agent: Arc<Agent>) {
    while !agent.view.read().progress.ready {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut rounds = None;
    loop {
        let now = agent.view.read().progress.rounds;
        if rounds == Some(now) {
            agent.look_again();
        } else {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        rounds = Some(now);
        tokio::time::sleep(limit / 4).await;
    }
}
