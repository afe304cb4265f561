"""A model directory as the ``transformers`` library writes it: what lies in it, under our names.

``config.json``, weights in ``model.safetensors`` or in shards that ``model.safetensors.index.json``
lists, and beside them what a tokenizer and a chat need. Weights stay in the files' memory maps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from numpy.typing import NDArray

from ..errors import ModelError
from .files import INDEX, MAX_JSON, WEIGHTS, parse_object, read_bytes
from .safetensors import SafetensorsFile
from .tensors import WHOLE, TensorInfo

#: Bytes up to which a tokenizer is read, many times what any needs.
MAX_TOKENIZER = 256 << 20

#: Names of the ``transformers`` library -> GGUF's; in a layer, and outside of it.
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)\.(weight|bias)", re.ASCII)
_BLOCK = re.compile(r"blk\.([0-9]+)\.(.+)\.(weight|bias)", re.ASCII)
#: Buffers that old versions saved; they follow from the configuration.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor; one that it has none for keeps its own."""
    layer = _LAYER.fullmatch(name)
    if layer and layer[2] in _INNER:
        return f"blk.{layer[1]}.{_INNER[layer[2]]}.{layer[3]}"
    return _OUTER.get(name, name)


def hf_name(name: str) -> str:
    """The inverse of :func:`gguf_name`."""
    block = _BLOCK.fullmatch(name)
    if block:
        inner = {ours: theirs for theirs, ours in _INNER.items()}.get(block[2])
        return f"model.layers.{block[1]}.{inner}.{block[3]}" if inner else name
    return {ours: theirs for theirs, ours in _OUTER.items()}.get(name, name)


class HFDirectory:
    """An opened directory: a :class:`~.tensors.TensorFiles`, and the small files as objects."""

    def __init__(
        self, path: Path, config: bytes, shards: list[SafetensorsFile], place: Mapping[str, int]
    ) -> None:
        self.path = path
        #: ``config.json``.
        self.config = parse_object(config, str(path / "config.json"))
        self._config_bytes, self._shards = config, shards
        self._place = {gguf_name(name): (shards[n], name) for name, n in place.items()}
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {ours: shard.tensors[name] for ours, (shard, name) in self._place.items()}
        )

    @classmethod
    def open(cls, path: str | Path) -> HFDirectory:
        """Read ``config.json`` and map the weights.

        Raises ``ModelError`` for a file that is missing, damaged or contradicts the index, and
        ``UnsupportedModel`` for a tensor of a dtype that clkiln does not know.
        """
        path = Path(path)
        config = read_bytes(path / "config.json", MAX_JSON)
        if config is None:
            raise ModelError(f"{path} is no model directory: it has no config.json{_hint(path)}")
        shards, place = _Weights(path).open()
        return cls(path, config, shards, place)

    @property
    def name(self) -> str:
        """The directory's name; ``owner/name`` for a snapshot in a hub cache."""
        path = self.path.resolve()
        repository = path.parent.parent.name
        if path.parent.name == "snapshots" and repository.startswith("models--"):
            return repository.removeprefix("models--").replace("--", "/")
        return path.name

    def raw(self, name: str, rows: slice = WHOLE) -> NDArray[Any]:
        """A view of a tensor or some rows, by GGUF's name; ``ModelError`` for an unknown one."""
        if name not in self._place:
            raise ModelError(f"{self.path} has no tensor {hf_name(name)}")
        shard, own = self._place[name]
        return shard.raw(own, rows)

    def place(self, name: str) -> tuple[Path, str]:
        """The file that holds a tensor, and its name there; for one that is not, where it lacks."""
        if name in self._place:
            shard, own = self._place[name]
            return shard.path, own
        return self.path, hf_name(name)

    def digest(self) -> str:
        """Identity in 32 hex digits: sha256 of the configuration and of each file's header and
        size. As that of a GGUF file it does not tell apart what differs in weights only."""
        digest = hashlib.sha256(self._config_bytes)
        for shard in self._shards:
            digest.update(shard.digest())
        return digest.hexdigest()[:32]

    def json(self, name: str) -> dict[str, Any]:
        """A small JSON file of the directory; empty where there is none."""
        data = read_bytes(self.path / name, MAX_JSON)
        return {} if data is None else parse_object(data, str(self.path / name))

    @cached_property
    def generation(self) -> dict[str, Any]:
        """``generation_config.json``: how the model's makers sample, and where answers end."""
        return self.json("generation_config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """``tokenizer_config.json``."""
        return self.json("tokenizer_config.json")

    def chat_template(self) -> str | None:
        """The chat template, from the file of its own where there is one."""
        data = read_bytes(self.path / "chat_template.jinja", MAX_JSON)
        if data is not None:
            return data.decode("utf-8", "replace")
        own = self.json("chat_template.json").get("chat_template")
        template = own or self.tokenizer_config.get("chat_template")
        if isinstance(template, list):
            # Several with names; the one called default is meant where nobody asks for another.
            named = [entry for entry in template if isinstance(entry, dict)]
            template = next((e.get("template") for e in named if e.get("name") == "default"), None)
        return template if isinstance(template, str) else None


class _Weights:
    """The safetensors files of a directory, held against their index."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> tuple[list[SafetensorsFile], dict[str, int]]:
        """The files, and for each tensor by its name there the number of its file."""
        if (self.path / WEIGHTS).exists():
            files = [WEIGHTS]
            index = None
        else:
            index = self.index()
            files = sorted(set(index.values()))
        shards = [self.shard(name) for name in files]
        place: dict[str, int] = {}
        for number, shard in enumerate(shards):
            for name in shard.tensors:
                if index is not None and index.get(name) != files[number]:
                    self.contradiction(f"tensor {name!r} lies in {files[number]}, which it denies")
                if not name.endswith(_IGNORED_SUFFIXES):
                    place[name] = number
        for name, file in (index or {}).items():
            if name not in shards[files.index(file)].tensors:
                self.contradiction(f"tensor {name!r} does not lie in {file}")
        return shards, place

    def contradiction(self, what: str) -> NoReturn:
        raise ModelError(f"{self.path / INDEX} is inconsistent: {what}; download the model again")

    def index(self) -> dict[str, str]:
        data = read_bytes(self.path / INDEX, MAX_JSON)
        if data is None:
            raise ModelError(f"{self.path} has no {WEIGHTS} and no {INDEX}{_hint(self.path)}")
        found = parse_object(data, str(self.path / INDEX)).get("weight_map")
        if not isinstance(found, dict) or not found:
            self.contradiction("it has no weight_map")
        for name, file in found.items():
            # A name and no path: an index leads nowhere out of its directory.
            if not isinstance(file, str) or not file.strip(".") or set(file) & set("/\\:\0"):
                self.contradiction(f"tensor {name!r} lies in {file!r}, which is no file name")
        return found

    def shard(self, name: str) -> SafetensorsFile:
        if not (self.path / name).exists():
            raise ModelError(f"{self.path} lacks {name}, a part of the model; download it again")
        return SafetensorsFile.open(self.path / name)


def _hint(path: Path) -> str:
    """What else a directory has that its owner may have meant."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError:
        return ""
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"; pass its {ggufs[0]} instead"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "; its weights are pickled, convert them to safetensors"
    return ""
