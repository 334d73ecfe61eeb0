//! Records as JSON lines: what `produce --format json` reads and `consume --format json` writes.
//!
//! Shape, one object a line, all fields optional when read:
//! `{"topic", "partition", "offset", "timestamp", "key", "value", "headers": {"name": "value"}}`.
//! Keys and values that are no UTF-8 stand as hex digits in `key_hex` and `value_hex`; headers that are not, or whose
//! names are not in ascending order, make `headers` an array of `["name", "value"]` or `["name", {"hex": "00ff"}]`.
//! A missing or null value is a tombstone. `topic` and `offset` are ignored when read, so that what was consumed can
//! be produced again. Units: `timestamp` in ms since the Unix epoch.

use corelog_client::ConsumerRecord;
use serde_json::{Map, Value, json};

/// Name and value of headers, in order.
pub type Headers = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// A record as read from a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonRecord {
    /// The key, if any.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in order.
    pub headers: Headers,
    /// This partition.
    pub partition: Option<u32>,
    /// Create time in ms.
    pub timestamp_ms: Option<i64>,
}

/// Why a line is not a record.
#[derive(Debug, thiserror::Error)]
pub enum JsonRecordError {
    /// The line is not JSON, or no object.
    #[error("not a JSON object: {0}")]
    NotAnObject(String),
    /// A field that nobody reads: most likely misspelt.
    #[error("unknown field {0:?}")]
    UnknownField(String),
    /// A field holds what it cannot hold.
    #[error("field {field:?}: expected {expected}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it may hold.
        expected: &'static str,
    },
}

/// Reads one line.
pub fn parse(line: &[u8]) -> Result<JsonRecord, JsonRecordError> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| JsonRecordError::NotAnObject(error.to_string()))?;
    let Value::Object(fields) = value else {
        return Err(JsonRecordError::NotAnObject("it is another kind of value".to_owned()));
    };
    let mut record = JsonRecord::default();
    for (name, value) in fields {
        match name.as_str() {
            "key" => record.key = text("key", value)?,
            "value" => record.value = text("value", value)?,
            "key_hex" => record.key = hex("key_hex", &value)?,
            "value_hex" => record.value = hex("value_hex", &value)?,
            "headers" => record.headers = headers(value)?,
            "partition" => record.partition = partition(&value)?,
            "timestamp" => record.timestamp_ms = timestamp(&value)?,
            "topic" | "offset" => {}
            _ => return Err(JsonRecordError::UnknownField(name)),
        }
    }
    Ok(record)
}

/// A string as it is; other JSON values as their text, so that nested documents need no quoting.
fn text(field: &'static str, value: Value) -> Result<Option<Vec<u8>>, JsonRecordError> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.into_bytes())),
        other if field == "value" => Ok(Some(other.to_string().into_bytes())),
        _ => Err(JsonRecordError::Field { field, expected: "a string or null" }),
    }
}

fn hex(field: &'static str, value: &Value) -> Result<Option<Vec<u8>>, JsonRecordError> {
    let error = JsonRecordError::Field { field, expected: "an even number of hex digits, or null" };
    match value {
        Value::Null => Ok(None),
        Value::String(digits) => from_hex(digits).map(Some).ok_or(error),
        _ => Err(error),
    }
}

fn partition(value: &Value) -> Result<Option<u32>, JsonRecordError> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.map(Some).ok_or(JsonRecordError::Field { field: "partition", expected: "a number from 0" })
}

fn timestamp(value: &Value) -> Result<Option<i64>, JsonRecordError> {
    if value.is_null() {
        return Ok(None);
    }
    let expected = "milliseconds since the Unix epoch";
    value.as_i64().map(Some).ok_or(JsonRecordError::Field { field: "timestamp", expected })
}

fn headers(value: Value) -> Result<Headers, JsonRecordError> {
    const FIELD: &str = "headers";
    let error = || JsonRecordError::Field {
        field: FIELD,
        expected: "an object of strings, or an array of [name, value]",
    };
    let one = |value: Value| match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.into_bytes())),
        Value::Object(mut object) => hex(FIELD, &object.remove("hex").unwrap_or(Value::Bool(false))),
        _ => Err(error()),
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Object(object) => {
            object.into_iter().map(|(name, value)| Ok((name.into_bytes(), one(value)?))).collect()
        }
        Value::Array(pairs) => {
            let pair = |value: Value| match value {
                Value::Array(mut pair) if pair.len() == 2 => {
                    let value = one(pair.remove(1))?;
                    let name = one(pair.remove(0))?.ok_or_else(error)?;
                    Ok((name, value))
                }
                _ => Err(error()),
            };
            pairs.into_iter().map(pair).collect()
        }
        _ => Err(error()),
    }
}

