# SPDX-License-Identifier: Apache-2.0
"""JAX through real stores: arrays of every dtype, keys, shardings, modules, iterators; and across frameworks."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import flax.struct
import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import milepost as mp
from milepost import LeafSpec, PerProcess, StructureError, UnsupportedLeafError
from milepost.stores import MemoryStore
from samples import CountingStore, bits, numbers

P = PartitionSpec
DTYPES = [
    "bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "complex64", "bfloat16",
    "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
    "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn", "int2", "int4", "uint2", "uint4",
]  # fmt: skip
IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def forms(name: str) -> dict[str, jax.Array]:
    data = numbers(dtype_of(name)).reshape(4, 6)
    return {"2-d": jnp.asarray(data), "0-d": jnp.asarray(data[0, 0]), "empty": jnp.asarray(data[:0])}


@pytest.fixture(scope="module", params=["local", "memory"])
def everything(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    tree = {name: forms(name) for name in DTYPES}
    where = tmp_path_factory.mktemp("jax") / "root" if request.param == "local" else MemoryStore()
    return tree, mp.save(where, tree)


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def mesh(*shape: int, names: tuple[str, ...] = ("x", "y")) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, names[: len(shape)])


def sharded(array: Any, grid: jax.sharding.Mesh, *spec: Any) -> jax.Array:
    return jax.device_put(array, NamedSharding(grid, P(*spec)))


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


# Arrays.


@pytest.mark.parametrize("name", DTYPES)
def test_arrays_of_every_dtype_come_back_bit_for_bit(everything: Any, name: str) -> None:
    tree, saved = everything
    arrays = tree[name]
    for like in (arrays, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)):
        found = saved.at(name).load(like=like)
        for form, array in arrays.items():
            assert isinstance(found[form], jax.Array)
            assert found[form].dtype == array.dtype
            assert bits(found[form]) == bits(array)
            assert not found[form].committed
    for form, array in saved.at(name).load().items():
        assert (array.dtype, bits(array)) == (dtype_of(name), bits(arrays[form]))


def test_arrays_are_replaced_in_place_of_their_containers(everything: Any) -> None:
    tree, saved = everything
    target = jax.tree.map(jnp.zeros_like, tree)
    saved.load_into(target)

    assert jax.tree.all(jax.tree.map(lambda a, b: bits(a) == bits(b), target, tree))


def test_zeros_that_are_one_object_in_the_target_do_not_hide_what_was_saved_apart(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"mu": jnp.ones(3), "nu": jnp.full(3, 2.0)})
    zeros = jnp.zeros(3)
    target = {"mu": zeros, "nu": zeros}
    saved.load_into(target)

    assert (target["mu"].tolist(), target["nu"].tolist()) == ([1.0] * 3, [2.0] * 3)


def test_a_weakly_typed_number_is_weak_again_where_like_is(memory: MemoryStore) -> None:
    weak, strong = jnp.asarray(2.5), jnp.asarray(2.5, jnp.float32)
    saved = mp.save(memory, {"a": weak, "b": weak, "c": strong, "v": jnp.asarray([1.0])})
    found = saved.load(like={"a": weak, "b": strong, "c": weak, "v": jnp.asarray([1.0])})

    assert {name: array.weak_type for name, array in found.items()} == {"a": True, "b": False, "c": True, "v": False}
    assert found["a"] == found["b"] == 2.5
    on_device = jax.device_put(weak, jax.devices()[1])
    assert saved.load(like={"a": on_device}, only="a", unexpected="ignore")["a"].sharding == on_device.sharding


def test_numbers_of_python_fill_arrays_without_dimensions(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"step": 7, "rate": 0.1})
    found = saved.load(like={"step": jnp.int32(0), "rate": jax.ShapeDtypeStruct((), jnp.float32)})

    assert (found["step"].dtype, int(found["step"]), found["rate"].dtype) == (jnp.int32, 7, jnp.float32)
    with pytest.raises(StructureError, match="step: the saved number"):
        mp.save(memory, {"step": 2**40}).load(like={"step": jnp.int32(0)})


def test_a_deleted_or_donated_array_is_refused_at_save_and_good_as_a_like(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"a": jnp.arange(4.0)})
    gone = jnp.ones(4)
    jax.jit(lambda x: x + 1, donate_argnums=0)(gone)
    key = jax.random.key(0)
    key.delete()

    for array in (gone, key):
        with pytest.raises(UnsupportedLeafError, match="(?s)^p/0: the array was deleted or donated.*Save before"):
            mp.save(memory, {"p": [array]})
    assert saved.load(like={"a": gone})["a"].tolist() == [0, 1, 2, 3]


def test_a_traced_value_is_refused(memory: MemoryStore) -> None:
    @jax.jit
    def step(x: Any) -> Any:
        mp.save(memory, {"x": x})
        return x

    with pytest.raises(UnsupportedLeafError, match="x: a traced value"):
        step(jnp.ones(2))


def test_a_shape_without_data_cannot_be_saved(memory: MemoryStore) -> None:
    with pytest.raises(UnsupportedLeafError, match="a/0: an abstract array has no data"):
        mp.save(memory, {"a": [jax.ShapeDtypeStruct((2,), jnp.float32)]})


def test_donating_an_array_after_save_does_not_change_what_is_saved(root: pathlib.Path) -> None:
    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with mp.Checkpointer(root, donated=True) as saver:
        x = jnp.arange(100_000.0)
        pending = saver.save(1, {"x": x})
        x = step(x)
        x.block_until_ready()

        assert np.array_equal(pending.result().load()["x"], np.arange(100_000, dtype=np.float32))


# 64 bits.


def test_a_float64_does_not_become_a_float32_unless_it_is_asked_for(memory: MemoryStore) -> None:
    saved = mp.save(memory, {"w": np.array([0.1]), "x": np.ones(2, np.float32)})
    x = np.zeros(2, np.float32)
    like = {"w": jax.ShapeDtypeStruct((1,), jnp.float32), "x": x}

    with pytest.raises(StructureError, match="saved float64, `like` float32"):
        saved.load(like=like)
    assert saved.load(like=like, dtype="cast")["w"].dtype == jnp.float32
    with pytest.raises(StructureError, match="JAX holds no float64 in its 32-bit mode"):
        saved.load_into({"w": jax.ShapeDtypeStruct((1,), np.float64), "x": x})
    assert x.tolist() == [0, 0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["float64", "int64", "uint64", "complex128"])
def test_in_64_bit_mode_every_dtype_comes_back(memory: MemoryStore, name: str) -> None:
    tree = {"x": jnp.asarray(numbers(np.dtype(name)))}
    found = mp.save(memory, tree).load(like=tree)

    assert found["x"].dtype == name
    assert bits(found["x"]) == bits(tree["x"])


def test_a_dtype_that_jax_lacks_is_told_before_anything_is_read() -> None:
    store = CountingStore(MemoryStore())
    saved = mp.save(store, {"a": np.ones(3), "t": np.array(["x"])})

    with pytest.raises(StructureError):
        saved.load(like={"a": np.ones(3), "t": jax.ShapeDtypeStruct((1,), jnp.float32)})
    assert store.nbytes == 0


# Keys.


@pytest.mark.parametrize("impl", IMPLS)
def test_typed_keys_of_every_generator_come_back_alone_and_in_arrays(memory: MemoryStore, impl: str) -> None:
    key = jax.random.key(42, impl=impl)
    tree = {"key": key, "keys": jax.random.split(key, 6).reshape(2, 3), "none": jax.random.split(key, 3)[:0]}
    saved = mp.save(memory, tree)
    shapes = jax.eval_shape(lambda: tree)
    in_place = jax.tree.map(lambda k: k, tree)
    saved.load_into(in_place)

    for found in (saved.load(like=tree), saved.load(like=shapes), in_place):
        for name, keys in tree.items():
            assert found[name].dtype == keys.dtype
            assert bits(jax.random.key_data(found[name])) == bits(jax.random.key_data(keys))
    assert np.array_equal(jax.random.normal(saved.load(like=tree)["key"]), jax.random.normal(key))
    assert str(saved.leaves["keys"].spec) == f"key<{impl}>[2, 3]"
    plain = saved.load()
    assert bits(plain["keys"]) == bits(jax.random.key_data(tree["keys"]))
    assert bits(saved.load(like={"key": LeafSpec("key", f"key<{impl}>")}, only="key")["key"]) == bits(plain["key"])


def test_a_raw_key_is_an_array_and_a_key_of_another_generator_does_not_fit(memory: MemoryStore) -> None:
    raw = jax.random.PRNGKey(3)
    saved = mp.save(memory, {"raw": raw, "typed": jax.random.key(3)})

    assert bits(saved.load(like={"raw": raw, "typed": mp.SKIP})["raw"]) == bits(raw)
    with pytest.raises(StructureError, match=r"saved key<threefry2x32>, `like` key<rbg>"):
        saved.load(like={"raw": raw, "typed": jax.random.key(0, impl="rbg")})
    with pytest.raises(StructureError, match="another kind"):
        saved.load(like={"raw": raw, "typed": raw})


def test_sharded_keys_come_back_sharded(memory: MemoryStore) -> None:
    grid = mesh(4)
    keys = jax.device_put(jax.random.split(jax.random.key(0), 8), NamedSharding(grid, P("x")))
    saved = mp.save(memory, {"k": keys})
    found = saved.load(like={"k": keys})["k"]

    assert found.sharding == keys.sharding
    assert bits(jax.random.key_data(found)) == bits(jax.random.key_data(keys))


# Shardings.

SPECS = [P("x"), P(None, "x"), P("x", "y"), P(("x", "y")), P("y", "x"), P(None, ("y", "x")), P(), P("y")]


@pytest.mark.parametrize("saved_as", SPECS, ids=str)
def test_an_array_saved_under_one_sharding_loads_under_every_other(
    memory: MemoryStore, saved_as: PartitionSpec
) -> None:
    grid = mesh(2, 2)
    data = np.arange(8 * 12, dtype=np.int16).reshape(8, 12)
    saved = mp.save(memory, {"x": sharded(data, grid, *saved_as)})

    for spec in SPECS:
        sharding = NamedSharding(grid, spec)
        found = saved.load(like={"x": jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)})["x"]
        assert found.sharding == sharding
        assert np.array_equal(found, data)
    assert np.array_equal(saved.load()["x"], data)
    assert np.array_equal(saved.leaf("x")[3:5, ::-5], data[3:5, ::-5])
    assert torch.equal(saved.load(like={"x": torch.empty((8, 12), dtype=torch.int16)})["x"], torch.from_numpy(data))


def test_a_sharded_array_is_stored_as_boxes_and_a_replicated_one_once(root: pathlib.Path) -> None:
    grid = mesh(2, 2)
    data = np.arange(32, dtype=np.float32).reshape(4, 8)
    saved = mp.save(
        root, {"rows": sharded(data, grid, "x"), "all": sharded(data, grid), "tiles": sharded(data, grid, "x", "y")}
    )
    table = saved._opened.stored.table

    assert {path: len(array.boxes) for path, array in table.arrays.items()} == {"rows": 2, "all": 1, "tiles": 4}
    assert saved.nbytes == 3 * 128
    (pack,) = (root / "0").glob("*.safetensors")
    assert 3 * 128 < pack.stat().st_size < 3 * 128 + 2 * 4096
    assert b'"tiles@2,4"' in pack.read_bytes()
    assert saved.verify().nbytes == 3 * 128


def test_each_device_reads_its_own_part_only() -> None:
    store = CountingStore(MemoryStore())
    data = np.arange(4 << 20, dtype=np.float32).reshape(4, 1 << 20)
    grid = mesh(4)
    saved = mp.save(store, {"x": sharded(data, grid, "x")})
    store.nbytes = 0
    like = {"x": jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=NamedSharding(grid, P("x")))}

    assert np.array_equal(saved.load(like=like)["x"], data)
    assert store.nbytes == data.nbytes


def test_committed_stays_committed_and_uncommitted_stays_free(memory: MemoryStore) -> None:
    free, fixed = jnp.ones(4), jax.device_put(jnp.ones(4), jax.devices()[2])
    found = mp.save(memory, {"a": free, "b": fixed, "c": free}).load(
        like={
            "a": free,
            "b": fixed,
            "c": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[3])),
        }
    )

    assert [array.committed for array in found.values()] == [False, True, True]
    assert [array.device.id for array in found.values()] == [0, 2, 3]
    other = sharded(np.ones(4, np.float32), mesh(4), "x")
    assert jax.jit(lambda x, y: x + y)(found["a"], other).sharding.device_set == other.sharding.device_set


def test_what_was_saved_shared_comes_back_under_the_sharding_of_each_place(memory: MemoryStore) -> None:
    x = jnp.arange(8.0)
    grid = mesh(4)
    split = sharded(x, grid, "x")
    found = mp.save(memory, {"a": x, "b": x, "c": x}).load(like={"a": split, "b": split, "c": x})

    assert found["a"] is found["b"]
    assert (found["a"].sharding, found["c"].committed) == (split.sharding, False)


def test_shapes_of_a_sharded_program_take_their_devices_from_the_mesh_in_use(memory: MemoryStore) -> None:
    grid = jax.make_mesh((4,), ("x",))
    x = jax.device_put(jnp.arange(8.0), NamedSharding(grid, P("x")))
    saved = mp.save(memory, {"x": x, "y": np.ones(2)})
    like = {"x": jax.eval_shape(lambda v: v * 2, x), "y": np.zeros(2)}
    assert isinstance(like["x"].sharding.mesh, jax.sharding.AbstractMesh)

    with pytest.raises(StructureError, match=r"mesh without devices(.|\n)*jax.set_mesh"):
        saved.load_into(like)
    assert like["y"].tolist() == [0, 0]
    with jax.set_mesh(grid):
        assert saved.load(like=like)["x"].sharding.is_equivalent_to(x.sharding, 1)
    with jax.set_mesh(jax.make_mesh((2,), ("x",))), pytest.raises(StructureError, match="mesh without devices"):
        saved.load(like=like)


def test_a_sharding_that_does_not_divide_a_leaf_is_told_before_anything_is_read() -> None:
    store = CountingStore(MemoryStore())
    saved = mp.save(store, {"a": np.ones(100, np.float32), "x": np.ones(6, np.float32)})
    like = {
        "a": np.ones(100, np.float32),
        "x": jax.ShapeDtypeStruct((6,), jnp.float32, sharding=NamedSharding(mesh(4), P("x"))),
    }

    with pytest.raises(StructureError, match="does not divide"):
        saved.load(like=like)
    assert store.nbytes == 0


PARTIAL = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import milepost as mp

mesh = Mesh(np.array(jax.devices()), "x")
sharding = NamedSharding(mesh, PartitionSpec("x"))
x = jax.make_array_from_callback((8,), sharding, lambda index: np.arange(8.0, dtype=np.float32)[index])
try:
    mp.save("memory://", {"p": [x]})
except mp.UnsupportedLeafError as error:
    print(error)
saved = mp.save("memory://", {"p": np.arange(8.0, dtype=np.float32)})
elsewhere = NamedSharding(Mesh(np.array(jax.devices()[:2]), "x"), PartitionSpec("x"))
for like in (sharding, elsewhere):
    found = saved.load(like={"p": jax.ShapeDtypeStruct((8,), np.float32, sharding=like)})["p"]
    print([np.asarray(shard.data).tolist() for shard in found.addressable_shards])
"""


