"""Active objects on real processes: what a call costs, what hostile objects do to others, failover, timers."""

import json
import os
import signal
import statistics
import threading
import time
import urllib.request

from loads import execute, parse_redis_benchmark
from systems import HOST, BenchError, Client, Node, Oort, System

PIPELINE = 16
# Objects of one kind; a load chooses among them at random.
OBJECTS = 1000
# Loads that are compared take turns, this many times for each of the runs, with this part of the operations: a second
# or so. Noise lasts longer and hits neighbours alike.
TURNS = 3
TURN_SHARE = 0.1
TIMER_OBJECTS = 100_000
IDLE_SECONDS = 20
IDLE_WAIT_SECONDS = 20
# Of plain GETs and SETs together; hostile calls come on top.
NEIGHBOUR_RATE = 5000
HOSTILE_SHARE = 0.01
FAILOVER_SECONDS = (3.0, 4.0)
# What `aso_async_ms` is by default.
ASYNC_SECONDS = 1.0
CLIENT_TIMEOUT_SECONDS = 1.0

COUNTER = """aso.value = 'Hello world!'
aso.getCount = 0
function onGet()
self.getCount = self.getCount + 1
return {self.value, self.getCount}
end"""
# As long on the wire as what the counter answers.
PLAIN = "x" * 21
# Both of its fields are data there too; and the same with the value in the code, where no object has one of its own.
FUNCTION = """#!lua name=bench
redis.register_function('count', function(keys)
  return {redis.call('HGET', keys[1], 'value'), redis.call('HINCRBY', keys[1], 'getCount', 1)}
end)
redis.register_function('count_fixed', function(keys)
  return {'Hello world!', redis.call('HINCRBY', keys[1], 'getCount', 1)}
end)"""
FCALL, FCALL_FIXED = "FCALL count", "FCALL count, value in the code"
TIMER = "aso.interval = 3600 aso.runs = 0 function aso:onTimer() self.runs = self.runs + 1 end"
# From crates/script/tests/attacks.
HOSTILE = {
    "endless loop": "while true do end",
    "pattern bomb": "return ('a'):rep(200):find(('a-'):rep(20) .. 'b')",
    "string growth": "local s = 'x' while true do s = s .. s end",
    "deep recursion": "local function f() return 1 + f() end return f()",
    "pcall loop": "while true do pcall(function() while true do end end) end",
    "errors without end": "while true do pcall(error, 'x') end",
}


class OneOort(System):
    """One node that holds the only copy and syncs once a second."""

    name = "oort, one node"

    def plan(self, options):
        base = options.port
        directory = self.node_directory("node1")
        command = [
            options.binary, "start", "--cluster", "bench", "--name", "node1",
            "--dir", os.path.join(directory, "data"), "--redis", f"{HOST}:{base}", "--http", f"{HOST}:{base + 10}",
            "--peer", f"{HOST}:{base + 20}", "--log", "warn", "--sync", "interval"]
        return [Node("node1", command, base, directory)]

    def wait_until_ready(self):
        self.wait_for("a node that accepts writes", lambda: Oort.answers(self.nodes[0]))
        with Client(self.nodes[0].port) as client:
            client.ask("BUCKET", "SET", "default", "n", 1, "r", 1, "w", 1)


class OneRedis(System):
    """One Redis that keeps nothing on disk."""

    name = "redis, one node"
    offset = 30
    keeps = ["--appendonly", "no"]

    def plan(self, options):
        port, directory = options.port + self.offset, self.node_directory("redis")
        command = [options.redis_server, "--port", str(port), "--bind", HOST, "--dir", directory,
                   "--save", "", *self.keeps]
        return [Node("redis", command, port, directory)]

    def wait_until_ready(self):
        def ready():
            with Client(self.nodes[0].port) as client:
                return client.ask("PING") == "PONG"
        self.wait_for("an answer", ready)
        with Client(self.nodes[0].port) as client:
            client.ask("FUNCTION", "LOAD", FUNCTION)


class OneRedisLog(OneRedis):
    """One Redis that writes what changes into a file, as the node of Oort does, and leaves it to the system to sync."""

    name = "redis, one node, log"
    offset = 31
    keeps = ["--appendonly", "yes", "--appendfsync", "no"]


