//! The agent's end of the socket.

use std::{
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use zeroize::Zeroizing;

use super::{DeviceState, REPLY_MAX, SetRequest, UapiChange, decode_dump, encode_set};
use crate::{ids::IfName, platform::ActionError};

/// Default time limit of one call. A `get` of ten thousand peers takes about 0.1 s on two cores.
pub const CALL_LIMIT: Duration = Duration::from_secs(3);

/// What one message may cost the device, in tenths of a millisecond: a third of [`CALL_LIMIT`].
const MESSAGE_COST: u32 = 10_000;
/// A new peer, measured on two cores.
const NEW_PEER_COST: u32 = 2;
/// A change or removal of one peer among ten thousand: gotatun walks all allowed IPs of the device.
const CHANGE_COST: u32 = 100;

/// Why a device did not answer, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum UapiError {
    /// Nobody listens on the socket.
    #[error("no device process serves the socket")]
    NotRunning,
    /// The effect of a `set` is unknown.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The device refused; nothing was applied.
    #[error("refused with errno {0}")]
    Errno(i32),
    #[error("not an answer: {0}")]
    Malformed(String),
    /// A process of another network namespace, or one that cannot be looked at, serves the socket. It was not spoken to.
    #[error("the device belongs to another network namespace (process {0})")]
    ForeignNamespace(i32),
    /// A process of another user serves the socket. It was not spoken to.
    #[error("the socket is served by user {0}")]
    ForeignOwner(u32),
    #[error("talk to the device process")]
    Io(#[source] io::Error),
}

impl From<UapiError> for ActionError {
    fn from(error: UapiError) -> Self {
        match error {
            UapiError::NotRunning => ActionError::Gone(error.to_string()),
            UapiError::Timeout(limit) => ActionError::Timeout(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            UapiError::Errno(libc::EPERM | libc::EACCES) => ActionError::Denied(error.to_string()),
            UapiError::Errno(libc::EOPNOTSUPP) => ActionError::Unsupported(error.to_string()),
            UapiError::ForeignNamespace(_) | UapiError::ForeignOwner(_) => ActionError::Stranger(error.to_string()),
            UapiError::Errno(_) | UapiError::Malformed(_) => ActionError::Failed(error.to_string()),
            UapiError::Io(ref source) => ActionError::Failed(format!("{error}: {source}")),
        }
    }
}

/// Speaks to the device process of one interface; one connection per call.
#[derive(Debug, Clone)]
pub struct UapiClient {
    socket: PathBuf,
    limit: Duration,
}

impl UapiClient {
    pub fn new(dir: &Path, ifname: &IfName) -> Self {
        Self { socket: dir.join(format!("{ifname}.sock")), limit: CALL_LIMIT }
    }

    /// The same client with another time limit for each call.
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The device and its peers.
    ///
    /// # Errors
    /// [`UapiError`]; a reply over [`REPLY_MAX`] bytes counts as malformed.
    pub async fn get(&self) -> Result<DeviceState, UapiError> {
        let reply = self.call(b"get=1\n\n").await?;
        let text = std::str::from_utf8(&reply).map_err(|_| UapiError::Malformed("not UTF-8".into()))?;
        decode_dump(text).map_err(UapiError::Malformed)?.map_err(UapiError::Errno)
    }

    /// Applies the changes in order: up to 5,000 new or 100 changed peers in one message, which is checked whole before any of it is applied.
    ///
    /// # Errors
    /// [`UapiError`] of the first message that failed; the messages before it took effect.
    pub async fn set(&self, changes: &[UapiChange]) -> Result<(), UapiError> {
        let mut request = SetRequest::default();
        let mut cost = 0;
        for change in changes {
            match change {
                UapiChange::Device(device) => {
                    // Device fields come first in a message, so the peers before them have to be on their way.
                    self.flush(&mut request).await?;
                    request.device = device.clone();
                    cost = 0;
                }
                UapiChange::Peer(peer) => {
                    let known = peer.update_only || peer.remove;
                    cost += if known { CHANGE_COST } else { NEW_PEER_COST };
                    request.peers.push(peer.clone());
                }
            }
            if cost >= MESSAGE_COST {
                self.flush(&mut request).await?;
                cost = 0;
            }
        }
        self.flush(&mut request).await
    }

    /// The process that serves the socket, after the checks that precede every call; for a pidfd, or to end one that hangs.
    ///
    /// # Errors
    /// [`UapiError`]
    pub async fn server_pid(&self) -> Result<i32, UapiError> {
        let connect = async { self.connect().await.map(|(_, pid)| pid) };
        timeout(self.limit, connect).await.map_err(|_| UapiError::Timeout(self.limit))?
    }

    async fn flush(&self, request: &mut SetRequest) -> Result<(), UapiError> {
        let request = std::mem::take(request);
        if request == SetRequest::default() {
            return Ok(());
        }
        let reply = self.call(encode_set(&request).as_bytes()).await?;
        let text = std::str::from_utf8(&reply).map_err(|_| UapiError::Malformed("not UTF-8".into()))?;
        let errno = text.trim_end().strip_prefix("errno=").and_then(|value| value.parse().ok());
        match errno {
            Some(0) => Ok(()),
            Some(errno) => Err(UapiError::Errno(errno)),
            None => Err(UapiError::Malformed("no errno".into())),
        }
    }

    async fn call(&self, request: &[u8]) -> Result<Zeroizing<Vec<u8>>, UapiError> {
        let exchange = async {
            let (mut stream, _) = self.connect().await?;
            stream.write_all(request).await.map_err(from_io)?;
            read_reply(&mut stream).await
        };
        timeout(self.limit, exchange).await.map_err(|_| UapiError::Timeout(self.limit))?
    }

    async fn connect(&self) -> Result<(UnixStream, i32), UapiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(from_io)?;
        let peer = stream.peer_cred().map_err(UapiError::Io)?;
        let own_user = nix::unistd::geteuid().as_raw();
        if peer.uid() != own_user {
            return Err(UapiError::ForeignOwner(peer.uid()));
        }
        let pid = peer.pid().unwrap_or(0);
        match whereabouts(pid) {
            Whereabouts::Here => Ok((stream, pid)),
            Whereabouts::Elsewhere => Err(UapiError::ForeignNamespace(pid)),
            Whereabouts::Ended => Err(UapiError::NotRunning),
        }
    }
}

/// Reads up to the blank line that ends every answer.
async fn read_reply(stream: &mut UnixStream) -> Result<Zeroizing<Vec<u8>>, UapiError> {
    let mut reply = Zeroizing::new(Vec::with_capacity(4096));
    loop {
        if reply.ends_with(b"\n\n") {
            return Ok(reply);
        }
        if reply.len() > REPLY_MAX {
            return Err(UapiError::Malformed("longer than any device's".into()));
        }
        reply.reserve(4096);
        if stream.read_buf(&mut *reply).await.map_err(from_io)? == 0 {
            return Err(UapiError::Malformed("cut short".into()));
        }
    }
}

fn from_io(error: io::Error) -> UapiError {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => UapiError::NotRunning,
        // It ended while it was asked.
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => UapiError::NotRunning,
        _ => UapiError::Io(error),
    }
}

