"""`plft tune`: the better settings are found on valid alone, within the budget, and a killed search goes on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import plft.search
import small_run
from commandline import plft as run_plft
from plft.config import RunConfig, make_config
from plft.errors import PlftError
from plft.labels import TaskType
from plft.pipeline import train
from plft.search import Budget, tune
from plft.search_space import SPACE, search_space, value_of, with_settings
from plft.trials import Asked, Trial, Trials

pytest.importorskip("optuna")
RATES = "training.learning_rate=1e-9,3e-3"  # with the first nothing is learned


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences whose label is a number that a tiny model learns in a few epochs: their share of L."""
    path = tmp_path_factory.mktemp("data") / "data.csv"
    small_run.write_table(path, TaskType.SEQ_REGRESSION, n=40)
    rows = list(csv.DictReader(path.open()))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in rows:
            table.writerow(row | {"label": str(round(10 * row["sequence"].count("L") / len(row["sequence"]), 3))})
    return path


def values(data: Path, **training: Any) -> dict[str, Any]:
    """A regression judged by its error, which no constant prediction makes undefined."""
    return small_run.values(data, training={"metric": "rmse", "epochs": 2, **training})


def search_of(
    folder: Path, data: Path, *search: str, trials: int | None = 3, epochs: int = 2, **options: Any
) -> dict[str, Any]:
    """search.json of a small search."""
    return tune(values(data, epochs=epochs), folder, trials=trials, search=search, **options).summary


def trials_of(folder: Path) -> list[dict[str, str]]:
    """trials.csv without the clock."""
    rows = csv.DictReader((folder / "trials.csv").open())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# --- what is found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a search for the better of two learning rates; tests only read it."""
    folder = tmp_path_factory.mktemp("searches") / "s"
    search_of(folder, data, RATES, epochs=8)
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "search.json").read_text())


def test_the_better_of_two_learning_rates_is_found_and_trained_once_more(finished: Path) -> None:
    found = summary_of(finished)
    scores = {each["settings"]["training.learning_rate"]: each["score"] for each in found["trials"]}
    assert scores[3e-3] < scores[1e-9]
    assert next(iter(scores)) == 1e-3, "first the default, here of a scratch model"
    assert found["best"]["score"] == min(scores.values())
    history = small_run.history(finished / "best")
    assert min(row["valid_rmse"] for row in history if "valid_rmse" in row) == pytest.approx(found["best"]["score"])


def test_a_trial_scores_what_an_ordinary_run_with_its_settings_scores(tmp_path: Path, data: Path) -> None:
    found = search_of(tmp_path / "s", data, "model.head_dropout=0..0.5", "training.learning_rate=1e-4..1e-2", trials=2)
    second = found["trials"][1]
    config = plft.search.with_settings(RunConfig.model_validate(values(data)), second["settings"])
    train(config, tmp_path / "run")
    scores = [row["valid_rmse"] for row in small_run.history(tmp_path / "run") if "valid_rmse" in row]
    assert second["score"] == pytest.approx(min(scores), rel=1e-6)


def test_few_choices_are_all_tried_and_then_the_search_ends(tmp_path: Path, data: Path) -> None:
    found = search_of(tmp_path / "s", data, "training.weight_decay=0,0.01,0.1", trials=9)
    tried = [each["settings"]["training.weight_decay"] for each in found["trials"]]
    assert tried == [0.01, 0.0, 0.1], "the default first"


def test_few_whole_numbers_are_all_tried_and_then_the_search_ends(tmp_path: Path, data: Path) -> None:
    found = search_of(tmp_path / "s", data, "training.accumulation=1..3", trials=9)
    assert sorted(each["settings"]["training.accumulation"] for each in found["trials"]) == [1, 2, 3]


def test_the_labels_of_test_change_nothing_but_the_test_scores(tmp_path: Path, data: Path) -> None:
    rows = list(csv.DictReader(data.open()))
    other = tmp_path / "other.csv"
    with other.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in rows:
            table.writerow(row | ({"label": str(-float(row["label"]))} if row["split"] == "test" else {}))
    search = "training.learning_rate=1e-4..1e-2"
    first, second = (search_of(tmp_path / each.stem, each, search) for each in (data, other))
    assert trials_of(tmp_path / data.stem) == trials_of(tmp_path / "other")
    assert first["best"] == second["best"]
    assert first["final"]["splits"]["valid"] == second["final"]["splits"]["valid"]
    assert first["final"]["splits"]["test"]["value"] != second["final"]["splits"]["test"]["value"]


