//! The header file: credentials and whatever else a backend wants beside each message.
//!
//! Lines `name: value`; empty lines and lines that begin with `#` are skipped. Values are secrets:
//! no error, log line or `Debug` shows one.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Set by us for every message, or not for an application to set.
const RESERVED: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// One mistake. Says what is wrong and never what the value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderLineError {
    /// From 1.
    pub line: usize,
    pub mistake: String,
}

impl fmt::Display for HeaderLineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.mistake)
    }
}

/// All headers, or all mistakes.
pub fn parse_headers(text: &str) -> Result<HeaderMap, Vec<HeaderLineError>> {
    let mut headers = HeaderMap::new();
    let mut errors = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_line(line) {
            Ok((name, value)) => {
                headers.append(name, value);
            }
            Err(mistake) => errors.push(HeaderLineError {
                line: index + 1,
                mistake,
            }),
        }
    }
    if errors.is_empty() {
        Ok(headers)
    } else {
        Err(errors)
    }
}

fn parse_line(line: &str) -> Result<(HeaderName, HeaderValue), String> {
    let Some((name, value)) = line.split_once(':') else {
        // The line may be the secret itself; it is not repeated.
        return Err("there is no colon; write name: value".to_owned());
    };
    let (name, value) = (name.trim(), value.trim());
    let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
        return Err("what stands before the colon is no header name; write name: value".to_owned());
    };
    let name = parsed.as_str();
    if RESERVED.contains(&name) || name.starts_with("grpc-") || name.starts_with("tailring-") {
        return Err(format!("{name} is set by tailring; remove the line"));
    }
    if value.is_empty() {
        return Err(format!("{name} has no value"));
    }
    // HTTP lets other bytes pass, gRPC metadata does not.
    let printable = value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let Some(mut value) = HeaderValue::from_str(value).ok().filter(|_| printable) else {
        return Err(format!(
            "the value of {name} has a character that is not printable ASCII"
        ));
    };
    // Debug output hides it, and HTTP/2 keeps it out of compression tables.
    value.set_sensitive(true);
    Ok((parsed, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_values_and_comments_are_read() {
        let text =
            "# for the backend\n\nAuthorization: Bearer a:b=c\r\n  x-scope :  7 \nx-scope: 8";
        let headers = parse_headers(text).unwrap();
        assert_eq!(headers["authorization"], "Bearer a:b=c");
        let scopes: Vec<_> = headers.get_all("x-scope").iter().collect();
        assert_eq!(scopes, ["7", "8"]);
        assert!(!format!("{headers:?}").contains("Bearer"));
    }

    #[test]
    fn every_mistake_is_told_by_line_and_no_value_is() {
        let text = "s3cret\nok: 1\nbad name: s3cret\nContent-Type: s3cret\nempty:\nx: s3cret\u{e9}\n\
                    grpc-timeout: s3cret\ntailring-member: s3cret\n: s3cret";
        let errors = parse_headers(text).unwrap_err();
        let lines: Vec<usize> = errors.iter().map(|e| e.line).collect();
        assert_eq!(lines, [1, 3, 4, 5, 6, 7, 8, 9]);
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let all = all.join("; ");
        assert!(!all.contains("s3cret"), "{all}");
        assert!(
            all.contains("line 4: content-type is set by tailring"),
            "{all}"
        );
        assert!(all.contains("line 5: empty has no value"), "{all}");
    }
}
