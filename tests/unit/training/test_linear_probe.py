"""The last layer fitted at once: the solution is the one that others find, and no patient chooses its own strength."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from blastwatch.errors import DataError, UsageError
from blastwatch.images import Preprocessing, crop_cell, decode, normalise
from blastwatch.manifest import read_cells, read_json, read_split
from blastwatch.network import build
from blastwatch.settings import load
from monitoring.shifts import shift
from training.calibration import temperate_loss
from training.distributed import World
from training.evaluation import read_trained
from training.linear_probe import (
    STRENGTHS,
    Known,
    LinearProbe,
    Restraint,
    choose,
    fit,
    fits,
    fuse,
    out_of_fold,
)
from training.loop import TrainingDiverged, predict_logits
from training.nuisances import Moves
from training.pack import open_pack
from training.parameters import ImageParameters, Parameters, TrainParameters
from training.sampling import balanced_weights, side_of
from training.training_run import FACTS, run_training
from training.weights import first_network

STAGES = "efficientnet_lite0_stages"
BOTH = "efficientnet_lite0_lite2_stages"
PROBE = TrainParameters(architecture=STAGES, weights="imagenet", fit="logistic", precision="fp32")
ALONE = World(0, 1, torch.device("cpu"))


def drawn(*, cells=240, width=6, patients=12, seed=0):
    """Embeddings that say something of the label, cells of every patient, and weights of their own."""
    random = np.random.default_rng(seed)
    patient = np.arange(cells) % patients
    labels = patient % 2
    embeddings = random.normal(size=(cells, width)) * np.linspace(0.5, 4, width) + 3
    embeddings[:, 0] += labels
    weights = random.uniform(0.5, 1.5, cells)
    weights = (weights / weights.mean()).astype(np.float32)
    return Known(embeddings.astype(np.float32), labels, weights, np.array([f"P{number}" for number in patient]))


def held_out_losses(known):
    return {
        strength: temperate_loss(logits, known.labels, known.weights)
        for strength, logits in out_of_fold(known, seed=1).items()
    }


def opened(cohort):
    """The pack, and the cells of the training and of the validation side."""
    packed = open_pack(cohort / "pack", read_cells(cohort / "cells"))
    rows = read_split(cohort / "cells", cohort / "split")
    return packed, *(side_of(rows, packed, side, "subject") for side in ("train", "validation"))


@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_the_solution_is_the_one_that_scipy_finds(strength):
    known = drawn()
    embeddings = known.embeddings.astype(np.float64)
    standard = (embeddings - embeddings.mean(axis=0)) / embeddings.std(axis=0)
    sign = np.where(known.labels == 1, 1.0, -1.0)

    def objective(values):
        losses = np.logaddexp(0, -sign * (standard @ values[:-1] + values[-1]))
        return (known.weights * losses).sum() + (values[:-1] ** 2).sum() / (2 * strength)

    expected = minimize(objective, np.zeros(known.embeddings.shape[1] + 1), method="BFGS", options={"gtol": 1e-6}).x
    found = fit(known, strength)
    np.testing.assert_allclose(found.weights, expected[:-1], atol=2e-3 * np.abs(expected).max())
    assert found.bias == pytest.approx(expected[-1], abs=5e-3)
    np.testing.assert_allclose(found.log_odds(known.embeddings), standard @ found.weights + found.bias, atol=1e-5)


def test_a_number_that_never_changes_is_no_trouble():
    known = drawn()
    known.embeddings[:, 2] = 5.0
    found = fit(known, 0.1)
    assert np.isfinite(found.log_odds(known.embeddings)).all() and abs(found.weights[2]) < 1e-9


def test_what_is_known_of_a_patient_alone_does_not_help_it():
    """Embeddings that name the patient and say nothing of the label: cells of a patient who is held out stay unknown,
    while a fit that saw other cells of the same patient would be sure of them."""
    random = np.random.default_rng(3)
    patients, cells = 12, 240
    patient = np.arange(cells) % patients
    names = 4 * np.eye(patients)[patient] + 0.1 * random.normal(size=(cells, patients))
    known = Known(
        names.astype(np.float32), patient % 2, np.ones(cells, np.float32), np.array([f"P{n}" for n in patient])
    )
    held_out = held_out_losses(known)
    assert min(held_out.values()) > 0.85 * np.log(2)
    by_cell = held_out_losses(replace(known, patients=np.arange(cells).astype(str)))
    assert min(by_cell.values()) < 0.2 * np.log(2)


def test_the_strength_follows_what_there_is_to_learn():
    """A clear difference between the classes bears weak regularisation, noise does not."""
    clear = drawn(width=4, seed=1)
    clear.embeddings[:, 0] += 8 * clear.labels
    assert held_out_losses(clear)[STRENGTHS[-1]] < held_out_losses(clear)[STRENGTHS[0]]
    losses = held_out_losses(drawn(width=4))
    assert list(losses) == list(STRENGTHS) and all(0 < loss < 1.1 * np.log(2) for loss in losses.values())


def test_one_patient_of_a_label_is_too_few():
    known = drawn(patients=2)
    with pytest.raises(DataError, match="at least two patients of each label"):
        held_out_losses(known)


def test_a_training_fits_the_last_layer_and_leaves_the_rest(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    places = {name: cohort / name for name in ("cells", "split", "pack")}
    for out in ("one", "other"):
        run_training(Parameters(image=ImageParameters(size=32), train=PROBE), load(), **places, out=tmp_path / out)
    facts = read_json(tmp_path / "one" / FACTS, made_by="a test")
    assert facts["parameters"]["fit"] == "logistic" and facts["initial_weights"]["source"] == "imagenet"
    assert facts["pack_digest"] == open_pack(cohort / "pack", read_cells(cohort / "cells")).digest
    assert facts["image"] == {"crop": 320, "size": 32} and facts["precision"] == "fp32"
    network = read_trained(tmp_path / "one").network
    again = read_trained(tmp_path / "other").network
    first = first_network(STAGES, "imagenet", "", seed=1)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        own = name.startswith(("classifier.", "standardise."))
        assert torch.equal(tensor, first.state_dict()[name]) != own, name
    packed, cells, _ = opened(cohort)
    logits = predict_logits(network, packed, cells.rows)
    assert (logits.argmax(1) == cells.labels).mean() > 0.9  # the cells that it was fitted on


def with_moves(known, *, seed=7, spread=0.1):
    """Cameras that move all cells far along two directions, and each a little along all."""
    random = np.random.default_rng(seed)
    width = known.embeddings.shape[1]
    along = random.normal(size=(2, width)) * known.embeddings.std(axis=0)
    far = random.normal(size=(len(known.labels), 2)) @ (5 * along)
    differences = far + spread * random.normal(size=far.shape)
    return replace(known, moves=Moves(differences.astype(np.float32), known.patients)), along


def test_a_pack_of_another_size_than_the_parameters_say_is_not_trained_on(cohort, tmp_path):
    """MLflow, and the package after it, would tell of images that nobody used."""
    places = {name: cohort / name for name in ("cells", "split", "pack")}
    settings = load({"BLASTWATCH_HOME": str(tmp_path / "home")})
    with pytest.raises(DataError, match=r"image\.crop=320 and image\.size=224 in .* but they have 320 and 32"):
        run_training(Parameters(train=PROBE), settings, **places, out=tmp_path / "out")
    assert not (tmp_path / "home").exists()


def test_what_moves_along_a_nuisance_moves_no_answer():
    """The solution is the best of those that have no weight there, as a solver under constraints finds it."""
    known, along = with_moves(drawn(), spread=0.0)
    found = fit(known, 1e-2, kept=Restraint(nuisances=2))
    before = found.log_odds(known.embeddings)
    np.testing.assert_allclose(found.log_odds(known.embeddings + 10 * along[0] - 3 * along[1]), before, atol=1e-3)
    assert np.abs(fit(known, 1e-2).log_odds(known.embeddings + 10 * along[0]) - before).max() > 0.1
    standard = (known.embeddings - found.mean) / found.spread
    sign = np.where(known.labels == 1, 1.0, -1.0)

    def objective(values):
        losses = np.logaddexp(0, -sign * (standard @ values[:-1] + values[-1]))
        return (known.weights * losses).sum() + (values[:-1] ** 2).sum() / (2 * 1e-2)

    none = {"type": "eq", "fun": lambda values: (along / found.spread) @ values[:-1]}
    start = np.zeros(standard.shape[1] + 1)
    expected = minimize(objective, start, method="SLSQP", constraints=[none], options={"ftol": 1e-12, "maxiter": 500})
    assert expected.success
    np.testing.assert_allclose(found.weights, expected.x[:-1], atol=2e-3 * np.abs(expected.x).max())


def test_fits_at_all_strengths_are_the_fits_at_each():
    known, _ = with_moves(drawn())
    for strength, fitted in fits(known, STRENGTHS, kept=Restraint(nuisances=2)).items():
        alone = fit(known, strength, kept=Restraint(nuisances=2))
        np.testing.assert_array_equal(fitted.weights, alone.weights)
        assert fitted.bias == alone.bias


def test_who_is_held_out_moves_nothing():
    """What a fit is kept from is found in cells of the patients it is fitted to."""
    known, _ = with_moves(drawn())
    part = known.part(np.flatnonzero(known.patients != "P3"))
    assert "P3" not in part.moves.patients and len(part.moves.patients) == len(part.labels)
    expected = cross_val_like(known)
    np.testing.assert_allclose(
        out_of_fold(known, seed=1, kept=Restraint(nuisances=2))[1e-2][:, 1], expected / 2, atol=1e-9
    )


def cross_val_like(known):
    odds = np.empty(len(known.labels))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=1)
    for fitted_on, held in folds.split(known.embeddings, known.labels, known.patients):
        odds[held] = fit(known.part(fitted_on), 1e-2, kept=Restraint(nuisances=2)).log_odds(known.embeddings[held])
    return odds


@pytest.mark.parametrize("kept", [Restraint(), Restraint(nuisances=2, shrink_patients=30)])
def test_what_is_the_same_for_every_cell_but_rounding_is_not_read(kept):
    """A channel that is full everywhere differs by the last bits of a sum, and another engine's are others."""
    known, _ = with_moves(drawn())
    noise = np.random.default_rng(5).choice([-1, 0, 1], len(known.labels)) + 4 * (known.labels == 1)
    full = np.float32(0.162) + (noise * np.spacing(np.float32(0.162))).astype(np.float32)
    beside = np.column_stack([known.embeddings, full])
    moves = np.column_stack([known.moves.differences, np.full(len(known.moves.patients), 1e-8, np.float32)])
    wide = replace(known, embeddings=beside, moves=replace(known.moves, differences=moves))
    found, plain = fit(wide, 1e-1, kept=kept), fit(known, 1e-1, kept=kept)
    assert found.weights[-1] == 0
    np.testing.assert_allclose(found.weights[:-1], plain.weights, rtol=1e-3, atol=1e-5)
    other = beside + np.eye(7, dtype=np.float32)[-1] * 1e-6
    np.testing.assert_array_equal(found.log_odds(other), found.log_odds(beside))


