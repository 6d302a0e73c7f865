//! The name of a variant on the wire, and the list of all of them.
//!
//! Owns the link between a variant and its name outside serde: for logs, metrics, refusals, and for the test that every
//! variant has a golden file. Leaves the spelling in JSON to serde; that test proves that the two agree.
//!
//! A newcomer would write the list by hand. It is made from an exhaustive `match`, so that a new variant cannot be forgotten.

/// Gives an enum a method that names its variant and a constant that lists all names, from one exhaustive match.
macro_rules! tags {
    ($enum:ident, $(#[$list_doc:meta])* $list:ident, $(#[$method_doc:meta])* $method:ident: $($variant:ident => $tag:literal),+ $(,)?) => {
        impl $enum {
            $(#[$list_doc])*
            pub const $list: &'static [&'static str] = &[$($tag),+];

            $(#[$method_doc])*
            pub fn $method(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $tag),+
                }
            }
        }
    };
}
pub(super) use tags;
