//! The same job as `tailring::wire` in the plainest way: a tokenizer of protobuf fields and lists
//! of bytes. It believes its input and shares no code with what it judges.

/// One field: its number, all of its bytes, and the body if it has a length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'m> {
    pub(crate) number: u64,
    pub(crate) whole: &'m [u8],
    pub(crate) body: Option<&'m [u8]>,
}

/// One span with all that is said of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Placed {
    pub(crate) resource_header: Vec<u8>,
    pub(crate) scope_header: Vec<u8>,
    pub(crate) span: Vec<u8>,
}

fn varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint without an end");
}

fn field<'m>(bytes: &'m [u8], at: &mut usize) -> Field<'m> {
    let start = *at;
    let tag = varint(bytes, at);
    let mut body = None;
    match tag & 7 {
        0 => {
            varint(bytes, at);
        }
        1 => *at += 8,
        2 => {
            let len = varint(bytes, at) as usize;
            body = Some(&bytes[*at..*at + len]);
            *at += len;
        }
        3 => {
            while !is_end(bytes, at) {
                field(bytes, at);
            }
        }
        5 => *at += 4,
        other => panic!("wire type {other}"),
    }
    Field {
        number: tag >> 3,
        whole: &bytes[start..*at],
        body,
    }
}

/// Passes over the end of a group if one stands here.
fn is_end(bytes: &[u8], at: &mut usize) -> bool {
    let mut after = *at;
    let ends = varint(bytes, &mut after) & 7 == 4;
    if ends {
        *at = after;
    }
    ends
}

pub(crate) fn fields(bytes: &[u8]) -> Vec<Field<'_>> {
    let mut at = 0;
    let mut fields = Vec::new();
    while at < bytes.len() {
        fields.push(field(bytes, &mut at));
    }
    fields
}

/// What is not a child, and the children.
fn open(message: &[u8], child: u64) -> (Vec<u8>, Vec<&[u8]>) {
    let (mut header, mut children) = (Vec::new(), Vec::new());
    for field in fields(message) {
        match field.body {
            Some(body) if field.number == child => children.push(body),
            _ => header.extend_from_slice(field.whole),
        }
    }
    (header, children)
}

pub(crate) fn trace_of(span: &[u8]) -> Vec<u8> {
    let mut ids = fields(span).into_iter().filter(|it| it.number == 1);
    ids.next_back().unwrap().body.unwrap().to_vec()
}

pub(crate) fn spans(message: &[u8]) -> Vec<Placed> {
    let mut placed = Vec::new();
    for resource in open(message, 1).1 {
        let (resource_header, scopes) = open(resource, 2);
        for scope in scopes {
            let (scope_header, spans) = open(scope, 2);
            placed.extend(spans.into_iter().map(|span| Placed {
                resource_header: resource_header.clone(),
                scope_header: scope_header.clone(),
                span: span.to_vec(),
            }));
        }
    }
    placed
}

fn put(tag: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    prost::encoding::encode_varint(body.len() as u64, out);
    out.extend_from_slice(body);
}

/// The fragments in their canonical form, by resource and then by first appearance.
pub(crate) fn fragments(message: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for resource in open(message, 1).1 {
        let (header, scopes) = open(resource, 2);
        let scopes: Vec<_> = scopes.into_iter().map(|scope| open(scope, 2)).collect();
        let mut traces: Vec<Vec<u8>> = Vec::new();
        for span in scopes.iter().flat_map(|(_, spans)| spans) {
            let trace = trace_of(span);
            if !traces.contains(&trace) {
                traces.push(trace);
            }
        }
        for trace in traces {
            let mut body = header.clone();
            for (scope_header, spans) in &scopes {
                let mut scope = scope_header.clone();
                let mine: Vec<_> = spans
                    .iter()
                    .filter(|span| trace_of(span) == trace)
                    .collect();
                for span in &mine {
                    put(0x12, span, &mut scope);
                }
                if !mine.is_empty() {
                    put(0x12, &scope, &mut body);
                }
            }
            let mut request = Vec::new();
            put(0x0A, &body, &mut request);
            found.push(request);
        }
    }
    found
}
