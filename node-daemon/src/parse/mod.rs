//! Parse a record's text into fields.
//! Place: decode -> **parse** -> batch; a worker owns one `Record` and reuses it for every record.
//! Invariants: no heap object per record once warm; never panics on any bytes; what a format cannot parse
//! stays whole as `message`, with the failure named.

/// A record's fields as ranges of its text, reused from record to record.
#[derive(Debug, Default)]
pub struct Record {
    /// The fields found, in order. Empty with `failure` set or for format `none`: the text is the `message`.
    pub fields: Vec<Field>,
    /// Text that had to be rewritten (unquoted CSV), referred to by `Value::Scratch`.
    pub scratch: Vec<u8>,
    /// The record's own time, nanoseconds since 1970.
    pub time_ns: Option<i64>,
    /// Why the text could not be parsed, a short constant such as `json: not an object`.
    pub failure: Option<&'static str>,
}

/// One field of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// What it is called.
    pub name: Name,
    /// What it holds.
    pub value: Value,
}

/// What a field is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The parser's own name of this number (CSV column, regexp group, access-log field).
    Own(u16),
    /// A range of the text: the inside of a JSON string, still escaped as valid JSON.
    Json(u32, u32),
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A range of the text that is a valid JSON value, copied as it is.
    Json(u32, u32),
    /// A range of the text, any bytes: written as a JSON string.
    Text(u32, u32),
    /// A range of `scratch`, any bytes: written as a JSON string.
    Scratch(u32, u32),
    /// A range of the text that is a decimal number valid in JSON, written bare.
    Number(u32, u32),
    /// Nothing was there (`-` in an access log).
    Null,
}
