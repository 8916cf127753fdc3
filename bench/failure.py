"""What clients notice when one of three nodes is killed or stopped, and when it comes back."""

import json
import signal
import statistics
import time

from systems import BenchError, Oort

WRITERS = 20
WRITES_PER_SECOND = 500
READS_PER_SECOND_AND_NODE = 3000
CLIENT_TIMEOUT_MS = 1000
# Writes slower than this at nodes that nothing happened to are listed one by one.
SLOW_MS = 50
# Reads through the victim are expected to fail until it listens again.
REJOIN_GRACE_SECONDS = 5.0


def measure(options, loader, event, victim, times, say):
    """One run with a fresh cluster. `event` is 'kill -9' or 'SIGSTOP', `victim` the node's index."""
    before, outage, after = times
    with Oort(options, options.dir) as system:
        time.sleep(0.5)
        say(f"failure: {event} of node{victim + 1}")
        node = system.nodes[victim]
        process = loader.failure(system.ports(), WRITERS, WRITES_PER_SECOND, before + outage + after,
                                 CLIENT_TIMEOUT_MS, READS_PER_SECOND_AND_NODE)
        try:
            time.sleep(before)
            struck = time.time()
            node.signal(signal.SIGKILL if event == "kill -9" else signal.SIGSTOP)
            if event == "kill -9":
                node.process.wait()
            time.sleep(outage)
            back = time.time()
            if event == "kill -9":
                node.start()
            else:
                node.signal(signal.SIGCONT)
            out, _ = process.communicate(timeout=after + 60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise BenchError(f"the failure load ended with {process.returncode}")
        system.check_alive()
        return evaluate(json.loads(out), struck, back, victim)


def evaluate(raw, struck, back, victim):
    """All figures in milliseconds; `written` holds (due, done, attached node) in microseconds."""
    struck, back = (struck - raw["start"]) * 1e6, (back - raw["start"]) * 1e6
    done = sorted(write[1] for write in raw["written"])
    others = [write for write in raw["written"] if write[2] != victim]
    attached = [write for write in raw["written"] if write[2] == victim]
    late = [write[1] - write[0] for write in raw["written"] if write[1] >= struck]
    elsewhere = [failed for failed in raw["failed"] if failed[1] != victim]
    slow = [(due, node, f"a write took {(done - due) / 1e3:.0f} ms") for due, done, node in others
            if done >= struck and done - due > SLOW_MS * 1e3]
    live_silences = [at for index, reader in enumerate(raw["readers"]) for at in reader["no_answer"]
                     if index != victim or not struck - 1e6 <= at <= back + REJOIN_GRACE_SECONDS * 1e6]
    missing = [entry for reader in raw["readers"] for entry in reader["missing"]]
    errors = [(at, index, text) for index, reader in enumerate(raw["readers"]) for at, text in reader["errors"]]
    return {
        "writes": len(done),
        "gap_before_ms": longest_gap(done, 0, struck),
        "gap_ms": longest_gap(done, struck, back),
        "gap_rejoin_ms": longest_gap(done, back, done[-1]),
        "worst_other_ms": worst_delay(others, struck, back),
        "worst_other_rejoin_ms": worst_delay(others, back, done[-1]),
        "worst_attached_ms": worst_delay(attached, struck, done[-1]),
        "late_over_1s": sum(delay > 1e6 for delay in late),
        "failed_tries": len(raw["failed"]),
        "failed_tries_elsewhere": len(elsewhere),
        "reads": sum(reader["reads"] for reader in raw["readers"]),
        "unreadable_keys": len({key for _, key in missing}),
        "unreadable_reads": len(missing),
        "read_errors": len(errors),
        "silent_live_reads": len(live_silences),
        "examples": {
            "failed tries at live nodes": [describe(*failed, struck, back) for failed in elsewhere[:5]],
            "slow writes at other nodes": [describe(due, node, text, struck, back) for due, node, text in slow[:8]],
            "unreadable": [describe(at, None, key, struck, back) for at, key in missing[:5]],
            "read errors": [
                f"{len(alike)} times within {(alike[-1][0] - alike[0][0]) / 1e3:.0f} ms, first "
                + describe(*alike[0], struck, back) for alike in kinds_of(errors)],
            "unanswered reads": [describe(at, None, "no answer", struck, back) for at in live_silences[:5]],
        },
    }


def kinds_of(errors):
    """The errors with the same node and text, each kind in order of time."""
    kinds = {}
    for error in sorted(errors):
        kinds.setdefault(error[1:], []).append(error)
    return kinds.values()


def describe(at, node, text, struck, back):
    place = "" if node is None else f" through node{node + 1}"
    base, name = (struck, "the event") if at < back else (back, "its return")
    return f"{(at - base) / 1e6:+.3f} s after {name}{place}: {text}"


def longest_gap(done, begin, end):
    """The longest time between two successes in a row of which at least part lies in the window."""
    gaps = [right - left for left, right in zip(done, done[1:]) if right > begin and left < end]
    return max(gaps, default=0) / 1e3


def worst_delay(writes, begin, end):
    """The longest time from due to acknowledged, of writes that were not both due and done outside the window."""
    return max((done - due for due, done, _ in writes if done > begin and due < end), default=0) / 1e3


def table(results):
    """Rows of Markdown: median (worst) over the runs of each event."""
    lines = [
        "| event | gap before | longest gap | gap at rejoin | worst write, other nodes | worst write, its own clients "
        "| late > 1 s | failed tries (of which at live nodes) | reads | unreadable keys | read errors |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for event, runs in results.items():
        def figure(name):
            values = [run[name] for run in runs]
            return f"{statistics.median(values):.1f} ({max(values):.1f}) ms"

        def worst(name):
            return max(run[name] for run in runs)
        lines.append(
            f"| {event} | {figure('gap_before_ms')} | {figure('gap_ms')} | {figure('gap_rejoin_ms')} "
            f"| {figure('worst_other_ms')} | {figure('worst_attached_ms')} | {worst('late_over_1s')} of {worst('writes')} "
            f"| {worst('failed_tries')} ({worst('failed_tries_elsewhere')}) | {worst('reads')} "
            f"| {worst('unreadable_keys')} | {worst('read_errors') + worst('silent_live_reads')} |")
    return "\n".join(lines)