def test_nuisances_are_drawn_from_the_seed_and_change_the_last_layer_alone(cohort):
    packed, *sides = opened(cohort)

    def probed(**knobs):
        network = first_network(STAGES, "imagenet", "", seed=1)
        probe = LinearProbe(network, replace(PROBE, **knobs), packed, *sides, ALONE)
        state = probe.run(lambda row: None).best_state
        assert probe.out_of_fold.shape == (len(sides[0].rows), 2)
        return state

    plain, once, again = probed(), probed(nuisances=8), probed(nuisances=8)
    for name, tensor in once.items():
        assert torch.equal(tensor, again[name]), name
        if name.startswith("standardise."):
            assert torch.equal(tensor, plain[name]), name
        else:
            assert torch.equal(tensor, plain[name]) != name.startswith("classifier."), name


def test_a_camera_moves_the_answers_of_a_layer_that_does_not_read_it_less(cohort):
    """Cells that nobody fitted to, under a camera's white balance and out of focus."""
    packed, *sides = opened(cohort)
    rows, root = read_split(cohort / "cells", cohort / "split"), read_cells(cohort / "cells").root
    tested = [root / path for path in rows.loc[rows["side"] == "test", "path"]]
    images = [crop_cell(decode(path.read_bytes()), Preprocessing(crop=320, size=320)) for path in tested]
    random = np.random.default_rng(0)

    def seen(camera):
        shown = [shift(image, *camera, random=random) for image in images]
        return normalise(np.stack([crop_cell(image, packed.preprocessing) for image in shown]), packed.preprocessing)

    def moved(nuisances, *cameras):
        network = first_network(STAGES, "imagenet", "", seed=1)
        probe = LinearProbe(network, replace(PROBE, nuisances=nuisances), packed, *sides, ALONE)
        network.load_state_dict(probe.run(lambda row: None).best_state)
        with torch.inference_mode():
            logits = [network(torch.from_numpy(seen(camera))) for camera in (("stain", 0.0), *cameras)]
        plain, *others = [(part[:, 1] - part[:, 0]).numpy() for part in logits]
        return np.mean([np.abs(other - plain).mean() / plain.std() for other in others])

    cameras = (("white_balance", 0.7), ("defocus", 0.7))
    assert moved(40, *cameras) < 0.5 * moved(0, *cameras)


