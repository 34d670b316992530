"""A run that was killed goes on to the weights of one that was not, and only where it is the same run."""

from __future__ import annotations

import os
import pickle
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_defenses_ext.base.checkpoint import read_tensors, save_checkpoint, write_tensors
from art_defenses_ext.base.errors import InputError
from art_defenses_ext.training.loop import train
from art_defenses_ext.training.settings import Settings
from art_defenses_ext.training.state import FORMAT, VERSION, Epoch, TrainingState, load_state, save_state

NB_EPOCHS, NB_BATCHES = 5, 3


class Killed(Exception):
    """Something that comes from outside."""


def small_network() -> nn.Module:
    """With random numbers, statistics and a counter of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
        )


def some_data(count: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 6, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def fit(
    checkpoint: Path | None,
    *,
    network: nn.Module | None = None,
    die_at: int | None = None,
    kill: bool = False,
    data: tuple[Tensor, Tensor] | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    identity: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], list[Epoch]]:
    """Train on noisy images; the weights and the losses.

    Args:
        die_at: the step, counted in this call, whose objective does not come back.
        kill: end the whole process there.
    """
    network = network or small_network()
    steps = 0

    def objective(x: Tensor, y: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        nonlocal steps
        if network.training:
            if steps == die_at:
                if kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise Killed
            steps += 1
        x = x + 0.3 * torch.randn(x.shape, generator=noise)
        return {"class": F.cross_entropy(network(x), y), "size": 1e-3 * network[-1].weight.square().sum()}

    chosen = {"nb_epochs": NB_EPOCHS, "batch_size": 10, "learning_rate": 0.05, "clip_norm": 1.0, "seed": 3} | options
    history = train(
        network,
        data or some_data(),
        objective,
        Settings(**chosen),
        validation=validation or some_data(12, seed=3),
        checkpoint=checkpoint,
        identity=identity,
        progress=False,
    )
    return network.state_dict(), history


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[dict[str, Tensor], list[Epoch]]:
    return fit(None)


def test_the_run_of_these_tests_keeps_weights_from_before_its_end(
    uninterrupted: tuple[dict[str, Tensor], list[Epoch]],
) -> None:
    """Else nothing would be known of the best weights' way through the file."""
    losses = [epoch.validation_loss for epoch in uninterrupted[1]]
    assert len(losses) == NB_EPOCHS
    assert 0 < losses.index(min(losses)) < NB_EPOCHS - 1


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 0), (2, 1), (4, 1)])
def test_a_run_that_broke_off_in_any_epoch_ends_as_the_uninterrupted_one(
    epoch: int, step: int, uninterrupted: tuple[dict[str, Tensor], list[Epoch]], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        fit(tmp_path / "run", die_at=epoch * NB_BATCHES + step)
    assert (tmp_path / "run").exists() == (epoch > 0)
    weights, history = fit(tmp_path / "run")
    assert equal(weights, uninterrupted[0])
    assert history == uninterrupted[1]


@pytest.mark.parametrize("options", [{}, {"patience": 1, "nb_epochs": 40}], ids=str)
def test_a_run_that_is_done_takes_no_further_step(options: dict[str, Any], tmp_path: Path) -> None:
    weights, history = fit(tmp_path / "run", **options)
    assert len(history) == NB_EPOCHS or options
    assert len(history) < 40
    resumed, resumed_history = fit(tmp_path / "run", die_at=0, **options)
    assert equal(resumed, weights)
    assert resumed_history == history


def test_frozen_weights_and_ones_without_a_gradient_keep_their_place(tmp_path: Path) -> None:
    def part() -> nn.Module:
        network = small_network()
        network[0].requires_grad_(False)
        network[1].bias.requires_grad_(False)
        network[2] = nn.PReLU().requires_grad_(True)
        network[2].register_parameter("idle", nn.Parameter(torch.zeros(2)))
        return network

    weights, history = fit(None, network=part())
    with pytest.raises(Killed):
        fit(tmp_path / "run", network=part(), die_at=2 * NB_BATCHES + 1)
    resumed, resumed_history = fit(tmp_path / "run", network=part())
    assert equal(resumed, weights)
    assert resumed_history == history


def test_a_process_that_is_killed_loses_an_epoch_at_most(
    uninterrupted: tuple[dict[str, Tensor], list[Epoch]], tmp_path: Path
) -> None:
    child = os.fork()  # without the seconds that another interpreter takes to import torch
    if child == 0:
        fit(tmp_path / "run", die_at=2 * NB_BATCHES + 1, kill=True)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    weights, history = fit(tmp_path / "run", die_at=3 * NB_BATCHES)
    assert equal(weights, uninterrupted[0])
    assert history == uninterrupted[1]


# Another run


class Other(nn.Sequential):
    """The small network with one more parameter."""

    def __init__(self) -> None:
        super().__init__(*small_network())
        self.extra = nn.Parameter(torch.zeros(1))


def partly_frozen() -> nn.Module:
    network = small_network()
    network[5].bias.requires_grad_(False)
    return network


def changed(data: tuple[Tensor, Tensor], part: int) -> tuple[Tensor, Tensor]:
    result = tuple(tensor.clone() for tensor in data)
    result[part].view(-1)[7] = 1 - result[part].view(-1)[7]
    return result[0], result[1]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 4}, "seed was 3, and this one's is 4;"),
        ({"clip_norm": None}, "clip_norm was 1.0, and this one's is None;"),
        ({"data": changed(some_data(), 0)}, "data was '"),
        ({"data": changed(some_data(), 1)}, "data was '"),
        ({"validation": changed(some_data(12, seed=3), 1)}, "validation was '"),
        ({"identity": {"eps": 0.2, "inputs": ["pgd"]}}, "eps was 0.1, and this one's is 0.2;"),
        ({"identity": {"eps": 0.1, "inputs": ["bim"]}}, "inputs was ['pgd'], and this one's is ['bim'];"),
        ({"identity": {"eps": 0.1, "inputs": ["pgd"], "b": 1}}, "b was None, and this one's is 1;"),
        ({"network": Other()}, "network was '"),
        ({"network": partly_frozen()}, "network was '"),
    ],
)
def test_a_file_of_another_run_is_refused_with_what_differs(changes: dict[str, Any], name: str, tmp_path: Path) -> None:
    path, identity = tmp_path / "run", {"eps": 0.1, "inputs": ("pgd",)}
    with pytest.raises(Killed):
        fit(path, identity=identity, die_at=NB_BATCHES)
    content, network = path.read_bytes(), changes.get("network") or small_network()
    before = deepcopy(network.state_dict())
    with pytest.raises(InputError) as error:
        fit(path, **({"identity": identity} | changes | {"network": network}))
    message = str(error.value)
    assert message.startswith(f"checkpoint is {str(path)!r}, written by a run whose {name}")
    assert message.endswith("; the same, or another file, was expected")
    assert equal(network.state_dict(), before)
    assert path.read_bytes() == content


