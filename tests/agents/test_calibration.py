"""Calibration of agents: visits, interventions, and the whole study of a small one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from doxastic.agents.agent import Agent
from doxastic.agents.calibration.analysis import calibrate
from doxastic.agents.calibration.channels import channel_ranks
from doxastic.agents.calibration.control import clamped, control, interventions, shuffled
from doxastic.agents.calibration.measures import reliability
from doxastic.agents.calibration.play import play, split_features
from doxastic.agents.calibration.report import Calibration
from doxastic.agents.calibration.variables import (
    Variable,
    of_probabilities,
    posterior_prediction,
    variables_of,
)
from doxastic.agents.calibration.visits import Visits, collect_visits
from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.evaluation import run_episodes
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.envs.make import EnvConfig, make_vector_env
from doxastic.memory.build import MemoryConfig, build_memory
from doxastic.memory.readouts import Belief

TEST = EnvConfig(id="doxastic/SequentialTest-v0", noise=(0.5, 1.0, 2.0), kwargs={"wait_cost": 0.01})
SMALL: dict[str, Any] = {"width": 16, "head_size": 8, "low_rank": 4, "belief_size": 4}


def _agent(config: EnvConfig = TEST, **memory: Any) -> Agent:
    torch.manual_seed(0)
    env = make_vector_env(config, num_envs=1)
    policy = ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        EncoderConfig(width=16),
        build_memory(MemoryConfig(**{**SMALL, **memory}), 16),
        PolicyConfig(hidden_size=16),
    )
    with torch.no_grad():
        # Fresh heads are nearly uniform: larger weights make actions depend on what is believed.
        policy.action_head.linear.weight.mul_(100)
    return Agent(policy)


def _visits(**changes: Any) -> Visits:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "h": random.normal(size=(60, 5)),
        "mean": random.normal(size=(60, 4)),
        "variance": random.uniform(0.1, 2, size=(60, 4)),
        "evidence": random.uniform(0, 9, size=(60, 4)),
        "hidden": np.stack([np.tile([-1.0, 1], 30), np.repeat([0.5, 1, 2], 20)], axis=1),
        "action": np.eye(3)[np.arange(60) % 3],
        "episode": np.arange(60) // 3,
        "time": np.arange(60) % 3,
        "level": np.repeat([0.5, 1, 2], 20),
    }
    return Visits(**{**arrays, **changes})


@pytest.mark.parametrize("deterministic", [True, False])
def test_episodes_are_those_of_an_evaluation(deterministic: bool) -> None:
    agent = _agent()
    env = make_vector_env(TEST, num_envs=20, noise=(1.0,))
    returns, lengths = run_episodes(agent, env, 20, 5, deterministic=deterministic)
    steps = list(play(agent, TEST, 20, 5, (1.0,), deterministic=deterministic))
    assert np.array_equal(sum(s.reward * s.running for s in steps), returns)
    assert np.array_equal(sum(s.running.astype(int) for s in steps), lengths)


def test_the_belief_in_the_features_is_the_memorys() -> None:
    agent = _agent()
    step = next(play(agent, TEST, 6, 0, (1.0,)))
    h, belief = split_features(agent, step.features)
    direct = agent.belief(step.observation, episode_start=np.ones(6, bool))
    assert h.shape == (6, 16) and belief is not None
    for part, expected in zip(belief, direct, strict=True):
        np.testing.assert_allclose(part.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_hidden_states_belong_to_the_observations_beside_them() -> None:
    levels = TEST.noise or ()
    arguments: dict[str, Any] = {"episodes": 300, "seed": 0, "deterministic": False}
    visits = collect_visits(_agent(), TEST, levels, **arguments)
    # The exact posterior is calibrated only against the sign of its own episode.
    assert visits.posterior_mean is not None
    right, p = visits.hidden[:, 0] > 0, (1 + visits.posterior_mean[:, 0]) / 2
    assert reliability(p, right, visits.episode)[0].low < 0.02
    assert reliability(p, ~right, visits.episode)[0].low > 0.2
    assert np.array_equal(visits.hidden[:, 1], visits.level)
    first = visits.rows(visits.time == 0)
    assert first.episode.tolist() == [*range(256)] * 3 + [*range(256, 300)] * 3


def test_a_limit_thins_all_levels_alike() -> None:
    every = collect_visits(_agent(), TEST, (0.5, 2.0), episodes=600, seed=0)
    some = collect_visits(_agent(), TEST, (0.5, 2.0), episodes=600, seed=0, limit=1000)
    share = len(some) / len(every)
    assert share < 0.7 and 850 < len(some) < 1150
    for part, whole in (
        (some.level == 2, every.level == 2),
        (some.episode < 256, every.episode < 256),
    ):
        # Five deviations of a binomial.
        assert abs(part.sum() - share * whole.sum()) < 5 * np.sqrt(share * whole.sum())


def test_without_a_belief_only_the_summary_is_kept() -> None:
    agent = _agent(kind="gru")
    visits = collect_visits(agent, TEST, (1.0,), episodes=10, seed=0)
    assert visits.mean is None and visits.variance is None and visits.h.shape[1] == 16
    with pytest.raises(ValueError, match="GRUMemory keeps no belief to change"):
        next(play(agent, TEST, 4, 0, (1.0,), intervention=shuffled(("mean",), 0)))


def _belief(rows: int = 8) -> Belief:
    values = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, 3)
    return Belief(values, values + 10, values + 100)


def test_shuffling_keeps_the_marginal_distribution_and_gives_nobody_its_own() -> None:
    belief, running = _belief(), np.arange(8) < 6
    seen = shuffled(("variance", "evidence"), 0)(belief, running)
    assert torch.equal(seen.mean, belief.mean)
    assert sorted(seen.variance[:6, 0].tolist()) == belief.variance[:6, 0].tolist()
    assert (seen.variance[:6] != belief.variance[:6]).all()
    assert torch.equal(seen.variance[6:], belief.variance[6:])
    # Both from the same other episode.
    assert torch.equal(seen.evidence - seen.variance, torch.full((8, 3), 90.0))


def test_an_episode_that_runs_alone_keeps_its_belief() -> None:
    seen = shuffled(("mean",), 0)(_belief(), np.arange(8) == 3)
    assert torch.equal(seen.mean, _belief().mean)


def test_clamping_shows_the_mean_of_the_logarithm() -> None:
    visits = _visits()
    change = interventions(visits)["variance and evidence clamped"]
    belief = Belief(*(torch.rand(5, 4) for _ in range(3)))
    seen = change(belief, np.ones(5, bool))
    assert torch.equal(seen.mean, belief.mean) and visits.variance is not None
    expected = np.exp(np.log(visits.variance).mean(0))
    np.testing.assert_allclose(seen.variance, np.tile(expected, (5, 1)), rtol=1e-6)
    assert seen.evidence.unique(dim=0).shape[0] == 1


def test_a_policy_that_does_not_read_the_belief_does_not_miss_it() -> None:
    agent = _agent()
    changes = {
        "nothing": clamped(),
        "all": shuffled(("mean", "variance", "evidence"), 0),
    }
    arguments: dict[str, Any] = {"episodes": 60, "seed": 0}
    reading = control(agent, TEST, (1.0, 2.0), changes, **arguments)
    assert reading.effects["nothing"] == (0, 0, 0)
    assert reading.effects["all"].low < reading.effects["all"].high
    with torch.no_grad():
        agent.policy.policy_body.layers[0].weight[:, 16:] = 0
    blind = control(agent, TEST, (1.0, 2.0), changes, **arguments)
    assert blind.effects["all"] == (0, 0, 0)
    assert blind.baseline.value != 0


def test_a_few_values_are_a_choice_and_many_are_a_number() -> None:
    hidden = np.stack(
        [
            np.tile([-1.0, 1], 30),
            np.arange(60) % 4.0,
            np.linspace(0, 1, 60),
            np.ones(60),
            np.repeat([0.5, 1, 2], 20),
        ],
        axis=1,
    )
    names = ("sign", "suit", "x", "constant", "noise")
    visits = _visits(hidden=hidden)
    found = {v.name: v for v in variables_of(names, visits, (0.5, 1.0, 2.0))}
    assert list(found) == ["sign", "suit", "x", "noise"]
    assert found["sign"].is_ordered and not found["suit"].is_ordered and found["x"].is_ordered
    assert found["x"].classes is None and found["suit"].classes.tolist() == [0, 1, 2, 3]
    assert found["noise"].is_logarithm
    np.testing.assert_allclose(found["noise"].values(visits), np.log(hidden[:, 4]))
    assert found["suit"].targets(visits).sum(1).tolist() == [1] * 60
    unseen = variables_of(names, visits, (0.5, 1.0), ["noise"])[0]
    assert set(unseen.labels(visits).tolist()) == {-1, 0, 1}


def test_moments_of_probabilities_are_those_of_the_values() -> None:
    p = np.array([[0.5, 0.5], [0.1, 0.9]])
    side = Variable("side", 0, np.array([-1.0, 1.0]), True, False)
    found = of_probabilities(side, p)
    np.testing.assert_allclose(found.mean[:, 0], [0, 0.8])
    np.testing.assert_allclose(found.variance, [1, 1 - 0.64])
    suit = Variable("suit", 0, np.array([0.0, 1.0]), False, False)
    np.testing.assert_allclose(of_probabilities(suit, p).variance, [0.5, 0.18])


def test_the_posterior_of_a_side_and_of_the_noise_are_read_from_the_filter() -> None:
    mean = np.linspace(-1, 1, 60)[:, None]
    noise = np.tile([0.2, 0.3, 0.5], (60, 1))
    visits = _visits(posterior_mean=mean, posterior_variance=1 - mean**2, posterior_noise=noise)
    sign, level = variables_of(("sign", "noise"), visits, (0.5, 1.0, 2.0))
    side = posterior_prediction(sign, visits, ("sign",))
    assert side is not None and side.probability is not None
    np.testing.assert_allclose(side.variance, 1 - mean[:, 0] ** 2, atol=1e-12)
    np.testing.assert_allclose(side.probability[:, 1], (1 + mean[:, 0]) / 2)
    known = posterior_prediction(level, visits, ())
    assert known is not None
    np.testing.assert_allclose(known.mean, 0.2 * np.log(0.5) + 0.5 * np.log(2))
    assert posterior_prediction(sign, visits, ()) is None


def test_channels_that_follow_a_quantity_are_told_from_those_that_do_not() -> None:
    random = np.random.default_rng(0)
    quantity = random.normal(size=500)
    variance = np.stack(
        [np.exp(quantity), -quantity, random.normal(size=500), np.ones(500)], axis=1
    )
    found = channel_ranks(variance, quantity)
    assert found[:2] == pytest.approx([1, -1]) and abs(found[2]) < 0.15 and np.isnan(found[3])


@pytest.fixture(scope="module")
def study() -> Calibration:
    return calibrate(_agent(), TEST, (0.5, 4.0), episodes=40, seed=0, deterministic=False)


def test_a_study_compares_belief_h_and_posterior_in_and_out_of_distribution(
    study: Calibration,
) -> None:
    assert study.levels == (0.5, 1.0, 2.0, 4.0) and study.posterior == "exact posterior"
    sign, noise = study.variables
    assert set(sign.measures) == {
        "mean", "mean, variance", "belief", "h", "propagated", "posterior",
    }  # fmt: skip
    groups = {"trained", "held out", "0.5", "1", "2", "4"}
    assert all(set(by_group) == groups for by_group in sign.measures.values())
    posterior = sign.measures["posterior"]
    assert posterior["0.5"].explained.value > posterior["2"].explained.value > 0
    assert posterior["trained"].rank_error.value > 0.3
    assert np.isnan(posterior["trained"].rank_posterior.value)
    assert np.isfinite(sign.measures["belief"]["trained"].rank_posterior.value)
    # A level that was not probed for cannot be calibrated.
    assert noise.measures["h"]["held out"].curve is None
    assert noise.measures["h"]["trained"].curve is not None
    assert set(study.control) == {"trained", "held out"}
    assert {example.group for example in study.examples} == {"trained", "held out"}


def test_a_study_is_the_same_from_the_same_seed(study: Calibration) -> None:
    again = calibrate(_agent(), TEST, (0.5, 4.0), episodes=40, seed=0, deterministic=False)
    assert again.to_json() == study.to_json()


def test_json_holds_null_where_nothing_is_known(study: Calibration) -> None:
    data = json.loads(study.to_json({"command": "here"}))
    assert data["command"] == "here" and data["version"] == 1
    sign = data["variables"][0]["measures"]["posterior"]["trained"]
    assert sign["rank_posterior"] == {"value": None, "low": None, "high": None}
    assert len(sign["curve"]["predicted"]) == len(sign["curve"]["observed"])


def test_the_table_has_a_line_for_each_source_and_effect(study: Calibration) -> None:
    lines = study.table().splitlines()
    assert sum("posterior  " in line and "trained" in line for line in lines) == 2
    assert sum("variance clamped" in line for line in lines) == 2
    head, first = lines[2], lines[3]
    assert head.startswith("sign") and len(head) == len(first)


def test_a_memory_without_a_belief_is_studied_by_its_summary() -> None:
    study = calibrate(_agent(kind="gru"), TEST, episodes=24)
    assert [set(v.measures) for v in study.variables] == [{"h", "posterior"}] * 2
    assert study.control == {} and study.memory == "GRUMemory"
    assert all(variable.channels == {} for variable in study.variables)


def test_an_environment_that_hides_its_state_is_refused() -> None:
    config = EnvConfig(id="CartPole-v1")
    with pytest.raises(ValueError, match=r"CartPole-v1 has no hidden\(\).*doxastic evaluate"):
        calibrate(_agent(config), config)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="episodes is 4; expected at least 20"):
        calibrate(_agent(), TEST, episodes=4)
    with pytest.raises(ValueError, match="no hidden variable 'sing'; did you mean 'sign'"):
        calibrate(_agent(), TEST, episodes=20, variables=["sing"])
