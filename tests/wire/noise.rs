//! Requests that a lawful but strange encoder might write: any field order, unknown fields in
//! every message, singular messages in several instalments, over-long varints, empty messages.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Vec<u8>),
    Message(Tree),
    Group(Tree),
}

/// A message: field numbers and values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree(pub(crate) Vec<(u32, Value)>);

/// How many of each there are at most, and how strange the encoding is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) resources: usize,
    pub(crate) scopes: usize,
    pub(crate) spans: usize,
    pub(crate) traces: u8,
    pub(crate) strange: bool,
    /// Out of 1,000 values so many are replaced by something else.
    pub(crate) wrong: u32,
}

pub(crate) struct Noise {
    rng: SmallRng,
    size: Size,
}

/// Bytes of a request.
pub(crate) fn request(seed: u64, size: Size) -> Vec<u8> {
    let mut noise = Noise {
        rng: SmallRng::seed_from_u64(seed),
        size,
    };
    let tree = noise.request();
    let mut out = Vec::new();
    noise.encode(tree, &mut out);
    out
}

/// Bytes of a span of this trace, with these trace states, in whatever order.
pub(crate) fn span(seed: u64, trace: [u8; 16], states: &[String]) -> Vec<u8> {
    let mut noise = Noise {
        rng: SmallRng::seed_from_u64(seed),
        size: Size {
            resources: 0,
            scopes: 0,
            spans: 0,
            traces: 1,
            strange: seed.is_multiple_of(2),
            wrong: 0,
        },
    };
    let Tree(mut fields) = noise.span();
    fields.retain(|(number, _)| *number != 3);
    fields[0].1 = Value::Bytes(trace.to_vec());
    for state in states {
        let at = noise.some(fields.len());
        fields.insert(at, (3, Value::Bytes(state.clone().into_bytes())));
    }
    let mut out = Vec::new();
    noise.encode(Tree(fields), &mut out);
    out
}

fn varint(mut value: u64, len_min: usize, out: &mut Vec<u8>) {
    let mut len = 1;
    while value >= 0x80 || len < len_min {
        out.push(value as u8 | 0x80);
        value >>= 7;
        len += 1;
    }
    out.push(value as u8);
}

impl Noise {
    fn some(&mut self, max: usize) -> usize {
        self.rng.random_range(0..=max)
    }

    fn text(&mut self) -> Value {
        const LETTERS: [char; 8] = ['a', 'b', '.', '_', '7', 'é', '語', '🦀'];
        let ascii = self.rng.random_bool(0.8);
        let len = match self.rng.random_range(0..20) {
            0 => self.some(300),
            1..5 => 0,
            _ => self.some(24),
        };
        let letters = if ascii { 5 } else { LETTERS.len() };
        let text: String = (0..len)
            .map(|_| LETTERS[self.rng.random_range(0..letters)])
            .collect();
        Value::Bytes(text.into_bytes())
    }

    fn number(&mut self) -> Value {
        let bits = self.rng.random_range(0..64);
        Value::Varint(self.rng.random::<u64>() >> bits)
    }

    fn value(&mut self, levels: u32) -> Tree {
        let kinds = if levels == 0 { 6 } else { 8 };
        let value = match self.rng.random_range(0..kinds) {
            0 | 1 => (1, self.text()),
            2 => (2, Value::Varint(self.rng.random_range(0..2))),
            3 => (3, self.number()),
            4 => (4, Value::Fixed64(self.rng.random::<u32>().into())),
            5 => match self.rng.random_range(0..3) {
                0 => (7, Value::Bytes(vec![0xff; 3])),
                1 => (8, self.number()),
                _ => return Tree::default(),
            },
            6 => {
                let values = (0..self.some(3)).map(|_| (1, Value::Message(self.value(levels - 1))));
                (5, Value::Message(Tree(values.collect())))
            }
            _ => {
                let pairs = (0..self.some(3)).map(|_| (1, Value::Message(self.pair(levels - 1))));
                (6, Value::Message(Tree(pairs.collect())))
            }
        };
        Tree(vec![value])
    }

