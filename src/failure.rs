//! An error and everything that caused it, on one line.
//!
//! Owns the one place where a chain of causes becomes text: an error's own text never holds its source, so that nothing is said twice.
//!
//! Wherever a person reads an error (a condition, a reply, standard error) it has been through here; `Display` alone would lose the cause.

use std::error::Error;

/// The error, then each of its causes after a colon.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open the door")]
    struct Door(#[source] std::io::Error);

    #[test]
    fn causes_follow_in_order() {
        let error = Door(std::io::Error::other("the key is lost"));
        assert_eq!(with_causes(&error), "open the door: the key is lost");
    }
}
