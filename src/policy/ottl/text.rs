//! Values as texts and texts as values: what Go's `strconv` and JSON make of them.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::policy::ottl::error::EvalError;
use crate::policy::ottl::value::{DEPTH_MAX, Map, Value};
use crate::wire::{
    AnyValue, LIST_TAG, any_value, attribute_value, elements, write_any_value, write_entry,
};

/// Bytes of one text that an evaluation makes. An attribute has at most some megabytes, and a
/// condition could multiply them.
pub(super) const TEXT_MAX: usize = 16 << 20;

/// What a function makes of any value when it wants a text. Nil stays nil.
pub(super) fn text_like(value: Value<'_>) -> Result<Option<Cow<'_, [u8]>>, EvalError> {
    let mut out = String::new();
    match value {
        Value::Nil => return Ok(None),
        Value::Text(text) => return Ok(Some(text)),
        Value::Bytes(bytes) => {
            for byte in bytes.iter() {
                write!(out, "{byte:02x}").map_err(|_| EvalError::TooLarge)?;
            }
        }
        other => json(&other, &mut out, 0)?,
    }
    Ok(Some(Cow::Owned(out.into_bytes())))
}

/// A value as Go's JSON writes it.
fn json(value: &Value<'_>, out: &mut String, depth: u32) -> Result<(), EvalError> {
    if depth > DEPTH_MAX || out.len() > TEXT_MAX {
        return Err(EvalError::TooLarge);
    }
    let bytes_array = |id: &[u8], out: &mut String| {
        let numbers: Vec<String> = id.iter().map(u8::to_string).collect();
        out.push_str(&format!("[{}]", numbers.join(",")));
    };
    match value {
        Value::Nil => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => out.push_str(&value.to_string()),
        Value::Float(value) => out.push_str(&float(*value)?),
        Value::Text(text) => quoted(text, out),
        Value::Bytes(bytes) => {
            out.push('"');
            STANDARD.encode_string(bytes, out);
            out.push('"');
        }
        Value::TraceId(id) => bytes_array(id, out),
        Value::SpanId(id) => bytes_array(id, out),
        Value::Time(time) => {
            let text = time.rfc3339().ok_or(EvalError::Unreadable)?;
            out.push_str(&format!("\"{text}\""));
        }
        Value::Duration(nanos) => out.push_str(&nanos.to_string()),
        // The type has no fields that JSON would show.
        Value::Map(_) if depth > 0 => out.push_str("{}"),
        Value::Map(map) => any_json(&map_value(map), out, depth)?,
        Value::Slice(_) if depth > 0 => out.push_str("{}"),
        Value::Slice(slice) => any_json(&AnyValue::Array(Cow::Borrowed(slice)), out, depth)?,
        Value::List(list) => {
            out.push('[');
            for (index, value) in list.values().iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                json(value, out, depth + 1)?;
            }
            out.push(']');
        }
        Value::Texts(texts) => {
            out.push('[');
            for (index, text) in texts.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                quoted(text, out);
            }
            out.push(']');
        }
        Value::Opaque(_) => out.push_str("{}"),
    }
    Ok(())
}

/// The entries of a map, moved to a KeyValueList if they come from somewhere else.
fn map_value<'b>(map: &'b Map<'_>) -> AnyValue<'b> {
    if map.tag == LIST_TAG {
        return AnyValue::Map(Cow::Borrowed(&map.bytes));
    }
    let mut bytes = Vec::new();
    for (key, key_value) in map.entries() {
        write_entry(key, &attribute_value(key_value), &mut bytes);
    }
    AnyValue::Map(Cow::Owned(bytes))
}

