"""`OPD_TEST_DEVICE`: what a test makes lies on that device, with the same random numbers."""

from __future__ import annotations

import torch

from support.default_device import DefaultDevice


def draw(**options):
    return torch.randn(3, generator=torch.Generator().manual_seed(1), **options)


def test_what_names_no_device_is_made_on_the_one_asked_for():
    with DefaultDevice("meta"):
        assert torch.zeros(2).device.type == "meta"
        assert torch.zeros(2, device="cpu").device.type == "cpu"
        moved = draw(requires_grad=True)
    assert moved.device.type == "meta"
    assert moved.is_leaf
    assert moved.requires_grad


def test_random_numbers_are_those_of_the_generator():
    expected = draw()
    with DefaultDevice("cpu"):
        assert torch.equal(draw(), expected)
