"""``clkiln models``: what lies in the models folder, one model in detail, removing one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ModelError
from .common import CONTEXT, confirmed, echo, model_argument, note, print_json, shared, wrapped

if TYPE_CHECKING:
    from ..inference.installed import Installed


@click.group("models", context_settings=CONTEXT, invoke_without_command=True)
@shared("json")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the models in the models folder; show or remove one.

    They get there by clkiln pull, from the catalog or from the hub. CLKILN_MODELS_DIR names the
    folder.
    """
    if context.invoked_subcommand is not None:
        return
    from ..inference.catalog import models_dir
    from ..inference.installed import installed

    rows = [_row(model) for model in installed()]
    if as_json:
        print_json(rows)
    elif not rows:
        note(f"no model in {models_dir()}; fetch one with: clkiln pull smollm2-135m")
    else:
        for row in rows:
            _print_row(row)


def _row(model: Installed) -> dict[str, Any]:
    from ..inference.describe import describe

    found: dict[str, Any] = {}
    problem = None if model.complete else "not fetched in full: clkiln pull goes on"
    if problem is None:
        try:
            found = describe(model.path, thorough=False)
            problem = found["unsupported"]
        except ModelError as error:
            problem = str(error)
    fields = ("format", "quantisation", "architecture")
    return {
        "name": model.name,
        "bytes": model.size,
        **{name: found.get(name) for name in fields},
        "path": str(model.path),
        "problem": problem,
    }


def _print_row(row: dict[str, Any]) -> None:
    from ..units import readable

    what = [row["format"], row["quantisation"], row["architecture"]]
    echo(row["name"])
    echo("   " + ", ".join([readable(row["bytes"]), *(str(w) for w in what if w)]))
    echo(f"   {row['path']}")
    if row["problem"]:
        wrapped("   cannot run: ", row["problem"])


@command.command("show", context_settings=CONTEXT)
@model_argument
@shared("json")
def show_command(model: str, as_json: bool) -> None:
    """Show what MODEL is, a name or a path: sizes, types of tensors, tokenizer, template.

    Only its header is read. What clkiln cannot run is shown, too, with the reason.
    """
    from ..inference.catalog import resolve
    from ..inference.describe import describe

    found = describe(resolve(model))
    if as_json:
        print_json(found)
    else:
        _print_details(found)


def _print_details(found: dict[str, Any]) -> None:
    from ..units import readable

    line("name", found.get("name"))
    line("file", found["path"])
    parameters = found.get("parameters")
    line("size", f"{readable(found['bytes'])}, {found['format']}"
         + (f", {parameters / 1e6:,.1f} million parameters" if parameters else ""))  # fmt: skip
    line("model", found.get("architecture"))
    line("sizes", _sizes(found))
    if found.get("context"):
        line("context", f"{found['context']:,} tokens")
    if "rope" in found:
        line("rotary", _rope(found["rope"]))
        line("layers", _layers(found))
    types = found.get("tensors", {})
    line("tensors", ", ".join(
        f"{each['count']} {dtype} ({readable(each['bytes'])})" for dtype, each in types.items()
    ))  # fmt: skip
    line("tokenizer", found.get("tokenizer") or "none")
    if "chat_template" in found:
        line("template", "yes" if found["chat_template"] else "none: run --raw")
    if found["unsupported"]:
        line("cannot run", found["unsupported"])


def _sizes(found: dict[str, Any]) -> str:
    if "hidden" not in found:
        return f"{found['layers']} layers" if found.get("layers") else ""
    return (
        f"{found['layers']} layers; hidden {found['hidden']:,}, "
        f"feed-forward {found['intermediate']:,}, vocabulary {found['vocab']:,}; "
        f"{found['heads']} heads of {found['head_dim']}, {found['kv_heads']} for keys and values"
    )


def line(name: str, text: object) -> None:
    if text:
        wrapped(f"{name:<12}", str(text))


def _rope(rope: dict[str, Any]) -> str:
    text = f"base {rope['theta']:,.0f}, {rope['dim']} dimensions, pairs {rope['style']}"
    if rope["scaling"] == "none":
        return text
    return f"{text}, {rope['scaling']} x{rope['factor']:g} over {rope['original_context']:,} tokens"


def _layers(found: dict[str, Any]) -> str:
    words = ["output tied to the embedding" if found["tied"] else "an output of its own"]
    words.append(f"biases of {', '.join(found['biases'])}" if found["biases"] else "no biases")
    words += ["queries and keys normed"] if found["qk_norm"] else []
    return "; ".join(words)


@command.command("rm", context_settings=CONTEXT)
@model_argument
@click.option("--yes", is_flag=True, help="Don't ask.")
@shared("json")
def rm_command(model: str, yes: bool, as_json: bool) -> None:
    """Delete MODEL from the models folder; it asks first.

    MODEL is a name that clkiln models lists, or owner/name for all of a repository.
    """
    from ..inference.installed import belongings, bytes_of, remove
    from ..units import readable

    paths = belongings(model)
    size = readable(sum(map(bytes_of, paths)))
    if not yes and not confirmed(f"Delete {_named(paths)} ({size})?"):
        note("nothing was deleted")
        return
    freed = remove(model)
    if as_json:
        print_json({"model": model, "deleted": [str(path) for path in paths], "bytes": freed})
    else:
        echo(f"deleted {model}: {readable(freed)} freed")


def _named(paths: list[Path]) -> str:
    return f"{paths[0]} and all in it" if paths[0].is_dir() else str(paths[0])
