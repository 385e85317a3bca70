# SPDX-License-Identifier: Apache-2.0
"""Trees become leaves and a structure that is data, and leaves become trees of the same make again."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import attrs
import equinox as eqx
import flax.core
import flax.struct
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from milepost import SKIP, LeafSpec, PerProcess, StructureError, UnsupportedLeafError
from milepost.adapters import Classifier
from milepost.errors import FormatError
from milepost.model.structure import MAX_DEPTH, of_process, rebuild, subtree, visible
from milepost.model.tree import Flat, flatten, replaced, setters

CLASSIFY = Classifier()


def flat(tree: Any, **options: Any) -> Flat:
    found = flatten(tree, CLASSIFY, **options)
    # A structure is data: it goes through JSON unchanged, which is all that a checkpoint keeps of it.
    assert msgspec.json.decode(msgspec.json.encode(found.structure)) == found.structure
    return found


def plain(tree: Any) -> Any:
    """The tree as it comes back without `like`."""
    found = flat(tree)
    return rebuild(found.structure, lambda _, stored: found.leaves[stored])


def again(tree: Any) -> Any:
    """The tree made anew in its own containers, from its own leaves, by path."""
    found = flat(tree)
    paths = dict(visible(found.structure))
    return replaced(tree, CLASSIFY, lambda path, _: found.leaves[paths[path]])


class Point(NamedTuple):
    x: Any
    y: Any


class Checked(NamedTuple("Checked", [("n", int)])):
    __slots__ = ()

    def __new__(cls, n: int) -> Any:
        raise AssertionError("a namedtuple is put together without calling its class")


@dataclasses.dataclass
class Layer:
    w: Any
    b: Any = None
    name: str = dataclasses.field(default="layer", metadata={"static": True})
    norm: float = dataclasses.field(init=False, default=1.0)
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        if isinstance(self.w, str):
            raise AssertionError("a dataclass is put together without its `__post_init__`")


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    b: Any = 2


@attrs.frozen
class FrozenAttrs:
    a: Any
    b: Any = attrs.field(default=3, converter=int)


@attrs.define
class Attrs:
    a: Any
    fixed: Any = attrs.field(default=1, metadata={"static": True})


# Containers.


def test_dicts_keep_their_order_and_the_types_of_their_keys() -> None:
    tree = {"z": 1, 3: 2, "3": 3, True: 4, None: 5, 0.5: 6, b"\xff": 7, "": 8, "a/b": 9, -1: 10, "é": 11, "$x": 12}
    found = plain(tree)

    assert list(found.items()) == list(tree.items())
    assert [type(key) for key in found] == [type(key) for key in tree]


def test_paths_tell_keys_of_different_types_apart() -> None:
    assert list(flat({3: 0, "3": 0, "a": [0], "b/c": {"": 0}}).leaves) == ["%int:3", "3", "a/0", "b%2Fc/%str:"]


@pytest.mark.parametrize("key", [(1, 2), frozenset(), 1j, Point, np.datetime64("2026-01-01")], ids=repr)
def test_a_key_without_a_path_is_refused_with_the_path_of_its_dict(key: Any) -> None:
    with pytest.raises(UnsupportedLeafError, match="^a/b: a key of type"):
        flat({"a": {"b": {key: 1}}})


def test_keys_that_would_be_stored_under_one_name_are_refused() -> None:
    with pytest.raises(UnsupportedLeafError, match="a: two keys of a dict are both stored as %float:nan"):
        flat({"a": {float("nan"): 1, float("-nan"): 2}})


@pytest.mark.parametrize(
    "tree",
    [
        {}, [], (), {"a": {}, "b": [], "c": ()}, [[], [[]], ()], None, {"a": None}, [None, None], 0, "text",
        {"a": [1, (2, {"b": 3})]}, [{"a": 1}, {"a": 2}],
    ],
    ids=repr,
)  # fmt: skip
def test_builtin_containers_come_back_as_they_were_empty_ones_and_none_too(tree: Any) -> None:
    assert plain(tree) == tree
    assert again(tree) == tree


def test_a_namedtuple_is_a_tuple_without_like_and_itself_with_it() -> None:
    assert list(flat(Point(1, [2])).leaves) == ["x", "y/0"]
    assert plain(Point(1, [2])) == (1, [2])
    assert again(Point(1, [2])) == Point(1, [2])
    assert type(again(Point(1, 2))) is Point


def test_a_namedtuple_is_made_without_running_code_of_its_class() -> None:
    made = again(Checked._make([3]))

    assert (type(made), made.n) == (Checked, 3)


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        (Layer(1, [2]), {"w": 1, "b": [2], "norm": 1.0}),
        (Frozen(1), {"a": 1, "b": 2}),
        (FrozenAttrs(1, 5), {"a": 1, "b": 5}),
        (Attrs([1]), {"a": [1]}),
    ],
    ids=repr,
)
def test_dataclasses_and_attrs_classes_are_dicts_without_like_and_themselves_with_it(value: Any, fields: Any) -> None:
    assert plain(value) == fields
    assert again(value) == value
    assert again(value) is not value
    assert type(again(value)) is type(value)


def test_static_fields_come_from_like_alone() -> None:
    layer = Layer(1, name="mine")

    assert "name" not in flat(layer).leaves
    assert again(layer).name == "mine"


def test_putting_a_dataclass_together_runs_none_of_its_code() -> None:
    made = replaced(Layer(1), CLASSIFY, lambda path, value: "text" if path == "w" else value)

    assert made.w == "text"


def test_a_field_that_was_never_set_is_left_out() -> None:
    @dataclasses.dataclass(slots=True)
    class Late:
        a: int
        b: int = dataclasses.field(init=False)

    assert plain(Late(1)) == {"a": 1}
    assert not hasattr(again(Late(1)), "b")


def test_subclasses_of_builtin_containers_keep_what_else_they_hold() -> None:
    counts = collections.defaultdict(list, a=[1])
    ordered = collections.OrderedDict(b=1, a=2)
    tally = collections.Counter("aab")
    stack = type("Stack", (list,), {})([1, 2])
    stack.label = "mine"
    size = torch.Size([2, 3])
    tree = [counts, ordered, tally, stack, size]
    made = again(tree)

    assert made == tree
    assert [type(value) for value in made] == [type(value) for value in tree]
    assert made[0]["new"] == []
    assert list(made[1]) == ["b", "a"]
    assert made[3].label == "mine"
    assert plain(tree) == [dict(counts), dict(ordered), dict(tally), [1, 2], (2, 3)]


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = wrap(tree)
    return tree


@pytest.mark.parametrize("wrap", [lambda t: [t], lambda t: {"a": t}, Frozen, PerProcess])
def test_a_tree_may_be_as_deep_as_the_limit_and_no_deeper(wrap: Callable[[Any], Any]) -> None:
    whole = nested(MAX_DEPTH, wrap)

    assert flat(whole).structure
    again(whole)
    plain(whole)
    with pytest.raises(UnsupportedLeafError, match=f"nested deeper than {MAX_DEPTH} levels"):
        flat(nested(MAX_DEPTH + 1, wrap))


def test_a_container_that_contains_itself_is_refused_and_told_so() -> None:
    ring: dict[str, Any] = {"a": 1}
    ring["self"] = [ring]

    with pytest.raises(UnsupportedLeafError, match="contains itself"):
        flat(ring)


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (len, "Leave functions out"), (lambda: 1, "Leave functions out"), ({1}, "a sorted list"),
        (frozenset([1]), "a sorted list"), (collections.deque([1]), "as a list"), (range(3), "as a list"),
        (object(), "state_dict"), (iter([1]), "state_dict"), (Point, "Leave functions out"), (open, "Leave"),
        (collections.ChainMap({}), "as a dict"), (np.array((None,), [("a", object)])[()], "as a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_with_its_path_and_the_remedy(value: Any, remedy: str) -> None:
    with pytest.raises(UnsupportedLeafError, match=f"(?s)^a/0: .*{remedy}"):
        flat({"a": [value]})
    with pytest.raises(UnsupportedLeafError, match="^the root: "):
        flat(value)


# What is shared.


def test_an_array_that_stands_twice_is_stored_once() -> None:
    w = np.arange(3.0)
    found = flat({"a": w, "b": [w], "c": w[:], "d": w.copy(), "e": w[1:]})

    assert list(found.leaves) == ["a", "d", "e"]
    assert found.aliases == {"b/0": "a", "c": "a"}
    back = rebuild(found.structure, lambda _, stored: found.leaves[stored])
    assert back["a"] is back["b"][0] is back["c"]


def test_views_that_differ_are_not_shared() -> None:
    w = np.arange(4, dtype="<i4")
    views = [w, w[::-1], w.reshape(2, 2), w.view("<f4"), w[:2], np.broadcast_to(w, (2, 4)), w.view(">i4")]

    assert not flat(views).aliases


def test_empty_arrays_are_never_shared() -> None:
    assert not flat([np.zeros((0, 2)), np.zeros((0, 2))]).aliases


def test_torch_views_of_other_signs_are_not_shared() -> None:
    z = torch.tensor([1 + 2j, 3 + 4j])

    assert not flat([z, z.conj(), z.imag, z.conj().imag, z[:1], z.real]).aliases
    assert flat([z, z.detach(), torch.nn.Parameter(z)]).aliases == {"1": "0", "2": "0"}


def test_jax_arrays_are_shared_when_they_are_one_object() -> None:
    x = jnp.arange(3)

    assert flat({"a": x, "b": x, "c": x + 0}).aliases == {"b": "a"}


def test_short_lived_arrays_are_not_taken_for_each_other() -> None:
    class Fresh:
        def state_dict(self) -> Any:
            return {"x": jnp.asarray([random.random()]) + 1}

        def load_state_dict(self, state: Any) -> None: ...

    assert not flat([Fresh() for _ in range(50)]).aliases


def test_an_object_that_stands_twice_is_stored_once() -> None:
    model = torch.nn.Linear(2, 3)
    found = flat({"a": model, "b": model, "c": torch.nn.Linear(2, 3)})

    assert found.aliases == {"b": "a"}
    assert list(found.leaves) == ["a/weight", "a/bias", "c/weight", "c/bias"]
    assert dict(visible(found.structure))["b/weight"] == "a/weight"
    assert subtree(found.structure, "b/bias") == (0, "a/bias")


def test_a_shared_object_may_hold_shared_arrays() -> None:
    w = np.arange(3.0)

    class Tied:
        def state_dict(self) -> Any:
            return {"w": w, "again": w}

        def load_state_dict(self, state: Any) -> None: ...

    tied = Tied()
    found = flat({"w": w, "a": tied, "b": tied})

    assert list(found.leaves) == ["w"]
    assert set(dict(visible(found.structure)).values()) == {"w"}
    assert plain({"w": w, "a": tied, "b": tied})["b"]["again"] is w


def test_the_state_of_an_object_may_not_hold_another_object_with_state() -> None:
    class Outer:
        def state_dict(self) -> Any:
            return {"rng": random.Random(1)}

        def load_state_dict(self, state: Any) -> None: ...

    with pytest.raises(UnsupportedLeafError, match="o/rng: the state of the Outer there holds a Random"):
        flat({"o": Outer()})


def test_an_error_of_the_users_state_dict_tells_where_it_was_raised() -> None:
    class Broken:
        def state_dict(self) -> Any:
            raise RuntimeError("not ready")

        def load_state_dict(self, state: Any) -> None: ...

    with pytest.raises(RuntimeError, match="not ready") as caught:
        flat({"a": [Broken()]})
    assert caught.value.__notes__ == ["raised by the Broken at a/0 of the tree"]


def test_a_refusal_by_a_provider_has_its_path() -> None:
    with pytest.raises(UnsupportedLeafError, match=r"^a/0: random.SystemRandom has no state"):
        flat({"a": [random.SystemRandom()]})


def test_objects_of_a_like_are_not_asked_for_their_state_unless_it_is_compared() -> None:
    class Silent:
        def state_dict(self) -> Any:
            raise AssertionError("asked")

        def load_state_dict(self, state: Any) -> None: ...

    found = flat({"loader": Silent(), "model": torch.nn.Linear(1, 1)}, present=True)

    assert found.whole == ["loader"]
    assert list(found.leaves) == ["model/weight", "model/bias"]


# Processes, and what is to be skipped.


def test_a_value_per_process_lies_under_its_rank_and_is_seen_without_it() -> None:
    found = flat({"data": PerProcess({"pos": 3, "rng": [1]}), "step": 7}, rank=2)

    assert list(found.leaves) == ["data/2/pos", "data/2/rng/0", "step"]
    assert found.unranked == {"data/2/pos": "data/pos", "data/2/rng/0": "data/rng/0"}
    assert list(dict(visible(found.structure, 2))) == ["data/pos", "data/rng/0", "step"]
    assert list(dict(visible(found.structure, None))) == ["data/pos", "data/rng/0", "step"]
    assert subtree(found.structure, "data/pos", 2) == subtree(found.structure, "data/2/pos", 2) == (0, "data/2/pos")
    assert subtree(flat(PerProcess([7])).structure, "0") == (0, "0/0")


def test_values_of_several_processes_are_seen_by_rank() -> None:
    structure = {"dict": {"data": {"per_process": {"0": {"dict": {"pos": 0}}, "1": {"dict": {"pos": 0}}}}}}

    assert list(dict(visible(structure, None))) == ["data/0/pos", "data/1/pos"]
    assert list(dict(visible(structure, 1))) == ["data/pos"]
    assert rebuild(structure, lambda path, _: path) == {"data": {0: {"pos": "data/0/pos"}, 1: {"pos": "data/1/pos"}}}
    with pytest.raises(StructureError, match="expected process 2, found processes 0, 1"):
        dict(visible(structure, 2))


def test_a_tree_made_anew_keeps_its_marks_of_processes() -> None:
    assert again({"data": PerProcess([1])}) == {"data": PerProcess([1])}


def test_skip_and_specs_are_leaves_of_a_like() -> None:
    spec = LeafSpec("array", "float32", (2,))

    assert flat({"a": SKIP, "b": spec}, present=True).leaves == {"a": SKIP, "b": spec}
    assert repr(SKIP) == "milepost.SKIP"


# Nodes that JAX knows.


class Train(flax.struct.PyTreeNode):
    params: Any
    step: int
    apply: Any = flax.struct.field(pytree_node=False)


def test_flax_structs_are_dicts_without_like_and_keep_static_fields_with_it() -> None:
    state = Train(params={"w": jnp.ones(2)}, step=3, apply=len)
    made = again(state)

    assert list(flat(state).leaves) == ["params/w", "step"]
    assert list(plain(state)) == ["params", "step"]
    assert type(made) is Train
    assert (made.step, made.apply) == (3, len)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(1e-3), optax.sgd(1e-2, momentum=0.9), optax.chain(optax.clip(1.0), optax.adam(1e-3)),
        optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), optax.MultiSteps(optax.adam(1e-3), 4),
        optax.partition({"a": optax.adam(1e-3), "b": optax.set_to_zero()}, {"w": "a", "b": "b"}), optax.lbfgs(),
    ],
)  # fmt: skip
def test_states_of_optax_come_back_in_their_types(optimizer: Any) -> None:
    state = optimizer.init({"w": jnp.ones((2, 3)), "b": jnp.zeros(3)})
    made = again(state)

    assert jax.tree.structure(made) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, made, state))


def test_frozen_dicts_keep_the_types_of_their_keys() -> None:
    tree = flax.core.freeze({"layers": {0: 1, 1: 2}, "1": 3})

    assert set(flat(tree).leaves) == {"layers/%int:0", "layers/%int:1", "1"}
    assert plain(tree) == {"layers": {0: 1, 1: 2}, "1": 3}
    assert again(tree) == tree
    assert isinstance(again(tree), flax.core.FrozenDict)


def test_equinox_modules_are_stored_without_their_functions() -> None:
    model = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    arrays = eqx.filter(model, eqx.is_array)
    made = again(arrays)

    assert "layers/0/weight" in flat(arrays).leaves
    assert type(made) is eqx.nn.MLP
    assert made.layers[0].weight is model.layers[0].weight


def test_functions_in_an_equinox_module_are_refused_with_the_remedy() -> None:
    with pytest.raises(UnsupportedLeafError, match=r"model/activation: .*(.|\n)*equinox.filter"):
        flat({"model": eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))})


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)])
        self.layers[1].kernel = self.layers[0].kernel
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def test_states_of_nnx_come_back_with_their_types_and_stay_tied() -> None:
    definition, state = nnx.split(Net(nnx.Rngs(0)))
    found = flat({"state": state})
    made = again({"state": state})["state"]
    model = nnx.merge(definition, made)

    assert any(path.startswith("state/layers/%int:0/kernel") for path in found.leaves)
    assert type(made) is type(state)
    assert model.layers[0].kernel is model.layers[1].kernel


def test_classes_registered_by_children_alone_have_numbered_fields() -> None:
    @jax.tree_util.register_pytree_node_class
    class Two:
        def __init__(self, a: Any, b: Any) -> None:
            self.a, self.b = a, b

        def tree_flatten(self) -> Any:
            return (self.a, self.b), None

        @classmethod
        def tree_unflatten(cls, _: Any, children: Any) -> Any:
            return cls(*children)

    made = again(Two([1], None))

    assert list(flat(Two([1], None)).leaves) == ["0/0", "1"]
    assert plain(Two([1], None)) == {"0": [1], "1": None}
    assert (made.a, made.b) == ([1], None)


def test_a_registered_node_without_children_stays_a_node() -> None:
    state = optax.EmptyState()

    assert flat({"a": state, "b": optax.MaskedNode()}).structure == {
        "dict": {"a": {"namedtuple": {}}, "b": {"namedtuple": {}}}
    }
    assert again(state) == state
    empty = jax.tree_util.Partial(len)
    assert again(empty).func is len
    assert plain(empty) == {"0": [], "1": {}} or plain(empty) == {"0": (), "1": {}}


# Changing leaves where they stand.


def settable(tree: Any) -> set[str]:
    return set(dict(setters(tree, CLASSIFY)))


def test_leaves_can_be_replaced_in_containers_that_change_and_in_no_others() -> None:
    tree = {"a": 1, "b": [2, (3, [4])], "c": Layer(5, [6]), "d": Frozen(7, [8]), "e": Point(9, {"f": 10})}
    more = {"g": FrozenAttrs(1), "h": Attrs(2), "i": PerProcess(3), "j": PerProcess([4]), "k": torch.nn.Linear(1, 1)}

    assert settable(tree) == {"a", "b/0", "b/1/1/0", "c/w", "c/b/0", "c/norm", "d/b/0", "e/y/f"}
    assert settable(more) == {"h/a", "i", "j/0"}


def test_leaves_of_immutable_nodes_of_jax_cannot_be_replaced() -> None:
    arrays = eqx.filter(eqx.nn.Linear(2, 2, key=jax.random.key(0)), eqx.is_array)
    frozen = [Train({}, 1, len), flax.core.freeze({"a": 1}), arrays, optax.adam(1e-3).init({"w": jnp.ones(2)})]

    assert {path for path in settable(frozen) if not path.startswith("3/0/")} == set()


def test_replacing_a_leaf_changes_it_where_it_stands() -> None:
    tree = {"a": 1, "b": [2], "c": Layer(3), "i": PerProcess(4)}
    for _, put in setters(tree, CLASSIFY):
        put("new")

    assert tree == {"a": "new", "b": ["new"], "c": tree["c"], "i": PerProcess("new")}
    assert (tree["c"].w, tree["c"].b, tree["c"].norm) == ("new", "new", "new")


# Structures that nobody wrote.


@pytest.mark.parametrize(
    "structure",
    [
        1, None, [], "", "a", {}, {"dict": []}, {"dict": 0}, {"list": {}}, {"list": 0}, {"set": []}, {"os": {"a": 0}},
        {"dict": {}, "list": []}, {"dict": {"a": "b"}}, {"dict": {"a": "a"}}, {"dict": {"a": 0, "b": "a/c"}},
        {"dict": {"a": {"dict": {"b": "a"}}}}, {"list": [0, "7"]}, {"list": [0, "-1"]}, {"list": [0, "٠"]},
        {"dict": {"a": {"dict": {"x": 0}}, "b": {"dict": {"y": "a"}}, "c": "b"}}, {"per_process": {"x": 0, "y": 0}},
        {"per_process": []}, {"state": None}, {"state": [0]}, {"dict": {"%int:x": 0}}, {"namedtuple": [0]}, 0.5, True,
    ],
    ids=repr,
)  # fmt: skip
def test_a_malformed_structure_is_a_typed_error_and_nothing_else(structure: Any) -> None:
    for walk in (
        lambda: dict(visible(structure, None)), lambda: dict(visible(structure, 0)),
        lambda: rebuild(structure, lambda *_: 1), lambda: subtree(structure, "a/b"), lambda: subtree(structure, "0"),
    ):  # fmt: skip
        try:
            walk()
        except (FormatError, StructureError, KeyError):
            pass


def test_a_structure_deeper_than_any_that_is_written_is_refused() -> None:
    structure: Any = 0
    for _ in range(5_000):
        structure = {"list": [structure]}

    for walk in (lambda: dict(visible(structure)), lambda: rebuild(structure, lambda *_: 1)):
        with pytest.raises(FormatError, match="malformed structure"):
            walk()


def test_a_small_structure_cannot_stand_for_a_tree_without_end() -> None:
    members: dict[str, Any] = {"a0": {"dict": {"x": 0}}}
    for i in range(1, 40):
        members[f"a{i}"] = {"dict": {"l": f"a{i - 1}", "r": f"a{i - 1}"}}

    with pytest.raises(FormatError, match="within a shared object"):
        dict(visible({"dict": members}))
    with pytest.raises(FormatError, match="within a shared object"):
        rebuild({"dict": members}, lambda *_: 1)


# Any tree at all.


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.integers() | st.binary(max_size=3) | st.none()
BUILTIN = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=30,
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.builds(Point, inner, inner)
        | st.builds(Frozen, inner, inner)
        | st.builds(Attrs, inner)
        | st.builds(PerProcess, inner)
        | st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict)
    ),
    max_leaves=30,
)


@given(BUILTIN)
def test_every_tree_of_builtin_containers_comes_back_equal(tree: Any) -> None:
    assert plain(tree) == tree
    assert repr(plain(tree)) == repr(tree)


@given(TREES, st.integers(0, 3))
def test_every_tree_comes_back_equal_in_its_own_containers(tree: Any, rank: int) -> None:
    found = flat(tree, rank=rank)
    paths = dict(visible(found.structure, rank))

    assert set(paths.values()) == set(found.leaves)
    assert list(paths) == [found.unranked.get(path, path) for path in found.leaves]
    assert again(tree) == tree
    for path, stored in paths.items():
        assert of_process(*subtree(found.structure, path, rank), rank) == (0, stored)
