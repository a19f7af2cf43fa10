"""What loggers are told of a pruning, and what the libraries themselves read back of it."""

import copy
import io
import json
import pickle
import struct
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from prunekit import Recipe, Training, prune, train
from prunekit.errors import InputError
from prunekit.loggers import (
    Logger,
    Loggers,
    MLflowLogger,
    ProgressBar,
    TensorBoardLogger,
    WandbLogger,
    logger_named,
)
from prunekit.statistics.unit_statistics import part_of
from small_nets import blobs, mlp

DATA = blobs(24)
RECIPE = Recipe.parse(
    {
        "schedule": {"name": "linear", "sparsity": 0.6, "steps": 3},
        "retrain": {"name": "fine_tune", "training": {"iterations": 2, "batch_size": 24}},
    }
)
CURVES = ("sparsity", "kept", "compression_ratio", "seconds", "train_loss")


class Told(Logger):
    """Everything that it is told, in order."""

    def __init__(self):
        self.words = []

    def start(self, recipe, steps):
        self.words.append(("start", recipe, steps))

    def progress(self, done, total):
        self.words.append(("progress", done, total))

    def measuring(self, done, total):
        self.words.append(("measuring", done, total))

    def log(self, record):
        self.words.append(("log", record))

    def records(self):
        return [record for word, *record in self.words if word == "log"]


def pruned(*loggers):
    """A pruning whose measured metric differs from step to step."""
    return prune(
        mlp(10, 16, 3),
        RECIPE,
        DATA,
        loggers=loggers,
        evaluate=lambda net: {"zeros": float((net[0].weight == 0).sum())},
    )


def expected(history):
    """By the name of a curve its points, from the history."""
    curves = {f"pruning/{name}": [(each.step, getattr(each, name)) for each in history] for name in CURVES}
    return curves | {"measured/zeros": [(each.step, each.measured["zeros"]) for each in history]}


def close(curves, history):
    wanted = expected(history)
    assert curves.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in curves[name]] == [1, 2, 3]
        assert [value for _, value in curves[name]] == pytest.approx(
            [value for _, value in points], rel=1e-6
        ), name


def test_prune_tells_the_recipe_the_trainings_and_every_step():
    told = Told()
    history = pruned(told).history
    steps = [[("progress", 1, 2), ("progress", 2, 2), ("log", record)] for record in history]
    assert told.words == [("start", RECIPE, 3), *chain(*steps)]
    assert history[0].measured["zeros"] < history[2].measured["zeros"]


