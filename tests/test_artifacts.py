"""Files of a run are written completely or not at all; a stage records what made it."""

import errno
import threading
from pathlib import Path

import pytest
import torch

from rahf.artifacts import (
    alone,
    read_json,
    read_lines,
    write_json,
    write_lines,
    write_text,
)
from rahf.directions.vectors import Directions
from rahf.generation.record_file import ResumableFile
from rahf.judges.judge import Verdict, Verdicts
from rahf.records.stage_record import StageRecord


def test_what_is_written_is_read_back(tmp_path):
    write_json(tmp_path / "a/b.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a/b.json") == {"ü": [1, None]}
    write_lines(tmp_path / "c.jsonl", [{"x": 1}, {"x": "zwei\n"}])
    assert read_lines(tmp_path / "c.jsonl") == [{"x": 1}, {"x": "zwei\n"}]


def save_directions(path, _):
    Directions((1,), torch.ones(1, 2)).save(path.parent)


@pytest.mark.parametrize("write", [write_text, save_directions])
def test_a_link_in_place_of_the_temporary_file_is_not_written_through(tmp_path, write):
    (tmp_path / "mine").write_text("mine")
    path = tmp_path / "directions.safetensors"
    path.with_name(f".{path.name}.partial").symlink_to("mine")
    write(path, "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not path.is_symlink()


def test_a_text_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path):
    records = [{"text": "a\u2028b\x85c\rd"}, {"text": "e"}]
    write_lines(tmp_path / "records.jsonl", records)
    assert read_lines(tmp_path / "records.jsonl") == records


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_text(path, "old")
    whole = Path.write_text

    def full(self, text, **options):
        whole(self, text[:2], **options)
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new and longer")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


def test_a_stage_is_complete_only_after_it_has_finished(tmp_path):
    record = StageRecord(tmp_path / "stage", {"lr": 1e-3})
    assert not record.is_complete()
    record.begin()
    assert not record.is_complete()
    record.finish(seconds=3)
    assert record.is_complete()
    assert StageRecord(tmp_path / "stage", {"lr": 1e-3}).is_complete()


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_and_every_difference_is_named(tmp_path, finished):
    record = StageRecord(tmp_path, {"lr": 1e-3, "data": {"name": "a"}, "same": 1})
    write_text(tmp_path / "checkpoint-1" / "weights", "half of them")
    record.finish() if finished else record.begin()
    with pytest.raises(ValueError, match="made with other settings") as refused:
        StageRecord(tmp_path, {"lr": 2e-3, "data": {"name": "b"}, "same": 1}).is_complete()
    lines = str(refused.value).splitlines()
    assert "  data.name: 'a' there, 'b' now" in lines
    assert "  lr: 0.001 there, 0.002 now" in lines
    assert not any("same" in line for line in lines)


def test_a_setting_that_is_gone_counts_unless_it_stood_where_it_had_no_effect(tmp_path):
    now, defaults = {"lr": 1, "data": {"name": "a"}}, {"weight": 0.0, "data": {"old": 1}}
    StageRecord(tmp_path, {**now, "weight": 0.0, "data": {"name": "a", "old": 1}}).finish(seconds=3)
    assert StageRecord(tmp_path, now, defaults).is_complete()
    assert StageRecord(tmp_path, now, defaults).begun() == {"seconds": 3}
    with pytest.raises(ValueError, match=r"weight: 0\.0 there, None now"):
        StageRecord(tmp_path, now).is_complete()
    StageRecord(tmp_path, {**now, "weight": 0.5}).finish()
    with pytest.raises(ValueError, match=r"weight: 0\.5 there, None now"):
        StageRecord(tmp_path, now, defaults).is_complete()


def test_a_stage_that_failed_before_it_left_anything_may_begin_with_other_settings(tmp_path):
    StageRecord(tmp_path, {"model": "a typo"}).begin()
    assert not StageRecord(tmp_path, {"model": "the model"}).is_complete()
    StageRecord(tmp_path, {"model": "the model"}).finish()
    with pytest.raises(ValueError, match="other settings"):
        StageRecord(tmp_path, {"model": "another"}).is_complete()


def test_a_record_without_a_key_that_came_later_was_made_with_its_default(tmp_path):
    before = {"lr": 1e-3, "teachers": {"steps": 2}}
    StageRecord(tmp_path, before).finish(seconds=3)
    defaults = {"weight": 0.0, "teachers": {"beta": 0.1, "steps": 9}, "lr": 7, "unread": 1}
    same = {"lr": 1e-3, "teachers": {"steps": 2, "beta": 0.1}, "weight": 0.0}
    assert StageRecord(tmp_path, same, defaults).is_complete()
    assert StageRecord(tmp_path, same, defaults).begun() == {"seconds": 3}
    for changed in ({"weight": 0.5}, {"teachers": {"steps": 2, "beta": 0.2}}, {"other": 1}):
        with pytest.raises(ValueError, match="made with other settings"):
            StageRecord(tmp_path, {**same, **changed}, defaults).is_complete()
        assert StageRecord(tmp_path, {**same, **changed}, defaults).begun() == {}


