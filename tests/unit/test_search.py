"""csr-search: spaces, objectives, claims, storage, and real workers of which one is killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from csr_deploy.analysis import count_macs
from csr_deploy.checkpoint import load_checkpoint
from csr_deploy.cli.search import main
from csr_deploy.cli.train import main as train_main
from csr_deploy.data import open_dataset
from csr_deploy.errors import CsrError, MissingDependencyError, ModelError, OptionError
from csr_deploy.models import count_parameters
from csr_deploy.search import storage as storage_module
from csr_deploy.search.claims import NETWORK, SKIPPED, Claims, LostError, TakenError, is_done
from csr_deploy.search.costs import CostMeter
from csr_deploy.search.front import collect, dominates
from csr_deploy.search.grid import list_grid
from csr_deploy.search.halving import Contender, better_one
from csr_deploy.search.objectives import parse_objectives
from csr_deploy.search.proxy import Part, Proxy, balanced_order, rungs, split_training_part
from csr_deploy.search.quiet import Quiet
from csr_deploy.search.sampler import NewNetworks
from csr_deploy.search.settings import SearchSettings
from csr_deploy.search.space import Candidate, Space
from csr_deploy.search.storage import StorageError, default_url, open_storage, reported
from csr_deploy.search.worker import Study, Worker
from tests.postgres import running_server

MODULE = [sys.executable, "-m", "csr_deploy.cli.search"]
FAST = ["--batch-size", "12", "--no-bf16", "--device", "cpu", "--threads", "1", "--heartbeat", "1"]

# Spaces


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("resnet20", {"per_module": True, "steps": (2, 3, 5)}),
        ("resnet14", {"per_module": True, "cells": ("vanilla", "gru")}),
        ("vgg16", {"widths": (0.5, 1.0), "steps": (3, 4)}),
        pytest.param("mobilenetv2", {"widths": (0.25,), "steps": (3,)}, marks=pytest.mark.full),
    ],
)
def test_counts_are_those_of_the_network_that_is_built(backbone: str, options: dict[str, object]) -> None:
    shape = (1, 3, 32, 32)
    space = Space(backbone, num_classes=7, input_shape=shape, **options)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    distributions = space.distributions()
    names = {}
    for _ in range(4):
        draw = {}
        for name, distribution in distributions.items():
            if isinstance(distribution, optuna.distributions.IntDistribution):
                draw[name] = int(random.integers(1, distribution.high))
            else:
                draw[name] = distribution.choices[random.integers(len(distribution.choices))]
        candidate = space.candidate(draw)
        assert space.candidate(space.parameters(candidate)) == candidate
        model = space.architecture(candidate).build()
        counts = space.counts(candidate)
        assert counts.parameters == count_parameters(model)
        assert counts.macs == count_macs(model, shape)
        assert names.setdefault(space.name(candidate), candidate) == candidate
    plain = Candidate((1,) * space.modules)
    assert space.backbone_counts.parameters == count_parameters(space.architecture(plain).build())


def test_different_parameters_of_the_same_network_have_one_name() -> None:
    space = Space("resnet8", steps=(2, 3))
    same = [space.candidate({"modules": 0, "T": t, "cell": "vanilla", "width": 1.0}) for t in (2, 3)]
    assert same[0] == same[1] == Candidate((1, 1, 1))
    assert space.name(same[0]) == "resnet8"
    assert space.listed is not None
    assert sorted(space.listed) == sorted(
        ["resnet8", *(f"resnet8-m{m}t{t}" for m in (1, 2, 3) for t in (2, 3))]
    )
    assert Space("resnet8", per_module=True).name(Candidate((1, 3, 2))) == "resnet8-t3.2"


def test_a_module_that_cannot_have_a_t_does_not_get_it() -> None:
    space = Space("vgg16", steps=(4,), per_module=True)
    assert space.distributions()["T of module 1"].choices == (1,)
    assert space.distributions()["T of module 2"].choices == (1, 4)
    listed = Space("vgg16", steps=(4,)).listed
    assert listed is not None
    assert "vgg16-m12t4" in listed
    assert "vgg16-m13t4" not in listed


def test_the_grid_lists_what_reaches_the_compression() -> None:
    space = Space("resnet20", steps=(2, 3, 4), target_compression=60)
    rows = list_grid(space)
    assert rows
    assert all(row.compression >= 60 for row in rows)
    everything = Space("resnet20", steps=(2, 3, 4)).listed
    assert everything is not None
    reached = {n for n, c in everything.items() if space.compression(c) >= 60}
    assert {row.network for row in rows} == reached
    fewest = [row for row in rows if row.fewest]
    assert [(r.modules, r.steps) for r in fewest] == [
        (min(r.modules for r in rows if r.steps == t), t) for t in sorted({r.steps for r in rows})
    ]


@pytest.mark.parametrize("per_module", [False, True])
def test_a_compression_that_cannot_be_reached_names_the_nearest(per_module: bool) -> None:
    with pytest.raises(OptionError, match=r"95 % cannot be reached .* nearest is 86\.2 % by resnet20-m9t4"):
        Space("resnet20", target_compression=95, per_module=per_module)


def test_bad_spaces() -> None:
    with pytest.raises(ModelError, match="unknown backbone 'resnet21'"):
        Space("resnet21")
    with pytest.raises(ModelError, match="grru"):
        Space("resnet8", cells=("grru",))
    with pytest.raises(OptionError, match="has one width only"):
        Space("resnet8", widths=(0.5, 1.0))
    with pytest.raises(OptionError, match="steps"):
        settings(Path("x"), "x", steps=(1, 2))


# Objectives and rules


def test_objectives() -> None:
    found = parse_objectives(
        ["parameters", "accuracy", "latency:tflite-int8", "instructions:pi4", "flash", "ram:cortex-m4"]
    )
    assert [o.kind for o in found] == ["accuracy", "parameters", "latency", "instructions", "flash", "ram"]
    assert [o.maximised for o in found] == [True] + [False] * 5
    assert [o.timed for o in found] == [False, False, True, False, False, False]
    assert (found[3].target, found[3].device) == ("tflite-int8", "pi4")
    assert (found[5].target, found[5].device) == ("mcu", "qemu:cortex-m4")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["accuracy"], "accuracy alone"),
        (["paramters"], "Did you mean parameters"),
        (["macs", "macs"], "macs is given twice"),
        (["latency"], "needs a target"),
        (["latency:tflite-int"], "Did you mean tflite-int8"),
        (["latency:mcu"], "not run on this machine"),
        (["instructions:pi4:mcu"], "does not run the target 'mcu'"),
        (["instructions:tflite-int8"], "counted on a device"),
        (["instructions:cortex-m99"], "cortex-m99"),
        (["parameters:onnx"], "needs no target"),
    ],
)
def test_bad_objectives(texts: list[str], message: str) -> None:
    with pytest.raises(OptionError) as error:
        parse_objectives(texts)
    assert message in str(error.value)


def test_only_a_network_that_costs_no_more_makes_another_hopeless() -> None:
    own = Contender("own", {"parameters": 100, "macs": 10}, [0.5, 0.6])

    def other(name: str, parameters: int, macs: int, *curve: float) -> Contender:
        return Contender(name, {"parameters": parameters, "macs": macs}, curve)

    larger = other("larger", 101, 10, 0.9, 0.9)
    slower = other("slower", 50, 11, 0.9, 0.9)
    behind = other("behind", 50, 5, 0.9)
    close = other("close", 50, 5, 0.9, 0.62)
    assert better_one(own, [larger, slower, behind, close], 3.0) is None
    equal = other("equal", 100, 10, 0.1, 0.64)
    ahead = other("ahead", 50, 5, 0.1, 0.7)
    assert better_one(own, [equal, ahead, close], 3.0) is ahead
    assert better_one(own, [close], 2.0) is close
    assert [rungs(e) for e in (1, 2, 4, 9)] == [[], [1], [1, 2], [1, 2, 4, 8]]


def test_dominance() -> None:
    objectives = parse_objectives(["macs"])
    assert dominates({"accuracy": 0.8, "macs": 5}, {"accuracy": 0.8, "macs": 6}, objectives)
    assert not dominates({"accuracy": 0.8, "macs": 5}, {"accuracy": 0.8, "macs": 5}, objectives)
    assert not dominates({"accuracy": 0.7, "macs": 4}, {"accuracy": 0.8, "macs": 5}, objectives)


def test_held_out_images_are_balanced_and_apart() -> None:
    labels = np.repeat(np.arange(4), (40, 30, 20, 10)).astype(np.int64)
    order = balanced_order(labels, 3)
    assert sorted(order) == list(range(100))
    assert Counter(labels[order[:20]]) == {0: 5, 1: 5, 2: 5, 3: 5}
    assert not np.array_equal(order, balanced_order(labels, 4))
    whole = open_dataset("fashion-mnist", "train")
    train, held = split_training_part(whole, 60, 30, 0)
    assert isinstance(train, Part)
    assert (len(train), len(held)) == (60, 30)
    assert not {train.image(i).tobytes() for i in range(60)} & {held.image(i).tobytes() for i in range(30)}
    # Too few for both: a fifth is held out.
    assert [len(p) for p in split_training_part(whole, 4000, 1000, 0)] == [160, 40]


# The study


def settings(out: Path, data: object, **changes: object) -> SearchSettings:
    usual = SearchSettings(
        backbone="resnet8",
        data=str(data),
        out=str(out),
        trials=3,
        storage=default_url(out),
        study="test",
        steps=(2, 3),
        epochs=2,
        limit=48,
        validation=12,
        batch_size=12,
        device="cpu",
        threads=1,
        bf16=False,
        heartbeat=1.0,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def test_settings_survive_their_json() -> None:
    one = settings(Path("x"), "y", image_size=(8, 9), objectives=("accuracy", "macs"), widths=(0.5, 1.0))
    assert SearchSettings.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.fixture
def claims(tmp_path: Path) -> Iterator[Callable[[], tuple[Claims, Space]]]:
    """Makes workers of one study, each with a connection of its own."""
    url, space = default_url(tmp_path), Space("resnet8", steps=(2, 3))
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def make() -> tuple[Claims, Space]:
        storage = open_storage(url, heartbeat=1, grace=60, create=True)
        study = optuna.create_study(
            storage=storage,
            study_name="s",
            directions=["maximize", "minimize"],
            load_if_exists=True,
            sampler=NewNetworks(space, 0),
        )
        return Claims(study, storage, url, 5, 60), space

    yield make


def test_of_workers_with_the_same_network_exactly_one_goes_on(
    claims: Callable[[], tuple[Claims, Space]],
) -> None:
    workers = 6
    claims()
    ready, answers = threading.Barrier(workers), []

    def work() -> None:
        mine, space = claims()
        ready.wait()
        trial = mine.ask("me", space.distributions())
        try:
            mine.claim(trial, "the same")
            answers.append("granted")
        except TakenError:
            answers.append("taken")

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(answers) == {"granted": 1, "taken": workers - 1}
    trials = claims()[0].trials()
    assert sorted(t.number for t in trials) == list(range(workers))
    assert sum(SKIPPED in t.user_attrs for t in trials) == workers - 1


def test_there_are_never_more_trials_than_asked_for(claims: Callable[[], tuple[Claims, Space]]) -> None:
    mine, space = claims()
    for number in range(5):
        mine.claim(mine.ask("me", space.distributions()), f"network {number}")
    with pytest.raises(TakenError, match="enough"):
        mine.claim(mine.ask("me", space.distributions()), "one more")


def test_a_lost_network_is_queued_once_and_its_worker_lets_go(
    claims: Callable[[], tuple[Claims, Space]],
) -> None:
    (asleep, space), (other, _), (third, _) = claims(), claims(), claims()
    trial = asleep.ask("asleep", space.distributions())
    asleep.claim(trial, "network")
    parameters = dict(trial.params)
    other.fail(trial.number)
    assert other.requeue() == ["network"]
    assert third.requeue() == []
    retry = other.ask("other", space.distributions())
    assert retry.params == parameters
    other.claim(retry, "network")
    with pytest.raises(LostError):
        asleep.check(trial)
    with pytest.raises(LostError):
        asleep.note(trial, "curve", [0.5])
    asleep.tell(trial, TrialState.COMPLETE, [0.9, 1.0])
    other.tell(retry, TrialState.COMPLETE, [0.8, 1.0])
    done = [t for t in other.trials() if is_done(t)]
    assert [(t.number, t.values) for t in done] == [(retry.number, [0.8, 1.0])]
    assert other.requeue() == []


def test_a_worker_that_died_before_its_first_sign_of_life_blocks_nobody(tmp_path: Path) -> None:
    url, space = default_url(tmp_path), Space("resnet8", steps=(2, 3))
    storage = open_storage(url, heartbeat=1, grace=1, create=True)
    study = optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])
    study.sampler = NewNetworks(space, 0)
    mine = Claims(study, storage, url, 5, 0.3)
    # As if the process had been killed right after this.
    storage.create_new_trial(storage.get_study_id_from_name("s"))
    trial = mine.ask("me", space.distributions())
    mine.claim(trial, "network")
    assert [t.state for t in mine.trials()] == [TrialState.FAIL, TrialState.RUNNING]


@pytest.mark.parametrize("target", [None, 50.0])
def test_the_sampler_tries_every_network_once(tmp_path: Path, target: float | None) -> None:
    space = Space("resnet8", steps=(2, 3, 4), target_compression=target)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=NewNetworks(space, 1))
    assert space.listed is not None
    seen = []
    for _ in range(len(space.listed)):
        trial = study.ask(space.distributions())
        candidate = space.candidate(trial.params)
        seen.append(space.name(candidate))
        trial.set_user_attr(NETWORK, seen[-1])
        study.tell(trial, [0.5, float(space.counts(candidate).parameters)])
    assert sorted(seen) == sorted(space.listed)


def test_the_sampler_draws_from_a_space_too_large_to_list() -> None:
    space = Space("resnet56", steps=(2, 3, 4, 5), per_module=True, target_compression=80)
    assert space.listed is None
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=NewNetworks(space, 1))
    seen = set()
    for _ in range(12):
        trial = study.ask(space.distributions())
        candidate = space.candidate(trial.params)
        assert space.compression(candidate) >= 80
        seen.add(space.name(candidate))
        trial.set_user_attr(NETWORK, space.name(candidate))
        study.tell(trial, [0.5, float(space.counts(candidate).parameters)])
    assert len(seen) == 12


# Storage


def test_a_locked_storage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_LOCK_SECONDS", 0.2)
    url = default_url(tmp_path)
    storage = open_storage(url, heartbeat=1, grace=4, create=True)
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    holder = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="locked by another process") as error, reported(url):
        study.set_user_attr("a", 1)
    assert "postgresql://" in str(error.value)
    with pytest.raises(StorageError, match="locked"):
        open_storage(url, heartbeat=1, grace=4, create=True)
    holder.close()
    with reported(url):
        study.set_user_attr("a", 1)


def test_a_storage_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    storage = open_storage(url, heartbeat=1, grace=4, create=True)
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    (tmp_path / "study.db").unlink()
    with pytest.raises(StorageError, match="is gone"), reported(url):
        study.set_user_attr("a", 1)
    assert not (tmp_path / "study.db").exists()


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("study.db", StorageError, "is no URL of a database"),
        ("sqlite://", StorageError, "is in memory"),
        ("nosuchdb://host/name", StorageError, "of an unknown kind"),
        ("mysql://user:secret@localhost:1/name", MissingDependencyError, "pip install mysqlclient"),
        pytest.param(
            "postgresql://user:secret@127.0.0.1:1/name",
            StorageError,
            "that the database is up",
            marks=pytest.mark.skipif(not find_spec("psycopg"), reason="psycopg is not installed"),
        ),
    ],
)
def test_bad_storages(url: str, error: type[CsrError], message: str) -> None:
    with pytest.raises(error) as raised:
        open_storage(url, heartbeat=1, grace=4, create=True)
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(StorageError, match="not a database"):
        open_storage(default_url(tmp_path), heartbeat=1, grace=4, create=True)
    with pytest.raises(StorageError, match="does not exist"):
        open_storage(f"sqlite:///{tmp_path}/none.db", heartbeat=1, grace=4, create=False)


# Quiet


def test_a_measurement_waits_for_trainings_and_they_for_it(tmp_path: Path) -> None:
    training, meter = Quiet(enabled=True, folder=tmp_path), Quiet(enabled=True, folder=tmp_path)
    events: list[str] = []
    measuring = threading.Event()

    def measure() -> None:
        with meter.measuring():
            events.append("measuring")
            measuring.set()
            time.sleep(0.2)
            events.append("measured")

    thread = threading.Thread(target=measure)
    with training.training():
        thread.start()
        assert not measuring.wait(0.3)
        # Between two steps the measurement goes first, and this comes back after it.
        while not measuring.is_set():
            training.pause()
        training.pause()
        events.append("step")
    thread.join()
    assert events == ["measuring", "measured", "step"]


# Costs


def test_costs_come_from_the_exported_model(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert to export .tflite")
    proxy = Proxy(settings(tmp_path, "fashion-mnist"), tmp_path)
    space = Space("resnet8", input_shape=(1, 1, 28, 28))
    data = proxy.data
    meter = CostMeter(
        space,
        parse_objectives(["parameters", "size:tflite-int8", "flash", "ram"]),
        "fashion-mnist",
        data.classes,
        data.preprocessing,
        data.train_images[:16],
        Quiet(enabled=False),
    )
    plain, small = (meter.measure(Candidate(steps)).values for steps in ((1, 1, 1), (1, 1, 4)))
    meter.close()
    assert plain["parameters"] == count_parameters(space.architecture(Candidate((1, 1, 1))).build())
    for name in ("size:tflite-int8", "flash"):
        assert 0.3 < small[name] / plain[name] < 0.8
        assert plain[name] > plain["parameters"]
    assert plain["ram"] > 28 * 28 * 16


@pytest.mark.full
def test_a_latency_is_relative_to_the_backbone(tmp_path: Path) -> None:
    one = settings(
        tmp_path,
        "fashion-mnist",
        trials=2,
        epochs=1,
        objectives=("accuracy", "latency:tflite-int8", "instructions:cortex-m4"),
    )
    study = Study(one)
    study.queue_backbone()
    Worker(study).run()
    front = collect(study)
    found = {f.network: f for f in (*front.front, *front.others)}
    # The same model on both sides of the comparison: what is left is the machine's noise.
    assert 0.3 < found["resnet8"].values["latency:tflite-int8"] < 3
    assert found["resnet8"].details["latency:tflite-int8 ms"] > 0
    assert all(f.values["instructions:cortex-m4"] > 1e6 for f in found.values())


# Whole searches


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def csr_search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["csr-search", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    monkeypatch.setenv("COLUMNS", "200")
    return run


def test_the_list(csr_search: Run) -> None:
    code, stdout, stderr = csr_search("-b", "resnet20", "--target-compression", 60)
    assert code == 0, stderr
    assert "resnet20-m4t3" in stdout
    assert "269,722 parameters" in stdout
    code, stdout, _ = csr_search(
        "-b", "resnet20", "--target-compression", 60, "--data", "fashion-mnist", "--json"
    )
    assert code == 0
    assert {row["network"] for row in json.loads(stdout)} >= {"resnet20-m4t3", "resnet20-m9t4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "resnet8"], "there is nothing to do"),
        (["-b", "resnet8", "-n", "3"], "no images were given"),
        (["-b", "resnet8", "--target-compression", "99"], "the nearest is"),
        (["-b", "resnet8", "--target-compression", "50", "--per-module"], "has one T"),
        (["-b", "resnte8", "--target-compression", "50"], "Did you mean resnet8"),
        (["-b", "resnet8", "-n", "3", "-d", "nowhere"], "does not exist"),
        (["-b", "resnet8", "-n", "3", "-d", "fashion-mnist", "--objective", "speed"], "unknown objective"),
        (["-b", "resnet8", "-n", "3", "-d", "fashion-mnist", "--resume"], "does not exist"),
        (["-b", "resnet8", "-n", "3", "-d", "fashion-mnist", "--storage", "x.db"], "no URL"),
    ],
)
def test_bad_commands(csr_search: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, _, stderr = csr_search("-o", tmp_path / "out", *arguments)
    assert code == 1
    assert message in stderr


def test_a_search_from_start_to_end(
    csr_search: Run,
    tmp_path: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    arguments = ["-b", "resnet8", "-d", image_folder, "-o", out, "--steps", "2,3", "--epochs", 2, *FAST]
    code, stdout, stderr = csr_search(*arguments, "-n", 3)
    assert code == 0, stderr
    assert "3/3" in stderr
    result = json.loads((out / "pareto.json").read_text())
    found = [*result["front"], *result["others"]]
    assert len(found) == len({f["network"] for f in found}) == 3
    assert "resnet8" in {f["network"] for f in found}
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    best = result["front"][0]
    checkpoint = load_checkpoint(out / best["checkpoint"])
    assert checkpoint.architecture.name == best["network"]
    assert checkpoint.metrics["validation_top1"] == best["values"]["accuracy"]
    assert "test_top1" not in checkpoint.metrics
    assert checkpoint.training["search"]["values"] == best["values"]
    for other in found:
        architecture = load_checkpoint(out / "trials" / other["network"] / "model.pt").architecture
        assert count_parameters(architecture.build()) == other["values"]["parameters"]

    # The same command has nothing left to do; more trials go on from there, whoever starts them.
    code, _, stderr = csr_search(*arguments, "-n", 3, "--resume")
    assert code == 0
    assert "3 networks are done already" in stderr
    code, _, stderr = csr_search(*arguments, "-n", 4)
    assert code == 0
    assert stderr.count("/4  resnet8") == 1
    code, _, stderr = csr_search(*arguments, "-n", 9)
    assert code == 0
    networks = json.loads((out / "pareto.json").read_text())
    assert len(networks["front"]) + len(networks["others"]) == 7, "the whole space, and no network twice"
    code, _, stderr = csr_search(*arguments, "-n", 9, "--epochs", 3)
    assert code == 1
    assert "epochs was 2, is 3" in stderr

    # csr-train takes the architecture from what was found.
    small = min(networks["front"], key=lambda f: f["values"]["parameters"])
    command = ["csr-train", "-n", str(out / small["checkpoint"]), "-d", str(image_folder), "--no-plot"]
    command += ["--recipe", "short", "--epochs", "1", "--batch-size", "16", "--device", "cpu", "--no-bf16"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        train_main()
    assert not ended.value.code
    full = load_checkpoint(tmp_path / "runs" / small["network"] / "model.pt")
    assert full.architecture == load_checkpoint(out / small["checkpoint"]).architecture


def trials_of(out: Path, url: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """The study as anybody sees it, with Optuna alone."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for _ in range(200):
        try:
            return optuna.load_study(study_name="resnet8", storage=url or default_url(out)).trials
        except Exception:
            time.sleep(0.1)
    raise AssertionError("no study")


