"""The built-in networks: counts by hand, shapes, names, initial values."""

import math

import numpy as np
import pytest
import torch
from torch import fx, nn

from prunekit import models
from prunekit.errors import InputError

CIFAR = (3, 32, 32)
MNIST = (1, 28, 28)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def weights(model):
    """Entries of the weight matrices and kernels, without biases and batch norms."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def resnet_by_hand(n, width, inputs, outputs):
    total = inputs * width * 9 + 2 * width
    channels = width
    for stage in range(3):
        out = width * 2**stage
        for block in range(n):
            total += channels * out * 9 + out * out * 9 + 4 * out
            if stage > 0 and block == 0:
                total += channels * out + 2 * out
            channels = out
    return total + channels * outputs + outputs


def googlenet_by_hand(stem, widths, blocks, outputs):
    def normed(inputs, width, kernel):
        return inputs * width * kernel**2 + 2 * width

    one, reduce_three, three, reduce_five, five, project = widths
    total = normed(3, stem[0], 3) + normed(stem[0], stem[1], 1) + normed(stem[1], stem[2], 3)
    channels = stem[2]
    for _ in range(blocks):
        total += normed(channels, one, 1) + normed(channels, project, 1)
        total += normed(channels, reduce_three, 1) + normed(reduce_three, three, 3)
        total += normed(channels, reduce_five, 1) + normed(reduce_five, five, 5)
        channels = one + three + five + project
    return total + channels * outputs + outputs


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (models.MLP((4,), 3), 4 * 100 + 100 + 100 * 3 + 3),
        (models.MLP((4,), 3, hidden=()), 15),
        (models.MLP((2, 3), 1, hidden=(5, 4)), 35 + 24 + 5),
        (models.LeNet300100((784,), 10), 266_200 + 410),
        (models.LeNet5(MNIST, 10), 430_500 + 20 + 50 + 500 + 10),
        (models.VGGSmall(CIFAR, 10), 1_148_874),
        (models.VGGSmall((1, 8, 8), 2, widths=((3,), (4,))), 27 + 6 + 108 + 8 + 10),
        (models.resnet20(CIFAR, 10), resnet_by_hand(3, 16, 3, 10)),
        (models.ResNet(CIFAR, 7, depth=8, width=4), resnet_by_hand(1, 4, 3, 7)),
        (
            models.GoogLeNetSmall(CIFAR, 10, stem=(4, 5, 6), blocks=((1, 2, 3, 4, 5, 6),) * 3),
            googlenet_by_hand((4, 5, 6), (1, 2, 3, 4, 5, 6), 3, 10),
        ),
    ],
)
def test_parameter_counts(model, expected):
    assert parameters(model) == expected


def test_weight_counts_of_the_papers():
    assert weights(models.LeNet300100(MNIST, 10)) == 266_200
    assert weights(models.LeNet5(MNIST, 10)) == 430_500
    assert parameters(models.resnet20(CIFAR, 10)) == 272_474


@pytest.mark.parametrize("name", sorted(set(models.names()) - {"char_transformer"}))
def test_output_shape_and_tracing(name):
    model = models.create(name, CIFAR, 7, seed=0).eval()
    x = torch.randn(2, *CIFAR)
    assert model(x).shape == (2, 7)
    # Those who look for coupled slices trace the graph: nothing in a forward may depend on values.
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_mlp_squashes_its_outputs_when_asked():
    torch.manual_seed(0)
    plain = models.MLP((6,), 2, hidden=(5,), activation="sigmoid")
    squashed = models.MLP((6,), 2, hidden=(5,), activation="sigmoid", output_activation="sigmoid")
    squashed.load_state_dict(plain.state_dict())
    x = torch.randn(3, 6)
    expected = 1 / (1 + np.exp(-plain(x).detach().double().numpy()))
    np.testing.assert_allclose(squashed(x).detach().numpy(), expected, rtol=1e-6)


def test_mlp_names_its_layers_along_the_depth():
    model = models.MLP((6,), 2, hidden=(5, 4), activation="tanh")
    assert [name for name, _ in model.named_children()] == ["flatten", "fc1", "act1", "fc2", "act2", "fc3"]
    assert isinstance(model.act2, nn.Tanh)
    x = torch.randn(3, 6)
    by_hand = x
    for layer in (model.fc1, model.fc2):
        by_hand = torch.tanh(by_hand @ layer.weight.T + layer.bias)
    torch.testing.assert_close(model(x), by_hand @ model.fc3.weight.T + model.fc3.bias)


def test_lenet5_has_its_only_relu_after_fc1():
    model = models.LeNet5(MNIST, 10)
    assert [name for name, layer in model.named_modules() if isinstance(layer, nn.ReLU)] == ["act1"]
    x = torch.randn(2, *MNIST)
    y = nn.functional.max_pool2d(nn.functional.conv2d(x, model.conv1.weight, model.conv1.bias), 2)
    y = nn.functional.max_pool2d(nn.functional.conv2d(y, model.conv2.weight, model.conv2.bias), 2)
    y = torch.relu(y.flatten(1) @ model.fc1.weight.T + model.fc1.bias)
    torch.testing.assert_close(model(x), y @ model.fc2.weight.T + model.fc2.bias)


def test_an_inception_block_by_hand():
    torch.manual_seed(0)
    block = models.Inception(3, (2, 3, 4, 1, 5, 2)).eval()
    x = torch.randn(2, 3, 7, 6)

    def layer(which, y):
        conv, norm = which.conv, which.bn
        y = nn.functional.conv2d(y, conv.weight, padding=conv.weight.shape[-1] // 2)
        return (y * norm.weight.view(-1, 1, 1) / (1 + norm.eps) ** 0.5).clamp(min=0)

    expected = [
        layer(block.one, x),
        layer(block.three[1], layer(block.three[0], x)),
        layer(block.five[1], layer(block.five[0], x)),
        layer(block.pool[1], nn.functional.max_pool2d(x, 3, 1, 1)),
    ]
    torch.testing.assert_close(block(x), torch.cat(expected, 1))
    assert block(x).shape == (2, 2 + 4 + 5 + 2, 7, 6)


@pytest.mark.parametrize("name", sorted(set(models.names()) - {"char_transformer"}))
def test_reset_draws_every_weight_again_and_follows_the_rng(name):
    model = models.create(name, CIFAR, 5, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    model.reset_parameters()
    first = {key: value.clone() for key, value in model.state_dict().items()}
    changed = {key for key, value in first.items() if not torch.equal(value, before[key])}
    assert {key for key, value in model.named_parameters() if value.dim() > 1} <= changed
    torch.manual_seed(3)
    model.reset_parameters()
    assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items())


def test_reset_forgets_the_batch_norms_statistics():
    model = models.ResNet(CIFAR, 3, depth=8, width=4)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.fill_(5.0)
    model.train()(torch.randn(4, *CIFAR))
    model.reset_parameters()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.weight, torch.ones_like(layer.weight))
            assert torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean))
            assert layer.num_batches_tracked == 0


def test_distributions_of_the_papers():
    torch.manual_seed(0)
    glorot = models.LeNet300100((784,), 10)
    assert glorot.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / (784 + 300)), rel=0.02)
    assert not glorot.fc1.bias.any()
    # Normal, not uniform: some value lies beyond three standard deviations.
    assert glorot.fc1.weight.abs().max() > 3 * math.sqrt(2 / (784 + 300))

    caffe = models.LeNet5(MNIST, 10)
    assert caffe.conv2.weight.abs().max().item() == pytest.approx(math.sqrt(3 / 500), rel=0.01)
    assert caffe.fc1.weight.std().item() == pytest.approx(math.sqrt(1 / 800), rel=0.01)
    assert not caffe.conv1.bias.any()

    he = models.VGGSmall(CIFAR, 10)
    assert he.conv6.weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)

    torch_own = models.MLP((400,), 3, hidden=(200,))
    assert torch_own.fc1.weight.abs().max().item() == pytest.approx(1 / 20, rel=0.01)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: models.MLP((), 3), "input_shape is empty"),
        (lambda: models.MLP((4,), 0), "outputs"),
        (lambda: models.MLP((4,), 3, hidden=(5, 0)), r"hidden\[1\] = 0: a whole number of at least 1"),
        (lambda: models.MLP((4,), 3, hidden=(5, True)), "hidden"),
        (lambda: models.MLP((4,), 3, activation="swish"), "'swish'.*relu"),
        (lambda: models.LeNet5((784,), 10), "channels, height, width"),
        (lambda: models.LeNet5((1, 8, 8), 10), "at least 16 x 16.*8 x 8"),
        (lambda: models.VGGSmall((3, 4, 4), 10), "at least 8 x 8"),
        (lambda: models.VGGSmall(CIFAR, 10, widths=((4,), ())), "at least one convolution"),
        (lambda: models.ResNet(CIFAR, 10, depth=18), "6n \\+ 2.*got 18"),
        (lambda: models.ResNet(CIFAR, 10, width=0), "width"),
        (lambda: models.GoogLeNetSmall((3, 4, 4), 10), "at least 8 x 8"),
        (lambda: models.GoogLeNetSmall(CIFAR, 10, stem=(4, 4)), "stem needs 3 widths"),
        (lambda: models.GoogLeNetSmall(CIFAR, 10, blocks=((1, 1, 1, 0, 1, 1),) * 3), r"widths\[3\] = 0"),
    ],
)
def test_refused_sizes(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_smallest_images_pass():
    assert models.LeNet5((2, 16, 16), 3)(torch.zeros(1, 2, 16, 16)).shape == (1, 3)
    assert models.ResNet((1, 4, 4), 3, depth=8).eval()(torch.zeros(1, 1, 4, 4)).shape == (1, 3)
