"""Pruning in the Trainer of transformers, the library itself, on a small BERT."""

import copy

import pytest
import torch

from prunekit import Recipe
from prunekit.errors import DataError, InputError
from prunekit.methods import gradual_magnitude, snip

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from prunekit.integrations.transformers import SESSION_FILE, TrainerPruning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
WEIGHTS = ["*.query", "*.key", "*.value", "*.dense"]


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=2, **sizes)
    return transformers.BertForSequenceClassification(config)


def examples():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(50, (48, 8), generator=generator)
    return [{"input_ids": each, "labels": int(each[0] > 25)} for each in words]


class Logger(transformers.TrainerCallback):
    """One that comes after the pruning."""

    def __init__(self):
        self.seen = []

    def on_log(self, *_, logs, **__):
        self.seen.append(logs["sparsity"])


def trainer(folder, *callbacks, **settings):
    settings = {"max_steps": 12, "save_steps": 6, **settings}
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=8, learning_rate=1e-2, report_to=[], seed=1, use_cpu=True,
        disable_tqdm=True, logging_steps=3, **settings,
    )  # fmt: skip
    return transformers.Trainer(bert(), arguments, train_dataset=examples(), callbacks=list(callbacks))


def recipe(**settings):
    return gradual_magnitude(sparsity=0.8, steps=4, **settings).model_copy(update={"targets": tuple(WEIGHTS)})


def zeros(model, masks):
    return {name: model.get_parameter(name) == 0 for name in masks}


def test_it_prunes_while_it_trains(tmp_path):
    callback, logger = TrainerPruning(recipe(), every=2), Logger()
    run = trainer(tmp_path, callback, logger)
    run.train()
    session = callback.session
    assert session.done
    assert session.masks.sparsity == pytest.approx(0.8, abs=1e-3)
    for name, zero in zeros(run.model, session.masks).items():
        assert torch.equal(zero, ~session.masks[name])
    assert logger.seen == sorted(logger.seen)
    assert logger.seen[-1] == session.masks.sparsity


def test_it_goes_on_from_a_checkpoint_in_mid_schedule_bit_for_bit(tmp_path):
    whole = trainer(tmp_path, TrainerPruning(recipe(), every=2))
    whole.train()
    assert (tmp_path / "checkpoint-6" / SESSION_FILE).is_file()
    callback = TrainerPruning(recipe(), every=2)
    rest = trainer(tmp_path, callback)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert len(callback.session.history) == 4
    for (name, one), other in zip(
        whole.model.state_dict().items(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_checkpoint_elsewhere_is_named(tmp_path):
    trainer(tmp_path / "first", TrainerPruning(recipe(), every=2)).train()
    place = tmp_path / "first" / "checkpoint-6"
    with pytest.raises(InputError, match=r"goes on at step 6, but .* is missing: name the checkpoint"):
        trainer(tmp_path / "other", TrainerPruning(recipe(), every=2)).train(
            resume_from_checkpoint=str(place)
        )
    callback = TrainerPruning(recipe(), every=2, resume_from=place)
    trainer(tmp_path / "other", callback).train(resume_from_checkpoint=str(place))
    assert callback.session.done


def test_a_damaged_state_and_that_of_another_recipe_are_refused(tmp_path):
    trainer(tmp_path, TrainerPruning(recipe(), every=2)).train()
    place = tmp_path / "checkpoint-6"
    other = TrainerPruning(recipe(epochs=3), every=2)
    with pytest.raises(InputError, match=r"another recipe, with retrain.training.epochs = .*, not 3"):
        trainer(tmp_path, other).train(resume_from_checkpoint=str(place))
    with pytest.raises(InputError, match=r"after every 2 steps of the optimizer, this one has every = 1"):
        trainer(tmp_path, TrainerPruning(recipe(), every=1)).train(resume_from_checkpoint=str(place))
    file = place / SESSION_FILE
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="prunekit_session"):
        trainer(tmp_path, TrainerPruning(recipe(), every=2)).train(resume_from_checkpoint=str(place))


def test_statistics_come_from_the_trainers_batches(tmp_path):
    callback = TrainerPruning(snip(sparsity=0.5).model_copy(update={"targets": tuple(WEIGHTS)}), every=1)
    run = trainer(tmp_path, callback, max_steps=2, save_strategy="no")
    run.train()
    assert callback.result().masks.sparsity == pytest.approx(0.5, abs=1e-3)


def test_a_recipe_that_changes_the_loss_is_refused():
    distilled = Recipe(schedule={"name": "one_shot", "sparsity": 0.5}, retrain={"name": "distill"})
    with pytest.raises(InputError, match="'distill' changes the loss"):
        TrainerPruning(distilled, every=1)


def test_before_the_training_there_is_no_result():
    with pytest.raises(InputError, match="has not begun"):
        TrainerPruning(recipe(), every=1).result()
    copy.deepcopy(TrainerPruning(recipe(), every=1))


class Worse(transformers.Trainer):
    """One whose first checkpoint is the best."""

    def evaluate(self, *_, **__):
        found = {"eval_loss": float(self.state.global_step)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


def test_it_goes_back_with_the_best_checkpoint(tmp_path):
    callback = TrainerPruning(recipe(), every=2)
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, max_steps=12, save_steps=4, eval_steps=4, report_to=[],
        eval_strategy="steps", load_best_model_at_end=True, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    run = Worse(bert(), arguments, train_dataset=examples(), eval_dataset=examples(), callbacks=[callback])
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-4")
    assert callback.session.masks.sparsity < 0.75
    for name, mask in callback.result().masks.items():
        assert torch.equal(run.model.get_parameter(name) != 0, mask), name


def test_a_second_training_goes_on_with_what_is_pruned(tmp_path):
    callback = TrainerPruning(recipe(), every=2)
    run = trainer(tmp_path, callback, save_strategy="no")
    run.train()
    masks = dict(callback.session.masks)
    run.train()
    for name, mask in masks.items():
        assert torch.equal(run.model.get_parameter(name) != 0, mask), name
    assert run.state.log_history[-1]["sparsity"] == callback.session.masks.sparsity


def test_units_are_found_by_the_trainers_batches(tmp_path):
    units = Recipe(granularity="unit", allocation="per_layer", schedule={"name": "one_shot", "sparsity": 0.5})
    callback = TrainerPruning(units, every=1)
    trainer(tmp_path, callback, max_steps=2, save_strategy="no").train()
    assert callback.session.kept.sparsity == pytest.approx(0.5, abs=0.05)
