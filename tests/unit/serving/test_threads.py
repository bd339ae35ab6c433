"""Who computes keeps to the cores that a container has the time of (`blastwatch.cores`)."""

from dataclasses import replace

import pytest

from blastwatch import engines
from blastwatch.inference import Engine
from blastwatch.openvino_engine import OpenVinoEngine
from serving import live, readers


@pytest.fixture
def opened(monkeypatch):
    """Threads of each OpenVINO engine that is opened, on a machine whose process may use six cores."""
    threads, begin = [], OpenVinoEngine.__init__

    def note(engine, *given, **named):
        threads.append(named["threads"])
        begin(engine, *given, **named)

    monkeypatch.setattr(OpenVinoEngine, "__init__", note)
    for module in (engines, live, readers):
        monkeypatch.setattr(module, "cores", lambda: 6)
    return threads


@pytest.mark.parametrize(("workers", "given", "threads"), [(1, "", 6), (4, "", 1), (3, "", 2), (9, "", 1), (3, "5", 5)])
def test_a_service_process_computes_on_its_share(served, settings, opened, workers, given, threads):
    live.open_live(served, replace(settings, engine="openvino-f32", workers=workers, threads=given))
    assert opened == [threads]


def test_an_engine_that_is_told_no_number_takes_all_and_images_are_read_by_no_more(package, opened):
    engine: Engine = engines.open_engine(package, "openvino-f32")
    assert opened == [6] and engine.name == "openvino-f32"
    assert [readers.reading_threads(workers) for workers in (1, 2, 3)] == [4, 3, 2]
