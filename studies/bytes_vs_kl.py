"""Bytes a sample against KL at T = 1, 2, 4, 8, for every codec and for other projects' encodings.

usage: python studies/bytes_vs_kl.py WORK --data FOLDER_OF_FASHION_MNIST [--plot docs/FILE.png]

Three sources of logits: a convolutional net on Fashion-MNIST's test part (C = 10); a next-word
model on the docstrings of Python's own library (C = 1,000); made-up ones of a language model's size
(C = 50,257). Bytes are those that decoding needs: payload without the log-sums that the dense
codecs and `factored` keep as a check; keys and hard labels are not counted, nor is the head, once a
set. The prior of `topk` is from other rows than those measured. "Rows lost" are those of which an
encoding makes no distribution, because its rounded probabilities leave nothing for the tail; the
means are over the others. Prints Markdown, writes WORK/result.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from next_words import next_words
from peer_encodings import Kept, keep, renormalised, uniform_tail

from softlabel.pipeline.codecs.codec import encode_rows, shift_rows
from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.codecs.make import make_codec
from softlabel.pipeline.inference.codec_trial import divergences
from softlabel.pipeline.inference.prior import TailPrior
from softlabel.pipeline.labelset.labelset import open_labelset
from softlabel.schemas.labelset import CodecName
from softlabel.schemas.params import ExportParams, InferParams, PrepareParams, TrainParams
from softlabel.stages import export, infer, prepare, train_student

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
PLOTTED = (1.0, 4.0)
# Below this a KL is the rounding of its own computation.
LEAST_PLOTTED = 1e-12
# What is plotted, in Okabe and Ito's colours; the renormalised top-k is infinitely far.
FAMILIES = {
    "dense": "#D55E00",
    "factored": "#56B4E9",
    "topk, uniform tail": "#E69F00",
    "topk, prior tail": "#CC79A7",
    "TinyViT: float16, uniform tail": "#0072B2",
    "FKD: float32, uniform tail": "#009E73",
}
DENSE: tuple[CodecName, ...] = ("dense-f32", "dense-f16", "dense-u8")
Floats = npt.NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True)
class Teacher:
    """Logits to measure `[N, C]`, others for the prior, and the k that are tried."""

    name: str
    logits: Floats
    others: Floats
    kept: tuple[int, ...]
    features: Floats | None = None
    head: Head | None = None


def main() -> None:
    arguments = _arguments()
    rows = []
    for teacher in (_fashion_mnist(arguments.work, arguments.data), _words(), _synthetic()):
        measured = sorted(_measured(teacher), key=lambda row: (row["bytes"], row["name"]))
        _print(teacher, measured)
        rows += measured
    (arguments.work / "result.json").write_text(json.dumps(rows, indent=2) + "\n")
    if arguments.plot is not None:
        _plot(rows, arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def _fashion_mnist(work: Path, data: Path) -> Teacher:
    """Every other row of the test part is measured; the prior is from the rest."""
    if not (work / "labels/labelset.json").exists():
        prepare.run(PrepareParams(format="idx", path=data, output=work / "data"))
        train_student.run(
            TrainParams(
                model="softlabel.pipeline.small_models:conv_net",
                model_args={"channels": 1, "width": 16, "depth": 3},
                source=work / "data/train",
                batch_size=128,
                learning_rate=0.003,
                epochs=2,
                logger="none",
                output=work / "teacher",
            )
        )
        onnx = work / "teacher.onnx"
        export.run(ExportParams(model=str(work / "teacher/student.json"), output=onnx))
        source, labels = work / "data/test", work / "labels"
        infer.run(InferParams(teacher=onnx, source=source, output=labels, codec="dense-f32"))
    blocks = list(open_labelset(work / "labels").batches(4096))
    logits = np.concatenate([block.logits() for block in blocks])
    return Teacher("Fashion-MNIST, C = 10", logits[::2].copy(), logits[1::2].copy(), (1, 2, 3, 5))


def _words() -> Teacher:
    features, others, head = next_words()
    kept = (4, 10, 32, 64, 128, 256)
    name = "next word, C = 1,000"
    return Teacher(name, head.logits(features), head.logits(others), kept, features, head)


def _synthetic() -> Teacher:
    """Words by Zipf's law, d = 768 features, and in each row one class that they point at."""
    random = np.random.default_rng(0)
    classes, width, rows = 50257, 768, 128
    weight = random.normal(0, 0.08, (classes, width)).astype(np.float32)
    rank = random.permutation(classes) + 1
    head = Head(weight, (-1.1 * np.log(rank)).astype(np.float32))
    features = random.normal(0, 1, (2 * rows, width)).astype(np.float32)
    features += 2 * weight[random.integers(0, classes, 2 * rows)]
    logits = head.logits(features)
    name, kept = "synthetic, C = 50,257", (10, 64, 256, 512)
    return Teacher(name, logits[:rows], logits[rows:], kept, features[:rows], head)


def _measured(teacher: Teacher) -> Iterator[Row]:
    """A row an encoding."""
    for codec in DENSE:
        yield _codec(teacher, codec, codec)
    if teacher.head is not None:
        yield _codec(teacher, f"factored, d = {teacher.head.weight.shape[1]}", "factored")
    for k in teacher.kept:
        prior = TailPrior(teacher.others.shape[1], k)
        for first in range(0, len(teacher.others), 64):
            prior.add(shift_rows(teacher.others[first : first + 64]).d)
        yield _codec(teacher, f"topk {k}, uniform tail", "topk", k)
        yield _codec(teacher, f"topk {k}, prior tail", "topk", k, prior.logits())
        for who, dtype in (("TinyViT", np.float16), ("FKD", np.float32)):
            kept = keep(teacher.logits, k, dtype)
            logs, sound = uniform_tail(kept)
            bits = np.dtype(dtype).itemsize * 8
            name = f"top-{k} float{bits} probabilities, uniform tail ({who})"
            yield _peer(teacher, name, f"{who}: float{bits}, uniform tail", kept, logs, sound)
        everything = np.ones(len(teacher.logits), bool)
        name = f"top-{k} float32 probabilities, renormalised"
        yield _peer(teacher, name, "renormalised", kept, renormalised(kept), everything)


