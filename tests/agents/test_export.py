import json
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import doxastic
from doxastic.agents.agent import Agent
from doxastic.agents.encoders import EncoderConfig, to_tensors
from doxastic.agents.export import _describe, export_agent
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.agents.step_network import StepNetwork
from doxastic.cli import main
from doxastic.memory.base import Memory
from doxastic.memory.build import MemoryConfig, build_memory

LOOP = Path(__file__).parents[2] / "examples" / "control_loop.py"
BATCH, STEPS = 3, 12

MEMORIES = {
    **{name: MemoryConfig(width=16, belief_size=8, readout=name)
       for name in ("moments", "precision", "learned", "none")},
    "surprise": MemoryConfig(width=16, belief_size=8, surprise=True),
    **{kind: MemoryConfig(kind=kind, width=8, window=4, layers=2 if kind in ("gru", "lstm") else 1)
       for kind in ("gru", "lstm", "window")},
    "nothing": MemoryConfig(kind="none", width=8),
}  # fmt: skip
BOX = spaces.Box(-np.inf, np.inf, (3,))
OBSERVATIONS = {
    "box": BOX,
    "discrete": spaces.Discrete(5, start=2),
    "dict": spaces.Dict(
        {
            "image": spaces.Box(0, 255, (12, 12, 3), np.uint8),
            "inner": spaces.Dict({"position": BOX, "kind": spaces.MultiDiscrete([2, 3])}),
            "bits": spaces.MultiBinary(4),
        }
    ),
}
ACTIONS = {
    "discrete": spaces.Discrete(4, start=-1),
    "multi_discrete": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "multi_binary": spaces.MultiBinary(3),
    "bounded": spaces.Box(-2.0, np.array([1.0, 3.0], np.float32)),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
}


def make_agent(memory="moments", observation="box", action="discrete", normalized=True):
    torch.manual_seed(0)
    space = OBSERVATIONS[observation]
    memory = MEMORIES[memory] if isinstance(memory, str) else memory
    if isinstance(memory, MemoryConfig):
        memory = build_memory(memory, 16)
    policy = ActorCritic(space, ACTIONS[action], EncoderConfig(width=16), memory, PolicyConfig())
    # A new core writes nothing to its output, and a new head is near uniform.
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy.normalize_value_head(mean=3.0, std=2.0)
    scale = ObservationNormalizer(space) if normalized else None
    if scale is not None:
        scale.update(_batch(space, 50)[1])
    return Agent(policy, scale)


def _batch(space, size):
    """Return observations as the arrays of a vector environment, and as tensors."""
    space.seed(0)
    arrays = gym.vector.utils.concatenate(
        space,
        [space.sample() for _ in range(size)],
        gym.vector.utils.create_empty_array(space, size),
    )
    return arrays, to_tensors(arrays, space)


def runner(agent, file_format, tmp_path):
    """Return the exported step as a function of named arrays, and its description."""
    content, description = export_agent(agent, file_format)
    path = tmp_path / f"policy.{file_format}"
    path.write_bytes(content)
    names = [port["name"] for port in description["outputs"]]
    if file_format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
        return lambda feed: dict(zip(names, session.run(None, feed), strict=True)), description
    step = torch.export.load(path).module()

    def run(feed):
        outputs = step(*(torch.from_numpy(feed[port["name"]]) for port in description["inputs"]))
        return {name: out.detach().numpy() for name, out in zip(names, outputs, strict=True)}

    return run, description


def flat(observation, description):
    """Return the observation under the names of the inputs, with their dtypes."""
    feed = {}
    for port in description["inputs"][:-2]:
        part = observation
        for key in port["name"].split(".")[1:]:
            part = part[key]
        feed[port["name"]] = np.asarray(part, port["dtype"])
    return feed


