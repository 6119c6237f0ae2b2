//! Members of a trace state, read as the Collector's `trace_state` policy does: by the rules of
//! the Go SDK, where one wrong member spoils the whole list.
//!
//! What an `ot` member means is `tracestate`'s, which is not so strict.

use crate::wire::tracestate::MEMBERS_MAX;

const VALUE_MAX: usize = 256;
/// Characters after the first one of a key, and of the two parts of a key with `@`.
const KEY_REST_MAX: usize = 255;
const TENANT_REST_MAX: usize = 240;
const SYSTEM_REST_MAX: usize = 13;
const BLANKS: [char; 2] = [' ', '\t'];

/// The value of the member with this key. [`None`] if there is none, or if any part of the list is
/// not as it must be: a key or value with wrong characters, a key twice, more than 32 members.
pub fn member_value<'a>(trace_state: &'a [u8], key: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(trace_state).ok()?;
    let mut keys: [&str; MEMBERS_MAX] = [""; MEMBERS_MAX];
    let mut found = None;
    // Empty members say nothing; one of blanks alone is a mistake.
    let members = text.split(',').filter(|member| !member.is_empty());
    for (count, member) in members.enumerate() {
        let (name, value) = member.split_once('=')?;
        let (name, value) = (
            name.trim_start_matches(BLANKS),
            value.trim_end_matches(BLANKS),
        );
        if !is_member_key(name) || !is_member_value(value) || keys[..count].contains(&name) {
            return None;
        }
        *keys.get_mut(count)? = name;
        if name == key {
            found = Some(value);
        }
    }
    found
}

/// Whether a member can have this key at all.
pub fn is_member_key(key: &str) -> bool {
    let part = |part: &str, digit_first: bool, rest_max: usize| {
        let [first, rest @ ..] = part.as_bytes() else {
            return false;
        };
        (first.is_ascii_lowercase() || digit_first && first.is_ascii_digit())
            && rest.len() <= rest_max
            && rest
                .iter()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
    };
    match key.split_once('@') {
        None => part(key, false, KEY_REST_MAX),
        Some((tenant, system)) => {
            part(tenant, true, TENANT_REST_MAX) && part(system, false, SYSTEM_REST_MAX)
        }
    }
}

/// Whether a member can have this value at all.
pub fn is_member_value(value: &str) -> bool {
    let lawful = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'=');
    value.len() <= VALUE_MAX
        && value.bytes().last().is_some_and(|last| last != b' ')
        && value.as_bytes().iter().all(lawful)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_member_spoils_the_list() {
        let long = "k".repeat(256);
        let too_long = "k".repeat(257);
        let row = |text: &str, value: Option<&str>| {
            assert_eq!(member_value(text.as_bytes(), "a"), value, "{text}");
        };
        row("", None);
        row("a=1", Some("1"));
        row("b=2,a=1", Some("1"));
        row(" \ta=1\t ,b=2", Some("1"));
        row("a= 1", Some(" 1"));
        row("a=1,,b=2,", Some("1"));
        row("a=1, ,b=2", None);
        row("a=1,b", None);
        row("a=1,b=", None);
        row("a=", None);
        row("a=1=2", None);
        row("a =1", None);
        row("a=1,B=2", None);
        row("a=1,1b=2", None);
        row("a=1,1b@c=2", Some("1"));
        row("a=1,1b@2=2", None);
        row("a=1,b@c@d=2", None);
        row("a=1,a=1", None);
        row("a=1,b=\u{e9}", None);
        row("a=1,b=x\ty", None);
        row(&format!("{long}=2,a=1"), Some("1"));
        row(&format!("{too_long}=2,a=1"), None);
        row(&format!("a=1,b={long}"), Some("1"));
        row(&format!("a=1,b={too_long}"), None);
        row(&format!("a=1,b@{}=2", "c".repeat(14)), Some("1"));
        row(&format!("a=1,b@{}=2", "c".repeat(15)), None);
        let many = |count: usize| -> String {
            (1..count).map(|n| format!("k{n}=1,")).collect::<String>() + "a=1"
        };
        row(&many(32), Some("1"));
        row(&many(33), None);
    }
}