def test_trials_are_handed_no_test_part(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    original = plft.search.train_trial

    def spied(prepared: Any, *rest: Any) -> None:
        seen.append({*prepared.datasets, *prepared.parts})
        original(prepared, *rest)

    monkeypatch.setattr(plft.search, "train_trial", spied)
    search_of(tmp_path / "s", data, RATES, trials=2)
    assert seen == [{"train", "valid"}] * 2


def test_the_run_says_that_its_settings_were_chosen_on_valid(finished: Path) -> None:
    found, best = summary_of(finished), finished / "best"
    note = json.loads((best / "metrics.json").read_text())["search"]
    assert note == {
        "trials": 3,
        "trial": found["best"]["trial"],
        "metric": "rmse",
        "score": found["best"]["score"],
        "default_score": found["trials"][0]["score"],
    }
    for name in ("report.html", "README.md"):
        assert "chosen among 3 trials by RMSE on valid" in (best / name).read_text()
    page = (finished / "report.html").read_text()
    assert "so this score is optimistic" in page
    assert "training.learning_rate" in page


def test_a_trial_below_the_median_of_five_is_hopeless_from_its_second_evaluation_on(tmp_path: Path, data: Path) -> None:
    config = small_run.config(data, training={"learning_rate": 1e-3})
    space = search_space(["training.learning_rate=1e-5..1e-1"], config, config)
    tried = Trials(tmp_path / "study.db", space, config, seed=0, higher_is_better=True)
    verdicts = []
    for score in (0.1, 0.2, 0.3, 0.4, 0.5, 0.31, 0.29):
        asked = tried.ask(None)
        assert asked is not None
        verdicts.append([asked.is_hopeless(score), asked.is_hopeless(score)])
        tried.tell(asked, "pruned" if verdicts[-1][1] else "complete", 1.0, score)
    # the median of the first five is 0.3, of the first six 0.305
    assert verdicts == [[False, False]] * 6 + [[False, True]]
    assert tried.best is not None
    assert tried.best.number == 5


def test_a_pruned_trial_stops_at_once_and_is_not_the_best(tmp_path: Path, data: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Asked, "is_hopeless", lambda self, score: self.scores.append(score) or self.trial.number == 1)
    found = search_of(tmp_path / "s", data, "training.learning_rate=1e-5..1e-2", trials=2)
    assert [(each["state"], each["evaluations"]) for each in found["trials"]] == [("complete", 2), ("pruned", 1)]
    assert found["best"]["trial"] == 1


def test_what_a_frozen_backbone_makes_of_sequences_is_computed_once_for_all_trials(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    original = plft.keeping.states_of

    def counting(trainer: Any, dataset: Any) -> Any:
        states = original(trainer, dataset)
        return lambda batches: computed.extend(map(len, batches)) or states(batches)

    monkeypatch.setattr(plft.keeping, "states_of", counting)
    config = values(data) | {"tuning": {"method": "head"}}
    during: list[int] = []

    class Look(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            during.append(sum(computed))

    tune(config, tmp_path / "s", trials=4, search=["model.head_dropout=0..0.5"], callbacks=[Look()])
    assert during == [32] * 4 + [64], "24 + 8 sequences for the trials, and once more for the final run"
    assert not (tmp_path / "s" / "features").exists()


def test_poolings_of_one_backbone_do_not_share_what_is_kept(tmp_path: Path, data: Path) -> None:
    config = values(data) | {"tuning": {"method": "head"}}
    alone = {}
    for pooling in ("mean", "max"):
        one = plft.search.with_settings(RunConfig.model_validate(config), {"model.pooling": pooling})
        train(one, tmp_path / pooling)
        scores = [row["valid_rmse"] for row in small_run.history(tmp_path / pooling) if "valid_rmse" in row]
        alone[pooling] = min(scores)
    found = tune(config, tmp_path / "s", search=["model.pooling=mean,max"], trials=5).summary
    tried = {each["settings"]["model.pooling"]: each["score"] for each in found["trials"]}
    assert tried == pytest.approx(alone)


# --- going on

KILLED = """
import json, os, signal, sys
from transformers import TrainerCallback
from plft.search import tune

class Die(TrainerCallback):
    trials = 0
    def on_train_begin(self, *_, **__):
        Die.trials += 1
    def on_step_end(self, args, state, control, **_):
        if Die.trials == int(sys.argv[3]) and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

tune(json.loads(sys.argv[1]), sys.argv[2], trials=4, search=["training.learning_rate=1e-5..1e-2"], callbacks=[Die()])
"""


@pytest.mark.slow
def test_a_search_that_was_killed_ends_with_the_same_trials(tmp_path: Path, data: Path) -> None:
    search = "training.learning_rate=1e-5..1e-2"
    undisturbed = search_of(tmp_path / "a", data, search, trials=4)
    command = [sys.executable, "-c", KILLED, json.dumps(values(data)), str(tmp_path / "b")]
    for trial in ("3", "3"):  # the third trial, then in the second session the final run
        done = subprocess.run([*command, trial], env=os.environ, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = search_of(tmp_path / "b", data, search, trials=4)
    assert trials_of(tmp_path / "a") == trials_of(tmp_path / "b")
    assert undisturbed["best"] == resumed["best"]
    assert undisturbed["final"] == resumed["final"]
    assert resumed["counts"]["interrupted"] == 1


def test_an_interrupted_search_goes_on_and_so_does_one_with_more_trials(tmp_path: Path, data: Path) -> None:
    class Stop(TrainerCallback):
        begun = 0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begun += 1
            if self.begun == 2:
                raise KeyboardInterrupt

    search = "training.learning_rate=1e-5..1e-2"
    undisturbed = search_of(tmp_path / "a", data, search, trials=3)
    with pytest.raises(KeyboardInterrupt):
        search_of(tmp_path / "b", data, search, trials=2, callbacks=[Stop()])
    search_of(tmp_path / "b", data, search, trials=2)
    found = search_of(tmp_path / "b", data, search, trials=3)
    assert trials_of(tmp_path / "a") == trials_of(tmp_path / "b")
    assert undisturbed["final"] == found["final"]
    assert found["counts"] == {"complete": 3, "pruned": 0, "failed": 0, "interrupted": 1}
    note = json.loads((tmp_path / "b" / "best" / "metrics.json").read_text())["search"]
    assert (note["trials"], note["trial"]) == (3, found["best"]["trial"])


def test_a_search_killed_before_its_final_run_does_not_keep_the_one_of_an_earlier_best(
    tmp_path: Path, data: Path, monkeypatch: Any
) -> None:
    config, folder = values(data, epochs=8, learning_rate=1e-9), tmp_path / "s"
    tune(config, folder, search=[RATES], trials=1)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(plft.search, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(config, folder, search=[RATES], trials=2)
    found = tune(config, folder, search=[RATES], trials=2)
    assert found.summary["best"]["trial"] == 2
    assert plft.search.RunFolder(folder / "best").read_config().training.learning_rate == 3e-3
    assert found.best.metrics["search"]["trial"] == 2


def test_the_same_command_again_changes_nothing(tmp_path: Path, data: Path, finished: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "s"))
    files = [folder / "best" / each for each in ("metrics.json", "report.html", "model/trained.safetensors")]
    before = [each.stat().st_mtime_ns for each in files]
    assert search_of(folder, data, RATES, epochs=8) == summary_of(finished)
    assert [each.stat().st_mtime_ns for each in files] == before


# --- the budget


@pytest.mark.slow
def test_the_final_run_fits_into_the_minutes_too(tmp_path: Path, data: Path) -> None:
    search_of(tmp_path / "warm", data, RATES, trials=1)
    begun = time.monotonic()
    found = search_of(tmp_path / "s", data, "training.learning_rate=1e-5..1e-2", trials=None, minutes=0.7)
    assert time.monotonic() - begun < 42
    assert len(found["trials"]) > 1
    assert found["final"]["run"] == "best"


def test_time_for_the_final_run_is_set_aside() -> None:
    done = [Trial(number, "complete", 0.5, {}, seconds, 3) for number, seconds in ((1, 100.0), (2, 60.0))]
    budget = Budget(None, 10, time.monotonic() - 200, spent=100, baselines=60)
    assert budget.left(done) == pytest.approx(600 - 200 - 100 - 125 - 10 - 60, abs=1)
    assert budget.allows_another(done), "105 s are left, and a trial takes 80"
    assert not Budget(None, 10, time.monotonic() - 230, spent=100, baselines=60).allows_another(done)
    assert Budget(None, 1, time.monotonic() - 100).allows_another([]), "the default settings are always tried"
    assert not Budget(2, None, time.monotonic()).allows_another(done)


# --- what goes wrong


def test_a_trial_without_memory_fails_and_the_search_goes_on(tmp_path: Path, data: Path, monkeypatch: Any) -> None:
    original, calls = plft.search.train_trial, []

    def second_fails(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        original(*arguments)

    monkeypatch.setattr(plft.search, "train_trial", second_fails)
    found = search_of(tmp_path / "s", data, "training.learning_rate=1e-5..1e-2")
    assert [each["state"] for each in found["trials"]] == ["complete", "failed", "complete"]
    assert found["trials"][1]["reason"] == "out of memory"


def test_settings_that_do_not_go_together_fail_with_their_reason(tmp_path: Path, data: Path) -> None:
    found = search_of(tmp_path / "s", data, "tuning.method=full,lora,last-7", trials=9)
    states = {each["settings"]["tuning.method"]: each for each in found["trials"]}
    assert states["last-7"]["state"] == "failed"
    assert "only 2 blocks" in states["last-7"]["reason"]
    assert states["lora"]["state"] == "complete"


def test_where_every_trial_fails_the_first_reason_is_the_error(tmp_path: Path, data: Path, monkeypatch: Any) -> None:
    def fails(*arguments: Any) -> None:
        raise PlftError("It does not work.")

    monkeypatch.setattr(plft.search, "train_trial", fails)
    with pytest.raises(PlftError, match=r"Every trial failed. The first one: It does not work."):
        search_of(tmp_path / "s", data, "training.learning_rate=1e-5..1e-2", trials=2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--search", "training.lerning_rate=1..2"], "Did you mean 'training.learning_rate'?"),
        (["--search", "training.learning_rate=0..1"], "greater than 0"),
        (["--search", "training.learning_rate=1e-3..1e-5"], "from a smaller number to a larger one"),
        (["--search", "training.learning_rate=a..b"], "'a' is not a number"),
        (["--search", "tuning.rank=4,x"], "valid integer"),
        (["--search", "tuning.rank=4"], "leaves nothing to choose"),
        (["--search", "tuning.rank=4,8", "--search", "tuning.rank=1,2"], "twice"),
        (["--search", "tuning.rank=4,8", "--tune", "head"], "has no effect with tuning.method head"),
        (["--search", "model.head_kernel=3,5"], "has no effect with"),
        (["--search", "training.weight_decay"], "no range is known"),
        (["--search", "training.seed=1,2"], "is luck"),
        (["--search", "data.max_residues=10,20"], "change what is measured"),
        (["--trials", "0"], "one trial at least"),
        (["--minutes", "0.1"], "leaves no time for trials"),
        (["--tune", "lroa"], "Did you mean 'lora'?"),
    ],
)
def test_a_wrong_search_is_one_line_and_leaves_nothing(
    tmp_path: Path, data: Path, words: list[str], expected: str
) -> None:
    given = ["tune", str(data), "--model", "scratch:tiny-esm2", "--out", str(tmp_path / "s")]
    shown = run_plft(*given, *words)
    assert shown.code == 1
    assert expected in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "s").exists()


def test_another_search_in_the_folder_is_refused_with_what_differs(data: Path, finished: Path) -> None:
    with pytest.raises(PlftError, match=r"training.epochs was 8.0, now 5.0. Give the same command"):
        tune(values(data, epochs=5), finished, search=[RATES])
    with pytest.raises(PlftError, match=r"search.model.head was not given, now mlp,cnn"):
        tune(values(data, epochs=8), finished, search=[RATES, "model.head=mlp,cnn"])
    before = data.read_bytes()
    data.write_bytes(before + before.splitlines(keepends=True)[-1])
    with pytest.raises(PlftError, match="the data have changed"):
        tune(values(data, epochs=8), finished, search=[RATES])
    data.write_bytes(before)


def test_a_folder_that_is_no_search_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.txt").write_text("mine")
    with pytest.raises(PlftError, match="is not a search folder"):
        search_of(tmp_path / "s", data, RATES)


def test_a_damaged_data_base_is_one_line(tmp_path: Path, data: Path, finished: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "s"))
    (folder / "study.db").write_bytes(b"no data base at all" * 100)
    with pytest.raises(PlftError, match=r"study.db cannot be read"):
        search_of(folder, data, RATES, epochs=8)


def test_two_searches_do_not_work_in_one_folder_at_once(data: Path, finished: Path) -> None:
    with (
        plft.search.only_one(plft.search.SearchFolder(finished)),
        pytest.raises(PlftError, match="another plft tune is at work"),
    ):
        search_of(finished, data, RATES, epochs=8)


def test_without_optuna_the_line_to_type_is_named(tmp_path: Path, data: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    shown = run_plft("tune", str(data), "--out", str(tmp_path / "s"))
    assert shown.code == 1
    assert "pip install 'plft[hpo]'" in shown.err


# --- the command


def test_the_command_prints_the_space_first_and_the_next_command_last(tmp_path: Path, data: Path) -> None:
    given = ["--model", "scratch:tiny-esm2", "--tune", "full", "--trials", "2", "--search", "training.learning_rate"]
    short = ["--set", "training.max_steps=2", "--set", "baselines.run=false"]
    shown = run_plft("tune", str(data), *given, *short, "--out", str(tmp_path / "s"))
    assert shown.code == 0, shown.err
    lines = shown.err.splitlines()
    space = next(at for at, line in enumerate(lines) if "searched: training.learning_rate 0.0001 to 0.01, log" in line)
    assert space < next(at for at, line in enumerate(lines) if "trial 1 of 2 (the default settings)" in line)
    assert shown.out.splitlines()[-1].startswith(f"next: plft predict {tmp_path / 's' / 'best'} ")
    again = run_plft("tune", str(data), *given, *short, "--out", str(tmp_path / "s"), "--json")
    assert json.loads(again.out)["best"]["trial"] in (1, 2)


# --- the table


@pytest.mark.parametrize("method", ["head", "last-1", "lora", "dora", "ia3", "adapter", "full"])
def test_every_row_of_the_space_is_a_setting_with_its_default_inside(data: Path, method: str) -> None:
    settings = {"tuning": {"method": method}, "training": {"learning_rate": 1e-3, "batch_residues": 500}}
    config, default = small_run.config(data, tuning={"method": method}), small_run.config(data, **settings)
    space = search_space((), config, default)
    for each in space:
        assert each.holds(value_of(default, each.key)), each
        assert search_space([each.key], config, default) == [each]
    keys = {each.key for each in space}
    rows = {row.key for row in SPACE.values() if not row.methods or method in row.methods}
    rows -= {"model.head_dropout", "training.batch_residues"}  # which the small run states
    assert keys == rows


def test_what_the_user_sets_is_not_searched_and_heads_that_ignore_it_are_left_out(data: Path) -> None:
    default = small_run.config(data, training={"learning_rate": 1e-3, "batch_residues": 500})
    free = {each.key: each for each in search_space((), small_run.config(data), default)}
    config = small_run.config(data, model={"head_layers": 2}, training={"learning_rate": 1e-4})
    space = {each.key: each for each in search_space((), config, default, fixed=["model.head_width"])}
    assert free.keys() - space.keys() == {"training.learning_rate", "model.head_width"}
    assert set(space["model.head"].values) == {"mlp", "cnn"}
    assert set(free["model.head"].values) == {"mlp", "cnn", "linear"}
    fixed = [row.key for row in SPACE.values()]
    with pytest.raises(PlftError, match="Name what to search"):
        search_space((), config, default, fixed)


def test_around_a_run_everything_is_searched_and_another_head_gets_its_own_pooling_and_layers(data: Path) -> None:
    values = small_run.config(data, model={"head": "mlp", "pooling": "mean", "head_layers": 1}).model_dump()
    values["training"] |= {"learning_rate": 1e-3, "batch_residues": 500}
    record = make_config(values)
    assert {"training.learning_rate", "model.head"} <= {each.key for each in search_space((), record, record)}
    same = with_settings(record, {"model.head": "mlp"}).model
    assert (same.head, same.pooling, same.head_layers) == ("mlp", "mean", 1)
    other = with_settings(record, {"model.head": "linear"}).model
    assert (other.head, other.pooling, other.head_layers) == ("linear", None, None)
    kept = with_settings(record, {"model.head": "cnn"}, fixed=["model.head_layers"]).model
    assert (kept.head, kept.pooling, kept.head_layers) == ("cnn", None, 1)


def test_ranges_of_tenfold_or_more_are_logarithmic(data: Path) -> None:
    config = small_run.config(data)
    wanted = {
        "training.learning_rate=1e-5..1e-3": ("log", (1e-5, 1e-3)),
        "training.warmup_share=0.05..0.2": ("uniform", (0.05, 0.2)),
        "model.head_dropout=0..0.5": ("uniform", (0.0, 0.5)),
        "model.head_width=16..256": ("log integer", (16, 256)),
        "model.head_layers=1..3": ("integer", (1, 3)),
        "model.head_width=null,64": ("choice", (None, 64)),
    }
    for text, expected in wanted.items():
        (found,) = search_space([text], config, config)
        assert (found.kind, found.values) == expected
        assert search_space([f"{found.key}={found.typed}"], config, config) == [found]
