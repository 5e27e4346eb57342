"""What the verb `register` shows: forecasts beside measurements, and every sentence about either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxscale.format import (
    UNKNOWN,
    format_count,
    format_factor,
    format_flops,
    format_interval,
    format_loss,
    format_percent,
)
from jaxscale.register.chain import Register
from jaxscale.tables import render_table

if TYPE_CHECKING:
    from jaxscale.register.score import Scored

__all__ = ["say_added", "say_scored", "tabulate_register", "tabulate_scores"]

Record = Mapping[str, Any]


def say_added(record: Record, before: Sequence[Record]) -> list[str]:
    """A new record in words, and what weakens it."""
    answer, baseline = record["answer"], record["baseline"]
    run = format_interval(answer["intervals"]["loss_future_run"])
    C, beyond = format_flops(record["C"]), format_factor(record["extrapolation"])
    N, D = format_count(answer["N"]), format_count(answer["D"])
    lines = [f"record {record['number']}: at {C} FLOPs, {beyond} the largest budget, by {answer['method']}: N {N}, "
             f"D {D}, loss {format_loss(answer['loss'])}, one run {run}"]  # fmt: skip
    size = record["size"]
    if size:
        lines.append(f"  size of the study's ladder: d {size['d_model']}, L {size['n_layers']}, "
                     f"N {format_count(size['N'])} on {format_count(size['D'])} tokens")  # fmt: skip
    if "loss" in baseline:
        lines.append(f"  to be beaten: {format_loss(baseline['loss'])}, the envelope of the evidence extrapolated")
    else:
        lines.append(f"  no baseline, so no skill can be scored: {baseline['reason']}")
    if not answer["declared"]:
        lines.append(f"  the declared method gave no answer; {answer['method']} stands for it")
    if answer["intervals"]["loss_future_run"][0] is None:
        lines.append("  it has no interval (a fit without bootstrap): inside or not cannot be scored")
    if record["extrapolation"] <= 1:
        lines.append("  the target lies inside the range that was fitted: this is no extrapolation")
    if record["measured_before"]:
        lines.append(f"  {record['measured_before']} runs at this C are measured already: a forecast made after them "
                     f"proves nothing")  # fmt: skip
    other = [old["number"] for old in before if old["C"] == record["C"]]
    if other:
        lines.append(
            f"  record {', '.join(map(str, other))} forecast the same C before; both stand and both are scored"
        )
    return lines


def say_scored(one: Scored) -> list[str]:
    """Why a forecast was not scored, and what must be known of the runs that scored it."""
    about = f"forecast {one.forecast['number']}, {format_flops(one.forecast['C'])} FLOPs"
    lines = [f"{about}: {line}" for line in one.told]
    return [*lines, f"{about}: not scored: {one.reason}"] if one.content is None else lines


def tabulate_register(register: Register, name: str) -> str:
    """A row a forecast, with its newest score beside it, and what the scores come to."""
    newest = {score["forecast"]: score for score in register.of_kind("score")}
    rows = [_list_row(record, newest.get(record["hash"])) for record in register.of_kind("forecast")]
    header = ("#", "registered (UTC)", "C", "beyond", "by", "N", "loss", "one run", "of", "measured", "error",
              "worth", "inside", "hash")  # fmt: skip
    table = render_table(f"{name}: {len(rows)} forecasts, {len(newest)} scored", header, rows)
    return "\n".join([table, *_sum_up(register.of_kind("score"))])


def _sum_up(scores: Sequence[Record]) -> list[str]:
    if not scores:
        return []
    from jaxscale.register.score import summarize_scores

    return summarize_scores(scores)


def _list_row(record: Record, score: Record | None) -> list[Any]:
    answer = record["answer"]
    row = score["rows"][0] if score else None
    known = [UNKNOWN] * 5
    if row is not None:
        known = [row["quantity"], format_loss(row["measured"]), format_percent(row["error"]),
                 format_factor(row["compute_error"]), _yes(row["inside"])]  # fmt: skip
    return [record["number"], record["time"][:16].replace("T", " "), format_flops(record["C"]),
            format_factor(record["extrapolation"]), answer["method"], format_count(answer["N"]),
            format_loss(answer["loss"]), format_interval(answer["intervals"]["loss_future_run"]), *known,
            record["hash"][:12]]  # fmt: skip


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: UNKNOWN}[value]


def tabulate_scores(scores: Sequence[Record]) -> str:
    """Every row of new scores: each method and quantity of each forecast."""
    header = ("#", "C", "method", "quantity", "predicted", "interval", "measured", "error", "worth", "inside",
              "mean curve", "score", "envelope", "skill")  # fmt: skip
    rows = [_score_row(score, row) for score in scores for row in score["rows"]]
    legend = ["worth: the factor in C at which the registered law gives what was measured; inside: the interval of one "
              "run; envelope: error of the baseline"]  # fmt: skip
    legend += [f"forecast {score['forecast_number']}: measured by {score['measured_by']}, {len(score['runs'])} runs"
               + (", of which it is not known when they began" if score["began"] == "unknown" else
                  ", begun after it was registered") for score in scores]  # fmt: skip
    return "\n".join([render_table("forecasts and measurements", header, rows), *legend])


def _measured(row: Record, style: Any) -> str:
    """The measured value, with its own interval where it was read off a valley."""
    span = row.get("measured_interval")
    return style(row["measured"]) + (f" {format_interval(span, style)}" if span else "")


def _score_row(score: Record, row: Record) -> list[Any]:
    style = format_count if row["quantity"] == "N_opt" else format_loss
    return [
        score["forecast_number"], format_flops(score["C"]), f"{'* ' if row['declared'] else ''}{row['method']}",
        row["quantity"], style(row["predicted"]), format_interval(row["interval"], style), _measured(row, style),
        format_percent(row["error"]), format_factor(row["compute_error"]), _yes(row["inside"]),
        _yes(row["inside_mean"]), row["interval_score"], format_percent(row["baseline_error"]),
        format_percent(row["skill"]).lstrip("+"),
    ]  # fmt: skip
