//! Who is there: discovery through DNS and the view that this process believes in.
//!
//! `source` reads the setting, `resolver` asks, `discovery` does it again and again. What the answers mean is decided
//! by [`roster`] in a worker, from hellos too, and by `followed` (over `membership`) in a router, from what workers
//! say too. A failed, empty or truncated answer never changes the ring; a new name joins at once, a name leaves when
//! good answers went without it for a minute; a new address of a known name changes no placement.
//!
//! Nothing here calls a peer: `net::peer` does, driven by `worker/peering.rs` and `router/follower.rs`.

mod discovery;
mod followed;
mod membership;
mod publisher;
mod resolver;
pub mod roster;
mod source;
mod view;

pub use discovery::{Discovery, DiscoveryConfig, DiscoveryMetrics, Following, Outcome};
pub use followed::{Followed, Told, ToldMember};
pub use membership::Answer;
pub use publisher::Publisher;
pub use source::{Host, PEER_PORT, Source, SourceError, StaticMember};
pub use view::{MemberDescription, View, ViewDescription, ViewHandle};
