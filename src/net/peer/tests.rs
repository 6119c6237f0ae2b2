//! A client and a server over loopback.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

use super::*;
use crate::model::StoreId;
use crate::net::admission::Budget;
use crate::net::server::{PeerPort, ServerMetrics};
use crate::net::status::RefusalReason;

fn member(name: &str) -> Member {
    Member::parse(name).unwrap()
}

fn identity(name: &str, incarnation: u64) -> Identity {
    Identity {
        member: member(name),
        incarnation: Incarnation(incarnation),
        store: StoreId(incarnation.into()),
    }
}

/// Repeats what it is given, and believes incarnations from 10 on.
struct Parrot {
    me: Identity,
    heard: Mutex<Vec<(Hello, IpAddr)>>,
}

impl PeerService for Parrot {
    fn identity(&self) -> &Identity {
        &self.me
    }

    fn cluster(&self) -> &str {
        "test"
    }

    fn state(&self) -> MemberState {
        MemberState::Draining
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint(7)
    }

    fn admit(&self, caller: &Caller, _: bool) -> Result<(), Refusal> {
        match &caller.from {
            Some((from, _)) if from.incarnation < Incarnation(10) => Err(Refusal::new(
                RefusalReason::StaleIncarnation,
                "an older one",
            )),
            _ => Ok(()),
        }
    }

    fn hello(&self, hello: Hello, seen_at: IpAddr) -> Result<Hello, Refusal> {
        self.heard.lock().unwrap().push((hello, seen_at));
        Ok(Hello {
            identity: self.me.clone(),
            state: self.state(),
            otlp: ":1".parse().unwrap(),
            peer: "10.0.0.9:2".parse().unwrap(),
        })
    }

    fn view(&self) -> Vec<KnownMember> {
        vec![
            KnownMember {
                member: member("a"),
                said: Some((Incarnation(3), MemberState::Ready)),
                suspect: true,
                silent: Duration::from_millis(1234),
                otlp: Some("[::1]:4317".parse().unwrap()),
                peer: None,
            },
            KnownMember {
                member: member("b"),
                said: None,
                suspect: false,
                silent: Duration::ZERO,
                otlp: None,
                peer: None,
            },
        ]
    }

    async fn handoff(
        &self,
        from: &Identity,
        state: MemberState,
        items: Bytes,
    ) -> Result<Bytes, Refusal> {
        let from = format!("{} {} ", from.member, state.label());
        Ok([from.as_bytes(), &items].concat().into())
    }

    async fn sync(&self, _from: &Identity, items: Bytes) -> Result<Bytes, Refusal> {
        if items == "too much" {
            return Ok(vec![0; ITEMS_BYTES_MAX + 1].into());
        }
        Ok(items)
    }
}

