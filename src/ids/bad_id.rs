/// Why a text is not the identifier it was meant to be. Reads as a sentence that says what to send instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {shown}: {rule}")]
pub struct BadId {
    what: &'static str,
    shown: String,
    rule: &'static str,
}

/// Longest part of a refused text that is repeated back, in characters.
const SHOWN_MAX: usize = 64;

impl BadId {
    pub(crate) fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        let mut shown: String = text.chars().take(SHOWN_MAX).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        Self { what, shown: format!("{shown:?}"), rule }
    }

    /// For texts that may hold a secret (a private key sent in the wrong field): the text is not repeated.
    pub(crate) fn hidden(what: &'static str, rule: &'static str) -> Self {
        Self { what, shown: "(not shown)".into(), rule }
    }
}
