"""The commands `blastwatch train`, `evaluate` and `package`: the last three stages of dvc.yaml."""

from pathlib import Path

import click

from blastwatch.console import json_option, print_json, say
from blastwatch.rounding import with_interval
from blastwatch.settings import load
from training.options import folders, parameter_options


@click.command()
@parameter_options
@folders(cells="data/cells", split="data/split", pack="data/pack", out="results/train")
@json_option
def train(params: Path, overrides: tuple[str, ...], as_json: bool, **places: Path) -> None:
    """Train a network on the split cells and track the run; goes on where a stopped training was."""
    from training.parameters import load_parameters

    parameters, settings = load_parameters(params, overrides), load()
    from training.training_run import run_training  # with torch: a wrong parameter is told before

    facts = run_training(parameters, settings, **places)
    if "run_id" not in facts:
        return  # one of several processes, of which the first one reports
    if as_json:
        print_json(facts)
    else:
        say(f"Best epoch {facts['best_epoch']} of {facts['epochs']}; run {facts['run_id']}.")


@click.command()
@parameter_options
@folders(cells="data/cells", split="data/split", pack="data/pack", out="results/pretrain")
@json_option
def pretrain(params: Path, overrides: tuple[str, ...], as_json: bool, **places: Path) -> None:
    """Pretrain a network on the training side's cells without their labels, for train.weights=file."""
    from training.parameters import load_parameters
    from training.pretraining import WEIGHTS, run_pretraining

    facts = run_pretraining(load_parameters(params, overrides), load(), **places)
    if as_json:
        print_json(facts)
    else:
        say(f"Train from it: --set train.weights=file --set train.weights_file={places['out'] / WEIGHTS}")


@click.command()
@parameter_options
@folders(cells="data/cells", split="data/split", pack="data/pack", trained="results/train", out="results/evaluate")
@click.option(
    "--summary", type=click.Path(path_type=Path), default="results/summary.json", show_default=True,
    help="Flat figures for dvc metrics.",
)  # fmt: skip
@json_option
def evaluate(params: Path, overrides: tuple[str, ...], summary: Path, as_json: bool, **places: Path) -> None:
    """Measure the trained network on the test patients, with intervals by patient."""
    from dataclasses import asdict

    from blastwatch.manifest import IMPORT, SPLIT_FACTS, read_json, write_json
    from blastwatch.package import REPORT
    from training import evaluation, evidence, plots, report
    from training.calibration import border_told
    from training.parameters import load_parameters
    from training.splitting import leak_told
    from training.tracking import check_run, open_run

    parameters, settings = load_parameters(params, overrides).evaluate, load()
    # Before minutes of work, if at all.
    summary.parent.mkdir(parents=True, exist_ok=True)
    check_run(settings, read_json(places["trained"] / "train.json", made_by="blastwatch train")["run_id"])
    measured, out = evaluation.run_evaluation(parameters, **places), places["out"]
    metrics = measured.metrics
    pictures = plots.plot_all(measured.table, metrics, measured.packed, measured.network, out)
    facts = {
        "training": measured.facts,
        "evaluation": asdict(parameters),
        "split": read_json(places["split"] / SPLIT_FACTS, made_by="blastwatch data split"),
        "data": read_json(places["cells"] / IMPORT, made_by="blastwatch data import"),
    }
    shown = {name: out / f"{name}.png" for name in plots.PICTURES}
    page = report.write_report(metrics, facts, shown, out / REPORT)
    metrics = evidence.write_metrics(metrics, out)  # the last one: without it nothing is packaged
    figures = evaluation.summary(metrics)
    write_json(summary, figures)
    with open_run(settings, run_id=measured.facts["run_id"]):
        import mlflow

        mlflow.log_metrics({f"test.{name}": value for name, value in figures.items()})
        for picture in pictures:
            mlflow.log_artifact(str(picture), "plots")
        mlflow.log_artifact(str(out / evidence.METRICS))
        mlflow.log_artifact(str(page))
    if facts["split"]["leaky"]:
        say(leak_told(facts["split"]))
    if border := border_told(metrics["calibration"]):
        say(border)
    if as_json:
        print_json(metrics)
        return
    kind = "synthetic test cells" if metrics["synthetic"] else "test cells"
    say(f"{metrics['counts']['cells']} {kind} of {metrics['counts']['groups']} patients; 95 % intervals by patient")
    for part in ("cells", "patients"):
        for name, row in metrics[part].items():
            say(f"  {part:<9} {name:<26} {with_interval(row)}")
    say(f"  three size numbers alone: AUROC {with_interval(metrics['size_baseline']['auroc'])}")


@click.command()
@parameter_options
@folders(
    cells="data/cells", audit="data/audit", split="data/split", pack="data/pack",
    trained="results/train", evaluated="results/evaluate", out="results/package",
)  # fmt: skip
@json_option
def package(params: Path, overrides: tuple[str, ...], as_json: bool, **places: Path) -> None:
    """Put network, reference and evidence into a sealed model package."""
    from blastwatch.manifest import read_json
    from blastwatch.package import CARD
    from training.packaging import build_package
    from training.parameters import load_parameters
    from training.tracking import check_run, open_run

    parameters, settings = load_parameters(params, overrides), load()
    run_id = read_json(places["trained"] / "train.json", made_by="blastwatch train")["run_id"]
    check_run(settings, run_id)  # before minutes of work
    digest = build_package(
        parameters,
        cells_folder=places["cells"],
        audit_folder=places["audit"],
        split_folder=places["split"],
        pack_folder=places["pack"],
        train_folder=places["trained"],
        evaluate_folder=places["evaluated"],
        out=places["out"],
    )
    with open_run(settings, run_id=run_id):
        import mlflow

        mlflow.log_artifact(str(places["out"] / CARD))
    if as_json:
        print_json({"package": str(places["out"]), "digest": digest})
    else:
        say(f"Package {digest[:12]} in {places['out']}. Register it: blastwatch registry register {places['out']}")
