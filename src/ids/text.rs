/// Gives a type that is a checked text its conversions: `Display`, `TryFrom<String>`, `Into<String>`, serde through them.
macro_rules! text_identifier {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = crate::ids::BadId;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
pub(crate) use text_identifier;