def test_an_array_of_which_this_process_holds_a_part_is_refused_and_can_be_read(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    commands = [[sys.executable, "-c", PARTIAL, address, str(rank)] for rank in range(2)]
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    runs = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        for command in commands
    ]
    results = [run.communicate(timeout=120) for run in runs]
    texts = [out for out, _ in results]

    assert [run.returncode for run in runs] == [0, 0], results
    for text in texts:
        assert "p/0: this process holds 4 of its 8 elements" in text
    assert texts[0].splitlines()[-2:] == ["[[0.0, 1.0], [2.0, 3.0]]", "[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]"]
    assert texts[1].splitlines()[-2:] == ["[[4.0, 5.0], [6.0, 7.0]]", "[]"]


# Trees of the libraries around JAX.


class Train(flax.struct.PyTreeNode):
    params: Any
    opt: Any
    key: Any
    step: int


def test_a_whole_training_state_resumes_bit_for_bit(root: pathlib.Path) -> None:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, 100)))

    def init() -> Train:
        params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.zeros(2)}
        return Train(params, optimizer.init(params), jax.random.key(1), 0)

    @jax.jit
    def step(state: Train) -> Train:
        key, use = jax.random.split(state.key)
        grads = jax.tree.map(lambda p: jax.random.normal(use, p.shape, p.dtype), state.params)
        updates, opt = optimizer.update(grads, state.opt, state.params)
        return Train(optax.apply_updates(state.params, updates), opt, key, state.step + 1)

    state = step(step(init()))
    saved = mp.save(root, {"train": state})
    resumed = saved.at("train").load(like=jax.eval_shape(init))
    for _ in range(3):
        state, resumed = step(state), step(resumed)

    assert jax.tree.structure(resumed) == jax.tree.structure(state)
    differ = jax.tree.map(lambda a, b: bits(raw(a)) != bits(raw(b)), state, resumed)
    assert not jax.tree.reduce(lambda a, b: a or b, differ)


def raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_equinox_modules_come_back_with_their_functions_from_like(memory: MemoryStore) -> None:
    model, other = (eqx.nn.MLP(2, 1, 4, 2, key=jax.random.key(seed)) for seed in (0, 1))
    saved = mp.save(memory, {"model": eqx.filter(model, eqx.is_array)})
    arrays, static = eqx.partition(other, eqx.is_array)
    found = eqx.combine(saved.load(like={"model": arrays})["model"], static)

    assert np.array_equal(found(jnp.ones(2)), model(jnp.ones(2)))
    with pytest.raises(StructureError, match="cannot be changed in place"):
        saved.load_into({"model": arrays})


def test_nnx_states_come_back_and_tied_parameters_stay_tied(memory: MemoryStore) -> None:
    class Net(nnx.Module):
        def __init__(self, seed: int) -> None:
            rngs = nnx.Rngs(seed)
            self.embed, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
            self.head.kernel = self.embed.kernel
            self.norm, self.drop = nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.drop(self.norm(self.head(self.embed(x))))

    model = Net(0)
    model(jnp.ones((3, 4)))
    saved = mp.save(memory, {"net": nnx.state(model)})
    definition, state = nnx.split(Net(5))
    other = nnx.merge(definition, saved.load(like={"net": state})["net"])

    assert other.embed.kernel is other.head.kernel
    assert np.array_equal(other(jnp.ones((3, 4))), model(jnp.ones((3, 4))))
    with pytest.raises(StructureError, match="cannot be changed in place"):
        saved.load_into({"net": state})