def test_settings_that_json_writes_alike_are_the_same(tmp_path):
    StageRecord(tmp_path, {"layers": (1, 2)}).finish()
    assert StageRecord(tmp_path, {"layers": [1, 2]}).is_complete()


def test_a_file_is_made_record_by_record_and_goes_on_after_the_last_complete_one(tmp_path):
    path, settings = tmp_path / "deep" / "out.jsonl", {"seed": 1, "model": {"name": "a"}}
    file = ResumableFile(path, settings)
    file.begin()
    file.add([{"row": 3}, {"row": 5}])
    with (tmp_path / "deep" / "out.jsonl.unfinished").open("a") as half:
        half.write('{"row": 7, "te')
    again = ResumableFile(path, settings)
    assert (again.complete, again.records) == (False, [{"row": 3}, {"row": 5}])
    again.begin()
    again.add([{"row": 7, "text": "é"}])
    third = ResumableFile(path, settings)
    assert [record["row"] for record in third.records] == [3, 5, 7]
    third.finish("all of it", rows=3)
    assert sorted(p.name for p in path.parent.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]
    done = ResumableFile(path, settings)
    assert done.complete
    assert done.results() == {"rows": 3}
    assert path.read_text() == "all of it"


def test_a_file_killed_before_its_first_record_is_begun_anew(tmp_path):
    (tmp_path / "out.unfinished").write_text('{"settin')
    file = ResumableFile(tmp_path / "out", {"seed": 1})
    file.begin()
    file.add([{"row": 0}])
    assert ResumableFile(tmp_path / "out", {"seed": 1}).records == [{"row": 0}]


class Lengths:
    """A scorer that counts letters."""

    id, responses = "letters", 1

    def read(self, messages, *responses):
        return responses[0]

    def verdicts(self, read):
        return (Verdict(float(len(text)), "said") for text in read)


def verdicts_of(folder):
    """Judge three texts, or what is damaged of them; returns the file."""
    values = [verdict.value for verdict in Verdicts(folder / "v.jsonl").ask(Lengths(), "abc")]
    assert values == [1, 1, 1]
    return folder / "v.jsonl"


def records_of(folder):
    """Make three records, or what is damaged of them; returns the file."""
    file = ResumableFile(folder / "out", {"seed": 1})
    file.begin()
    known = {record["row"] for record in file.records}
    file.add({"row": row} for row in range(3) if row not in known)
    assert sorted(record["row"] for record in file.records) == [0, 1, 2]
    return folder / "out.unfinished"


@pytest.mark.parametrize("resumed", [verdicts_of, records_of])
@pytest.mark.parametrize(
    "damaged",
    [
        b'{"row": 1, "ju',
        b'{"row": "\xff\xfe"}',
        b"\0" * 40,
        b"null",
        b'["row"]',
        b'{"judge": "letters", "prompt_hash": "x"}',
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_a_damaged_line_of_a_file_that_is_resumed_is_named_and_made_again(
    tmp_path, caplog, resumed, damaged
):
    path = resumed(tmp_path)
    whole = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*whole[:-2], damaged, whole[-1], b""]))
    resumed(tmp_path)
    assert f"{path}: 1 damaged and made again: line {len(whole) - 1}" in caplog.text
    assert sorted(path.read_bytes().splitlines()) == sorted(whole)
    caplog.clear()
    resumed(tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "damaged", ['"value": NaN', '"value": "1"', '"value": [1]', '"value": {"a": "b"}', '"other": 1']
)
def test_a_kept_verdict_that_is_no_number_is_given_again(tmp_path, caplog, damaged):
    path = verdicts_of(tmp_path)
    path.write_text(path.read_text().replace('"value": 1.0', damaged, 1))
    verdicts_of(tmp_path)
    assert "1 damaged and made again: line 1" in caplog.text


