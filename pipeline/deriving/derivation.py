"""What a set that is made from another says of itself: its identity, its head, its reference.

The labels of `dense-f32` lost nothing, so another codec made from them holds what `infer` would
have written with it, and says so: same identity, no derivation.
"""

from __future__ import annotations

from collections.abc import Sequence

from softlabel.pipeline.codecs.factored import Head
from softlabel.pipeline.labelset.labelset import LabelSet
from softlabel.pipeline.mean import Mean
from softlabel.schemas.errors import DataError, ParameterError
from softlabel.schemas.labelset import FLOAT32, CodecName, Derivation, Identity, Reference, Tail

EXACT: CodecName = "dense-f32"


def check_derivable(
    labels: LabelSet, codec: CodecName, k: int | None, classes: Sequence[int] | None
) -> None:
    """Raise DataError where the stored labels do not say what the new ones would need.

    k: classes that `topk` keeps; ParameterError where these are not fewer than all.
    """
    identity = labels.manifest.identity
    stored, where = identity.codec, f"{labels.folder}"
    count = len(identity.classes if classes is None else classes)
    if stored == "topk" and classes is not None:
        raise DataError(
            f"{where}: topk kept {identity.k} classes a row, so the others' logits are missing for "
            "--classes; infer again with --codec dense-f16"
        )
    if stored == "topk" and codec != "topk":
        raise DataError(
            f"{where}: topk kept {identity.k} of {count} classes a row, so the others' logits are "
            f"missing for {codec}; infer again with --codec {codec}"
        )
    if codec == "factored" and stored != "factored":
        raise DataError(
            f"{where}: {stored} holds no features of the teacher's last layer, which factored "
            "packs; infer again with --codec factored"
        )
    if codec != "topk" or k is None:
        return
    if k >= count:
        raise ParameterError(f"k: {k} of {count} classes is not fewer than all; pass a smaller --k")
    if identity.k is not None and k > identity.k:
        raise DataError(
            f"{where}: topk kept {identity.k} classes a row, so the logits of more are missing; "
            f"pass --k {identity.k} or less, or infer again with --k {k}"
        )


def converted_identity(
    labels: LabelSet,
    codec: CodecName,
    k: int | None,
    tail: Tail | None,
    classes: Sequence[int] | None,
    keys_sha256: str | None,
    head: Head | None,
) -> Identity:
    """The identity of labels made from `labels`: equal to theirs where nothing was lost or left."""
    old = labels.manifest.identity
    recoded = (codec, k) != (old.codec, old.k)
    lossy = old.codec != EXACT and (recoded or classes is not None)
    changes: dict[str, object] = {
        "codec": codec,
        "k": k,
        "tail": tail,
        "head_sha256": head.digest() if head else None,
    }
    if classes is not None:
        before = old.class_map or range(len(old.classes))
        changes["classes"] = tuple(old.classes[number] for number in classes)
        changes["class_map"] = tuple(before[number] for number in classes)
    if lossy or classes is not None or keys_sha256 is not None:
        changes["derived"] = _derivation(labels, lossy, classes, keys_sha256)
    return old.model_copy(update=changes)


def codec_chain(labels: LabelSet) -> tuple[CodecName, ...]:
    """What labels re-encoded from these were packed with before, oldest first."""
    identity = labels.manifest.identity
    before = identity.derived.codecs if identity.derived else ()
    return before if identity.codec == EXACT else (*before, identity.codec)


def reference_of(labels: LabelSet) -> Reference:
    """What the fidelity of labels re-encoded from these is measured against."""
    codec = labels.manifest.identity.codec
    return labels.manifest.reference if codec == EXACT else codec


def merged_identity(
    sets: Sequence[LabelSet], mean: Mean, codec: CodecName, k: int | None = None
) -> Identity:
    """The first set's, with the teachers of all; each keeps the rest in its own identity."""
    members = [labels.manifest.identity for labels in sets]
    subsets = [m.derived.keys_sha256 for m in members if m.derived and m.derived.keys_sha256]
    return members[0].model_copy(
        update={
            "teacher_sha256": tuple(sha for member in members for sha in member.teacher_sha256),
            "class_map": None,
            "ensemble": None,
            "codec": codec,
            "k": k,
            "tail": None if k is None else "uniform",
            "head_sha256": None,
            "features": None,
            "features_output": None,
            "derived": Derivation(
                verb="merge",
                parents=tuple(labels.identity for labels in sets),
                codecs=tuple(dict.fromkeys(c for labels in sets for c in codec_chain(labels))),
                keys_sha256=subsets[0] if subsets else None,
                weights=mean.weights,
                mean="logits" if mean.temperature is None else "probs",
                temperature=mean.temperature,
            ),
        }
    )


def merged_reference(sets: Sequence[LabelSet]) -> Reference:
    """What the fidelity of the mean of these sets is measured against."""
    references = [reference_of(labels) for labels in sets]
    return next((name for name in references if name != FLOAT32), FLOAT32)


def _derivation(
    labels: LabelSet, lossy: bool, classes: Sequence[int] | None, keys_sha256: str | None
) -> Derivation:
    """A subset stays one, and a mean of several teachers stays one, whatever is made from it."""
    old = labels.manifest.identity.derived
    return Derivation(
        verb="convert",
        parents=(labels.identity,),
        codecs=codec_chain(labels) if lossy else old.codecs if old else (),
        keys_sha256=keys_sha256 or (old.keys_sha256 if old else None),
        class_ids=None if classes is None else tuple(classes),
        weights=old.weights if old else (),
        mean=old.mean if old else None,
        temperature=old.temperature if old else None,
    )