# Iterators of Grain.


class Doubling(grain.transforms.Map):
    def map(self, element: Any) -> Any:
        return element * 2


def dataset() -> Any:
    return iter(grain.MapDataset.range(40).shuffle(seed=3).map(Doubling()).repeat(2).batch(4))


def loader() -> Any:
    sampler = grain.samplers.IndexSampler(num_records=40, shuffle=True, seed=3, num_epochs=2)
    return iter(
        grain.DataLoader(
            data_source=grain.sources.RangeDataSource(0, 40, 1), sampler=sampler, operations=[grain.transforms.Batch(4)]
        )
    )


@pytest.mark.parametrize("make", [dataset, loader])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_iterators_of_grain_go_on_in_the_middle_of_an_epoch(memory: MemoryStore, make: Callable[[], Any]) -> None:
    one, other, alone = make(), make(), make()
    for _ in range(7):
        next(one)
    saved = mp.save(memory, {"data": PerProcess(one), "step": 7})
    rest = [np.asarray(batch).tolist() for batch in one]
    saved.load_into({"data": PerProcess(other), "step": 0})
    saved.at("data").load_into(alone)

    assert len(rest) == 13
    assert [np.asarray(batch).tolist() for batch in other] == rest
    assert [np.asarray(batch).tolist() for batch in alone] == rest