@pytest.mark.parametrize(
    "content", [b"my notes\n", b'{"prompt": "a", "chosen": "b"}\n', b"[1]\n{}", b"\0" * 9]
)
def test_a_file_that_holds_no_verdicts_is_refused_and_left_as_it_is(tmp_path, content):
    (tmp_path / "v.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"v\.jsonl is not a file of verdicts; give another name"):
        verdicts_of(tmp_path)
    assert (tmp_path / "v.jsonl").read_bytes() == content


@pytest.mark.parametrize("content", ["", "[1]", "null", "{}", '{"complete": true}', '{"comple'])
def test_a_damaged_record_of_a_stage_is_named_with_what_to_delete(tmp_path, content):
    record = StageRecord(tmp_path, {"lr": 1})
    record.finish()
    (tmp_path / "stage.json").write_text(content)
    for read in (record.is_complete, record.damage, record.begun):
        with pytest.raises(ValueError, match=r"stage\.json is damaged\. .* not its subfolders"):
            read()


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "adapter_config.json", "model-00001-of-00002.safetensors", "q.gguf"),
        *("checkpoint-5/trainer_state.json", "checkpoint-500/optimizer.pt"),
    ],
)
def test_a_folder_with_a_model_that_no_stage_left_is_refused(tmp_path, name):
    write_text(tmp_path / name, "{}")
    with pytest.raises(ValueError, match=f"holds {name} and no stage"):
        StageRecord(tmp_path, {"lr": 1}).is_complete()
    assert (tmp_path / name).is_file()


def test_a_file_whose_first_line_is_damaged_is_not_resumed(tmp_path):
    path = records_of(tmp_path)
    path.write_bytes(path.read_bytes()[3:])
    for _ in range(2):
        with pytest.raises(ValueError, match="the first line, what the file was begun with"):
            records_of(tmp_path)


def test_a_last_line_without_its_end_is_kept_where_it_is_whole(tmp_path, caplog):
    for resumed in (verdicts_of, records_of):
        path = resumed(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        resumed(tmp_path)
        assert path.read_bytes() == whole
    assert caplog.text == ""


@pytest.mark.parametrize("finished", [True, False])
def test_a_file_made_with_other_settings_is_left_alone(tmp_path, finished):
    file = ResumableFile(tmp_path / "out", {"model": {"name": "a"}})
    file.begin()
    if finished:
        file.finish("text")
    with pytest.raises(ValueError, match=r"model\.name: 'a' there, 'b' now"):
        ResumableFile(tmp_path / "out", {"model": {"name": "b"}})


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def repeat(path):
    path.write_text(path.read_text() * 2)


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_link(path, text="other"):
    path.unlink()
    path.with_name("other").write_text(text)
    path.symlink_to("other")


def as_link_to_nothing(path):
    path.unlink()
    path.symlink_to("nothing")


@pytest.mark.parametrize("change", [cut, repeat, as_folder, as_link, as_link_to_nothing])
def test_a_finished_file_that_has_changed_is_refused(tmp_path, change):
    file = ResumableFile(tmp_path / "out", {"seed": 1})
    file.begin()
    file.finish("line 1\nline 2\n")
    assert ResumableFile(tmp_path / "out", {"seed": 1}).complete
    change(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(ValueError, match="out has changed since it was written: delete it"):
            ResumableFile(tmp_path / "out", {"seed": 1})


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"settings": 1}'])
def test_a_damaged_record_of_a_finished_file_is_named(tmp_path, content):
    file = ResumableFile(tmp_path / "out", {"seed": 1})
    file.begin()
    file.finish("text")
    (tmp_path / "out.run.json").write_text(content)
    with pytest.raises(ValueError, match=r"out\.run\.json is damaged\. Delete it and out to make"):
        ResumableFile(tmp_path / "out", {"seed": 1})


def test_a_finished_file_may_be_linked_renamed_and_of_a_version_without_hashes(tmp_path):
    file = ResumableFile(tmp_path / "out", {"seed": 1})
    file.begin()
    file.finish("text", rows=1)
    as_link(tmp_path / "out", "text")
    assert ResumableFile(tmp_path / "out", {"seed": 1}).complete
    for name in ("", ".run.json"):
        (tmp_path / f"out{name}").rename(tmp_path / f"new{name}")
    assert ResumableFile(tmp_path / "new", {"seed": 1}).results() == {"rows": 1}
    run = read_json(tmp_path / "new.run.json")
    write_json(tmp_path / "new.run.json", {k: v for k, v in run.items() if k != "sha256"})
    (tmp_path / "other").write_text("edited")
    assert ResumableFile(tmp_path / "new", {"seed": 1}).complete


def test_a_file_of_another_origin_is_not_overwritten(tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(ValueError, match="already exists"):
        ResumableFile(tmp_path / "out", {})


def test_what_one_process_makes_another_waits_for(tmp_path, capsys):
    done, began = [], threading.Event()

    def second():
        began.set()
        with alone(tmp_path / "a/run"):
            done.append("second")

    waiting = threading.Thread(target=second)
    with alone(tmp_path / "a/run"), alone(tmp_path / "a/other"):
        waiting.start()
        began.wait()
        waiting.join(0.3)
        assert waiting.is_alive()
        done.append("first")
    waiting.join(10)
    assert done == ["first", "second"]
    assert f"waiting for another process, which is making {tmp_path / 'a/run'}" in (
        capsys.readouterr().out
    )


def test_a_lock_is_given_back_where_the_work_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="failed"), alone(tmp_path / "run"):
            raise RuntimeError("failed")
