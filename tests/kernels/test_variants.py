"""What ``--variant`` asks for, and what it means for single operations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clk_cases import TINY
from clkiln.errors import UsageError
from clkiln.kernels import SPECS
from clkiln.kernels.types import Workload
from clkiln.kernels.variants import KINDS, VariantRequest, choice_fact, kinds_of

WITH_IMAGES = [op for op in SPECS if "image" in kinds_of(op)]
BUFFERS_ONLY = [op for op in SPECS if "image" not in kinds_of(op)]
words = st.sampled_from([*KINDS, *(f"{op}={kind}" for op in SPECS for kind in kinds_of(op))])
requests = st.lists(words, max_size=5)
quick = settings(max_examples=100, deadline=None, derandomize=True)


@quick
@given(requests)
def test_the_text_of_a_request_is_the_request(values: list[str]) -> None:
    request = VariantRequest.parse(values)
    assert VariantRequest.parse(str(request).split()) == request
    assert (str(request) == "") == (not values)


@quick
@given(requests)
def test_a_single_operation_goes_before_all_of_them(values: list[str]) -> None:
    """And the last word on either counts."""
    request = VariantRequest.parse(values)
    general = [value for value in values if "=" not in value]
    for op in SPECS:
        own = [value.partition("=")[2] for value in values if value.partition("=")[0] == op]
        if own:
            assert request.kind(op) == own[-1]
        elif general and general[-1] in kinds_of(op):
            assert request.kind(op) == general[-1]
        else:
            assert request.kind(op) is None


@pytest.mark.parametrize(
    "value",
    ["", "=", "texture", "Buffer", "gemv", "gemv=", "=texture", "gemv=texture", "gemm2=image"]
    + [f"{op}=image" for op in BUFFERS_ONLY],
)
def test_bad_requests_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"^variant "):
        VariantRequest.parse([value])


def test_every_operation_has_buffers() -> None:
    """But for the conversion into images, which nothing needs where there are none."""
    assert [op for op in SPECS if "buffer" not in kinds_of(op)] == ["to_image"]


def test_every_operation_of_a_model_has_images() -> None:
    """The roofs are yardsticks, of memory and of arithmetic."""
    assert BUFFERS_ONLY == ["roof_fma", "roof_read"]


def test_choices_are_kept_apart() -> None:
    first, second = (Workload.parse(text) for text in TINY["gemv"][:2])
    names = {
        choice_fact(request, workload, digest)
        for request in ("image", "gemv=image", "buffer")
        for workload in (first, second)
        for digest in ("a", "b")
    }
    assert len(names) == 12
