"""Devices: nothing that an update makes may land on a default device, and on CUDA, where there is one, it learns."""

import pytest
import torch
from tiny import random_context, random_sequences, random_transitions, tiny_agent, tiny_config

from peach_trl.config import ConfigError
from peach_trl.experiment import PeachConfig
from peach_trl.modules.execution import set_execution
from peach_trl.utils import load_config

CHANGES = [
    {},
    {"lower__algorithm": "sac"},
    {"context__read": "sample", "context__update": "trajectory"},
    {"context__belief": "attention"},
    {"context__belief": "recurrent"},
    {"context__latent_dim": 0},
    {"top__batch": 5},
]


def batches():
    return random_transitions((32,), 1, goal=True).exclude("steps_to_next_obs"), random_sequences(3, 9, seed=0)


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("changes", CHANGES)
def test_updates_follow_the_device_of_their_networks(changes, trace):
    """With the meta device as the default, a tensor that is made without a device is of no use, and noticed."""
    agent, (lower, top) = tiny_agent(tiny_config(**changes)), batches()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    set_execution(trace=trace)
    try:
        with torch.device("meta"):
            for _ in range(4):
                losses = [agent.levels[0].update(lower), agent.top.update(top)]
    finally:
        set_execution()
    assert all(value.device.type == "cpu" and value.isfinite() for found in losses for value in found.values())
    assert {value.device.type for value in agent.state_dict().values()} == {"cpu"}
    assert any(not torch.equal(value, before[name]) for name, value in agent.state_dict().items())


def test_the_sources_update_does_too():
    agent = tiny_agent(tiny_config(context__read="sample", context__next="same", context__update="trajectory"))
    batch, context = random_transitions((3, 16), 2), random_context(3, 5, 1)
    with torch.device("meta"):
        losses = agent.top.update(batch, context)
    assert losses["loss_kl"].device.type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("changes", CHANGES)
def test_on_cuda_it_learns(changes):
    """Draws are others than on the CPU, so that only the means of many steps could be compared."""
    agent, (lower, top) = tiny_agent(tiny_config(**changes)), batches()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    for device in ("cpu", "cuda", "cuda"):  # and from one device to the other, with what the optimisers know
        agent = agent.to(device)
        losses = [agent.levels[0].update(lower), agent.top.update(top)]
    assert any(not torch.equal(value.cpu(), before[name]) for name, value in agent.state_dict().items())
    if agent.top.belief is not None:
        tracker = agent.make_policy(2, num_tasks=3).to("cuda").tracker
        tracker.condition(torch.arange(3), random_context(3, 5, 1))
        assert tracker.table.any()
    assert all(value.device.type == "cuda" and value.isfinite() for found in losses for value in found.values())
    assert {value.device.type for value in agent.parameters()} == {"cuda"}
    again = tiny_agent(tiny_config(**changes))
    again.load_state_dict(agent.state_dict())
    assert torch.isfinite(again.top.update(top)["loss_qvalue"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_named():
    for device, message in (("cuda", "there is none here; set device=cpu"), ("cup", "device = 'cup'")):
        with pytest.raises(ConfigError, match=message):
            load_config(PeachConfig, "peach", "configs", [f"device={device}"])