fn any_json(value: &AnyValue<'_>, out: &mut String, depth: u32) -> Result<(), EvalError> {
    if depth > DEPTH_MAX || out.len() > TEXT_MAX {
        return Err(EvalError::TooLarge);
    }
    match value {
        AnyValue::Map(bytes) => {
            let map = Map {
                bytes: Cow::Borrowed(bytes),
                tag: LIST_TAG,
            };
            // Go makes a map of it, so that of equal keys the last one counts, and sorts that.
            let mut entries: Vec<(&[u8], &[u8])> = map.entries().collect();
            entries.sort_by_key(|(key, _)| *key);
            out.push('{');
            let mut first = true;
            for (index, (key, key_value)) in entries.iter().enumerate() {
                if entries.get(index + 1).is_some_and(|(next, _)| next == key) {
                    continue;
                }
                if !first {
                    out.push(',');
                }
                first = false;
                quoted(key, out);
                out.push(':');
                any_json(&attribute_value(key_value), out, depth + 1)?;
            }
            out.push('}');
            Ok(())
        }
        AnyValue::Array(bytes) => {
            out.push('[');
            for (index, element) in elements(bytes).enumerate() {
                if index > 0 {
                    out.push(',');
                }
                any_json(&any_value(element), out, depth + 1)?;
            }
            out.push(']');
            Ok(())
        }
        AnyValue::Empty => json(&Value::Nil, out, depth),
        AnyValue::Str(text) => json(&Value::text(text), out, depth),
        AnyValue::Bool(value) => json(&Value::Bool(*value), out, depth),
        AnyValue::Int(value) => json(&Value::Int(*value), out, depth),
        AnyValue::Double(value) => json(&Value::Float(*value), out, depth),
        // A nil slice is null, and empty bytes are one.
        AnyValue::Bytes(bytes) if bytes.is_empty() => json(&Value::Nil, out, depth),
        AnyValue::Bytes(bytes) => json(&Value::Bytes(Cow::Borrowed(bytes)), out, depth),
    }
}

/// The shortest digits that read back; with an exponent where it is very small or very large.
fn float(value: f64) -> Result<String, EvalError> {
    if !value.is_finite() {
        return Err(EvalError::Unreadable);
    }
    let size = value.abs();
    if size == 0.0 || (1e-6..1e21).contains(&size) {
        return Ok(value.to_string());
    }
    // Rust writes 1e-7 and 1e21, Go 1e-07 and 1e+21.
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    Ok(format!("{digits}e{sign}{exponent:0>2}"))
}

fn quoted(text: &[u8], out: &mut String) {
    out.push('"');
    for c in String::from_utf8_lossy(text).chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Go's `strconv.ParseFloat`.
pub(super) fn parse_float(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?;
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    match unsigned.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => return Some(sign * f64::INFINITY),
        // Go takes no sign here.
        "nan" => return (unsigned.len() == text.len()).then_some(f64::NAN),
        _ => {}
    }
    // Underscores stand between digits.
    let digit = |c: Option<&u8>| c.is_some_and(u8::is_ascii_hexdigit);
    let bytes = unsigned.as_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|(_, c)| **c == b'_') {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        let after_prefix = at == 2 && matches!(before, Some(b'x' | b'X'));
        if !(digit(before) || after_prefix) || !digit(bytes.get(at + 1)) {
            return None;
        }
    }
    let plain = unsigned.replace('_', "");
    if let Some(hex) = plain
        .strip_prefix("0x")
        .or_else(|| plain.strip_prefix("0X"))
    {
        return Some(sign * hex_float(hex)?);
    }
    let lawful = plain
        .bytes()
        .all(|c| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'+' | b'-'));
    let value: f64 = plain.parse().ok().filter(|_| lawful)?;
    value.is_finite().then_some(sign * value)
}

/// `1.8p3`: the exponent is a must.
fn hex_float(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['p', 'P'])?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() || exponent.is_empty() {
        return None;
    }
    let mut exponent: i64 = exponent.parse::<i64>().ok()?.clamp(-1 << 20, 1 << 20);
    let mut value: u64 = 0;
    for c in whole.chars().chain(fraction.chars()) {
        let digit = u64::from(c.to_digit(16)?);
        if value >> 60 == 0 {
            value = value << 4 | digit;
        } else {
            // Beyond what a float holds; whether anything was there decides how it is rounded.
            value |= u64::from(digit > 0);
            exponent += 4;
        }
    }
    exponent -= 4 * fraction.len() as i64;
    let exponent = i32::try_from(exponent).ok()?;
    // Two steps: 2^-1074 is a float, 2^-1100 is none.
    let half = exponent / 2;
    let result = value as f64 * 2f64.powi(half) * 2f64.powi(exponent - half);
    result.is_finite().then_some(result)
}

