//! A key pair as it is stored: the private half in clear under a name that [`redact`](super::redact) knows, or the public half alone.
//!
//! [`KeyPair`] has a serde of its own that writes the public half only; a record that must bring a device back needs this one.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::redact::REDACTED;
use crate::{
    ids::{BadId, WgPublicKey},
    object::KeyPair,
    secret::PrivateKey,
};

/// An export without secrets has the public half only.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<WgPublicKey>,
}

impl StoredKey {
    pub(super) fn of(pair: &KeyPair) -> Self {
        match &pair.private {
            Some(private) => Self { private_key: Some(private.reveal().as_str().to_owned()), public_key: None },
            None => Self { private_key: None, public_key: pair.public },
        }
    }

    pub(super) fn pair(&self) -> Result<KeyPair, BadId> {
        match (&self.private_key, self.public_key) {
            (Some(text), _) if text != REDACTED => PrivateKey::from_base64(text).map(KeyPair::from_private),
            (_, public) => Ok(KeyPair::from_public(public)),
        }
    }
}

pub(super) fn serialize<S: Serializer>(pair: &KeyPair, serializer: S) -> Result<S::Ok, S::Error> {
    StoredKey::of(pair).serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyPair, D::Error> {
    StoredKey::deserialize(deserializer)?.pair().map_err(serde::de::Error::custom)
}