def measure(options, loader, say):
    """All parts; each with processes of its own."""
    return {
        "calls": measure_calls(options, say),
        "neighbours": [measure_neighbours(options, loader, say) for _ in range(options.runs)],
        "failover": {durability: [measure_failover(options, durability, say) for _ in range(options.runs)]
                     for durability in ("async", "quorum")},
        "timers": measure_timers(options, say),
    }


# Calls


def measure_calls(options, say):
    """First the three-node cluster, then the single node and Redis; loads on what is up at once take turns."""
    results = []
    with Oort(options, options.dir) as three:
        tag = tag_of(three, 0)
        make(three, tag)
        for durability in ("async", "quorum"):
            set_durability(three, durability)
            works = []
            for path, node in (("at the home", 0), ("through another", 1)):
                for pipeline in (1, PIPELINE):
                    works.append((three, "oort", f"GET plain, {durability}", path, node, pipeline,
                                  ["GET", f"{tag}plain"]))
                    works.append((three, "oort", f"GET getCount, {durability}", path, node, pipeline,
                                  ["GET", f"{tag}count"]))
            results += run_works(options, works, say)
    with OneOort(options, options.dir) as one:
        make(one, "{a}")
        works = []
        for pipeline in (1, PIPELINE):
            works.append((one, "oort, one node", "GET plain", "at the home", 0, pipeline, ["GET", "{a}plain"]))
            works.append((one, "oort, one node", "GET getCount, async", "at the home", 0, pipeline,
                          ["GET", "{a}count"]))
        if "redis" not in options.systems:
            return results + run_works(options, works, say)
        with OneRedis(options, options.dir) as redis, OneRedisLog(options, options.dir) as log:
            for system in (redis, log):
                with Client(system.nodes[0].port) as client:
                    for number in range(OBJECTS):
                        client.ask("SET", f"{{a}}plain:{number:012}", PLAIN)
                        client.ask("HSET", f"{{a}}count:{number:012}", "value", "Hello world!", "getCount", 0)
            for pipeline in (1, PIPELINE):
                for system, what, *command in (
                        (redis, "GET plain", "GET", "{a}plain"), (redis, FCALL, "FCALL", "count", "1", "{a}count"),
                        (redis, FCALL_FIXED, "FCALL", "count_fixed", "1", "{a}count"),
                        (log, FCALL, "FCALL", "count", "1", "{a}count")):
                    works.append((system, system.name, what, "at the home", 0, pipeline, command))
            # Those that are compared stand side by side.
            results += run_works(options, sorted(works, key=lambda work: work[5]), say)
    return results


def run_works(options, works, say):
    results = []
    turns = options.runs * TURNS
    for system in {work[0] for work in works}:
        system.wait_until_idle(IDLE_WAIT_SECONDS)
    for turn in range(turns):
        say(f"aso, turn {turn + 1}/{turns}: {len(works)} loads of {works[-1][1]}")
        for system, name, what, path, node, pipeline, command in works:
            ops = max(1, int(options.ops * TURN_SHARE)) * (3 if pipeline > 1 and "quorum" not in what else 1)
            before = system.cpu_seconds()
            result = benchmark(options, system.nodes[node].port, ops, pipeline, command)
            # What the calls have changed is written within this time, and counts.
            time.sleep(1.2 * ASYNC_SECONDS)
            cpu = system.cpu_seconds() - before
            system.check_alive()
            results.append({"system": name, "what": what, "path": path, "pipeline": pipeline, "turn": turn, **result,
                            "cpu_us": cpu / ops * 1e6})
    return results


def benchmark(options, port, ops, pipeline, command):
    """redis-benchmark, with a random key of OBJECTS behind the last word of the command."""
    command = [*command[:-1], f"{command[-1]}:__rand_int__"]
    return parse_redis_benchmark(execute([
        options.redis_benchmark, "-h", HOST, "-p", str(port), "-n", str(ops), "-r", str(OBJECTS),
        "-c", str(options.connections), "-P", str(pipeline), "--precision", "3", *command]))


