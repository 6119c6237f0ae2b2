//! Values that are no messages: numbers, enums, IDs and bytes, in all the ways JSON has for them.

use super::digits;
use super::error::Fault;
use super::fields::{Field, Shape};
use super::text::{Number, Quoted};
use super::transcoder::{Stopped, Transcoder};
use crate::wire::field::varint_len;

impl<'a> Transcoder<'a> {
    /// Values that are as they are by default are left out, unless they are chosen ones.
    pub(super) fn scalar(&mut self, field: Field, is_choice: bool) -> Result<(), Stopped> {
        let number = field.number;
        match field.shape {
            Shape::Bool => {
                let value = self.bool()?;
                self.varint(field, u64::from(value), is_choice);
            }
            Shape::Uint32 => {
                let value: u32 = self.integer("an integer from 0 to 4294967295")?;
                self.varint(field, value.into(), is_choice);
            }
            Shape::Int32 => {
                let value: i32 = self.integer("an integer of 32 bits")?;
                self.varint(field, i64::from(value) as u64, is_choice);
            }
            Shape::Int64 => {
                let value = match self.text.peek() {
                    Some(b'{') => self.halves()? as i64,
                    _ => self.integer("an integer of 64 bits")?,
                };
                self.varint(field, value as u64, is_choice);
            }
            Shape::Enum(names) => {
                let value = self.enumerated(names)?;
                self.varint(field, i64::from(value) as u64, is_choice);
            }
            Shape::Fixed32 => {
                let value: u32 = self.integer("an integer from 0 to 4294967295")?;
                if value != 0 {
                    self.fixed(field, &value.to_le_bytes());
                }
            }
            Shape::Fixed64 => {
                let value = match self.text.peek() {
                    Some(b'{') => self.halves()?,
                    _ => self.integer("an integer from 0 to 18446744073709551615")?,
                };
                if value != 0 {
                    self.fixed(field, &value.to_le_bytes());
                }
            }
            Shape::Double => {
                let value = self.double()?;
                self.fixed(field, &value.to_le_bytes());
            }
            Shape::Texts => self.texts(number)?,
            Shape::Id => self.id(number)?,
            Shape::Base64 => self.base64(number)?,
            // `field` has these.
            Shape::Text | Shape::Message(_) | Shape::Messages(_) => {}
        }
        Ok(())
    }

    fn varint(&mut self, field: Field, value: u64, is_zero_written: bool) {
        if value != 0 || is_zero_written {
            self.output.tag(field.number, field.shape.wire_type());
            self.output.varint(value);
        }
    }

    fn fixed(&mut self, field: Field, value: &[u8]) {
        self.output.tag(field.number, field.shape.wire_type());
        self.output.bytes.extend_from_slice(value);
    }

    fn bool(&mut self) -> Result<bool, Stopped> {
        match self.text.peek() {
            Some(b't') => self.text.word("true")?,
            Some(b'f') => {
                self.text.word("false")?;
                return Ok(false);
            }
            _ => return Err(self.text.fault("true or false").into()),
        }
        Ok(true)
    }

