//! How much may be said at once on a UAPI socket (I-15).

/// Largest request that is read or sent, in bytes: ten thousand peers with ten allowed IPs each are 6 MiB.
pub const REQUEST_MAX: usize = 16 << 20;
/// Largest dump that is read, in bytes: ten thousand peers are about 5 MiB.
pub const REPLY_MAX: usize = 64 << 20;
