#!/usr/bin/env python3
"""Runs the key-value tests of Riak's own Python client (PyPI: riak 2.7.0) over HTTP.

usage: scripts/riak-client.py HTTP_PORT    against a cluster that runs on this machine
       scripts/riak-client.py OORT         against a node that is started for it; OORT is the program

Needs Python 3.9 to 3.11 with the package riak. The client is older than these, so what Python has moved or dropped
since is put back first. Exits with 0 only if every test passes but those in DIFFERS, and those fail.
"""

import collections
import collections.abc
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

# Tests that ask for what Oort does otherwise, or that are wrong themselves.
DIFFERS = {
    "test_clear_bucket_properties": "buckets keep siblings by default (allow_mult is true)",
    "test_primary_quora": "pr and pw are parameters of requests, not properties of buckets",
    "test_rw_settings": "quorums are numbers; dw and rw are not properties of their own",
    "test_store_binary_object_from_file_should_use_default_mimetype": "newer Pythons know the type of README.md",
}


def put_back():
    """What the client takes from Python and Python has no more."""
    for name in collections.abc.__all__:
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))
    namedtuple = collections.namedtuple
    collections.namedtuple = lambda *args, verbose=False, **options: namedtuple(*args, **options)
    if not hasattr(threading, "currentThread"):
        threading.currentThread = threading.current_thread


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def with_node(program, run):
    """Runs `run` with the HTTP port of a node of its own."""
    redis, http, peer = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="oort-riak-client-") as directory:
        options = {"--dir": directory, "--cluster-size": "1"}
        for option, port in (("--redis", redis), ("--http", http), ("--peer", peer)):
            options[option] = "127.0.0.1:" + port
        command = [program, "start"] + [word for pair in options.items() for word in pair]
        node = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            end = time.time() + 30
            while time.time() < end and node.poll() is None:
                try:
                    urllib.request.urlopen("http://127.0.0.1:%s/health" % http, timeout=1)
                    return run(http)
                except OSError:
                    time.sleep(0.05)
            sys.exit("the node does not start")
        finally:
            node.kill()
            node.wait()


def run_tests(port):
    os.environ.update(
        RUN_KV="1",
        RUN_RESOLVE="1",
        RIAK_TEST_PROTOCOL="http",
        RIAK_TEST_HTTP_PORT=port,
    )
    put_back()
    suite = unittest.defaultTestLoader.loadTestsFromName("riak.tests.test_kv")
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = {test.id().rsplit(".", 1)[-1] for test, _ in result.failures + result.errors}
    unexpected, passed = failed - set(DIFFERS), set(DIFFERS) - failed
    for name in sorted(unexpected):
        print("FAILED", name)
    for name in sorted(passed):
        print("passes, though it is said to differ:", name)
    return 1 if unexpected or passed or not result.testsRun else 0


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = sys.argv[1]
    sys.exit(run_tests(target) if target.isdigit() else with_node(target, run_tests))


main()
