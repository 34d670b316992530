"""Rounds of more effort beside a run: made, continued, merged, repeated, and joined into its figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from art_defenses_ext import evaluate
from art_defenses_ext.attack.auto_pgd import AutoPGD
from art_defenses_ext.attack.square import Square
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation import merge as merge_module, task as module
from art_defenses_ext.evaluation.evaluate import evaluate_shard
from art_defenses_ext.evaluation.merge import merge
from art_defenses_ext.evaluation.report.page import render_page
from art_defenses_ext.evaluation.report.report import Report
from art_defenses_ext.evaluation.rerun import Rerun
from art_defenses_ext.evaluation.run import describe
from art_defenses_ext.evaluation.run.block import Work
from art_defenses_ext.evaluation.run.folder import FINDINGS, RECORDS, RunDirectory, read_manifest, read_records
from art_defenses_ext.evaluation.run.shard import Shard
from art_defenses_ext.evaluation.suite.attacker import Attacker
from art_defenses_ext.evaluation.suite.plan import AttackRun
from art_defenses_ext.evaluation.suite.rounds import round_name, round_plan
from art_defenses_ext.evaluation.suite.spec import AttackSpec
from art_defenses_ext.evaluation.threat import Threat

from ..conftest import omit_pictures

pytestmark = pytest.mark.usefixtures("without_pictures")

SAMPLES = 8


def few_steps(
    number: int, attacker: Attacker, threat: Threat, gains: Mapping[str, int], repeated: Collection[str] | None
) -> list[AttackRun]:
    """Two attacks in place of those of a round, with more steps in each."""
    specs = [
        AttackSpec(
            round_name(number, "APGD"),
            lambda c, t, seed: AutoPGD(c, t.norm, t.eps, max_iter=10 * number, seed=seed),
            "more effort",
            kind="white-box",
            modes="all",
        ),
        AttackSpec(
            round_name(number, "Square"),
            lambda c, t, seed: Square(c, t.norm, t.eps, max_queries=40 * number, seed=seed),
            "more effort",
            kind="queries",
        ),
    ]
    mode = "smooth" if "smooth" in attacker.modes else "exact"
    return [AttackRun(specs[0], mode, threat, "round"), AttackRun(specs[1], "exact", threat, "round")]


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "round_plan", few_steps)


@pytest.fixture(scope="module")
def run_folder(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The first blocks of the finished run once more, with two rounds after them."""
    folder = tmp_path_factory.mktemp("rounds") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "round_plan", few_steps)
        omit_pictures(patch)
        evaluate(**make_call(finished_run), out=folder)
    return folder


def make_call(finished_run: Any) -> dict[str, Any]:
    """The call of the finished run for its first two blocks, with two rounds after them."""
    data = finished_run.x[:SAMPLES], finished_run.y[:SAMPLES]
    return finished_run.call | finished_run.options | {"data": data, "effort": "2"}


def read_round_records(folder: Path) -> list[bytes]:
    return [(part / RECORDS).read_bytes() for part in (folder, folder / "rounds" / "1", folder / "rounds" / "2")]


def test_rounds_do_not_change_the_run_and_attack_its_unbroken_images(finished_run: Any, run_folder: Path) -> None:
    records, report = read_records(run_folder), Report.load(run_folder)
    assert records == read_records(finished_run.folder)[:SAMPLES]
    unbroken = [record.index for record in records if record.robust({"APGD [exact]", "APGD [relu]", "APGD [smooth]"})]
    attacked = [record.index for record in report.records if "round 1: APGD [smooth]" in record.attacks]
    assert attacked == unbroken
    rounds = [round_summary.result for round_summary in report.summary.rounds]
    assert rounds[0].robust_before + rounds[0].broken_otherwise == len(unbroken)
    assert rounds[0].robust_before == sum(record.robust() for record in records)
    broken = sum(round_summary.broken for round_summary in rounds)
    assert broken == sum(record.robust() for record in records) - report.summary.worst_case.count
    assert broken > 0
    passes = [round_summary.cost.forward for round_summary in report.summary.rounds]
    assert report.summary.total.forward > sum(passes) > passes[0] > 0


