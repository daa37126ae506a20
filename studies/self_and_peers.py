"""The same student from hard and smoothed labels, from its own predictions and from its peers'.

usage: python studies/self_and_peers.py digits WORK
       python studies/self_and_peers.py fashion-mnist WORK --data FOLDER_OF_IDX_FILES

Each way's own setting is chosen on the validation part with two seeds that are not reported; the
table is over the test part. Writes WORK/result.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from softlabel.schemas.params import EvaluateParams, PrepareParams, TrainParams
from softlabel.stages import evaluate, prepare, train_student

SELECTION_SEEDS = (100, 102)
# Peers of one run are no independent runs: of each pair the first member is reported.
MEMBERS = 2
MODELS = "softlabel.pipeline.small_models"
WORLDS: dict[str, dict[str, Any]] = {
    "digits": {
        "prepare": {"format": "digits", "validation_rows": 200, "test_rows": 500},
        "student": {
            "model_args": {"inputs": 64, "hidden": 32},
            "epochs": 30,
            "batch_size": 64,
            "learning_rate": 0.01,
        },
        "burn_in": 3,
    },
    "fashion-mnist": {
        "prepare": {"format": "idx", "validation_rows": 5000},
        "student": {
            "model_args": {"inputs": 784, "hidden": 64},
            "epochs": 8,
            "batch_size": 256,
            "learning_rate": 0.003,
        },
        "burn_in": 1,
    },
}
WAYS: dict[str, list[dict[str, Any]]] = {
    "hard": [{"loss": "hard"}],
    "smooth": [{"loss": "hard", "label_smoothing": e} for e in (0.05, 0.1, 0.2)],
    "self": [{"loss": "kd", "targets": "self", "soft_weight": weight} for weight in (0.5, 0.8)],
    "peers": [
        {
            "loss": "kd",
            "targets": "peers",
            "members": MEMBERS,
            "temperature": 1.0,
            "soft_weight": weight,
        }
        for weight in (0.5, 0.8)
    ],
}


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work
    world = WORLDS[arguments.world]
    prepare.run(PrepareParams(output=work / "data", path=arguments.data, **world["prepare"]))
    chosen = {way: _choose(work, world, way) for way in WAYS}
    seeds = range(0, MEMBERS * arguments.seeds, MEMBERS)
    for way, settings in chosen.items():
        for seed in seeds:
            _train(work, world, way, seed, settings, "students")
    report = evaluate.run(
        EvaluateParams(
            models=tuple(work / f"students/{way}-{seed}" for way in WAYS for seed in seeds),
            source=work / "data/test",
            output=work / "evaluate",
        )
    )
    result = {
        "world": arguments.world,
        "seeds": list(seeds),
        "chosen": chosen,
        "runs": [run.model_dump(mode="json") for run in report.runs],
    }
    (work / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="independent runs a way")
    return parser.parse_args()


def _choose(work: Path, world: dict[str, Any], way: str) -> dict[str, Any]:
    """The settings of `way` with the best mean validation accuracy over the selection seeds."""

    def score(settings: dict[str, Any]) -> float:
        mean = statistics.mean(
            _train(work, world, way, seed, settings, "selection") for seed in SELECTION_SEEDS
        )
        print(f"  {way} {settings}: validation {mean:.4f}", file=sys.stderr)
        return mean

    return WAYS[way][0] if len(WAYS[way]) == 1 else max(WAYS[way], key=score)


def _train(
    work: Path, world: dict[str, Any], way: str, seed: int, settings: dict[str, Any], folder: str
) -> float:
    peers = {"burn_in": world["burn_in"]} if way == "peers" else {}
    report = train_student.run(
        TrainParams(
            model=f"{MODELS}:mlp",
            source=work / "data/train",
            validation=work / "data/validation",
            logger="none",
            seed=seed,
            run=way,
            output=work / folder,
            checkpoint_epochs=0,
            **world["student"],
            **settings,
            **peers,
        )
    )
    accuracy = report.history[-1].validation_accuracy
    assert accuracy is not None
    return accuracy


def _print(result: dict[str, Any]) -> None:
    print("| way | settings | accuracy (%) | NLL | ECE |\n|---|---|---|---|---|")
    for run in result["runs"]:
        settings = result["chosen"][run["run"]]
        named = [
            f"{name} {settings[name]}"
            for name in ("label_smoothing", "soft_weight")
            if name in settings
        ]
        cells = []
        for metric, factor, digits in (("accuracy", 100, 2), ("nll", 1, 4), ("ece", 1, 4)):
            spread = run[metric]
            cells.append(
                f"{spread['mean'] * factor:.{digits}f} ± "
                f"{spread['standard_error'] * factor:.{digits}f}"
            )
        print(f"| {run['run']} | {', '.join(named) or 'none'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
