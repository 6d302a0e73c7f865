//! TCP: each connection is joined to one of our own, and bytes are copied both ways until both sides have ended.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

/// Connections of one port at a time (I-15); more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// A container that does not answer is given up: its client waits no longer than for a host that is down.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// Pause after the kernel could not give a connection (no descriptors, no memory): trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve(listener: TcpListener, to: SocketAddr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this future, and every copy with it.
    let mut copies = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, from)) => {
                copies.spawn(async move {
                    if let Err(error) = join(client, to).await {
                        tracing::debug!(%from, %to, %error, "a connection through the proxy ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%to, %error, "the proxy cannot take a connection; it tries again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while copies.try_join_next().is_some() {}
    }
}

async fn join(mut client: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut server = timeout(CONNECTED_WITHIN, TcpStream::connect(to)).await??;
    // Small messages are passed on as they come; whoever wants them gathered does it at the ends.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}