    fn pair(&mut self, levels: u32) -> Tree {
        let mut pair = vec![(1, self.text())];
        if self.rng.random_bool(0.9) {
            pair.push((2, Value::Message(self.value(levels))));
        }
        if self.rng.random_bool(0.05) {
            pair.push((3, self.number()));
        }
        Tree(pair)
    }

    fn attributes(&mut self, field: u32, max: usize, to: &mut Vec<(u32, Value)>) {
        for _ in 0..self.some(max) {
            to.push((field, Value::Message(self.pair(3))));
        }
    }

    fn id<const N: usize>(&mut self, choices: u8) -> Value {
        let mut id = [0; N];
        id[0] = 0x80;
        id[N - 1] = self.rng.random_range(0..choices);
        Value::Bytes(id.to_vec())
    }

    fn span(&mut self) -> Tree {
        let mut span = vec![(1, self.id::<16>(self.size.traces)), (2, self.id::<8>(255))];
        match self.rng.random_range(0..4) {
            0 => {}
            1 => span.push((4, Value::Bytes(vec![0; 8]))),
            _ => span.push((4, self.id::<8>(255))),
        }
        span.push((5, self.text()));
        self.attributes(9, 4, &mut span);
        for (field, chance) in [
            (3, 0.2),
            (6, 0.8),
            (7, 0.9),
            (8, 0.9),
            (10, 0.1),
            (12, 0.1),
            (14, 0.1),
            (16, 0.7),
        ] {
            if self.rng.random_bool(chance) {
                let value = match field {
                    3 => self.text(),
                    7 | 8 => Value::Fixed64(self.rng.random()),
                    16 => Value::Fixed32(self.rng.random()),
                    _ => self.number(),
                };
                span.push((field, value));
            }
        }
        if self.rng.random_bool(0.3) {
            let mut event = vec![(1, Value::Fixed64(self.rng.random())), (2, self.text())];
            self.attributes(3, 2, &mut event);
            event.push((4, self.number()));
            span.push((11, Value::Message(Tree(event))));
        }
        if self.rng.random_bool(0.2) {
            let mut link = vec![
                (1, self.id::<16>(9)),
                (2, self.id::<8>(9)),
                (3, self.text()),
            ];
            self.attributes(4, 2, &mut link);
            link.push((6, Value::Fixed32(self.rng.random())));
            span.push((13, Value::Message(Tree(link))));
        }
        if self.rng.random_bool(0.5) {
            let status = vec![
                (2, self.text()),
                (3, Value::Varint(self.rng.random_range(0..3))),
            ];
            span.push((15, Value::Message(Tree(status))));
        }
        Tree(span)
    }

    fn scope_spans(&mut self) -> Tree {
        let mut fields = Vec::new();
        if self.rng.random_bool(0.8) {
            let mut scope = vec![(1, self.text()), (2, self.text())];
            self.attributes(3, 2, &mut scope);
            fields.push((1, Value::Message(Tree(scope))));
        }
        if self.rng.random_bool(0.5) {
            fields.push((3, self.text()));
        }
        for _ in 0..self.some(self.size.spans) {
            fields.push((2, Value::Message(self.span())));
        }
        Tree(fields)
    }

    fn request(&mut self) -> Tree {
        let mut request = Vec::new();
        for _ in 0..self.some(self.size.resources) {
            let mut fields = Vec::new();
            if self.rng.random_bool(0.8) {
                let mut resource = Vec::new();
                self.attributes(1, 4, &mut resource);
                if self.rng.random_bool(0.2) {
                    let entity = vec![(1, self.text()), (2, self.text()), (3, self.text())];
                    resource.push((3, Value::Message(Tree(entity))));
                }
                fields.push((1, Value::Message(Tree(resource))));
            }
            if self.rng.random_bool(0.5) {
                fields.push((3, self.text()));
            }
            for _ in 0..self.some(self.size.scopes) {
                fields.push((2, Value::Message(self.scope_spans())));
            }
            request.push((1, Value::Message(Tree(fields))));
        }
        Tree(request)
    }

