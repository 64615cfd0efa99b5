# One node, for trying Strongroom on a server or for a small installation that can live with a restart now and then.
# It can become three later: give each new node one of the files in three-nodes/, and their retry_join this node.
# Every key: docs/configuration.md. Check a file with: strongroom operator validate-config -config=FILE

cluster_name = "strongroom"
api_addr     = "https://strongroom.example.com:8200"
cluster_addr = "https://strongroom.example.com:8201"

listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/etc/strongroom/tls/server.pem"
  tls_key_file  = "/etc/strongroom/tls/server-key.pem"
}

storage "raft" {
  path    = "/var/lib/strongroom"
  node_id = "strongroom-1"
}

seal "pkcs11" {
  # Your HSM's PKCS#11 module; this is SoftHSM's on Debian.
  lib         = "/usr/lib/softhsm/libsofthsm2.so"
  token_label = "strongroom"
  # systemd hands the PIN over as a file (deploy/systemd/strongroom.service). No newline at its end.
  pin         = "file:///run/credentials/strongroom.service/hsm-pin"
  key_label   = "strongroom-seal"
  # Lets `strongroom operator init` make the key when the token has none under this label. Nothing else ever makes one.
  generate_key = true
}
