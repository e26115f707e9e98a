"""The tables a run ends with, as markdown that also reads well in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.report.escaping import printable

COLUMNS = (
    ("preference_accuracy", "preference accuracy", "{:.0%}"),
    ("preference_margin", "margin (nats/token)", "{:+.3f}"),
    ("judged_mean", "judged mean", "{:+.2f}"),
    ("judged_se", "± s.e.", "{:.2f}"),
    ("shows_wanted", "answers: wanted", "{:.0%}"),
    ("shows_opposite", "opposite", "{:.0%}"),
    ("verdicts_missing", "verdicts missing", "{:.0%}"),
    ("unrelated_loss", "loss on unrelated text", "{:.3f}"),
)

SCALES = {
    "lexicon": "tone, -1 to 1",
    "length": "characters",
    "refusal": "1 for an answer that declines, else 0",
    "regex": "1 for an answer with the pattern, else 0",
    "reward": "score of the reward model",
    "references": "similarity to the correct references less that to the incorrect ones",
    "choice": "1 for an answer better than the base's, 0.5 for a tie, 0 for a worse one",
    "api": "1 for an answer better than the base's, 0.5 for a tie, 0 for a worse one",
}
"""What a judge's score is, by the kind of the judge."""

SHOWN = 4  # prompts of `side_by_side`


def models_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one row a model, with the change of its loss on unrelated text from the base's."""
    columns = [
        column
        for column in COLUMNS
        if any(row.get(column[0]) is not None for row in models.values())
    ]
    base = next(iter(models.values())).get("unrelated_loss")
    rows = []
    for name, row in models.items():
        cells = [_with_interval(row, key, form) for key, _, form in columns]
        if base is not None and row.get("unrelated_loss") is not None:
            cells[-1] += f" ({row['unrelated_loss'] / base - 1:+.1%})"
        rows.append([name, *cells])
    return markdown(["model", *(title for _, title, _ in columns)], rows)


def judge_text(models: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the judge, the wanted side of its scale and the number of answers in one line, and a
    second line where its scores are all the same; None where nothing was judged.
    """
    row = next(iter(models.values()))
    if row.get("judge") is None:  # also a run of an earlier version
        return None
    name, wanted = row["judge"], row["wanted"]
    scale = SCALES.get(name.partition(":")[0], "a score")
    text = f"Answers: {row['answers']} a model. Judge: {printable(name)} ({scale}). "
    text += f"Wanted: {wanted} scores."
    if (same := _same_score(list(models.values()))) is not None:
        text += f"\nThe judge {SAME.format(same)}"
    return text


SAME = (
    "gives every answer the same score, {:g}, so it decides nothing: name another in "
    "evaluation.judge."
)


def _same_score(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the score that all answers of all models have; None where they differ."""
    judged = [row for row in rows if row.get("judged_mean") is not None]
    means = {row["judged_mean"] for row in judged}
    # Wins over the base decide something unless they are all ties.
    tied = len(judged) == len(rows) or means == {0.5}
    alike = tied and len(means) == 1 and not any(row["judged_se"] for row in judged)
    alike = alike and (len(judged) > 1 or judged[0]["judged_se"] is not None)  # several answers
    return means.pop() if alike else None


def judges_tables(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the scores by several judges and their agreement; nothing for a single judge."""
    judged = {name: row["judges"] for name, row in models.items() if "judges" in row}
    if not judged:
        return []
    columns = list(next(iter(judged.values())))
    rows = [
        [name, *(_mean(by_judge[judge]) for judge in columns)] for name, by_judge in judged.items()
    ]
    pairs = [pair for row in models.values() for pair in row.get("agreement", ())]
    tables = [markdown(["judged mean ± s.e., by judge", *columns], rows)]
    for judge in columns[1:]:  # judge_text reports the first
        same = _same_score([by_judge[judge] for by_judge in judged.values()])
        tables += [] if same is None else [f"{printable(judge)} {SAME.format(same)}"]
    return [*tables, agreement_table(pairs)] if pairs else tables


def agreement_table(agreement: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for any two judges; length is one of them."""
    lines = [
        [
            " and ".join(pair["judges"]),
            "{mean:.0%} [{low:.0%}, {high:.0%}]".format(**pair) if "mean" in pair else "-",
            str(pair["answers"]),
        ]
        for pair in agreement
    ]
    return markdown(["judges", "agree on the direction of a change", "answers"], lines)


def _mean(judged: Mapping[str, Any]) -> str:
    if judged["judged_mean"] is None:
        return "-"
    error = judged["judged_se"]
    return f"{judged['judged_mean']:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def _with_interval(row: Mapping[str, Any], key: str, form: str) -> str:
    """Return a figure, with its 95 % interval where the row has it."""
    if row.get(key) is None:
        return "-"
    interval = [form.format(end) for end in row.get(f"{key}_interval", ())]
    return form.format(row[key]) + (f" [{', '.join(interval)}]" if interval else "")


def layers_table(metrics: Mapping[str, float]) -> str:
    """Return the share of the shift that the policy reached, and its cosine, per target layer."""
    layers = sorted(
        int(key.rpartition("_")[2]) for key in metrics if key.startswith("eval_repr/reached/layer_")
    )
    rows = [
        [name, *(f"{metrics[f'eval_repr/{key}/layer_{layer}']:.2f}" for layer in layers)]
        for key, name in (("reached", "share of the shift reached"), ("cosine", "cosine"))
    ]
    return markdown(["layer", *map(str, layers)], rows)


def side_by_side(answers: Sequence[Mapping[str, Any]], only: Sequence[str] | None = None) -> str:
    """Return a few prompts of the file, with the answers of the models named in `only`."""
    step = max(1, len(answers) // SHOWN)
    parts = []
    for answer in answers[::step][:SHOWN]:
        lines = [f"> {_on_a_line(answer['prompt'])}"]
        lines += [
            f"- **{name}**: {_on_a_line(text)}"
            for name, text in answer["answers"].items()
            if only is None or name in only
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def with_ends(estimate: Mapping[str, float | None], form: str) -> str:
    """Return a mean with its 95 % interval; one of a single unit has none."""
    if estimate["low"] is None:
        return format(estimate["mean"], form)
    mean, low, high = (format(estimate[name], form) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table whose columns are aligned as plain text too."""
    header, *rows = ([_cell(text) for text in row] for row in (header, *rows))
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            + " |"
        )

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def _cell(text: str) -> str:
    """Return a text that stays in its cell; names such as base_2 are kept readable."""
    return _on_a_line(text).replace("|", "\\|").replace("<", "\\<")


def _on_a_line(text: str) -> str:
    return printable(" ".join(text.split()))
