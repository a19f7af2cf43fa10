"""Augmentation against loops over single images, and where it must not act."""

import pytest
import torch
from torch import Tensor, nn

from prunekit import Loop, Recipe, prune
from prunekit.errors import InputError
from prunekit.parts.augment import Augment, Flip, Shift
from prunekit.training import Training, train
from small_nets import copied, same


def moved(image: Tensor, down: int, right: int, beyond: str) -> Tensor:
    """(C, H, W): pixel (i, j) shows what was at (i + down, j + right), by a loop over pixels."""
    found = torch.empty_like(image)
    _, height, width = image.shape
    for i in range(height):
        for j in range(width):
            row, column = i + down, j + right
            inside = 0 <= row < height and 0 <= column < width
            row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
            found[:, i, j] = image[:, row, column] if inside or beyond == "edge" else 0.0
    return found


@pytest.mark.parametrize("beyond", ["edge", "zero"])
def test_each_image_is_moved_by_a_draw_of_its_own(beyond: str) -> None:
    images = torch.randn(40, 3, 5, 7)
    torch.manual_seed(3)
    found = Shift(pixels=2, beyond=beyond)(images)
    torch.manual_seed(3)
    down, right = torch.randint(5, (2, 40)) - 2
    for image, result, i, j in zip(images, found, down.tolist(), right.tolist(), strict=True):
        assert torch.equal(result, moved(image, i, j, beyond))
    assert {(i, j) for i, j in zip(down.tolist(), right.tolist(), strict=True)} - {(0, 0)}


def test_shifts_are_uniform() -> None:
    """Of an image with one bright pixel: where it is after 9,000 shifts by at most one."""
    images = torch.zeros(9000, 1, 5, 5)
    images[:, :, 2, 2] = 1
    torch.manual_seed(0)
    places = Shift()(images).flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=25).view(5, 5)[1:4, 1:4]
    assert int(counts.sum()) == 9000
    assert int((counts - 1000).abs().max()) < 130  # four standard deviations


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.randn(2000, 1, 2, 3)
    torch.manual_seed(0)
    found = Flip()(images)
    mirrored = [torch.equal(one, other.flip(2)) for one, other in zip(found, images, strict=True)]
    kept = [torch.equal(one, other) for one, other in zip(found, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 900 < sum(mirrored) < 1100


class Recording(nn.Module):
    """A classifier of images that keeps what it is given, by its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)
        self.seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def forward(self, images: Tensor) -> Tensor:
        self.seen[self.training].append(images.detach().clone())
        logits: Tensor = self.layer(images.flatten(1))
        return logits


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, 4, 4, generator=generator), torch.arange(24) % 3


def test_a_seed_gives_the_same_training_and_another_one_other_shifts() -> None:
    training = Training(epochs=2, batch_size=8, augment=({"name": "shift"}, "flip"))  # type: ignore[arg-type]
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        net = Recording()
        train(net, data(), training, seed=seed)
        states.append(copied(net))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_only_trainings_see_it() -> None:
    inputs, _ = data()
    chosen = Recipe.parse(
        {
            "score": "wanda",
            "schedule": {"name": "one_shot", "sparsity": 0.5},
            "retrain": {
                "name": "fine_tune",
                "training": {"epochs": 1, "batch_size": 8, "augment": [{"name": "shift", "pixels": 2}]},
            },
        }
    )
    net = Recording()
    prune(net, chosen, data())

    def known(image: Tensor) -> bool:
        return any(torch.equal(image, each) for each in inputs)

    assert all(known(image) for batch in net.seen[False] for image in batch)
    assert not all(known(image) for batch in net.seen[True] for image in batch)


def test_a_function_of_the_users() -> None:
    net = Recording()
    train(net, data(), Training(iterations=1, batch_size=24), loop=Loop(augment=lambda images: images + 100))
    assert float(net.seen[True][0].mean()) > 90
    assert float(data()[0].mean()) < 1


def test_a_recipe_with_augmentation_is_read_and_written() -> None:
    training = {"epochs": 1, "augment": [{"name": "shift", "pixels": 2}, {"name": "flip"}]}
    chosen = Training.parse(training)
    assert chosen.augment == (Shift(pixels=2), Flip())
    assert Training.parse(chosen.to_dict()) == chosen


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.randn(6, 16), r"but the inputs are of the shape \(6, 16\)"),
        (torch.randint(5, (6, 1, 4, 4)), "type torch.int64"),
        (torch.randn(6, 1, 1, 9), "pixels = 1, but the images are of 1 x 9"),
    ],
)
def test_what_is_no_image_is_refused_before_a_weight_changes(inputs: Tensor, said: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 3))
    before = copied(net)
    chosen = Recipe.parse(
        {
            "schedule": {"name": "one_shot", "sparsity": 0.5},
            "retrain": {"name": "fine_tune", "training": {"epochs": 1, "augment": ["shift"]}},
        }
    )
    with pytest.raises(InputError, match=f"the data: augment shift: .*{said}"):
        prune(net, chosen, (inputs, torch.arange(6) % 3))
    assert same(before, copied(net))


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="is a function, which no file can say"):
        Training.parse({"augment": [lambda images: images]})
    with pytest.raises(InputError, match="flip, shift"):
        Training.parse({"augment": ["rotate"]})
    with pytest.raises(InputError, match="pixels"):
        Training.parse({"augment": [{"name": "shift", "pixels": 0}]})
    with pytest.raises(InputError, match="loop: augment must be a function"):
        Loop(augment=3)  # type: ignore[arg-type]
    assert set(Augment.own_members()) == {"flip", "shift"}