def assert_same_steps(agent, file_format, tmp_path):
    """Compare an exported agent with `predict`, `belief`, values and distributions."""
    run, description = runner(agent, file_format, tmp_path)
    policy, space = agent.policy, agent.observation_space
    state = exported_state = agent.initial_state(BATCH)[0]
    observations, _ = _batch(space, BATCH * STEPS)
    generator = np.random.default_rng(0)
    close = {"rtol": 1e-5, "atol": 1e-5}
    for t in range(STEPS):
        observation = _rows(observations, slice(t * BATCH, (t + 1) * BATCH))
        start = generator.random(BATCH) < 0.2
        feed = {"state": exported_state, "episode_start": start}
        out = run(feed | flat(observation, description))
        action, (following,) = agent.predict(observation, state, start)
        inputs, _ = agent._inputs(observation, state, start)
        with torch.no_grad():
            features, _ = policy._step(*inputs)
            parameters = policy.action_head(features)
        np.testing.assert_allclose(out["action"], action, **close)
        assert out["action"].shape == action.shape
        for name, expected in parameters.items():
            np.testing.assert_allclose(out[name], expected.numpy(), **close)
        np.testing.assert_allclose(out["value"], policy.values(features).detach(), **close)
        if "belief_mean" in out:
            belief = agent.belief(observation, state, start)
            np.testing.assert_allclose(out["belief_mean"], belief.mean, **close)
            np.testing.assert_allclose(out["belief_variance"], belief.variance, **close)
        np.testing.assert_allclose(out["next_state"], following, **close)
        state, exported_state = following, out["next_state"]


def _rows(observation, rows):
    if isinstance(observation, dict):
        return {key: _rows(part, rows) for key, part in observation.items()}
    return observation[rows]


def test_torch_runs_the_same_steps_of_a_belief(tmp_path):
    assert_same_steps(make_agent("moments"), "torch", tmp_path)
    content = (tmp_path / "policy.torch").read_bytes()
    for text in (b"site-packages", str(Path(doxastic.__file__).parent).encode(), b"doxastic::"):
        assert text not in content, "neither paths nor operators of this package"


def test_onnx_runtime_runs_the_same_steps_of_a_gru(tmp_path):
    pytest.importorskip("onnxscript")
    assert_same_steps(make_agent("gru"), "onnx", tmp_path)
    content = (tmp_path / "policy.onnx").read_bytes()
    assert b"site-packages" not in content and b"stack_trace" not in content


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "torch"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_is_exported(memory, file_format, tmp_path):
    assert_same_steps(make_agent(memory), file_format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "torch"])
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_observation_space_is_exported(observation, file_format, tmp_path):
    assert_same_steps(make_agent("gru", observation), file_format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "torch"])
@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_space_is_exported(action, file_format, tmp_path):
    assert_same_steps(make_agent("gru", action=action, normalized=False), file_format, tmp_path)


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ACTIONS)
def test_the_step_gives_the_agents_actions_in_the_units_of_the_space(observation, action):
    agent = make_agent("nothing", observation, action)
    step = StepNetwork(agent)
    arrays, _ = _batch(agent.observation_space, BATCH)
    named = flat(
        arrays, {"inputs": [p._replace(dtype=str(p.dtype)[6:])._asdict() for p in step.inputs]}
    )
    start = torch.ones(BATCH, dtype=torch.bool)
    state = agent.policy.initial_state(BATCH)
    outputs = step(*(torch.from_numpy(x) for x in named.values()), state, start)
    expected, _ = agent.predict(arrays, None, start.numpy())
    np.testing.assert_allclose(outputs[0].detach().numpy(), expected, rtol=1e-6)
    assert [tuple(out.shape[1:]) for out in outputs] == [port.shape for port in step.outputs]
    assert [out.dtype for out in outputs] == [port.dtype for port in step.outputs]


@pytest.mark.parametrize("memory", ["moments", "surprise", "precision", "learned"])
def test_the_step_gives_the_agents_belief(memory):
    agent = make_agent(memory)
    step = StepNetwork(agent)
    arrays, tensors = _batch(agent.observation_space, BATCH)
    state = agent.policy.initial_state(BATCH)
    outputs = step(tensors, state, torch.ones(BATCH, dtype=torch.bool))
    named = {port.name: out for port, out in zip(step.outputs, outputs, strict=True)}
    belief = agent.belief(arrays, None, np.ones(BATCH, bool))
    np.testing.assert_allclose(named["belief_mean"].detach(), belief.mean, rtol=1e-5, atol=1e-6)
    variance = named["belief_variance"].detach()
    np.testing.assert_allclose(variance, belief.variance, rtol=1e-5, atol=1e-6)


def test_a_memory_that_looks_at_values_is_refused_with_the_reason():
    class Looking(Memory):
        input_size, feature_size, state_size = 16, 16, 0

        def forward(self, x, state, reset):
            return (x if x.sum() > 0 else -x), state

    agent = make_agent(Looking())
    with pytest.raises(
        RuntimeError, match=r"with a Looking, cannot be exported(.|\n)*without branches"
    ):
        export_agent(agent, "torch")