def test_any_file_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Killed):
        fit(path, die_at=NB_BATCHES)
    content = path.read_bytes()
    metadata, tensors = read_tensors(path)

    def assert_refused(message: str) -> None:
        network = small_network()
        with pytest.raises(InputError, match=message):
            fit(path, network=network)
        assert equal(network.state_dict(), small_network().state_dict())

    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert_refused("which is no safetensors file")
    path.write_bytes(pickle.dumps({"network": 1}))
    assert_refused("which is no safetensors file")
    write_tensors(path, tensors, metadata | {"format": f"{FORMAT} {VERSION + 1}", "numbers": "unheard of"})
    assert_refused(rf"of format {VERSION + 1}; this version of art-defenses-ext reads formats up to {VERSION}")
    save_checkpoint(path, "kind", {}, small_network(), small_network())
    assert_refused(f"which holds no '{FORMAT}'; a file that this package wrote was expected")
    path.unlink()
    path.mkdir()
    assert_refused("a file in an existing folder was expected")


# The file itself


def state_of(network: nn.Module) -> TrainingState:
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10)
    return TrainingState(network, optimiser, schedule, torch.Generator().manual_seed(5))


def advanced(losses: list[float]) -> TrainingState:
    state = state_of(small_network())
    for loss in losses:
        state.network(torch.rand(4, 1, 6, 6)).square().sum().backward()
        state.optimiser.step()
        state.optimiser.zero_grad()
        state.schedule.step()
        torch.randperm(7, generator=state.order)
        state.finish(Epoch({"a": 2 * loss, "b": 0.1}, {"a": loss, "b": 1 / 3}))
    return state


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        saved = advanced([3.0, 1.0, 2.0])
        save_state(tmp_path / "run", saved, {"a": (1, 2.5, None)})
        values = torch.rand(3)
        loaded = state_of(small_network())
        load_state(tmp_path / "run", loaded, {"a": [1, 2.5, None]})
        assert torch.equal(torch.rand(3), values)
    assert equal(loaded.network.state_dict(), saved.network.state_dict())
    assert equal(loaded.best, saved.best)
    assert not equal(loaded.best, loaded.network.state_dict())
    assert loaded.history == saved.history
    assert list(loaded.history[0].training) == ["a", "b"]
    assert loaded.schedule.state_dict() == saved.schedule.state_dict()
    assert torch.equal(torch.rand(3, generator=loaded.order), torch.rand(3, generator=saved.order))
    optimiser, saved_optimiser = loaded.optimiser.state_dict(), saved.optimiser.state_dict()
    assert optimiser["param_groups"] == saved_optimiser["param_groups"]
    assert optimiser["state"].keys() == saved_optimiser["state"].keys()
    assert all(equal(optimiser["state"][key], saved_optimiser["state"][key]) for key in saved_optimiser["state"])


