"""`blastwatch score`, `predict` and `serve` as far as they go without a server."""

import json
import os
from pathlib import Path

import pandas as pd
import PIL
import pytest
from click import BadParameter
from click.testing import CliRunner
from PIL import Image

from blastwatch import DISCLAIMER, __version__
from blastwatch.addresses import bound
from blastwatch.errors import (
    AliasNotSet,
    BlastwatchError,
    DataError,
    RegistryError,
    ServiceError,
    ServiceUnreachable,
    SettingsError,
    UsageError,
)
from serving.bento import build_bento, pinned
from serving.binding import SETTLED_VARIABLE
from serving.commands import _line, bento, predict, score, serve
from serving.kept_scores import KeptScores
from serving.live import HANDOVER_VARIABLE, hand_over
from tests.service_packages import write_cell


@pytest.fixture
def environment(monkeypatch, settings, served, tmp_path):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    monkeypatch.setenv(HANDOVER_VARIABLE, str(hand_over(served, tmp_path / "live.json")))


def refused_some(command, *arguments):
    """Standard output of a command that ends with 1 since some images were refused."""
    result = CliRunner().invoke(command, [str(word) for word in arguments], standalone_mode=False)
    assert isinstance(result.exception, BlastwatchError)
    return result.stdout, str(result.exception)


