//! Joining, replacing, announcing, turning away.

use strongroom_raft::{MembershipError, PeerInfo};
use tokio::net::TcpListener;

use crate::harness::{CLUSTER, Cluster, info, local, put, read};

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_catches_up_and_becomes_a_voter() {
    let mut cluster = Cluster::new().await;
    for round in 0..300 {
        cluster.write(put(&format!("k{round}"), "v")).await;
    }
    let id = cluster.join("b").await;
    assert!(id > 300, "an id is a log index: {id}");
    cluster
        .until("a second voter", |c| {
            let status = c.nodes[0].raft.status();
            status.members.iter().filter(|member| member.voter).count() == 2
        })
        .await;
    assert_eq!(read(&cluster.nodes[1], "k299").await.as_deref(), Some("v"));
    assert_eq!(local(&cluster.nodes[1], "k0").as_deref(), Some("v"));
    let status = cluster.nodes[0].raft.status();
    let joiner = status
        .members
        .iter()
        .find(|member| member.raft_id == id)
        .unwrap();
    assert!(
        joiner.last_ack.is_some() && joiner.matched.is_some(),
        "{joiner:?}"
    );
    let own = status
        .members
        .iter()
        .find(|member| member.raft_id == 1)
        .unwrap();
    assert_eq!((own.leader, own.last_ack), (true, None));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_non_voter_stays_one() {
    let mut cluster = Cluster::new().await;
    let reader = PeerInfo {
        non_voter: true,
        ..info("r", "")
    };
    cluster.join_as(reader).await;
    cluster.write(put("k", "v")).await;
    assert_eq!(read(&cluster.nodes[1], "k").await.as_deref(), Some("v"));
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let status = cluster.nodes[0].raft.status();
    assert_eq!(
        status.members.iter().filter(|member| member.voter).count(),
        1
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_comes_back_under_its_name_with_a_new_id() {
    let mut cluster = Cluster::of_three().await;
    cluster.write(put("k", "v")).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    let stopped = cluster.stop(victim).await;
    let old = stopped.identity.raft_id;
    std::fs::remove_dir_all(&stopped.dir).unwrap();
    let new = cluster.join(&stopped.identity.name).await;
    assert_ne!(new, old);
    cluster
        .until("the new id in the old one's place", |c| {
            c.nodes.iter().all(|node| {
                let members = node.raft.status().members;
                members.len() == 3
                    && members
                        .iter()
                        .all(|member| member.voter && member.raft_id != old)
            })
        })
        .await;
    let last = cluster.nodes.len() - 1;
    assert_eq!(read(&cluster.nodes[last], "k").await.as_deref(), Some("v"));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_was_given_up_leaves_nothing_behind() {
    let mut cluster = Cluster::new().await;
    let raft = &cluster.nodes[0].raft;
    let never = raft.add_node(info("b", "127.0.0.1:1")).await.unwrap();
    let id = cluster.join("b").await;
    cluster
        .until("only the second try", |c| {
            let members = c.nodes[0].raft.status().members;
            let ids: Vec<u64> = members.iter().map(|member| member.raft_id).collect();
            ids == [1, id] && members.iter().all(|member| member.voter)
        })
        .await;
    assert!(never < id);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_announces_its_new_address() {
    let mut cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let mover = (leader + 1) % 3;
    let mut stopped = cluster.stop(mover).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    stopped.addr = listener.local_addr().unwrap().to_string();
    let (id, name) = (stopped.identity.raft_id, stopped.identity.name.clone());
    let node = cluster
        .start(stopped.identity, stopped.addr.clone(), listener)
        .await;
    cluster.nodes.push(node);
    let moved = &cluster.nodes[2];
    let now = PeerInfo {
        version: "0.2.0".to_owned(),
        ..info(&name, &stopped.addr)
    };
    // The leader cannot reach it at its old address; it has to find the leader by itself.
    let deadline = crate::harness::soon();
    while let Err(error) = moved.raft.announce(now.clone()).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    cluster
        .until("everybody to know", |c| {
            c.nodes.iter().all(|node| {
                let members = node.raft.status().members;
                members
                    .iter()
                    .any(|member| member.raft_id == id && member.info == now)
            })
        })
        .await;
    cluster.write(put("k", "v")).await;
    assert_eq!(read(&cluster.nodes[2], "k").await.as_deref(), Some("v"));
    let renamed = cluster.nodes[2]
        .raft
        .announce(info("other", &stopped.addr))
        .await;
    assert!(
        matches!(renamed, Err(MembershipError::Refused(_))),
        "{renamed:?}"
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_turned_away() {
    use strongroom_raft::ALPN;
    use tokio::io::AsyncReadExt;
    use tokio_rustls::TlsConnector;

    let cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let target = &cluster.nodes[leader];
    let hex = "5a".repeat(16);
    let name = format!("n{}.{hex}.strongroom", target.identity.raft_id);
    let other_ca = crate::harness::Ca::new();
    // Another CA; the right CA but another cluster's name.
    for (what, (_, client)) in [
        ("another CA", other_ca.tls(&CLUSTER, 1)),
        ("another cluster", cluster.ca.tls(&[1; 16], 1)),
    ] {
        let mut config = (*client).clone();
        config.alpn_protocols = vec![ALPN.into()];
        if what == "another CA" {
            // It trusts our server, so that only the server's check is tested.
            let (_, trusting) = cluster.ca.tls(&CLUSTER, 1);
            let mut trusting = (*trusting).clone();
            trusting.client_auth_cert_resolver = config.client_auth_cert_resolver.clone();
            trusting.alpn_protocols = vec![ALPN.into()];
            config = trusting;
        }
        let tcp = tokio::net::TcpStream::connect(&target.addr).await.unwrap();
        let connector = TlsConnector::from(std::sync::Arc::new(config));
        let server = name.clone().try_into().unwrap();
        // With TLS 1.3 the client learns at its first read that its certificate was refused.
        let ended = match connector.connect(server, tcp).await {
            Err(_) => true,
            Ok(mut stream) => {
                let mut byte = [0];
                let read = stream.read(&mut byte);
                let read = tokio::time::timeout(std::time::Duration::from_secs(5), read);
                !matches!(read.await.unwrap(), Ok(1..))
            }
        };
        assert!(ended, "{what}");
    }
    cluster.shutdown().await;
}

/// Connects as the node whose certificate this is and says hello; gives the connection and the other side's refusal.
async fn say_hello(
    tls: std::sync::Arc<rustls::ClientConfig>,
    target: &crate::harness::Node,
    hello: &[u8],
) -> (
    tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    String,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut config = (*tls).clone();
    config.alpn_protocols = vec![strongroom_raft::ALPN.into()];
    let name = format!(
        "n{}.{}.strongroom",
        target.identity.raft_id,
        "5a".repeat(16)
    );
    let tcp = tokio::net::TcpStream::connect(&target.addr).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = connector
        .connect(name.try_into().unwrap(), tcp)
        .await
        .unwrap();
    let length = u32::try_from(12 + hello.len()).unwrap();
    let header = [&length.to_be_bytes()[..], &[1], &[0; 11]].concat();
    stream.write_all(&[&header, hello].concat()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).await.unwrap();
    let mut body = vec![0; usize::from(answer[3]) + 256 * usize::from(answer[2]) - 12];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(answer[4], 2, "a welcome");
    // One string field: tag, length, text.
    (
        stream,
        String::from_utf8_lossy(body.get(2..).unwrap_or_default()).into_owned(),
    )
}

fn hello_bytes(protocol: u8, cluster: u8, from: u64, to: u64, purpose: u8) -> Vec<u8> {
    let mut bytes = vec![8, protocol, 0x12, 16];
    bytes.extend([cluster; 16]);
    bytes.extend([
        0x18,
        u8::try_from(from).unwrap(),
        0x20,
        u8::try_from(to).unwrap(),
    ]);
    bytes.extend([0x28, purpose]);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_is_checked_against_certificate_and_membership() {
    use tokio::io::AsyncReadExt;

    let cluster = Cluster::of_three().await;
    let leader = cluster.leader().await;
    let target = &cluster.nodes[leader];
    let (to, from) = (
        target.identity.raft_id,
        cluster.nodes[(leader + 1) % 3].identity.raft_id,
    );
    let (_, member) = cluster.ca.tls(&CLUSTER, from);
    let (_, stranger) = cluster.ca.tls(&CLUSTER, 99);
    for (what, tls, hello, want) in [
        (
            "the right hello",
            &member,
            hello_bytes(1, 0x5a, from, to, 2),
            "",
        ),
        (
            "a newer protocol",
            &member,
            hello_bytes(2, 0x5a, from, to, 2),
            "protocol 2 is unknown",
        ),
        (
            "another cluster",
            &member,
            hello_bytes(1, 0x5b, from, to, 2),
            "another cluster",
        ),
        (
            "a false name",
            &member,
            hello_bytes(1, 0x5a, to, to, 2),
            "the certificate is node",
        ),
        (
            "the wrong node",
            &member,
            hello_bytes(1, 0x5a, from, 77, 2),
            "this is node",
        ),
        (
            "a new purpose",
            &member,
            hello_bytes(1, 0x5a, from, to, 9),
            "purpose 9 is unknown",
        ),
        (
            "no member",
            &stranger,
            hello_bytes(1, 0x5a, 99, to, 2),
            "is not a member",
        ),
    ] {
        let (_, refused) = say_hello(std::sync::Arc::clone(tls), target, &hello).await;
        assert!(
            refused.contains(want) && refused.is_empty() == want.is_empty(),
            "{what}: {refused}"
        );
    }
    // A peer has one connection per purpose: a new one ends the one before.
    let hello = hello_bytes(1, 0x5a, from, to, 1);
    let (mut first, _) = say_hello(std::sync::Arc::clone(&member), target, &hello).await;
    let (_second, _) = say_hello(member, target, &hello).await;
    let end = tokio::time::timeout(std::time::Duration::from_secs(5), first.read(&mut [0])).await;
    assert!(!matches!(end.unwrap(), Ok(1..)));
    cluster.write(put("k", "v")).await;
    cluster.shutdown().await;
}