/// Where the process that serves a socket lives.
#[derive(Debug, PartialEq, Eq)]
enum Whereabouts {
    /// In the network namespace of the calling thread.
    Here,
    Elsewhere,
    /// It was killed. Its socket takes connections until the last of its threads is gone.
    Ended,
}

/// A process that cannot be looked at is elsewhere, unless it is ourselves.
fn whereabouts(pid: i32) -> Whereabouts {
    let identity = |path: &str| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let Ok(own) = identity("/proc/thread-self/ns/net") else {
        return Whereabouts::Elsewhere;
    };
    match identity(&format!("/proc/{pid}/ns/net")) {
        Ok(theirs) if theirs == own => Whereabouts::Here,
        Ok(_) => Whereabouts::Elsewhere,
        Err(_) if u32::try_from(pid).is_ok_and(|pid| pid == std::process::id()) => Whereabouts::Here,
        Err(_) if pid > 0 && has_ended(pid) => Whereabouts::Ended,
        Err(_) => Whereabouts::Elsewhere,
    }
}

/// True for a zombie, and for a process that is gone.
fn has_ended(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The name before the state is in parentheses and may hold any character.
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn name() -> IfName {
        "wgt".parse().unwrap()
    }

    /// A server that answers every connection with the same bytes and then keeps it open.
    fn serve(dir: &Path, answer: &'static [u8]) {
        let listener = UnixListener::bind(dir.join("wgt.sock")).unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 64];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
                open.push(stream);
            }
        });
    }

    #[tokio::test]
    async fn a_missing_or_stale_socket_means_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let client = UapiClient::new(dir.path(), &name());
        assert!(matches!(client.get().await, Err(UapiError::NotRunning)));
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("wgt.sock")).unwrap());
        assert!(matches!(client.get().await, Err(UapiError::NotRunning)));
    }

    #[tokio::test]
    async fn a_device_that_never_answers_costs_the_time_limit_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        serve(dir.path(), b"listen_port=1\n");
        let client = UapiClient::new(dir.path(), &name()).with_limit(Duration::from_millis(50));
        assert!(matches!(client.get().await, Err(UapiError::Timeout(_))));
    }

    #[tokio::test]
    async fn a_refusal_is_handed_on_as_a_number() {
        let dir = tempfile::tempdir().unwrap();
        serve(dir.path(), b"errno=98\n\n");
        let client = UapiClient::new(dir.path(), &name());
        let change = UapiChange::Device(super::super::DeviceChange { listen_port: Some(1), ..Default::default() });
        assert!(matches!(client.set(&[change]).await, Err(UapiError::Errno(98))));
        assert!(matches!(client.get().await, Err(UapiError::Errno(98))));
        assert_eq!(client.server_pid().await.unwrap(), std::process::id().cast_signed());
    }

    #[test]
    fn a_process_that_cannot_be_looked_at_is_foreign_and_one_that_ended_is_not_running() {
        assert_eq!(whereabouts(0), Whereabouts::Elsewhere);
        assert_eq!(whereabouts(-1), Whereabouts::Elsewhere);
        assert_eq!(whereabouts(i32::try_from(std::process::id()).unwrap()), Whereabouts::Here);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while whereabouts(pid) == Whereabouts::Here {
            std::thread::yield_now();
        }
        assert_eq!(whereabouts(pid), Whereabouts::Ended, "a zombie");
        child.wait().unwrap();
        assert_eq!(whereabouts(pid), Whereabouts::Ended);
    }
}