    /// A number, or a string that is one.
    #[inline]
    fn number(&mut self, expected: &'static str) -> Result<Number<'a>, Stopped> {
        match self.text.peek() {
            Some(b'-' | b'0'..=b'9') => Ok(self.text.number()?),
            Some(b'"') => {
                let text = self.text.string()?;
                let fault = Fault::new(text.offset, expected);
                Ok(text.number().ok_or(fault)?)
            }
            _ => Err(self.text.fault(expected).into()),
        }
    }

    #[inline]
    fn integer<T: TryFrom<i128>>(&mut self, expected: &'static str) -> Result<T, Stopped> {
        let number = self.number(expected)?;
        let value = number.integer().and_then(|value| T::try_from(value).ok());
        Ok(value.ok_or(Fault::new(number.offset, expected))?)
    }

    fn enumerated(&mut self, names: &[&str]) -> Result<i32, Stopped> {
        const EXPECTED: &str = "a number or a name of the enum";
        if self.text.peek() == Some(b'"') {
            let text = self.text.clone().string()?;
            if let Some(value) = names.iter().position(|it| it.as_bytes() == text.bytes) {
                self.text.string()?;
                return Ok(i32::try_from(value).unwrap_or_default()); // there are a handful
            }
        }
        self.integer(EXPECTED)
    }

    fn double(&mut self) -> Result<f64, Stopped> {
        const EXPECTED: &str = "a number, \"NaN\", \"Infinity\" or \"-Infinity\"";
        if self.text.peek() == Some(b'"') {
            let special = match self.text.clone().string()?.bytes {
                b"NaN" => Some(f64::NAN),
                b"Infinity" | b"+Inf" => Some(f64::INFINITY),
                b"-Infinity" | b"-Inf" => Some(f64::NEG_INFINITY),
                _ => None,
            };
            if let Some(value) = special {
                self.text.string()?;
                return Ok(value);
            }
        }
        let number = self.number(EXPECTED)?;
        Ok(number.double().ok_or(Fault::new(number.offset, EXPECTED))?)
    }

    /// 64 bits as JavaScript's protobuf libraries hold them: `{"low": …, "high": …}`, either of
    /// them signed or not.
    fn halves(&mut self) -> Result<u64, Stopped> {
        const EXPECTED: &str = "an integer of 32 bits";
        self.text.take(b'{');
        let (mut low, mut high) = (None, None);
        let mut is_first = true;
        while let Some(key) = self.text.key(is_first)? {
            is_first = false;
            let half = match key.bytes {
                b"low" => &mut low,
                b"high" => &mut high,
                _ => {
                    self.text.skip()?;
                    continue;
                }
            };
            if half.is_some() {
                return Err(Fault::new(key.offset, "each key once").into());
            }
            let offset = self.text.fault(EXPECTED);
            let value: i64 = self.integer(EXPECTED)?;
            if !(i64::from(i32::MIN)..=i64::from(u32::MAX)).contains(&value) {
                return Err(offset.into());
            }
            *half = Some(value as u32);
        }
        match (low, high) {
            (Some(low), Some(high)) => Ok(u64::from(high) << 32 | u64::from(low)),
            _ => Err(self
                .text
                .fault("both \"low\" and \"high\" before this")
                .into()),
        }
    }

    fn texts(&mut self, number: u8) -> Result<(), Stopped> {
        if !self.text.take(b'[') {
            return Err(self.text.fault("a list").into());
        }
        if self.text.take(b']') {
            return Ok(());
        }
        loop {
            self.text_field(number, true)?;
            if !self.text.next_item()? {
                return Ok(());
            }
        }
    }

    fn id(&mut self, number: u8) -> Result<(), Stopped> {
        const EXPECTED: &str = "hex digits (IDs are not in base64 in OTLP/JSON)";
        let text = self.quoted(EXPECTED)?;
        if text.bytes.is_empty() {
            return Ok(());
        }
        self.decoded(number, text, EXPECTED, digits::hex)
    }

    fn base64(&mut self, number: u8) -> Result<(), Stopped> {
        const EXPECTED: &str = "base64";
        if self.text.peek() == Some(b'{') {
            return self.byte_by_byte(number);
        }
        let text = self.quoted(EXPECTED)?;
        self.decoded(number, text, EXPECTED, digits::base64)
    }

    /// The text is written as it is and then decoded where it lies.
    fn decoded(
        &mut self,
        number: u8,
        text: Quoted<'a>,
        expected: &'static str,
        decode: fn(&mut Vec<u8>, usize) -> Option<()>,
    ) -> Result<(), Stopped> {
        self.output.room_for(text.bytes.len())?;
        self.output.open(number, varint_len(text.bytes.len() / 2));
        let start = self.output.bytes.len();
        text.unescape(&mut self.output.bytes)?;
        decode(&mut self.output.bytes, start).ok_or(Fault::new(text.offset, expected))?;
        Ok(self.output.close()?)
    }

    /// What JSON.stringify makes of a Uint8Array: `{"0": 104, "1": 105}`.
    fn byte_by_byte(&mut self, number: u8) -> Result<(), Stopped> {
        self.text.take(b'{');
        self.output.open(number, 1);
        let start = self.output.bytes.len();
        let mut is_first = true;
        while let Some(key) = self.text.key(is_first)? {
            is_first = false;
            let place = (self.output.bytes.len() - start) as i128;
            if key.number().and_then(|key| key.integer()) != Some(place) {
                return Err(Fault::new(key.offset, "base64, or the bytes by their places").into());
            }
            let byte: u8 = self.integer("a byte")?;
            self.output.room_for(1)?;
            self.output.bytes.push(byte);
        }
        Ok(self.output.close()?)
    }
}
