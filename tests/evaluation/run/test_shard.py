"""Which part of an evaluation each process does."""

from __future__ import annotations

import pytest

from art_defenses_ext.base.errors import InputError
from art_defenses_ext.evaluation.run.shard import WHOLE, Shard, local_rank


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_every_block_belongs_to_exactly_one_part(samples: int, count: int) -> None:
    parts = [Shard(number, count).starts(samples, 4) for number in range(1, count + 1)]
    assert sorted(start for part in parts for start in part) == list(range(0, samples, 4))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_whole_is_one_part() -> None:
    assert WHOLE.is_whole
    assert list(WHOLE.starts(10, 4)) == [0, 4, 8]
    assert not Shard(1, 2).is_whole


def test_parts_have_folders_of_their_own() -> None:
    assert len({Shard(number, count).folder for count in (1, 2, 3) for number in range(1, count + 1)}) == 6


def test_a_part_has_a_name() -> None:
    assert Shard.named("2/3") == Shard(2, 3)
    assert str(Shard(2, 3)) == "2/3"


@pytest.mark.parametrize(
    "text", ["", "1", "/", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2", "\N{SUPERSCRIPT TWO}/3"]
)
def test_a_malformed_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="i/n with i from 1 to n was expected"):
        Shard.named(text)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, WHOLE),
        ({"RANK": "0", "WORLD_SIZE": "1"}, WHOLE),
        ({"RANK": "0", "WORLD_SIZE": "8"}, Shard(1, 8)),
        ({"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}, Shard(8, 8)),
        ({"RANK": "7"}, WHOLE),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "9"}, Shard(3, 4)),
        # A batch script, which srun did not start, and a task of an array, which may be a sweep of settings.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, WHOLE),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, WHOLE),
        # torchrun inside srun: its ranks are the finer ones.
        ({"RANK": "5", "WORLD_SIZE": "8", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, Shard(6, 8)),
    ],
)
def test_a_launcher_s_environment_names_the_part_of_a_process(environment: dict[str, str], shard: Shard) -> None:
    assert Shard.of_process(environment) == shard


@pytest.mark.parametrize("bad", [("8", "8"), ("-1", "8"), ("", "8"), ("0", "0"), ("0", "many")])
def test_a_malformed_environment_of_a_launcher_is_refused(bad: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=r"RANK is .* expected"):
        Shard.of_process(dict(zip(("RANK", "WORLD_SIZE"), bad, strict=True)))


def test_the_local_rank_of_a_process() -> None:
    assert local_rank({}) == 0
    assert local_rank({"LOCAL_RANK": "3", "SLURM_LOCALID": "1"}) == 3
    assert local_rank({"SLURM_LOCALID": "1"}) == 1
    with pytest.raises(InputError, match="LOCAL_RANK"):
        local_rank({"LOCAL_RANK": "gpu"})
