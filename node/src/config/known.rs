//! Settings of Vault and OpenBao that are understood and not needed: people bring their files along.
//!
//! Each comes with the reason it has no effect, for the warning.
//!
//! Source: the configuration pages and structures of Vault 1.21/2.0 and OpenBao 2.7.

const NOT_HERE: &str = "there is no such part here";
const NO_PLUGINS: &str = "there are no external plugins";
const LICENSE: &str = "there is no licence to check";
const NO_AUDIT: &str = "audit devices are not available yet";
const NO_UI: &str = "there is no web interface";
const NO_LEGACY: &str = "the endpoint it is about does not exist";
const OWN_LOG: &str = "the log goes to standard error; the service manager keeps it";
const OWN_CACHE: &str = "caches are bounded and kept right by themselves";
const OWN_TUNING: &str = "it is chosen by itself";
const PULL_ONLY: &str = "metrics are fetched from sys/metrics, never sent";
const ALL_SHOWN: &str = "the set of metrics is small and fixed";
const NO_LEASE_METRICS: &str = "no leases are given out yet";
const NO_MOUNT_METRICS: &str = "no metric names a mount";
const LATER: &str = "it is not available yet";

/// At the top level.
pub(super) const TOP: &[(&str, &str)] = &[
    ("adaptive_overload_protection", OWN_TUNING),
    ("administrative_namespace_path", NOT_HERE),
    ("allow_audit_log_prefixing", NO_AUDIT),
    ("allow_unauthenticated_workflows", NOT_HERE),
    ("audit", NO_AUDIT),
    ("cache_size", OWN_CACHE),
    ("cluster_cipher_suites", "nodes speak TLS 1.3 only"),
    (
        "default_max_request_duration",
        "set max_request_duration in the listener",
    ),
    ("detect_deadlocks", OWN_TUNING),
    ("disable_cache", OWN_CACHE),
    ("disable_clustering", "a single node is a cluster of one"),
    ("disable_indexing", NOT_HERE),
    (
        "disable_performance_standby",
        "every node answers reads, and never a stale one",
    ),
    ("disable_printable_check", NOT_HERE),
    (
        "disable_sealwrap",
        "mounts choose seal wrap when they are enabled",
    ),
    ("disable_sentinel_trace", NOT_HERE),
    ("disable_ssct_tokens", NOT_HERE),
    (
        "disable_standby_reads",
        "every node answers reads, and never a stale one",
    ),
    ("enable_multiseal", "one seal is supported"),
    ("enable_post_unseal_trace", OWN_TUNING),
    ("enable_raw_endpoint", NO_LEGACY),
    ("enable_response_header_hostname", LATER),
    ("enable_response_header_raft_node_id", LATER),
    ("enable_ui", NO_UI),
    ("entropy", "randomness comes from the operating system"),
    ("experiments", NOT_HERE),
    ("feature_flags", NOT_HERE),
    ("hcp_link", NOT_HERE),
    ("imprecise_lease_role_tracking", OWN_TUNING),
    ("initialize", "use the init API or `operator init`"),
    ("introspection_endpoint", NO_LEGACY),
    ("kms_library", NOT_HERE),
    ("license", LICENSE),
    ("license_entitlement", LICENSE),
    ("license_path", LICENSE),
    ("log_file", OWN_LOG),
    ("log_requests_level", OWN_LOG),
    ("log_rotate_bytes", OWN_LOG),
    ("log_rotate_duration", OWN_LOG),
    ("log_rotate_max_files", OWN_LOG),
    ("observations", NOT_HERE),
    ("plugin", NO_PLUGINS),
    ("plugin_auto_download", NO_PLUGINS),
    ("plugin_auto_register", NO_PLUGINS),
    ("plugin_directory", NO_PLUGINS),
    ("plugin_download_behavior", NO_PLUGINS),
    ("plugin_download_max_size", NO_PLUGINS),
    ("plugin_file_permissions", NO_PLUGINS),
    ("plugin_file_uid", NO_PLUGINS),
    ("plugin_tmpdir", NO_PLUGINS),
    ("post_unseal_trace_directory", OWN_TUNING),
    ("raw_storage_endpoint", NO_LEGACY),
    ("replication", LATER),
    ("reporting", NOT_HERE),
    ("request_limiter", OWN_TUNING),
    ("sentinel", NOT_HERE),
    ("service_registration", LATER),
    ("ui", NO_UI),
    ("unsafe_allow_api_audit_creation", NO_AUDIT),
    ("unsafe_cross_namespace_identity", NOT_HERE),
    ("unsafe_relative_paths", "relative paths are always refused"),
    ("user_lockout", LATER),
];

