"""Sections of what looked into a model: comparison, token shift, features."""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.report.escaping import visible_token
from rahf.report.page.blocks import Cell, Section, Table, Text, Token, Tokens
from rahf.report.page.charts import curves, forest
from rahf.report.page.closing import closing
from rahf.report.page.figures import (
    NOTHING,
    cut,
    interval,
    left_out,
    plain,
    q_text,
    share,
    signed,
    spread_over,
    verdict,
    with_interval,
    with_sd,
)
from rahf.report.page.reading import Part, number

FEATURES_SHOWN = 40
RESPONSES_SHOWN = 12
TOKENS_SHOWN = 400
"""Tokens of a response that are coloured."""

WORDS_SHOWN = 12

CLASSES = {"marginal": "marginal", "shifted": "shifted"}


def comparison_section(
    parts: Sequence[Part], points: Mapping[int, Sequence[Any]]
) -> Section | None:
    """Return quality beside cost: the method's rows and those of the baselines.

    Args:
        points: records of points.jsonl, by the place of the comparison.
    """
    blocks: list[Any] = []
    for place, part in enumerate(parts):
        blocks += _comparison(part, points.get(place, ()))
    lead = (
        "Change of the judge's mean against the base, and what it costs on unrelated text. "
        "Brackets are 95 % intervals over prompts, ± is the standard deviation over seeds."
    )
    return Section("cost", "Quality beside cost", lead, blocks) if blocks else None


def _comparison(part: Part, points: Sequence[Mapping[str, Any]]) -> list[Any]:
    figures, blocks = part.figures, []
    cost, budget = figures["cost"], plain(figures["budget"])
    given: dict[str, list[tuple[float, ...]]] = {}
    for point in points:
        values = [number(point[key]) for key in ("cost", "change", "low", "high")]
        given.setdefault(str(point["method"]), []).append(tuple(values))
    label = f"change of the judged mean by {cost}, a curve a row, with 95 % intervals"
    chart = curves("Change against cost", label, (f"{cost}, nats per token", "change"), given)
    blocks += [chart] if chart else []
    rows = []
    for name, row in figures["rows"].items():
        loss = row.get("ability_loss", row.get("loss_of_ability"))
        memory = row.get("peak_memory")
        rows.append(
            [
                name,
                _reading(row.get("at_budget")),
                with_sd(row.get("judged_mean"), signed),
                with_sd(loss, signed),
                with_sd(row.get("kl")),
                with_sd(row.get("repetition"), share),
                with_sd(row.get("training_seconds")),
                f"{number(memory) / 2**30:.2f}" if memory is not None else NOTHING,
            ]
        )
    header = ["row", f"change at a {cost} of {budget}", "judged mean", "ability loss", "KL to base"]
    header += ["repetition", "training, s", "peak memory, GiB"]
    note = f"Judge: {figures['judge']}. ≥: no strength of the row cost so much."
    blocks += [Table(str(part.path.parent), header, rows, note), *_differences(figures)]
    return [*blocks, *closing(part)]


def _reading(reading: Mapping[str, Any] | None) -> str:
    if reading is None:
        return NOTHING
    least = "" if reading["reached"] else "≥ "
    return f"{least}{signed(reading['change'])} {interval(reading['low'], reading['high'], signed)}"


def _differences(figures: Mapping[str, Any]) -> list[Any]:
    rows = [
        [
            f"{row['row']} against {row['against']}",
            _reading(row),
            verdict(number(row["low"]), number(row["high"])),
        ]
        for row in figures["differences"]
        if row["against"].startswith(("sft", "dpo")) and not row["row"].startswith(("sft", "dpo"))
    ]
    title = "Against the baselines at the same cost"
    return [Table(title, ["difference", "change [95 %]", "verdict"], rows)] if rows else []


def shift_section(parts: Sequence[Part]) -> Section | None:
    """Return the shares of shifted tokens, and responses in colour."""
    blocks: list[Any] = []
    for part in parts:
        figures = part.figures
        rows = [_shares("all", figures)]
        rows += [_shares(kind, each) for kind, each in figures["by_kind"].items()]
        header = ["tokens", "number", "unshifted", "marginal", "shifted", "KL, nats per token"]
        blocks.append(Table(str(part.path.parent), header, [row for row in rows if row]))
        words = [
            [
                Cell(visible_token(row["token"]), "mono"),
                f"{row['shifted']} of {row['occurrences']}",
                Cell(visible_token(row["base_would_say"]), "mono"),
                plain(row["kl"], 2),
            ]
            for row in figures["top_shifted"][:WORDS_SHOWN]
        ]
        header = ["token", "shifted", "the base's choice", "KL"]
        blocks += [Table("Tokens that shift most often", header, words)] if words else []
        shown = spread_over(part.records, RESPONSES_SHOWN)
        blocks += [_response(record) for record in shown]
        blocks += closing(part, len(shown), "shift.jsonl", "responses")
    lead = (
        "A plain token is the base's first choice too; an underlined one was its second or third; "
        "a framed one is shifted: the base would have written something else, listed below."
    )
    return Section("shift", "Token shift", lead, blocks) if blocks else None


