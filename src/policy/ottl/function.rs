//! The functions that a condition may call: their names, what they take, and what they give.
//! What they do is `call`'s.

use crate::policy::ottl::value::Value;
use Kind::{
    Any, AnyList, BoolLike, BytesLike, Duration, FloatLike, Int, IntLike, Literal, Slice, Text,
    TextLike, TextLikeList, TextList, Time,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Bool,
    Coalesce,
    Concat,
    ContainsValue,
    ConvertCase,
    Day,
    Double,
    Duration,
    HasPrefix,
    HasSuffix,
    Hex,
    Hour,
    Hours,
    Index,
    Int,
    IsBool,
    IsDouble,
    IsInCidr,
    IsInt,
    IsList,
    IsMap,
    IsMatch,
    IsRootSpan,
    IsString,
    Keys,
    Len,
    Microseconds,
    Milliseconds,
    Minute,
    Minutes,
    Month,
    Nanosecond,
    Nanoseconds,
    Now,
    ParseJson,
    Second,
    Seconds,
    SpanId,
    Split,
    String,
    Substring,
    ToLowerCase,
    ToUpperCase,
    TraceId,
    Trim,
    TrimPrefix,
    TrimSuffix,
    TruncateTime,
    Unix,
    UnixMicro,
    UnixMilli,
    UnixNano,
    UnixSeconds,
    Values,
    Weekday,
    Year,
}

/// What an argument must be. A literal that is not is refused with the condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Any,
    Text,
    /// Any value as a text.
    TextLike,
    Int,
    /// Converted if it can be.
    IntLike,
    FloatLike,
    BoolLike,
    BytesLike,
    Bool,
    Float,
    Map,
    Slice,
    Time,
    Duration,
    /// A text, a bool that must be written out.
    Literal(LiteralKind),
    /// A list that must be written out, its elements anything.
    AnyList,
    TextLikeList,
    TextList,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LiteralKind {
    Text,
    Bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Param {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) optional: bool,
}

/// What is known of a value before any span was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// Nothing, or that it may also be nil.
    Unknown,
    Nil,
    Bool,
    /// Whole or not: they compare.
    Number,
    Text,
    Bytes,
    TraceId,
    SpanId,
    Time,
    Duration,
    Map,
    List,
    Texts,
    Opaque,
}

#[derive(Debug)]
pub(super) struct Signature {
    pub(super) name: &'static str,
    pub(super) function: Function,
    pub(super) params: &'static [Param],
    pub(super) result: Type,
}

const fn must(name: &'static str, kind: Kind) -> Param {
    Param {
        name,
        kind,
        optional: false,
    }
}

const fn may(name: &'static str, kind: Kind) -> Param {
    Param {
        name,
        kind,
        optional: true,
    }
}

const fn of(
    name: &'static str,
    function: Function,
    params: &'static [Param],
    result: Type,
) -> Signature {
    Signature {
        name,
        function,
        params,
        result,
    }
}

const TARGET_TEXT: &[Param] = &[must("target", Text)];
const TIME: &[Param] = &[must("time", Time)];
const DURATION: &[Param] = &[must("duration", Duration)];

