"""A BERT encoder (Devlin et al., 2018, arXiv 1810.04805) as an ONNX graph for onnxruntime, made of its weights.

The graph takes ``input_ids`` and ``attention_mask``, both int64 of shape ``(texts, tokens)``, and gives ``embedding``,
float32 of shape ``(texts, dimensions)``: the mean over a text's tokens (Reimers and Gurevych, 2019, arXiv 1908.10084)
at unit length.

Quantised, weights are int8 with a scale for each output channel (each row of an embedding table), and what enters
a product is scaled row by row. One scale for a whole tensor, as onnxruntime's own dynamic quantisation takes it,
would let the texts of a batch move each other's vectors.
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

        mask = self.op("Cast", "attention_mask", to=TensorProto.INT32)
        state = self.embeddings()
        layer = 0
        while f"encoder.layer.{layer}.output.dense.weight" in self.weights:
            state = self.layer(f"encoder.layer.{layer}", state, mask)
            layer += 1
        self.pool(state)
        size = self.weights["embeddings.word_embeddings.weight"].shape[1]
        whole, real = TensorProto.INT64, TensorProto.FLOAT
        asked = [helper.make_tensor_value_info(n, whole, ["texts", "tokens"]) for n in ("input_ids", "attention_mask")]
        given = [helper.make_tensor_value_info("embedding", real, ["texts", size])]
        made = helper.make_graph(self.nodes, "encoder", asked, given, self.constants)
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

    def layer(self, name: str, state: str, mask: str) -> str:
        projections = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        query, key, value = self.split(self.linear(projections, state))
        seen = self.op("MultiHeadAttention", query, key, value, "", mask, domain=_ORT, num_heads=self.heads)
        seen = self.linear([f"{name}.attention.output.dense"], seen)
        state = self.norm(f"{name}.attention.output", self.op("Add", state, seen))
        wide = self.op("Gelu", self.linear([f"{name}.intermediate.dense"], state))
        return self.norm(f"{name}.output", self.op("Add", state, self.linear([f"{name}.output.dense"], wide)))

    def pool(self, state: str) -> None:
        from onnx import TensorProto, helper

        # The mean and the sum of a text's tokens point the same way, and only the direction stays.
        there = self.op("Unsqueeze", self.op("Cast", "attention_mask", to=TensorProto.FLOAT), self.whole([2]))
        total = self.op("ReduceSum", self.op("Mul", state, there), self.whole([1]), keepdims=0)
        self.nodes.append(helper.make_node("LpNormalization", [total], ["embedding"], axis=-1, p=2))

    def linear(self, names: list[str], state: str) -> str:
        """One product for several layers that read the same state, their results side by side."""
        weight = np.concatenate([self.weights[f"{name}.weight"] for name in names]).T
        bias = self.constant(np.concatenate([self.weights[f"{name}.bias"] for name in names]))
        if not self.quantised:
            return self.op("Add", self.op("MatMul", state, self.constant(weight)), bias)
        # Each row is brought to -1..1 first, so that one constant scale fits all of them.
        top = self.op("ReduceMax", self.op("Abs", state), self.whole([-1]), keepdims=1)
        top = self.op("Max", top, self.constant(np.float32(_EPSILON)))
        step, middle = self.constant(np.float32(1 / 127)), self.constant(np.uint8(128))
        rows = self.op("QuantizeLinear", self.op("Div", state, top), step, middle)
        columns, scales = _quantised(weight, axis=0)
        inputs = (rows, self.constant(columns), step, self.constant(scales), middle)
        product = self.op("MatMulIntegerToFloat", *inputs, domain=_ORT)
        return self.op("Add", self.op("Mul", product, top), bias)

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
