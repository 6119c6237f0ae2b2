//! Walks a JSON text and writes each field as it comes.

use super::error::{Fault, JsonError};
use super::fields::{Kind, Shape};
use super::output::{Full, Output};
use super::text::{Quoted, Text};
use super::{LEVELS_MAX, protobuf_bytes_max};
use crate::wire::field::{LEN, varint_len};

/// A message that is open while what is inside it is read.
#[derive(Debug)]
struct Open {
    kind: Kind,
    /// Where it stands in its parent's field.
    number: u8,
    is_item: bool,
    /// One bit a field number.
    seen: u32,
    /// Of an AnyValue: it has a value.
    chosen: bool,
    /// The field that is being read, for whoever has to say where something is wrong.
    name: Option<&'static str>,
    index: Option<u32>,
}

/// Why the walk ends before the text does.
pub(super) enum Stopped {
    At(Fault),
    Full,
}

/// A walk.
pub(super) struct Transcoder<'a> {
    pub(super) text: Text<'a>,
    pub(super) output: Output,
    /// The request, and what is open inside it. Never empty before the end.
    open: Vec<Open>,
}

/// What a value was; the walk goes on by it.
enum After {
    /// A field of the same message may follow.
    Value,
    /// A message was opened.
    Opened,
}

pub(super) fn transcode(json: &[u8]) -> Result<Vec<u8>, JsonError> {
    let mut transcoder = Transcoder {
        text: Text::new(json),
        output: Output::new(protobuf_bytes_max(json.len())),
        open: Vec::with_capacity(12),
    };
    match transcoder.request() {
        Ok(()) => Ok(transcoder.output.bytes),
        Err(Stopped::Full) => Err(transcoder.output.too_large()),
        Err(Stopped::At(fault)) => {
            let steps = transcoder.open.iter();
            let steps: Vec<_> = steps
                .filter_map(|open| Some((open.name?, open.index)))
                .collect();
            Err(fault.at(&steps, json))
        }
    }
}

impl From<Fault> for Stopped {
    fn from(fault: Fault) -> Self {
        Self::At(fault)
    }
}

impl From<Full> for Stopped {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

impl<'a> Transcoder<'a> {
    fn request(&mut self) -> Result<(), Stopped> {
        if !self.text.take(b'{') {
            let fault = self.text.fault("an object, the ExportTraceServiceRequest");
            return Err(fault.into());
        }
        self.open.push(Open::new(Kind::Request, 0, false));
        let mut is_first = true;
        while let Some(top) = self.open.last_mut() {
            // A text without a key here has the path of its message.
            (top.name, top.index) = (None, None);
            is_first = match self.text.key(is_first)? {
                Some(key) => matches!(self.field(key)?, After::Opened),
                None => matches!(self.close()?, After::Opened),
            };
        }
        Ok(self.text.end()?)
    }

    /// A field whose key was just read.
    #[inline]
    fn field(&mut self, key: Quoted<'a>) -> Result<After, Stopped> {
        let Some(top) = self.open.last_mut() else {
            return Ok(After::Value); // not reached: the walk ends with the last message
        };
        let field = if key.escaped {
            let start = self.output.bytes.len();
            self.output.room_for(key.bytes.len())?;
            key.unescape(&mut self.output.bytes)?;
            let field = top.kind.field(&self.output.bytes[start..]);
            self.output.bytes.truncate(start);
            field
        } else {
            top.kind.field(key.bytes)
        };
        let Some(field) = field else {
            self.text.skip()?;
            return Ok(After::Value);
        };
        top.name = Some(field.name);
        let bit = 1 << field.number;
        if top.seen & bit != 0 {
            return Err(Fault::new(key.offset, "each key once").into());
        }
        top.seen |= bit;
        if self.text.peek() == Some(b'n') {
            self.text.word("null")?;
            return Ok(After::Value);
        }
        let is_choice = top.kind == Kind::AnyValue;
        if is_choice {
            if top.chosen {
                return Err(Fault::new(key.offset, "one value in an AnyValue").into());
            }
            top.chosen = true;
        }
        self.output.room_for(0)?;
        match field.shape {
            Shape::Text => self.text_field(field.number, is_choice)?,
            Shape::Message(kind) => {
                if !self.text.take(b'{') {
                    return Err(self.text.fault("an object").into());
                }
                self.begin(kind, field.number, false)?;
                return Ok(After::Opened);
            }
            Shape::Messages(kind) => {
                if !self.text.take(b'[') {
                    return Err(self.text.fault("a list").into());
                }
                if self.text.take(b']') {
                    return Ok(After::Value);
                }
                top.index = Some(0);
                return self.items(kind, field.number);
            }
            _ => self.scalar(field, is_choice)?,
        }
        Ok(After::Value)
    }

    /// Goes on in a list, before an item.
    #[inline]
    fn items(&mut self, kind: Kind, number: u8) -> Result<After, Stopped> {
        loop {
            match self.text.peek() {
                Some(b'{') => {
                    self.text.take(b'{');
                    self.begin(kind, number, true)?;
                    return Ok(After::Opened);
                }
                Some(b'n') => {
                    self.text.word("null")?;
                    self.output.room_for(0)?;
                    self.output.tag(number, LEN);
                    self.output.varint(0);
                }
                _ => return Err(self.text.fault("an object").into()),
            }
            if !self.text.next_item()? {
                return Ok(After::Value);
            }
            self.next_index();
        }
    }

    fn next_index(&mut self) {
        if let Some(index) = self.open.last_mut().and_then(|top| top.index.as_mut()) {
            *index = index.saturating_add(1);
        }
    }

    #[inline]
    fn begin(&mut self, kind: Kind, number: u8, is_item: bool) -> Result<(), Stopped> {
        if self.open.len() == LEVELS_MAX {
            return Err(self
                .text
                .fault("at most 200 messages inside messages")
                .into());
        }
        self.output.room_for(0)?;
        self.output.open(number, kind.length_bytes());
        self.open.push(Open::new(kind, number, is_item));
        Ok(())
    }

    /// The end of the innermost message.
    #[inline]
    fn close(&mut self) -> Result<After, Stopped> {
        let Some(closed) = self.open.pop() else {
            return Ok(After::Value); // not reached, as above
        };
        if closed.kind != Kind::Request {
            self.output.close()?;
        }
        if closed.is_item && self.text.next_item()? {
            self.next_index();
            return self.items(closed.kind, closed.number);
        }
        Ok(After::Value)
    }

    /// The text that comes next.
    #[inline]
    pub(super) fn quoted(&mut self, expected: &'static str) -> Result<Quoted<'a>, Stopped> {
        match self.text.peek() {
            Some(b'"') => Ok(self.text.string()?),
            _ => Err(self.text.fault(expected).into()),
        }
    }

    #[inline]
    pub(super) fn text_field(&mut self, number: u8, is_empty_written: bool) -> Result<(), Stopped> {
        let text = self.quoted("a string")?;
        if text.bytes.is_empty() && !is_empty_written {
            return Ok(());
        }
        let len = text.bytes.len();
        self.output.room_for(len)?;
        // Of an escaped text a little too long, mostly; then it is moved.
        self.output.open(number, varint_len(len));
        if text.escaped {
            text.unescape(&mut self.output.bytes)?;
        } else {
            self.output.bytes.extend_from_slice(text.bytes);
        }
        Ok(self.output.close()?)
    }
}

impl Open {
    fn new(kind: Kind, number: u8, is_item: bool) -> Self {
        Self {
            kind,
            number,
            is_item,
            seen: 0,
            chosen: false,
            name: None,
            index: None,
        }
    }
}