# From one framework to another.

COMMON = [
    "bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "complex64", "bfloat16",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
]  # fmt: skip


@pytest.mark.parametrize("name", COMMON)
def test_arrays_go_from_torch_to_jax_to_numpy_to_torch_bit_for_bit(memory: MemoryStore, name: str) -> None:
    data = numbers(dtype_of(name)).reshape(4, 6)
    movers: dict[int, Any] = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
    dtype = getattr(torch, name)
    first = torch.from_numpy(data.view(movers[data.itemsize])).view(dtype)
    in_jax = mp.save(memory, {"x": first}).load(like={"x": jax.ShapeDtypeStruct((4, 6), data.dtype)})
    in_numpy = mp.save(memory, in_jax).load(like={"x": np.zeros((4, 6), data.dtype)})
    in_torch = mp.save(memory, in_numpy).load(like={"x": torch.empty((4, 6), dtype=dtype)})

    assert [type(tree["x"]).__module__.split(".")[0] for tree in (in_jax, in_numpy, in_torch)] == [
        "jaxlib",
        "numpy",
        "torch",
    ]
    assert bits(first) == bits(in_jax["x"]) == bits(in_numpy["x"]) == bits(in_torch["x"]) == bits(data)


def test_a_module_of_pytorch_takes_parameters_that_jax_saved(memory: MemoryStore) -> None:
    params = {"weight": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(2)}
    model = torch.nn.Linear(3, 2)
    mp.save(memory, {"model": params}).load_into({"model": model})

    assert (model.weight.tolist(), model.bias.tolist()) == ([[0, 1, 2], [3, 4, 5]], [1, 1])
