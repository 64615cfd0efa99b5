"""Measures a three-node Strongroom cluster beside a three-node OpenBao cluster; started by deploy/bench/run.

In: the binaries. Out: a table on standard output and, if asked, JSON. Everything runs on 127.0.0.1 in a temporary
directory that is removed at the end; every process started is ended by its pid.

The clusters run at the same time, but only one is under load at any moment, and they take turns round by round, so
that a disturbance of the machine hits both. The figure given is the median of the rounds.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BAO_PORT = 18300
STRONGROOM_PORT = 18200
RESTARTS = 5
FAILOVERS = 10


class Api:
    """A few requests of the Vault API; every other status than those expected is an error."""

    def __init__(self, ca, token=""):
        self.tls = ssl.create_default_context(cafile=ca)
        self.token = token

    def call(self, method, url, body=None, timeout=10):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, method=method)
        if self.token:
            request.add_header("X-Vault-Token", self.token)
        with urllib.request.urlopen(request, timeout=timeout, context=self.tls) as response:
            text = response.read()
            return json.loads(text) if text else {}

    def healthy(self, url):
        """Whether the node is unsealed, leader or not."""
        try:
            self.call("GET", f"{url}/v1/sys/health?standbyok=true&perfstandbyok=true", timeout=2)
            return True
        except (urllib.error.URLError, OSError):
            return False

    def is_leader(self, url):
        return self.call("GET", f"{url}/v1/sys/leader").get("is_self", False)

    def voters(self, url):
        config = self.call("GET", f"{url}/v1/sys/storage/raft/configuration")["data"]["config"]
        return sum(1 for server in config["servers"] if server["voter"])


def wait_for(what, seconds, condition, pause=0.2):
    """Polls until the condition holds."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError, KeyError):
            if condition():
                return
        if time.monotonic() > deadline:
            sys.exit(f"gave up waiting for {what}")
        time.sleep(pause)