def test_nuisances_need_the_last_layer_alone():
    with pytest.raises(UsageError, match=r"train\.nuisances=60 is read by train\.fit=logistic alone"):
        TrainParameters(nuisances=60)


def test_as_many_nuisances_as_numbers_leave_nothing_to_read():
    known, _ = with_moves(drawn())
    with pytest.raises(UsageError, match=r"train\.nuisances to be fewer than the 6 numbers .* but got 6"):
        fit(known, 1e-2, kept=Restraint(nuisances=6))


def test_scores_fused_are_the_mean_of_calibrated_log_odds():
    """Of two networks one names patients too, so the temperatures differ; scipy finds them."""
    one, other = drawn(width=4, seed=1), drawn(width=6, seed=2)
    other.embeddings[:, 1:] += np.random.default_rng(3).normal(size=(12, 5))[np.arange(240) % 12]
    both = replace(one, embeddings=np.concatenate([one.embeddings, other.embeddings], axis=1))
    parts = both.beside((4, 6))
    for part, own in zip(parts, (one, other), strict=True):
        np.testing.assert_array_equal(part.embeddings, own.embeddings)
    members = [choose(part, seed=1) for part in parts]
    fitted, held_out = fuse(members, both)

    def odds(logits):
        return logits[:, 1] - logits[:, 0]

    def temperature(member):
        sign = np.where(both.labels == 1, -1, 1)
        return minimize_scalar(
            lambda log: (both.weights * np.logaddexp(0, sign * odds(member.held_out) / np.exp(log))).sum(),
            bounds=(-5, 5), method="bounded",
        ).x  # fmt: skip

    warm = [np.exp(temperature(member)) for member in members]
    expected = [m.fitted.log_odds(p.embeddings) / t for m, p, t in zip(members, parts, warm, strict=True)]
    np.testing.assert_allclose(fitted.log_odds(both.embeddings), np.mean(expected, axis=0), rtol=1e-3, atol=1e-3)
    known = [odds(member.held_out) / t for member, t in zip(members, warm, strict=True)]
    np.testing.assert_allclose(odds(held_out), np.mean(known, axis=0), rtol=1e-3, atol=1e-3)


