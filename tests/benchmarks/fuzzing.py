"""`python -m tests.benchmarks.fuzzing --images 20000`: damaged files, bombs and polyglots through `images.decode`.

A child decodes one file after the other under a fixed limit of its address space; the parent counts what came of each:
`decoded`, a reason of `ImageRejected`, or a fault: another exception, the end of the child (a crash), or a file that
took longer than `SLOW`. It prints the counts, the longest time, and the child's resident memory at a tenth and at the
end, whose ratio shows growth. The exit code is 1 where there was a fault. `--only N` decodes one file alone.
"""

import argparse
import collections
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from blastwatch.errors import ImageRejected
from blastwatch.images import decode, without_warnings
from tests.benchmarks.fuzz_images import make, seeds

SLOW = 2.0  # seconds
HEADROOM = 192  # MiB that a decode may take beyond what the process has when all is loaded; 4 million pixels are 12 MB
PAGE = os.sysconf("SC_PAGE_SIZE")


def memory(column):
    """MiB of this process: column 0 is address space, 1 resident."""
    return int(Path("/proc/self/statm").read_text().split()[column]) * PAGE / 2**20


def outcome(data):
    """One word for what the decoder does with a file; a fault begins with FAULT."""
    try:
        image = decode(data)
    except ImageRejected as error:
        return error.reason if error.reason in ImageRejected.REASONS else f"FAULT reason {error.reason}"
    except BaseException as error:  # noqa: BLE001  (whatever it is, it is the finding)
        return f"FAULT {type(error).__name__}: {str(error)[:80]}"
    whole = image.ndim == 3 and image.shape[2] == 3 and image.dtype == "uint8"
    return "decoded" if whole else f"FAULT shape {image.shape}"


def child(seed, first, last):
    """Decode the files first to last - 1; one line each, written before and after."""
    without_warnings()  # as the service
    seeds()
    for data in seeds().values():
        outcome(data)  # every codec is loaded
    limit = int((memory(0) + HEADROOM) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, last):
        kind, name, data = make(seed, number)
        print("begin", number, kind, name, sep="\t", flush=True)
        start = time.perf_counter()
        said = outcome(data)
        seconds = time.perf_counter() - start
        said = f"FAULT slow {name}" if seconds > SLOW and not said.startswith("FAULT") else said
        print("end", kind, said, f"{seconds:.4f}", f"{memory(1):.1f}", sep="\t", flush=True)


def run(seed, images):
    """Every outcome counted by kind of file, the longest time, the resident memory after each file, and the faults."""
    counts, faults, resident, longest = collections.Counter(), [], [], 0.0
    number = 0
    while number < images:
        words = [
            sys.executable,
            "-m",
            "tests.benchmarks.fuzzing",
            "--seed",
            str(seed),
            "--child",
            str(number),
            str(images),
        ]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        kind = name = ""
        for line in process.stdout:
            row = line.rstrip("\n").split("\t")
            if row[0] == "begin":
                number, kind, name = int(row[1]) + 1, row[2], row[3]
                continue
            counts[kind, row[2].split(":")[0]] += 1
            longest = max(longest, float(row[3]))
            resident.append(float(row[4]))
            if row[2].startswith("FAULT"):
                faults.append((number - 1, kind, name, row[2]))
        if process.wait():
            counts[kind, "FAULT crash"] += 1
            faults.append((number - 1, kind, name, f"FAULT crash: exit code {process.returncode}"))
    return counts, longest, resident, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.seed, *asked.child)
        return 0
    if asked.only is not None:
        kind, name, data = make(asked.seed, asked.only)
        print(kind, name, len(data), "bytes", data[:64])
        decode(data)
        return 0
    start = time.monotonic()
    counts, longest, resident, faults = run(asked.seed, asked.images)
    kinds = sorted({kind for kind, _ in counts})
    print(f"{asked.images} files, seed {asked.seed}, {HEADROOM} MiB above the start, {time.monotonic() - start:.0f} s")
    print(f"{'outcome':<24}" + "".join(f"{kind:>10}" for kind in kinds))
    for said in sorted({said for _, said in counts}):
        print(f"{said:<24}" + "".join(f"{counts[kind, said]:>10}" for kind in kinds))
    tenth, end = max(resident[: len(resident) // 10 + 1]), resident[-1]
    print(f"longest {longest:.2f} s; resident {tenth:.0f} MiB at a tenth, {end:.0f} MiB at the end: {end / tenth:.3f}")
    for number, kind, name, said in faults[:20]:
        print(f"--only {number}: {kind} {name}: {said}")
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
