//! Who owns which trace, as this member sees it.

use crate::model::{Member, TraceId};
use crate::ring::Table;

/// One belief about the ring, for the shards. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ownership {
    table: Table,
    me: Member,
    my_index: Option<u16>,
    leaves: bool,
}

impl Ownership {
    /// As long as `me` is not in the table, nobody else is given what it holds.
    pub fn new(table: Table, me: Member) -> Self {
        Self {
            my_index: index_of(&table, &me),
            table,
            me,
            leaves: false,
        }
    }

    /// Of a member that drains: everything belongs to the others, kept traces and all. Takes
    /// milliseconds.
    pub fn of_leaving(table: &Table, me: Member) -> Self {
        Self {
            table: table.without(std::slice::from_ref(&me)),
            me,
            my_index: None,
            leaves: true,
        }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    pub fn leaves(&self) -> bool {
        self.leaves
    }

    /// The other member that is to have this trace; `None` if it belongs here, or to nobody.
    pub fn elsewhere(&self, trace: TraceId) -> Option<u16> {
        if self.my_index.is_none() && !self.leaves {
            return None;
        }
        let owner = self.table.owner_index(trace);
        owner.filter(|_| owner != self.my_index)
    }

    pub fn member(&self, index: u16) -> Option<&Member> {
        self.table.members().get(usize::from(index))
    }

    /// All but this one.
    pub fn others(&self) -> impl Iterator<Item = &Member> {
        let members = self.table.members().iter();
        members.filter(|member| **member != self.me)
    }
}

fn index_of(table: &Table, member: &Member) -> Option<u16> {
    let index = table.members().binary_search(member).ok()?;
    u16::try_from(index).ok()
}
