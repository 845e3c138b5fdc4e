"""Which layers of a network can get adapters, and what is said where there are none."""

import keras
import pytest

from tests.attention import attention_network
from transfer.backbone.projections import projections_in, targets_in
from transfer.errors import BackboneError


@keras.saving.register_keras_serializable("tests")
class WindowedAttention(keras.layers.Layer):
    """A layer of layers, as libraries have them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(4, name="mix")

    def call(self, inputs):
        return self.inner(inputs)


def test_layers_inside_of_layers_are_found_and_those_of_attention_told_apart():
    images = keras.Input((8, 4))
    nested = keras.Sequential([keras.Input((8, 4)), keras.layers.Dense(4, name="deep")], name="nested")
    constrained = keras.layers.Dense(4, kernel_constraint="non_neg", name="constrained")
    x = nested(WindowedAttention(name="windows")(images))
    x = constrained(keras.layers.Dense(4, name="Attention_gate")(x))
    shared = keras.layers.Dense(4, name="twice")
    x = keras.layers.Conv1D(4, 1)(shared(shared(x)))
    found = {each.name: each.in_attention for each in projections_in(keras.Model(images, x).layers)}
    assert found == {"windows/mix": True, "nested/deep": False, "Attention_gate": True, "twice": False}


def test_a_kernel_of_several_axes_is_a_matrix_from_what_it_sums_over_to_the_rest():
    found = {each.name: each for each in projections_in(attention_network().layers)}
    sizes = {name.rpartition("/")[2]: (each.inputs, each.outputs) for name, each in found.items() if "block_1" in name}
    per_head = dict.fromkeys(["query", "key", "value"], (8, 6))
    assert sizes == {**per_head, "attention_output": (6, 8), "block_1_wide": (8, 16), "block_1_narrow": (16, 8)}

    # The axis over which this kernel sums is its second one.
    layer = keras.layers.EinsumDense("bij,kj->bik", output_shape=(None, 5))
    layer.build((None, 2, 4))
    (turned,) = projections_in([layer])
    assert (turned.kernel.shape, turned.axes, turned.inputs, turned.outputs) == ((5, 4), (1, 0), 4, 5)


@pytest.mark.parametrize(
    ("targets", "layer", "message"),
    [
        ("attention", keras.layers.Dense(4, name="mixing"), "there are 1 Dense or EinsumDense outside of attention"),
        ("dense", WindowedAttention(name="windows"), "there are 1 Dense or EinsumDense in attention: `windows/mix`"),
        ("all", keras.layers.Conv1D(4, 1), "the layers with weights there are 1 Conv1D"),
    ],
)
def test_where_there_are_no_such_layers_it_says_what_there_is(targets, layer, message):
    images = keras.Input((8, 4))
    with pytest.raises(BackboneError, match=f"lora.targets is `{targets}`, and tiny has no .*{message}"):
        targets_in(keras.Model(images, layer(images)), targets, name="tiny")
