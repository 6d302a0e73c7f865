use super::listen::ListenError;
use crate::desired::{BadRecord, store::StoreError};

/// Why the agent did not start. Nothing was changed on the node.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the document cannot be read; nothing was changed; run `overlayd store check`")]
    Document(#[from] BadRecord),
    #[error("the store holds no private key of this node; import a copy that was made with --with-secrets")]
    NoKey,
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("{0}")]
    Process(&'static str, #[source] std::io::Error),
}
