"""A model as it lies on disk, whatever the format: configuration, weights, tokenizer, template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .config import ModelConfig
from .gguf import GGUFFile
from .tokenizer import Tokenizer
from .weights import Weights


@dataclass(frozen=True)
class Model:
    """An opened model. Weights are read from the file's memory map when they are asked for."""

    path: Path
    config: ModelConfig
    weights: Weights
    #: The Jinja program that turns messages into a prompt, or None.
    chat_template: str | None
    _make_tokenizer: Callable[[], Tokenizer]

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, built anew at each call. Raises ``ModelError`` and its kin."""
        return self._make_tokenizer()


def open_model(path: str | Path, quantize: str | None = None) -> Model:
    """Open the model at ``path``, a .gguf file.

    Raises :class:`~clkiln.errors.ModelError` for a file that is missing, damaged or inconsistent,
    :class:`~clkiln.errors.UnsupportedModel` for a sound one that asks for what clkiln lacks.
    """
    if quantize is not None:
        raise UsageError(f"{path}: quantize={quantize!r} is for weights that are floats")
    file = GGUFFile.open(path)
    config = ModelConfig.from_gguf(file)
    template = file.metadata.get("tokenizer.chat_template")
    return Model(
        path=file.path,
        config=config,
        weights=Weights(file, config),
        chat_template=template if isinstance(template, str) else None,
        _make_tokenizer=lambda: Tokenizer.from_gguf(file.metadata),
    )
