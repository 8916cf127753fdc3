"""The systems under test: started on loopback, watched through /proc, and always ended."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

HOST = "127.0.0.1"
SLOTS = 16384
PR_SET_PDEATHSIG = 1
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
LIBC = ctypes.CDLL(None)


class BenchError(Exception):
    """The measurement cannot go on; the text says why."""


def die_with_parent():
    """Runs in the child: even a bench that is killed leaves no servers behind."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    keep_priority()


def keep_priority():
    """For `nice -n -10 bench/run` on a machine that others use: Linux weighs sessions, and each has a niceness too."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    if nice != 0:
        with open("/proc/self/autogroup", "w") as file:
            file.write(str(nice))


class Client:
    """A few commands over the Redis protocol, for set-up and checks."""

    def __init__(self, port, timeout=2.0):
        self.socket = socket.create_connection((HOST, port), timeout)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def ask(self, *parts):
        """The reply as int, bytes, list, None or str (a status); an error reply raises."""
        parts = [str(part).encode() for part in parts]
        out = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self.socket.sendall(out)
        return self.reply()

    def reply(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("connection closed")
        kind, rest = line[:1], line[1:].strip()
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise BenchError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else self.file.read(length + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        raise BenchError(f"unexpected reply {line!r}")


class Node:
    """One server process; it can be killed and started again."""

    def __init__(self, name, command, port, directory):
        self.name, self.command, self.port, self.directory = name, command, port, directory
        self.process = None

    def start(self):
        with open(os.path.join(self.directory, "log"), "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.directory, start_new_session=True, preexec_fn=die_with_parent)

    def signal(self, number):
        # Popen.send_signal does nothing once the process was waited for, so the pid is never somebody else's.
        self.process.send_signal(number)

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def cpu_seconds(self):
        """User and system time of all its threads, those that have ended included."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        return 0


class System:
    """Three processes that hold three copies. `with` starts them, and ends them whatever happens."""

    name = ""

    def __init__(self, options, directory):
        self.directory = tempfile.mkdtemp(prefix="oort-bench-", dir=directory)
        self.nodes = self.plan(options)

    def plan(self, options):
        raise NotImplementedError

    def wait_until_ready(self):
        raise NotImplementedError

    def __enter__(self):
        try:
            for node in self.nodes:
                check_port_is_free(node.port)
            for node in self.nodes:
                node.start()
            self.wait_until_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        for node in self.nodes:
            node.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def node_directory(self, name):
        path = os.path.join(self.directory, name)
        os.mkdir(path)
        return path

    def ports(self):
        return [node.port for node in self.nodes]

    def writable_ports(self):
        return self.ports()

    def cpu_seconds(self):
        return sum(node.cpu_seconds() for node in self.nodes)

    def check_alive(self):
        for node in self.nodes:
            if node.process.poll() is not None:
                raise BenchError(f"{self.name}: {node.name} has ended ({node.process.returncode}): {self.tail(node)}")

    def tail(self, node):
        try:
            with open(os.path.join(node.directory, "log")) as log:
                return log.read()[-500:].strip()
        except OSError:
            return "no log"

    def wait_until_idle(self, limit_seconds):
        """Waits until background work (compaction, replication) is below a tenth of a core."""
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            before = self.cpu_seconds()
            time.sleep(0.3)
            if self.cpu_seconds() - before <= 0.03:
                return

    def wait_for(self, what, ready, seconds=30):
        deadline = time.monotonic() + seconds
        last = ""
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                if ready():
                    return
            except (OSError, BenchError) as error:
                last = str(error)
            time.sleep(0.05)
        raise BenchError(f"{self.name}: {what} not within {seconds} s: {last}")


class Oort(System):
    """Three nodes, N=3 R=2 W=2, each write durable before it is acknowledged (sync = batch)."""

    name = "oort"

    def plan(self, options):
        base = options.port
        join = ",".join(f"{HOST}:{base + 20 + i}" for i in range(3))
        nodes = []
        for i in range(3):
            name = f"node{i + 1}"
            directory = self.node_directory(name)
            command = [
                options.binary, "start", "--cluster", "bench", "--name", name,
                "--dir", os.path.join(directory, "data"), "--join", join, "--cluster-size", "3",
                "--redis", f"{HOST}:{base + i}", "--http", f"{HOST}:{base + 10 + i}",
                "--peer", f"{HOST}:{base + 20 + i}", "--log", "warn", *options.oort_args]
            nodes.append(Node(name, command, base + i, directory))
        return nodes

    def wait_until_ready(self):
        def ready():
            return all(self.answers(node) for node in self.nodes)
        self.wait_for("a cluster that accepts writes", ready)

    @staticmethod
    def answers(node):
        with Client(node.port) as client:
            return client.ask("SET", "bench:ready", "yes") == "OK"

    def owners(self):
        """For each slot the index of its first replica, as a string of digits: what cluster clients learn."""
        index = {port: str(i) for i, port in enumerate(self.ports())}
        digits = [None] * SLOTS
        with Client(self.nodes[0].port) as client:
            for first, last, primary, *_ in client.ask("CLUSTER", "SLOTS"):
                digits[first:last + 1] = [index[primary[1]]] * (last + 1 - first)
        if None in digits:
            raise BenchError("CLUSTER SLOTS does not cover all slots")
        return "".join(digits)


class Redis(System):
    """One primary with two replicas, append-only file synced every second; WAIT 1 makes a second copy."""

    name = "redis"

    def plan(self, options):
        base = options.port + 30
        nodes = []
        for i in range(3):
            name = "primary" if i == 0 else f"replica{i}"
            directory = self.node_directory(name)
            command = [
                options.redis_server, "--port", str(base + i), "--bind", HOST, "--dir", directory,
                "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--repl-diskless-sync-delay", "0"]
            if i > 0:
                command += ["--replicaof", HOST, str(base)]
            nodes.append(Node(name, command, base + i, directory))
        return nodes

    def wait_until_ready(self):
        def ready():
            with Client(self.nodes[0].port) as client:
                client.ask("SET", "bench:ready", "yes")
                return client.ask("WAIT", "2", "100") == 2
        self.wait_for("two replicas in step", ready)

    def writable_ports(self):
        return self.ports()[:1]


def check_port_is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise BenchError(f"port {port} is taken ({error.strerror}); choose others with --port") from error
