//! Who is there: discovery through DNS and the view that this process believes in.
//!
//! `source` reads the setting, `resolver` asks, `membership` decides who is in, `discovery` does
//! it again and again and publishes views. A failed, empty or truncated answer never changes the
//! ring; a new name joins at once, a name leaves when good answers went without it for a minute; a
//! new address of a known name changes no placement.
//!
//! Hello and view exchange between workers (peer.proto) join here later, beside `discovery`: they
//! give `membership` a second source of names and of reasons to leave (DRAINING, SUSPECT), and
//! publish through the same [`ViewHandle`]. Today a view is what discovery says.

mod discovery;
mod membership;
mod resolver;
mod source;
mod view;

pub use discovery::{Discovery, DiscoveryConfig, DiscoveryMetrics, Outcome};
pub use source::{Host, Source, SourceError, StaticMember};
pub use view::{MemberDescription, View, ViewDescription, ViewHandle};