def test_the_best_weights_are_those_of_the_first_least_loss_and_no_part_of_the_network() -> None:
    with torch.random.fork_rng(devices=[]):
        state = advanced([3.0, 1.0])
        best_weights = deepcopy(state.network.state_dict())
        for loss in (1.0, 2.0):
            with torch.no_grad():
                state.network[5].bias += 1
            state.finish(Epoch({"a": 0.0}, {"a": loss - 0.0, "b": 1 / 3}))
    assert not equal(state.network.state_dict(), best_weights)
    state.restore_best()
    assert equal(state.network.state_dict(), best_weights)


def test_a_file_from_a_cuda_device_can_be_gone_on_from_without_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with torch.random.fork_rng(devices=[]):
        saved = advanced([1.0])
        save_state(path, saved, {})
        metadata, tensors = read_tensors(path)
        write_tensors(path, tensors | {"random_cuda": torch.zeros(16, dtype=torch.uint8)}, metadata)
        loaded = state_of(small_network())
        load_state(path, loaded, {})
    assert equal(loaded.network.state_dict(), saved.network.state_dict())


def test_a_run_that_cannot_write_keeps_the_file_of_the_epoch_before(
    uninterrupted: tuple[dict[str, Tensor], list[Epoch]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, contents = tmp_path / "run", []
    replace = Path.replace

    def sometimes(self: Path, target: Path) -> Path:
        if len(contents) == 2:
            raise OSError("no space left")
        replaced = replace(self, target)
        contents.append(target.read_bytes())
        return replaced

    monkeypatch.setattr(Path, "replace", sometimes)
    with pytest.raises(InputError, match=r"checkpoint is .*, which cannot be written \(OSError: no space left\)"):
        fit(path)
    assert path.read_bytes() == contents[1]
    monkeypatch.undo()
    weights, _ = fit(path)
    assert equal(weights, uninterrupted[0])
    assert list(tmp_path.iterdir()) == [path]
