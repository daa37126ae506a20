"""The same student from hard labels, smoothed labels and stored soft labels, over several seeds.

usage: python studies/three_ways.py digits WORK
       python studies/three_ways.py fashion-mnist WORK --data FOLDER_OF_IDX_FILES

Each way's own settings are chosen on the validation part with two seeds that are not reported;
the table is over the test part. Writes WORK/result.json and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from softlabel.schemas.params import (
    EvaluateParams,
    ExportParams,
    InferParams,
    PrepareParams,
    TrainParams,
)
from softlabel.stages import evaluate, export, infer, prepare, train_student

SELECTION_SEEDS = (100, 101)
MODELS = "softlabel.pipeline.small_models"
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
WORLDS: dict[str, dict[str, Any]] = {
    "digits": {
        "prepare": {"format": "digits", "validation_rows": 200, "test_rows": 500},
        "teacher": {"model_args": {"channels": 1, "width": 32, "depth": 2}, "epochs": 30},
        "student": {
            "model_args": {"inputs": 64, "hidden": 32},
            "epochs": 30,
            "batch_size": 64,
            "learning_rate": 0.01,
        },
    },
    "fashion-mnist": {
        "prepare": {"format": "idx", "validation_rows": 5000, "classes": FASHION_CLASSES},
        "teacher": {"model_args": {"channels": 1, "width": 16, "depth": 3}, "epochs": 10},
        "student": {
            "model_args": {"inputs": 784, "hidden": 64},
            "epochs": 20,
            "batch_size": 128,
            "learning_rate": 0.003,
        },
    },
}
WAYS: dict[str, list[dict[str, Any]]] = {
    "hard": [{"loss": "hard"}],
    "smooth": [{"loss": "hard", "label_smoothing": e} for e in (0.05, 0.1, 0.2)],
    "kd": [
        {"loss": "kd", "temperature": temperature, "soft_weight": weight}
        for temperature in (2.0, 4.0)
        for weight in (0.5, 0.9)
    ],
}


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work
    world = WORLDS[arguments.world]
    prepare.run(PrepareParams(output=work / "data", path=arguments.data, **world["prepare"]))
    teacher = _teacher(work, world)
    labels = infer.run(
        InferParams(
            teacher=work / "teacher.onnx", source=work / "data/train", output=work / "labels"
        )
    )
    chosen = {way: _choose(work, world, way) for way in WAYS}
    for way, settings in chosen.items():
        for seed in range(arguments.seeds):
            _train(work, world, way, seed, settings, "students")
    report = evaluate.run(
        EvaluateParams(
            models=(work / "students",), source=work / "data/test", output=work / "evaluate"
        )
    )
    result = {
        "world": arguments.world,
        "seeds": arguments.seeds,
        "teacher": teacher,
        "label_set": labels.model_dump(mode="json", include={"rows", "bytes", "kl_mean"}),
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
    parser.add_argument("--seeds", type=int, default=5)
    return parser.parse_args()


def _teacher(work: Path, world: dict[str, Any]) -> dict[str, float]:
    """Train and export the teacher; return its test metrics."""
    train_student.run(
        TrainParams(
            model=f"{MODELS}:conv_net",
            source=work / "data/train",
            validation=work / "data/validation",
            batch_size=128,
            learning_rate=0.003,
            logger="none",
            output=work / "teacher",
            **world["teacher"],
        )
    )
    export.run(
        ExportParams(
            model=str(work / "teacher/student.json"),
            samples=work / "data/validation",
            output=work / "teacher.onnx",
        )
    )
    report = evaluate.run(
        EvaluateParams(
            models=(work / "teacher",), source=work / "data/test", output=work / "teacher-metrics"
        )
    )
    return report.students[0].model_dump(include={"accuracy", "nll", "ece", "parameters"})


def _choose(work: Path, world: dict[str, Any], way: str) -> dict[str, Any]:
    """The settings of `way` with the best mean validation accuracy over the selection seeds."""

    def score(settings: dict[str, Any]) -> float:
        accuracies = [
            _train(work, world, way, seed, settings, "selection") for seed in SELECTION_SEEDS
        ]
        print(f"  {way} {settings}: validation {statistics.mean(accuracies):.4f}", file=sys.stderr)
        return statistics.mean(accuracies)

    return WAYS[way][0] if len(WAYS[way]) == 1 else max(WAYS[way], key=score)


def _train(
    work: Path, world: dict[str, Any], way: str, seed: int, settings: dict[str, Any], folder: str
) -> float:
    report = train_student.run(
        TrainParams(
            model=f"{MODELS}:mlp",
            source=work / "data/train",
            validation=work / "data/validation",
            labels=work / "labels" if settings["loss"] == "kd" else None,
            logger="none",
            seed=seed,
            run=way,
            output=work / folder,
            **world["student"],
            **settings,
        )
    )
    accuracy = report.history[-1].validation_accuracy
    assert accuracy is not None
    return accuracy


def _print(result: dict[str, Any]) -> None:
    print(f"teacher: {result['teacher']}")
    print("| way | settings | accuracy | NLL | ECE |\n|---|---|---|---|---|")
    for run in result["runs"]:
        settings = {k: v for k, v in result["chosen"][run["run"]].items() if k != "loss"}
        named = ", ".join(f"{name} {value}" for name, value in settings.items()) or "none"
        cells = []
        for metric, factor, digits in (("accuracy", 100, 2), ("nll", 1, 4), ("ece", 1, 4)):
            spread = run[metric]
            cells.append(
                f"{spread['mean'] * factor:.{digits}f} ± "
                f"{spread['standard_error'] * factor:.{digits}f}"
            )
        print(f"| {run['run']} | {named} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
