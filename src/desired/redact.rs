//! Takes the secrets out of stored records, for `overlayd store export` and `overlayd diff --desired`.

use serde_json::Value;

/// What stands where a secret was. [`redact`] leaves the field in place, so that a reader sees that there is one.
pub(super) const REDACTED: &str = "(redacted)";

/// Names of the fields that hold secrets, in any record. A new secret in a record belongs in this list; a test holds every record against it.
const SECRET_FIELDS: [&str; 3] = ["private_key", "credential", "auth_credential"];

/// Replaces every secret in a record's JSON. A private key is replaced by the public key that belongs to it, under the name `public_key`.
pub fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let private = fields.get("private_key").and_then(Value::as_str);
            let public = private
                .and_then(|text| crate::secret::PrivateKey::from_base64(text).ok())
                .map(|key| key.public_key().to_string());
            for (name, field) in fields.iter_mut() {
                if SECRET_FIELDS.contains(&name.as_str()) && !field.is_null() {
                    *field = Value::from(REDACTED);
                } else {
                    redact(field);
                }
            }
            if let Some(public) = public {
                fields.insert("public_key".into(), Value::from(public));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