struct Running {
    parrot: Arc<Parrot>,
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

async fn start() -> Running {
    let parrot = Arc::new(Parrot {
        me: identity("b", 20),
        heard: Mutex::default(),
    });
    let metrics = ServerMetrics::register(&mut Registry::default());
    let port = PeerPort::open("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = port.local_addr();
    let server = port
        .with(Arc::clone(&parrot), &metrics, Budget::new(16 << 20))
        .await;
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(server.serve(async {
        drop(stopped.await);
    }));
    Running {
        parrot,
        address,
        _stop: stop,
    }
}

fn client(cluster: &str, me: Option<Identity>, known: &[(&str, SocketAddr, u64)]) -> PeerClient {
    let metrics = PeerMetrics::register(&mut Registry::default());
    let client = PeerClient::new(cluster, me, metrics);
    let targets: BTreeMap<_, _> = known
        .iter()
        .map(|(name, address, incarnation)| {
            let target = PeerTarget {
                address: *address,
                incarnation: Some(Incarnation(*incarnation)).filter(|it| it.0 > 0),
            };
            (member(name), target)
        })
        .collect();
    client.set_peers(&targets);
    client
}

fn own_hello(me: &Identity) -> Hello {
    Hello {
        identity: me.clone(),
        state: MemberState::Joining,
        otlp: ":4317".parse().unwrap(),
        peer: "127.0.0.7:4319".parse().unwrap(),
    }
}

fn reason<T: fmt::Debug>(result: Result<T, PeerError>) -> Option<RefusalReason> {
    match result.unwrap_err() {
        PeerError::Refused { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn every_call_goes_there_and_back() {
    let running = start().await;
    let me = identity("a", 10);
    let client = client("test", Some(me.clone()), &[("b", running.address, 20)]);
    client.announce(MemberState::Joining, Fingerprint(1));

    let hello = own_hello(&me);
    let (answer, at) = client.hello(&member("b"), &hello).await.unwrap();
    assert_eq!(at, running.address);
    assert_eq!(answer.fingerprint, Some(Fingerprint(7)));
    assert_eq!(answer.hello.identity, running.parrot.me);
    assert_eq!(answer.hello.state, MemberState::Draining);
    let expected = (
        "127.0.0.1:1".parse().unwrap(),
        "10.0.0.9:2".parse().unwrap(),
    );
    assert_eq!(answer.hello.addresses(at.ip()), expected);
    let heard = running.parrot.heard.lock().unwrap().clone();
    assert_eq!(heard, [(hello, "127.0.0.1".parse().unwrap())]);

    let view = client.view(&member("b")).await.unwrap();
    assert_eq!(view.from, running.parrot.me);
    assert_eq!(view.fingerprint, Some(Fingerprint(7)));
    assert_eq!(view.members, running.parrot.view());

    let given = client.handoff(&member("b"), "traces".into()).await;
    assert_eq!(given.unwrap(), "a joining traces");
    let most = Bytes::from(vec![9; ITEMS_BYTES_MAX]);
    assert_eq!(
        client.sync(&member("b"), most.clone()).await,
        Ok(most.clone())
    );
    assert_eq!(
        client.sync(&member("b"), Bytes::new()).await,
        Ok(Bytes::new())
    );
    let more = Bytes::from(vec![9; ITEMS_BYTES_MAX + 1]);
    let error = client.handoff(&member("b"), more).await.unwrap_err();
    assert_eq!(error, PeerError::TooLong(ITEMS_BYTES_MAX + 1));
    let too_much = client.sync(&member("b"), "too much".into()).await;
    assert_eq!(reason(too_much), Some(RefusalReason::Panicked));
}

#[tokio::test]
async fn calls_for_others_and_from_others_are_refused() {
    let running = start().await;
    let at = running.address;
    let me = identity("a", 10);
    let call = async |cluster, me: &Identity, to: &str, incarnation| {
        let client = client(cluster, Some(me.clone()), &[(to, at, incarnation)]);
        reason(client.handoff(&member(to), "x".into()).await)
    };
    use RefusalReason as Why;
    assert_eq!(call("other", &me, "b", 20).await, Some(Why::WrongCluster));
    assert_eq!(call("test", &me, "c", 20).await, Some(Why::WrongMember));
    assert_eq!(
        call("test", &me, "b", 19).await,
        Some(Why::WrongIncarnation)
    );
    let old = identity("a", 9);
    assert_eq!(
        call("test", &old, "b", 20).await,
        Some(Why::StaleIncarnation)
    );

    // A hello goes to whatever life there is.
    let client = client("test", Some(me.clone()), &[("b", at, 19)]);
    assert!(client.hello(&member("b"), &own_hello(&me)).await.is_ok());
    let unknown = client.sync(&member("c"), Bytes::new()).await.unwrap_err();
    assert_eq!(unknown, PeerError::NoAddress(member("c")));
}

#[tokio::test]
async fn a_router_may_only_ask_for_the_view() {
    let running = start().await;
    let client = client("test", None, &[("b", running.address, 0)]);
    assert!(client.view(&member("b")).await.is_ok());
    let sync = client.sync(&member("b"), Bytes::new()).await;
    assert_eq!(reason(sync), Some(RefusalReason::InvalidRequest));
}

#[test]
fn addresses_are_read_as_they_are_written() {
    for (text, seen) in [
        (":4317", "10.0.0.1:4317"),
        ("127.0.0.2:1", "127.0.0.2:1"),
        ("[::1]:2", "[::1]:2"),
        ("[::]:3", "10.0.0.1:3"),
    ] {
        let announced: Announced = text.parse().unwrap();
        assert_eq!(announced.to_string().parse(), Ok(announced));
        let from = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(announced.as_seen_at(from), seen.parse().unwrap(), "{text}");
    }
    for wrong in ["", ":", ":0", "4317", "host:1", "1.2.3.4"] {
        assert!(wrong.parse::<Announced>().unwrap_err().contains("ip:port"));
    }
}
