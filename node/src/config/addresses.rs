//! Addresses: what to bind, and what to tell others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};

/// An address to bind: `host:port`, `[v6]:port`, or `:port` for every interface.
pub(super) fn bind_address(text: &str) -> Result<SocketAddr, String> {
    if text.contains("{{") {
        return Err("address templates are not supported; write the address".to_owned());
    }
    if let Some(port) = text.strip_prefix(':') {
        let port = port_number(port).ok_or("has no valid port")?;
        return Ok(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let (host, port) = split_host_port(text)?;
    // A name, usually "localhost": resolved once, here.
    (host, port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(|| "does not resolve to an address".to_owned())
}

/// `host:port` with a port; brackets around IPv6.
pub(super) fn split_host_port(text: &str) -> Result<(&str, u16), String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("must be host:port; the port is missing")?;
    if host.is_empty() || (host.contains(':') && !(host.starts_with('[') && host.ends_with(']'))) {
        return Err("must be host:port, an IPv6 address in brackets".to_owned());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._[]:%".contains(c);
    if !host.chars().all(allowed) {
        return Err("must be host:port; the host name is not valid".to_owned());
    }
    let port = port_number(port).ok_or("must be host:port; the port is not valid")?;
    Ok((host, port))
}

fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

/// A URL of a node as given to others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NodeUrl {
    pub(super) scheme: String,
    pub(super) host: String,
    pub(super) port: u16,
}

impl std::fmt::Display for NodeUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

impl NodeUrl {
    /// `http://` or `https://`, host, optional port, nothing after.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("must be a URL such as https://host:8200")?;
        let default_port = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return Err("must start with https:// or http://".to_owned()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err("must end after the port".to_owned());
        }
        let has_port = rest
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.ends_with(']'));
        let (host, port) = if has_port {
            split_host_port(rest)?
        } else {
            let with_port = format!("{rest}:{default_port}");
            split_host_port(&with_port)?;
            (rest, default_port)
        };
        Ok(Self {
            scheme: scheme.to_owned(),
            host: host.to_owned(),
            port,
        })
    }

    /// The URL of an address.
    pub(super) fn of(scheme: &str, address: SocketAddr) -> Self {
        let host = match address.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        Self {
            scheme: scheme.to_owned(),
            host,
            port: address.port(),
        }
    }

    /// What Vault tells other nodes when only the API address is known: the next port, always TLS.
    pub(super) fn cluster_default(&self) -> Option<Self> {
        Some(Self {
            scheme: "https".to_owned(),
            host: self.host.clone(),
            port: self.port.checked_add(1)?,
        })
    }
}

/// The address of this machine that it would use to reach others. Asks the routing table; nothing is sent.
pub(super) fn own_address() -> Option<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849): routed by default, never answered.
    let v4 = (
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)),
    );
    let v6 = (
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    );
    [v4, v6].into_iter().find_map(|(from, to)| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds() {
        for (text, want) in [
            ("127.0.0.1:8200", Some("127.0.0.1:8200")),
            ("[::1]:8200", Some("[::1]:8200")),
            (":8200", Some("[::]:8200")),
            ("127.0.0.1", None),
            ("127.0.0.1:99999", None),
            ("{{ GetPrivateIP }}:8200", None),
            ("::1:8200", None),
            ("", None),
        ] {
            let got = bind_address(text).ok().map(|address| address.to_string());
            assert_eq!(got.as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn urls() {
        for (text, want) in [
            ("https://a:8200", Some("https://a:8200")),
            ("https://a:8200/", Some("https://a:8200")),
            ("https://a", Some("https://a:443")),
            ("http://[::1]", Some("http://[::1]:80")),
            ("http://[::1]:82", Some("http://[::1]:82")),
            ("a:8200", None),
            ("ftp://a:1", None),
            ("https://a:8200/v1", None),
            ("https://u@a:8200", None),
            ("https://:8200", None),
            ("https://", None),
            ("https://a:0", None),
            ("https://a b:1", None),
        ] {
            let got = NodeUrl::parse(text).ok().map(|url| url.to_string());
            assert_eq!(got.as_deref(), want, "{text:?}");
        }
        let last = NodeUrl::parse("https://a:65535").unwrap();
        assert_eq!(last.cluster_default(), None);
    }
}
