//! Reading and writing secrets, and mounts.

use super::*;

const V1: &str = r#"{"data":{"path":"kv/","type":"kv","options":null}}"#;
const V2: &str = r#"{"data":{"path":"kv/","type":"kv","options":{"version":"2"}}}"#;
pub(super) const SECRET: &str = r#"{"request_id":"r","lease_id":"","renewable":false,"lease_duration":2764800,"data":{"password":"x"},"wrap_info":null,"warnings":null,"auth":null}"#;

#[test]
fn kv_without_versions() {
    let written = |body| {
        vec![
            get("GET /v1/sys/internal/ui/mounts/kv/app", V1),
            Exchange {
                request: "PUT /v1/kv/app",
                body,
                status: 204,
                answer: "",
            },
        ]
    };
    let outcome = against("kv put kv/app password=x", written(r#"{"password":"x"}"#));
    assert_eq!(
        (outcome.code, outcome.out.as_str()),
        (0, "Success! Data written to: kv/app\n")
    );
    assert_eq!(against("kv put kv/app -", written(r#"{"k":1}"#)).code, 0);
    assert_eq!(
        against("kv put -format=json kv/app a=b", written(r#"{"a":"b"}"#)).out,
        ""
    );

    let read = || {
        vec![
            get("GET /v1/sys/internal/ui/mounts/kv/app", V1),
            get("GET /v1/kv/app", SECRET),
        ]
    };
    let outcome = against("kv get kv/app", read());
    assert_eq!(
        outcome.out,
        "====== Data ======\nKey         Value\n---         -----\npassword    x\n"
    );
    assert_eq!(against("kv get -field=password kv/app", read()).out, "x");
    let outcome = against("kv get -field=nope kv/app", read());
    assert_eq!(
        (outcome.code, outcome.err.as_str()),
        (1, "Field \"nope\" not present in secret\n")
    );
    let json = against("kv get -format=json kv/app", read()).out;
    assert_eq!(
        json,
        "{\n  \"request_id\": \"r\",\n  \"lease_id\": \"\",\n  \"lease_duration\": 2764800,\n  \"renewable\": false,\n  \
         \"data\": {\n    \"password\": \"x\"\n  },\n  \"warnings\": null\n}\n"
    );
    // What was typed is a path, not a URL: a percent sign is just that.
    let named = vec![
        get("GET /v1/sys/internal/ui/mounts/kv", V1),
        get("GET /v1/kv/f%2520g/app", SECRET),
    ];
    assert_eq!(against("kv get -mount=kv f%20g/app", named).code, 0);
}

#[test]
fn kv_missing_and_lists() {
    let missing = |path| Exchange {
        request: path,
        body: "",
        status: 404,
        answer: r#"{"errors":[]}"#,
    };
    let outcome = against(
        "kv get kv/none",
        vec![
            get("GET /v1/sys/internal/ui/mounts/kv/none", V1),
            missing("GET /v1/kv/none"),
        ],
    );
    assert_eq!(
        (outcome.code, outcome.err.as_str()),
        (2, "No value found at kv/none\n")
    );
    let keys = r#"{"data":{"keys":["a","f/"]}}"#;
    let list = || {
        vec![
            get("GET /v1/sys/internal/ui/mounts/kv", V1),
            get("GET /v1/kv?list=true", keys),
        ]
    };
    assert_eq!(against("kv list kv/", list()).out, "Keys\n----\na\nf/\n");
    assert_eq!(
        against("kv list -mount=kv", list()).out,
        "Keys\n----\na\nf/\n"
    );
    assert_eq!(
        against("kv list -format=json kv", list()).out,
        "[\n  \"a\",\n  \"f/\"\n]\n"
    );
    let outcome = against(
        "list -format=json kv",
        vec![missing("GET /v1/kv?list=true")],
    );
    assert_eq!((outcome.code, outcome.out.as_str()), (2, "{}\n"));
    let outcome = against(
        "kv delete kv/a",
        vec![
            get("GET /v1/sys/internal/ui/mounts/kv/a", V1),
            Exchange {
                request: "DELETE /v1/kv/a",
                body: "",
                status: 204,
                answer: "",
            },
        ],
    );
    assert_eq!(
        outcome.out,
        "Success! Data deleted (if it existed) at: kv/a\n"
    );
    let refused = Exchange {
        request: "GET /v1/sys/internal/ui/mounts/no/x",
        body: "",
        status: 403,
        answer: r#"{"errors":["preflight"]}"#,
    };
    let outcome = against("kv get no/x", vec![refused]);
    assert_eq!(outcome.code, 2);
    assert_eq!(
        outcome.err,
        "Error making API request.\n\nURL: GET ADDR/v1/sys/internal/ui/mounts/no/x\nCode: 403. Errors:\n\n* preflight\n"
    );
}

#[test]
fn kv_with_versions() {
    let metadata = r#"{"request_id":"r","lease_id":"","renewable":false,"lease_duration":0,"data":{"created_time":"2026-11-23T21:41:20.179341988Z","custom_metadata":null,"deletion_time":"","destroyed":false,"version":2}}"#;
    let outcome = against(
        "kv put -cas=1 kv/app password=x",
        vec![
            get("GET /v1/sys/internal/ui/mounts/kv/app", V2),
            Exchange {
                request: "PUT /v1/kv/data/app",
                body: r#"{"data":{"password":"x"},"options":{"cas":1}}"#,
                status: 200,
                answer: metadata,
            },
        ],
    );
    let head = "\
= Secret Path =
kv/data/app

======= Metadata =======
Key                Value
---                -----
created_time       2026-11-23T21:41:20.179341988Z
custom_metadata    <nil>
deletion_time      n/a
destroyed          false
version            2
";
    // The heading grows with the path in it.
    assert_eq!(
        outcome.out.replace("== Secret Path ==", "= Secret Path ="),
        head
    );
    let secret = r#"{"data":{"data":{"n":"1","password":"x"},"metadata":{"created_time":"2026-11-23T21:41:20.179341988Z","custom_metadata":null,"deletion_time":"","destroyed":false,"version":2}}}"#;
    let outcome = against(
        "kv get -version=2 kv/app",
        vec![
            get("GET /v1/sys/internal/ui/mounts/kv/app", V2),
            get("GET /v1/kv/data/app?version=2", secret),
        ],
    );
    let want = format!(
        "{head}\n====== Data ======\nKey         Value\n---         -----\nn           1\npassword    x\n"
    );
    assert_eq!(
        outcome.out.replace("== Secret Path ==", "= Secret Path ="),
        want
    );
}

#[test]
fn read_and_write() {
    let outcome = against("read /kv/w/", vec![get("GET /v1/kv/w", SECRET)]);
    assert_eq!(
        outcome.out,
        "Key                 Value\n---                 -----\nrefresh_interval    768h\npassword            x\n"
    );
    let outcome = against(
        "write -f kv/w",
        vec![Exchange {
            request: "PUT /v1/kv/w",
            body: "{}",
            status: 400,
            answer: r#"{"errors":["missing data fields"]}"#,
        }],
    );
    assert_eq!(outcome.code, 2);
    assert!(
        outcome
            .err
            .starts_with("Error writing data to kv/w: Error making API request.\n")
    );
    let raw = Exchange {
        request: "GET /v1/x",
        body: "",
        status: 502,
        answer: "<html>",
    };
    let outcome = against("read x", vec![raw]);
    assert!(
        outcome.err.ends_with("Code: 502. Raw Message:\n\n<html>\n"),
        "{}",
        outcome.err
    );
    let warned = r#"{"data":{"a":"b"},"warnings":["careful"]}"#;
    let outcome = against("read x", vec![get("GET /v1/x", warned)]);
    assert_eq!(outcome.out, "Key    Value\n---    -----\na      b\n");
    assert!(outcome.err.contains("  * careful"));
}

#[test]
fn mounts() {
    let body = r#"{"type":"kv","description":"","config":{"options":null,"default_lease_ttl":"3600s","max_lease_ttl":"0s","force_no_cache":false},"local":false,"seal_wrap":true,"external_entropy_access":false,"options":{"version":"1"}}"#;
    let enable = Exchange {
        request: "POST /v1/sys/mounts/s",
        body,
        status: 204,
        answer: "",
    };
    let outcome = against(
        "secrets enable -path=s/ -seal-wrap -version=1 -default-lease-ttl=1h kv",
        vec![enable],
    );
    assert_eq!(
        outcome.out, "Success! Enabled the kv secrets engine at: s/\n",
        "{}",
        outcome.err
    );
    let list = r#"{"data":{"s/":{"type":"kv","accessor":"kv_1","description":"","local":false,"seal_wrap":true,"config":{"default_lease_ttl":0,"max_lease_ttl":0,"force_no_cache":false},"options":null,"uuid":"u"}}}"#;
    let outcome = against("secrets list", vec![get("GET /v1/sys/mounts", list)]);
    assert_eq!(
        outcome.out,
        "Path    Type    Accessor    Description\n----    ----    --------    -----------\ns/      kv      kv_1        n/a\n"
    );
    let outcome = against(
        "secrets list -detailed",
        vec![get("GET /v1/sys/mounts", list)],
    );
    let row = outcome.out.lines().nth(2).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        cells,
        [
            "s/",
            "kv",
            "kv_1",
            "system",
            "system",
            "false",
            "replicated",
            "true",
            "n/a",
            "map[]",
            "n/a",
            "u",
            "n/a",
            "n/a",
            "n/a",
            "n/a"
        ]
    );
    let disable = Exchange {
        request: "DELETE /v1/sys/mounts/s",
        body: "",
        status: 204,
        answer: "",
    };
    let outcome = against("secrets disable s", vec![disable]);
    assert_eq!(
        outcome.out,
        "Success! Disabled the secrets engine (if it existed) at: s/\n"
    );
}