/// Go's `strconv.ParseInt` to the base 10.
pub(super) fn parse_int(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Go's `strconv.ParseBool`.
pub(super) fn parse_bool(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True" => Some(true),
        b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False" => Some(false),
        _ => None,
    }
}

/// What the Go compiler for amd64 makes of it; the language leaves it open.
pub(super) fn truncated(value: f64) -> i64 {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if (-LIMIT..LIMIT).contains(&value) {
        value as i64
    } else {
        i64::MIN
    }
}

/// A text as UTF-8. Each byte that is none becomes U+FFFD, as in Go.
pub(super) fn utf8<'a>(text: &'a [u8]) -> Cow<'a, str> {
    if let Ok(text) = std::str::from_utf8(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for chunk in text.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(out)
}

/// Letter for letter, as Go does it: what would become several letters stays as it is.
pub(super) fn lower(text: &str) -> String {
    let one = |c: char| match c {
        'İ' => 'i',
        c => only(c.to_lowercase()).unwrap_or(c),
    };
    text.chars().map(one).collect()
}

pub(super) fn upper(text: &str) -> String {
    let one = |c: char| only(c.to_uppercase()).unwrap_or(c);
    text.chars().map(one).collect()
}

fn only(mut chars: impl Iterator<Item = char>) -> Option<char> {
    chars.next().filter(|_| chars.next().is_none())
}

/// Go's `strings.Split`. Nothing between the parts means: at each character.
pub(super) fn split<'t>(text: &'t [u8], delimiter: &[u8]) -> Vec<&'t [u8]> {
    if delimiter.is_empty() {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let len = rest
                .utf8_chunks()
                .next()
                .and_then(|chunk| chunk.valid().chars().next())
                .map_or(1, char::len_utf8);
            let (part, after) = rest.split_at(len);
            parts.push(part);
            rest = after;
        }
        return parts;
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = find(rest, delimiter) {
        let (part, after) = rest.split_at(at);
        parts.push(part);
        rest = &after[delimiter.len()..];
    }
    parts.push(rest);
    parts
}

/// Where `needle` begins in `text`.
pub(super) fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    // The standard library searches in linear time, but only texts.
    if let (Ok(text), Ok(needle)) = (std::str::from_utf8(text), std::str::from_utf8(needle)) {
        return text.find(needle);
    }
    match needle {
        [] => Some(0),
        _ => text.windows(needle.len()).position(|it| it == needle),
    }
}

/// Go's `strings.Trim`.
pub(super) fn trim<'t>(text: &'t [u8], cutset: &str) -> &'t [u8] {
    match std::str::from_utf8(text) {
        Ok(text) => text.trim_matches(|c| cutset.contains(c)).as_bytes(),
        Err(_) => {
            let is_cut = |byte: &u8| byte.is_ascii() && cutset.contains(char::from(*byte));
            let begin = text.iter().take_while(|it| is_cut(it)).count();
            let end = text.iter().rev().take_while(|it| is_cut(it)).count();
            text.get(begin..text.len() - end).unwrap_or_default()
        }
    }
}

/// An object or a list of JSON as what an attribute would hold; all numbers are floats.
pub(super) fn parse_json(text: &[u8]) -> Option<Value<'static>> {
    // The reader bounds the depth (128).
    let json: serde_json::Value = serde_json::from_slice(text).ok()?;
    match json_value(&json) {
        value @ (AnyValue::Map(_) | AnyValue::Array(_)) => Some(Value::from(value)),
        _ => None,
    }
}

