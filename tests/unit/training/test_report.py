"""The evaluation report: what it says, that it needs nothing from outside, and how it looks in a browser."""

import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image

from blastwatch import DISCLAIMER
from blastwatch.manifest import IMPORT, SPLIT_FACTS
from tests.trainings import leave_untrained
from training.evaluation import run_evaluation
from training.parameters import EvaluateParameters
from training.plots import PICTURES
from training.report import NAMES, write_report


def pixel():
    """A picture of one pixel, as PNG."""
    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, format="PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory):
    """Metrics and facts of an untrained network on the small cohort."""
    work = tmp_path_factory.mktemp("report")
    training = leave_untrained(cohort, work / "trained")
    folders = {name: cohort / name for name in ("cells", "split", "pack")}
    parameters = EvaluateParameters(resamples=40, permutations=100)
    metrics = run_evaluation(parameters, **folders, trained=work / "trained", out=work / "out").metrics
    facts = {
        "training": training,
        "evaluation": {"resamples": 40, "error": 0.1, "sensitivity": 0.9},
        "split": json.loads((cohort / "split" / SPLIT_FACTS).read_text()),
        "data": json.loads((cohort / "cells" / IMPORT).read_text()),
    }
    return metrics, facts


@pytest.fixture
def written(evaluated, tmp_path):
    """Writes the page with changed metrics, or changed facts of the split or the training."""

    def write(split=(), training=(), **changes):
        metrics, facts = evaluated
        pictures = {name: tmp_path / f"{name}.png" for name in PICTURES}
        for path in pictures.values():
            path.write_bytes(pixel())
        told = facts | {"split": facts["split"] | dict(split), "training": facts["training"] | dict(training)}
        return write_report(metrics | changes, told, pictures, tmp_path / "report.html")

    return write


class Outline(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def test_the_page_says_what_the_metrics_say(written, evaluated):
    metrics, _ = evaluated
    text = written().read_text()
    assert DISCLAIMER in text
    auroc = metrics["cells"]["auroc"]
    assert f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})" in text
    for name in (*metrics["cells"], *metrics["patients"]):
        assert NAMES.get(name, name) in text
    for row in metrics["per_patient"]:
        assert f'<th scope="row">{row["subject"]}</th>' in text
    assert text.count("rowgroup") == 6
    assert "run-1" in text and "weights_file none" in text and "best epoch 3 of 4" in text


def test_the_page_says_what_another_camera_does(written, evaluated):
    found = evaluated[0]["cameras"]
    text = written().read_text()
    assert f"{found['cells']} of the test cells, evenly of {found['patients']} patients" in text
    for row in found["rows"]:
        assert f'<th scope="row">{row["name"].replace("_", " ")}</th>' in text
        assert f"{row['change']['value']:+.3f} ({row['change']['low']:+.3f}" in text
    assert "Under another camera" not in written(cameras=None).read_text()


def test_the_page_says_which_cameras_the_last_layer_was_kept_from_reading(written, evaluated):
    assert "kept from reading" not in written().read_text()
    kept = {"parameters": {"fit": "logistic", "nuisances": 60, "weights": "imagenet", "weights_file": ""}}
    said = "those that were not simulated in training (gamma of 0.7, half as colourful, more contrast): these alone"
    assert said in written(training=kept).read_text()
    found = evaluated[0]["cameras"]
    older = [{name: value for name, value in row.items() if name != "simulated"} for row in found["rows"]]
    text = written(training=kept, cameras=found | {"rows": older}).read_text()
    assert "(strengths 0.5 and 1), so this is no test of an unseen camera." in text


def test_the_page_tells_what_the_training_read_and_not_where_its_weights_lay(written):
    knobs = {"fit": "logistic", "epochs": 30, "weights": "file", "weights_file": "/home/somebody/ward3/w.safetensors"}
    text = written(training={"parameters": knobs}).read_text()
    assert "weights_file w.safetensors" in text and "somebody" not in text
    assert "fit logistic" in text and "epochs 30" not in text and "best epoch" not in text
    text = written(training={"parameters": knobs | {"fit": "gradient"}}).read_text()
    assert "epochs 30" in text and "best epoch 3 of 4" in text


def test_initial_weights_of_unknown_origin_are_said_before_any_figure(written):
    start = {"source": "unknown", "name": "w.pth", "digest": "0" * 64}
    text = written(training={"initial_weights": start}).read_text()
    assert text.index("What those of w.pth had seen is not known") < text.index("<h2>")
    assert "of whom it is not known whether the initial weights had seen them" in text
    assert "nothing before had read" not in text
    assert "unknown origin" not in written(training={"initial_weights": start | {"source": "imagenet"}}).read_text()