/// Sorted by name.
pub(super) const SIGNATURES: &[Signature] = &[
    of(
        "Bool",
        Function::Bool,
        &[must("target", BoolLike)],
        Type::Unknown,
    ),
    of(
        "Coalesce",
        Function::Coalesce,
        &[must("values", AnyList)],
        Type::Unknown,
    ),
    of(
        "Concat",
        Function::Concat,
        &[must("vals", TextLikeList), must("delimiter", Text)],
        Type::Text,
    ),
    of(
        "ContainsValue",
        Function::ContainsValue,
        &[must("target", Slice), must("item", Any)],
        Type::Bool,
    ),
    of(
        "ConvertCase",
        Function::ConvertCase,
        &[
            must("target", Text),
            must("to_case", Literal(LiteralKind::Text)),
        ],
        Type::Text,
    ),
    of("Day", Function::Day, TIME, Type::Number),
    of(
        "Double",
        Function::Double,
        &[must("target", FloatLike)],
        Type::Unknown,
    ),
    of(
        "Duration",
        Function::Duration,
        &[must("duration", Text)],
        Type::Duration,
    ),
    of(
        "HasPrefix",
        Function::HasPrefix,
        &[must("target", Text), must("prefix", Text)],
        Type::Bool,
    ),
    of(
        "HasSuffix",
        Function::HasSuffix,
        &[must("target", Text), must("suffix", Text)],
        Type::Bool,
    ),
    of(
        "Hex",
        Function::Hex,
        &[must("target", BytesLike)],
        Type::Text,
    ),
    of("Hour", Function::Hour, TIME, Type::Number),
    of("Hours", Function::Hours, DURATION, Type::Number),
    of(
        "Index",
        Function::Index,
        &[must("source", Any), must("value", Any)],
        Type::Number,
    ),
    of(
        "Int",
        Function::Int,
        &[must("target", IntLike)],
        Type::Unknown,
    ),
    of(
        "IsBool",
        Function::IsBool,
        &[must("target", Kind::Bool)],
        Type::Bool,
    ),
    of(
        "IsDouble",
        Function::IsDouble,
        &[must("target", Kind::Float)],
        Type::Bool,
    ),
    of(
        "IsInCIDR",
        Function::IsInCidr,
        &[must("target", Text), must("networks", TextList)],
        Type::Bool,
    ),
    of("IsInt", Function::IsInt, &[must("target", Int)], Type::Bool),
    of(
        "IsList",
        Function::IsList,
        &[must("target", Any)],
        Type::Bool,
    ),
    of(
        "IsMap",
        Function::IsMap,
        &[must("target", Kind::Map)],
        Type::Bool,
    ),
    of(
        "IsMatch",
        Function::IsMatch,
        &[must("target", TextLike), must("pattern", Text)],
        Type::Bool,
    ),
    of("IsRootSpan", Function::IsRootSpan, &[], Type::Bool),
    of("IsString", Function::IsString, TARGET_TEXT, Type::Bool),
    of(
        "Keys",
        Function::Keys,
        &[must("target", Kind::Map)],
        Type::List,
    ),
    of("Len", Function::Len, &[must("target", Any)], Type::Number),
    of(
        "Microseconds",
        Function::Microseconds,
        DURATION,
        Type::Number,
    ),
    of(
        "Milliseconds",
        Function::Milliseconds,
        DURATION,
        Type::Number,
    ),
    of("Minute", Function::Minute, TIME, Type::Number),
    of("Minutes", Function::Minutes, DURATION, Type::Number),
    of("Month", Function::Month, TIME, Type::Number),
    of("Nanosecond", Function::Nanosecond, TIME, Type::Number),
    of("Nanoseconds", Function::Nanoseconds, DURATION, Type::Number),
    of("Now", Function::Now, &[], Type::Time),
    of("ParseJSON", Function::ParseJson, TARGET_TEXT, Type::Unknown),
    of("Second", Function::Second, TIME, Type::Number),
    of("Seconds", Function::Seconds, DURATION, Type::Number),
    of(
        "SpanID",
        Function::SpanId,
        &[must("target", BytesLike)],
        Type::SpanId,
    ),
    of(
        "Split",
        Function::Split,
        &[must("target", Text), must("delimiter", Text)],
        Type::Texts,
    ),
    of(
        "String",
        Function::String,
        &[must("target", TextLike)],
        Type::Unknown,
    ),
    of(
        "Substring",
        Function::Substring,
        &[
            must("target", Text),
            must("start", Int),
            must("length", Int),
            may("utf8_safe", Literal(LiteralKind::Bool)),
        ],
        Type::Text,
    ),
    of(
        "ToLowerCase",
        Function::ToLowerCase,
        TARGET_TEXT,
        Type::Text,
    ),
    of(
        "ToUpperCase",
        Function::ToUpperCase,
        TARGET_TEXT,
        Type::Text,
    ),
    of(
        "TraceID",
        Function::TraceId,
        &[must("target", BytesLike)],
        Type::TraceId,
    ),
    of(
        "Trim",
        Function::Trim,
        &[
            must("target", Text),
            may("replacement", Literal(LiteralKind::Text)),
        ],
        Type::Text,
    ),
    of(
        "TrimPrefix",
        Function::TrimPrefix,
        &[must("target", Text), must("prefix", Text)],
        Type::Text,
    ),
    of(
        "TrimSuffix",
        Function::TrimSuffix,
        &[must("target", Text), must("suffix", Text)],
        Type::Text,
    ),
    of(
        "TruncateTime",
        Function::TruncateTime,
        &[must("time", Time), must("duration", Duration)],
        Type::Time,
    ),
    of(
        "Unix",
        Function::Unix,
        &[must("seconds", Int), may("nanoseconds", Int)],
        Type::Time,
    ),
    of("UnixMicro", Function::UnixMicro, TIME, Type::Number),
    of("UnixMilli", Function::UnixMilli, TIME, Type::Number),
    of("UnixNano", Function::UnixNano, TIME, Type::Number),
    of("UnixSeconds", Function::UnixSeconds, TIME, Type::Number),
    of(
        "Values",
        Function::Values,
        &[must("target", Kind::Map)],
        Type::List,
    ),
    of("Weekday", Function::Weekday, TIME, Type::Number),
    of("Year", Function::Year, TIME, Type::Number),
];