def test_a_network_whose_scores_are_fused_says_the_mean_of_both(cohort):
    packed, *sides = opened(cohort)
    network = first_network(BOTH, "imagenet", "", seed=1)
    probe = LinearProbe(network, replace(PROBE, architecture=BOTH, fusion="scores"), packed, *sides, ALONE)
    done = probe.run(lambda row: None)
    assert (probe.out_of_fold.argmax(1) == sides[0].labels).mean() > 0.6
    row = done.curves[0]
    assert {"strength_efficientnet_lite0", "strength_efficientnet_lite2", "held_out_loss"} <= set(row)
    embedding = []
    head = network.get_submodule("classifier")
    head.register_forward_pre_hook(lambda _module, inputs: embedding.append(inputs[0].numpy()))
    logits = predict_logits(network, packed, sides[0].rows[:16])
    weights, first = head.weight.numpy(), network.widths[0]
    read = np.concatenate(embedding)
    own = [read[:, part] @ weights[:, part].T for part in (slice(None, first), slice(first, None))]
    np.testing.assert_allclose(logits, own[0] + own[1] + head.bias.numpy(), rtol=1e-3, atol=1e-3)
    assert all(np.abs(part).max() > 0.01 for part in own)


@pytest.mark.parametrize("knobs", [{}, {"architecture": BOTH, "fit": "gradient"}])
def test_scores_of_one_network_or_of_steps_are_not_fused(knobs):
    with pytest.raises(UsageError, match=r"lite2_stages, efficientnet_\w+_early and train\.fit=logistic but got"):
        replace(PROBE, fusion="scores", **knobs)


