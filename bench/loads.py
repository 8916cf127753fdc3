"""The load: redis-benchmark where it can do the job, and load.rs where it cannot."""

import json
import os
import re
import subprocess

from systems import HOST, BenchError, die_with_parent

HERE = os.path.dirname(os.path.abspath(__file__))
RUN_SECONDS_MAX = 600
FILL_PIPELINE = 16
# Loads that are ended from outside.
LOAD_SECONDS_MAX = 600


def build_loader(directory):
    """Compiles load.rs unless it has been compiled since its last change; returns the path."""
    source, binary = os.path.join(HERE, "load.rs"), os.path.join(directory, "load")
    if os.path.exists(binary) and os.path.getmtime(binary) > os.path.getmtime(source):
        return binary
    os.makedirs(directory, exist_ok=True)
    command = ["rustc", "-O", "--edition", "2021", source, "-o", binary]
    if subprocess.run(command, check=False).returncode != 0:
        raise BenchError("load.rs does not compile")
    return binary


def execute(command, seconds=RUN_SECONDS_MAX):
    """Runs a load generator; returns its standard output."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=die_with_parent)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BenchError(f"not done within {seconds} s: {' '.join(command)[:300]}") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise BenchError(f"{os.path.basename(command[0])} failed: {(err or out).strip()[-300:]}")
    return out


class RedisBenchmark:
    """redis-benchmark: the load everybody knows, against one node or, with --cluster, routed by slot."""

    name = "redis-benchmark"

    def __init__(self, options):
        self.options = options

    def run(self, system, work):
        options = self.options
        keys = options.keys
        command = [options.redis_benchmark, "-h", HOST, "-p", str(system.nodes[0].port)]
        if work.path == "cluster":
            # Its keys carry a hash tag, so they are others than the loaded ones, all in one slot per node:
            # few of them, so that the SETs before the GETs have written nearly all.
            command += ["--cluster"]
            keys = max(1, work.ops // 30)
        command += ["-t", work.op, "-n", str(work.ops), "-r", str(keys), "-d", str(options.size),
                    "-c", str(options.connections), "-P", str(work.pipeline), "--precision", "3"]
        return parse_redis_benchmark(execute(command))


def parse_redis_benchmark(text):
    # Progress lines end with a carriage return.
    text = text.replace("\r", "\n")
    rate = re.search(r"throughput summary: ([\d.]+) requests per second", text)
    summary = re.search(r"avg\s+min\s+p50\s+p95\s+p99\s+max\s+([\d. ]+)", text)
    if not rate or not summary:
        raise BenchError(f"redis-benchmark printed no summary: {text.strip()[-300:]}")
    _, _, p50, _, p99, longest = (float(figure) for figure in summary.group(1).split())
    tail = [float(latency) for share, latency in re.findall(r"([\d.]+)% <= ([\d.]+) milliseconds \(cum", text)
            if float(share) >= 99.9]
    return {"rps": float(rate.group(1)), "p50": p50, "p99": p99, "p999": tail[0] if tail else longest,
            "max": longest, "errors": 0, "missing": 0}


class Loader:
    """load.rs, one thread: spreads connections over the nodes, sends SET and WAIT in pairs, keeps a rate."""

    name = "load.rs"

    def __init__(self, options, binary):
        self.options, self.binary = options, binary
        self.seed = 1

    def fill(self, system):
        """Writes every key once."""
        result = json.loads(execute(self.command("fill", system.writable_ports(), FILL_PIPELINE, self.options.keys)))
        if result["errors"]:
            raise BenchError(f"{system.name}: {result['errors']} errors while loading: {result['first_error']}")

    def run(self, system, work):
        result = json.loads(execute(self.command_for(system, work)))
        if result["missing"] and work.op == "get":
            raise BenchError(f"{system.name}: {result['missing']} of {result['ops']} loaded keys were not found")
        return result

    def start(self, system, work):
        """Like run, but returns the process; its end is up to the caller."""
        return subprocess.Popen(self.command_for(system, work), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                preexec_fn=die_with_parent)

    def start_timeline(self, ports, op, rate, log):
        """An even load until it is killed; `log` gets when each operation was due and how long it took."""
        command = self.command(op, ports, 1, rate * LOAD_SECONDS_MAX) + ["--rate", str(rate), "--timeline", log]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                preexec_fn=die_with_parent)

    def command_for(self, system, work):
        ports = system.ports() if work.path in ("spread", "routed") else system.ports()[:1]
        command = self.command(work.op, ports, work.pipeline, work.ops) + ["--rate", str(work.rate)]
        return command + ["--owners", system.owners()] if work.path == "routed" else command

    def command(self, op, ports, pipeline, ops):
        options = self.options
        self.seed += 1
        return [self.binary, "run", "--addrs", ",".join(f"{HOST}:{port}" for port in ports),
                "--op", op, "--conns", str(options.connections), "--keys", str(options.keys),
                "--size", str(options.size), "--pipeline", str(pipeline), "--ops", str(ops),
                "--seed", str(self.seed * 7919)]

    def failure(self, ports, writers, rate, seconds, timeout_ms, read_rate):
        """Starts the writers and readers of the failure measurement; returns the process."""
        command = [self.binary, "failure", "--addrs", ",".join(f"{HOST}:{port}" for port in ports),
                   "--writers", str(writers), "--rate", str(rate), "--seconds", str(seconds),
                   "--timeout-ms", str(timeout_ms), "--read-rate", str(read_rate)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                                preexec_fn=die_with_parent)