def _codec(
    teacher: Teacher,
    name: str,
    codec_name: CodecName,
    k: int | None = None,
    prior: tuple[float, ...] | None = None,
) -> Row:
    classes = teacher.logits.shape[1]
    codec = make_codec(codec_name, classes, TEMPERATURES, k=k, prior=prior, head=teacher.head)
    features = teacher.features if codec_name == "factored" else None
    encoded = encode_rows(codec, teacher.logits, features)
    columns = {**encoded.columns, "top1": encoded.top1}
    losses = [divergences(teacher.logits, codec.logits(columns, T), T) for T in TEMPERATURES]
    size = sum(
        column.dtype.itemsize * (column.width or 1)
        for column in codec.columns
        if column.name != "lse"
    )
    family = {"topk": "topk, " + ("uniform" if prior is None else "prior") + " tail"}.get(
        codec_name, codec_name.partition("-")[0]
    )
    return _row(teacher, name, family, size, losses, 0.0)


def _peer(
    teacher: Teacher,
    name: str,
    family: str,
    kept: Kept,
    logs: npt.NDArray[np.float64],
    sound: npt.NDArray[np.bool_],
) -> Row:
    """What a peer says at T: its probabilities to the power 1/T."""
    losses = [divergences(teacher.logits[sound], logs[sound], T) for T in TEMPERATURES]
    return _row(teacher, name, family, kept.bytes, losses, 1 - float(sound.mean()))


def _row(
    teacher: Teacher, name: str, family: str, size: int, losses: list[Any], broken: float
) -> Row:
    return {
        "teacher": teacher.name,
        "name": name,
        "family": family,
        "bytes": size,
        "kl": [float(kl.mean()) if len(kl) else math.nan for kl, _ in losses],
        "tv": [float(tv.mean()) if len(tv) else math.nan for _, tv in losses],
        "broken": broken,
    }


def _print(teacher: Teacher, rows: list[Row]) -> None:
    print(f"### {teacher.name}, {len(teacher.logits):,} rows\n")
    heads = [f"KL at T = {T:g}" if T == 1 else f"T = {T:g}" for T in TEMPERATURES]
    print(f"| encoding | bytes | {' | '.join(heads)} | total variation, T = 1 | rows lost |")
    print(f"|{'---|' * (len(heads) + 4)}")
    for row in rows:
        cells = [f"{value:.1e}" if math.isfinite(value) else "infinite" for value in row["kl"]]
        broken = f"{row['broken']:.1%}" if row["broken"] else ""
        print(
            f"| {row['name']} | {row['bytes']:,} | {' | '.join(cells)} | {row['tv'][0]:.1e} | "
            f"{broken} |"
        )
    print()


def _plot(rows: list[Row], path: Path) -> None:
    """KL over bytes, both logarithmic: a column a teacher, a row a temperature."""
    import vl_convert

    values = [
        {key: row[key] for key in ("teacher", "family", "bytes")} | {"kl": row["kl"][index], "T": T}
        for row in rows
        for index, T in enumerate(TEMPERATURES)
        if T in PLOTTED and math.isfinite(row["kl"][index]) and row["kl"][index] > LEAST_PLOTTED
    ]
    charts = [[_chart(values, name, T) for name in _names(rows)] for T in PLOTTED]
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "vconcat": [{"hconcat": line} for line in charts],
        "config": {
            "axis": {"gridOpacity": 0.5, "labelFontSize": 12, "titleFontSize": 12},
            "legend": {"labelFontSize": 12, "orient": "bottom", "columns": 3, "labelLimit": 300},
            "title": {"fontSize": 13},
        },
    }
    path.write_bytes(vl_convert.vegalite_to_png(json.dumps(spec), scale=1.6))


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["teacher"] for row in rows))


def _chart(values: list[Row], teacher: str, T: float) -> dict[str, Any]:
    shown = [row for row in values if row["teacher"] == teacher and row["T"] == T]
    return {
        "title": f"{teacher}, T = {T:g}",
        "width": 290,
        "height": 230,
        "data": {"values": shown},
        "mark": {"type": "line", "point": {"size": 45}, "strokeWidth": 1.6},
        "encoding": {
            "x": {
                "field": "bytes",
                "type": "quantitative",
                "scale": {"type": "log", "nice": False, "padding": 12},
                "title": "bytes a sample",
                "axis": {"format": "~s", "tickCount": 5},
            },
            "y": {
                "field": "kl",
                "type": "quantitative",
                "scale": {"type": "log", "domain": [1e-10, 10], "clamp": True},
                "title": "mean KL [nats]",
                "axis": {"format": ".0e", "tickCount": 6},
            },
            # The same domain twice, so that colours and shapes share one legend.
            "color": _family({"domain": list(FAMILIES), "range": list(FAMILIES.values())}),
            "shape": _family({"domain": list(FAMILIES)}),
        },
    }


def _family(scale: dict[str, Any]) -> dict[str, Any]:
    return {"field": "family", "type": "nominal", "title": None, "scale": scale}


if __name__ == "__main__":
    main()
