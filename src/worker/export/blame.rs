//! Whose fault a refusal for good is: the message's, or the backend's whatever it is sent.
//!
//! OTLP says which refusals not to repeat, and not what to do instead. A message that can never be
//! taken belongs into a file for a human; one that met a backend with the wrong key must wait, or
//! an expired key would empty the log into that file.

use crate::net::client::ExportError;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Every message would be refused: credentials, rights, a wrong address. Also what never left.
    Backend,
    /// Another message may be taken.
    Message(Fault),
}

/// What is wrong with a message. Also a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The receiver says that what is in it is invalid.
    Contents,
    /// It is longer than the receiver takes.
    TooLarge,
    /// The receiver failed over it and says no more. It may have had a bad moment.
    Unclear,
}

impl Fault {
    pub const ALL: [Self; 3] = [Self::Contents, Self::TooLarge, Self::Unclear];

    pub fn label(self) -> &'static str {
        match self {
            Self::Contents => "contents",
            Self::TooLarge => "too_large",
            Self::Unclear => "unclear",
        }
    }
}

impl Blame {
    /// Whether the message is not to be sent again. Not quite as OTLP says: servers made with tonic
    /// answer a message that is too long with OUT_OF_RANGE, which is retryable, and a span longer
    /// than they take would hold up all others for ever.
    pub(super) fn is_due(error: &ExportError) -> bool {
        !error.is_retryable() || is_tonics_too_long(error)
    }

    /// Of an error for which it is due.
    pub(super) fn of(error: &ExportError) -> Self {
        let ExportError::Refused { code, .. } = error else {
            return Self::Backend;
        };
        match code.as_str() {
            "INVALID_ARGUMENT" | "ALREADY_EXISTS" | "HTTP 400" | "HTTP 409" | "HTTP 422" => {
                Self::Message(Fault::Contents)
            }
            _ if is_tonics_too_long(error) => Self::Message(Fault::TooLarge),
            // Headers count as well: they carry the IDs of the message's verdicts.
            "RESOURCE_EXHAUSTED" | "HTTP 413" | "HTTP 431" => Self::Message(Fault::TooLarge),
            "INTERNAL" | "UNKNOWN" | "HTTP 500" => Self::Message(Fault::Unclear),
            _ => Self::Backend,
        }
    }
}

fn is_tonics_too_long(error: &ExportError) -> bool {
    matches!(error, ExportError::Refused { code, message, .. }
        if code == "OUT_OF_RANGE" && message.contains("message length too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_everybody_is_never_a_messages_fault() {
        let blame = |code: &str| {
            Blame::of(&ExportError::Refused {
                code: code.to_owned(),
                message: String::new(),
                retryable: false,
                retry_after: None,
            })
        };
        for code in [
            "UNAUTHENTICATED",
            "PERMISSION_DENIED",
            "UNIMPLEMENTED",
            "NOT_FOUND",
            "FAILED_PRECONDITION",
            "HTTP 301",
            "HTTP 401",
            "HTTP 402",
            "HTTP 403",
            "HTTP 404",
            "HTTP 405",
            "HTTP 415",
            "HTTP 501",
        ] {
            assert_eq!(blame(code), Blame::Backend, "{code}");
        }
        assert_eq!(blame("INVALID_ARGUMENT"), Blame::Message(Fault::Contents));
        assert_eq!(blame("HTTP 413"), Blame::Message(Fault::TooLarge));
        assert_eq!(blame("HTTP 500"), Blame::Message(Fault::Unclear));
        let lost = ExportError::Unreachable("no".to_owned());
        assert_eq!(Blame::of(&lost), Blame::Backend);
    }
}
