"""Commands in processes that are forked from one which has loaded their libraries: each would take seconds for it.

    python -m tests.preloaded SOCKET

listens until nobody holds it any more. `write_commands` makes a folder of commands for PATH: its `blastwatch`, `dvc`
and `mlflow` hand their arguments, environment, folder, standard streams and signals to a fork of this process, and end
with its exit code; `module NAME` does so as `python -m NAME` would; the others are the installed ones. What a fork runs
is the command's own entry point.
"""

import atexit
import gc
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
HOLD, RUN = b"h", b"r"
START_SECONDS = 120
ENTRIES = {"blastwatch": "blastwatch.cli:main", "dvc": "dvc.cli:main", "mlflow": "mlflow.cli:cli"}
# Not nncf and onnxruntime: both start threads while they load, which a fork would miss.
LIBRARIES = (
    "dvc.cli", "dvc.commands.repro", "dvc.repo", "evidently", "evidently.metrics.embeddings",
    "evidently.ui.workspace", "matplotlib.pyplot", "mlflow.cli", "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store", "onnx", "openvino", "pandas", "pyarrow.parquet", "sklearn.ensemble",
    "sklearn.linear_model", "sklearn.metrics", "torch._dynamo", "torch.distributed.run", "torch.onnx", "torchvision",
    "training.search", "training.evaluation", "training.training_run", "uvicorn.main",
)  # fmt: skip

SHIM = """#!{python} -IS
import json, os, signal, socket, sys
wire = socket.socket(socket.AF_UNIX)
wire.connect({address!r})
asked = {{"name": {name!r}, "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ),
         "python": {beside!r}}}
socket.send_fds(wire, [{run!r}], [0, 1, 2])
wire.sendall(json.dumps(asked).encode() + b"\\n")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: wire.sendall(bytes([number])))
code = int(wire.makefile("rb").readline() or -signal.SIGKILL)
if -code in (signal.SIGINT, signal.SIGTERM):
    signal.signal(-code, signal.SIG_DFL)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def held(socket_path: Path) -> Iterator[None]:
    """Start the process where none listens. It ends when all that hold it have left; who started it waits for that."""
    with ExitStack() as stack:
        wire = stack.enter_context(socket.socket(socket.AF_UNIX))
        with FileLock(socket_path.with_suffix(".lock")):
            if wire.connect_ex(str(socket_path)):
                stack.push(_start(socket_path))
                wire.connect(str(socket_path))
            wire.sendall(HOLD)
        yield
        wire.close()


def _start(socket_path: Path) -> subprocess.Popen[bytes]:
    socket_path.unlink(missing_ok=True)
    log = socket_path.with_suffix(".log")
    with log.open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", str(socket_path)], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
    end = time.monotonic() + START_SECONDS
    while not socket_path.exists():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    return process


def write_commands(folder: Path, socket_path: Path) -> None:
    """Write the commands of this Python into a folder."""
    folder.mkdir()
    installed = Path(sys.executable).parent
    for name in ("bentoml", "evidently"):
        (folder / name).symlink_to(installed / name)
    # MLflow's server is uvicorn in a process of its own, started by the Python beside it.
    forked = f'[ "$1 $2" = "-m uvicorn" ] && shift && exec {folder / "module"} "$@"'
    texts = {"python": f'#!/bin/sh\n{forked}\nexec {sys.executable} "$@"\n'}
    for name in (*ENTRIES, "module"):
        texts[name] = SHIM.format(
            python=sys.executable, address=str(socket_path), name=name, run=RUN, beside=str(folder / "python")
        )
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


class Server:
    """Forks a child for each call; a caller that goes away takes its child with it."""

    def __init__(self, path: str) -> None:
        self._ready = selectors.DefaultSelector()
        self._holders: set[socket.socket] = set()
        self._children: dict[socket.socket, int] = {}
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{path}.new")
        listener.listen(64)
        Path(f"{path}.new").rename(path)  # what has the name listens
        self._listener = listener
        self._ready.register(listener, selectors.EVENT_READ, self._accept)

    def serve(self) -> dict[str, object] | None:
        """Returns in each child what it was asked for, and None at the end, when nobody holds this any more."""
        held = False
        while not held or self._holders:
            events = self._ready.select(None if held else START_SECONDS)
            if not events:
                return None
            for key, _ in events:
                if key not in self._ready.get_map().values():  # closed by the one before
                    continue
                asked = key.data()
                if asked is not None:
                    return asked
            held = held or bool(self._holders)
        for pid in self._children.values():
            os.killpg(pid, signal.SIGKILL)
        return None

    def _accept(self) -> dict[str, object] | None:
        wire, _ = self._listener.accept()
        kind, streams, _, _ = socket.recv_fds(wire, 1, 3)
        if kind == HOLD:
            self._holders.add(wire)
            self._ready.register(wire, selectors.EVENT_READ, lambda: self._release(wire))
            return None
        with wire.makefile("rb") as words:
            line = words.readline()
        if not line.endswith(b"\n"):  # the caller was killed meanwhile
            for stream in streams:
                os.close(stream)
            wire.close()
            return None
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            for other in (self._listener, wire, *self._holders, *self._children):
                other.close()
            self._ready.close()
            return json.loads(line)
        for stream in streams:
            os.close(stream)
        self._children[wire] = pid
        ended = os.pidfd_open(pid)
        self._ready.register(wire, selectors.EVENT_READ, lambda: self._forward(wire))
        self._ready.register(ended, selectors.EVENT_READ, lambda: self._reap(wire, ended))
        return None

    def _release(self, wire: socket.socket) -> None:
        self._holders.discard(wire)
        self._ready.unregister(wire)
        wire.close()

    def _forward(self, wire: socket.socket) -> None:
        try:
            numbers = wire.recv(16)
        except ConnectionResetError:
            numbers = b""
        for number in numbers:
            os.killpg(self._children[wire], number)
        if not numbers:
            self._ready.unregister(wire)
            os.killpg(self._children[wire], signal.SIGKILL)

    def _reap(self, wire: socket.socket, ended: int) -> None:
        _, status = os.waitpid(self._children.pop(wire), 0)
        self._ready.unregister(ended)
        os.close(ended)
        if wire in self._ready.get_map():
            self._ready.unregister(wire)
            with suppress(OSError):  # the caller is no more
                wire.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        wire.close()


def run(asked: dict) -> None:
    """As the installed script does, in the folder and the environment of who called it."""
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv = [asked["name"], *asked["arguments"]]
    sys.executable = asked["python"]  # commands look for each other beside it
    if asked["name"] == "module":
        sys.argv = asked["arguments"]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        entry = pkgutil.resolve_name(ENTRIES[asked["name"]])
        sys.exit(entry())


def preload() -> None:
    import importlib
    import warnings

    from blastwatch.absent import REPORTS_USE, leave_out
    from blastwatch.cli import QUIET

    os.environ.update(QUIET)
    leave_out(REPORTS_USE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            importlib.import_module(name)
    gc.freeze()


def end(code: object) -> None:
    """As the interpreter ends, but without taking every library apart, which takes longer than most commands."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    preload()
    call = Server(sys.argv[1]).serve()
    if call is not None:
        try:
            run(call)
        except SystemExit as ended:
            end(ended.code)
        end(0)
