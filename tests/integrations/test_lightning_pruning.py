"""Pruning in Lightning's Trainer, the library itself, with clipping and mixed precision."""

import pytest
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.loggers import Logger
from prunekit.methods import gradual_magnitude

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from prunekit.integrations.lightning import LightningPruning  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def module():
    torch.manual_seed(0)
    return Classifier()


def loader():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 6, generator=generator)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=8
    )


def trainer(folder, callback, *others, **settings):
    return lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, gradient_clip_val=0.1, precision="bf16-mixed", callbacks=[callback, *others],
        **{"max_steps": 16, "enable_checkpointing": False, **settings},
    )  # fmt: skip


def pruning(every=3, targets=None, loggers=(), **settings):
    recipe = gradual_magnitude(sparsity=0.8, steps=4, **settings).model_copy(update={"targets": targets})
    return LightningPruning(recipe, every=every, loggers=loggers)


def test_it_prunes_while_it_trains(tmp_path):
    model, callback = module(), pruning()
    trainer(tmp_path, callback).fit(model, loader())
    session = callback.session
    assert session.done
    assert callback.result().masks.kept == 57  # of 288; 230.4 to remove are 231
    for name, mask in session.masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask), name


def test_its_loggers_are_told_every_step(tmp_path):
    class Told(Logger):
        def log(self, record):
            records.append(record)

    records, model = [], module()
    callback = pruning(loggers=[Told()])
    trainer(tmp_path, callback).fit(model, loader())
    assert len(records) == 4
    assert records == callback.session.history


def test_it_goes_on_from_a_checkpoint_in_mid_schedule_bit_for_bit(tmp_path):
    # by steps: of a checkpoint by epochs Lightning repeats a batch
    whole, saving = module(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1)
    trainer(tmp_path, pruning(), saving, enable_checkpointing=True).fit(whole, loader())
    rest, callback = module(), pruning()
    trainer(tmp_path, callback).fit(rest, loader(), ckpt_path=tmp_path / "step=8.ckpt")
    assert callback.session.done
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_the_checkpoint_of_another_recipe_is_refused(tmp_path):
    first = trainer(tmp_path, pruning(), max_steps=8)
    first.fit(module(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(InputError, match=r"another recipe, with retrain.training.epochs = .*, not 7"):
        trainer(tmp_path, pruning(epochs=7)).fit(module(), loader(), ckpt_path=tmp_path / "half.ckpt")


def test_a_checkpoint_with_other_steps_between_is_refused(tmp_path):
    first = trainer(tmp_path, pruning(every=3), max_steps=8)
    first.fit(module(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(InputError, match=r"after every 3 steps of the optimizer, this one has every = 2"):
        trainer(tmp_path, pruning(every=2)).fit(module(), loader(), ckpt_path=tmp_path / "half.ckpt")


def layers_apart():
    return pruning(every=3, targets=("net.0",)), pruning(every=2, targets=("net.2",))


def test_two_callbacks_prune_one_module_and_go_on_from_its_checkpoint(tmp_path):
    whole, saving = module(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1)
    trainer(tmp_path, *layers_apart(), saving, enable_checkpointing=True).fit(whole, loader())
    rest, callbacks = module(), layers_apart()
    trainer(tmp_path, *callbacks).fit(rest, loader(), ckpt_path=tmp_path / "step=8.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
    for callback, name, size in zip(callbacks, ("net.0.weight", "net.2.weight"), (192, 96), strict=True):
        mask = callback.session.masks[name]
        assert int(mask.sum()) == size - round(0.8 * size)
        assert torch.equal(rest.get_parameter(name) != 0, mask)


def test_two_callbacks_on_the_same_weights_are_refused(tmp_path):
    both = pruning(targets=("net.0",)), pruning(targets=("net.*",))
    with pytest.raises(InputError, match=r"carries the masks of another session already, of net.0.weight"):
        trainer(tmp_path, *both).fit(module(), loader())


def test_a_checkpoint_of_other_targets_is_refused(tmp_path):
    first = trainer(tmp_path, pruning(targets=("net.0",)), max_steps=8)
    first.fit(module(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(InputError, match=r"'targets': \('net.2',\).*, only as .*'targets': \('net.0',\)"):
        trainer(tmp_path, pruning(targets=("net.2",))).fit(
            module(), loader(), ckpt_path=tmp_path / "half.ckpt"
        )


def test_a_checkpoint_without_the_pruning_is_refused(tmp_path):
    first = trainer(tmp_path, lightning.Callback(), max_steps=8)
    first.fit(module(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(InputError, match="goes on at step 8, but its checkpoint has no state of the pruning"):
        trainer(tmp_path, pruning()).fit(module(), loader(), ckpt_path=tmp_path / "half.ckpt")
