"""What 'verify', 'convert' and 'merge' found and did, in a few lines."""

from __future__ import annotations

from softlabel.display.words import kl_words, reject_lines
from softlabel.schemas.reports import ConvertReport, MergeReport, VerifyReport


def verify(report: VerifyReport) -> str:
    """The verdict, what was checked, every problem, and how a replay went."""
    checks = ", ".join(report.checks)
    if not report.problems:
        verdict = f"{report.labels} is sound: {report.rows:,} rows in {report.shards} shards"
    else:
        verdict = f"{report.labels} is NOT sound: {len(report.problems)} problems"
    lines = [verdict, *reject_lines(report), f"checked: {checks}"]
    lines += [f"  {problem.kind}: {problem.message}" for problem in report.problems]
    if report.replay is not None:
        replay = report.replay
        lines.append(
            f"replay of {replay.rows} samples: mean KL {replay.kl_mean:.1e} (passes up to "
            f"{replay.kl_limit:.1e}), largest difference of a probability "
            f"{replay.probability_difference:.1e}; shifted by one row: {replay.shifted_kl_mean:.1e}"
        )
    if report.replay is not None and report.replay.features_difference is not None:
        lines.append(
            f"their features differ by {replay.features_difference:.1e} of the largest one; "
            f"shifted by one row: {replay.shifted_features_difference:.1e}"
        )
    if report.not_replayed is not None:
        lines.append(report.not_replayed)
    if report.removed:
        names = ", ".join(report.removed)
        again = report.making.command
        lines.append(f"removed {names}; run '{again}' again: it redoes exactly these")
    return "\n".join(lines)


def convert(report: ConvertReport) -> str:
    """What was written, how much smaller it is and what that cost."""
    lines = [
        f"wrote {report.output}: {report.rows:,} rows in {report.shards} shards, {report.codec} "
        f"{report.layout}, identity {report.identity_sha256[:12]}",
        f"{_rewritten(report)}; {report.bytes_before / 2**20:.2f} MiB became "
        f"{report.bytes / 2**20:.2f} MiB",
    ]
    if report.kl_mean is not None:
        lines.append(f"KL to the {_reference(report)}: {kl_words(report.kl_mean)}")
    return "\n".join(lines)


def merge(report: MergeReport) -> str:
    """What was written, of how many sets with which weights."""
    weights = ", ".join(f"{weight:.3g}" for weight in report.weights)
    return (
        f"wrote {report.output}: {report.rows:,} rows in {report.shards} shards, {report.codec}, "
        f"{report.bytes / 2**20:.2f} MiB, identity {report.identity_sha256[:12]}\n"
        f"{_rewritten(report)}; the mean of {report.members} sets with weights {weights}\n"
        f"KL of the stored labels to the mean: {kl_words(report.kl_mean)}"
    )


def _rewritten(report: ConvertReport | MergeReport) -> str:
    if not report.rows_written:
        return "nothing to do: every shard stood already"
    kept = f", kept {report.shards_kept} finished shards" if report.shards_kept else ""
    speed = report.rows_written / max(report.seconds, 1e-9)
    return f"{report.rows_written:,} rows in {report.seconds:.1f} s ({speed:,.0f} rows/s){kept}"


def _reference(report: ConvertReport) -> str:
    known = report.reference == "float32 logits"
    return report.reference if known else f"{report.reference} labels it was converted from"