/// In `listener "tcp"`.
pub(super) const LISTENER: &[(&str, &str)] = &[
    ("agent_api", NOT_HERE),
    ("chroot_namespace", NOT_HERE),
    ("cors_allowed_headers", LATER),
    ("cors_allowed_origins", LATER),
    ("cors_enabled", LATER),
    ("custom_response_headers", LATER),
    ("disable_replication_status_endpoints", NO_LEGACY),
    ("disable_request_limiter", OWN_TUNING),
    ("disable_unauthed_generate_root_endpoints", NO_LEGACY),
    ("disable_unauthed_rekey_endpoints", NO_LEGACY),
    ("disallow_unauthed_generate_root_endpoints", NO_LEGACY),
    ("inflight_requests_logging", NO_LEGACY),
    ("max_json_array_element_count", OWN_TUNING),
    ("max_json_depth", OWN_TUNING),
    ("max_json_object_entry_count", OWN_TUNING),
    ("max_json_string_value_length", OWN_TUNING),
    ("max_json_token", OWN_TUNING),
    ("max_request_json_memory", OWN_TUNING),
    ("max_request_json_strings", OWN_TUNING),
    ("max_token_header_size", OWN_TUNING),
    ("profiling", NO_LEGACY),
    ("proxy_api", NOT_HERE),
    ("purpose", NOT_HERE),
    ("redact_addresses", LATER),
    ("redact_cluster_name", LATER),
    ("redact_version", LATER),
    ("require_request_header", LATER),
    ("role", NOT_HERE),
    ("tls_acme_cache_path", "certificates are read from files"),
    ("tls_acme_ca_directory", "certificates are read from files"),
    ("tls_acme_ca_root", "certificates are read from files"),
    (
        "tls_acme_disable_alpn_challenge",
        "certificates are read from files",
    ),
    (
        "tls_acme_disable_http_challenge",
        "certificates are read from files",
    ),
    ("tls_acme_domains", "certificates are read from files"),
    ("tls_acme_eab_key_id", "certificates are read from files"),
    ("tls_acme_eab_mac_key", "certificates are read from files"),
    ("tls_acme_email", "certificates are read from files"),
    (
        "tls_acme_test_ca_directory",
        "certificates are read from files",
    ),
    (
        "tls_cipher_suites",
        "only cipher suites with forward secrecy and authentication are offered",
    ),
    (
        "tls_prefer_server_cipher_suites",
        "the server's order is always preferred",
    ),
    ("x_forwarded_for_authorized_addrs", LATER),
    ("x_forwarded_for_client_cert_header", LATER),
    ("x_forwarded_for_client_cert_header_decoders", LATER),
    ("x_forwarded_for_hop_skips", LATER),
    ("x_forwarded_for_reject_not_authorized", LATER),
    ("x_forwarded_for_reject_not_present", LATER),
];

/// In `storage "raft"`.
pub(super) const STORAGE: &[(&str, &str)] = &[
    ("disable_clustering", "a single node is a cluster of one"),
    ("ha_enabled", "Raft storage is always highly available"),
    (
        "max_mount_and_namespace_table_entry_size",
        "the mount table is one entry per mount",
    ),
    ("max_transaction_size", OWN_TUNING),
    (
        "raft_log_verification_interval",
        "every read of the log is checked",
    ),
    (
        "raft_log_verifier_enabled",
        "every read of the log is checked",
    ),
    ("raft_wal", "the log has its own engine"),
];

/// In `seal "pkcs11"`.
pub(super) const SEAL: &[(&str, &str)] = &[
    (
        "default_hmac_key_label",
        "every wrapped value names its key",
    ),
    ("default_key_label", "every wrapped value names its key"),
    ("disable_software_encryption", "the HSM does it"),
    ("health_check_enabled", "the HSM is always watched"),
    ("health_check_interval", "the HSM is always watched"),
    (
        "health_check_interval_unhealthy",
        "the HSM is always watched",
    ),
    ("health_check_timeout", "the HSM is always watched"),
    (
        "hmac_default_key_label",
        "every wrapped value names its key",
    ),
    ("max_sessions", "set max_parallel"),
    ("name", "one seal is supported"),
    ("priority", "one seal is supported"),
    ("recover", "one seal is supported"),
    ("rsa_encrypt_local", "the HSM does it"),
];

/// In `telemetry`.
pub(super) const TELEMETRY: &[(&str, &str)] = &[
    ("add_lease_metrics_namespace_labels", NO_LEASE_METRICS),
    ("add_mount_point_rollback_metrics", NO_MOUNT_METRICS),
    ("circonus_api_app", PULL_ONLY),
    ("circonus_api_token", PULL_ONLY),
    ("circonus_api_url", PULL_ONLY),
    ("circonus_broker_id", PULL_ONLY),
    ("circonus_broker_select_tag", PULL_ONLY),
    ("circonus_check_display_name", PULL_ONLY),
    ("circonus_check_force_metric_activation", PULL_ONLY),
    ("circonus_check_id", PULL_ONLY),
    ("circonus_check_instance_id", PULL_ONLY),
    ("circonus_check_search_tag", PULL_ONLY),
    ("circonus_check_tags", PULL_ONLY),
    ("circonus_submission_interval", PULL_ONLY),
    ("circonus_submission_url", PULL_ONLY),
    ("dogstatsd_addr", PULL_ONLY),
    ("dogstatsd_tags", PULL_ONLY),
    ("filter_default", ALL_SHOWN),
    ("lease_metrics_epsilon", NO_LEASE_METRICS),
    ("maximum_gauge_cardinality", ALL_SHOWN),
    ("num_lease_metrics_buckets", NO_LEASE_METRICS),
    ("prefix_filter", ALL_SHOWN),
    ("rollback_metrics_include_mount_point", NO_MOUNT_METRICS),
    ("stackdriver_debug_logs", PULL_ONLY),
    ("stackdriver_location", PULL_ONLY),
    ("stackdriver_namespace", PULL_ONLY),
    ("stackdriver_project_id", PULL_ONLY),
    ("statsd_address", PULL_ONLY),
    ("statsite_address", PULL_ONLY),
    ("usage_gauge_period", ALL_SHOWN),
];

/// Storage backends of Vault and OpenBao that are not offered.
pub(super) const OTHER_STORAGES: &[&str] = &[
    "aerospike",
    "alicloudoss",
    "azure",
    "cassandra",
    "cockroachdb",
    "consul",
    "couchdb",
    "dynamodb",
    "etcd",
    "file",
    "foundationdb",
    "gcs",
    "inmem",
    "inmem_ha",
    "manta",
    "mssql",
    "mysql",
    "oci",
    "postgresql",
    "s3",
    "spanner",
    "swift",
    "zookeeper",
];
