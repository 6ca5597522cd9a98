"""Studies end to end: bad input, equal parameters, results that survive, and the report."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from doxastic.cli import main
from doxastic.configuration import ConfigError, dump_yaml
from doxastic.disk import RunError
from doxastic.experiment import Experiment, override
from doxastic.runs import RunFolder
from doxastic.studies import execute, work
from doxastic.studies.cells import Cell, Settings
from doxastic.studies.choices import best_setting
from doxastic.studies.config import load_study, study_from_dict, study_names
from doxastic.studies.design import Design
from doxastic.studies.execute import Executor
from doxastic.studies.matching import match, nearest_size
from doxastic.studies.pool import Answer, Job, Pool
from doxastic.studies.progress import make_reporter
from doxastic.studies.records import Record, Results, load_episodes, save_episodes
from doxastic.studies.report import write_report
from doxastic.studies.study import Study

SMALL = {
    "total_steps": 128,
    "env": {"num_envs": 4, "noise": [1.0, 4.0]},
    "encoder": {"width": 8},
    "memory": {"width": 16, "head_size": 8, "low_rank": 4, "belief_size": 4},
    "policy": {"hidden_size": 8},
    "ppo": {"segment_steps": 16, "epochs": 1, "minibatches": 1},
    "evaluation": {"selection_episodes": 8},
}
DATA: dict = {
    "name": "tiny",
    "reference": "belief",
    "baselines": ["gru"],
    "tasks": {
        "test": {
            "preset": "sequential-test-hard",
            "settings": SMALL,
            "noise": [1.0, 4.0, 6.0],
            "episodes": 200,
            "best": 0.853,
            "source": "docs/envs/confidence.md",
        }
    },
    "memories": {"belief": {}, "gru": {"settings": {"memory": {"kind": "gru"}}}},
    "search": {
        "learning_rates": [0.001, 0.002],
        "entropies": [0.01],
        "seeds": [9],
        "episodes": 16,
    },
    "stages": [{"name": "comparison", "seeds": [0, 1, 2]}],
}


def changed(path: str, value: object) -> dict:
    """Return the tiny study with one value replaced; `path` is dotted."""
    data = copy.deepcopy(DATA)
    *sections, last = path.split(".")
    place = data
    for section in sections:
        place = place[int(section)] if isinstance(place, list) else place[section]
    place[last] = value
    return data


class InlinePool(Pool):
    """Does the jobs in this process, so that no interpreter has to start."""

    def map(self, jobs, on_wait):
        for job in jobs:
            on_wait()
            try:
                result = work.JOBS[job.name](**json.loads(json.dumps(dict(job.arguments))))
            except Exception as error:
                yield Answer(job=job, error=f"{type(error).__name__}: {error}")
                continue
            yield Answer(job=job, result=json.loads(json.dumps(result)))


@pytest.fixture
def inline(monkeypatch):
    hasten(monkeypatch)


def hasten(patch: pytest.MonkeyPatch) -> None:
    """Work in this process, measure briefly, and leave out the figures of the single runs."""
    patch.setattr("doxastic.studies.pool.Pool", InlinePool)
    patch.setattr(work, "_MEASURED_SECONDS", 0.01)
    patch.setattr(work, "_MEASURED_EPISODES", 16)
    patch.setattr("doxastic.results.plot_runs", lambda *runs, **options: [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a study that has ended, and what was printed."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(dump_yaml(DATA))
    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        assert main(["study", str(folder / "tiny.yaml"), "--output", str(folder / "out")]) == 0
    return folder / "out"


def tiny(folder: Path) -> list[str]:
    return ["study", str(folder.parent / "tiny.yaml"), "--output", str(folder)]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("reference", "believe", "reference: unknown memory 'believe'; did you mean belief?"),
        ("baselines", ["lstm"], "baselines: unknown memory 'lstm'"),
        ("memories.gru.tasks", ["tset"], "memories.gru.tasks: unknown task 'tset'; did you mean"),
        ("memories.gru.settings", {"memory": {"kind": "gruu"}}, "memories.gru on tasks.test: "),
        ("memories.gru.setting", {}, "unknown key memories.gru.setting; did you mean"),
        ("tasks.test.preset", "sequential-test-hrad", "tasks.test: unknown preset"),
        ("tasks.test.settings.env.id", "doxastic/Tigger-v0", "no environment with the id"),
        ("tasks.test.settings", {"seed": 3}, "settings holds seed; the study sets it"),
        ("tasks.test.noise", [1.0, 6.0], "tasks.test.noise lacks [4.0]"),
        ("tasks.test.episodes", 50, "episodes is 50; expected at least 200"),
        ("tasks.test.source", "", "best is given without source"),
        ("tasks.test.stages", ["finale"], "tasks.test.stages: unknown stage 'finale'"),
        ("tasks.test.stages", [], "tasks.test.stages is empty"),
        ("tasks.test.settings_of", "tset", "tasks.test.settings_of: unknown task 'tset'"),
        ("tasks.test.settings_of", "test", "'test', which has no search of its own"),
        ("stages.0.seeds", [0, 1], "an interval over seeds needs at least 3"),
        ("stages.0.seeds", [9, 10, 11], "seeds holds [9], on which the settings are searched"),
        ("stages.0.budget", 1.5, "budget is 1.5; expected a share"),
        ("stages.0.best_of", ["belief"], "best_of: there is no stage before it"),
        ("parameter_tolerance", 1e-6, "the number of parameters cannot be matched"),
    ],
)
def test_bad_input_is_refused_before_anything_is_spent(path, value, message):
    with pytest.raises(ConfigError) as refusal:
        Design(study_from_dict(changed(path, value)))
    assert message.lower() in str(refusal.value).lower()


def test_an_unknown_study_names_the_nearest(capsys):
    assert main(["study", "quik"]) == 2
    assert "did you mean quick?" in capsys.readouterr().err


def test_a_task_without_a_best_return_is_refused(tmp_path):
    data = changed("tasks.test.best", None)
    env = {"id": "doxastic/Acrobot-v0", "kwargs": {}}
    data["tasks"]["test"]["settings"] = {**SMALL, "env": env}
    data["tasks"]["test"] |= {"noise": None, "source": ""}
    with pytest.raises(ConfigError, match="no best policy is known for doxastic/Acrobot-v0"):
        Study(study_from_dict(data), tmp_path / "out")


@pytest.mark.parametrize("name", study_names())
def test_presets_can_be_read(name):
    assert load_study(name).name == name


def test_quick_gives_its_memories_equal_parameters():
    config = load_study("quick")
    parameters = Design(config).parameters
    assert set(parameters) == {("sequential-test", name) for name in config.memories}
    target = parameters["sequential-test", config.reference]
    assert all(abs(n - target) <= 0.05 * target for n in parameters.values())


def test_nearest_size_is_the_nearest_on_either_side():
    sizes = range(1, 100)
    assert nearest_size(sizes, 26, lambda n: n * n) == 5
    assert nearest_size(sizes, 35, lambda n: n * n) == 6
    assert nearest_size(sizes, 0, lambda n: n * n) == 1
    assert nearest_size(sizes, 10**6, lambda n: n * n) == 99


def test_a_core_within_the_tolerance_keeps_its_size_and_a_baseline_comes_nearest():
    core = Experiment()
    gru = override(core, {"memory": {"kind": "gru"}})
    assert match(core, 130, 0.05, lambda e: round(64 * e.memory.channel_ratio)) == core
    assert match(gru, 130, 0.05, lambda e: 2 * e.memory.width + 1).memory.width in (64, 65)


def test_cells_of_a_stage_share_seeds_and_test_episodes():
    cells = Design(study_from_dict(DATA)).stage_cells(study_from_dict(DATA).stages[0], {})
    assert len(cells) == 6 and len({cell.digest for cell in cells}) == 6
    assert {cell.evaluation_seed for cell in cells} == {20_000_000}


def test_a_digest_forgets_threads_and_defaults_and_tells_seeds_and_tests_apart():
    cell = Design(study_from_dict(DATA)).search_cells()[0]
    data = cell.to_dict()
    again = Cell.from_dict(json.loads(json.dumps(data)))
    assert again == cell and again.digest == cell.digest

    def digest(**changes: object) -> str:
        return Cell.from_dict({**data, **changes}).digest

    experiment = data["experiment"]
    assert digest(experiment={**experiment, "threads": 2}) == cell.digest
    assert experiment["evaluation"]["selection_episodes"]
    assert digest(experiment={**experiment, "checkpoint_updates": 3}) != cell.digest
    unjudged = {**experiment["evaluation"], "selection_episodes": 0}
    assert digest(experiment={**experiment, "evaluation": unjudged}) == digest(
        experiment={**experiment, "evaluation": unjudged, "checkpoint_updates": 3}
    )
    left_out = {key: value for key, value in experiment.items() if key != "auxiliary"}
    assert digest(experiment=left_out) == cell.digest
    assert digest(experiment={**experiment, "seed": 5}) != cell.digest
    assert digest(episodes=300) != cell.digest


def record(**changes: object) -> Record:
    values: dict = {
        "digest": "aa", "stage": "search", "task": "test", "memory": "gru", "seed": 0,
        "learning_rate": 0.001, "entropy": 0.01, "steps": 10, "parameters": 5, "episodes": 200,
        "evaluation_seed": 1, "seconds_training": 1.0, "seconds_evaluation": 1.0, "versions": {},
        "levels": (0.5, 1.0), "means": (1.0, 2.0), "deviations": (0.1, 0.2),
    }  # fmt: skip
    return Record(**{**values, **changes})


def test_results_are_read_as_they_were_written(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    records = [record(), record(digest="bb", levels=(None,), means=(3.0,), deviations=(0.0,))]
    for one in records:
        results.append(one)
    lines = results.path.read_text().splitlines()
    assert len(lines) == 3 and {json.loads(line)["version"] for line in lines} == {1}
    assert list(Results(results.path).records.values()) == records


@pytest.mark.parametrize("cut", [5, 150])
def test_a_cell_cut_short_by_a_crash_is_dropped_and_the_rest_kept(tmp_path, cut):
    results = Results(tmp_path / "results.jsonl")
    results.append(record())
    whole = results.path.read_text()
    second = record(digest="bb")
    results.path.write_text(whole + second.lines()[:-cut])
    again = Results(results.path)
    assert set(again.records) == {"aa"}
    again.append(second)
    assert results.path.read_text() == whole + second.lines()


def test_of_lines_written_twice_the_last_count(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(record().lines() + record(means=(3.0, 4.0)).lines())
    assert Results(path).records["aa"].means == (3.0, 4.0)


@pytest.mark.parametrize("damage", [lambda whole: whole[:40], lambda whole: b"", lambda _: b"no"])
def test_damaged_episodes_are_named_with_the_remedy(tmp_path, damage):
    path = tmp_path / "episodes.npz"
    save_episodes(path, (1.0,), np.zeros((1, 8)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"is missing or damaged .* remove the lines of its cell"):
        load_episodes(path)


def test_results_of_another_version_are_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(record().lines().replace('"version": 1', '"version": 0'))
    with pytest.raises(RunError, match="line 1 has version 0; this program reads version 1"):
        Results(path)


def test_the_search_takes_the_best_mean_and_the_smaller_of_equals():
    def found(rate: float, seed: int, mean: float) -> Record:
        return record(learning_rate=rate, seed=seed, means=(mean, mean))

    records = [found(0.002, 0, 1.0), found(0.002, 1, 2.0), found(0.001, 0, 2.0)]
    records += [found(0.001, 1, 1.0), found(0.004, 0, 9.0)]
    # The last one failed on its second seed: nothing to be chosen.
    assert best_setting(records) == Settings(0.001, 0.01)
    assert best_setting([]) is None


def test_a_study_ends_with_results_and_a_report(finished):
    results = Results(finished / "results.jsonl")
    assert len(results.records) == 2 * 2 + 2 * 3
    searched = [one for one in results.records.values() if one.stage == "search"]
    assert {len(one.levels) for one in searched} == {2} and len(searched) == 4
    text = (finished / "report.md").read_text()
    for part in ("## Stage: comparison", "### Against gru", "P(better)", "## Search", "## Sizes"):
        assert part in text
    for name in ("noise", "learning", "profiles", "difference", "improvement"):
        assert f"]({name}-comparison.png)" in text
        assert (finished / f"{name}-comparison.png").read_bytes().startswith(b"\x89PNG")
    assert str(finished) not in text


def test_returns_of_every_episode_are_kept_and_agree_with_the_results(finished):
    study = Study(study_from_dict(DATA), finished)
    cells = study.phases()[-1].cells
    assert not study.results.missing(cells)
    for cell in cells:
        returns = load_episodes(finished / cell.folder / "episodes.npz")
        assert returns.shape == (3, 200)
        means = study.results.records[cell.digest].means
        np.testing.assert_allclose(returns.mean(1), means, rtol=1e-5)


def test_finished_cells_never_run_again(finished, inline, monkeypatch):
    def refuse(**arguments):
        raise AssertionError("trained again")

    monkeypatch.setitem(work.JOBS, "train", refuse)
    before = (finished / "results.jsonl").read_bytes()
    assert main(tiny(finished)) == 0
    assert (finished / "results.jsonl").read_bytes() == before
    assert "trained again" not in (finished / "report.md").read_text()


def test_a_failed_cell_is_reported_and_tried_again_by_the_next_call(
    finished, inline, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "out"
    shutil.copy(finished.parent / "tiny.yaml", tmp_path)
    shutil.copytree(finished, folder)
    path = folder / "results.jsonl"
    lost = [line for line in path.read_text().splitlines() if json.loads(line)["seed"] != 1]
    path.write_text("".join(f"{line}\n" for line in lost))
    train, tried = work.JOBS["train"], []

    def fail_for_gru(data, study):
        tried.append(data["memory"])
        if data["memory"] == "gru":
            raise ValueError("no luck")
        return train(data, study)

    monkeypatch.setitem(work.JOBS, "train", fail_for_gru)
    assert main(tiny(folder)) == 0
    assert sorted(tried) == ["belief", "gru"]
    assert "comparison / test / gru / seed 1" in capsys.readouterr().out
    text = (folder / "report.md").read_text()
    assert "ValueError: no luck" in text and "gru has 2 finished seeds, too few" in text
    monkeypatch.setitem(work.JOBS, "train", train)
    assert main(tiny(folder)) == 0
    assert len(Results(path).records) == 10
    assert "no luck" not in (folder / "report.md").read_text()


def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def without(folder: Path, **facts: object) -> list[Record]:
    """Take the cells with these facts out of the results, and return them."""
    path = folder / "results.jsonl"
    records = list(Results(path).records.values())
    lost = [x for x in records if all(getattr(x, key) == value for key, value in facts.items())]
    path.write_text("".join(x.lines() for x in records if x not in lost))
    return lost


def test_what_was_chosen_stands_while_a_failed_cell_is_tried_again(finished, tmp_path):
    folder = copied(finished, tmp_path)
    lost = without(folder, stage="search", memory="gru", learning_rate=0.002)
    study = Study(study_from_dict(DATA), folder)
    assert set(study.chosen()) == {("test", "belief")}  # That search goes on.
    (cell,) = study.results.missing(study.design.search_cells())
    study.fail(cell, "no luck")
    again = Study(study_from_dict(DATA), folder)
    with InlinePool(1, folder / "workers.log") as pool:
        pool.map = lambda jobs, on_wait: iter(())  # Stopped before there was an answer.
        Executor(again, pool, make_reporter(shown=False)).train()
    third = Study(study_from_dict(DATA), folder)
    assert set(third.chosen()) == {("test", "belief"), ("test", "gru")}
    third.results.append(lost[0])
    third.succeed(cell)
    assert not Study(study_from_dict(DATA), folder).failures


def test_a_renamed_memory_keeps_what_it_has(finished, tmp_path):
    folder = copied(finished, tmp_path)
    data = changed("memories", {"belief": {}, "gated": DATA["memories"]["gru"]})
    data["baselines"] = ["gated"]
    study = Study(study_from_dict(data), folder)
    before = Study(study_from_dict(DATA), folder)
    assert study.chosen()["test", "gated"] == before.chosen()["test", "gru"]
    assert not any(study.results.missing(phase.cells) for phase in study.phases())
    text = write_report(study, tmp_path / "report", "doxastic study tiny").read_text()
    assert "### Against gated" in text and "Not finished" not in text


def test_a_memory_that_lacks_a_task_is_not_chosen(finished, tmp_path):
    folder = copied(finished, tmp_path)
    without(folder, stage="comparison", memory="belief", seed=1)
    data = changed("stages", [*DATA["stages"], {"name": "final", "seeds": [20, 21, 22]}])
    data["stages"][1] |= {"memories": ["gru"], "best_of": ["belief", "gru"]}
    study = Study(study_from_dict(data), folder)
    (cell,) = study.results.missing(study.phases()[1].cells)
    assert study.best_among(1) is None  # It may still come.
    study.fail(cell, "no luck")
    choice = study.best_among(1)
    assert choice.memory == "gru" and choice.left_out == ["belief"] and choice.tasks == ["test"]


def test_two_memories_that_are_the_same_share_their_cells(finished, tmp_path):
    folder = copied(finished, tmp_path)
    data = changed("memories.twin", {})
    study = Study(study_from_dict(data), folder)
    assert not any(study.results.missing(phase.cells) for phase in study.phases())
    text = write_report(study, tmp_path / "report", "doxastic study tiny").read_text()
    assert "| twin |" in text


def test_what_another_process_finished_is_read_when_the_folder_is_held(finished, tmp_path):
    folder = copied(finished, tmp_path)
    lost = without(folder, stage="comparison", memory="gru", seed=1)
    study, other = (Study(study_from_dict(DATA), folder) for _ in range(2))
    with other.held():
        other.results.append(lost[0])
    with study.held():
        assert not any(study.results.missing(phase.cells) for phase in study.phases())


def test_a_study_that_a_full_disk_stopped_at_once_goes_on(tmp_path):
    (tmp_path / "study.lock").touch()
    assert not Study(study_from_dict(DATA), tmp_path).results.records


def test_what_the_disk_refuses_leaves_the_training_there(finished, tmp_path, monkeypatch):
    cell = Study(study_from_dict(DATA), finished).phases()[-1].cells[0]
    run = tmp_path / "run"
    shutil.copytree(finished / cell.folder / "run", run)
    (run / "evaluation.json").unlink()

    def refuse(**arguments):
        raise RunError("no space left on device")

    monkeypatch.setattr(work, "train", refuse)
    with pytest.raises(RunError, match="no space left"):
        work._trained(cell, run)
    assert (run / "checkpoints").is_dir()


def test_a_process_that_cannot_start_is_an_answer(tmp_path, monkeypatch):
    def refuse(pool):
        raise OSError("cannot allocate memory")

    monkeypatch.setattr(Pool, "_start", refuse)
    with Pool(1, tmp_path / "workers.log") as pool:
        (answer,) = pool.map([Job(key="one", name="measure", arguments={})], lambda: None)
    assert answer.error == "its process cannot be used: cannot allocate memory"


def test_a_trained_run_is_not_trained_again_and_a_broken_one_is(finished, tmp_path, monkeypatch):
    cell = Study(study_from_dict(DATA), finished).phases()[-1].cells[0]
    run = finished / cell.folder / "run"
    calls = []
    monkeypatch.setattr(work, "train", lambda *given, **options: calls.append(options) or run)
    work._trained(cell, run)
    assert not calls
    partial = tmp_path / "partial"
    shutil.copytree(run, partial)
    (partial / "evaluation.json").unlink()
    work._trained(cell, partial)
    assert calls.pop() == {"resume": partial, "progress": False}
    shutil.rmtree(partial / "checkpoints")
    work._trained(cell, partial)
    assert calls.pop() == {"run_dir": partial, "progress": False} and not partial.exists()


def test_a_dry_run_plans_and_trains_nothing(finished, inline, tmp_path, capsys):
    shutil.copy(finished.parent / "tiny.yaml", tmp_path)
    assert main([*tiny(tmp_path / "out"), "--dry-run", "--workers", "3"]) == 0
    shown = capsys.readouterr().out
    assert "search           4 cells to train (0 finished)" in shown
    assert "comparison       6 cells to train (0 finished)" in shown
    assert "with 3 processes" in shown
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_report_elsewhere_takes_the_results_with_it(finished, tmp_path):
    words = [*tiny(finished), "--report-only", "--report", str(tmp_path / "report")]
    assert main(words) == 0
    copied = (tmp_path / "report" / "results.jsonl").read_bytes()
    assert copied == (finished / "results.jsonl").read_bytes()
    assert (tmp_path / "report" / "noise-comparison.png").is_file()


def test_an_empty_report_does_not_replace_a_full_one(finished, tmp_path, capsys):
    folder, report = tmp_path / "out", tmp_path / "report"
    shutil.copytree(finished, folder)
    report.mkdir()
    (report / "report.md").write_text("full")
    data = changed("tasks.test.settings.total_steps", 256)
    (tmp_path / "tiny.yaml").write_text(dump_yaml(data))
    assert main([*tiny(folder), "--report-only", "--report", str(report)]) == 1
    shown = capsys.readouterr().err
    assert f"finished in {folder}; the 10 in its results.jsonl have other settings" in shown
    assert (report / "report.md").read_text() == "full"


def test_two_processes_cannot_hold_one_study(finished):
    with (
        Study(study_from_dict(DATA), finished).held(),
        pytest.raises(RunError, match="is in use by another process"),
        Study(study_from_dict(DATA), finished).held(),
    ):
        pass


def test_the_folder_of_another_study_is_refused(finished):
    with pytest.raises(RunError, match="holds the study 'tiny'; choose another --output"):
        Study(study_from_dict(changed("name", "other")), finished)


def test_the_best_of_a_stage_goes_on_to_the_next(finished):
    data = changed("stages", [*DATA["stages"], {"name": "final", "seeds": [20, 21, 22]}])
    data["stages"][1] |= {"memories": ["gru"], "best_of": ["belief", "gru"]}
    study = Study(study_from_dict(data), finished)
    assert study.best_of(1) in ("belief", "gru")
    memories = [cell.memory for cell in study.phases()[-1].cells]
    assert set(memories) == {"gru", study.best_of(1)}


def test_settings_of_another_task_need_a_search():
    data = changed("tasks.test.settings_of", "test")
    del data["search"]
    with pytest.raises(ConfigError, match="settings_of is given, but the study has no search"):
        study_from_dict(data)


def test_a_stage_without_a_task_is_refused():
    data = changed("stages", [*DATA["stages"], {"name": "final", "seeds": [20, 21, 22]}])
    data["tasks"]["test"]["stages"] = ["comparison"]
    with pytest.raises(ConfigError, match="no task takes part in the stage final"):
        study_from_dict(data)


def test_a_task_takes_the_settings_of_another_and_part_in_some_stages(finished):
    data = changed("stages", [*DATA["stages"], {"name": "final", "seeds": [20, 21, 22]}])
    data["tasks"]["other"] = {**DATA["tasks"]["test"], "settings_of": "test", "stages": ["final"]}
    study = Study(study_from_dict(data), finished)
    search, comparison, final = study.phases()
    assert {cell.task for cell in search.cells + comparison.cells} == {"test"}
    assert {cell.task for cell in final.cells} == {"test", "other"}
    settings = {(cell.task, cell.memory): cell.settings for cell in final.cells}
    for memory in data["memories"]:
        assert (
            settings["other", memory] == settings["test", memory] == study.chosen()["test", memory]
        )


def test_steps_of_a_run_are_read_from_its_last_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert execute._last_step(path) == 0
    path.write_text('{"steps": 64}\n{"steps": 128}\n{"ste')
    assert execute._last_step(path) == 128


def test_a_worker_that_dies_fails_its_job_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    script = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    request = json.loads(line)\n"
        "    if request['job'] == 'die': os._exit(7)\n"
        "    if request['job'] == 'environment':\n"
        "        request['arguments']['x'] = os.environ['GLIBC_TUNABLES']\n"
        "    print(json.dumps({'result': request['arguments']['x']}), flush=True)\n"
    )
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{script}")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("doxastic.studies.pool.sys.executable", str(tmp_path / "python"))
    jobs = [Job(key=str(i), name="echo", arguments={"x": i}) for i in range(4)]
    jobs.append(Job(key="pages", name="environment", arguments={}))
    jobs.insert(2, Job(key="bad", name="die", arguments={}))
    with Pool(2, tmp_path / "log") as pool:
        answers = {answer.job.key: answer for answer in pool.map(jobs, lambda: None)}
    assert [answers[str(i)].result for i in range(4)] == [0, 1, 2, 3]
    assert answers["pages"].result == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    assert "ended with exit code 7" in str(answers["bad"].error)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_killed_in_the_middle_of_a_training_goes_on_from_its_checkpoint(tmp_path):
    data = changed("tasks.test.settings.total_steps", 6_000)
    data["search"] = None
    (tmp_path / "tiny.yaml").write_text(dump_yaml(data))
    folder = tmp_path / "out"
    words = [sys.executable, "-m", "doxastic", *tiny(folder), "--workers", "1"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    saved: list[Path] = []
    while len(saved) < 2:
        assert process.poll() is None
        time.sleep(0.2)
        saved = list(folder.glob("cells/test/belief/*/run/checkpoints/step-*/manifest.json"))
    process.kill()
    process.wait()
    run = saved[0].parent.parent.parent
    assert 0 < RunFolder(run).metrics()[-1]["steps"] < 6_000
    assert main([*tiny(folder), "--workers", "1"]) == 0
    assert len(Results(folder / "results.jsonl").records) == 6
    log = (folder / "workers.log").read_text()
    assert "SIGTERM: finishing this update, then saving" in log and "Traceback" not in log
