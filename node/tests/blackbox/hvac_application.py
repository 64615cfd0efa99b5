"""What an application with hvac does: init status, write, read, list, delete on KV version 1, through one node."""

import os

import hvac

client = hvac.Client(url=os.environ["VAULT_ADDR"], token=os.environ["VAULT_TOKEN"], verify=os.environ["VAULT_CACERT"])
mount = os.environ.get("HVAC_MOUNT", "kv-hvac")

assert client.sys.is_initialized()
assert not client.sys.is_sealed()
assert client.seal_status["type"] == "pkcs11", client.seal_status
assert client.is_authenticated()
assert client.sys.read_health_status(method="HEAD").status_code in (200, 429)
assert client.sys.read_leader_status()["ha_enabled"]

client.sys.enable_secrets_engine("kv", path=mount, options={"version": "1"})
assert f"{mount}/" in client.sys.list_mounted_secrets_engines()

kv = client.secrets.kv.v1
secret = {"password": "p\u00e4ss", "port": 5432, "nested": {"list": [1, 2.5, None, True]}}
kv.create_or_update_secret("app/db", secret, mount_point=mount)
assert kv.read_secret("app/db", mount_point=mount)["data"] == secret
assert kv.list_secrets("", mount_point=mount)["data"]["keys"] == ["app/"]
assert kv.list_secrets("app", mount_point=mount)["data"]["keys"] == ["db"]
client.write_data(f"{mount}/generic", data={"a": "b"})
assert client.read(f"{mount}/generic")["data"] == {"a": "b"}
client.delete(f"{mount}/generic")
assert client.read(f"{mount}/generic") is None
kv.delete_secret("app/db", mount_point=mount)
try:
    kv.read_secret("app/db", mount_point=mount)
except hvac.exceptions.InvalidPath:
    pass
else:
    raise AssertionError("a deleted secret was read")

client.token = "hvs.nosuchtokennosuchtokennosu"
try:
    client.read(f"{mount}/generic")
except hvac.exceptions.Forbidden:
    pass
else:
    raise AssertionError("a made-up token was accepted")
client.token = os.environ["VAULT_TOKEN"]
client.sys.disable_secrets_engine(mount)
print("hvac is content")
