//! Serves the UAPI socket.
//!
//! A request is read whole before the device is touched: a client that stalls costs one idle connection and no packet.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Mutex, Semaphore},
    time::timeout,
};
use zeroize::Zeroizing;

use super::engine::{Engine, shake_hands};
use crate::platform::linux::uapi::{REQUEST_MAX, Request, decode_request, encode_dump};

/// Longest time a request may take to arrive, and an answer to be taken.
const IO_LIMIT: Duration = Duration::from_secs(5);
/// Connections that are served at once; the next one waits in the kernel's queue.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Pause after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until it is dropped; connections go on without it. Runs inside a `LocalSet`.
pub(super) async fn serve(listener: &UnixListener, engine: &Rc<Mutex<Engine>>, places: &Arc<Semaphore>) {
    // A semaphore that is never closed always gives a permit in the end.
    while let Ok(place) = Arc::clone(places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let engine = Rc::clone(engine);
                tokio::task::spawn_local(async move {
                    converse(stream, &engine).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection: requests one after the other until the client closes, stalls or sends too much.
async fn converse(mut stream: UnixStream, engine: &Mutex<Engine>) {
    let own_user = nix::unistd::geteuid().as_raw();
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own_user) {
        return;
    }
    let mut received = Zeroizing::new(Vec::new());
    loop {
        let Ok(Some(length)) = timeout(IO_LIMIT, read_request(&mut stream, &mut received)).await else {
            return;
        };
        let answer = answer(&received[..length], engine).await;
        // Past the blank line a next request may have begun.
        received.drain(..length + 1);
        let sent = timeout(IO_LIMIT, stream.write_all(answer.as_bytes())).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// Reads until a blank line; answers the length before it. `None`: closed, broken or over [`REQUEST_MAX`] bytes.
async fn read_request(stream: &mut UnixStream, received: &mut Vec<u8>) -> Option<usize> {
    let mut searched = 0;
    loop {
        if let Some(at) = received[searched..].windows(2).position(|pair| pair == b"\n\n") {
            return Some(searched + at + 1);
        }
        searched = received.len().saturating_sub(1);
        if received.len() > REQUEST_MAX {
            return None;
        }
        received.reserve(4096);
        match stream.read_buf(received).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

async fn answer(request: &[u8], engine: &Mutex<Engine>) -> Zeroizing<String> {
    let errno = match decode_request(request) {
        Ok(Request::Get) => {
            let dump = engine.lock().await.dump().await;
            return encode_dump(&dump);
        }
        Ok(Request::Set(request)) => {
            let mut engine = engine.lock().await;
            match engine.set(request).await {
                Ok(peers) => {
                    if !peers.is_empty() {
                        tokio::task::spawn_local(shake_hands(engine.device(), peers));
                    }
                    0
                }
                Err(errno) => errno,
            }
        }
        Err(errno) => errno,
    };
    Zeroizing::new(format!("errno={errno}\n\n"))
}
