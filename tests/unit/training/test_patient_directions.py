"""A last layer that leans less on what patients of one label differ in: the penalty that it is, and what it brings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from blastwatch.errors import UsageError
from tests.unit.training.test_linear_probe import ALONE, PROBE, STAGES, drawn, opened
from training.linear_probe import LinearProbe, Restraint, choose, fit, fuse, out_of_fold
from training.parameters import TrainParameters
from training.patient_directions import shrinkage
from training.weights import first_network

STRENGTH = 30.0
KEPT = Restraint(shrink_patients=STRENGTH)


def with_patients(known, spread=2.0, seed=5):
    """The same cells, each patient's moved along two numbers of their own."""
    random = np.random.default_rng(seed)
    moved = known.embeddings.copy()
    for patient in np.unique(known.patients):
        moved[known.patients == patient, 2:4] += random.normal(0, spread, 2).astype(np.float32)
    return replace(known, embeddings=moved)


def patients_apart(known, log_odds):
    """Variance of the patients' mean log odds about the mean of their label."""
    means = {label: [] for label in (0, 1)}
    for patient in np.unique(known.patients):
        means[known.labels[known.patients == patient][0]].append(log_odds[known.patients == patient].mean())
    return float(np.mean(np.concatenate([np.square(np.array(of) - np.mean(of)) for of in means.values()])))


def test_it_is_a_penalty_on_how_far_the_answers_of_patients_lie_apart():
    """As a general solver finds the best layer under that penalty, written from its definition."""
    known = with_patients(drawn())
    found = fit(known, 1e-2, kept=KEPT)
    standard = (known.embeddings - found.mean) / found.spread
    sign = np.where(known.labels == 1, 1.0, -1.0)

    def objective(values):
        losses = np.logaddexp(0, -sign * (standard @ values[:-1] + values[-1]))
        penalty = (values[:-1] ** 2).sum() + STRENGTH * patients_apart(known, standard @ values[:-1])
        return (known.weights * losses).sum() + penalty / (2 * 1e-2)

    expected = minimize(objective, np.zeros(standard.shape[1] + 1), method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found.weights, expected.x[:-1], atol=2e-3 * np.abs(expected.x).max())


def test_answers_to_new_patients_lie_nearer_together():
    known, new = with_patients(drawn()), with_patients(drawn(seed=9), seed=11)
    plain, kept = (fit(known, 1e-1, kept=restraint).log_odds(new.embeddings) for restraint in (Restraint(), KEPT))
    between = [odds[new.labels == 1].mean() - odds[new.labels == 0].mean() for odds in (plain, kept)]
    assert patients_apart(new, kept) / between[1] ** 2 < 0.5 * patients_apart(new, plain) / between[0] ** 2


def test_hardly_any_strength_changes_hardly_anything():
    known = with_patients(drawn())
    np.testing.assert_allclose(
        fit(known, 1e-2, kept=Restraint(shrink_patients=1e-9)).weights, fit(known, 1e-2).weights, atol=1e-6
    )


def test_each_patient_weighs_the_same():
    known = with_patients(drawn())
    rows = known.embeddings.astype(np.float64)
    once = shrinkage(rows, known.labels, known.patients, STRENGTH)
    twice = np.concatenate([np.arange(len(rows)), np.flatnonzero(known.patients == "P3")])
    again = shrinkage(rows[twice], known.labels[twice], known.patients[twice], STRENGTH)
    np.testing.assert_allclose(once(rows), again(rows), atol=1e-9)
    assert once.factors.max() <= 1 and once.factors.min() > 0


def test_who_is_held_out_shrinks_nothing():
    known = with_patients(drawn())
    held = known.patients == "P3"
    moved = replace(known, embeddings=np.where(held[:, None], known.embeddings + 7, known.embeddings))
    part = np.flatnonzero(~held)
    np.testing.assert_array_equal(
        fit(known.part(part), 1e-2, kept=KEPT).weights, fit(moved.part(part), 1e-2, kept=KEPT).weights
    )
    assert not np.allclose(out_of_fold(known, seed=1, kept=KEPT)[1e-2], out_of_fold(known, seed=1)[1e-2])


def test_members_of_an_ensemble_are_each_kept():
    known = with_patients(drawn(width=12))
    members = [choose(part, seed=1, kept=KEPT) for part in known.beside((6, 6))]
    fitted, _ = fuse(members, known)
    free, _ = fuse([choose(part, seed=1) for part in known.beside((6, 6))], known)
    assert not np.allclose(fitted.weights, free.weights)


def test_the_knob_reaches_the_last_layer_alone(cohort):
    packed, *sides = opened(cohort)

    def probed(**knobs):
        network = first_network(STAGES, "imagenet", "", seed=1)
        return LinearProbe(network, replace(PROBE, **knobs), packed, *sides, ALONE).run(lambda row: None).best_state

    plain, kept = probed(), probed(shrink_patients=STRENGTH)
    for name, tensor in kept.items():
        assert torch.equal(tensor, plain[name]) != name.startswith("classifier."), name


def test_it_needs_a_layer_that_is_fitted_at_once():
    with pytest.raises(UsageError, match=r"train\.shrink_patients=30\.0 is read by train\.fit=logistic alone"):
        TrainParameters(shrink_patients=STRENGTH)
