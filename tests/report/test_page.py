"""The page of `rahf report`: complete, escaped, small, readable; damaged files are named."""

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from headless_browser import browser, tab
from report_folders import write_everything, write_run

from rahf.cli import COMMANDS, main
from rahf.interpret.audit.section import audit_views
from rahf.interpret.audit.verdict import audits_of
from rahf.report.page.charts import curves, forest, ticks
from rahf.report.page.figures import plain, signed, spread_over
from rahf.report.page.found import read_found
from rahf.report.page.kinds import READ, READ_AS_TRAININGS, command_of
from rahf.report.page.render import render_page


def page_of(*folders, placebos=(), asked=()):
    found = read_found([*folders], [*placebos])
    return render_page(found, audit_views(audits_of(found, asked)), "rahf report out")


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    return write_everything(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def page(everything) -> str:
    text, problems = page_of(everything)
    assert problems == []
    return text


class Elements(HTMLParser):
    """Every element with its attributes and its own text, in order."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), []))

    def handle_data(self, data):
        if self.found:
            self.found[-1][2].append(data)

    def named(self, *tags):
        return [
            (tag, given, "".join(text).strip()) for tag, given, text in self.found if tag in tags
        ]


SECTIONS = ("audit", "made", "cost", "sweep", "layers", "answers", "judged", "preferences", "tasks")
SECTIONS += ("shift", "features", "influence", "validation", "cleaning", "forecast", "guards")


def test_every_result_has_its_section(page):
    ids = [given["id"] for _, given, _ in Elements(page).named("section")]
    assert ids == [*SECTIONS, "missing"][: len(ids)]
    assert set(SECTIONS) <= set(ids)


NOT_READ = {
    "recipes copy": "copies a recipe, measures nothing",
    "prepare": "fills the cache, measures nothing",
    "report": "is the page",
    "export": "writes an adapter in other forms, measures nothing",
    "push": "sends files, measures nothing",
    "generate": "writes responses; evaluate responses and shift measure them",
    "features steer": "writes responses; evaluate responses measures them",
    "directions": "measures vectors, not a training: evidence.md is beside them",
    "reward": "trains a judge, not a policy: its accuracy is in its own folder",
    "influence fit": "writes factors; influence score reads them",
    "features train": "measures a dictionary, not a training: quality.md is beside it",
    "features decompose": "looks into a dictionary, not at a training",
    "features probe": "looks into a dictionary, not at a training",
    "features logits": "looks into a dictionary, not at a training",
    "features neurons": "looks into a dictionary, not at a training",
    "features universality": "compares dictionaries, not trainings",
    "features splitting": "compares dictionaries, not trainings",
    "features explain": "is read by features diff --explanations, and shown with its features",
    "features score": "is read by features diff --explanations, and shown with its features",
}
"""Commands whose results the page leaves out, and why."""


def test_the_result_of_every_command_is_read_or_left_out_for_a_reason():
    commands = {
        word
        for name, entry in COMMANDS.items()
        for word in (
            [f"{name} {kind}" for kind in entry.kinds] if "kinds" in dir(entry) else [name]
        )
    }
    read = {command.removeprefix("rahf ") for command in (*READ, *READ_AS_TRAININGS)}
    write_nothing = {"chat", "completion", "data", "env", "plan", "recipes list", "validate"}
    assert commands - write_nothing == read | NOT_READ.keys()
    assert not read & NOT_READ.keys()


@pytest.mark.parametrize("command", READ)
def test_the_figures_of_every_command_that_is_read_are_shown_with_it(everything, page, command):
    written = [json.loads(path.read_text()) for path in everything.rglob("*.json")]
    own = [each["command"] for each in written if each.get("made_by") == command]
    assert own, f"write a result of {command} in report_folders.py"
    assert all(f"<code>{words}</code>" in page for words in own)


@pytest.mark.parametrize("command", [name for name, kind in READ.items() if kind.keys])
def test_a_result_that_names_no_command_is_known_by_its_keys(everything, command):
    written = [json.loads(path.read_text()) for path in everything.rglob("*.json")]
    for each in written:
        if each.pop("made_by", None) == command:
            assert command_of(each) == command


def test_figures_of_another_command_are_left_out(everything, tmp_path):
    figures = json.loads((everything / "tasks.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(figures | {"made_by": "rahf features probe"}))
    assert not any(read_found([tmp_path]).parts.values())


def test_the_reached_share_of_a_layer_has_its_interval_or_says_that_there_is_none(page):
    cells = [text for _, _, text in Elements(page).named("td")]
    assert "0.4 [0.32, 0.48]" in cells
    assert "0.5 (no interval)" in cells


def test_a_longer_answer_is_flagged_and_what_did_not_move_is_not(everything):
    [audit] = audits_of(read_found([everything]))
    moved = {line.looked.name for line in audit.lines if line.moved}
    assert audit.placebos == 3
    assert moved == {"length"}
    by_name = {line.looked.name: line for line in audit.lines}
    assert by_name["lexicon"].looked.asked
    assert {"repetition", "refusal", "empty", "regex:x", "ability loss"} <= by_name.keys()
    assert {"direction tone", "pairs of preferences"} <= by_name.keys()
    # The placebos raise the loss by as much: it moved, and not beyond them.
    assert by_name["ability loss"].looked.p < 1e-3
    assert not by_name["ability loss"].moved
    [view] = audit_views([audit])
    assert view.level == "moved"
    assert view.verdict == "1 of 8 unasked traits moved: length."


def test_what_is_asked_for_by_name_is_not_counted(everything):
    [audit] = audits_of(read_found([everything]), ("length", "2"))
    assert not audit.moved
    assert [row["feature"] for row in audit.features[0].rows] == [0, 1, 3, 4, 5]
    with pytest.raises(ValueError, match="--asked lenght: nothing of that name was looked at"):
        audits_of(read_found([everything]), ("lenght",))


def test_without_a_placebo_the_verdict_is_open(tmp_path):
    out = write_run(tmp_path / "out", shift=6.0)
    [view] = audit_views(audits_of(read_found([out])))
    assert view.level == "open"
    assert "changed, without a placebo: length" in view.verdict
    assert any(note.startswith("No placebo was measured") for note in view.notes)


def test_without_an_evaluation_no_trait_counts_as_looked_at(tmp_path):
    out = write_run(tmp_path / "out")
    shutil.rmtree(out / "evaluation")
    (out / "log.jsonl").unlink()
    [view] = audit_views(audits_of(read_found([out])))
    assert view.level == "open"
    assert view.verdict == "No trait was looked at: nothing was measured after the training."


def test_texts_of_data_are_escaped_and_their_hidden_characters_visible(page):
    elements = Elements(page)
    assert not elements.named("script", "iframe", "object", "embed", "form", "img")
    assert "<script" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)
    assert r"\u202eevil" in page
    assert "{{ 7*7 }}" in page
    assert not [name for _, given, _ in elements.found for name in given if name.startswith("on")]


def test_nothing_on_the_page_leads_outside(page):
    for _, given, _ in Elements(page).found:
        for name in ("href", "src", "action", "data", "poster", "srcset", "xlink:href"):
            assert given.get(name, "#").startswith(("#", "data:,"))
    style = "".join(text for tag, _, text in Elements(page).named("style"))
    assert "url(" not in style
    assert "@import" not in style


def test_headings_are_in_order_and_tables_and_anchors_complete(page):
    elements = Elements(page)
    levels = [int(tag[1]) for tag, _, _ in elements.named("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(given.get("scope") in ("col", "row") for _, given, _ in elements.named("th"))
    ids = [given["id"] for _, given, _ in elements.found if "id" in given]
    assert len(ids) == len(set(ids))
    links = [given["href"] for _, given, _ in elements.named("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.lstrip().startswith("<!doctype html>")
    assert elements.named("html")[0][1]["lang"] == "en"
    for _, given, _ in elements.named("svg"):
        assert given.get("aria-label") or given.get("aria-hidden") == "true"
    # Nothing is shown to a pointer only.
    assert not [given for _, given, _ in elements.found if "title" in given]


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


GROUNDS = {
    "ink": ("ground", "sheet", "bad-ground", "good-ground", "open-ground", "band"),
    **dict.fromkeys(("quiet", "link", "s0", "s1", "s2", "s3", "s4", "s5"), ("ground", "sheet")),
    **dict.fromkeys(("good", "bad", "open", "asked", "marginal"), ("sheet",)),
    "shifted": ("shifted-ground",),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(page, scheme):
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[scheme == "dark"]))
    for text, grounds in GROUNDS.items():
        for ground in grounds:
            light, dark = sorted((luminance(colors[text]), luminance(colors[ground])))[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_ten_thousand_rows_stay_below_five_megabytes_and_are_counted(tmp_path):
    out = write_everything(tmp_path, rows=10_000)
    text, problems = page_of(out)
    assert problems == []
    assert len(text.encode()) < 5 * 2**20
    for where, left in (("answers.jsonl", 9992), ("shift.jsonl", 9988), ("features.json", 9960)):
        assert re.search(rf"{left:,} more \w+ in [^<]*{re.escape(where)}", text), where
    assert "9,992 more queries" in text


def test_missing_parts_are_listed_with_their_commands(tmp_path):
    text, _ = page_of(write_run(tmp_path / "out"))
    listed = text[text.index('<section id="missing"') :]
    for command in READ:
        assert f"<code>{command}" in listed
    assert 'id="shift"' not in text


def keys_of(value) -> list:
    return list(value) if isinstance(value, dict) else []


def damages(content: str):
    """Yield contents of a damaged file: cut, of another shape, with keys gone or wrong."""
    yield from ("", "[1]", "null", content[: len(content) // 2], "\xff\x00", "[" * 100_000)
    first = content.split("\n", 1)[0] if content.startswith('{"') else content
    try:
        whole, rest = json.loads(content), ""
    except ValueError:
        try:
            whole, rest = json.loads(first), content.removeprefix(first)
        except ValueError:
            return
    for key in keys_of(whole):
        others = {name: each for name, each in whole.items() if name != key}
        for value in ({}, None, "text", [[None]], {"a": None}, 1e999):
            yield json.dumps({**others, key: value}) + rest
        yield json.dumps(others) + rest
        for inner in keys_of(whole[key]):
            for value in (None, "text", {"a": 1}):
                yield json.dumps({**whole, key: {**whole[key], inner: value}}) + rest


FILES = (
    "metrics.json",
    "stage.json",
    "recipe.yaml",
    "log.jsonl",
    "evaluation/answers.jsonl",
    "evaluation/texts.jsonl",
    "diff/features.json",
    "compare/comparison.json",
    "compare/points.jsonl",
    "shift/summary.json",
    "shift/shift.jsonl",
    "influence/summary.json",
    "influence/queries.jsonl",
    "influence/validation.json",
    "preferences.json",
    "scores.json",
    "aspects.json",
    "wins.json",
    "tasks.json",
    "cleaning/cleaning.json",
    "screen/summary.json",
    "sweep/results.json",
)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_never_stops_the_page_and_is_named_where_it_is_left_out(
    everything, tmp_path, name
):
    out = tmp_path / "out"
    first = name.partition("/")[0]
    if first not in ("evaluation", name) or "made_by" in (everything / name).read_text()[:20]:
        (out / first).parent.mkdir()
        copy = shutil.copytree if (everything / first).is_dir() else shutil.copy
        copy(everything / first, out / first)
    else:  # with few units, whose intervals are quick
        write_run(out, prompts=6, texts=4)
        shutil.copy(everything / "preferences.json", out)
    path = out / name
    intact = path.read_text()
    for place, content in enumerate(damages(intact)):
        path.write_text(content, encoding="latin-1")
        text, problems = page_of(out)
        assert all(str(out) in line for line in problems)
        assert ("damaged" in text) >= bool(problems)
        if place in (1, 5) and name != "recipe.yaml":
            assert any(path.name in line or str(path.parent) in line for line in problems)


HUGE = ("9" * 400, "-1e308", "1e308")


@pytest.mark.parametrize("name", sorted(set(FILES) - {"recipe.yaml"}))
def test_a_number_beyond_any_figure_never_stops_the_page(everything, tmp_path, name):
    out = tmp_path / "out"
    shutil.copytree(everything, out)
    path, places = out / name, r"(?<=[ \[])-?\d+\.\d+(?=[,}\]])"
    intact = path.read_text()
    for value in HUGE:
        path.write_text(re.sub(places, value, intact, count=12))
        assert "inf" not in re.sub(r"<[^>]*>", " ", page_of(out)[0]).split()


def test_what_is_no_file_and_a_recipe_of_aliases_are_named(everything, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(everything, out)
    (out / "broken.json").symlink_to("nowhere")
    (out / "log.jsonl").unlink()
    (out / "log.jsonl").mkdir()
    names = "abcdefghi"
    doubled = [
        f"{name}: &{name} [{', '.join(['x' if not n else '*' + names[n - 1]] * 9)}]"
        for n, name in enumerate(names)
    ]
    (out / "recipe.yaml").write_text("\n".join(doubled))
    problems = "\n".join(page_of(out)[1])
    for name in ("broken.json", "log.jsonl: left out, not a file", "aliases written out"):
        assert name in problems


def test_secrets_of_a_recipe_are_not_on_the_page(tmp_path):
    out = write_run(tmp_path / "a b; rm -rf c", prompts=6, texts=4)
    settings = "hub_token: hush\nevaluation: {url: 'http://me:hush@host/v1?api_key=hush'}"
    (out / "recipe.yaml").write_text(settings)
    text, _ = page_of(out)
    assert "hush" not in text
    assert "rahf align &#39;" in text  # a folder is one word of the command


def test_folders_without_a_result_are_an_error(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["report", str(tmp_path)]) == 2
    assert "no results of rahf in it" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    out = write_run(tmp_path / "out", prompts=6, texts=4)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        read_found([out], [tmp_path / "notes.txt"])


def test_the_command_writes_a_page_and_overwrites_only_its_own(everything, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(everything), "--output", str(page)]) == 0
    assert f"page: {page}" in capsys.readouterr().out
    assert "rahf report" in page.read_text()
    assert main(["report", str(everything), "--output", str(page)]) == 0
    page.write_text("a user's own")
    assert main(["report", str(everything), "--output", str(page)]) == 2
    assert "was not written by rahf report; give another" in capsys.readouterr().err
    assert page.read_text() == "a user's own"
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "does not exist: give the output folders" in capsys.readouterr().err


def test_files_that_were_left_out_are_reported_on_stderr(everything, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(everything / "diff", out)
    (out / "features.json").write_text("{")
    assert main(["report", str(out)]) == 0
    assert f"note: {out / 'features.json'}: left out, not JSON" in capsys.readouterr().err
    assert (out / "report.html").exists()


def test_numbers_are_short_and_signed():
    assert plain(1234567) == "1,234,567"
    assert signed(0.00012345) == "+0.000123"
    assert signed(-2) == "\N{MINUS SIGN}2"
    assert signed(0.0) == "0"
    assert spread_over(range(10), 3) == [0, 3, 6]


def test_charts_have_round_ticks_and_leave_out_what_is_not_finite():
    assert ticks(0, 10) == pytest.approx([0, 2.5, 5, 7.5, 10])
    assert ticks(0, 10, whole=True) == [0, 2, 4, 6, 8, 10]
    assert curves("a", "b", ("x", "y"), {"one": [(0, float("nan"))]}) is None
    chart = curves("a", "b", ("x", "y"), {"one": [(0, 1), (1, float("inf")), (2, 3)]})
    assert len(chart.lines[0].points) == 2
    assert forest((1.0, float("nan"), 2.0), 1.0, None, [], moved=False) is None


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_errors_requests_or_cut_tables(
    page, tmp_path, width, dark
):
    path = tmp_path / "page.html"
    path.write_text(page)
    with tab(tmp_path / "profile") as opened:
        opened.open(path, width, dark=dark)
        assert opened.requests() == [path.resolve().as_uri()]
        assert opened.complaints() == []
        opened.value("document.querySelectorAll('details').forEach(each => { each.open = true })")
        wide = "document.documentElement.scrollWidth"
        assert opened.value(wide) == width
        cut = """[...document.querySelectorAll('body *')]
          .filter(each => !each.closest('thead, .skip'))
          .filter(each => each.getBoundingClientRect().right > innerWidth + 0.5)
          .map(each => each.outerHTML)"""
        assert opened.value(cut) == []
        ground = opened.value("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(21, 23, 27)") == dark
        opened.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab")
        assert opened.value("document.activeElement.textContent") == "To the audit"
        opened.picture(tmp_path / "page.png")