fn json_value(json: &serde_json::Value) -> AnyValue<'static> {
    match json {
        serde_json::Value::Null => AnyValue::Empty,
        serde_json::Value::Bool(value) => AnyValue::Bool(*value),
        serde_json::Value::Number(number) => AnyValue::Double(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => AnyValue::Str(Cow::Owned(text.clone().into_bytes())),
        serde_json::Value::Array(values) => {
            let mut out = Vec::new();
            for value in values {
                write_any_value(LIST_TAG as u8, &json_value(value), &mut out);
            }
            AnyValue::Array(Cow::Owned(out))
        }
        serde_json::Value::Object(entries) => {
            let mut out = Vec::new();
            for (key, value) in entries {
                write_entry(key.as_bytes(), &json_value(value), &mut out);
            }
            AnyValue::Map(Cow::Owned(out))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_go_writes_them_in_json() {
        for (value, expected) in [
            (1.0, "1"),
            (-0.0, "-0"),
            (0.5, "0.5"),
            (1e-6, "0.000001"),
            (1e-7, "1e-07"),
            (1.5e-10, "1.5e-10"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (123456789.125, "123456789.125"),
        ] {
            assert_eq!(float(value).unwrap(), expected);
        }
        assert_eq!(float(f64::NAN), Err(EvalError::Unreadable));
    }

    #[test]
    fn floats_are_read_as_go_reads_them() {
        for (text, expected) in [
            ("1.5", Some(1.5)),
            ("-1e3", Some(-1000.0)),
            ("+.5", Some(0.5)),
            ("1_000", Some(1000.0)),
            ("_1", None),
            ("1_", None),
            ("1__0", None),
            ("inf", Some(f64::INFINITY)),
            ("-Infinity", Some(f64::NEG_INFINITY)),
            ("0x1p-2", Some(0.25)),
            ("0x1.8p1", Some(3.0)),
            ("0x_1p0", Some(1.0)),
            ("0x1", None),
            ("1e999", None),
            ("", None),
            (" 1", None),
            ("abc", None),
            ("infinit", None),
        ] {
            assert_eq!(parse_float(text.as_bytes()), expected, "{text}");
        }
        assert!(parse_float(b"nan").unwrap().is_nan());
        assert_eq!(truncated(-2.7), -2);
        assert_eq!(truncated(1e30), i64::MIN);
        assert_eq!(truncated(f64::NAN), i64::MIN);
    }

    #[test]
    fn texts_are_cut_as_in_go() {
        let cut = |text: &str, at: &str| -> Vec<String> {
            split(text.as_bytes(), at.as_bytes())
                .into_iter()
                .map(|part| String::from_utf8_lossy(part).into_owned())
                .collect()
        };
        assert_eq!(cut("A|B|C", "|"), ["A", "B", "C"]);
        assert_eq!(cut("", "|"), [""]);
        assert!(cut("", "").is_empty());
        assert_eq!(cut("aé", ""), ["a", "é"]);
        assert_eq!(cut("localhost", "h"), ["local", "ost"]);
        assert_eq!(split(b"\xffa", b""), [b"\xff", b"a"]);
        assert_eq!(find(b"abcabd", b"abd"), Some(3));
        assert_eq!(find(b"ab", b"abc"), None);
        assert_eq!(trim(b"  a ", " "), b"a");
        assert_eq!(trim(b"xx", "x"), b"");
        assert_eq!(trim(b"\xff ", " "), b"\xff");
        assert_eq!(utf8(b"a\xe4\xb8"), "a\u{fffd}\u{fffd}");
        assert_eq!(lower("ÀΣİ"), "àσi");
        assert_eq!(upper("straße"), "STRAßE");
    }

    #[test]
    fn what_is_no_object_or_list_is_no_json_here() {
        assert!(parse_json(b"1").is_none());
        assert!(parse_json(b"{\"a\":").is_none());
        let Some(Value::Map(map)) = parse_json(b"{\"a\":1,\"a\":[true,null]}") else {
            panic!("an object is a map");
        };
        let slice = map.get(b"a").unwrap();
        assert_eq!(
            text_like(slice).unwrap().as_deref(),
            Some(&b"[true,null]"[..])
        );
    }
}