def test_an_unknown_format_and_missing_packages_are_errors_with_a_remedy(monkeypatch):
    agent = make_agent("nothing")
    with pytest.raises(ValueError, match="expected one of onnx, torch"):
        export_agent(agent, "tflite")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"doxastic\[export\].*format='torch'"):
        export_agent(agent, "onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return doxastic.train(
        "noisy-cartpole",
        run_dir=tmp_path_factory.mktemp("runs") / "agent",
        total_steps=128,
        env={"num_envs": 4},
        memory={"kind": "gru", "width": 8},
        ppo={"segment_steps": 16, "minibatches": 2},
        evaluation={"episodes": 4},
        progress=False,
    )


def test_the_command_writes_the_file_and_its_description(run, tmp_path, capsys):
    output = tmp_path / "deep" / "agent.pt2"
    assert main(["export", str(run), "--format", "torch", "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    description = json.loads(output.with_name("agent.pt2.json").read_text())
    assert description["file"] == "agent.pt2" and description["doxastic"] == doxastic.__version__
    assert description["action_space"]["kind"] == "Discrete"
    assert [port["name"] for port in description["inputs"]] == [
        "observation", "state", "episode_start"
    ]  # fmt: skip
    program = torch.export.load(output)
    shapes = [["batch", *node.meta["val"].shape[1:]] for node in program.graph.nodes
              if node.name in program.graph_signature.user_inputs]  # fmt: skip
    assert shapes == [port["shape"] for port in description["inputs"]]


def test_the_command_refuses_what_is_no_run(tmp_path, capsys):
    assert main(["export", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.fixture(scope="module")
def onnx_file(run, tmp_path_factory):
    pytest.importorskip("onnxscript")
    return doxastic.export(run, output=tmp_path_factory.mktemp("onnx") / "policy.onnx")


def test_the_control_loop_needs_neither_torch_nor_this_package(run, onnx_file, tmp_path):
    code = (
        "import runpy, sys, numpy as np\n"
        f"loop = runpy.run_path({str(LOOP)!r})['Controller']({str(onnx_file)!r})\n"
        "outputs = [loop.step(np.full(5, 0.1 * t)) for t in range(4)]\n"
        "loop.reset()\n"
        "assert (loop.step(np.zeros(5))['logits'] == outputs[0]['logits']).all()\n"
        "print(*(float(out['value']) for out in outputs))\n"
        "assert not {'torch', 'doxastic'} & set(sys.modules)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    agent, state = doxastic.load(run), None
    for t, value in enumerate(map(float, shown.stdout.split())):
        observation = np.full((1, 5), 0.1 * t, np.float32)
        inputs, _ = agent._inputs(observation, state, None)
        assert value == pytest.approx(agent.policy.value(*inputs).item(), abs=1e-5)
        _, state = agent.predict(observation, state)


def test_the_control_loop_finds_the_items_of_nested_dicts(tmp_path, monkeypatch):
    agent = make_agent("nothing", "dict")
    step = StepNetwork(agent)

    class Session:
        """The step itself in the place of the runtime."""

        def __init__(self, *_):
            pass

        def run(self, _, feed):
            inputs = [torch.from_numpy(feed[port.name]) for port in step.inputs]
            return [output.detach().numpy() for output in step(*inputs)]

    monkeypatch.setattr(pytest.importorskip("onnxruntime"), "InferenceSession", Session)
    (tmp_path / "policy.onnx.json").write_text(json.dumps(_describe(step, "onnx")))
    arrays, _ = _batch(agent.observation_space, 1)
    controller = runpy.run_path(str(LOOP))["Controller"](tmp_path / "policy.onnx")
    action, _ = agent.predict(arrays, None, np.ones(1, bool))
    assert controller.step(_rows(arrays, 0))["action"] == action[0]


def test_the_control_loop_plays_whole_episodes(onnx_file):
    class Countdown(gym.Env):
        observation_space, action_space = spaces.Box(-9, 9, (5,)), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.left = 5
            return np.zeros(5, np.float32), {}

        def step(self, action):
            assert self.action_space.contains(action)
            self.left -= 1
            return np.ones(5, np.float32), 2.0, self.left == 0, False, {}

    example = runpy.run_path(str(LOOP))
    assert example["run_episode"](example["Controller"](onnx_file), Countdown(), seed=0) == 10.0
