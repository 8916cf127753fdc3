"""What clients notice while data move: a node joins and leaves again under an even load."""

import os
import statistics
import subprocess
import time

from systems import HOST, BenchError, Node, Oort

# The first seconds of a load, with all its connections being made, are left out.
WARM_UP_SECONDS = 2
REST_SECONDS = 10


def measure(options, loader, rates, say):
    """One run with a fresh cluster: latencies of each operation before, while a node joins, after, and while it leaves."""
    with Oort(options, options.dir) as system:
        say(f"moving: loading {options.keys} keys")
        loader.fill(system)
        ports = system.ports()
        add_node(system, options)
        system.wait_until_idle(60)
        logs = {op: os.path.join(system.directory, op) for op in rates}
        loads = [loader.start_timeline(ports, op, rate, logs[op]) for op, rate in rates.items()]
        try:
            marks = {}
            time.sleep(WARM_UP_SECONDS)
            marks["before"] = (time.time(), sleep(REST_SECONDS))
            for change in ("join", "leave"):
                say(f"moving: {change}")
                marks[change] = (time.time(), operate(options, change))
                marks[f"after the {change}"] = (time.time(), sleep(REST_SECONDS))
            system.check_alive()
            if any(load.poll() is not None for load in loads):
                raise BenchError("a load has ended too early")
        finally:
            for load in loads:
                load.kill()
                load.wait()
        return {op: evaluate(logs[op], marks) for op in rates}


def sleep(seconds):
    time.sleep(seconds)
    return time.time()


def add_node(system, options):
    directory = system.node_directory("node4")
    base = options.port + 3
    command = [
        options.binary, "start", "--cluster", "bench", "--name", "node4", "--dir", os.path.join(directory, "data"),
        "--join", f"{HOST}:{options.port + 20}", "--redis", f"{HOST}:{base}", "--http", f"{HOST}:{base + 10}",
        "--peer", f"{HOST}:{base + 20}", "--log", "warn", *options.oort_args]
    node = Node("node4", command, base, directory)
    system.nodes.append(node)
    node.start()
    system.wait_for("a fourth node that serves", lambda: system.answers(node))


def operate(options, change):
    command = [options.binary, "cluster", change, "node4", "--node", f"{HOST}:{options.port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"cluster {change}: {done.stderr.strip()}")
    return time.time()


def evaluate(log, marks):
    with open(log) as file:
        # The last line may be half a one.
        samples = [tuple(map(float, line.split())) for line in file.readlines()[:-1]]
    result = {}
    for name, (begin, end) in marks.items():
        own = sorted(took for at, took in samples if begin <= at < end)
        if not own:
            raise BenchError(f"no request was answered that was due during {name}: the rates are too high")
        at = lambda share: own[min(int(len(own) * share), len(own) - 1)]
        result[name] = {"seconds": end - begin, "count": len(own), "p50": at(0.5), "p99": at(0.99), "p999": at(0.999),
                        "p99_of_a_second": usual_p99(samples, begin, end)}
    return result


def usual_p99(samples, begin, end):
    """The median of the seconds' p99: a stall of the machine counts for the second in which it happens."""
    seconds = {}
    for at, took in samples:
        if begin <= at < end:
            seconds.setdefault(int(at - begin), []).append(took)
    return statistics.median(sorted(tooks)[int(len(tooks) * 0.99)] for tooks in seconds.values())


def table(runs, rates):
    """Rows of Markdown: medians over the runs."""
    lines = ["| operation | phase | seconds | p50 / p99 / p99.9 ms | p99 of a second, median | against before |",
             "| --- | --- | --- | --- | --- | --- |"]
    for op, rate in rates.items():
        for phase in runs[0][op]:
            def median(name, phase=phase):
                return statistics.median(run[op][phase][name] for run in runs)
            usual = "p99_of_a_second"
            ratio = statistics.median(run[op][phase][usual] / run[op]["before"][usual] for run in runs)
            lines.append(
                f"| {op.upper()} at {rate:,}/s | {phase} | {median('seconds'):.1f} "
                f"| {median('p50'):.2f} / {median('p99'):.2f} / {median('p999'):.2f} "
                f"| {median(usual):.2f} | {ratio:.2f} |")
    return "\n".join(lines)
