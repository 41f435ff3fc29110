"""Networks and optimizers beside PyTorch: a state_dict that it saved, its outputs, and what its optimizers make of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.fl.tensors.pytorch import from_pytorch
from propeller.program import Data, batches, nn, optim
from propeller.program import tensors as pt
from propeller.program.correction import Correction
from propeller.program.nn import hints
from propeller.tensors.machine import StepMachine

DATA = Path(__file__).parent / "pytorch"
MADE = json.loads((DATA / "net.json").read_text())
OPTIMIZERS: dict[str, optim.Optimizer] = {
    "sgd": optim.SGD(0.1),
    "momentum": optim.SGD(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": optim.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": optim.Adam(0.01, weight_decay=0.1),
    "adamw": optim.AdamW(0.01, weight_decay=0.1),
}


LAYERS = json.loads((DATA / "layers.json").read_text())
MADE_OF: dict[str, tuple[nn.Module, Any]] = {
    "BatchNorm2d train": (nn.BatchNorm2d(2), None),
    "BatchNorm2d use": (nn.BatchNorm2d(2), None),
    "BatchNorm1d train": (nn.BatchNorm1d(3), None),
    "LayerNorm": (nn.LayerNorm((2, 3)), None),
    "GroupNorm": (nn.GroupNorm(2, 4), None),
    "LSTM": (nn.LSTM(2, 3, 2), lambda y: pt.concatenate([each.flatten() for each in (y[0], *y[1])])),
    "GRU": (nn.GRU(2, 3, 2), lambda y: pt.concatenate([each.flatten() for each in y])),
    "MultiheadAttention": (nn.MultiheadAttention(4, 2), None),
    "Embedding": (nn.Embedding(4, 2), None),
}


class Net(nn.Module):
    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.conv2 = nn.Conv2d(2, 3, 2, stride=2, padding=1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Any) -> Any:
        x = pt.max_pool2d(pt.relu(self.conv1(x)), 2)
        x = pt.relu(self.conv2(x))
        return self.fc(x.reshape(len(x), -1))


def model() -> dict[str, Any]:
    return {name: pt.array(each) for name, each in from_pytorch((DATA / "net.pt").read_bytes())[0].items()}


def cross_entropy(logits: Any, labels: Any) -> Any:
    return -pt.log_softmax(logits)[range(len(labels)), labels].mean()


def samples() -> tuple[Any, Any]:
    return pt.array(MADE["x"]).reshape(-1, 1, 8, 8), pt.array(MADE["y"])


def test_a_state_dict_of_pytorch_gives_pytorchs_output(machine: StepMachine) -> None:
    x, _ = samples()
    np.testing.assert_allclose(Net().apply(model(), x[:2]).tolist(), MADE["output"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_pytorchs(name: str, traced: bool) -> None:
    net, weights, optimizer = Net(), model(), OPTIMIZERS[name]
    state, key = optimizer.init(weights), pt.array([1, 2])
    step = nn.training_step(net, cross_entropy, optimizer)
    if not traced:

        def step(weights: Any, state: Any, x: Any, y: Any, key: Any) -> Any:
            loss, gradients = nn.loss_and_gradients(net, cross_entropy, weights, x, y, key)
            optimizer.step(weights, gradients, state)
            return loss

    x, y = samples()
    losses = [step(weights, state, x[at : at + 8], y[at : at + 8], key).item() for at in (0, 8, 16) * 2]
    expected = MADE["runs"][name]
    np.testing.assert_allclose(losses, expected["losses"], rtol=2e-4)
    np.testing.assert_allclose(weights["fc.bias"].tolist(), expected["fc.bias"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        weights["conv1.weight"].flatten().tolist(), expected["conv1.weight"], rtol=1e-3, atol=1e-5
    )


def test_a_model_to_begin_with_has_pytorchs_names_and_ranges() -> None:
    net = Net()
    first = net.init(seed=3)
    assert {name: each.shape for name, each in first.items()} == {
        name: each.shape for name, each in model().items()
    }
    for name, fan_in in (("conv1", 9), ("conv2", 8), ("fc", 12)):
        for part in ("weight", "bias"):
            values = np.asarray(first[f"{name}.{part}"])
            assert abs(values).max() <= fan_in**-0.5
            assert values.std() > 0
    assert first["fc.weight"].tolist() == net.init(seed=3)["fc.weight"].tolist()
    assert first["fc.weight"].tolist() != net.init(seed=4)["fc.weight"].tolist()


def test_names_of_sequences_and_lists() -> None:
    numbered = nn.Sequential(nn.Linear(2, 3), pt.relu, nn.Linear(3, 1, bias=False))
    assert list(numbered.parameters()) == ["0.weight", "0.bias", "2.weight"]
    named = nn.Sequential(fc1=nn.Linear(2, 3), act=pt.relu, inner=nn.Sequential(nn.Linear(3, 1)))
    assert list(named.parameters()) == ["fc1.weight", "fc1.bias", "inner.0.weight", "inner.0.bias"]

    class Deep(nn.Module):
        def __init__(self) -> None:
            self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
            self.scale = nn.Parameter((2,), nn.initialisers.ones)

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x * self["scale"]

    deep = Deep()
    assert list(deep.parameters())[:3] == ["scale", "layers.0.weight", "layers.0.bias"]
    assert deep.apply(deep.init(), pt.ones((4, 2))).shape == (4, 2)


def test_layers_of_layers(machine: StepMachine) -> None:
    net = nn.Sequential(
        nn.Reshape(1, 4, 4),
        nn.ConvTranspose2d(1, 2, 2, stride=2),
        nn.MaxPool2d(2),
        nn.AvgPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(18, 2),
    )
    assert net.apply(net.init(1), pt.ones((3, 16))).shape == (3, 2)
    sequence = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same", groups=2), nn.ConvTranspose1d(4, 2, 3, stride=2)
    )
    assert sequence.apply(sequence.init(1), pt.ones((1, 2, 5))).shape == (1, 2, 11)
    assert sequence.parameters()["0.weight"].shape == (4, 1, 3)


def test_what_is_wrong_is_named() -> None:
    net = Net()
    with pytest.raises(
        pt.TensorError, match=r"write net\.apply\(model, x\) where net\(x\) is written in PyTorch"
    ):
        net(pt.ones((1, 1, 8, 8)))
    with pytest.raises(
        pt.TensorError, match=r"no tensor 'conv1.weight', which the network takes; it has 'w'"
    ):
        net.apply({"w": pt.ones(1)}, pt.ones((1, 1, 8, 8)))
    other = nn.Linear(2, 2)

    class Outside(nn.Module):
        def forward(self, x: Any) -> Any:
            return other(x)

    with pytest.raises(pt.TensorError, match="this Linear is not part of a network"):
        Outside().apply({}, pt.ones((1, 2)))

    class Listed(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Linear(2, 2)]

        def forward(self, x: Any) -> Any:
            return self.layers[0](x)

    with pytest.raises(pt.TensorError, match=r"a list of layers as nn\.ModuleList"):
        Listed().apply({}, pt.ones((1, 2)))
    with pytest.raises(TypeError, match="Sequential: '1' is neither a module nor a function"):
        nn.Sequential(nn.Linear(1, 1), 3)
    with pytest.raises(pt.TensorError, match="2 groups do not divide 3 channels"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(pt.TensorError, match="LSTM: batch_first is always true here"):
        nn.LSTM(2, 3, batch_first=False)


def test_the_layer_that_fails_is_named() -> None:
    net = nn.Sequential(body=nn.Sequential(nn.Linear(3, 4), pt.relu), head=nn.Linear(5, 2))
    with pytest.raises(
        pt.TensorError, match=r"^head \(Linear\): matmul: shapes \[2, 4\] and \[5, 2\] do not fit"
    ):
        net.apply(net.init(), pt.ones((2, 3)))
    with pytest.raises(pt.TensorError, match=r"^body\.0 \(Linear\): matmul: shapes \[2, 7\]"):
        net.apply(net.init(), pt.ones((2, 7)))


def test_a_model_of_another_network_is_named() -> None:
    model = nn.Linear(3, 5).init()
    with pytest.raises(
        pt.TensorError, match=r"the model's 'weight' has the shape \[5, 3\], the network takes \[4, 3\]"
    ):
        nn.Linear(3, 4).apply(model, pt.ones((2, 3)))


def test_a_batch_of_one_has_no_statistics() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
    model, key = net.init(), pt.random(1).key()
    with pytest.raises(
        pt.TensorError, match=r"1 \(BatchNorm1d\): BatchNorm1d: one number for each channel .* drop_last=True"
    ):
        net.train(model, pt.ones((1, 2)), key=key)
    assert net.apply(model, pt.ones((1, 2))).shape == (1, 4)
    pictures = nn.BatchNorm2d(3)
    assert pictures.train(pictures.init(), pt.ones((1, 3, 2, 2)), key=key)[0].shape == (1, 3, 2, 2)


def test_a_step_without_a_key_is_named() -> None:
    net, optimizer = nn.Linear(2, 2), optim.SGD(0.1)
    step, model = nn.training_step(net, pt.cross_entropy, optimizer), net.init()
    given = model, optimizer.init(model), pt.ones((3, 2)), pt.array([0, 1, 1])
    for rest in ((), (0.1,), (Correction(),), (None,), (pt.ones(2),)):
        with pytest.raises(pt.TensorError, match=r"the key is missing: pass source\.key\(\)"):
            step(*given, *rest)
    assert step(*given, pt.random(1).key()).item() > 0


def test_labels_of_a_loss_are_integers_below_the_number_of_classes(machine: StepMachine) -> None:
    del machine
    logits = pt.zeros((2, 3))
    with pytest.raises(pt.TensorError, match=r"are integers, got float32 \[2\]: use y\.astype\('int64'\)"):
        pt.cross_entropy(logits, pt.array([0.0, 1.0]))
    with pytest.raises(
        pt.TensorError, match=r"index 3 is outside 3 columns \(of a loss: as many classes\), 0 to 2"
    ):
        pt.cross_entropy(logits, pt.array([0, 3])).item()


def test_arguments_have_pytorchs_names() -> None:
    nn.Conv2d(in_channels=1, out_channels=2, kernel_size=3, stride=2, padding=1)
    nn.ConvTranspose1d(in_channels=1, out_channels=2, kernel_size=3)
    nn.MaxPool2d(kernel_size=2), nn.AvgPool2d(kernel_size=2)
    nn.Linear(in_features=2, out_features=3)
    (
        nn.BatchNorm2d(num_features=2),
        nn.LayerNorm(normalized_shape=2),
        nn.GroupNorm(num_groups=1, num_channels=2),
    )
    nn.Dropout(p=0.1), nn.Embedding(num_embeddings=3, embedding_dim=2)
    nn.GRU(input_size=2, hidden_size=3, num_layers=2, batch_first=True)
    nn.MultiheadAttention(embed_dim=4, num_heads=2, batch_first=True)
    assert nn.Conv2d(1, 2, 3, 2, 1).init()["weight"].shape == (2, 1, 3, 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ReLU", r"here it is the function pt\.relu, in forward or as a step of Sequential"),
        ("CrossEntropyLoss", r"here it is the function pt\.cross_entropy\(output, target\)"),
        ("Dropout2d", r"here it is Dropout\(p\)"),
        ("Conv2D", "did you mean 'Conv2d'"),
    ],
)
def test_layers_of_pytorch_that_there_are_not(name: str, text: str) -> None:
    with pytest.raises(AttributeError, match=text):
        getattr(nn, name)


def test_what_hints_name_is_there() -> None:
    functions = {**hints.FUNCTIONS, **hints.LOSSES}
    assert all(callable(getattr(pt, name)) for name in functions.values())
    there_is = [name for name in {**functions, **hints.OTHERS} if name in nn.__all__]
    assert not there_is


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_an_optimizer_is_given_no_parameters(kind: Any) -> None:
    with pytest.raises(pt.TensorError, match=f"write {kind.__name__}\\(lr=…\\)"):
        kind(nn.Linear(1, 1).parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: optim.SGD(-1), "lr is a number from 0"),
        (lambda: optim.SGD(0.1, momentum=1.5), "momentum is a number from 0 to 1"),
        (lambda: optim.SGD(0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda: optim.Adam(betas=(0.9, 2.0)), "betas is a number from 0 to 1"),
        (lambda: optim.cosine(0.1, 0), "steps is a number from 1"),
        (lambda: optim.SGD(0.1).step({}, {"w": pt.ones(1)}, {}), "the gradients have a tensor 'w'"),
    ],
)
def test_wrong_options_are_named(make: Any, text: str) -> None:
    with pytest.raises(pt.TensorError, match=text):
        make()


def test_schedules() -> None:
    assert [optim.step_decay(1.0, 2, 0.5)(step) for step in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert optim.exponential(2.0, 0.5)(3) == 0.25
    cosine = optim.cosine(1.0, 10, least=0.2)
    assert [round(cosine(step), 6) for step in (0, 5, 10, 99)] == [1.0, 0.6, 0.2, 0.2]
    warm = optim.warmup(4, optim.constant(0.8))
    assert [round(warm(step), 6) for step in (0, 1, 3, 4, 50)] == [0.2, 0.4, 0.8, 0.8, 0.8]


def test_clipping(machine: StepMachine) -> None:
    gradients = {"a": pt.array([3.0, 0.0]), "b": pt.array([[4.0]])}
    clipped = optim.clip_by_norm(gradients, 1.0)
    assert clipped["a"].tolist() == pytest.approx([0.6, 0.0], rel=1e-5)
    assert clipped["b"].tolist()[0] == pytest.approx([0.8], rel=1e-5)
    assert optim.clip_by_norm(gradients, 10.0)["a"].tolist() == pytest.approx([3.0, 0.0])
    assert optim.clip_by_norm({}, 1.0) == {}
    assert optim.clip_by_value(gradients, 2.0)["b"].tolist() == [[2.0]]


def test_a_learning_rate_of_a_schedule_needs_no_other_recording() -> None:
    optimizer = optim.SGD(0.1)
    net = nn.Linear(1, 1)
    weights = net.init(1)
    step = nn.training_step(net, lambda output, y: (output - y).mean(), optimizer)
    before = weights["bias"].item()
    for lr in (1.0, 0.5):
        step(weights, {}, pt.zeros((1, 1)), pt.zeros((1, 1)), pt.array([1, 2]), lr=lr)
    assert weights["bias"].item() == pytest.approx(before - 1.5)


def test_batches_are_an_epoch_in_random_order(machine: StepMachine) -> None:
    data = Data([{"x": [n, -n], "y": n, "text": "t"} for n in range(10)])
    source = pt.random(5)
    epochs = []
    for _ in range(2):
        found = list(batches(data, 4, source))
        assert [len(x) for x, _ in found] == [4, 4, 2]
        labels = [label for _, y in found for label in y.tolist()]
        assert [row for x, _ in found for row in x.tolist()] == [[n, -n] for n in labels]
        assert sorted(labels) == list(range(10))
        epochs.append(labels)
    assert epochs[0] != epochs[1]
    assert [len(y) for (y,) in batches(data, 4, 5, columns=["y"], drop_last=True)] == [4, 4]
    assert list(batches({"x": pt.zeros((0, 2)), "y": pt.zeros(0)}, 4, 5)) == []
    for wrong, text in ((0, "1 row or more"), (True, "1 row or more")):
        with pytest.raises(pt.TensorError, match=text):
            next(batches(data, wrong, 5))
    with pytest.raises(pt.TensorError, match="columns have 3, 2 rows"):
        next(batches({"x": pt.zeros(3), "y": pt.zeros(2)}, 1, 5))
    with pytest.raises(pt.TensorError, match="no column 'z'"):
        next(batches(data, 4, 5, columns=["z"]))


@pytest.mark.parametrize("name", MADE_OF)
def test_layers_give_pytorchs_outputs_and_gradients(machine: StepMachine, name: str) -> None:
    """And statistics that change on the way."""
    (net, pick), made = MADE_OF[name], LAYERS[name]
    weights = {key: pt.array(value) for key, value in made["state"].items()}
    assert list(net.parameters()) == list(weights)
    assert {key: each.shape for key, each in net.init(1).items()} == {
        key: each.shape for key, each in weights.items()
    }
    inputs, up = [pt.array(each) for each in made["inputs"]], pt.array(made["up"])

    def loss(trained: Any) -> Any:
        model = {**weights, **trained}
        if "train" in name:
            output, changed = net.train(model, *inputs, key=pt.array([1, 2]))
        else:
            output, changed = net.apply(model, *inputs), {}
        output = output if pick is None else pick(output)
        return (output * up).sum(), output, changed

    (_, output, changed), gradients = pt.value_and_grad(loss)(net.trained(weights))
    near: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(output.tolist(), made["output"], **near)
    assert gradients.keys() == made["gradients"].keys()
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient.tolist(), made["gradients"][key], **near)
    for key, value in changed.items():
        np.testing.assert_allclose(value.tolist(), made["after"][key], **near)


def test_dropout_and_statistics_in_a_step() -> None:
    net = nn.Sequential(nn.Linear(3, 64), nn.BatchNorm1d(64), pt.relu, nn.Dropout(0.5), nn.Linear(64, 1))
    weights, optimizer, source = net.init(1), optim.SGD(0.1), pt.random(2)
    step = nn.training_step(net, pt.mse_loss, optimizer)
    x, y = source.normal((16, 3)), source.normal((16, 1))
    before = weights["1.running_mean"].tolist()
    for count in (1, 2):
        step(weights, {}, x, y, source.key())
        assert weights["1.num_batches_tracked"].item() == count
    assert weights["1.running_mean"].tolist() != before
    assert weights["1.running_var"].shape == (64,)
    same, other = source.key(), source.key()
    outputs = [net.train(weights, x, key=key)[0].tolist() for key in (same, same, other)]
    assert outputs[0] == outputs[1] != outputs[2]
    assert net.apply(weights, x).tolist() == net.apply(weights, x).tolist()
    with pytest.raises(pt.TensorError, match="p is from 0 to below 1"):
        nn.Dropout(1.0)
    with pytest.raises(pt.TensorError, match="BatchNorm1d takes arrays of 3 dimensions"):
        net.apply(weights, x.reshape(2, 2, 4, 3))
    with pytest.raises(pt.TensorError, match="3 heads do not divide a width of 4"):
        nn.MultiheadAttention(4, 3)
