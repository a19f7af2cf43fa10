"""Pruning in a loop of one's own with accelerate, the library itself, saved and gone on with."""

import pytest
import torch
from torch import nn

from prunekit import load_session, save_session
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
