//! What a condition looks at: for those who want to know before a span comes.

use std::collections::BTreeSet;

use crate::policy::ottl::Condition;
use crate::policy::ottl::expr::{Expr, Level, Visitor};
use crate::policy::ottl::function::Function;
use crate::policy::ottl::path::name_of;

impl Condition {
    /// The paths in it, as they are written behind their roots: `status.code`,
    /// `attributes["http.route"]`. What was folded away is not looked at.
    pub fn sights(&self) -> BTreeSet<(Level, String)> {
        let mut seen = Seen {
            keys: &self.keys,
            sights: BTreeSet::new(),
        };
        self.test.clone().visit(&mut seen);
        seen.sights
    }
}

struct Seen<'c> {
    keys: &'c [Vec<Box<[u8]>>; 4],
    sights: BTreeSet<(Level, String)>,
}

impl Visitor for Seen<'_> {
    fn expr(&mut self, expr: &mut Expr) {
        let sight = match expr {
            Expr::Field(field) => (field.level(), name_of(*field).to_owned()),
            Expr::Attribute { level, slot, .. } => {
                let key = self.keys[*level as usize].get(*slot as usize);
                (*level, element("attributes", key.map_or(&[], |key| key)))
            }
            Expr::Attributes { level, .. } => (*level, "attributes".to_owned()),
            Expr::TraceState(key) => (Level::Span, element("trace_state", key)),
            Expr::Call(call) if call.signature.function == Function::IsRootSpan => {
                (Level::Span, "parent_span_id".to_owned())
            }
            _ => return,
        };
        self.sights.insert(sight);
    }
}

fn element(of: &str, key: &[u8]) -> String {
    format!("{of}[{:?}]", String::from_utf8_lossy(key))
}
