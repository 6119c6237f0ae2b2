//! Who is there: discovery through DNS and the view that this process believes in.
//!
//! Hello and view exchange between workers (peer.proto) join here later; today a view is what
//! discovery says, and a name leaves slowly.

mod discovery;
mod source;
mod view;

pub use discovery::{Discovery, DiscoveryMetrics};
pub use source::{Source, SourceError};
pub use view::{MemberDescription, View, ViewDescription, ViewHandle};