def run(command, *arguments):
    """Standard output; errors are raised as the entry point gets them."""
    result = CliRunner().invoke(command, [str(word) for word in arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def test_score_writes_one_row_an_image_and_names_the_refused(environment, tmp_path):
    folder = tmp_path / "cells"
    (folder / "deep").mkdir(parents=True)
    write_cell(folder / "a.bmp", 1)
    write_cell(folder / "deep" / "b.png", 2)
    (folder / "broken.bmp").write_bytes(b"BM no image")
    (folder / "notes.txt").write_text("not looked at")
    (folder / "deep" / "c.gif").write_bytes(b"")
    printed, error = refused_some(score, folder, "--out", tmp_path / "new" / "out.parquet", "--json")
    said = json.loads(printed)
    assert error == f"1 of 3 images have no row in {tmp_path / 'new' / 'out.parquet'}."
    rows = pd.read_parquet(tmp_path / "new" / "out.parquet")
    named = ["path", "probability", "label", "decision", "model_version", "reasons", "seen_in_training"]
    assert list(rows.columns) == named and rows["seen_in_training"].tolist() == [False, False]
    assert rows["path"].tolist() == ["a.bmp", "deep/b.png"]
    assert set(rows["model_version"]) == {"7"}
    assert rows["probability"].between(0, 1).all()
    assert (said["images"], [row["path"] for row in said["refused"]]) == (2, ["broken.bmp"])
    assert (said["synthetic"], said["disclaimer"], said["skipped"]) == (True, DISCLAIMER, {"files ending in '.gif'": 1})


def test_score_says_why_a_cell_is_referred_and_what_its_model_is_not(environment, tmp_path):
    (tmp_path / "cells").mkdir()
    for seed in range(3):
        write_cell(tmp_path / "cells" / f"{seed}.bmp", seed)
    Image.new("RGB", (450, 450), (200, 180, 210)).save(tmp_path / "cells" / "field.png")
    result = CliRunner().invoke(score, [str(tmp_path / "cells"), "--out", str(tmp_path / "out.parquet")])
    assert result.exit_code == 0, result.output
    assert f"It was trained on synthetic cells. {DISCLAIMER}" in result.stderr
    rows = pd.read_parquet(tmp_path / "out.parquet")
    assert ((rows["reasons"] != "") == (rows["decision"] == "refer")).all()
    (field,) = rows["reasons"][rows["path"] == "field.png"]
    assert "not a single segmented cell" in field and "; " in field


def test_score_finds_out_at_the_start_whether_it_can_write(environment, tmp_path, monkeypatch):
    write_cell(tmp_path / "a.bmp")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("serving.live.find", lambda *_: pytest.fail("a version was fetched"))
    for out in (tmp_path / "file" / "out.parquet", Path("/proc/out.parquet")):
        with pytest.raises(BadParameter, match="Expected a file that can be written but got"):
            run(score, tmp_path, "--out", out)


def test_score_that_fails_at_its_end_leaves_the_earlier_file(environment, tmp_path, monkeypatch):
    write_cell(tmp_path / "a.bmp")
    out = tmp_path / "out" / "scores.parquet"
    run(score, tmp_path, "--out", out)
    before = out.read_bytes()

    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BlastwatchError, match="cannot be written to .*: No space left on device"):
        run(score, tmp_path, "--out", out)
    assert out.read_bytes() == before and {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}.part"}


def test_scores_are_read_by_nobody_else_where_files_are_made_so(environment, tmp_path):
    write_cell(tmp_path / "a.bmp")
    out = tmp_path / "out.parquet"
    before = os.umask(0o077)
    try:
        run(score, tmp_path, "--out", out)
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o600
    out.chmod(0o640)
    run(score, tmp_path, "--out", out)
    assert out.stat().st_mode & 0o777 == 0o640


def test_score_that_was_stopped_goes_on(environment, tmp_path, monkeypatch):
    for seed in range(3):
        write_cell(tmp_path / f"{seed}.bmp", seed)
    monkeypatch.setenv("BLASTWATCH_MAX_BATCH_SIZE", "1")
    call, real = [str(tmp_path), "--out", str(tmp_path / "out.parquet")], KeptScores.add

    def stopped(kept, *batch):
        real(kept, *batch)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(KeptScores, "add", stopped)
        assert "Aborted" in CliRunner().invoke(score, call).stderr
    assert not (tmp_path / "out.parquet").exists()
    first, _ = (tmp_path / "out.parquet.part").read_text().splitlines()
    assert json.loads(first).items() >= {"program": __version__, "decoder": f"pillow {PIL.__version__}"}.items()
    result = CliRunner().invoke(score, call)
    assert result.exit_code == 0 and "Going on with 1 images that were scored before" in result.stderr
    assert len(pd.read_parquet(tmp_path / "out.parquet")) == 3 and not (tmp_path / "out.parquet.part").exists()
    run(score, *call)  # and again, with nothing left over


def test_score_of_a_folder_without_images(environment, tmp_path):
    with pytest.raises(DataError, match="Expected images"):
        run(score, tmp_path, "--out", tmp_path / "out.parquet")
    with pytest.raises(DataError, match="Expected a folder of images"):
        run(score, tmp_path / "none", "--out", tmp_path / "out.parquet")


def test_score_where_every_image_is_refused(environment, tmp_path):
    (tmp_path / "x.bmp").write_bytes(b"")
    with pytest.raises(DataError, match="None of the 1 images"):
        run(score, tmp_path, "--out", tmp_path / "out.parquet")


def test_score_writes_parquet_and_nothing_else(environment, tmp_path):
    write_cell(tmp_path / "a.bmp")
    with pytest.raises(BadParameter, match=r"ends in \.parquet but got scores\.csv"):
        run(score, tmp_path, "--out", tmp_path / "scores.csv")


def test_predict_without_a_service(tmp_path, free_port):
    cell = write_cell(tmp_path / "a.bmp")
    with pytest.raises(ServiceUnreachable, match="blastwatch serve"):
        run(predict, cell, "--url", f"http://127.0.0.1:{free_port()}")


@pytest.fixture
def told(monkeypatch):
    """What `predict` says to the service, which answers nothing."""
    seen = []

    def predict_many(_self, images, **named):
        seen.append(named)
        return iter([ServiceError("no", status=422) for _ in images])

    monkeypatch.setattr("serving.client.Client.predict_many", predict_many)
    return seen


@pytest.mark.parametrize("text", ["Müller 4711\n", "\ufeffMüller 4711\r\n"])
def test_predict_names_the_patient_whose_key_is_in_a_file(told, tmp_path, text):
    (tmp_path / "key").write_text(text, encoding="utf-8", newline="")
    refused_some(predict, "a.bmp", "--patient-file", tmp_path / "key")
    CliRunner().invoke(predict, ["a.bmp", "--patient-file", "-"], input=text)
    refused_some(predict, "a.bmp")
    assert told == [{"patient": "Müller 4711"}, {"patient": "Müller 4711"}, {"patient": ""}]


@pytest.mark.parametrize(("content", "words"), [
    (b"4711\n4712\n", "Expected `patient` to be one line"), (b"\n", "the file is empty"), (b"\xff", "can't decode"),
])  # fmt: skip
def test_predict_takes_one_key_of_a_patient(told, tmp_path, content, words):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(BadParameter, match=words):
        run(predict, "a.bmp", "--patient-file", tmp_path / "key")
    assert told == []


def answer(decision, *reasons, version="7", synthetic=True):
    """One of the service, as far as `predict` shows it."""
    model = {"version": version, "synthetic": synthetic}
    return {"label": "hem", "probability": 0.467, "decision": decision, "reasons": list(reasons), "model": model}


def test_a_probability_near_one_is_not_told_as_one():
    assert "of a blast 0.99996, more" in _line(Path("a.bmp"), answer("all") | {"probability": 0.99996})


@pytest.fixture
def answered(monkeypatch):
    """Gives what the service says to images, in their order; `asked` are the images."""
    asked = []

    def give(*answers):
        def predict_many(_self, images, **_named):
            for path, said in zip(images, answers, strict=True):
                asked.append(path.name)
                yield said

        monkeypatch.setattr("serving.client.Client.predict_many", predict_many)
        return asked

    return give


def test_predict_says_why_and_by_which_models_once_each(answered):
    uncertain, odd = "too uncertain: between 0.451 and 0.713", "the cell is blurred"
    newer = answer("hem", version="8", synthetic=False) | {"id": "0af3", "seen_in_training": True}
    answered(answer("refer", uncertain), answer("refer", odd, uncertain), answer("all"), newer)
    result = CliRunner().invoke(predict, ["a.bmp", "b.bmp", "c.bmp", "d.bmp"])
    assert result.stdout.splitlines() == [
        f"a.bmp  refer ({uncertain})  probability of a blast 0.467, more probable: hem",
        f"b.bmp  refer ({odd}; {uncertain})  probability of a blast 0.467, more probable: hem",
        "c.bmp  all  probability of a blast 0.467, more probable: hem",
        "d.bmp  hem  probability of a blast 0.467, more probable: hem; the model learned from this very image  id 0af3",
    ]
    assert result.stderr.splitlines() == [
        f"Model version 7, trained on synthetic cells. {DISCLAIMER}",
        f"Model version 8, trained on real cells. {DISCLAIMER}",
    ]


@pytest.mark.parametrize(("status", "key", "words"), [
    (401, "", "none was sent"), (401, "bw_x", "is not the one it needs"), (403, "", "none was sent"),
    (403, "bw_x", "may not `predict`, and what a key may do is never changed"),
])  # fmt: skip
def test_predict_ends_with_the_first_refusal_of_the_caller(answered, monkeypatch, status, key, words):
    """Each further image would get the same answer."""
    monkeypatch.setenv("BLASTWATCH_API_KEY", key)
    asked = answered(answer("hem"), ServiceError("An API key is needed.", status=status), answer("hem"))
    result = CliRunner().invoke(predict, ["a.bmp", "b.bmp", "c.bmp", "--json"], standalone_mode=False)
    assert asked == ["a.bmp", "b.bmp"]
    assert isinstance(result.exception, ServiceError) and result.exception.status == status
    assert str(result.exception).startswith("Stopped at b.bmp: An API key is needed.")
    assert words in str(result.exception) and "set BLASTWATCH_API_KEY" in str(result.exception)
    assert [row.get("error") for row in json.loads(result.stdout)] == [None, "An API key is needed."]


def test_predict_tells_what_was_answered_before_the_service_was_gone(monkeypatch):
    def predict_many(_self, _images, **_named):
        yield answer("hem")
        yield ServiceError("The image is too small.", status=422)
        raise ServiceUnreachable("No prediction service answers.")

    monkeypatch.setattr("serving.client.Client.predict_many", predict_many)
    result = CliRunner().invoke(predict, ["a.bmp", "b.bmp", "c.bmp", "d.bmp", "--json"], standalone_mode=False)
    assert isinstance(result.exception, ServiceUnreachable)
    assert str(result.exception) == "Stopped at c.bmp: No prediction service answers."
    rows = json.loads(result.stdout)
    assert [row["path"] for row in rows] == ["a.bmp", "b.bmp", "c.bmp"]
    assert [row.get("error") for row in rows] == [None, "The image is too small.", "No prediction service answers."]


def test_predict_names_each_file_in_one_line_and_in_utf8(answered, tmp_path):
    names = ["caf\udce9.bmp", "a\nb.bmp", "\x1b[31mc.bmp"]
    answered(*(answer("hem") for _ in names), ServiceError("The image is too small.", status=422))
    result = CliRunner().invoke(predict, [*names, "d\x07.bmp"])
    shown = ["caf\\xe9.bmp", "a\\nb.bmp", "\\x1b[31mc.bmp"]
    assert [line.split("  ")[0] for line in result.stdout.splitlines()] == shown
    assert "d\\x07.bmp: The image is too small." in result.stderr
    answered(*(answer("hem") for _ in names))
    result = CliRunner().invoke(predict, [*names, "--json"])
    assert [row["path"] for row in json.loads(result.stdout_bytes.decode())] == ["caf\\xe9.bmp", *names[1:]]


def test_predict_goes_on_after_an_image_that_is_refused(answered):
    asked = answered(ServiceError("The image is too small.", status=422), answer("hem"))
    _, error = refused_some(predict, "a.bmp", "b.bmp")
    assert error == "1 of 2 images got no answer." and len(asked) == 2


def test_predict_of_missing_files_only(tmp_path):
    with pytest.raises(BlastwatchError, match="1 of 1 images got no answer"):
        run(predict, tmp_path / "none.bmp")


def test_serve_without_a_champion_does_not_start(monkeypatch, settings):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("a server was started"))
    with pytest.raises(AliasNotSet, match="registry promote"):
        run(serve)