def tag_of(system, node):
    """A hash tag whose keys have this node as their home."""
    owners = system.owners()
    with Client(system.nodes[node].port) as client:
        for number in range(10_000):
            if owners[client.ask("CLUSTER", "KEYSLOT", f"{{{number}}}")] == str(node):
                return f"{{{number}}}"
    raise BenchError(f"node {node + 1} is the first replica of nothing")


def make(system, tag):
    with Client(system.nodes[0].port) as client:
        for number in range(OBJECTS):
            client.ask("ASO.PUT", f"{tag}count:{number:012}", COUNTER)
            client.ask("SET", f"{tag}plain:{number:012}", PLAIN)


def set_durability(system, durability):
    """Waits until all nodes know: a bucket's properties spread by gossip."""
    with Client(system.nodes[0].port) as client:
        client.ask("BUCKET", "SET", "default", "aso_durability", durability)

    def is_known():
        for node in system.nodes:
            with Client(node.port) as client:
                properties = client.ask("BUCKET", "GET", "default")
                if properties[properties.index(b"aso_durability") + 1] != durability.encode():
                    return False
        return True
    system.wait_for(f"aso_durability = {durability}", is_known)


def ask_many(client, commands):
    """Sends all at once."""
    out = b""
    for command in commands:
        parts = [str(part).encode() for part in command]
        out += b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
    client.socket.sendall(out)
    return [client.reply() for _ in commands]


# Neighbours


def measure_neighbours(options, loader, say):
    """GETs and SETs of plain keys at an even rate, without and with hostile objects that are called meanwhile."""
    with Oort(options, options.dir) as system:
        loader.fill(system)
        with Client(system.nodes[0].port) as client:
            for number in range(10 * len(HOSTILE)):
                body = list(HOSTILE.values())[number % len(HOSTILE)]
                client.ask("ASO.PUT", f"hostile:{number}", f"function attack() {body}\nend")
        system.wait_until_idle(IDLE_WAIT_SECONDS)
        say("aso: neighbours, without hostile objects")
        without = plain_load(options, loader, system)
        system.wait_until_idle(IDLE_WAIT_SECONDS)
        say("aso: neighbours, with hostile objects")
        with Hostile(system) as hostile:
            under_attack = plain_load(options, loader, system)
        system.check_alive()
        if not hostile.calls:
            raise BenchError("no hostile object was called")
        return {"without": without, "with": under_attack, "hostile_calls": hostile.calls, "errors": hostile.texts}


