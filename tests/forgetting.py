"""Kills a deletion with SIGKILL before its Nth statement, for every N, and tells what each left in the database.

    python -m tests.forgetting FOLDER

One process that forks: a new one for each N would load the libraries again. Prints for `age` and `patient` a JSON list,
an entry a kill; the last one ran to its end.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from monitoring.image_store import open_image_store
from monitoring.retention import Retention, open_retention
from monitoring.shadow_store import open_shadow_store
from monitoring.store import open_store
from tests.cohorts import NOON, pictured, record, shadowed

CELLS = 12  # the even ones are of the patient; the first half is old


def fill(url: str) -> None:
    with open_store(url) as store, open_shadow_store(url) as shadow, open_image_store(url) as images:
        ids = [f"{number:02d}" for number in range(CELLS)]
        times = [NOON + timedelta(days=number) for number in range(CELLS)]
        owners = ["p" if number % 2 == 0 else "q" for number in range(CELLS)]
        store.add([record(id_, time=time, patient=key) for id_, time, key in zip(ids, times, owners, strict=True)])
        shadow.add([shadowed(id_, time=time, patient=key) for id_, time, key in zip(ids, times, owners, strict=True)])
        images.add([pictured(id_, time=time, patient=key) for id_, time, key in zip(ids, times, owners, strict=True)])
        store.add_labels([(id_, "all", NOON) for id_ in ids])
        store.add_labels([(id_, "hem", NOON + timedelta(hours=1)) for id_ in ids])


def delete(retention: Retention, what: str) -> None:
    if what == "patient":
        retention.forget("p")
    else:
        retention.by_age(NOON + timedelta(days=CELLS // 2))


def in_child(url: str, what: str, step: int) -> bool:
    """Run the deletion in a child that dies before its statement `step`; False where it had no such statement."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def moment(*_):
            nonlocal seen
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

        retention = open_retention(url)
        for name in ("before_cursor_execute", "commit"):
            sa.event.listen(retention._engine, name, moment)
        delete(retention, what)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def left(url: str) -> dict[str, object]:
    tables = ("predictions", "labels", "label_words", "shadow", "images")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = {
            name: sorted(set(connection.exec_driver_sql(f"SELECT id FROM {name}").scalars())) for name in tables
        }  # fmt: skip
        found["counted"] = connection.exec_driver_sql("SELECT coalesce(sum(predictions), 0) FROM deletions").scalar()
    engine.dispose()
    return found


def kills(folder: Path, what: str) -> list[dict[str, object]]:
    told, step, killed = [], 0, True
    while killed:
        url = f"sqlite:///{folder / f'{what}-{step}.db'}"
        fill(url)
        open_retention(url).close()
        killed = in_child(url, what, step)
        told.append(left(url))
        step += 1
    return told


if __name__ == "__main__":
    print(json.dumps({what: kills(Path(sys.argv[1]), what) for what in ("age", "patient")}))
