//! One member of a W3C trace state, found as strictly as the Collector's parser finds it.
//!
//! `wire::tracestate` is lenient, because it edits what others wrote; here a list with any unlawful
//! member has none.

/// [`None`] if the list cannot be parsed; empty if it has no such member.
pub(super) fn member<'a>(trace_state: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    const MEMBERS_MAX: usize = 32;
    let mut keys: Vec<&[u8]> = Vec::new();
    let mut found: &[u8] = &[];
    for member in trace_state.split(|c| *c == b',') {
        if member.is_empty() {
            continue;
        }
        let equals = member.iter().position(|c| *c == b'=')?;
        let (key, value) = member.split_at(equals);
        let blank = |c: &u8| matches!(c, b' ' | b'\t');
        let key = &key[key.iter().take_while(|c| blank(c)).count()..];
        let value = &value[1..];
        let value = &value[..value.len() - value.iter().rev().take_while(|c| blank(c)).count()];
        if !is_key(key) || !is_value(value) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
        if keys.len() > MEMBERS_MAX {
            return None;
        }
        if key == wanted {
            found = value;
        }
    }
    Some(found)
}

/// `key` or `tenant@system`.
fn is_key(key: &[u8]) -> bool {
    match key.iter().position(|c| *c == b'@') {
        None => is_part(key, 256, u8::is_ascii_lowercase),
        Some(at) => {
            let (tenant, system) = key.split_at(at);
            let alphanumeric = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
            is_part(tenant, 241, alphanumeric) && is_part(&system[1..], 14, u8::is_ascii_lowercase)
        }
    }
}

fn is_part(part: &[u8], len_max: usize, first: impl Fn(&u8) -> bool) -> bool {
    let other = |c: &u8| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'_' | b'-' | b'*' | b'/')
    };
    part.len() <= len_max && part.first().is_some_and(first) && part.iter().all(other)
}

fn is_value(value: &[u8]) -> bool {
    (1..=256).contains(&value.len())
        && value
            .iter()
            .all(|c| (b' '..=b'~').contains(c) && !matches!(c, b',' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_as_the_collector_finds_them() {
        let many = |count: usize| -> String { (0..count).map(|n| format!("k{n}=v,")).collect() };
        for (state, expected) in [
            ("key1=val1,key2=val2", Some("val1")),
            ("a=1 ,\tkey1=v 1 ,,b=2,", Some("v 1")),
            ("key2=val2", Some("")),
            ("", Some("")),
            ("bad state!!", None),
            ("key1=val1,key1=val2", None),
            ("key1=val1,KEY=v", None),
            ("key1=val1,b=", None),
            ("key1=a=b", None),
            ("key1=val1, ", None),
            ("1a@sys=v,key1=val1", Some("val1")),
            ("1a=v,key1=val1", None),
            (&format!("{}key1=v", many(31)), Some("v")),
            (&format!("{}key1=v", many(32)), None),
        ] {
            let found = member(state.as_bytes(), b"key1");
            assert_eq!(found, expected.map(str::as_bytes), "{state}");
        }
    }
}
