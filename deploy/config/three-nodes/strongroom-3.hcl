# Node 3 of three. The three files differ in names and addresses only.
# Every key: docs/configuration.md. Check a file with: strongroom operator validate-config -config=FILE

cluster_name = "strongroom"
api_addr     = "https://strongroom-3.example.com:8200"
cluster_addr = "https://strongroom-3.example.com:8201"

listener "tcp" {
  address         = "0.0.0.0:8200"
  cluster_address = "0.0.0.0:8201"
  tls_cert_file   = "/etc/strongroom/tls/server.pem"
  tls_key_file    = "/etc/strongroom/tls/server-key.pem"
}

seal "pkcs11" {
  # Every node reaches the same key: a networked HSM, or HSMs that replicate their keys.
  lib         = "/usr/lib/softhsm/libsofthsm2.so"
  token_label = "strongroom"
  # systemd hands the PIN over as a file (deploy/systemd/strongroom.service). No newline at its end.
  pin         = "file:///run/credentials/strongroom.service/hsm-pin"
  key_label   = "strongroom-seal"
}

storage "raft" {
  path    = "/var/lib/strongroom"
  node_id = "strongroom-3"

  # A node with an empty disk joins the first of these that answers.
  retry_join {
    leader_api_addr     = "https://strongroom-1.example.com:8200"
    leader_ca_cert_file = "/etc/strongroom/tls/ca.pem"
  }

  retry_join {
    leader_api_addr     = "https://strongroom-2.example.com:8200"
    leader_ca_cert_file = "/etc/strongroom/tls/ca.pem"
  }
}
