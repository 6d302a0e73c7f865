use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{BadId, text_identifier};

/// A WireGuard (X25519) public key; written in base64, as `wg` writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WgPublicKey([u8; 32]);

impl WgPublicKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first characters of the base64 form: enough for a person to tell peers apart in a table.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(10);
        text
    }
}

impl FromStr for WgPublicKey {
    type Err = BadId;
    /// The text is not repeated in the error: somebody may have sent a private key by mistake.
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |rule| BadId::hidden("WireGuard public key", rule);
        let bytes =
            STANDARD.decode(text).map_err(|_| bad("must be base64 of 32 bytes (44 characters ending in '=')"))?;
        let bytes: [u8; 32] =
            bytes.try_into().map_err(|_| bad("must be base64 of exactly 32 bytes (44 characters ending in '=')"))?;
        if bytes == [0; 32] {
            return Err(bad("is all zeros, which WireGuard reads as \"no key\""));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for WgPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WgPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

text_identifier!(WgPublicKey);