@pytest.mark.parametrize("words", [
    (serve,), (score, ".", "--out", "x.parquet"), (score, ".", "--out", "x.parquet", "--ref", "1"),
    (bento, "--out", "bento"), (bento, "--out", "bento", "--ref", "1"),
], ids=str)  # fmt: skip
def test_in_a_home_without_a_registry_none_is_made(tmp_path, monkeypatch, words):
    write_cell(tmp_path / "a.bmp")
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("os.execve", lambda *_: pytest.fail("a server was started"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match=r"There is no registry in .*/home/mlflow\.db \(BLASTWATCH_HOME\)"):
        run(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bmp"]


def test_a_salt_is_made_once_it_is_known_that_a_version_is_there(environment, monkeypatch, tmp_path):
    """In a home that was mistyped it would lie for ever and look like the real one."""
    monkeypatch.setenv("BLASTWATCH_PATIENT_SALT", str(salt := tmp_path / "mistyped" / "patients" / "salt"))
    monkeypatch.setattr("os.execve", lambda *_: None)
    with monkeypatch.context() as wrong:
        wrong.setenv("BLASTWATCH_HOME", str(tmp_path / "mistyped"))
        wrong.delenv(HANDOVER_VARIABLE)
        with pytest.raises(RegistryError, match="There is no registry in"):
            run(serve)
    assert not salt.parent.exists()
    run(serve)
    assert len(salt.read_bytes()) == 32
    salt.write_bytes(b"short")
    with pytest.raises(UsageError, match="where BLASTWATCH_PATIENT_SALT names it"):
        run(serve)


def test_serve_leaves_a_service_on_the_same_port_alone(environment, monkeypatch):
    """BentoML would empty the folder that the metrics of the running one lie in."""
    monkeypatch.setattr("serving.live.settle", lambda *_: pytest.fail("a version was looked for"))
    with bound("127.0.0.1", 0, "") as taken, pytest.raises(BlastwatchError, match="set BLASTWATCH_PORT"):
        run(serve, "--port", taken.getsockname()[1])


def test_serve_becomes_the_server_of_the_version_it_found(environment, monkeypatch, settings):
    started = []
    # Two services on one folder would empty each other's metrics.
    monkeypatch.setenv("BENTOML_HOME", str(settings.home / "of another service"))
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    run(serve, "--port", "3999", "--workers", "2")
    _, command, variables = started[0]
    assert command[-4:] == ["--host", "127.0.0.1", "--port", "3999"]
    assert variables["BLASTWATCH_WORKERS"] == "2"
    assert variables["BENTOML_DO_NOT_TRACK"] == "True"
    assert variables[SETTLED_VARIABLE] == "1"
    assert variables["BENTOML_HOME"] == str(settings.home / "bentoml" / "3999")


@pytest.mark.parametrize(("host", "bound", "shown"), [
    ("localhost", "127.0.0.1", "127.0.0.1"), ("::1", "::1", "[::1]"),
])  # fmt: skip
def test_serve_binds_an_address_and_says_where_it_is_asked(environment, monkeypatch, host, bound, shown):
    """BentoML takes no name."""
    started = []
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr("blastwatch.addresses.check_free", lambda *_: None)
    said = CliRunner().invoke(serve, ["--host", host, "--port", "3999"], standalone_mode=False)
    assert f"Page: http://{shown}:3999/  Description: http://{shown}:3999/docs" in said.stderr
    assert started[0][1][-4:-2] == ["--host", bound]


def test_serve_refuses_a_name_before_anything_is_looked_for(environment, monkeypatch):
    monkeypatch.setattr("serving.live.settle", lambda *_: pytest.fail("a version was looked for"))
    with pytest.raises(SettingsError, match="BLASTWATCH_HOST='cells.lab' cannot be used: an IP address is needed"):
        run(serve, "--host", "cells.lab")


def test_a_bento_is_built_into_a_new_folder_only(served, tmp_path):
    with pytest.raises(UsageError, match="is there already"):
        build_bento(served, tmp_path)


def test_pinned_requirements_are_complete_and_name_no_index():
    lines = pinned(("bentoml",))
    names = {line.split("==")[0] for line in lines}
    assert {"bentoml", "starlette", "uvicorn", "python-multipart"} <= names
    assert "mlflow" not in names
    assert all(line.count("==") == 1 and "/" not in line for line in lines)
