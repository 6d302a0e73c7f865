//! The TUN as gotatun reads and writes it.

use std::{
    fs::File,
    future::pending,
    io::{self, ErrorKind, Read, Write},
    sync::Arc,
};

use gotatun::{
    packet::{Ip, Packet, PacketBufPool},
    tun::{IpRecv, IpSend, MtuWatcher},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

/// Packets that are taken from the TUN before the rest of the process gets its turn.
const BATCH: usize = 64;
/// Length of the buffers in gotatun's pool, in bytes; a larger MTU needs a larger buffer, or packets would be cut silently.
const POOL_BUFFER: usize = 4096;

/// One attached TUN queue. Clones share it.
#[derive(Clone)]
pub(super) struct Tun {
    file: Arc<AsyncFd<File>>,
    mtu: watch::Receiver<u16>,
    gone: watch::Sender<bool>,
}

/// What the process watches and feeds while gotatun has the queue.
pub(super) struct TunControl {
    /// Takes the MTU in bytes whenever it changes.
    pub mtu: watch::Sender<u16>,
    /// Becomes true when the interface was deleted.
    pub gone: watch::Receiver<bool>,
}

impl Tun {
    /// # Errors
    /// When the file cannot be watched for readiness.
    pub(super) fn new(file: File, mtu: u16) -> io::Result<(Self, TunControl)> {
        let (mtu_feed, mtu) = watch::channel(mtu);
        let (gone, gone_watch) = watch::channel(false);
        // SAFETY: a File answers the same open descriptor as long as it lives, and it is moved in.
        let file = Arc::new(unsafe {
            AsyncFd::register_with_interest(file, Interest::READABLE | Interest::WRITABLE | Interest::ERROR)
        }?);
        let control = TunControl { mtu: mtu_feed, gone: gone_watch };
        Ok((Self { file, mtu, gone }, control))
    }

    /// Takes what is there now, up to a batch; empty when the queue was empty after all.
    fn read_batch(&self, pool: &PacketBufPool, packets: &mut Vec<Packet<Ip>>) -> io::Result<bool> {
        let mtu = usize::from(*self.mtu.borrow());
        while packets.len() < BATCH {
            let mut packet = pool.get();
            if mtu > POOL_BUFFER {
                packet.buf_mut().resize(mtu, 0);
            }
            match self.file.get_ref().read(&mut packet[..]) {
                Ok(length) => packet.truncate(length),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // What is no IP packet has nowhere to go.
            if let Ok(packet) = packet.try_into_ip() {
                packets.push(packet);
            }
        }
        Ok(true)
    }
}

/// True for the errors of a queue whose interface was deleted.
fn means_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV))
}

impl IpRecv for Tun {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let mut packets = Vec::with_capacity(BATCH);
        while packets.is_empty() {
            // A queue whose interface was deleted is not readable; it only has an error.
            let mut ready = self.file.ready(Interest::READABLE | Interest::ERROR).await?;
            match self.read_batch(pool, &mut packets) {
                Ok(true) => {}
                Ok(false) => ready.clear_ready(),
                Err(error) if means_gone(&error) => {
                    self.gone.send_replace(true);
                    // The process ends; gotatun must not take this for a fault of its own.
                    pending::<()>().await;
                }
                Err(error) => {
                    tracing::debug!(%error, "tun read");
                    ready.clear_ready();
                }
            }
        }
        Ok(packets.into_iter())
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone().into()
    }
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let bytes = packet.into_bytes();
        loop {
            match self.file.get_ref().write(&bytes) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut ready = self.file.ready(Interest::WRITABLE | Interest::ERROR).await?;
                    ready.clear_ready();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    if means_gone(&error) {
                        self.gone.send_replace(true);
                    }
                    // EIO: the interface is down. EINVAL: the peer sent no IP packet. Either way this packet is lost and no other.
                    tracing::debug!(%error, "tun write");
                    return Ok(());
                }
            }
        }
    }
}
