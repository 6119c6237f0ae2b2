//! What holds for any text and any bytes whatever. The fuzz target, the replay of its corpus and
//! the property tests make the same claim.

use tailring::model::Moment;
use tailring::policy::ottl::{
    Condition, Context, ErrorMode, Latches, OttlCondition, Outcome, Program, SpanView,
};

/// How the only policy ended.
#[derive(Default)]
struct Latch(Option<Outcome>);

impl Latches for Latch {
    fn is_settled(&self, _: usize) -> bool {
        self.0.is_some()
    }

    fn settle(&mut self, _: usize, outcome: Outcome) {
        self.0 = Some(outcome);
    }
}

/// A condition, a zero byte, and a span; the first byte of all says which list the condition stands
/// in. It is refused with a place inside of it, or answers; and a policy answers alike.
pub(crate) fn a_condition_is_refused_or_answers(data: &[u8]) {
    let Some((list, rest)) = data.split_first() else {
        return;
    };
    let context = match list % 2 {
        0 => Context::Span,
        _ => Context::SpanEvent,
    };
    let end = rest.iter().position(|byte| *byte == 0);
    let (text, bytes) = rest.split_at(end.unwrap_or(rest.len()));
    let bytes = bytes.get(1..).unwrap_or_default();
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let condition = match Condition::compile(text, context) {
        Ok(condition) => condition,
        Err(error) => {
            assert!(error.offset <= text.len(), "{error:?}");
            assert!(text.is_char_boundary(error.offset), "{error:?}");
            let rendered = error.render(text);
            assert!(
                rendered.lines().any(|line| line.trim() == "^"),
                "{rendered}"
            );
            return;
        }
    };
    for warning in condition.warnings() {
        assert!(text.is_char_boundary(warning.offset), "{warning:?}");
        assert!(!warning.render(text).is_empty());
    }
    // The same bytes play all parts: whatever they are as a message of each kind.
    let view = SpanView {
        resource_header: bytes,
        scope_header: bytes,
        span: bytes,
        event: (context == Context::SpanEvent).then_some(bytes),
        now: Moment::ZERO,
    };
    let alone = condition.eval(&view);
    if context == Context::SpanEvent {
        return;
    }
    let mut program = Program::default();
    program.add(&OttlCondition {
        error_mode: ErrorMode::Propagate,
        span: vec![condition],
        span_event: Vec::new(),
    });
    let mut latch = Latch::default();
    let scopes = std::iter::once((bytes.into(), std::iter::once(bytes)));
    program.fold(bytes.into(), scopes, Moment::ZERO, &mut latch);
    let expected = match alone {
        Ok(true) => Some(Outcome::Matched),
        Ok(false) => None,
        Err(_) => Some(Outcome::Errored),
    };
    assert_eq!(latch.0, expected, "{text}");
}
