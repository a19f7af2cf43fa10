"""Pruning in a loop of one's own with accelerate, the library itself, saved and gone on with."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from prunekit import load_session, save_session
from prunekit.errors import InputError
from prunekit.methods import gradual_magnitude

accelerate = pytest.importorskip("accelerate")


def training(session_file=None, steps=range(12)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    inputs = torch.randn(64, 6)
    targets = inputs[:, :3].argmax(1)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01))
    session = gradual_magnitude(sparsity=0.8, steps=4).attach(model, optimizer, every=3)
    if session_file is not None:
        accelerator.load_state(session_file.parent / "state")
        load_session(session, session_file)
    for step in steps:
        batch = slice(8 * (step % 8), 8 * (step % 8) + 8)
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(inputs[batch]), targets[batch]))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, session, accelerator


def test_it_goes_on_from_its_own_checkpoint_bit_for_bit(tmp_path):
    whole, session, _ = training()
    assert session.done
    _, half, accelerator = training(steps=range(7))
    accelerator.save_state(tmp_path / "state")
    save_session(half, tmp_path / "session.safetensors")
    rest, session, _ = training(tmp_path / "session.safetensors", steps=range(7, 12))
    assert session.done
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
    for name, mask in session.masks.items():
        assert torch.equal(rest.get_parameter(name) != 0, mask)


def attached(*sizes):
    model = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(sizes)))
    return gradual_magnitude(sparsity=0.8, steps=4).attach(model, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6, 8, 8, 3), r"run.safetensors: .* 2 where this one prunes 3: this one has '2.weight', it has not"),
        ((6, 9, 3), r"run.safetensors: .*masks: 0.weight has shape \(9, 6\), its mask \(8, 6\)"),
    ],
)
def test_the_file_of_another_network_is_refused_by_its_name(tmp_path, sizes, message):
    save_session(attached(6, 8, 3), tmp_path / "run.safetensors")
    session = attached(*sizes)
    with pytest.raises(InputError, match=message):
        load_session(session, tmp_path / "run.safetensors")
    assert not session.history


def test_what_is_no_session_is_refused(tmp_path):
    for use in (save_session, load_session):
        with pytest.raises(InputError, match=r"a session is needed, not None: recipe.attach gives one"):
            use(None, tmp_path / "run.safetensors")
    assert not any(tmp_path.iterdir())