def loop(model, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()


def test_a_session_in_a_loop_tells_what_it_does_from_where_it_goes_on():
    def attached():
        model, told = mlp(10, 16, 3), Told()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        recipe = RECIPE.model_copy(update={"retrain": Recipe(schedule=RECIPE.schedule).retrain})
        return model, optimizer, told, recipe.attach(model, optimizer, every=2, loggers=[told])

    model, optimizer, told, session = attached()
    loop(model, optimizer, 3)
    assert [word for word, *_ in told.words] == ["start", "log"]
    other, its_optimizer, later, rest = attached()
    other.load_state_dict(model.state_dict())
    rest.load_state_dict(session.state_dict())
    loop(other, its_optimizer, 3)
    assert [word for word, *_ in later.words] == ["start", "log", "log"]
    assert [record.step for (record,) in told.records() + later.records()] == [1, 2, 3]


def test_a_copy_has_the_same_loggers_and_a_pickled_one_none():
    loggers = Loggers([Told()])
    assert copy.deepcopy(loggers) is loggers
    assert loggers
    assert not pickle.loads(pickle.dumps(loggers))


def test_of_several_processes_the_first_tells(monkeypatch):
    told = Told()
    monkeypatch.setattr("prunekit.loggers.rank", lambda: 1)
    pruned(told)
    assert not told.words


class Forked(nn.Module):
    """Two layers read the first one's units, and what they put out is multiplied: no chain."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Linear(10, 6), nn.Linear(6, 4), nn.Linear(6, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).tanh()
        return self.last(self.left(x).tanh() * self.right(x).sigmoid())


FIRST_ORDER, SECOND_ORDER = ({"name": "unit_taylor", "order": order} for order in (1, 2))


@pytest.mark.parametrize("score", ["oracle", FIRST_ORDER, SECOND_ORDER], ids=["oracle", "first", "second"])
@pytest.mark.parametrize(
    ("build", "units"), [(Forked, 6 + 4), (lambda: mlp(10, 6, 5, 3), 6 + 5)], ids=["a graph", "a chain"]
)
def test_how_far_the_units_are_measured_is_told_within_a_step(build, units, score):
    told = Told()
    schedule = {"name": "linear", "sparsity": 0.5, "steps": 2}
    recipe = Recipe.parse({"granularity": "unit", "score": score, "schedule": schedule})
    prune(build(), recipe, DATA, loggers=[told])
    kinds = [word for word, *_ in told.words]
    first, second = (place for place, kind in enumerate(kinds) if kind == "log")
    assert kinds[0] == "start"
    for within in (told.words[1:first], told.words[first + 1 : second]):
        assert {word for word, *_ in within} == {"measuring"}
        assert {total for *_, total in within} == {24 * units}
        done = [done for _, done, _ in within]
        assert done == sorted(done)
        assert done[-1] == 24 * units
        assert (build is Forked and score == FIRST_ORDER) or len(set(done)) > 1  # one pass back has them all


def test_examples_of_several_shapes_are_told_of_as_one():
    told = []
    some = part_of(lambda *far: told.append(far), before=3, examples=5, count=8)  # 7 units
    some(14, 35)
    some(35, 35)
    assert told == [(3 * 7 + 14, 56), (56, 56)]


@pytest.mark.parametrize("loggers", [Told(), [Told], [print], None])
def test_what_is_no_sequence_of_loggers_is_refused(loggers):
    model = mlp(10, 16, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"loggers: .*(is needed|is no logger)"):
        prune(model, RECIPE, DATA, loggers=loggers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- the terminal ------------------------------------------------------------------------------------------


def test_the_bar_shows_the_step_on_a_terminal_and_nothing_elsewhere():
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        with ProgressBar(console) as bar:
            train(mlp(10, 16, 3), DATA, Training(iterations=2), report=bar.progress)
            pruned(bar)
            console_text = console.file
        shown[terminal] = console_text.getvalue()
    assert "step 3 of 3, 60.1% removed" in shown[True]
    assert not shown[False]


def test_the_bar_shows_how_far_the_units_of_a_step_are_measured():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with ProgressBar(console) as bar:
        bar.start(RECIPE, 4)
        bar.log(SimpleNamespace(step=2, sparsity=0.3))
        bar.measuring(3, 12)
    assert "step 3 of 4, measuring units" in console.file.getvalue()
    assert "25%" in console.file.getvalue()


# ---- libraries ---------------------------------------------------------------------------------------------


def test_tensorboard_reads_the_curves_and_the_recipe(tmp_path):
    pytest.importorskip("tensorboard", reason="the event files are read by TensorBoard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    history = pruned(logger).history
    read = EventAccumulator(str(tmp_path)).Reload()  # while the writer is still open
    curves = {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    close(curves, history)
    (text,) = read.Tensors("recipe/text_summary")
    block = text.tensor_proto.string_val[0].decode()
    assert Recipe.from_yaml(block.removeprefix("```yaml\n").removesuffix("```")) == RECIPE


def test_mlflow_reads_the_curves_and_the_settings(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is large: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tmp_path.as_uri())
    try:
        with mlflow.start_run():
            logger = MLflowLogger()
            history = pruned(logger).history
        assert MLflowLogger(logger.run_id).run_id == logger.run_id
        client = mlflow.MlflowClient()
        run = client.get_run(logger.run_id).data
        curves = {
            name: [(each.step, each.value) for each in client.get_metric_history(logger.run_id, name)]
            for name in run.metrics
        }
    finally:
        mlflow.set_tracking_uri(before)
    close(curves, history)
    assert run.params["recipe.schedule.sparsity"] == "0.6"
    assert run.params["recipe.retrain.training.iterations"] == "2"


def test_wandb_keeps_the_curves_and_the_settings_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is large: pip install wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(mode="offline", dir=str(tmp_path))
    with logger.run:
        history = pruned(logger).history
    (file,) = tmp_path.rglob("*.wandb")
    rows, config = read_wandb(wandb_internal_pb2, file)
    names = rows[0].keys() - {"pruning/step"}
    curves = {
        name: [(row["pruning/step"], row[name]) for row in rows] for name in names if not name.startswith("_")
    }
    close(curves, history)
    assert Recipe.parse(config["recipe"]) == RECIPE


def read_wandb(wandb_internal_pb2, file):
    """The rows that a run has logged, and its configuration; its file is one of LevelDB's logs of records.

    Blocks of 32 KiB, the first behind a header of 7 bytes, hold pieces of records, each behind its checksum
    (4 bytes), length (2) and kind (1: whole, 2: first, 3: middle, 4: last).
    """
    content, place, data, rows, config = file.read_bytes(), 7, b"", [], {}
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, data = wandb_internal_pb2.Record.FromString(data), b""
            values = {
                each.key or ".".join(each.nested_key): json.loads(each.value_json)
                for each in (*record.history.item, *record.config.update)
            }
            if record.WhichOneof("record_type") == "history":
                rows.append(values)
            elif record.WhichOneof("record_type") == "config":
                config |= values
    return rows, config


def test_a_run_of_wandb_is_given_with_an_axis_of_its_own():
    axes, rows, settings = {}, [], {}
    run = SimpleNamespace(
        define_metric=lambda name, step_metric=None: axes.update({name: step_metric}),
        config=SimpleNamespace(update=lambda values, allow_val_change: settings.update(values)),
        log=rows.append,
    )
    history = pruned(WandbLogger(run)).history
    close({name: [(row["pruning/step"], row[name]) for row in rows] for name in expected(history)}, history)
    assert axes == {"pruning/step": None, "pruning/*": "pruning/step", "measured/*": "pruning/step"}
    assert Recipe.parse(settings["recipe"]) == RECIPE
    with pytest.raises(InputError, match="project is for a new run, but one is given"):
        WandbLogger(run, project="mine")


@pytest.mark.parametrize(
    ("make", "package"),
    [(TensorBoardLogger, "tensorboard"), (MLflowLogger, "mlflow"), (WandbLogger, "wandb")],
)
def test_a_missing_package_is_named(make, package, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given = (tmp_path,) if make is TensorBoardLogger else ()
    with pytest.raises(InputError, match=rf"Logger needs {package}: pip install 'prunekit\[{package}\]'"):
        make(*given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tensorbord=runs", "there is no logger 'tensorbord'; did you mean 'tensorboard'"),
        ("", "there is no logger ''; names are: tensorboard, wandb, mlflow"),
        ("tensorboard", "needs a folder: tensorboard=FOLDER"),
        ("tensorboard=", "needs a folder: tensorboard=FOLDER"),
    ],
)
def test_names_that_are_no_logger(text, words):
    with pytest.raises(InputError, match=words):
        logger_named(text)


def test_loggers_by_name_know_where_they_write(tmp_path, monkeypatch):
    begun = []
    wandb = SimpleNamespace(init=lambda **settings: begun.append(settings))
    monkeypatch.setattr("prunekit.loggers.imported", lambda name, needs: wandb)
    assert isinstance(logger_named("wandb"), WandbLogger)
    assert isinstance(logger_named("wandb=my nets"), WandbLogger)
    assert begun == [{}, {"project": "my nets"}]
    assert logger_named("mlflow=0123").run_id == "0123"
    pytest.importorskip("tensorboard", reason="the event files are TensorBoard's")
    assert logger_named(f"tensorboard={tmp_path / 'a=b'}").writer.log_dir == str(tmp_path / "a=b")