def wait_for(what: Callable[[], object], seconds: float = 120) -> object:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def in_training(out: Path, pid: int | None = None, url: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """Trials between their first epoch and their end."""
    found = [t for t in trials_of(out, url) if t.state == TrialState.RUNNING and t.user_attrs.get("curve")]
    return [t for t in found if pid is None or t.user_attrs["worker"].endswith(f":{pid}")]


def killed_in_training(
    worker: subprocess.Popen[bytes], out: Path, url: str | None = None
) -> optuna.trial.FrozenTrial:
    """Kills a worker between two epochs, and gives the trial that it leaves behind."""
    victim = wait_for(lambda: in_training(out, worker.pid, url))[0]  # type: ignore[index]
    worker.kill()
    worker.wait()
    left = next(t for t in trials_of(out, url) if t.number == victim.number)
    assert left.state == TrialState.RUNNING, "it was killed in the middle"
    return left


LONG = ["-b", "resnet8", "--steps", "2,3", "-n", "5", "--epochs", "6", "--prune-margin", "100", *FAST]


def check_nothing_lost_and_nothing_twice(
    out: Path, victim: optuna.trial.FrozenTrial, url: str | None = None, *, same_disk: bool = True
) -> None:
    trials = trials_of(out, url)
    counted = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    networks = [t.user_attrs["network"] for t in counted]
    assert len(networks) == len(set(networks)) == 5
    lost = [t for t in trials if t.state == TrialState.FAIL and "skipped" not in t.user_attrs]
    assert victim.number in [t.number for t in lost]
    retry = next(t for t in counted if t.user_attrs["network"] == victim.user_attrs["network"])
    assert retry.number != victim.number
    assert retry.user_attrs["retry_of"] == victim.number
    assert retry.params == victim.params
    # The accuracies are the same and six in all: where the folder is seen its epochs were not done again,
    # elsewhere the same seed gave the same.
    before, after = victim.user_attrs["curve"], retry.user_attrs["curve"]
    assert len(after) == 6
    assert after[: len(before)] == before
    assert not [t for t in trials if not t.state.is_finished()]
    result = json.loads((out / "pareto.json").read_text())
    assert {f["network"] for f in (*result["front"], *result["others"])} == set(networks)
    for found in result["front"]:
        if same_disk or found["checkpoint"]:
            load_checkpoint(out / found["checkpoint"])


def test_of_two_workers_one_is_killed_in_training(tmp_path: Path, image_folder: Path) -> None:
    """Two commands that know nothing of each other but the storage."""
    out = tmp_path / "out"
    command = [*MODULE, *LONG, "-d", str(image_folder), "-o", str(out)]
    with (tmp_path / "log").open("wb") as log:
        workers = [subprocess.Popen(command, stdout=log, stderr=log) for _ in range(2)]
        try:
            wait_for(lambda: out.exists() and trials_of(out))
            victim = killed_in_training(workers[0], out)
            assert workers[1].wait(180) == 0, (tmp_path / "log").read_text()
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    check_nothing_lost_and_nothing_twice(out, victim)


def test_workers_that_share_a_database_server_and_no_disk(tmp_path: Path, image_folder: Path) -> None:
    """As on two machines: folders of their own, PostgreSQL between them; one is killed in training."""
    with running_server() as server, (tmp_path / "log").open("wb") as log:
        outs = [tmp_path / "first", tmp_path / "second"]
        command = [*MODULE, *LONG, "-d", str(image_folder), "--storage", server.url, "-o"]
        workers = [subprocess.Popen([*command, str(out)], stdout=log, stderr=log) for out in outs]
        try:
            victim = killed_in_training(workers[0], outs[0], server.url)
            assert workers[1].wait(180) == 0, (tmp_path / "log").read_text()
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        check_nothing_lost_and_nothing_twice(outs[1], victim, server.url, same_disk=False)


@pytest.mark.full
def test_a_database_server_that_goes_away_ends_the_search(tmp_path: Path, image_folder: Path) -> None:
    out = tmp_path / "out"
    with running_server() as server:
        command = [*MODULE, *LONG, "-d", str(image_folder), "--storage", server.url, "-o", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            stopped = wait_for(lambda: in_training(out, url=server.url))[0]  # type: ignore[index]
            server.stop()
            said, _ = process.communicate(timeout=120)
            server.start()
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 1, said
        assert "that the database is up" in said
        assert "Traceback" not in said
        # It comes back, and the search goes on from there.
        again = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert again.returncode == 0, again.stderr
        finished = [t for t in trials_of(out, server.url) if t.state == TrialState.COMPLETE]
        networks = [t.user_attrs["network"] for t in finished]
        assert len(networks) == len(set(networks)) == 5
        assert stopped.user_attrs["network"] in networks


@pytest.mark.full
def test_a_command_goes_on_without_its_killed_worker(tmp_path: Path, image_folder: Path) -> None:
    """One command with two workers: it queues the lost network at once."""
    out = tmp_path / "out"
    # A dead worker would be noticed by its silence only after the test.
    command = [*MODULE, *LONG, "--heartbeat", "600", "-d", str(image_folder), "-o", str(out), "-w", "2"]
    with (tmp_path / "log").open("w+b") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: out.exists() and trials_of(out))
            victim = wait_for(lambda: in_training(out))[0]  # type: ignore[index]
            os.kill(int(victim.user_attrs["worker"].rpartition(":")[2]), signal.SIGKILL)
            assert process.wait(180) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    said = (tmp_path / "log").read_text()
    assert "ended by SIGKILL" in said
    assert "its network is queued again" in said
    victim = next(t for t in trials_of(out) if t.number == victim.number)
    check_nothing_lost_and_nothing_twice(out, victim)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.full)])
def test_ctrl_c_leaves_a_search_that_goes_on(tmp_path: Path, image_folder: Path, workers: int) -> None:
    out = tmp_path / "out"
    command = [*MODULE, *LONG, "-d", str(image_folder), "-o", str(out), "-w", str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: out.exists() and trials_of(out))
        stopped = wait_for(lambda: in_training(out))[0]  # type: ignore[index]
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "To continue:" in said
    assert "Traceback" not in said
    assert not [t for t in trials_of(out) if t.state == TrialState.RUNNING]
    assert (out / "pareto.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    finished = [t for t in trials_of(out) if t.state == TrialState.COMPLETE]
    networks = [t.user_attrs["network"] for t in finished]
    assert len(networks) == len(set(networks)) == 5
    assert stopped.user_attrs["network"] in networks


@pytest.mark.full
def test_a_storage_that_goes_away_ends_the_search(tmp_path: Path, image_folder: Path) -> None:
    out = tmp_path / "out"
    command = [*MODULE, *LONG, "-d", str(image_folder), "-o", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: out.exists() and trials_of(out))
        wait_for(lambda: in_training(out))
        (out / "study.db").unlink()
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, said
    assert "study.db: is gone" in said
    assert "Traceback" not in said