/// The Collector's other converters, and what does the same here, if anything does.
pub(super) const NOT_SUPPORTED: &[(&str, Option<&str>)] = &[
    ("Base64Decode", None),
    ("Base64Encode", None),
    ("CommunityID", None),
    ("ConvertAttributesToElementsXML", None),
    ("ConvertTextToElementsXML", None),
    ("Decode", None),
    ("ExtractGrokPatterns", Some("IsMatch(x, \"…\")")),
    ("ExtractPatterns", Some("IsMatch(x, \"…\")")),
    ("FNV", None),
    ("Format", Some("Concat([…], \"\")")),
    (
        "FormatTime",
        Some("Year, Month, Day, Hour, Minute and Second"),
    ),
    ("GetXML", Some("IsMatch(x, \"…\")")),
    ("InsertXML", None),
    ("IsValidLuhn", None),
    ("Log", None),
    ("MD5", None),
    ("Murmur3Hash", None),
    ("Murmur3Hash128", None),
    ("ParseCSV", Some("Split(x, \",\")")),
    ("ParseInt", Some("Int(x), which reads decimal numbers")),
    ("ParseKeyValue", Some("Split(x, \" \")")),
    ("ParseSeverity", None),
    ("ParseSimplifiedXML", Some("IsMatch(x, \"…\")")),
    ("ParseXML", Some("IsMatch(x, \"…\")")),
    ("ProfileID", None),
    ("RemoveXML", None),
    ("SHA1", None),
    ("SHA256", None),
    ("SHA512", None),
    ("SliceToMap", None),
    ("Sort", Some("ContainsValue(x, …)")),
    ("Time", Some("Unix(seconds)")),
    ("ToCamelCase", Some("ToLowerCase(x)")),
    ("ToKeyValueString", None),
    ("ToSnakeCase", Some("ToLowerCase(x)")),
    ("URL", Some("IsMatch(x, \"…\")")),
    ("UUID", None),
    ("UUIDv7", None),
    ("UserAgent", Some("IsMatch(x, \"…\")")),
    ("XXH128", None),
    ("XXH3", None),
];

pub(super) fn signature(name: &str) -> Option<&'static Signature> {
    let at = SIGNATURES.binary_search_by(|it| it.name.cmp(name)).ok()?;
    SIGNATURES.get(at)
}

/// Of all that are supported.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SIGNATURES.iter().map(|it| it.name)
}

impl Kind {
    /// For a message.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Any => "a value",
            Text => "a text",
            TextLike => "something that can be a text",
            Int => "a whole number",
            IntLike | FloatLike => "something that can be a number",
            BoolLike => "something that can be true or false",
            BytesLike => "bytes or a text",
            Self::Bool => "true or false",
            Self::Float => "a number with a fraction",
            Self::Map => "a map",
            Slice => "a list",
            Time => "a time",
            Duration => "a duration",
            Literal(LiteralKind::Text) => "a text in double quotes",
            Literal(LiteralKind::Bool) => "true or false, written out",
            AnyList | TextLikeList | TextList => "a list in brackets",
        }
    }
}

impl Type {
    pub(super) fn of(value: &Value<'_>) -> Self {
        match value {
            Value::Nil => Self::Nil,
            Value::Bool(_) => Self::Bool,
            Value::Int(_) | Value::Float(_) => Self::Number,
            Value::Text(_) => Self::Text,
            Value::Bytes(_) => Self::Bytes,
            Value::TraceId(_) => Self::TraceId,
            Value::SpanId(_) => Self::SpanId,
            Value::Time(_) => Self::Time,
            Value::Duration(_) => Self::Duration,
            Value::Map(_) => Self::Map,
            Value::Slice(_) | Value::List(_) => Self::List,
            Value::Texts(_) => Self::Texts,
            Value::Opaque(_) => Self::Opaque,
        }
    }

    /// Whether a value of the one type can be equal to one of the other.
    pub(super) fn may_equal(self, other: Self) -> bool {
        let nil_bytes = matches!(
            (self, other),
            (Self::Nil, Self::Bytes) | (Self::Bytes, Self::Nil)
        );
        self == Self::Unknown || other == Self::Unknown || self == other || nil_bytes
    }

    /// Whether less and greater mean something between two of it.
    pub(super) fn is_ordered(self) -> bool {
        !matches!(
            self,
            Self::Nil
                | Self::TraceId
                | Self::SpanId
                | Self::Map
                | Self::List
                | Self::Texts
                | Self::Opaque
        )
    }

    /// For a message.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Unknown => "a value",
            Self::Nil => "nil",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Bytes => "bytes",
            Self::TraceId => "a trace ID",
            Self::SpanId => "a span ID",
            Self::Time => "a time",
            Self::Duration => "a duration",
            Self::Map => "a map",
            Self::List => "a list",
            Self::Texts => "the list of Split",
            Self::Opaque => "a whole status, or all events or links",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_their_names() {
        assert!(SIGNATURES.is_sorted_by_key(|it| it.name));
        for it in SIGNATURES {
            assert_eq!(signature(it.name).map(|it| it.function), Some(it.function));
        }
        assert!(
            NOT_SUPPORTED
                .iter()
                .all(|(name, _)| signature(name).is_none())
        );
        // 98 are registered, two of them editors; IsRootSpan is added.
        assert_eq!(SIGNATURES.len() + NOT_SUPPORTED.len(), 97);
    }
}