class Node:
    """One server process that this program starts and ends."""

    def __init__(self, command, environment, url, log):
        self.command, self.environment, self.url, self.log = command, environment, url, log
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self):
        """As a power cut would."""
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def resident_mib(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise ValueError("no VmRSS")


class Cluster:
    """Three nodes, their API and the mounts that are measured."""

    def __init__(self, name, nodes, api, mounts):
        self.name, self.nodes, self.api, self.mounts = name, nodes, api, mounts

    def wait_ready(self):
        for node in self.nodes:
            wait_for(f"{node.url} to unseal", 90, lambda node=node: self.api.healthy(node.url))
        wait_for("three voters", 90, lambda: self.api.voters(self.nodes[0].url) == 3)
        wait_for("a leader", 30, self.find_leader)

    def find_leader(self):
        for node in self.nodes:
            if self.api.is_leader(node.url):
                return node
        return None

    def voters_in_touch(self):
        """Whether all three nodes serve and vote: a failover before that measures something else."""
        leader = self.find_leader()
        return leader is not None and all(self.api.healthy(node.url) for node in self.nodes) and self.api.voters(leader.url) == 3

    def roles(self):
        leader = self.find_leader()
        return {"leader": leader, "follower": next(node for node in self.nodes if node is not leader)}

    def stop(self):
        for node in self.nodes:
            node.stop()


def strongroom_cluster(args, work):
    """Made by deploy/try-it, then taken over, so that both clusters are started in the same way."""
    directory = work / "strongroom"
    try_it = [str(args.repository / "deploy" / "try-it")]
    environment = {**os.environ, "STRONGROOM_DEMO_DIR": str(directory), "STRONGROOM_DEMO_PORT": str(STRONGROOM_PORT)}
    try:
        subprocess.run(try_it, check=True, env=environment, stdout=subprocess.DEVNULL)
    finally:
        subprocess.run([*try_it, "stop", "--keep"], check=True, env=environment, stdout=subprocess.DEVNULL)
    nodes = [
        Node(
            [str(args.binary), "server", f"-config={directory}/node-{n}/strongroom.hcl"],
            {"SOFTHSM2_CONF": f"{directory}/hsm/node-{n}.conf"},
            f"https://127.0.0.1:{STRONGROOM_PORT + 10 * n}",
            directory / f"node-{n}" / "log",
        )
        for n in (1, 2, 3)
    ]
    token = json.loads((directory / "init.json").read_text())["root_token"]
    cluster = Cluster("strongroom", nodes, Api(directory / "tls" / "ca.pem", token), ["plain", "wrapped"])
    for node in nodes:
        node.start()
    return cluster, directory / "tls"


BAO_CONFIG = """
api_addr     = "https://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:{cluster_port}"
log_level    = "warn"
listener "tcp" {{
  address       = "127.0.0.1:{port}"
  tls_cert_file = "{tls}/server.pem"
  tls_key_file  = "{tls}/server-key.pem"
}}
seal "static" {{
  current_key_id = "bench"
  current_key    = "file://{key}"
}}
storage "raft" {{
  path    = "{path}"
  node_id = "bao-{n}"
  performance_multiplier = 1
{joins}
}}
"""


def bao_cluster(args, work, tls):
    directory = work / "bao"
    directory.mkdir()
    (directory / "key").write_bytes(secrets.token_bytes(32))
    nodes = []
    for n in (1, 2, 3):
        port = BAO_PORT + 10 * n
        path = directory / f"node-{n}"
        path.mkdir()
        joins = "\n".join(
            f'  retry_join {{\n    leader_api_addr = "https://127.0.0.1:{BAO_PORT + 10 * other}"\n'
            f'    leader_ca_cert_file = "{tls}/ca.pem"\n  }}'
            for other in (1, 2, 3)
            if other != n
        )
        config = directory / f"node-{n}.hcl"
        config.write_text(
            BAO_CONFIG.format(
                port=port, cluster_port=port + 1, tls=tls, key=directory / "key", path=path, n=n, joins=joins
            )
        )
        nodes.append(
            Node([str(args.bao), "server", f"-config={config}"], {}, f"https://127.0.0.1:{port}", directory / f"log-{n}")
        )
    cluster = Cluster("openbao", nodes, Api(tls / "ca.pem"), ["plain"])
    for node in nodes:
        node.start()
    url = nodes[0].url
    wait_for("OpenBao to answer", 30, lambda: "initialized" in cluster.api.call("GET", f"{url}/v1/sys/init"))
    answer = cluster.api.call("PUT", f"{url}/v1/sys/init", {"recovery_shares": 1, "recovery_threshold": 1}, timeout=60)
    cluster.api.token = answer["root_token"]
    return cluster


def enable_mounts(cluster):
    url = cluster.find_leader().url
    for mount in cluster.mounts:
        body = {"type": "kv", "seal_wrap": mount == "wrapped", "options": {"version": "1"}}
        cluster.api.call("POST", f"{url}/v1/sys/mounts/{mount}", body)


def load(args, cluster, node, mount, operation, connections, start=0):
    """One run of wrk: requests per second and latencies."""
    lua = args.repository / "deploy" / "bench" / "kv.lua"
    threads = "1" if connections == 1 or operation == "fill" else "2"
    command = ["wrk", "-t", threads, "-c", str(connections), "-d", f"{args.seconds}s", "--timeout", "10s", "-s", str(lua)]
    command += [node.url, "--", cluster.api.token, mount, operation, str(args.keys), str(args.size), str(start)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    result["per_second"] = result["requests"] / (result["microseconds"] / 1e6)
    return result


def fill(args, cluster):
    """Writes every key at least once, so that each GET finds one."""
    leader = cluster.find_leader()
    for mount in cluster.mounts:
        written = 0
        while written < args.keys:
            # The last requests of a run are not waited for: those are sent again.
            written += load(args, cluster, leader, mount, "fill", 64, written)["requests"] - 64
        last = cluster.api.call("GET", f"{leader.url}/v1/{mount}/key-{args.keys:07d}")
        assert len(last["data"]["value"]) == args.size


def measure_load(args, clusters):
    rows = {}
    for round_number in range(args.rounds):
        for connections in (1, 64):
            for operation in ("put", "get"):
                for role in ("leader", "follower"):
                    for cluster in clusters:
                        node = cluster.roles()[role]
                        for mount in cluster.mounts:
                            key = (operation, connections, role)
                            result = load(args, cluster, node, mount, operation, connections)
                            rows.setdefault(key, {}).setdefault(f"{cluster.name} {mount}", []).append(result)
                            print(
                                f"round {round_number + 1}: {operation} x{connections} {role} {cluster.name} {mount}: "
                                f"{result['per_second']:.0f}/s, {result['failed']} failed",
                                file=sys.stderr,
                            )
    return rows


def measure_restarts(cluster, role):
    """Milliseconds from starting the process to the first healthy answer, after an orderly stop."""
    times = []
    for _ in range(RESTARTS):
        wait_for("a leader", 30, cluster.find_leader)
        node = cluster.roles()[role]
        node.stop()
        started = time.monotonic()
        node.start()
        wait_for(f"{node.url} to unseal", 60, lambda node=node: cluster.api.healthy(node.url), pause=0.005)
        times.append((time.monotonic() - started) * 1000)
        wait_for("a leader", 60, cluster.find_leader)
    return times


def first_write(cluster, node):
    """Sends a write to the node until one is accepted; a node that holds it is waited for."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError):
            cluster.api.call("PUT", f"{node.url}/v1/plain/failover", {"value": "x"}, timeout=10)
            return
        time.sleep(0.005)
    sys.exit(f"{node.url} accepts no write")


def measure_failovers(cluster, end_leader, again):
    """Milliseconds from the leader's end to the first write that a follower accepts."""
    times = []
    for _ in range(FAILOVERS):
        wait_for("three voters", 90, lambda: cluster.voters_in_touch())
        roles = cluster.roles()
        # Connected and warm, as a client's connection is.
        first_write(cluster, roles["follower"])
        started = time.monotonic()
        end_leader(roles["leader"])
        first_write(cluster, roles["follower"])
        times.append((time.monotonic() - started) * 1000)
        again(roles["leader"])
        wait_for("a leader", 60, cluster.find_leader)
    return times


def profile(args, cluster):
    """Flame graphs of the leader under 64 connections; needs perf and inferno (`cargo install inferno`)."""
    args.profile.mkdir(parents=True, exist_ok=True)
    leader = cluster.find_leader()
    for operation in ("put", "get"):
        data = args.profile / f"{operation}.data"
        # The stacks come from the debug information: release code keeps no frame pointers.
        record = ["perf", "record", "--quiet", "-F", "399", "--call-graph", "dwarf,16384", "-o", str(data), "-p", str(leader.process.pid)]
        perf = subprocess.Popen(record)
        try:
            load(args, cluster, leader, "plain", operation, 64)
        finally:
            perf.send_signal(signal.SIGINT)
            perf.wait()
        script = subprocess.run(["perf", "script", "--no-inline", "-i", str(data)], check=True, stdout=subprocess.PIPE).stdout
        folded = subprocess.run(["inferno-collapse-perf"], check=True, input=script, stdout=subprocess.PIPE).stdout
        svg = subprocess.run(["inferno-flamegraph"], check=True, input=folded, stdout=subprocess.PIPE).stdout
        (args.profile / f"{operation}.folded").write_bytes(folded)
        (args.profile / f"{operation}.svg").write_bytes(svg)
        data.unlink()


def step_down(cluster, leader):
    cluster.api.call("PUT", f"{leader.url}/v1/sys/step-down", timeout=30)


def median(results, field):
    return statistics.median(result[field] for result in results)


def print_tables(args, rows, restarts, failovers, memory):
    print(f"\nRequests per second, {args.size}-byte values, {args.keys} keys, {args.seconds} s a run, median of {args.rounds} (p50 / p99 in ms; failed)\n")
    print("| | Strongroom | OpenBao | ratio | Strongroom, seal-wrapped |")
    print("|---|---|---|---|---|")
    for (operation, connections, role), columns in rows.items():
        cells = []
        for name in ("strongroom plain", "openbao plain", "strongroom wrapped"):
            results = columns[name]
            cells.append(
                f"{median(results, 'per_second'):,.0f} ({median(results, 'p50_us') / 1000:.2f} / "
                f"{median(results, 'p99_us') / 1000:.2f}; {sum(r['failed'] for r in results)})"
            )
        ratio = median(columns["strongroom plain"], "per_second") / median(columns["openbao plain"], "per_second")
        print(f"| {operation.upper()} x{connections}, {role} | {cells[0]} | {cells[1]} | {ratio:.2f} | {cells[2]} |")
    print(f"\nStart of a node's process to unsealed, ms, median of {RESTARTS} (largest)\n")
    print("| | Strongroom | OpenBao |")
    print("|---|---|---|")
    for role in ("follower", "leader"):
        cells = [f"{statistics.median(t):.0f} ({max(t):.0f})" for t in (restarts[name, role] for name in ("strongroom", "openbao"))]
        print(f"| {role} restarted | {cells[0]} | {cells[1]} |")
    if failovers:
        print(f"\nEnd of the leader to the first write that a follower accepts, ms, median of {FAILOVERS} (largest)\n")
        print("| | Strongroom | OpenBao |")
        print("|---|---|---|")
        for what in ("step-down", "kill -9"):
            cells = [f"{statistics.median(t):.0f} ({max(t):.0f})" for t in (failovers[name, what] for name in ("strongroom", "openbao"))]
            print(f"| {what} | {cells[0]} | {cells[1]} |")
    print("\nResident memory after the load, MiB\n")
    print("| | Strongroom | OpenBao |")
    print("|---|---|---|")
    for role in ("leader", "follower"):
        print(f"| {role} | {memory['strongroom', role]:.0f} | {memory['openbao', role]:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--bao", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--size", type=int, default=256, help="bytes of a value")
    parser.add_argument("--keys", type=int, default=1000, help="keys written before, and read and written again")
    parser.add_argument("--failovers", action="store_true", help="also end the leader, in two ways, ten times each")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="also write flame graphs of the leader under load there")
    args = parser.parse_args()
    if args.profile and not all(map(shutil.which, ("perf", "inferno-collapse-perf", "inferno-flamegraph"))):
        parser.error("--profile needs perf (package linux-perf) and inferno (`cargo install inferno`)")

    work = Path(tempfile.mkdtemp(prefix="strongroom-bench-"))
    clusters = []
    try:
        strongroom, tls = strongroom_cluster(args, work)
        clusters.append(strongroom)
        bao = bao_cluster(args, work, tls)
        clusters.append(bao)
        for cluster in clusters:
            cluster.wait_ready()
            enable_mounts(cluster)
            fill(args, cluster)
        rows = measure_load(args, clusters)
        memory = {
            (cluster.name, role): node.resident_mib() for cluster in clusters for role, node in cluster.roles().items()
        }
        failovers = {}
        for cluster in clusters if args.failovers else []:
            down = lambda leader, cluster=cluster: step_down(cluster, leader)
            failovers[cluster.name, "step-down"] = measure_failovers(cluster, down, lambda _: None)
            failovers[cluster.name, "kill -9"] = measure_failovers(cluster, Node.kill, Node.start)
        restarts = {
            (cluster.name, role): measure_restarts(cluster, role)
            for cluster in clusters
            for role in ("follower", "leader")
        }
        print_tables(args, rows, restarts, failovers, memory)
        if args.json:
            document = {
                "load": [{"case": list(key), "results": columns} for key, columns in rows.items()],
                "restart_ms": [{"case": list(key), "results": times} for key, times in restarts.items()],
                "failover_ms": [{"case": list(key), "results": times} for key, times in failovers.items()],
                "resident_mib": [{"case": list(key), "result": mib} for key, mib in memory.items()],
            }
            args.json.write_text(json.dumps(document, indent=1))
        if args.profile:
            profile(args, strongroom)
    finally:
        for cluster in clusters:
            cluster.stop()
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
