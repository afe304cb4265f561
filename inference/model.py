"""A model as it lies on disk, whatever the format: configuration, weights, tokenizer, template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .config import ModelConfig
from .gguf import GGUFFile
from .hf import HFDirectory
from .hf_config import read_config
from .hf_tokenizer import read_tokenizer
from .tensors import TensorFiles
from .tokenizer import Tokenizer
from .weights import Weights


@dataclass(frozen=True)
class Model:
    """An opened model. Weights are read from the files' memory maps when they are asked for."""

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
    """Open the model at ``path``: a .gguf file, or a directory as the ``transformers`` library
    writes it, with ``config.json`` and safetensors files.

    ``quantize`` (``q4_0``, ``q8_0``) is the coding into which matrices of floats are brought when
    they are loaded. Matrices that the file has quantised, and those whose columns are no multiple
    of 32, stay as they are.

    Raises :class:`~clkiln.errors.ModelError` for a file that is missing, damaged or inconsistent,
    :class:`~clkiln.errors.UnsupportedModel` for a sound one that asks for what clkiln lacks,
    :class:`~clkiln.errors.UsageError` for another ``quantize``, or a model without such matrices.
    """
    path = Path(path)
    return _open_directory(path, quantize) if path.is_dir() else _open_gguf(path, quantize)


def _open_gguf(path: Path, quantize: str | None) -> Model:
    file = GGUFFile.open(path)
    source = _quantised(file, quantize)
    config = ModelConfig.from_gguf(file, source)
    template = file.metadata.get("tokenizer.chat_template")
    return Model(
        path=path,
        config=config,
        weights=Weights(source, config),
        chat_template=template if isinstance(template, str) else None,
        _make_tokenizer=lambda: Tokenizer.from_gguf(file.metadata, config.vocab),
    )


def _open_directory(path: Path, quantize: str | None) -> Model:
    directory = HFDirectory.open(path)
    source = _quantised(directory, quantize)
    config = read_config(directory, source)
    return Model(
        path=path,
        config=config,
        weights=Weights(source, config),
        chat_template=directory.chat_template(),
        _make_tokenizer=lambda: read_tokenizer(directory, config.vocab),
    )


def _quantised(source: TensorFiles, quantize: str | None) -> TensorFiles:
    if quantize is None:
        return source
    # Imported here: most models come quantised.
    from .quantised import QuantisedFiles

    return QuantisedFiles(source, quantize)
