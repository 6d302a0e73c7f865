//! Says in words why JSON is not the message it was meant to be, and names the field.
//!
//! Owns the texts of such refusals. Leaves the decision to refuse to [`frame`](super::frame): this file is asked only after
//! decoding has failed, and reads the same JSON again through the same types with an error type of its own.
//!
//! Upholds I-14 and I-15: a value is never repeated (it may be a credential in the wrong field), a name is cut short.
//!
//! A newcomer would print serde's own error. It repeats values, whole; and since tagged enums are buffered before they are
//! read, it cannot say at which field it stopped.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{
        self, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Map, Value};

/// Longest name of the sender's that is repeated back, in characters.
const SHOWN_MAX: usize = 64;

/// Why a message was not understood, without a word of its content but names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Refusal {
    /// JSON by its grammar, but with a number beyond `f64` or half of a surrogate pair in it.
    pub(super) fn unreadable() -> Self {
        Self("a number or an escape in it cannot be read".into())
    }
}

/// A name that the sender chose, in quotes, cut short and without control characters.
pub(super) fn shown(name: &str) -> String {
    let mut short: String = name.chars().take(SHOWN_MAX).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// Why `body` is not a `T`, for a client; assumes that decoding has failed.
pub(super) fn of_frame<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Refusal {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => Refusal(fault_of::<T>(&value).unwrap_or(Fault::TwiceGiven).to_string()),
        Err(_) => Refusal("the body is not JSON, or cannot be read".into()),
    }
}

/// Why an object with the tag `tag` is not a `T`; assumes that decoding has failed, and that the tag is known.
///
/// A fault other than a missing field is laid at the door of the first field that is at fault when it stands alone with the tag.
pub(super) fn of_object<T: for<'a> Deserialize<'a>>(tag: &str, object: &Value) -> Refusal {
    let fault = match fault_of::<T>(object) {
        // A `Value` keeps one of two equal names, so this is the one fault that it hides.
        None => return Refusal(Fault::TwiceGiven.to_string()),
        Some(missing @ Fault::Missing(_)) => return Refusal(missing.to_string()),
        Some(fault) => fault,
    };
    let fields = object.as_object().into_iter().flatten().filter(|(name, _)| *name != tag);
    for (name, value) in fields {
        let mut alone = Map::new();
        alone.extend(object.get(tag).map(|tag_value| (tag.to_owned(), tag_value.clone())));
        alone.insert(name.clone(), value.clone());
        if let Some(fault @ Fault::Invalid(_)) = fault_of::<T>(&Value::Object(alone)) {
            return Refusal(format!("field {}: {fault}", shown(name)));
        }
    }
    Refusal(fault.to_string())
}

fn fault_of<T: for<'a> Deserialize<'a>>(value: &Value) -> Option<Fault> {
    T::deserialize(Node(value)).err()
}

/// What can be wrong with JSON that is well-formed.
#[derive(Debug)]
enum Fault {
    Missing(&'static str),
    TwiceGiven,
    Invalid(String),
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(field) => write!(f, "missing field {field:?}"),
            Self::TwiceGiven => f.write_str("a field is given twice"),
            Self::Invalid(text) => f.write_str(text),
        }
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::Invalid(text.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Invalid(format!("expected {expected}, not {}", kind(unexpected)))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::Invalid(format!("expected {expected}, not this {}", kind(unexpected)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::Invalid(format!("unknown {}, expected one of {}", shown(variant), expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn duplicate_field(_: &'static str) -> Self {
        Self::TwiceGiven
    }
}

/// The kind of a value, without the value.
fn kind(unexpected: Unexpected<'_>) -> &'static str {
    match unexpected {
        Unexpected::Bool(_) => "boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "whole number",
        Unexpected::Float(_) => "number with a fraction or beyond 64 bits",
        Unexpected::Str(_) | Unexpected::Char(_) => "text",
        Unexpected::Unit | Unexpected::Option => "null",
        Unexpected::Seq => "array",
        Unexpected::Map => "object",
        _ => "value",
    }
}

/// Lets a [`Value`] be read with [`Fault`] as the error; `serde_json` can do so only with its own.
struct Node<'a>(&'a Value);

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.iter().map(Node))),
            Value::Object(fields) => {
                visitor.visit_map(MapDeserializer::new(fields.iter().map(|(name, value)| (name.as_str(), Node(value)))))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> de::IntoDeserializer<'de, Fault> for Node<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
