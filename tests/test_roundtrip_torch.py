# SPDX-License-Identifier: Apache-2.0
"""PyTorch through real stores: tensors of every dtype and form, modules, optimizers, schedulers, loaders."""

from __future__ import annotations

import copy
import pathlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

import milepost as mp
from milepost import PerProcess, StructureError, UnsupportedLeafError
from milepost.stores import MemoryStore
from samples import bits

# PyTorch says so once in each process, about the first tensor of complex32.
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")

DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.complex32, torch.complex64,
    torch.complex128, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
]  # fmt: skip
MOVERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def any_bits(dtype: torch.dtype, count: int = 24) -> torch.Tensor:
    """Elements of any patterns of bits, NaNs with payloads among them."""
    size = torch.empty(0, dtype=dtype).element_size()
    data = np.random.default_rng(size).integers(0, 2 if dtype == torch.bool else 256, count * size, np.uint8)
    return torch.from_numpy(data).view(dtype)


def forms(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    data = any_bits(dtype)
    grid = data.view(4, 6)
    found = {
        "1-d": data,
        "0-d": data[3],
        "empty": grid[:0],
        "strided": grid[::2, 1::3],
        "transposed": grid.t(),
        "offset": data[1:],
        "expanded": data[:6].expand(3, 6),
        "channels last": memory_format(data.view(2, 3, 2, 2)),
        "4-d": data.view(2, 3, 1, 4).permute(2, 0, 3, 1),
    }
    if dtype.is_complex:
        found |= {"conj": grid.conj(), "conj strided": grid.conj()[:, ::2], "imag of conj": grid.conj().imag}
    return found


def memory_format(tensor: torch.Tensor) -> torch.Tensor:
    strided = torch.empty_strided(tensor.shape, (12, 1, 6, 3), dtype=tensor.dtype)
    strided.view(MOVERS[tensor.element_size()]).copy_(tensor.view(MOVERS[tensor.element_size()]))
    assert strided.is_contiguous(memory_format=torch.channels_last)
    return strided


@pytest.fixture(scope="module", params=["local", "memory"])
def everything(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    tree = {str(dtype): forms(dtype) for dtype in DTYPES}
    where = tmp_path_factory.mktemp("torch") / "root" if request.param == "local" else MemoryStore()
    return tree, mp.save(where, tree)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def state_of(value: Any) -> Any:
    """A state with its tensors as bits, so that two compare with `==`."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, bits(value))
    if isinstance(value, dict):
        return {key: state_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [type(value), *map(state_of, value)]
    return (type(value), repr(value))


# Tensors.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_and_form_come_back_bit_for_bit(everything: Any, dtype: torch.dtype) -> None:
    tree, saved = everything
    tensors = tree[str(dtype)]
    found = saved.at(str(dtype)).load(like=tensors)
    plain = saved.at(str(dtype)).load()

    for form, tensor in tensors.items():
        assert found[form].dtype == tensor.dtype, form
        assert bits(found[form]) == bits(tensor), form
        assert bits(plain[form]) == bits(tensor), form
        assert isinstance(plain[form], np.ndarray)
    assert found["channels last"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_and_form_are_filled_in_place(everything: Any, dtype: torch.dtype) -> None:
    tree, saved = everything
    target = {form: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for form, t in tree[str(dtype)].items()}
    target["expanded"] = torch.empty((3, 6), dtype=dtype)
    if dtype.is_complex:
        target["conj"] = torch.empty((4, 6), dtype=dtype).conj()
        target["imag of conj"] = torch.empty((4, 6), dtype=dtype).conj().imag
    before = dict(target)
    saved.at(str(dtype)).load_into(target)

    for form, tensor in tree[str(dtype)].items():
        assert target[form] is before[form], form
        assert bits(target[form]) == bits(tensor), form


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_tensors_are_likes_without_memory(everything: Any, dtype: torch.dtype) -> None:
    tree, saved = everything
    like = {form: torch.empty(t.shape, dtype=t.dtype, device="meta") for form, t in tree[str(dtype)].items()}
    found = saved.at(str(dtype)).load(like=like)
    saved.at(str(dtype)).load_into(like)

    for form, tensor in tree[str(dtype)].items():
        assert bits(found[form]) == bits(like[form]) == bits(tensor)
        assert found[form].device.type == like[form].device.type == "cpu"


def test_lazy_tensors_are_views_of_the_file(root: pathlib.Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": any_bits(torch.bfloat16)}
    saved = mp.save(root, tensors)
    found = saved.load(like=tensors, lazy=True)
    found["a"][0, 0] = 9

    assert bits(found["b"]) == bits(tensors["b"])
    assert bits(saved.load(like=tensors, lazy=True)["a"]) == bits(tensors["a"])


def test_gradients_parameters_and_buffers_come_back_as_like_has_them(memory: MemoryStore) -> None:
    tree = {"w": nn.Parameter(torch.ones(2)), "fixed": nn.Parameter(torch.ones(2), requires_grad=False)}
    tree |= {
        "b": nn.Buffer(torch.ones(2), persistent=False),
        "t": torch.ones(2, requires_grad=True),
        "n": torch.arange(2),
    }
    found = mp.save(memory, tree).load(like=tree)

    assert [type(value) for value in found.values()] == [
        nn.Parameter,
        nn.Parameter,
        type(tree["b"]),
        torch.Tensor,
        torch.Tensor,
    ]
    assert [value.requires_grad for value in found.values()] == [True, False, False, True, False]
    assert isinstance(found["b"], nn.Buffer)
    assert not found["b"].persistent
    assert all(value.is_leaf for value in found.values())


def test_a_shared_tensor_comes_back_as_each_place_of_like_has_it(memory: MemoryStore) -> None:
    w = nn.Parameter(torch.ones(2))
    found = mp.save(memory, {"a": w, "b": w, "c": w.detach()}).load(like={"a": w, "b": w, "c": w.detach()})

    assert found["a"] is found["b"]
    assert (found["a"].requires_grad, found["c"].requires_grad) == (True, False)


def escaped(transform: Callable[..., Any]) -> torch.Tensor:
    found: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        found.append(x)
        return x.sum()

    transform(keep)(torch.ones(3, 2))
    return found[0]


class Wrapper(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(2).to_sparse(), r"layout torch.sparse_coo.*to_dense\(\)"),
        (lambda: torch.eye(2).to_sparse_csr(), r"layout torch.sparse_csr"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"quantized.*int_repr\(\)"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), r"nested|layout"),
        (lambda: torch.ones(2).as_subclass(Wrapper), "subclass Wrapper"),
        (lambda: nn.LazyLinear(2).weight, "without a shape yet.*lazy module"),
        (lambda: escaped(torch.vmap), "transform"),
        (lambda: escaped(torch.func.grad), "transform"),
        (lambda: torch.empty(2, device="meta"), "no data"),
        (lambda: torch.zeros(2, dtype=torch.bits8), "Convert it to one of"),
    ],
    ids=["coo", "csr", "quantized", "nested", "subclass", "lazy", "vmap", "grad", "meta", "bits8"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_plain_bytes_are_refused_with_their_path_and_the_remedy(
    memory: MemoryStore, make: Callable[[], Any], what: str
) -> None:
    tensor = make()
    with pytest.raises(UnsupportedLeafError, match=f"(?s)^m/0: .*({what})"):
        mp.save(memory, {"m": [tensor, tensor]})


LACKING = ("complex32", "complex128", "fnuz", "_x2")
OFFICIAL = [dtype for dtype in DTYPES if not str(dtype).endswith(LACKING)]


def test_packs_open_with_the_official_reader_of_pytorch(root: pathlib.Path) -> None:
    tree = {str(dtype): any_bits(dtype).view(4, 6) for dtype in OFFICIAL}
    mp.save(root, tree | {"strided": torch.arange(6.0).view(2, 3).t(), "model": nn.Linear(2, 3)})
    (pack,) = (root / "0").glob("*.safetensors")
    found = load_file(pack)

    for name, tensor in tree.items():
        assert found[name].dtype == tensor.dtype
        assert bits(found[name]) == bits(tensor)
    assert found["strided"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["model/weight"].shape == (3, 2)


# Modules.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("passing", torch.ones(1), persistent=False)
        self.history: list[int] = []

    def get_extra_state(self) -> Any:
        return {"history": self.history, "kind": "tied"}

    def set_extra_state(self, state: Any) -> None:
        self.history = state["history"]


def trained() -> Tied:
    torch.manual_seed(0)
    model = Tied()
    model.norm(torch.randn(8, 4))
    model.history = [1, 2, 3]
    return model


def test_a_module_takes_its_state_back_in_place(root: pathlib.Path) -> None:
    model, other = trained(), Tied()
    parameter, memory = other.head.weight, other.norm.running_mean.data_ptr()
    saved = mp.save(root, {"model": model})
    saved.load_into({"model": other})

    assert state_of(other.state_dict()) == state_of(model.state_dict())
    assert other.history == [1, 2, 3]
    assert other.head.weight is other.embed.weight is parameter
    assert other.norm.running_mean.data_ptr() == memory
    assert "model/norm.running_mean" in saved.leaves


def test_tied_parameters_are_stored_once(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"model": trained()})

    found = saved.load()["model"]
    assert found["embed.weight"] is found["head.weight"]
    assert saved.nbytes == 5 * 4 * 4 + 4 * 4 * 4 + 8


def test_parameters_that_were_saved_apart_load_into_tied_ones_as_pytorch_does_it(memory: MemoryStore) -> None:
    apart = Tied()
    apart.head.weight = nn.Parameter(torch.full((5, 4), 7.0))
    model, reference = Tied(), Tied()
    mp.save(memory, {"m": apart}).load_into({"m": model})
    reference.load_state_dict(apart.state_dict())

    assert bits(model.head.weight) == bits(reference.head.weight)


def test_a_module_that_stands_twice_is_stored_and_restored_once(memory: MemoryStore) -> None:
    model, other = trained(), Tied()
    saved = mp.save(memory, {"model": model, "ema": {"of": model}})
    saved.load_into({"model": other, "ema": {"of": other}})

    assert saved.nbytes == 5 * 4 * 4 + 4 * 4 * 4 + 8
    assert state_of(other.state_dict()) == state_of(model.state_dict())
    apart = [Tied(), Tied()]
    saved.load_into({"model": apart[0], "ema": {"of": apart[1]}})
    assert state_of(apart[1].state_dict()) == state_of(model.state_dict())


def test_one_module_cannot_take_two_states(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    model = nn.Linear(1, 1)

    with pytest.raises(StructureError, match="one Linear stands at a and at b"):
        saved.load_into({"a": model, "b": model})


def test_differences_name_parameters_and_nothing_is_changed(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"model": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))})
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    before = state_of(other.state_dict())

    with pytest.raises(StructureError) as caught:
        saved.load_into({"model": other})
    assert {(m.path, m.kind) for m in caught.value.mismatches} == {
        ("model/1.weight", "shape"), ("model/1.bias", "shape"),
        ("model/2.weight", "missing"), ("model/2.bias", "missing"),
    }  # fmt: skip
    assert state_of(other.state_dict()) == before


def test_the_options_of_load_work_on_parameters(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"model": nn.Sequential(OrderedDict(wi=nn.Linear(2, 3), head=nn.Linear(3, 1)))})
    other = nn.Sequential(OrderedDict(gate=nn.Linear(2, 3), head=nn.Linear(3, 1), new=nn.Linear(1, 1))).double()
    new, head = other.new.weight.clone(), other.head.weight.clone()
    saved.load_into(
        {"model": other}, rename={"model/wi.*": "model/gate.*"}, missing="keep", dtype="cast", exclude="model/head.*"
    )

    assert torch.equal(other.gate.weight, torch.from_numpy(saved.load()["model"]["wi.weight"]).double())
    assert torch.equal(other.new.weight, new)
    assert torch.equal(other.head.weight, head)


def test_a_module_on_the_meta_device_is_refused_before_anything_changes(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"a": nn.Linear(2, 2), "x": torch.ones(2)})
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    x = torch.zeros(2)

    with pytest.raises(StructureError, match=r"a/weight, a/bias\n.*to_empty"):
        saved.load_into({"a": empty, "x": x})
    assert x.tolist() == [0, 0]
    model = empty.to_empty(device="cpu")
    saved.load_into({"a": model, "x": x})
    assert bits(model.weight) == bits(saved.load()["a"]["weight"])


def test_a_module_in_like_is_refused_with_the_way_out_unless_it_is_not_wanted(memory: MemoryStore) -> None:
    model = nn.Linear(1, 1)
    saved = mp.save(memory, {"model": model, "step": 3})

    with pytest.raises(StructureError, match=r"model of `like` is a Linear.*\n.*load_into"):
        saved.load(like={"model": model, "step": 0})
    assert saved.load(like={"model": model, "step": 0}, only="step") == {"model": model, "step": 3}
    assert saved.load(like={"model": mp.SKIP, "step": 0})["step"] == 3


def test_modules_of_other_dtypes_are_restored_bit_for_bit(memory: MemoryStore) -> None:
    def model() -> nn.Module:
        module = nn.Linear(3, 2).to(torch.bfloat16)
        module.scale = nn.Buffer(any_bits(torch.float8_e4m3fn, 4))
        module.wave = nn.Parameter(torch.randn(2, dtype=torch.complex64))
        return module

    one, other = model(), model()
    mp.save(memory, one).load_into(other)

    assert state_of(other.state_dict()) == state_of(one.state_dict())


def test_hooks_of_a_module_see_what_is_loaded(memory: MemoryStore) -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for module in (model, other):
        module.register_state_dict_post_hook(lambda m, state, prefix, _: state.update(weight=state["weight"] * 2))
        module.register_load_state_dict_pre_hook(lambda m, state, *_: state.update(weight=state["weight"] / 2))
    mp.save(memory, model).load_into(other)

    assert torch.equal(other.weight, model.weight)


# Optimizers and what belongs to them.

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, torch.tensor(1e-2), foreach=False),
    "sgd": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, centered=True, momentum=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "adafactor": torch.optim.Adafactor,
}


def model_and(optimizer: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    groups = [{"params": model[0].parameters(), "name": "first", "lr": 1e-3}, {"params": model[2].parameters()}]
    return model, OPTIMIZERS[optimizer](groups)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        data = torch.randn(5, 3, generator=generator).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_never_stepped_goes_on_as_the_saved_one(memory: MemoryStore, name: str) -> None:
    model, optimizer = model_and(name)
    step(model, optimizer)
    saved = mp.save(memory, {"model": model, "optimizer": optimizer})
    other, fresh = model_and(name)
    saved.load_into({"model": other, "optimizer": fresh})

    assert state_of(fresh.state_dict()) == state_of(optimizer.state_dict())
    step(model, optimizer)
    step(other, fresh)
    assert state_of(other.state_dict()) == state_of(model.state_dict())
    assert state_of(fresh.state_dict()) == state_of(optimizer.state_dict())


def test_moments_of_another_dtype_than_the_parameters_come_back_bit_for_bit(memory: MemoryStore) -> None:
    model, optimizer = model_and("adam", torch.bfloat16)
    step(model, optimizer)
    for state in optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.randn(state[key].shape, dtype=torch.float32)
    _, fresh = model_and("adam", torch.bfloat16)
    mp.save(memory, optimizer).load_into(fresh)

    assert state_of(fresh.state_dict()) == state_of(optimizer.state_dict())
    assert {state["exp_avg"].dtype for state in fresh.state.values()} == {torch.float32}


def test_an_optimizer_with_lists_in_its_state_comes_back(memory: MemoryStore) -> None:
    def run() -> tuple[nn.Parameter, torch.optim.Optimizer, Callable[[], Any]]:
        x = nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.float64))
        optimizer = torch.optim.LBFGS([x], max_iter=3, history_size=4)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = ((x - 1) ** 4).sum()
            loss.backward()
            return loss

        return x, optimizer, closure

    x, optimizer, closure = run()
    optimizer.step(closure)
    y, fresh, other = run()
    mp.save(memory, {"x": x, "optimizer": optimizer}).load_into({"x": y, "optimizer": fresh})

    assert state_of(fresh.state_dict()) == state_of(optimizer.state_dict())
    optimizer.step(closure)
    fresh.step(other)
    assert bits(x) == bits(y)


def test_the_memory_of_a_restored_optimizer_is_its_own(memory: MemoryStore) -> None:
    model, optimizer = model_and("adam")
    step(model, optimizer)
    saved = mp.save(memory, optimizer)
    states = [model_and("adam")[1] for _ in range(2)]
    for fresh in states:
        saved.load_into(fresh)
    next(iter(states[0].state.values()))["exp_avg"].zero_()

    assert state_of(states[1].state_dict()) == state_of(optimizer.state_dict())


def test_an_optimizer_of_other_groups_refuses_before_anything_else_changes(memory: MemoryStore) -> None:
    model, optimizer = model_and("adam")
    step(model, optimizer)
    saved = mp.save(memory, {"model": model, "optimizer": optimizer})
    other, _ = model_and("adam")
    before = state_of(other.state_dict())

    with pytest.raises(StructureError, match="optimizer: the Adam did not take its saved state") as caught:
        saved.load_into({"model": other, "optimizer": torch.optim.Adam(other.parameters())})
    assert caught.value.__notes__ == ["Already changed, wholly or in part: optimizer."]
    assert state_of(other.state_dict()) == before


def test_an_optimizer_is_found_under_its_new_name(memory: MemoryStore) -> None:
    model, optimizer = model_and("adam")
    step(model, optimizer)
    saved = mp.save(memory, {"train": {"opt": optimizer}, "step": 3})
    _, fresh = model_and("adam")
    tree = {"optimizer": fresh, "step": 0}
    saved.load_into(tree, rename={"train/opt": "optimizer"})

    assert (tree["step"], state_of(fresh.state_dict())) == (3, state_of(optimizer.state_dict()))


def test_an_optimizer_takes_a_state_that_was_saved_as_a_mere_dict(memory: MemoryStore) -> None:
    model, optimizer = model_and("adam")
    step(model, optimizer)
    _, fresh = model_and("adam")
    mp.save(memory, {"o": optimizer.state_dict()}).load_into({"o": fresh})

    assert state_of(fresh.state_dict()) == state_of(optimizer.state_dict())


def test_what_was_not_saved_may_stay_and_what_is_not_wanted_too(memory: MemoryStore) -> None:
    model, optimizer = model_and("adam")
    step(model, optimizer)
    saved = mp.save(memory, {"model": model})
    before = state_of(optimizer.state_dict())
    with pytest.raises(StructureError, match="optimizer  state"):
        saved.load_into({"model": model, "optimizer": optimizer})
    saved.load_into({"model": model, "optimizer": optimizer}, missing="keep")
    mp.save(memory, {"model": model, "optimizer": model_and("adam")[1]}).load_into(
        {"model": model, "optimizer": optimizer}, exclude="optimizer"
    )

    assert state_of(optimizer.state_dict()) == before


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 2, 2, 5]),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 20),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 3, mode="exp_range", cycle_momentum=False),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, total_iters=5),
    "polynomial": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 8),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.MultiStepLR(o, [2, 4])], [3]
    ),
    "chained": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ExponentialLR(o, 0.9), torch.optim.lr_scheduler.MultiStepLR(o, [2, 4])]
    ),
}


def turn(optimizer: Any, scheduler: Any, count: int) -> list[Any]:
    rates: list[Any] = []
    for i in range(count):
        optimizer.step()
        scheduler.step(*([1.0 + i] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
    return rates


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_where_it_was(memory: MemoryStore, name: str) -> None:
    _, optimizer = model_and("sgd")
    scheduler = SCHEDULERS[name](optimizer)
    turn(optimizer, scheduler, 4)
    saved = mp.save(memory, {"optimizer": optimizer, "scheduler": scheduler})
    _, fresh = model_and("sgd")
    other = SCHEDULERS[name](fresh)
    saved.load_into({"optimizer": fresh, "scheduler": other})

    assert repr(other.state_dict()) == repr(scheduler.state_dict())
    assert turn(fresh, other, 6) == turn(optimizer, scheduler, 6)


def test_the_counter_in_a_scheduler_is_a_counter_again(memory: MemoryStore) -> None:
    _, optimizer = model_and("sgd")
    one, other = (torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 3]) for _ in range(2))
    mp.save(memory, one).load_into(other)

    assert other.milestones == Counter({1: 2, 3: 1})
    assert type(other.milestones) is Counter


@pytest.mark.parametrize("enabled", [True, False])
def test_a_gradient_scaler_keeps_its_scale(memory: MemoryStore, enabled: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
    scaler.scale(torch.ones(1))
    other = torch.amp.GradScaler("cpu", enabled=enabled)
    mp.save(memory, {"scaler": scaler}).load_into({"scaler": other})

    assert other.state_dict() == scaler.state_dict()


# Random states and loaders.


def test_a_generator_of_pytorch_goes_on_where_it_was(memory: MemoryStore) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.randn(5, generator=generator)
    saved = mp.save(memory, {"g": generator, "state": torch.get_rng_state()})
    wanted = torch.randn(5, generator=generator)
    target = torch.Generator()
    saved.load_into({"g": target, "state": torch.get_rng_state()})
    copied = saved.load(like={"g": target, "state": torch.empty(5056, dtype=torch.uint8, device="meta")})

    assert torch.equal(torch.randn(5, generator=target), wanted)
    assert torch.equal(torch.randn(5, generator=copied["g"]), wanted)
    assert copied["g"] is not target
    torch.set_rng_state(copied["state"])


def batches(loader: Any, count: int | None = None) -> list[Any]:
    found = []
    for batch in loader:
        found.append(batch.tolist())
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_stateful_loader_goes_on_in_the_middle_of_an_epoch(memory: MemoryStore, workers: int, wrapped: bool) -> None:
    def loader() -> StatefulDataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        return StatefulDataLoader(list(range(32)), batch_size=4, shuffle=True, num_workers=workers, generator=generator)

    one = loader()
    running = iter(one)
    for _ in range(3):
        next(running)
    saved = mp.save(memory, {"loader": PerProcess(one)})
    rest = [batch.tolist() for batch in running]
    other = loader()
    saved.load_into({"loader": PerProcess(other) if wrapped else other})

    assert batches(other) == rest
    assert len(rest) == 5
    alone = loader()
    saved.at("loader").load_into(alone)
    assert batches(alone) == rest


def test_objects_of_the_users_are_restored_whole(memory: MemoryStore) -> None:
    class Average:
        def __init__(self) -> None:
            self.state: dict[Any, Any] = {}

        def state_dict(self) -> dict[Any, Any]:
            return self.state

        def load_state_dict(self, state: dict[Any, Any]) -> None:
            self.state = state

    one, other = Average(), Average()
    one.state = (
        {3: torch.ones(2), "np": np.arange(3), (): None}
        if False
        else {3: torch.ones(2), "np": np.arange(3), "t": (1, [None])}
    )
    mp.save(memory, one).load_into(other)

    assert torch.equal(other.state[3], torch.ones(2))
    assert isinstance(other.state["np"], np.ndarray)
    assert other.state["t"] == (1, [None])


def test_saving_and_loading_leave_the_saved_objects_alone(memory: MemoryStore) -> None:
    model, optimizer = model_and("adam")
    step(model, optimizer)
    before = copy.deepcopy((state_of(model.state_dict()), state_of(optimizer.state_dict())))
    saved = mp.save(memory, {"model": model, "optimizer": optimizer})
    _, fresh = model_and("adam")
    saved.at("optimizer").load_into(fresh)
    step(*model_and("adam"))

    assert (state_of(model.state_dict()), state_of(optimizer.state_dict())) == before