def _shares(name: str, figures: Mapping[str, Any]) -> list[str]:
    if not figures["tokens"]:
        return []
    shares = [with_interval(figures[each], share) for each in ("unshifted", "marginal", "shifted")]
    return [name, plain(figures["tokens"], 6), *shares, with_interval(figures["kl"])]


def _response(record: Mapping[str, Any]) -> Tokens:
    fields = ("pieces", "kind", "bucket", "base_rank", "kl", "base_choice")
    tokens = [*zip(*(record[name] for name in fields), strict=True)]
    shown = [
        Token("end", f"end {CLASSES.get(bucket, '')}")
        if kind == "end"
        else Token(str(piece), CLASSES.get(bucket, ""))
        for piece, kind, bucket, *_ in tokens[:TOKENS_SHOWN]
    ]
    if len(tokens) > TOKENS_SHOWN:
        shown.append(Token(f" […{len(tokens) - TOKENS_SHOWN} more tokens]", "note"))
    moved = [token for token in tokens[:TOKENS_SHOWN] if token[2] == "shifted"]
    rows = [
        [
            Cell(visible_token(piece), "mono"),
            Cell(visible_token(choice), "mono"),
            str(rank),
            plain(kl, 2),
        ]
        for piece, _, _, rank, kl, choice in sorted(moved, key=lambda token: -token[4])[
            :WORDS_SHOWN
        ]
    ]
    header = ["token", "the base's choice", "rank in the base", "KL"]
    detail = Table("", header, rows, left_out(len(moved), len(rows), "shift.jsonl", "tokens"))
    return Tokens(cut(record["prompt"], 300), shown, detail if rows else None)


def features_section(parts: Sequence[Part]) -> Section | None:
    """Return the features that moved, with explanations and the placebo's band."""
    blocks: list[Any] = []
    for part in parts:
        figures, rows = part.figures, part.figures["features"]
        shown = [_feature(row, figures["placebo_band"]) for row in rows[:FEATURES_SHOWN]]
        header = ["feature", "what it is", "effect [95 %]", "q", "size", "placebo"]
        header += ["size in the placebo's band", "seeds alike"]
        note = left_out(len(rows), len(shown), part.path, "features")
        blocks.append(
            Text(_band(figures), "" if figures["placebo_band"] is not None else "warning")
        )
        blocks.append(Table(f"Dictionary {figures['dictionary']}", header, shown, note))
        kl = with_interval(figures["token_kl"])
        blocks += [Text(f"Token KL {kl} nats per token."), *closing(part)]
    lead = (
        "Base and aligned model read the same held-out responses. Size is the effect in standard "
        "deviations of the activation; q is corrected for all tested features."
    )
    return Section("features", "Features that moved", lead, blocks) if blocks else None


def _band(figures: Mapping[str, Any]) -> str:
    tested = (
        f"{plain(figures['features_tested'], 6)} features tested on {figures['prompts']} prompts"
    )
    if figures["placebo_band"] is None:
        return (
            f"{tested}. There is no placebo: training on shuffled pairs moves many features too. "
            "Repeat the command with --placebo train."
        )
    expected = figures.get("beyond_of_placebos")
    of_placebo = f"; of a placebo {plain(expected)} would" if expected is not None else ""
    return (
        f"{tested}. 95 % of the placebo's sizes are within ±{plain(figures['placebo_band'])}: "
        f"{figures['beyond_placebo']} features moved beyond that{of_placebo}."
    )


def feature_text(row: Mapping[str, Any]) -> str:
    """Return the explanation of a feature, or the tokens that it raises."""
    if row.get("explanation"):
        return cut(row["explanation"], 200)
    raised = [visible_token(token) for token in row.get("raises", [])]
    return f"raises {' '.join(raised)}" if raised else "unexplained"


def _feature(row: Mapping[str, Any], band: float | None) -> list[str | Cell]:
    effect = f"{signed(row['effect'])} {interval(row['low'], row['high'], signed)}"
    placebo = ", ".join(signed(size, 2) for size in row["placebo_size"]) or NOTHING
    scale = row["size"] / row["effect"] if row["effect"] else 0.0
    ends = [scale * row[end] for end in ("effect", "low", "high")]
    around = None if band is None else (-band, band)
    drawn = forest(ends, 1.0, around, row["placebo_size"], moved=row["moved"])
    size = Cell(signed(row["size"], 2), "moved" if row["moved"] else "still")
    seeds = "{} of {}".format(*row["seeds_alike"])
    words = [str(row["feature"]), feature_text(row), effect, q_text(row["q"]), size, placebo]
    return [*words, Cell(NOTHING, "still", drawn), seeds]
