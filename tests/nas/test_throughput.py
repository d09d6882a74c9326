from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cli import app
from nas.recipe import recipe_named
from nas.settings import Mixing
from nas.throughput import Course, Throughputs, compare, course_of


def test_both_loops_are_timed_in_every_segment() -> None:
    course = Course("digits", "mpcvit:vit_4_4_32_demo", batch=16, batches=2, segments=3, warm_up=1)
    found = compare(course)
    assert (len(found.ours), len(found.plain)) == (3, 3)
    assert min(found.ours + found.plain) > 0


def test_the_ratio_is_that_of_medians() -> None:
    assert Throughputs((1.0, 6.0, 3.0), (2.0, 100.0, 1.0), "cpu").ratio == 1.5


def test_a_segment_fits_into_an_epoch() -> None:
    with pytest.raises(ValueError, match="a segment needs 3600"):
        compare(Course("digits", "mpcvit:vit_4_4_32_demo", batch=300))


def test_a_course_is_that_of_its_recipe() -> None:
    course = course_of(recipe_named("mpcvit-cifar10-teacher"), "cifar10:data", amp="bf16")
    assert (course.model, course.image_px, course.batch, course.amp) == ("mpcvit:vit_7_4_32", 32, 128, "bf16")
    assert course.policy is not None and course.policy.rand_augment == "rand-m9-mstd0.5-inc1"
    assert isinstance(course.mixing, Mixing)
    with pytest.raises(ValueError, match="has no plain loop beside it"):
        course_of(recipe_named("mpcvit-cifar10-retrain-kd-mu0.5"), "cifar10:data")
    with pytest.raises(ValueError, match="unknown amp 'fp8'"):
        course_of(recipe_named("mpcvit-cifar10-teacher"), "cifar10:data", amp="fp8")


def test_the_verb_tells_every_turn() -> None:
    words = ["bench", "training", "vitas-digits-tiny-retrain", "--batches", "1", "--segments", "3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (len(told["ours_images_per_s"]), told["data"], told["batch"]) == (3, "digits", 24)
    assert told["ratio"] == pytest.approx(told["ours_median"] / told["plain_median"])
