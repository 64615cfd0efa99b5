//! What a node tells of itself and what it refuses: metrics, and reads that need no quorum.

use strongroom_jepsen_tests::{
    Client, Cluster, Options,
    logs::{NODES_AWAY, STARTING},
};

use crate::BINARY;

/// The value of one line of Prometheus's format: `name` with its labels.
pub(crate) fn figure(page: &str, name: &str) -> f64 {
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.parse().unwrap()
}

pub(crate) fn prometheus(client: &Client) -> String {
    let answer = client.get("sys/metrics?format=prometheus").expect(200);
    let kind = answer.header("content-type").unwrap().to_owned();
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    answer.text()
}

#[test]
fn every_node_shows_its_own_figures() {
    let mut cluster = Cluster::prepare(&Options {
        binary: BINARY.into(),
        nodes: 3,
        key_made_before: true,
    });
    // The last node shows them to everybody.
    cluster.configure(3, |node| {
        node.listener_extra =
            "telemetry {\n    unauthenticated_metrics_access = true\n  }".to_owned();
    });
    for number in 1..=3 {
        cluster.start_node(number);
    }
    // Before it belongs to a cluster.
    let page = prometheus(&cluster.anonymous(3));
    assert_eq!(figure(&page, "vault_core_unsealed{cluster=\"\"}"), 0.0);
    let _ = cluster.anonymous(1).get("sys/metrics").expect(503);

    cluster.init();
    cluster.wait_all();
    let leader = cluster.leader();
    let kv = cluster.client(leader);
    let _ = kv
        .put("sys/mounts/kv", &serde_json::json!({"type": "kv"}))
        .expect(204);
    for number in 1..=3 {
        let client = cluster.client(number);
        for name in 0..20 {
            let body = serde_json::json!({"v": name});
            let _ = client
                .put(&format!("kv/{number}-{name}"), &body)
                .expect(204);
            let _ = client.get(&format!("kv/{number}-{name}")).expect(200);
        }
    }
    for number in 1..=3 {
        let client = cluster.client(number);
        let page = prometheus(&client);
        let leads = number == leader;
        let label = "{cluster=\"strongroom-test\"}";
        assert_eq!(figure(&page, &format!("vault_core_unsealed{label}")), 1.0);
        assert_eq!(
            figure(&page, &format!("vault_core_active{label}")),
            f64::from(u8::from(leads))
        );
        assert_eq!(figure(&page, "vault_raft_peers"), 3.0);
        let own = format!("{{cluster=\"strongroom-test\",peer_id=\"node-{number}\"}}");
        assert!(
            figure(
                &page,
                &format!("vault_raft_storage_stats_applied_index{own}")
            ) >= 60.0
        );
        assert!(figure(&page, &format!("vault_raft_storage_stats_term{own}")) >= 1.0);
        for (name, least) in [
            ("strongroom_log_sync_seconds_count", 10.0),
            ("strongroom_apply_seconds_count", 10.0),
            ("vault_raft_fsm_applyBatch_count", 10.0),
            (
                "strongroom_http_requests_total{from=\"client\",class=\"2xx\"}",
                40.0,
            ),
            ("vault_core_handle_request_count", 40.0),
            ("strongroom_disk_free_bytes", 1.0),
            ("process_resident_memory_bytes", 1e6),
        ] {
            assert!(
                figure(&page, name) >= least,
                "node {number}: {name}\n{page}"
            );
        }
        let asks = if leads { "quorum" } else { "leader" };
        let reads = format!("strongroom_read_index_seconds_count{{asks=\"{asks}\"}}");
        assert!(figure(&page, &reads) >= 10.0);
        if leads {
            assert!(figure(&page, "vault_raft_commitTime_count") >= 60.0);
            let peer = if leader == 1 { 2 } else { 1 };
            figure(
                &page,
                &format!("strongroom_peer_lag_entries{{peer_id=\"node-{peer}\"}}"),
            );
        } else {
            // Plain writes are finished here and sent as commands.
            assert!(figure(&page, "strongroom_sent_command_seconds_count") >= 20.0);
        }
        let json = client.get("sys/metrics").expect(200).json();
        let gauges = json["Gauges"].as_array().unwrap();
        assert!(
            gauges
                .iter()
                .any(|g| g["Name"] == "vault.core.unsealed" && g["Value"] == 1.0)
        );
    }
    let stranger = cluster.anonymous(1);
    let _ = stranger.get("sys/metrics").expect(403);
    let _ = stranger
        .with_token("s.wrong")
        .get("sys/metrics")
        .expect(403);
    let odd = cluster.client(1).get("sys/metrics?format=xml").expect(400);
    assert_eq!(odd.text(), "metric response format \"xml\" unknown");
    cluster.assert_logs_clean(&[STARTING, NODES_AWAY]);
}
