"""`doxastic envs`: the table of the tasks, and episodes as pictures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from PIL import Image

from doxastic.cli import main
from doxastic.configuration import ConfigError
from doxastic.envs.catalog import CATALOG
from doxastic.envs.references.episode_reference import episode_reference
from doxastic.envs.registration import TASKS, make_task
from doxastic.envs_command import resolve, space_name
from doxastic.episodes import RandomActor, ReferenceActor, record

_OPTIONS = {
    "--threads": 1,
    "--env.num-envs": 4,
    "--encoder.width": 16,
    "--memory.width": 16,
    "--memory.head-size": 8,
    "--policy.hidden-size": 16,
    "--ppo.segment-steps": 16,
    "--ppo.minibatches": 2,
    "--evaluation.episodes": 4,
    "--total-steps": 64,
}
TINY = [str(word) for option in _OPTIONS.items() for word in option]
PANEL = 315


def train(folder, *words):
    assert main(["train", "--run-dir", str(folder), "--quiet", *TINY, *words]) == 0
    return folder


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "agent"
    return train(folder, "--env.id", "doxastic/LightDark-v0", "--env.noise", "0.2", "1")


def test_the_table_lists_every_task_with_its_spaces_noise_and_return(capsys):
    assert main(["envs"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(TASKS) == set(CATALOG) and set(TASKS) < set(rows)
    tiger = rows["doxastic/Tiger-v0"]
    for text in ("how often to listen", "Discrete(3)", "0.05, 0.2, 0.4", " 30 ", "0.088, optimum"):
        assert text in tiger
    assert "MultiDiscrete(52 x 3)" in rows["doxastic/Concentration-v0"]
    assert "not known" in rows["doxastic/Acrobot-v0"]


def test_a_group_can_be_listed_alone(capsys):
    assert main(["envs", "list", "--group", "games"]) == 0
    shown = capsys.readouterr().out
    assert "doxastic/Battleship-v0" in shown and "doxastic/Tiger-v0" not in shown


@pytest.mark.parametrize("words", [["envs"], ["envs", "--help"], ["envs", "show", "Tigr"]])
def test_the_table_and_refusals_do_not_wait_for_torch(words):
    code = (
        "import sys; from doxastic.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('loaded:', *{'torch', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["envs", "--help"], ["envs show ID", "best known return", "--group"]),
        (["envs", "show", "--help"], ["exact posterior", "--agent", "--noise", "examples:"]),
    ],
)
def test_the_help_teaches(words, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(text in shown for text in expected)


def test_an_episode_becomes_a_gif_with_a_frame_for_every_step(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["envs", "show", "Tiger", "--noise", "0.2", "--steps", "3"]) == 0
    shown = capsys.readouterr().out
    assert "doxastic/Tiger-v0 with noise 0.2, played by the best policy known: 3 steps" in shown
    assert shown.splitlines()[-1] == "Tiger.gif"
    with Image.open(tmp_path / "Tiger.gif") as image:
        # True state, observation and posterior.
        assert (image.n_frames, image.size) == (4, (3 * PANEL, PANEL))
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_png_shows_the_belief_of_the_agent_beside_the_posterior(run, tmp_path, capsys):
    path = tmp_path / "new" / "strip.png"
    words = ["envs", "show", "doxastic/LightDark-v0", "--agent", str(run), "--noise", "5"]
    assert main([*words, "--steps", "1", "--output", str(path)]) == 0
    assert "played by agent: 1 steps, cut off by --steps 1" in capsys.readouterr().out
    assert size_of(path) == (4 * PANEL, 2 * PANEL)


def test_an_agent_without_a_belief_is_shown_without_its_panel(tmp_path, capsys):
    run = train(tmp_path / "gru", "--env.id", "doxastic/Tiger-v0", "--memory.kind", "gru")
    path = tmp_path / "gru.png"
    words = ["envs", "show", "Tiger", "--agent", str(run), "--steps", "1", "--output", str(path)]
    assert main(words) == 0
    assert "holds no explicit belief: no panel for it" in capsys.readouterr().out
    assert size_of(path) == (3 * PANEL, 2 * PANEL)


def test_a_task_without_a_posterior_is_played_at_random(tmp_path, capsys):
    path = tmp_path / "board.png"
    words = ["envs", "show", "Concentration", "--steps", "1", "--kwargs", "variant=hard"]
    assert main([*words, "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "played by random actions" in shown and "no exact posterior" in shown
    assert size_of(path) == (2 * PANEL, 2 * PANEL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shw", "Tiger"], "did you mean show?"),
        (["show"], "ID"),
        (["show", "Tigre"], "there is no task 'Tigre'; did you mean doxastic/Tiger-v0?"),
        (["show", "CartPole-v1"], "did you mean doxastic/CartPole-v0?"),
        (["show", "zzz"], "doxastic envs lists the tasks"),
        (["show", "Tiger", "--noise", "-1"], "noise is"),
        (["show", "Tiger", "--steps", "0"], "--steps is 0; expected at least 1"),
        (["show", "Tiger", "--kwargs", "doors=3"], "doxastic/Tiger-v0 rejects the arguments"),
        (["show", "Tiger", "--output", "a.mp4"], "expected a name that ends in .gif or .png"),
        (["show", "Tiger", "--agent", "absent"], "absent is not a run folder"),
        (["--group", "gmaes"], "gmaes"),
    ],
)
def test_a_users_error_is_one_line_and_a_non_zero_exit_code(words, message, capsys):
    assert main(["envs", *words]) in (1, 2)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and errors.startswith("doxastic: error: ")
    assert message in errors


def test_an_agent_of_another_environment_is_refused(run, capsys):
    assert main(["envs", "show", "Tiger", "--agent", str(run)]) == 2
    errors = capsys.readouterr().err
    assert "was trained on doxastic/LightDark-v0, not on doxastic/Tiger-v0" in errors
    words = ["envs", "show", "LightDark", "--agent", str(run), "--kwargs", "horizon=3"]
    assert main(words) == 2
    assert "an agent plays the task of its run" in capsys.readouterr().err


def test_a_path_that_cannot_be_written_is_named_with_a_remedy(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.gif"
    assert main(["envs", "show", "TMaze", "--steps", "1", "--output", str(path)]) == 1
    assert f"cannot write {path.parent}" in capsys.readouterr().err


def test_names_are_resolved_whatever_their_case():
    assert resolve("tmaze") == resolve("TMaze") == resolve("doxastic/TMaze-v0")
    with pytest.raises(ConfigError, match="did you mean doxastic/TMaze-v0"):
        resolve("doxastic/TMaze-v1")


def test_spaces_are_named_in_a_few_letters():
    spaces = gymnasium.spaces
    assert space_name(spaces.MultiDiscrete([3, 8])) == "MultiDiscrete(3, 8)"
    assert space_name(spaces.Box(0, 1, (4,))) == "Box(4)"


@pytest.mark.parametrize("name", ["CartPole", "Tiger", "Copy"])
def test_the_episode_on_record_is_the_one_of_gymnasium(name):
    env = gymnasium.make(f"doxastic/{name}-v0", previous_action=False)
    observation, info = env.reset(seed=5)
    task = make_task(f"doxastic/{name}-v0")
    episode = record(task, RandomActor(task, 5), None, seed=5, steps=12)
    assert episode.noise == info["noise"]
    for moment in episode.moments:
        seen = np.atleast_1d(observation).astype(np.float64)
        np.testing.assert_allclose(moment.observation, seen, rtol=1e-6)
        if moment.action is not None:
            observation, *_ = env.step(moment.action)


REFERENCES = {
    "SequentialTest": {"horizon": 3, "noise": (0.5, 2.0)},
    "Tiger": {},
    "LightDark": {},
    "NoisyBandit": {"arms": 2, "horizon": 4},
    "LinearGaussian": {"horizon": 40},
    "CartPole": {"horizon": 40},
    "Pendulum": {"start_angle": 0.2, "start_speed": 0.2, "horizon": 40},
    "RepeatFirst": {"noise": (0.1, 0.5)},
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_reference_plays_to_the_end_on_a_posterior_that_is_one(name):
    task = make_task(f"doxastic/{name}-v0", **REFERENCES[name])
    reference = episode_reference(task)
    episode = record(task, ReferenceActor(reference), reference, seed=1, steps=400)
    assert episode.is_over and episode.moments[-1].action is None
    for moment in episode.moments:
        *variables, noise = moment.marginals
        assert noise.probability.sum() == pytest.approx(1)
        assert task.noise[noise.truth] == episode.noise
        for variable in variables:
            values = variable.deviation if hasattr(variable, "deviation") else variable.probability
            assert np.all(values >= 0) and np.all(np.isfinite(values))


def test_there_is_no_reference_where_none_holds():
    assert episode_reference(make_task("doxastic/Pendulum-v0")) is None
    assert episode_reference(make_task("doxastic/Tiger-v0", noise=(0.0, 0.2))) is None
    assert episode_reference(make_task("doxastic/RepeatFirst-v0", decks=2)) is None
    assert episode_reference(make_task("doxastic/HigherLower-v0")) is None


@pytest.mark.parametrize("task_id", TASKS)
def test_the_longest_episode_is_the_one_of_the_table(task_id):
    task = TASKS[task_id]()
    limit = task.max_episode_steps or getattr(task, "horizon", None)
    if limit is None:
        # These last as long whatever is done.
        episode = record(task, RandomActor(task, 0), None, seed=0, steps=1000)
        limit = len(episode.moments) - 1
    assert CATALOG[task_id].steps == limit


DOCS = Path(__file__).parent.parent / "docs" / "envs"


@pytest.mark.parametrize("page", sorted(page.name for page in DOCS.glob("*.md")))
def test_the_links_of_the_pages_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in targets if not (DOCS / target).exists()] == []


def test_the_python_of_the_index_page_runs():
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/envs/README.md", "exec"), names)
    assert names["picture"].shape == (360, 480, 3)
    assert names["observations"].shape == (256, 7)
    assert tuple(names["observation"].shape) == (4096, 2)
    assert tuple(names["hidden"].shape) == (4096, 5)


def test_the_index_page_names_every_task_and_wrapper():
    from doxastic.envs import wrappers

    text = (DOCS / "README.md").read_text(encoding="utf-8")
    names = [task.split("/")[1].removesuffix("-v0") for task in TASKS]
    names += [name for name in wrappers.__all__ if not name.startswith("Vector")]
    assert [name for name in names if f"`{name}`" not in text] == []
