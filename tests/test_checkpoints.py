"""What a checkpoint promises: whatever does not fit is refused with one line that names the cause."""

import copy

import pytest
import torch
from tiny import tiny_agent, tiny_config

from peach_trl.config import ConfigError
from peach_trl.experiment import checkpoint_of, load_agent, load_levels, make_library


@pytest.fixture(scope="module")
def state():
    config = tiny_config()
    return checkpoint_of(config, make_library(config), tiny_agent(config).state_dict())


def written(path, state):
    torch.save(state, path)
    return str(path)


def test_it_is_read_as_it_was_written(tmp_path, state):
    config, _, agent = load_agent(written(tmp_path / "final.pt", state))
    assert config.top == tiny_config().top and config.env == tiny_config().env
    assert all(torch.equal(value, state["agent"][name]) for name, value in agent.state_dict().items())


def other_tasks(state):
    state["tasks"]["fingerprint"] = "0123"


def newer(state):
    state["format"] = 2


def not_a_number(state):
    name = next(name for name in state["agent"] if name.startswith("top."))
    state["agent"][name] = torch.full_like(state["agent"][name], torch.nan)


def other_depth(state):
    state["config"]["hierarchy"]["depth"] = 3


def other_z(state):
    state["config"]["context"]["latent_dim"] = 7


def other_key(state):
    state["config"]["top"]["colour"] = "red"


def no_agent(state):
    del state["agent"]


def a_list(state):
    return [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_tasks, "it was trained on other tasks, .*fingerprint 0123; those of this version"),
        (newer, "its format is 2, this version reads 1; use the version of peach_trl"),
        (not_a_number, r"top\..* holds NaN"),
        (other_depth, r"checkpoint = .*levels\.1\..* is missing there and \[.*in an agent of its configuration"),
        (other_z, r"checkpoint = .* is \[.*\] float32 there and \[.*\] float32 in an agent of its configuration"),
        (other_key, "top.colour = 'red': unknown key"),
        (no_agent, "no agent is in it; give final.pt or levels.pt"),
        (a_list, "no agent is in it"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, state, change, said):
    changed = copy.deepcopy(state)
    changed = change(changed) or changed
    path = written(tmp_path / "final.pt", changed)
    with pytest.raises(ConfigError, match=said) as refusal:
        load_agent(path)
    assert "\n" not in str(refusal.value)
    if change in (newer, no_agent, a_list):
        with pytest.raises(ConfigError, match=said):
            load_levels(path)