def plain_load(options, loader, system):
    seconds = 3 if options.quick else 10
    results, threads = {}, []

    def run(op):
        command = loader.command(op, system.ports(), 1, NEIGHBOUR_RATE // 2 * seconds)
        results[op] = json.loads(execute(command + ["--rate", str(NEIGHBOUR_RATE // 2)]))
    for op in ("get", "set"):
        threads.append(threading.Thread(target=run, args=(op,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if len(results) != 2:
        raise BenchError("a plain load failed")
    return {op: {name: result[name] for name in ("rps", "p50", "p99", "p999", "max", "errors")}
            for op, result in results.items()}


class Hostile:
    """Calls hostile objects at an even rate through all nodes while it is entered."""

    THREADS = 6

    def __init__(self, system):
        self.system, self.calls, self.texts = system, 0, {}
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(index,)) for index in range(self.THREADS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def run(self, index):
        pause = self.THREADS / (NEIGHBOUR_RATE * HOSTILE_SHARE)
        due = time.monotonic() + pause * index / self.THREADS
        with Client(self.system.nodes[index % len(self.system.nodes)].port, 5.0) as client:
            turn = index
            while not self.stopping.wait(max(0.0, due - time.monotonic())):
                due += pause
                turn += self.THREADS + 1
                try:
                    client.ask("ASO.CALL", f"hostile:{turn % (10 * len(HOSTILE))}", "attack")
                except BenchError as error:
                    text = str(error)[:60]
                    self.texts[text] = self.texts.get(text, 0) + 1
                except OSError:
                    self.texts["no answer"] = self.texts.get("no answer", 0) + 1
                    return
                self.calls += 1


# Failover


def measure_failover(options, durability, say):
    """A counter is read in a loop through a node that is not its home, and its home is killed."""
    with Oort(options, options.dir) as system:
        set_durability(system, durability)
        key = tag_of(system, 0) + "counter"
        with Client(system.nodes[1].port) as client:
            client.ask("ASO.PUT", key, COUNTER)
        time.sleep(2.0)
        say(f"aso: failover, {durability}")
        before, after = FAILOVER_SECONDS
        answers, errors, struck = [], [], None
        begin = time.monotonic()
        client = Client(system.nodes[1].port, CLIENT_TIMEOUT_SECONDS)
        while (now := time.monotonic()) < begin + before + after:
            if struck is None and now >= begin + before:
                struck = time.monotonic()
                system.nodes[0].signal(signal.SIGKILL)
            try:
                count = client.ask("GET", key)[1]
                answers.append((time.monotonic(), count))
            except BenchError as error:
                errors.append(str(error)[:80])
            except (OSError, ConnectionError) as error:
                errors.append(str(error)[:80])
                client.__exit__()
                client = Client(system.nodes[1].port, CLIENT_TIMEOUT_SECONDS)
        client.__exit__()
        return evaluate_failover(answers, errors, struck)


def evaluate_failover(answers, errors, struck):
    def gap(since, until):
        times = [at for at, _ in answers if since <= at <= until]
        return max((b - a for a, b in zip(times, times[1:])), default=float("inf")) * 1000
    # Counts the client saw that a later answer took back.
    back, greatest = 0, 0
    for _, count in answers:
        back = max(back, greatest - count + 1 if count <= greatest else 0)
        greatest = max(greatest, count)
    last_second = sum(struck - ASYNC_SECONDS <= at <= struck for at, _ in answers)
    return {"gap_before_ms": gap(0, struck), "gap_ms": gap(struck - 0.2, answers[-1][0]), "back": back,
            "last_second": last_second, "answers": len(answers), "errors": errors[:20], "error_count": len(errors)}


# Timers


def measure_timers(options, say):
    """Objects with an hourly timer on one node: what they take when nobody asks for them."""
    objects = TIMER_OBJECTS // 10 if options.quick else TIMER_OBJECTS
    with OneOort(options, options.dir) as system:
        node = system.nodes[0]
        system.wait_until_idle(IDLE_WAIT_SECONDS)
        empty = (idle_percent(node), node.rss_bytes())
        say(f"aso: timers, making {objects:,} objects")
        began = time.monotonic()
        with Client(node.port, 60.0) as client:
            for first in range(0, objects, 500):
                ask_many(client, [["ASO.PUT", f"timer:{number:012}", TIMER]
                                  for number in range(first, min(first + 500, objects))])
        made = time.monotonic() - began
        system.wait_until_idle(IDLE_WAIT_SECONDS)
        loaded = node.rss_bytes()
        # Objects that nobody asks for are unloaded after a minute.
        say("aso: timers, waiting until the objects are unloaded")
        time.sleep(5 if options.quick else 75)
        return {"objects": objects, "made_seconds": made, "empty_cpu_percent": empty[0],
                "cpu_percent": idle_percent(node), "empty_rss": empty[1], "loaded_rss": loaded,
                "rss": node.rss_bytes(), "metrics": active_metrics(system)}


def idle_percent(node):
    before = node.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return (node.cpu_seconds() - before) / IDLE_SECONDS * 100


def active_metrics(system):
    port = system.nodes[0].port + 10
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    wanted = ("oort_active_loaded", "oort_active_timers", "oort_active_timer_runs", "oort_active_bytes")
    return [line for line in lines if line.startswith(wanted)]


# Tables


def tables(results):
    texts = []
    if results["calls"]:
        texts.append(calls_table(results["calls"]))
        texts.append(ratios(results["calls"]))
    if results["neighbours"]:
        texts.append(neighbours_table(results["neighbours"]))
    texts.append(failover_table(results["failover"]))
    texts.append(timers_table(results["timers"]))
    return "\n\n".join(texts)


def grouped(calls):
    groups = {}
    for result in calls:
        groups.setdefault((result["system"], result["what"], result["path"], result["pipeline"]), []).append(result)
    return groups


def median(runs, name):
    return statistics.median(run[name] for run in runs)


def calls_table(calls):
    lines = ["| system | operation | path | pipeline | requests/s | p50 / p99 ms | server CPU µs/op "
             "| requests per CPU second |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for (system, what, path, pipeline), runs in grouped(calls).items():
        cpu = median(runs, "cpu_us")
        lines.append(f"| {system} | {what} | {path} | {pipeline} | {median(runs, 'rps'):,.0f} "
                     f"| {median(runs, 'p50'):.2f} / {median(runs, 'p99'):.2f} | {cpu:.1f} "
                     f"| {1e6 / cpu if cpu else 0:,.0f} |")
    return "\n".join(lines)


def ratios(calls):
    """Of loads in the same turn; the median of all turns."""
    groups = grouped(calls)
    lines = ["| ratio of server CPU per operation | pipeline 1 | pipeline 16 | goal |", "| --- | --- | --- | --- |"]

    def line(name, top, bottom, goal):
        values = []
        for pipeline in (1, PIPELINE):
            pairs = zip(groups.get((*top, pipeline), []), groups.get((*bottom, pipeline), []))
            each = [above["cpu_us"] / below["cpu_us"] for above, below in pairs if below["cpu_us"]]
            values.append(f"{statistics.median(each):.2f}" if each else "-")
        lines.append(f"| {name} | {' | '.join(values)} | {goal} |")
    for durability, goal in (("async", "≤ 1.3"), ("quorum", "")):
        for path in ("at the home", "through another"):
            line(f"getCount, {durability} / plain GET, {path}", ("oort", f"GET getCount, {durability}", path),
                 ("oort", f"GET plain, {durability}", path), goal)
    home, redis, one = "at the home", "redis, one node", "oort, one node"
    count = (one, "GET getCount, async", home)
    line("getCount / plain GET, one node", count, (one, "GET plain", home), "")
    line("Redis FCALL / Redis GET", (redis, FCALL, home), (redis, "GET plain", home), "")
    line("Redis FCALL / getCount, one node, both write what changed", (OneRedisLog.name, FCALL, home), count, "≥ 1.5")
    line("the same, Redis in memory only", (redis, FCALL, home), count, "")
    line("the same, and the value in the code of the function", (redis, FCALL_FIXED, home), count, "")
    return "\n".join(lines)


def neighbours_table(runs):
    lines = [f"| plain keys, {NEIGHBOUR_RATE:,}/s | p50 / p99 / p99.9 ms, alone "
             f"| with {HOSTILE_SHARE:.0%} hostile calls | p99, with / alone |", "| --- | --- | --- | --- |"]
    for op in ("get", "set"):
        def figure(which, name):
            return statistics.median(run[which][op][name] for run in runs)
        texts = [" / ".join(f"{figure(which, name):.2f}" for name in ("p50", "p99", "p999"))
                 for which in ("without", "with")]
        ratio = statistics.median(run["with"][op]["p99"] / run["without"][op]["p99"] for run in runs)
        lines.append(f"| {op.upper()} | {texts[0]} | {texts[1]} | {ratio:.2f} |")
    return "\n".join(lines)


def failover_table(results):
    lines = ["| kill -9 of the home | gap before | longest gap | counter went back by | answers in the last second "
             "| errors |", "| --- | --- | --- | --- | --- | --- |"]
    for durability, runs in results.items():
        def worst(name):
            return max(run[name] for run in runs)
        lines.append(
            f"| {durability} | {median(runs, 'gap_before_ms'):.1f} ms "
            f"| {median(runs, 'gap_ms'):.1f} ({worst('gap_ms'):.1f}) ms | {median(runs, 'back'):.0f} ({worst('back')}) "
            f"| {median(runs, 'last_second'):.0f} | {worst('error_count')} |")
    return "\n".join(lines)


def timers_table(result):
    each = {name: (result[name] - result["empty_rss"]) / result["objects"] for name in ("loaded_rss", "rss")}
    return (f"| {result['objects']:,} objects with an hourly timer | |\n| --- | --- |\n"
            f"| CPU while idle, empty node | {result['empty_cpu_percent']:.1f}% |\n"
            f"| CPU while idle, with the objects | {result['cpu_percent']:.1f}% |\n"
            f"| resident bytes per object after making them | {each['loaded_rss']:,.0f} |\n"
            f"| resident bytes per object once idle | {each['rss']:,.0f} |\n"
            f"| objects made per second | {result['objects'] / result['made_seconds']:,.0f} |")
