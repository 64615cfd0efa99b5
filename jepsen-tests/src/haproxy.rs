//! HAProxy in front of a cluster, with the configuration that `deploy/` ships.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use crate::{
    client::Client,
    cluster::Cluster,
    machine::{free_port, in_repository, program, wait_for},
    process::Process,
};

/// A running HAProxy.
#[derive(Debug)]
pub struct Haproxy {
    process: Process,
    addr: SocketAddr,
}

impl Haproxy {
    /// Starts it in front of the first three nodes of `cluster` and waits until it lets requests through.
    #[must_use]
    pub fn start(cluster: &Cluster) -> Self {
        let haproxy = Self::start_without_waiting(cluster);
        let client = haproxy.client(cluster);
        wait_for(
            "HAProxy to find a node that serves",
            Duration::from_secs(15),
            || {
                client
                    .request("GET", "/v1/sys/health?standbyok=true", None)
                    .ok()
                    .filter(|answer| answer.status == 200)
            },
        );
        haproxy
    }

    /// Starts it in front of nodes that need not serve yet.
    #[must_use]
    pub fn start_without_waiting(cluster: &Cluster) -> Self {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let tls = cluster.tls();
        let mut command = Command::new(program("haproxy", "haproxy"));
        let template = in_repository("deploy/haproxy/haproxy.cfg");
        command.arg("-db").arg("-f").arg(template);
        command.env("STRONGROOM_LB_BIND", addr.to_string());
        command
            .env("STRONGROOM_LB_CERT", &tls.both_file)
            .env("STRONGROOM_LB_CA", &tls.ca_file);
        for number in 1..=3 {
            command.env(
                format!("STRONGROOM_NODE_{number}"),
                cluster.api_socket(number).to_string(),
            );
        }
        let process = Process::start("haproxy", &mut command, &cluster.dir().join("haproxy.log"));
        Self { process, addr }
    }

    /// Where clients connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `https://…`
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.addr)
    }

    /// A client of whichever node HAProxy chooses.
    #[must_use]
    pub fn client(&self, cluster: &Cluster) -> Client {
        let client = Client::new(self.addr, cluster.tls().client.clone());
        match cluster.root_token() {
            Some(token) => client.with_token(token),
            None => client,
        }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.ended().is_none()
    }
}