def test_synthetic_and_leaky_are_said_before_any_figure(written):
    text = written(leaky=True, split={"by": "image", "parted_groups": ["a", "b"], "crossing": 7}).read_text()
    for word in ("<strong>SYNTHETIC.</strong>", "<strong>LEAKY.</strong>", "2 groups of patients stand on several"):
        assert text.index(word) < text.index("<h2>")
    assert "<title>SYNTHETIC: LEAKY:" in text
    assert "some of whom were trained on" in text and "nothing before had read" not in text
    clean = written(synthetic=False, leaky=False).read_text()
    assert "SYNTHETIC" not in clean and "LEAKY" not in clean


@pytest.mark.parametrize(("likeliest", "said"), [
    (0.0500003, "none of their cells was wrong. 0.400 was taken"), (19.9999, "hardly apart. 0.400 was taken"),
    (1.3, ""),
])  # fmt: skip
def test_a_temperature_that_no_patient_bounds_is_warned_of(written, evaluated, likeliest, said):
    found = {"temperature": 0.4, "likeliest": likeliest}
    text = written(calibration=evaluated[0]["calibration"] | found).read_text()
    assert ("do not bound the temperature" in text) is bool(said) and said in text


def test_more_coverage_than_expected_is_no_fault(written, evaluated):
    conformal = json.loads(json.dumps(evaluated[0]["conformal"]))
    conformal["classes"]["hem"] |= {
        "coverage_by_patient": {"value": 0.99, "low": 0.9, "high": 1.0}, "expected": {"low": 0.811, "high": 0.967},
        "inside": True,
    }  # fmt: skip
    text = written(conformal=conformal).read_text()
    assert "0.811 or more</td><td>yes</td>" in text and "More coverage than is expected is no fault" in text


def test_few_test_patients_are_warned_of(written, evaluated):
    assert "Too few test patients" in written().read_text()
    sides = json.loads(json.dumps(evaluated[1]["split"]["sides"]))
    for name in ("all", "hem"):
        sides["test"][name]["groups"] = 5
    assert "Too few test patients" not in written(split={"sides": sides}).read_text()


def test_the_page_needs_nothing_from_outside(written):
    page = Outline(written().read_text())
    assert not page.all("script", "link", "iframe", "object", "embed")
    sources = [attributes["src"] for attributes in page.all("img")]
    assert len(sources) == len(PICTURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in written().read_text() and "@import" not in written().read_text()


def test_headings_tables_and_pictures_can_be_read_aloud(written):
    text = written().read_text()
    page = Outline(text)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(len(attributes["alt"]) > 20 for attributes in page.all("img"))
    assert all("scope" in attributes for attributes in page.all("th"))
    regions = [attributes for attributes in page.all("div") if attributes.get("class") == "wide"]
    assert len(regions) == len(page.all("table"))
    assert len({attributes["aria-label"] for attributes in regions}) == len(regions)
    assert all(attributes["tabindex"] == "0" for attributes in regions)
    stops = [attributes for _, attributes in page.tags if "tabindex" in attributes]
    assert len(stops) == len(regions) + 3  # with the pictures that are broad
    assert all(attributes["role"] == "region" for attributes in stops)
    assert len({attributes["aria-label"] for attributes in stops}) == len(stops)
    assert ("html", {"lang": "en"}) in page.tags


def test_text_of_the_data_is_escaped(written, evaluated):
    rows = [evaluated[0]["per_patient"][0] | {"subject": "<script>alert(1)</script>"}]
    assert "<script>" not in written(per_patient=rows).read_text()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_the_window(written, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(written().as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in asked if not url.startswith("data:")] == [page.url]
    assert said == []
    assert page.locator("img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    page.locator("summary", has_text="Each subject").click()
    assert page.get_by_role("region", name="Each subject").is_visible()
    page.locator("summary", has_text="Each subject").click()
    page.pdf(path=written().with_suffix(".pdf"))  # to look at
    page.emulate_media(media="print")
    cut = """regions => regions.filter((one) => getComputedStyle(one).overflowX !== "visible"
        || one.scrollWidth > one.clientWidth).map((one) => one.ariaLabel)"""
    for paper in (1047, 718):  # px of A4 within its margins
        page.set_viewport_size({"width": paper, "height": 740})
        assert page.locator(".wide, .broad").evaluate_all(cut) == []
    fold = page.locator("details", has_text="Each subject").first
    assert fold.evaluate("fold => getComputedStyle(fold, '::details-content').contentVisibility") == "visible"
    page.close()
