//! Leadership, membership and autopilot; output recorded from `bao` 2.7.2, what it does not know left out.

use super::*;

const fn put(request: &'static str, body: &'static str) -> Exchange {
    Exchange {
        request,
        body,
        status: 204,
        answer: "",
    }
}

#[test]
fn members_are_changed() {
    for (line, request, body, out) in [
        (
            "operator raft remove-peer n2",
            "PUT /v1/sys/storage/raft/remove-peer",
            r#"{"server_id":"n2"}"#,
            "Peer removed successfully!\n",
        ),
        (
            "operator raft promote n2",
            "PUT /v1/sys/storage/raft/promote",
            r#"{"server_id":"n2"}"#,
            "Server promoted successfully!\n",
        ),
        (
            "operator raft demote n2",
            "PUT /v1/sys/storage/raft/demote",
            r#"{"server_id":"n2"}"#,
            "Server demoted successfully!\n",
        ),
        (
            "operator raft autopilot set-config -cleanup-dead-servers=true -min-quorum=3 -server-stabilization-time=7s",
            "PUT /v1/sys/storage/raft/autopilot/configuration",
            r#"{"cleanup_dead_servers":true,"min_quorum":3,"server_stabilization_time":"7s"}"#,
            "",
        ),
        (
            "operator raft autopilot set-config",
            "PUT /v1/sys/storage/raft/autopilot/configuration",
            "{}",
            "",
        ),
    ] {
        let outcome = against(line, vec![put(request, body)]);
        assert_eq!((outcome.code, outcome.out.as_str()), (0, out), "{line}");
    }
    let refused = Exchange {
        request: "PUT /v1/sys/storage/raft/demote",
        body: "",
        status: 400,
        answer: r#"{"errors":["the membership change was refused: node `n2` is a non-voter already"]}"#,
    };
    let outcome = against("operator raft demote n2", vec![refused]);
    assert_eq!(outcome.code, 2);
    assert!(
        outcome.err.starts_with("Error demoting server: ") && outcome.err.contains("already"),
        "{}",
        outcome.err
    );
    let outcome = against("operator raft remove-peer", vec![]);
    assert_eq!(
        (outcome.code, outcome.err.as_str()),
        (1, "Not enough arguments (expected 1, got 0)\n")
    );
}

#[test]
fn stepping_down() {
    for (line, body) in [
        ("operator step-down", ""),
        ("operator step-down -to=n2", r#"{"to":"n2"}"#),
    ] {
        let outcome = against(line, vec![put("PUT /v1/sys/step-down", body)]);
        assert_eq!(outcome.code, 0, "{}", outcome.err);
        assert_eq!(outcome.out, "Success! Stepped down: ADDR\n");
    }
    // An answer that says "try again" is passed on: a second step-down would hit the next leader.
    let busy = Exchange {
        request: "PUT /v1/sys/step-down",
        body: "",
        status: 503,
        answer: r#"{"errors":["leadership was not taken over in time"]}"#,
    };
    assert_eq!(against("operator step-down", vec![busy]).code, 2);
}

const CONFIG: &str = r#"{"data":{"cleanup_dead_servers":false,"dead_server_last_contact_threshold":"24h0m0s","disable_upgrade_migration":false,"last_contact_threshold":"10s","max_trailing_logs":1000,"min_quorum":0,"server_stabilization_time":"10s"}}"#;

#[test]
fn autopilots_configuration() {
    let read = || {
        vec![get(
            "GET /v1/sys/storage/raft/autopilot/configuration",
            CONFIG,
        )]
    };
    let outcome = against("operator raft autopilot get-config", read());
    assert_eq!(
        outcome.out,
        "Key                                   Value\n\
         ---                                   -----\n\
         Cleanup Dead Servers                  false\n\
         Last Contact Threshold                10s\n\
         Dead Server Last Contact Threshold    24h0m0s\n\
         Server Stabilization Time             10s\n\
         Min Quorum                            0\n\
         Max Trailing Logs                     1000\n\
         Disable Upgrade Migration             false\n"
    );
    let json = against("operator raft autopilot get-config -format=json", read()).out;
    assert!(
        json.starts_with("{\n  \"cleanup_dead_servers\": false,\n  \"dead_server_last"),
        "{json}"
    );
}

const STATE: &str = r#"{"data":{"failure_tolerance":1,"healthy":true,"leader":"n1","optimistic_failure_tolerance":2,"voters":["n1","n2"],"non_voters":null,"servers":{"n1":{"id":"n1","name":"n1","address":"127.0.0.1:23001","node_status":"alive","last_contact":"0s","last_term":3,"last_index":30,"healthy":true,"stable_since":"2026-11-25T13:05:14.607Z","status":"leader","version":"2.7.2","node_type":"voter"}}}}"#;

#[test]
fn autopilots_state() {
    let read = || vec![get("GET /v1/sys/storage/raft/autopilot/state", STATE)];
    let outcome = against("operator raft autopilot state", read());
    assert_eq!(
        outcome.out,
        "Healthy:                         true\n\
         Failure Tolerance:               1\n\
         Leader:                          n1\n\
         Voters:\n   n1\n   n2\n\
         Optimistic Failure Tolerance:    2\n\
         Servers:\n   n1\n\
         \u{20}     Name:              n1\n\
         \u{20}     Address:           127.0.0.1:23001\n\
         \u{20}     Status:            leader\n\
         \u{20}     Node Status:       alive\n\
         \u{20}     Healthy:           true\n\
         \u{20}     Last Contact:      0s\n\
         \u{20}     Last Term:         3\n\
         \u{20}     Last Index:        30\n\
         \u{20}     Version:           2.7.2\n\
         \u{20}     Node Type:         voter\n"
    );
    let json = against("operator raft autopilot state -format=json", read()).out;
    let wanted = [
        "\"Healthy\": true",
        "\"FailureTolerance\": 1",
        "\"Servers\": {",
        "\"ID\": \"n1\"",
        "\"NodeStatus\": \"alive\"",
        "\"StableSince\": \"2026-11-25T13:05:14.607Z\"",
        "\"Status\": \"leader\"",
        "\"Leader\": \"n1\"",
        "\"NonVoters\": null",
        "\"Upgrade\": null",
    ];
    let mut at = 0;
    for part in wanted {
        at += json[at..]
            .find(part)
            .unwrap_or_else(|| panic!("{part} is not where it should be in {json}"));
    }
}
