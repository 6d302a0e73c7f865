//! Keys that cannot be printed, and are overwritten when they are dropped.
//!
//! Owns the private key of a WireGuard device from the moment it is made. Leaves storing it to
//! [`desired::store`](crate::desired::store), which asks for the text with [`PrivateKey::reveal`]: the one door out, easy to search for.
//!
//! Upholds I-14.
//!
//! [`PrivateKey`] has no serde on purpose: a struct that holds one cannot be serialised by accident. [`SecretText`] has, because the
//! contract sends such values.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::ids::{BadId, WgPublicKey};

/// A WireGuard (X25519) private key, clamped as the kernel clamps it so that what is read back compares equal.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// A key made of 32 random bytes that the caller drew (I-16: chance is an argument).
    pub fn from_random_bytes(mut bytes: [u8; 32]) -> Self {
        // X25519 clamping, RFC 7748 section 5.
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Self(bytes)
    }

    /// # Errors
    /// When the text is not base64 of 32 bytes. The text is not repeated.
    pub fn from_base64(text: &str) -> Result<Self, BadId> {
        let bad = || BadId::hidden("WireGuard private key", "must be base64 of 32 bytes");
        let mut decoded = STANDARD.decode(text).map_err(|_| bad())?;
        let bytes = <[u8; 32]>::try_from(decoded.as_slice()).map_err(|_| bad());
        decoded.zeroize();
        Ok(Self::from_random_bytes(bytes?))
    }

    pub fn public_key(&self) -> WgPublicKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        WgPublicKey::from_bytes(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// The key in base64, for the store and for `export --with-secrets`; wiped when the caller drops it.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// The raw key, for the message that configures the device.
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// A credential in text form. Unlike [`PrivateKey`] it is serialised, because the contract and the store spell it in clear; only `Debug`
/// hides it, and it has no `Display`. Wiped when dropped.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// The text itself: the one door out, easy to search for.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// True when nothing was given: an empty credential is the contract's default.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(empty)" } else { "(redacted)" })
    }
}