def test_each_round_is_told_what_the_rounds_before_it_broke(
    finished_run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = []

    def noted(*arguments: Any) -> list[AttackRun]:
        told.append(arguments[-1])
        return few_steps(*arguments)

    monkeypatch.setattr(module, "round_plan", noted)
    evaluate(**make_call(finished_run), out=tmp_path / "run")
    first_round = Report.load(tmp_path / "run").summary.rounds[0].result
    assert first_round.broken > 0
    assert told[0] is None
    assert told[1]
    assert told[1] <= {"APGD [smooth]", "Square"}


def test_a_report_prints_the_result_of_each_round(run_folder: Path) -> None:
    report = Report.load(run_folder)
    results = [round_summary.result for round_summary in report.summary.rounds]
    page = render_page(report.summary, report.examples, {}).replace("\N{NO-BREAK SPACE}", " ")
    assert "Rounds of more effort" in page
    for result in results:
        assert f"{result.broken} of {result.robust_before}" in page
    sentence = f"Of {results[0].robust_before} images left by the suite, 2 rounds of more effort broke "
    assert sentence + str(sum(round_summary.broken for round_summary in results)) in str(report)


def test_a_killed_round_is_unfinished_and_continues_to_the_same_bytes(
    finished_run: Any, run_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    shutil.rmtree(folder / "rounds" / "2")
    file = folder / "rounds" / "1" / RECORDS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="where round 1 of more effort is not finished"):
        Report.load(folder)
    evaluate(**make_call(finished_run), out=folder)
    assert read_round_records(folder) == read_round_records(run_folder)


def test_a_finished_run_continues_with_more_rounds_and_repeats_none_of_its_attacks(
    finished_run: Any, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, call = tmp_path / "run", make_call(finished_run)
    evaluate(**call | {"effort": "0"}, out=folder)
    manifests = [read_manifest(folder)]
    attack, begun = Work._attack, []

    def noted(self: Work, run: AttackRun, *arguments: Any) -> Any:
        begun.append(run.role)
        return attack(self, run, *arguments)

    monkeypatch.setattr(Work, "_attack", noted)
    for effort in ("1", "2"):
        evaluate(**call | {"effort": effort}, out=folder)
        manifests.append(read_manifest(folder))
    assert set(begun) == {"round"}
    assert read_round_records(folder) == read_round_records(run_folder)
    assert Report.load(folder).summary.robust_accuracy == Report.load(run_folder).summary.robust_accuracy
    assert [manifest.run.settings.effort for manifest in manifests] == ["0", "1", "2"]
    assert len({manifest.binding for manifest in manifests}) == 1
    with pytest.raises(InputError, match="which holds another run: settings effort '2', not '0'"):
        evaluate(**call | {"effort": "0"}, out=folder)
    with pytest.raises(InputError, match="which holds another run: settings seed 0, not 1"):
        evaluate(**call | {"effort": "auto", "seed": 1}, out=folder)


# In parts


def share(call: Mapping[str, Any], out: Path, numbers: Collection[int] = (1, 2), **changes: Any) -> list[Path]:
    """Make parts of the run, or of the next round once it is merged."""
    return [evaluate_shard(**call | changes, shard=Shard(number, 2), out=out) for number in numbers]


def merge_before_round(number: int, folder: Path) -> None:
    """Merge the parts in a folder, after which a round follows."""
    with pytest.raises(InputError, match=f"round {number} of more effort is not finished; .* whole or in parts"):
        merge([folder], folder)


@pytest.fixture(scope="module")
def merged_folder(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run in two parts, merged before its first round."""
    folder = tmp_path_factory.mktemp("merged") / "run"
    share(make_call(finished_run), folder)
    merge_before_round(1, folder)
    return folder


def test_merged_parts_continue_with_the_rounds_of_a_single_process(
    finished_run: Any, run_folder: Path, merged_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(merged_folder, tmp_path / "run")
    evaluate(**make_call(finished_run), out=tmp_path / "run")
    assert read_round_records(tmp_path / "run") == read_round_records(run_folder)
    assert Rerun.between(run_folder, tmp_path / "run").byte_equal


def test_rounds_in_parts_equal_those_of_a_single_process_also_after_a_kill(
    finished_run: Any, run_folder: Path, merged_folder: Path, tmp_path: Path
) -> None:
    call, folder = make_call(finished_run), tmp_path / "run"
    shutil.copytree(merged_folder, folder)
    (first,) = share(call, folder, [1])
    assert first == folder / "rounds" / "1" / "shards" / "1-of-2"
    with pytest.raises(InputError, match="1 of 2 blocks of 4 samples; the one from sample 4 on is missing"):
        merge([folder], folder)
    (second,) = share(call, folder, [2])
    (second / RECORDS).write_bytes((second / RECORDS).read_bytes()[:-100])
    with pytest.raises(InputError, match="2-of-2 is not finished"):
        merge([folder], folder)
    share(call, folder)
    merge_before_round(2, folder)
    assert share(call, folder)[0].parts[-4:] == ("rounds", "2", "shards", "1-of-2")
    report = merge([folder], folder)
    assert share(call, folder) == [folder, folder]  # no round is left
    assert read_round_records(folder) == read_round_records(run_folder)
    assert Rerun.between(run_folder, folder).byte_equal
    assert report.robust_accuracy == Report.load(run_folder).robust_accuracy
    assert [(example.index, example.attack) for example in report.examples] == [
        (example.index, example.attack) for example in Report.load(run_folder).examples
    ]
    assert merge([folder], folder).records == report.records


def test_parts_ask_a_finished_run_for_more_rounds(finished_run: Any, run_folder: Path, tmp_path: Path) -> None:
    call, folder = make_call(finished_run), tmp_path / "run"
    share(call, folder, effort="0")
    merge([folder], folder)
    for effort in (1, 2):
        share(call, folder, effort=str(effort))
        assert len(merge([folder], folder).summary.rounds) == effort
        assert read_manifest(folder).run.settings.effort == str(effort)
    assert read_round_records(folder) == read_round_records(run_folder)
    with pytest.raises(InputError, match="which holds another run: settings effort '2', not '0'"):
        share(call, folder, effort="0")
    with pytest.raises(InputError, match="which holds another run: settings seed 0, not 1"):
        share(call, folder, seed=1)


def test_a_part_of_a_round_runs_in_any_environment_of_the_run(
    finished_run: Any, merged_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, mixed, plain = make_call(finished_run), tmp_path / "mixed", tmp_path / "plain"
    shutil.copytree(merged_folder, plain)
    share(call, mixed, [1], effort="1")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(describe.torch, "get_num_threads", lambda: 4)
        share(call, mixed, [2], effort="1")
        with pytest.raises(InputError, match="which holds another run: threads 1, not 4"):
            share(call, plain)
    with pytest.raises(InputError, match="round 1 of more effort is not finished"):
        merge([mixed], mixed, mixed=True)
    share(call, mixed, [1], effort="1")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(describe.torch, "get_num_threads", lambda: 4)
        share(call, mixed, [2], effort="1")
    report = merge([mixed], mixed, mixed=True)
    assert len(report.summary.rounds) == 1
    assert [environment["threads"] for environment in report.summary.run.environments] == [4]


def test_parts_of_rounds_keep_all_images(finished_run: Any, tmp_path: Path) -> None:
    call = make_call(finished_run) | {"effort": "1", "save_examples": "all"}
    evaluate(**call, out=tmp_path / "whole")
    share(call, tmp_path / "parts")
    merge_before_round(1, tmp_path / "parts")
    share(call, tmp_path / "parts")
    merge([tmp_path / "parts"], tmp_path / "parts")
    images = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "rounds" / "1" / "adversarial").glob("*.npz")}
        for name in ("whole", "parts")
    ]
    assert len(images[0]) == 3  # two attacks and the worst case
    assert images[0] == images[1]


@pytest.mark.parametrize(("before", "later"), [("1", "2"), ("auto", "4")])
def test_a_call_for_more_effort_is_noted_in_the_middle_of_a_round(
    finished_run: Any, merged_folder: Path, tmp_path: Path, before: str, later: str
) -> None:
    call, folder = make_call(finished_run), tmp_path / "run"
    share(call, folder, effort="0")
    merge([folder], folder)
    share(call, folder, [1], effort=before)
    share(call, folder, effort=later)
    merge_before_round(2, folder)
    assert read_manifest(folder).run.settings.effort == later


def test_a_call_for_more_effort_is_noted_also_if_no_round_follows(
    finished_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, folder = make_call(finished_run) | {"effort": "0"}, tmp_path / "run"
    share(call, folder)
    merge([folder], folder)
    monkeypatch.setattr("art_defenses_ext.evaluation.run.rounds.OF_EFFORT", ())
    assert share(call, folder, effort="auto") == [folder, folder]
    assert merge([folder], folder).summary.run.settings.effort == "auto"
    with pytest.raises(InputError, match="which holds another run: settings effort 'auto', not '0'"):
        share(call, folder)


def test_a_merge_killed_anywhere_is_completed_by_another(
    finished_run: Any, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed before each of its steps: a block, the findings, the images, the note of a round's effort."""
    call, folder = make_call(finished_run) | {"save_examples": "all", "effort": "0"}, tmp_path / "run"
    share(call, folder)
    left = interrupt_each_step(monkeypatch, lambda: merge([folder], folder))
    assert left == {"note_effort"}  # no round has been made
    assert (folder / "adversarial" / "worst_case.npz").exists()
    share(call, folder, effort="1")
    left = interrupt_each_step(monkeypatch, lambda: merge([folder], folder))
    assert left == {"finish"}  # a round has no findings
    assert (folder / "rounds" / "1" / "adversarial" / "worst_case.npz").exists()
    assert read_manifest(folder).run.settings.effort == "1"
    evaluate(**call | {"effort": "2"}, out=folder)
    assert read_round_records(folder) == read_round_records(run_folder)


def interrupt_each_step(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> set[str]:
    """Repeat a merge until it passes; each time it is interrupted at the first step that it reaches anew.

    Returns:
        The steps that it did not reach.
    """
    steps = [
        *((RunDirectory, name) for name in ("append", "finish")),
        *((merge_module, name) for name in ("join_images", "note_effort", "report_of")),
    ]
    left, passed = {name for _, name in steps}, False
    while not passed:
        with monkeypatch.context() as patch:
            for place, name in steps:
                patch.setattr(place, name, interrupted(name, getattr(place, name), left))
            try:
                call()
                passed = True
            except KeyboardInterrupt:
                pass
    return left


def interrupted(name: str, step: Callable[..., Any], left: set[str]) -> Callable[..., Any]:
    """Return a step of a merge that is interrupted the first time."""

    def first_time(*arguments: Any, **options: Any) -> Any:
        if name in left:
            left.remove(name)
            raise KeyboardInterrupt
        return step(*arguments, **options)

    return first_time


def test_shards_do_not_count_a_run_without_its_findings_as_merged(
    finished_run: Any, merged_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(merged_folder, tmp_path / "run")
    (tmp_path / "run" / FINDINGS).unlink()
    assert [part.name for part in share(make_call(finished_run), tmp_path / "run")] == ["1-of-2", "2-of-2"]
    merge_before_round(1, tmp_path / "run")


def test_a_part_begun_anew_is_continued_beside_the_old_run(
    finished_run: Any, merged_folder: Path, tmp_path: Path
) -> None:
    """The part that replaces an earlier one was interrupted; the same call without overwrite goes on with it."""
    shutil.copytree(merged_folder, tmp_path / "run")
    changed = make_call(finished_run) | {"seed": 1}
    (part,) = share(changed, tmp_path / "run", [1], overwrite=True)
    (part / RECORDS).write_bytes((part / RECORDS).read_bytes()[:-100])
    assert share(changed, tmp_path / "run", [1]) == [part]
    with pytest.raises(InputError, match="are parts of different runs: settings seed"):
        merge([tmp_path / "run"], tmp_path / "run")
    share(changed, tmp_path / "run", [2], overwrite=True)
    with pytest.raises(InputError, match="which holds another run: settings seed 0, not 1"):
        merge([tmp_path / "run"], tmp_path / "run")
    assert [part.name for part in share(changed, tmp_path / "run")] == ["1-of-2", "2-of-2"]


def test_parts_of_another_number_of_shards_do_not_prevent_a_merge(
    finished_run: Any, run_folder: Path, merged_folder: Path, tmp_path: Path
) -> None:
    call, folder = make_call(finished_run), tmp_path / "run"
    shutil.copytree(merged_folder, folder)
    shutil.rmtree(folder / "shards" / "2-of-2")  # what is left is a part of a run that is merged
    share(call, folder, [1])
    for number in (1, 2, 3):
        evaluate_shard(**call, shard=Shard(number, 3), out=folder)
    merge_before_round(2, folder)
    evaluate_shard(**call, shard=Shard(1, 1), out=folder)
    merge([folder], folder)
    assert read_round_records(folder) == read_round_records(run_folder)


def test_a_shard_that_is_the_whole_leaves_the_rounds_to_the_merged_run(
    finished_run: Any, run_folder: Path, tmp_path: Path
) -> None:
    whole = {"shard": Shard(1, 1), "out": tmp_path / "run"}
    part = evaluate_shard(**make_call(finished_run), **whole)
    assert not (part / "rounds").exists()
    for number in (1, 2):
        merge_before_round(number, tmp_path / "run")
        evaluate_shard(**make_call(finished_run), **whole)
    merge([tmp_path / "run"], tmp_path / "run")
    assert read_round_records(tmp_path / "run") == read_round_records(run_folder)


def test_all_images_are_not_kept_of_the_rounds_alone(finished_run: Any, merged_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(merged_folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "shards")
    with pytest.raises(InputError, match="samples from 0 on were attacked without it"):
        share(make_call(finished_run), tmp_path / "run", save_examples="all")


def test_overwriting_removes_parts_of_rounds(finished_run: Any, merged_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(merged_folder, tmp_path / "run")
    share(make_call(finished_run), tmp_path / "run", [1])
    evaluate(**make_call(finished_run) | {"effort": "0"}, out=tmp_path / "run", overwrite=True)
    assert not list((tmp_path / "run" / "rounds").glob("**/manifest.json"))
    assert list((tmp_path / "run" / "shards").glob("*/manifest.json"))  # parts of the run itself are others' folders


def test_a_round_of_another_run_is_refused(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    file = tmp_path / "run" / "rounds" / "1" / "manifest.json"
    shutil.copy(tmp_path / "run" / "manifest.json", file)
    with pytest.raises(InputError, match="changed by another hand"):
        Report.load(tmp_path / "run")


def test_the_attacks_of_a_round_grow_and_the_most_successful_come_first(finished_run: Any) -> None:
    attacker = Attacker.of(finished_run.classifier, finished_run.x[:4], finished_run.threat, True, 0)
    gains = {"APGD cross-entropy [smooth]": 5, "APGD margin, 30 steps [relu]": 2, "APGD annealed [smooth]": 7}
    gains["APGD staged, long [smooth]"] = 4
    plans = [round_plan(number, attacker, finished_run.threat, gains) for number in (1, 2)]
    assert [run.key.partition(": ")[2] for run in plans[0][:4]] == [
        "APGD annealed [smooth]", "APGD cross-entropy [smooth]", "APGD targeted [smooth]", "APGD margin [relu]",
    ]  # fmt: skip
    assert len({run.key for plan in plans for run in plan}) == 2 * len(plans[0])
    for first, second in zip(*plans, strict=True):
        target = attacker.attacked
        weaker, stronger = (run.spec.attack_on(target, run.threat, 0) for run in (first, second))
        effort = [getattr(weaker, name, 1) * getattr(weaker, "nb_runs", 1) for name in ("max_iter", "max_queries")]
        more_effort = [
            getattr(stronger, name, 1) * getattr(stronger, "nb_runs", 1) for name in ("max_iter", "max_queries")
        ]
        assert sum(more_effort) > sum(effort)


def test_a_round_after_one_that_broke_images_repeats_those_attacks_and_a_descent_in_each_mode(
    finished_run: Any,
) -> None:
    attacker = Attacker.of(finished_run.classifier, finished_run.x[:4], finished_run.threat, True, 0)
    repeated = {
        "APGD targeted [smooth]",
        "APGD annealed, cross-entropy [smooth]",
        "APGD crossed",
        "Square [relu]",
    }
    whole = round_plan(2, attacker, finished_run.threat, {"APGD margin [smooth]": 1})
    plan = round_plan(2, attacker, finished_run.threat, {"APGD margin [smooth]": 1}, repeated)
    keys = [run.key for run in plan]
    assert keys == [run.key for run in whole if run.key in keys]
    assert {run.key.partition(": ")[2] for run in plan} == {
        *(f"APGD margin [{mode}]" for mode in attacker.modes),
        *("APGD targeted [smooth]", "APGD annealed, cross-entropy [smooth]", "APGD crossed"),
        "Square [smooth]",  # from the best points in the mode that broke most images
    }
