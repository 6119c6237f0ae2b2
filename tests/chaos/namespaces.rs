//! Networks of their own for workers: a network namespace each, behind one that routes between them and this host, and
//! in which a way can be cut in one direction without anybody being told. Needs root and iproute2's `ip`.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use crate::cluster::Place;

/// Names of the namespaces and devices begin with it, and with the process ID.
const PREFIX: &str = "tr";

/// Removed when dropped, with what runs in it.
pub struct Namespaces {
    router: String,
    places: Vec<Place>,
    cuts: Vec<(IpAddr, IpAddr)>,
}

impl Namespaces {
    /// One for each worker. An error says why there can be none here.
    pub fn make(workers: u8) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        let tag = format!("{PREFIX}{}", std::process::id() % 100_000);
        let router = format!("{tag}-r");
        let mut made = Self {
            router: router.clone(),
            places: Vec::new(),
            cuts: Vec::new(),
        };
        ip(&["netns", "add", &router])?;
        made.inside(&["link", "set", "lo", "up"])?;
        run(
            "ip",
            &[
                "netns",
                "exec",
                &router,
                "sysctl",
                "-qw",
                "net.ipv4.ip_forward=1",
            ],
        )?;
        // This host's end is the one that stays here.
        made.wire(&format!("{tag}h"), None, 0)?;
        let route = format!("{}/16", Ipv4Addr::from(NETWORK));
        ip(&["route", "add", &route, "via", &gateway(0).to_string()])?;
        for number in 1..=workers {
            let namespace = format!("{tag}-{number}");
            ip(&["netns", "add", &namespace])?;
            made.places.push(Place {
                namespace: namespace.clone(),
                address: address(number),
            });
            in_namespace(&namespace, &["link", "set", "lo", "up"])?;
            made.wire(&format!("{tag}w{number}"), Some(&namespace), number)?;
            let gateway = gateway(number).to_string();
            in_namespace(&namespace, &["route", "add", "default", "via", &gateway])?;
        }
        Ok(made)
    }

    pub fn places(&self) -> Vec<Place> {
        self.places.clone()
    }

    /// Where workers find this host.
    pub fn host(&self) -> IpAddr {
        address(0)
    }

    /// From now on nothing gets from one to the other: dropped silently, and in this direction only.
    pub fn cut(&mut self, from: IpAddr, to: IpAddr) {
        self.rule("add", from, to).unwrap();
        self.cuts.push((from, to));
    }

    /// Everything gets through again.
    pub fn heal(&mut self) {
        for (from, to) in std::mem::take(&mut self.cuts) {
            self.rule("del", from, to).unwrap();
        }
    }

    fn rule(&self, what: &str, from: IpAddr, to: IpAddr) -> Result<(), String> {
        let (from, to) = (from.to_string(), to.to_string());
        self.inside(&["rule", what, "from", &from, "to", &to, "blackhole"])
    }

    fn inside(&self, args: &[&str]) -> Result<(), String> {
        in_namespace(&self.router, args)
    }

    /// A pair of devices: one end in the router's namespace, the other in the one given, or here.
    fn wire(&self, device: &str, namespace: Option<&str>, number: u8) -> Result<(), String> {
        let far = format!("{device}r");
        let mut add = vec!["link", "add", device];
        if let Some(namespace) = namespace {
            add.extend(["netns", namespace]);
        }
        add.extend(["type", "veth", "peer", "name", &far, "netns", &self.router]);
        ip(&add)?;
        let near = |args: &[&str]| match namespace {
            Some(namespace) => in_namespace(namespace, args),
            None => ip(args),
        };
        let (own, gateway) = (address(number), gateway(number));
        near(&["addr", "add", &format!("{own}/24"), "dev", device])?;
        near(&["link", "set", device, "up"])?;
        self.inside(&["addr", "add", &format!("{gateway}/24"), "dev", &far])?;
        self.inside(&["link", "set", &far, "up"])
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // Devices go with the namespace of either end, and the route with its device.
        let namespaces = self.places.iter().map(|place| &place.namespace);
        for namespace in namespaces.chain([&self.router]) {
            if let Err(error) = ip(&["netns", "del", namespace]) {
                println!("{namespace} stays: {error}");
            }
        }
    }
}

const NETWORK: [u8; 4] = [10, 77, 0, 0];

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(NETWORK[0], NETWORK[1], number, 2).into()
}

fn gateway(number: u8) -> IpAddr {
    Ipv4Addr::new(NETWORK[0], NETWORK[1], number, 1).into()
}

fn in_namespace(namespace: &str, args: &[&str]) -> Result<(), String> {
    ip(&[&["-n", namespace], args].concat())
}

fn ip(args: &[&str]) -> Result<(), String> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program} {}: {}", args.join(" "), said.trim()))
        }
        Err(error) => Err(format!("{program} cannot be run: {error}")),
    }
}
