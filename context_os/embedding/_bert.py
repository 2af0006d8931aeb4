"""A BERT encoder (Devlin et al., 2018, arXiv 1810.04805) as an ONNX graph for onnxruntime, made of its weights.

The graph reads one text: it takes ``input_ids``, int64 of shape ``(1, tokens)``, and gives ``embedding``, float32 of
shape ``(1, dimensions)``: the mean over the text's tokens (Reimers and Gurevych, 2019, arXiv 1908.10084) at unit
length. Several texts in one call gain nothing on a processor, and would need a mask, padding and scales of their own.

Quantised, weights are int8 with a scale for each output channel (each row of an embedding table), and what enters
a product has one scale for the text. Between a layer's two wide products a few tokens are many times larger than all
others, and one scale would leave these nothing: there every token is brought to the same root mean square first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from context_os.errors import EmbeddingError

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_Weights = Mapping[str, NDArray[Any]]
_ORT = "com.microsoft"
_EPSILON = 1e-12


def build(weights: _Weights, heads: int, target: Path, *, quantised: bool) -> None:
    """Write the graph to ``target``. Raises EmbeddingError for weights that are not a BERT encoder's."""
    try:
        encoder = _Encoder({name.removeprefix("bert."): each for name, each in weights.items()}, heads, quantised)
        data = encoder.graph()
    except KeyError as error:
        raise EmbeddingError(f"the weights are not those of a BERT encoder: they lack {error}") from None
    target.write_bytes(data)


class _Encoder:
    """Collects nodes and constants; every method returns the name of its result."""

    def __init__(self, weights: _Weights, heads: int, quantised: bool) -> None:
        self.weights = weights
        self.heads = heads
        self.quantised = quantised
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def graph(self) -> bytes:
        from onnx import TensorProto, helper

        state = self.embeddings()
        layer = 0
        while f"encoder.layer.{layer}.output.dense.weight" in self.weights:
            state = self.layer(f"encoder.layer.{layer}", state)
            layer += 1
        # The mean and the sum of the tokens point the same way, and only the direction stays.
        total = self.op("ReduceSum", state, self.whole([1]), keepdims=0)
        self.nodes.append(helper.make_node("LpNormalization", [total], ["embedding"], axis=-1, p=2))
        size = self.weights["embeddings.word_embeddings.weight"].shape[1]
        asked = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])
        given = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, size])
        made = helper.make_graph(self.nodes, "encoder", [asked], [given], self.constants)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(_ORT, 1)]
        model: bytes = helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()
        return model

    def embeddings(self) -> str:
        weights = self.weights
        types = weights["embeddings.token_type_embeddings.weight"]
        places = weights["embeddings.position_embeddings.weight"] + types[0]
        length = self.op("Shape", "input_ids", start=1, end=2)
        here = self.op("Slice", self.constant(places), self.whole([0]), length, self.whole([0]))
        words = self.look_up(weights["embeddings.word_embeddings.weight"])
        return self.norm("embeddings", self.op("Add", words, here))

    def layer(self, name: str, state: str) -> str:
        projections = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        query, key, value = self.split(self.linear(projections, state))
        seen = self.op("MultiHeadAttention", query, key, value, domain=_ORT, num_heads=self.heads)
        seen = self.linear([f"{name}.attention.output.dense"], seen)
        state = self.norm(f"{name}.attention.output", self.op("Add", state, seen))
        wide = self.op("Gelu", self.linear([f"{name}.intermediate.dense"], state))
        back = self.linear([f"{name}.output.dense"], wide, uneven=True)
        return self.norm(f"{name}.output", self.op("Add", state, back))

    def linear(self, names: list[str], state: str, *, uneven: bool = False) -> str:
        """One product for several layers that read the same state, their results side by side. ``uneven``: tokens
        differ much in size."""
        weight = np.concatenate([self.weights[f"{name}.weight"] for name in names]).T
        bias = self.constant(np.concatenate([self.weights[f"{name}.bias"] for name in names]))
        if not self.quantised:
            return self.op("Add", self.op("MatMul", state, self.constant(weight)), bias)
        columns, scales = map(self.constant, _quantised(weight, axis=0))
        if not uneven:
            return self.op("DynamicQuantizeMatMul", state, columns, scales, "", bias, domain=_ORT)
        even, shrunk = self.even(state, len(weight))
        product = self.op("DynamicQuantizeMatMul", even, columns, scales, domain=_ORT)
        return self.op("Add", self.op("Div", product, shrunk), bias)

    def even(self, state: str, size: int) -> tuple[str, str]:
        """Every token's row at a root mean square of one, and by how much each was multiplied."""
        from onnx import helper

        results = f"even{len(self.nodes)}", f"shrunk{len(self.nodes)}"
        ones = self.constant(np.ones(size, dtype=np.float32))
        node = helper.make_node("SimplifiedLayerNormalization", [state, ones], results, axis=-1, epsilon=_EPSILON)
        self.nodes.append(node)
        return results

    def look_up(self, table: NDArray[Any]) -> str:
        from onnx import TensorProto

        if not self.quantised:
            return self.op("Gather", self.constant(table), "input_ids")
        rows, scales = _quantised(table, axis=1)
        found = self.op("Cast", self.op("Gather", self.constant(rows), "input_ids"), to=TensorProto.FLOAT)
        return self.op("Mul", found, self.op("Gather", self.constant(scales[:, None]), "input_ids"))

    def norm(self, name: str, state: str) -> str:
        scale, shift = (self.constant(self.weights[f"{name}.LayerNorm.{part}"]) for part in ("weight", "bias"))
        return self.op("LayerNormalization", state, scale, shift, epsilon=_EPSILON)

    def split(self, state: str) -> tuple[str, str, str]:
        from onnx import helper

        query, key, value = (f"part{len(self.nodes)}{letter}" for letter in "qkv")
        self.nodes.append(helper.make_node("Split", [state], [query, key, value], axis=-1, num_outputs=3))
        return query, key, value

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        result = f"state{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], domain=domain, **attributes))
        return result

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def whole(self, numbers: list[int]) -> str:
        return self.constant(np.array(numbers, dtype=np.int64))


def _quantised(weight: NDArray[Any], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The weight as int8, and the scale of each slice across ``axis``."""
    scales = (np.abs(weight).max(axis=axis) / 127).astype(np.float32)
    scales[scales == 0] = 1.0
    return np.round(weight / np.expand_dims(scales, axis)).astype(np.int8), scales
