//! Text on the wire that must not be seen anywhere else.
//!
//! Owns the type of private keys and of TURN and relay credentials while they are in a message. Leaves keys at rest to
//! [`secret`](crate::secret).
//!
//! Upholds I-14.
//!
//! Unlike [`PrivateKey`](crate::secret::PrivateKey) this type *is* serialised: the contract sends these values. Only `Debug` hides them.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret as the contract spells it: a plain JSON string. Not shown by `Debug`, has no `Display`, wiped when dropped.
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
