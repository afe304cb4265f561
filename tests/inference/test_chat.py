"""Chat templates: rendering as templates expect, and every way that one can fail."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from clk_models import CHATML
from clkiln.errors import ModelError
from clkiln.inference.chat import render

USER = [{"role": "user", "content": "Hi <b> & 'you'"}]


def run(template: str | None, messages: Any = USER, **options: Any) -> str:
    return render(messages, template, **{"bos": "<s>", "eos": "</s>", **options})


def test_chatml() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b> & 'you'<|im_end|>\n"
    )
    assert run(CHATML, messages) == expected + "<|im_start|>assistant\n"
    assert run(CHATML, messages, add_generation_prompt=False) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{% if true %}\na\n{% endif %}\nb", "a\nb"),
        ("x\n    {% if true %}a{% endif %}", "x\na"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ 'no tools' if tools is none }}{{ tools is defined }}", "no toolsTrue"),
        ("{{ nothing }}|{{ messages[0]['name'] is defined }}", "|False"),
        ("{{ messages[0].content | trim | upper }}", "HI <B> & 'YOU'"),
    ],
)
def test_helpers_and_whitespace(template: str, expected: str) -> None:
    assert run(template) == expected


def test_strftime_now() -> None:
    assert run("{{ strftime_now('%Y') }}") in {
        str(datetime.now().year),
        str(datetime.now().year - 1),
    }


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('only user\n messages') }}",
            "refuses these messages: only user messages",
        ),
        ("{% for %}", "failed: "),
        ("{{ nothing.at.all }}", "failed: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", "failed: division by zero"),
        ("{{ messages.append(1) }}", "failed: .*unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "failed: .*unsafe"),
        ("{% include 'x' %}", "failed: "),
        ("{% for i in range(10**9) %}{% endfor %}", "failed: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed: maximum recursion"),
        ("", "no chat template; clkiln run --raw"),
        (None, "no chat template; clkiln run --raw"),
    ],
)
def test_failures_are_one_line(template: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        run(template)
    assert "\n" not in str(caught.value)


def test_messages_are_not_changed_by_a_template() -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(ModelError):
        run("{{ messages[0].update(role='y') }}", messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_no_template_costs_no_import() -> None:
    code = (
        "import sys; from clkiln.inference.chat import render\n"
        "from clkiln.errors import ModelError\n"
        "try: render([], None, bos='', eos='')\n"
        "except ModelError as error: assert 'template' in str(error)\n"
        "else: raise SystemExit('rendered without a template')\n"
        "assert 'jinja2' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