def test_what_is_no_number_stops_it(cohort):
    packed, *sides = opened(cohort)
    network = build("resnet18")
    network.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"conv1\.weight holds what is no number.*train\.weights"):
        LinearProbe(network, PROBE, packed, *sides, ALONE).run(lambda row: None)


def test_several_processes_are_refused(cohort):
    packed, *sides = opened(cohort)
    with pytest.raises(UsageError, match=r"one process for train\.fit=logistic but got 2"):
        LinearProbe(build("resnet18"), PROBE, packed, *sides, World(0, 2, torch.device("cpu")))


def test_a_network_that_knows_nothing_is_refused():
    with pytest.raises(UsageError, match=r"train\.weights to imagenet or file"):
        TrainParameters(fit="logistic")


def test_who_is_held_out_makes_no_fit_lean_towards_the_other_label():
    """Where nothing tells the labels apart a fit knows what each weighs, and no more: what it says of whom it had not
    seen must not depend on how many of their label are held out with them."""
    random = np.random.default_rng(1)
    patients = np.repeat([f"P{number:02}" for number in range(11)], [90, 12, 25, 40, 12, 70, 20, 15, 30, 60, 10])
    labels = (patients > "P04").astype(np.int64)
    rows = pd.DataFrame({"label": labels, "subject": patients, "path": patients})
    embeddings = random.normal(size=(len(labels), 4)).astype(np.float32)
    known = Known(embeddings, labels, balanced_weights(rows, "subject"), patients)
    odds = np.diff(out_of_fold(known, seed=1)[STRENGTHS[0]])[:, 0]
    assert [odds[labels == label].mean() for label in (0, 1)] == pytest.approx([0, 0], abs=0.01)


def test_a_label_weighs_as_much_of_a_part_as_of_all():
    known = drawn()
    kept = np.flatnonzero(~((known.patients == "P1") | (known.patients == "P3")))
    part = known.part(kept)
    assert part.weights.mean() == pytest.approx(1)
    for label in (0, 1):
        shares = [each.weights[each.labels == label].sum() / each.weights.sum() for each in (known, part)]
        assert shares[0] == pytest.approx(shares[1])
        within = known.weights[kept][part.labels == label] / part.weights[part.labels == label]
        assert np.ptp(within) < 1e-5  # among themselves they weigh as before


@pytest.mark.parametrize(("asked", "parts"), [({}, 5), ({"parts": 3}, 3), ({"parts": 10}, 6)])
def test_training_patients_are_answered_by_fits_that_had_not_seen_them(asked, parts):
    """As scikit-learn's own cross-validation answers them, in no more parts than a label has patients. What a label
    weighs in all is given to it by scikit-learn in each part."""
    known = drawn()
    known = replace(known, weights=np.ones_like(known.weights))
    made = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=500, class_weight="balanced"))
    expected = cross_val_predict(
        made, known.embeddings.astype(np.float64), known.labels, groups=known.patients, method="decision_function",
        cv=StratifiedGroupKFold(parts, shuffle=True, random_state=1),
    )  # fmt: skip
    logits = out_of_fold(known, seed=1, **asked)[1e-2]
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(logits.sum(axis=1), 0)