/// The record as one object.
pub fn to_json(record: &ConsumerRecord) -> Value {
    let mut fields = Map::new();
    fields.insert("topic".into(), json!(&*record.topic));
    fields.insert("partition".into(), json!(record.partition));
    fields.insert("offset".into(), json!(record.offset.0));
    fields.insert("timestamp".into(), json!(record.timestamp.0));
    put_bytes(&mut fields, "key", record.key.as_deref());
    put_bytes(&mut fields, "value", record.value.as_deref());
    if !record.headers.is_empty() {
        let pairs: Vec<(&[u8], Option<&[u8]>)> =
            record.headers.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
        fields.insert("headers".into(), headers_json(&pairs));
    }
    Value::Object(fields)
}

fn put_bytes(fields: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8) {
        None => fields.insert(name.to_owned(), Value::Null),
        Some(Ok(text)) => fields.insert(name.to_owned(), json!(text)),
        Some(Err(_)) => fields.insert(format!("{name}_hex"), json!(to_hex(bytes.unwrap_or_default()))),
    };
}

/// An object if it keeps everything: texts, no name twice, and names in the order in which objects have them.
fn headers_json(headers: &[(&[u8], Option<&[u8]>)]) -> Value {
    if !headers.is_sorted_by(|a, b| a.0 < b.0) {
        return headers_array(headers);
    }
    let mut object = Map::new();
    for (name, value) in headers {
        let name = std::str::from_utf8(name).ok();
        let value =
            value.map_or(Some(Value::Null), |value| std::str::from_utf8(value).ok().map(|v| json!(v)));
        match (name, value) {
            (Some(name), Some(value)) => {
                object.insert(name.to_owned(), value);
            }
            _ => return headers_array(headers),
        }
    }
    Value::Object(object)
}

fn headers_array(headers: &[(&[u8], Option<&[u8]>)]) -> Value {
    let one = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": to_hex(bytes) }),
    };
    let pair = |(name, value): &(&[u8], Option<&[u8]>)| json!([one(name), value.map(one)]);
    Value::Array(headers.iter().map(pair).collect())
}

/// Lower-case hex digits.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to memory does not fail");
        text
    })
}

/// The bytes of hex digits; `None` if they are not, or one is missing.
pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use corelog_client::{Offset, TimestampMs};

    use super::*;

    fn record(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) -> ConsumerRecord {
        let own = |bytes: &[u8]| bytes.to_vec().into();
        ConsumerRecord {
            topic: "t".into(),
            partition: 3,
            offset: Offset(7),
            timestamp: TimestampMs(1_000),
            key: key.map(own),
            value: value.map(own),
            headers: headers.iter().map(|(name, value)| (own(name), value.map(own))).collect(),
        }
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let cases = [
            record(Some(b"k"), Some(b"v"), &[(b"h", Some(b"1")), (b"n", None)]),
            record(None, None, &[]),
            record(None, Some(b""), &[(b"z", Some(b"1")), (b"a", Some(b"2"))]),
            record(Some(&[0xff, 0]), Some(&[0x80]), &[(b"h", Some(b"1")), (b"h", Some(b"2"))]),
            record(Some(b""), Some(b"\"quoted\"\n"), &[(b"h", Some(&[0xfe])), (&[0xfd], None)]),
        ];
        for case in cases {
            let line = to_json(&case).to_string();
            let read = parse(line.as_bytes()).expect(&line);
            assert_eq!(read.key.as_deref(), case.key.as_deref(), "{line}");
            assert_eq!(read.value.as_deref(), case.value.as_deref(), "{line}");
            assert_eq!((read.partition, read.timestamp_ms), (Some(3), Some(1_000)), "{line}");
            let headers: Headers =
                case.headers.iter().map(|(n, v)| (n.to_vec(), v.as_ref().map(|v| v.to_vec()))).collect();
            assert_eq!(read.headers, headers, "{line}");
        }
    }

    #[test]
    fn nested_values_need_no_quotes_and_misspelt_fields_are_errors() {
        let read = parse(br#"{"key": "k", "value": {"a": [1, 2]}}"#).expect("sound");
        assert_eq!(read.value.as_deref(), Some(&br#"{"a":[1,2]}"#[..]));
        for (line, part) in [
            (&b"[1]"[..], "JSON object"),
            (b"{", "JSON object"),
            (br#"{"valeu": "x"}"#, "valeu"),
            (br#"{"key": 3}"#, "key"),
            (br#"{"value_hex": "0"}"#, "hex digits"),
            (br#"{"partition": -1}"#, "partition"),
            (br#"{"headers": {"a": 1}}"#, "headers"),
            (br#"{"timestamp": "now"}"#, "timestamp"),
        ] {
            let error = parse(line).expect_err("not a record").to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
