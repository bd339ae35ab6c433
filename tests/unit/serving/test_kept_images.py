"""Pictures of answered cells, from a real request to the database: whose is kept, and that callers are told."""

import io

import numpy as np
from PIL import Image

from blastwatch.images import decode
from monitoring.image_store import open_image_store
from monitoring.retention import open_retention
from monitoring.store import open_store
from serving.keys import KeyFolder
from tests.drawn import draw_cell
from tests.in_thread import front


def other_cell():
    out = io.BytesIO()
    Image.fromarray(np.roll(draw_cell(3), 40, axis=0)).save(out, "PNG")
    return out.getvalue()


def test_each_answered_cell_leaves_its_picture(served, tmp_path, cell):
    sent, key = [cell.read_bytes(), other_cell()], KeyFolder(tmp_path / "api-keys").add("lab")
    with front(served, tmp_path, BLASTWATCH_KEEP_IMAGES="sampled", BLASTWATCH_KEEP_SHARE="1") as service:
        assert service.ask("/v1/model", key).json()["keeps_images"] == "sampled"
        alone = service.predict(key, cell=sent[0], headers={"Blastwatch-Patient": "ward 3"}).json()
        batch = service.ask("/v1/predict_batch", key, files=[("images", file) for file in (sent[1], b"no image")])
        both = [alone["id"], batch.json()["results"][0]["id"]]
        url = service.settings.predictions_url
        service.service.images.close()
        assert service.count("blastwatch_capture_images_total", outcome="stored") == 2
        assert service.count("blastwatch_capture_images_total", outcome="dropped") == 0
    with open_image_store(url) as images, open_store(url) as store:
        kept = images.pictures(both)
        assert [np.array_equal(decode(kept[id_]), decode(file)) for id_, file in zip(both, sent, strict=True)] == [1, 1]
        assert sorted(store.read(pictured=True)["id"]) == sorted(both)
        (patient,) = {key for key in store.answers(model_digest=served.package.digest)["patient"] if key}
    with open_retention(url) as retention:
        gone = retention.forget(patient)
        assert (gone.predictions, gone.images, retention.usage().images) == (1, 1, 1)


def test_by_default_none_is_kept(served, tmp_path, cell):
    key = KeyFolder(tmp_path / "api-keys").add("lab")
    with front(served, tmp_path) as service:
        assert service.ask("/v1/model", key).json()["keeps_images"] == "never" and service.service.images is None
        assert service.predict(key, cell=cell.read_bytes()).status_code == 200
        url = service.settings.predictions_url
    with open_retention(url) as retention:
        assert (retention.usage().predictions, retention.usage().images) == (1, 0)