    /// A field that no message has.
    fn unknown(&mut self, levels: u32) -> (u32, Value) {
        let numbers = [17, 31, 1000, 40_000, (1 << 29) - 1];
        let number = numbers[self.rng.random_range(0..numbers.len())];
        let value = match self.rng.random_range(0..if levels == 0 { 4 } else { 5 }) {
            0 => self.number(),
            1 => Value::Fixed64(self.rng.random()),
            2 => Value::Fixed32(self.rng.random()),
            3 => Value::Bytes(vec![0xff; self.some(9)]),
            _ => {
                let inner = (0..self.some(2)).map(|_| self.unknown(levels - 1));
                Value::Group(Tree(inner.collect()))
            }
        };
        (number, value)
    }

    /// Part of a message and the rest of it: together they are the message.
    fn instalments(&mut self, tree: Tree) -> [Tree; 2] {
        let cut = self.some(tree.0.len());
        let mut first = tree.0;
        let second = first.split_off(cut);
        [Tree(first), Tree(second)]
    }

    fn overlong(&mut self, bytes_max: usize) -> usize {
        if self.size.strange && self.rng.random_ratio(1, 30) {
            self.rng.random_range(0..=bytes_max)
        } else {
            0
        }
    }

    fn wrong(&mut self) -> Value {
        match self.rng.random_range(0..6) {
            0 => Value::Varint(self.rng.random()),
            1 => Value::Fixed64(self.rng.random()),
            2 => Value::Fixed32(self.rng.random()),
            3 => Value::Bytes(vec![0xC0; self.some(20)]),
            4 => Value::Bytes(vec![0; self.some(20)]),
            _ => Value::Group(Tree::default()),
        }
    }

    fn encode(&mut self, tree: Tree, out: &mut Vec<u8>) {
        let mut fields = Vec::new();
        for (number, value) in tree.0 {
            let singular = matches!((number, &value), (1 | 15, Value::Message(_)));
            match value {
                Value::Message(tree)
                    if self.size.strange && singular && self.rng.random_ratio(1, 4) =>
                {
                    for tree in self.instalments(tree) {
                        fields.push((number, Value::Message(tree)));
                    }
                }
                value => fields.push((number, value)),
            }
        }
        if self.size.strange {
            while self.rng.random_ratio(1, 6) {
                fields.push(self.unknown(2));
            }
            if self.rng.random_bool(0.5) {
                fields.shuffle(&mut self.rng);
            }
        }
        for (number, mut value) in fields {
            if self.size.wrong > 0 && self.rng.random_ratio(self.size.wrong, 1000) {
                value = self.wrong();
            }
            self.encode_field(number, value, out);
        }
    }

    fn encode_field(&mut self, number: u32, value: Value, out: &mut Vec<u8>) {
        let tag = |wire_type: u32| u64::from(number << 3 | wire_type);
        let overlong = self.overlong(10);
        match value {
            Value::Varint(value) => {
                varint(tag(0), overlong, out);
                varint(value, self.overlong(10), out);
            }
            Value::Fixed64(value) => {
                varint(tag(1), overlong, out);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Value::Fixed32(value) => {
                varint(tag(5), overlong, out);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Value::Bytes(bytes) => {
                varint(tag(2), overlong, out);
                varint(bytes.len() as u64, self.overlong(10), out);
                out.extend_from_slice(&bytes);
            }
            Value::Message(tree) => {
                let mut body = Vec::new();
                self.encode(tree, &mut body);
                varint(tag(2), overlong, out);
                varint(body.len() as u64, self.overlong(10), out);
                out.extend_from_slice(&body);
            }
            Value::Group(tree) => {
                varint(tag(3), overlong, out);
                self.encode(tree, out);
                varint(tag(4), self.overlong(10), out);
            }
        }
    }
}
