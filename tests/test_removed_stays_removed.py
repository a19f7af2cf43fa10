"""Removed weights stay zero whatever moves the weights, and gradients of removed weights are zero."""

from __future__ import annotations

import copy
import gc
import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils import prune as torch_prune
from torch.optim import LBFGS, SGD, Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from moving_optimizers import OPTIMIZERS, Coded, TwoCallSam, Wrapped, take_step
from prunekit import Masks, prune
from prunekit.errors import InputError, ModelError
from prunekit.masked_optimizer import MaskedOptimizer
from prunekit.methods import gradual_magnitude, lottery_ticket, magnitude, n_m
from small_nets import blobs, copied, mlp, recipe, same

NAMES = ("0.weight", "2.weight")


def plain(seed: int = 0) -> nn.Sequential:
    """Two linear layers without biases: Muon trains matrices only."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 12, bias=False), nn.ReLU(), nn.Linear(12, 3, bias=False))


def counts(model: nn.Module) -> list[int]:
    return [int(model.get_parameter(name).count_nonzero()) for name in NAMES]


def kept(session: Any) -> list[int]:
    return [int(session.masks[name].sum()) for name in NAMES]


def closure_of(model: nn.Module, look: Any = lambda: None) -> Any:
    inputs, targets = blobs(dtype=next(model.parameters()).dtype)

    def closure() -> Tensor:
        for parameter in model.parameters():
            parameter.grad = None
        look()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, optimizer: Any, steps: int = 1) -> None:
    for _ in range(steps):
        take_step(optimizer, closure_of(model))


def replace(model: nn.Module, optimizer: Any, state: dict[str, Tensor]) -> None:
    """The values of a state in new parameters, which the optimizer and all inside it train from then on."""
    model.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    own = list(model.parameters())
    for each in (optimizer, *vars(optimizer).values()):
        if isinstance(each, torch.optim.Optimizer):
            each.param_groups[0]["params"] = own if len(each.param_groups[0]["params"]) > 1 else own[:1]
        if isinstance(each, LBFGS):
            each._params = own


class TestAnyOptimizer:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_the_count_is_exact_after_every_step_and_in_every_closure(self, name: str) -> None:
        model = plain()
        optimizer = OPTIMIZERS[name](model.parameters())
        session = gradual_magnitude(0.8, steps=3).attach(model, optimizer)
        train(model, optimizer, 3)
        for _ in range(3):
            session.advance()
            for _ in range(3):
                seen: list[list[int]] = []
                take_step(optimizer, closure_of(model, lambda seen=seen: seen.append(counts(model))))
                assert counts(model) == kept(session)
                assert all(each == kept(session) for each in seen)
                for weight, mask in session.masks.parameters(model):
                    assert bool((weight[~mask] == 0).all())
                    assert bool((weight.grad[~mask] == 0).all())
        assert session.masks.kept == round(0.2 * 156)

    @given(data=st.data())
    def test_whatever_happens_between_the_steps(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(OPTIMIZERS)))
        model = plain()
        optimizer = OPTIMIZERS[name](model.parameters())
        session = gradual_magnitude(0.9, steps=4).attach(model, optimizer)
        dense, saved = copied(model), None
        actions = ["advance", "load", "assign", "swap in", "save", "go back", "noise", "float64"]
        for action in data.draw(st.lists(st.sampled_from(actions), min_size=1, max_size=8)):
            if action == "advance" and not session.done:
                session.advance()
            elif action == "load":
                model.load_state_dict(dense)
            elif action == "assign":
                replace(model, optimizer, dense)
            elif action == "swap in":
                for parameter in model.parameters():
                    parameter.data = torch.randn_like(parameter)
            elif action == "noise":
                for parameter in model.parameters():
                    parameter.data.add_(torch.randn_like(parameter))
            elif action == "save":
                saved = copied(model), copy.deepcopy(session.state_dict())
            elif action == "go back" and saved is not None:
                model.load_state_dict(saved[0])
                session.load_state_dict(saved[1])
            train(model, optimizer)
            assert counts(model) == kept(session)

    @pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
    def test_gradients_that_are_set_by_hand(self, name: str) -> None:
        model = plain()
        optimizer = OPTIMIZERS[name](model.parameters())
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        seen = {}

        def look(*_: Any) -> None:
            seen.update({n: model.get_parameter(n).grad.clone() for n in NAMES})

        optimizer.register_step_pre_hook(look)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        assert all(bool((seen[n][~session.masks[n]] == 0).all()) for n in NAMES)
        assert counts(model) == kept(session)


def reference(model: nn.Sequential, masks: Masks) -> nn.Sequential:
    """The same network with the masks inside its graph, by torch."""
    twin = copy.deepcopy(model)
    for name, mask in masks.items():
        torch_prune.custom_from_mask(twin.get_submodule(name.removesuffix(".weight")), "weight", mask)
    return twin


class TestAsWithTheMaskInTheGraph:
    def test_lbfgs_with_a_line_search(self) -> None:
        model = mlp(10, 16, 3, dtype=torch.float64)  # roundings have no time to grow
        optimizer = LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
        session = magnitude(0.6).attach(model, optimizer)
        session.advance()
        twin = reference(model, session.masks)
        other = LBFGS(twin.parameters(), max_iter=4, line_search_fn="strong_wolfe")
        losses = [optimizer.step(closure_of(model)).item() for _ in range(3)]
        assert losses == pytest.approx([other.step(closure_of(twin)).item() for _ in range(3)], rel=1e-6)
        assert losses[0] > losses[1] > losses[2]

    def test_lbfgs_forgets_directions_of_what_is_removed(self) -> None:
        model = mlp(10, 16, 3)
        optimizer = LBFGS(model.parameters(), max_iter=4)
        session = magnitude(0.9).attach(model, optimizer)
        train(model, optimizer)
        assert optimizer.state
        session.advance()
        assert not optimizer.state

    def test_clipping(self) -> None:
        model = mlp(10, 16, 3)
        optimizer = SGD(model.parameters(), 1.0)
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        twin = reference(model, session.masks)
        closure_of(model)()
        closure_of(twin)()
        norm = clip_grad_norm_(model.parameters(), 0.05)
        assert float(norm) == pytest.approx(float(clip_grad_norm_(twin.parameters(), 0.05)), rel=1e-5)
        before = copied(model)
        optimizer.step()
        moved = sum(((value - before[name]) ** 2).sum() for name, value in copied(model).items())
        assert float(moved) ** 0.5 == pytest.approx(0.05, rel=1e-4)

    def test_gradients_that_are_added_up(self) -> None:
        model = mlp(10, 16, 3)
        session = magnitude(0.9).attach(model, SGD(model.parameters(), 0.1))
        session.advance()
        twin = reference(model, session.masks)
        inputs, targets = blobs()
        for net in (model, twin):
            for start in (0, 48):
                cross_entropy(net(inputs[start : start + 48]), targets[start : start + 48]).backward()
        assert torch.allclose(model[0].weight.grad, twin[0].weight_orig.grad, atol=1e-6)


class TestSeveralOptimizers:
    def test_they_are_held_together(self) -> None:
        model = mlp(10, 16, 3)
        body, head = (SGD(model[k].parameters(), 0.1, momentum=0.9) for k in (0, 2))
        session = gradual_magnitude(0.9, steps=2).attach(model, [body, head], every=3)
        done = []
        for _ in range(8):
            closure_of(model)()
            body.step()
            head.step()
            done.append(len(session.history))
            assert counts(model) == kept(session)
        assert done == [0, 0, 1, 1, 1, 2, 2, 2]
        session.detach()
        assert not body._optimizer_step_post_hooks
        assert not head._optimizer_step_post_hooks

    @pytest.mark.parametrize("owned", [0, 2])
    def test_one_that_trains_a_part_is_refused_by_name(self, owned: int) -> None:
        model = mlp(10, 16, 3)
        before = copied(model)
        missing = f"{2 - owned}.weight"
        with pytest.raises(InputError, match=rf"\(SGD\) does not train {missing}, .* give all optimizers"):
            magnitude(0.9).attach(model, SGD(model[owned].parameters(), 0.1))
        assert same(before, copied(model))

    def test_none_is_refused(self) -> None:
        with pytest.raises(InputError, match="no optimizer is given"):
            magnitude(0.9).attach(plain(), [])

    def test_a_step_inside_a_step_counts_once(self) -> None:
        for name in ("Sam", "TwoCallSam", "Sharded", "Wrapped"):
            model = plain()
            optimizer = OPTIMIZERS[name](model.parameters())
            session = gradual_magnitude(0.9, steps=4).attach(model, optimizer, every=2)
            train(model, optimizer, 5)
            assert len(session.history) == 2, name

    def test_the_base_is_found_to_have_masks_already(self) -> None:
        model = plain()
        optimizer = TwoCallSam(model.parameters())
        magnitude(0.9).attach(model, optimizer)
        with pytest.raises(InputError, match="carries the masks of another session already"):
            magnitude(0.9).attach(model, optimizer.base_optimizer)

    def test_what_only_holds_an_optimizer_is_none(self) -> None:
        model = plain()
        scheduler = torch.optim.lr_scheduler.ConstantLR(SGD(model.parameters(), 0.1))
        with pytest.raises(InputError, match=r"must be a torch.optim.Optimizer, not ConstantLR"):
            magnitude(0.9).attach(model, scheduler)


class TestReplaced:
    def test_values_that_are_loaded_are_pruned_before_a_closure_sees_them(self) -> None:
        model = plain()
        dense = copied(model)
        optimizer = LBFGS(model.parameters(), max_iter=4)
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        model.load_state_dict(dense)
        seen: list[list[int]] = []
        optimizer.step(closure_of(model, lambda: seen.append(counts(model))))
        assert seen == [kept(session)] * len(seen)

    def test_by_the_values_of_a_checkpoint(self) -> None:
        model = mlp(10, 16, 3)
        dense = copied(model)
        optimizer = SGD(model.parameters(), 0.1)
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        model.load_state_dict(dense, assign=True)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        train(model, optimizer, 3)
        assert counts(model) == kept(session)
        assert bool((model[0].weight.grad[~session.masks["0.weight"]] == 0).all())

    def test_by_another_layer(self) -> None:
        model = mlp(10, 16, 3)
        optimizer = SGD(model.parameters(), 0.1)
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        model[2] = nn.Linear(16, 3)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        train(model, optimizer)
        assert counts(model) == kept(session)

    def test_what_the_optimizer_does_not_train_is_said_at_its_next_step(self) -> None:
        model = mlp(10, 16, 3)
        optimizer = SGD(model.parameters(), 0.1)
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        model.load_state_dict(copied(mlp(10, 16, 3, seed=4)), assign=True)
        before = copied(model)
        with pytest.raises(InputError, match=r"\(SGD\) does not train 0.weight, which the recipe prunes"):
            train(model, optimizer)
        assert same(before, copied(model))
        model[0] = nn.Identity()
        with pytest.raises(InputError, match=r"has no parameter '0.weight' that the masks name"):
            optimizer.step()

    def test_what_is_trained_only_later(self) -> None:
        model = mlp(10, 16, 3)
        model[0].requires_grad_(False)
        optimizer = SGD(model.parameters(), 0.1)
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        train(model, optimizer)
        model[0].requires_grad_(True)
        train(model, optimizer, 2)
        assert counts(model) == kept(session)
        assert bool((model[0].weight.grad[~session.masks["0.weight"]] == 0).all())


class TestCopies:
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    @pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
    def test_of_model_optimizer_and_session_together(self, name: str, order: tuple[int, ...]) -> None:
        model = plain()
        optimizer = OPTIMIZERS[name](model.parameters())
        session = gradual_magnitude(0.9, steps=3).attach(model, optimizer, every=2)
        train(model, optimizer, 3)
        parts = (model, optimizer, session)
        copies = copy.deepcopy([parts[k] for k in order])
        twin, other, third = (copies[order.index(k)] for k in range(3))
        train(twin, other, 4)
        assert third.done
        assert counts(twin) == kept(third)
        assert third.masks.kept == round(0.1 * 156)
        assert len(session.history) == 1  # the first goes on by itself, to the same
        assert counts(model) == kept(session)
        train(model, optimizer, 4)
        assert same(copied(model), copied(twin))

    def test_of_a_session_alone(self) -> None:
        model = plain()
        session = magnitude(0.9).attach(model, SGD(model.parameters(), 0.1))
        session.advance()
        optimizer = SGD(model.parameters(), 0.1)
        twin = copy.deepcopy(session)
        gc.collect()
        twin.attach(SGD(twin.model.parameters(), 0.1))
        del optimizer

    def test_averages_are_reached_by_name(self) -> None:
        model = mlp(10, 16, 3)
        optimizer = Adam(model.parameters())
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        session = magnitude(0.9).attach(model, optimizer)
        for step in range(6):
            if step == 3:
                session.advance()
            train(model, optimizer)
            average.update_parameters(model)
        assert counts(average.module) != kept(session)
        session.masks.apply(average)
        assert counts(average.module) == kept(session)
        session.masks.apply(AveragedModel(torch.compile(model, backend="eager")))

    def test_what_is_no_copy_is_said_in_one_line(self) -> None:
        masks = Masks.ones(plain(), NAMES)
        with pytest.raises(InputError, match=r"\(Linear\) has no parameter '0.weight' .* an average of it$"):
            masks.apply(nn.Linear(10, 12))
        pair = nn.ModuleDict({"online": plain(), "average": plain()})
        with pytest.raises(InputError, match=r"\(ModuleDict\) has no parameter '0.weight'"):
            masks.apply(pair)
        with pytest.raises(InputError, match=r"act on a torch.nn.Module, not on list"):
            masks.apply([torch.zeros(12, 10)])

    def test_a_model_with_hooked_gradients_is_saved_and_copied_without_them(self) -> None:
        model = plain()
        session = magnitude(0.9).attach(model, SGD(model.parameters(), 0.1))
        session.advance()
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (torch.load(file, weights_only=False), copy.deepcopy(model)):
            closure_of(twin)()
            assert bool((twin[0].weight.grad[~session.masks["0.weight"]] != 0).any())


class TestStates:
    def test_codes_are_cleared_as_a_whole(self) -> None:
        model = plain()
        optimizer = Coded(model.parameters())
        session = magnitude(0.9).attach(model, optimizer)
        train(model, optimizer, 2)
        session.advance()
        assert not optimizer.state
        train(model, optimizer)
        for weight, mask in session.masks.parameters(model):
            assert bool((optimizer.state[weight]["code"][~mask] == 128).all())

    def test_what_other_layers_have_is_left(self) -> None:
        model = plain()
        optimizer = Coded(model.parameters())
        schedule = {"name": "one_shot", "sparsity": 0.9}
        session = recipe(schedule=schedule, targets=["2"]).attach(model, optimizer)
        train(model, optimizer, 2)
        session.advance()
        assert list(optimizer.state) == [model[0].weight]

    def test_averages_in_a_state_lose_what_is_removed(self) -> None:
        model = plain()
        optimizer = OPTIMIZERS["ScheduleFree"](model.parameters())
        session = magnitude(0.9).attach(model, optimizer)
        train(model, optimizer, 3)
        session.advance()
        for _ in range(3):
            optimizer.eval()
            assert counts(model) == kept(session)
            optimizer.train()
            assert counts(model) == kept(session)
            train(model, optimizer)


class TestNotFinite:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
    def test_removed_weights_are_zero(self, dtype: torch.dtype, value: float) -> None:
        model = plain().to(dtype)
        optimizer = Adam(model.parameters(), lr=0.01, eps=0.0)  # 0 / 0 where the gradient is zero
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        for weight, mask in session.masks.parameters(model):
            weight.grad = torch.full_like(weight, 0.25).masked_fill_(~mask, value)
        optimizer.step()
        with torch.no_grad():
            for weight, mask in session.masks.parameters(model):
                assert bool((weight[~mask] == 0).all())
                assert bool(weight[mask].isfinite().all())
                weight.data.fill_(value)
        optimizer.step()
        for weight, mask in session.masks.parameters(model):
            assert bool((weight[~mask] == 0).all())
            assert not bool(weight[mask].isfinite().any())  # what diverged is not hidden

    @pytest.mark.parametrize("fused", [False, True])
    def test_steps_that_a_scaler_skips_do_not_count(self, fused: bool) -> None:
        inputs, targets = blobs()
        model = mlp(10, 16, 3)
        optimizer = Adam(model.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        session = gradual_magnitude(0.9, steps=4).attach(model, optimizer, every=1)
        for step in range(6):
            optimizer.zero_grad()
            large = 1e38 if step % 2 == 0 else 1.0  # overflows, when scaled
            scaler.scale(cross_entropy(model(inputs), targets) * large).backward()
            scaler.step(optimizer)
            scaler.update()
            assert len(session.history) == (step + 1) // 2


class TestHooks:
    def test_there_is_one_for_each_weight_and_none_after_the_end(self) -> None:
        model = plain()
        session = gradual_magnitude(0.9, steps=3).attach(model, SGD(model.parameters(), 0.1))
        for _ in range(3):
            session.advance()
            assert [len(weight._post_accumulate_grad_hooks) for weight in model.parameters()] == [1, 1]
        session.detach()
        assert not any(weight._post_accumulate_grad_hooks for weight in model.parameters())

    def test_detached_gradients_are_free(self) -> None:
        model = plain()
        session = magnitude(0.9).attach(model, SGD(model.parameters(), 0.1))
        session.advance()
        session.detach()
        closure_of(model)()
        assert bool((model[0].weight.grad[~session.masks["0.weight"]] != 0).any())

    def test_they_end_with_the_optimizer_and_the_session(self) -> None:
        model = plain()
        optimizer = SGD(model.parameters(), 0.1)
        session = magnitude(0.9).attach(model, optimizer)
        session.advance()
        masks = session.masks
        del optimizer
        gc.collect()
        session.attach(SGD(model.parameters(), 0.1))  # the one before is gone
        del session
        gc.collect()
        closure_of(model)()
        assert bool((model[0].weight.grad[~masks["0.weight"]] != 0).any())

    def test_sparse_gradients(self) -> None:
        torch.manual_seed(0)
        words = nn.Embedding(9, 4, sparse=True)
        optimizer = torch.optim.SparseAdam(words.parameters(), lr=0.1)
        masks = Masks({"weight": torch.rand(9, 4) > 0.5})
        MaskedOptimizer(words, optimizer, masks)
        for _ in range(3):
            optimizer.zero_grad()
            words(torch.tensor([1, 3, 3, 8])).pow(2).sum().add(words(torch.tensor([0])).sum()).backward()
            assert bool((words.weight.grad.to_dense()[~masks["weight"]] == 0).all())
            optimizer.step()
            assert int(words.weight.count_nonzero()) == masks.kept

    def test_one_weight_used_twice(self) -> None:
        model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
        model[2].weight = model[0].weight
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        session = magnitude(0.5).attach(model, optimizer)
        session.advance()
        for _ in range(3):
            model(blobs()[0]).pow(2).sum().backward()
            optimizer.step()
            assert int(model[2].weight.count_nonzero()) == 50


@pytest.fixture
def one_process() -> Any:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class TestSharedOut:
    def test_zero(self, one_process: None) -> None:
        model = plain()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), Adam, lr=0.01, weight_decay=0.1)
        session = gradual_magnitude(0.9, steps=3).attach(model, optimizer, every=2)
        for _ in range(7):
            closure_of(model)()
            optimizer.step()
            assert counts(model) == kept(session)
        assert session.done

    @pytest.mark.filterwarnings("ignore")
    def test_networks_of_which_a_process_has_a_part_are_refused(self, one_process: None) -> None:
        with pytest.raises(ModelError, match=r"^0.weight is a DTensor, shared out over processes"):
            prune(fully_shard(plain()), magnitude(0.9))
        wrapped = FullyShardedDataParallel(plain(), device_id=torch.device("cpu"))
        with pytest.raises(ModelError, match=r"^the model is a FullyShardedDataParallel, whose weights"):
            prune(wrapped, magnitude(0.9))

    def test_one_that_is_shared_out_later_is_refused_at_the_next_step(self, one_process: None) -> None:
        model = plain()
        session = magnitude(0.9).attach(model, optimizer := SGD(model.parameters(), 0.1))
        session.advance()
        fully_shard(model)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        with pytest.raises(ModelError, match=r"0.weight is a DTensor"):
            optimizer.step()


class TestRefusedBeforeAnythingChanges:
    def test_weights_without_values(self) -> None:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(8, 8))
        for chosen in (magnitude(0.5), n_m(2, 4), recipe(granularity="unit")):
            with pytest.raises(ModelError, match=r"^0.weight is on the meta device and has no values"):
                chosen.plan(model)

    def test_values_to_go_back_to_that_change_with_the_model(self) -> None:
        model = mlp(10, 16, 3)
        start, before = model.state_dict(), copied(model)
        ticket = lottery_ticket(rate=0.5, rounds=1, epochs=1)
        with pytest.raises(InputError, match=r"checkpoints: step 0: 0.weight shares its memory"):
            prune(model, ticket, blobs(), checkpoints={0: start})
        part = {**copied(model), "2.weight": model[2].weight.detach()[:]}
        with pytest.raises(InputError, match=r"checkpoints: step 0: 2.weight shares its memory"):
            prune(model, ticket, blobs(), checkpoints={0: part})
        assert same(before, copied(model))
        prune(model, ticket, blobs(), checkpoints={0: copied(model)})

    @pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
    def test_n_of_m_inputs_of_a_class_derived_from_one_that_has_them_first(self, kind: type) -> None:
        derived = type("Up", (kind,), {})
        for each in (kind, derived):
            with pytest.raises(
                InputError, match=f"0.weight of a {each.__name__} has its inputs in the first"
            ):
                prune(nn.Sequential(each(8, 8, 1)), n_m(2, 4))


def test_wrapped_as_accelerate_does() -> None:
    model = plain()
    optimizer = Wrapped(model.parameters())
    session = magnitude(0.9).attach(model, optimizer)
    session.advance()
    train(model, optimizer, 3)
    assert counts(model) == kept(session)
    session.detach()
    train(model, optimizer)
    assert counts(model) != kept(session)
