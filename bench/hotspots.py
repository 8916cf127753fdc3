"""Where Oort's CPU goes under load, by perf, in shares of all samples of the three nodes.

A sample in the kernel belongs to the area of the innermost frame that names one: loopback networking runs inside the
sender's system call, so it is found anywhere. A sample in user space belongs to its function alone, because Rust code
has no frame pointers to walk: what the standard library or memcmp does for others is listed on its own.
"""

import collections
import os
import re
import shutil
import signal
import subprocess
import time

from systems import BenchError, Oort, die_with_parent

SECONDS = 8
WARM_UP_SECONDS = 1
SAMPLES_PER_SECOND = 999
TOP = 15

KERNEL_AREAS = [
    ("kernel: disk", re.compile(
        r"ext4|xfs_|btrfs|fsync|fdatasync|vfs_write|vfs_read|writeback|filemap|generic_perform_write|blk_|virtblk|"
        r"virtio_queue|submit_bio|jbd2|io_schedule|do_sys_open|do_unlink|ftruncate|fallocate")),
    ("kernel: network", re.compile(
        r"tcp_|inet_|__sys_send|__sys_recv|sock_|net_rx|__napi|process_backlog|dev_queue_xmit|ip_|skb|loopback")),
    ("kernel: waiting and waking (epoll, futex, scheduler)", re.compile(
        r"epoll|ep_poll|ep_send|eventfd|futex|schedule|pick_next|poll_|nanosleep")),
    ("kernel: memory (page faults, mmap)", re.compile(r"page_fault|mmap|munmap|madvise|do_anonymous|brk")),
]
USER_AREAS = [
    ("memcpy, memmove, memcmp, memset", re.compile(r"^(__)?(mem(cpy|move|cmp|set|chr)|bcmp)")),
    ("allocator (mi_*)", re.compile(r"^_?mi_|^(malloc|free|calloc|realloc|posix_memalign)$|__rust_alloc|__rust_dealloc")),
    # The first crate that a function's name mentions is the one that it belongs to, the standard library aside:
    # core::ptr::drop_in_place<lsm_tree::memtable::Memtable> is lsm_tree's.
    ("crate", re.compile(r"(fjall|lsm_tree|crossbeam|quick_cache|lz4|oort_core|oort::storage|oort::|mio::|xxhash_rust)")),
    ("crate", re.compile(r"(bytes::|hashbrown|core::|alloc::|std::)")),
]
CRATES = {
    "fjall": "storage engine (fjall, lsm-tree, crossbeam)",
    "lsm_tree": "storage engine (fjall, lsm-tree, crossbeam)",
    "crossbeam": "storage engine (fjall, lsm-tree, crossbeam)",
    "quick_cache": "storage engine (fjall, lsm-tree, crossbeam)",
    "lz4": "storage engine (fjall, lsm-tree, crossbeam)",
    "oort_core": "core (oort_core)",
    "oort::storage": "server: storage adapter (oort::storage)",
    "oort::": "server: the rest (oort::)",
    "mio::": "server: the rest (oort::)",
    "xxhash_rust": "hashes (xxhash: rows, log, frames, ring)",
    "bytes::": "standard library, bytes, hash maps",
    "hashbrown": "standard library, bytes, hash maps",
    "core::": "standard library, bytes, hash maps",
    "alloc::": "standard library, bytes, hash maps",
    "std::": "standard library, bytes, hash maps",
}
OTHER = "other"


def measure(options, loader, work, say):
    """Runs perf over the three nodes while `work` is done without end; returns the report as Markdown."""
    if not shutil.which("perf"):
        raise BenchError("perf is needed (Debian: apt-get install linux-perf)")
    with Oort(options, options.dir) as system:
        say(f"profile: loading {options.keys} keys")
        loader.fill(system)
        system.wait_until_idle(5)
        say(f"profile: {work.op} for {SECONDS} s")
        load = loader.start(system, work)
        try:
            time.sleep(WARM_UP_SECONDS)
            text = record(system)
            if load.poll() is not None:
                raise BenchError("the load ended before the profile did")
        finally:
            load.kill()
            load.wait()
    return report(read_samples(text), work)


def record(system):
    file = os.path.join(system.directory, "perf.data")
    pids = ",".join(str(node.process.pid) for node in system.nodes)
    command = ["perf", "record", "-q", "-F", str(SAMPLES_PER_SECOND), "-g", "-p", pids, "-o", file,
               "--", "sleep", str(SECONDS)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               preexec_fn=die_with_parent)
    try:
        _, errors = process.communicate(timeout=SECONDS + 30)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait()
    if process.returncode != 0:
        raise BenchError(f"perf record failed: {errors.strip()[-300:]}")
    script = subprocess.run(["perf", "script", "-i", file, "-F", "comm,ip,sym,dso"], capture_output=True, text=True,
                            check=False)
    return script.stdout


def read_samples(text):
    """Each sample as its frames, innermost first: (function, whether it is the kernel's)."""
    samples, frames = [], []
    for line in [*text.splitlines(), ""]:
        if not line.strip():
            if frames:
                samples.append(frames)
            frames = []
        elif line[0].isspace():
            match = re.match(r"\s+[0-9a-f]+ (.*) \((.*)\)$", line)
            if match:
                frames.append((match.group(1), match.group(2).startswith("[kernel")))
    return samples


def area_of(frames):
    leaf, in_kernel = frames[0]
    if in_kernel:
        for function, kernel in frames:
            for area, pattern in KERNEL_AREAS:
                if kernel and pattern.search(function):
                    return area
        return "kernel: the rest"
    for area, pattern in USER_AREAS:
        match = pattern.search(leaf)
        if match:
            return CRATES[match.group(1)] if area == "crate" else area
    return OTHER


def report(samples, work):
    if not samples:
        raise BenchError("perf took no samples")
    areas = collections.Counter(area_of(frames) for frames in samples)
    functions = collections.Counter((frames[0][0], area_of(frames)) for frames in samples if not frames[0][1])
    lines = [f"{len(samples)} samples of three nodes under {work.op.upper()} load, {work.path}", "",
             "| area | share of CPU |", "| --- | --- |"]
    lines += [f"| {area} | {count / len(samples):.1%} |" for area, count in areas.most_common()]
    lines += ["", "| function (user space) | area | share of CPU |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {area} | {count / len(samples):.1%} |" for (name, area), count in functions.most_common(TOP)]
    return "\n".join(lines)
